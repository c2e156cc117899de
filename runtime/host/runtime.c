/* One runtime: a libuv loop, a Lua state with its scheduler, settings, log.
 *
 * Owns all of them and frees them in this order: tasks are cancelled and
 * drained, the handles closed - the scheduler's, and what the embedder has
 * left on the loop - and the loop run until they are gone, the state closed,
 * its stores freed, the loop closed, settings last. So every callback of the
 * loop finds a Lua state that is alive.
 */
#define _GNU_SOURCE
#include "host/runtime.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bind/redis.h"
#include "clock.h"
#include "host/redis_options.h"
#include "host/settings.h"

enum {
  LINE_MAX_BYTES = 1024,
  EXIT_CODE_MASK = 0xff, /* as the system keeps it; never negative */
  KNOWN_FLAGS = MOONSTASH_NO_ENV | MOONSTASH_NO_THREAD | MOONSTASH_NO_FFI
};

/* A poll of an hour is as good as any longer one, and cannot overflow. */
#define BUDGET_MAX_US ((uint64_t)3600 * 1000 * 1000)

struct moonstash {
  moonstash_options options; /* ours: fields the caller does not know are 0 */
  uv_loop_t loop;
  uv_timer_t drain_limit; /* on during a drain; never keeps the loop alive */
  struct bind bind;
  struct settings *settings;
  int log_level;
  int running;                /* inside run, poll or close */
  char error[LINE_MAX_BYTES]; /* moonstash_last_error */
};

const char *moonstash_version(void) {
  return MOONSTASH_VERSION;
}

unsigned moonstash_version_number(void) {
  return MOONSTASH_VERSION_NUMBER;
}

const char *moonstash_strerror(int code) {
  switch (code) {
  case MOONSTASH_OK:
    return "no error";
  case MOONSTASH_EINVAL:
    return "invalid argument or setting";
  case MOONSTASH_ENOMEM:
    return "out of memory";
  case MOONSTASH_EIO:
    return "cannot open the event loop or a file";
  case MOONSTASH_ESYNTAX:
    return "the Lua source does not compile";
  case MOONSTASH_ELUA:
    return "the runtime cannot go on";
  case MOONSTASH_EBUSY:
    return "called from inside the runtime";
  case MOONSTASH_EEXITED:
    return "a script has called os.exit";
  }
  return "unknown error";
}

const char *moonstash_last_error(const moonstash *m) {
  return m != NULL ? m->error : "";
}

static void log_line(void *ud, int level, const char *line) {
  moonstash *m = ud;
  if (m->options.log_fn != NULL && level <= m->log_level)
    m->options.log_fn(m->options.ud, level, line);
}

static void log_warning(void *ud, const char *line) {
  log_line(ud, MOONSTASH_LOG_WARN, line);
}

static void uncaught(void *ud, const struct task *t, const char *trace) {
  moonstash *m = ud;
  char name[32];
  snprintf(name, sizeof name, "task %llu", (unsigned long long)t->id);
  if (trace != NULL && m->options.error_fn != NULL)
    m->options.error_fn(m->options.ud, t->flags & TASK_MAIN ? "main" : name,
                        trace);
}

static int fail(moonstash *m, int code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(m->error, sizeof m->error, format, args);
  va_end(args);
  return code;
}

/* ---- settings ---- */

/* This version has no metrics to fetch: what is configured must not be
 * ignored. */
static int refuse_later(const struct settings *s, char *err, size_t size) {
  struct redis_options options;
  if (settings_is_set(s, SETTING_METRICS_LISTEN)) {
    snprintf(err, size, "%s: not in this version",
             settings_variable(SETTING_METRICS_LISTEN));
    return -1;
  }
  return redis_options_read(s, &options, err, size) < 0 ? -1 : 0;
}

static int level_of(const char *name) {
  static const char *const levels[] = {"error", "warn", "info", "debug"};
  for (int i = 0; name != NULL && i < 4; i++)
    if (strcmp(name, levels[i]) == 0)
      return i;
  return MOONSTASH_LOG_WARN;
}

static int get_setting(void *ud, int i, struct bind_setting *out) {
  moonstash *m = ud;
  if (i < 0 || i >= SETTING_COUNT)
    return 0;
  out->name = settings_name(i);
  out->variable = settings_variable(i);
  out->source = settings_source(m->settings, i);
  out->text = settings_text(m->settings, i);
  out->number = settings_number(m->settings, i);
  out->kind = settings_kind(i);
  settings_show(m->settings, i, out->shown, sizeof out->shown);
  return 1;
}

static int configure(void *ud, const char *const *names,
                     const char *const *texts, int n, char *err, size_t size) {
  moonstash *m = ud;
  struct settings *next = settings_copy(m->settings);
  int rc = next != NULL ? 0 : -1;
  if (rc < 0)
    snprintf(err, size, "not enough memory");
  for (int i = 0; i < n && rc == 0; i++) {
    const char *nearest = NULL;
    int id = settings_find(names[i], &nearest);
    if (id < 0) {
      snprintf(err, size, "'%s' is not a setting%s%s%s", names[i],
               nearest ? "; did you mean '" : "", nearest ? nearest : "",
               nearest ? "'?" : "");
      rc = -1;
    } else {
      rc = settings_put(next, id, texts[i], err, size);
    }
  }
  if (rc == 0)
    rc = settings_check(next, err, size);
  if (rc == 0)
    rc = refuse_later(next, err, size);
  if (rc < 0) {
    settings_close(next);
    return -1;
  }
  settings_close(m->settings);
  m->settings = next;
  m->log_level = level_of(settings_text(next, SETTING_LOG));
  return 0;
}

static int get_redis(void *ud, struct redis_options *out, char *err,
                     size_t size) {
  moonstash *m = ud;
  return redis_options_read(m->settings, out, err, size);
}

/* Reads the environment. */
static int read_settings(moonstash *m) {
  char err[LINE_MAX_BYTES];
  char *none[] = {NULL};
  int no_env = (m->options.flags & MOONSTASH_NO_ENV) != 0;
  if (settings_open(&m->settings, no_env ? none : environ, log_warning, m, err,
                    sizeof err) < 0) {
    log_line(m, MOONSTASH_LOG_ERROR, err);
    return MOONSTASH_EINVAL;
  }
  m->log_level = level_of(settings_text(m->settings, SETTING_LOG));
  return 0;
}

/* Refuses what this version does not have. */
static int check_settings(moonstash *m) {
  char err[LINE_MAX_BYTES];
  if (refuse_later(m->settings, err, sizeof err) == 0)
    return 0;
  log_line(m, MOONSTASH_LOG_ERROR, err);
  return MOONSTASH_EINVAL;
}

/* ---- open ---- */

/* Takes over what the caller knows of the options: a caller built with an
 * older header gives fewer bytes, one built with a newer header more, and what
 * we do not know of those must be unused. */
static int read_options(moonstash *m, const moonstash_options *given) {
  if (given->size < offsetof(moonstash_options, log_fn))
    return MOONSTASH_EINVAL; /* nothing in it can be trusted */
  size_t known = sizeof m->options;
  memcpy(&m->options, given, given->size < known ? given->size : known);
  const char *bytes = (const char *)given;
  for (size_t i = known; i < given->size; i++)
    if (bytes[i] != 0) {
      log_line(m, MOONSTASH_LOG_ERROR,
               "open: the options hold a field that this version lacks");
      return MOONSTASH_EINVAL;
    }
  if (m->options.flags & ~(unsigned)KNOWN_FLAGS) {
    log_line(m, MOONSTASH_LOG_ERROR, "open: unknown flags");
    return MOONSTASH_EINVAL;
  }
  return 0;
}

static int open_loop(moonstash *m) {
  int rc = clock_open(!(m->options.flags & MOONSTASH_NO_THREAD));
  if (rc == 0)
    rc = uv_loop_init(&m->loop);
  if (rc < 0) {
    log_line(m, MOONSTASH_LOG_ERROR, uv_strerror(rc));
    return MOONSTASH_EIO;
  }
  uv_timer_init(&m->loop, &m->drain_limit);
  uv_unref((uv_handle_t *)&m->drain_limit);
  return 0;
}

static void close_left_over(uv_handle_t *handle, void *ud) {
  (void)ud;
  if (!uv_is_closing(handle))
    uv_close(handle, NULL);
}

/* Closes what is left on the loop and runs it until it is empty. */
static void empty_loop(moonstash *m) {
  uv_walk(&m->loop, close_left_over, NULL);
  while (uv_loop_alive(&m->loop))
    uv_run(&m->loop, UV_RUN_ONCE);
}

/* Frees the state and the loop. The scheduler has begun to close. */
static void close_bind(moonstash *m) {
  bind_redis_close(&m->bind);
  bind_stop_cache(&m->bind);
  empty_loop(m);
  assert(m->bind.sched.open_handles == 0);
  bind_close(&m->bind);
  empty_loop(m); /* finalizers may have closed something */
  int rc = uv_loop_close(&m->loop);
  assert(rc == 0);
  (void)rc;
}

static int open_bind(moonstash *m) {
  struct bind_host host = {m,           log_line,  uncaught,
                           get_setting, configure, get_redis};
  unsigned flags = m->options.flags;
  const struct bind *share = m->options.share ? &m->options.share->bind : NULL;
  int rc = bind_open(&m->bind, &m->loop, &host,
                     (flags & MOONSTASH_NO_ENV ? BIND_NO_ENV : 0) |
                         (flags & MOONSTASH_NO_FFI ? BIND_NO_FFI : 0),
                     share);
  m->options.share = NULL; /* it may close before this one */
  if (rc == 0)
    return 0;
  close_bind(m);
  if (rc != -ENOMEM)
    return MOONSTASH_EIO;
  log_line(m, MOONSTASH_LOG_ERROR, "open: not enough memory");
  return MOONSTASH_ENOMEM;
}

/* Connects to Redis, if the start depends on it. */
static int require_redis(moonstash *m) {
  char err[LINE_MAX_BYTES / 2], line[LINE_MAX_BYTES];
  if (settings_number(m->settings, SETTING_REQUIRE_REDIS) == 0 ||
      bind_redis_require(&m->bind, err, sizeof err) == 0)
    return 0;
  snprintf(line, sizeof line, "%s (%s is on)", err,
           settings_variable(SETTING_REQUIRE_REDIS));
  log_line(m, MOONSTASH_LOG_ERROR, line);
  sched_close(&m->bind.sched);
  close_bind(m);
  return MOONSTASH_EIO;
}

int moonstash_open(moonstash **out, const moonstash_options *options) {
  if (out == NULL)
    return MOONSTASH_EINVAL;
  *out = NULL;
  moonstash *m = calloc(1, sizeof *m);
  if (m == NULL)
    return MOONSTASH_ENOMEM;
  m->log_level = MOONSTASH_LOG_WARN;
  int rc = options != NULL ? read_options(m, options) : 0;
  if (rc == 0)
    rc = read_settings(m);
  if (rc == 0)
    rc = check_settings(m);
  if (rc == 0)
    rc = open_loop(m);
  if (rc == 0)
    rc = open_bind(m);
  if (rc == 0)
    rc = require_redis(m);
  if (rc < 0) {
    settings_close(m->settings);
    free(m);
    return rc;
  }
  *out = m;
  return 0;
}

static void on_drain_limit(uv_timer_t *timer) {
  (void)timer; /* the loop has come back: that is all */
}

/* Ends the tasks. The timer brings the loop back in time from a wait for
 * something far off; it repeats because its clock may be a little early. */
static void drain(moonstash *m, unsigned drain_ms) {
  uv_update_time(&m->loop);
  uv_timer_start(&m->drain_limit, on_drain_limit, drain_ms, 1);
  bind_drain(&m->bind, drain_ms);
  uv_timer_stop(&m->drain_limit);
}

int moonstash_close(moonstash *m, unsigned drain_ms) {
  if (m == NULL)
    return 0;
  if (m->running)
    return fail(m, MOONSTASH_EBUSY, "close: called from inside the runtime");
  m->running = 1;
  drain(m, drain_ms);
  sched_close(&m->bind.sched);
  close_bind(m);
  settings_close(m->settings);
  free(m);
  return 0;
}

/* ---- scripts ---- */

/* Starts a main task. The exit code is that of the scripts started since the
 * last time all had ended. */
static int start(moonstash *m, const struct bind_chunk *chunk) {
  if (m->bind.sched.exiting)
    return fail(m, MOONSTASH_EEXITED, "a script has called os.exit");
  if (m->bind.sched.mains == 0)
    m->bind.sched.main_failed = 0;
  return bind_start_chunk(&m->bind, chunk, m->error, sizeof m->error) == 0
             ? 0
             : MOONSTASH_ESYNTAX;
}

/* Tells a file that cannot be read from one that does not compile. */
static int check_readable(moonstash *m, const char *path) {
  struct stat st;
  if (access(path, R_OK) == 0 && stat(path, &st) == 0) {
    if (!S_ISDIR(st.st_mode))
      return 0;
    errno = EISDIR;
  }
  return fail(m, MOONSTASH_EIO, "cannot read %s: %s", path, strerror(errno));
}

static int arguments_are_strings(int argc, const char *const *argv) {
  if (argc < 0 || (argc > 0 && argv == NULL))
    return 0;
  for (int i = 0; i < argc; i++)
    if (argv[i] == NULL)
      return 0;
  return 1;
}

int moonstash_run_file(moonstash *m, const char *path, int argc,
                       const char *const *argv) {
  if (m == NULL)
    return MOONSTASH_EINVAL;
  if (path == NULL || !arguments_are_strings(argc, argv))
    return fail(m, MOONSTASH_EINVAL, "run_file: path or argv is missing");
  int rc = check_readable(m, path);
  if (rc < 0)
    return rc;
  return start(m,
               &(struct bind_chunk){.path = path, .argc = argc, .argv = argv});
}

int moonstash_run_buffer(moonstash *m, const char *source, size_t length,
                         const char *chunkname) {
  if (m == NULL)
    return MOONSTASH_EINVAL;
  if (source == NULL)
    return fail(m, MOONSTASH_EINVAL, "run_buffer: source is NULL");
  return start(
      m, &(struct bind_chunk){.source = source,
                              .len = length,
                              .chunkname = chunkname ? chunkname : "=buffer"});
}

int runtime_run_cli(moonstash *m, const struct bind_cli *cli) {
  return bind_start_cli(&m->bind, cli, m->error, sizeof m->error) == 0
             ? 0
             : MOONSTASH_ELUA;
}

void runtime_drain(moonstash *m, unsigned drain_ms) {
  m->running = 1;
  drain(m, drain_ms);
  m->running = 0;
}

int moonstash_run(moonstash *m) {
  if (m == NULL)
    return MOONSTASH_EINVAL;
  if (m->running)
    return fail(m, MOONSTASH_EBUSY, "run: called from inside the runtime");
  m->running = 1;
  int rc = sched_run(&m->bind.sched);
  m->running = 0;
  if (rc < 0 && m->bind.sched.pump_error)
    return fail(m, MOONSTASH_ELUA, "the scheduler ran out of memory");
  if (rc < 0)
    return 1; /* a deadlock in a shield: error_fn has told */
  if (m->bind.sched.exiting)
    return m->bind.sched.exit_code & EXIT_CODE_MASK;
  return m->bind.sched.main_failed;
}

int moonstash_poll(moonstash *m, uint64_t budget_us) {
  if (m == NULL)
    return MOONSTASH_EINVAL;
  if (m->running)
    return fail(m, MOONSTASH_EBUSY, "poll: called from inside the runtime");
  m->running = 1;
  sched_poll(&m->bind.sched,
             budget_us < BUDGET_MAX_US ? budget_us : BUDGET_MAX_US);
  m->running = 0;
  if (m->bind.sched.pump_error)
    return fail(m, MOONSTASH_ELUA, "the scheduler ran out of memory");
  return m->bind.sched.mains > 0;
}

struct lua_State *moonstash_lua(moonstash *m) {
  return m != NULL ? m->bind.L : NULL;
}

struct uv_loop_s *moonstash_loop(moonstash *m) {
  return m != NULL ? &m->loop : NULL;
}

void runtime_interrupt(moonstash *m, int signo) {
  sched_interrupt(&m->bind.sched, signo);
}

int runtime_show_settings(const moonstash_options *options,
                          void (*write)(void *ud, const char *line), void *ud) {
  char shown[256], line[LINE_MAX_BYTES];
  moonstash m = {.options = *options, .log_level = MOONSTASH_LOG_WARN};
  int rc = read_settings(&m);
  for (int i = 0; rc == 0 && i < SETTING_COUNT; i++) {
    settings_show(m.settings, i, shown, sizeof shown);
    snprintf(line, sizeof line, "%-28s %-24s %s", settings_variable(i), shown,
             settings_source(m.settings, i));
    write(ud, line);
  }
  if (rc == 0)
    rc = check_settings(&m);
  settings_close(m.settings);
  return rc;
}
