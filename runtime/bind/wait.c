/* Waits and interrupts: how a task stops, and what makes it go on.
 *
 * While a task is WAITING its coroutine is suspended with an empty stack top:
 * whoever ends the wait pushes the results there. A wait ends in one of four
 * ways - task_wake, task_complete, its deadline, an interrupt - and each goes
 * through disarm(), so that none of the others can come after. The yield of a
 * wait inside nested coroutines passes through Lua code (boot.lua), where a
 * finalizer or a hook may end the wait before its coroutine is suspended: that
 * is kept (TASK_WOKEN) until the slice has ended. An interrupt
 * (cancel, a failed child, a time limit) is a flag with a value in the record;
 * it is level-triggered: every wait raises it while the flag is set, but for
 * those inside a shield or of a task on whose load others wait.
 */
#include <assert.h>
#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

#include "bind/bind.h"
#include "bind/sched_internal.h"
#include "bind/trace.h"

enum { IGNORED_MAX = 1000 }; /* interrupts swallowed in a drain, then dropped */

/* Pushes the name of the C function that ar describes: library.name. */
static const char *push_c_name(lua_State *L, lua_Debug *ar) {
  static const char *const libraries[] = {"string", "table", "_G", "debug"};
  lua_getinfo(L, "nf", ar); /* pushes the function */
  for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++) {
    lua_getglobal(L, libraries[i]);
    for (lua_pushnil(L); lua_istable(L, -2) && lua_next(L, -2); lua_pop(L, 1))
      if (lua_rawequal(L, -1, -4) && lua_type(L, -2) == LUA_TSTRING)
        return lua_tostring(L, -2);
    lua_settop(L, -2);
  }
  return ar->name;
}

/* Names the C function that stands between here and the coroutine's yield. */
static const char *why_not(lua_State *L) {
  lua_Debug ar;
  for (int level = 1; lua_getstack(L, level, &ar); level++) {
    lua_getinfo(L, "S", &ar);
    if (*ar.what != 'C')
      continue;
    const char *name = push_c_name(L, &ar);
    if (name != NULL && !strcmp(name, "collectgarbage"))
      return NULL; /* calls nothing but finalizers */
    if (name != NULL && strcmp(name, "pcall") && strcmp(name, "xpcall"))
      return name;
  }
  return NULL;
}

static struct task *check_here(lua_State *L, struct sched *s,
                               const char *what) {
  struct task *t = s->current;
  if (t == NULL)
    trace_error(L, "%s: cannot wait here: outside a task", what);
  if (!lua_isyieldable(L)) {
    luaL_checkstack(L, 100, NULL);
    const char *why = why_not(L);
    if (why != NULL)
      trace_error(L,
                  "%s: cannot wait here: inside '%s', a C function that calls "
                  "Lua back",
                  what, why);
    trace_error(L,
                "%s: cannot wait here: inside a finalizer (__gc), a hook or a "
                "C function's callback",
                what);
  }
  if (t->state != TASK_RUNNING)
    trace_error(L,
                "%s: cannot wait here: an earlier wait of this task was caught "
                "by a coroutine that Moonstash does not know",
                what);
  return t;
}

static int no_interrupt(const struct task *t) {
  return !(t->flags & TASK_INTERRUPTS) || t->shield > 0 || task_held(t);
}

int task_may_wait(lua_State *L, struct sched *s, const char *what,
                  struct task **out) {
  struct task *t = *out = check_here(L, s, what);
  if (t->flags & TASK_PENDING)
    ending_raise_pending(L, t);
  return no_interrupt(t);
}

int task_may_pjoin(lua_State *L, struct sched *s, struct task **out) {
  return no_interrupt(*out = check_here(L, s, "pjoin"));
}

/* Pushes the value that t's most urgent interrupt raises. */
static void push_interrupt(lua_State *L, struct task *t) {
  assert(t->flags & TASK_INTERRUPTS);
  if (t->flags & TASK_CHILD_FAIL)
    t->flags |= TASK_TOLD;
  record_get(L, t,
             t->flags & TASK_CHILD_FAIL ? "failure"
             : t->flags & TASK_CANCEL   ? "cancel"
                                        : "limit");
}

int task_abandon(lua_State *L, struct task *t) {
  t->flags |= TASK_ABANDONED;
  t->state = TASK_WAITING;
  t->generation++;
  t->forget = NULL;
  t->sched->waiting++;
  lua_pushlightuserdata(L, t->sched);
  return lua_yield(L, 1);
}

int task_raise(lua_State *L, struct task *t) {
  if (t->sched->draining && ++t->raised > IGNORED_MAX)
    return task_abandon(L, t);
  lua_pushinteger(L, WAIT_RAISE);
  push_interrupt(L, t);
  return 2;
}

uint64_t wait_due_ns(double seconds) {
  const double far = 9e9; /* 285 years: keeps the sum within 64 bits */
  return uv_hrtime() + (uint64_t)((seconds < far ? seconds : far) * 1e9);
}

int task_wait(lua_State *L, struct task *t, double timeout,
              task_forget_fn *forget, void *arg) {
  struct sched *s = t->sched;
  assert(t == s->current && t->state == TASK_RUNNING);
  if (timeout >= 0 &&
      deadlines_arm(&s->deadlines, &t->wait, wait_due_ns(timeout)) < 0) {
    if (forget != NULL)
      forget(L, t, arg);
    return luaL_error(L, "not enough memory");
  }
  t->state = TASK_WAITING;
  t->generation++;
  t->forget = forget;
  t->forget_arg = arg;
  s->waiting++;
  lua_pushlightuserdata(L, s);
  return lua_yield(L, 1);
}

int task_yield(lua_State *L, struct task *t) {
  t->flags |= TASK_YIELDED; /* wait_suspended() wakes it */
  return task_wait(L, t, -1, NULL, NULL);
}

int task_is_waiting(const struct task *t, uint64_t generation) {
  return t->state == TASK_WAITING && t->generation == generation &&
         !(t->flags & TASK_ABANDONED) && !t->sched->closing;
}

/* Leaves WAITING without saying where to. */
static void disarm(struct task *t) {
  assert(t->state == TASK_WAITING);
  deadlines_disarm(&t->sched->deadlines, &t->wait);
  t->sched->waiting--;
  t->forget = NULL;
  t->flags &= (uint16_t) ~(TASK_ABANDONED | TASK_YIELDED | TASK_WOKEN);
  t->state = TASK_RUNNING;
}

/* Nobody will want the results that a completed wait has. */
static void drop_results(struct task *t) {
  if (t->push != NULL)
    t->push(NULL, t, t->push_arg);
  t->push = NULL;
}

void wait_forget(lua_State *L, struct task *t) {
  drop_results(t);
  if (t->forget != NULL)
    t->forget(L, t, t->forget_arg);
  disarm(t);
}

void task_unwait(lua_State *L, struct task *t) {
  if (t->state != TASK_WAITING)
    return;
  wait_forget(L, t);
  t->waits_for = NULL;
  t->flags &= (uint16_t)~TASK_PJOINING;
}

/* Ends a wait whose coroutine is not suspended yet. */
static void complete_early(struct task *t, task_push_fn *push, void *arg) {
  t->push = push;
  t->push_arg = arg;
  t->forget = NULL;
  t->generation++; /* nobody else may end it */
  t->flags |= TASK_WOKEN;
}

static int push_kept(lua_State *L, struct task *t, void *arg) {
  (void)arg;
  if (L == NULL)
    return 0;
  record_get(L, t, "woken");
  int list = lua_gettop(L), n = (int)lua_objlen(L, list);
  for (int i = 1; i <= n; i++) {
    lua_rawgeti(L, list, i);
    lua_getfield(L, -1, "value");
    lua_remove(L, -2);
  }
  lua_remove(L, list);
  return n;
}

/* Keeps the wait's results in the record, each in a table as it may be nil. */
static void wake_early(struct task *t, int state, lua_State *from,
                       int nvalues) {
  int first = lua_gettop(from) - nvalues + 1;
  lua_pushinteger(from, state);
  lua_insert(from, first);
  record_push(from, t);
  lua_createtable(from, nvalues + 1, 0);
  for (int i = 0; i <= nvalues; i++) {
    lua_createtable(from, 0, 1);
    lua_pushvalue(from, first + i);
    lua_setfield(from, -2, "value");
    lua_rawseti(from, -2, i + 1);
  }
  if (!(t->flags & TASK_WOKEN)) { /* else a finalizer just did */
    lua_setfield(from, -2, "woken");
    complete_early(t, push_kept, NULL);
  }
  lua_settop(from, first - 1);
}

void task_wake(struct task *t, int state, lua_State *from, int nvalues) {
  if (t == t->sched->current) {
    wake_early(t, state, from, nvalues);
    return;
  }
  if (!lua_checkstack(t->co, nvalues + LUA_MINSTACK))
    luaL_error(from, "too many values to wake a task with");
  disarm(t);
  lua_pushinteger(t->co, state);
  lua_xmove(from, t->co, nvalues);
  t->nargs = 1 + (uint32_t)nvalues;
  sched_ready(t);
}

void task_complete(struct task *t, task_push_fn *push, void *arg) {
  if (t == t->sched->current) {
    complete_early(t, push, arg);
    return;
  }
  disarm(t);
  t->push = push;
  t->push_arg = arg;
  sched_ready(t);
}

/* Wakes t with the value of its interrupt, if it waits and may be told. */
void wait_deliver(lua_State *L, struct task *t) {
  if (!(t->flags & TASK_INTERRUPTS) || t->shield > 0 ||
      t->state != TASK_WAITING || (t->flags & TASK_ABANDONED) ||
      t == t->sched->current || t->sched->closing || task_held(t))
    return;
  if (t->forget != NULL)
    t->forget(L, t, t->forget_arg);
  push_interrupt(L, t);
  task_wake(t, WAIT_RAISE, L, 1);
}

void wait_suspended(lua_State *L, struct task *t) {
  if (t->flags & TASK_WOKEN) {
    disarm(t);
    sched_ready(t);
  } else if (t->flags & TASK_YIELDED) {
    task_wake(t, WAIT_OK, L, 0);
  } else {
    wait_deliver(L, t);
  }
}

int task_would_deadlock(const struct task *t, const struct task *on) {
  for (; on != NULL && on->state == TASK_WAITING; on = on->waits_for)
    if (on == t)
      return 1;
  if (on == NULL || t == NULL)
    return 0;
  if (on->state == TASK_JOINING) { /* waits for everything below it */
    for (; t != NULL; t = t->parent)
      if (t == on)
        return 1;
    return 0;
  }
  return on == t;
}
