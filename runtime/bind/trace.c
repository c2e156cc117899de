/* See trace.h. */
#include "bind/trace.h"

#include <lauxlib.h>
#include <stdarg.h>
#include <string.h>

enum { CAUSE_MAX_BYTES = 8192 }; /* a chain of tasks may be very long */

/* Lines of a traceback that are ours, not the user's. */
static int is_ours(const char *line, size_t len) {
  static const char *const own[] = {
      "\tmoonstash/",
      "\t[C]: in function 'xpcall'", /* the guard below every body, */
      "\t[builtin#",                 /* as the bottom frame */
  };
  for (size_t i = 0; i < sizeof own / sizeof *own; i++)
    if (len >= strlen(own[i]) && !memcmp(line, own[i], strlen(own[i])))
      return 1;
  return 0;
}

void trace_without_ours(lua_State *L) {
  const char *p = lua_tostring(L, -1);
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  while (*p != '\0') {
    size_t len = strcspn(p, "\n");
    if (!is_ours(p, len))
      luaL_addlstring(&b, p, len + (p[len] != '\0'));
    p += len + (p[len] != '\0');
  }
  luaL_pushresult(&b);
  lua_remove(L, -2);
  size_t len;
  const char *text = lua_tolstring(L, -1, &len);
  if (len > 0 && text[len - 1] == '\n') { /* the last line was ours */
    lua_pushlstring(L, text, len - 1);
    lua_remove(L, -2);
  }
}

static int call_tostring(lua_State *L) {
  if (!luaL_callmeta(L, 1, "__tostring") || !lua_isstring(L, -1))
    lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, 1));
  return 1;
}

/* Pushes the error at index 1 as text; runs __tostring, guarded. */
static void push_message(lua_State *L) {
  if (lua_isstring(L, 1)) {
    lua_pushvalue(L, 1);
    return;
  }
  lua_pushcfunction(L, call_tostring);
  lua_pushvalue(L, 1);
  if (lua_pcall(L, 1, 1, 0) != 0) {
    lua_pop(L, 1);
    lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, 1));
  }
}

/* Is the error at index 1 the one in the record's field? */
static int same_as(lua_State *L, int record, const char *field) {
  lua_getfield(L, record, field);
  int same = !lua_isnil(L, -1) && lua_rawequal(L, -1, 1);
  lua_pop(L, 1);
  return same;
}

int trace_is_own(lua_State *L, int record) {
  lua_getfield(L, record, "cause_own");
  lua_getfield(L, record, "cause_trace");
  int own = !lua_isnil(L, -1) && lua_rawequal(L, -1, -2);
  lua_pop(L, 2);
  return own;
}

static const char *task_label(lua_State *L, struct task *t, int record) {
  lua_getfield(L, record, "name");
  if (lua_isstring(L, -1))
    lua_pushfstring(L, "task %d (%s)", (int)t->id, lua_tostring(L, -1));
  else
    lua_pushfstring(L, "task %d", (int)t->id);
  lua_remove(L, -2);
  return lua_tostring(L, -1);
}

int trace_error(lua_State *L, const char *format, ...) {
  lua_Debug ar;
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  lua_pushliteral(L, "");
  for (int level = 1; lua_getstack(L, level, &ar); level++) {
    lua_getinfo(L, "Sl", &ar);
    if (ar.currentline > 0 && strncmp(ar.short_src, "moonstash/", 10) != 0) {
      lua_pop(L, 1);
      lua_pushfstring(L, "%s:%d: ", ar.short_src, ar.currentline);
      break;
    }
  }
  va_list args;
  va_start(args, format);
  lua_pushvfstring(L, format, args);
  va_end(args);
  lua_concat(L, 2);
  return lua_error(L);
}

int trace_on_error(lua_State *L) {
  struct sched *s = lua_touserdata(L, lua_upvalueindex(1));
  struct task *t = s->current;
  lua_settop(L, 1);
  if (t == NULL || lua_isnil(L, 1))
    return 1;
  task_push_handle(L, t);
  task_push_record(L, 2, t);
  if (same_as(L, 3, "cancel")) { /* no news: nobody will read it */
    lua_settop(L, 1);
    return 1;
  }
  if (same_as(L, 3, "cause_err")) {
    const char *label = task_label(L, t, 3);
    lua_getfield(L, 3, "cause_trace");
    if (trace_is_own(L, 3)) { /* it only went through one of our xpcalls */
      trace_without_ours(L);
      lua_setfield(L, 3, "trace");
      lua_settop(L, 1);
      return 1;
    }
    if (lua_objlen(L, -1) > CAUSE_MAX_BYTES) { /* long enough to read */
      lua_setfield(L, 3, "trace");
      lua_settop(L, 1);
      return 1;
    }
    lua_pushfstring(L, "%s\npassed on to %s:", lua_tostring(L, -1), label);
  } else {
    push_message(L);
  }
  luaL_traceback(L, L, lua_tostring(L, -1), 1);
  trace_without_ours(L);
  lua_setfield(L, 3, "trace");
  lua_settop(L, 1);
  return 1;
}

void trace_note_cause(lua_State *L, struct task *t, int record) {
  lua_getfield(L, record, "trace");
  if (lua_isnil(L, -1)) {
    lua_pop(L, 1);
    return;
  }
  task_push_handle(L, t);
  task_push_record(L, -1, t);
  lua_remove(L, -2);
  lua_pushvalue(L, -2);
  lua_setfield(L, -2, "cause_trace");
  lua_getfield(L, record, "err");
  lua_setfield(L, -2, "cause_err");
  lua_pop(L, 2);
}
