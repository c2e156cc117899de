/* What the serializers share: json.c, msgpack.c and binary.c.
 *
 * Encoding is one walk (codec_write.c) over a Lua value; a format is a table
 * of functions that append bytes. Decoding is one reader (codec_read.c) with
 * limits; a format brings the function that reads one value. Both keep all
 * they own in the Lua state or on the C stack, so that an error, raised at any
 * point, leaks nothing.
 *
 * The value model: nil is no value; cache.null is the light userdata NULL; a
 * table whose keys are exactly 1..n, n >= 1, is an array, and any other table
 * is a map, unless it carries the array metatable (module moonstash.codec):
 * that one is an array, even when empty. A number is an integer when it is
 * one, |n| <= 2^53 and not -0; int64_t and uint64_t cdata are integers too and
 * come back as numbers when a number holds them exactly.
 */
#ifndef MOONSTASH_BIND_CODEC_H
#define MOONSTASH_BIND_CODEC_H

#include <lauxlib.h>
#include <lua.h>
#include <stddef.h>
#include <stdint.h>

enum {
  CODEC_DEPTH_MAX = 32,      /* tables within tables, both ways */
  CODEC_COUNT_MAX = 1 << 26, /* elements of a table: LuaJIT's own bound */
  CODEC_STACK_BYTES = 1024,  /* shorter results need no memory of Lua's */
  CODEC_TCDATA = 10          /* lua_type of a cdata; lua.h has no name */
};
#define CODEC_TOO_DEEP "nested deeper than 32 tables"
#define CODEC_EXACT 9007199254740992.0 /* 2^53 */

enum { /* upvalues of every encode and decode; see codec_open */
       CODEC_ARRAY_MT = 1,
       CODEC_INT64_KIND,
       CODEC_INT64_MAKE
};

/* ---- bytes that grow (codec.c) ------------------------------------------- */

/* Small ones on the C stack, larger ones as a userdata of Lua's in one stack
 * slot: nothing to free. Not to be moved: data may point into first. */
struct codec_buffer {
  lua_State *L;
  char *data;
  size_t length, capacity;
  int slot; /* stack index of the userdata, nil at first */
  char first[CODEC_STACK_BYTES];
};

/* Takes one stack slot. */
void codec_buffer_init(struct codec_buffer *b, lua_State *L);
/* Room for n more bytes behind data + length; raises when there is none. */
char *codec_reserve(struct codec_buffer *b, size_t n);
void codec_append(struct codec_buffer *b, const void *bytes, size_t n);

/* ---- small tools (codec.c) ----------------------------------------------- */

/* Is it UTF-8 as RFC 3629 has it: no overlong forms, no surrogates? */
int codec_is_utf8(const char *text, size_t length);
/* Is the number an integer that is written as one? */
int codec_is_integer(double number);
/* Push a number, or cdata when a number is too small. 0, or -1 with nothing
 * pushed when there is no FFI to make cdata. Only in functions of codec_open.
 */
int codec_push_int64(lua_State *L, int64_t value);
int codec_push_uint64(lua_State *L, uint64_t value);
/* Gives the table on top the array metatable. */
void codec_mark_array(lua_State *L);
/* Pushes a table of the functions with CODEC_ upvalues. */
void codec_open(lua_State *L, const luaL_Reg *functions);

/* ---- writing (codec_write.c) --------------------------------------------- */

enum { CODEC_ARRAY, CODEC_MAP, CODEC_MARKED /* array with the metatable */ };
enum { CODEC_ELEMENT, CODEC_KEY, CODEC_VALUE };

struct codec_frame {
  const void *table; /* for finding cycles */
  int key;           /* stack index of the current key; 0 in an array */
  int index;         /* of the current element */
};

struct codec_writer {
  struct codec_buffer out;
  const struct codec_format *format;
  const char *root; /* what paths in messages begin with */
  int classes;      /* stack index of {[metatable] = name}; 0 = none */
  int depth;        /* tables that are being written */
  int in_key;       /* messages are about the current key, not its value */
  struct codec_frame frames[CODEC_DEPTH_MAX];
};

struct codec_format {
  const char *name; /* in messages: "which NAME cannot hold" */
  int any_key;      /* keys may be numbers and booleans, not only strings */
  void (*null)(struct codec_writer *w);
  void (*boolean)(struct codec_writer *w, int value);
  void (*int64)(struct codec_writer *w, int64_t value);
  void (*uint64)(struct codec_writer *w, uint64_t value);
  void (*number)(struct codec_writer *w, double value); /* not an integer */
  void (*string)(struct codec_writer *w, const char *text, size_t length);
  void (*class_name)(struct codec_writer *w, const char *name, size_t length);
  void (*open)(struct codec_writer *w, int kind, size_t count);
  void (*close)(struct codec_writer *w, int kind);         /* may be NULL */
  void (*before)(struct codec_writer *w, int role, int i); /* may be NULL */
};

/* Writes the value at index `value` (absolute) to w->out, which takes a stack
 * slot. Raises a string that names the path to what the format cannot hold.
 * Set format and classes, the rest is set here. root is "value" when NULL.
 * Only in functions of codec_open, as is codec_read. */
void codec_write(struct codec_writer *w, lua_State *L, int value,
                 const char *root);
/* The same for an encode function: pushes the bytes and returns 1. */
int codec_write_string(struct codec_writer *w, lua_State *L, int value,
                       const char *root);
/* For formats: raises "PATH is WHAT, which NAME cannot hold". */
void codec_refuse(struct codec_writer *w, const char *what)
    __attribute__((noreturn));

/* ---- reading (codec_read.c) ---------------------------------------------- */

struct codec_reader {
  lua_State *L;
  const char *start, *at, *end;
  /* Reads one value at `at` and pushes it: 0, or -1 with error set. Begins
   * with codec_begin. */
  int (*value)(struct codec_reader *r);
  const char *error;   /* a sentence, once something is wrong */
  size_t owed;         /* values promised by counts and not yet begun */
  int classes;         /* stack index of {name = metatable}; 0 = none */
  int depth;           /* tables that are being read */
  unsigned meter;      /* number keys set so far */
  uint64_t started_ns; /* processor time at the first of them */
};

/* Reads the whole of [bytes, bytes + length) as one value. Pushes it and
 * returns 1; or pushes nil and a message and returns 2. Set value and classes;
 * the rest is set here. */
int codec_read(struct codec_reader *r, lua_State *L, const char *bytes,
               size_t length);
/* What formats' value functions are made of; all return 0, or -1. */
int codec_begin(struct codec_reader *r);
int codec_fail(struct codec_reader *r, const char *error);
int codec_need(struct codec_reader *r, size_t bytes);
int codec_read_string(struct codec_reader *r, size_t length);
int codec_read_array(struct codec_reader *r, size_t count);
int codec_read_map(struct codec_reader *r, size_t count);

/* ---- numbers as text (codec_number.c) -------------------------------------
 */

/* Doubles as JSON has them, whatever the locale. */
enum { NUMBER_SHORT_MAX = 32, NUMBER_TEXT_MAX = 1100 };
/* Writes the shortest text that reads back as the same finite number, never
 * one that looks like an integer. Returns its length. */
int number_format(char text[NUMBER_SHORT_MAX], double value);
/* The value of a JSON number of up to NUMBER_TEXT_MAX bytes. */
double number_parse(const char *text, size_t length);

#endif
