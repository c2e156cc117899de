/* The tree: parents and children, and cancellation, which goes down it. */
#include <assert.h>
#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

#include "bind/bind.h"
#include "bind/sched_internal.h"
#include "bind/trace.h"

static void tree_link(struct task *t, struct task *parent) {
  t->parent = parent;
  t->prev = NULL;
  t->next = parent->children;
  if (t->next != NULL)
    t->next->prev = t;
  parent->children = t;
}

void tree_unlink(struct task *t) {
  if (t->prev != NULL)
    t->prev->next = t->next;
  else
    t->parent->children = t->next;
  if (t->next != NULL)
    t->next->prev = t->prev;
  t->parent = t->next = t->prev = NULL;
}

/* Marks one task cancelled with the object on top of L (kept). */
static void cancel_one(lua_State *L, struct task *t) {
  lua_pushvalue(L, -1);
  record_set(L, t, "cancel");
  t->flags |= TASK_CANCEL;
  if (t->state == TASK_JOINING && t->outcome == TASK_OK) {
    t->outcome = TASK_CANCELLED;
    lua_pushvalue(L, -1);
    record_set(L, t, "err");
  }
  wait_deliver(L, t);
}

/* Cancels a task whose parent was cancelled before, or has failed. */
static void cancel_newborn(lua_State *L, struct task *t) {
  if (t->parent->flags & TASK_CANCEL)
    record_get(L, t->parent, "cancel");
  else
    sched_push_error(L, t->sched, "cancelled",
                     "cancelled: the parent has ended");
  cancel_one(L, t);
  lua_pop(L, 1);
}

struct task *sched_spawn(struct sched *s, lua_State *L, struct task *parent,
                         int nargs) {
  int fn = lua_gettop(L) - nargs;
  if (s->closing)
    luaL_error(L, "spawn: the runtime has closed");
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
  slot_set_handle(s, L, slot);

  /* co: fn (for log_slice), then xpcall(fn, handler, ...): the handler sees
   * the stack of the error, and the coroutine survives it. */
  lua_State *co = t->co = s->slots[slot].co;
  if (!lua_checkstack(co, nargs + LUA_MINSTACK)) {
    slot_release(s, L, slot);
    luaL_error(L, "spawn: too many arguments");
  }
  lua_pushvalue(L, LUA_GLOBALSINDEX); /* a pooled one may have others */
  lua_xmove(L, co, 1);
  lua_replace(co, LUA_GLOBALSINDEX);
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
  t->state = TASK_WAITING; /* for sched_ready's assertion only */
  sched_ready(t);
  if (parent->shield == 0 &&
      (parent->flags & TASK_CANCEL || parent->outcome != TASK_OK) &&
      !task_held(parent))
    cancel_newborn(L, t);
  return t;
}

void task_set_parent(lua_State *L, struct task *t, struct task *parent) {
  struct task *old = t->parent;
  if (t->sched->closing)
    return;
  tree_unlink(t);
  tree_link(t, parent);
  t->flags &= (uint16_t)~TASK_IN_SHIELD;
  if (old->state == TASK_JOINING && old->children == NULL)
    ending_advance(t->sched, L, old);
}

/* The next task of the subtree below top in pre-order; skip = not below t. */
struct task *tree_next(struct task *top, struct task *t, int skip) {
  if (!skip && t->children != NULL)
    return t->children;
  while (t != top && t->next == NULL)
    t = t->parent;
  return t == top ? NULL : t->next;
}

/* Does t's parent keep it from being cancelled with the rest? While others wait
 * for a load that the parent runs, any child may be part of that. */
static int is_kept(const struct task *t) {
  const struct task *parent = t->parent;
  return (t->flags & TASK_IN_SHIELD && parent->shield > 0) ||
         (parent->state != TASK_JOINING && task_held(parent));
}

void tree_cancel_below(lua_State *L, struct task *top) {
  struct task *t = tree_next(top, top, 0);
  while (t != NULL) {
    int skip = is_kept(t) || (t->flags & TASK_CANCEL);
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
  tree_cancel_below(L, t);
  lua_pop(L, 1);
  return 1;
}

void task_interrupts_due(lua_State *L, struct task *t) {
  if (t->shield == 0 && (t->flags & TASK_CANCEL) && !task_held(t)) {
    record_get(L, t, "cancel"); /* children that were kept */
    tree_cancel_below(L, t);
    lua_pop(L, 1);
  }
  wait_deliver(L, t);
}

void task_fail(lua_State *L, struct task *t) {
  if (t->state == TASK_JOINING) {
    t->outcome = TASK_FAILED;
    lua_pushvalue(L, -1);
    record_set(L, t, "err");
    tree_cancel_below(L, t);
    lua_pop(L, 1);
    return;
  }
  record_set(L, t, "limit");
  t->flags |= TASK_LIMIT;
  wait_deliver(L, t);
}

int task_set_limit(struct task *t, double seconds) {
  struct deadlines *q = &t->sched->deadlines;
  deadlines_disarm(q, &t->limit);
  t->flags &= (uint16_t)~TASK_LIMIT;
  return seconds < 0 ? 0 : deadlines_arm(q, &t->limit, wait_due_ns(seconds));
}

int task_held(const struct task *t) {
  const struct sched *s = t->sched;
  return t->held > 0 || (t->loads > 0 && s->held_abroad != NULL &&
                         s->held_abroad(s->held_ud, t));
}

int task_is_held(struct task *top) {
  struct task *t = top;
  while (t != NULL && !task_held(t))
    t = tree_next(top, t, 0);
  return t != NULL;
}
