/* From a name to a connected socket: hosts are tried in order, of each the
 * addresses that its name has now, and all of it within one deadline, of which
 * every address gets its share. */
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "redis/conn_internal.h"

enum { KEEPALIVE_S = 15 };

/* ---- sockets ---- */

static void on_socket_closed(uv_handle_t *handle) {
  struct socket *s = handle->data;
  if (--s->open_handles > 0)
    return;
  if (s->writable_fd >= 0)
    close(s->writable_fd);
  free(s);
}

static void close_socket(struct redis_conn *c) {
  struct socket *s = c->socket;
  c->socket = NULL;
  if (s == NULL)
    return;
  s->conn = NULL;
  uv_close(&s->io.handle, on_socket_closed);
  if (s->open_handles > 1)
    uv_close((uv_handle_t *)&s->writable, on_socket_closed);
}

static struct socket *new_socket(struct redis_conn *c, int unix_socket) {
  struct socket *s = malloc(sizeof *s); /* input needs no zeroes */
  if (s == NULL)
    return NULL;
  if (unix_socket)
    uv_pipe_init(c->loop, &s->io.pipe, 0);
  else
    uv_tcp_init(c->loop, &s->io.tcp);
  s->io.handle.data = s->connect.data = s;
  s->writable_fd = -1;
  s->open_handles = 1;
  s->blocked = 0;
  s->conn = c;
  c->socket = s;
  return s;
}

/* All of these are comforts: it works without. */
static void set_options(struct redis_conn *c, struct socket *s) {
  int fd, stall = (int)conn_stall_ms(c);
  if (s->io.handle.type != UV_TCP)
    return;
  uv_tcp_nodelay(&s->io.tcp, 1);
  uv_tcp_keepalive(&s->io.tcp, 1, KEEPALIVE_S);
  if (uv_fileno(&s->io.handle, &fd) == 0)
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &stall, sizeof stall);
}

/* ---- addresses ---- */

static void forget_addresses(struct redis_conn *c) {
  if (c->addresses != NULL)
    uv_freeaddrinfo(c->addresses);
  c->addresses = c->next_address = NULL;
}

static void next_host(struct redis_conn *c);

static void on_connect(uv_connect_t *request, int status) {
  struct socket *s = request->data;
  struct redis_conn *c = s->conn;
  if (c == NULL)
    return;
  if (status == 0)
    status = uv_read_start(&s->io.stream, pipe_alloc, pipe_read);
  if (status < 0) {
    snprintf(c->why, sizeof c->why, "%s", uv_strerror(status));
    dial_next_address(c);
    return;
  }
  set_options(c, s);
  forget_addresses(c);
  handshake_start(c);
}

/* Connects to an address, or gives the next one a try. */
static int try_address(struct redis_conn *c, const struct sockaddr *address) {
  struct socket *s = new_socket(c, 0);
  int rc = s == NULL
               ? UV_ENOMEM
               : uv_tcp_connect(&s->connect, &s->io.tcp, address, on_connect);
  if (rc == 0)
    return 0;
  snprintf(c->why, sizeof c->why, "%s", uv_strerror(rc));
  close_socket(c);
  return -1;
}

/* What is left of the attempt's time is shared by the addresses left. */
static void share_time(struct redis_conn *c, unsigned addresses_left) {
  uint64_t now = conn_time_ms();
  uint64_t left = c->attempt_ms > now ? c->attempt_ms - now : 0;
  c->address_ms = now + left / addresses_left;
  c->state = CONN_CONNECTING;
  conn_arm(c);
}

void dial_next_address(struct redis_conn *c) {
  close_socket(c);
  while (c->next_address != NULL) {
    const struct addrinfo *address = c->next_address;
    unsigned left = (unsigned)(c->options.host_count - c->next_host);
    for (const struct addrinfo *a = address; a != NULL; a = a->ai_next)
      left++;
    c->next_address = address->ai_next;
    if (try_address(c, address->ai_addr) == 0) {
      share_time(c, left);
      return;
    }
  }
  forget_addresses(c);
  next_host(c);
}

/* ---- names ---- */

static void on_resolved(uv_getaddrinfo_t *request, int status,
                        struct addrinfo *addresses) {
  struct resolve *resolve = request->data;
  struct redis_conn *c = resolve->conn;
  free(resolve);
  if (c == NULL) {
    uv_freeaddrinfo(addresses);
    return;
  }
  c->resolve = NULL;
  if (status < 0)
    snprintf(c->why, sizeof c->why, "%s", uv_strerror(status));
  c->addresses = c->next_address = addresses;
  dial_next_address(c);
}

static int start_resolve(struct redis_conn *c, const struct redis_host *host) {
  const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
  struct resolve *resolve = calloc(1, sizeof *resolve);
  char port[16];
  if (resolve == NULL)
    return UV_ENOMEM;
  snprintf(port, sizeof port, "%d", host->port);
  resolve->request.data = resolve;
  int rc = uv_getaddrinfo(c->loop, &resolve->request, on_resolved, host->name,
                          port, &hints);
  if (rc < 0) {
    free(resolve);
    return rc;
  }
  resolve->conn = c;
  c->resolve = resolve;
  c->state = CONN_RESOLVING;
  conn_arm(c);
  return 0;
}

static int try_host(struct redis_conn *c, const struct redis_host *host) {
  union {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
  } address;
  int v6 = strchr(host->name, ':') != NULL;
  snprintf(c->name, sizeof c->name, v6 ? "[%s]:%d" : "%s:%d", host->name,
           host->port);
  if (uv_ip4_addr(host->name, host->port, &address.v4) == 0 ||
      uv_ip6_addr(host->name, host->port, &address.v6) == 0) {
    if (try_address(c, &address.any) < 0)
      return -1;
    share_time(c, 1 + (unsigned)(c->options.host_count - c->next_host));
    return 0;
  }
  int rc = start_resolve(c, host);
  if (rc < 0)
    snprintf(c->why, sizeof c->why, "%s", uv_strerror(rc));
  return rc;
}

static void next_host(struct redis_conn *c) {
  while (c->next_host < c->options.host_count)
    if (try_host(c, &c->options.hosts[c->next_host++]) == 0)
      return;
  char why[WHY_SIZE];
  memcpy(why, c->why, sizeof why);
  conn_drop(c, BACKEND_ECONNECTION, RETRY_SOON, "%s", why);
}

/* libuv reports a failure to connect to a unix socket in the callback. */
static void try_path(struct redis_conn *c) {
  struct socket *s = new_socket(c, 1);
  snprintf(c->name, sizeof c->name, "%s", c->options.path);
  if (s == NULL) {
    conn_drop(c, BACKEND_ECONNECTION, RETRY_SOON, "%s", uv_strerror(UV_ENOMEM));
    return;
  }
  c->next_host = c->options.host_count;
  share_time(c, 1);
  uv_pipe_connect(&s->connect, &s->io.pipe, c->options.path, on_connect);
}

void dial_start(struct redis_conn *c) {
  c->attempt_ms = conn_time_ms() + c->options.connect_timeout_ms;
  c->next_host = 0;
  if (c->options.host_count == 0)
    try_path(c);
  else
    next_host(c);
}

void dial_stop(struct redis_conn *c) {
  close_socket(c);
  forget_addresses(c);
  if (c->resolve != NULL) {
    c->resolve->conn = NULL;
    uv_cancel((uv_req_t *)&c->resolve->request); /* works before it began */
    c->resolve = NULL;
  }
  reader_close(c->reader);
  c->reader = NULL;
}
