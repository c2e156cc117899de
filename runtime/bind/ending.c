/* The end of a task: results, errors that go up, deferred functions.
 *
 * Body ended -> children end (cancelled if the body failed) -> deferred
 * functions run, newest first -> joiners are told, or the error goes up ->
 * DONE. ending_advance() is the one place that decides what is next.
 */
#include <assert.h>
#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

#include "bind/bind.h"
#include "bind/sched_internal.h"
#include "bind/trace.h"

void sched_log(struct sched *s, int level, const char *line) {
  if (s->hooks.log != NULL)
    s->hooks.log(s->hooks.ud, level, line);
}

/* Gives the outcome to one joiner; the record of t is on top of L. */
static void wake_joiner(lua_State *L, struct task *t, struct task *joiner) {
  int record = lua_gettop(L), n = 0;
  if (t->outcome == TASK_OK && !lua_isnil(L, record)) {
    lua_getfield(L, record, "n");
    n = (int)lua_tointeger(L, -1);
    lua_pop(L, 1);
    luaL_checkstack(L, n, "too many results");
    for (int i = 1; i <= n; i++)
      lua_rawgeti(L, record, i);
  } else if (t->outcome != TASK_OK) {
    trace_note_cause(L, joiner, record);
    lua_getfield(L, record, "err");
    n = 1;
  }
  task_wake(joiner, t->outcome == TASK_OK ? WAIT_OK : WAIT_FAILED, L, n);
}

/* Tells everyone who joins t; 1 when somebody did. */
static int wake_joiners(lua_State *L, struct task *t) {
  struct task *joiner = t->joiners;
  if (joiner == NULL)
    return 0;
  t->joiners = NULL;
  if (t->flags & TASK_RECORD)
    record_push(L, t);
  else
    lua_pushnil(L);
  while (joiner != NULL) {
    struct task *next = joiner->join_next;
    wake_joiner(L, t, joiner);
    joiner = next;
  }
  lua_pop(L, 1);
  return 1;
}

/* An error nobody takes: the host is told. */
static void report(struct sched *s, lua_State *L, struct task *t) {
  record_get(L, t, "err");
  record_get(L, t, "trace");
  const char *trace = lua_isnil(L, -2) ? NULL : lua_tostring(L, -1);
  if (trace == NULL && !lua_isnil(L, -2))
    trace = lua_isstring(L, -2) ? lua_tostring(L, -2) : "error object";
  if (s->hooks.uncaught != NULL)
    s->hooks.uncaught(s->hooks.ud, t, trace);
  lua_pop(L, 2);
}

/* Makes the parent fail with the failure in the record on top of L (popped):
 * at its next wait, or as its outcome when its body has ended. */
static void fail_by_record(struct sched *s, lua_State *L, struct task *parent) {
  trace_note_cause(L, parent, lua_gettop(L));
  lua_getfield(L, -1, "err");
  parent->flags |= TASK_CHILD_FAIL;
  lua_pushvalue(L, -1);
  record_set(L, parent, "failure");
  if (parent->state == TASK_JOINING) {
    parent->outcome = TASK_FAILED;
    lua_pushvalue(L, -1);
    record_set(L, parent, "err");
    lua_getfield(L, -2, "trace");
    record_set(L, parent, "trace");
  }
  lua_pop(L, 2);
  sched_push_error(L, s, "cancelled", "cancelled: a sibling task failed");
  tree_cancel_below(L, parent);
  lua_pop(L, 1);
  wait_deliver(L, parent);
}

/* t failed and nobody joins it: the error goes up - at once, unless the parent
 * is just collecting outcomes (pjoin) and may come to t, too. */
static void fail_parent(struct sched *s, lua_State *L, struct task *t) {
  struct task *parent = t->parent;
  if (parent == &s->root || parent->flags & TASK_CHILD_FAIL ||
      (parent->state == TASK_JOINING && parent->outcome == TASK_FAILED)) {
    report(s, L, t);
  } else if (parent->flags & TASK_PJOINING) {
    record_get(L, parent, "pending");
    if (lua_isnil(L, -1)) {
      lua_pop(L, 1);
      lua_newtable(L);
      lua_pushvalue(L, -1);
      record_set(L, parent, "pending");
    }
    task_push_handle(L, t);
    lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
    lua_pop(L, 1);
    parent->flags |= TASK_PENDING;
  } else {
    record_push(L, t);
    fail_by_record(s, L, parent);
  }
}

/* Lets the first pending failure of t's children go up after all. */
void ending_raise_pending(lua_State *L, struct task *t) {
  t->flags &= (uint16_t)~TASK_PENDING;
  record_get(L, t, "pending");
  lua_pushnil(L);
  record_set(L, t, "pending");
  lua_rawgeti(L, -1, 1);
  lua_getfenv(L, -1);
  lua_replace(L, -3);
  lua_pop(L, 1);
  fail_by_record(t->sched, L, t);
}

void task_failure_taken(lua_State *L, struct task *t, int handle) {
  if (!(t->flags & TASK_PENDING))
    return;
  record_get(L, t, "pending");
  int list = lua_gettop(L), n = (int)lua_objlen(L, list), kept = 0;
  for (int i = 1; i <= n; i++) {
    lua_rawgeti(L, list, i);
    if (lua_rawequal(L, -1, handle))
      lua_pop(L, 1);
    else
      lua_rawseti(L, list, ++kept);
  }
  for (int i = kept + 1; i <= n; i++) {
    lua_pushnil(L);
    lua_rawseti(L, list, i);
  }
  lua_pop(L, 1);
  if (kept > 0)
    return;
  t->flags &= (uint16_t)~TASK_PENDING;
  lua_pushnil(L);
  record_set(L, t, "pending");
}

/* Ends t for good. Returns its parent. */
static struct task *settle(struct sched *s, lua_State *L, struct task *t) {
  struct task *parent = t->parent;
  assert(t->children == NULL);
  deadlines_disarm(&s->deadlines, &t->limit);
  int joined = wake_joiners(L, t);
  if (t->flags & TASK_MAIN) {
    s->mains--;
    s->main_failed |= t->outcome == TASK_FAILED;
  }
  if (t->outcome == TASK_FAILED && !joined)
    fail_parent(s, L, t);
  tree_unlink(t);
  slot_release(s, L, t->slot);
  t->co = NULL;
  t->state = TASK_DONE;
  s->alive--;
  return parent;
}

/* Readies t once more, to run its deferred functions, shielded. */
static void start_defers(struct sched *s, lua_State *L, struct task *t) {
  t->flags &= (uint16_t)~TASK_DEFERS;
  t->flags |= TASK_DEFERRING;
  t->shield++;
  if (s->slots[t->slot].co == NULL)
    slot_fill(s, L, t->slot);
  lua_State *co = t->co = s->slots[t->slot].co;
  lua_settop(co, 0);
  lua_rawgeti(co, LUA_REGISTRYINDEX, s->defer_runner);
  lua_rawgeti(co, LUA_REGISTRYINDEX, s->xpcall);
  lua_pushvalue(co, 1);
  lua_rawgeti(co, LUA_REGISTRYINDEX, s->handler);
  record_get(L, t, "defers");
  lua_xmove(L, co, 1);
  record_push(L, t);
  lua_pushnil(L);
  lua_setfield(L, -2, "defers");
  lua_pop(L, 1);
  t->nargs = 3;
  sched_ready(t);
}

/* The body (or its deferred functions) has ended: what is next, for t and
 * then for the ancestors that waited only for it. A loop, not a recursion:
 * chains of parents may be long. */
void ending_advance(struct sched *s, lua_State *L, struct task *t) {
  for (;;) {
    t->state = TASK_JOINING;
    if (t->children != NULL) {
      if (t->outcome != TASK_OK) {
        sched_push_error(L, s, "cancelled", "cancelled: the parent has ended");
        tree_cancel_below(L, t);
        lua_pop(L, 1);
      }
      return;
    }
    if (t->flags & TASK_DEFERS) {
      start_defers(s, L, t);
      return;
    }
    t = settle(s, L, t);
    if (t->state != TASK_JOINING || t->children != NULL || t == &s->root)
      return;
  }
}

/* Keeps the results that lie on co above index 2 (the true of xpcall). */
static void keep_results(lua_State *L, struct task *t, lua_State *co) {
  int n = lua_gettop(co) - 2;
  if (n <= 0)
    return;
  record_push(L, t);
  for (int i = n; i >= 1; i--) {
    lua_xmove(co, L, 1);
    lua_rawseti(L, -2, i);
  }
  lua_pushinteger(L, n);
  lua_setfield(L, -2, "n");
  lua_pop(L, 1);
}

/* Sets the outcome of a body that raised the value on top of L (popped). */
static void keep_failure(lua_State *L, struct task *t) {
  t->outcome = TASK_FAILED;
  if (t->flags & TASK_CANCEL) {
    record_get(L, t, "cancel");
    if (lua_rawequal(L, -1, -2))
      t->outcome = TASK_CANCELLED;
    lua_pop(L, 1);
  }
  record_set(L, t, "err");
}

/* The same for a deferred function: the body's own error comes first. */
static void keep_deferred_failure(struct sched *s, lua_State *L,
                                  struct task *t) {
  if (t->outcome != TASK_FAILED) {
    t->outcome = TASK_FAILED;
    record_set(L, t, "err");
    return;
  }
  lua_pushfstring(L, "task %d: a deferred function failed, too: %s", (int)t->id,
                  lua_isstring(L, -1) ? lua_tostring(L, -1) : "error object");
  sched_log(s, BIND_LOG_WARN, lua_tostring(L, -1));
  lua_pop(L, 2);
}

/* A child's error that the body swallowed fails the task all the same. */
static void fail_by_child(lua_State *L, struct task *t) {
  t->outcome = TASK_FAILED;
  record_get(L, t, "failure");
  record_set(L, t, "err");
  record_get(L, t, "trace");
  if (lua_isnil(L, -1)) {
    record_get(L, t, "cause_trace");
    record_set(L, t, "trace");
  }
  lua_pop(L, 1);
}

/* The coroutine has returned from xpcall. */
void ending_returned(struct sched *s, lua_State *L, struct task *t) {
  lua_State *co = t->co;
  int deferring = t->flags & TASK_DEFERRING;
  if (t->state == TASK_WAITING) /* the yield got lost in a foreign coroutine */
    wait_forget(L, t);
  if (!lua_toboolean(co, 2)) {
    lua_settop(co, 3);
    lua_xmove(co, L, 1);
    if (deferring)
      keep_deferred_failure(s, L, t);
    else
      keep_failure(L, t);
  } else if (!deferring) {
    keep_results(L, t, co);
    if (t->flags & TASK_PENDING)
      ending_raise_pending(L, t);
    if (t->flags & TASK_CHILD_FAIL)
      fail_by_child(L, t);
  }
  if (deferring) {
    t->flags &= (uint16_t)~TASK_DEFERRING;
    t->shield--;
  }
  lua_settop(co, 0);
  ending_advance(s, L, t);
}

/* Ends t without its coroutine's consent: the coroutine is never resumed. */
void ending_drop(struct sched *s, lua_State *L, struct task *t) {
  if (t->state == TASK_WAITING)
    wait_forget(L, t);
  if (t->flags & TASK_DEFERRING) {
    t->flags &= (uint16_t)~TASK_DEFERRING;
    t->shield--;
  }
  slot_drop_thread(s, L, t->slot);
  t->co = NULL;
  ending_advance(s, L, t);
}

void ending_drop_failed(struct sched *s, lua_State *L, struct task *t,
                        const char *message) {
  t->outcome = TASK_FAILED;
  lua_pushstring(L, message);
  record_set(L, t, "err");
  luaL_traceback(L, t->co, message, 0);
  record_set(L, t, "trace");
  ending_drop(s, L, t);
}
