/* bench_tail [--seconds N] [--threads N] [--processors N] [--entries N]
 *            [--slice-ms N] [--histogram]:
 * how long a get may take when more threads share a store than there are
 * processors, and one may lose its own at any place.
 *
 * 8 threads on 2 processors do 15 gets to a set, over 1e5 entries of 16 + 100
 * bytes by Zipf's law (0.99). Each get is timed by CLOCK_MONOTONIC (the two
 * readings, some 50 ns, are in the figures) into buckets of 1/8 of a power of
 * two. Three ways, which take turns of --slice-ms until each has had --seconds:
 *   shared    one store for all threads
 *   private   a store for each: what the scheduler alone does to a get
 *   spinlock  one store for all, behind a spinlock: what a lock does whose
 *             holder lost its processor
 * The bar stands on p99.99 of shared / private. With 8 threads a turn on a
 * processor is some 3 ms, so that one get of 15,000 loses its processor, and
 * the quantile is near: on a busy machine it jumps from microseconds to
 * milliseconds, for the private stores as well, and says little then. The gets
 * over 1 ms (2^20 ns) per million are printed, too: what shared has beyond
 * private are waits for others. So are the lock waits that the store counts.
 *
 * Every value read is checked in all its bytes, a torn one is a wrong one; a
 * wrong one, a missing key (the bound has room for all) or a failed call ends
 * the program.
 */
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "memory/store.h"

enum {
  THREADS_MAX = 64,
  DRAWS = 1 << 20,
  SET_EVERY = 16,
  ENTRY_BYTES = 256, /* of the bound for each entry: enough for all */
  WAYS = 3
};

static const uint64_t now_ms = 1; /* nothing expires here */

static struct {
  uint64_t seconds, threads, processors, entries, slice_ms;
  int histogram;
} options = {3, 8, 2, 100000, 500, 0};

/* Test and set, spinning on reads; as a user would write it. */
struct spinlock {
  atomic_int taken;
};

struct way {
  const char *name;
  int private;            /* a store for each thread */
  struct spinlock *lock;  /* around every call, or NULL */
  struct store **stores;  /* one for each thread; may be the same */
  struct backend **views; /* likewise */
  struct histogram gets;  /* of all turns */
  uint64_t calls, wall;   /* likewise; ns */
};

struct worker {
  pthread_t thread;
  struct way *way;
  struct backend *view;
  pthread_barrier_t *start;
  atomic_int *stop;
  const uint32_t *ids;
  uint64_t random, calls;
  struct histogram gets;
};

static void lock(struct spinlock *l) {
  if (l == NULL)
    return;
  while (atomic_exchange_explicit(&l->taken, 1, memory_order_acquire))
    while (atomic_load_explicit(&l->taken, memory_order_relaxed))
      continue;
}

static void unlock(struct spinlock *l) {
  if (l != NULL)
    atomic_store_explicit(&l->taken, 0, memory_order_release);
}

/* ---- one thread ---- */

static void set(struct backend *view, struct spinlock *l, uint64_t id,
                uint64_t stamp) {
  char key[KEY_SIZE], value[VALUE_SIZE];
  make_key(key, id);
  make_value(value, sizeof value, id, stamp);
  lock(l);
  int rc = view->ops->set(view, now_ms, "", 0, key, sizeof key, value,
                          sizeof value, BACKEND_BYTES, BACKEND_TTL_NEVER, NULL);
  unlock(l);
  if (rc != 1)
    die("set returned %d", rc);
}

static void get(struct worker *w, uint64_t id) {
  char key[KEY_SIZE], value[VALUE_SIZE];
  struct backend_item item;
  make_key(key, id);
  uint64_t begin = wall_ns();
  lock(w->way->lock);
  int rc = w->view->ops->get(w->view, now_ms, "", 0, key, sizeof key, value,
                             sizeof value, &item, NULL);
  unlock(w->way->lock);
  histogram_add(&w->gets, wall_ns() - begin);
  if (rc != BACKEND_HIT || item.length != sizeof value)
    die("key %llu: get returned %d", (unsigned long long)id, rc);
  check_value(value, sizeof value, id);
}

static void *work(void *arg) {
  struct worker *w = arg;
  size_t at = draw_below(&w->random, DRAWS);
  pthread_barrier_wait(w->start);
  while (!atomic_load_explicit(w->stop, memory_order_relaxed)) {
    uint64_t id = w->ids[at++ % DRAWS];
    if (w->calls++ % SET_EVERY == 0)
      set(w->view, w->way->lock, id, draw(&w->random));
    else
      get(w, id);
  }
  return NULL;
}

/* ---- ways ---- */

static void open_way(struct way *way) {
  way->stores = checked(calloc(options.threads, sizeof(struct store *)));
  way->views = checked(calloc(options.threads, sizeof(struct backend *)));
  for (uint64_t i = 0; i < options.threads; i++) {
    way->stores[i] = way->stores[0];
    way->views[i] = way->views[0];
    if (i > 0 && !way->private)
      continue;
    if (store_open(&way->stores[i], options.entries * ENTRY_BYTES * 2) != 0 ||
        store_view(way->stores[i], &way->views[i]) != 0)
      die("the store does not open");
    for (uint64_t id = 0; id < options.entries; id++)
      set(way->views[i], NULL, id, i);
  }
}

static void close_way(struct way *way) {
  for (uint64_t i = 0; i < (way->private ? options.threads : 1); i++) {
    way->views[i]->ops->close(way->views[i]);
    store_close(way->stores[i]);
  }
  free(way->stores);
  free(way->views);
}

/* A turn of slice_ms; each with draws of its own. */
static void take_turn(struct way *way, const uint32_t *ids, uint64_t turn) {
  static struct worker workers[THREADS_MAX];
  pthread_barrier_t start;
  atomic_int stop = 0;
  pthread_barrier_init(&start, NULL, (unsigned)options.threads + 1);
  for (uint64_t i = 0; i < options.threads; i++) {
    workers[i] = (struct worker){.way = way,
                                 .view = way->views[i],
                                 .start = &start,
                                 .stop = &stop,
                                 .ids = ids,
                                 .random = turn * THREADS_MAX + i};
    if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
      die("no thread");
  }
  pthread_barrier_wait(&start);
  uint64_t begin = wall_ns();
  struct timespec slice = {(time_t)(options.slice_ms / 1000),
                           (long)(options.slice_ms % 1000 * NS_PER_MS)};
  nanosleep(&slice, NULL);
  atomic_store(&stop, 1);
  for (uint64_t i = 0; i < options.threads; i++) {
    pthread_join(workers[i].thread, NULL);
    histogram_merge(&way->gets, &workers[i].gets);
    way->calls += workers[i].calls;
  }
  way->wall += wall_ns() - begin;
  pthread_barrier_destroy(&start);
}

/* ---- printing ---- */

/* Gets per million in the buckets of 2^20 ns and above. */
static double over_ms(const struct histogram *h) {
  uint64_t over = 0;
  for (unsigned i = (20 - SUB_BITS + 1) << SUB_BITS; i < BUCKETS; i++)
    over += h->counts[i];
  return (double)over * 1e6 / (double)h->total;
}

static void print_way(const struct way *way) {
  static const double quantiles[] = {0.5, 0.99, 0.999, 0.9999, 1};
  printf("%-9s %7.2f", way->name, (double)way->calls * 1e3 / (double)way->wall);
  for (size_t i = 0; i < sizeof quantiles / sizeof *quantiles; i++)
    printf("  %10s", show_ns(histogram_at(&way->gets, quantiles[i])));
  printf("  %10.1f\n", over_ms(&way->gets));
}

/* Each power of two in which there is a get of any way. */
static void print_histogram(const struct way *ways) {
  printf("\n%-12s", "gets below");
  for (int w = 0; w < WAYS; w++)
    printf("  %12s", ways[w].name);
  puts("");
  for (unsigned log = SUB_BITS; log < 40; log++) {
    uint64_t counts[WAYS] = {0}, any = 0;
    unsigned first = log == SUB_BITS ? 0 : (log - SUB_BITS + 1) << SUB_BITS;
    unsigned end = (log - SUB_BITS + 2) << SUB_BITS;
    for (int w = 0; w < WAYS; w++)
      for (unsigned i = first; i < end; i++)
        any += ways[w].gets.counts[i], counts[w] += ways[w].gets.counts[i];
    if (any == 0)
      continue;
    printf("%-12s", show_ns(2ull << log));
    for (int w = 0; w < WAYS; w++)
      printf("  %12llu", (unsigned long long)counts[w]);
    puts("");
  }
}

static double ratio(const struct way *a, const struct way *b) {
  return (double)histogram_at(&a->gets, 0.9999) /
         (double)histogram_at(&b->gets, 0.9999);
}

static uint64_t lock_waits(const struct way *way) {
  struct store_info info;
  store_info(way->stores[0], &info);
  return info.lock_waits;
}

static void run(void) {
  static struct spinlock spinlock;
  static struct way ways[WAYS] = {{.name = "shared"},
                                  {.name = "private", .private = 1},
                                  {.name = "spinlock", .lock = &spinlock}};
  uint32_t *ids = draw_ids(DRAWS, options.entries, 0.99, 1);
  uint64_t turns = options.seconds * 1000 / options.slice_ms;
  for (int w = 0; w < WAYS; w++)
    open_way(&ways[w]);
  for (uint64_t turn = 0; turn < (turns ? turns : 1); turn++)
    for (int w = 0; w < WAYS; w++)
      take_turn(&ways[w], ids, turn);
  printf("%llu threads on %llu processors, %llu entries, 15 gets : 1 set\n",
         (unsigned long long)options.threads,
         (unsigned long long)options.processors,
         (unsigned long long)options.entries);
  printf("%-9s %7s  %10s  %10s  %10s  %10s  %10s  %10s\n", "", "M/s", "p50",
         "p99", "p99.9", "p99.99", "max", "ppm > 1 ms");
  for (int w = 0; w < WAYS; w++)
    print_way(&ways[w]);
  printf("p99.99: shared / private %.2fx, spinlock / private %.2fx\n",
         ratio(&ways[0], &ways[1]), ratio(&ways[2], &ways[1]));
  printf("shared: readers waited for a lock %llu times in %llu calls\n",
         (unsigned long long)lock_waits(&ways[0]),
         (unsigned long long)ways[0].calls);
  if (options.histogram)
    print_histogram(ways);
  for (int w = 0; w < WAYS; w++)
    close_way(&ways[w]);
  free(ids);
}

int main(int argc, char **argv) {
  static const struct option known[] = {{"seconds", 1, NULL, 's'},
                                        {"threads", 1, NULL, 't'},
                                        {"processors", 1, NULL, 'p'},
                                        {"entries", 1, NULL, 'e'},
                                        {"slice-ms", 1, NULL, 'm'},
                                        {"histogram", 0, NULL, 'h'},
                                        {NULL, 0, NULL, 0}};
  for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
    if (c == 's')
      options.seconds = number_of(optarg);
    else if (c == 't')
      options.threads = number_of(optarg);
    else if (c == 'p')
      options.processors = number_of(optarg);
    else if (c == 'e')
      options.entries = number_of(optarg);
    else if (c == 'm')
      options.slice_ms = number_of(optarg);
    else if (c == 'h')
      options.histogram = 1;
    else
      return 2;
  }
  if (options.threads < 1 || options.threads > THREADS_MAX ||
      options.slice_ms < 1 || options.entries < 2 ||
      options.entries > UINT32_MAX / 4 || options.processors < 1)
    die("an option is out of range");
  use_processors((unsigned)options.processors);
  run();
  return 0;
}
