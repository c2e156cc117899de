/* hit_ratio [--sizes] [--zipf KEYS,REQUESTS,EXPONENT] TRACE...: how many
 * requests miss, in the store and in other policies' simulations.
 *
 * A trace is a text file, one key per line, or is drawn by Zipf's law. It is
 * replayed against the store itself: get, and set on a miss.
 *
 * With values of equal size the byte bound is searched for at which the store
 * keeps 0.1, 1, 10 and 20 % of the distinct keys; the simulations get the
 * number of entries that it then held, on average over the second half, so
 * that bytes cannot be gamed. Cells of fewer than 50 entries are left out, and
 * so are those that no bound gives: a store of shards holds some entries in
 * each, or none at all. --sizes: see sizes.h.
 */
#include "hit_ratio.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "memory/store.h"
#include "policies.h"
#include "sizes.h"

enum {
  LEAST_ENTRIES = 50,     /* of a cell */
  COUNTED_ENTRIES = 1000, /* of a cell that counts for the mean */
  LEAST_BOUND = 4 * 1024,
  MOST_PER_ENTRY = 64 * 1024, /* of the bound: no more are tried */
  TRIES = 7                   /* of the search for the bound */
};

static const double shares[] = {0.001, 0.01, 0.1, 0.2};

/* ---- traces ---- */

/* Numbers the key of a line: a table of numbers + 1, by hash, open. */
static uint32_t key_of(struct trace *t, uint32_t *table, size_t mask,
                       const char *line, size_t length) {
  size_t at = XXH3_64bits(line, length) & mask;
  for (; table[at] != 0; at = (at + 1) & mask) {
    const char *name = t->names[table[at] - 1];
    if (strlen(name) == length && memcmp(name, line, length) == 0)
      return table[at] - 1;
  }
  memcpy(t->names[t->keys], line, length);
  t->names[t->keys][length] = '\0';
  table[at] = ++t->keys;
  return t->keys - 1;
}

/* Where each request's key comes again; keys are those that came. */
static void look_ahead(struct trace *t) {
  size_t size = (t->keys ? t->keys : 1) * sizeof(uint32_t);
  uint32_t *seen = checked(malloc(size));
  memset(seen, 0xff, size);
  t->distinct = 0;
  for (size_t i = t->length; i-- > 0;) {
    uint32_t *last = &seen[t->requests[i]];
    t->distinct += *last == UINT32_MAX;
    t->next[i] = *last != UINT32_MAX ? *last : (uint32_t)t->length;
    *last = (uint32_t)i;
  }
  free(seen);
}

static size_t count_lines(FILE *file) {
  size_t lines = 1;
  for (int c; (c = getc(file)) != EOF;)
    lines += c == '\n';
  rewind(file);
  return lines;
}

static void read_trace(struct trace *t, const char *path) {
  FILE *file = fopen(path, "r");
  char line[64];
  if (file == NULL)
    die("%s cannot be read", path);
  size_t lines = count_lines(file), mask = 1;
  while (mask < 2 * lines)
    mask = mask * 2 + 1;
  *t = (struct trace){.requests = checked(calloc(lines, 4)),
                      .next = checked(calloc(lines, 4)),
                      .names = checked(calloc(lines, sizeof *t->names))};
  uint32_t *table = checked(calloc(mask + 1, sizeof *table));
  while (fgets(line, sizeof line, file) != NULL) {
    size_t length = strcspn(line, "\r\n");
    if (length == 0 || length >= sizeof *t->names)
      continue;
    t->requests[t->length++] = key_of(t, table, mask, line, length);
  }
  free(table);
  fclose(file);
  look_ahead(t);
}

/* KEYS,REQUESTS,EXPONENT: drawn from the sums of the ranks' weights. */
static void draw_trace(struct trace *t, const char *text) {
  double keys, requests, exponent, sum = 0;
  uint64_t random = 1;
  if (sscanf(text, "%lf,%lf,%lf", &keys, &requests, &exponent) != 3 ||
      keys < 1 || keys > 1e8 || requests < 1 || requests > 4e9)
    die("not KEYS,REQUESTS,EXPONENT: %s", text);
  *t = (struct trace){.length = (size_t)requests, .keys = (uint32_t)keys};
  t->requests = checked(calloc(t->length, 4));
  t->next = checked(calloc(t->length, 4));
  t->names = checked(calloc(t->keys, sizeof *t->names));
  double *sums = checked(calloc(t->keys, sizeof *sums));
  for (uint32_t i = 0; i < t->keys; i++) {
    sums[i] = sum += pow(i + 1.0, -exponent);
    snprintf(t->names[i], sizeof *t->names, "key:%u", i);
  }
  for (size_t i = 0; i < t->length; i++) {
    double at = (double)(draw(&random) >> 11) * 0x1p-53 * sum;
    uint32_t low = 0, high = t->keys - 1;
    while (low < high) {
      uint32_t middle = low + (high - low) / 2;
      if (sums[middle] > at)
        high = middle;
      else
        low = middle + 1;
    }
    t->requests[i] = low;
  }
  free(sums);
  look_ahead(t);
}

static void free_trace(struct trace *t) {
  free(t->requests);
  free(t->next);
  free(t->names);
}

/* ---- the store ---- */

enum { SAMPLES = 64 /* looks at the store's entries */ };

struct outcome {
  uint64_t misses;
  double entries; /* mean over the second half */
};

static uint64_t entries_of(struct backend *view) {
  struct backend_stats stats;
  view->ops->stats(view, 1, &stats);
  return stats.entries;
}

static struct outcome replay(const struct trace *t, size_t max_bytes) {
  static const char value[VALUE_SIZE];
  struct store *store;
  struct backend *view;
  struct outcome o = {0, 0};
  size_t step = t->length / 2 / SAMPLES + 1, samples = 0;
  if (store_open(&store, max_bytes) < 0 || store_view(store, &view) < 0)
    die("the store does not open");
  for (size_t i = 0; i < t->length; i++) {
    const char *name = t->names[t->requests[i]];
    struct backend_item item;
    char buf[VALUE_SIZE];
    size_t length = strlen(name);
    if (view->ops->get(view, 1, "", 0, name, length, buf, sizeof buf, &item,
                       NULL) == BACKEND_MISS) {
      o.misses++;
      view->ops->set(view, 1, "", 0, name, length, value, sizeof value, 0, 0,
                     NULL);
    }
    if (i >= t->length / 2 && i % step == 0) {
      o.entries += (double)entries_of(view);
      samples++;
    }
  }
  if (samples > 0)
    o.entries /= (double)samples;
  view->ops->close(view);
  store_close(store);
  return o;
}

static double distance(double a, double b) {
  return a > b ? a - b : b - a;
}

/* Replays with the bound at which the store holds about that many. What a store
 * takes for itself, for each of its shards too, is in the bound: it may have to
 * be large before there is a single entry. */
static struct outcome replay_with(const struct trace *t, double entries) {
  double low = LEAST_BOUND, high = entries * 256 + low;
  struct outcome best = replay(t, (size_t)high);
  while (best.entries < entries && high < entries * MOST_PER_ENTRY) {
    low = high;
    high *= 2;
    best = replay(t, (size_t)high);
  }
  for (int i = 0; i < TRIES; i++) {
    double bound = (low + high) / 2;
    struct outcome o = replay(t, (size_t)bound);
    if (distance(o.entries, entries) < distance(best.entries, entries))
      best = o;
    if (o.entries > entries)
      high = bound;
    else
      low = bound;
  }
  return best;
}

/* ---- the table ---- */

struct sums {
  double store, others[8];
  int cells;
};

static void print_cell(const struct trace *t, const char *name, double share,
                       struct sums *sums) {
  double wanted = share * t->distinct;
  if (wanted < LEAST_ENTRIES)
    return;
  struct outcome o = replay_with(t, wanted);
  uint32_t capacity = (uint32_t)(o.entries + 0.5);
  if (capacity < LEAST_ENTRIES / 2)
    return;
  double n = (double)t->length, own = (double)o.misses / n;
  int counts = capacity >= COUNTED_ENTRIES;
  printf("%-20s %5.1f %% %8u  %.4f", name, share * 100, capacity, own);
  sums->cells += counts;
  sums->store += counts ? own : 0;
  for (int i = 0; policies[i].name != NULL; i++) {
    double miss = (double)policies[i].misses(t->requests, t->next, t->length,
                                             t->keys, capacity) /
                  n;
    printf("  %9.4f", miss);
    sums->others[i] += counts ? miss : 0;
  }
  puts(counts ? "" : "  (small)");
  fflush(stdout);
}

static void print_equal(const struct trace *t, const char *name,
                        struct sums *sums) {
  for (size_t s = 0; s < sizeof shares / sizeof *shares; s++)
    print_cell(t, name, shares[s], sums);
}

static void print_means(const struct sums *sums) {
  if (sums->cells == 0)
    return;
  printf("%-20s %16s  %.4f", "mean", "", sums->store / sums->cells);
  for (int i = 0; policies[i].name != NULL; i++)
    printf("  %9.4f", sums->others[i] / sums->cells);
  printf("  (%d cells of %d entries and more)\n", sums->cells, COUNTED_ENTRIES);
}

static void print_head(void) {
  printf("%-20s %7s %8s  %6s", "misses", "size", "entries", "store");
  for (int i = 0; policies[i].name != NULL; i++)
    printf("  %9s", policies[i].name);
  puts("");
}

int main(int argc, char **argv) {
  static const struct option known[] = {
      {"sizes", 0, NULL, 's'}, {"zipf", 1, NULL, 'z'}, {NULL, 0, NULL, 0}};
  struct sums sums = {0};
  const char *zipf = NULL;
  int sizes = 0;
  for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
    if (c == 's')
      sizes = 1;
    else if (c == 'z')
      zipf = optarg;
    else
      return 2;
  }
  if (optind == argc && zipf == NULL)
    die("usage: hit_ratio [--sizes] [--zipf KEYS,REQUESTS,EXPONENT] TRACE...");
  if (sizes)
    sizes_head();
  else
    print_head();
  for (int i = zipf ? optind - 1 : optind; i < argc; i++) {
    const char *name = i < optind ? "zipf" : argv[i];
    const char *slash = strrchr(name, '/');
    struct trace t;
    if (i < optind)
      draw_trace(&t, zipf);
    else
      read_trace(&t, name);
    name = slash != NULL ? slash + 1 : name;
    if (sizes)
      sizes_print(&t, name);
    else
      print_equal(&t, name, &sums);
    free_trace(&t);
  }
  print_means(&sums);
  return 0;
}
