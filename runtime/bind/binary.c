/* Values as bytes for places that others can write to: "moonstash.binary".
 *
 * A tag byte, and what belongs to it, little-endian:
 *
 *   00..7f  the integer 0..127         c5  string, length u32
 *   80..9f  string of 0..31 bytes      c6  array, count u32
 *   a0..af  array of 0..15 elements    c7  map, count u32
 *   b0..bf  map of 0..15 pairs         c8  integer, i8
 *   c0      null                       c9  integer, i16
 *   c1, c2  false, true                ca  integer, i32
 *   c3      double                     cb  integer, i64
 *   c4      string, length u8          cc  integer, u64
 *   cd      class: name (length u8, at least 1), then its table
 *   ce      array with the array metatable, count u32
 *
 * An empty array (a0) has the array metatable too: nothing else tells it from
 * an empty map. A map is its pairs, key then value, in any order.
 *
 * The invariant of reading is codec_read.c's: no count is believed that the
 * bytes left cannot bear, which also bounds memory (argued there). Nothing but
 * plain data can come out: no function, no pointer but NULL, and a metatable
 * only by the name of a class that this program has registered.
 *
 * seal and open put bytes into the envelope of envelope.h, pack and unpack a
 * whole value. json.c hands its parser's events over in this format as well.
 */
#include <assert.h>
#include <lauxlib.h>
#include <string.h>

#include "bind/bind.h"
#include "bind/bytes.h"
#include "bind/codec.h"
#include "bind/codec_binary.h"
#include "bind/envelope.h"

static void put_tag(struct codec_writer *w, unsigned tag) {
  *codec_reserve(&w->out, 1) = (char)tag;
  w->out.length++;
}

/* A tag and an integer of `size` bytes. */
static void put(struct codec_writer *w, unsigned tag, uint64_t value,
                int size) {
  char *at = codec_reserve(&w->out, 1 + sizeof value);
  at[0] = (char)tag;
  bytes_put(at + 1, value, size);
  w->out.length += 1 + (size_t)size;
}

/* ---- writing ------------------------------------------------------------- */

static void write_null(struct codec_writer *w) {
  put_tag(w, BINARY_NULL);
}

static void write_boolean(struct codec_writer *w, int value) {
  put_tag(w, value ? BINARY_TRUE : BINARY_FALSE);
}

static void write_int64(struct codec_writer *w, int64_t value) {
  if (value >= 0 && value <= BINARY_SMALL_MAX)
    put_tag(w, (unsigned)value);
  else if (value == (int8_t)value)
    put(w, BINARY_INT8, (uint64_t)value, 1);
  else if (value == (int16_t)value)
    put(w, BINARY_INT16, (uint64_t)value, 2);
  else if (value == (int32_t)value)
    put(w, BINARY_INT32, (uint64_t)value, 4);
  else
    put(w, BINARY_INT64, (uint64_t)value, 8);
}

static void write_uint64(struct codec_writer *w, uint64_t value) {
  if (value <= 1ULL << 53) /* comes back as a number */
    write_int64(w, (int64_t)value);
  else
    put(w, BINARY_UINT64, value, 8);
}

static void write_number(struct codec_writer *w, double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  put(w, BINARY_DOUBLE, bits, 8);
}

static void write_string(struct codec_writer *w, const char *text,
                         size_t length) {
  assert(length <= UINT32_MAX);
  if (length < BINARY_FEW_BYTES)
    put_tag(w, BINARY_STRING | (unsigned)length);
  else if (length <= UINT8_MAX)
    put(w, BINARY_STRING8, length, 1);
  else
    put(w, BINARY_STRING32, length, 4);
  codec_append(&w->out, text, length);
}

static void write_class(struct codec_writer *w, const char *name,
                        size_t length) {
  if (length == 0 || length > UINT8_MAX)
    codec_refuse(w, "of a class whose name is not 1 to 255 bytes long");
  put(w, BINARY_CLASS, length, 1);
  codec_append(&w->out, name, length);
}

static void write_open(struct codec_writer *w, int kind, size_t count) {
  if (kind == CODEC_MARKED && count > 0)
    put(w, BINARY_MARKED, count, 4);
  else if (count < BINARY_FEW_ELEMENTS)
    put_tag(w,
            (kind == CODEC_MAP ? BINARY_MAP : BINARY_ARRAY) | (unsigned)count);
  else
    put(w, kind == CODEC_MAP ? BINARY_MAP32 : BINARY_ARRAY32, count, 4);
}

static const struct codec_format format = {
    .name = "native",
    .any_key = 1,
    .null = write_null,
    .boolean = write_boolean,
    .int64 = write_int64,
    .uint64 = write_uint64,
    .number = write_number,
    .string = write_string,
    .class_name = write_class,
    .open = write_open,
};

/* ---- reading ------------------------------------------------------------- */

/* An unsigned integer of `size` bytes behind the tag. */
static int get(struct codec_reader *r, int size, uint64_t *value) {
  if (codec_need(r, (size_t)size) < 0)
    return -1;
  *value = bytes_get(r->at, size);
  r->at += size;
  return 0;
}

static int read_int(struct codec_reader *r, int size, int is_unsigned) {
  uint64_t bits;
  if (get(r, size, &bits) < 0)
    return -1;
  int shift = 64 - 8 * size; /* the sign goes to the top and comes back */
  int rc = is_unsigned
               ? codec_push_uint64(r->L, bits)
               : codec_push_int64(r->L, (int64_t)(bits << shift) >> shift);
  return rc < 0 ? codec_fail(r, "a 64-bit integer, which needs FFI") : 0;
}

static int read_double(struct codec_reader *r) {
  uint64_t bits;
  double value;
  if (get(r, sizeof bits, &bits) < 0)
    return -1;
  memcpy(&value, &bits, sizeof value);
  lua_pushnumber(r->L, value); /* makes any NaN the plain one */
  return 0;
}

static int read_array(struct codec_reader *r, uint64_t count, int marked) {
  if (codec_read_array(r, count) < 0)
    return -1;
  if (marked || count == 0)
    codec_mark_array(r->L);
  return 0;
}

/* A table of a registered class, by name. */
static int read_class(struct codec_reader *r) {
  lua_State *L = r->L;
  uint64_t length;
  if (get(r, 1, &length) < 0 || codec_need(r, length + 1) < 0)
    return -1;
  if (length == 0 || r->classes == 0)
    return codec_fail(r, "a class, where there is none");
  if (codec_read_string(r, length) < 0)
    return -1;
  lua_rawget(L, r->classes);
  if (!lua_istable(L, -1))
    return codec_fail(r, "a class that is not registered");
  unsigned tag = (unsigned char)*r->at;
  if (!BINARY_IS_TABLE(tag))
    return codec_fail(r, "a class whose value is no table");
  r->owed++; /* the table is a part of this value */
  if (binary_read_value(r) < 0)
    return -1;
  lua_insert(L, -2);
  lua_setmetatable(L, -2);
  return 0;
}

/* Tags whose length or count is in their low bits. */
static int read_short(struct codec_reader *r, unsigned tag) {
  if (tag <= BINARY_SMALL_MAX) {
    lua_pushinteger(r->L, (lua_Integer)tag);
    return 0;
  }
  if (tag < BINARY_ARRAY)
    return codec_read_string(r, tag & (BINARY_FEW_BYTES - 1));
  if (tag < BINARY_MAP)
    return read_array(r, tag & (BINARY_FEW_ELEMENTS - 1), 0);
  return codec_read_map(r, tag & (BINARY_FEW_ELEMENTS - 1));
}

/* Tags with a length or count behind them. */
static int read_counted(struct codec_reader *r, unsigned tag) {
  uint64_t count;
  if (get(r, tag == BINARY_STRING8 ? 1 : 4, &count) < 0)
    return -1;
  switch (tag) {
  case BINARY_STRING8:
  case BINARY_STRING32:
    return codec_read_string(r, count);
  case BINARY_MAP32:
    return codec_read_map(r, count);
  default:
    return read_array(r, count, tag == BINARY_MARKED);
  }
}

int binary_read_value(struct codec_reader *r) {
  if (codec_begin(r) < 0)
    return -1;
  unsigned tag = (unsigned char)*r->at++;
  if (tag < BINARY_NULL)
    return read_short(r, tag);
  switch (tag) {
  case BINARY_NULL:
    lua_pushlightuserdata(r->L, NULL);
    return 0;
  case BINARY_FALSE:
  case BINARY_TRUE:
    lua_pushboolean(r->L, tag == BINARY_TRUE);
    return 0;
  case BINARY_DOUBLE:
    return read_double(r);
  case BINARY_INT8:
  case BINARY_INT16:
  case BINARY_INT32:
  case BINARY_INT64:
    return read_int(r, 1 << (tag - BINARY_INT8), 0);
  case BINARY_UINT64:
    return read_int(r, 8, 1);
  case BINARY_CLASS:
    return read_class(r);
  case BINARY_STRING8:
  case BINARY_STRING32:
  case BINARY_ARRAY32:
  case BINARY_MAP32:
  case BINARY_MARKED:
    return read_counted(r, tag);
  default:
    return codec_fail(r, "an unknown tag");
  }
}

/* ---- the module's functions ---------------------------------------------- */

/* The optional table of classes at index; 0 when there is none. */
static int check_classes(lua_State *L, int index) {
  if (lua_isnoneornil(L, index))
    return 0;
  luaL_checktype(L, index, LUA_TTABLE);
  return index;
}

/* encode(value[, {[metatable] = name}[, root]]) -> bytes */
static int l_encode(lua_State *L) {
  struct codec_writer w;
  luaL_checkany(L, 1);
  w.format = &format;
  w.classes = check_classes(L, 2);
  return codec_write_string(&w, L, 1, luaL_optstring(L, 3, NULL));
}

/* decode(bytes[, {name = metatable}]) -> value; or nil, message */
static int l_decode(lua_State *L) {
  struct codec_reader r;
  size_t length;
  const char *bytes = luaL_checklstring(L, 1, &length);
  r.classes = check_classes(L, 2);
  r.value = binary_read_value;
  return codec_read(&r, L, bytes, length);
}

static const char *const stamp_names[ENVELOPE_STAMPS] = {"fresh", "stale",
                                                         "error", "written"};

/* Takes the stamps out of the optional table at index. */
static void check_stamps(lua_State *L, int index, struct envelope *e) {
  e->flags = 0;
  if (lua_isnoneornil(L, index))
    return;
  luaL_checktype(L, index, LUA_TTABLE);
  for (int i = 0; i < ENVELOPE_STAMPS; i++) {
    lua_getfield(L, index, stamp_names[i]);
    double ms = lua_tonumber(L, -1);
    if (!lua_isnil(L, -1)) {
      if (lua_type(L, -1) != LUA_TNUMBER || !(ms >= 0 && ms <= CODEC_EXACT))
        luaL_error(L, "stamps: %s must be milliseconds since 1970",
                   stamp_names[i]);
      e->flags |= 1u << i;
      e->stamps[i] = (uint64_t)ms;
    }
    lua_pop(L, 1);
  }
}

/* The hash of the key at index. */
static uint64_t check_key(lua_State *L, int index) {
  size_t length;
  const char *key = luaL_checklstring(L, index, &length);
  return envelope_key("", 0, key, length);
}

static int push_sealed(lua_State *L, const struct envelope *e, uint64_t key) {
  struct codec_buffer out;
  codec_buffer_init(&out, L);
  size_t size = envelope_size(e);
  envelope_seal(e, key, codec_reserve(&out, size));
  lua_pushlstring(L, out.data, size);
  return 1;
}

/* Pushes the stamps: a number or nil for each. */
static int push_stamps(lua_State *L, const struct envelope *e) {
  for (int i = 0; i < ENVELOPE_STAMPS; i++)
    if (e->flags & 1u << i)
      lua_pushnumber(L, (double)e->stamps[i]);
    else
      lua_pushnil(L);
  return ENVELOPE_STAMPS;
}

static int decode_error(lua_State *L, const char *message) {
  lua_pushnil(L);
  lua_pushliteral(L, "decode");
  lua_pushstring(L, message);
  return 3;
}

/* seal(type, bytes, key[, {fresh =, stale =, error =, written = ms}]) -> bytes
 */
static int l_seal(lua_State *L) {
  struct envelope e;
  lua_Integer type = luaL_checkinteger(L, 1);
  e.payload = luaL_checklstring(L, 2, &e.length);
  uint64_t key = check_key(L, 3);
  luaL_argcheck(L, type >= ENVELOPE_RAW && type <= ENVELOPE_RESULTS, 1,
                "RAW, VALUE or RESULTS expected");
  e.type = (unsigned)type;
  check_stamps(L, 4, &e);
  return push_sealed(L, &e, key);
}

/* open(bytes, key) -> type, bytes, fresh, stale, error, written; or nil,
 * "decode", message */
static int l_open(lua_State *L) {
  struct envelope e;
  size_t length;
  const char *bytes = luaL_checklstring(L, 1, &length);
  uint64_t key = check_key(L, 2);
  const char *error = envelope_open(&e, bytes, length, key);
  if (error != NULL)
    return decode_error(L, error);
  lua_pushinteger(L, (lua_Integer)e.type);
  lua_pushlstring(L, e.payload, e.length);
  return 2 + push_stamps(L, &e);
}

/* Is the value at index an integer that travels without an envelope? */
static int is_decimal(lua_State *L, int index, int64_t *value) {
  if (lua_type(L, index) != LUA_TNUMBER ||
      !codec_is_integer(lua_tonumber(L, index)))
    return 0;
  *value = (int64_t)lua_tonumber(L, index);
  return 1;
}

/* pack(value, key[, {[metatable] = name}[, stamps]]) -> bytes */
static int l_pack(lua_State *L) {
  struct envelope e;
  struct codec_writer w;
  int64_t integer;
  char decimal[ENVELOPE_DECIMAL_MAX + 1];
  luaL_checkany(L, 1);
  uint64_t key = check_key(L, 2);
  w.format = &format;
  w.classes = check_classes(L, 3);
  check_stamps(L, 4, &e);
  if (e.flags == 0 && is_decimal(L, 1, &integer)) {
    lua_pushlstring(L, decimal, envelope_write_decimal(integer, decimal));
    return 1;
  }
  if (lua_type(L, 1) == LUA_TSTRING) {
    e.type = ENVELOPE_RAW;
    e.payload = lua_tolstring(L, 1, &e.length);
  } else {
    codec_write(&w, L, 1, NULL);
    e.type = ENVELOPE_VALUE;
    e.payload = w.out.data;
    e.length = w.out.length;
  }
  return push_sealed(L, &e, key);
}

/* Pushes the payload's value: 1, or 3 with nil, "decode", message. */
static int push_payload(lua_State *L, const struct envelope *e, int classes) {
  struct codec_reader r;
  if (e->type == ENVELOPE_RAW) {
    lua_pushlstring(L, e->payload, e->length);
    return 1;
  }
  r.value = binary_read_value;
  r.classes = classes;
  if (codec_read(&r, L, e->payload, e->length) == 1)
    return 1;
  return decode_error(L, lua_tostring(L, -1));
}

/* unpack(bytes, key[, {name = metatable}]) -> value, type, fresh, stale,
 * error; or nil, "decode", message */
static int l_unpack(lua_State *L) {
  struct envelope e;
  size_t length;
  int64_t integer;
  const char *bytes = luaL_checklstring(L, 1, &length);
  uint64_t key = check_key(L, 2);
  int classes = check_classes(L, 3);
  if (envelope_read_decimal(bytes, length, &integer)) {
    lua_pushnumber(L, (double)integer);
    lua_pushinteger(L, ENVELOPE_VALUE);
    return 2;
  }
  const char *error = envelope_open(&e, bytes, length, key);
  if (error != NULL)
    return decode_error(L, error);
  int n = push_payload(L, &e, classes);
  if (n > 1)
    return n;
  lua_pushinteger(L, (lua_Integer)e.type);
  return 2 + push_stamps(L, &e);
}

static void set_type(lua_State *L, const char *name, int type) {
  lua_pushinteger(L, type);
  lua_setfield(L, -2, name);
}

int bind_open_binary(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"encode", l_encode}, {"decode", l_decode}, {"seal", l_seal},
      {"open", l_open},     {"pack", l_pack},     {"unpack", l_unpack},
      {NULL, NULL},
  };
  codec_open(L, functions);
  set_type(L, "RAW", ENVELOPE_RAW);
  set_type(L, "VALUE", ENVELOPE_VALUE);
  set_type(L, "RESULTS", ENVELOPE_RESULTS);
  return 1;
}
