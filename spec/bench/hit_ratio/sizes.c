#include "sizes.h"

#include <stdio.h>
#include <stdlib.h>

#include "memory/store.h"

#define NONE UINT32_MAX

enum {
  SIZE_LEAST = 50,
  SIZE_MOST = 64 * 1024,
  SAMPLES = 64, /* looks at the store's bytes */
  CALIBRATION = 1000,
  LEAST_BYTES = 64 * 1024 /* of a cell */
};

static const double shares[] = {0.001, 0.01, 0.1, 0.2};
static const uint64_t now_ms = 1; /* nothing expires here */

struct misses {
  uint64_t requests, bytes;
};

/* ---- sizes ---- */

static uint32_t *draw_sizes(const struct trace *t) {
  uint32_t *sizes = checked(malloc((t->keys ? t->keys : 1) * sizeof *sizes));
  double span = 1 - (double)SIZE_LEAST / SIZE_MOST;
  for (uint32_t key = 0; key < t->keys; key++) {
    uint64_t seed = key;
    double unit = (double)(draw(&seed) >> 11) * 0x1p-53;
    sizes[key] = (uint32_t)(SIZE_LEAST / (1 - unit * span));
  }
  return sizes;
}

/* Of those that are asked for. */
static uint64_t total_bytes(const struct trace *t, const uint32_t *sizes) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < t->length; i++)
    if (t->next[i] == t->length) /* its last request */
      bytes += sizes[t->requests[i]] + strlen(t->names[t->requests[i]]);
  return bytes;
}

/* ---- the store ---- */

static void open_store(struct store **store, struct backend **view,
                       size_t bound) {
  if (store_open(store, bound) < 0 || store_view(*store, view) < 0)
    die("the store does not open");
}

static void close_store(struct store *store, struct backend *view) {
  view->ops->close(view);
  store_close(store);
}

static double live_bytes(struct store *store) {
  struct store_info info;
  store_info(store, &info);
  return (double)info.live_bytes;
}

/* What an entry takes beyond its key and value. */
static uint32_t header_bytes(void) {
  static const char value[SIZE_LEAST];
  struct store *store;
  struct backend *view;
  open_store(&store, &view, 8 << 20);
  double before = live_bytes(store);
  for (uint32_t key = 0; key < CALIBRATION; key++)
    if (view->ops->set(view, now_ms, "", 0, (char *)&key, sizeof key, value,
                       sizeof value, 0, 0, NULL) != 1)
      die("a set failed");
  double each = (live_bytes(store) - before) / CALIBRATION;
  close_store(store, view);
  return (uint32_t)(each + 0.5) - (uint32_t)sizeof(uint32_t) - SIZE_LEAST;
}

/* *live: bytes, the mean over the second half. */
static struct misses replay(const struct trace *t, const uint32_t *sizes,
                            size_t bound, double *live, uint64_t *refused) {
  static char value[SIZE_MOST], buf[SIZE_MOST];
  struct store *store;
  struct backend *view;
  struct misses m = {0, 0};
  size_t step = t->length / 2 / SAMPLES + 1, samples = 0;
  open_store(&store, &view, bound);
  *live = 0;
  *refused = 0;
  for (size_t i = 0; i < t->length; i++) {
    uint32_t key = t->requests[i], size = sizes[key];
    const char *name = t->names[key];
    struct backend_item item;
    if (view->ops->get(view, now_ms, "", 0, name, strlen(name), buf, sizeof buf,
                       &item, NULL) == BACKEND_MISS) {
      m.requests++;
      m.bytes += size;
      *refused += view->ops->set(view, now_ms, "", 0, name, strlen(name), value,
                                 size, 0, 0, NULL) != 1;
    }
    if (i >= t->length / 2 && i % step == 0) {
      *live += live_bytes(store);
      samples++;
    }
  }
  *live /= samples ? (double)samples : 1;
  close_store(store, view);
  return m;
}

/* ---- simulations ---- */

/* Entries in a heap, the one to go next on top. With GDS its rank is the rank
 * of the last that went + 1 / its cost at its last use; with LRU, the time of
 * that use. */
struct cache {
  uint32_t *key, *place; /* place: of each key, NONE when it is not in */
  double *rank;          /* of each key */
  uint32_t length;
};

static void put_at(struct cache *c, uint32_t at, uint32_t key) {
  c->key[at] = key;
  c->place[key] = at;
}

static void sift(struct cache *c, uint32_t at) {
  uint32_t key = c->key[at];
  double rank = c->rank[key];
  while (at > 0 && c->rank[c->key[(at - 1) / 2]] > rank) {
    put_at(c, at, c->key[(at - 1) / 2]);
    at = (at - 1) / 2;
  }
  for (;;) {
    uint32_t child = 2 * at + 1;
    if (child >= c->length)
      break;
    if (child + 1 < c->length &&
        c->rank[c->key[child + 1]] < c->rank[c->key[child]])
      child++;
    if (c->rank[c->key[child]] >= rank)
      break;
    put_at(c, at, c->key[child]);
    at = child;
  }
  put_at(c, at, key);
}

static uint32_t take_top(struct cache *c) {
  uint32_t key = c->key[0];
  c->place[key] = NONE;
  if (--c->length > 0) {
    put_at(c, 0, c->key[c->length]);
    sift(c, 0);
  }
  return key;
}

static struct misses simulate(const struct trace *t, const uint32_t *sizes,
                              double budget, uint32_t header, int by_size) {
  size_t n = t->keys ? t->keys : 1;
  struct cache c = {checked(malloc(n * 4)), checked(malloc(n * 4)),
                    checked(calloc(n, sizeof(double))), 0};
  struct misses m = {0, 0};
  double bytes = 0, last = 0;
  memset(c.place, 0xff, n * 4);
  for (size_t i = 0; i < t->length; i++) {
    uint32_t key = t->requests[i];
    double cost = header + strlen(t->names[key]) + sizes[key];
    c.rank[key] = by_size ? last + 1 / cost : (double)i;
    if (c.place[key] != NONE) {
      sift(&c, c.place[key]);
      continue;
    }
    m.requests++;
    m.bytes += sizes[key];
    if (cost > budget)
      continue;
    while (bytes + cost > budget) {
      uint32_t gone = take_top(&c);
      last = c.rank[gone];
      bytes -= header + strlen(t->names[gone]) + sizes[gone];
    }
    c.rank[key] = by_size ? last + 1 / cost : (double)i;
    bytes += cost;
    put_at(&c, c.length++, key);
    sift(&c, c.length - 1);
  }
  free(c.key);
  free(c.place);
  free(c.rank);
  return m;
}

/* ---- the table ---- */

void sizes_head(void) {
  printf("%-20s %7s %9s %9s  %-16s  %-16s  %-16s  %s\n", "misses", "size",
         "bound", "live", "store", "LRU", "GDS", "refused");
  printf("%-20s %7s %9s %9s", "", "", "bytes", "bytes");
  for (int i = 0; i < 3; i++)
    printf("  %-7s %-8s", "objects", "bytes");
  puts("");
}

static void print_misses(const struct trace *t, struct misses m,
                         uint64_t bytes) {
  printf("  %.4f  %.4f  ", (double)m.requests / (double)t->length,
         (double)m.bytes / (double)bytes);
}

void sizes_print(const struct trace *t, const char *name) {
  uint32_t *sizes = draw_sizes(t), header = header_bytes();
  uint64_t total = total_bytes(t, sizes), asked = 0, refused;
  for (size_t i = 0; i < t->length; i++)
    asked += sizes[t->requests[i]];
  for (size_t s = 0; s < sizeof shares / sizeof *shares; s++) {
    size_t bound = (size_t)(shares[s] * (double)total);
    double live;
    if (bound < LEAST_BYTES)
      continue;
    struct misses own = replay(t, sizes, bound, &live, &refused);
    printf("%-20s %5.1f %% %9zu %9.0f", name, shares[s] * 100, bound, live);
    print_misses(t, own, asked);
    print_misses(t, simulate(t, sizes, live, header, 0), asked);
    print_misses(t, simulate(t, sizes, live, header, 1), asked);
    printf("%llu\n", (unsigned long long)refused);
    fflush(stdout);
  }
  free(sizes);
}
