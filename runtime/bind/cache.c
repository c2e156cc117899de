/* Backends for Lua: the C half of the `cache` module.
 *
 * Hits go through FFI calls on a struct of function pointers (struct api): an
 * FFI call compiles, a C function does not. Every one of them has a C-function
 * twin here for states without FFI or with the JIT off, and everything that
 * may wait is a C function.
 *
 * A miss takes a lease (see backend.h). The token is a userdata, `load`: when
 * nobody fills or abandons it, because its task was dropped, the collector
 * does. Whoever waits for a load holds its owner's interrupts back (held): a
 * cancelled caller goes on loading while others wait for the value.
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
  FIRST_BUFFER = 4096,
  VIEWS_MAX = 256, /* aliases of one runtime */
  MESSAGE_MAX = 512
};

enum { /* value formats, after BACKEND_BYTES and BACKEND_INTEGER */
       FORMAT_NUMBER = BACKEND_FORMAT_USER, /* a double */
       FORMAT_FALSE,
       FORMAT_TRUE,
       FORMAT_TABLE,  /* string.buffer's encoding of one table */
       FORMAT_RESULTS /* the same of {n = count, results...} */
};

enum {                   /* what lease returns first, beside the WAIT_ states */
       LEASE_HIT = 10,   /* format, value */
       LEASE_TOKEN = 11, /* load */
       LEASE_DIRECT =
           12, /* waiting is impossible or would deadlock: do without */
       LEASE_AGAIN = 13 /* the load ended without a value: ask again */
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

struct cache_bind {
  struct bind *bind;
  struct store *store;
  struct backend *views[VIEWS_MAX];
  int view_count;
  uint64_t offset_ms; /* what tests have advanced the clock by */
  struct api api;
  char *buf; /* for the C twin's get */
  size_t cap;
  struct waiter *woken; /* by the fill or abandon that is running */
};

/* A load in progress: the token of a lease. */
struct load {
  struct cache_bind *cache;
  struct backend *view;
  struct task *owner; /* NULL outside tasks; kept alive by the env */
  uint64_t token;     /* 0 once filled or abandoned */
  size_t key_len;
  char key[]; /* namespace and key, joined */
};

/* A task that waits for another one's load. */
struct waiter {
  struct backend_wait wait; /* wait.owner: this task */
  struct cache_bind *cache;
  struct backend *view;
  struct task *loader; /* whose interrupts this waiter holds back */
  struct waiter *next; /* in cache->woken */
  int status;          /* BACKEND_ code of the outcome */
  uint32_t format;
  size_t length;
  char *bytes; /* a copy of the value or the message */
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

/* ---- values -------------------------------------------------------------- */

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

/* ---- the plain calls
 * --------------------------------------------------------- */

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

static int grow_buffer(struct cache_bind *c, size_t needed) {
  char *buf = realloc(c->buf, needed);
  if (buf == NULL)
    return -1;
  c->buf = buf;
  c->cap = needed;
  return 0;
}

/* get(view, ns, key) -> format, value; nil on a miss; nil, status */
static int l_get(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct backend *view = check_view(L, 1);
  size_t ns_len, key_len;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  const char *key = luaL_checklstring(L, 3, &key_len);
  struct backend_item item;
  for (;;) {
    int status = view->ops->get(view, cache_now(c), ns, ns_len, key, key_len,
                                c->buf, c->cap, &item, NULL);
    if (status != BACKEND_HIT) {
      lua_pushnil(L);
      lua_pushinteger(L, status);
      return 2;
    }
    if (item.length <= c->cap)
      return push_value(L, item.format, c->buf, item.length);
    if (grow_buffer(c, item.length) < 0)
      return luaL_error(L, "not enough memory");
  }
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

/* stats(view) -> table of counts */
static int l_stats(lua_State *L) {
  struct backend *view = check_view(L, 1);
  struct backend_stats stats;
  view->ops->stats(view, cache_now(cache_of(L)), &stats);
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

/* ---- leases
 * ----------------------------------------------------------------------- */

static void free_waiter(struct waiter *w) {
  free(w->bytes);
  free(w);
}

static void release_loader(struct waiter *w) {
  if (w->loader != NULL) {
    assert(w->loader->held > 0);
    w->loader->held--;
    w->loader = NULL;
  }
}

/* The outcome as the results of lease. */
static int push_outcome(lua_State *co, struct task *t, void *arg) {
  struct waiter *w = arg;
  int n = 1;
  (void)t;
  if (co == NULL) {
    free_waiter(w);
    return 0;
  }
  if (w->status == BACKEND_HIT) {
    lua_pushinteger(co, WAIT_OK);
    n += push_value(co, w->format, w->bytes, w->length);
  } else if (w->status == BACKEND_ELOAD) {
    task_push_handle(co, t);
    task_push_record(co, -1, t);
    lua_getfield(co, -1, "load_error");
    lua_remove(co, -2);
    lua_remove(co, -2);
    lua_pushinteger(co, WAIT_FAILED);
    lua_insert(co, -2);
    n++;
  } else {
    lua_pushinteger(co, LEASE_AGAIN);
  }
  free_waiter(w);
  return n;
}

/* The backend's call, inside fill, abandon or the close of a view. */
static void on_wake(struct backend_wait *wait, int status, const void *bytes,
                    const struct backend_item *item) {
  struct waiter *w = (struct waiter *)wait;
  struct task *t = wait->owner;
  w->status = status;
  if (status == BACKEND_HIT) {
    w->bytes = malloc(item->length + 1);
    if (w->bytes != NULL) {
      memcpy(w->bytes, bytes, item->length);
      w->length = item->length;
      w->format = item->format;
    } else {
      w->status = BACKEND_MISS; /* no room for the copy: ask again */
    }
  }
  release_loader(w);
  w->next = w->cache->woken;
  w->cache->woken = w;
  task_complete(t, push_outcome, w);
}

static void forget_lease(lua_State *L, struct task *t, void *arg) {
  struct waiter *w = arg;
  struct task *loader = w->loader;
  (void)t;
  w->view->ops->unwait(w->view, &w->wait);
  release_loader(w);
  if (loader != NULL)
    task_interrupts_due(L, loader);
  free_waiter(w);
}

static int push_load(lua_State *L, struct cache_bind *c, struct backend *view,
                     uint64_t token) {
  size_t ns_len, key_len;
  const char *ns = lua_tolstring(L, 2, &ns_len);
  const char *key = lua_tolstring(L, 3, &key_len);
  struct load *load = lua_newuserdata(L, sizeof *load + ns_len + key_len);
  load->cache = c;
  load->view = view;
  load->owner = c->bind->sched.current;
  load->token = token;
  load->key_len = ns_len + key_len;
  memcpy(load->key, ns, ns_len);
  memcpy(load->key + ns_len, key, key_len);
  luaL_getmetatable(L, LOAD_MT);
  lua_setmetatable(L, -2);
  if (load->owner != NULL) { /* the handle outlives the load */
    lua_createtable(L, 1, 0);
    task_push_handle(L, load->owner);
    lua_rawseti(L, -2, 1);
    lua_setfenv(L, -2);
  }
  lua_pushinteger(L, LEASE_TOKEN);
  lua_insert(L, -2);
  return 2;
}

/* Waits for the load of item->owner; w is queued. */
static int wait_for_load(lua_State *L, struct waiter *w, struct task *loader) {
  struct task *t;
  if (task_would_deadlock(w->wait.owner, loader)) {
    w->view->ops->unwait(w->view, &w->wait);
    free_waiter(w);
    lua_pushinteger(L, LEASE_DIRECT);
    return 1;
  }
  if (!task_may_wait(L, &w->cache->bind->sched, "cached", &t)) {
    w->view->ops->unwait(w->view, &w->wait);
    free_waiter(w);
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

/* lease(view, ns, key) -> LEASE_ or WAIT_ state, and what belongs to it */
static int l_lease(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct backend *view = check_view(L, 1);
  size_t ns_len, key_len;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  const char *key = luaL_checklstring(L, 3, &key_len);
  struct task *me = c->bind->sched.current;
  int can_wait = me != NULL && me->state == TASK_RUNNING && lua_isyieldable(L);
  struct backend_item item;
  struct waiter *w = NULL;
  if (can_wait && (w = new_waiter(c, view)) == NULL)
    return luaL_error(L, "not enough memory");
  int status;
  for (;;) {
    status = view->ops->lease(view, cache_now(c), ns, ns_len, key, key_len,
                              c->buf, c->cap, &item, w ? &w->wait : NULL);
    if (status != BACKEND_HIT || item.length <= c->cap ||
        grow_buffer(c, item.length) < 0)
      break;
  }
  if (status == BACKEND_WAIT && w != NULL)
    return wait_for_load(L, w, item.owner);
  free(w);
  if (status == BACKEND_TOKEN)
    return push_load(L, c, view, item.token);
  if (status == BACKEND_HIT && item.length <= c->cap) {
    lua_pushinteger(L, LEASE_HIT);
    return 1 + push_value(L, item.format, c->buf, item.length);
  }
  lua_pushinteger(L, LEASE_DIRECT);
  return 1;
}

static struct load *check_load(lua_State *L) {
  return luaL_checkudata(L, 1, LOAD_MT);
}

/* fill(load, value, format, ttl_ms) -> 1 stored, 0 refused, or a status */
static int l_fill(lua_State *L) {
  struct load *load = check_load(L);
  uint32_t format = (uint32_t)luaL_checkinteger(L, 3);
  uint64_t ttl_ms = (uint64_t)luaL_checknumber(L, 4);
  union scratch scratch;
  size_t length;
  const void *bytes = value_bytes(L, 2, format, &scratch, &length);
  if (load->token == 0)
    return luaL_error(L, "fill: this load has ended");
  uint64_t token = load->token;
  load->token = 0;
  load->cache->woken = NULL;
  lua_pushinteger(L, load->view->ops->fill(
                         load->view, cache_now(load->cache), "", 0, load->key,
                         load->key_len, token, bytes, length, format, ttl_ms));
  return 1;
}

static int end_load(struct load *load, const char *message) {
  uint64_t token = load->token;
  load->token = 0;
  load->cache->woken = NULL;
  return load->view->ops->abandon(load->view, cache_now(load->cache), "", 0,
                                  load->key, load->key_len, token, message,
                                  message != NULL ? strlen(message) : 0);
}

/* abandon(load[, err]): waiters raise err; without one they ask again */
static int l_abandon(lua_State *L) {
  struct load *load = check_load(L);
  if (load->token == 0)
    return 0;
  lua_settop(L, 2);
  int again = lua_isnil(L, 2);
  end_load(load, again ? NULL : "the load failed");
  for (struct waiter *w = load->cache->woken; w != NULL && !again;
       w = w->next) {
    struct task *t = w->wait.owner;
    task_push_handle(L, t);
    task_push_record(L, -1, t);
    lua_pushvalue(L, 2);
    lua_setfield(L, -2, "load_error");
    lua_pop(L, 2);
  }
  return 0;
}

static int l_load_gc(lua_State *L) {
  struct load *load = check_load(L);
  if (load->token != 0 && load->cache->view_count > 0)
    end_load(load, NULL);
  return 0;
}

/* waiters(load) -> how many wait for it */
static int l_waiters(lua_State *L) {
  struct load *load = check_load(L);
  lua_pushinteger(
      L, load->view->ops->waiters(load->view, cache_now(load->cache), "", 0,
                                  load->key, load->key_len, load->token));
  return 1;
}

/* ---- open and close
 * ------------------------------------------------------------------ */

static double max_bytes_setting(struct bind *b) {
  struct bind_setting setting;
  for (int i = 0; b->host.setting(b->host.ud, i, &setting); i++)
    if (strcmp(setting.name, "memory_max_bytes") == 0)
      return setting.number;
  return 64 << 20;
}

static int open_cache(struct bind *b) {
  struct cache_bind *c = calloc(1, sizeof *c);
  if (c == NULL)
    return -ENOMEM;
  c->bind = b;
  if (grow_buffer(c, FIRST_BUFFER) < 0 ||
      store_open(&c->store, (size_t)max_bytes_setting(b)) < 0) {
    free(c->buf);
    free(c);
    return -ENOMEM;
  }
  struct backend *view;
  if (store_view(c->store, &view) < 0) {
    store_close(c->store);
    free(c->buf);
    free(c);
    return -ENOMEM;
  }
  c->views[c->view_count++] = view; /* the ops' source; its keys are unused */
  c->api = (struct api){c, cache_now, view->ops->get, view->ops->set,
                        view->ops->remove};
  b->cache = c;
  return 0;
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
  free(c->buf);
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
      {"view", l_view},       {"get", l_get},         {"set", l_set},
      {"remove", l_remove},   {"clear", l_clear},     {"stats", l_stats},
      {"advance", l_advance}, {"resize", l_resize},   {"lease", l_lease},
      {"fill", l_fill},       {"abandon", l_abandon}, {"waiters", l_waiters},
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
