/* on_evict, when another thread takes values out of the store. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants the four above */
#include <cmocka.h>

#include <lua.h>
#include <moonstash.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backend.h"
#include "clock.h"

enum {
  EVENTS = 20000,
  PAUSES = 20, /* in which the loop gets to the end of the queue */
  PAUSE_US = 2000,
  DRAIN_MS = 5000
};

static const char define[] =
    "local cache, task = require 'cache', require 'task'\n"
    "told, gone = 0, task.event()\n"
    "cache.configure_caches { aliases = { a = { plugins = { {\n"
    "  on_evict = function(_, key, reason)\n"
    "    assert(key == 'key ' .. told and reason == 'deleted', key)\n"
    "    told = told + 1\n"
    "    if told == 20000 then gone:set() end\n"
    "  end } } } } }\n"
    "view = require('cache.alias').find('a', 'test').view\n";

/* The sleep is why this is no deadlock. */
static const char wait_for_all[] = "local task = require 'task'\n"
                                   "local awake = task.spawn(task.sleep, 60)\n"
                                   "gone:wait()\n"
                                   "awake:cancel()\n";

static void on_line(void *ud, int level, const char *line) {
  (void)ud;
  print_error("%d %s\n", level, line);
}

static void on_error(void *ud, const char *task, const char *trace) {
  (void)ud;
  print_error("%s: %s\n", task, trace);
}

static void *remove_all(void *arg) {
  struct backend *view = arg;
  char key[32];
  for (int i = 0; i < EVENTS; i++) {
    size_t length = (size_t)snprintf(key, sizeof key, "key %d", i);
    view->ops->set(view, clock_now_ms(), "", 0, key, length, "x", 1,
                   BACKEND_BYTES, BACKEND_TTL_NEVER, NULL);
    if (view->ops->remove(view, clock_now_ms(), "", 0, key, length, NULL) != 1)
      return "a key was not there";
    if (i % (EVENTS / PAUSES) == 0)
      usleep(PAUSE_US);
  }
  return NULL;
}

static void run(moonstash *m, const char *source) {
  assert_int_equal(
      moonstash_run_buffer(m, source, strlen(source), "=evict_test"), 0);
  assert_int_equal(moonstash_run(m), 0);
}

static void events_of_another_thread_come_in_order(void **state) {
  (void)state;
  moonstash *m;
  moonstash_options options = MOONSTASH_OPTIONS_INIT;
  options.flags = MOONSTASH_NO_ENV;
  options.log_fn = on_line;
  options.error_fn = on_error;
  assert_int_equal(moonstash_open(&m, &options), 0);
  run(m, define);
  lua_State *L = moonstash_lua(m);
  lua_getglobal(L, "view");
  struct backend *view = lua_touserdata(L, -1);
  lua_pop(L, 1);
  pthread_t thread;
  void *failure;
  assert_int_equal(pthread_create(&thread, NULL, remove_all, view), 0);
  run(m, wait_for_all);
  assert_int_equal(pthread_join(thread, &failure), 0);
  assert_null(failure);
  assert_int_equal(moonstash_close(m, DRAIN_MS), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(events_of_another_thread_come_in_order),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
