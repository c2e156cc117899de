/* Backends for Lua: the C half of the `cache` module.
 *
 * Hits go through FFI calls on a struct of function pointers (struct api): an
 * FFI call compiles, a C function does not. Every one of them has a C-function
 * twin here for states without FFI or with the JIT off, and everything that
 * may wait is a C function.
 *
 * A miss takes a lease (see backend.h). The token is a userdata, `load`. It
 * ends by fill (a value), fail (an error) or give (results that are not to be
 * stored); what none of them has ended, because its task was dropped, the
 * collector ends. Whoever waits for a load holds its owner's interrupts back
 * (held): a cancelled caller goes on loading while others wait for the value.
 *
 * Any Lua allocation may run a finalizer, and that may call the cache: bytes on
 * their way to Lua lie in a buffer that nobody else takes meanwhile.
 */
#include <assert.h>
#include <errno.h>
#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

#include "bind/bind.h"
#include "clock.h"
#include "memory/store.h"

#define LOAD_MT "moonstash.load"

enum {
  BUFFER_FIRST = 4096,   /* bytes of a new buffer */
  BUFFER_KEEP = 1 << 20, /* a larger one is given back after its one value */
  VIEWS_MAX = 256,       /* aliases of one runtime */
  MAX_BYTES = 64 << 20   /* the store's bound where there is no setting */
};

enum { /* value formats, after BACKEND_BYTES and BACKEND_INTEGER */
       FORMAT_NUMBER = BACKEND_FORMAT_USER, /* a double */
       FORMAT_FALSE,
       FORMAT_TRUE,
       FORMAT_TABLE,  /* string.buffer's encoding of one table */
       FORMAT_RESULTS /* the same of {n = count, results...} */
};

enum {                 /* what lease returns first, beside the WAIT_ states */
       LEASE_HIT = 10, /* format, value */
       LEASE_TOKEN,    /* load */
       LEASE_DIRECT,   /* to wait is impossible or a deadlock: do without */
       LEASE_AGAIN,    /* the load ended without an outcome: ask again */
       LEASE_GIVEN     /* what give was given */
};

/* What Lua casts the pointer of `api` to (lua/cache/memory_ffi.lua). */
struct api {
  struct cache_bind *context;
  uint64_t (*now)(struct cache_bind *context);
  int (*get)(BACKEND_KEY_ARGS, void *buf, size_t cap, struct backend_item *out,
             struct backend_wait *wait);
  int (*set)(BACKEND_KEY_ARGS, const void *bytes, size_t length,
             uint32_t format, uint64_t ttl_ms, struct backend_wait *wait);
  int (*remove)(BACKEND_KEY_ARGS, struct backend_wait *wait);
};

/* Where a value lies on its way from the backend to Lua. */
struct buffer {
  struct buffer *next;
  char *bytes;
  size_t cap;
  int taken;
};

struct cache_bind {
  struct bind *bind;
  struct store *store;
  struct backend *views[VIEWS_MAX];
  uint64_t leases[VIEWS_MAX]; /* misses that lease has counted, by view */
  int view_count;
  uint64_t offset_ms; /* what tests have advanced the clock by */
  struct api api;
  struct buffer *buffers; /* all of them; mostly one */
  struct waiter *woken;   /* by the end of the load that ends just now */
};

/* A load in progress: the token of a lease. */
struct load {
  struct cache_bind *cache;
  struct backend *view;
  uint64_t token; /* 0 before the lease, and once it has ended */
  size_t key_len;
  char key[]; /* namespace and key, joined */
};

/* What a load came to, shared by those who waited for it. */
struct outcome {
  uint32_t waiters; /* that have not taken it yet */
  int state;        /* what lease returns first: WAIT_ or LEASE_ */
  uint32_t format;  /* WAIT_OK: of the value */
  int value, trace; /* references: the Lua value; WAIT_FAILED: its stack */
};

/* A task that waits for another one's load. */
struct waiter {
  struct backend_wait wait; /* wait.owner: this task, or NULL outside tasks */
  struct cache_bind *cache;
  struct backend *view;
  struct task *loader;     /* whose interrupts this waiter holds back */
  struct waiter *next;     /* in cache->woken */
  struct outcome *outcome; /* NULL: none, ask again */
};

static struct bind *bind_of(lua_State *L) {
  return lua_touserdata(L, lua_upvalueindex(1));
}

static struct cache_bind *cache_of(lua_State *L) {
  return bind_of(L)->cache;
}

static uint64_t cache_now(struct cache_bind *c) {
  return clock_now_ms() + c->offset_ms;
}

static struct backend *check_view(lua_State *L, int index) {
  luaL_checktype(L, index, LUA_TLIGHTUSERDATA);
  return lua_touserdata(L, index);
}

/* ---- values ---- */

/* Pushes format and value; bytes that C cannot read go on as a string. */
static int push_value(lua_State *L, uint32_t format, const char *bytes,
                      size_t length) {
  lua_pushinteger(L, (lua_Integer)format);
  if (format == BACKEND_INTEGER && length == sizeof(int64_t)) {
    int64_t n;
    memcpy(&n, bytes, sizeof n);
    lua_pushnumber(L, (double)n);
  } else if (format == FORMAT_NUMBER && length == sizeof(double)) {
    double n;
    memcpy(&n, bytes, sizeof n);
    lua_pushnumber(L, n);
  } else if (format == FORMAT_FALSE || format == FORMAT_TRUE) {
    lua_pushboolean(L, format == FORMAT_TRUE);
  } else {
    lua_pushlstring(L, bytes, length);
  }
  return 2;
}

union scratch {
  int64_t integer;
  double number;
};

/* The bytes of the value at index in that format. */
static const void *value_bytes(lua_State *L, int index, uint32_t format,
                               union scratch *scratch, size_t *length) {
  switch (format) {
  case BACKEND_INTEGER:
    scratch->integer = (int64_t)luaL_checknumber(L, index);
    *length = sizeof scratch->integer;
    return scratch;
  case FORMAT_NUMBER:
    scratch->number = luaL_checknumber(L, index);
    *length = sizeof scratch->number;
    return scratch;
  case FORMAT_FALSE:
  case FORMAT_TRUE:
    *length = 0;
    return "";
  default:
    return luaL_checklstring(L, index, length);
  }
}

/* ---- the plain calls ---- */

/* view() -> a new backend of the process's store, as a pointer */
static int l_view(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  if (c->view_count == VIEWS_MAX)
    return luaL_error(L, "too many aliases: at most %d", VIEWS_MAX);
  if (store_view(c->store, &c->views[c->view_count]) < 0)
    return luaL_error(L, "not enough memory");
  lua_pushlightuserdata(L, c->views[c->view_count++]);
  return 1;
}

/* A buffer that nobody uses; NULL without memory. Should the push of the value
 * raise, it stays taken until the cache closes. */
static struct buffer *take_buffer(struct cache_bind *c) {
  struct buffer *b = c->buffers;
  while (b != NULL && b->taken)
    b = b->next;
  if (b == NULL) {
    b = calloc(1, sizeof *b);
    if (b == NULL)
      return NULL;
    b->next = c->buffers;
    c->buffers = b;
  }
  b->taken = 1;
  return b;
}

static int resize_buffer(struct buffer *b, size_t cap) {
  char *bytes = realloc(b->bytes, cap);
  if (bytes == NULL)
    return -1;
  b->bytes = bytes;
  b->cap = cap;
  return 0;
}

static void release_buffer(struct buffer *b) {
  if (b->cap > BUFFER_KEEP)
    resize_buffer(b, BUFFER_FIRST); /* should that fail, it stays large */
  b->taken = 0;
}

/* get(view, ns, key) -> format, value; nil on a miss; nil, status */
static int l_get(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct backend *view = check_view(L, 1);
  size_t ns_len, key_len;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  const char *key = luaL_checklstring(L, 3, &key_len);
  struct backend_item item;
  struct buffer *b = take_buffer(c);
  int status = b != NULL ? BACKEND_HIT : BACKEND_ENOMEM;
  while (status == BACKEND_HIT) {
    status = view->ops->get(view, cache_now(c), ns, ns_len, key, key_len,
                            b->bytes, b->cap, &item, NULL);
    if (status == BACKEND_HIT && item.length <= b->cap) {
      push_value(L, item.format, b->bytes, item.length);
      release_buffer(b);
      return 2;
    }
    if (status == BACKEND_HIT &&
        resize_buffer(b, item.length > BUFFER_FIRST ? item.length
                                                    : BUFFER_FIRST) < 0)
      status = BACKEND_ENOMEM;
  }
  if (b != NULL)
    release_buffer(b);
  lua_pushnil(L);
  lua_pushinteger(L, status);
  return 2;
}

/* set(view, ns, key, value, format, ttl_ms) -> status */
static int l_set(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct backend *view = check_view(L, 1);
  size_t ns_len, key_len, length;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  const char *key = luaL_checklstring(L, 3, &key_len);
  uint32_t format = (uint32_t)luaL_checkinteger(L, 5);
  union scratch scratch;
  const void *bytes = value_bytes(L, 4, format, &scratch, &length);
  lua_pushinteger(L, view->ops->set(view, cache_now(c), ns, ns_len, key,
                                    key_len, bytes, length, format,
                                    (uint64_t)luaL_checknumber(L, 6), NULL));
  return 1;
}

/* remove(view, ns, key) -> 1, 0 or a status */
static int l_remove(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct backend *view = check_view(L, 1);
  size_t ns_len, key_len;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  const char *key = luaL_checklstring(L, 3, &key_len);
  lua_pushinteger(
      L, view->ops->remove(view, cache_now(c), ns, ns_len, key, key_len, NULL));
  return 1;
}

/* clear(view, prefix) -> status */
static int l_clear(lua_State *L) {
  struct backend *view = check_view(L, 1);
  size_t len;
  const char *prefix = luaL_checklstring(L, 2, &len);
  lua_pushinteger(
      L, view->ops->clear(view, cache_now(cache_of(L)), prefix, len, NULL));
  return 1;
}

static void set_count(lua_State *L, const char *name, uint64_t value) {
  lua_pushnumber(L, (double)value);
  lua_setfield(L, -2, name);
}

static int view_index(const struct cache_bind *c, const struct backend *view) {
  int i = 0;
  while (c->views[i] != view)
    i++;
  assert(i < c->view_count);
  return i;
}

/* stats(view) -> table of counts. Before each lease there was a get: its miss
 * is counted, the lease's own count of the same miss is taken back. */
static int l_stats(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct backend *view = check_view(L, 1);
  struct backend_stats stats;
  view->ops->stats(view, cache_now(c), &stats);
  stats.misses -= c->leases[view_index(c, view)];
  lua_createtable(L, 0, 9);
  set_count(L, "hits", stats.hits);
  set_count(L, "misses", stats.misses);
  set_count(L, "sets", stats.sets);
  set_count(L, "deletes", stats.deletes);
  set_count(L, "evictions", stats.evictions);
  set_count(L, "expired", stats.expired);
  set_count(L, "entries", stats.entries);
  set_count(L, "bytes", stats.bytes);
  set_count(L, "max_bytes", stats.max_bytes);
  return 1;
}

/* advance(ms): moves this runtime's cache clock, for tests */
static int l_advance(lua_State *L) {
  cache_of(L)->offset_ms += (uint64_t)luaL_checknumber(L, 1);
  return 0;
}

/* resize(bytes): the bound of the store */
static int l_resize(lua_State *L) {
  store_resize(cache_of(L)->store, (size_t)luaL_checknumber(L, 1));
  return 0;
}

/* ---- leases ---- */

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
 * share() gives the Lua value that it is made of to all who were woken. */
static void on_wake(struct backend_wait *wait, int status, const void *bytes,
                    const struct backend_item *item) {
  struct waiter *w = (struct waiter *)wait;
  (void)status;
  (void)bytes;
  (void)item;
  release_loader(w);
  w->next = w->cache->woken;
  w->cache->woken = w;
  task_complete(wait->owner, push_outcome, w);
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
  *load = (struct load){c, view, 0, ns_len + key_len};
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
  struct task *t = bind_of(L)->sched.current;
  task_push_handle(L, t);
  task_push_record(L, -1, t);
  lua_pushnil(L);
  lua_setfield(L, -2, "collects");
  if (t->held > 0)
    lua_gc(L, LUA_GCCOLLECT, 0);
  return 0;
}

/* Gives w's loader that function, once. */
static int guard_loader(lua_State *L) {
  struct waiter *w = lua_touserdata(L, 1);
  struct task *loader = w->loader;
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
  lua_pushlightuserdata(L, w->cache->bind);
  lua_pushcclosure(L, l_collect_loads, 1);
  lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
  loader->flags |= TASK_DEFERS;
  lua_pushboolean(L, 1);
  lua_setfield(L, 3, "collects");
  return 0;
}

/* Before the first one waits for a loader: if its task has ended without it,
 * the load is lost or its coroutine is in other hands; the collector knows.
 * Else it gets its guard. Both may run finalizers, and so any code: w is not
 * queued meanwhile, and the lease must be asked for again. */
static void prepare_loader(lua_State *L, struct waiter *w, struct task *t) {
  w->view->ops->unwait(w->view, &w->wait);
  w->loader = t;
  if (t->state == TASK_DONE)
    lua_gc(L, LUA_GCCOLLECT, 0);
  else if (lua_cpcall(L, guard_loader, w) != 0)
    lua_pop(L, 1); /* out of memory: without the guard, then */
  w->loader = NULL;
}

static int is_below(const struct task *t, const struct task *top) {
  while (t != NULL && t != top)
    t = t->parent;
  return t != NULL;
}

/* Does the loader need `me` to go on? Whoever waits for the end of a task waits
 * for all below it, too, which the chain of waits alone does not tell. */
static int needs(const struct task *loader, const struct task *me) {
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
  w->view->ops->unwait(w->view, &w->wait);
  free(w);
  lua_pushinteger(L, LEASE_DIRECT);
  return 1;
}

/* May w's task wait for that one's load: here, and without a deadlock? */
static int can_wait(lua_State *L, const struct waiter *w,
                    const struct task *loader) {
  const struct task *t = w->wait.owner;
  return t != NULL && t->state == TASK_RUNNING && lua_isyieldable(L) &&
         !needs(loader, t);
}

/* Waits for the load of that task. w is queued: nothing here may run Lua code
 * before the wait. */
static int wait_for_load(lua_State *L, struct waiter *w, struct task *loader) {
  struct task *t = w->wait.owner;
  if (!can_wait(L, w, loader))
    return go_direct(L, w);
  if (!task_may_wait(L, &w->cache->bind->sched, "cached", &t)) {
    go_direct(L, w);
    return task_raise(L, t);
  }
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
    w->wait.owner = c->bind->sched.current;
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
  do {
    status =
        load->view->ops->lease(load->view, cache_now(c), "", 0, load->key,
                               load->key_len, b->bytes, b->cap, item, &w->wait);
  } while (status == BACKEND_HIT && item->length > b->cap &&
           (status = resize_buffer(b, item->length)) == 0);
  if (status == BACKEND_TOKEN || status == BACKEND_WAIT)
    c->leases[view_index(c, load->view)]++;
  return status;
}

/* lease(view, ns, key) -> LEASE_ or WAIT_ state, and what belongs to it. What
 * may raise comes before the lease is asked for, or it could get lost. */
static int l_lease(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct backend *view = check_view(L, 1);
  struct load *load = push_load(L, c, view);
  struct waiter *w = new_waiter(c, view);
  struct buffer *b = take_buffer(c);
  struct backend_item item;
  int status = w != NULL && b != NULL ? ask(load, w, b, &item) : BACKEND_ENOMEM;
  struct task *loader = status == BACKEND_WAIT ? item.owner : NULL;
  if (loader != NULL && loader->held == 0 && can_wait(L, w, loader)) {
    prepare_loader(L, w, loader);
    status = ask(load, w, b, &item);
  }
  if (b != NULL && status != BACKEND_HIT)
    release_buffer(b);
  if (status == BACKEND_WAIT)
    return wait_for_load(L, w, item.owner);
  free(w);
  if (status == BACKEND_TOKEN) {
    load->token = item.token;
    lua_pushinteger(L, LEASE_TOKEN);
    lua_insert(L, -2);
    return 2;
  }
  if (status == BACKEND_HIT) {
    lua_pushinteger(L, LEASE_HIT);
    push_value(L, item.format, b->bytes, item.length);
    release_buffer(b);
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

/* fill(load, value, format, ttl_ms) -> 1 stored, 0 refused, or a status: ends
 * the load with a value, for the cache and for those who wait. */
static int l_fill(lua_State *L) {
  struct load *load = check_load(L);
  struct cache_bind *c = load->cache;
  uint32_t format = (uint32_t)luaL_checkinteger(L, 3);
  uint64_t ttl_ms = (uint64_t)luaL_checknumber(L, 4);
  union scratch scratch;
  size_t length;
  const void *bytes = value_bytes(L, 2, format, &scratch, &length);
  uint64_t token = load->token;
  load->token = 0;
  c->woken = NULL;
  int status = load->view->ops->fill(load->view, cache_now(c), "", 0, load->key,
                                     load->key_len, token, bytes, length,
                                     format, ttl_ms);
  share(L, c, WAIT_OK, 2, format);
  lua_pushinteger(L, status);
  return 1;
}

/* Ends a load without a value. */
static void abandon(struct load *load) {
  uint64_t token = load->token;
  load->token = 0;
  load->cache->woken = NULL;
  load->view->ops->abandon(load->view, cache_now(load->cache), "", 0, load->key,
                           load->key_len, token, NULL, 0);
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
  abandon(load);
  if (!own)
    share(L, c, WAIT_FAILED, 2, 0);
  return 0;
}

/* give(load, value): waiters get LEASE_GIVEN and the value; nothing is stored.
 */
static int l_give(lua_State *L) {
  struct load *load = check_load(L);
  lua_settop(L, 2);
  abandon(load);
  share(L, load->cache, LEASE_GIVEN, 2, 0);
  return 0;
}

static int l_load_gc(lua_State *L) {
  struct load *load = luaL_checkudata(L, 1, LOAD_MT);
  if (load->token != 0)
    abandon(load);
  return 0;
}

/* ---- open and close ---- */

static double max_bytes_setting(struct bind *b) {
  struct bind_setting setting;
  for (int i = 0; b->host.setting(b->host.ud, i, &setting); i++)
    if (strcmp(setting.name, "memory_max_bytes") == 0)
      return setting.number;
  return MAX_BYTES;
}

static int open_cache(struct bind *b) {
  struct cache_bind *c = calloc(1, sizeof *c);
  struct backend *view;
  if (c == NULL)
    return -ENOMEM;
  c->bind = b;
  if (store_open(&c->store, (size_t)max_bytes_setting(b)) < 0)
    goto no_store;
  if (store_view(c->store, &view) < 0)
    goto no_view;
  c->views[c->view_count++] = view; /* the ops' source; its keys are unused */
  c->api = (struct api){c, cache_now, view->ops->get, view->ops->set,
                        view->ops->remove};
  b->cache = c;
  return 0;

no_view:
  store_close(c->store);
no_store:
  free(c);
  return -ENOMEM;
}

void bind_close_cache(struct bind *b) {
  struct cache_bind *c = b->cache;
  if (c == NULL)
    return;
  while (c->view_count > 0) {
    struct backend *view = c->views[--c->view_count];
    view->ops->close(view);
  }
  store_close(c->store);
  for (struct buffer *each = c->buffers, *next; each != NULL; each = next) {
    next = each->next;
    free(each->bytes);
    free(each);
  }
  free(c);
  b->cache = NULL;
}

static void set_constants(lua_State *L) {
  static const struct {
    const char *name;
    int value;
  } constants[] = {
      {"BYTES", BACKEND_BYTES},
      {"INTEGER", BACKEND_INTEGER},
      {"NUMBER", FORMAT_NUMBER},
      {"FALSE", FORMAT_FALSE},
      {"TRUE", FORMAT_TRUE},
      {"TABLE", FORMAT_TABLE},
      {"RESULTS", FORMAT_RESULTS},
      {"LEASE_HIT", LEASE_HIT},
      {"LEASE_TOKEN", LEASE_TOKEN},
      {"LEASE_DIRECT", LEASE_DIRECT},
      {"LEASE_AGAIN", LEASE_AGAIN},
      {"LEASE_GIVEN", LEASE_GIVEN},
      {"ETOOLARGE", BACKEND_ETOOLARGE},
      {"ENOMEM", BACKEND_ENOMEM},
      {"KEY_MAX", BACKEND_KEY_MAX},
      {"ITEM_SIZE", sizeof(struct backend_item)},
  };
  for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
    lua_pushinteger(L, constants[i].value);
    lua_setfield(L, -2, constants[i].name);
  }
}

int bind_open_cache(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"view", l_view},       {"get", l_get},       {"set", l_set},
      {"remove", l_remove},   {"clear", l_clear},   {"stats", l_stats},
      {"advance", l_advance}, {"resize", l_resize}, {"lease", l_lease},
      {"fill", l_fill},       {"fail", l_fail},     {"give", l_give},
      {NULL, NULL},
  };
  struct bind *b = bind_of(L);
  if (b->cache == NULL && open_cache(b) < 0)
    return luaL_error(L, "cache: not enough memory for the store");
  luaL_newmetatable(L, LOAD_MT);
  lua_pushcfunction(L, l_load_gc);
  lua_setfield(L, -2, "__gc");
  lua_pop(L, 1);
  lua_newtable(L);
  for (const luaL_Reg *f = functions; f->name != NULL; f++) {
    lua_pushlightuserdata(L, b);
    lua_pushcclosure(L, f->func, 1);
    lua_setfield(L, -2, f->name);
  }
  set_constants(L);
  lua_pushlightuserdata(L, &b->cache->api);
  lua_setfield(L, -2, "api");
  return 1;
}
