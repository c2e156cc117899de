/* The reader below the decoders: it believes no count.
 *
 * The invariant: owed <= end - at. `owed` is how many values the containers
 * around the current one still promise; each takes at least one byte, so a
 * count is believed only while all that is promised could still be there.
 * Over a whole input, then, no more elements are promised than it has bytes,
 * however deep the counts are nested, and tables can be made in their final
 * size at once.
 *
 * What a byte of input can cost at worst, in LuaJIT with 64-bit pointers: a
 * table is 64 bytes, an element of an array 8, a node of a map 24, and the
 * nodes of a map are rounded up to a power of two. An array of one takes one
 * byte of input and 64 + 2 * 8 = 80 bytes of memory (index 0 has its place
 * too); an empty table within an array takes one byte and 64 + 8; a pair takes
 * two bytes and at most 2 * 24, with an empty table as its value 56 per byte.
 * A string of one byte (two bytes of input) takes 32, a 64-bit integer (nine
 * bytes) 24 and its share of the call that makes it. So: at most 81 bytes of
 * memory per byte of input, and a little for the state of the decoder.
 *
 * Time: LuaJIT's hash of a number is no secret, so that numbers can be chosen
 * which all fall into one chain (32,768 such keys, 300 KB, take 0.8 s, twice
 * as many four times that). Strings are hashed with a secret. A map that
 * takes far longer than its bytes explain is refused: every METER_KEYS number
 * keys the processor time spent is held against a budget.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <lauxlib.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "bind/codec.h"

enum {
  STACK_PER_TABLE = 4,    /* class, table, key, value */
  STACK_EXTRA = 16,       /* for helpers on top */
  METER_KEYS = 512,       /* number keys between two looks at the clock */
  METER_BASE_MS = 50,     /* processor time that is always granted */
  METER_NS_PER_BYTE = 250 /* and more of it; usual is 5 to 20 */
};

int codec_fail(struct codec_reader *r, const char *error) {
  r->error = error;
  return -1;
}

int codec_need(struct codec_reader *r, size_t bytes) {
  size_t left = (size_t)(r->end - r->at);
  return bytes > left || r->owed > left - bytes ? codec_fail(r, "truncated")
                                                : 0;
}

/* A value begins: it is owed no more. */
int codec_begin(struct codec_reader *r) {
  assert(r->owed > 0);
  r->owed--;
  return codec_need(r, 1);
}

int codec_read_string(struct codec_reader *r, size_t length) {
  if (codec_need(r, length) < 0)
    return -1;
  lua_pushlstring(r->L, r->at, length);
  r->at += length;
  return 0;
}

static int enter(struct codec_reader *r, size_t count, size_t values_each) {
  size_t left = (size_t)(r->end - r->at);
  assert(r->owed <= left);
  if (r->depth == CODEC_DEPTH_MAX)
    return codec_fail(r, CODEC_TOO_DEEP);
  if (count > CODEC_COUNT_MAX || count * values_each > left - r->owed)
    return codec_fail(r, "a count beyond the bytes that are there");
  r->owed += count * values_each;
  r->depth++;
  return 0;
}

int codec_read_array(struct codec_reader *r, size_t count) {
  lua_State *L = r->L;
  if (enter(r, count, 1) < 0)
    return -1;
  lua_createtable(L, (int)count, 0);
  for (size_t i = 1; i <= count; i++) {
    if (r->value(r) < 0)
      return -1;
    lua_rawseti(L, -2, (int)i);
  }
  r->depth--;
  return 0;
}

static uint64_t processor_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Another number key was set. */
static int meter(struct codec_reader *r) {
  if (r->meter++ % METER_KEYS != 0)
    return 0;
  if (r->meter == 1) {
    r->started_ns = processor_ns();
    return 0;
  }
  uint64_t budget_ns = METER_BASE_MS * 1000000ull +
                       (uint64_t)(r->end - r->start) * METER_NS_PER_BYTE;
  return processor_ns() - r->started_ns > budget_ns
             ? codec_fail(r, "a map whose keys collide")
             : 0;
}

static int check_key(struct codec_reader *r) {
  lua_State *L = r->L;
  switch (lua_type(L, -1)) {
  case LUA_TSTRING:
  case LUA_TBOOLEAN:
    return 0;
  case LUA_TNUMBER:
    if (lua_tonumber(L, -1) != lua_tonumber(L, -1))
      return codec_fail(r, "a key that is NaN");
    return meter(r);
  default:
    return codec_fail(r, "a key that is no string, number or boolean");
  }
}

int codec_read_map(struct codec_reader *r, size_t count) {
  lua_State *L = r->L;
  if (enter(r, count, 2) < 0)
    return -1;
  lua_createtable(L, 0, (int)count);
  for (size_t i = 0; i < count; i++) {
    if (r->value(r) < 0 || check_key(r) < 0 || r->value(r) < 0)
      return -1;
    lua_rawset(L, -3);
  }
  r->depth--;
  return 0;
}

int codec_read(struct codec_reader *r, lua_State *L, const char *bytes,
               size_t length) {
  luaL_checkstack(L, CODEC_DEPTH_MAX * STACK_PER_TABLE + STACK_EXTRA,
                  "serializer");
  r->L = L;
  r->start = r->at = bytes;
  r->end = bytes + length;
  r->error = NULL;
  r->owed = 1;
  r->depth = 0;
  r->meter = 0;
  int top = lua_gettop(L);
  int rc = r->value(r);
  if (rc == 0 && r->at != r->end)
    rc = codec_fail(r, "bytes after the value");
  if (rc == 0)
    return 1;
  lua_settop(L, top);
  char where[32];
  snprintf(where, sizeof where, "%zu", (size_t)(r->at - r->start));
  lua_pushnil(L);
  lua_pushfstring(L, "%s at byte %s", r->error, where);
  return 2;
}
