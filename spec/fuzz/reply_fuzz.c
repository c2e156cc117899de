/* What a Redis server may answer, for any bytes. An input is two bytes of
 * choices (below) and the server's bytes.
 *
 * The reader: every reply can be walked to its end, which is its tape's, and
 * the same bytes cut anywhere else give the same replies.
 *
 * The connection, in or after its handshake, with calls of every kind under
 * way: each of them is answered once, cancelled ones never, and when it is
 * closed nothing is left.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "alloc.h"
#include "codec_fuzz.h"
#include "redis/conn_internal.h"
#include "redis/view.h"

enum {
  CHOICES = 2, /* bytes */
  CHOICE_HANDSHAKE = 1,
  CHOICE_SUSPECT = 2,
  CHOICE_CANCEL = 4,
  KEYS = 3
};

static void must(int true_, const char *what) {
  if (true_)
    return;
  fprintf(stderr, "fuzz reply: %s\n", what);
  abort();
}

#define MUST(condition) must(condition, #condition)

/* ---- the reader ---- */

static volatile unsigned touched; /* so that bytes are read in earnest */

static void touch(const char *bytes, size_t length) {
  for (size_t i = 0; i < length; i++)
    touched += (unsigned char)bytes[i];
}

static const char *walk(const char *tape, const char *end) {
  struct reply reply;
  MUST(tape < end);
  const char *rest = reply_read(tape, &reply);
  MUST(rest <= end);
  if (reply.type & (REPLY_STRING | REPLY_STATUS | REPLY_ERROR))
    touch(reply.text, reply.length);
  else if (reply.type == REPLY_ARRAY)
    for (int64_t i = 0; i < reply.integer; i++)
      rest = walk(rest, end);
  else
    MUST(reply.type == REPLY_NIL || reply.type == REPLY_INTEGER ||
         reply.type == REPLY_TOO_LARGE);
  return rest;
}

struct outcome {
  int rc;          /* of the last reader_next */
  uint64_t digest; /* of the tapes */
};

static void digest(struct outcome *o, const char *tape, size_t length) {
  for (size_t i = 0; i < length; i++)
    o->digest = (o->digest ^ (unsigned char)tape[i]) * 1099511628211u;
  o->digest = (o->digest ^ length) * 1099511628211u;
}

static unsigned next_piece(unsigned *seed) {
  *seed = *seed * 1103515245u + 12345u;
  return 1 + (*seed >> 16) % ((*seed >> 8) % 4 == 0 ? 1000 : 7);
}

/* Reads the bytes in pieces; seed 0: all at once. */
static struct outcome read_pieces(const uint8_t *data, size_t size,
                                  unsigned seed) {
  struct outcome o = {0, 0};
  struct reader *r = reader_open();
  if (r == NULL)
    return o;
  for (size_t at = 0; at < size && o.rc == 0;) {
    size_t n = seed == 0 ? size : next_piece(&seed), length;
    const char *tape;
    if (n > size - at)
      n = size - at;
    reader_feed(r, (const char *)data + at, n);
    at += n;
    while ((o.rc = reader_next(r, &tape, &length)) == 1) {
      MUST(walk(tape, tape + length) == tape + length);
      digest(&o, tape, length);
    }
    MUST((o.rc < 0) == (reader_error(r) != NULL));
  }
  reader_close(r);
  return o;
}

/* ---- calls ---- */

struct question {
  struct backend_wait wait; /* first */
  int kind, begun, cancelled, wakes;
  struct backend_item items[KEYS];
  int statuses[KEYS];
  int64_t sum;
  uint64_t cursor;
};

enum {
  GET,
  MGET,
  SET,
  SET_MANY,
  ADD,
  REMOVE,
  REMOVE_MANY,
  EXISTS,
  INCREMENT,
  PERSIST,
  INFO,
  CLEAR,
  FLUSH,
  SCAN,
  RAW,
  KINDS
};

static void on_wake(struct backend_wait *wait, int status, const void *bytes,
                    const struct backend_item *item) {
  struct question *q = (struct question *)wait;
  size_t total = 0;
  MUST(q->begun && !q->cancelled && q->wakes++ == 0);
  if (status < 0) {
    touch(bytes, bytes != NULL ? item->length : 0);
  } else if (q->kind == RAW) {
    MUST(walk(bytes, (const char *)bytes + item->length) ==
         (const char *)bytes + item->length);
  } else if (q->kind == INFO) {
    touch(bytes, bytes != NULL ? BACKEND_HEAD : 0);
  } else {
    touch(bytes, bytes != NULL ? item->length : 0);
  }
  for (int i = 0; q->kind == MGET && status >= 0 && i < KEYS; i++)
    total += q->items[i].length;
  MUST(q->kind != MGET || status < 0 || total == item->length);
  MUST(q->kind != REMOVE || status <= 1);
  MUST(q->kind != REMOVE_MANY || status <= KEYS);
}

static int on_key(void *ud, const char *key, size_t key_len,
                  const struct backend_item *item) {
  (void)ud;
  (void)item;
  MUST(key_len >= 2 && memcmp(key, "n:", 2) == 0);
  touch(key, key_len);
  return 0;
}

#define KEY view, 1, "n:", 2, "key", 3

static int ask(struct backend *view, struct question *q) {
  static const struct backend_slice keys[KEYS] = {{"a", 1}, {"b", 1}, {"c", 1}};
  static const struct backend_slice raw[] = {{"ANY", 3}, {"thing", 5}};
  const struct backend_ops *ops = view->ops;
  struct backend_wait *w = &q->wait;
  size_t used;
  switch (q->kind) {
  case GET:
    return ops->get(KEY, NULL, 0, NULL, w);
  case MGET:
    return ops->get_many(view, 1, "n:", 2, keys, KEYS, NULL, 0, &used, q->items,
                         w);
  case SET:
    return ops->set(KEY, "value", 5, 0, 1000, w);
  case SET_MANY:
    return ops->set_many(view, 1, "n:", 2, keys, keys, NULL, KEYS, 0,
                         q->statuses, w);
  case ADD:
    return ops->add(KEY, "value", 5, 0, 0, w);
  case REMOVE:
    return ops->remove(KEY, w);
  case REMOVE_MANY:
    return ops->remove_many(view, 1, "n:", 2, keys, KEYS, w);
  case EXISTS:
    return ops->exists(KEY, w);
  case INCREMENT:
    return ops->increment(KEY, 2, 1000, &q->sum, w);
  case PERSIST:
    return ops->expire(KEY, BACKEND_TTL_NEVER, w);
  case INFO:
    return ops->info(KEY, NULL, w);
  case CLEAR:
    return ops->clear(view, 1, "n:", 2, &q->cursor, w);
  case FLUSH:
    return ops->clear(view, 1, "", 0, &q->cursor, w);
  case SCAN:
    return ops->scan(view, 1, "n:", 2, &q->cursor, 10, on_key, NULL, w);
  default:
    return ops->raw(view, raw, 2, w);
  }
}

/* ---- the connection ---- */

/* A socket whose other end nobody reads. */
static struct socket *connect_to_nobody(struct redis_conn *c, int *other) {
  int fds[2];
  struct socket *s = malloc(sizeof *s);
  if (s == NULL)
    return NULL;
  MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
  *other = fds[1];
  uv_pipe_init(c->loop, &s->io.pipe, 0);
  MUST(uv_pipe_open(&s->io.pipe, fds[0]) == 0);
  s->io.handle.data = s->connect.data = s;
  s->writable_fd = -1;
  s->open_handles = 1;
  s->blocked = 0;
  s->conn = c;
  return c->socket = s;
}

static void begin(struct redis_conn *c, int with_handshake) {
  if (with_handshake) {
    handshake_start(c);
    return;
  }
  c->state = CONN_HANDSHAKE;
  c->reader = reader_open();
  if (c->reader == NULL)
    conn_drop(c, BACKEND_ECONNECTION, RETRY_SOON, "out of memory");
  else
    conn_ready(c);
}

static void feed(struct socket *s, const uint8_t *data, size_t size,
                 unsigned seed) {
  for (size_t at = 0; at < size && s->conn != NULL;) {
    size_t n = next_piece(&seed);
    uv_buf_t buf;
    if (n > size - at)
      n = size - at;
    pipe_alloc(&s->io.handle, 0, &buf);
    memcpy(buf.base, data + at, n);
    pipe_read(&s->io.stream, (ssize_t)n, &buf);
    at += n;
  }
}

static void talk(uv_loop_t *loop, struct backend *view, const uint8_t *data,
                 size_t size) {
  const struct redis_options options = {
      .path = "/", .timeout_ms = 1000, .connect_timeout_ms = 1000};
  struct question questions[KINDS];
  unsigned choices = data[0], first = data[1];
  int other = -1;
  struct redis_conn *c = conn_open(loop, &options, NULL, NULL);
  if (c == NULL)
    return;
  struct socket *s = connect_to_nobody(c, &other);
  if (s != NULL)
    begin(c, choices & CHOICE_HANDSHAKE);
  redis_view_use(view, c);
  memset(questions, 0, sizeof questions);
  for (unsigned i = 0; s != NULL && i < KINDS; i++) {
    struct question *q = &questions[i];
    q->wait.wake = on_wake;
    q->kind = (int)((first + i) % KINDS);
    q->begun = 1;
    q->begun = ask(view, q) == BACKEND_WAIT;
    if ((choices & CHOICE_SUSPECT) && i == 1) {
      conn_suspect(c);
      c->word = UINT64_C(0x0123456789abcdef);
    }
    if ((choices & CHOICE_CANCEL) && i % 3 == 2)
      q->cancelled = view->ops->unwait(view, &q->wait);
  }
  if (s != NULL)
    feed(s, data + CHOICES, size - CHOICES, choices >> 3);
  redis_view_use(view, NULL);
  conn_close(c);
  for (unsigned i = 0; i < KINDS; i++)
    MUST(questions[i].wakes == (questions[i].begun && !questions[i].cancelled));
  while (uv_run(loop, UV_RUN_NOWAIT))
    ;
  if (other >= 0)
    close(other);
}

static void run_all(const uint8_t *data, size_t size) {
  static uv_loop_t loop;
  static struct backend *view;
  if (size < CHOICES)
    return;
  if (view == NULL) { /* once, and never without memory */
    uv_loop_init(&loop);
    MUST(redis_view_open(&view) == 0);
  }
  talk(&loop, view, data, size);
}

int fuzz_with_failure(const uint8_t *data, size_t size, long after) {
  alloc_fail_after(after);
  if (size >= CHOICES)
    read_pieces(data + CHOICES, size - CHOICES, 1 + data[0]);
  run_all(data, size);
  return alloc_fail_never();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < CHOICES)
    return 0;
  const uint8_t *bytes = data + CHOICES;
  struct outcome whole = read_pieces(bytes, size - CHOICES, 0);
  struct outcome split =
      read_pieces(bytes, size - CHOICES, 1 + data[0] + 256u * data[1]);
  MUST(whole.rc == split.rc && whole.digest == split.digest);
  run_all(data, size);
  fuzz_with_failure(data, size, data[size - 1] % 64);
  return 0;
}
