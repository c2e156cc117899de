/* What the serializers share below their walks: bytes that grow, UTF-8,
 * 64-bit integers, the array metatable, and the module moonstash.codec that
 * shows it to Lua.
 */
#include <assert.h>
#include <lauxlib.h>
#include <string.h>

#include "bind/bind.h"
#include "bind/codec.h"

#define ARRAY_MT "moonstash.array" /* in the registry, one per state */

/* ---- bytes that grow ----------------------------------------------------- */

void codec_buffer_init(struct codec_buffer *b, lua_State *L) {
  b->L = L;
  b->data = b->first;
  b->length = 0;
  b->capacity = sizeof b->first;
  lua_pushnil(L);
  b->slot = lua_gettop(L);
}

static void grow(struct codec_buffer *b, size_t n) {
  size_t needed = b->length + n, capacity = b->capacity * 2;
  if (needed < n)
    luaL_error(b->L, "not enough memory");
  if (capacity < needed)
    capacity = needed;
  luaL_checkstack(b->L, 1, "serializer");
  char *data = lua_newuserdata(b->L, capacity);
  memcpy(data, b->data, b->length);
  lua_replace(b->L, b->slot);
  b->data = data;
  b->capacity = capacity;
}

char *codec_reserve(struct codec_buffer *b, size_t n) {
  assert(b->length <= b->capacity);
  if (n > b->capacity - b->length)
    grow(b, n);
  return b->data + b->length;
}

void codec_append(struct codec_buffer *b, const void *bytes, size_t n) {
  memcpy(codec_reserve(b, n), bytes, n);
  b->length += n;
}

/* ---- UTF-8 --------------------------------------------------------------- */

/* Length of the sequence at s, at most `left` bytes; 0 when it is none.
 * The second byte's range shuts out overlong forms, surrogates and what lies
 * beyond U+10FFFF (Unicode 15, table 3-7). */
static size_t sequence(const unsigned char *s, size_t left) {
  unsigned char low = 0x80, high = 0xbf;
  size_t n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
  if (s[0] < 0xc2 || s[0] > 0xf4 || left < n)
    return 0;
  if (s[0] == 0xe0)
    low = 0xa0;
  else if (s[0] == 0xed)
    high = 0x9f;
  else if (s[0] == 0xf0)
    low = 0x90;
  else if (s[0] == 0xf4)
    high = 0x8f;
  if (s[1] < low || s[1] > high)
    return 0;
  for (size_t i = 2; i < n; i++)
    if ((s[i] & 0xc0) != 0x80)
      return 0;
  return n;
}

int codec_is_utf8(const char *text, size_t length) {
  const unsigned char *s = (const unsigned char *)text, *end = s + length;
  while (s < end) {
    uint64_t eight;
    if (end - s >= 8 &&
        (memcpy(&eight, s, 8), (eight & 0x8080808080808080u) == 0)) {
      s += 8;
    } else if (*s < 0x80) {
      s++;
    } else {
      size_t n = sequence(s, (size_t)(end - s));
      if (n == 0)
        return 0;
      s += n;
    }
  }
  return 1;
}

/* ---- integers ------------------------------------------------------------ */

int codec_is_integer(double number) {
  if (!(number >= -CODEC_EXACT && number <= CODEC_EXACT))
    return 0; /* NaN too */
  int64_t integer = (int64_t)number;
  uint64_t bits;
  memcpy(&bits, &number, sizeof bits);
  return (double)integer == number && (integer != 0 || bits == 0);
}

static int push_cdata(lua_State *L, double high, uint32_t low, int is_uint) {
  lua_pushvalue(L, lua_upvalueindex(CODEC_INT64_MAKE));
  lua_pushnumber(L, high);
  lua_pushnumber(L, low);
  lua_pushboolean(L, is_uint);
  lua_call(L, 3, 1);
  if (!lua_isnil(L, -1))
    return 0;
  lua_pop(L, 1);
  return -1;
}

int codec_push_int64(lua_State *L, int64_t value) {
  if (value >= -(1LL << 53) && value <= (1LL << 53)) {
    lua_pushnumber(L, (double)value);
    return 0;
  }
  uint64_t bits = (uint64_t)value;
  return push_cdata(L, (double)(int32_t)(uint32_t)(bits >> 32), (uint32_t)bits,
                    0);
}

int codec_push_uint64(lua_State *L, uint64_t value) {
  if (value <= 1ULL << 53) {
    lua_pushnumber(L, (double)value);
    return 0;
  }
  return push_cdata(L, (double)(value >> 32), (uint32_t)value, 1);
}

/* ---- modules ------------------------------------------------------------- */

void codec_mark_array(lua_State *L) {
  lua_pushvalue(L, lua_upvalueindex(CODEC_ARRAY_MT));
  lua_setmetatable(L, -2);
}

static void push_array_mt(lua_State *L) {
  if (luaL_newmetatable(L, ARRAY_MT)) {
    lua_pushliteral(L, "cache.array");
    lua_setfield(L, -2, "__name");
  }
}

void codec_open(lua_State *L, const luaL_Reg *functions) {
  lua_newtable(L);
  lua_getglobal(L, "require");
  lua_pushliteral(L, "moonstash.int64");
  lua_call(L, 1, 1);
  int int64 = lua_gettop(L);
  for (const luaL_Reg *f = functions; f->name != NULL; f++) {
    push_array_mt(L);
    lua_getfield(L, int64, "kind");
    lua_getfield(L, int64, "make");
    lua_pushcclosure(L, f->func, CODEC_INT64_MAKE);
    lua_setfield(L, int64 - 1, f->name);
  }
  lua_pop(L, 1);
}

int bind_open_codec(lua_State *L) {
  lua_newtable(L);
  push_array_mt(L);
  lua_setfield(L, -2, "array_mt");
  lua_pushlightuserdata(L, NULL);
  lua_setfield(L, -2, "null");
  lua_pushinteger(L, CODEC_DEPTH_MAX);
  lua_setfield(L, -2, "depth_max");
  return 1;
}
