/* Leases for Lua: loads in flight, and the tasks that wait for them.
 *
 * A miss takes a lease (see backend.h). The token is a userdata, `load`. It
 * ends by fill (a value), fail (an error) or give (results that are not to be
 * stored); what none of them has ended, because its task was dropped, the
 * collector ends. Whoever waits for a load holds its owner's interrupts back
 * (held): a cancelled caller goes on loading while others wait for the value.
 * Loads of other runtimes: cache_abroad.c.
 * Between queueing a waiter and its yield no Lua code runs: a finalizer might
 * end the very load.
 */
#include "bind/cache_load.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { COLLECT_TRIES = 100 }; /* each ends with a finalizer's error */

#define LOAD_MT "moonstash.load"

/* What a load came to, shared by those who waited for it. */
struct outcome {
  uint32_t waiters; /* that have not taken it yet */
  int state;        /* what lease returns first: WAIT_ or LEASE_ */
  uint32_t format;  /* WAIT_OK: of the value */
  int value, trace; /* references: the Lua value; WAIT_FAILED: its stack */
};

/* The runtime that ends a load just now, on this thread: its own waiters are
 * woken here, those of others are told by way of their inbox. */
static _Thread_local struct cache_bind *ending;

static void release_loader(struct waiter *w) {
  if (w->loader != NULL) {
    assert(w->loader->held > 0);
    w->loader->held--;
    w->loader = NULL;
  }
}

/* An error that fn was caught with: if a waiter's task dies of it, too, its
 * traceback begins with fn's. */
static void note_cause(lua_State *L, struct task *t, const struct outcome *o) {
  task_push_handle(L, t);
  task_push_record(L, -1, t);
  lua_rawgeti(L, LUA_REGISTRYINDEX, o->value);
  lua_setfield(L, -2, "cause_err");
  lua_rawgeti(L, LUA_REGISTRYINDEX, o->trace);
  lua_setfield(L, -2, "cause_trace");
  lua_pop(L, 2);
}

/* Frees a waiter that has been told, and the outcome after the last one. */
static void free_waiter(struct waiter *w) {
  struct outcome *o = w->outcome;
  lua_State *L = w->cache->bind->L;
  free(w);
  if (o == NULL || --o->waiters > 0)
    return;
  luaL_unref(L, LUA_REGISTRYINDEX, o->value);
  luaL_unref(L, LUA_REGISTRYINDEX, o->trace);
  free(o);
}

/* The outcome as the results of lease; L is NULL when nobody wants it. */
static int push_outcome(lua_State *L, struct task *t, void *arg) {
  struct waiter *w = arg;
  const struct outcome *o = w->outcome;
  int n = 0;
  if (L != NULL && o == NULL) {
    lua_pushinteger(L, LEASE_AGAIN);
    n = 1;
  } else if (L != NULL) {
    if (o->trace != LUA_NOREF)
      note_cause(L, t, o);
    lua_pushinteger(L, o->state);
    if (o->state == WAIT_OK)
      lua_pushinteger(L, (lua_Integer)o->format);
    lua_rawgeti(L, LUA_REGISTRYINDEX, o->value);
    n = o->state == WAIT_OK ? 3 : 2;
  }
  free_waiter(w);
  return n;
}

/* The backend's call, inside the end of a load. The value is not copied:
 * share() gives the Lua value that it is made of to all who were woken here. */
static void on_wake(struct backend_wait *wait, int status, const void *bytes,
                    const struct backend_item *item) {
  struct waiter *w = (struct waiter *)wait;
  if (w->cache != ending) {
    abroad_arrive(w, status, bytes, item);
    return;
  }
  release_loader(w);
  w->next = w->cache->woken;
  w->cache->woken = w;
  task_complete(w->task, push_outcome, w);
}

/* The stack that the running task has caught this error with, as a reference;
 * LUA_NOREF when it is not known. */
static int ref_trace(lua_State *L, int err) {
  struct task *t = cache_of(L)->bind->sched.current;
  int ref = LUA_NOREF;
  if (t == NULL || !(t->flags & TASK_RECORD))
    return ref;
  task_push_handle(L, t);
  task_push_record(L, -1, t);
  lua_getfield(L, -1, "cause_err");
  if (lua_rawequal(L, -1, err)) {
    lua_getfield(L, -2, "cause_trace");
    ref = luaL_ref(L, LUA_REGISTRYINDEX);
  }
  lua_pop(L, 3);
  return ref;
}

/* Gives the outcome to those whom the end of the load has woken: the state and
 * the Lua value at index. Without memory for it they ask again. */
static void share(lua_State *L, struct cache_bind *c, int state, int index,
                  uint32_t format) {
  struct waiter *first = c->woken; /* a finalizer may end another load below */
  if (first == NULL)
    return;
  struct outcome made = {.state = state, .format = format, .trace = LUA_NOREF};
  if (state == WAIT_FAILED)
    made.trace = ref_trace(L, index);
  lua_pushvalue(L, index);
  made.value = luaL_ref(L, LUA_REGISTRYINDEX);
  struct outcome *o = malloc(sizeof *o);
  if (o == NULL) {
    luaL_unref(L, LUA_REGISTRYINDEX, made.value);
    luaL_unref(L, LUA_REGISTRYINDEX, made.trace);
    return;
  }
  *o = made;
  for (struct waiter *w = first; w != NULL; w = w->next) {
    w->outcome = o;
    o->waiters++;
  }
}

static void forget_lease(lua_State *L, struct task *t, void *arg) {
  struct waiter *w = arg;
  struct task *loader = w->loader;
  (void)t;
  w->view->ops->unwait(w->view, &w->wait);
  release_loader(w);
  if (loader != NULL)
    task_interrupts_due(L, loader);
  free(w);
}

/* Pushes a load without a token yet, for the namespace and key at 2 and 3. */
static struct load *push_load(lua_State *L, struct cache_bind *c,
                              struct backend *view) {
  struct task *owner = c->bind->sched.current;
  size_t ns_len, key_len;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  const char *key = luaL_checklstring(L, 3, &key_len);
  struct load *load = lua_newuserdata(L, sizeof *load + ns_len + key_len);
  *load = (struct load){
      .cache = c, .view = view, .owner = owner, .key_len = ns_len + key_len};
  memcpy(load->key, ns, ns_len);
  memcpy(load->key + ns_len, key, key_len);
  luaL_getmetatable(L, LOAD_MT);
  lua_setmetatable(L, -2);
  if (owner != NULL) { /* waiters know it by pointer: it outlives the load */
    lua_createtable(L, 1, 0);
    task_push_handle(L, owner);
    lua_rawseti(L, -2, 1);
    lua_setfenv(L, -2);
  }
  return load;
}

/* A deferred function of a task on whose load others have waited: should it
 * have been dropped in the middle of the load, nobody but the collector can
 * end that, and the waiters are not to wait until it comes by. */
static int l_collect_loads(lua_State *L) {
  struct task *t = cache_of(L)->bind->sched.current;
  task_push_handle(L, t);
  task_push_record(L, -1, t);
  lua_pushnil(L);
  lua_setfield(L, -2, "collects");
  if (task_held(t))
    lua_gc(L, LUA_GCCOLLECT, 0);
  return 0;
}

int lease_guard(lua_State *L) {
  struct task *loader = lua_touserdata(L, 1);
  struct sched *s = loader->sched;
  task_push_handle(L, loader);
  task_push_record(L, 2, loader);
  lua_getfield(L, 3, "collects");
  if (!lua_isnil(L, -1))
    return 0;
  lua_getfield(L, 3, "defers");
  if (lua_isnil(L, -1)) {
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_setfield(L, 3, "defers");
  }
  lua_pushlightuserdata(L, (char *)s - offsetof(struct bind, sched));
  lua_pushcclosure(L, l_collect_loads, 1);
  lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
  loader->flags |= TASK_DEFERS;
  lua_pushboolean(L, 1);
  lua_setfield(L, 3, "collects");
  return 0;
}

int lease_collect(lua_State *L) {
  lua_gc(L, LUA_GCCOLLECT, 0);
  return 0;
}

/* Before the first one waits for a loader: if its task has ended without it,
 * the load is lost or its coroutine is in other hands; the collector knows.
 * Else it gets its guard. Both may run finalizers, and so any code: w is not
 * queued meanwhile, and the lease must be asked for again. The error of a
 * finalizer ends the collection early, hence more than one. */
static void prepare_loader(lua_State *L, struct waiter *w, struct task *t) {
  w->view->ops->unwait(w->view, &w->wait);
  lua_CFunction prepare = t->state == TASK_DONE ? lease_collect : lease_guard;
  for (int i = 0; i < COLLECT_TRIES && lua_cpcall(L, prepare, t) != 0; i++)
    lua_pop(L, 1); /* a finalizer's error, or out of memory: without, then */
}

static int is_below(const struct task *t, const struct task *top) {
  while (t != NULL && t != top)
    t = t->parent;
  return t != NULL;
}

/* Whoever waits for the end of a task waits for all below it, too, which the
 * chain of waits alone does not tell. */
int lease_needs(const struct task *loader, const struct task *me) {
  for (const struct task *t = loader; t != NULL && t->state == TASK_WAITING;) {
    int joins = t->forget != forget_lease;
    t = t->waits_for;
    if (joins && t != NULL && is_below(me, t))
      return 1;
  }
  return task_would_deadlock(me, loader);
}

/* Takes a queued waiter back; lease returns LEASE_DIRECT. */
static int go_direct(lua_State *L, struct waiter *w) {
  abroad_take_back(w);
  lua_pushinteger(L, LEASE_DIRECT);
  return 1;
}

/* May w's task wait for that one's load: here, and without a deadlock? */
static int can_wait(lua_State *L, const struct waiter *w,
                    const struct task *loader) {
  const struct task *t = w->task;
  return t != NULL && t->state == TASK_RUNNING && lua_isyieldable(L) &&
         !lease_needs(loader, t);
}

/* Waits for the load of that task, or of `far` in another runtime. w is queued:
 * nothing here may run Lua code before the wait. */
static int wait_for_load(lua_State *L, struct waiter *w, struct task *loader,
                         const void *far) {
  struct task *t = w->task;
  if (!can_wait(L, w, loader) || (far != NULL && !abroad_may_wait(w, far)))
    return go_direct(L, w);
  if (!task_may_wait(L, &w->cache->bind->sched, "cached", &t)) {
    abroad_take_back(w);
    return task_raise(L, t);
  }
  if (far != NULL)
    return abroad_wait(L, w, far);
  w->loader = loader;
  if (loader != NULL)
    loader->held++;
  t->waits_for = loader;
  return task_wait(L, t, -1, forget_lease, w);
}

static struct waiter *new_waiter(struct cache_bind *c, struct backend *view) {
  struct waiter *w = calloc(1, sizeof *w);
  if (w != NULL) {
    w->wait.wake = on_wake;
    w->task = c->bind->sched.current;
    w->wait.owner = owner_of(c, w->task);
    w->cache = c;
    w->view = view;
  }
  return w;
}

/* Asks for the lease of load's key; b has the value after a hit. */
static int ask(struct load *load, struct waiter *w, struct buffer *b,
               struct backend_item *item) {
  struct cache_bind *c = load->cache;
  int status;
  if (load->refresh)
    return load->view->ops->refresh(load->view, cache_now(c), "", 0, load->key,
                                    load->key_len, item, &w->wait);
  do {
    status =
        load->view->ops->lease(load->view, cache_now(c), "", 0, load->key,
                               load->key_len, b->bytes, b->cap, item, &w->wait);
  } while (status == BACKEND_HIT && item->length > b->cap &&
           (status = cache_resize_buffer(b, item->length)) == 0);
  if (status == BACKEND_TOKEN || status == BACKEND_WAIT)
    c->shared[cache_view_index(c, load->view)]->asks++;
  return status;
}

static int is_far(const struct cache_bind *c, const struct backend_item *item) {
  return owner_number(item->owner) != c->member.number;
}

/* The task of this runtime that holds the load; NULL when there is none. */
static struct task *near_loader(const struct cache_bind *c, int status,
                                const struct backend_item *item) {
  return status == BACKEND_WAIT && !is_far(c, item) ? owner_task(item->owner)
                                                    : NULL;
}

static void begin_load(struct load *load, uint64_t token) {
  struct cache_bind *c = load->cache;
  load->token = token;
  load->next = c->loads;
  if (load->next != NULL)
    load->next->prev = load;
  c->loads = load;
  if (load->owner != NULL)
    load->owner->loads++;
}

/* Takes the token from the load. */
static uint64_t end_load(struct load *load) {
  uint64_t token = load->token;
  load->token = 0;
  *(load->prev != NULL ? &load->prev->next : &load->cache->loads) = load->next;
  if (load->next != NULL)
    load->next->prev = load->prev;
  if (load->owner != NULL)
    load->owner->loads--;
  load->cache->woken = NULL;
  return token;
}

/* lease(view, ns, key[, mode]) -> LEASE_ or WAIT_ state, and what belongs to
 * it. mode "refresh": load although it may be there; "try": LEASE_BUSY instead
 * of a wait; "try refresh": both. What may raise comes before the lease is
 * asked for, or it could get lost. */
static int l_lease(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct backend *view = cache_check_view(L, 1);
  const char *mode = luaL_optstring(L, 4, "");
  struct load *load = push_load(L, c, view);
  load->refresh = strstr(mode, "refresh") != NULL;
  struct waiter *w = new_waiter(c, view);
  struct buffer *b = cache_take_buffer(c);
  struct backend_item item;
  int status = w != NULL && b != NULL ? ask(load, w, b, &item) : BACKEND_ENOMEM;
  struct task *loader = near_loader(c, status, &item);
  if (loader != NULL && loader->held == 0 && can_wait(L, w, loader)) {
    prepare_loader(L, w, loader);
    status = ask(load, w, b, &item);
  }
  if (b != NULL && status != BACKEND_HIT)
    cache_release_buffer(b);
  if (status == BACKEND_WAIT && *mode == 't') {
    abroad_take_back(w);
    lua_pushinteger(L, LEASE_BUSY);
    return 1;
  }
  if (status == BACKEND_WAIT)
    return wait_for_load(L, w, near_loader(c, status, &item),
                         is_far(c, &item) ? item.owner : NULL);
  free(w);
  if (status == BACKEND_TOKEN) {
    begin_load(load, item.token);
    lua_pushinteger(L, LEASE_TOKEN);
    lua_insert(L, -2);
    return 2;
  }
  if (status == BACKEND_HIT) {
    lua_pushinteger(L, LEASE_HIT);
    cache_push_value(L, item.format, b->bytes, item.length);
    cache_release_buffer(b);
    return 3;
  }
  lua_pushinteger(L, LEASE_DIRECT);
  return 1;
}

static struct load *check_load(lua_State *L) {
  struct load *load = luaL_checkudata(L, 1, LOAD_MT);
  if (load->token == 0)
    luaL_error(L, "this load has ended");
  return load;
}

/* fill(load, value, format, ttl_ms[, given]) -> 1 stored, 0 refused, or a
 * status: ends the load with a value, for the cache and for those who wait.
 * These get LEASE_GIVEN and `given` instead, if there is one. */
static int l_fill(lua_State *L) {
  struct load *load = check_load(L);
  struct cache_bind *c = load->cache;
  uint32_t format = (uint32_t)luaL_checkinteger(L, 3);
  uint64_t ttl_ms = (uint64_t)luaL_checknumber(L, 4);
  union cache_scratch scratch;
  size_t length;
  const void *bytes = cache_value_bytes(L, 2, format, &scratch, &length);
  uint64_t token = end_load(load);
  ending = c;
  int status = load->view->ops->fill(load->view, cache_now(c), "", 0, load->key,
                                     load->key_len, token, bytes, length,
                                     format, ttl_ms);
  ending = NULL;
  if (lua_isnoneornil(L, 5))
    share(L, c, WAIT_OK, 2, format);
  else
    share(L, c, LEASE_GIVEN, 5, 0);
  lua_pushinteger(L, status);
  return 1;
}

/* Ends a load without a value. message: for those abroad; NULL: they ask again.
 */
static void abandon(struct load *load, const char *message, size_t length) {
  uint64_t token = end_load(load);
  ending = load->cache;
  load->view->ops->abandon(load->view, cache_now(load->cache), "", 0, load->key,
                           load->key_len, token, message, length);
  ending = NULL;
}

/* Is the error at index the running task's own end? */
static int is_interrupt(lua_State *L, struct task *t, int err) {
  static const struct {
    int flag;
    const char *field;
  } own[] = {{TASK_CANCEL, "cancel"}, {TASK_LIMIT, "limit"}};
  int found = 0;
  for (size_t i = 0; t != NULL && i < sizeof own / sizeof *own; i++) {
    if (!(t->flags & own[i].flag))
      continue;
    task_push_handle(L, t);
    task_push_record(L, -1, t);
    lua_getfield(L, -1, own[i].field);
    found |= lua_rawequal(L, -1, err);
    lua_pop(L, 3);
  }
  return found;
}

/* fail(load, err): waiters raise err, the very same value; but if it is only
 * the loader that is to end (cancelled, its time is over) they ask again. */
static int l_fail(lua_State *L) {
  struct load *load = check_load(L);
  struct cache_bind *c = load->cache;
  lua_settop(L, 2);
  int own = is_interrupt(L, c->bind->sched.current, 2);
  size_t length = 0;
  const char *message = NULL;
  if (!own && load_waiters(load) > 0)
    message = abroad_error(L, c, 2, &length);
  abandon(load, message, length);
  if (!own)
    share(L, c, WAIT_FAILED, 2, 0);
  return 0;
}

/* give(load, value[, results]): waiters get LEASE_GIVEN and the value; nothing
 * is stored. Those abroad get encoded results, the value or the other. */
static int l_give(lua_State *L) {
  struct load *load = check_load(L);
  lua_settop(L, 3);
  size_t length = 0;
  const char *results = abroad_results(
      L, load->cache, lua_type(L, 2) == LUA_TSTRING ? 2 : 3, &length);
  abandon(load, results, length);
  share(L, load->cache, LEASE_GIVEN, 2, 0);
  return 0;
}

/* waiters(load) -> how many wait for it */
static int l_waiters(lua_State *L) {
  struct load *load = check_load(L);
  lua_pushinteger(L, load_waiters(load));
  return 1;
}

/* valid(load) -> would its value be stored? */
static int l_valid(lua_State *L) {
  struct load *load = check_load(L);
  lua_pushboolean(L, load->view->ops->valid(load->view, cache_now(load->cache),
                                            "", 0, load->key, load->key_len,
                                            load->token) == 1);
  return 1;
}

static int l_load_gc(lua_State *L) {
  struct load *load = luaL_checkudata(L, 1, LOAD_MT);
  if (load->token != 0)
    abandon(load, NULL, 0);
  return 0;
}

const luaL_Reg cache_leases[] = {
    {"lease", l_lease}, {"fill", l_fill},       {"fail", l_fail},
    {"give", l_give},   {"waiters", l_waiters}, {"valid", l_valid},
    {NULL, NULL},
};

void cache_open_leases(lua_State *L) {
  luaL_newmetatable(L, LOAD_MT);
  lua_pushcfunction(L, l_load_gc);
  lua_setfield(L, -2, "__gc");
  lua_pop(L, 1);
}
