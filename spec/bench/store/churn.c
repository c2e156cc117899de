/* bench_churn [--bound BYTES] [--generations N] [--small BYTES]:
 * whether memory stays within the bound while the sizes of values shift, and
 * what a small store holds.
 *
 * The sizes of a generation are drawn evenly from half to one and a half times
 * its mean, which goes from 64 B to 16 KiB and back, over and over, by a factor
 * of two from one generation to the next. A generation sets values of as many
 * bytes as the bound has, twice: 3 of 4 sets bring a new key, 1 gives a recent
 * one a value of another size, and one in 16 is followed by a delete of a
 * recent key. After each set a key of the recent window (the last sets whose
 * values are a quarter of the bound together) is asked for, those deleted
 * apart: a hit is checked in all its bytes, a miss is counted.
 *
 * Printed after each generation: resident memory beyond what the process had
 * before the store was opened, and the bytes that it says are in use, both
 * / bound; sets refused;
 * the share of hits. Then how many entries of 16 + 100 bytes stay of 10,000
 * in a store of --small bytes: by its stats and by asking for each.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "memory/store.h"

enum {
  MEAN_LEAST_LOG = 6, /* 64 B */
  MEAN_MOST_LOG = 14, /* 16 KiB */
  SIZE_MOST = 3 << (MEAN_MOST_LOG - 1),
  VOLUME = 2,       /* bounds set in a generation */
  WINDOW_SHARE = 4, /* the recent window is bound / 4 */
  RECENT_MAX = 1 << 20,
  SMALL_SETS = 10000
};

static const uint64_t now_ms = 1; /* nothing expires here */

static struct {
  uint64_t bound, generations, small;
} options = {64 << 20, 50, 256 << 10};

/* The last sets, a ring; a key set twice is in it twice. */
struct recent {
  uint32_t *ids, *sizes; /* ids: what was set; RECENT_MAX of them each */
  unsigned char *gone;   /* by id % RECENT_MAX: deleted, or refused */
  uint64_t first, end;   /* of the window: counts of sets */
  uint64_t bytes;        /* in the window */
};

struct bench {
  struct store *store;
  struct backend *view;
  struct recent recent;
  uint64_t random, next_id;
  uint64_t sets, refused, too_large, gets, hits; /* of this generation */
  size_t resident;                               /* before all */
};

static struct backend_stats stats_of(struct bench *b) {
  struct backend_stats stats;
  b->view->ops->stats(b->view, now_ms, &stats);
  return stats;
}

/* What the bound is about. */
static uint64_t bytes_of(struct bench *b) {
  struct store_info info;
  store_info(b->store, &info);
  return info.bytes;
}

/* ---- the recent window ---- */

static void remember(struct recent *r, uint32_t id, uint32_t size) {
  r->ids[r->end % RECENT_MAX] = id;
  r->sizes[r->end % RECENT_MAX] = size;
  r->end++;
  r->bytes += size;
  while (r->bytes > options.bound / WINDOW_SHARE ||
         r->end - r->first >= RECENT_MAX)
    r->bytes -= r->sizes[r->first++ % RECENT_MAX];
}

static uint32_t recent_id(struct bench *b) {
  struct recent *r = &b->recent;
  return r->ids[(r->first + draw_below(&b->random, r->end - r->first)) %
                RECENT_MAX];
}

/* ---- calls ---- */

static void set(struct bench *b, uint32_t id, size_t size) {
  static char value[SIZE_MOST + VALUE_LEAST];
  char key[KEY_SIZE];
  make_key(key, id);
  make_value(value, size, id, b->sets);
  int rc = b->view->ops->set(b->view, now_ms, "", 0, key, sizeof key, value,
                             size, BACKEND_BYTES, BACKEND_TTL_NEVER, NULL);
  b->sets++;
  b->refused += rc != 1;
  b->too_large += rc == BACKEND_ETOOLARGE;
  b->recent.gone[id % RECENT_MAX] = rc != 1;
  if (rc == 1)
    remember(&b->recent, id, (uint32_t)size);
}

static int get(struct bench *b, uint32_t id) {
  static char value[SIZE_MOST + VALUE_LEAST];
  struct backend_item item;
  char key[KEY_SIZE];
  make_key(key, id);
  int rc = b->view->ops->get(b->view, now_ms, "", 0, key, sizeof key, value,
                             sizeof value, &item, NULL);
  if (rc < 0 || (rc == BACKEND_HIT && item.length > sizeof value))
    die("get returned %d", rc);
  if (rc == BACKEND_HIT)
    check_value(value, item.length, id);
  return rc;
}

static void delete (struct bench *b, uint32_t id) {
  char key[KEY_SIZE];
  make_key(key, id);
  int rc = b->view->ops->remove(b->view, now_ms, "", 0, key, sizeof key, NULL);
  if (rc < 0 || get(b, id) != BACKEND_MISS)
    die("key %u was deleted and is there", id);
  b->recent.gone[id % RECENT_MAX] = 1;
}

/* ---- generations ---- */

static uint64_t mean_of(uint64_t generation) {
  unsigned span = MEAN_MOST_LOG - MEAN_LEAST_LOG;
  unsigned at = (unsigned)(generation % (2 * span));
  return 1ull << (MEAN_LEAST_LOG + (at <= span ? at : 2 * span - at));
}

static void run_generation(struct bench *b, uint64_t mean) {
  uint64_t volume = 0;
  b->sets = b->refused = b->too_large = b->gets = b->hits = 0;
  while (volume < VOLUME * options.bound) {
    size_t size = mean / 2 + draw_below(&b->random, mean + 1);
    int again = b->sets % 4 == 3 && b->recent.end > b->recent.first;
    set(b, again ? recent_id(b) : (uint32_t)b->next_id++, size);
    volume += size;
    if (b->recent.end == b->recent.first)
      continue; /* all were refused so far */
    if (b->sets % 16 == 0)
      delete (b, recent_id(b));
    uint32_t id = recent_id(b);
    if (b->recent.gone[id % RECENT_MAX])
      continue;
    b->gets++;
    b->hits += get(b, id) == BACKEND_HIT;
  }
}

static void run_generations(struct bench *b) {
  double bound = (double)options.bound, worst_rss = 0, worst_bytes = 0;
  printf("bound %.1f MB\n%4s %7s %9s  %-7s %-7s %8s %10s %8s\n", bound / 1e6,
         "", "mean", "sets", "RSS", "bytes", "refused", "too large", "hits");
  for (uint64_t i = 0; i < options.generations; i++) {
    run_generation(b, mean_of(i));
    double rss = ((double)resident_bytes() - (double)b->resident) / bound;
    double bytes = (double)bytes_of(b) / bound;
    worst_rss = rss > worst_rss ? rss : worst_rss;
    worst_bytes = bytes > worst_bytes ? bytes : worst_bytes;
    printf("%4llu %7llu %9llu  %.3fx  %.3fx  %8llu %10llu %8.4f\n",
           (unsigned long long)i + 1, (unsigned long long)mean_of(i),
           (unsigned long long)b->sets, rss, bytes,
           (unsigned long long)b->refused, (unsigned long long)b->too_large,
           (double)b->hits / (double)(b->gets ? b->gets : 1));
    fflush(stdout);
  }
  printf("worst: RSS %.3fx, the store's bytes %.3fx of the bound\n", worst_rss,
         worst_bytes);
}

/* Memory that the bench itself uses is touched before RSS is noted. */
static void open_bench(struct bench *b, uint64_t bound) {
  struct recent *r = &b->recent;
  *b = (struct bench){.random = 1};
  r->ids = checked(malloc(RECENT_MAX * sizeof *r->ids));
  r->sizes = checked(malloc(RECENT_MAX * sizeof *r->sizes));
  r->gone = checked(malloc(RECENT_MAX));
  memset(r->ids, 1, RECENT_MAX * sizeof *r->ids);
  memset(r->sizes, 1, RECENT_MAX * sizeof *r->sizes);
  memset(r->gone, 1, RECENT_MAX);
  b->resident = resident_bytes();
  if (store_open(&b->store, bound) != 0 || store_view(b->store, &b->view) != 0)
    die("the store does not open");
}

static void close_bench(struct bench *b) {
  b->view->ops->close(b->view);
  store_close(b->store);
  free(b->recent.ids);
  free(b->recent.sizes);
  free(b->recent.gone);
}

/* ---- a small store ---- */

static void run_small(void) {
  static struct bench b;
  uint64_t there = 0;
  open_bench(&b, options.small);
  for (uint32_t id = 0; id < SMALL_SETS; id++)
    set(&b, id, VALUE_SIZE);
  struct backend_stats stats = stats_of(&b);
  for (uint32_t id = 0; id < SMALL_SETS; id++)
    there += get(&b, id) == BACKEND_HIT;
  if (there != stats.entries)
    die("%llu entries are there, stats.entries is %llu",
        (unsigned long long)there, (unsigned long long)stats.entries);
  printf("%llu bytes hold %llu entries of %d + %d bytes, %.1f bytes each; "
         "%llu of %d sets refused\n",
         (unsigned long long)options.small, (unsigned long long)there, KEY_SIZE,
         VALUE_SIZE, there ? (double)options.small / (double)there : 0.0,
         (unsigned long long)b.refused, SMALL_SETS);
  close_bench(&b);
}

int main(int argc, char **argv) {
  static const struct option known[] = {{"bound", 1, NULL, 'b'},
                                        {"generations", 1, NULL, 'g'},
                                        {"small", 1, NULL, 's'},
                                        {NULL, 0, NULL, 0}};
  static struct bench b;
  for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
    if (c == 'b')
      options.bound = number_of(optarg);
    else if (c == 'g')
      options.generations = number_of(optarg);
    else if (c == 's')
      options.small = number_of(optarg);
    else
      return 2;
  }
  if (options.bound < 1 << 20)
    die("a bound of 1 MiB at least");
  open_bench(&b, options.bound);
  run_generations(&b);
  close_bench(&b);
  run_small();
  return 0;
}
