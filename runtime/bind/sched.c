/* The scheduler: one pump that resumes ready tasks, between two polls.
 *
 *   spawn --> READY --pump--> RUNNING --task_wait--> WAITING
 *               ^                |                      |
 *               +--- task_wake, deadline, interrupt ----+
 *                                | body returns or raises
 *                                v
 *                             JOINING (children, deferred functions) --> DONE
 *
 * Invariants: a task is in the ready queue if and only if it is READY; while
 * it is WAITING its coroutine is suspended with an empty stack top, so that
 * whoever wakes it pushes the results there; s->current is the only RUNNING
 * one. Tasks form a tree below s->root: a parent is never DONE before its
 * children. The pump's Lua calls are protected; nothing else resumes.
 *
 * A turn of the loop: timers (ours only wakes), poll, check. In check every
 * task that the poll has made ready runs first, then deadlines are judged by
 * the time at which the poll returned: a reply that lay in a socket wins over
 * a deadline that passed while Lua was busy.
 */
#include "bind/sched.h"

#include <assert.h>
#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

#include "bind/bind.h"
#include "bind/trace.h"
#include "clock.h"

enum {
  POOL_MAX = 256,         /* finished coroutines that are kept for reuse */
  PUMP_BATCH = 256,       /* slices per turn beyond those ready at its start */
  SLOW_SLICE_MS = 100,    /* a slice above this is logged, once per site */
  SLOW_SITES_MAX = 256,   /* sites remembered */
  IGNORED_MAX = 1000,     /* interrupts a task may swallow during a drain */
  NS_PER_MS = 1000000
};

/* ---- slots: anchored coroutines ------------------------------------- */

static int thread_key(uint32_t slot) {
  return 2 * (int)slot + 1;
}

static int handle_key(uint32_t slot) {
  return 2 * (int)slot + 2;
}

/* Pops the value on top of L into the anchors under key. */
static void anchor(struct sched *s, lua_State *L, int key) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->anchors);
  lua_insert(L, -2);
  lua_rawseti(L, -2, key);
  lua_pop(L, 1);
}

static uint32_t slot_new(struct sched *s, lua_State *L) {
  if (s->slot_count == s->slot_capacity) {
    uint32_t capacity = s->slot_capacity ? 2 * s->slot_capacity : 16;
    struct slot *slots = realloc(s->slots, capacity * sizeof *slots);
    if (slots == NULL)
      luaL_error(L, "not enough memory");
    s->slots = slots;
    s->slot_capacity = capacity;
  }
  s->slots[s->slot_count].co = NULL;
  return s->slot_count++;
}

static void slot_fill(struct sched *s, lua_State *L, uint32_t slot) {
  lua_State *co = lua_newthread(L);
  anchor(s, L, thread_key(slot));
  s->slots[slot].co = co;
}

/* Takes a slot with a fresh coroutine. */
static uint32_t slot_take(struct sched *s, lua_State *L) {
  uint32_t slot = s->pooled_slot;
  if (slot != NO_SLOT) {
    s->pooled_slot = s->slots[slot].next_free;
    s->pooled--;
    return slot;
  }
  slot = s->empty_slot;
  if (slot == NO_SLOT) {
    slot = slot_new(s, L);
    s->slots[slot].next_free = NO_SLOT;
    s->empty_slot = slot; /* stays free should slot_fill raise */
  }
  slot_fill(s, L, slot);
  s->empty_slot = s->slots[slot].next_free;
  return slot;
}

static void slot_drop_thread(struct sched *s, lua_State *L, uint32_t slot) {
  lua_pushnil(L);
  anchor(s, L, thread_key(slot));
  s->slots[slot].co = NULL;
}

static void slot_release(struct sched *s, lua_State *L, uint32_t slot) {
  lua_pushnil(L);
  anchor(s, L, handle_key(slot));
  if (s->slots[slot].co != NULL && s->pooled >= POOL_MAX)
    slot_drop_thread(s, L, slot);
  uint32_t *list = &s->empty_slot;
  if (s->slots[slot].co != NULL) {
    list = &s->pooled_slot;
    s->pooled++;
  }
  s->slots[slot].next_free = *list;
  *list = slot;
}

/* ---- handles and records --------------------------------------------- */

void task_push_handle(lua_State *L, const struct task *t) {
  if (t->state == TASK_DONE || t->parent == NULL) {
    lua_pushnil(L);
    return;
  }
  lua_rawgeti(L, LUA_REGISTRYINDEX, t->sched->anchors);
  lua_rawgeti(L, -1, handle_key(t->slot));
  lua_remove(L, -2);
}

void task_push_record(lua_State *L, int handle, struct task *t) {
  if (t->flags & TASK_RECORD) {
    lua_getfenv(L, handle);
    return;
  }
  if (handle < 0)
    handle = lua_gettop(L) + 1 + handle;
  lua_newtable(L);
  lua_pushvalue(L, -1);
  lua_setfenv(L, handle);
  t->flags |= TASK_RECORD;
}

static void push_record(lua_State *L, struct task *t) {
  task_push_handle(L, t);
  task_push_record(L, -1, t);
  lua_remove(L, -2);
}

/* Pops the value on top of L into t's record. */
static void record_set(lua_State *L, struct task *t, const char *field) {
  push_record(L, t);
  lua_insert(L, -2);
  lua_setfield(L, -2, field);
  lua_pop(L, 1);
}

/* Pushes a field of t's record; nil when there is no record. */
static void record_get(lua_State *L, struct task *t, const char *field) {
  if (!(t->flags & TASK_RECORD)) {
    lua_pushnil(L);
    return;
  }
  push_record(L, t);
  lua_getfield(L, -1, field);
  lua_remove(L, -2);
}

void sched_push_error(lua_State *L, struct sched *s, const char *code,
                      const char *message) {
  lua_createtable(L, 0, 2);
  lua_pushstring(L, code);
  lua_setfield(L, -2, "code");
  lua_pushstring(L, message);
  lua_setfield(L, -2, "message");
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->error_mt);
  lua_setmetatable(L, -2);
}

/* ---- the ready queue --------------------------------------------------- */

static void ready_push(struct task *t) {
  struct sched *s = t->sched;
  assert(t->state != TASK_READY && t->state != TASK_DONE);
  t->state = TASK_READY;
  t->ready_next = NULL;
  *s->ready_end = t;
  s->ready_end = &t->ready_next;
  s->ready++;
}

static struct task *ready_pop(struct sched *s) {
  struct task *t = s->ready_first;
  if (t == NULL)
    return NULL;
  s->ready_first = t->ready_next;
  if (s->ready_first == NULL)
    s->ready_end = &s->ready_first;
  s->ready--;
  return t;
}

/* ---- waits --------------------------------------------------------------- */

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
    if (name != NULL && strcmp(name, "pcall") && strcmp(name, "xpcall"))
      return name;
  }
  return NULL;
}

static void raise_pending(lua_State *L, struct task *t);

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
  return !(t->flags & TASK_INTERRUPTS) || t->shield > 0 || t->held > 0;
}

int task_may_wait(lua_State *L, struct sched *s, const char *what,
                  struct task **out) {
  struct task *t = *out = check_here(L, s, what);
  if (t->flags & TASK_PENDING)
    raise_pending(L, t);
  return no_interrupt(t);
}

int task_may_pjoin(lua_State *L, struct sched *s, struct task **out) {
  struct task *t = *out = check_here(L, s, "pjoin");
  t->flags |= TASK_PJOINING;
  return no_interrupt(t);
}

/* Pushes the value that t's most urgent interrupt raises. */
static void push_interrupt(lua_State *L, struct task *t) {
  assert(t->flags & TASK_INTERRUPTS);
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

static uint64_t due_ns(double seconds) {
  const double far = 9e9; /* 285 years: keeps the sum within 64 bits */
  return uv_hrtime() + (uint64_t)((seconds < far ? seconds : far) * 1e9);
}

int task_wait(lua_State *L, struct task *t, double timeout,
              task_forget_fn *forget, void *arg) {
  struct sched *s = t->sched;
  assert(t == s->current && t->state == TASK_RUNNING);
  if (timeout >= 0 &&
      deadlines_arm(&s->deadlines, &t->wait, due_ns(timeout)) < 0) {
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
  t->flags |= TASK_YIELDED; /* yielded() wakes it: co must be suspended first */
  return task_wait(L, t, -1, NULL, NULL);
}

int task_is_waiting(const struct task *t, uint64_t generation) {
  return t->state == TASK_WAITING && t->generation == generation &&
         !(t->flags & TASK_ABANDONED);
}

/* Leaves WAITING without saying where to. */
static void disarm(struct task *t) {
  assert(t->state == TASK_WAITING);
  deadlines_disarm(&t->sched->deadlines, &t->wait);
  t->sched->waiting--;
  t->forget = NULL;
  t->waits_for = NULL;
  t->state = TASK_RUNNING;
}

static void forget_and_disarm(lua_State *L, struct task *t) {
  if (t->forget != NULL)
    t->forget(L, t, t->forget_arg);
  disarm(t);
}

void task_unwait(lua_State *L, struct task *t) {
  if (t->state == TASK_WAITING && !(t->flags & TASK_ABANDONED))
    forget_and_disarm(L, t);
}

void task_wake(struct task *t, int state, lua_State *from, int nvalues) {
  if (!lua_checkstack(t->co, nvalues + LUA_MINSTACK))
    luaL_error(from, "not enough memory");
  disarm(t);
  lua_pushinteger(t->co, state);
  lua_xmove(from, t->co, nvalues);
  t->nargs = 1 + (uint32_t)nvalues;
  ready_push(t);
}

void task_complete(struct task *t, task_push_fn *push, void *arg) {
  disarm(t);
  t->push = push;
  t->push_arg = arg;
  ready_push(t);
}

/* Wakes t with the value of its interrupt, if it waits and may be told. */
static void deliver(lua_State *L, struct task *t) {
  if (!(t->flags & TASK_INTERRUPTS) || t->shield > 0 || t->held > 0 ||
      t->state != TASK_WAITING || (t->flags & TASK_ABANDONED) ||
      t->sched->closing)
    return;
  if (t->forget != NULL)
    t->forget(L, t, t->forget_arg);
  push_interrupt(L, t);
  task_wake(t, WAIT_RAISE, L, 1);
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

/* ---- the tree -------------------------------------------------------------- */

static void tree_link(struct task *t, struct task *parent) {
  t->parent = parent;
  t->prev = NULL;
  t->next = parent->children;
  if (t->next != NULL)
    t->next->prev = t;
  parent->children = t;
}

static void tree_unlink(struct task *t) {
  if (t->prev != NULL)
    t->prev->next = t->next;
  else
    t->parent->children = t->next;
  if (t->next != NULL)
    t->next->prev = t->prev;
  t->parent = t->next = t->prev = NULL;
}

struct task *sched_spawn(struct sched *s, lua_State *L, struct task *parent,
                         int nargs) {
  int fn = lua_gettop(L) - nargs;
  struct task *t = lua_newuserdata(L, sizeof *t);
  memset(t, 0, sizeof *t);
  t->sched = s;
  t->state = TASK_DONE; /* until it is complete: the steps below may raise */
  t->wait.pos = t->limit.pos = DEADLINE_OFF;
  t->limit.kind = 1;
  luaL_getmetatable(L, BIND_TASK);
  lua_setmetatable(L, -2);
  uint32_t slot = slot_take(s, L);
  t->slot = slot;
  lua_pushvalue(L, -1);
  anchor(s, L, handle_key(slot));

  /* co: fn (for log_slice), then xpcall(fn, handler, ...): the handler sees
   * the stack of the error, and the coroutine survives it. */
  lua_State *co = t->co = s->slots[slot].co;
  if (!lua_checkstack(co, nargs + LUA_MINSTACK))
    luaL_error(L, "not enough memory");
  lua_insert(L, fn); /* handle, fn, args... */
  lua_pushvalue(L, fn + 1);
  lua_pushvalue(L, fn + 1);
  lua_xmove(L, co, 2);
  lua_rawgeti(co, LUA_REGISTRYINDEX, s->xpcall);
  lua_insert(co, -2);
  lua_rawgeti(co, LUA_REGISTRYINDEX, s->handler);
  lua_xmove(L, co, nargs);
  lua_pop(L, 1); /* fn; the handle stays */
  t->nargs = (uint32_t)nargs + 2;
  t->id = ++s->next_id;
  if (parent->shield > 0)
    t->flags |= TASK_IN_SHIELD;
  tree_link(t, parent);
  s->alive++;
  t->state = TASK_WAITING; /* for ready_push's assertion only */
  ready_push(t);
  return t;
}

void task_set_parent(struct task *t, struct task *parent) {
  tree_unlink(t);
  tree_link(t, parent);
  t->flags &= (uint16_t)~TASK_IN_SHIELD;
}

/* The next task of the subtree below top in pre-order; skip = not below t. */
static struct task *tree_next(struct task *top, struct task *t, int skip) {
  if (!skip && t->children != NULL)
    return t->children;
  while (t != top && t->next == NULL)
    t = t->parent;
  return t == top ? NULL : t->next;
}

/* Marks one task cancelled with the object on top of L (kept). */
static void cancel_one(lua_State *L, struct task *t) {
  t->flags |= TASK_CANCEL;
  lua_pushvalue(L, -1);
  record_set(L, t, "cancel");
  if (t->state == TASK_JOINING && t->outcome == TASK_OK) {
    t->outcome = TASK_CANCELLED;
    lua_pushvalue(L, -1);
    record_set(L, t, "err");
  }
  deliver(L, t);
}

/* Cancels everything below top with the object on top of L (kept). Children
 * that were born in a shield their parent is still in are left alone. */
static void cancel_below(lua_State *L, struct task *top) {
  struct task *t = tree_next(top, top, 0);
  while (t != NULL) {
    int shielded = (t->flags & TASK_IN_SHIELD) && t->parent->shield > 0;
    int skip = shielded || (t->flags & TASK_CANCEL);
    if (!skip)
      cancel_one(L, t);
    t = tree_next(top, t, skip);
  }
}

int task_cancel(lua_State *L, struct task *t) {
  if (t->state == TASK_DONE || (t->flags & TASK_CANCEL)) {
    lua_pop(L, 1);
    return 0;
  }
  cancel_one(L, t);
  cancel_below(L, t);
  lua_pop(L, 1);
  return 1;
}

void task_interrupts_due(lua_State *L, struct task *t) {
  if (t->shield == 0 && (t->flags & TASK_CANCEL)) {
    record_get(L, t, "cancel"); /* children that the shield kept */
    cancel_below(L, t);
    lua_pop(L, 1);
  }
  deliver(L, t);
}

void task_fail(lua_State *L, struct task *t) {
  if (t->state == TASK_JOINING) {
    t->outcome = TASK_FAILED;
    lua_pushvalue(L, -1);
    record_set(L, t, "err");
    cancel_below(L, t);
    lua_pop(L, 1);
    return;
  }
  record_set(L, t, "limit");
  t->flags |= TASK_LIMIT;
  deliver(L, t);
}

int task_set_limit(struct task *t, double seconds) {
  struct deadlines *q = &t->sched->deadlines;
  deadlines_disarm(q, &t->limit);
  t->flags &= (uint16_t)~TASK_LIMIT;
  return seconds < 0 ? 0 : deadlines_arm(q, &t->limit, due_ns(seconds));
}

/* ---- the end of a task -------------------------------------------------------- */

static void log_line(struct sched *s, int level, const char *line) {
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
    push_record(L, t);
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
static void fail_by_record(struct sched *s, lua_State *L,
                           struct task *parent) {
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
  cancel_below(L, parent);
  lua_pop(L, 1);
  deliver(L, parent);
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
    push_record(L, t);
    fail_by_record(s, L, parent);
  }
}

/* Lets the first pending failure of t's children go up after all. */
static void raise_pending(lua_State *L, struct task *t) {
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
  push_record(L, t);
  lua_pushnil(L);
  lua_setfield(L, -2, "defers");
  lua_pop(L, 1);
  t->nargs = 3;
  ready_push(t);
}

/* The body (or its deferred functions) has ended: what is next, for t and
 * then for the ancestors that waited only for it. A loop, not a recursion:
 * chains of parents may be long. */
static void advance(struct sched *s, lua_State *L, struct task *t) {
  for (;;) {
    t->state = TASK_JOINING;
    if (t->children != NULL) {
      if (t->outcome != TASK_OK) {
        sched_push_error(L, s, "cancelled", "cancelled: the parent has ended");
        cancel_below(L, t);
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
  push_record(L, t);
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
  lua_pushfstring(L, "task %d: a deferred function failed, too: %s",
                  (int)t->id,
                  lua_isstring(L, -1) ? lua_tostring(L, -1) : "error object");
  log_line(s, BIND_LOG_WARN, lua_tostring(L, -1));
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
static void returned(struct sched *s, lua_State *L, struct task *t) {
  lua_State *co = t->co;
  int deferring = t->flags & TASK_DEFERRING;
  if (t->state == TASK_WAITING) /* the yield got lost in a foreign coroutine */
    forget_and_disarm(L, t);
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
      raise_pending(L, t);
    if (t->flags & TASK_CHILD_FAIL)
      fail_by_child(L, t);
  }
  if (deferring) {
    t->flags &= (uint16_t)~TASK_DEFERRING;
    t->shield--;
  }
  lua_settop(co, 0);
  advance(s, L, t);
}

/* Ends t without its coroutine's consent: the coroutine is never resumed. */
static void drop_body(struct sched *s, lua_State *L, struct task *t) {
  if (t->state == TASK_WAITING)
    forget_and_disarm(L, t);
  if (t->flags & TASK_DEFERRING) {
    t->flags &= (uint16_t)~TASK_DEFERRING;
    t->shield--;
  }
  slot_drop_thread(s, L, t->slot);
  t->co = NULL;
  advance(s, L, t);
}

static void drop_failed(struct sched *s, lua_State *L, struct task *t,
                        const char *message) {
  t->outcome = TASK_FAILED;
  lua_pushstring(L, message);
  record_set(L, t, "err");
  luaL_traceback(L, t->co, message, 0);
  record_set(L, t, "trace");
  drop_body(s, L, t);
}

static void yielded(struct sched *s, lua_State *L, struct task *t) {
  int ours = lua_gettop(t->co) > 0 && lua_touserdata(t->co, -1) == (void *)s;
  if (t->flags & TASK_ABANDONED) {
    t->outcome = TASK_CANCELLED;
    t->flags &= (uint16_t)~TASK_ABANDONED;
    drop_body(s, L, t);
  } else if (ours && t->state == TASK_WAITING) {
    lua_settop(t->co, 0);
    if (t->flags & TASK_YIELDED) {
      t->flags &= (uint16_t)~TASK_YIELDED;
      task_wake(t, WAIT_OK, L, 0);
    }
  } else {
    drop_failed(s, L, t,
                "coroutine.yield outside a coroutine: a task has nobody to "
                "yield to (task.yield lets others run)");
  }
}

/* ---- the pump ------------------------------------------------------------------ */

/* Pushes "file:line" of where t stands, or of its body when it has ended. */
static void push_site(lua_State *L, struct task *t, lua_State *co) {
  lua_Debug ar;
  for (int level = 0; t->state == TASK_WAITING && lua_getstack(co, level, &ar);
       level++) {
    lua_getinfo(co, "Sl", &ar);
    if (ar.currentline > 0 && strncmp(ar.short_src, "moonstash/", 10) != 0) {
      lua_pushfstring(L, "%s:%d", ar.short_src, ar.currentline);
      return;
    }
  }
  if (lua_isfunction(co, 1)) {
    lua_pushvalue(co, 1);
    lua_getinfo(co, ">S", &ar);
    lua_pushfstring(L, "%s:%d", ar.short_src, ar.linedefined);
    return;
  }
  lua_pushfstring(L, "task %d", (int)t->id);
}

/* Logs a slice that held the loop, once per site: as a warning when somebody
 * had to wait for it, else for information. */
static void log_slice(struct sched *s, lua_State *L, struct task *t,
                      lua_State *co, unsigned ms) {
  struct deadline *first = deadlines_first(&s->deadlines);
  int held_up = s->ready > 0 || (first && first->at_ns < uv_hrtime());
  push_site(L, t, co);
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->sites);
  lua_pushvalue(L, -2);
  lua_rawget(L, -2);
  int known = !lua_isnil(L, -1);
  lua_pop(L, 1);
  if (!known && s->site_count < SLOW_SITES_MAX) {
    s->site_count++;
    lua_pushvalue(L, -2);
    lua_pushboolean(L, 1);
    lua_rawset(L, -3);
    lua_pushfstring(L, "%s held the loop for %d ms without a wait",
                    lua_tostring(L, -2), (int)ms);
    log_line(s, held_up ? BIND_LOG_WARN : BIND_LOG_INFO, lua_tostring(L, -1));
    lua_pop(L, 1);
  }
  lua_pop(L, 2);
}

static void run_slice(struct sched *s, lua_State *L, struct task *t) {
  assert(t->state == TASK_READY && t->co != NULL);
  t->state = TASK_RUNNING;
  t->flags &= (uint16_t)~TASK_PJOINING;
  if (!(t->flags & TASK_STARTED)) {
    t->flags |= TASK_STARTED;
    if (t->flags & TASK_CANCEL) { /* cancelled before it began */
      t->outcome = TASK_CANCELLED;
      record_get(L, t, "cancel");
      record_set(L, t, "err");
      lua_settop(t->co, 0);
      advance(s, L, t);
      return;
    }
  }
  lua_State *co = t->co;
  if (t->push != NULL) {
    task_push_fn *push = t->push;
    t->push = NULL;
    t->nargs = (uint32_t)push(co, t, t->push_arg);
  }
  uint64_t began = clock_now_ms();
  s->current = t;
  int status = lua_resume(co, (int)t->nargs);
  s->current = NULL;
  uint64_t took = clock_now_ms() - began;
  if (took >= SLOW_SLICE_MS)
    log_slice(s, L, t, co, (unsigned)took);
  if (status == LUA_YIELD)
    yielded(s, L, t);
  else if (status == 0)
    returned(s, L, t);
  else /* xpcall itself could not go on: out of memory */
    drop_failed(s, L, t,
                lua_isstring(co, -1) ? lua_tostring(co, -1) : "task failed");
}

static void run_ready(struct sched *s, lua_State *L) {
  uint64_t quota = (uint64_t)s->ready + PUMP_BATCH;
  struct task *t;
  while (quota-- > 0 && (t = ready_pop(s)) != NULL) {
    run_slice(s, L, t);
    if (s->budget_ns != 0 && uv_hrtime() >= s->budget_ns)
      return;
  }
}

static void expire_deadlines(struct sched *s, lua_State *L) {
  struct deadline *d;
  while ((d = deadlines_first(&s->deadlines)) && d->at_ns <= s->turn_ns) {
    if (d->kind == 0) {
      struct task *t =
          (struct task *)((char *)d - offsetof(struct task, wait));
      if (t->forget != NULL)
        t->forget(L, t, t->forget_arg);
      task_wake(t, WAIT_TIMEOUT, L, 0);
    } else {
      struct task *t =
          (struct task *)((char *)d - offsetof(struct task, limit));
      deadlines_disarm(&s->deadlines, d);
      t->flags |= TASK_LIMIT;
      deliver(L, t);
    }
  }
}

static void cancel_mains(struct sched *s, lua_State *L, int signo) {
  for (struct task *t = s->root.children, *next; t != NULL; t = next) {
    next = t->next;
    if (t->flags & TASK_MAIN) {
      lua_pushfstring(L, "interrupted by signal %d", signo);
      sched_push_error(L, s, "cancelled", lua_tostring(L, -1));
      lua_remove(L, -2);
      task_cancel(L, t);
    }
  }
}

static int pump_protected(lua_State *L) {
  struct sched *s = lua_touserdata(L, 1);
  if (s->signal != 0 && !s->draining) {
    s->draining = 1;
    cancel_mains(s, L, s->signal);
  }
  run_ready(s, L);
  expire_deadlines(s, L);
  if (s->budget_ns == 0)
    run_ready(s, L);
  return 0;
}

static void pump(struct sched *s) {
  assert(!s->pumping);
  s->pumping = 1;
  clock_enter();
  if (lua_cpcall(s->L, pump_protected, s) != 0) {
    s->current = NULL;
    s->pump_error = 1;
    log_line(s, BIND_LOG_ERROR, lua_tostring(s->L, -1));
    lua_pop(s->L, 1);
  }
  clock_leave();
  s->pumping = 0;
}

/* ---- the loop ------------------------------------------------------------------- */

static void on_idle(uv_idle_t *handle) {
  (void)handle; /* being active is all it is for: poll does not block */
}

static void on_timer(uv_timer_t *handle) {
  (void)handle; /* poll has returned; on_check judges */
}

static void on_async(uv_async_t *handle) {
  (void)handle; /* the same */
}

static void on_prepare(uv_prepare_t *handle) {
  struct sched *s = handle->data;
  struct deadline *first = deadlines_first(&s->deadlines);
  if (s->ready > 0)
    uv_idle_start(&s->idle, on_idle);
  else
    uv_idle_stop(&s->idle);
  if (first == NULL) {
    uv_timer_stop(&s->timer);
    return;
  }
  uint64_t now = uv_hrtime();
  uint64_t left = first->at_ns > now ? first->at_ns - now : 0;
  uv_timer_start(&s->timer, on_timer, (left + NS_PER_MS - 1) / NS_PER_MS, 0);
}

static void on_check(uv_check_t *handle) {
  struct sched *s = handle->data;
  s->turn_ns = uv_hrtime();
  clock_update();
  if (s->ready > 0 || s->signal != 0 || s->deadlines.count > 0)
    pump(s);
}

static void on_closed(uv_handle_t *handle) {
  ((struct sched *)handle->data)->open_handles--;
}

static void open_handle(struct sched *s, uv_handle_t *handle) {
  handle->data = s;
  uv_unref(handle);
  s->open_handles++;
}

static int open_handles(struct sched *s) {
  int rc = uv_async_init(s->loop, &s->async, on_async);
  if (rc < 0)
    return rc;
  uv_prepare_init(s->loop, &s->prepare);
  uv_check_init(s->loop, &s->check);
  uv_idle_init(s->loop, &s->idle);
  uv_timer_init(s->loop, &s->timer);
  uv_prepare_start(&s->prepare, on_prepare);
  uv_check_start(&s->check, on_check);
  open_handle(s, (uv_handle_t *)&s->async);
  open_handle(s, (uv_handle_t *)&s->prepare);
  open_handle(s, (uv_handle_t *)&s->check);
  open_handle(s, (uv_handle_t *)&s->idle);
  open_handle(s, (uv_handle_t *)&s->timer);
  return 0;
}

int sched_open(struct sched *s, lua_State *L, uv_loop_t *loop,
               const struct sched_hooks *hooks) {
  memset(s, 0, sizeof *s);
  s->L = L;
  s->loop = loop;
  s->hooks = *hooks;
  s->ready_end = &s->ready_first;
  s->pooled_slot = s->empty_slot = NO_SLOT;
  s->root.sched = s;
  s->root.state = TASK_RUNNING;
  s->root.wait.pos = s->root.limit.pos = DEADLINE_OFF;
  lua_newtable(L);
  s->anchors = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_newtable(L);
  s->sites = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_getglobal(L, "xpcall");
  s->xpcall = luaL_ref(L, LUA_REGISTRYINDEX);
  return open_handles(s);
}

void sched_close(struct sched *s) {
  uv_close((uv_handle_t *)&s->async, on_closed);
  uv_close((uv_handle_t *)&s->prepare, on_closed);
  uv_close((uv_handle_t *)&s->check, on_closed);
  uv_close((uv_handle_t *)&s->idle, on_closed);
  uv_close((uv_handle_t *)&s->timer, on_closed);
  s->closing = 1;
  for (struct task *t = &s->root; t != NULL; t = tree_next(&s->root, t, 0))
    if (t->state == TASK_WAITING && t->forget != NULL)
      t->forget(s->L, t, t->forget_arg);
  for (struct task *t; (t = ready_pop(s)) != NULL;)
    if (t->push != NULL)
      t->push(NULL, t, t->push_arg);
  s->deadlines.count = 0; /* they live in tasks that go with the state */
  deadlines_free(&s->deadlines);
  free(s->slots);
  s->slots = NULL;
}

/* Nothing is ready, due or pending: no event will ever come. */
static int is_stuck(const struct sched *s) {
  return s->ready == 0 && s->deadlines.count == 0 && s->signal == 0 &&
         !uv_loop_alive(s->loop);
}

static int fail_mains(lua_State *L) {
  struct sched *s = lua_touserdata(L, 1);
  for (struct task *t = s->root.children, *next; t != NULL; t = next) {
    next = t->next;
    if (t->flags & TASK_MAIN) {
      sched_push_error(L, s, "deadlock",
                       "deadlock: every task waits, and nothing is left that "
                       "could wake one");
      task_fail(L, t);
    }
  }
  return 0;
}

int sched_run(struct sched *s) {
  int stuck = 0;
  while (s->mains > 0 && !s->pump_error) {
    if (is_stuck(s)) {
      if (stuck++ > 0 || lua_cpcall(s->L, fail_mains, s) != 0)
        return -1;
    }
    uv_ref((uv_handle_t *)&s->check); /* uv_run wants something alive */
    uv_run(s->loop, UV_RUN_ONCE);
    uv_unref((uv_handle_t *)&s->check);
  }
  return s->pump_error ? -1 : 0;
}

int sched_poll(struct sched *s, uint64_t budget_us) {
  uint64_t until = uv_hrtime() + budget_us * 1000;
  s->budget_ns = until;
  do {
    uv_ref((uv_handle_t *)&s->check);
    uv_run(s->loop, UV_RUN_NOWAIT);
    uv_unref((uv_handle_t *)&s->check);
  } while (s->ready > 0 && uv_hrtime() < until);
  s->budget_ns = 0;
  return s->alive > 0;
}

void sched_cancel_all(lua_State *L, struct sched *s, const char *reason) {
  s->draining = 1;
  sched_push_error(L, s, "cancelled", reason);
  cancel_below(L, &s->root);
  lua_pop(L, 1);
}

static int drain_protected(lua_State *L) {
  sched_cancel_all(L, lua_touserdata(L, 1), "cancelled: the runtime closes");
  return 0;
}

int sched_drain(struct sched *s, unsigned drain_ms) {
  uint64_t until = uv_hrtime() + (uint64_t)drain_ms * NS_PER_MS;
  if (lua_cpcall(s->L, drain_protected, s) != 0)
    lua_pop(s->L, 1);
  while (s->alive > 0 && !s->pump_error && uv_hrtime() < until) {
    if (is_stuck(s))
      break;
    uv_ref((uv_handle_t *)&s->check);
    uv_run(s->loop, s->ready > 0 ? UV_RUN_NOWAIT : UV_RUN_ONCE);
    uv_unref((uv_handle_t *)&s->check);
  }
  return (int)s->alive;
}

void sched_interrupt(struct sched *s, int signo) {
  s->signal = signo;
  uv_async_send(&s->async);
}
