/* moonstash.h as an embedder uses it: only the public header, the shared
 * library, and what moonstash_lua and moonstash_loop hand out. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants the four above */
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <lua.h>
#include <moonstash.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

enum {
  TEXT_BYTES = 16384,
  DRAIN_MS = 5000,
  FRAME_US = 2000,
  US_PER_MS = 1000,
  NS_PER_US = 1000
};

/* What a runtime has told its host. */
struct host {
  moonstash *m;
  char log[TEXT_BYTES];    /* "level line\n" each */
  char errors[TEXT_BYTES]; /* "task: trace\n" each */
  int error_count;
};

static void append(char *text, const char *format, ...) {
  size_t length = strlen(text);
  va_list args;
  va_start(args, format);
  vsnprintf(text + length, TEXT_BYTES - length, format, args);
  va_end(args);
}

static void on_log(void *ud, int level, const char *line) {
  append(((struct host *)ud)->log, "%d %s\n", level, line);
}

static void on_error(void *ud, const char *task, const char *trace) {
  struct host *h = ud;
  h->error_count++;
  append(h->errors, "%s: %s\n", task, trace);
}

static moonstash_options options_of(struct host *h, unsigned flags) {
  moonstash_options options = MOONSTASH_OPTIONS_INIT;
  options.flags = flags;
  options.log_fn = on_log;
  options.error_fn = on_error;
  options.ud = h;
  return options;
}

static int open_host(struct host *h, unsigned flags) {
  memset(h, 0, sizeof *h);
  moonstash_options options = options_of(h, flags);
  return moonstash_open(&h->m, &options);
}

static int setup(void **state) {
  struct host *h = malloc(sizeof *h);
  *state = h;
  return h != NULL ? open_host(h, 0) : -1;
}

static int teardown(void **state) {
  struct host *h = *state;
  int rc = moonstash_close(h->m, DRAIN_MS);
  free(h);
  return rc;
}

/* A host without a runtime, for tests that open theirs. */
static int setup_closed(void **state) {
  *state = calloc(1, sizeof(struct host));
  return *state != NULL ? 0 : -1;
}

static int teardown_closed(void **state) {
  free(*state);
  return 0;
}

static void load(moonstash *m, const char *source) {
  int rc = moonstash_run_buffer(m, source, strlen(source), "=test");
  if (rc < 0)
    fail_msg("%s: %s", moonstash_strerror(rc), moonstash_last_error(m));
}

static int run(moonstash *m, const char *source) {
  load(m, source);
  return moonstash_run(m);
}

/* Runs a script that must end well; says why when it does not. */
static void run_well(struct host *h, const char *source) {
  int code = run(h->m, source);
  if (code != 0 || h->errors[0] != '\0')
    fail_msg("exit code %d\n%s%s", code, h->errors, h->log);
}

static void assert_has(const char *text, const char *part) {
  if (strstr(text, part) == NULL)
    fail_msg("no '%s' in '%s'", part, text);
}

/* A global of the runtime, as a string ("nil" for nil). */
static const char *global(moonstash *m, const char *name) {
  static char text[256];
  lua_State *L = moonstash_lua(m);
  lua_getglobal(L, "tostring");
  lua_getglobal(L, name);
  assert_int_equal(lua_pcall(L, 1, 1, 0), 0);
  snprintf(text, sizeof text, "%s", lua_tostring(L, -1));
  lua_pop(L, 1);
  return text;
}

static uint64_t now_us(void) {
  return uv_hrtime() / NS_PER_US;
}

/* ---- names and numbers ---- */

static void version_is_that_of_the_header(void **state) {
  (void)state;
  int major, minor, patch;
  assert_string_equal(moonstash_version(), MOONSTASH_VERSION);
  assert_int_equal(
      sscanf(MOONSTASH_VERSION, "%d.%d.%d", &major, &minor, &patch), 3);
  assert_int_equal(moonstash_version_number(), MOONSTASH_VERSION_NUMBER);
  assert_int_equal(MOONSTASH_VERSION_NUMBER,
                   major * 10000 + minor * 100 + patch);
}

static void every_code_has_a_name_of_its_own(void **state) {
  (void)state;
  for (int code = MOONSTASH_EEXITED; code <= 0; code++) {
    assert_string_not_equal(moonstash_strerror(code), "unknown error");
    for (int other = code + 1; other <= 0; other++)
      assert_string_not_equal(moonstash_strerror(code),
                              moonstash_strerror(other));
  }
  assert_string_equal(moonstash_strerror(1), "unknown error");
  assert_string_equal(moonstash_strerror(-1000), "unknown error");
}

/* ---- open ---- */

static void opens_with_the_defaults(void **state) {
  (void)state;
  moonstash *m;
  assert_int_equal(moonstash_open(&m, NULL), 0);
  assert_string_equal(moonstash_last_error(m), "");
  assert_int_equal(run(m, "error 'dropped: there is no error_fn'"), 1);
  assert_int_equal(moonstash_close(m, 0), 0);
}

static void refuses_bad_options(void **state) {
  struct host *h = *state;
  moonstash_options options = options_of(h, 0);
  assert_int_equal(moonstash_open(NULL, &options), MOONSTASH_EINVAL);

  h->m = (moonstash *)h;
  options.size = 0;
  assert_int_equal(moonstash_open(&h->m, &options), MOONSTASH_EINVAL);
  assert_null(h->m);
  assert_string_equal(h->log, "");

  options = options_of(h, 1u << 20);
  assert_int_equal(moonstash_open(&h->m, &options), MOONSTASH_EINVAL);
  assert_string_equal(h->log, "0 open: unknown flags\n");
}

static void takes_options_of_an_older_caller(void **state) {
  struct host *h = *state;
  struct { /* the options of a version that had only these two fields */
    size_t size;
    unsigned flags;
    char beyond[64];
  } older = {.flags = MOONSTASH_NO_ENV};
  older.size = offsetof(moonstash_options, log_fn);
  memset(older.beyond, 0x5a, sizeof older.beyond); /* not ours to read */
  assert_int_equal(moonstash_open(&h->m, (moonstash_options *)&older), 0);
  assert_int_equal(run(h->m, "error 'nobody to tell'"), 1);
  assert_int_equal(run(h->m, "assert(require 'moonstash.host'.no_env)"), 0);
  moonstash_close(h->m, 0);
}

static void
takes_options_of_a_newer_caller_that_uses_nothing_new(void **state) {
  struct host *h = *state;
  struct {
    moonstash_options known;
    void *unknown;
  } newer = {options_of(h, 0), NULL};
  newer.known.size = sizeof newer;
  assert_int_equal(moonstash_open(&h->m, &newer.known), 0);
  moonstash_close(h->m, 0);

  newer.unknown = h;
  assert_int_equal(moonstash_open(&h->m, &newer.known), MOONSTASH_EINVAL);
  assert_null(h->m);
  assert_has(h->log,
             "0 open: the options hold a field that this version lacks");
}

static void reads_the_environment_and_names_what_it_cannot_read(void **state) {
  struct host *h = *state;
  setenv("CACHE_DEFAULT_TTL", "soon", 1);
  assert_int_equal(open_host(h, 0), MOONSTASH_EINVAL);
  assert_null(h->m);
  assert_has(h->log, "0 ");
  assert_has(h->log, "CACHE_DEFAULT_TTL");
  assert_has(h->log, "soon");

  setenv("CACHE_DEFAULT_TTL", "77", 1);
  setenv("CACHE_DEFAULT_TLT", "1", 1);
  assert_int_equal(open_host(h, 0), 0);
  assert_has(h->log, "1 ");
  assert_has(h->log, "CACHE_DEFAULT_TLT");
  run_well(h, "assert(require 'cache'.settings.default_ttl == 77)");
  moonstash_close(h->m, 0);
  unsetenv("CACHE_DEFAULT_TTL");
  unsetenv("CACHE_DEFAULT_TLT");
}

static void no_env_reads_no_variable(void **state) {
  struct host *h = *state;
  setenv("CACHE_DEFAULT_TTL", "soon", 1);
  setenv("LUA_PATH", "/nowhere/?.lua", 1);
  setenv("LUA_CPATH", "/nowhere/?.so", 1);
  assert_int_equal(open_host(h, MOONSTASH_NO_ENV), 0);
  assert_string_equal(h->log, "");
  run_well(h, "assert(require 'cache'.settings.default_ttl == 300)\n"
              "assert(not (package.path .. package.cpath):find 'nowhere')");
  moonstash_close(h->m, 0);
  unsetenv("CACHE_DEFAULT_TTL");
  assert_int_equal(open_host(h, 0), 0);
  run_well(h, "assert(package.path:find('/nowhere/?.lua', 1, true))\n"
              "assert(package.cpath:find('/nowhere/?.so', 1, true))");
  moonstash_close(h->m, 0);
  unsetenv("LUA_PATH");
  unsetenv("LUA_CPATH");
}

static void no_ffi_caches_all_the_same(void **state) {
  struct host *h = *state;
  assert_int_equal(open_host(h, MOONSTASH_NO_FFI), 0);
  run_well(h, "assert(require 'moonstash.host'.no_ffi)\n"
              "local cache = require 'cache'\n"
              "assert(not package.loaded['cache.memory_ffi'])\n"
              "assert(cache.get_cached 'k' == nil)\n"
              "cache.set_cached('k', {1, 2})\n"
              "assert(cache.get_cached('k')[2] == 2)");
  moonstash_close(h->m, 0);
}

static int thread_count(void) {
  int n = 0;
  DIR *dir = opendir("/proc/self/task");
  for (struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL;)
    n += e->d_name[0] != '.';
  if (dir != NULL)
    closedir(dir);
  return n;
}

/* How many threads a process has after 50 ms inside Lua; it is a child,
 * because NO_THREAD holds for a process. */
static int threads_of_a_child(unsigned flags) {
  pid_t pid = fork();
  if (pid == 0) {
    static struct host h;
    int before = thread_count();
    if (open_host(&h, flags) < 0)
      _exit(100);
    const char *busy = "local t = os.clock() while os.clock() - t < .05 do end";
    moonstash_run_buffer(h.m, busy, strlen(busy), "=busy");
    moonstash_run(h.m);
    _exit(thread_count() - before);
  }
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_true(WIFEXITED(status));
  return WEXITSTATUS(status);
}

static void no_thread_starts_none(void **state) {
  (void)state;
  assert_int_equal(threads_of_a_child(MOONSTASH_NO_THREAD), 0);
  assert_int_equal(threads_of_a_child(0), 1); /* the clock's */
}

static void touches_no_signal(void **state) {
  struct host *h = *state;
  struct sigaction before[NSIG], after;
  for (int signo = 1; signo < NSIG; signo++)
    sigaction(signo, NULL, &before[signo]);
  assert_int_equal(open_host(h, 0), 0);
  run_well(h, "require 'task'.sleep(0.001)");
  for (int signo = 1; signo < NSIG; signo++)
    if (sigaction(signo, NULL, &after) == 0)
      assert_ptr_equal(before[signo].sa_handler, after.sa_handler);
  moonstash_close(h->m, 0);
}

/* ---- scripts ---- */

static void a_null_runtime_is_invalid(void **state) {
  (void)state;
  assert_int_equal(moonstash_run(NULL), MOONSTASH_EINVAL);
  assert_int_equal(moonstash_poll(NULL, 0), MOONSTASH_EINVAL);
  assert_int_equal(moonstash_run_file(NULL, "x", 0, NULL), MOONSTASH_EINVAL);
  assert_int_equal(moonstash_run_buffer(NULL, "", 0, NULL), MOONSTASH_EINVAL);
  assert_null(moonstash_lua(NULL));
  assert_null(moonstash_loop(NULL));
  assert_string_equal(moonstash_last_error(NULL), "");
  assert_int_equal(moonstash_close(NULL, 0), 0);
}

static void refuses_bad_arguments(void **state) {
  moonstash *m = ((struct host *)*state)->m;
  const char *const holes[] = {"a", NULL, "b"};
  assert_int_equal(moonstash_run_file(m, NULL, 0, NULL), MOONSTASH_EINVAL);
  assert_int_equal(moonstash_run_file(m, "x.lua", 1, NULL), MOONSTASH_EINVAL);
  assert_int_equal(moonstash_run_file(m, "x.lua", -1, NULL), MOONSTASH_EINVAL);
  assert_int_equal(moonstash_run_file(m, "x.lua", 3, holes), MOONSTASH_EINVAL);
  assert_has(moonstash_last_error(m), "run_file: ");
  assert_int_equal(moonstash_run_buffer(m, NULL, 1, "=x"), MOONSTASH_EINVAL);
  assert_has(moonstash_last_error(m), "run_buffer: ");
  assert_int_equal(moonstash_run(m), 0);
}

static void gives_the_exit_code(void **state) {
  struct host *h = *state;
  assert_int_equal(moonstash_run(h->m), 0); /* nothing to run */
  assert_int_equal(run(h->m, "x = 1"), 0);
  assert_int_equal(run(h->m, "error 'oops'"), 1);
  assert_int_equal(moonstash_run(h->m), 1); /* again, at once */
  assert_int_equal(run(h->m, "x = 2"), 0);  /* a new one: its own code */
  load(h->m, "error 'one of two'");
  assert_int_equal(run(h->m, "require 'task'.sleep(0.01)"), 1);
}

static void nothing_starts_after_os_exit(void **state) {
  struct host *h = *state;
  load(h->m, "require 'task'.sleep(1000)");
  assert_int_equal(run(h->m, "os.exit(7)\nnever = true"), 7);
  assert_int_equal(moonstash_poll(h->m, FRAME_US), 0);
  assert_int_equal(moonstash_run(h->m), 7);
  assert_int_equal(moonstash_run_buffer(h->m, "x = 1", 5, NULL),
                   MOONSTASH_EEXITED);
  assert_int_equal(moonstash_run_file(h->m, "/dev/null", 0, NULL),
                   MOONSTASH_EEXITED);
  assert_has(moonstash_last_error(h->m), "os.exit");
  assert_string_equal(global(h->m, "never"), "nil");
}

static void an_exit_code_is_never_an_error_code(void **state) {
  struct host *h = *state;
  assert_int_equal(run(h->m, "os.exit(-1)"), 255);
}

/* Writes a file that goes with the test; returns its path. */
static const char *script_file(const char *source) {
  static char path[] = "/tmp/moonstash-embed-XXXXXX";
  strcpy(path + sizeof path - 7, "XXXXXX");
  int fd = mkstemp(path);
  assert_true(fd >= 0);
  assert_int_equal(write(fd, source, strlen(source)), (long)strlen(source));
  close(fd);
  return path;
}

static void run_file_passes_arguments(void **state) {
  struct host *h = *state;
  const char *const argv[] = {"one", "", "three"};
  const char *path =
      script_file("#!/usr/bin/env moonstash\n"
                  "assert(select('#', ...) == 3 and (...) == 'one')\n"
                  "assert(#arg == 3 and arg[2] == '' and arg[3] == 'three')\n"
                  "name = arg[0]");
  assert_int_equal(moonstash_run_file(h->m, path, 3, argv), 0);
  unlink(path); /* it is loaded */
  assert_int_equal(moonstash_run(h->m), 0);
  assert_string_equal(global(h->m, "name"), path);
}

static void tells_a_missing_file_from_a_wrong_one(void **state) {
  struct host *h = *state;
  assert_int_equal(moonstash_run_file(h->m, "/nonexistent.lua", 0, NULL),
                   MOONSTASH_EIO);
  assert_string_equal(
      moonstash_last_error(h->m),
      "cannot read /nonexistent.lua: No such file or directory");
  assert_int_equal(moonstash_run_file(h->m, "/tmp", 0, NULL), MOONSTASH_EIO);
  assert_has(moonstash_last_error(h->m), "/tmp: Is a directory");

  const char *path = script_file("x = 1\nx x\n");
  assert_int_equal(moonstash_run_file(h->m, path, 0, NULL), MOONSTASH_ESYNTAX);
  unlink(path);
  assert_has(moonstash_last_error(h->m), ":2: ");
  assert_int_equal(moonstash_run_buffer(h->m, "x x", 3, "@mine.lua"),
                   MOONSTASH_ESYNTAX);
  assert_has(moonstash_last_error(h->m), "mine.lua:1: ");
  assert_int_equal(moonstash_run(h->m), 0); /* nothing was started */
}

static void run_buffer_copies_and_keeps_to_the_length(void **state) {
  struct host *h = *state;
  char source[] = "text = 'a\0b' error()";
  assert_int_equal(moonstash_run_buffer(h->m, source, 12, NULL), 0);
  memset(source, '?', sizeof source);
  assert_int_equal(moonstash_run(h->m), 0);
  run_well(h, "assert(text == 'a\\0b')");
  run_well(h, "bytecode = string.dump(loadstring 'compiled = 1')");
  lua_State *L = moonstash_lua(h->m);
  size_t length;
  lua_getglobal(L, "bytecode");
  const char *bytecode = lua_tolstring(L, -1, &length);
  assert_int_equal(moonstash_run_buffer(h->m, bytecode, length, NULL), 0);
  lua_pop(L, 1);
  assert_int_equal(moonstash_run(h->m), 0);
  assert_string_equal(global(h->m, "compiled"), "1");
}

/* ---- what the host is told ---- */

static void error_fn_gets_message_and_stack(void **state) {
  struct host *h = *state;
  assert_int_equal(run(h->m, "local function deep() error 'oops' end\n"
                             "deep()\n"),
                   1);
  assert_has(h->errors, "main: test:1: oops\nstack traceback:");
  assert_has(h->errors, "test:2:");
  assert_int_equal(h->error_count, 1);
}

static void error_fn_gets_the_stack_across_tasks(void **state) {
  struct host *h = *state;
  assert_int_equal(run(h->m, "local task = require 'task'\n"
                             "local t = task.spawn(function()\n"
                             "  error 'in the child'\n"
                             "end)\n"
                             "t:join()\n"),
                   1);
  assert_has(h->errors, "main: test:3: in the child");
  assert_has(h->errors, "test:5:");
  assert_int_equal(h->error_count, 1);
}

static void error_fn_gets_what_nobody_joins(void **state) {
  struct host *h = *state;
  assert_int_equal(run(h->m, "local task = require 'task'\n"
                             "task.spawn_detached(function()\n"
                             "  error(setmetatable({}, {__tostring =\n"
                             "    function() return 'an object' end}))\n"
                             "end)\n"
                             "task.sleep(0.01)"),
                   0);
  assert_has(h->errors, "task ");
  assert_has(h->errors, ": an object\nstack traceback:");
  assert_int_equal(h->error_count, 1);
}

static void a_nil_error_is_silent(void **state) {
  struct host *h = *state;
  assert_int_equal(run(h->m, "error(nil)"), 1);
  assert_int_equal(h->error_count, 0);
  assert_string_equal(h->log, "");
}

static void log_fn_names_who_held_the_loop(void **state) {
  struct host *h = *state;
  run_well(h, "local task = require 'task'\n"
              "task.spawn(function() end)\n"
              "local t = os.clock()\n"
              "while os.clock() - t < 0.15 do end\n");
  assert_has(h->log, "1 test:");
  assert_has(h->log, "held the loop for");
}

static void a_deadlock_ends_the_script(void **state) {
  struct host *h = *state;
  const char *forever = "require 'task'.await(function() end)";
  load(h->m, forever);
  assert_int_equal(moonstash_poll(h->m, FRAME_US), 1); /* the host may help */
  assert_int_equal(moonstash_run(h->m), 1);
  assert_has(h->errors, "main: ");
  assert_has(h->errors, "deadlock");
}

/* ---- the host's C functions ---- */

static int l_count(lua_State *L) {
  int *count = lua_touserdata(L, lua_upvalueindex(1));
  lua_pushinteger(L, ++*count);
  return 1;
}

static void register_function(moonstash *m, const char *name, lua_CFunction fn,
                              void *upvalue) {
  lua_State *L = moonstash_lua(m);
  lua_pushlightuserdata(L, upvalue);
  lua_pushcclosure(L, fn, 1);
  lua_setglobal(L, name);
}

static void lua_calls_the_host(void **state) {
  struct host *h = *state;
  int count = 40, top = lua_gettop(moonstash_lua(h->m));
  register_function(h->m, "count", l_count, &count);
  run_well(h, "assert(count() == 41)\n"
              "require 'task'.spawn(function() assert(count() == 42) end)\n");
  assert_int_equal(count, 42);
  assert_int_equal(lua_gettop(moonstash_lua(h->m)), top);
}

struct reentry { /* what the calls returned */
  struct host *host;
  int run, poll, close, start;
  char last_error[128];
};

static void call_back_in(struct reentry *r) {
  moonstash *m = r->host->m;
  r->run = moonstash_run(m);
  r->poll = moonstash_poll(m, FRAME_US);
  r->close = moonstash_close(m, 0);
  snprintf(r->last_error, sizeof r->last_error, "%s", moonstash_last_error(m));
  r->start = moonstash_run_buffer(m, "second = arg[0]", 15, "=second");
}

static int l_call_back_in(lua_State *L) {
  call_back_in(lua_touserdata(L, lua_upvalueindex(1)));
  return 0;
}

static void on_call_back_timer(uv_timer_t *timer) {
  call_back_in(timer->data);
  uv_close((uv_handle_t *)timer, NULL);
}

static void assert_busy(struct reentry *r) {
  assert_int_equal(r->run, MOONSTASH_EBUSY);
  assert_int_equal(r->poll, MOONSTASH_EBUSY);
  assert_int_equal(r->close, MOONSTASH_EBUSY);
  assert_string_equal(r->last_error, "close: called from inside the runtime");
  assert_int_equal(r->start, 0);
  assert_string_equal(global(r->host->m, "second"), "=second");
}

static void is_busy_inside_its_own_lua(void **state) {
  struct host *h = *state;
  struct reentry r = {.host = h};
  register_function(h->m, "call_back_in", l_call_back_in, &r);
  run_well(h, "call_back_in() done = true");
  assert_busy(&r);
  assert_string_equal(global(h->m, "done"), "true");
  run_well(h, "coroutine.wrap(function() call_back_in() end)()");
  assert_busy(&r);
}

static void is_busy_inside_its_own_loop(void **state) {
  struct host *h = *state;
  struct reentry r = {.host = h};
  uv_timer_t timer = {.data = &r};
  uv_timer_init(moonstash_loop(h->m), &timer);
  uv_timer_start(&timer, on_call_back_timer, 1, 0);
  run_well(h, "require 'task'.sleep(0.02)");
  assert_busy(&r);
}

/* ---- task.await over a callback API ---- */

/* later(ms, fn, ...): calls fn(...) in ms milliseconds; returns a function
 * that stops it. A uv timer with a Lua reference. */
struct later {
  uv_timer_t timer;
  lua_State *L;
  int call; /* a table of fn and its arguments, n of them */
};

static int later_count; /* how many exist */

static void on_later_closed(uv_handle_t *handle) {
  struct later *later = handle->data;
  luaL_unref(later->L, LUA_REGISTRYINDEX, later->call);
  free(later);
  later_count--;
}

static void on_later(uv_timer_t *timer) {
  struct later *later = timer->data;
  lua_State *L = later->L;
  lua_rawgeti(L, LUA_REGISTRYINDEX, later->call);
  int n = (int)lua_objlen(L, -1);
  for (int i = 1; i <= n; i++)
    lua_rawgeti(L, -i, i);
  if (lua_pcall(L, n - 1, 1, 0) == 0) {
    lua_setglobal(L, "resumed"); /* what fn returned */
    lua_pop(L, 1);
  } else {
    lua_pop(L, 2);
  }
  if (!uv_is_closing((uv_handle_t *)timer))
    uv_close((uv_handle_t *)timer, on_later_closed);
}

static int l_stop_later(lua_State *L) {
  uv_handle_t *timer = lua_touserdata(L, lua_upvalueindex(1));
  if (!uv_is_closing(timer))
    uv_close(timer, on_later_closed);
  lua_pushboolean(L, 1);
  lua_setglobal(L, "stopped");
  return 0;
}

static int l_later(lua_State *L) {
  moonstash *m = lua_touserdata(L, lua_upvalueindex(1));
  int ms = (int)luaL_checkinteger(L, 1), n = lua_gettop(L);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  struct later *later = malloc(sizeof *later);
  lua_createtable(L, n - 1, 0);
  lua_insert(L, 2);
  for (int i = n - 1; i >= 1; i--)
    lua_rawseti(L, 2, i);
  later->call = luaL_ref(L, LUA_REGISTRYINDEX);
  later->L = moonstash_lua(m);
  later->timer.data = later;
  later_count++;
  uv_timer_init(moonstash_loop(m), &later->timer);
  uv_timer_start(&later->timer, on_later, (uint64_t)ms, 0);
  lua_pushlightuserdata(L, &later->timer);
  lua_pushcclosure(L, l_stop_later, 1);
  return 1;
}

static int setup_later(void **state) {
  int rc = setup(state);
  later_count = 0;
  if (rc == 0) {
    moonstash *m = ((struct host *)*state)->m;
    register_function(m, "later", l_later, m);
    rc = run(m, "task = require 'task'");
  }
  return rc;
}

static int teardown_later(void **state) {
  int rc = teardown(state);
  return rc == 0 ? later_count : rc; /* each callback has had its end */
}

static void await_gives_what_the_callback_got(void **state) {
  run_well(*state, "local v = task.await(function(resume)\n"
                   "  later(5, resume, 'value')\n"
                   "end)\n"
                   "assert(v == 'value')\n");
  assert_string_equal(global(((struct host *)*state)->m, "resumed"), "true");
}

static void await_gives_several_values(void **state) {
  run_well(*state, "local function pack(...) return select('#', ...), ... end\n"
                   "local n, a, b, c = pack(task.await(function(resume)\n"
                   "  later(1, function() resume(1, nil, 3, nil) end)\n"
                   "end))\n"
                   "assert(n == 4 and a == 1 and b == nil and c == 3)\n"
                   "assert(select('#', task.await(function(resume)\n"
                   "  later(1, resume)\n"
                   "end)) == 0)\n");
}

static void a_second_call_does_nothing(void **state) {
  run_well(*state, "local first, second\n"
                   "local v = task.await(function(resume)\n"
                   "  later(1, function()\n"
                   "    first, second = resume 'a', resume 'b'\n"
                   "  end)\n"
                   "  later(2, resume, 'c')\n"
                   "end)\n"
                   "task.sleep(0.02)\n"
                   "assert(v == 'a' and first == true and second == false)\n"
                   "assert(resumed == false)\n");
}

static void a_call_after_a_cancel_does_nothing(void **state) {
  run_well(*state, "local ended\n"
                   "local t = task.spawn(function()\n"
                   "  pcall(task.await, function(resume)\n"
                   "    later(10, resume, 'too late')\n"
                   "  end)\n"
                   "  ended = true\n"
                   "end)\n"
                   "task.sleep(0.001)\n"
                   "t:cancel()\n"
                   "t:pjoin()\n"
                   "assert(ended and resumed == nil)\n"
                   "task.sleep(0.03)\n"
                   "assert(resumed == false)\n");
}

static void a_cancel_calls_the_stop_function(void **state) {
  run_well(*state, "local ok, err = pcall(task.timeout, 0.01, function()\n"
                   "  task.await(function(resume)\n"
                   "    return later(60000, resume)\n"
                   "  end)\n"
                   "end)\n"
                   "assert(not ok and err.code == 'timeout' and stopped)\n");
}

static void a_call_at_once_does_not_wait(void **state) {
  run_well(*state, "local order = {}\n"
                   "task.spawn(function() order[#order + 1] = 'other' end)\n"
                   "local a, b = task.await(function(resume)\n"
                   "  assert(resume(1, 2) == true)\n"
                   "  assert(resume(3) == false)\n"
                   "end)\n"
                   "order[#order + 1] = 'me'\n"
                   "assert(a == 1 and b == 2 and order[1] == 'me')\n");
}

static void an_error_in_the_start_goes_up(void **state) {
  run_well(*state, "local ok, err = pcall(task.await, function(resume)\n"
                   "  later(1, resume)\n"
                   "  error 'no such device'\n"
                   "end)\n"
                   "assert(not ok and err:find 'no such device')\n"
                   "task.sleep(0.01)\n");
}

static void await_works_frame_by_frame(void **state) {
  struct host *h = *state;
  load(h->m, "sum = 0\n"
             "for i = 1, 10 do\n"
             "  task.spawn(function()\n"
             "    local v = task.await(function(resume)\n"
             "      later(i, resume, i)\n"
             "    end)\n"
             "    sum = sum + v\n"
             "  end)\n"
             "end\n");
  uint64_t began = now_us();
  while (moonstash_poll(h->m, FRAME_US) == 1 && now_us() - began < 5000000)
    usleep(100);
  assert_int_equal(moonstash_run(h->m), 0);
  assert_string_equal(global(h->m, "sum"), "55");
}

/* ---- deadlines: data that is there wins over a time that has passed ---- */

struct wire { /* a socket pair; Lua hears the near end */
  uv_pipe_t near;
  int far;
  lua_State *L;
  int callback;
};

static void give_buffer(uv_handle_t *handle, size_t size, uv_buf_t *buffer) {
  static char bytes[64];
  (void)handle;
  (void)size;
  *buffer = uv_buf_init(bytes, sizeof bytes);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buffer) {
  struct wire *w = stream->data;
  if (n <= 0 || w->callback == LUA_NOREF)
    return;
  lua_rawgeti(w->L, LUA_REGISTRYINDEX, w->callback);
  lua_pushlstring(w->L, buffer->base, (size_t)n);
  if (lua_pcall(w->L, 1, 0, 0) != 0)
    lua_pop(w->L, 1);
  luaL_unref(w->L, LUA_REGISTRYINDEX, w->callback);
  w->callback = LUA_NOREF;
}

/* on_data(fn): calls fn with what comes next. */
static int l_on_data(lua_State *L) {
  struct wire *w = lua_touserdata(L, lua_upvalueindex(1));
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  w->callback = luaL_ref(L, LUA_REGISTRYINDEX);
  return 0;
}

/* send(text): from the far end; it lies in the socket at once. */
static int l_send(lua_State *L) {
  struct wire *w = lua_touserdata(L, lua_upvalueindex(1));
  size_t length;
  const char *text = luaL_checklstring(L, 1, &length);
  lua_pushinteger(L, write(w->far, text, length));
  return 1;
}

static const char wire_script[] =
    "task = require 'task'\n"
    "function receive(seconds)\n"
    "  return pcall(task.timeout, seconds, function()\n"
    "    return task.await(on_data)\n"
    "  end)\n"
    "end\n"
    "function busy(seconds)\n"
    "  local t = require 'moonstash.task'.now() + seconds\n"
    "  while require 'moonstash.task'.now() < t do end\n"
    "end\n";

static void open_wire(struct wire *w, moonstash *m) {
  int fds[2];
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  w->L = moonstash_lua(m);
  w->callback = LUA_NOREF;
  w->far = fds[1];
  w->near.data = w;
  assert_int_equal(uv_pipe_init(moonstash_loop(m), &w->near, 0), 0);
  assert_int_equal(uv_pipe_open(&w->near, fds[0]), 0);
  assert_int_equal(uv_read_start((uv_stream_t *)&w->near, give_buffer, on_read),
                   0);
  register_function(m, "on_data", l_on_data, w);
  register_function(m, "send", l_send, w);
  assert_int_equal(run(m, wire_script), 0);
}

static void close_wire(struct wire *w) {
  close(w->far);
  uv_close((uv_handle_t *)&w->near, NULL);
}

static const char busy_script[] =
    "task.spawn(function() ok, data = receive(1) end)\n"
    "task.sleep(0.01)\n"
    "send 'in time'\n"
    "busy(2)\n";

static void data_wins_over_a_deadline_that_lua_has_missed(void **state) {
  struct host *h = *state;
  static struct wire w; /* outlives a failure */
  open_wire(&w, h->m);
  run_well(h, busy_script);
  assert_string_equal(global(h->m, "data"), "in time");
  run_well(h, "ok, err = receive(0.02)\n" /* and there is a deadline */
              "assert(not ok and err.code == 'timeout')\n");
  close_wire(&w);
}

static void data_wins_in_a_host_that_polls(void **state) {
  struct host *h = *state;
  static struct wire w; /* outlives a failure */
  open_wire(&w, h->m);
  load(h->m, "task.spawn(function() ok, data = receive(0.05) end)\n"
             "task.sleep(0.01)\n"
             "send 'in time'\n"
             "busy(0.1)\n");
  uint64_t began = now_us();
  while (moonstash_poll(h->m, FRAME_US) == 1 && now_us() - began < 5000000)
    usleep(100);
  assert_string_equal(global(h->m, "data"), "in time");
  close_wire(&w);
}

/* The host was away for longer than the deadline, and other tasks eat up the
 * frame in which the data is found. */
static void data_wins_when_the_frame_is_full(void **state) {
  struct host *h = *state;
  static struct wire w; /* outlives a failure */
  open_wire(&w, h->m);
  load(h->m, "for _ = 1, 8 do\n"
             "  task.spawn(function()\n"
             "    for _ = 1, 40 do busy(0.001) task.yield() end\n"
             "  end)\n"
             "end\n"
             "task.spawn(function() ok, data = receive(0.05) end)\n");
  for (int i = 0; i < 10; i++)
    assert_int_equal(moonstash_poll(h->m, FRAME_US), 1);
  assert_int_equal(write(w.far, "in time", 7), 7);
  usleep(100 * US_PER_MS);
  uint64_t began = now_us();
  while (moonstash_poll(h->m, FRAME_US) == 1 && now_us() - began < 5000000)
    ;
  assert_string_equal(global(h->m, "data"), "in time");
  close_wire(&w);
}

/* ---- poll ---- */

static int compare_us(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

static void poll_keeps_to_its_budget(void **state) {
  enum { FRAMES = 101, SLICE_US = 100 };
  struct host *h = *state;
  uint64_t took[FRAMES];
  load(h->m, "local task, now = require 'task', require 'moonstash.task'.now\n"
             "turns = 0\n"
             "for _ = 1, 50 do\n"
             "  task.spawn(function()\n"
             "    while true do\n"
             "      local t = now() + 100e-6\n"
             "      while now() < t do end\n"
             "      turns = turns + 1\n"
             "      task.yield()\n"
             "    end\n"
             "  end)\n"
             "end\n");
  moonstash_poll(h->m, FRAME_US);
  for (int i = 0; i < FRAMES; i++) {
    uint64_t began = now_us();
    assert_int_equal(moonstash_poll(h->m, FRAME_US), 1);
    took[i] = now_us() - began;
  }
  qsort(took, FRAMES, sizeof *took, compare_us);
  assert_in_range(took[0], FRAME_US - SLICE_US, FRAME_US * 2);
  assert_in_range(took[FRAMES / 2], FRAME_US - SLICE_US, FRAME_US * 2);
  assert_true(atoi(global(h->m, "turns")) > 5 * FRAMES);
}

static void poll_does_not_block(void **state) {
  struct host *h = *state;
  load(h->m, "require 'task'.sleep(30)");
  uint64_t began = now_us();
  assert_int_equal(moonstash_poll(h->m, UINT64_MAX), 1);
  assert_int_equal(moonstash_poll(h->m, 0), 1);
  assert_true(now_us() - began < 5000000);
}

static void poll_of_nothing_still_makes_progress(void **state) {
  struct host *h = *state;
  int polls = 0;
  load(h->m, "for _ = 1, 100 do require 'task'.yield() end");
  while (moonstash_poll(h->m, 0) == 1)
    assert_true(++polls < 1000);
  assert_int_equal(moonstash_run(h->m), 0);
}

static void poll_tells_when_all_have_ended(void **state) {
  struct host *h = *state;
  assert_int_equal(moonstash_poll(h->m, FRAME_US), 0);
  load(h->m, "error 'in a frame'");
  while (moonstash_poll(h->m, FRAME_US) == 1)
    ;
  assert_int_equal(h->error_count, 1);
  assert_int_equal(moonstash_run(h->m), 1);
}

/* ---- several runtimes ---- */

static void runtimes_share_nothing(void **state) {
  (void)state;
  enum { N = 3 };
  static struct host hosts[N];
  for (int i = 0; i < N; i++) {
    assert_int_equal(open_host(&hosts[i], 0), 0);
    int *id = malloc(sizeof *id);
    *id = i * 100;
    register_function(hosts[i].m, "count", l_count, id);
    lua_pushlightuserdata(moonstash_lua(hosts[i].m), id);
    lua_setglobal(moonstash_lua(hosts[i].m), "id");
    load(hosts[i].m, "local cache, task = require 'cache', require 'task'\n"
                     "mine = count()\n"
                     "assert(cache.get_cached 'k' == nil)\n"
                     "cache.set_cached('k', mine)\n"
                     "for _ = 1, 5 do\n"
                     "  task.sleep(0.002)\n"
                     "  assert(cache.get_cached 'k' == mine)\n"
                     "end\n");
  }
  for (int left = N; left > 0;) {
    left = 0;
    for (int i = 0; i < N; i++)
      left += moonstash_poll(hosts[i].m, FRAME_US);
  }
  for (int i = 0; i < N; i++) {
    assert_int_equal(moonstash_run(hosts[i].m), 0);
    assert_int_equal(atoi(global(hosts[i].m, "mine")), i * 100 + 1);
  }
  for (int i = 0; i < N; i++) { /* closed in another order than opened */
    struct host *h = &hosts[(i + 1) % N];
    lua_getglobal(moonstash_lua(h->m), "id");
    free(lua_touserdata(moonstash_lua(h->m), -1));
    assert_int_equal(moonstash_close(h->m, 0), 0);
  }
}

static void *run_in_thread(void *arg) {
  (void)arg;
  const char *script = "local cache, task = require 'cache', require 'task'\n"
                       "local sum = 0\n"
                       "local load = cache.cached(function(i)\n"
                       "  task.sleep(0.001)\n"
                       "  return i\n"
                       "end, {name = 'load'})\n"
                       "for i = 1, 300 do\n"
                       "  task.spawn(function()\n"
                       "    local n = load(i % 30)\n"
                       "    sum = sum + n\n"
                       "  end)\n"
                       "end\n"
                       "task.sleep(0.05)\n"
                       "assert(sum == 300 / 30 * 29 * 30 / 2)\n";
  for (int i = 0; i < 10; i++) {
    struct host *h = malloc(sizeof *h);
    int rc = h != NULL ? open_host(h, 0) : MOONSTASH_ENOMEM;
    if (rc == 0)
      rc = moonstash_run_buffer(h->m, script, strlen(script), "=thread");
    if (rc == 0)
      rc = moonstash_run(h->m);
    if (rc != 0)
      return h; /* of no use but as a failure; the test ends */
    moonstash_close(h->m, 0);
    free(h);
  }
  return NULL;
}

static void runtimes_run_in_threads(void **state) {
  (void)state;
  pthread_t threads[2];
  for (int i = 0; i < 2; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, run_in_thread, NULL), 0);
  for (int i = 0; i < 2; i++) {
    void *failed;
    pthread_join(threads[i], &failed);
    assert_null(failed);
  }
}

/* ---- close ---- */

static const char left_tasks[] =
    "local task = require 'task'\n"
    "for _ = 1, 10 do\n"
    "  task.spawn(function()\n"
    "    task.defer(count)\n"
    "    task.sleep(1000)\n"
    "  end)\n"
    "end\n"
    "task.spawn(function() task.await(function() end) end)\n"
    "task.event():wait()\n";

static void close_lets_tasks_end(void **state) {
  struct host *h = *state;
  int deferred = 0;
  assert_int_equal(open_host(h, 0), 0);
  register_function(h->m, "count", l_count, &deferred);
  load(h->m, left_tasks);
  assert_int_equal(moonstash_poll(h->m, FRAME_US), 1);
  assert_int_equal(moonstash_close(h->m, DRAIN_MS), 0);
  assert_int_equal(deferred, 10);
  assert_string_equal(h->log, "");
  assert_string_equal(h->errors, "");
}

static void close_without_a_drain_drops_tasks(void **state) {
  struct host *h = *state;
  int deferred = 0;
  assert_int_equal(open_host(h, 0), 0);
  register_function(h->m, "count", l_count, &deferred);
  load(h->m, left_tasks);
  assert_int_equal(moonstash_poll(h->m, FRAME_US), 1);
  assert_int_equal(moonstash_close(h->m, 0), 0);
  assert_int_equal(deferred, 0);
  assert_string_equal(h->log, "1 closed while tasks were still running: 12\n");
}

static void close_gives_up_on_a_task_that_will_not_end(void **state) {
  struct host *h = *state;
  assert_int_equal(open_host(h, 0), 0);
  load(h->m, "local task = require 'task'\n"
             "task.shield(function() task.sleep(1000) end)\n");
  assert_int_equal(moonstash_poll(h->m, FRAME_US), 1);
  uint64_t began = now_us();
  assert_int_equal(moonstash_close(h->m, 50), 0);
  assert_in_range(now_us() - began, 50 * US_PER_MS, 5000 * US_PER_MS);
  assert_has(h->log, "1 closed while tasks were still running");
}

static void close_before_the_first_turn(void **state) {
  struct host *h = *state;
  assert_int_equal(open_host(h, 0), 0);
  load(h->m, "never()");
  assert_int_equal(moonstash_close(h->m, 0), 0);
  assert_string_equal(h->errors, "");
}

static void on_work(uv_work_t *work) {
  (void)work;
  usleep(20 * US_PER_MS);
}

static void after_work(uv_work_t *work, int status) {
  lua_State *L = work->data; /* alive still */
  lua_pushboolean(L, status == 0);
  lua_setglobal(L, "worked");
  work->data = NULL;
}

static void close_empties_the_loop(void **state) {
  struct host *h = *state;
  assert_int_equal(open_host(h, 0), 0);
  uv_loop_t *loop = moonstash_loop(h->m);
  uv_timer_t active, idle;
  uv_timer_init(loop, &active);
  uv_timer_start(&active, on_later, 3600 * 1000, 0); /* never runs */
  uv_timer_init(loop, &idle);
  uv_work_t work = {.data = moonstash_lua(h->m)};
  uv_queue_work(loop, &work, on_work, after_work);
  register_function(h->m, "later", l_later, h->m);
  later_count = 0;
  load(h->m, "later(0, function() end)()\n"); /* its unref is still to come */
  assert_int_equal(moonstash_poll(h->m, 0), 0);
  assert_int_equal(moonstash_close(h->m, 0), 0);
  assert_null(work.data);
  assert_int_equal(later_count, 0);
  assert_true(uv_is_closing((uv_handle_t *)&active));
}

static int l_collect(lua_State *L) {
  uv_handle_t **handle = lua_touserdata(L, 1);
  if (!uv_is_closing(*handle))
    uv_close(*handle, NULL);
  return 0;
}

static void finalizers_find_their_handles(void **state) {
  struct host *h = *state;
  assert_int_equal(open_host(h, 0), 0);
  lua_State *L = moonstash_lua(h->m);
  uv_timer_t timer;
  uv_timer_init(moonstash_loop(h->m), &timer);
  uv_timer_start(&timer, on_later, 3600 * 1000, 0);
  *(uv_timer_t **)lua_newuserdata(L, sizeof(uv_timer_t *)) = &timer;
  lua_newtable(L);
  lua_pushcfunction(L, l_collect);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  lua_setglobal(L, "handle");
  assert_int_equal(moonstash_close(h->m, 0), 0);
}

/* Anything that opening has not given back shows as a descriptor, or as memory
 * to the address sanitizer. */
static void open_and_close_leave_nothing(void **state) {
  struct host *h = *state;
  int before = 0, after = 0;
  for (int i = 0; i < 20; i++) {
    assert_int_equal(open_host(h, 0), 0);
    run_well(h, "require 'cache'.set_cached('k', 1)");
    assert_int_equal(moonstash_close(h->m, 0), 0);
    int fd = open("/dev/null", O_RDONLY);
    close(fd);
    before = i == 0 ? fd : before;
    after = fd;
  }
  assert_int_equal(before, after);
}

#define OPENED(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
#define LATER(test) \
  cmocka_unit_test_setup_teardown(test, setup_later, teardown_later)
#define CLOSED(test) \
  cmocka_unit_test_setup_teardown(test, setup_closed, teardown_closed)

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(version_is_that_of_the_header),
      cmocka_unit_test(every_code_has_a_name_of_its_own),
      cmocka_unit_test(opens_with_the_defaults),
      CLOSED(refuses_bad_options),
      CLOSED(takes_options_of_an_older_caller),
      CLOSED(takes_options_of_a_newer_caller_that_uses_nothing_new),
      CLOSED(reads_the_environment_and_names_what_it_cannot_read),
      CLOSED(no_env_reads_no_variable),
      CLOSED(no_ffi_caches_all_the_same),
      cmocka_unit_test(no_thread_starts_none),
      CLOSED(touches_no_signal),
      cmocka_unit_test(a_null_runtime_is_invalid),
      OPENED(refuses_bad_arguments),
      OPENED(gives_the_exit_code),
      OPENED(nothing_starts_after_os_exit),
      OPENED(an_exit_code_is_never_an_error_code),
      OPENED(run_file_passes_arguments),
      OPENED(tells_a_missing_file_from_a_wrong_one),
      OPENED(run_buffer_copies_and_keeps_to_the_length),
      OPENED(error_fn_gets_message_and_stack),
      OPENED(error_fn_gets_the_stack_across_tasks),
      OPENED(error_fn_gets_what_nobody_joins),
      OPENED(a_nil_error_is_silent),
      OPENED(log_fn_names_who_held_the_loop),
      OPENED(a_deadlock_ends_the_script),
      OPENED(lua_calls_the_host),
      OPENED(is_busy_inside_its_own_lua),
      OPENED(is_busy_inside_its_own_loop),
      LATER(await_gives_what_the_callback_got),
      LATER(await_gives_several_values),
      LATER(a_second_call_does_nothing),
      LATER(a_call_after_a_cancel_does_nothing),
      LATER(a_cancel_calls_the_stop_function),
      LATER(a_call_at_once_does_not_wait),
      LATER(an_error_in_the_start_goes_up),
      LATER(await_works_frame_by_frame),
      OPENED(data_wins_over_a_deadline_that_lua_has_missed),
      OPENED(data_wins_in_a_host_that_polls),
      OPENED(data_wins_when_the_frame_is_full),
      OPENED(poll_keeps_to_its_budget),
      OPENED(poll_does_not_block),
      OPENED(poll_of_nothing_still_makes_progress),
      OPENED(poll_tells_when_all_have_ended),
      cmocka_unit_test(runtimes_share_nothing),
      cmocka_unit_test(runtimes_run_in_threads),
      CLOSED(close_lets_tasks_end),
      CLOSED(close_without_a_drain_drops_tasks),
      CLOSED(close_gives_up_on_a_task_that_will_not_end),
      CLOSED(close_before_the_first_turn),
      CLOSED(close_empties_the_loop),
      CLOSED(finalizers_find_their_handles),
      CLOSED(open_and_close_leave_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
