/* Backends for Lua: the C half of the `cache` module.
 *
 * Hits go through FFI calls on a struct of function pointers (struct api): an
 * FFI call compiles, a C function does not. Every one of them has a C-function
 * twin here for states without FFI or with the JIT off, and everything that
 * may wait is a C function.
 *
 * The files: cache.c has the state, its views and the hot calls, cache_calls.c
 * the other calls, cache_lease.c the loads in flight, cache_evict.c what leaves
 * the store, cache_store.c what only a store in memory can do, cache_near.c
 * what near copies need.
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
#include "bind/cache_internal.h"
#include "clock.h"
#include "memory/store.h"

enum {
  BUFFER_FIRST = 4096,  /* bytes of a new buffer */
  BUFFER_KEEP = 1 << 20 /* a larger one is given back after its one value */
};

static struct bind *bind_of(lua_State *L) {
  return lua_touserdata(L, lua_upvalueindex(1));
}

struct cache_bind *cache_of(lua_State *L) {
  return bind_of(L)->cache;
}

uint64_t cache_now(struct cache_bind *c) {
  return clock_now_ms() + c->offset_ms;
}

struct backend *cache_check_view(lua_State *L, int index) {
  luaL_checktype(L, index, LUA_TLIGHTUSERDATA);
  return lua_touserdata(L, index);
}

/* ---- values ---- */

int cache_push_value(lua_State *L, uint32_t format, const char *bytes,
                     size_t length) {
  lua_pushinteger(L, (lua_Integer)format);
  if (format == BACKEND_INTEGER && length == sizeof(int64_t)) {
    int64_t n;
    memcpy(&n, bytes, sizeof n);
    lua_pushnumber(L, (double)n);
  } else if ((format == FORMAT_NUMBER || format == FORMAT_REFERENCE) &&
             length == sizeof(double)) {
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

const void *cache_value_bytes(lua_State *L, int index, uint32_t format,
                              union cache_scratch *scratch, size_t *length) {
  switch (format) {
  case BACKEND_INTEGER:
    scratch->integer = (int64_t)luaL_checknumber(L, index);
    *length = sizeof scratch->integer;
    return scratch;
  case FORMAT_NUMBER:
  case FORMAT_REFERENCE:
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

/* class(name) -> its place in the lists of all states that share the cache */
static int l_class(lua_State *L) {
  unsigned place = pool_class(cache_of(L)->pool, luaL_checkstring(L, 1));
  if (place == 0)
    return luaL_error(L, "not enough memory");
  lua_pushinteger(L, (lua_Integer)place);
  return 1;
}

/* view(name[, max_bytes]) -> the backend of that name, as a pointer: a view of
 * the common store, or of one of its own with that bound */
static int l_view(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  const char *name = luaL_checkstring(L, 1);
  double max_bytes = luaL_optnumber(L, 2, 0);
  int i = c->view_count;
  if (i == CACHE_VIEWS_MAX)
    return luaL_error(L, "too many aliases: at most %d", CACHE_VIEWS_MAX);
  if (pool_view_open(c->pool, name, (size_t)max_bytes, &c->shared[i],
                     &c->views[i]) < 0)
    return luaL_error(L, "not enough memory");
  c->view_count++;
  if (cache_watch_view(c, c->views[i]) < 0)
    return luaL_error(L, "not enough memory");
  lua_pushlightuserdata(L, c->views[i]);
  return 1;
}

/* shared([view]) -> has another runtime this view, or any, too? */
static int l_shared(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  int shared;
  if (lua_isnoneornil(L, 1))
    shared = pool_is_shared(c->pool);
  else
    shared = pool_view_is_shared(
        c->pool, c->shared[cache_view_index(c, cache_check_view(L, 1))]);
  lua_pushboolean(L, shared);
  return 1;
}

/* A buffer that nobody uses; NULL without memory. Should the push of the value
 * raise, it stays taken until the cache closes. */
struct buffer *cache_take_buffer(struct cache_bind *c) {
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

int cache_resize_buffer(struct buffer *b, size_t cap) {
  char *bytes = realloc(b->bytes, cap);
  if (bytes == NULL)
    return -1;
  b->bytes = bytes;
  b->cap = cap;
  return 0;
}

void cache_release_buffer(struct buffer *b) {
  if (b->cap > BUFFER_KEEP)
    cache_resize_buffer(b, BUFFER_FIRST); /* should that fail, it stays large */
  b->taken = 0;
}

/* get(view, ns, key) -> format, value, version; nil on a miss; nil, status */
static int l_get(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct backend *view = cache_check_view(L, 1);
  size_t ns_len, key_len;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  const char *key = luaL_checklstring(L, 3, &key_len);
  struct backend_item item;
  struct buffer *b = cache_take_buffer(c);
  int status = b != NULL ? BACKEND_HIT : BACKEND_ENOMEM;
  while (status == BACKEND_HIT) {
    status = view->ops->get(view, cache_now(c), ns, ns_len, key, key_len,
                            b->bytes, b->cap, &item, NULL);
    if (status == BACKEND_HIT && item.length <= b->cap) {
      cache_push_value(L, item.format, b->bytes, item.length);
      cache_release_buffer(b);
      lua_pushnumber(L, (double)item.version);
      return 3;
    }
    if (status == BACKEND_HIT &&
        cache_resize_buffer(b, item.length > BUFFER_FIRST ? item.length
                                                          : BUFFER_FIRST) < 0)
      status = BACKEND_ENOMEM;
  }
  if (b != NULL)
    cache_release_buffer(b);
  lua_pushnil(L);
  lua_pushinteger(L, status);
  return 2;
}

/* set(view, ns, key, value, format, ttl_ms) -> status */
static int l_set(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct backend *view = cache_check_view(L, 1);
  size_t ns_len, key_len, length;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  const char *key = luaL_checklstring(L, 3, &key_len);
  uint32_t format = (uint32_t)luaL_checkinteger(L, 5);
  union cache_scratch scratch;
  const void *bytes = cache_value_bytes(L, 4, format, &scratch, &length);
  lua_pushinteger(L, view->ops->set(view, cache_now(c), ns, ns_len, key,
                                    key_len, bytes, length, format,
                                    (uint64_t)luaL_checknumber(L, 6), NULL));
  return 1;
}

/* remove(view, ns, key) -> 1, 0 or a status */
static int l_remove(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct backend *view = cache_check_view(L, 1);
  size_t ns_len, key_len;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  const char *key = luaL_checklstring(L, 3, &key_len);
  lua_pushinteger(
      L, view->ops->remove(view, cache_now(c), ns, ns_len, key, key_len, NULL));
  return 1;
}

/* clear(view, prefix) -> status */
static int l_clear(lua_State *L) {
  struct backend *view = cache_check_view(L, 1);
  size_t len;
  const char *prefix = luaL_checklstring(L, 2, &len);
  lua_pushinteger(L, view->ops->clear(view, cache_now(cache_of(L)), prefix, len,
                                      NULL, NULL));
  return 1;
}

static void set_count(lua_State *L, const char *name, uint64_t value) {
  lua_pushnumber(L, (double)value);
  lua_setfield(L, -2, name);
}

int cache_view_index(const struct cache_bind *c, const struct backend *view) {
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
  struct backend *view = cache_check_view(L, 1);
  struct backend_stats stats;
  view->ops->stats(view, cache_now(c), &stats);
  uint64_t asks = c->shared[cache_view_index(c, view)]->asks;
  stats.misses -= asks < stats.misses ? asks : stats.misses;
  lua_createtable(L, 0, 11);
  set_count(L, "hits", stats.hits);
  set_count(L, "misses", stats.misses);
  set_count(L, "sets", stats.sets);
  set_count(L, "deletes", stats.deletes);
  set_count(L, "evictions", stats.evictions);
  set_count(L, "expired", stats.expired);
  set_count(L, "entries", stats.entries);
  set_count(L, "bytes", stats.bytes);
  set_count(L, "max_bytes", stats.max_bytes);
  set_count(L, "evict_events_lost", cache_events_lost(c, view));
  cache_push_store(L, c, view);
  lua_setfield(L, -2, "store");
  return 1;
}

/* advance(ms): moves this runtime's cache clock, for tests */
static int l_advance(lua_State *L) {
  cache_of(L)->offset_ms += (uint64_t)luaL_checknumber(L, 1);
  return 0;
}

/* resize(bytes[, view]): the bound of the common store, or of a view's */
static int l_resize(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct store *store = pool_store(c->pool);
  if (!lua_isnoneornil(L, 2))
    store = c->shared[cache_view_index(c, cache_check_view(L, 2))]->store;
  store_resize(store, (size_t)luaL_checknumber(L, 1));
  return 0;
}

/* ---- open and close ---- */

/* Opens what the runtime shares with others, before the inbox: what fails
 * here has nothing to close. */
static int open_store(struct cache_bind *c) {
  struct store *store = pool_store(c->pool);
  struct backend *view;
  if (store == NULL || store_view(store, &view) < 0)
    return -ENOMEM;
  c->views[c->view_count++] = view; /* the ops' source; its keys are unused */
  c->api = (struct api){.context = c,
                        .now = cache_now,
                        .get = view->ops->get,
                        .set = view->ops->set,
                        .remove = view->ops->remove};
  cache_open_near(c);
  return 0;
}

static int open_cache(struct bind *b) {
  struct cache_bind *c = calloc(1, sizeof *c);
  if (c == NULL)
    return -ENOMEM;
  c->bind = b;
  c->pool = b->pool;
  int rc = open_store(c);
  if (rc == 0)
    rc = abroad_open(c);
  if (rc < 0) {
    if (c->view_count > 0)
      c->views[0]->ops->close(c->views[0]);
    free(c);
    return rc;
  }
  sweep_open(c);
  b->cache = c;
  return 0;
}

void bind_stop_cache(struct bind *b) {
  if (b->cache == NULL)
    return;
  abroad_stop(b->cache);
  cache_stop_evict(b->cache);
}

static void free_buffers(struct cache_bind *c) {
  for (struct buffer *each = c->buffers, *next; each != NULL; each = next) {
    next = each->next;
    free(each->bytes);
    free(each);
  }
}

void bind_close_cache(struct bind *b) {
  struct cache_bind *c = b->cache;
  if (c == NULL)
    return;
  while (--c->view_count > 0) {
    store_watch(c->views[c->view_count], NULL, NULL);
    pool_view_close(c->pool, c->shared[c->view_count], c->views[c->view_count]);
  }
  c->views[0]->ops->close(c->views[0]);
  abroad_close(c);
  cache_free_evict(c);
  free_buffers(c);
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
      {"JSON", FORMAT_JSON},
      {"MSGPACK", FORMAT_MSGPACK},
      {"CUSTOM", FORMAT_CUSTOM},
      {"REFERENCE", FORMAT_REFERENCE},
      {"ETYPE", BACKEND_ETYPE},
      {"ERANGE", BACKEND_ERANGE},
      {"LEASE_HIT", LEASE_HIT},
      {"LEASE_TOKEN", LEASE_TOKEN},
      {"LEASE_DIRECT", LEASE_DIRECT},
      {"LEASE_AGAIN", LEASE_AGAIN},
      {"LEASE_GIVEN", LEASE_GIVEN},
      {"LEASE_BUSY", LEASE_BUSY},
      {"ETOOLARGE", BACKEND_ETOOLARGE},
      {"ENOMEM", BACKEND_ENOMEM},
      {"ECLOSED", BACKEND_ECLOSED},
      {"KEY_MAX", BACKEND_KEY_MAX},
      {"ITEM_SIZE", sizeof(struct backend_item)},
      {"NEAR_SEEN", CACHE_SEEN},
      {"NEAR_SIZE", sizeof(struct cache_near)},
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
      {"advance", l_advance}, {"resize", l_resize}, {"class", l_class},
      {"shared", l_shared},   {NULL, NULL},
  };
  struct bind *b = bind_of(L);
  if (b->cache == NULL && open_cache(b) < 0)
    return luaL_error(L, "cache: not enough memory for the store");
  cache_open_leases(L);
  lua_newtable(L);
  bind_add_functions(L, b, functions);
  bind_add_functions(L, b, cache_calls);
  bind_add_functions(L, b, cache_leases);
  bind_add_functions(L, b, cache_evicts);
  bind_add_functions(L, b, cache_stores);
  set_constants(L);
  lua_pushlightuserdata(L, &b->cache->api);
  lua_setfield(L, -2, "api");
  lua_pushlightuserdata(L, NULL);
  lua_setfield(L, -2, "null");
  return 1;
}
