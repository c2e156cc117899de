/* hit_ratio TRACE...: how many requests miss, in the store and in other
 * policies' simulations with as many entries.
 *
 * A trace is a text file, one key per line. It is replayed against the store
 * itself: get, and set on a miss, with values of equal size. The byte bound is
 * searched for at which the store keeps 0.1, 1, 10 and 20 % of the distinct
 * keys; the simulations get the number of entries that it then held, on
 * average over the second half, so that bytes cannot be gamed. Cells of fewer
 * than 50 entries are left out.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "memory/store.h"
#include "policies.h"

enum {
  VALUE_SIZE = 100,
  LEAST_ENTRIES = 50,     /* of a cell */
  COUNTED_ENTRIES = 1000, /* of a cell that counts for the mean */
  SAMPLES = 64,           /* looks at the store's entries */
  TRIES = 7               /* of the search for the bound */
};

static const double shares[] = {0.001, 0.01, 0.1, 0.2};

struct trace {
  uint32_t *requests, *next;
  char (*names)[24]; /* of keys: what the store is asked for */
  size_t length;
  uint32_t keys;
};

/* ---- traces ---- */

static void *checked(void *p) {
  if (p == NULL) {
    fputs("hit_ratio: not enough memory\n", stderr);
    exit(1);
  }
  return p;
}

/* Numbers the key of a line: a table of numbers + 1, by hash, open. */
static uint32_t number_of(struct trace *t, uint32_t *table, size_t mask,
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
  if (file == NULL) {
    perror(path);
    exit(1);
  }
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
    t->requests[t->length++] = number_of(t, table, mask, line, length);
  }
  memset(table, 0xff, (t->keys ? t->keys : 1) * sizeof *table);
  for (size_t i = t->length; i-- > 0;) { /* table: where each key comes next */
    uint32_t *seen = &table[t->requests[i]];
    t->next[i] = *seen != UINT32_MAX ? *seen : (uint32_t)t->length;
    *seen = (uint32_t)i;
  }
  free(table);
  fclose(file);
}

static void free_trace(struct trace *t) {
  free(t->requests);
  free(t->next);
  free(t->names);
}

/* ---- the store ---- */

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
    checked(NULL);
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

/* Replays with the bound at which the store holds about that many. */
static struct outcome replay_with(const struct trace *t, double entries) {
  double low = 4 * 1024, high = entries * 1024 + low;
  struct outcome best = {0, 0};
  for (int i = 0; i < TRIES; i++) {
    double bound = (low + high) / 2;
    struct outcome o = replay(t, (size_t)bound);
    if (i == 0 ||
        (o.entries > entries ? o.entries - entries : entries - o.entries) <
            (best.entries > entries ? best.entries - entries
                                    : entries - best.entries))
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
  double wanted = share * t->keys;
  if (wanted < LEAST_ENTRIES)
    return;
  struct outcome o = replay_with(t, wanted);
  uint32_t capacity = (uint32_t)(o.entries + 0.5);
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

int main(int argc, char **argv) {
  struct sums sums = {0};
  if (argc < 2) {
    fputs("usage: hit_ratio TRACE...\n", stderr);
    return 2;
  }
  printf("%-20s %7s %8s  %6s", "misses", "size", "entries", "store");
  for (int i = 0; policies[i].name != NULL; i++)
    printf("  %9s", policies[i].name);
  puts("");
  for (int i = 1; i < argc; i++) {
    const char *slash = strrchr(argv[i], '/');
    struct trace t;
    read_trace(&t, argv[i]);
    for (size_t s = 0; s < sizeof shares / sizeof *shares; s++)
      print_cell(&t, slash != NULL ? slash + 1 : argv[i], shares[s], &sums);
    free_trace(&t);
  }
  if (sums.cells == 0)
    return 0;
  printf("%-20s %16s  %.4f", "mean", "", sums.store / sums.cells);
  for (int i = 0; policies[i].name != NULL; i++)
    printf("  %9.4f", sums.others[i] / sums.cells);
  printf("  (%d cells of %d entries and more)\n", sums.cells, COUNTED_ENTRIES);
  return 0;
}
