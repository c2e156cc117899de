/* The C half of the `task` module: what must touch the scheduler. The Lua
 * half, lua/task.lua, turns the WAIT_ states that waits return into results
 * and errors, and builds everything else out of park and wake. */
#include <assert.h>
#include <lauxlib.h>
#include <string.h>

#include "bind/bind.h"
#include "bind/trace.h"

static struct bind *bind_of(lua_State *L) {
  return lua_touserdata(L, lua_upvalueindex(1));
}

static struct sched *sched_of(lua_State *L) {
  return &bind_of(L)->sched;
}

/* The task at index; `what` is the method that wants it. */
static struct task *check_task(lua_State *L, int index, const char *what) {
  struct task *t = lua_touserdata(L, index);
  int is_task = 0;
  if (t != NULL && lua_getmetatable(L, index)) {
    luaL_getmetatable(L, BIND_TASK);
    is_task = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
  }
  if (!is_task)
    trace_error(L, "%s: call it with a colon, as in t:%s()", what, what);
  return t;
}

static struct task *current_task(lua_State *L, const char *what) {
  struct task *t = sched_of(L)->current;
  if (t == NULL)
    trace_error(L, "%s: not inside a task", what);
  return t;
}

/* An optional timeout in seconds at index: < 0 when there is none. */
static double check_timeout(lua_State *L, int index, const char *what) {
  if (lua_isnoneornil(L, index))
    return -1;
  double seconds = lua_tonumber(L, index);
  if (lua_type(L, index) != LUA_TNUMBER || !(seconds >= 0))
    trace_error(L, "%s: the time must be a number of seconds >= 0, not %s",
                what,
                lua_type(L, index) == LUA_TNUMBER ? lua_tostring(L, index)
                                                  : luaL_typename(L, index));
  return seconds;
}

static void check_function(lua_State *L, int index, const char *what) {
  if (!lua_isfunction(L, index))
    trace_error(L, "%s: a function expected, not %s", what,
                luaL_typename(L, index));
}

/* spawn(fn, ...) -> handle: a child of the current task. */
static int l_spawn(lua_State *L) {
  struct sched *s = sched_of(L);
  check_function(L, 1, "spawn");
  sched_spawn(s, L, s->current ? s->current : &s->root, lua_gettop(L) - 1);
  return 1;
}

/* spawn_under(parent or false, fn, ...): false is the runtime's root. */
static int l_spawn_under(lua_State *L) {
  struct sched *s = sched_of(L);
  struct task *parent =
      lua_toboolean(L, 1) ? check_task(L, 1, "spawn") : &s->root;
  check_function(L, 2, "spawn");
  if (parent->state == TASK_DONE)
    return trace_error(L, "spawn: the parent task has ended");
  sched_spawn(s, L, parent, lua_gettop(L) - 2);
  return 1;
}

/* sleep(seconds) -> state */
static int l_sleep(lua_State *L) {
  struct task *t;
  double seconds = check_timeout(L, 1, "sleep");
  if (seconds < 0)
    return trace_error(L, "sleep: the time must be a number of seconds >= 0");
  if (!task_may_wait(L, sched_of(L), "sleep", &t))
    return task_raise(L, t);
  return task_wait(L, t, seconds, NULL, NULL);
}

/* yield() -> state: lets the other ready tasks run first. */
static int l_yield(lua_State *L) {
  struct task *t;
  if (!task_may_wait(L, sched_of(L), "yield", &t))
    return task_raise(L, t);
  return task_yield(L, t);
}

/* park([timeout[, what[, owner]]]) -> state, values of wake... owner: the
 * task whose progress this wait needs, for the waits-for chain. */
static int l_park(lua_State *L) {
  struct task *t;
  const char *what = luaL_optstring(L, 2, "park");
  double timeout = check_timeout(L, 1, what);
  struct task *owner = lua_isnoneornil(L, 3) ? NULL : check_task(L, 3, "park");
  if (!task_may_wait(L, sched_of(L), what, &t))
    return task_raise(L, t);
  if (owner != NULL) { /* its handle must outlive this wait */
    task_push_handle(L, t);
    task_push_record(L, -1, t);
    lua_pushvalue(L, 3);
    lua_setfield(L, -2, "waits_for");
  }
  t->waits_for = owner;
  return task_wait(L, t, timeout, NULL, NULL);
}

/* may_wait(what): raises when a wait could not be taken here; true, or false
 * when the next wait would raise an interrupt at once. */
static int l_may_wait(lua_State *L) {
  struct task *t;
  lua_pushboolean(L, task_may_wait(L, sched_of(L), luaL_checkstring(L, 1), &t));
  return 1;
}

/* ticket() -> the number that names the current task's next wait */
static int l_ticket(lua_State *L) {
  lua_pushnumber(L, (double)(current_task(L, "ticket")->generation + 1));
  return 1;
}

/* wake(task, ticket, ...) -> was it still in that wait? The values become
 * its results. */
static int l_wake(lua_State *L) {
  struct task *t = check_task(L, 1, "wake");
  int waits = task_is_waiting(t, (uint64_t)luaL_checknumber(L, 2));
  if (waits)
    task_wake(t, WAIT_OK, L, lua_gettop(L) - 2);
  lua_pushboolean(L, waits);
  return 1;
}

static void forget_join(lua_State *L, struct task *me, void *arg) {
  (void)L;
  struct task *target = arg;
  if (me->join_prev != NULL)
    me->join_prev->join_next = me->join_next;
  else
    target->joiners = me->join_next;
  if (me->join_next != NULL)
    me->join_next->join_prev = me->join_prev;
}

static int push_outcome(lua_State *L, struct task *t) {
  if (t->outcome == TASK_OK && !(t->flags & TASK_RECORD)) {
    lua_pushinteger(L, WAIT_OK);
    return 1;
  }
  task_push_record(L, 1, t);
  int record = lua_gettop(L);
  if (t->outcome != TASK_OK) {
    struct task *me = t->sched->current;
    if (me != NULL) {
      trace_note_cause(L, me, record);
      task_failure_taken(L, me, 1);
    }
    lua_pushinteger(L, WAIT_FAILED);
    lua_getfield(L, record, "err");
    return 2;
  }
  lua_getfield(L, record, "n");
  int n = (int)lua_tointeger(L, -1);
  lua_pop(L, 1);
  if (!lua_checkstack(L, n + LUA_MINSTACK))
    return trace_error(L, "join: too many results");
  lua_pushinteger(L, WAIT_OK);
  for (int i = 1; i <= n; i++)
    lua_rawgeti(L, record, i);
  return n + 1;
}

/* join(task[, timeout[, protected]]) -> state, results... or error. protected:
 * a pjoin. */
static int l_join(lua_State *L) {
  const char *what = lua_toboolean(L, 3) ? "pjoin" : "join";
  struct task *t = check_task(L, 1, what), *me;
  double timeout = check_timeout(L, 2, what);
  if (t->state == TASK_DONE) {
    me = t->sched->current;
    if (me != NULL && me->flags & TASK_INTERRUPTS && me->shield == 0 &&
        !task_held(me))
      return task_raise(L, me);
    return push_outcome(L, t);
  }
  if (!(lua_toboolean(L, 3) ? task_may_pjoin(L, sched_of(L), &me)
                            : task_may_wait(L, sched_of(L), "join", &me)))
    return task_raise(L, me);
  for (struct task *up = t->parent == me ? NULL : me; up; up = up->parent)
    if (up == t)
      return trace_error(L, "join: a task cannot join %s",
                         t == me ? "itself" : "a parent, which waits for it");
  if (task_would_deadlock(me, t))
    return trace_error(L, "join: that task waits for this one: deadlock");
  me->join_prev = NULL;
  me->join_next = t->joiners;
  if (t->joiners != NULL)
    t->joiners->join_prev = me;
  t->joiners = me;
  me->waits_for = t;
  if (lua_toboolean(L, 3))
    me->flags |= TASK_PJOINING;
  return task_wait(L, me, timeout, forget_join, t);
}

/* cancel(task, error object) -> was it alive and not cancelled yet? */
static int l_cancel(lua_State *L) {
  struct task *t = check_task(L, 1, "cancel");
  lua_settop(L, 2);
  lua_pushboolean(L, task_cancel(L, t));
  return 1;
}

/* cancel_children(error object): of the current task */
static int l_cancel_children(lua_State *L) {
  struct task *t = current_task(L, "cancel_children"), *next;
  luaL_checkany(L, 1);
  for (struct task *child = t->children; child != NULL; child = next) {
    next = child->next;
    lua_pushvalue(L, 1);
    task_cancel(L, child);
  }
  return 0;
}

static int l_detach(lua_State *L) {
  struct task *t = check_task(L, 1, "detach");
  if (t->state != TASK_DONE)
    task_set_parent(L, t, &t->sched->root);
  lua_settop(L, 1);
  return 1;
}

static int l_current(lua_State *L) {
  struct task *t = sched_of(L)->current;
  if (t == NULL)
    return 0;
  task_push_handle(L, t);
  return 1;
}

/* shield(1) -> the current task, whose interrupts wait from now on.
 * shield(-1[, task]): until now. A coroutine may have carried the end of the
 * shield into another task, or beyond the end of its own. */
static int l_shield(lua_State *L) {
  struct task *t = lua_isnoneornil(L, 2) ? current_task(L, "shield")
                                         : check_task(L, 2, "shield");
  if (luaL_checkinteger(L, 1) > 0) {
    t->shield++;
    task_push_handle(L, t);
    return 1;
  }
  if (t->shield > 0 && !(t->flags & TASK_DEFERRING && t->shield == 1)) {
    t->shield--;
    task_interrupts_due(L, t);
  }
  return 0;
}

/* limit(seconds, error object): the current task fails with it at a wait once
 * the time has passed. limit() takes it away. */
static int l_limit(lua_State *L) {
  struct task *t = current_task(L, "limit");
  double seconds = check_timeout(L, 1, "limit");
  lua_settop(L, 2);
  task_push_handle(L, t);
  task_push_record(L, -1, t);
  lua_pushvalue(L, 2);
  lua_setfield(L, -2, "limit");
  if (task_set_limit(t, seconds) < 0)
    return trace_error(L, "not enough memory");
  return 0;
}

/* defer(fn): the current task runs it when it has ended, newest first. */
static int l_defer(lua_State *L) {
  struct task *t = current_task(L, "defer");
  check_function(L, 1, "defer");
  task_push_handle(L, t);
  task_push_record(L, -1, t);
  lua_getfield(L, -1, "defers");
  if (lua_isnil(L, -1)) {
    lua_pop(L, 1);
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_setfield(L, -3, "defers");
  }
  lua_pushvalue(L, 1);
  lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
  t->flags |= TASK_DEFERS;
  return 0;
}

static void check_name(lua_State *L, int index) {
  if (!lua_isstring(L, index))
    trace_error(L, "name: a string expected, not %s", luaL_typename(L, index));
}

/* name(task[, name]) -> name or nil, id */
static int l_name(lua_State *L) {
  struct task *t = check_task(L, 1, "name");
  int set = !lua_isnoneornil(L, 2);
  if (set)
    check_name(L, 2);
  if (set || t->flags & TASK_RECORD) {
    task_push_record(L, 1, t);
    if (set) {
      lua_pushvalue(L, 2);
      lua_setfield(L, -2, "name");
    }
    lua_getfield(L, -1, "name");
  } else {
    lua_pushnil(L);
  }
  lua_pushnumber(L, (double)t->id);
  return 2;
}

static int l_status(lua_State *L) {
  static const char *const states[] = {"ready", "running", "waiting",
                                       "joining"};
  static const char *const outcomes[] = {"done", "failed", "cancelled"};
  struct task *t = check_task(L, 1, "status");
  lua_pushstring(L, t->state == TASK_DONE ? outcomes[t->outcome]
                                          : states[t->state]);
  return 1;
}

/* traceback(task): where it stands, or the stack of the error it ended with */
static int l_traceback(lua_State *L) {
  struct task *t = check_task(L, 1, "traceback");
  if (t->state != TASK_DONE && t->co != NULL) {
    luaL_traceback(L, t->co, NULL, 0);
    trace_without_ours(L);
    return 1;
  }
  if (!(t->flags & TASK_RECORD))
    return 0;
  task_push_record(L, 1, t);
  lua_getfield(L, -1, "trace");
  return 1;
}

/* note_error(err, trace[, foreign]): err, caught here with that stack, may be
 * raised again in the current task. foreign: the stack is another task's. An
 * error that came from another task keeps the stack it had there. */
static int l_note_error(lua_State *L) {
  struct task *t = sched_of(L)->current;
  lua_settop(L, 3);
  if (t == NULL || lua_isnil(L, 1))
    return 0;
  task_push_handle(L, t);
  task_push_record(L, -1, t);
  int record = lua_gettop(L), own = !lua_toboolean(L, 3);
  lua_getfield(L, record, "cause_err");
  if (own && lua_rawequal(L, -1, 1) && !trace_is_own(L, record))
    return 0;
  lua_pushvalue(L, 1);
  lua_setfield(L, record, "cause_err");
  lua_pushvalue(L, 2);
  lua_setfield(L, record, "cause_trace");
  lua_pushvalue(L, own ? 2 : 3);
  lua_setfield(L, record, "cause_own");
  return 0;
}

static int l_unwait(lua_State *L) {
  struct task *t = sched_of(L)->current;
  if (t != NULL)
    task_unwait(L, t);
  return 0;
}

/* children(task, or false: the root) -> list of the handles of its live
 * children, oldest last */
static int l_children(lua_State *L) {
  struct task *t =
      lua_isboolean(L, 1) ? &sched_of(L)->root : check_task(L, 1, "children");
  int n = 0;
  lua_newtable(L);
  for (struct task *child = t->children; child != NULL; child = child->next) {
    task_push_handle(L, child);
    lua_rawseti(L, -2, ++n);
  }
  return 1;
}

static void set_count(lua_State *L, const char *name, double value) {
  lua_pushnumber(L, value);
  lua_setfield(L, -2, name);
}

/* counters() -> {alive, ready, waiting, deadlines, pooled, coroutines, slots}
 */
static int l_counters(lua_State *L) {
  struct sched *s = sched_of(L);
  uint32_t coroutines = 0;
  for (uint32_t i = 0; i < s->slot_count; i++)
    coroutines += s->slots[i].co != NULL;
  lua_createtable(L, 0, 8);
  set_count(L, "alive", s->alive);
  set_count(L, "ready", s->ready);
  set_count(L, "waiting", s->waiting);
  set_count(L, "deadlines", s->deadlines.count);
  set_count(L, "pooled", s->pooled);
  set_count(L, "coroutines", coroutines);
  set_count(L, "slots", s->slot_count);
  return 1;
}

/* would_deadlock(owner) -> does it wait, in the end, for the current task? */
static int l_would_deadlock(lua_State *L) {
  struct task *owner = check_task(L, 1, "would_deadlock");
  lua_pushboolean(L, task_would_deadlock(sched_of(L)->current, owner));
  return 1;
}

/* now() -> seconds of a monotonic clock */
static int l_now(lua_State *L) {
  lua_pushnumber(L, (double)uv_hrtime() / 1e9);
  return 1;
}

/* held(task) -> do others wait for a load that it, or a task below it, runs? */
static int l_held(lua_State *L) {
  lua_pushboolean(L, task_is_held(check_task(L, 1, "held")));
  return 1;
}

/* exit(code): ends every task, and then the runtime, with this code. */
static int l_exit(lua_State *L) {
  struct sched *s = sched_of(L);
  struct task *t = s->current;
  if (!s->exiting) {
    s->exiting = 1;
    s->exit_code = (int)luaL_checkinteger(L, 1);
    sched_cancel_all(L, s, "cancelled: os.exit was called");
  }
  if (t == NULL)
    return 0;
  if (lua_isyieldable(L) && t->state == TASK_RUNNING)
    return task_abandon(L, t);
  task_push_handle(L, t);
  task_push_record(L, -1, t);
  lua_getfield(L, -1, "cancel");
  return lua_error(L);
}

/* configure{error = metatable, defers = function}: what C takes from Lua */
static int l_configure(lua_State *L) {
  struct sched *s = sched_of(L);
  lua_getfield(L, 1, "error");
  lua_rawseti(L, LUA_REGISTRYINDEX, s->error_mt);
  lua_getfield(L, 1, "defers");
  lua_rawseti(L, LUA_REGISTRYINDEX, s->defer_runner);
  return 0;
}

int bind_open_task(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"spawn", l_spawn},
      {"spawn_under", l_spawn_under},
      {"sleep", l_sleep},
      {"yield", l_yield},
      {"park", l_park},
      {"may_wait", l_may_wait},
      {"ticket", l_ticket},
      {"wake", l_wake},
      {"join", l_join},
      {"cancel", l_cancel},
      {"cancel_children", l_cancel_children},
      {"detach", l_detach},
      {"current", l_current},
      {"shield", l_shield},
      {"limit", l_limit},
      {"defer", l_defer},
      {"name", l_name},
      {"status", l_status},
      {"traceback", l_traceback},
      {"note_error", l_note_error},
      {"unwait", l_unwait},
      {"children", l_children},
      {"counters", l_counters},
      {"would_deadlock", l_would_deadlock},
      {"now", l_now},
      {"held", l_held},
      {"exit", l_exit},
      {"configure", l_configure},
      {NULL, NULL},
  };
  struct bind *b = bind_of(L);
  lua_newtable(L);
  bind_add_functions(L, b, functions);
  luaL_newmetatable(L, BIND_TASK);
  lua_setfield(L, -2, "metatable");
  lua_pushlightuserdata(L, &b->sched);
  lua_setfield(L, -2, "WAIT"); /* what a wait yields, for coroutine wrappers */
  return 1;
}
