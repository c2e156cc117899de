/* What the Lua files of the host itself need: settings, log, the built-in Lua
 * sources, a line of standard input. */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <hiredis.h>
#include <lauxlib.h>
#include <luajit.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bind/bind.h"

static struct bind *bind_of(lua_State *L) {
  return lua_touserdata(L, lua_upvalueindex(1));
}

/* log(level, line): 0 error .. 3 debug */
static int l_log(lua_State *L) {
  struct bind *b = bind_of(L);
  int level = (int)luaL_checkinteger(L, 1);
  b->host.log(b->host.ud, level, luaL_checkstring(L, 2));
  return 0;
}

static void set_string(lua_State *L, const char *field, const char *value) {
  if (value != NULL) {
    lua_pushstring(L, value);
    lua_setfield(L, -2, field);
  }
}

/* setting(i) -> {name, variable, source, shown, value}; nil after the last */
static int l_setting(lua_State *L) {
  struct bind *b = bind_of(L);
  struct bind_setting setting;
  if (!b->host.setting(b->host.ud, (int)luaL_checkinteger(L, 1), &setting))
    return 0;
  lua_createtable(L, 0, 5);
  set_string(L, "name", setting.name);
  set_string(L, "variable", setting.variable);
  set_string(L, "source", setting.source);
  set_string(L, "shown", setting.shown);
  if (setting.text == NULL)
    return 1;
  if (setting.kind == 'b')
    lua_pushboolean(L, setting.number != 0);
  else if (setting.kind == 'n')
    lua_pushnumber(L, setting.number);
  else
    lua_pushstring(L, setting.text);
  lua_setfield(L, -2, "value");
  return 1;
}

enum { CONFIGURE_MAX = 64 };

/* configure{name = text, ...} -> true, or nil, message */
static int l_configure(lua_State *L) {
  struct bind *b = bind_of(L);
  const char *names[CONFIGURE_MAX], *texts[CONFIGURE_MAX];
  char err[512];
  int n = 0;
  luaL_checktype(L, 1, LUA_TTABLE);
  for (lua_pushnil(L); lua_next(L, 1); lua_pop(L, 1)) {
    if (lua_type(L, -2) != LUA_TSTRING || lua_type(L, -1) != LUA_TSTRING ||
        n == CONFIGURE_MAX)
      return luaL_error(L, "configure: a table of texts by name expected");
    names[n] = lua_tostring(L, -2);
    texts[n++] = lua_tostring(L, -1);
  }
  if (b->host.configure(b->host.ud, names, texts, n, err, sizeof err) < 0) {
    lua_pushnil(L);
    lua_pushstring(L, err);
    return 2;
  }
  lua_pushboolean(L, 1);
  return 1;
}

/* embedded(name) -> the chunk of a built-in Lua file, or nil */
static int l_embedded(lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  for (const struct bind_embedded *e = bind_embedded; e->name != NULL; e++)
    if (strcmp(e->name, name) == 0) {
      if (luaL_loadbuffer(L, e->source, e->length, e->file) != 0)
        return lua_error(L);
      return 1;
    }
  return 0;
}

/* version() -> moonstash's, LuaJIT's, libuv's, hiredis' */
static int l_version(lua_State *L) {
  lua_pushstring(L, BIND_VERSION);
  lua_pushstring(L, LUAJIT_VERSION);
  lua_pushstring(L, uv_version_string());
  lua_pushfstring(L, "%d.%d.%d", HIREDIS_MAJOR, HIREDIS_MINOR, HIREDIS_PATCH);
  return 4;
}

/* values(list) -> its items. unpack stops at 8000, but LuaJIT's stack grows as
 * it is pushed to. */
static int l_values(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  int n = (int)lua_objlen(L, 1);
  for (int i = 1; i <= n; i++)
    lua_rawgeti(L, 1, i);
  return n;
}

static int l_isatty(lua_State *L) {
  lua_pushboolean(L, isatty((int)luaL_checkinteger(L, 1)));
  return 1;
}

/* A line of standard input, a byte at a time as they come: tasks go on while
 * a person types, and nothing is taken that a script's io.read would want. */
struct line {
  uv_poll_t poll;
  struct task *task; /* NULL once the wait was given up */
  char *text;        /* NULL at first */
  size_t length, capacity;
  int is_end; /* of input, and nothing before it */
};

enum { LINE_FIRST_CAPACITY = 128 };

static void free_line(struct line *r) {
  free(r->text);
  free(r);
}

static int append_byte(struct line *r, char byte) {
  if (r->length == r->capacity) {
    size_t capacity = r->capacity ? r->capacity * 2 : LINE_FIRST_CAPACITY;
    char *text = realloc(r->text, capacity);
    if (text == NULL)
      return -1;
    r->text = text;
    r->capacity = capacity;
  }
  r->text[r->length++] = byte;
  return 0;
}

/* Takes what is there. 1: the line is complete, or the input has ended. */
static int read_bytes(struct line *r) {
  struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
  char byte;
  while (poll(&input, 1, 0) > 0) {
    ssize_t n = read(STDIN_FILENO, &byte, 1);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
      return 0;
    if (n <= 0)
      r->is_end = r->length == 0;
    else if (append_byte(r, byte) < 0)
      r->is_end = 1; /* none is better than half a line */
    if (n <= 0 || r->is_end || byte == '\n')
      return 1;
  }
  return 0;
}

static int push_line(lua_State *co, struct task *t, void *arg) {
  struct line *r = arg;
  (void)t;
  if (co != NULL) {
    lua_pushinteger(co, WAIT_OK);
    if (r->is_end)
      lua_pushnil(co);
    else
      lua_pushlstring(co, r->text, r->length);
  }
  free_line(r);
  return 2;
}

static void on_line_closed(uv_handle_t *handle) {
  struct line *r = handle->data;
  if (r->task != NULL)
    task_complete(r->task, push_line, r);
  else
    free_line(r);
}

static void on_readable(uv_poll_t *poll, int status, int events) {
  struct line *r = poll->data;
  (void)events;
  if (status < 0)
    r->is_end = r->length == 0;
  if (status < 0 || read_bytes(r))
    uv_close((uv_handle_t *)poll, on_line_closed);
}

static void forget_line(lua_State *L, struct task *t, void *arg) {
  struct line *r = arg;
  (void)L;
  (void)t;
  r->task = NULL;
  if (!uv_is_closing((uv_handle_t *)&r->poll))
    uv_close((uv_handle_t *)&r->poll, on_line_closed);
}

/* Watches standard input. It stays a blocking one: whoever started us shares
 * it. */
static int watch_input(uv_loop_t *loop, struct line *r) {
  int flags = fcntl(STDIN_FILENO, F_GETFL);
  int rc = uv_poll_init(loop, &r->poll, STDIN_FILENO);
  if (rc < 0)
    return rc;
  fcntl(STDIN_FILENO, F_SETFL, flags);
  r->poll.data = r;
  rc = uv_poll_start(&r->poll, UV_READABLE, on_readable);
  assert(rc == 0); /* fails only for a closing handle */
  return rc;
}

/* readline() -> state, line with its newline or nil at the end */
static int l_readline(lua_State *L) {
  struct bind *b = bind_of(L);
  struct task *t;
  if (!task_may_wait(L, &b->sched, "readline", &t))
    return task_raise(L, t);
  struct line *r = calloc(1, sizeof *r);
  if (r == NULL)
    return luaL_error(L, "not enough memory");
  if (read_bytes(r)) /* also: what cannot be watched is always ready */
    return push_line(L, t, r);
  r->task = t;
  int rc = watch_input(b->sched.loop, r);
  if (rc < 0) {
    free_line(r);
    return luaL_error(L, "readline: %s", uv_strerror(rc));
  }
  return task_wait(L, t, -1, forget_line, r);
}

int bind_open_host(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"log", l_log},
      {"setting", l_setting},
      {"configure", l_configure},
      {"embedded", l_embedded},
      {"version", l_version},
      {"values", l_values},
      {"isatty", l_isatty},
      {"readline", l_readline},
      {NULL, NULL},
  };
  struct bind *b = bind_of(L);
  lua_newtable(L);
  bind_add_functions(L, b, functions);
  lua_pushboolean(L, b->flags & BIND_NO_FFI);
  lua_setfield(L, -2, "no_ffi");
  lua_pushboolean(L, b->flags & BIND_NO_ENV);
  lua_setfield(L, -2, "no_env");
  return 1;
}
