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

/* Pushes the outcome in the record on top of L, for one joiner; returns the
 * WAIT_ state and in *n how many values that are. */
static int push_outcome(lua_State *L, struct task *t, struct task *joiner,
                        int *n) {
  int record = lua_gettop(L);
  *n = 1;
  if (t->outcome != TASK_OK) {
    lua_getfield(L, record, "err");
    return WAIT_FAILED;
  }
  *n = 0;
  if (lua_isnil(L, record))
    return WAIT_OK;
  lua_getfield(L, record, "n");
  *n = (int)lua_tointeger(L, -1);
  lua_pop(L, 1);
  if (!lua_checkstack(L, *n + LUA_MINSTACK) ||
      !lua_checkstack(joiner->co, *n + LUA_MINSTACK)) {
    *n = 1;
    lua_pushliteral(L, "join: too many results");
    return WAIT_FAILED;
  }
  for (int i = 1; i <= *n; i++)
    lua_rawgeti(L, record, i);
  return WAIT_OK;
}

/* Tells everyone who joins t; 1 when somebody did. */
static int wake_joiners(lua_State *L, struct task *t) {
  struct task *joiner = t->joiners;
  if (joiner == NULL)
    return 0;
  if (t->flags & TASK_RECORD)
    record_push(L, t);
  else
    lua_pushnil(L);
  int record = lua_gettop(L), n;
  while ((joiner = t->joiners) != NULL) {
    if (t->outcome != TASK_OK) {
      trace_note_cause(L, joiner, record);
      if (t->joiners != joiner) /* a finalizer has cancelled it */
        continue;
    }
    t->joiners = joiner->join_next;
    if (t->joiners != NULL)
      t->joiners->join_prev = NULL;
    int state = push_outcome(L, t, joiner, &n);
    task_wake(joiner, state, L, n);
  }
  lua_pop(L, 1);
  return 1;
}

/* ---- errors go up ---- */

/* The error of the task whose handle is on top of L, which nobody takes: the
 * host is told. */
static void report(struct sched *s, lua_State *L) {
  struct task *t = lua_touserdata(L, -1);
  lua_getfenv(L, -1);
  lua_getfield(L, -1, "err");
  lua_getfield(L, -2, "trace");
  if (lua_isnil(L, -1) && lua_istable(L, -2)) { /* made outside a slice */
    lua_pushliteral(L, "message");
    lua_rawget(L, -3);
    lua_replace(L, -2);
  }
  const char *trace = lua_isnil(L, -2) ? NULL : lua_tostring(L, -1);
  if (trace == NULL && !lua_isnil(L, -2))
    trace = lua_isstring(L, -2) ? lua_tostring(L, -2) : "error object";
  if (s->hooks.uncaught != NULL)
    s->hooks.uncaught(s->hooks.ud, t, trace);
  lua_pop(L, 3);
}

/* The failure of the child whose handle is on top of L becomes the parent's:
 * at its next wait, or as its outcome when its body has ended. */
static void fail_parent(struct sched *s, lua_State *L, struct task *parent) {
  int child = lua_gettop(L);
  lua_getfenv(L, child);
  trace_note_cause(L, parent, child + 1);
  lua_getfield(L, child + 1, "err");
  record_set(L, parent, "failure");
  lua_pushvalue(L, child);
  record_set(L, parent, "failed");
  parent->flags |= TASK_CHILD_FAIL;
  if (parent->state == TASK_JOINING) {
    parent->flags |= TASK_TOLD;
    parent->outcome = TASK_FAILED;
    lua_getfield(L, child + 1, "err");
    record_set(L, parent, "err");
    lua_getfield(L, child + 1, "trace");
    record_set(L, parent, "trace");
  }
  sched_push_error(L, s, "cancelled", "cancelled: a sibling task failed");
  tree_cancel_below(L, parent);
  lua_settop(L, child);
  wait_deliver(L, parent);
}

/* The same, or the host is told when the parent cannot fail once more. */
static void send_up(struct sched *s, lua_State *L, struct task *parent) {
  if (parent == &s->root || parent->flags & TASK_CHILD_FAIL ||
      parent->outcome == TASK_FAILED)
    report(s, L);
  else
    fail_parent(s, L, parent);
}

/* Keeps the failed child whose handle is on top of L in record.pending: in
 * order, and by handle, as pjoin takes them out again in any order. */
static void keep_pending(lua_State *L, struct task *parent) {
  int child = lua_gettop(L);
  record_push(L, parent);
  lua_getfield(L, -1, "pending");
  if (lua_isnil(L, -1)) {
    sched_push_table(L, parent->sched);
    lua_pushvalue(L, -1);
    lua_setfield(L, child + 1, "pending");
  }
  int list = lua_gettop(L), n = (int)lua_objlen(L, list) + 1;
  lua_pushvalue(L, child);
  lua_rawseti(L, list, n);
  lua_pushvalue(L, child);
  lua_pushinteger(L, n);
  lua_rawset(L, list);
  lua_getfield(L, list, "count");
  lua_pushinteger(L, lua_tointeger(L, -1) + 1);
  lua_setfield(L, list, "count");
  lua_settop(L, child);
  parent->flags |= TASK_PENDING;
}

/* t failed and nobody joins it: the error goes up - at once, unless the parent
 * may come to t: it is collecting outcomes (pjoin), or just on its way back
 * from a join of t that timed out. */
static void child_failed(struct sched *s, lua_State *L, struct task *t) {
  struct task *parent = t->parent;
  int may_join = parent->flags & TASK_PJOINING ||
                 (parent->state == TASK_READY && parent->waits_for == t);
  task_push_handle(L, t);
  if (may_join && !(parent->flags & TASK_CHILD_FAIL))
    keep_pending(L, parent);
  else
    send_up(s, L, parent);
  lua_pop(L, 1);
}

void ending_raise_pending(lua_State *L, struct task *t) {
  t->flags &= (uint16_t)~TASK_PENDING;
  record_get(L, t, "pending");
  lua_pushnil(L);
  record_set(L, t, "pending");
  int list = lua_gettop(L), n = (int)lua_objlen(L, list);
  for (int i = 1; i <= n; i++) {
    lua_rawgeti(L, list, i);
    if (lua_toboolean(L, -1)) /* false: joined meanwhile */
      send_up(t->sched, L, t);
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
}

void task_failure_taken(lua_State *L, struct task *t, int handle) {
  if (!(t->flags & TASK_PENDING))
    return;
  int top = lua_gettop(L);
  record_get(L, t, "pending");
  lua_pushvalue(L, handle);
  lua_rawget(L, top + 1);
  int i = (int)lua_tointeger(L, -1);
  if (i > 0) {
    lua_pushboolean(L, 0);
    lua_rawseti(L, top + 1, i);
    lua_pushvalue(L, handle);
    lua_pushnil(L);
    lua_rawset(L, top + 1);
    lua_getfield(L, top + 1, "count");
    int left = (int)lua_tointeger(L, -1) - 1;
    lua_pushinteger(L, left);
    lua_setfield(L, top + 1, "count");
    if (left == 0) {
      t->flags &= (uint16_t)~TASK_PENDING;
      lua_pushnil(L);
      record_set(L, t, "pending");
    }
  }
  lua_settop(L, top);
}

/* A child's error that t was never told, or that it swallowed, fails it all
 * the same; the host is told when t has failed otherwise. */
static void take_failures(struct sched *s, lua_State *L, struct task *t) {
  if (t->flags & TASK_PENDING)
    ending_raise_pending(L, t);
  if (!(t->flags & TASK_CHILD_FAIL))
    return;
  if (t->outcome == TASK_FAILED) {
    if (!(t->flags & TASK_TOLD)) {
      record_get(L, t, "failed");
      report(s, L);
      lua_pop(L, 1);
    }
  } else {
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
  t->flags |= TASK_TOLD;
}

/* ---- the end ---- */

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
    child_failed(s, L, t);
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

/* Children of a failed or cancelled body that were spared so far. */
static void cancel_children(struct sched *s, lua_State *L, struct task *t) {
  if (t->flags & TASK_CANCEL)
    record_get(L, t, "cancel");
  else
    sched_push_error(L, s, "cancelled", "cancelled: the parent has ended");
  tree_cancel_below(L, t);
  lua_pop(L, 1);
}

/* The body (or its deferred functions) has ended: what is next, for t and
 * then for the ancestors that waited only for it. A loop, not a recursion:
 * chains of parents may be long. */
void ending_advance(struct sched *s, lua_State *L, struct task *t) {
  for (;;) {
    t->state = TASK_JOINING;
    t->shield = 0; /* what was left open has ended with the body */
    if (t->children != NULL) {
      if (t->outcome != TASK_OK || t->flags & TASK_CANCEL)
        cancel_children(s, L, t);
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
  }
  t->flags &= (uint16_t)~TASK_DEFERRING;
  lua_settop(co, 0);
  take_failures(s, L, t);
  ending_advance(s, L, t);
}

/* Ends t without its coroutine's consent: the coroutine is never resumed. */
static void drop(struct sched *s, lua_State *L, struct task *t) {
  if (t->state == TASK_WAITING)
    wait_forget(L, t);
  t->flags &= (uint16_t)~TASK_DEFERRING;
  slot_drop_thread(s, L, t->slot);
  t->co = NULL;
  take_failures(s, L, t);
  ending_advance(s, L, t);
}

void ending_drop_cancelled(struct sched *s, lua_State *L, struct task *t) {
  if (t->outcome == TASK_OK) {
    t->outcome = TASK_CANCELLED;
    record_get(L, t, "cancel");
    record_set(L, t, "err");
  }
  drop(s, L, t);
}

static int push_trace(lua_State *L) {
  struct task *t = lua_touserdata(L, 1);
  luaL_traceback(L, t->co, lua_touserdata(L, 2), 0);
  trace_without_ours(L);
  return 1;
}

static int push_text(lua_State *L) {
  lua_pushstring(L, lua_touserdata(L, 1));
  return 1;
}

void ending_drop_failed(struct sched *s, lua_State *L, struct task *t,
                        const char *message) {
  t->outcome = TASK_FAILED;
  sched_guarded(L, s, push_text, message, NULL);
  record_set(L, t, "err");
  sched_guarded(L, s, push_trace, t, message);
  record_set(L, t, "trace");
  drop(s, L, t);
}
