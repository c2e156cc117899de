/* From a name to a connected socket: hosts are tried in order, of each the
 * addresses that its name has now, and all of it within one deadline, of which
 * every address gets its share. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "redis/conn_internal.h"
#include "redis/lookup.h"

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

/* Both are comforts: it works without. No TCP_USER_TIMEOUT: the stall limit
 * does its work, and knows which calls may wait longer. */
static void set_options(struct socket *s) {
  if (s->io.handle.type != UV_TCP)
    return;
  uv_tcp_nodelay(&s->io.tcp, 1);
  uv_tcp_keepalive(&s->io.tcp, 1, KEEPALIVE_S);
}

/* ---- addresses ---- */

static void forget_addresses(struct redis_conn *c) {
  if (c->addresses != NULL)
    freeaddrinfo(c->addresses);
  c->addresses = c->next_address = NULL;
}

static void let_go_of_name(struct redis_conn *c);
static void next_host(struct redis_conn *c);

static void on_connect(uv_connect_t *request, int status) {
  struct socket *s = request->data;
  struct redis_conn *c = s->conn;
  if (c == NULL)
    return;
  if (status == 0)
    status = uv_read_start(&s->io.stream, pipe_alloc, pipe_read);
  if (status < 0) {
    snprintf(c->refusal, sizeof c->refusal, "%s", uv_strerror(status));
    dial_next_address(c);
    return;
  }
  set_options(s);
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
  snprintf(c->refusal, sizeof c->refusal, "%s", uv_strerror(rc));
  close_socket(c);
  return -1;
}

/* What is left of the attempt's time is shared by the addresses left, and by
 * the names that have not been looked up. */
static void share_time(struct redis_conn *c, enum conn_state state,
                       unsigned addresses_left) {
  uint64_t now = conn_time_ms();
  uint64_t left = c->attempt_ms > now ? c->attempt_ms - now : 0;
  c->address_ms = now + left / addresses_left;
  c->state = state;
  snprintf(c->refusal, sizeof c->refusal, "no answer");
  conn_arm(c);
}

static unsigned hosts_left(const struct redis_conn *c) {
  return (unsigned)(c->options.host_count - c->next_host);
}

void dial_next_address(struct redis_conn *c) {
  close_socket(c);
  let_go_of_name(c);
  while (c->next_address != NULL) {
    const struct addrinfo *address = c->next_address;
    unsigned left = hosts_left(c);
    for (const struct addrinfo *a = address; a != NULL; a = a->ai_next)
      left++;
    c->next_address = address->ai_next;
    if (try_address(c, address->ai_addr) == 0) {
      share_time(c, CONN_CONNECTING, left);
      return;
    }
  }
  forget_addresses(c);
  next_host(c);
}

/* ---- names ---- */

/* What is found when we no longer wait for it is not taken: it may be old. */
static void on_lookup(struct lookup *l, void *ud, struct addrinfo *addresses,
                      const char *error) {
  struct redis_conn *c = ud;
  int host = 0;
  while (c->lookups[host] != l)
    host++;
  c->lookups[host] = NULL;
  if (c->state != CONN_RESOLVING || host != c->next_host - 1) {
    if (addresses != NULL)
      freeaddrinfo(addresses);
    return;
  }
  snprintf(c->refusal, sizeof c->refusal, "%s", error);
  c->addresses = c->next_address = addresses;
  dial_next_address(c);
}

/* One that is under way since an earlier attempt is waited for again: so there
 * is never more than one for a host. */
static int start_lookup(struct redis_conn *c, const struct redis_host *host) {
  struct lookup **l = &c->lookups[host - c->options.hosts];
  if (*l == NULL)
    *l = lookup_start(c->loop, host->name, host->port, on_lookup, c);
  if (*l == NULL) {
    snprintf(c->refusal, sizeof c->refusal, "%s", uv_strerror(UV_ENOMEM));
    return -1;
  }
  lookup_hold_loop(*l, 1);
  share_time(c, CONN_RESOLVING, 1 + hosts_left(c));
  return 0;
}

/* Stops waiting for the present name, which nothing can interrupt. */
static void let_go_of_name(struct redis_conn *c) {
  for (int i = 0; i < c->options.host_count; i++)
    if (c->lookups[i] != NULL)
      lookup_hold_loop(c->lookups[i], 0);
}

static void abandon_lookups(struct redis_conn *c) {
  for (int i = 0; i < c->options.host_count; i++)
    if (c->lookups[i] != NULL)
      lookup_abandon(c->lookups[i]);
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
    share_time(c, CONN_CONNECTING, 1 + hosts_left(c));
    return 0;
  }
  return start_lookup(c, host);
}

static void next_host(struct redis_conn *c) {
  while (c->next_host < c->options.host_count)
    if (try_host(c, &c->options.hosts[c->next_host++]) == 0)
      return;
  conn_drop(c, BACKEND_ECONNECTION, RETRY_SOON, "%s", c->refusal);
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
  share_time(c, CONN_CONNECTING, 1);
  uv_pipe_connect(&s->connect, &s->io.pipe, c->options.path, on_connect);
}

void dial_start(struct redis_conn *c) {
  c->attempt_ms = conn_time_ms() + c->options.connect_timeout_ms;
  if (!c->next_host_first || hosts_left(c) == 0)
    c->next_host = 0;
  if (c->options.host_count == 0)
    try_path(c);
  else
    next_host(c);
}

void dial_stop(struct redis_conn *c) {
  close_socket(c);
  forget_addresses(c);
  let_go_of_name(c);
  if (c->state == CONN_CLOSED)
    abandon_lookups(c);
  reader_close(c->reader);
  c->reader = NULL;
}
