/* The process clock: who writes the word, and when.
 *
 * The word holds monotonic milliseconds. Three parties write it, all through
 * the same compare-and-swap that only ever raises it: a loop at each turn, the
 * ticker while a loop is deep in Lua, and the first reader. Two values are no
 * time: WORD_NONE, which the next reader replaces by a time, and WORD_ASK,
 * which is final and sends each reader to the system. So no time that was
 * handed out is above the word, and the word is never above the system's
 * clock: whichever a reader gets, it does not go back.
 *
 * Invariant: while a loop is inside Lua, a ticker is running or being woken,
 * or the word is no time. That is what makes one plain load a fair clock.
 *
 * The ticker parks when for CLOCK_PARK_TICKS nobody was inside and nobody came
 * by, and then costs nothing: no timer, no wake-up. No wake-up can be lost:
 *
 *     clock_enter:  A1 presence += enter      park:  B1 state = PARKED
 *                   A2 read state                    B2 read presence
 *
 * All four are sequentially consistent, so they have one order. If A2 comes
 * before B1 then A1 comes before B2: the ticker sees the newcomer and does not
 * sleep. Otherwise A2 reads PARKED and the newcomer wakes it; a wake between
 * B2 and the futex call changes the state, which the kernel compares before it
 * puts the thread to sleep. (Dekker's argument; the same as in any eventcount.)
 *
 * Nothing here takes a lock, so that a fork at any instant leaves a child with
 * a clock that works.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* pthread_setname_np */
#endif
#include "clock.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
  CLOCK_PARK_TICKS = 8,          /* quiet ticks before the ticker parks */
  CLOCK_STACK_BYTES = 64 * 1024, /* the ticker's stack, where allowed */
  CLOCK_LINE_BYTES = 64,         /* a cache line */
  PRESENCE_BITS = 24,            /* for the number of threads inside */
  NS_PER_MS = 1000 * 1000,
  MS_PER_S = 1000
};

/* presence: how many threads are inside, and above that a count of entries,
 * which tells the ticker that somebody came and went. One word, so that an
 * entry is one atomic addition. The count wraps; only its change is read. */
#define PRESENCE_ONE ((uint64_t)1)
#define PRESENCE_MASK ((PRESENCE_ONE << PRESENCE_BITS) - 1)
#define PRESENCE_ENTER (PRESENCE_ONE + (PRESENCE_ONE << PRESENCE_BITS))

#define WORD_NONE ((uint64_t)0) /* nobody has written it yet */
#define WORD_ASK UINT64_MAX     /* no ticker may exist: ask the system */

/* What became of the ticker. Ordered: from TICKER_PARKED on, clock_enter has
 * something to do. */
enum {
  TICKER_RUNNING = 0,   /* ticks, or is being created */
  TICKER_FORBIDDEN = 1, /* must not exist; final */
  TICKER_CLOSED = 2,    /* nobody has called clock_open yet */
  TICKER_PARKED = 3,    /* sleeps on the futex that is the state itself */
  TICKER_ABSENT = 4     /* allowed, not needed so far */
};

static struct {
  /* Read by everyone, written a few hundred times a second. */
  _Alignas(CLOCK_LINE_BYTES) _Atomic uint64_t word; /* ms or WORD_ */
  _Atomic uint32_t state;                           /* TICKER_ */
  /* Written at every entry: a line of its own, or each read would miss. */
  _Alignas(CLOCK_LINE_BYTES) _Atomic uint64_t presence;
} process_clock = {.state = TICKER_CLOSED};

/* Entries of this thread that have not left. Only the outermost counts, and
 * after a fork this tells whether the one surviving thread is inside. */
static _Thread_local unsigned depth;

static uint64_t system_ms(void) {
  struct timespec now;
  int rc = clock_gettime(CLOCK_MONOTONIC, &now);

  assert(rc == 0);
  (void)rc;
  /* One more, so that the machine's first millisecond is not a 0. */
  return (uint64_t)now.tv_sec * MS_PER_S + (uint64_t)now.tv_nsec / NS_PER_MS +
         1;
}

static uint32_t ticker_state(void) {
  return atomic_load(&process_clock.state);
}

static int change_state(uint32_t from, uint32_t to) {
  return atomic_compare_exchange_strong(&process_clock.state, &from, to);
}

static int somebody_inside(uint64_t presence) {
  return (presence & PRESENCE_MASK) != 0;
}

/* Both values in one comparison: this is on every reader's way. */
static int is_time(uint64_t word) {
  return word - 1 < WORD_ASK - 1;
}

/* Raises the word to now_ms, and returns what it then is; leaves it alone if
 * it is no time. */
static uint64_t raise_word(uint64_t now_ms) {
  uint64_t word = atomic_load(&process_clock.word);

  while (is_time(word) && word < now_ms)
    if (atomic_compare_exchange_weak(&process_clock.word, &word, now_ms))
      return now_ms;
  return word;
}

static void forbid_ticker(void) {
  atomic_store(&process_clock.state, TICKER_FORBIDDEN);
  atomic_store(&process_clock.word, WORD_ASK);
  syscall(SYS_futex, &process_clock.state, FUTEX_WAKE_PRIVATE, INT_MAX, NULL,
          NULL, 0);
}

/* Sleeps until the state is no longer PARKED. */
static void park(uint64_t seen) {
  if (!change_state(TICKER_RUNNING, TICKER_PARKED))   /* B1 */
    return;                                           /* forbidden meanwhile */
  if (atomic_load(&process_clock.presence) != seen) { /* B2 */
    change_state(TICKER_PARKED, TICKER_RUNNING);
    return;
  }
  while (ticker_state() == TICKER_PARKED)
    syscall(SYS_futex, &process_clock.state, FUTEX_WAIT_PRIVATE, TICKER_PARKED,
            NULL, NULL, 0);
}

/* Loops write the word themselves at each turn: while they do, it is younger
 * than a tick, and the ticker leaves the cache line to its readers. */
static void tick(void) {
  uint64_t now_ms = system_ms();

  if (now_ms >= atomic_load(&process_clock.word) + CLOCK_TICK_MS)
    raise_word(now_ms);
}

static void *ticker_main(void *unused) {
  static const struct timespec pause = {0, CLOCK_TICK_MS * NS_PER_MS};
  uint64_t seen = 0;
  int quiet = 0;

  (void)unused;
  pthread_setname_np(pthread_self(), "moonstash-clock");
  while (ticker_state() != TICKER_FORBIDDEN) {
    uint64_t presence;

    clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
    presence = atomic_load(&process_clock.presence);
    quiet = presence != seen || somebody_inside(presence) ? 0 : quiet + 1;
    seen = presence;
    if (somebody_inside(presence))
      tick();
    if (quiet >= CLOCK_PARK_TICKS) {
      park(seen);
      quiet = 0;
    }
  }
  return NULL;
}

static int create_ticker(size_t stack_bytes) {
  pthread_attr_t attr;
  pthread_t thread;
  int rc = pthread_attr_init(&attr);

  if (rc != 0)
    return -rc;
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  if (stack_bytes > 0)
    rc = pthread_attr_setstacksize(&attr, stack_bytes);
  if (rc == 0)
    rc = pthread_create(&thread, &attr, ticker_main, NULL);
  pthread_attr_destroy(&attr);
  return -rc;
}

/* The one who moves the state from ABSENT creates. Where that fails the clock
 * works without a ticker, by calls; nobody needs to be told. */
static void start_ticker(void) {
  sigset_t all, before;
  int rc;

  if (!change_state(TICKER_ABSENT, TICKER_RUNNING))
    return;
  /* The host's signals are for the host's threads; a mask is inherited. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  rc = create_ticker(CLOCK_STACK_BYTES);
  if (rc == -EINVAL) /* too small for this program's thread-locals */
    rc = create_ticker(0);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (rc < 0)
    forbid_ticker();
}

/* Sees to it that a ticker is ticking, where one may. */
static void rouse_ticker(void) {
  if (change_state(TICKER_PARKED, TICKER_RUNNING))
    syscall(SYS_futex, &process_clock.state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL,
            0);
  else
    start_ticker();
}

/* The word is no time. Where a ticker is allowed, writes the first one, with
 * a ticker behind it if somebody is inside already: before clock_open, or in
 * a child that was forked inside Lua. */
static uint64_t publish(uint64_t now_ms) {
  uint64_t word = WORD_NONE;
  uint32_t state = ticker_state();

  if (state == TICKER_FORBIDDEN || state == TICKER_CLOSED)
    return now_ms;
  if (somebody_inside(atomic_load(&process_clock.presence)))
    rouse_ticker();
  /* Fails where another was first, or has written WORD_ASK. */
  if (atomic_compare_exchange_strong(&process_clock.word, &word, now_ms))
    return now_ms;
  word = raise_word(now_ms);
  return is_time(word) ? word : now_ms;
}

/* In the child only the forking thread is left, inside or not; the ticker is
 * gone whatever its state says, and the next use starts it again. Another
 * thread may have been amid any of the above: every word is set anew. */
static void forget_ticker(void) {
  uint32_t state = ticker_state();

  atomic_store(&process_clock.presence, depth > 0 ? PRESENCE_ENTER : 0);
  if (state == TICKER_FORBIDDEN)
    atomic_store(&process_clock.word, WORD_ASK);
  else if (state != TICKER_CLOSED) {
    atomic_store(&process_clock.state, TICKER_ABSENT);
    atomic_store(&process_clock.word, WORD_NONE);
  }
}

static int fork_watch_rc; /* written once, under pthread_once */

static void watch_forks(void) {
  fork_watch_rc = -pthread_atfork(NULL, NULL, forget_ticker);
}

int clock_open(int threads) {
  static pthread_once_t watched = PTHREAD_ONCE_INIT;

  if (!threads) {
    forbid_ticker();
    return 0;
  }
  pthread_once(&watched, watch_forks);
  if (fork_watch_rc < 0)
    return fork_watch_rc;
  change_state(TICKER_CLOSED, TICKER_ABSENT);
  clock_update();
  return 0;
}

uint64_t clock_now_ms(void) {
  /* Relaxed is enough: a single word, and coherence alone keeps a thread (and
   * whoever it told) from seeing an older value after a newer one. */
  uint64_t word =
      atomic_load_explicit(&process_clock.word, memory_order_relaxed);

  return is_time(word) ? word : publish(system_ms());
}

const uint64_t *clock_word(void) {
  static_assert(sizeof(_Atomic uint64_t) == sizeof(uint64_t), "a plain word");
  return (const uint64_t *)&process_clock.word;
}

uint64_t clock_update(void) {
  uint64_t now_ms = system_ms();
  uint64_t word = raise_word(now_ms);

  return is_time(word) ? word : publish(now_ms);
}

void clock_enter(void) {
  if (depth++ > 0)
    return;
  atomic_fetch_add(&process_clock.presence, PRESENCE_ENTER); /* A1 */
  if (ticker_state() >= TICKER_PARKED)                       /* A2 */
    rouse_ticker();
}

void clock_leave(void) {
  assert(depth > 0);
  if (--depth > 0)
    return;
  /* Late news of it costs the ticker one tick too many, nothing else. */
  atomic_fetch_sub_explicit(&process_clock.presence, PRESENCE_ONE,
                            memory_order_release);
}
