/* Values of many sizes in one memory store: a large one that is set now and
 * then is no reason for thousands of small ones that are asked for all the
 * time to go. A trace by Zipf's law is replayed with and without it. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <math.h>
#include <setjmp.h>

#include <cmocka.h>

#include "memory/store.h"

enum {
  BOUND = 4 << 20,
  KEYS = 20000,
  HOT = 3000, /* the most popular: what is judged */
  SIZE_LEAST = 50,
  SIZE_MOST = 800,
  REQUESTS = 600000, /* the first half is not counted */
  LARGE_EVERY = 1000,
  LOST_MOST = 3 /* percent of the hot keys' requests */
};

static const double exponent = 0.9;
static const uint64_t now_ms = 1; /* nothing expires here */

struct trace {
  double *sums; /* of the ranks' weights */
  uint16_t *sizes;
  uint64_t random;
};

static double draw(struct trace *t) {
  uint64_t x = t->random += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

static uint32_t draw_rank(struct trace *t) {
  double at = draw(t) * t->sums[KEYS - 1];
  uint32_t low = 0, high = KEYS - 1;
  while (low < high) {
    uint32_t middle = (low + high) / 2;
    if (t->sums[middle] > at)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

/* The same each time. Small sizes are more common, as they are in life. */
static void open_trace(struct trace *t) {
  double sum = 0;
  *t = (struct trace){.sums = calloc(KEYS, sizeof *t->sums),
                      .sizes = calloc(KEYS, sizeof *t->sizes)};
  assert_true(t->sums && t->sizes);
  for (int i = 0; i < KEYS; i++) {
    t->sums[i] = sum += pow(i + 1, -exponent);
    t->sizes[i] =
        (uint16_t)(SIZE_LEAST * pow((double)SIZE_MOST / SIZE_LEAST, draw(t)));
  }
}

static void close_trace(struct trace *t) {
  free(t->sums);
  free(t->sizes);
}

static int set(struct backend *view, uint64_t id, size_t length) {
  static const char bytes[BOUND / 8];
  return view->ops->set(view, now_ms, "", 0, (const char *)&id, sizeof id,
                        bytes, length, 0, BACKEND_TTL_NEVER, NULL);
}

/* An eighth of the bound, or the most that the store takes. */
static size_t set_large(struct backend *view, uint64_t id) {
  static const size_t step = 4096;
  size_t length = BOUND / 8;
  while (length > step && set(view, id, length) == BACKEND_ETOOLARGE)
    length -= step;
  return length;
}

/* The share of the hot keys' requests that are hits. */
static double replay(int with_large, size_t *large) {
  char buf[SIZE_MOST];
  struct trace t;
  struct store *store;
  struct backend *view;
  struct backend_item item;
  uint64_t hits = 0, all = 0;
  open_trace(&t);
  assert_int_equal(store_open(&store, BOUND), 0);
  assert_int_equal(store_view(store, &view), 0);
  for (uint64_t i = 0; i < REQUESTS; i++) {
    uint64_t id = draw_rank(&t);
    int hit = view->ops->get(view, now_ms, "", 0, (const char *)&id, sizeof id,
                             buf, sizeof buf, &item, NULL);
    assert_in_range(hit, 0, 1);
    if (!hit)
      assert_int_equal(set(view, id, t.sizes[id]), 1);
    if (i >= REQUESTS / 2 && id < HOT) {
      all++;
      hits += (uint64_t)hit;
    }
    if (with_large && i % LARGE_EVERY == 0)
      *large = set_large(view, KEYS + i);
  }
  view->ops->close(view);
  store_close(store);
  close_trace(&t);
  return (double)hits / (double)all;
}

static void a_large_value_does_not_flush_the_small_ones(void **state) {
  size_t large = 0;
  double with = replay(1, &large), without = replay(0, NULL);
  (void)state;
  print_message("hot keys' hits: %.2f %%, and %.2f %% with a value of %zu KiB "
                "at every %d requests\n",
                without * 100, with * 100, large / 1024, LARGE_EVERY);
  assert_true(large >= BOUND / 64);
  assert_true(without > 0.8);
  assert_true((without - with) * 100 <= LOST_MOST);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_large_value_does_not_flush_the_small_ones)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
