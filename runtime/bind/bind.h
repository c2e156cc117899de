/* The bindings: one Lua state with Moonstash's C modules in it.
 *
 * bind_open makes the state, its scheduler and its modules; the host above
 * drives it. What the bindings need of the host they name here, as functions:
 * they never include it. Only files of this folder touch the Lua C API.
 */
#ifndef MOONSTASH_BIND_BIND_H
#define MOONSTASH_BIND_BIND_H

#include <lauxlib.h>
#include <lua.h>
#include <stddef.h>

#include "bind/sched.h"

#define BIND_TASK "moonstash.task" /* the metatable of task handles */
#define BIND_VERSION "0.1.0"

enum { BIND_LOG_ERROR, BIND_LOG_WARN, BIND_LOG_INFO, BIND_LOG_DEBUG };

enum {                  /* bind_options.flags */
       BIND_NO_ENV = 1, /* LUA_PATH, LUA_CPATH are not read */
       BIND_NO_FFI = 2  /* the cache uses C functions instead of FFI calls */
};

/* One setting as Lua and --env see it. Strings live until settings change. */
struct bind_setting {
  const char *name;     /* "default_ttl" */
  const char *variable; /* "CACHE_DEFAULT_TTL" */
  const char *source;   /* "default", "environment", ... */
  const char *text;     /* NULL: unset */
  double number;        /* booleans 0, 1 */
  char kind;            /* 'b', 'n', 's' */
  char shown[256];      /* secrets masked */
};

struct redis_options; /* redis/conn.h */

struct bind_host {
  void *ud;
  void (*log)(void *ud, int level, const char *line);
  void (*uncaught)(void *ud, const struct task *t, const char *trace);
  /* The i-th setting; 0 when there is none. */
  int (*setting)(void *ud, int i, struct bind_setting *out);
  /* Overlays n settings, all or none. 0, or -1 with one line in err. */
  int (*configure)(void *ud, const char *const *names, const char *const *texts,
                   int n, char *err, size_t size);
  /* Fills in where Redis is, as configured: 1; 0 it is not; -1 with one line
   * in err. *out is zeroed before. */
  int (*redis)(void *ud, struct redis_options *out, char *err, size_t size);
};

struct cache_bind; /* bind/cache.c's own */
struct redis_bind; /* bind/redis.c's own */
struct pool;       /* bind/pool.h */

struct bind {
  lua_State *L;
  struct sched sched;
  struct bind_host host;
  struct pool *pool;        /* what its caches share; one reference */
  struct cache_bind *cache; /* NULL until the cache is first used */
  struct redis_bind *redis; /* NULL until Redis is first asked for */
  unsigned flags;
};

/* Makes the state on a loop; its caches are those of `share`, which may run on
 * another thread, unless that is NULL. 0, or a negative errno with a line
 * logged. */
int bind_open(struct bind *b, uv_loop_t *loop, const struct bind_host *host,
              unsigned flags, const struct bind *share);
/* Ends the tasks (at most drain_ms), begins to close the handles. */
void bind_drain(struct bind *b, unsigned drain_ms);
/* Frees the state; the loop must have closed the scheduler's handles. */
void bind_close(struct bind *b);

/* A chunk to run as a main task: the file at path, or len bytes of source.
 * argv goes to `...` and to arg; path or chunkname to arg[0]. */
struct bind_chunk {
  const char *path;
  const char *source; /* NULL: load path */
  const char *chunkname;
  size_t len;
  int argc;
  const char *const *argv;
};
/* Starts it. 0; or -1 with the message (a syntax error, no such file) in err.
 */
int bind_start_chunk(struct bind *b, const struct bind_chunk *chunk, char *err,
                     size_t err_size);
/* What a command line asks for, in order: each action is a letter (e, l, j, O,
 * i, v ...) and its argument. argv is the whole command line; script is the
 * index of the script in it, argc when there is none. */
struct bind_cli {
  const char *const *actions;
  int action_count;
  const char *const *argv;
  int argc, script;
};
/* Starts a main task that carries it out (lua/moonstash/cli.lua). */
int bind_start_cli(struct bind *b, const struct bind_cli *cli, char *err,
                   size_t err_size);

/* The modules' openers; each expects struct bind * as a light userdata
 * upvalue and leaves its table on the stack. */
int bind_open_task(lua_State *L);
int bind_open_host(lua_State *L);
int bind_open_cache(lua_State *L);
int bind_open_redis(lua_State *L);
int bind_open_codec(lua_State *L);
int bind_open_json(lua_State *L);
int bind_open_msgpack(lua_State *L);
int bind_open_binary(lua_State *L);
/* Adds functions to the table on top of L, with b as their upvalue. */
void bind_add_functions(lua_State *L, struct bind *b, const luaL_Reg *f);
/* Begins to close the cache's handles: the loop runs until they are gone. */
void bind_stop_cache(struct bind *b);
/* Frees the cache's stores; views must not be used any more. */
void bind_close_cache(struct bind *b);

/* The Lua files that are built in (made by the build). */
struct bind_embedded {
  const char *name; /* module name, "cache.key" */
  const char *file; /* chunk name, "@moonstash/cache/key.lua" */
  const char *source;
  size_t length;
};
extern const struct bind_embedded bind_embedded[]; /* ends with name NULL */

#endif
