/* The backend's calls that are not on the hot path, as C functions for Lua.
 * Part of the module that cache.c opens. */
#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

#include "bind/bind.h"
#include "bind/cache_internal.h"

/* What nearly every call begins with: view, namespace, key at 1 to 3. */
struct call {
  struct backend *view;
  uint64_t now;
  const char *ns, *key;
  size_t ns_len, key_len;
};

static struct call check_call(lua_State *L) {
  struct call call = {.view = cache_check_view(L, 1),
                      .now = cache_now(cache_of(L))};
  call.ns = luaL_checklstring(L, 2, &call.ns_len);
  call.key = luaL_checklstring(L, 3, &call.key_len);
  return call;
}

#define CALL_KEY \
  call.view, call.now, call.ns, call.ns_len, call.key, call.key_len

/* add(view, ns, key, value, format, ttl_ms) -> 1, 0 or a status */
static int l_add(lua_State *L) {
  struct call call = check_call(L);
  uint32_t format = (uint32_t)luaL_checkinteger(L, 5);
  union cache_scratch scratch;
  size_t length;
  const void *bytes = cache_value_bytes(L, 4, format, &scratch, &length);
  lua_pushinteger(L,
                  call.view->ops->add(CALL_KEY, bytes, length, format,
                                      (uint64_t)luaL_checknumber(L, 6), NULL));
  return 1;
}

/* exists(view, ns, key) -> boolean */
static int l_exists(lua_State *L) {
  struct call call = check_call(L);
  lua_pushboolean(L, call.view->ops->exists(CALL_KEY, NULL) == 1);
  return 1;
}

/* increment(view, ns, key, delta, ttl_ms) -> status, sum */
static int l_increment(lua_State *L) {
  struct call call = check_call(L);
  int64_t sum = 0;
  int status =
      call.view->ops->increment(CALL_KEY, (int64_t)luaL_checknumber(L, 4),
                                (uint64_t)luaL_checknumber(L, 5), &sum, NULL);
  lua_pushinteger(L, status);
  lua_pushnumber(L, (double)sum);
  return 2;
}

/* expire(view, ns, key, ttl_ms) -> boolean */
static int l_expire(lua_State *L) {
  struct call call = check_call(L);
  lua_pushboolean(L, call.view->ops->expire(CALL_KEY,
                                            (uint64_t)luaL_checknumber(L, 4),
                                            NULL) == 1);
  return 1;
}

/* touch(view, ns, key[, ttl_ms]) -> boolean */
static int l_touch(lua_State *L) {
  struct call call = check_call(L);
  uint64_t ttl_ms =
      lua_isnoneornil(L, 4) ? UINT64_MAX : (uint64_t)luaL_checknumber(L, 4);
  lua_pushboolean(L, call.view->ops->touch(CALL_KEY, ttl_ms, NULL) == 1);
  return 1;
}

/* info(view, ns, key) -> age_ms, ttl_ms left (nil = never), size, format; or
 * nothing */
static int l_info(lua_State *L) {
  struct call call = check_call(L);
  struct backend_item item;
  if (call.view->ops->info(CALL_KEY, &item, NULL) != BACKEND_HIT)
    return 0;
  uint64_t age_ms = /* stamps may run ahead of the clock */
      call.now > item.created_ms ? call.now - item.created_ms : 0;
  lua_pushnumber(L, (double)age_ms);
  if (item.expires_ms != 0)
    lua_pushnumber(L, (double)(item.expires_ms - call.now));
  else
    lua_pushnil(L);
  lua_pushnumber(L, (double)item.length);
  lua_pushinteger(L, (lua_Integer)item.format);
  return 4;
}

/* version(view, ns, key) -> the entry's version, or nothing */
static int l_version(lua_State *L) {
  struct call call = check_call(L);
  struct backend_item item;
  if (call.view->ops->info(CALL_KEY, &item, NULL) != BACKEND_HIT)
    return 0;
  lua_pushnumber(L, (double)item.version);
  return 1;
}

/* ---- bulk ---- */

struct backend_slice *cache_check_list(lua_State *L, int index, size_t *n) {
  luaL_checktype(L, index, LUA_TTABLE);
  *n = lua_objlen(L, index);
  struct backend_slice *list = lua_newuserdata(L, (*n ? *n : 1) * sizeof *list);
  for (size_t i = 0; i < *n; i++) {
    lua_rawgeti(L, index, (int)i + 1);
    if (lua_type(L, -1) != LUA_TSTRING)
      luaL_error(L, "a list of strings expected");
    list[i].data = lua_tolstring(L, -1, &list[i].length);
    lua_pop(L, 1); /* the list keeps it */
  }
  return list;
}

/* Pushes {formats}, {values} of what get_many has left in buf. */
static int push_many(lua_State *L, const struct backend_item *items, size_t n,
                     const char *buf) {
  lua_createtable(L, (int)n, 0);
  lua_createtable(L, (int)n, 0);
  for (size_t i = 0; i < n; i++) {
    if (items[i].version == 0)
      continue;
    cache_push_value(L, items[i].format, buf, items[i].length);
    lua_rawseti(L, -3, (int)i + 1);
    lua_rawseti(L, -3, (int)i + 1);
    buf += items[i].length;
  }
  return 2;
}

/* get_many(view, ns, keys) -> formats, values: sparse lists; or nil, status */
static int l_get_many(lua_State *L) {
  struct backend *view = cache_check_view(L, 1);
  uint64_t now = cache_now(cache_of(L));
  size_t ns_len, n, used = 4096, cap;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  struct backend_slice *keys = cache_check_list(L, 3, &n);
  struct backend_item *items = lua_newuserdata(L, (n ? n : 1) * sizeof *items);
  char *buf;
  int rc;
  do {
    cap = used;
    buf = lua_newuserdata(L, cap);
    rc = view->ops->get_many(view, now, ns, ns_len, keys, n, buf, cap, &used,
                             items, NULL);
  } while (rc >= 0 && used > cap);
  if (rc >= 0)
    return push_many(L, items, n, buf);
  lua_pushnil(L);
  lua_pushinteger(L, rc);
  return 2;
}

/* set_many(view, ns, keys, values, formats, ttl_ms) -> 1 or the first error */
static int l_set_many(lua_State *L) {
  struct backend *view = cache_check_view(L, 1);
  uint64_t now = cache_now(cache_of(L));
  size_t ns_len, n;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  luaL_checktype(L, 4, LUA_TTABLE);
  luaL_checktype(L, 5, LUA_TTABLE);
  uint64_t ttl_ms = (uint64_t)luaL_checknumber(L, 6);
  struct backend_slice *keys = cache_check_list(L, 3, &n);
  size_t room = n ? n : 1;
  struct backend_slice *values = lua_newuserdata(L, room * sizeof *values);
  union cache_scratch *scratch = lua_newuserdata(L, room * sizeof *scratch);
  uint32_t *formats = lua_newuserdata(L, room * sizeof *formats);
  for (size_t i = 0; i < n; i++) {
    lua_rawgeti(L, 5, (int)i + 1);
    formats[i] = (uint32_t)luaL_checkinteger(L, -1);
    lua_pop(L, 1);
    lua_rawgeti(L, 4, (int)i + 1);
    values[i].data = cache_value_bytes(L, lua_gettop(L), formats[i],
                                       &scratch[i], &values[i].length);
    lua_pop(L, 1); /* the list keeps it */
  }
  lua_pushinteger(L, view->ops->set_many(view, now, ns, ns_len, keys, values,
                                         formats, n, ttl_ms, NULL, NULL));
  return 1;
}

/* remove_many(view, ns, keys) -> how many there were */
static int l_remove_many(lua_State *L) {
  struct backend *view = cache_check_view(L, 1);
  uint64_t now = cache_now(cache_of(L));
  size_t ns_len, n;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  struct backend_slice *keys = cache_check_list(L, 3, &n);
  lua_pushinteger(L,
                  view->ops->remove_many(view, now, ns, ns_len, keys, n, NULL));
  return 1;
}

const luaL_Reg cache_calls[] = {
    {"add", l_add},
    {"exists", l_exists},
    {"increment", l_increment},
    {"expire", l_expire},
    {"touch", l_touch},
    {"info", l_info},
    {"version", l_version},
    {"get_many", l_get_many},
    {"set_many", l_set_many},
    {"remove_many", l_remove_many},
    {NULL, NULL},
};
