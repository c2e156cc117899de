/* The backend's calls on one key, and any command, as commands; their replies
 * as answers. What each promises stands in backend.h. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "redis/op.h"

enum {
  ANY_REPLY = REPLY_NIL | REPLY_STRING | REPLY_STATUS | REPLY_INTEGER |
              REPLY_ERROR | REPLY_ARRAY
};

static const int64_t integer_max = INT64_C(1) << 53; /* exact as a double */
static const uint64_t touch_keeps_ttl = UINT64_MAX;

/* The same as op_begin and op_command, for a call on one key. */
#define BEGIN_KEY(op, on_reply, count, bytes)                        \
  do {                                                               \
    if (key_len + ns_len == 0 || key_len + ns_len > BACKEND_KEY_MAX) \
      return BACKEND_EINVAL;                                         \
    int rc = op_begin(&op, self, now, wait, on_reply, count,         \
                      (count) * (ns_len + key_len) + (bytes));       \
    if (rc < 0)                                                      \
      return rc;                                                     \
  } while (0)

#define COMMAND_KEY(op, expect, more_args, name) \
  op_command(op, expect, more_args, name, ns, ns_len, key, key_len)

/* ---- one key ---- */

static HANDLER(on_get) {
  struct op *op = op_of(call);
  (void)index;
  if (op_failed(op, status, reply))
    return;
  struct backend_item item = {.length = reply->length, .version = 1};
  if (reply->type == REPLY_STRING)
    op->view->stats.hits++;
  else
    op->view->stats.misses++;
  op_finish(op, reply->type == REPLY_STRING ? BACKEND_HIT : BACKEND_MISS,
            reply->text, &item);
}

static int get(BACKEND_KEY_ARGS, void *buf, size_t cap,
               struct backend_item *out, struct backend_wait *wait) {
  struct op *op;
  (void)buf;
  (void)cap;
  (void)out;
  BEGIN_KEY(op, on_get, 1, 0);
  COMMAND_KEY(op, REPLY_STRING | REPLY_NIL, 0, "GET");
  return op_commit(op);
}

/* SET: OK, or nil when NX forbade it. */
static HANDLER(on_set) {
  struct op *op = op_of(call);
  (void)index;
  if (op_failed(op, status, reply) || op_not_ok(op, reply))
    return;
  op->view->stats.sets += reply->type == REPLY_STATUS;
  op_finish(op, reply->type == REPLY_STATUS, NULL, NULL);
}

void op_set(struct op *op, const char *ns, size_t ns_len,
            const struct backend_slice *key, const void *bytes, size_t length,
            uint64_t ttl_ms, int nx) {
  size_t more = 1 + (ttl_ms != BACKEND_TTL_NEVER ? 2 : 0) + (nx ? 1 : 0);
  op_command(op, REPLY_STATUS | (nx ? REPLY_NIL : 0), more, "SET", ns, ns_len,
             key->data, key->length);
  conn_arg(op->conn, bytes, length);
  if (ttl_ms != BACKEND_TTL_NEVER) {
    op_arg(op, "PX");
    conn_arg_int(op->conn, (int64_t)ttl_ms);
  }
  if (nx)
    op_arg(op, "NX");
}

static int set_or_add(BACKEND_KEY_ARGS, const void *bytes, size_t length,
                      uint64_t ttl_ms, int nx, struct backend_wait *wait) {
  struct op *op;
  if (length > REDIS_VALUE_MAX)
    return BACKEND_ETOOLARGE;
  BEGIN_KEY(op, on_set, 1, length);
  op_set(op, ns, ns_len, &(struct backend_slice){key, key_len}, bytes, length,
         ttl_ms, nx);
  return op_commit(op);
}

static int set(BACKEND_KEY_ARGS, const void *bytes, size_t length,
               uint32_t format, uint64_t ttl_ms, struct backend_wait *wait) {
  (void)format;
  return set_or_add(self, now, ns, ns_len, key, key_len, bytes, length, ttl_ms,
                    0, wait);
}

static int add(BACKEND_KEY_ARGS, const void *bytes, size_t length,
               uint32_t format, uint64_t ttl_ms, struct backend_wait *wait) {
  (void)format;
  return set_or_add(self, now, ns, ns_len, key, key_len, bytes, length, ttl_ms,
                    1, wait);
}

HANDLER(op_on_removed) {
  struct op *op = op_of(call);
  (void)index;
  if (op_failed(op, status, reply) || op_outside(op, reply, 0, (int64_t)op->n))
    return;
  op->view->stats.deletes += (uint64_t)reply->integer;
  op_finish(op, (int)reply->integer, NULL, NULL);
}

static int remove_one(BACKEND_KEY_ARGS, struct backend_wait *wait) {
  struct op *op;
  BEGIN_KEY(op, op_on_removed, 1, 0);
  op->n = 1;
  COMMAND_KEY(op, REPLY_INTEGER, 0, "UNLINK");
  return op_commit(op);
}

/* The last of the commands says yes or no. */
static HANDLER(on_yes_or_no) {
  struct op *op = op_of(call);
  if (op_failed(op, status, reply) || op_outside(op, reply, 0, 1) ||
      index + 1 < call->count)
    return;
  op_finish(op, (int)reply->integer, NULL, NULL);
}

static int exists(BACKEND_KEY_ARGS, struct backend_wait *wait) {
  struct op *op;
  BEGIN_KEY(op, on_yes_or_no, 1, 0);
  COMMAND_KEY(op, REPLY_INTEGER, 0, "EXISTS");
  return op_commit(op);
}

/* PERSIST says no also when there was no TTL to take away. */
static int expire(BACKEND_KEY_ARGS, uint64_t ttl_ms,
                  struct backend_wait *wait) {
  struct op *op;
  if (ttl_ms == BACKEND_TTL_NEVER) {
    BEGIN_KEY(op, on_yes_or_no, 2, 0);
    COMMAND_KEY(op, REPLY_INTEGER, 0, "PERSIST");
    COMMAND_KEY(op, REPLY_INTEGER, 0, "EXISTS");
  } else {
    BEGIN_KEY(op, on_yes_or_no, 1, 0);
    COMMAND_KEY(op, REPLY_INTEGER, 1, "PEXPIRE");
    conn_arg_int(op->conn, (int64_t)ttl_ms);
  }
  return op_commit(op);
}

static int touch(BACKEND_KEY_ARGS, uint64_t ttl_ms, struct backend_wait *wait) {
  struct op *op;
  if (ttl_ms != touch_keeps_ttl)
    return expire(self, now, ns, ns_len, key, key_len, ttl_ms, wait);
  BEGIN_KEY(op, on_yes_or_no, 1, 0);
  COMMAND_KEY(op, REPLY_INTEGER, 0, "TOUCH");
  return op_commit(op);
}

/* Another client may change the key between these commands: a head that is
 * shorter than the length told after it ends in zeroes. */
static HANDLER(on_info) {
  struct op *op = op_of(call);
  if (op_failed(op, status, reply))
    return;
  if (index == 0) {
    if (reply->length > BACKEND_HEAD) {
      op_desync(op, "more of a value than was asked for");
      return;
    }
    memset(op->head, 0, sizeof op->head);
    memcpy(op->head, reply->text, reply->length);
  } else if (op_outside(op, reply, index == 1 ? 0 : -2, INT64_MAX)) {
    return;
  } else if (index == 1) {
    op->item =
        (struct backend_item){.length = (size_t)reply->integer, .version = 1};
  } else if (reply->integer == -2) {
    op_finish(op, BACKEND_MISS, NULL, NULL);
  } else {
    struct backend_item item = op->item;
    char head[BACKEND_HEAD];
    memcpy(head, op->head, sizeof head);
    if (reply->integer >= 0) /* 0 would be never */
      item.expires_ms = op->now + (uint64_t)reply->integer + !reply->integer;
    op_finish(op, BACKEND_HIT, head, &item);
  }
}

static int info(BACKEND_KEY_ARGS, struct backend_item *out,
                struct backend_wait *wait) {
  struct op *op;
  (void)out;
  BEGIN_KEY(op, on_info, 3, 0);
  COMMAND_KEY(op, REPLY_STRING, 2, "GETRANGE");
  conn_arg_int(op->conn, 0);
  conn_arg_int(op->conn, BACKEND_HEAD - 1);
  COMMAND_KEY(op, REPLY_INTEGER, 0, "STRLEN");
  COMMAND_KEY(op, REPLY_INTEGER, 0, "PTTL");
  return op_commit(op);
}

/* ---- increment ----
 *
 * INCRBY knows 64 bits, we know 53: a sum beyond them is taken back. A missing
 * key gets its TTL from a SET NX of 0 before, in one transaction: the key
 * cannot expire in between. On a server that has none the two run as they are.
 */

static HANDLER(on_taken_back) {
  op_finish_error(op_of(call), BACKEND_ERANGE, NULL, 0);
}

static void take_back(struct op *op) {
  op->call.on_reply = on_taken_back;
  if (conn_begin(op->conn, &op->call, 1, op->prefix_len) == 0) {
    conn_command(op->conn, REPLY_INTEGER, 2, "INCRBY");
    conn_arg(op->conn, op->prefix, op->prefix_len);
    conn_arg_int(op->conn, -op->delta);
    if (conn_commit(op->conn) == 0)
      return;
  }
  op_finish_error(op, BACKEND_ERANGE, NULL, 0);
}

static void finish_sum(struct op *op, int64_t sum) {
  if (sum > integer_max || sum < -integer_max) {
    take_back(op);
    return;
  }
  *op->out.sum = sum;
  op_finish(op, 1, NULL, NULL);
}

static HANDLER(on_increment) {
  struct op *op = op_of(call);
  if (!op_failed(op, status, reply))
    finish_sum(op, reply->integer);
}

enum { AT_MULTI, AT_SET, AT_INCRBY, AT_EXEC };

/* EXEC's reply: that of SET, then that of INCRBY. */
static void finish_exec(struct op *op, const struct reply *reply,
                        const char *rest) {
  struct reply set, sum = {0};
  if (reply->type == REPLY_ARRAY && reply->integer == 2)
    reply_read(reply_read(rest, &set), &sum);
  if (sum.type == REPLY_INTEGER)
    finish_sum(op, sum.integer);
  else if (sum.type == REPLY_ERROR)
    op_finish_error(op, op_error_status(&sum), sum.text, sum.length);
  else
    op_desync(op, "EXEC was answered by something else");
}

/* Without a transaction INCRBY itself has the sum, and EXEC an error. */
static HANDLER(on_increment_ttl) {
  struct op *op = op_of(call);
  if (reply == NULL) {
    op_finish_lost(op, status);
    return;
  }
  if (index == AT_INCRBY && reply->type != REPLY_STATUS) {
    op->plain = 1;
    op->plain_sum = reply->integer;
    if (op_failed(op, status, reply))
      return;
  }
  if (index < AT_EXEC)
    return;
  if (op->plain)
    finish_sum(op, op->plain_sum);
  else if (!op_failed(op, status, reply))
    finish_exec(op, reply, rest);
}

static int increment(BACKEND_KEY_ARGS, int64_t delta, uint64_t ttl_ms,
                     int64_t *sum, struct backend_wait *wait) {
  struct op *op;
  int with_ttl = ttl_ms != BACKEND_TTL_NEVER;
  if (delta > integer_max || delta < -integer_max)
    return BACKEND_ERANGE;
  BEGIN_KEY(op, with_ttl ? on_increment_ttl : on_increment, with_ttl ? 4u : 1u,
            0);
  op->out.sum = sum;
  op->delta = delta;
  op->plain = 0;
  op_keep(op, ns, ns_len, key, key_len);
  if (with_ttl) {
    conn_command(op->conn, REPLY_STATUS, 0, "MULTI");
    op_set(op, ns, ns_len, &(struct backend_slice){key, key_len}, "0", 1,
           ttl_ms, 1);
  }
  COMMAND_KEY(op, with_ttl ? REPLY_STATUS | REPLY_INTEGER : REPLY_INTEGER, 1,
              "INCRBY");
  conn_arg_int(op->conn, delta);
  if (with_ttl)
    conn_command(op->conn, REPLY_ARRAY | REPLY_NIL, 0, "EXEC");
  return op_commit(op);
}

/* ---- any command ---- */

static int is_word(const struct backend_slice *arg, const char *word) {
  return arg->length == strlen(word) &&
         strncasecmp(arg->data, word, arg->length) == 0;
}

int redis_may_share(const struct backend_slice *args, size_t n) {
  static const char *const alone[] = {
      "AUTH",       "ASKING",       "BLMOVE", "BLMPOP",       "BLPOP",
      "BRPOP",      "BRPOPLPUSH",   "BZMPOP", "BZPOPMAX",     "BZPOPMIN",
      "DISCARD",    "EXEC",         "HELLO",  "MONITOR",      "MULTI",
      "PSUBSCRIBE", "PSYNC",        "QUIT",   "PUNSUBSCRIBE", "READONLY",
      "READWRITE",  "REPLCONF",     "RESET",  "SELECT",       "SSUBSCRIBE",
      "SUBSCRIBE",  "SUNSUBSCRIBE", "SYNC",   "UNWATCH",      "UNSUBSCRIBE",
      "WAIT",       "WAITAOF",      "WATCH",
  };
  for (size_t i = 0; i < sizeof alone / sizeof *alone; i++)
    if (is_word(&args[0], alone[i]))
      return 0;
  if (n > 1 && is_word(&args[0], "CLIENT") &&
      (is_word(&args[1], "REPLY") || is_word(&args[1], "TRACKING") ||
       is_word(&args[1], "CACHING") || is_word(&args[1], "NO-EVICT") ||
       is_word(&args[1], "NO-TOUCH")))
    return 0;
  int stream = is_word(&args[0], "XREAD") || is_word(&args[0], "XREADGROUP");
  for (size_t i = 1; stream && i < n; i++)
    if (is_word(&args[i], "BLOCK"))
      return 0;
  return 1;
}

/* The tape is the answer, whatever it says - if it is one: behind the command
 * goes a probe, so that one that the server does not answer at all (there are
 * some) is found out before another's answer takes its place. */
static HANDLER(on_raw) {
  struct op *op = op_of(call);
  struct backend_item item = {0};
  if (reply == NULL) {
    op_finish_lost(op, status);
  } else if (conn_is_probe(op->conn, reply)) {
    op_desync(op, "a command was not answered");
  } else {
    const char *tape = conn_tape(op->conn, &item.length);
    op_finish(op, 1, tape, &item);
  }
}

static int raw(struct backend *self, const struct backend_slice *args, size_t n,
               struct backend_wait *wait) {
  struct op *op;
  size_t bytes = 0;
  if (n == 0)
    return BACKEND_EINVAL;
  if (!redis_may_share(args, n))
    return BACKEND_EUNSUPPORTED;
  for (size_t i = 0; i < n; i++)
    bytes += args[i].length + 32;
  int rc = op_begin(&op, self, 0, wait, on_raw, 1, bytes);
  if (rc < 0)
    return rc;
  conn_command(op->conn, ANY_REPLY, n, NULL);
  for (size_t i = 0; i < n; i++)
    conn_arg(op->conn, args[i].data, args[i].length);
  struct redis_conn *conn = op->conn;
  rc = op_commit(op);
  if (rc == BACKEND_WAIT)
    conn_probe(conn);
  return rc;
}

/* ---- the rest ---- */

static int unwait(struct backend *self, struct backend_wait *wait) {
  struct op *op = wait->call;
  (void)self;
  if (op == NULL)
    return 0;
  conn_cancel(op->conn, &op->call);
  op_release(op);
  return 1;
}

static void stats(struct backend *self, uint64_t now,
                  struct backend_stats *out) {
  (void)now;
  *out = ((struct view *)self)->stats;
}

static void close_view(struct backend *self) {
  struct view *view = (struct view *)self;
  for (struct op *op = view->unused, *next; op != NULL; op = next) {
    next = op->next;
    free(op);
  }
  free(view);
}

const struct backend_ops redis_view_calls = {
    .name = "redis",
    .get = get,
    .get_many = call_get_many,
    .set = set,
    .set_many = call_set_many,
    .add = add,
    .remove = remove_one,
    .remove_many = call_remove_many,
    .exists = exists,
    .increment = increment,
    .expire = expire,
    .info = info,
    .touch = touch,
    .clear = call_clear,
    .scan = call_scan,
    .raw = raw,
    .unwait = unwait,
    .stats = stats,
    .close = close_view,
};
