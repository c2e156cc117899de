/* The walk over a value that is to be encoded.
 *
 * One frame per table that is being written: the table, for finding cycles,
 * and where its current key is, so that a message can name the path to what
 * cannot be written. Tables are read raw, no metamethod runs. A finalizer may,
 * when the bytes need room, and may change a table under the walk: then the
 * walk raises, because a count that was written would be a lie.
 *
 * Stack: a table's frame takes its key and its value, at most 2 slots per
 * level, and a few for helpers on top: codec_write reserves them all at once.
 */
#include <assert.h>
#include <lauxlib.h>
#include <stdio.h>
#include <string.h>

#include "bind/codec.h"

enum { STACK_PER_TABLE = 2, STACK_EXTRA = 24, PATH_KEY_MAX = 40 };

/* ---- messages ------------------------------------------------------------ */

static int is_name(const char *text, size_t length) {
  static const char allowed[] = "abcdefghijklmnopqrstuvwxyz"
                                "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
  return length > 0 && length <= PATH_KEY_MAX &&
         strspn(text, allowed) == length && strcspn(text, "0123456789") > 0;
}

static void add_string_key(luaL_Buffer *b, const char *text, size_t length) {
  size_t shown = length < PATH_KEY_MAX ? length : PATH_KEY_MAX;
  if (is_name(text, length)) {
    luaL_addchar(b, '.');
    luaL_addlstring(b, text, length);
    return;
  }
  luaL_addstring(b, "[\"");
  for (size_t i = 0; i < shown; i++) {
    unsigned char c = (unsigned char)text[i];
    char escape[8];
    if (c < 0x20 || c >= 0x7f || c == '"' || c == '\\')
      snprintf(escape, sizeof escape, c >= 0x20 && c < 0x7f ? "\\%c" : "\\%03d",
               c);
    else
      snprintf(escape, sizeof escape, "%c", c);
    luaL_addstring(b, escape);
  }
  luaL_addstring(b, shown < length ? "...\"]" : "\"]");
}

static void add_key(luaL_Buffer *b, lua_State *L, const struct codec_frame *f) {
  char number[48];
  size_t length;
  int type = f->key == 0 ? LUA_TNUMBER : lua_type(L, f->key);
  if (type == LUA_TSTRING) {
    const char *text = lua_tolstring(L, f->key, &length);
    add_string_key(b, text, length);
  } else if (type == LUA_TBOOLEAN) {
    luaL_addstring(b, lua_toboolean(L, f->key) ? "[true]" : "[false]");
  } else if (type == LUA_TNUMBER) {
    snprintf(number, sizeof number, "[%.14g]",
             f->key == 0 ? f->index : lua_tonumber(L, f->key));
    luaL_addstring(b, number);
  } else {
    luaL_addstring(b, "[a ");
    luaL_addstring(b, lua_typename(L, type));
    luaL_addchar(b, ']');
  }
}

void codec_refuse(struct codec_writer *w, const char *what) {
  lua_State *L = w->out.L;
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  luaL_addstring(&b, w->root);
  for (int i = 0; i < w->depth - w->in_key; i++)
    add_key(&b, L, &w->frames[i]);
  luaL_addstring(&b, w->in_key ? " has a key that is " : " is ");
  luaL_addstring(&b, what);
  luaL_addstring(&b, ", which ");
  luaL_addstring(&b, w->format->name);
  luaL_addstring(&b, " cannot hold");
  luaL_pushresult(&b);
  lua_error(L);
  __builtin_unreachable(); /* lua.h does not say that lua_error is the end */
}

static void refuse_type(struct codec_writer *w, const char *type) {
  char what[64];
  snprintf(what, sizeof what, "a %s", type);
  codec_refuse(w, what);
}

/* ---- scalars ------------------------------------------------------------- */

static void write_number(struct codec_writer *w, double number) {
  if (codec_is_integer(number))
    w->format->int64(w, (int64_t)number);
  else
    w->format->number(w, number);
}

static void write_cdata(struct codec_writer *w, int value) {
  lua_State *L = w->out.L;
  lua_pushvalue(L, lua_upvalueindex(CODEC_INT64_KIND));
  lua_pushvalue(L, value);
  lua_call(L, 1, 2);
  int kind = (int)lua_tointeger(L, -2);
  if (kind == 0 || w->in_key) /* cdata keys are found by address only */
    refuse_type(w, "cdata");
  uint64_t bits;
  memcpy(&bits, lua_topointer(L, -1), sizeof bits);
  lua_pop(L, 2);
  if (kind == 2)
    w->format->uint64(w, bits);
  else
    w->format->int64(w, (int64_t)bits);
}

/* ---- tables -------------------------------------------------------------- */

/* Counts the entries; are the keys exactly 1..n? */
static int is_sequence(lua_State *L, int table, size_t *count) {
  size_t n = lua_objlen(L, table);
  int in_range = 1;
  *count = 0;
  for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
    ++*count;
    if (in_range) {
      double key = lua_type(L, -2) == LUA_TNUMBER ? lua_tonumber(L, -2) : 0;
      in_range = key >= 1 && key <= (double)n && key == (double)(size_t)key;
    }
  }
  return in_range && *count == n;
}

/* Looks at the metatable of the table: is it marked as an array? Writes the
 * name of its class. */
static int check_metatable(struct codec_writer *w, int table) {
  lua_State *L = w->out.L;
  int marked = 0;
  if (!lua_getmetatable(L, table))
    return 0;
  if (lua_rawequal(L, -1, lua_upvalueindex(CODEC_ARRAY_MT))) {
    marked = 1;
  } else if (w->classes == 0) {
    codec_refuse(w, "a table with a metatable");
  } else {
    size_t length;
    lua_rawget(L, w->classes);
    if (lua_type(L, -1) != LUA_TSTRING)
      codec_refuse(w, "a table with a metatable that is no registered class");
    const char *name = lua_tolstring(L, -1, &length);
    w->format->class_name(w, name, length);
  }
  lua_pop(L, 1);
  return marked;
}

static struct codec_frame *enter(struct codec_writer *w, const void *table) {
  for (int i = 0; i < w->depth; i++)
    if (w->frames[i].table == table)
      codec_refuse(w, "a cycle");
  if (w->depth == CODEC_DEPTH_MAX)
    codec_refuse(w, CODEC_TOO_DEEP);
  struct codec_frame *frame = &w->frames[w->depth++];
  *frame = (struct codec_frame){table, 0, 0};
  return frame;
}

static void write_value(struct codec_writer *w, int value);

static void refuse_number_key(struct codec_writer *w, double key) {
  char what[48];
  snprintf(what, sizeof what, "the number %.14g", key);
  codec_refuse(w, what);
}

static void write_key(struct codec_writer *w, int key) {
  lua_State *L = w->out.L;
  int type = lua_type(L, key);
  w->in_key = 1;
  if (type == LUA_TNUMBER && !w->format->any_key)
    refuse_number_key(w, lua_tonumber(L, key));
  if (type == LUA_TBOOLEAN && !w->format->any_key)
    refuse_type(w, "boolean");
  if (type != LUA_TSTRING && type != LUA_TNUMBER && type != LUA_TBOOLEAN)
    refuse_type(w, lua_typename(L, type));
  write_value(w, key);
  w->in_key = 0;
}

static void before(struct codec_writer *w, int role, int i) {
  if (w->format->before != NULL)
    w->format->before(w, role, i);
}

static void write_elements(struct codec_writer *w, struct codec_frame *frame,
                           int table, int count) {
  lua_State *L = w->out.L;
  for (int i = 1; i <= count; i++) {
    frame->index = i;
    before(w, CODEC_ELEMENT, i);
    lua_rawgeti(L, table, i);
    write_value(w, lua_gettop(L));
    lua_pop(L, 1);
  }
}

static void write_pairs(struct codec_writer *w, struct codec_frame *frame,
                        int table, int count) {
  lua_State *L = w->out.L;
  int i = 1;
  for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
    int value = lua_gettop(L);
    frame->key = value - 1;
    before(w, CODEC_KEY, i++);
    write_key(w, value - 1);
    before(w, CODEC_VALUE, 0);
    write_value(w, value);
  }
  if (i - 1 != count)
    luaL_error(L, "%s has changed while it was written", w->root);
}

static void write_table(struct codec_writer *w, int table) {
  lua_State *L = w->out.L;
  struct codec_frame *frame;
  size_t count;
  int marked = check_metatable(w, table);
  int sequence = is_sequence(L, table, &count);
  if (marked && !sequence)
    codec_refuse(w, "an array with keys other than 1 to n");
  if (count > CODEC_COUNT_MAX)
    codec_refuse(w, "a table of more than 2^26 elements");
  int kind = marked                  ? CODEC_MARKED
             : sequence && count > 0 ? CODEC_ARRAY
                                     : CODEC_MAP;
  frame = enter(w, lua_topointer(L, table));
  w->format->open(w, kind, count);
  if (kind == CODEC_MAP)
    write_pairs(w, frame, table, (int)count);
  else
    write_elements(w, frame, table, (int)count);
  if (w->format->close != NULL)
    w->format->close(w, kind);
  w->depth--;
}

static void write_value(struct codec_writer *w, int value) {
  lua_State *L = w->out.L;
  size_t length;
  const char *text;
  int type = lua_type(L, value);
  switch (type) {
  case LUA_TBOOLEAN:
    w->format->boolean(w, lua_toboolean(L, value));
    break;
  case LUA_TNUMBER:
    write_number(w, lua_tonumber(L, value));
    break;
  case LUA_TSTRING:
    text = lua_tolstring(L, value, &length);
    w->format->string(w, text, length);
    break;
  case LUA_TTABLE:
    write_table(w, value);
    break;
  case CODEC_TCDATA:
    write_cdata(w, value);
    break;
  case LUA_TLIGHTUSERDATA:
    if (lua_touserdata(L, value) == NULL) {
      w->format->null(w);
      break;
    } /* fall through */
  default:
    if (type == LUA_TNIL)
      codec_refuse(w, "nil");
    refuse_type(w, lua_typename(L, type));
  }
}

void codec_write(struct codec_writer *w, lua_State *L, int value,
                 const char *root) {
  luaL_checkstack(L, CODEC_DEPTH_MAX * STACK_PER_TABLE + STACK_EXTRA,
                  "serializer");
  codec_buffer_init(&w->out, L);
  w->root = root != NULL ? root : "value";
  w->depth = 0;
  w->in_key = 0;
  write_value(w, value);
  assert(w->depth == 0);
}

int codec_write_string(struct codec_writer *w, lua_State *L, int value,
                       const char *root) {
  codec_write(w, L, value, root);
  lua_pushlstring(L, w->out.data, w->out.length);
  return 1;
}
