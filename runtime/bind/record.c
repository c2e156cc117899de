/* Slots, handles and records: where the Lua side of a task lives.
 *
 * The anchors table in the registry holds, for each slot, a coroutine and,
 * while a task uses the slot, the task's handle. A finished coroutine stays in
 * its slot for the next task. Invariant: a slot is in exactly one place - a
 * live task, the list of pooled slots (with a coroutine), or that of empty
 * ones.
 *
 * A record is a table with what few tasks need (results, error, trace, name,
 * deferred functions); it is the handle's environment, made when first needed.
 */
#include <assert.h>
#include <lauxlib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bind/bind.h"
#include "bind/sched_internal.h"
#include "bind/trace.h"

enum { POOL_MAX = 256 }; /* finished coroutines that are kept for reuse */

/* fn(a, b), as a C function that needs no closure of its own. */
int sched_guard(lua_State *L) {
  lua_CFunction fn = (lua_CFunction)lua_touserdata(L, 1);
  lua_remove(L, 1);
  return fn(L);
}

/* LuaJIT lets the error of a finalizer (__gc) out of the allocation that ran
 * it. In a slice that is the task's error. Between slices it is nobody's: it
 * is logged, and fn runs again. */
int sched_guarded(lua_State *L, struct sched *s, lua_CFunction fn,
                  const void *a, const void *b) {
  int top = lua_gettop(L);
  for (;;) {
    lua_rawgeti(L, LUA_REGISTRYINDEX, s->guard);
    lua_pushlightuserdata(L, (void *)fn);
    lua_pushlightuserdata(L, (void *)a);
    lua_pushlightuserdata(L, (void *)b);
    int status = lua_pcall(L, 3, LUA_MULTRET, 0);
    if (status == 0)
      return lua_gettop(L) - top;
    if (status == LUA_ERRMEM || s->current != NULL)
      lua_error(L);
    char line[256]; /* no Lua string: making one may run the next finalizer */
    snprintf(line, sizeof line, "a finalizer (__gc) failed: %s",
             lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1)
                                            : luaL_typename(L, -1));
    sched_log(s, BIND_LOG_WARN, line);
    lua_settop(L, top);
  }
}

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

static int new_thread(lua_State *L) {
  lua_newthread(L);
  return 1;
}

void slot_fill(struct sched *s, lua_State *L, uint32_t slot) {
  sched_guarded(L, s, new_thread, NULL, NULL);
  lua_State *co = lua_tothread(L, -1);
  anchor(s, L, thread_key(slot));
  s->slots[slot].co = co;
}

/* Takes a slot with a fresh coroutine. */
uint32_t slot_take(struct sched *s, lua_State *L) {
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

void slot_set_handle(struct sched *s, lua_State *L, uint32_t slot) {
  anchor(s, L, handle_key(slot));
}

void slot_drop_thread(struct sched *s, lua_State *L, uint32_t slot) {
  lua_pushnil(L);
  anchor(s, L, thread_key(slot));
  s->slots[slot].co = NULL;
}

void slot_release(struct sched *s, lua_State *L, uint32_t slot) {
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

void task_push_handle(lua_State *L, const struct task *t) {
  if (t->state == TASK_DONE || t->parent == NULL) {
    lua_pushnil(L);
    return;
  }
  lua_rawgeti(L, LUA_REGISTRYINDEX, t->sched->anchors);
  lua_rawgeti(L, -1, handle_key(t->slot));
  lua_remove(L, -2);
}

static int new_table(lua_State *L) {
  lua_newtable(L);
  return 1;
}

void sched_push_table(lua_State *L, struct sched *s) {
  if (s->current != NULL)
    lua_newtable(L);
  else
    sched_guarded(L, s, new_table, NULL, NULL);
}

void task_push_record(lua_State *L, int handle, struct task *t) {
  if (t->flags & TASK_RECORD) {
    lua_getfenv(L, handle);
    return;
  }
  if (handle < 0)
    handle = lua_gettop(L) + 1 + handle;
  sched_push_table(L, t->sched);
  lua_pushvalue(L, -1);
  lua_setfenv(L, handle);
  t->flags |= TASK_RECORD;
}

void record_push(lua_State *L, struct task *t) {
  task_push_handle(L, t);
  task_push_record(L, -1, t);
  lua_remove(L, -2);
}

/* Pops the value on top of L into t's record. */
void record_set(lua_State *L, struct task *t, const char *field) {
  record_push(L, t);
  lua_insert(L, -2);
  lua_setfield(L, -2, field);
  lua_pop(L, 1);
}

/* Pushes a field of t's record; nil when there is no record. */
void record_get(lua_State *L, struct task *t, const char *field) {
  if (!(t->flags & TASK_RECORD)) {
    lua_pushnil(L);
    return;
  }
  record_push(L, t);
  lua_getfield(L, -1, field);
  lua_remove(L, -2);
}

static int new_error(lua_State *L) {
  lua_createtable(L, 0, 2);
  lua_pushstring(L, lua_touserdata(L, 1));
  lua_setfield(L, -2, "code");
  lua_pushstring(L, lua_touserdata(L, 2));
  lua_setfield(L, -2, "message");
  return 1;
}

void sched_push_error(lua_State *L, struct sched *s, const char *code,
                      const char *message) {
  sched_guarded(L, s, new_error, code, message);
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->error_mt);
  lua_setmetatable(L, -2);
}
