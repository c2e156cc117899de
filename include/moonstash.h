/* Moonstash: a Lua-scriptable cache runtime, as a library.
 *
 * A runtime is one event loop, one LuaJIT state and its caches. It belongs to
 * the thread that opened it: unless a function says otherwise, call it from
 * there only. A process may have any number of runtimes; they share nothing
 * but a clock (and the thread that keeps it, see MOONSTASH_NO_THREAD), unless
 * they are opened to share their caches (moonstash_options.share).
 *
 *   moonstash *m;
 *   if (moonstash_open(&m, NULL) == 0) {
 *     moonstash_run_file(m, "app.lua", 0, NULL);
 *     int exit_code = moonstash_run(m);
 *     moonstash_close(m, 1000);
 *   }
 *
 * Functions that can fail return 0 or more on success and a negative
 * MOONSTASH_E code otherwise; moonstash_strerror names the code and
 * moonstash_last_error tells what happened. A runtime that is NULL is EINVAL.
 * A function that takes a callback and returns < 0 never calls it; otherwise
 * the callback runs exactly once, later, on the runtime's thread, also when
 * the runtime is closed.
 *
 * As a library Moonstash installs no signal handlers, writes nothing to stdout
 * or stderr and never calls exit: messages go to log_fn, uncaught errors to
 * error_fn, and os.exit only ends the runtime. (What a script prints goes to
 * stdout, as print and io.write do everywhere.)
 *
 * This header needs nothing but the C library's <stddef.h> and <stdint.h>.
 */
#ifndef MOONSTASH_H
#define MOONSTASH_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#error "Moonstash runs on Linux"
#endif
#if defined(MOONSTASH_BUILD)
#define MOONSTASH_API __attribute__((visibility("default")))
#else
#define MOONSTASH_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define MOONSTASH_VERSION "0.1.0"
#define MOONSTASH_VERSION_NUMBER 100 /* major * 10000 + minor * 100 + patch */

typedef struct moonstash moonstash; /* a runtime */

/* What a call returns when it fails. New codes may be added. */
enum {
  MOONSTASH_OK = 0,
  MOONSTASH_EINVAL = -1,  /* an argument, or a setting, is wrong */
  MOONSTASH_ENOMEM = -2,  /* out of memory */
  MOONSTASH_EIO = -3,     /* the event loop or a file cannot be opened */
  MOONSTASH_ESYNTAX = -4, /* the Lua source does not compile */
  MOONSTASH_ELUA = -5,    /* the runtime cannot go on */
  MOONSTASH_EBUSY = -6,   /* called from inside the runtime's own loop */
  MOONSTASH_EEXITED = -7  /* a script has called os.exit: no more can start */
};

/* Levels of log_fn, and of the setting MOONSTASH_LOG, which picks what is
 * passed on at all (warn and above by default). */
enum {
  MOONSTASH_LOG_ERROR = 0,
  MOONSTASH_LOG_WARN = 1,
  MOONSTASH_LOG_INFO = 2,
  MOONSTASH_LOG_DEBUG = 3
};

enum {                       /* moonstash_options.flags */
       MOONSTASH_NO_ENV = 1, /* read no environment variable (CACHE_*, LUA_*) */
       MOONSTASH_NO_THREAD =
           2,               /* start no clock thread: each reading of the clock
                               is a system call then; holds for the process */
       MOONSTASH_NO_FFI = 4 /* caches use the C API instead of LuaJIT's FFI */
};

/* How to open a runtime. Start from MOONSTASH_OPTIONS_INIT: fields are only
 * ever added at the end, and size tells which the caller knows. */
typedef struct moonstash_options {
  size_t size;    /* sizeof(moonstash_options) */
  unsigned flags; /* MOONSTASH_NO_ flags */

  /* Gets each log line, without a newline; valid during the call. NULL drops
   * them. Must not call the runtime, and must return. */
  void (*log_fn)(void *ud, int level, const char *line);

  /* Gets the error of a task that nobody joins. task: "main" for a script,
   * else "task <number>". trace: the message and the stack, across tasks;
   * valid during the call. A nil error is not reported. NULL drops them. Must
   * not call the runtime, and must return. */
  void (*error_fn)(void *ud, const char *task, const char *trace);

  void *ud; /* passed to both */

  /* Another open runtime whose memory caches this one shares: aliases of the
   * same name have the same entries, within the same bound, and a load is one
   * for all (also of a key on Redis): whoever asks meanwhile waits for it, on
   * whatever thread. NULL: caches of its own.
   *
   * That runtime may be running on another thread, but must not be closed
   * before this call has returned. After that any of those that share may be
   * closed first; who waits for a load of its then loads by itself. A runtime
   * that has a load under way must be run, polled or closed, or others wait
   * for it; runtimes on one thread do not wait for each other's loads.
   *
   * The bound is the setting of the runtime whose caches they were at first.
   * Errors reach other runtimes as {code, message} or as text, values of the
   * serializer "none" not at all. What one configures (cache.configure_caches)
   * holds for itself, but for memory_max_bytes and an alias's max_bytes;
   * cache.testing.advance moves the clock of one. A class has to be registered
   * in each. */
  moonstash *share;
} moonstash_options;

#define MOONSTASH_OPTIONS_INIT \
  { sizeof(moonstash_options), 0, 0, 0, 0, 0 }

/* The library's version: MOONSTASH_VERSION as it was built. Any thread. */
MOONSTASH_API const char *moonstash_version(void);
MOONSTASH_API unsigned moonstash_version_number(void);

/* A short English name of a MOONSTASH_E code, never NULL. Any thread. */
MOONSTASH_API const char *moonstash_strerror(int code);

/* What the last failing call of this runtime had to say: one line, or "" when
 * none has failed yet. Valid until the next failing call. */
MOONSTASH_API const char *moonstash_last_error(const moonstash *m);

/* Opens a runtime; options NULL = defaults. On failure *out is NULL and the
 * reason went to log_fn: EINVAL for a setting in the environment that cannot
 * be read, or an unknown flag or field; ENOMEM; EIO. (EINVAL without a line:
 * out is NULL, or options.size was not set.) */
MOONSTASH_API int moonstash_open(moonstash **out,
                                 const moonstash_options *options);

/* Cancels all tasks and runs the loop until they have ended, for at most
 * drain_ms milliseconds; what has not ended by then is dropped as it stands,
 * with a warning to log_fn. Then frees everything. uv handles that the host
 * has left on the loop are closed without a callback, callbacks of its pending
 * requests run, and the Lua state goes last: handles and requests are the
 * host's to free after that. m may be NULL. Returns 0, or EBUSY when called
 * from inside the runtime (nothing happens then). */
MOONSTASH_API int moonstash_close(moonstash *m, unsigned drain_ms);

/* Starts a script as a main task; it runs in the turns that follow (run or
 * poll). argv[0..argc-1] become its `...` and arg[1..argc], the path arg[0];
 * all are copied. May be called from a C function that Lua has called. EINVAL
 * for a missing path or argument, EIO when the file cannot be read, ESYNTAX
 * when it does not compile, EEXITED after os.exit. */
MOONSTASH_API int moonstash_run_file(moonstash *m, const char *path, int argc,
                                     const char *const *argv);

/* The same for Lua source, or bytecode, in memory. chunkname as in
 * luaL_loadbuffer ("=name" or "@file"); NULL = "=buffer". The source is copied.
 */
MOONSTASH_API int moonstash_run_buffer(moonstash *m, const char *source,
                                       size_t length, const char *chunkname);

/* Runs until every main task, and with it its children, has ended; at once
 * when there is none. Returns the exit code: after os.exit(n) the low 8 bits
 * of n, as a process would; else 1 when a script failed of those started since
 * all had last ended; else 0. When every task waits and nothing can ever wake
 * one, the main tasks fail with an error that says so. EBUSY; or ELUA, after
 * which only close helps. */
MOONSTASH_API int moonstash_run(moonstash *m);

/* Runs what is ready, for about budget_us microseconds: one frame of a host
 * with a loop of its own. Never blocks; 0 is one turn of the loop. A task that
 * does not wait is not interrupted, so a frame may be longer by one slice.
 * Returns 1 while main tasks are left, 0 when all have ended (moonstash_run
 * then gives the exit code at once), EBUSY, or ELUA. */
MOONSTASH_API int moonstash_poll(moonstash *m, uint64_t budget_us);

/* For C functions of the host: the Lua state's main thread, and the libuv
 * loop; NULL for NULL. Both live until moonstash_close. Once a script has
 * required "cache", the loop has a timer, about once a second: what has expired
 * is freed then. It does not keep the loop alive.
 *
 * Register functions before scripts run. Outside a function that Lua has
 * called, call Lua with lua_pcall only: an error that nothing catches ends the
 * process. Code that runs outside a task cannot wait. Never run the loop, or
 * moonstash_run and moonstash_poll from a callback of it (EBUSY). To let a task
 * wait for a callback, give Lua a C function that takes a function, keeps it
 * with luaL_ref and calls it later from a loop callback; Lua waits in
 * task.await(function(resume) later(ms, resume) end). */
MOONSTASH_API struct lua_State *moonstash_lua(moonstash *m);
MOONSTASH_API struct uv_loop_s *moonstash_loop(moonstash *m);

#ifdef __cplusplus
}
#endif

#endif
