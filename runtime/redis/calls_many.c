/* The backend's calls on many keys and on all keys; see calls.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "redis/op.h"

enum {
  SCAN_COUNT = 1000,      /* keys of one bounded step, about */
  PATTERN_ROOM = 2,       /* of a prefix's pattern beside twice its length */
  OVERHEAD = 32,          /* bytes of an argument beside its text, about */
  MGET_KEYS = 7,          /* of one command; see call_get_many */
  PACKED_FIRST = 4 * 1024 /* bytes of a new buffer for values */
};

_Static_assert(MGET_KEYS *(size_t)(REDIS_VALUE_MAX + 64) < REPLY_BYTES_MAX,
               "MGET_KEYS of the largest values are within a reply's limit");

/* ---- many keys ---- */

static size_t total_length(const struct backend_slice *slices, size_t n) {
  size_t total = 0;
  for (size_t i = 0; i < n; i++)
    total += slices[i].length;
  return total;
}

static int check_keys(size_t ns_len, const struct backend_slice *keys,
                      size_t n) {
  for (size_t i = 0; i < n; i++)
    if (ns_len + keys[i].length == 0 ||
        ns_len + keys[i].length > BACKEND_KEY_MAX)
      return BACKEND_EINVAL;
  return 0;
}

/* Room for n more bytes in op->prefix, where the values gather. */
static int make_room(struct op *op, size_t n) {
  size_t capacity = op->capacity ? op->capacity : PACKED_FIRST;
  while (capacity < op->prefix_len + n)
    capacity *= 2;
  char *packed =
      capacity > op->capacity ? realloc(op->prefix, capacity) : op->prefix;
  if (packed == NULL)
    return -1;
  op->prefix = packed;
  op->capacity = capacity;
  return 0;
}

/* Packs the values of an array of n on the tape: those of op's keys from
 * `first` on. 0, or an error: no memory, or it is no such array. */
static int pack(struct op *op, const char *rest, size_t first, size_t n) {
  struct reply each;
  for (size_t i = first; i < first + n; i++) {
    rest = reply_read(rest, &each);
    int hit = each.type == REPLY_STRING;
    if (!hit && each.type != REPLY_NIL)
      return BACKEND_ECONNECTION;
    op->out.items[i].length = each.length;
    op->out.items[i].version = (uint64_t)hit;
    if (make_room(op, each.length) < 0)
      return BACKEND_ENOMEM;
    if (hit)
      memcpy(op->prefix + op->prefix_len, each.text, each.length);
    op->prefix_len += each.length;
    op->status += hit;
  }
  return 0;
}

static HANDLER(on_get_many) {
  struct op *op = op_of(call);
  if (op_failed(op, status, reply))
    return;
  size_t first = index * MGET_KEYS;
  size_t n = op->n - first < MGET_KEYS ? op->n - first : MGET_KEYS;
  int rc = reply->integer == (int64_t)n ? pack(op, rest, first, n)
                                        : BACKEND_ECONNECTION;
  if (rc == BACKEND_ECONNECTION) {
    op_desync(op, "MGET was answered by another array");
  } else if (rc < 0) {
    conn_cancel(op->conn, &op->call);
    op_finish_error(op, rc, NULL, 0);
  } else if (index + 1 == call->count) {
    struct backend_item item = {.length = op->prefix_len};
    char *packed = op->prefix;
    op->prefix = NULL; /* the op ends before it is read */
    op->view->stats.hits += (uint64_t)op->status;
    op->view->stats.misses += op->n - (size_t)op->status;
    op_finish(op, op->status, packed, &item);
    free(packed);
  }
}

/* MGETs of so few keys that even the largest values that a set takes are within
 * the limit on a reply. */
int call_get_many(struct backend *self, uint64_t now, const char *ns,
                  size_t ns_len, const struct backend_slice *keys, size_t n,
                  void *buf, size_t cap, size_t *used,
                  struct backend_item *items, struct backend_wait *wait) {
  struct op *op;
  int rc = check_keys(ns_len, keys, n);
  (void)buf;
  (void)cap;
  *used = 0;
  if (rc < 0 || n == 0)
    return rc;
  rc = op_begin(&op, self, now, wait, on_get_many,
                (uint32_t)((n + MGET_KEYS - 1) / MGET_KEYS),
                total_length(keys, n) + n * (ns_len + OVERHEAD));
  if (rc < 0)
    return rc;
  op->n = n;
  op->out.items = items;
  op->status = 0;
  op->prefix_len = op->capacity = 0;
  for (size_t i = 0; i < n; i++) {
    if (i % MGET_KEYS == 0)
      conn_command(op->conn, REPLY_ARRAY, n - i < MGET_KEYS ? n - i : MGET_KEYS,
                   "MGET");
    conn_arg2(op->conn, ns, ns_len, keys[i].data, keys[i].length);
  }
  return op_commit(op);
}

/* Every SET has its own outcome; the first error is that of all, and those
 * that the connection takes with it have its. */
static HANDLER(on_set_many) {
  struct op *op = op_of(call);
  int lost = reply == NULL, other = !lost && op_is_other_status(reply);
  if (other)
    status = BACKEND_ECONNECTION;
  else if (!lost)
    status = reply->type == REPLY_ERROR ? op_error_status(reply) : 1;
  op->view->stats.sets += status == 1;
  size_t end = lost || other ? op->n : index + 1;
  for (size_t i = index; op->out.statuses != NULL && i < end; i++)
    op->out.statuses[i] = status;
  if (other) {
    op_not_ok(op, reply);
    return;
  }
  if (status < 0 && op->status > 0) {
    op->status = status;
    if (lost) {
      op_finish_lost(op, status);
      return;
    }
    op->head_len = reply->length < BACKEND_HEAD ? reply->length : BACKEND_HEAD;
    memcpy(op->head, reply->text, op->head_len);
  }
  if (!lost && index + 1 < call->count)
    return;
  char words[BACKEND_HEAD];
  memcpy(words, op->head, sizeof words); /* the op ends before it is read */
  if (op->status < 0)
    op_finish_error(op, op->status, words, op->head_len);
  else
    op_finish(op, op->status, NULL, NULL);
}

int call_set_many(struct backend *self, uint64_t now, const char *ns,
                  size_t ns_len, const struct backend_slice *keys,
                  const struct backend_slice *values, const uint32_t *formats,
                  size_t n, uint64_t ttl_ms, int *statuses,
                  struct backend_wait *wait) {
  struct op *op;
  int rc = check_keys(ns_len, keys, n);
  (void)formats;
  for (size_t i = 0; i < n && rc == 0; i++)
    rc = values[i].length > REDIS_VALUE_MAX ? BACKEND_ETOOLARGE : 0;
  if (rc < 0 || n == 0)
    return rc < 0 ? rc : 1;
  rc = op_begin(&op, self, now, wait, on_set_many, (uint32_t)n,
                total_length(keys, n) + total_length(values, n) + n * ns_len);
  if (rc < 0)
    return rc;
  op->n = n;
  op->status = 1;
  op->out.statuses = statuses;
  for (size_t i = 0; i < n; i++)
    op_set(op, ns, ns_len, &keys[i], values[i].data, values[i].length, ttl_ms,
           0);
  return op_commit(op);
}

int call_remove_many(struct backend *self, uint64_t now, const char *ns,
                     size_t ns_len, const struct backend_slice *keys, size_t n,
                     struct backend_wait *wait) {
  struct op *op;
  int rc = check_keys(ns_len, keys, n);
  if (rc < 0 || n == 0)
    return rc;
  rc = op_begin(&op, self, now, wait, op_on_removed, 1,
                total_length(keys, n) + n * (ns_len + OVERHEAD));
  if (rc < 0)
    return rc;
  op->n = n;
  conn_command(op->conn, REPLY_INTEGER, n, "UNLINK");
  for (size_t i = 0; i < n; i++)
    conn_arg2(op->conn, ns, ns_len, keys[i].data, keys[i].length);
  return op_commit(op);
}

/* ---- all keys ---- */

/* The prefix as a pattern of SCAN: what is special there is escaped. */
static size_t make_pattern(const char *prefix, size_t length, char *out) {
  char *at = out;
  for (size_t i = 0; i < length; i++) {
    if (strchr("*?[]\\", prefix[i]) != NULL && prefix[i] != '\0')
      *at++ = '\\';
    *at++ = prefix[i];
  }
  *at++ = '*';
  return (size_t)(at - out);
}

static int begin_scan(struct op **out, struct backend *self, uint64_t now,
                      const char *prefix, size_t length, uint64_t *cursor,
                      size_t count, redis_reply_fn *on_reply,
                      struct backend_wait *wait) {
  struct op *op;
  char text[24];
  char *pattern = malloc(2 * length + PATTERN_ROOM);
  if (pattern == NULL)
    return BACKEND_ENOMEM;
  int rc = op_begin(&op, self, now, wait, on_reply, 1, 2 * length);
  if (rc < 0)
    goto done;
  op->out.cursor = cursor;
  op_keep(op, prefix, length, NULL, 0);
  conn_command(op->conn, REPLY_ARRAY, 5, "SCAN");
  snprintf(text, sizeof text, "%llu", (unsigned long long)*cursor);
  op_arg(op, text);
  op_arg(op, "MATCH");
  conn_arg(op->conn, pattern, make_pattern(prefix, length, pattern));
  op_arg(op, "COUNT");
  conn_arg_int(op->conn, (int64_t)count);
  *out = op;
done:
  free(pattern);
  return rc;
}

/* A cursor is a number of 64 bits in decimal. 0, or -1. */
static int read_cursor(const struct reply *reply, uint64_t *cursor) {
  uint64_t value = 0;
  if (reply->type != REPLY_STRING || reply->length == 0)
    return -1;
  for (size_t i = 0; i < reply->length; i++) {
    unsigned digit = (unsigned char)reply->text[i] - (unsigned)'0';
    if (digit > 9 || value > (UINT64_MAX - digit) / 10)
      return -1;
    value = value * 10 + digit;
  }
  *cursor = value;
  return 0;
}

/* Takes SCAN's reply apart: the cursor goes where it belongs, *rest to the
 * first of *n keys. 0, or the op has ended: it is no such reply. */
static int read_scan(struct op *op, const struct reply *reply,
                     const char **rest, size_t *n) {
  struct reply cursor, keys, key;
  uint64_t next;
  if (reply->integer != 2)
    goto other;
  *rest = reply_read(*rest, &cursor);
  if (read_cursor(&cursor, &next) < 0)
    goto other;
  const char *at = *rest = reply_read(*rest, &keys);
  if (keys.type != REPLY_ARRAY)
    goto other;
  for (int64_t i = 0; i < keys.integer; i++) {
    at = reply_read(at, &key);
    if (key.type != REPLY_STRING)
      goto other;
  }
  *op->out.cursor = next;
  *n = (size_t)keys.integer;
  return 0;

other:
  op_desync(op, "SCAN was answered by another array");
  return -1;
}

/* The next key, if it begins with the prefix as it should. */
static int next_key(const struct op *op, const char **rest, struct reply *key) {
  *rest = reply_read(*rest, key);
  return key->length >= op->prefix_len &&
         memcmp(key->text, op->prefix, op->prefix_len) == 0;
}

static HANDLER(on_cleared) {
  struct op *op = op_of(call);
  (void)index;
  if (op_failed(op, status, reply) || op_not_ok(op, reply))
    return;
  if (reply->type == REPLY_INTEGER) { /* FLUSHDB says OK */
    if (op_outside(op, reply, 0, (int64_t)op->n))
      return;
    op->view->stats.deletes += (uint64_t)reply->integer;
  }
  op_finish(op, *op->out.cursor == 0, NULL, NULL);
}

/* A step of clear: the keys found are removed in one command. */
static HANDLER(on_clear_scan) {
  struct op *op = op_of(call);
  struct reply key;
  size_t n, found = 0, bytes = 0;
  (void)index;
  if (op_failed(op, status, reply) || read_scan(op, reply, &rest, &n) < 0)
    return;
  const char *at = rest;
  for (size_t i = 0; i < n; i++)
    if (next_key(op, &at, &key)) {
      found++;
      bytes += key.length + OVERHEAD;
    }
  if (found == 0) {
    op_finish(op, *op->out.cursor == 0, NULL, NULL);
    return;
  }
  op->call.on_reply = on_cleared;
  op->n = found;
  int rc = conn_begin(op->conn, &op->call, 1, bytes);
  if (rc == 0) {
    conn_command(op->conn, REPLY_INTEGER, found, "UNLINK");
    for (size_t i = 0; i < n; i++)
      if (next_key(op, &rest, &key))
        conn_arg(op->conn, key.text, key.length);
    rc = conn_commit(op->conn);
  }
  if (rc < 0)
    op_finish_lost(op, rc);
}

int call_clear(struct backend *self, uint64_t now, const char *prefix,
               size_t prefix_len, uint64_t *cursor, struct backend_wait *wait) {
  struct op *op;
  int rc;
  if (prefix_len > 0) {
    rc = begin_scan(&op, self, now, prefix, prefix_len, cursor, SCAN_COUNT,
                    on_clear_scan, wait);
    return rc < 0 ? rc : op_commit(op);
  }
  *cursor = 0;
  rc = op_begin(&op, self, now, wait, on_cleared, 1, 0);
  if (rc < 0)
    return rc;
  op->out.cursor = cursor;
  conn_command(op->conn, REPLY_STATUS, 1, "FLUSHDB");
  op_arg(op, "ASYNC");
  return op_commit(op);
}

static HANDLER(on_scan) {
  struct op *op = op_of(call);
  struct reply key;
  size_t n;
  int seen = 0, stop = 0;
  const struct backend_item item = {.version = 1};
  (void)index;
  if (op_failed(op, status, reply) || read_scan(op, reply, &rest, &n) < 0)
    return;
  for (size_t i = 0; i < n && stop == 0; i++)
    if (next_key(op, &rest, &key)) {
      seen++;
      stop = op->fn(op->ud, key.text, key.length, &item);
    }
  op_finish(op, stop != 0 ? stop : seen, NULL, NULL);
}

/* limit is the server's COUNT: a hint. */
int call_scan(struct backend *self, uint64_t now, const char *prefix,
              size_t prefix_len, uint64_t *cursor, size_t limit,
              backend_scan_fn *fn, void *ud, struct backend_wait *wait) {
  struct op *op;
  int rc = begin_scan(&op, self, now, prefix, prefix_len, cursor, limit,
                      on_scan, wait);
  if (rc < 0)
    return rc;
  op->fn = fn;
  op->ud = ud;
  return op_commit(op);
}
