/* Near copies and other threads: a loop of compiled Lua spins on a key and
 * never leaves its machine code, while a thread changes what is under it.
 * LuaJIT would keep what it has loaded by FFI in a register for good; a loop
 * that never sees the change runs to its end, and the test fails.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <lauxlib.h>
#include <moonstash.h>

#include "backend.h"
#include "clock.h"

enum {
  DELAY_MS = 60,
  DRAIN_MS = 1000,
  ERROR_BYTES = 4096,
  NS_PER_MS = 1000000
};

/* What the thread does, after a while. */
struct change {
  pthread_t thread;
  struct backend *view;
  char what[16];
};

static struct change change;
static char errors[ERROR_BYTES];

static void apply(const struct change *c) {
  const struct backend_ops *ops = c->view->ops;
  uint64_t now = clock_now_ms();
  int64_t sum;
  if (strcmp(c->what, "set") == 0)
    ops->set(c->view, now, "", 0, "k", 1, "new", 3, BACKEND_BYTES, 0, NULL);
  else if (strcmp(c->what, "delete") == 0)
    ops->remove(c->view, now, "", 0, "k", 1, NULL);
  else if (strcmp(c->what, "clear") == 0)
    ops->clear(c->view, now, "", 0, NULL, NULL);
  else if (strcmp(c->what, "increment") == 0)
    ops->increment(c->view, now, "", 0, "k", 1, 1, 0, &sum, NULL);
  else if (strcmp(c->what, "expire") == 0)
    ops->expire(c->view, now, "", 0, "k", 1, 1, NULL);
}

static void *thread_main(void *unused) {
  struct timespec delay = {0, DELAY_MS * NS_PER_MS};
  (void)unused;
  clock_nanosleep(CLOCK_MONOTONIC, 0, &delay, NULL);
  apply(&change);
  return NULL;
}

/* change_soon(view, what) */
static int l_change_soon(lua_State *L) {
  change.view = lua_touserdata(L, 1);
  snprintf(change.what, sizeof change.what, "%s", luaL_checkstring(L, 2));
  if (pthread_create(&change.thread, NULL, thread_main, NULL) != 0)
    return luaL_error(L, "no thread");
  return 0;
}

static int l_change_end(lua_State *L) {
  (void)L;
  pthread_join(change.thread, NULL);
  return 0;
}

/* now_ms() -> the system's clock */
static int l_now_ms(lua_State *L) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  lua_pushnumber(L, (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6);
  return 1;
}

static void on_error(void *ud, const char *task, const char *trace) {
  (void)ud, (void)task;
  snprintf(errors, sizeof errors, "%s", trace);
}

/* spin returns how long it took, or nothing when it came to its end: that is
 * after some ten seconds. */
static const char prelude[] =
    "local cache = require 'cache'\n"
    "local memory = cache.memory\n"
    "local view = require('cache.alias').find('memory', 'test').view\n"
    "local function spin(get, key, old)\n"
    "  for _ = 1, 200 do assert(get(key) == old) end\n"
    "  local started = now_ms()\n"
    "  for i = 1, 1e9 do\n"
    "    if get(key) ~= old then return now_ms() - started, get(key) end\n"
    "  end\n"
    "  error 'the loop did not see it'\n"
    "end\n"
    "local function get(key) return memory:get(key) end\n"
    "local function check(what, key, old, new, fn)\n"
    "  fn = fn or get\n"
    "  for _ = 1, 200 do fn(key) end\n"
    "  local before = memory:stats()\n"
    "  change_soon(view, what)\n"
    "  local took, value = spin(fn, key, old)\n"
    "  change_end()\n"
    "  assert(value == new, tostring(value))\n"
    "  local after = memory:stats()\n"
    "  local calls = after.hits + after.misses - before.hits - before.misses\n"
    "  assert(calls > 1e5, 'it was not in a loop of machine code')\n"
    "end\n";

static void run_with(const char *script, unsigned flags) {
  char source[ERROR_BYTES];
  moonstash_options options = MOONSTASH_OPTIONS_INIT;
  moonstash *m;
  options.flags = MOONSTASH_NO_ENV | flags;
  options.error_fn = on_error;
  errors[0] = '\0';
  snprintf(source, sizeof source, "%s%s", prelude, script);
  assert_int_equal(moonstash_open(&m, &options), 0);
  lua_register(moonstash_lua(m), "change_soon", l_change_soon);
  lua_register(moonstash_lua(m), "change_end", l_change_end);
  lua_register(moonstash_lua(m), "now_ms", l_now_ms);
  moonstash_run_buffer(m, source, strlen(source), "=test");
  int code = moonstash_run(m);
  moonstash_close(m, DRAIN_MS);
  if (code != 0)
    fail_msg("%s", errors);
}

static void run(const char *script) {
  run_with(script, 0);
}

static void a_loop_sees_another_threads_set(void **state) {
  (void)state;
  run("memory:set('k', 'old') check('set', 'k', 'old', 'new')");
}

static void a_loop_sees_another_threads_delete_and_clear(void **state) {
  (void)state;
  run("memory:set('k', 'old') check('delete', 'k', 'old', nil)\n"
      "memory:set('k', 'old') check('clear', 'k', 'old', nil)");
}

static void a_loop_sees_another_threads_increment(void **state) {
  (void)state;
  run("memory:set('k', 7) check('increment', 'k', 7, 8)");
}

static void a_loop_on_a_missing_key_sees_it_come(void **state) {
  (void)state;
  run("memory:delete 'k' check('set', 'k', nil, 'new')");
}

static void a_loop_sees_a_shorter_time_to_live(void **state) {
  (void)state;
  run("memory:set('k', 'old', 3600) check('expire', 'k', 'old', nil)");
}

static void a_loop_sees_a_wrappers_results_go(void **state) {
  (void)state;
  run("local n = 0\n"
      "local f = cache.cached(function() n = n + 1 return n end,\n"
      "  {name = 'n', key = 'k'})\n"
      "check('delete', 'k', 1, 2, f)\n"
      "local g = cache.cached(function() n = n + 1 return n end, {name = "
      "'g'})\n"
      "check('clear', 'x', 3, 4, g)");
}

/* In a loop that never yields, its time of processor being its own: a machine
 * that is busy with others may give it back late, but not the value. */
static const char time_to_live[] =
    "local late = math.huge\n"
    "for _ = 1, 5 do\n"
    "  local started = now_ms()\n"
    "  memory:set('k', 'old', 0.1)\n"
    "  for _ = 1, 200 do memory:get 'k' end\n"
    "  local took = now_ms() - started + spin(get, 'k', 'old')\n"
    "  assert(took > 90, took)\n"
    "  late = math.min(late, took - 100)\n"
    "end\n"
    "assert(late < 10, late)";

static void a_value_goes_when_its_time_is_over(void **state) {
  (void)state;
  run(time_to_live);
}

/* Holds for the process: the last test. */
static void it_goes_without_a_clock_thread_too(void **state) {
  (void)state;
  run_with(time_to_live, MOONSTASH_NO_THREAD);
}

int main(void) {
  static const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_loop_sees_another_threads_set),
      cmocka_unit_test(a_loop_sees_another_threads_delete_and_clear),
      cmocka_unit_test(a_loop_sees_another_threads_increment),
      cmocka_unit_test(a_loop_on_a_missing_key_sees_it_come),
      cmocka_unit_test(a_loop_sees_a_shorter_time_to_live),
      cmocka_unit_test(a_loop_sees_a_wrappers_results_go),
      cmocka_unit_test(a_value_goes_when_its_time_is_over),
      cmocka_unit_test(it_goes_without_a_clock_thread_too),
  };
  return cmocka_run_group_tests_name("near copies", tests, NULL, NULL);
}
