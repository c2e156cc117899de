/* What only a store in memory can do: entries that are pinned or weigh more,
 * and its numbers. Part of the module that cache.c opens. */
#include "bind/cache_internal.h"

/* set_with(view, ns, key, value, format, ttl_ms, pin, weight) -> status */
static int l_set_with(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct backend *view = cache_check_view(L, 1);
  size_t ns_len, key_len, length;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  const char *key = luaL_checklstring(L, 3, &key_len);
  double weight = luaL_checknumber(L, 8);
  luaL_argcheck(L, weight >= 0 && weight <= UINT32_MAX, 8, "bad weight");
  struct store_options options = {
      .format = (uint32_t)luaL_checkinteger(L, 5),
      .ttl_ms = (uint64_t)luaL_checknumber(L, 6),
      .pin = lua_toboolean(L, 7),
      .weight = (uint32_t)weight,
  };
  union cache_scratch scratch;
  const void *bytes =
      cache_value_bytes(L, 4, options.format, &scratch, &length);
  lua_pushinteger(L, store_set_with(view, cache_now(c), ns, ns_len, key,
                                    key_len, bytes, length, &options));
  return 1;
}

void cache_push_store(lua_State *L, struct cache_bind *c,
                      const struct backend *view) {
  struct store_info info;
  store_info(c->shared[cache_view_index(c, view)]->store, &info);
  const struct {
    const char *name;
    double value;
  } fields[] = {
      {"max_bytes", (double)info.max_bytes},
      {"bytes", (double)info.bytes},
      {"live_bytes", (double)info.live_bytes},
      {"index_bytes", (double)info.index_bytes},
      {"policy_bytes", (double)info.policy_bytes},
      {"entries", (double)info.entries},
      {"lock_waits", (double)info.lock_waits},
      {"shards", info.shards},
      {"segment_bytes", info.segment_bytes},
      {"small_share", info.small_share},
  };
  lua_createtable(L, 0, sizeof fields / sizeof *fields);
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
    lua_pushnumber(L, fields[i].value);
    lua_setfield(L, -2, fields[i].name);
  }
}

const luaL_Reg cache_stores[] = {{"set_with", l_set_with}, {NULL, NULL}};
