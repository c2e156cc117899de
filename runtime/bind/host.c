/* What the Lua files of the host itself need: settings, log, the built-in Lua
 * sources, a line of standard input. */
#define _GNU_SOURCE
#include <errno.h>
#include <hiredis.h>
#include <lauxlib.h>
#include <luajit.h>
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

static int l_isatty(lua_State *L) {
  lua_pushboolean(L, isatty((int)luaL_checkinteger(L, 1)));
  return 1;
}

/* A line of standard input, read on a thread of libuv's pool so that tasks go
 * on while a person types. */
struct read_line {
  uv_work_t work;
  struct task *task; /* NULL once the wait was given up */
  struct bind *bind;
  char *line; /* getline's; NULL before */
  size_t size;
  ssize_t length; /* -1 = end of input */
};

static void free_line(struct read_line *r) {
  free(r->line);
  free(r);
}

static void read_on_thread(uv_work_t *work) {
  struct read_line *r = work->data;
  r->length = getline(&r->line, &r->size, stdin);
}

static int push_line(lua_State *co, struct task *t, void *arg) {
  struct read_line *r = arg;
  (void)t;
  if (co != NULL) {
    lua_pushinteger(co, WAIT_OK);
    if (r->length >= 0)
      lua_pushlstring(co, r->line, (size_t)r->length);
    else
      lua_pushnil(co);
  }
  free_line(r);
  return 2;
}

static void after_read(uv_work_t *work, int status) {
  struct read_line *r = work->data;
  (void)status;
  if (r->task != NULL)
    task_complete(r->task, push_line, r);
  else
    free_line(r);
}

static void forget_line(lua_State *L, struct task *t, void *arg) {
  (void)L;
  (void)t;
  ((struct read_line *)arg)->task = NULL; /* after_read frees */
}

/* readline() -> state, line with its newline or nil at the end */
static int l_readline(lua_State *L) {
  struct bind *b = bind_of(L);
  struct task *t;
  if (!task_may_wait(L, &b->sched, "readline", &t))
    return task_raise(L, t);
  struct read_line *r = calloc(1, sizeof *r);
  if (r == NULL)
    return luaL_error(L, "not enough memory");
  r->work.data = r;
  r->task = t;
  r->bind = b;
  int rc = uv_queue_work(b->sched.loop, &r->work, read_on_thread, after_read);
  if (rc < 0) {
    free(r);
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
      {"isatty", l_isatty},
      {"readline", l_readline},
      {NULL, NULL},
  };
  struct bind *b = bind_of(L);
  lua_newtable(L);
  for (const luaL_Reg *f = functions; f->name != NULL; f++) {
    lua_pushlightuserdata(L, b);
    lua_pushcclosure(L, f->func, 1);
    lua_setfield(L, -2, f->name);
  }
  lua_pushboolean(L, b->flags & BIND_NO_FFI);
  lua_setfield(L, -2, "no_ffi");
  lua_pushboolean(L, b->flags & BIND_NO_ENV);
  lua_setfield(L, -2, "no_env");
  return 1;
}
