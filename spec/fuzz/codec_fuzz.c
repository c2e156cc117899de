/* One input for one serializer, as libFuzzer calls it (or replay.c).
 *
 * What must hold, for any bytes:
 *   - decode answers: a value, or nil and a message; it raises nothing;
 *   - it allocates at most MEMORY_PER_BYTE times its input and MEMORY_FIXED,
 *     garbage included;
 *   - a value that came out goes in again and comes out the same (check.lua);
 *   - when an allocation fails, the only error is that one, and nothing leaks.
 */
#include <lauxlib.h>
#include <luajit.h>
#include <lualib.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bind/bind.h"
#include "codec_fuzz.h"

enum {
  MEMORY_PER_BYTE = 128,
  MEMORY_FIXED = 16 * 1024, /* the decoder's own, a message, a longer stack */
  COLLECT_EVERY = 64        /* inputs */
};

static struct {
  size_t live, peak;  /* bytes that Lua has now, has had at most */
  long until_failure; /* allocations that still succeed; below 0: all */
} memory = {0, 0, -1};

static lua_State *state;
static int decode_ref, check_ref;

static void *allocate(void *ud, void *old, size_t old_size, size_t size) {
  (void)ud;
  if (size == 0) {
    memory.live -= old_size;
    free(old);
    return NULL;
  }
  if (size > old_size && memory.until_failure >= 0 &&
      memory.until_failure-- == 0) {
    memory.until_failure = 0; /* and all that follow */
    return NULL;
  }
  void *block = realloc(old, size);
  if (block != NULL) {
    memory.live += size - old_size;
    if (memory.live > memory.peak)
      memory.peak = memory.live;
  }
  return block;
}

static void fail(const char *what) {
  fprintf(stderr, "fuzz " FUZZ_MODULE ": %s\n", what);
  abort();
}

static void must(int status) {
  if (status != 0)
    fail(lua_tostring(state, -1));
}

static void open_state(void) {
  state = lua_newstate(allocate, NULL);
  luaL_openlibs(state);
  luaJIT_setmode(state, 0, LUAJIT_MODE_ENGINE | LUAJIT_MODE_OFF);
  lua_getglobal(state, "package");
  lua_getfield(state, -1, "preload");
  must(luaL_loadfile(state, INT64_FILE));
  lua_setfield(state, -2, "moonstash.int64");
  lua_pushcfunction(state, bind_open_codec);
  lua_setfield(state, -2, "moonstash.codec");
  lua_settop(state, 0);
  must(luaL_loadfile(state, FUZZ_FOLDER "/check.lua"));
  lua_pushcfunction(state, FUZZ_OPENER);
  must(lua_pcall(state, 0, 1, 0));
  lua_pushliteral(state, FUZZ_MODULE);
  must(lua_pcall(state, 2, 2, 0)); /* decode, check */
  check_ref = luaL_ref(state, LUA_REGISTRYINDEX);
  decode_ref = luaL_ref(state, LUA_REGISTRYINDEX);
}

/* Calls fn(input); Lua's status. */
static int call(int fn, const uint8_t *data, size_t size) {
  lua_settop(state, 0);
  lua_rawgeti(state, LUA_REGISTRYINDEX, fn);
  lua_pushlstring(state, (const char *)data, size);
  memory.peak = memory.live;
  return lua_pcall(state, 1, 0, 0);
}

static void check_memory(const uint8_t *data, size_t size) {
  lua_gc(state, LUA_GCSTOP, 0);
  lua_settop(state, 0);
  lua_rawgeti(state, LUA_REGISTRYINDEX, decode_ref);
  lua_pushlstring(state, (const char *)data, size);
  size_t before = memory.peak = memory.live;
  must(lua_pcall(state, 1, 0, 0));
  if (memory.peak - before > MEMORY_PER_BYTE * size + MEMORY_FIXED)
    fail("too much memory");
  lua_gc(state, LUA_GCRESTART, 0);
}

int fuzz_with_failure(const uint8_t *data, size_t size, long after) {
  lua_settop(state, 0);
  lua_rawgeti(state, LUA_REGISTRYINDEX, check_ref);
  lua_pushlstring(state, (const char *)data, size);
  memory.until_failure = after;
  int status = lua_pcall(state, 1, 0, 0);
  int failed = memory.until_failure == 0;
  memory.until_failure = -1;
  if (status != 0 && status != LUA_ERRMEM &&
      strstr(lua_tostring(state, -1), "not enough memory") == NULL)
    fail(lua_tostring(state, -1));
  return failed && status != 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static unsigned inputs;
  if (state == NULL)
    open_state();
  check_memory(data, size);
  must(call(check_ref, data, size));
  fuzz_with_failure(data, size, size > 0 ? data[size - 1] % 32 : 0);
  lua_settop(state, 0);
  if (++inputs % COLLECT_EVERY == 0)
    lua_gc(state, LUA_GCCOLLECT, 0);
  return 0;
}
