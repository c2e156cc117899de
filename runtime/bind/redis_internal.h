/* What redis.c (connection, views, asking), redis_calls.c (the calls) and
 * redis_answer.c (their results) share. */
#ifndef MOONSTASH_BIND_REDIS_INTERNAL_H
#define MOONSTASH_BIND_REDIS_INTERNAL_H

#include <lauxlib.h>

#include "bind/bind.h"
#include "bind/redis.h"
#include "redis/view.h"

enum { REDIS_VIEWS_MAX = 256 }; /* aliases of one runtime */

enum { /* how set's bytes are to be made of its value; the envelope's types are
          RAW, VALUE, RESULTS (1 to 3) */
       REDIS_TEXT = 0,   /* a string, as it is */
       REDIS_INTEGER = 9 /* a number, as decimal text */
};

struct ask;
/* Pushes what the answer holds beside its status; returns how many values. */
typedef int ask_push_fn(lua_State *L, struct ask *a);

/* A question under way: the wait of one call, and then its answer. */
struct ask {
  struct backend_wait wait; /* first: the backend knows the ask by it */
  struct ask *next;         /* in redis->unused */
  struct redis_bind *redis;
  struct backend *view;
  struct task *task; /* who waits; NULL: nobody */
  ask_push_fn *push; /* NULL: the status says it all */
  uint64_t key;      /* hash of the key, for the envelope */
  int native;        /* values are in envelopes */
  int status;
  struct backend_item item;
  char *bytes; /* of the answer; `small` or malloc's */
  size_t length;
  int64_t sum;
  uint64_t cursor;
  size_t n; /* many: keys */
  struct backend_item *items;
  int *statuses;
  char small[256];
};

struct redis_bind {
  struct bind *bind;
  struct redis_conn *conn; /* NULL: not configured */
  struct redis_options options;
  struct backend *views[REDIS_VIEWS_MAX];
  int view_count;
  int starting; /* the start waits for it, and says itself how it ended */
  struct ask *unused;
  int unawaited;           /* asks without a task, under way */
  uint64_t unawaited_lost; /* those that have failed */
  uint64_t undecodable;    /* values that were no such envelope */
  uint64_t foreign;        /* values that belonged to another key */
};

struct redis_bind *redis_of(lua_State *L);
struct backend *redis_check_view(lua_State *L);
/* Begins to ask: `what` is for messages; the timeout is argument 4, in seconds:
 * 0 = none, < 0 = nobody waits. NULL: *n is what to return. */
struct ask *redis_ask(lua_State *L, const char *what, int *n);
/* Ends it with what the backend has returned: `return redis_wait(L, a, rc)`. */
int redis_wait(lua_State *L, struct ask *a, int rc);

/* redis_answer.c */
ask_push_fn redis_push_value, redis_push_many, redis_push_sum, redis_push_info,
    redis_push_cursor, redis_push_statuses, redis_push_reply;

extern const luaL_Reg redis_calls[];

#endif
