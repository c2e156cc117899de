/* The process clock, as its users see it.
 *
 * The tests run in order: the ticker lives as long as the process, so what
 * must not see it (threads = 0) or must start anew (fork) runs in children.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "clock.h"

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
  BUSY_MS = 300,
  LAG_MS = 100,        /* generous: the machine may be busy */
  PATIENCE_MS = 10000, /* how long a condition is waited for */
  THREADS = 4
};

/* Threads made after a fork are what the fork tests are about. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) {
  return "die_after_fork=0";
}

static uint64_t real_ms(void) {
  struct timespec now;

  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void sleep_ms(unsigned ms) {
  usleep(ms * 1000);
}

/* Fills path with the ticker's directory in /proc; 0 if it does not run. */
static int find_ticker(char *path, size_t size) {
  DIR *tasks = opendir("/proc/self/task");
  struct dirent *task;
  int found = 0;

  assert_non_null(tasks);
  while (!found && (task = readdir(tasks)) != NULL) {
    char name[32] = "";
    FILE *comm;

    snprintf(path, size, "/proc/self/task/%s/comm", task->d_name);
    if ((comm = fopen(path, "r")) == NULL)
      continue;
    found = fgets(name, sizeof name, comm) != NULL &&
            strcmp(name, "moonstash-clock\n") == 0;
    fclose(comm);
    snprintf(path, size, "/proc/self/task/%s", task->d_name);
  }
  closedir(tasks);
  return found;
}

static int ticker_exists(void) {
  char path[512];

  return find_ticker(path, sizeof path);
}

static int ticker_is_gone(void) {
  return !ticker_exists();
}

/* One numeric line of the ticker's status ("SigBlk:" is hexadecimal); 0 while
 * there is no ticker. */
static unsigned long long ticker_status(const char *name, int base) {
  char path[512], line[256];
  unsigned long long value = 0;
  FILE *status;

  if (!find_ticker(path, sizeof path - 16))
    return 0;
  strcat(path, "/status");
  if ((status = fopen(path, "r")) == NULL)
    return 0;
  while (fgets(line, sizeof line, status) != NULL)
    if (strncmp(line, name, strlen(name)) == 0)
      value = strtoull(line + strlen(name), NULL, base);
  fclose(status);
  return value;
}

static unsigned long long ticker_wakeups(void) {
  return ticker_status("voluntary_ctxt_switches:", 10);
}

/* Parked: no wake-up at all over a time in which a running ticker has 50. */
static int ticker_is_parked(void) {
  unsigned long long before = ticker_wakeups();

  sleep_ms(50 * CLOCK_TICK_MS);
  return before > 0 && ticker_wakeups() == before;
}

static int comes_true(int (*condition)(void)) {
  uint64_t deadline = real_ms() + PATIENCE_MS;

  while (!condition())
    if (real_ms() > deadline)
      return 0;
    else
      sleep_ms(1);
  return 1;
}

/* Never yields and never updates, as a script in a busy loop. Returns how
 * many values it saw; *worst is how far the clock was behind. */
static int busy_loop(uint64_t for_ms, uint64_t *worst) {
  uint64_t end = real_ms() + for_ms, last = clock_now_ms(), now;
  int values = 1;

  for (*worst = 0; (now = real_ms()) < end;) {
    uint64_t seen = clock_now_ms();

    if (seen < last)
      return -1;
    if (now > seen && now - seen > *worst)
      *worst = now - seen;
    values += seen > last;
    last = seen;
  }
  return values;
}

static int child_status(pid_t child) {
  int status = -1;

  assert_int_equal(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* Runs in a child: cmocka's asserts belong to the parent. */
#define REQUIRE(what)         \
  do {                        \
    if (!(what))              \
      _exit(__LINE__ & 0x7f); \
  } while (0)

static void works_before_it_is_opened(void **state) {
  (void)state;
  assert_true(clock_now_ms() > 0);
  assert_true(clock_update() > 0);
  assert_false(ticker_exists());
}

static void without_threads_each_read_is_a_call(void **state) {
  pid_t child = fork();
  uint64_t worst;

  (void)state;
  if (child == 0) {
    alarm(20);
    REQUIRE(clock_open(0) == 0);
    REQUIRE(clock_open(1) == 0); /* from then on: it stays forbidden */
    clock_enter();
    REQUIRE(!ticker_exists());
    REQUIRE(busy_loop(BUSY_MS, &worst) > 5);
    REQUIRE(worst <= LAG_MS);
    clock_leave();
    REQUIRE(!ticker_exists());
    _exit(0);
  }
  assert_int_equal(child_status(child), 0);
}

static void opens_without_a_thread(void **state) {
  (void)state;
  assert_int_equal(clock_open(1), 0);
  assert_int_equal(clock_open(1), 0);
  assert_true(clock_now_ms() > 0);
  assert_false(ticker_exists());
}

static void stands_still_between_turns(void **state) {
  uint64_t word = clock_update();

  (void)state;
  sleep_ms(5 * CLOCK_TICK_MS);
  assert_int_equal(clock_now_ms(), word);
  assert_true(clock_update() >= word + 5 * CLOCK_TICK_MS);
}

static void advances_in_a_busy_loop(void **state) {
  uint64_t worst;
  int values;

  (void)state;
  clock_update();
  clock_enter();
  assert_true(comes_true(ticker_exists));
  sleep_ms(10 * CLOCK_TICK_MS); /* a thread may take a while to start */
  values = busy_loop(BUSY_MS, &worst);
  clock_leave();
  assert_true(values > 5);
  assert_true(worst <= LAG_MS);
}

static void blocks_every_signal_in_the_ticker(void **state) {
  const unsigned long long standard = 0x7ffbfeffull; /* but KILL and STOP */

  (void)state;
  assert_true((ticker_status("SigBlk:", 16) & standard) == standard);
}

static void parks_when_nobody_is_inside(void **state) {
  (void)state;
  assert_true(comes_true(ticker_is_parked));
  sleep_ms(300);
  assert_true(ticker_is_parked());
}

static void wakes_when_somebody_enters(void **state) {
  (void)state;
  for (int i = 0; i < 3; i++) {
    uint64_t worst;

    assert_true(comes_true(ticker_is_parked));
    clock_update();
    clock_enter();
    assert_true(busy_loop(BUSY_MS, &worst) > 5);
    clock_leave();
    assert_true(worst <= LAG_MS);
  }
}

static void stays_awake_until_the_outermost_leaves(void **state) {
  uint64_t worst;

  (void)state;
  clock_enter();
  clock_enter();
  clock_leave();
  sleep_ms(100 * CLOCK_TICK_MS);
  assert_true(busy_loop(BUSY_MS, &worst) > 5);
  assert_true(worst <= LAG_MS);
  clock_leave();
  assert_true(comes_true(ticker_is_parked));
}

/* Entries right at the moment of parking: here a lost wake-up would show as a
 * word that stands still. */
static void loses_no_wakeup(void **state) {
  uint64_t end = real_ms() + 2000;
  unsigned pause_us = 14000;

  (void)state;
  while (real_ms() < end) {
    uint64_t word, deadline = real_ms() + PATIENCE_MS;

    usleep(pause_us = 14000 + (pause_us * 7919 + 131) % 8000);
    word = clock_update();
    clock_enter();
    while (clock_now_ms() == word)
      assert_true(real_ms() < deadline);
    clock_leave();
  }
}

/* The latest time any thread was given: nobody may be given less later. */
static _Atomic uint64_t latest;

static void *use_clock(void *failed) {
  for (int i = 0; i < 20000; i++) {
    uint64_t before = atomic_load(&latest), seen;

    if (i % 3 == 0)
      clock_enter();
    seen = i % 2 == 0 ? clock_update() : clock_now_ms();
    if (i % 3 == 0)
      clock_leave();
    if (seen < before)
      atomic_store((_Atomic int *)failed, 1);
    while (before < seen &&
           !atomic_compare_exchange_weak(&latest, &before, seen))
      ;
  }
  return NULL;
}

static void never_goes_back_with_many_threads(void **state) {
  pthread_t threads[THREADS];
  _Atomic int failed = 0;

  (void)state;
  for (int i = 0; i < THREADS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, use_clock, &failed), 0);
  for (int i = 0; i < THREADS; i++)
    pthread_join(threads[i], NULL);
  assert_int_equal(failed, 0);
  assert_true(comes_true(ticker_is_parked));
}

static void starts_again_in_a_child(void **state) {
  uint64_t before = clock_update(), worst;
  pid_t child = fork();

  (void)state;
  if (child == 0) {
    alarm(20);
    REQUIRE(!ticker_exists());
    REQUIRE(clock_now_ms() >= before);
    REQUIRE(!ticker_exists());
    clock_enter();
    REQUIRE(comes_true(ticker_exists));
    sleep_ms(10 * CLOCK_TICK_MS);
    REQUIRE(busy_loop(BUSY_MS, &worst) > 5);
    REQUIRE(worst <= LAG_MS);
    clock_leave();
    REQUIRE(comes_true(ticker_is_parked));
    _exit(0);
  }
  assert_int_equal(child_status(child), 0);
}

static void goes_on_in_a_child_that_was_forked_inside(void **state) {
  uint64_t worst;
  pid_t child;

  (void)state;
  clock_enter();
  sleep_ms(5 * CLOCK_TICK_MS);
  child = fork();
  if (child == 0) {
    alarm(20);
    REQUIRE(busy_loop(BUSY_MS, &worst) > 5);
    REQUIRE(worst <= LAG_MS);
    REQUIRE(comes_true(ticker_exists));
    clock_leave();
    REQUIRE(comes_true(ticker_is_parked));
    _exit(0);
  }
  assert_int_equal(child_status(child), 0);
  clock_leave();
}

static void ends_the_ticker_once_threads_are_forbidden(void **state) {
  pid_t child = fork();
  uint64_t worst;

  (void)state;
  if (child == 0) {
    alarm(20);
    clock_enter();
    sleep_ms(5 * CLOCK_TICK_MS);
    REQUIRE(comes_true(ticker_exists));
    REQUIRE(clock_open(0) == 0);
    REQUIRE(comes_true(ticker_is_gone));
    REQUIRE(busy_loop(BUSY_MS, &worst) > 5);
    clock_leave();
    clock_enter();
    REQUIRE(!ticker_exists());
    _exit(0);
  }
  assert_int_equal(child_status(child), 0);
}

static void wakes_a_parked_ticker_to_forbid_it(void **state) {
  pid_t child = fork();

  (void)state;
  if (child == 0) {
    alarm(20);
    clock_enter();
    clock_leave();
    REQUIRE(comes_true(ticker_is_parked));
    REQUIRE(clock_open(0) == 0);
    REQUIRE(comes_true(ticker_is_gone));
    _exit(0);
  }
  assert_int_equal(child_status(child), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(works_before_it_is_opened),
      cmocka_unit_test(without_threads_each_read_is_a_call),
      cmocka_unit_test(opens_without_a_thread),
      cmocka_unit_test(stands_still_between_turns),
      cmocka_unit_test(advances_in_a_busy_loop),
      cmocka_unit_test(blocks_every_signal_in_the_ticker),
      cmocka_unit_test(parks_when_nobody_is_inside),
      cmocka_unit_test(wakes_when_somebody_enters),
      cmocka_unit_test(stays_awake_until_the_outermost_leaves),
      cmocka_unit_test(loses_no_wakeup),
      cmocka_unit_test(never_goes_back_with_many_threads),
      cmocka_unit_test(starts_again_in_a_child),
      cmocka_unit_test(goes_on_in_a_child_that_was_forked_inside),
      cmocka_unit_test(ends_the_ticker_once_threads_are_forbidden),
      cmocka_unit_test(wakes_a_parked_ticker_to_forbid_it),
  };

  return cmocka_run_group_tests_name("clock", tests, NULL, NULL);
}
