/* The simulations; see policies.h. Keys are small numbers, so that everything
 * about a key is in arrays: its links, the list that it is in, its counter. */
#include "policies.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX

static void *zeroed(size_t n, size_t size) {
  void *p = calloc(n ? n : 1, size);
  if (p == NULL)
    abort();
  return p;
}

/* ---- lists of keys ---- */

struct list { /* newest at the head */
  uint32_t head, tail, length;
};

struct keys { /* of all lists of one simulation: a key is in at most one */
  uint32_t *newer, *older;
  uint8_t *where; /* number of the list, 0: none */
  uint8_t *hits;  /* a small counter, capped by who uses it */
  struct list lists[6];
};

static void keys_open(struct keys *k, uint32_t n) {
  k->newer = zeroed(n, sizeof *k->newer);
  k->older = zeroed(n, sizeof *k->older);
  k->where = zeroed(n, 1);
  k->hits = zeroed(n, 1);
  for (int i = 0; i < 6; i++)
    k->lists[i] = (struct list){NONE, NONE, 0};
}

static void keys_close(struct keys *k) {
  free(k->newer);
  free(k->older);
  free(k->where);
  free(k->hits);
}

static void take_out(struct keys *k, uint32_t key) {
  struct list *l = &k->lists[k->where[key]];
  uint32_t newer = k->newer[key], older = k->older[key];
  if (newer == NONE)
    l->head = older;
  else
    k->older[newer] = older;
  if (older == NONE)
    l->tail = newer;
  else
    k->newer[older] = newer;
  l->length--;
  k->where[key] = 0;
}

static void put_in(struct keys *k, int where, uint32_t key) {
  struct list *l = &k->lists[where];
  k->newer[key] = NONE;
  k->older[key] = l->head;
  if (l->head == NONE)
    l->tail = key;
  else
    k->newer[l->head] = key;
  l->head = key;
  l->length++;
  k->where[key] = (uint8_t)where;
}

/* To the head of that list, from wherever it is. */
static void move_to(struct keys *k, int where, uint32_t key) {
  if (k->where[key] != 0)
    take_out(k, key);
  put_in(k, where, key);
}

static uint32_t take_oldest(struct keys *k, int where) {
  uint32_t key = k->lists[where].tail;
  assert(key != NONE);
  take_out(k, key);
  return key;
}

static void bump(struct keys *k, uint32_t key, uint8_t most) {
  if (k->hits[key] < most)
    k->hits[key]++;
}

#define UNUSED_FUTURE (void)next

/* ---- LRU ---- */

static uint64_t lru(const uint32_t *requests, const uint32_t *next, size_t n,
                    uint32_t keys, uint32_t capacity) {
  struct keys k;
  uint64_t misses = 0;
  UNUSED_FUTURE;
  keys_open(&k, keys);
  for (size_t i = 0; i < n; i++) {
    uint32_t key = requests[i];
    if (k.where[key] == 0) {
      misses++;
      if (k.lists[1].length == capacity)
        take_oldest(&k, 1);
    }
    move_to(&k, 1, key);
  }
  keys_close(&k);
  return misses;
}

/* ---- SIEVE ---- */

/* The hand goes from old to new and takes the first that was not visited since
 * it was there. */
static void sieve_evict(struct keys *k, uint32_t *hand) {
  uint32_t key = *hand != NONE ? *hand : k->lists[1].tail;
  while (k->hits[key] > 0) {
    k->hits[key] = 0;
    key = k->newer[key] != NONE ? k->newer[key] : k->lists[1].tail;
  }
  *hand = k->newer[key];
  take_out(k, key);
}

static uint64_t sieve(const uint32_t *requests, const uint32_t *next, size_t n,
                      uint32_t keys, uint32_t capacity) {
  struct keys k;
  uint64_t misses = 0;
  uint32_t hand = NONE;
  UNUSED_FUTURE;
  keys_open(&k, keys);
  for (size_t i = 0; i < n; i++) {
    uint32_t key = requests[i];
    if (k.where[key] == 1) {
      k.hits[key] = 1;
      continue;
    }
    misses++;
    if (k.lists[1].length == capacity)
      sieve_evict(&k, &hand);
    k.hits[key] = 0;
    put_in(&k, 1, key);
  }
  keys_close(&k);
  return misses;
}

/* ---- S3-FIFO ---- */

enum { S3_SMALL = 1, S3_MAIN, S3_GHOST, S3_MOST = 3, S3_PROMOTE = 2 };

static void s3_evict_main(struct keys *k) {
  for (;;) {
    uint32_t key = take_oldest(k, S3_MAIN);
    if (k->hits[key] == 0)
      return;
    k->hits[key]--;
    put_in(k, S3_MAIN, key);
  }
}

/* One from the small queue: to the main one, or out to the ghosts. */
static void s3_evict_small(struct keys *k, uint32_t main_size) {
  while (k->lists[S3_SMALL].length > 0) {
    uint32_t key = take_oldest(k, S3_SMALL);
    if (k->hits[key] >= S3_PROMOTE) {
      k->hits[key] = 0;
      put_in(k, S3_MAIN, key);
      if (k->lists[S3_MAIN].length > main_size) {
        s3_evict_main(k);
        return;
      }
      continue;
    }
    if (k->lists[S3_GHOST].length >= main_size)
      take_oldest(k, S3_GHOST);
    put_in(k, S3_GHOST, key);
    return;
  }
}

static uint64_t s3_fifo(const uint32_t *requests, const uint32_t *next,
                        size_t n, uint32_t keys, uint32_t capacity) {
  struct keys k;
  uint64_t misses = 0;
  uint32_t small = capacity / 10 ? capacity / 10 : 1;
  uint32_t main_size = capacity > small ? capacity - small : 1;
  UNUSED_FUTURE;
  keys_open(&k, keys);
  for (size_t i = 0; i < n; i++) {
    uint32_t key = requests[i];
    int where = k.where[key];
    if (where == S3_SMALL || where == S3_MAIN) {
      bump(&k, key, S3_MOST);
      continue;
    }
    misses++;
    if (where == S3_GHOST)
      take_out(&k, key);
    while (k.lists[S3_SMALL].length + k.lists[S3_MAIN].length >= capacity) {
      if (k.lists[S3_SMALL].length >= small)
        s3_evict_small(&k, main_size);
      else
        s3_evict_main(&k);
    }
    k.hits[key] = 0;
    put_in(&k, where == S3_GHOST ? S3_MAIN : S3_SMALL, key);
  }
  keys_close(&k);
  return misses;
}

/* ---- ARC ---- */

enum { T1 = 1, T2, B1, B2 };

static void arc_replace(struct keys *k, uint32_t target, int in_b2) {
  uint32_t t1 = k->lists[T1].length;
  if (t1 > 0 && (t1 > target || (in_b2 && t1 == target)))
    put_in(k, B1, take_oldest(k, T1));
  else
    put_in(k, B2, take_oldest(k, T2));
}

static uint32_t arc_adapt(const struct keys *k, uint32_t target, int where,
                          uint32_t capacity) {
  uint32_t b1 = k->lists[B1].length, b2 = k->lists[B2].length;
  if (where == B1) {
    uint32_t step = b2 > b1 ? b2 / b1 : 1;
    return target + step < capacity ? target + step : capacity;
  }
  uint32_t step = b1 > b2 ? b1 / b2 : 1;
  return target > step ? target - step : 0;
}

/* A key that is in none of the lists: makes room for it. */
static void arc_make_room(struct keys *k, uint32_t target, uint32_t capacity) {
  const struct list *l = k->lists;
  uint32_t first = l[T1].length + l[B1].length;
  uint32_t all = first + l[T2].length + l[B2].length;
  if (first == capacity) {
    if (l[T1].length < capacity) {
      take_oldest(k, B1);
      arc_replace(k, target, 0);
    } else {
      take_oldest(k, T1);
    }
  } else if (all >= capacity) {
    if (all == 2 * capacity)
      take_oldest(k, B2);
    arc_replace(k, target, 0);
  }
}

static uint64_t arc(const uint32_t *requests, const uint32_t *next, size_t n,
                    uint32_t keys, uint32_t capacity) {
  struct keys k;
  uint64_t misses = 0;
  uint32_t target = 0;
  UNUSED_FUTURE;
  keys_open(&k, keys);
  for (size_t i = 0; i < n; i++) {
    uint32_t key = requests[i];
    int where = k.where[key];
    if (where == T1 || where == T2) {
      move_to(&k, T2, key);
      continue;
    }
    misses++;
    if (where == 0) {
      arc_make_room(&k, target, capacity);
      put_in(&k, T1, key);
      continue;
    }
    target = arc_adapt(&k, target, where, capacity);
    take_out(&k, key);
    arc_replace(&k, target, where == B2);
    put_in(&k, T2, key);
  }
  keys_close(&k);
  return misses;
}

/* ---- W-TinyLFU ---- */

enum { WINDOW = 1, PROBATION, PROTECTED, ROWS = 4, COUNTER_MOST = 15 };

struct sketch {
  uint8_t *counters[ROWS];
  uint32_t mask;
  uint64_t additions, limit;
};

static uint32_t spread(uint32_t key, int row) {
  static const uint32_t odd[ROWS] = {0x9e3779b1, 0x85ebca77, 0xc2b2ae3d,
                                     0x27d4eb2f};
  uint32_t h = (key + 1) * odd[row];
  return (h ^ h >> 15) * 0x2c1b3c6d >> 3;
}

static void sketch_add(struct sketch *s, uint32_t key) {
  for (int row = 0; row < ROWS; row++) {
    uint8_t *c = &s->counters[row][spread(key, row) & s->mask];
    *c += *c < COUNTER_MOST;
  }
  if (++s->additions < s->limit)
    return;
  s->additions /= 2;
  for (int row = 0; row < ROWS; row++)
    for (uint32_t i = 0; i <= s->mask; i++)
      s->counters[row][i] /= 2;
}

static unsigned sketch_count(const struct sketch *s, uint32_t key) {
  unsigned least = COUNTER_MOST;
  for (int row = 0; row < ROWS; row++) {
    uint8_t c = s->counters[row][spread(key, row) & s->mask];
    least = c < least ? c : least;
  }
  return least;
}

static void tiny_hit(struct keys *k, uint32_t key, uint32_t protected) {
  int where = k->where[key];
  if (where == WINDOW) {
    move_to(k, WINDOW, key);
    return;
  }
  move_to(k, PROTECTED, key);
  if (k->lists[PROTECTED].length > protected)
    put_in(k, PROBATION, take_oldest(k, PROTECTED));
}

/* The window's oldest against the main part's: who was asked for more often
 * stays. */
static void tiny_admit(struct keys *k, const struct sketch *s, uint32_t main) {
  uint32_t candidate = take_oldest(k, WINDOW);
  if (k->lists[PROBATION].length + k->lists[PROTECTED].length < main) {
    put_in(k, PROBATION, candidate);
    return;
  }
  int from = k->lists[PROBATION].length > 0 ? PROBATION : PROTECTED;
  uint32_t victim = k->lists[from].tail;
  if (victim == NONE || sketch_count(s, candidate) <= sketch_count(s, victim))
    return;
  take_out(k, victim);
  put_in(k, PROBATION, candidate);
}

static uint64_t w_tinylfu(const uint32_t *requests, const uint32_t *next,
                          size_t n, uint32_t keys, uint32_t capacity) {
  struct keys k;
  struct sketch s = {.mask = 15, .limit = 10 * (uint64_t)capacity};
  uint64_t misses = 0;
  uint32_t window = capacity / 100 ? capacity / 100 : 1;
  uint32_t main = capacity - window, protected = main / 5 * 4;
  UNUSED_FUTURE;
  keys_open(&k, keys);
  while (s.mask < capacity)
    s.mask = s.mask * 2 + 1;
  for (int row = 0; row < ROWS; row++)
    s.counters[row] = zeroed(s.mask + 1, 1);
  for (size_t i = 0; i < n; i++) {
    uint32_t key = requests[i];
    sketch_add(&s, key);
    if (k.where[key] != 0) {
      tiny_hit(&k, key, protected);
      continue;
    }
    misses++;
    put_in(&k, WINDOW, key);
    if (k.lists[WINDOW].length > window)
      tiny_admit(&k, &s, main);
  }
  for (int row = 0; row < ROWS; row++)
    free(s.counters[row]);
  keys_close(&k);
  return misses;
}

/* ---- Belady ---- */

/* A heap of keys, the one that comes again last on top. */
struct heap {
  uint32_t *key, *place; /* place: of each key, NONE when it is not in */
  uint32_t *due;         /* of each key: its next request */
  uint32_t length;
};

static void heap_set(struct heap *h, uint32_t at, uint32_t key) {
  h->key[at] = key;
  h->place[key] = at;
}

static void heap_sift(struct heap *h, uint32_t at) {
  uint32_t key = h->key[at], due = h->due[key];
  while (at > 0 && h->due[h->key[(at - 1) / 2]] < due) {
    heap_set(h, at, h->key[(at - 1) / 2]);
    at = (at - 1) / 2;
  }
  for (;;) {
    uint32_t child = 2 * at + 1;
    if (child >= h->length)
      break;
    if (child + 1 < h->length &&
        h->due[h->key[child + 1]] > h->due[h->key[child]])
      child++;
    if (h->due[h->key[child]] <= due)
      break;
    heap_set(h, at, h->key[child]);
    at = child;
  }
  heap_set(h, at, key);
}

/* A request of its key: the first of those to come may be dropped at once. */
static uint64_t belady(const uint32_t *requests, const uint32_t *next, size_t n,
                       uint32_t keys, uint32_t capacity) {
  struct heap h = {zeroed(capacity + 1, 4), zeroed(keys, 4), zeroed(keys, 4),
                   0};
  uint64_t misses = 0;
  memset(h.place, 0xff, keys * sizeof *h.place);
  for (size_t i = 0; i < n; i++) {
    uint32_t key = requests[i];
    h.due[key] = next[i];
    if (h.place[key] != NONE) {
      heap_sift(&h, h.place[key]);
      continue;
    }
    misses++;
    heap_set(&h, h.length++, key);
    heap_sift(&h, h.length - 1);
    if (h.length <= capacity)
      continue;
    h.place[h.key[0]] = NONE;
    if (--h.length > 0) {
      heap_set(&h, 0, h.key[h.length]);
      heap_sift(&h, 0);
    }
  }
  free(h.key);
  free(h.place);
  free(h.due);
  return misses;
}

const struct policy policies[] = {
    {"LRU", lru},         {"ARC", arc},     {"W-TinyLFU", w_tinylfu},
    {"S3-FIFO", s3_fifo}, {"SIEVE", sieve}, {"Belady", belady},
    {NULL, NULL},
};
