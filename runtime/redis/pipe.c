/* Commands out and replies in; see conn.h.
 *
 * Commands are written in RESP straight into `out`, which goes to the kernel
 * when nothing is on the wire, when a chunk has gathered, and at the end of a
 * turn: one write per command costs three times as much, one per turn makes
 * client and server take turns. When the kernel takes no more, a poll handle on
 * a duplicate of the socket tells when it does: uv_write would do so, too, but
 * only send() can be told not to raise SIGPIPE in a host that embeds us.
 *
 * Entries are numbered since the connection was made; number n is in
 * ring[n & (capacity - 1)], and the head's reply comes next.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "redis/conn_internal.h"

enum {
  OUT_FIRST = 4 * 1024,  /* bytes of a new buffer */
  OUT_KEEP = 256 * 1024, /* a larger one is given back when it is empty */
  CHUNK_MIN = 4,         /* commands that go out together: a quarter of those */
  CHUNK_MAX = 16,        /* in flight, within these bounds */
  CHUNK_BYTES = 8 * 1024,
  RING_FIRST = 64,
  COMMAND_OVERHEAD = 256 /* bytes of a command beside its arguments, about */
};

/* ---- bytes out ---- */

/* Room for n more; NULL: no memory, now and until the buffer is rolled back. */
static char *reserve(struct bytes *b, size_t n) {
  if (b->failed)
    return NULL;
  if (b->length + n > b->capacity && b->sent > 0 && b->sent >= b->length / 2) {
    memmove(b->data, b->data + b->sent, b->length - b->sent);
    b->length -= b->sent;
    b->sent = 0;
  }
  if (b->length + n > b->capacity) {
    size_t capacity = b->capacity ? b->capacity : OUT_FIRST;
    while (capacity < b->length + n)
      capacity *= 2;
    char *data = realloc(b->data, capacity);
    if (data == NULL) {
      b->failed = 1;
      return NULL;
    }
    b->data = data;
    b->capacity = capacity;
  }
  return b->data + b->length;
}

void bytes_drop(struct bytes *b) {
  free(b->data);
  *b = (struct bytes){0};
}

/* Writes a sign, a number and \r\n at `at`; returns its end. */
static char *put_header(char *at, char sign, size_t number) {
  char digits[20];
  int n = 0;
  do {
    digits[n++] = (char)('0' + number % 10);
    number /= 10;
  } while (number > 0);
  *at++ = sign;
  while (n > 0)
    *at++ = digits[--n];
  *at++ = '\r';
  *at++ = '\n';
  return at;
}

enum { HEADER_MAX = 24 };

void bytes_arg(struct bytes *b, const void *a, size_t a_len, const void *z,
               size_t z_len) {
  char *begin = reserve(b, a_len + z_len + HEADER_MAX + 2), *at = begin;
  if (at == NULL)
    return;
  at = put_header(at, '$', a_len + z_len);
  if (a_len > 0)
    memcpy(at, a, a_len);
  at += a_len;
  if (z_len > 0)
    memcpy(at, z, z_len);
  at += z_len;
  *at++ = '\r';
  *at++ = '\n';
  b->length += (size_t)(at - begin);
}

void bytes_command(struct bytes *b, size_t args, const char *name) {
  char *begin = reserve(b, HEADER_MAX);
  if (begin == NULL)
    return;
  b->length += (size_t)(put_header(begin, '*', args + (name != NULL)) - begin);
  if (name != NULL)
    bytes_arg(b, name, strlen(name), NULL, 0);
}

/* ---- to the kernel ---- */

static void on_writable(uv_poll_t *poll, int status, int events) {
  struct socket *s = poll->data;
  (void)status; /* send() will tell */
  (void)events;
  uv_poll_stop(poll);
  s->blocked = 0;
  if (s->conn != NULL)
    pipe_flush(s->conn);
}

/* Asks to be told when the socket takes more. */
static int wait_writable(struct redis_conn *c, struct socket *s) {
  int fd;
  if (s->writable_fd < 0) {
    if (uv_fileno(&s->io.handle, &fd) < 0 ||
        (s->writable_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)) < 0 ||
        uv_poll_init(c->loop, &s->writable, s->writable_fd) < 0)
      return -1;
    s->writable.data = s;
    uv_unref((uv_handle_t *)&s->writable);
    s->open_handles++;
  }
  s->blocked = 1;
  return uv_poll_start(&s->writable, UV_WRITABLE, on_writable);
}

static void send_bytes(struct redis_conn *c, struct bytes *b) {
  struct socket *s = c->socket;
  int fd;
  while (b->sent < b->length && uv_fileno(&s->io.handle, &fd) == 0) {
    ssize_t n = send(fd, b->data + b->sent, b->length - b->sent, MSG_NOSIGNAL);
    if (n > 0) {
      b->sent += (size_t)n;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (wait_writable(c, s) < 0)
        conn_break(c, "%s", strerror(errno));
      return;
    } else if (errno != EINTR) {
      conn_break(c, "%s", strerror(errno));
      return;
    }
  }
  b->sent = b->length = 0;
  if (b->capacity > OUT_KEEP)
    bytes_drop(b);
}

void pipe_flush(struct redis_conn *c) {
  int ready = c->state == CONN_READY;
  struct bytes *b = ready ? &c->out : &c->greeting;
  if (c->socket == NULL || c->socket->blocked || c->broken || c->reading ||
      b->sent == b->length || !(ready || c->state == CONN_HANDSHAKE))
    return;
  if (ready) {
    if (c->head >= c->flushed) { /* nothing was on the wire */
      c->wire_ms = conn_time_ms();
      c->flushed = c->tail;
      conn_arm(c);
    }
    c->flushed = c->tail;
  }
  send_bytes(c, b);
}

/* ---- the FIFO ---- */

static struct entry *entry_at(struct redis_conn *c, uint64_t number) {
  return &c->ring[number & (c->capacity - 1)];
}

static int grow_ring(struct redis_conn *c, size_t need) {
  size_t capacity = c->capacity ? c->capacity : RING_FIRST;
  while (capacity < need)
    capacity *= 2;
  if (capacity == c->capacity)
    return 0;
  struct entry *ring = calloc(capacity, sizeof *ring);
  if (ring == NULL)
    return -1;
  for (uint64_t i = c->head; i < c->tail; i++)
    ring[i & (capacity - 1)] = *entry_at(c, i);
  free(c->ring);
  c->ring = ring;
  c->capacity = capacity;
  return 0;
}

void pipe_hold_loop(struct redis_conn *c) {
  if (c->head == c->tail)
    c->allowed_ms = 0;
  void (*hold)(uv_handle_t *) = c->head < c->tail ? uv_ref : uv_unref;
  hold((uv_handle_t *)&c->timer);
  if (c->socket != NULL)
    hold(&c->socket->io.handle);
}

/* Refuses a command; the sentence goes where conn_why finds it. */
static int overloaded(struct redis_conn *c, const char *limit) {
  snprintf(c->why, sizeof c->why, "Redis at %.100s: %s", c->name, limit);
  return BACKEND_EOVERLOADED;
}

int conn_begin(struct redis_conn *c, struct redis_call *call, uint32_t count,
               size_t bytes) {
  assert(c->making == NULL && count > 0);
  conn_start(c);
  int status = conn_status(c);
  if (status < 0)
    return status;
  if (conn_is_silent(c))
    return BACKEND_ECONNECTION;
  size_t in_flight = (size_t)(c->tail - c->head) + count;
  if (in_flight > REDIS_IN_FLIGHT_MAX)
    return overloaded(c, "in-flight limit: 8192 commands wait for a reply");
  if (c->out.length > c->out.sent &&
      c->out.length - c->out.sent + bytes + COMMAND_OVERHEAD * count >
          REDIS_UNSENT_MAX)
    return overloaded(c, "unsent limit: 32 MiB wait to be sent");
  if (in_flight > c->capacity && grow_ring(c, in_flight) < 0)
    return BACKEND_ENOMEM;
  call->first = c->tail;
  call->count = count;
  call->answered = 0;
  c->making = call;
  c->making_length = c->out.length - c->out.sent;
  return 0;
}

void conn_command(struct redis_conn *c, int expect, size_t args,
                  const char *name) {
  *entry_at(c, c->tail++) = (struct entry){c->making, expect};
  bytes_command(&c->out, args, name);
}

void conn_arg(struct redis_conn *c, const void *bytes, size_t length) {
  bytes_arg(&c->out, bytes, length, NULL, 0);
}

void conn_arg2(struct redis_conn *c, const void *a, size_t a_len, const void *b,
               size_t b_len) {
  bytes_arg(&c->out, a, a_len, b, b_len);
}

void conn_arg_int(struct redis_conn *c, int64_t value) {
  char text[24];
  int n = snprintf(text, sizeof text, "%lld", (long long)value);
  bytes_arg(&c->out, text, (size_t)n, NULL, 0);
}

void conn_spoil(struct redis_conn *c) {
  c->out.failed = 1;
}

/* How many commands go out together. */
static uint64_t chunk(const struct redis_conn *c) {
  uint64_t quarter = (c->tail - c->head) / 4;
  return quarter < CHUNK_MIN   ? CHUNK_MIN
         : quarter > CHUNK_MAX ? CHUNK_MAX
                               : quarter;
}

int conn_commit(struct redis_conn *c) {
  struct redis_call *call = c->making;
  assert(call != NULL && c->tail == call->first + call->count);
  c->making = NULL;
  if (c->out.failed) {
    c->tail = call->first;
    c->out.length = c->out.sent + c->making_length;
    c->out.failed = 0;
    return BACKEND_ENOMEM;
  }
  c->stats.commands += call->count;
  if (call->first == c->head)
    pipe_hold_loop(c);
  if (c->state == CONN_READY &&
      (c->head >= c->flushed || c->tail - c->flushed >= chunk(c) ||
       c->out.length - c->out.sent >= CHUNK_BYTES))
    pipe_flush(c);
  return 0;
}

/* Turns what is left of a call into tombstones. */
static void bury(struct redis_conn *c, struct redis_call *call) {
  uint64_t end = call->first + call->count;
  for (uint64_t i = call->first > c->head ? call->first : c->head; i < end; i++)
    if (entry_at(c, i)->call == call)
      entry_at(c, i)->call = NULL;
}

void conn_cancel(struct redis_conn *c, struct redis_call *call) {
  bury(c, call);
}

void pipe_fail(struct redis_conn *c, int status) {
  c->failing = 1;
  while (c->head < c->tail) {
    struct redis_call *call = entry_at(c, c->head++)->call;
    if (call == NULL)
      continue;
    if (call != &c->probe) /* of which each entry is for itself */
      bury(c, call);
    call->on_reply(call, call->answered, status, NULL, NULL);
  }
  c->failing = 0;
  c->flushed = c->tail;
  pipe_hold_loop(c);
  c->out.sent = c->out.length = 0;
  c->greeting.sent = c->greeting.length = 0;
}

/* ---- replies in ---- */

const char *conn_tape(const struct redis_conn *c, size_t *length) {
  *length = c->tape_length;
  return c->tape;
}

void pipe_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
  struct socket *s = handle->data;
  (void)suggested;
  *buf = uv_buf_init(s->input, sizeof s->input);
}

void conn_desync(struct redis_conn *c, const char *what) {
  c->stats.desyncs++;
  static const char said[] = "Protocol error, "; /* hiredis begins so */
  size_t skip = sizeof said - 1;
  conn_drop(c, BACKEND_ECONNECTION, RETRY_SOON, "protocol error: %s",
            strncmp(what, said, skip) == 0 ? what + skip : what);
}

/* A value that was skipped: its call fails, the connection goes on. */
static void too_large(struct redis_conn *c, struct redis_call *call,
                      const struct reply *reply) {
  snprintf(c->why, sizeof c->why,
           "Redis at %.100s: reply limit: the value has %lld bytes, the most "
           "is %d",
           c->name, (long long)reply->integer, REPLY_BYTES_MAX);
  bury(c, call);
  call->on_reply(call, call->answered, BACKEND_ETOOLARGE, NULL, NULL);
}

static void take_reply(struct redis_conn *c, const char *tape) {
  struct reply reply;
  const char *rest = reply_read(tape, &reply);
  if (c->state == CONN_HANDSHAKE) {
    if (c->greeted == c->greeting_count)
      conn_desync(c, "a reply without a command");
    else
      handshake_reply(c, &reply, rest);
    return;
  }
  if (c->head == c->flushed) {
    conn_desync(c, "a reply without a command");
    return;
  }
  struct entry entry = *entry_at(c, c->head);
  int possible = entry.expect | REPLY_ERROR;
  if (entry.expect & REPLY_STRING)
    possible |= REPLY_TOO_LARGE;
  if (!(reply.type & possible)) {
    conn_desync(c, "a reply of a kind that its command cannot have");
    return;
  }
  c->head++;
  if (entry.call == NULL)
    c->stats.discarded++;
  else if (reply.type == REPLY_TOO_LARGE)
    too_large(c, entry.call, &reply);
  else
    entry.call->on_reply(entry.call, entry.call->answered++, 0, &reply, rest);
}

void pipe_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
  struct socket *s = stream->data;
  struct redis_conn *c = s->conn;
  const char *tape;
  int rc = 0;
  if (c == NULL || n == 0)
    return;
  if (n < 0) {
    conn_drop(c, BACKEND_ECONNECTION, RETRY_SOON, "%s",
              n == UV_EOF ? "the server closed the connection"
                          : uv_strerror((int)n));
    return;
  }
  c->wire_ms = conn_time_ms();
  c->reading = 1;
  reader_feed(c->reader, buf->base, (size_t)n);
  while (s->conn != NULL &&
         (rc = reader_next(c->reader, &tape, &c->tape_length)) == 1) {
    c->tape = tape;
    take_reply(c, tape); /* may drop the connection */
  }
  c->reading = 0;
  if (s->conn == NULL)
    return;
  if (rc < 0)
    conn_desync(c, reader_error(c->reader));
  else if (c->head == c->tail)
    pipe_hold_loop(c);
}

/* ---- is the stream in step? ----
 *
 * One call for all probes, an entry being as good as the other. Each asks for
 * a word of its own: a number that is random at first, and then grows. */

enum { WORD = 16 }; /* digits */

void pipe_choose_word(struct redis_conn *c) {
  if (getrandom(&c->word, sizeof c->word, GRND_NONBLOCK) < 0)
    c->word = uv_hrtime() ^ conn_random(c, 1 << 20);
}

/* The word of the probe after the n last ones. */
static void write_word(const struct redis_conn *c, uint64_t n,
                       char text[WORD + 1]) {
  snprintf(text, WORD + 1, "%016llx", (unsigned long long)(c->word + n));
}

int conn_is_probe(const struct redis_conn *c, const struct reply *reply) {
  char word[WORD + 1];
  write_word(c, 0, word);
  return reply->type == REPLY_STRING && reply->length == WORD &&
         memcmp(reply->text, word, WORD) == 0;
}

static void on_probe(struct redis_call *call, uint32_t index, int status,
                     const struct reply *reply, const char *rest) {
  struct redis_conn *c =
      (struct redis_conn *)((char *)call - offsetof(struct redis_conn, probe));
  (void)index;
  (void)rest;
  c->probes--;
  int lost =
      status == 0 && reply->type == REPLY_STRING && !conn_is_probe(c, reply);
  c->word++;
  if (lost)
    conn_desync(c, "the replies are out of step");
}

void conn_probe(struct redis_conn *c) {
  char word[WORD + 1];
  c->probe.on_reply = on_probe;
  if (conn_begin(c, &c->probe, 1, WORD) < 0)
    return;
  write_word(c, (uint64_t)c->probes, word);
  conn_command(c, REPLY_STRING, 1, "ECHO");
  conn_arg(c, word, WORD);
  c->probes += conn_commit(c) == 0;
}

void conn_suspect(struct redis_conn *c) {
  if (c->probes == 0 && c->state == CONN_READY)
    conn_probe(c);
}
