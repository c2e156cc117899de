/* The backend's calls on many keys and on all keys; see calls.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "redis/op.h"

enum {
  SCAN_COUNT = 1000, /* keys of one bounded step, about */
  PATTERN_ROOM = 2,  /* of a prefix's pattern beside twice its length */
  OVERHEAD = 32      /* bytes of an argument beside its text, about */
};

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

/* Packs the values of an array of n on the tape; NULL: no memory, or it is no
 * such array. */
static char *pack(struct op *op, const char *rest, size_t n, size_t *used) {
  struct reply each;
  size_t total = 0, hits = 0;
  const char *at = rest;
  for (size_t i = 0; i < n; i++) {
    at = reply_read(at, &each);
    if (each.type != REPLY_STRING && each.type != REPLY_NIL)
      return NULL;
    total += each.length;
  }
  char *packed = malloc(total + 1), *to = packed;
  for (size_t i = 0; i < n && packed != NULL; i++) {
    rest = reply_read(rest, &each);
    int hit = each.type == REPLY_STRING;
    op->out.items[i].length = each.length;
    op->out.items[i].version = (uint64_t)hit;
    if (hit)
      memcpy(to, each.text, each.length);
    to += each.length;
    hits += (size_t)hit;
  }
  op->view->stats.hits += hits;
  op->view->stats.misses += n - hits;
  op->status = (int)hits;
  *used = total;
  return packed;
}

static HANDLER(on_get_many) {
  struct op *op = op_of(call);
  struct backend_item item = {0};
  (void)index;
  if (op_failed(op, status, reply))
    return;
  char *packed = reply->integer == (int64_t)op->n
                     ? pack(op, rest, op->n, &item.length)
                     : NULL;
  if (packed != NULL) {
    op_finish(op, op->status, packed, &item);
    free(packed);
    return;
  }
  struct redis_conn *conn = op->conn;
  op_finish_error(op, BACKEND_ECONNECTION, NULL, 0);
  conn_desync(conn, "MGET was answered by another array");
}

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
  rc = op_begin(&op, self, now, wait, on_get_many, 1,
                total_length(keys, n) + n * (ns_len + OVERHEAD));
  if (rc < 0)
    return rc;
  op->n = n;
  op->out.items = items;
  conn_command(op->conn, REPLY_ARRAY, n, "MGET");
  for (size_t i = 0; i < n; i++)
    conn_arg2(op->conn, ns, ns_len, keys[i].data, keys[i].length);
  return op_commit(op);
}

/* Every SET has its own outcome; the first error is that of all, and those
 * that the connection takes with it have its. */
static HANDLER(on_set_many) {
  struct op *op = op_of(call);
  int lost = reply == NULL, first = op->status;
  if (!lost && reply->type == REPLY_ERROR)
    status = op_error_status(reply);
  else if (!lost)
    status = 1;
  op->view->stats.sets += status == 1;
  for (size_t i = index; op->out.statuses && i < (lost ? op->n : index + 1);
       i++)
    op->out.statuses[i] = status;
  if (status < 0 && first > 0)
    op->status = status;
  if (!lost && index + 1 < call->count)
    return;
  if (lost)
    op_finish_lost(op, op->status);
  else if (status < 0)
    op_finish_error(op, op->status, reply->text, reply->length);
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

/* Takes SCAN's reply apart: the cursor goes where it belongs, *rest to the
 * first of *n keys. 0, or -1 when it is no such reply. */
static int read_scan(struct op *op, const struct reply *reply,
                     const char **rest, size_t *n) {
  struct reply cursor, keys;
  char text[24];
  if (reply->integer != 2)
    return -1;
  *rest = reply_read(*rest, &cursor);
  if (cursor.type != REPLY_STRING || cursor.length >= sizeof text)
    return -1;
  *rest = reply_read(*rest, &keys);
  if (keys.type != REPLY_ARRAY)
    return -1;
  memcpy(text, cursor.text, cursor.length);
  text[cursor.length] = '\0';
  *op->out.cursor = strtoull(text, NULL, 10);
  *n = (size_t)keys.integer;
  return 0;
}

/* The next key, if it begins with the prefix as it should. */
static int next_key(const struct op *op, const char **rest, struct reply *key) {
  *rest = reply_read(*rest, key);
  return key->type == REPLY_STRING && key->length >= op->prefix_len &&
         memcmp(key->text, op->prefix, op->prefix_len) == 0;
}

static void out_of_step(struct op *op) {
  struct redis_conn *conn = op->conn;
  op_finish_error(op, BACKEND_ECONNECTION, NULL, 0);
  conn_desync(conn, "SCAN was answered by another array");
}

static HANDLER(on_cleared) {
  struct op *op = op_of(call);
  (void)index;
  if (op_failed(op, status, reply))
    return;
  if (reply->type == REPLY_INTEGER)
    op->view->stats.deletes += (uint64_t)reply->integer;
  op_finish(op, *op->out.cursor == 0, NULL, NULL);
}

/* A step of clear: the keys found are removed in one command. */
static HANDLER(on_clear_scan) {
  struct op *op = op_of(call);
  struct reply key;
  size_t n, found = 0, bytes = 0;
  (void)index;
  if (op_failed(op, status, reply))
    return;
  if (read_scan(op, reply, &rest, &n) < 0) {
    out_of_step(op);
    return;
  }
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
  int rc = conn_begin(op->conn, &op->call, 1, bytes);
  if (rc == 0) {
    conn_command(op->conn, REPLY_INTEGER, found, "UNLINK");
    for (size_t i = 0; i < n; i++)
      if (next_key(op, &rest, &key))
        conn_arg(op->conn, key.text, key.length);
    rc = conn_commit(op->conn);
  }
  if (rc < 0) {
    op_finish_lost(op, rc);
  }
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
  if (op_failed(op, status, reply))
    return;
  if (read_scan(op, reply, &rest, &n) < 0) {
    out_of_step(op);
    return;
  }
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
