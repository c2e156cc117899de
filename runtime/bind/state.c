/* Opens and closes the Lua state of one runtime, and starts its main tasks. */
#include <errno.h>
#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bind/bind.h"
#include "bind/pool.h"
#include "bind/redis.h"
#include "bind/trace.h"

enum { MAX_BYTES = 64 << 20 }; /* the store's bound without a setting */

#ifdef MOONSTASH_LUA_MALLOC
/* Sanitizers and valgrind see Lua's memory only when malloc gives it. */
static void *lua_malloc(void *ud, void *ptr, size_t osize, size_t nsize) {
  (void)ud;
  (void)osize;
  if (nsize > 0)
    return realloc(ptr, nsize);
  free(ptr);
  return NULL;
}

static lua_State *new_state(void) {
  return lua_newstate(lua_malloc, NULL);
}
#else
static lua_State *new_state(void) {
  return luaL_newstate();
}
#endif

void bind_add_functions(lua_State *L, struct bind *b, const luaL_Reg *f) {
  for (; f->name != NULL; f++) {
    lua_pushlightuserdata(L, b);
    lua_pushcclosure(L, f->func, 1);
    lua_setfield(L, -2, f->name);
  }
}

static void preload(lua_State *L, struct bind *b, const char *name,
                    lua_CFunction opener) {
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "preload");
  lua_pushlightuserdata(L, b);
  lua_pushcclosure(L, opener, 1);
  lua_setfield(L, -2, name);
  lua_pop(L, 2);
}

static int new_ref(lua_State *L) {
  lua_pushboolean(L, 0);
  return luaL_ref(L, LUA_REGISTRYINDEX);
}

/* Everything of opening that may raise. */
static int open_protected(lua_State *L) {
  struct bind *b = lua_touserdata(L, 1);
  struct sched *s = &b->sched;
  if (b->flags & BIND_NO_ENV) {
    lua_pushboolean(L, 1);
    lua_setfield(L, LUA_REGISTRYINDEX, "LUA_NOENV");
  }
  luaL_openlibs(L);
  preload(L, b, "moonstash.task", bind_open_task);
  preload(L, b, "moonstash.host", bind_open_host);
  preload(L, b, "moonstash.backend", bind_open_cache);
  preload(L, b, "moonstash.redis", bind_open_redis);
  preload(L, b, "moonstash.codec", bind_open_codec);
  preload(L, b, "moonstash.json", bind_open_json);
  preload(L, b, "moonstash.msgpack", bind_open_msgpack);
  preload(L, b, "moonstash.binary", bind_open_binary);
  struct sched_hooks hooks = {b->host.log, b->host.uncaught, b->host.ud};
  int rc = sched_open(s, L, s->loop, &hooks);
  if (rc < 0)
    return luaL_error(L, "cannot open the loop's handles: %s", uv_strerror(rc));
  s->error_mt = new_ref(L);
  s->defer_runner = new_ref(L);
  lua_pushlightuserdata(L, s);
  lua_pushcclosure(L, trace_on_error, 1);
  s->handler = luaL_ref(L, LUA_REGISTRYINDEX);

  lua_getglobal(L, "require");
  lua_pushstring(L, "moonstash.host");
  lua_call(L, 1, 1);
  lua_getfield(L, -1, "embedded");
  lua_pushstring(L, "moonstash.boot");
  lua_call(L, 1, 1);
  lua_call(L, 0, 0);
  return 0;
}

static size_t max_bytes_setting(struct bind *b) {
  struct bind_setting setting;
  for (int i = 0; b->host.setting(b->host.ud, i, &setting); i++)
    if (strcmp(setting.name, "memory_max_bytes") == 0)
      return (size_t)setting.number;
  return MAX_BYTES;
}

int bind_open(struct bind *b, uv_loop_t *loop, const struct bind_host *host,
              unsigned flags, const struct bind *share) {
  memset(b, 0, sizeof *b);
  b->host = *host;
  b->flags = flags;
  b->sched.loop = loop;
  b->pool =
      share != NULL ? pool_share(share->pool) : pool_open(max_bytes_setting(b));
  b->L = b->pool != NULL ? new_state() : NULL;
  if (b->L == NULL)
    return -ENOMEM;
  if (lua_cpcall(b->L, open_protected, b) != 0) {
    const char *message = lua_tostring(b->L, -1);
    b->host.log(b->host.ud, BIND_LOG_ERROR, message ? message : "open failed");
    if (b->sched.open_handles > 0)
      sched_close(&b->sched);
    return -EINVAL;
  }
  return 0;
}

/* Lets the replies come for which no task waits. */
static void drain_redis(struct bind *b, uint64_t until_ns) {
  while (bind_redis_busy(b) > 0 && uv_hrtime() < until_ns)
    uv_run(b->sched.loop, UV_RUN_ONCE);
}

void bind_drain(struct bind *b, unsigned drain_ms) {
  uint64_t until_ns = uv_hrtime() + (uint64_t)drain_ms * 1000000;
  int left = sched_drain(&b->sched, drain_ms);
  drain_redis(b, until_ns);
  if (left == 0 || b->sched.told_left)
    return;
  b->sched.told_left = 1; /* close drains once more */
  char line[80];
  snprintf(line, sizeof line, "closed while tasks were still running: %d",
           left);
  b->host.log(b->host.ud, BIND_LOG_WARN, line);
}

void bind_close(struct bind *b) {
  if (b->L != NULL)
    lua_close(b->L);
  bind_close_cache(b);
  bind_redis_free(b);
  if (b->pool != NULL)
    pool_close(b->pool);
  b->pool = NULL;
  b->L = NULL;
}

/* Pushes a table of strings, from index `first` on. */
static void push_strings(lua_State *L, int first, int n,
                         const char *const *strings) {
  lua_createtable(L, n, 1);
  for (int i = 0; i < n; i++) {
    lua_pushstring(L, strings[i]);
    lua_rawseti(L, -2, first + i);
  }
}

struct start { /* the argument of the protected functions below */
  struct bind *bind;
  const struct bind_chunk *chunk;
  const struct bind_cli *cli;
};

/* Spawns the function and nargs arguments on top of L as a main task. */
static void start_main(lua_State *L, struct bind *b, int nargs) {
  struct sched *s = &b->sched;
  struct task *t = sched_spawn(s, L, &s->root, nargs);
  t->flags |= TASK_MAIN;
  s->mains++;
  task_push_record(L, -1, t);
  lua_pushliteral(L, "main");
  lua_setfield(L, -2, "name");
}

static int start_chunk(lua_State *L) {
  struct start *start = lua_touserdata(L, 1);
  const struct bind_chunk *chunk = start->chunk;
  int status =
      chunk->source != NULL
          ? luaL_loadbuffer(L, chunk->source, chunk->len, chunk->chunkname)
          : luaL_loadfile(L, chunk->path);
  if (status != 0)
    return lua_error(L);
  push_strings(L, 1, chunk->argc, chunk->argv);
  lua_pushstring(L, chunk->source ? chunk->chunkname : chunk->path);
  lua_rawseti(L, -2, 0);
  lua_setglobal(L, "arg");
  luaL_checkstack(L, chunk->argc, "too many arguments");
  for (int i = 0; i < chunk->argc; i++)
    lua_pushstring(L, chunk->argv[i]);
  start_main(L, start->bind, chunk->argc);
  return 0;
}

static int start_cli(lua_State *L) {
  struct start *start = lua_touserdata(L, 1);
  const struct bind_cli *cli = start->cli;
  lua_getglobal(L, "require");
  lua_pushstring(L, "moonstash.cli");
  lua_call(L, 1, 1);
  push_strings(L, 1, cli->action_count, cli->actions);
  push_strings(L, 0, cli->argc, cli->argv);
  lua_pushinteger(L, cli->script);
  start_main(L, start->bind, 3);
  return 0;
}

static int start(struct bind *b, lua_CFunction fn, struct start *start,
                 char *err, size_t err_size) {
  start->bind = b;
  if (lua_cpcall(b->L, fn, start) == 0)
    return 0;
  const char *message = lua_tostring(b->L, -1);
  snprintf(err, err_size, "%s", message != NULL ? message : "error object");
  lua_pop(b->L, 1);
  return -1;
}

int bind_start_chunk(struct bind *b, const struct bind_chunk *chunk, char *err,
                     size_t err_size) {
  return start(b, start_chunk, &(struct start){.chunk = chunk}, err, err_size);
}

int bind_start_cli(struct bind *b, const struct bind_cli *cli, char *err,
                   size_t err_size) {
  return start(b, start_cli, &(struct start){.cli = cli}, err, err_size);
}
