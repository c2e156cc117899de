/* Views, and the ops that their calls are made of; see op.h. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "redis/op.h"

void op_release(struct op *op) {
  free(op->prefix);
  op->prefix = NULL;
  op->wait->call = NULL;
  op->next = op->view->unused;
  op->view->unused = op;
}

int op_begin(struct op **out, struct backend *self, uint64_t now,
             struct backend_wait *wait, redis_reply_fn *on_reply,
             uint32_t count, size_t bytes) {
  struct view *view = (struct view *)self;
  struct op *op = view->unused;
  assert(wait != NULL);
  if (view->conn == NULL)
    return BACKEND_ECLOSED;
  if (op != NULL)
    view->unused = op->next;
  else if ((op = calloc(1, sizeof *op)) == NULL)
    return BACKEND_ENOMEM;
  op->view = view;
  op->conn = view->conn;
  op->wait = wait;
  op->now = now;
  op->call.on_reply = on_reply;
  int rc = conn_begin(view->conn, &op->call, count, bytes);
  if (rc < 0)
    op_release(op);
  *out = op;
  return rc;
}

void op_keep(struct op *op, const char *a, size_t a_len, const char *b,
             size_t b_len) {
  op->prefix = malloc(a_len + b_len + 1);
  op->prefix_len = a_len + b_len;
  if (op->prefix == NULL) {
    conn_spoil(op->conn);
    return;
  }
  if (a_len > 0)
    memcpy(op->prefix, a, a_len);
  if (b_len > 0)
    memcpy(op->prefix + a_len, b, b_len);
}

int op_commit(struct op *op) {
  int rc = conn_commit(op->conn);
  if (rc < 0) {
    op_release(op);
    return rc;
  }
  op->wait->call = op;
  return BACKEND_WAIT;
}

void op_finish(struct op *op, int status, const void *bytes,
               struct backend_item *item) {
  struct backend_wait *wait = op->wait;
  struct backend_item none = {0};
  op_release(op);
  wait->wake(wait, status, bytes, item != NULL ? item : &none);
}

void op_finish_error(struct op *op, int status, const char *message,
                     size_t length) {
  struct backend_item item = {.length = length};
  op_finish(op, status, message, &item);
}

void op_finish_lost(struct op *op, int status) {
  const char *why = conn_why(op->conn);
  op_finish_error(op, status, why, strlen(why));
}

int op_error_status(const struct reply *reply) {
  static const struct {
    const char *word;
    int status;
  } known[] = {
      {"WRONGTYPE", BACKEND_ETYPE},
      {"ERR value is not an integer", BACKEND_ETYPE},
      {"ERR increment or decrement would overflow", BACKEND_ERANGE},
  };
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (reply->length >= strlen(known[i].word) &&
        memcmp(reply->text, known[i].word, strlen(known[i].word)) == 0)
      return known[i].status;
  return BACKEND_ESERVER;
}

int op_failed(struct op *op, int status, const struct reply *reply) {
  if (reply == NULL) {
    op_finish_lost(op, status);
    return 1;
  }
  if (reply->type != REPLY_ERROR)
    return 0;
  conn_cancel(op->conn, &op->call); /* its other commands, if there are */
  op_finish_error(op, op_error_status(reply), reply->text, reply->length);
  return 1;
}

void op_desync(struct op *op, const char *what) {
  struct redis_conn *conn = op->conn;
  conn_cancel(conn, &op->call);
  op_finish_error(op, BACKEND_ECONNECTION, what, strlen(what));
  conn_desync(conn, what);
}

int op_outside(struct op *op, const struct reply *reply, int64_t least,
               int64_t most) {
  if (reply->integer >= least && reply->integer <= most)
    return 0;
  op_desync(op, "a number that its command cannot give");
  return 1;
}

int op_is_other_status(const struct reply *reply) {
  return reply->type == REPLY_STATUS &&
         (reply->length != 2 || memcmp(reply->text, "OK", 2) != 0);
}

int op_not_ok(struct op *op, const struct reply *reply) {
  if (!op_is_other_status(reply))
    return 0;
  op_desync(op, "a status that its command cannot give");
  return 1;
}

void op_command(struct op *op, int expect, size_t more_args, const char *name,
                const char *ns, size_t ns_len, const char *key,
                size_t key_len) {
  conn_command(op->conn, expect, 1 + more_args, name);
  conn_arg2(op->conn, ns, ns_len, key, key_len);
}

void op_arg(struct op *op, const char *text) {
  conn_arg(op->conn, text, strlen(text));
}

/* ---- views ---- */

int redis_view_open(struct backend **out) {
  struct view *view = calloc(1, sizeof *view);
  if (view == NULL)
    return BACKEND_ENOMEM;
  view->backend.ops = &redis_view_calls;
  *out = &view->backend;
  return 0;
}

void redis_view_use(struct backend *view, struct redis_conn *conn) {
  ((struct view *)view)->conn = conn;
}
