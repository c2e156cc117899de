/* Runtimes on several threads that share their caches (moonstash_options.share)
 * as an embedder uses them: each side is a thread with a runtime and a script.
 * The scripts meet by way of counters in the cache itself. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants the four above */
#include <cmocka.h>

#include <arpa/inet.h>
#include <moonstash.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TEXT_BYTES = 16384, SCRIPT_BYTES = 16384, DRAIN_MS = 5000 };

/* A runtime with a thread of its own. */
struct side {
  moonstash *share;   /* whose caches it has; NULL: its own */
  const char *script; /* what it runs */
  unsigned flags;     /* of the options */
  unsigned drain_ms;  /* of its close */
  pthread_t thread;
  int code;              /* what became of it */
  char text[TEXT_BYTES]; /* what it has told */
};

/* What all scripts begin with. mark counts, meet waits for a count; waiting
 * calls fn in a task and comes back when that waits. */
static const char prelude[] =
    "local cache, task = require 'cache', require 'task'\n"
    "local memory = cache.memory\n"
    "local function mark(name) return memory:increment(name) end\n"
    "local function meet(name, n)\n"
    "  while (memory:get(name) or 0) < (n or 1) do task.sleep(0.0005) end\n"
    "end\n"
    "local function waiting(fn, ...)\n"
    "  local t = task.spawn(fn, ...)\n"
    "  for _ = 1, 3 do task.yield() end\n"
    "  return t\n"
    "end\n"
    "local function named(name, fn, opts)\n"
    "  opts = opts or {}\n"
    "  opts.name = name\n"
    "  return cache.cached(fn, opts)\n"
    "end\n";

static void on_line(struct side *side, const char *line) {
  size_t length = strlen(side->text);
  snprintf(side->text + length, sizeof side->text - length, "%s\n", line);
}

static void on_log(void *ud, int level, const char *line) {
  if (level <= MOONSTASH_LOG_ERROR)
    on_line(ud, line);
}

static void on_error(void *ud, const char *task, const char *trace) {
  (void)task;
  on_line(ud, trace);
}

static int open_side(struct side *side, moonstash **out) {
  moonstash_options options = MOONSTASH_OPTIONS_INIT;
  options.flags = side->flags;
  options.log_fn = on_log;
  options.error_fn = on_error;
  options.ud = side;
  options.share = side->share;
  return moonstash_open(out, &options);
}

static int run_in(moonstash *m, const char *script) {
  char source[SCRIPT_BYTES];
  int n = snprintf(source, sizeof source, "%s%s", prelude, script);
  int rc = moonstash_run_buffer(m, source, (size_t)n, "=script");
  return rc < 0 ? rc : moonstash_run(m);
}

static void *run_side(void *arg) {
  struct side *side = arg;
  moonstash *m;
  side->code = open_side(side, &m);
  if (side->code < 0)
    return NULL;
  side->code = run_in(m, side->script);
  if (side->code < 0)
    on_line(side, moonstash_last_error(m));
  moonstash_close(m, side->drain_ms);
  return NULL;
}

static struct side *start(moonstash *share, unsigned drain_ms,
                          const char *script) {
  struct side *side = calloc(1, sizeof *side);
  assert_non_null(side);
  side->share = share;
  side->script = script;
  side->drain_ms = drain_ms;
  assert_int_equal(pthread_create(&side->thread, NULL, run_side, side), 0);
  return side;
}

static void end(struct side *side) {
  pthread_join(side->thread, NULL);
  if (side->code != 0 || side->text[0] != '\0')
    fail_msg("exit code %d: %s", side->code, side->text);
  free(side);
}

/* The runtime that the others of a test share with; it runs on this thread. */
struct home {
  struct side side;
  moonstash *m;
};

static int setup(void **state) {
  struct home *home = calloc(1, sizeof *home);
  *state = home;
  return home != NULL ? open_side(&home->side, &home->m) : -1;
}

static int teardown(void **state) {
  struct home *home = *state;
  int rc = home->m != NULL ? moonstash_close(home->m, DRAIN_MS) : 0;
  free(home);
  return rc;
}

static void run_home(struct home *home, const char *script) {
  int code = run_in(home->m, script);
  if (code != 0 || home->side.text[0] != '\0')
    fail_msg("exit code %d: %s", code, home->side.text);
}

/* One script here and one in a thread that shares with it. */
static void run_both(struct home *home, const char *here, const char *there) {
  struct side *side = start(home->m, DRAIN_MS, there);
  run_home(home, here);
  end(side);
}

/* ---- entries ---- */

static void both_see_the_same_entries(void **state) {
  run_both(*state,
           "memory:set('a', {1, 'two'})\n"
           "cache.persistent:set('a', 'of persistent')\n"
           "mark 'set'\n"
           "meet 'answered'\n"
           "assert(memory:get 'b' == 'from there')\n"
           "assert(memory:get 'a' == nil)\n",
           "meet 'set'\n"
           "assert(memory:get('a')[2] == 'two')\n"
           "assert(cache.persistent:get 'a' == 'of persistent')\n"
           "memory:delete 'a'\n"
           "memory:set('b', 'from there')\n"
           "mark 'answered'\n");
}

static void the_bound_is_one(void **state) {
  struct home *home = *state;
  run_home(home, "cache.configure_caches{memory_max_bytes = 2 ^ 20}\n");
  end(start(home->m, 0,
            "assert(memory:stats().max_bytes == 2 ^ 20)\n"
            "cache.configure_caches{default_ttl = 7}\n"
            "assert(memory:stats().max_bytes == 2 ^ 20)\n"
            "cache.configure_caches{memory_max_bytes = 2 ^ 21}\n"));
  run_home(home, "assert(memory:stats().max_bytes == 2 ^ 21)\n");
}

static void who_comes_and_goes_takes_nothing_away(void **state) {
  struct home *home = *state;
  run_home(home,
           "cache.configure_caches{aliases = {\n"
           "  a = {}, own = {max_bytes = 2 ^ 18}}}\n"
           "for _, name in ipairs{'memory', 'persistent', 'a', 'own'} do\n"
           "  cache.get_cache(name):set('k', name)\n"
           "end\n");
  for (int i = 0; i < 3; i++)
    end(start(home->m, 0,
              "cache.configure_caches{aliases = {\n"
              "  a = {}, own = {max_bytes = 2 ^ 18}}}\n"
              "assert(cache.get_cache('a'):get 'k' == 'a')\n"
              "assert(cache.get_cache('own'):get 'k' == 'own')\n"
              "cache.configure_caches{aliases = {\n"
              "  a = {max_bytes = 2 ^ 17}, own = {}}}\n"
              "assert(cache.get_cache('a'):get 'k' == nil)\n"
              "assert(cache.get_cache('own'):get 'k' == nil)\n"));
  run_home(home,
           "for _, name in ipairs{'memory', 'persistent', 'a', 'own'} do\n"
           "  assert(cache.get_cache(name):get 'k' == name, name)\n"
           "end\n");
}

static void entries_outlive_who_made_them(void **state) {
  struct home *home = *state;
  run_home(home, "memory:set('k', 'kept')\n");
  struct side *side = start(home->m, 0,
                            "mark 'here'\n"
                            "meet 'alone'\n"
                            "assert(memory:get 'k' == 'kept')\n"
                            "assert(named('f', tostring)(1) == '1')\n");
  struct side *last = start(home->m, 0,
                            "mark 'here'\n"
                            "meet 'closed'\n"
                            "mark 'alone'\n");
  run_home(home, "meet('here', 2)\nmark 'closed'\n");
  assert_int_equal(moonstash_close(home->m, 0), 0);
  home->m = NULL;
  end(last);
  end(side);
}

static void sharing_goes_on_to_the_next(void **state) {
  struct home *home = *state, second = {.side.share = home->m}, third = {0};
  assert_int_equal(open_side(&second.side, &second.m), 0);
  third.side.share = second.m;
  assert_int_equal(open_side(&third.side, &third.m), 0);
  run_home(home, "memory:set('k', 'of the first')\n");
  assert_int_equal(moonstash_close(second.m, 0), 0);
  run_home(&third, "assert(memory:get 'k' == 'of the first')\n"
                   "memory:set('k', 'of the third')\n");
  assert_int_equal(moonstash_close(third.m, 0), 0);
  run_home(home, "assert(memory:get 'k' == 'of the third')\n");
}

static void references_never_mix(void **state) {
  run_both(
      *state,
      "cache.configure_caches{aliases = {refs = {serializer = 'none'}}}\n"
      "local refs, mine = cache.get_cache 'refs', {'here'}\n"
      "for i = 1, 100 do refs:set('here' .. i, mine) end\n"
      "mark 'here'\n"
      "meet 'there'\n"
      "for i = 1, 100 do\n"
      "  assert(refs:get('here' .. i) == mine)\n"
      "  assert(refs:get('there' .. i) == nil)\n"
      "end\n"
      "local f = named('f', function() return mine end, {alias = 'refs'})\n"
      "for _ = 1, 200 do assert(f() == mine) end\n"
      "mark 'done'\n"
      "meet('done', 2)\n",
      "cache.configure_caches{aliases = {refs = {serializer = 'none'}}}\n"
      "local refs, mine = cache.get_cache 'refs', {'there'}\n"
      "for i = 1, 100 do refs:set('there' .. i, mine) end\n"
      "mark 'there'\n"
      "meet 'here'\n"
      "for i = 1, 100 do\n"
      "  assert(refs:get('there' .. i) == mine)\n"
      "  assert(refs:get('here' .. i) == nil)\n"
      "end\n"
      "local f = named('f', function() return mine end, {alias = 'refs'})\n"
      "for _ = 1, 200 do assert(f() == mine) end\n"
      "mark 'done'\n"
      "meet('done', 2)\n");
}

static void references_are_let_go_by_whom_they_belong_to(void **state) {
  run_both(*state,
           "cache.configure_caches{aliases = {refs = {serializer = 'none'}}}\n"
           "local refs = cache.get_cache 'refs'\n"
           "local weak = setmetatable({{}}, {__mode = 'v'})\n"
           "refs:set('k', weak[1])\n"
           "collectgarbage()\n"
           "assert(weak[1])\n"
           "mark 'set'\n"
           "meet 'replaced'\n"
           "repeat\n"
           "  collectgarbage()\n"
           "  task.sleep(0.001)\n"
           "until weak[1] == nil\n",
           "cache.configure_caches{aliases = {refs = {serializer = 'none'}}}\n"
           "meet 'set'\n"
           "cache.get_cache('refs'):set('k', {})\n"
           "mark 'replaced'\n");
}

static void classes_are_known_by_name(void **state) {
  run_both(*state,
           "local a, b = {}, {}\n"
           "cache.register_class('a', a)\n"
           "cache.register_class('b', b)\n"
           "memory:set('a', setmetatable({1}, a))\n"
           "memory:set('b', setmetatable({2}, b))\n"
           "mark 'set'\n"
           "meet 'seen'\n",
           "local a, b, c = {}, {}, {}\n"
           "meet 'set'\n"
           "assert(getmetatable(memory:get 'b') ~= b)\n"
           "cache.register_class('c', c)\n"
           "cache.register_class('b', b)\n"
           "cache.register_class('a', a)\n"
           "assert(getmetatable(memory:get 'a') == a)\n"
           "assert(getmetatable(memory:get 'b') == b)\n"
           "mark 'seen'\n");
}

/* ---- loads ---- */

static void a_load_is_one_for_all(void **state) {
  static const char script[] =
      "local f = named('f', function(i)\n"
      "  mark('runs' .. i)\n"
      "  task.sleep(0.002)\n"
      "  return {i, ('x'):rep(i * 100)}, nil, 'third'\n"
      "end)\n"
      "mark 'ready'\n"
      "meet('ready', 2)\n"
      "task.scope(function()\n"
      "  for i = 1, 60 do\n"
      "    for _ = 1, 4 do\n"
      "      task.spawn(function()\n"
      "        local value, none, third = f(i)\n"
      "        assert(value[1] == i and #value[2] == i * 100)\n"
      "        assert(none == nil and third == 'third')\n"
      "      end)\n"
      "    end\n"
      "  end\n"
      "end)\n"
      "for i = 1, 60 do assert(memory:get('runs' .. i) == 1, i) end\n"
      "assert(memory:stats().misses >= 60)\n"
      "mark 'done'\n"
      "meet('done', 2)\n";
  run_both(*state, script, script);
}

static void a_waiter_abroad_keeps_its_loop_alive(void **state) {
  run_both(*state,
           "local f = named('f', function()\n"
           "  mark 'loading'\n"
           "  meet 'waits'\n"
           "  return 'value'\n"
           "end)\n"
           "assert(f() == 'value')\n",
           "meet 'loading'\n"
           "local f = named('f', error)\n"
           "local t = waiting(f)\n"
           "mark 'waits'\n"
           "assert(t:join() == 'value')\n");
}

static void errors_cross_as_text_or_code(void **state) {
  run_both(*state,
           "local raised = {text = 'a text', [1] = {code = 'mine',\n"
           "  message = 'words', more = 1}, [2] = setmetatable({}, {\n"
           "  __tostring = function() return 'says it' end}), [3] = false}\n"
           "local f = named('f', function(what)\n"
           "  mark('loading' .. what)\n"
           "  meet('waits' .. what)\n"
           "  error(raised[what], 0)\n"
           "end)\n"
           "for _, what in ipairs{'text', 1, 2, 3} do\n"
           "  local ok, err = pcall(f, what)\n"
           "  assert(not ok and err == raised[what])\n"
           "end\n",
           "local f = named('f', print)\n"
           "local got = {}\n"
           "for i, what in ipairs{'text', 1, 2, 3} do\n"
           "  meet('loading' .. what)\n"
           "  local t = waiting(f, what)\n"
           "  mark('waits' .. what)\n"
           "  local ok, err = t:pjoin()\n"
           "  assert(not ok)\n"
           "  got[i] = err\n"
           "end\n"
           "assert(got[1] == 'a text')\n"
           "assert(got[2].code == 'mine' and got[2].message == 'words')\n"
           "assert(tostring(got[2]):find 'words' and got[2].more == nil)\n"
           "assert(got[3] == 'says it')\n"
           "assert(got[4] == '(error object is a boolean value)')\n");
}

static void results_that_are_not_stored_cross(void **state) {
  run_both(*state,
           "local f = named('f', function()\n"
           "  mark 'loading'\n"
           "  meet 'waits'\n"
           "  return nil, {code = 'gone'}\n"
           "end)\n"
           "local value, err = f()\n"
           "assert(value == nil and err.code == 'gone')\n",
           "local f = named('f', function() error 'it was asked' end)\n"
           "meet 'loading'\n"
           "local t = waiting(f)\n"
           "mark 'waits'\n"
           "local value, err = t:join()\n"
           "assert(value == nil and err.code == 'gone')\n");
}

static void a_load_of_what_was_deleted_is_not_stored(void **state) {
  run_both(*state,
           "local f = cache.cached(function()\n"
           "  mark 'loading'\n"
           "  meet 'deleted'\n"
           "  return 'stale'\n"
           "end, {key = 'k'})\n"
           "assert(f() == 'stale')\n"
           "assert(memory:get 'k' == nil)\n",
           "local f = cache.cached(error, {key = 'k'})\n"
           "meet 'loading'\n"
           "local t = waiting(f)\n"
           "memory:delete 'k'\n"
           "mark 'deleted'\n"
           "assert(t:join() == 'stale')\n"
           "assert(memory:get 'k' == nil)\n");
}

static void a_waiter_can_be_cancelled(void **state) {
  run_both(*state,
           "local f = named('f', function()\n"
           "  mark 'loading'\n"
           "  meet 'cancelled'\n"
           "  return 'value'\n"
           "end)\n"
           "assert(f() == 'value')\n"
           "mark 'loaded'\n",
           "local f = named('f', error)\n"
           "meet 'loading'\n"
           "local t = waiting(f)\n"
           "t:cancel()\n"
           "assert(not t:pjoin())\n"
           "mark 'cancelled'\n"
           "meet 'loaded'\n"
           "assert(f() == 'value')\n");
}

static void a_cancelled_loader_goes_on_for_those_abroad(void **state) {
  run_both(*state,
           "local f = named('f', function()\n"
           "  mark 'loading'\n"
           "  meet 'cancelled'\n"
           "  task.sleep(0.01)\n"
           "  return 'value'\n"
           "end)\n"
           "local t = task.spawn(f)\n"
           "meet 'waits'\n"
           "t:cancel()\n"
           "mark 'cancelled'\n"
           "t:pjoin()\n",
           "local f = named('f', error)\n"
           "meet 'loading'\n"
           "local t = waiting(f)\n"
           "mark 'waits'\n"
           "assert(t:join() == 'value')\n");
}

static void and_no_longer_than_for_them(void **state) {
  run_both(*state,
           "local f = named('f', function()\n"
           "  mark 'loading'\n"
           "  task.sleep(3600)\n"
           "end)\n"
           "local t = task.spawn(f)\n"
           "meet 'waits'\n"
           "t:cancel()\n"
           "mark 'cancelled'\n"
           "assert(not t:pjoin())\n",
           "local f = named('f', error)\n"
           "meet 'loading'\n"
           "local t = waiting(f)\n"
           "mark 'waits'\n"
           "meet 'cancelled'\n"
           "t:cancel()\n"
           "t:pjoin()\n");
}

static void a_lost_load_does_not_keep_those_abroad(void **state) {
  run_both(*state,
           "local f = named('f', function()\n"
           "  mark 'loading'\n"
           "  coroutine.yield()\n"
           "end)\n"
           "task.spawn(function()\n"
           "  assert(coroutine.resume(coroutine.create(f)))\n"
           "end):join()\n"
           "meet 'done'\n",
           "local f = named('f', function() return 'loaded here' end)\n"
           "meet 'loading'\n"
           "assert(f() == 'loaded here')\n"
           "mark 'done'\n");
}

/* ---- closing ---- */

static void a_loader_that_closes_leaves_the_load_to_others(void **state) {
  struct home *home = *state;
  struct side *side = start(home->m, 0,
                            "local f = named('f', function()\n"
                            "  mark 'loading'\n"
                            "  task.sleep(3600)\n"
                            "end)\n"
                            "task.spawn(f):detach()\n"
                            "meet 'waits'\n");
  run_home(home, "meet 'loading'\n"
                 "local f = named('f', function()\n"
                 "  mark 'runs'\n"
                 "  return 'loaded here'\n"
                 "end)\n"
                 "local t, other = waiting(f), waiting(f)\n"
                 "mark 'waits'\n"
                 "assert(t:join() == 'loaded here')\n"
                 "assert(other:join() == 'loaded here')\n"
                 "assert(memory:get 'runs' == 1)\n");
  pthread_join(side->thread, NULL);
  assert_int_equal(side->code, 0);
  free(side);
}

static void a_waiter_may_close(void **state) {
  struct home *home = *state;
  struct side *side = start(home->m, 0,
                            "local f = named('f', error)\n"
                            "meet 'loading'\n"
                            "waiting(f):detach()\n"
                            "mark 'waits'\n");
  run_home(home, "local f = named('f', function()\n"
                 "  mark 'loading'\n"
                 "  meet 'waits'\n"
                 "  return 'value'\n"
                 "end)\n"
                 "assert(f() == 'value')\n");
  pthread_join(side->thread, NULL);
  assert_int_equal(side->code, 0);
  free(side);
}

/* Loads end on this thread at the moments in which their waiters close. */
static void waiters_may_close_while_they_are_woken(void **state) {
  static const char there[] = "local f = named('f', function() end)\n"
                              "for i = 1, 50 do\n"
                              "  task.spawn(f, i):detach()\n"
                              "end\n"
                              "for _ = 1, 3 do task.yield() end\n";
  struct home *home = *state;
  for (int round = 0; round < 40; round++) {
    struct side *side = start(home->m, 0, there);
    run_home(home, "local f = named('f', function()\n"
                   "  task.sleep(0.0005 + math.random() * 0.003)\n"
                   "  return 'value'\n"
                   "end)\n"
                   "task.scope(function()\n"
                   "  for i = 1, 50 do task.spawn(f, i) end\n"
                   "end)\n"
                   "cache.clear_cache()\n");
    pthread_join(side->thread, NULL);
    assert_int_equal(side->code, 0);
    free(side);
  }
}

#define MANY                                                            \
  "local f = named('f', function(i)\n"                                  \
  "  task.sleep(math.random() * 0.002)\n"                               \
  "  if math.random() < 0.2 then error 'failed' end\n"                  \
  "  return {i}\n"                                                      \
  "end, {ttl = 0.003})\n"                                               \
  "local function ask()\n"                                              \
  "  for _ = 1, 20 do\n"                                                \
  "    local i = math.random(5)\n"                                      \
  "    local ok, value = pcall(f, i)\n"                                 \
  "    assert(not ok or value[1] == i)\n"                               \
  "    if math.random() < 0.1 then cache.handle(f):invalidate(i) end\n" \
  "  end\n"                                                             \
  "end\n"                                                               \
  "local tasks = {}\n"                                                  \
  "for i = 1, 10 do tasks[i] = task.spawn(ask) end\n"                   \
  "tasks[1]:cancel()\n"                                                 \
  "for i = 2, 8 do tasks[i]:join() end\n"                               \
  "tasks[1]:pjoin()\n"

/* A runtime that is not run any more must leave no load under way: home joins
 * all its tasks, the others close with some. */
static void many_come_and_go(void **state) {
  static const char stays[] = MANY;
  static const char script[] = MANY "tasks[9]:detach()\n"
                                    "tasks[10]:detach()\n";
  struct home *home = *state;
  for (int round = 0; round < 10; round++) {
    struct side *sides[4];
    for (int i = 0; i < 4; i++)
      sides[i] = start(home->m, i % 2 * DRAIN_MS, script);
    run_home(home, stays);
    for (int i = 0; i < 4; i++) {
      pthread_join(sides[i]->thread, NULL);
      assert_int_equal(sides[i]->code, 0);
      free(sides[i]);
    }
  }
}

/* ---- circles ---- */

static void loads_that_need_each_other_end(void **state) {
  run_both(*state,
           "local x, y\n"
           "x = named('x', function()\n"
           "  mark 'x'\n"
           "  meet 'y'\n"
           "  return 'x' .. y()\n"
           "end)\n"
           "y = named('y', function() return 'y alone' end)\n"
           "assert(#x() > 2)\n",
           "local x, y\n"
           "y = named('y', function()\n"
           "  mark 'y'\n"
           "  meet 'x'\n"
           "  return 'y' .. x()\n"
           "end)\n"
           "x = named('x', function() return 'x alone' end)\n"
           "assert(#y() > 2)\n");
}

/* The circle is closed by joins, long after both have begun to wait. */
static void even_by_way_of_other_tasks(void **state) {
  run_both(*state,
           "local y = named('y', function() return 'y alone' end)\n"
           "local asks\n"
           "local x = named('x', function()\n"
           "  mark 'x'\n"
           "  meet 'joins'\n"
           "  return 'x' .. asks:join()\n"
           "end)\n"
           "local t = task.spawn(x)\n"
           "meet 'y'\n"
           "asks = waiting(y)\n"
           "mark 'asked'\n"
           "meet('asked', 2)\n"
           "mark 'joins'\n"
           "t:join()\n",
           "local x = named('x', function() return 'x alone' end)\n"
           "local asks\n"
           "local y = named('y', function()\n"
           "  mark 'y'\n"
           "  meet 'joins'\n"
           "  return 'y' .. asks:join()\n"
           "end)\n"
           "local t = task.spawn(y)\n"
           "meet 'x'\n"
           "asks = waiting(x)\n"
           "mark 'asked'\n"
           "t:join()\n");
}

static void nested_loads_still_wait_for_each_other(void **state) {
  static const char script[] = "local inner = named('inner', function()\n"
                               "  mark 'inner runs'\n"
                               "  meet('outer', 2)\n"
                               "  task.sleep(0.005)\n"
                               "  return 'inner'\n"
                               "end)\n"
                               "local outer = named('outer', function(who)\n"
                               "  mark 'outer'\n"
                               "  return inner()\n"
                               "end)\n"
                               "assert(outer(mark 'who') == 'inner')\n"
                               "assert(memory:get 'inner runs' == 1)\n"
                               "mark 'done'\n"
                               "meet('done', 2)\n";
  run_both(*state, script, script);
}

/* Neither could run while the other waits. */
static void runtimes_of_one_thread_do_not_wait(void **state) {
  struct home *home = *state, other = {.side.share = home->m};
  assert_int_equal(open_side(&other.side, &other.m), 0);
  run_home(home, "local f = named('f', function() task.sleep(3600) end)\n"
                 "waiting(f):detach()\n");
  run_home(&other,
           "assert(named('f', function() return 'direct' end)() == 'direct')\n"
           "assert(memory:get 'f' == nil)\n");
  assert_int_equal(moonstash_close(other.m, 0), 0);
  assert_int_equal(moonstash_close(home->m, 0), 0);
  home->m = NULL;
}

static void no_thread_shares_all_the_same(void **state) {
  struct home *home = *state;
  struct side side = {.share = home->m,
                      .flags = MOONSTASH_NO_FFI | MOONSTASH_NO_THREAD,
                      .script = "meet 'loading'\n"
                                "local t = waiting(named('f', error))\n"
                                "mark 'waits'\n"
                                "assert(t:join()[1] == 'value')\n"};
  assert_int_equal(pthread_create(&side.thread, NULL, run_side, &side), 0);
  run_home(home, "local f = named('f', function()\n"
                 "  mark 'loading'\n"
                 "  meet 'waits'\n"
                 "  return {'value'}\n"
                 "end)\n"
                 "assert(f()[1] == 'value')\n");
  pthread_join(side.thread, NULL);
  assert_string_equal(side.text, "");
  assert_int_equal(side.code, 0);
}

/* ---- Redis ---- */

/* A loopback port that was free just now. */
static int free_port(void) {
  struct sockaddr_in at = {.sin_family = AF_INET,
                           .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof at;
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  assert_int_equal(bind(fd, (struct sockaddr *)&at, size), 0);
  assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &size), 0);
  close(fd);
  return ntohs(at.sin_port);
}

/* 0 when there is no redis-server on this machine. */
static pid_t start_redis(int port) {
  char text[16];
  if (system("command -v redis-server >/dev/null") != 0)
    return 0;
  snprintf(text, sizeof text, "%d", port);
  pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* also when a check fails */
    execlp("redis-server", "redis-server", "--port", text, "--bind",
           "127.0.0.1", "--save", "", "--loglevel", "warning", "--logfile",
           "/dev/null", (char *)NULL);
    _exit(127);
  }
  return pid;
}

static void a_load_is_one_for_all_on_redis_too(void **state) {
  static const char body[] =
      "cache.configure_caches{redis_host = '127.0.0.1', redis_port = port}\n"
      "while not cache.persistent:set('up', 1) do task.sleep(0.01) end\n"
      "local opts = {alias = 'persistent', name = 'f'}\n"
      "local f = cache.cached(function(i)\n"
      "  mark('runs' .. i)\n"
      "  meet('asked', 200)\n"
      "  task.sleep(0.02)\n"
      "  return {i}\n"
      "end, opts)\n"
      "mark 'ready'\n"
      "meet('ready', 2)\n"
      "task.scope(function()\n"
      "  for i = 1, 100 do\n"
      "    task.spawn(function()\n"
      "      mark 'asked'\n"
      "      assert(f(i % 20)[1] == i % 20)\n"
      "    end)\n"
      "  end\n"
      "end)\n"
      "for i = 0, 19 do assert(memory:get('runs' .. i) == 1, i) end\n"
      "mark 'done'\n"
      "meet('done', 2)\n";
  char script[SCRIPT_BYTES];
  int port = free_port();
  pid_t redis = start_redis(port);
  if (redis == 0)
    skip();
  snprintf(script, sizeof script, "local port = %d\n%s", port, body);
  run_both(*state, script, script);
  kill(redis, SIGTERM);
  assert_int_equal(waitpid(redis, NULL, 0), redis);
}

#define HOME(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      HOME(both_see_the_same_entries),
      HOME(the_bound_is_one),
      HOME(who_comes_and_goes_takes_nothing_away),
      HOME(entries_outlive_who_made_them),
      HOME(sharing_goes_on_to_the_next),
      HOME(references_never_mix),
      HOME(references_are_let_go_by_whom_they_belong_to),
      HOME(classes_are_known_by_name),
      HOME(a_load_is_one_for_all),
      HOME(a_waiter_abroad_keeps_its_loop_alive),
      HOME(errors_cross_as_text_or_code),
      HOME(results_that_are_not_stored_cross),
      HOME(a_load_of_what_was_deleted_is_not_stored),
      HOME(a_waiter_can_be_cancelled),
      HOME(a_cancelled_loader_goes_on_for_those_abroad),
      HOME(and_no_longer_than_for_them),
      HOME(a_lost_load_does_not_keep_those_abroad),
      HOME(a_loader_that_closes_leaves_the_load_to_others),
      HOME(a_waiter_may_close),
      HOME(waiters_may_close_while_they_are_woken),
      HOME(many_come_and_go),
      HOME(loads_that_need_each_other_end),
      HOME(even_by_way_of_other_tasks),
      HOME(nested_loads_still_wait_for_each_other),
      HOME(runtimes_of_one_thread_do_not_wait),
      HOME(a_load_is_one_for_all_on_redis_too),
      HOME(no_thread_shares_all_the_same), /* last: it holds for the process */
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
