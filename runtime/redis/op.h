/* What the files of the backend's calls share: view.c (views, ops), calls.c
 * (one key, any command), calls_many.c (many keys, all keys).
 *
 * A call is an op: one or more commands in one write, a handler of their
 * replies, the wait to answer. Invariant: from commit to finish or unwait an
 * op belongs to exactly one wait, and wait->call points back to it.
 */
#ifndef MOONSTASH_REDIS_OP_H
#define MOONSTASH_REDIS_OP_H

#include "redis/view.h"

struct view {
  struct backend backend; /* first: a view is a backend */
  struct redis_conn *conn;
  struct backend_stats stats; /* entries and bytes are the server's affair */
  struct op *unused;
};

struct op {
  struct redis_call call;
  struct op *next; /* in view->unused */
  struct view *view;
  struct redis_conn *conn;   /* that it was begun on */
  struct backend_wait *wait; /* whom to answer */
  uint64_t now;              /* the caller's clock */
  int status;                /* set_many: the first error so far */
  size_t n;                  /* keys, where there may be many */
  union {
    int64_t *sum;               /* increment */
    int *statuses;              /* set_many */
    struct backend_item *items; /* get_many */
    uint64_t *cursor;           /* clear, scan */
  } out;
  int64_t delta; /* increment; then without a transaction: */
  int64_t plain_sum;
  int plain;
  struct backend_item item; /* info, while it gathers */
  char head[BACKEND_HEAD];  /* likewise; set_many: the first error's words */
  size_t head_len;
  char *prefix; /* clear, scan: a copy; get_many: the values so far */
  size_t prefix_len;
  size_t capacity;     /* get_many: of prefix */
  backend_scan_fn *fn; /* scan */
  void *ud;
};

/* Begins an op of `count` commands. 0, or an error. */
int op_begin(struct op **out, struct backend *self, uint64_t now,
             struct backend_wait *wait, redis_reply_fn *on_reply,
             uint32_t count, size_t bytes);
/* Keeps a copy of two joined pieces as op->prefix until the op ends; without
 * memory for it the commit fails. */
void op_keep(struct op *op, const char *a, size_t a_len, const char *b,
             size_t b_len);
/* BACKEND_WAIT, or an error and there is no op any more. */
int op_commit(struct op *op);
/* Ends the op without an answer. */
void op_release(struct op *op);
/* Answers, and ends the op. item may be NULL. */
void op_finish(struct op *op, int status, const void *bytes,
               struct backend_item *item);
void op_finish_error(struct op *op, int status, const char *message,
                     size_t length);
/* The same with what the connection says. */
void op_finish_lost(struct op *op, int status);
/* The BACKEND_ code of a server's error. */
int op_error_status(const struct reply *reply);
/* Ends the op if this is no proper reply: 1. */
int op_failed(struct op *op, int status, const struct reply *reply);
/* Ends the op, and the connection: its reply is one that cannot be. */
void op_desync(struct op *op, const char *what);
/* The same if the integer of the reply is not within these bounds: 1. */
int op_outside(struct op *op, const struct reply *reply, int64_t least,
               int64_t most);
/* Is it a status but not OK: PONG, say, or QUEUED? */
int op_is_other_status(const struct reply *reply);
/* The same as op_outside for such a status. */
int op_not_ok(struct op *op, const struct reply *reply);
void op_command(struct op *op, int expect, size_t more_args, const char *name,
                const char *ns, size_t ns_len, const char *key, size_t key_len);
void op_arg(struct op *op, const char *text);
void op_set(struct op *op, const char *ns, size_t ns_len,
            const struct backend_slice *key, const void *bytes, size_t length,
            uint64_t ttl_ms, int nx);

static inline struct op *op_of(struct redis_call *call) {
  return (struct op *)((char *)call - offsetof(struct op, call));
}

/* Defines a handler of replies: see redis_reply_fn. */
#define HANDLER(name)                                                        \
  void name(struct redis_call *call, uint32_t index __attribute__((unused)), \
            int status __attribute__((unused)),                              \
            const struct reply *reply __attribute__((unused)),               \
            const char *rest __attribute__((unused)))

HANDLER(op_on_removed); /* answers with the integer: how many were removed */

/* The calls of backend_ops with these names. */
int call_get_many(struct backend *self, uint64_t now, const char *ns,
                  size_t ns_len, const struct backend_slice *keys, size_t n,
                  void *buf, size_t cap, size_t *used,
                  struct backend_item *items, struct backend_wait *wait);
int call_set_many(struct backend *self, uint64_t now, const char *ns,
                  size_t ns_len, const struct backend_slice *keys,
                  const struct backend_slice *values, const uint32_t *formats,
                  size_t n, uint64_t ttl_ms, int *statuses,
                  struct backend_wait *wait);
int call_remove_many(struct backend *self, uint64_t now, const char *ns,
                     size_t ns_len, const struct backend_slice *keys, size_t n,
                     struct backend_wait *wait);
int call_clear(struct backend *self, uint64_t now, const char *prefix,
               size_t prefix_len, uint64_t *cursor, struct backend_wait *wait);
int call_scan(struct backend *self, uint64_t now, const char *prefix,
              size_t prefix_len, uint64_t *cursor, size_t limit,
              backend_scan_fn *fn, void *ud, struct backend_wait *wait);

/* What a view's backend points to. */
extern const struct backend_ops redis_view_calls;

#endif
