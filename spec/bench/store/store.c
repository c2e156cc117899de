/* bench_store [--full] [--slice-ms N] [--rounds N] [--memory N] [SIZE...]:
 * what an operation of the store costs, beside GLib's GHashTable behind a mutex
 * and liburcu's lock-free hash table, in one run.
 *
 * Keys are of 16 bytes, values of 100 and copied out; each names its key, and a
 * wrong one, a lost key or a failed call ends the program. SIZE is how many
 * entries a table holds: 1e3 and 1e5, with --full 1e7 as well. Keys are drawn
 * beforehand, evenly or by Zipf's law (0.99); the sequence is the same for all.
 *
 * An operation is timed in windows of 16 Ki by CLOCK_THREAD_CPUTIME_ID, making
 * the key (2 ns) included; the figures are the median of the windows and
 * their tenth percentile, and the x are the store's / the peer's of both. The
 * engines take turns of --slice-ms milliseconds, --rounds times, and the first
 * window of a turn is not counted: whatever else the machine does meets all of
 * them. Throughput is that of the clock on the wall; two threads are compared
 * with the turn of one thread right before, and the median of these ratios is
 * printed.
 *
 * Deletes are of distinct keys, set again off the clock. "set new" is made with
 * a table that is full: the store's bound is lowered to what it holds; a peer
 * deletes its oldest entry. While a table is filled each set is timed alone:
 * the longest shows what growing costs (a page fault or a reading of the clock
 * is in it, too). --memory N, 1e6 if not given, 0 for no: what N entries take
 * beyond their keys and values, each engine in a process of its own.
 */
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine.h"

enum {
  WINDOW = 16 * 1024,
  DRAWS = 128 * WINDOW, /* keys drawn, which threads read from anywhere on */
  ENGINES = 3,
  THREADS = 2,
  ROUNDS_MAX = 99,
  GROWN_FROM = 1000, /* entries; sets before are not in the histogram */
  WARM_MAX = 1000000 /* sets into a full table before they count */
};

static const struct engine *const engines[ENGINES] = {
    &engine_store, &engine_glib, &engine_lfht};
static const char *const names[OPERATIONS] = {
    [GET_HIT] = "get hit",  [GET_MISS] = "get miss", [GET_MANY] = "get_many",
    [SET] = "set existing", [MIX] = "15:1",          [DELETE] = "delete",
    [SET_NEW] = "set new"};

static struct { uint64_t slice_ms, rounds, memory; } options = {40, 5, 1000000};

/* ---- one thread ---- */

struct worker {
  pthread_t thread;
  pthread_barrier_t *start;
  const struct engine *engine;
  void *table;
  struct batch batch;
  const uint32_t *ids;   /* DRAWS of them */
  unsigned number, of;   /* which thread this is */
  uint64_t random, done; /* done: deletes, over all turns */
  double *windows;       /* ns per operation */
  size_t count, cap;
  double mops; /* by the clock on the wall */
};

/* Deletes a window's worth of this thread's keys, and sets them again. */
static uint64_t delete_window(struct worker *w) {
  static __thread uint32_t ids[WINDOW];
  uint64_t own = w->batch.entries / w->of, ns = 0;
  size_t chunk = own / 2 < WINDOW ? own / 2 : WINDOW;
  for (size_t left = WINDOW; left > 0; left -= w->batch.count) {
    w->batch.count = left < chunk ? left : chunk;
    for (size_t i = 0; i < w->batch.count; i++)
      ids[i] = (uint32_t)scatter(w->number + w->of * (w->done++ % own),
                                 w->batch.entries);
    w->batch.ids = ids;
    w->batch.operation = DELETE;
    uint64_t begin = thread_ns();
    w->engine->run(w->table, &w->batch);
    ns += thread_ns() - begin;
    w->batch.operation = SET;
    w->engine->run(w->table, &w->batch);
    w->batch.operation = DELETE;
  }
  return ns;
}

static uint64_t run_window(struct worker *w) {
  if (w->batch.operation == DELETE)
    return delete_window(w);
  w->batch.ids = w->ids + draw_below(&w->random, DRAWS / WINDOW) * WINDOW;
  w->batch.count = WINDOW;
  uint64_t begin = thread_ns();
  w->engine->run(w->table, &w->batch);
  return thread_ns() - begin;
}

static void keep(struct worker *w, double ns) {
  if (w->count == w->cap) {
    w->cap = w->cap * 2 + 64;
    w->windows = checked(realloc(w->windows, w->cap * sizeof *w->windows));
  }
  w->windows[w->count++] = ns;
}

static void *work(void *arg) {
  struct worker *w = arg;
  size_t before = w->count;
  pthread_barrier_wait(w->start);
  w->engine->enter();
  run_window(w);
  uint64_t begin = wall_ns(), now = begin;
  while (now - begin < options.slice_ms * NS_PER_MS) {
    keep(w, (double)run_window(w) / WINDOW);
    now = wall_ns();
  }
  w->engine->leave();
  w->mops = (double)(w->count - before) * WINDOW * 1e3 / (double)(now - begin);
  return NULL;
}

/* ---- one figure ---- */

struct table {
  const struct engine *engine;
  void *table;
  uint64_t entries, next; /* next: id of the next new key */
};

/* What came out for an engine with so many threads. */
struct outcome {
  struct worker workers[THREADS];
  double mops[ROUNDS_MAX]; /* of a round */
  double p10, median;      /* ns */
};

static void take_turn(struct outcome *o, unsigned threads) {
  pthread_barrier_t start;
  pthread_barrier_init(&start, NULL, threads);
  for (unsigned i = 0; i < threads; i++) {
    struct worker *w = &o->workers[i];
    w->start = &start;
    if (pthread_create(&w->thread, NULL, work, w) != 0)
      die("no thread");
  }
  for (unsigned i = 0; i < threads; i++)
    pthread_join(o->workers[i].thread, NULL);
  pthread_barrier_destroy(&start);
}

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *numbers, size_t n) {
  qsort(numbers, n, sizeof *numbers, by_size);
  return numbers[n / 2];
}

static void prepare(struct outcome *o, struct table *t, enum operation what,
                    const uint32_t *ids, unsigned threads) {
  *o = (struct outcome){.p10 = 0};
  for (unsigned i = 0; i < threads; i++)
    o->workers[i] = (struct worker){
        .engine = t->engine,
        .table = t->table,
        .batch = {what, NULL, 0, t->entries, t->next + i, threads},
        .ids = ids,
        .number = i,
        .of = threads,
        .random = i + 1};
}

/* Takes the figures out of the windows, which go. */
static void conclude(struct outcome *o, struct table *t, unsigned threads) {
  struct worker *all = &o->workers[0];
  for (unsigned i = 1; i < threads; i++) {
    for (size_t k = 0; k < o->workers[i].count; k++)
      keep(all, o->workers[i].windows[k]);
    free(o->workers[i].windows);
  }
  qsort(all->windows, all->count, sizeof *all->windows, by_size);
  o->median = all->windows[all->count / 2];
  o->p10 = all->windows[all->count / 10];
  for (unsigned i = 0; i < threads; i++)
    if (o->workers[i].batch.next > t->next)
      t->next = o->workers[i].batch.next / THREADS * THREADS;
  free(all->windows);
}

/* Measures an operation with the thread counts from .. to, all engines taking
 * turns. outcomes: by engine, by threads - 1. */
static void measure(struct table *tables, enum operation what,
                    const uint32_t *ids, unsigned from, unsigned to,
                    struct outcome outcomes[ENGINES][THREADS]) {
  for (int e = 0; e < ENGINES; e++)
    for (unsigned n = from; n <= to; n++)
      prepare(&outcomes[e][n - 1], &tables[e], what, ids, n);
  for (uint64_t round = 0; round < options.rounds; round++) {
    for (int e = 0; e < ENGINES; e++) {
      for (unsigned n = from; n <= to; n++) {
        struct outcome *o = &outcomes[e][n - 1];
        take_turn(o, n);
        for (unsigned i = 0; i < n; i++)
          o->mops[round] += o->workers[i].mops;
      }
    }
  }
  for (int e = 0; e < ENGINES; e++)
    for (unsigned n = from; n <= to; n++)
      conclude(&outcomes[e][n - 1], &tables[e], n);
}

/* ---- tables ---- */

/* Sets the ids from .. to - 1; with h, times each. */
static void fill(struct table *t, uint32_t from, uint32_t to,
                 struct histogram *h) {
  t->engine->enter();
  uint64_t last = thread_ns();
  for (uint32_t id = from; id < to; id++) {
    struct batch one = {SET, &id, 1, to, 0, 0};
    t->engine->run(t->table, &one);
    if (!h)
      continue;
    uint64_t now = thread_ns();
    histogram_add(h, now - last);
    last = now;
  }
  t->engine->leave();
}

/* That all are there, before anything is measured. */
static void check_all(struct table *t) {
  t->engine->enter();
  for (uint32_t id = 0; id < t->entries; id++) {
    struct batch one = {GET_HIT, &id, 1, t->entries, 0, 0};
    t->engine->run(t->table, &one);
  }
  t->engine->leave();
}

static void open_tables(struct table *tables, uint64_t entries) {
  uint32_t small = entries < GROWN_FROM ? (uint32_t)entries : GROWN_FROM;
  for (int e = 0; e < ENGINES; e++) {
    static struct histogram h;
    struct table *t = &tables[e];
    h = (struct histogram){.total = 0};
    *t =
        (struct table){engines[e], engines[e]->open(entries), entries, entries};
    fill(t, 0, small, NULL);
    fill(t, small, (uint32_t)entries, &h);
    check_all(t);
    if (h.total > 0)
      printf("  %-12s longest set while it grows from %u: %s of CPU, "
             "p99.99 %s, p50 %s\n",
             engines[e]->name, small, show_ns(h.max),
             show_ns(histogram_at(&h, 0.9999)), show_ns(histogram_at(&h, 0.5)));
  }
}

/* Lowers bounds to what is in the tables, and makes them used to it. */
static void fill_up(struct table *tables) {
  for (int e = 0; e < ENGINES; e++) {
    struct table *t = &tables[e];
    uint64_t warm = t->entries / 4 / THREADS * THREADS;
    warm = warm < WARM_MAX ? warm : WARM_MAX;
    struct batch batch = {SET_NEW, NULL, warm, t->entries, t->next, 1};
    t->engine->full(t->table);
    t->engine->enter();
    t->engine->run(t->table, &batch);
    t->engine->leave();
    t->next = batch.next;
  }
}

/* ---- printing ---- */

static void print_times(const char *name,
                        struct outcome outcomes[ENGINES][THREADS],
                        unsigned threads) {
  struct outcome *own = &outcomes[0][threads - 1];
  printf("  %-12s %u thr", name, threads);
  for (int e = 0; e < ENGINES; e++) {
    struct outcome *o = &outcomes[e][threads - 1];
    printf("  %8.1f (%8.1f)", o->median, o->p10);
    if (e > 0)
      printf(" %5.2fx (%5.2fx)", own->median / o->median, own->p10 / o->p10);
  }
  puts("");
  fflush(stdout);
}

static void print_threads(const char *name,
                          struct outcome outcomes[ENGINES][THREADS]) {
  printf("  %-12s 2 / 1", name);
  for (int e = 0; e < ENGINES; e++) {
    double ratios[ROUNDS_MAX];
    for (uint64_t i = 0; i < options.rounds; i++)
      ratios[i] = outcomes[e][1].mops[i] / outcomes[e][0].mops[i];
    printf("  %5.2fx: %5.2f M/s", median(ratios, options.rounds),
           median(outcomes[e][1].mops, options.rounds));
    if (e > 0)
      printf("                ");
  }
  puts("");
  fflush(stdout);
}

static void print_head(uint64_t entries, const char *how) {
  printf("%llu entries, %s: CPU ns per operation, median (p10), store / peer\n",
         (unsigned long long)entries, how);
  printf("  %-18s", "");
  for (int e = 0; e < ENGINES; e++)
    printf("  %-19s%s", engines[e]->name, e > 0 ? "                " : "");
  puts("");
}

/* ---- what is measured ---- */

static void measure_draws(struct table *tables, uint64_t entries,
                          double theta) {
  static struct outcome outcomes[ENGINES][THREADS];
  static const enum operation each[] = {GET_HIT, GET_MISS, GET_MANY, SET, MIX};
  uint32_t *ids = draw_ids(DRAWS, entries, theta, entries);
  print_head(entries, theta > 0 ? "Zipf 0.99" : "uniform");
  for (size_t i = 0; i < sizeof each / sizeof *each; i++) {
    measure(tables, each[i], ids, 1, THREADS, outcomes);
    for (unsigned n = 1; n <= THREADS; n++)
      print_times(names[each[i]], outcomes, n);
    if (each[i] == GET_HIT || each[i] == MIX)
      print_threads(names[each[i]], outcomes);
  }
  free(ids);
}

/* The operations that go through all keys: deletes, and new keys. */
static void measure_turnover(struct table *tables, uint64_t entries) {
  static struct outcome outcomes[ENGINES][THREADS];
  uint32_t *ids = draw_ids(DRAWS, entries, 0, entries);
  print_head(entries, "each in its turn");
  for (unsigned n = 1; n <= THREADS; n++) {
    measure(tables, DELETE, ids, n, n, outcomes);
    print_times(names[DELETE], outcomes, n);
  }
  fill_up(tables);
  for (unsigned n = 1; n <= THREADS; n++) {
    uint64_t before = engines[0]->evictions(tables[0].table);
    measure(tables, SET_NEW, ids, n, n, outcomes);
    print_times(names[SET_NEW], outcomes, n);
    if (engines[0]->evictions(tables[0].table) == before)
      die("new keys came into a full store and none went");
  }
  free(ids);
}

static void measure_size(uint64_t entries) {
  struct table tables[ENGINES];
  if (entries < 2 * MANY || entries % (2 * THREADS) || entries > UINT32_MAX / 4)
    die("%llu: not a size to measure", (unsigned long long)entries);
  printf("%llu entries: filling\n", (unsigned long long)entries);
  open_tables(tables, entries);
  measure_draws(tables, entries, 0);
  measure_draws(tables, entries, 0.99);
  measure_turnover(tables, entries);
  for (int e = 0; e < ENGINES; e++)
    engines[e]->close(tables[e].table);
  puts("");
}

static void print_memory(const struct engine *engine, uint64_t entries) {
  size_t before = resident_bytes();
  struct table t = {engine, engine->open(entries), entries, entries};
  fill(&t, 0, (uint32_t)entries, NULL);
  double n = (double)entries, payload = KEY_SIZE + VALUE_SIZE;
  double rss = (double)(resident_bytes() - before) / n - payload;
  double own = (double)engine->bytes(t.table) / n - payload;
  check_all(&t);
  printf("  %-12s RSS %6.1f", engine->name, rss);
  if (engine->bytes(t.table) > 0)
    printf("  stats.bytes %6.1f", own);
  puts("");
}

/* In processes of their own: none finds memory that another left. */
static void measure_memory(uint64_t entries) {
  printf("%llu entries: bytes per entry beyond key and value\n",
         (unsigned long long)entries);
  for (int e = 0; e < ENGINES; e++) {
    int status;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
      print_memory(engines[e], entries);
      exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
      die("measuring memory failed");
  }
  puts("");
}

int main(int argc, char **argv) {
  static const struct option known[] = {{"full", 0, NULL, 'f'},
                                        {"slice-ms", 1, NULL, 's'},
                                        {"rounds", 1, NULL, 'r'},
                                        {"memory", 1, NULL, 'm'},
                                        {NULL, 0, NULL, 0}};
  int full = 0;
  for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
    if (c == 'f')
      full = 1;
    else if (c == 's')
      options.slice_ms = number_of(optarg);
    else if (c == 'r')
      options.rounds = number_of(optarg);
    else if (c == 'm')
      options.memory = number_of(optarg);
    else
      return 2;
  }
  if (options.slice_ms < 1 || options.rounds < 1 ||
      options.rounds > ROUNDS_MAX || options.memory > UINT32_MAX / 4)
    die("an option is out of range");
  if (options.memory > 0)
    measure_memory(options.memory);
  for (int i = optind; i < argc; i++)
    measure_size(number_of(argv[i]));
  if (optind == argc) {
    measure_size(1000);
    measure_size(100000);
  }
  if (full)
    measure_size(10000000);
  return 0;
}
