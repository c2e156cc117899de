/* JSON (RFC 8259): "moonstash.json", for sharing values with other languages.
 *
 * Numbers: an integer is written as one, up to the ends of int64_t and
 * uint64_t; any other number as the shortest text that reads back the same and
 * does not look like an integer (2^60 as a double is 1.152921504606847e+18,
 * -0 is -0.0), so that every value comes back as what it was. Reading, an
 * integer beyond 64 bits becomes the nearest double, as it does in JavaScript;
 * one beyond a double's range is an error.
 *
 * Decoding goes in three passes, each linear:
 *   1. scan_text: is it UTF-8, are the surrogates of its escapes paired
 *      (yajl takes both as they come), how long is its longest token?
 *   2. yajl parses it. Its callbacks append to the tape, the value in the
 *      format of binary.c, with counts filled in when containers end.
 *   3. binary_read_value builds the value from the tape, which knows all
 *      counts, so that tables are made in their final size.
 * The invariant: nothing that can raise runs inside yajl, and yajl allocates
 * from an arena that was made large enough before, so that it never fails to
 * (it would not notice) and leaves nothing to free. Arena and tape live on the
 * C stack or in userdata.
 *
 * Memory per byte of input: tape 3, arena 8 (only for a string with escapes,
 * of that string), and the value as codec_read.c counts it: an array of one is
 * two bytes here, so at most 80 / 2, and 51 in all.
 */
#include <assert.h>
#include <lauxlib.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <yajl/yajl_parse.h>

#include "bind/bind.h"
#include "bind/bytes.h"
#include "bind/codec.h"
#include "bind/codec_binary.h"

/* ---- writing ------------------------------------------------------------- */

enum { INTEGER_MAX = 21 /* "-9223372036854775808" and its end */ };

static void append_uint64(struct codec_writer *w, uint64_t value, int minus) {
  char text[INTEGER_MAX], *at = text + sizeof text;
  do
    *--at = (char)('0' + value % 10);
  while ((value /= 10) != 0);
  if (minus)
    *--at = '-';
  codec_append(&w->out, at, (size_t)(text + sizeof text - at));
}

static void write_null(struct codec_writer *w) {
  codec_append(&w->out, "null", 4);
}

static void write_boolean(struct codec_writer *w, int value) {
  codec_append(&w->out, value ? "true" : "false", value ? 4 : 5);
}

static void write_int64(struct codec_writer *w, int64_t value) {
  append_uint64(w, value < 0 ? -(uint64_t)value : (uint64_t)value, value < 0);
}

static void write_uint64(struct codec_writer *w, uint64_t value) {
  append_uint64(w, value, 0);
}

static void write_number(struct codec_writer *w, double value) {
  char *at = codec_reserve(&w->out, NUMBER_SHORT_MAX);
  if (!isfinite(value))
    codec_refuse(w, isnan(value) ? "NaN" : "infinite");
  w->out.length += (size_t)number_format(at, value);
}

static void write_escape(struct codec_buffer *b, unsigned char c) {
  static const char plain[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
  const char *found = c != '\0' ? strchr(plain, c) : NULL;
  char *at = codec_reserve(b, sizeof "\\u0000");
  if (found != NULL)
    b->length += (size_t)sprintf(at, "\\%c", letters[found - plain]);
  else
    b->length += (size_t)sprintf(at, "\\u%04x", c);
}

static void write_string(struct codec_writer *w, const char *text,
                         size_t length) {
  struct codec_buffer *b = &w->out;
  const char *end = text + length, *plain = text;
  if (!codec_is_utf8(text, length))
    codec_refuse(w, "a string that is not UTF-8");
  codec_append(b, "\"", 1);
  for (; text < end; text++) {
    unsigned char c = (unsigned char)*text;
    if (c >= 0x20 && c != '"' && c != '\\')
      continue;
    codec_append(b, plain, (size_t)(text - plain));
    write_escape(b, c);
    plain = text + 1;
  }
  codec_append(b, plain, (size_t)(end - plain));
  codec_append(b, "\"", 1);
}

static void write_open(struct codec_writer *w, int kind, size_t count) {
  (void)count;
  codec_append(&w->out, kind == CODEC_MAP ? "{" : "[", 1);
}

static void write_close(struct codec_writer *w, int kind) {
  codec_append(&w->out, kind == CODEC_MAP ? "}" : "]", 1);
}

static void write_before(struct codec_writer *w, int role, int i) {
  if (role == CODEC_VALUE)
    codec_append(&w->out, ":", 1);
  else if (i > 1)
    codec_append(&w->out, ",", 1);
}

static const struct codec_format format = {
    .name = "json",
    .null = write_null,
    .boolean = write_boolean,
    .int64 = write_int64,
    .uint64 = write_uint64,
    .number = write_number,
    .string = write_string,
    .open = write_open,
    .close = write_close,
    .before = write_before,
};

/* ---- pass 1: the text ---------------------------------------------------- */

struct text {
  const char *start, *at, *end;
  size_t longest; /* token that yajl will copy: see scan_text */
};

static int hex_digit(char c) {
  const char *digits = "0123456789abcdef", *found;
  found = c != '\0' ? strchr(digits, c | 0x20) : NULL;
  return found != NULL ? (int)(found - digits) : -1;
}

/* The code unit of the escape \uXXXX at `at`; -1 when there is none. */
static int code_unit(const char *at, const char *end) {
  int unit = 0;
  if (end - at < 6 || at[0] != '\\' || at[1] != 'u')
    return -1;
  for (int i = 2; i < 6; i++) {
    int digit = hex_digit(at[i]);
    if (digit < 0)
      return -1;
    unit = unit * 16 + digit;
  }
  return unit;
}

/* Steps over an escape; 0 for half a surrogate pair. yajl judges the rest. */
static int skip_escape(struct text *t) {
  int unit = code_unit(t->at, t->end);
  if (unit >= 0xdc00 && unit <= 0xdfff)
    return 0;
  if (unit >= 0xd800 && unit <= 0xdbff) {
    int low = code_unit(t->at + 6, t->end);
    if (low < 0xdc00 || low > 0xdfff)
      return 0;
    t->at += 6;
  }
  t->at += unit < 0 ? 2 : 6;
  return 1;
}

/* Steps over a string; at is behind its quote. */
static const char *scan_string(struct text *t) {
  const char *start = t->at;
  int escapes = 0;
  while (t->at < t->end && *t->at != '"') {
    if (*t->at != '\\') {
      t->at++;
    } else {
      escapes = 1;
      if (!skip_escape(t))
        return "half a surrogate pair";
    }
  }
  if (t->at >= t->end)
    return "a string without an end";
  if (escapes && (size_t)(t->at - start) > t->longest)
    t->longest = (size_t)(t->at - start);
  t->at++;
  return NULL;
}

static int ends_token(char c) {
  switch (c) {
  case '"':
  case '[':
  case ']':
  case '{':
  case '}':
  case ',':
  case ':':
  case ' ':
  case '\t':
  case '\n':
  case '\r':
    return 1;
  default:
    return 0;
  }
}

/* yajl copies strings with escapes, and the token at the end of the text.
 * Returns a sentence when something is wrong. */
static const char *scan_text(struct text *t) {
  const char *error = NULL, *token = t->start;
  if (!codec_is_utf8(t->start, (size_t)(t->end - t->start)))
    return "not UTF-8";
  while (t->at < t->end && error == NULL) {
    char c = *t->at++;
    if (c == '"')
      error = scan_string(t);
    if (ends_token(c))
      token = t->at;
    else if ((size_t)(t->at - token) > t->longest)
      t->longest = (size_t)(t->at - token);
  }
  return error;
}

/* ---- yajl's memory ------------------------------------------------------- */

enum {
  ARENA_ALIGN = 8,     /* pointers and sizes; yajl keeps nothing wider */
  ARENA_FIXED = 8192,  /* handle, lexer, two buffers of 2 KiB, a message */
  ARENA_PER_BYTE = 8,  /* of the longest token: both buffers, doubling */
  ARENA_STACK = 10240, /* texts with short tokens need no more */
  ARENA_HEAD = ARENA_ALIGN
};

/* Blocks one after the other, each behind its size; only the last can grow in
 * its place, none is freed. */
struct arena {
  char *at, *end;
  char *last; /* block */
};

static size_t rounded(size_t size) {
  return (size + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1);
}

static void *arena_malloc(void *ctx, size_t size) {
  struct arena *a = ctx;
  if (rounded(size) + ARENA_HEAD > (size_t)(a->end - a->at)) {
    assert(!"yajl needs more than it can");
    return NULL;
  }
  char *block = a->at + ARENA_HEAD;
  memcpy(block - ARENA_HEAD, &size, sizeof size);
  a->at = block + rounded(size);
  return a->last = block;
}

static void *arena_realloc(void *ctx, void *old, size_t size) {
  struct arena *a = ctx;
  size_t old_size;
  if (old == NULL)
    return arena_malloc(ctx, size);
  if (old == a->last) {
    a->at = (char *)old - ARENA_HEAD;
    return arena_malloc(ctx, size);
  }
  memcpy(&old_size, (char *)old - ARENA_HEAD, sizeof old_size);
  void *block = arena_malloc(ctx, size);
  if (block != NULL)
    memcpy(block, old, old_size < size ? old_size : size);
  return block;
}

static void arena_free(void *ctx, void *block) {
  (void)ctx;
  (void)block;
}

/* ---- pass 2: the tape ---------------------------------------------------- */

enum {
  TAPE_PER_BYTE = 3, /* "-0," becomes a double of nine bytes */
  TAPE_SLACK = 256,  /* [ becomes five bytes, up to the depth limit */
  TAPE_STACK = 2048, /* shorter tapes need no memory of Lua's */
  TAPE_CONTAINER = 5 /* tag and count */
};

struct container {
  size_t tape; /* offset of its tag */
  uint32_t count;
  int is_map;
};

struct tape {
  char *data;
  size_t length, capacity;
  int depth;
  struct container containers[CODEC_DEPTH_MAX];
  const char *error; /* why a callback has stopped the parser */
};

static int stop(struct tape *t, const char *error) {
  t->error = error;
  return 0;
}

/* Room for n bytes at the tape's end, for a value when counted. */
static char *tape_add(struct tape *t, size_t n, int is_key) {
  if (n > t->capacity - t->length) {
    assert(!"the tape is too short");
    t->error = "too long";
    return NULL;
  }
  if (t->depth > 0) {
    struct container *c = &t->containers[t->depth - 1];
    c->count += c->is_map == is_key;
  }
  t->length += n;
  return t->data + t->length - n;
}

static int add_tag(struct tape *t, unsigned tag) {
  char *at = tape_add(t, 1, 0);
  if (at != NULL)
    *at = (char)tag;
  return at != NULL;
}

static int on_null(void *ctx) {
  return add_tag(ctx, BINARY_NULL);
}

static int on_boolean(void *ctx, int value) {
  return add_tag(ctx, value ? BINARY_TRUE : BINARY_FALSE);
}

static int add_bytes(struct tape *t, unsigned tag, uint64_t bits) {
  char *at = tape_add(t, 9, 0);
  if (at == NULL)
    return 0;
  *at = (char)tag;
  bytes_put64(at + 1, bits);
  return 1;
}

static int add_double(struct tape *t, const char *text, size_t length) {
  uint64_t bits;
  if (length > NUMBER_TEXT_MAX)
    return stop(t, "a number of more than 1100 bytes");
  double value = number_parse(text, length);
  if (!isfinite(value))
    return stop(t, "a number beyond the range of a double");
  memcpy(&bits, &value, sizeof bits);
  return add_bytes(t, BINARY_DOUBLE, bits);
}

/* The value of the digits, when they are digits and 64 bits hold it. */
static int read_digits(const char *text, size_t length, uint64_t *value) {
  *value = 0;
  for (size_t i = 0; i < length; i++) {
    uint64_t digit = (uint64_t)(text[i] - '0');
    if (digit > 9 || *value > (UINT64_MAX - digit) / 10)
      return 0;
    *value = *value * 10 + digit;
  }
  return 1;
}

static int on_number(void *ctx, const char *text, size_t length) {
  struct tape *t = ctx;
  size_t minus = text[0] == '-';
  uint64_t n;
  if (!read_digits(text + minus, length - minus, &n) || (minus && n == 0) ||
      (minus && n > 1ULL << 63))
    return add_double(t, text, length);
  if (!minus && n <= BINARY_SMALL_MAX)
    return add_tag(t, (unsigned)n);
  if (minus || n <= INT64_MAX)
    return add_bytes(t, BINARY_INT64, minus ? -n : n);
  return add_bytes(t, BINARY_UINT64, n);
}

static int add_string(struct tape *t, const unsigned char *text, size_t length,
                      int is_key) {
  size_t head = length < BINARY_FEW_BYTES ? 1 : 5;
  char *at = tape_add(t, head + length, is_key);
  if (at == NULL)
    return 0;
  if (head == 1) {
    *at = (char)(BINARY_STRING | length);
  } else {
    *at = (char)BINARY_STRING32;
    bytes_put32(at + 1, (uint32_t)length);
  }
  memcpy(at + head, text, length);
  return 1;
}

static int on_string(void *ctx, const unsigned char *text, size_t length) {
  return add_string(ctx, text, length, 0);
}

static int on_key(void *ctx, const unsigned char *text, size_t length) {
  return add_string(ctx, text, length, 1);
}

static int open_container(struct tape *t, int is_map) {
  if (t->depth == CODEC_DEPTH_MAX)
    return stop(t, CODEC_TOO_DEEP);
  size_t start = t->length;
  char *at = tape_add(t, TAPE_CONTAINER, 0);
  if (at == NULL)
    return 0;
  *at = (char)(is_map ? BINARY_MAP32 : BINARY_ARRAY32);
  t->containers[t->depth++] = (struct container){start, 0, is_map};
  return 1;
}

static int on_start_map(void *ctx) {
  return open_container(ctx, 1);
}

static int on_start_array(void *ctx) {
  return open_container(ctx, 0);
}

static int on_end(void *ctx) {
  struct tape *t = ctx;
  assert(t->depth > 0);
  struct container *c = &t->containers[--t->depth];
  bytes_put32(t->data + c->tape + 1, c->count);
  return 1;
}

static const yajl_callbacks callbacks = {
    .yajl_null = on_null,
    .yajl_boolean = on_boolean,
    .yajl_number = on_number,
    .yajl_string = on_string,
    .yajl_start_map = on_start_map,
    .yajl_map_key = on_key,
    .yajl_end_map = on_end,
    .yajl_start_array = on_start_array,
    .yajl_end_array = on_end,
};

/* ---- decode -------------------------------------------------------------- */

enum { MESSAGE_MAX = 160 };

/* Memory of the C stack, or as much of a new userdata. */
static char *room(lua_State *L, char *stack, size_t stack_size, size_t size) {
  return size <= stack_size ? stack : lua_newuserdata(L, size);
}

/* Notes yajl's message, without the line's end, or the callback's. */
static void describe(yajl_handle parser, const struct tape *tape,
                     char message[MESSAGE_MAX]) {
  size_t where = yajl_get_bytes_consumed(parser);
  unsigned char *text = NULL;
  const char *what = tape->error;
  if (what == NULL)
    what = (char *)(text = yajl_get_error(parser, 0, NULL, 0));
  snprintf(message, MESSAGE_MAX, "%.*s at byte %zu", (int)strcspn(what, "\n"),
           what, where);
  if (text != NULL)
    yajl_free_error(parser, text);
}

/* Fills the tape: 0, or -1 with a message. Raises nothing. */
static int parse(const struct text *text, struct tape *tape,
                 struct arena *arena, char message[MESSAGE_MAX]) {
  yajl_alloc_funcs memory = {arena_malloc, arena_realloc, arena_free, arena};
  yajl_handle parser = yajl_alloc(&callbacks, &memory, tape);
  yajl_config(parser, yajl_dont_validate_strings, 1); /* scan_text did */
  yajl_status status = yajl_parse(parser, (const unsigned char *)text->start,
                                  (size_t)(text->end - text->start));
  if (status == yajl_status_ok)
    status = yajl_complete_parse(parser);
  if (status != yajl_status_ok)
    describe(parser, tape, message);
  yajl_free(parser);
  return status == yajl_status_ok ? 0 : -1;
}

static int decode_error(lua_State *L, const char *message) {
  lua_pushnil(L);
  lua_pushstring(L, message);
  return 2;
}

static int decode(lua_State *L, struct text *text) {
  _Alignas(ARENA_ALIGN) char arena_stack[ARENA_STACK];
  char tape_stack[TAPE_STACK], message[MESSAGE_MAX];
  struct tape tape = {.error = NULL};
  struct codec_reader r;
  size_t size = ARENA_FIXED + ARENA_PER_BYTE * text->longest;
  char *memory = room(L, arena_stack, sizeof arena_stack, size);
  struct arena arena = {memory, memory + size, NULL};
  tape.capacity =
      TAPE_SLACK + TAPE_PER_BYTE * (size_t)(text->end - text->start);
  tape.data = room(L, tape_stack, sizeof tape_stack, tape.capacity);
  if (parse(text, &tape, &arena, message) < 0)
    return decode_error(L, message);
  r.value = binary_read_value;
  r.classes = 0;
  return codec_read(&r, L, tape.data, tape.length);
}

/* encode(value[, root]) -> text */
static int l_encode(lua_State *L) {
  struct codec_writer w;
  luaL_checkany(L, 1);
  w.format = &format;
  w.classes = 0;
  return codec_write_string(&w, L, 1, luaL_optstring(L, 2, NULL));
}

/* decode(text) -> value; or nil, message */
static int l_decode(lua_State *L) {
  size_t length;
  struct text text = {.longest = 0};
  text.start = text.at = luaL_checklstring(L, 1, &length);
  text.end = text.start + length;
  const char *error = scan_text(&text);
  if (error != NULL)
    return decode_error(L, error);
  return decode(L, &text);
}

int bind_open_json(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"encode", l_encode}, {"decode", l_decode}, {NULL, NULL}};
  codec_open(L, functions);
  return 1;
}
