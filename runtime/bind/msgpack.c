/* MessagePack: "moonstash.msgpack", for sharing values with other languages.
 *
 * On libmpack's tokenizer, which neither allocates nor calls back: mpack_write
 * and mpack_read turn one token at a time into bytes and back.
 *
 * Integers take the shortest form, other numbers are float64 (float32 is read
 * too). A Lua string is str when it is UTF-8, as every reader expects of str,
 * and bin otherwise; both come back as a string. Keys are strings, booleans
 * and numbers. Extension types are a decode error: to drop what they mean
 * would be to make up a value. Counts are believed as codec_read.c says.
 */
#include <assert.h>
#include <lauxlib.h>
#include <string.h>
#include <mpack.h>

#include "bind/bind.h"
#include "bind/codec.h"

/* ---- writing ------------------------------------------------------------- */

enum {
  FIXED_MIN = -32, /* from here up to -1 a single byte holds the integer */
  INT8 = 0xd0      /* int16, int32, int64 follow */
};

static void write_token(struct codec_writer *w, mpack_token_t token) {
  mpack_tokbuf_t state;
  char *at = codec_reserve(&w->out, MPACK_MAX_TOKEN_LEN);
  size_t left = MPACK_MAX_TOKEN_LEN;
  mpack_tokbuf_init(&state);
  int status = mpack_write(&state, &at, &left, &token);
  assert(status == MPACK_OK);
  (void)status;
  w->out.length += MPACK_MAX_TOKEN_LEN - left;
}

static void write_null(struct codec_writer *w) {
  write_token(w, mpack_pack_nil());
}

static void write_boolean(struct codec_writer *w, int value) {
  write_token(w, mpack_pack_boolean((unsigned)value));
}

static void write_uint64(struct codec_writer *w, uint64_t value) {
  write_token(w, mpack_pack_uint(value));
}

/* Negative integers are written here: libmpack 1.0.5 takes -129 for int8,
 * -32769 for int16 and some below -2^32 for int32. */
static void write_int64(struct codec_writer *w, int64_t value) {
  if (value >= 0) {
    write_uint64(w, (uint64_t)value);
    return;
  }
  int size = value == (int8_t)value    ? 1
             : value == (int16_t)value ? 2
             : value == (int32_t)value ? 4
                                       : 8;
  char *at = codec_reserve(&w->out, MPACK_MAX_TOKEN_LEN);
  if (value < FIXED_MIN) {
    *at++ = (char)(INT8 + __builtin_ctz((unsigned)size));
    w->out.length++;
  }
  for (int i = 0; i < size; i++) /* big-endian */
    at[i] = (char)((uint64_t)value >> 8 * (size - 1 - i));
  w->out.length += (size_t)size;
}

static void write_number(struct codec_writer *w, double value) {
  mpack_token_t token = {.type = MPACK_TOKEN_FLOAT, .length = sizeof value};
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits); /* mpack_pack_float would shorten it */
  token.data.value.lo = (mpack_uint32_t)bits;
  token.data.value.hi = (mpack_uint32_t)(bits >> 32);
  write_token(w, token);
}

static void write_string(struct codec_writer *w, const char *text,
                         size_t length) {
  mpack_uint32_t size = (mpack_uint32_t)length;
  assert(size == length); /* LuaJIT's strings are below 2 GiB */
  write_token(w, codec_is_utf8(text, length) ? mpack_pack_str(size)
                                             : mpack_pack_bin(size));
  codec_append(&w->out, text, length);
}

static void write_open(struct codec_writer *w, int kind, size_t count) {
  mpack_uint32_t size = (mpack_uint32_t)count;
  write_token(w, kind == CODEC_MAP ? mpack_pack_map(size)
                                   : mpack_pack_array(size));
}

static const struct codec_format format = {
    .name = "msgpack",
    .any_key = 1,
    .null = write_null,
    .boolean = write_boolean,
    .int64 = write_int64,
    .uint64 = write_uint64,
    .number = write_number,
    .string = write_string,
    .open = write_open,
};

/* ---- reading ------------------------------------------------------------- */

/* Reads the token at r->at, which may be cut off. */
static int read_token(struct codec_reader *r, mpack_token_t *token) {
  mpack_tokbuf_t state;
  size_t left = (size_t)(r->end - r->at);
  mpack_tokbuf_init(&state);
  switch (mpack_read(&state, &r->at, &left, token)) {
  case MPACK_OK:
    return codec_need(r, 0);
  case MPACK_EOF:
    return codec_fail(r, "truncated");
  default:
    return codec_fail(r, "an unknown tag");
  }
}

static int read_integer(struct codec_reader *r, const mpack_token_t *token) {
  int rc;
  if (token->type == MPACK_TOKEN_SINT) {
    rc = codec_push_int64(r->L, mpack_unpack_sint(*token));
  } else {
    uint64_t value = mpack_unpack_uint(*token);
    rc = value <= INT64_MAX ? codec_push_int64(r->L, (int64_t)value)
                            : codec_push_uint64(r->L, value);
  }
  return rc < 0 ? codec_fail(r, "a 64-bit integer, which needs FFI") : 0;
}

static int read_value(struct codec_reader *r) {
  mpack_token_t token;
  if (codec_begin(r) < 0 || read_token(r, &token) < 0)
    return -1;
  switch (token.type) {
  case MPACK_TOKEN_NIL:
    lua_pushlightuserdata(r->L, NULL);
    return 0;
  case MPACK_TOKEN_BOOLEAN:
    lua_pushboolean(r->L, (int)mpack_unpack_boolean(token));
    return 0;
  case MPACK_TOKEN_UINT:
  case MPACK_TOKEN_SINT:
    return read_integer(r, &token);
  case MPACK_TOKEN_FLOAT:
    lua_pushnumber(r->L,
                   mpack_unpack_float(token)); /* any NaN: the plain one */
    return 0;
  case MPACK_TOKEN_STR:
  case MPACK_TOKEN_BIN:
    return codec_read_string(r, token.length);
  case MPACK_TOKEN_ARRAY:
    if (codec_read_array(r, token.length) < 0)
      return -1;
    if (token.length == 0)
      codec_mark_array(r->L);
    return 0;
  case MPACK_TOKEN_MAP:
    return codec_read_map(r, token.length);
  default:
    return codec_fail(r, "an extension type");
  }
}

/* ---- the module ---------------------------------------------------------- */

/* encode(value[, root]) -> bytes */
static int l_encode(lua_State *L) {
  struct codec_writer w;
  luaL_checkany(L, 1);
  w.format = &format;
  w.classes = 0;
  return codec_write_string(&w, L, 1, luaL_optstring(L, 2, NULL));
}

/* decode(bytes) -> value; or nil, message */
static int l_decode(lua_State *L) {
  struct codec_reader r;
  size_t length;
  const char *bytes = luaL_checklstring(L, 1, &length);
  r.classes = 0;
  r.value = read_value;
  return codec_read(&r, L, bytes, length);
}

int bind_open_msgpack(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"encode", l_encode}, {"decode", l_decode}, {NULL, NULL}};
  codec_open(L, functions);
  return 1;
}
