/* bench_expiry [--entries N] [--live N] [--seconds N]:
 * what a call pays when a million entries expire in the same second.
 *
 * The clock is the bench's own: it is passed to every call. N entries (1e6) are
 * set so that they expire within one second, beside --live others (1e5) that do
 * not; then the clock jumps to the end of that second and goes on as the one on
 * the wall does. Nobody asks for the expired keys; between calls the store is
 * swept in bounded steps, as a host's loop does it. Twice:
 *   roomy  the bound is far away. 15 gets of live keys to a set of one: the
 *          store needs no room, so what comes back comes by the sweep. How
 *          long that takes is when stats.bytes has lost 95 % of what expired.
 *   full   the bound is what the store holds, and the sets bring new keys:
 *          they must find room, and what has expired is the room to take.
 * At the end every expired key is asked for, and, in the roomy store, a
 * thousand more are set and asked for 1 ms before their time and 10 ms after. A
 * hit too late, a wrong or a lost value end the program.
 *
 * Every call is timed by CLOCK_THREAD_CPUTIME_ID and, around that, by
 * CLOCK_MONOTONIC. An empty stretch between two readings, as often, is printed
 * for scale: its longest is what the machine does, not the store.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "memory/store.h"

enum {
  SECOND_MS = 1000,
  LEAST_TTL_MS = 60 * 1000, /* of what expires: the fill is done by then */
  LATE_MS = 10,             /* a hit so long after its time is an error */
  ENTRY_BYTES = 256,        /* of the bound for each entry: enough for all */
  SET_EVERY = 16,
  SWEEP_STEP = 256,  /* entries that a step may look at */
  LOOK_EVERY = 1024, /* calls between two looks at stats.bytes */
  BAR_NS = NS_PER_MS /* CPU: no call should take longer, no step either */
};

static struct {
  uint64_t entries, live, seconds;
} options = {1000000, 100000, 12};

/* What is measured about one kind of call. */
struct calls {
  struct histogram cpu, wall;
  uint64_t over; /* BAR_NS of CPU */
};

struct bench {
  struct store *store;
  struct backend *view;
  uint64_t now;      /* ms: the injected clock */
  uint64_t random;   /* draws the live keys */
  uint64_t sweep_at; /* ms: when to sweep again */
  struct calls gets, sets, reads, steps;
};

/* Times what stands between begin and end. */
struct timing {
  uint64_t cpu, wall;
};

static struct timing begin_call(void) {
  struct timing t = {.wall = wall_ns()};
  t.cpu = thread_ns();
  return t;
}

static void end_call(struct calls *calls, struct timing begin) {
  uint64_t cpu = thread_ns(), wall = wall_ns();
  histogram_add(&calls->cpu, cpu - begin.cpu);
  calls->over += cpu - begin.cpu > BAR_NS;
  histogram_add(&calls->wall, wall - begin.wall);
}

/* Ids: the live ones from 0, those that expire behind them, then new ones. */

static void set(struct bench *b, uint64_t id, uint64_t ttl_ms) {
  char key[KEY_SIZE], value[VALUE_SIZE];
  make_key(key, id);
  make_value(value, sizeof value, id, b->random);
  struct timing begin = begin_call();
  int rc = b->view->ops->set(b->view, b->now, "", 0, key, sizeof key, value,
                             sizeof value, BACKEND_BYTES, ttl_ms, NULL);
  end_call(&b->sets, begin);
  if (rc != 1)
    die("set returned %d", rc);
}

static int get(struct bench *b, struct calls *calls, uint64_t id) {
  char key[KEY_SIZE], value[VALUE_SIZE];
  struct backend_item item;
  make_key(key, id);
  struct timing begin = begin_call();
  int rc = b->view->ops->get(b->view, b->now, "", 0, key, sizeof key, value,
                             sizeof value, &item, NULL);
  end_call(calls, begin);
  if (rc < 0)
    die("get returned %d", rc);
  if (rc == BACKEND_HIT)
    check_value(value, item.length, id);
  return rc;
}

/* The turn of a host's loop, which lends the store time to sweep: a step, and
 * the next at the next turn, or in a second when there is no more to do. */
static void turn(struct bench *b) {
  if (b->now < b->sweep_at)
    return;
  struct timing begin = begin_call();
  int more = store_sweep(b->store, b->now, SWEEP_STEP);
  end_call(&b->steps, begin);
  b->sweep_at = more ? b->now : b->now + SECOND_MS;
}

static struct backend_stats stats_of(struct bench *b) {
  struct backend_stats stats;
  b->view->ops->stats(b->view, b->now, &stats);
  return stats;
}

/* What the bound is about. */
static uint64_t bytes_in_use(struct bench *b) {
  struct store_info info;
  store_info(b->store, &info);
  return info.bytes;
}

/* ---- the run ---- */

static void open_bench(struct bench *b) {
  uint64_t all = options.entries + options.live;
  *b = (struct bench){.now = 1, .random = 1};
  if (store_open(&b->store, all * ENTRY_BYTES * 2) != 0 ||
      store_view(b->store, &b->view) != 0)
    die("the store does not open");
  for (uint64_t id = 0; id < options.live; id++)
    set(b, id, BACKEND_TTL_NEVER);
}

/* Returns how many bytes the entries that will expire take. */
static uint64_t fill(struct bench *b) {
  uint64_t before = stats_of(b).bytes;
  for (uint64_t i = 0; i < options.entries; i++)
    set(b, options.live + i,
        LEAST_TTL_MS + i * (SECOND_MS - LATE_MS) / options.entries);
  b->now += LEAST_TTL_MS - 1; /* the last moment at which all are there */
  for (uint64_t i = 0; i < options.entries; i++)
    if (get(b, &b->reads, options.live + i) != BACKEND_HIT)
      die("an entry expired before its time");
  b->sets = b->gets = b->reads = (struct calls){.cpu.total = 0};
  return stats_of(b).bytes - before;
}

/* Gets and sets until the time is up. Returns after how many ns stats.bytes was
 * below `down`; 0: never. */
static uint64_t go_on(struct bench *b, int full, uint64_t down) {
  uint64_t start = wall_ns(), start_ms = b->now + SECOND_MS + 1, came = 0;
  uint64_t next = options.live + options.entries, now = start;
  for (uint64_t i = 0; now - start < options.seconds * NS_PER_S; i++) {
    b->now = start_ms + (now - start) / NS_PER_MS;
    uint64_t id = draw_below(&b->random, options.live);
    if (i % SET_EVERY == 0)
      set(b, full ? next++ : id, BACKEND_TTL_NEVER);
    else if (get(b, &b->gets, id) != BACKEND_HIT && !full)
      die("live key %llu was lost", (unsigned long long)id);
    turn(b);
    if (i % LOOK_EVERY == 0 && came == 0 && stats_of(b).bytes <= down)
      came = wall_ns() - start;
    now = wall_ns();
  }
  return came;
}

static void read_expired(struct bench *b) {
  for (uint64_t i = 0; i < options.entries; i++)
    if (get(b, &b->reads, options.live + i) != BACKEND_MISS)
      die("key %llu was read past its time",
          (unsigned long long)(options.live + i));
}

/* Keys one after the other, each at the edges of its time. */
static void read_at_the_edge(struct bench *b) {
  static struct calls unused;
  uint64_t first = options.live + options.entries, start = b->now;
  for (uint64_t ttl_ms = 1; ttl_ms <= SECOND_MS; ttl_ms++) {
    b->now = start;
    set(b, first + ttl_ms, ttl_ms);
    b->now = start + ttl_ms - 1;
    if (get(b, &unused, first + ttl_ms) != BACKEND_HIT)
      die("a key expired before its time");
    b->now = start + ttl_ms + LATE_MS;
    if (get(b, &unused, first + ttl_ms) != BACKEND_MISS)
      die("a key was read %d ms past its time", LATE_MS);
  }
}

/* ---- printing ---- */

static void print_calls(const char *name, const struct calls *c) {
  printf("  %-22s %9llu", name, (unsigned long long)c->cpu.total);
  printf("  %10s  %10s  %10s", show_ns(histogram_at(&c->cpu, 0.5)),
         show_ns(histogram_at(&c->cpu, 0.9999)), show_ns(c->cpu.max));
  printf("  %10s  %10s\n", show_ns(histogram_at(&c->wall, 0.9999)),
         show_ns(c->wall.max));
}

static void print_empty(void) {
  static struct calls empty;
  for (uint64_t i = 0; i < options.entries; i++)
    end_call(&empty, begin_call());
  print_calls("nothing, for scale", &empty);
}

static void run(int full) {
  static struct bench b;
  open_bench(&b);
  uint64_t bytes = fill(&b), all = stats_of(&b).bytes;
  if (full)
    store_resize(b.store, bytes_in_use(&b));
  uint64_t came = go_on(&b, full, all - bytes / 20 * 19);
  struct backend_stats stats = stats_of(&b);
  printf("%s\n", full ? "full: sets of new keys" : "roomy");
  print_calls("get", &b.gets);
  print_calls("set", &b.sets);
  print_calls("step of the sweep", &b.steps);
  read_expired(&b);
  print_calls("get of an expired key", &b.reads);
  if (!full)
    read_at_the_edge(&b);
  printf("  stats.bytes %.1f MB before, %.1f MB after, evictions %llu\n",
         (double)all / 1e6, (double)stats.bytes / 1e6,
         (unsigned long long)stats.evictions);
  printf("  %llu calls and %llu steps of %d entries took over 1 ms of CPU\n",
         (unsigned long long)(b.gets.over + b.sets.over + b.reads.over),
         (unsigned long long)b.steps.over, SWEEP_STEP);
  if (came > 0)
    printf("  95 %% of the expired bytes were back after %s\n", show_ns(came));
  else if (!full)
    printf("  95 %% of the expired bytes were back after: never (in %llu s)\n",
           (unsigned long long)options.seconds);
  fflush(stdout);
  b.view->ops->close(b.view);
  store_close(b.store);
}

int main(int argc, char **argv) {
  static const struct option known[] = {{"entries", 1, NULL, 'e'},
                                        {"live", 1, NULL, 'l'},
                                        {"seconds", 1, NULL, 's'},
                                        {NULL, 0, NULL, 0}};
  for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
    if (c == 'e')
      options.entries = number_of(optarg);
    else if (c == 'l')
      options.live = number_of(optarg);
    else if (c == 's')
      options.seconds = number_of(optarg);
    else
      return 2;
  }
  if (options.entries < 1 || options.live < 1 || options.seconds < 1)
    die("an option is out of range");
  printf("%llu entries expire in one second, %llu stay: time per call\n",
         (unsigned long long)options.entries, (unsigned long long)options.live);
  printf("  %-22s %9s  %10s  %10s  %10s  %10s  %10s\n", "", "calls", "CPU p50",
         "CPU p99.99", "CPU max", "wall 99.99", "wall max");
  print_empty();
  run(0);
  run(1);
  return 0;
}
