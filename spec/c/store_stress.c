/* store_stress [--seconds N] [--threads N]: all operations of a store on
 * several threads at once, and a history that tells wrong answers.
 *
 * A key of the first view is written by one thread only, its owner, so that
 * its writes have an order: each has a number, and when it is over its number
 * is published as the key's floor. A read that begins after that must find the
 * number or a higher one, or nothing: never an older value, be it from the
 * store or a near copy. A removal takes a number, too; a clear of all raises
 * every floor above what was complete when it began. Values tell their key,
 * number and length, and all other bytes follow from these: a torn value, or
 * one of another key, shows.
 *
 * Loads are on views of their own. In one the keys are written at their source
 * and then removed from the store, or set, by their owners: a value that was
 * loaded before must not be found after. In the other nothing but loads and
 * expiry happens, so that at any time one thread at most may hold a key's
 * token. Whoever waits must be woken once, and in time.
 *
 * Half of the time the bound is small and everything is evicted again soon, the
 * other half it is large, and then counters must have lost nothing.
 */
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "memory/store.h"

enum {
  KEYS = 512, /* of each view */
  COUNTERS = 4,
  THREADS_MAX = 64,
  VALUE_MAX = 3000,
  NAME_SIZE = 32,
  MANY = 8,
  NEARS = 256, /* of a thread */
  SMALL_BOUND = 256 * 1024,
  LARGE_BOUND = 64 * 1024 * 1024,
  ALLOWANCE = 64 * 1024, /* beyond the bound and 1 % of it */
  WAIT_SECONDS = 60,
  TICK = 64, /* operations of the first thread to a millisecond */
  MAINTAIN = 512
};

/* What is published about a key. */
struct history {
  _Atomic uint64_t begun; /* number of the last write that has begun */
  _Atomic uint64_t done;  /* of the last that is over */
  _Atomic uint64_t floor; /* no read that begins now may find less */
  _Atomic uint64_t set;   /* the last number whose set is over */
  atomic_int holders;     /* of the key's token */
};

enum view_of { WRITES, SOURCES, LOADS, COUNTS, VIEWS };

static struct {
  uint64_t seconds;
  unsigned threads;
} options = {3, 2};

static struct {
  struct store *store;
  struct backend *views[VIEWS];
  struct history histories[VIEWS][KEYS];
  _Atomic uint64_t now, stored, left, increments, swaps, wakes, waits, reads;
  _Atomic uint64_t near_uses;
  atomic_int stop;
  size_t bound;
} shared;

struct waiting {
  struct backend_wait wait; /* first */
  int view, key;
  atomic_int woken;
};

struct near_copy {
  int hit;
  uint64_t number, expires_ms;
  uint64_t begun;         /* a later set is newer than a miss */
  struct store_near near; /* words NULL: none */
};

struct worker {
  pthread_t thread;
  unsigned number;
  uint64_t random, done;
  struct near_copy nears[NEARS];
  struct waiting waiting;
};

static _Noreturn void fail(const char *format, ...)
    __attribute__((format(printf, 1, 2)));

static _Noreturn void fail(const char *format, ...) {
  va_list args;
  fputs("store_stress: ", stderr);
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  abort();
}

static uint64_t draw(struct worker *w, uint64_t below) {
  uint64_t x = w->random += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return (x ^ x >> 31) % below;
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- values ---- */

struct head {
  uint64_t number;
  uint32_t key, length; /* length: of all */
  uint64_t view;
};

static uint8_t byte_at(const struct head *h, size_t i) {
  uint64_t x = (h->number * 31 + h->key * 7 + h->view + i / 8) *
               UINT64_C(0x9e3779b97f4a7c15);
  return (uint8_t)(x >> (8 * (i % 8)));
}

/* Mostly small; the largest, too, are often of one size: they may take each
 * other's place. */
static size_t draw_length(struct worker *w) {
  static const uint64_t below[] = {200, 200, 200, 2900};
  return draw(w, 8) ? draw(w, below[draw(w, 4)]) : 2900;
}

static size_t make_value(struct worker *w, char *value, int view, int key,
                         uint64_t number) {
  size_t length = sizeof(struct head) + draw_length(w);
  struct head h = {number, (uint32_t)key, (uint32_t)length, (uint64_t)view};
  memcpy(value, &h, sizeof h);
  for (size_t i = sizeof h; i < length; i++)
    value[i] = (char)byte_at(&h, i);
  return length;
}

/* Whose value it is, and that it is whole. Returns its number. */
static uint64_t check_value(const char *value, size_t length, int view,
                            int key) {
  struct head h;
  if (length < sizeof h || length > VALUE_MAX)
    fail("key %d of view %d: a value of %zu bytes", key, view, length);
  memcpy(&h, value, sizeof h);
  if (h.key != (uint32_t)key || h.view != (uint64_t)view)
    fail("key %d of view %d has the value of key %u of view %" PRIu64, key,
         view, h.key, h.view);
  if (h.length != length)
    fail("key %d of view %d: %zu bytes of %u", key, view, length, h.length);
  for (size_t i = sizeof h; i < length; i++)
    if ((uint8_t)value[i] != byte_at(&h, i))
      fail("key %d of view %d: torn at byte %zu of %zu", key, view, i, length);
  return h.number;
}

/* ---- keys: "OWNER:KEY" ---- */

struct name {
  char text[NAME_SIZE];
  size_t ns_len, length;
};

static struct name name_of(int key) {
  struct name n;
  unsigned owner = (unsigned)key % options.threads;
  n.ns_len = (size_t)snprintf(n.text, sizeof n.text, "%u:", owner);
  n.length = (size_t)snprintf(n.text, sizeof n.text, "%u:%d", owner, key);
  return n;
}

static uint64_t now_ms(void) {
  return atomic_load(&shared.now);
}

/* The arguments of a call; `now` is the caller's variable. */
#define AT(view, name)                                 \
  shared.views[view], now, (name).text, (name).ns_len, \
      (name).text + (name).ns_len, (name).length - (name).ns_len

static int own_key(struct worker *w) {
  unsigned n = KEYS / options.threads;
  return (int)(draw(w, draw(w, 2) ? n : 1) * options.threads + w->number);
}

/* Often one of a few, or threads would hardly ever meet. */
static int any_key(struct worker *w) {
  static const uint64_t among[] = {KEYS, 16, 2, 2};
  return (int)draw(w, among[draw(w, 4)]);
}

static struct history *history(int view, int key) {
  return &shared.histories[view][key];
}

static void raise_floor(struct history *h, uint64_t number) {
  uint64_t seen = atomic_load(&h->floor);
  while (seen < number &&
         !atomic_compare_exchange_weak(&h->floor, &seen, number))
    continue;
}

/* A write is over. Its owner's alone, so that numbers come in order. */
static void publish(struct history *h, uint64_t number) {
  atomic_store(&h->done, number);
  raise_floor(h, number);
}

static void check_number(int view, int key, uint64_t floor, uint64_t number,
                         const char *how) {
  uint64_t begun = atomic_load(&history(view, key)->begun);
  if (number < floor)
    fail("key %d of view %d: %s found write %" PRIu64 " after %" PRIu64
         " was over",
         key, view, how, number, floor);
  if (number > begun)
    fail("key %d of view %d: %s found write %" PRIu64 ", which is to come", key,
         view, how, number);
}

static void check_item(const struct backend_item *item, uint64_t now) {
  if (item->expires_ms != 0 && item->expires_ms <= now)
    fail("a value %" PRIu64 " ms past its time", now - item->expires_ms);
}

/* ---- reads ---- */

static void get(struct worker *w) {
  char value[VALUE_MAX];
  struct backend_item item;
  int view = draw(w, 4) ? WRITES : SOURCES, key = any_key(w);
  struct name n = name_of(key);
  uint64_t floor = atomic_load(&history(view, key)->floor), now = now_ms();
  int rc = shared.views[view]->ops->get(AT(view, n), value, sizeof value, &item,
                                        NULL);
  if (rc < 0)
    fail("get returned %d", rc);
  if (rc == BACKEND_MISS)
    return;
  check_item(&item, now);
  check_number(view, key, floor, check_value(value, item.length, view, key),
               "get");
}

static void get_many(struct worker *w) {
  char values[MANY * VALUE_MAX];
  struct backend_slice slices[MANY];
  struct backend_item items[MANY];
  struct name names[MANY];
  uint64_t floors[MANY], now = now_ms();
  int keys[MANY];
  size_t used, at = 0;
  for (int i = 0; i < MANY; i++) {
    keys[i] = any_key(w);
    names[i] = name_of(keys[i]);
    slices[i] = (struct backend_slice){names[i].text, names[i].length};
    floors[i] = atomic_load(&history(WRITES, keys[i])->floor);
  }
  int hits = shared.views[WRITES]->ops->get_many(
      shared.views[WRITES], now, "", 0, slices, MANY, values, sizeof values,
      &used, items, NULL);
  for (int i = 0; i < MANY; i++) {
    if (items[i].version == 0)
      continue;
    check_item(&items[i], now);
    check_number(WRITES, keys[i], floors[i],
                 check_value(values + at, items[i].length, WRITES, keys[i]),
                 "get_many");
    at += items[i].length;
    hits--;
  }
  if (hits != 0 || at != used)
    fail("get_many: %d hits, %zu bytes of %zu", hits, at, used);
}

static void look(struct worker *w) {
  struct backend_item item;
  int key = any_key(w);
  struct name n = name_of(key);
  uint64_t now = now_ms();
  const struct backend_ops *ops = shared.views[WRITES]->ops;
  if (ops->info(AT(WRITES, n), &item, NULL) == BACKEND_HIT)
    check_item(&item, now);
  if (ops->exists(AT(WRITES, n), NULL) < 0 ||
      ops->touch(AT(WRITES, n), UINT64_MAX, NULL) < 0)
    fail("exists or touch failed");
}

static int on_entry(void *ud, const char *key, size_t key_len,
                    const struct backend_item *item) {
  unsigned owner, number;
  char text[NAME_SIZE] = "";
  if (key_len >= sizeof text)
    fail("scan: a key of %zu bytes", key_len);
  memcpy(text, key, key_len);
  if (sscanf(text, "%u:%u", &owner, &number) != 2 || number >= KEYS)
    fail("scan: not a key: %s", text);
  check_item(item, *(uint64_t *)ud);
  return 0;
}

static void scan(struct worker *w) {
  uint64_t cursor = 0, now = now_ms();
  (void)w;
  do {
    int rc = shared.views[WRITES]->ops->scan(
        shared.views[WRITES], now, "", 0, &cursor, 100, on_entry, &now, NULL);
    if (rc < 0)
      fail("scan returned %d", rc);
  } while (cursor != 0);
}

/* ---- near copies ---- */

static uint32_t word(const uint32_t *at) {
  return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

static int is_good(const struct near_copy *c, uint64_t now) {
  const uint32_t *words = store_view_words(shared.views[WRITES]);
  int good = word(&c->near.words[0]) == c->near.version &&
             word(&words[0]) == c->near.clears;
  if (!c->hit)
    return good || word(&words[1]) == c->near.inserts;
  return good && (c->expires_ms == 0 || c->expires_ms > now);
}

static void note_use(const struct near_copy *c) {
  uint32_t uses = __atomic_load_n(&c->near.words[1], __ATOMIC_RELAXED);
  if (c->near.shift < 32 && (uses >> c->near.shift & 3) != 3)
    __atomic_store_n(&c->near.words[1], uses + (1u << c->near.shift),
                     __ATOMIC_RELAXED);
}

static void fetch_near(struct near_copy *c, int key) {
  char value[VALUE_MAX];
  struct backend_item item;
  struct name n = name_of(key);
  struct history *h = history(WRITES, key);
  uint64_t floor = atomic_load(&h->floor), now = now_ms();
  c->hit = store_get_near(AT(WRITES, n), value, sizeof value, &item, &c->near);
  c->begun = atomic_load(&h->begun);
  if (c->hit < 0)
    fail("store_get_near returned %d", c->hit);
  if (!c->hit)
    return;
  c->number = check_value(value, item.length, WRITES, key);
  c->expires_ms = item.expires_ms;
  check_item(&item, now);
  check_number(WRITES, key, floor, c->number, "store_get_near");
}

/* Through the near copy, as a thread would that keeps some. */
static void get_near(struct worker *w) {
  int key = (int)draw(w, draw(w, 2) ? NEARS : 16);
  struct near_copy *c = &w->nears[key];
  struct history *h = history(WRITES, key);
  uint64_t floor = atomic_load(&h->floor), set = atomic_load(&h->set);
  if (c->near.words == NULL || !is_good(c, now_ms())) {
    fetch_near(c, key);
    return;
  }
  atomic_fetch_add_explicit(&shared.near_uses, 1, memory_order_relaxed);
  if (c->hit) {
    check_number(WRITES, key, floor, c->number, "a near copy");
    note_use(c);
  } else if (set > c->begun) {
    fail("key %d: a near miss outlived a set", key);
  }
}

/* ---- writes: each key by its owner ---- */

static uint64_t draw_ttl(struct worker *w) {
  return draw(w, 4) ? BACKEND_TTL_NEVER : 1 + draw(w, 50);
}

/* Under the small bound, if the store's share for one value is small. */
static int may_be_too_large(size_t length) {
  return shared.bound == SMALL_BOUND && length > SMALL_BOUND / 2 / 64;
}

/* One of the ways to set; 1, or 0 when it did not. */
static int set_somehow(struct worker *w, int key, const char *value,
                       size_t length) {
  const struct backend_ops *ops = shared.views[WRITES]->ops;
  struct name n = name_of(key);
  struct backend_item item = {.version = 0};
  struct store_options o = {.ttl_ms = draw_ttl(w), .format = 2};
  struct backend_slice k = {n.text, n.length}, v = {value, length};
  uint64_t now = now_ms();
  switch (draw(w, 8)) {
  case 0:
    return ops->add(AT(WRITES, n), value, length, 2, o.ttl_ms, NULL);
  case 1:
    ops->info(AT(WRITES, n), &item, NULL);
    return store_cas(AT(WRITES, n), item.version, value, length, 2, o.ttl_ms);
  case 2:
    o.weight = (uint32_t)draw(w, 500);
    return store_set_with(AT(WRITES, n), value, length, &o);
  case 3:
    return ops->set_many(shared.views[WRITES], now, "", 0, &k, &v, &o.format, 1,
                         o.ttl_ms, NULL, NULL);
  default:
    return ops->set(AT(WRITES, n), value, length, 2, o.ttl_ms, NULL);
  }
}

static void set(struct worker *w) {
  char value[VALUE_MAX];
  int key = own_key(w);
  struct history *h = history(WRITES, key);
  uint64_t number = atomic_load(&h->begun) + 1;
  size_t length = make_value(w, value, WRITES, key, number);
  atomic_store(&h->begun, number);
  int rc = set_somehow(w, key, value, length);
  if (rc == BACKEND_ETOOLARGE && may_be_too_large(length))
    return;
  if (rc < 0)
    fail("a set returned %d", rc);
  if (rc == 0)
    return;
  atomic_fetch_add(&shared.stored, 1);
  publish(h, number);
  atomic_store(&h->set, number);
}

static void delete_key(struct worker *w) {
  int key = own_key(w);
  struct name n = name_of(key);
  struct history *h = history(WRITES, key);
  struct backend_slice slice = {n.text, n.length};
  uint64_t number = atomic_load(&h->begun) + 1, now = now_ms();
  atomic_store(&h->begun, number);
  int rc = draw(w, 2) ? shared.views[WRITES]->ops->remove(AT(WRITES, n), NULL)
                      : shared.views[WRITES]->ops->remove_many(
                            shared.views[WRITES], now, "", 0, &slice, 1, NULL);
  if (rc < 0)
    fail("a removal returned %d", rc);
  publish(h, number);
}

static void expire(struct worker *w) {
  struct name n = name_of(own_key(w));
  uint64_t now = now_ms();
  if (shared.views[WRITES]->ops->expire(AT(WRITES, n), draw_ttl(w), NULL) < 0)
    fail("expire failed");
}

static void clear(int view, const char *prefix, size_t length) {
  uint64_t cursor = 0;
  while (shared.views[view]->ops->clear(shared.views[view], now_ms(), prefix,
                                        length, &cursor, NULL) == 0)
    continue;
}

/* The thread's own keys: a removal of each. */
static void clear_own(struct worker *w, int view) {
  struct name n = name_of((int)w->number);
  uint64_t numbers[KEYS];
  for (unsigned key = w->number; key < KEYS; key += options.threads)
    numbers[key] = atomic_fetch_add(&history(view, (int)key)->begun, 1) + 1;
  clear(view, n.text, n.ns_len);
  for (unsigned key = w->number; key < KEYS; key += options.threads)
    publish(history(view, (int)key), numbers[key]);
}

/* Everyone's keys: what was over before it is gone after it. */
static void clear_all(void) {
  uint64_t done[KEYS];
  for (int key = 0; key < KEYS; key++)
    done[key] = atomic_load(&history(WRITES, key)->done);
  clear(WRITES, "", 0);
  for (int key = 0; key < KEYS; key++)
    raise_floor(history(WRITES, key), done[key] + 1);
}

static void clear_some(struct worker *w) {
  if (draw(w, 8) == 0)
    clear_all();
  else
    clear_own(w, draw(w, 2) ? WRITES : SOURCES);
}

/* ---- loads ---- */

static void on_wake(struct backend_wait *wait, int status, const void *bytes,
                    const struct backend_item *item) {
  struct waiting *waiting = (struct waiting *)wait;
  if (status == BACKEND_HIT)
    check_value(bytes, item->length, waiting->view, waiting->key);
  else if (status != BACKEND_MISS && status != BACKEND_ELOAD)
    fail("a waiter was woken with %d", status);
  atomic_fetch_add(&shared.wakes, 1);
  if (atomic_fetch_add(&waiting->woken, 1) != 0)
    fail("a waiter was woken twice");
}

/* Until it is woken, or takes its wait back. */
static void wait_for(struct worker *w, int view) {
  double begin = seconds();
  int impatient = draw(w, 4) == 0;
  atomic_fetch_add(&shared.waits, 1);
  if (impatient && shared.views[view]->ops->unwait(shared.views[view],
                                                   &w->waiting.wait) == 1) {
    if (atomic_load(&w->waiting.woken) != 0)
      fail("a wait was taken back and woken");
    atomic_fetch_add(&shared.wakes, 1);
    return;
  }
  while (atomic_load(&w->waiting.woken) == 0) {
    if (seconds() - begin > WAIT_SECONDS)
      fail("a waiter was not woken");
    sched_yield();
  }
}

static void end_load(struct worker *w, int view, int key, uint64_t token) {
  char value[VALUE_MAX];
  struct name n = name_of(key);
  struct history *h = history(view, key);
  const struct backend_ops *ops = shared.views[view]->ops;
  /* The source, read after the lease was taken. */
  uint64_t number = atomic_load(&h->begun), now = now_ms();
  int keep = draw(w, 4) > 0;
  if (draw(w, 4) == 0)
    sched_yield(); /* so that others come to wait */
  if (ops->waiters(AT(view, n), token) < 0)
    fail("a load in flight is not known");
  if (view == LOADS && !ops->valid(AT(view, n), token))
    fail("a load is not valid, and nothing came in between");
  if (view == LOADS && atomic_fetch_sub(&h->holders, 1) != 1)
    fail("key %d: a token has two holders", key);
  if (keep) {
    size_t length = make_value(w, value, view, key, number);
    int rc = ops->fill(AT(view, n), token, value, length, 2, 1 + draw(w, 3));
    if (rc == BACKEND_ETOOLARGE && may_be_too_large(length))
      return;
    if (rc < 0 || (view == LOADS && rc != 1))
      fail("fill returned %d", rc);
    return;
  }
  const char *message = draw(w, 2) ? "no" : NULL;
  if (ops->abandon(AT(view, n), token, message, 2) != 1)
    fail("a load in flight cannot be abandoned");
}

static void load(struct worker *w) {
  char value[VALUE_MAX];
  struct backend_item item;
  int view = draw(w, 2) ? LOADS : SOURCES, key = (int)draw(w, 32);
  int refresh = draw(w, 4) == 0;
  struct name n = name_of(key);
  const struct backend_ops *ops = shared.views[view]->ops;
  uint64_t floor = atomic_load(&history(view, key)->floor), now = now_ms();
  w->waiting.wait = (struct backend_wait){.wake = on_wake, .owner = w};
  w->waiting.view = view;
  w->waiting.key = key;
  atomic_store(&w->waiting.woken, 0);
  int rc = refresh ? ops->refresh(AT(view, n), &item, &w->waiting.wait)
                   : ops->lease(AT(view, n), value, sizeof value, &item,
                                &w->waiting.wait);
  if (rc == BACKEND_HIT) {
    check_item(&item, now);
    check_number(view, key, floor, check_value(value, item.length, view, key),
                 "lease");
  } else if (rc == BACKEND_WAIT) {
    wait_for(w, view);
  } else if (rc == BACKEND_TOKEN) {
    if (view == LOADS && atomic_fetch_add(&history(view, key)->holders, 1) != 0)
      fail("key %d: two tokens at a time", key);
    end_load(w, view, key, item.token);
  } else {
    fail("lease returned %d", rc);
  }
}

/* The source changes first, then the store is told. */
static void change_source(struct worker *w) {
  char value[VALUE_MAX];
  int key = (int)(draw(w, 32) / options.threads * options.threads + w->number);
  struct name n = name_of(key);
  struct history *h = history(SOURCES, key);
  uint64_t number = atomic_fetch_add(&h->begun, 1) + 1, now = now_ms();
  size_t length = make_value(w, value, SOURCES, key, number);
  const struct backend_ops *ops = shared.views[SOURCES]->ops;
  int rc = draw(w, 2) ? ops->set(AT(SOURCES, n), value, length, 2, 0, NULL)
                      : ops->remove(AT(SOURCES, n), NULL);
  if (rc == BACKEND_ETOOLARGE && may_be_too_large(length))
    rc = ops->remove(AT(SOURCES, n), NULL);
  if (rc < 0)
    fail("a set or a removal returned %d", rc);
  publish(h, number);
}

/* ---- counters ---- */

static void count(struct worker *w) {
  struct name n = name_of((int)draw(w, COUNTERS));
  uint64_t now = now_ms();
  int64_t sum;
  if (shared.views[COUNTS]->ops->increment(AT(COUNTS, n), 1, 0, &sum, NULL) !=
      1)
    fail("increment failed");
  atomic_fetch_add(&shared.increments, 1);
}

static void swap(struct worker *w) {
  struct name n = name_of(COUNTERS + (int)draw(w, COUNTERS));
  struct backend_item item = {.version = 0};
  uint64_t number = 0, now = now_ms();
  int rc = shared.views[COUNTS]->ops->get(AT(COUNTS, n), &number, sizeof number,
                                          &item, NULL);
  if (rc == BACKEND_MISS)
    item.version = number = 0;
  number++;
  rc = store_cas(AT(COUNTS, n), item.version, &number, sizeof number, 0, 0);
  if (rc < 0)
    fail("store_cas returned %d", rc);
  if (rc == 1)
    atomic_fetch_add(&shared.swaps, 1);
}

/* ---- the store as a whole ---- */

static void on_leave(void *ud, int reason, const char *key, size_t key_len,
                     uint32_t format, const void *bytes, size_t length) {
  (void)ud, (void)key;
  if (reason < STORE_SIZE || reason > STORE_CLEARED || key_len == 0 ||
      format != 2 || (bytes && length > VALUE_MAX))
    fail("the watcher was told nonsense");
  atomic_fetch_add(&shared.left, 1);
}

static void maintain(struct worker *w) {
  struct store_info info;
  struct backend_stats stats;
  store_sweep(shared.store, now_ms(), 256);
  store_info(shared.store, &info);
  if ((double)info.bytes > (double)shared.bound * 1.01 + ALLOWANCE)
    fail("%" PRIu64 " bytes under a bound of %zu", info.bytes, shared.bound);
  shared.views[WRITES]->ops->stats(shared.views[WRITES], now_ms(), &stats);
  if (shared.bound == SMALL_BOUND && draw(w, 4) == 0)
    store_resize(shared.store, SMALL_BOUND / (1 + draw(w, 2)));
}

static void act(struct worker *w) {
  static void (*const each[])(struct worker *) = {
      get,      get,      get,           get,      get,        get_many,
      get_near, get_near, set,           get_near, delete_key, look,
      set,      load,     change_source, count,    set,        swap,
      load,     expire,   get,           get,      load,       get_near};
  uint64_t what = draw(w, 1000);
  if (what == 0)
    clear_some(w);
  else if (what == 1)
    scan(w);
  else
    each[what % (sizeof each / sizeof *each)](w);
}

static void *work(void *arg) {
  struct worker *w = arg;
  while (!atomic_load_explicit(&shared.stop, memory_order_relaxed)) {
    act(w);
    w->done++;
    if (w->number == 0 && w->done % TICK == 0)
      atomic_fetch_add(&shared.now, 1);
    if (w->done % MAINTAIN == 0)
      maintain(w);
  }
  return NULL;
}

/* ---- a run ---- */

static void open_store(size_t bound) {
  memset(&shared.histories, 0, sizeof shared.histories);
  shared.bound = bound;
  shared.now = 1;
  shared.stored = shared.left = shared.increments = shared.swaps = 0;
  shared.waits = shared.wakes = shared.near_uses = 0;
  shared.stop = 0;
  if (store_open(&shared.store, bound) < 0)
    fail("the store does not open");
  for (int i = 0; i < VIEWS; i++)
    if (store_view_named(shared.store, &"abcdefgh"[i], &shared.views[i]) < 0)
      fail("a view does not open");
  store_watch(shared.views[WRITES], on_leave, NULL);
  store_view_words(shared.views[WRITES]); /* from here on it counts */
}

static uint64_t total(int first, int is_count) {
  uint64_t sum = 0, now = now_ms();
  for (int i = first; i < first + COUNTERS; i++) {
    struct name n = name_of(i);
    struct backend_item item;
    uint64_t number = 0;
    int rc = shared.views[COUNTS]->ops->get(AT(COUNTS, n), &number,
                                            sizeof number, &item, NULL);
    if (rc == BACKEND_HIT && is_count && item.format != BACKEND_INTEGER)
      fail("a counter is no integer");
    sum += number;
  }
  return sum;
}

/* When all is quiet. What was stored has left or is there. */
static void check_end(void) {
  struct backend_stats stats;
  struct backend *view = shared.views[WRITES];
  if (shared.waits != shared.wakes)
    fail("%" PRIu64 " waits, %" PRIu64 " wakes", shared.waits, shared.wakes);
  if (shared.bound == LARGE_BOUND &&
      (total(0, 1) != shared.increments || total(COUNTERS, 0) != shared.swaps))
    fail("counters lost something");
  clear(WRITES, "", 0);
  for (int i = 0; i < 4; i++, shared.now += 1000)
    while (store_sweep(shared.store, shared.now, 256))
      continue;
  view->ops->stats(view, shared.now, &stats);
  if (stats.entries != 0 || shared.stored != shared.left)
    fail("%" PRIu64 " values were stored, %" PRIu64
         " were told to leave, %" PRIu64 " are counted",
         shared.stored, shared.left, stats.entries);
}

static void run(size_t bound, double length) {
  static struct worker workers[THREADS_MAX];
  struct timespec span = {(time_t)length,
                          (long)((length - (double)(time_t)length) * 1e9)};
  struct store_info info;
  uint64_t done = 0;
  open_store(bound);
  memset(workers, 0, sizeof workers);
  for (unsigned i = 0; i < options.threads; i++) {
    workers[i].number = i;
    workers[i].random = i + bound;
    if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
      fail("no thread");
  }
  nanosleep(&span, NULL);
  atomic_store(&shared.stop, 1);
  for (unsigned i = 0; i < options.threads; i++) {
    pthread_join(workers[i].thread, NULL);
    done += workers[i].done;
  }
  check_end();
  store_info(shared.store, &info);
  printf("bound %zu: %" PRIu64 " operations, %" PRIu64
         " values stored, %" PRIu64 " near reads, %" PRIu64
         " waits for loads, %" PRIu64 " lock waits\n",
         bound, done, shared.stored, shared.near_uses, shared.waits,
         info.lock_waits);
  if (shared.near_uses == 0 || shared.stored == 0)
    fail("nothing was tried");
  for (int i = 0; i < VIEWS; i++)
    shared.views[i]->ops->close(shared.views[i]);
  store_close(shared.store);
}

int main(int argc, char **argv) {
  static const struct option known[] = {
      {"seconds", 1, NULL, 's'}, {"threads", 1, NULL, 't'}, {NULL, 0, NULL, 0}};
  for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
    if (c == 's')
      options.seconds = strtoull(optarg, NULL, 10);
    else if (c == 't')
      options.threads = (unsigned)strtoul(optarg, NULL, 10);
    else
      return 2;
  }
  if (options.seconds < 1 || options.threads < 1 ||
      options.threads > 32) /* each has keys of its own among the loads' 32 */
    fail("an option is out of range");
  run(SMALL_BOUND, (double)options.seconds / 2);
  run(LARGE_BOUND, (double)options.seconds / 2);
  return 0;
}
