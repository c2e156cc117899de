/* The memory store against a model of it (store_model.h), one operation after
 * the other: an input is a choice of the bound and then operations, each of a
 * code, a view, a key and what else it needs, a byte each; missing ones are 0.
 *
 * Three views of one store: two of one name, which must be one, and one alone.
 * The clock is the input's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec_fuzz.h"
#include "store_model.h"

enum {
  VIEWS = 3,
  NAMED = 2, /* the first two */
  BOUND_LEAST = 64 * 1024,
  ALLOWANCE = 16 * 1024, /* beyond the bound and 1 % of it */
  VALUE_MAX = 2 << 20,
  MANY = 6,
  LEASES = 16,
  WAITS = 6, /* of a lease */
  NEARS = 8,
  OPERATIONS_MAX = 3000,
  SETTLE_STEPS = 5, /* sweeps, a second apart */
  SECOND_MS = 1000
};

struct input {
  const uint8_t *at, *end;
};

struct waiter {
  struct backend_wait wait; /* first */
  int queued, wakes, status;
  struct backend_item item;
  uint8_t *bytes;
};

struct load {
  uint64_t token; /* 0: none */
  int view;       /* through which it was taken: it ends with that */
  int space, key, poisoned, owner;
  struct waiter waiters[WAITS];
};

struct near_copy {
  int view, key, hit; /* key < 0: none */
  uint64_t changes, expires_ms;
  struct store_near near;
};

static struct {
  struct store *store;
  struct backend *views[VIEWS];
  struct space spaces[MODEL_SPACES];
  struct load loads[LEASES];
  struct near_copy nears[NEARS];
  struct input in;
  uint64_t now;
  size_t bound, least; /* bytes: now, and the smallest so far */
} f;

static uint8_t *buffer, *value_bytes; /* VALUE_MAX each */

static unsigned byte(void) {
  return f.in.at < f.in.end ? *f.in.at++ : 0;
}

/* ---- what an operation is about ---- */

struct target {
  struct backend *view;
  struct space *space;
  int number, space_number, key;
  const char *ns, *name;
  size_t ns_len, name_len;
};

#define KEY(t) (t).view, f.now, (t).ns, (t).ns_len, (t).name, (t).name_len

static void open_view(int i) {
  int alone = i >= NAMED, other = alone ? i : !i;
  int rc = alone ? store_view(f.store, &f.views[i])
                 : store_view_named(f.store, "one", &f.views[i]);
  MUST(rc == 0);
  if (alone || f.views[other] == NULL)
    store_watch(f.views[i], space_watch, &f.spaces[alone]);
}

/* Splits the key where the input says: it must not show. */
static void aim_key(struct target *t, int key) {
  size_t length;
  t->key = key;
  t->ns = model_key(key, &length);
  t->ns_len = byte() % (length + 1);
  t->name = t->ns + t->ns_len;
  t->name_len = length - t->ns_len;
}

static struct target aim_view(void) {
  struct target t = {.number = (int)(byte() % VIEWS)};
  if (f.views[t.number] == NULL)
    open_view(t.number);
  t.view = f.views[t.number];
  t.space_number = t.number >= NAMED;
  t.space = &f.spaces[t.space_number];
  return t;
}

static struct target aim(void) {
  struct target t = aim_view();
  aim_key(&t, (int)byte());
  return t;
}

/* A value out of two bytes of input: its format, and its length from 0 to above
 * any share of the bound. Integers are integers, but for some. */
static size_t draw_value(uint32_t *format) {
  static const size_t lengths[] = {
      0, 1, 8, 8, 40, 100, 300, 900, 2000, 3900, 4200, 7000, 8000, 9000, 17000};
  unsigned a = byte(), b = byte();
  size_t length = a % 16 < 15 ? lengths[a % 16] + (a / 16) : 0;
  if (a % 16 == 15)
    length = f.bound / 16 * (1 + a / 16) - b % 64;
  *format = b % 5;
  if (*format == BACKEND_INTEGER)
    length = a % 16 == 1 ? 7 : sizeof(int64_t);
  for (size_t i = 0; i < length; i++)
    value_bytes[i] = (uint8_t)(a * 31 + b + i + (i >> 8));
  if (*format == BACKEND_INTEGER && length == sizeof(int64_t)) {
    int64_t n = a >= 250 ? (INT64_C(1) << 53) - b : (int)a - (int)b;
    memcpy(value_bytes, &n, sizeof n);
  }
  return length;
}

static uint64_t draw_ttl(void) {
  unsigned b = byte();
  if (b < 128)
    return BACKEND_TTL_NEVER;
  return b == 255 ? UINT64_MAX - 1 : 1 + (uint64_t)(b % 32) * (b % 32) * 40;
}

/* ---- loads ---- */

static void on_wake(struct backend_wait *wait, int status, const void *bytes,
                    const struct backend_item *item) {
  struct waiter *w = (struct waiter *)wait;
  MUST(w->queued && w->wakes++ == 0);
  w->status = status;
  w->item = *item;
  w->bytes = malloc(item->length + 1);
  MUST(w->bytes != NULL);
  if (item->length > 0)
    memcpy(w->bytes, bytes, item->length);
}

static struct load *load_of(int space, int key) {
  for (int i = 0; i < LEASES; i++) {
    struct load *l = &f.loads[i];
    if (l->token && !l->poisoned && l->space == space && l->key == key)
      return l;
  }
  return NULL;
}

static struct load *free_load(void) {
  for (int i = 0; i < LEASES; i++)
    if (f.loads[i].token == 0)
      return &f.loads[i];
  return NULL;
}

static void poison(const struct target *t) {
  struct load *l = load_of(t->space_number, t->key);
  if (l)
    l->poisoned = 1;
}

/* Each that waited was woken once, with that. */
static void end_load(struct load *l, int status, const void *bytes,
                     size_t length) {
  for (int i = 0; i < WAITS; i++) {
    struct waiter *w = &l->waiters[i];
    MUST(w->wakes == w->queued);
    if (!w->queued)
      continue;
    MUST(w->status == status);
    MUST(status == BACKEND_MISS || bytes == NULL ||
         (w->item.length == length && memcmp(w->bytes, bytes, length) == 0));
    free(w->bytes);
  }
  *l = (struct load){.token = 0};
}

static int waiting(const struct load *l) {
  int count = 0;
  for (int i = 0; i < WAITS; i++)
    count += l->waiters[i].queued;
  return count;
}

/* ---- reads ---- */

static void check_hit(const struct target *t, const struct backend_item *item,
                      const void *bytes) {
  struct value *v = space_live(t->space, t->key, f.now);
  MUST(v != NULL);
  space_check_item(t->space, t->key, item);
  MUST(bytes == NULL || memcmp(bytes, v->bytes, v->length) == 0);
}

static void check_miss(const struct target *t) {
  if (space_live(t->space, t->key, f.now))
    space_lost(t->space, t->key, f.now);
}

static void op_get(void) {
  struct target t = aim();
  struct backend_item item;
  int rc = t.view->ops->get(KEY(t), buffer, VALUE_MAX, &item, NULL);
  if (rc == BACKEND_HIT) {
    check_hit(&t, &item, buffer);
    t.space->hits++;
  } else {
    MUST(rc == BACKEND_MISS);
    check_miss(&t);
    t.space->misses++;
  }
}

/* Beyond the buffer nothing is written, and no hit is counted. */
static void op_get_short(void) {
  struct target t = aim();
  struct backend_item item;
  size_t cap = byte();
  memset(buffer, 0x5a, cap + 1);
  int rc = t.view->ops->get(KEY(t), buffer, cap, &item, NULL);
  MUST(rc == BACKEND_HIT || rc == BACKEND_MISS);
  MUST(buffer[cap] == 0x5a);
  t.space->misses += rc == BACKEND_MISS;
  if (rc == BACKEND_MISS) {
    check_miss(&t);
    return;
  }
  check_hit(&t, &item, item.length <= cap ? buffer : NULL);
  t.space->hits += item.length <= cap;
}

static size_t draw_keys(struct target *t, struct backend_slice *keys,
                        int *numbers) {
  size_t n = 1 + byte() % MANY;
  for (size_t i = 0; i < n; i++) {
    numbers[i] = (int)byte();
    keys[i].data = model_key(numbers[i], &keys[i].length);
  }
  t->ns = "";
  t->ns_len = 0;
  return n;
}

static void op_get_many(void) {
  struct target t = aim_view();
  struct backend_slice keys[MANY];
  struct backend_item items[MANY];
  int numbers[MANY];
  size_t n = draw_keys(&t, keys, numbers), used, at = 0;
  size_t cap = byte() % 4 == 0 ? byte() : VALUE_MAX;
  int hits = t.view->ops->get_many(t.view, f.now, "", 0, keys, n, buffer, cap,
                                   &used, items, NULL);
  MUST(hits >= 0);
  for (size_t i = 0; i < n; i++) {
    t.key = numbers[i];
    if (items[i].version == 0) {
      check_miss(&t);
      t.space->misses += used <= cap;
      continue;
    }
    check_hit(&t, &items[i], used <= cap ? buffer + at : NULL);
    t.space->hits += used <= cap;
    at += items[i].length;
    hits--;
  }
  MUST(hits == 0 && at == used);
}

static void op_exists(void) {
  struct target t = aim();
  if (t.view->ops->exists(KEY(t), NULL))
    MUST(space_live(t.space, t.key, f.now) != NULL);
  else
    check_miss(&t);
}

static void op_info(void) {
  struct target t = aim();
  struct backend_item item;
  if (t.view->ops->info(KEY(t), &item, NULL) == BACKEND_HIT)
    check_hit(&t, &item, NULL);
  else
    check_miss(&t);
}

/* ---- writes ---- */

enum { KEY_SLACK = 64 }; /* what an item has around its key */

/* Whether a refusal for size was right. Where exactly the share ends is the
 * store's own affair: between 1/64 and a half of the bound; for a key, which
 * must fit into a segment, 1/128 of the smallest bound that there was. */
static void check_share(const struct target *t, size_t length,
                        const struct store_options *options, int rc) {
  size_t key_len, all;
  model_key(t->key, &key_len);
  all = length + key_len + options->weight;
  size_t sure = 0, maybe = 0;
  for (int i = 0; i < MODEL_SPACES; i++) {
    sure += space_pinned(&f.spaces[i], 0);
    maybe += space_pinned(&f.spaces[i], 1);
  }
  MUST(rc == 1 || rc == BACKEND_ETOOLARGE);
  if (rc == 1)
    MUST(all <= f.bound / 2);
  else
    MUST(all > f.bound / 64 || key_len + KEY_SLACK > f.least / 128 ||
         (options->pin && maybe + all > f.bound / 64));
  const struct value *old = space_live(t->space, t->key, f.now);
  if (rc == 1 && options->pin && old == NULL && !t->space->pins_may_go)
    MUST(sure + all <= f.bound / 2);
}

static void stored(const struct target *t, size_t length,
                   const struct store_options *options, int rc) {
  check_share(t, length, options, rc);
  if (rc != 1)
    return;
  space_put(t->space, t->key, f.now, value_bytes, length, options);
  poison(t);
}

static void op_set(void) {
  struct target t = aim();
  struct store_options o = {.ttl_ms = draw_ttl()};
  size_t length = draw_value(&o.format);
  stored(
      &t, length, &o,
      t.view->ops->set(KEY(t), value_bytes, length, o.format, o.ttl_ms, NULL));
}

static void op_set_with(void) {
  struct target t = aim();
  unsigned b = byte();
  struct store_options o = {
      .ttl_ms = draw_ttl(), .weight = b & 2 ? (b >> 2) * 64 : 0, .pin = b & 1};
  size_t length = draw_value(&o.format);
  stored(&t, length, &o, store_set_with(KEY(t), value_bytes, length, &o));
}

static void op_set_many(void) {
  struct target t = aim_view();
  struct backend_slice keys[MANY], values[MANY];
  uint32_t formats[MANY];
  int numbers[MANY], statuses[MANY], first = 1;
  struct store_options o = {.ttl_ms = draw_ttl()};
  size_t n = draw_keys(&t, keys, numbers);
  size_t length = draw_value(&o.format);
  for (size_t i = 0; i < n; i++) {
    formats[i] = o.format;
    values[i] = (struct backend_slice){(char *)value_bytes, length};
  }
  int rc = t.view->ops->set_many(t.view, f.now, "", 0, keys, values, formats, n,
                                 o.ttl_ms, statuses, NULL);
  for (size_t i = 0; i < n; i++) {
    t.key = numbers[i];
    stored(&t, length, &o, statuses[i]);
    first = first < 0 ? first : statuses[i];
  }
  MUST(rc == first);
}

static void op_add(void) {
  struct target t = aim();
  struct store_options o = {.ttl_ms = draw_ttl()};
  size_t length = draw_value(&o.format);
  int rc =
      t.view->ops->add(KEY(t), value_bytes, length, o.format, o.ttl_ms, NULL);
  if (rc == 0) {
    MUST(space_live(t.space, t.key, f.now) != NULL);
    return;
  }
  if (rc == 1)
    check_miss(&t);
  stored(&t, length, &o, rc);
}

static void op_cas(void) {
  struct target t = aim();
  struct store_options o = {.ttl_ms = draw_ttl()};
  struct backend_item item = {.version = 0};
  size_t length = draw_value(&o.format);
  t.view->ops->info(KEY(t), &item, NULL);
  uint64_t wrong = byte() % 4 == 0;
  int rc = store_cas(KEY(t), item.version + wrong, value_bytes, length,
                     o.format, o.ttl_ms);
  if (rc == 0) { /* or it was evicted in between */
    if (!wrong)
      check_miss(&t);
    return;
  }
  MUST(!wrong);
  if (item.version == 0)
    check_miss(&t);
  stored(&t, length, &o, rc);
}

static void op_remove(void) {
  struct target t = aim();
  int rc = t.view->ops->remove(KEY(t), NULL);
  MUST(rc == 0 || rc == 1);
  poison(&t);
  if (rc == 0)
    check_miss(&t);
  else
    MUST(space_live(t.space, t.key, f.now) != NULL);
  space_leave(t.space, t.key, STORE_DELETED, f.now);
}

static void op_remove_many(void) {
  struct target t = aim_view();
  struct backend_slice keys[MANY];
  int numbers[MANY], removed = 0;
  size_t n = draw_keys(&t, keys, numbers);
  int rc = t.view->ops->remove_many(t.view, f.now, "", 0, keys, n, NULL);
  for (size_t i = 0; i < n; i++) {
    t.key = numbers[i];
    poison(&t);
    removed += space_live(t.space, t.key, f.now) != NULL;
    space_leave(t.space, t.key, STORE_DELETED, f.now);
  }
  MUST(rc == removed);
}

/* A sum in the place of the one before: whether that counts as a value that was
 * replaced is left open, so both are right; it may also have gone for the room
 * that its own successor needs. */
static void replace_sum(const struct target *t, int64_t sum) {
  struct value *v = &t->space->keys[t->key].value;
  for (size_t i = 0; i < t->space->noted; i++) {
    const struct event *e = &t->space->events[i];
    if (e->key != t->key ||
        (e->reason != STORE_REPLACED && e->reason != STORE_SIZE))
      continue;
    struct value old = *v;
    space_leave(t->space, t->key, STORE_REPLACED, f.now);
    *v = old;
    v->bytes = malloc(sizeof sum + 1);
    MUST(v->bytes != NULL);
    break;
  }
  memcpy(v->bytes, &sum, sizeof sum);
  v->pin = v->pin == PIN_NO ? PIN_NO : PIN_MAYBE;
  space_changed(t->space, t->key);
  t->space->sets++;
}

/* What increment has to return, and in *sum. */
static int expected_sum(const struct value *v, int64_t delta, int64_t *sum) {
  const int64_t most = INT64_C(1) << 53;
  *sum = 0;
  if (v && (v->format != BACKEND_INTEGER || v->length != sizeof *sum))
    return BACKEND_ETYPE;
  if (v)
    memcpy(sum, v->bytes, sizeof *sum);
  if (__builtin_add_overflow(*sum, delta, sum) || *sum > most || *sum < -most)
    return BACKEND_ERANGE;
  return 1;
}

static void op_increment(void) {
  struct target t = aim();
  unsigned b = byte();
  int64_t delta = b >= 250 ? INT64_MAX : (int)b - 100, sum = 0, expected;
  struct store_options o = {.format = BACKEND_INTEGER, .ttl_ms = draw_ttl()};
  int rc = t.view->ops->increment(KEY(t), delta, o.ttl_ms, &sum, NULL);
  struct value *v = space_live(t.space, t.key, f.now);
  int expected_rc = expected_sum(v, delta, &expected);
  if (v && expected_rc == 1 && rc == BACKEND_ETOOLARGE) {
    o.weight = v->weight, o.pin = v->pin != PIN_NO;
    check_share(&t, v->length, &o, rc); /* the bound was larger once */
    return;
  }
  if (v && (rc != expected_rc || (rc == 1 && sum != expected))) {
    check_miss(&t); /* it had been evicted, or this is wrong */
    v = NULL;
    expected_rc = expected_sum(v, delta, &expected);
  }
  if (v == NULL && expected_rc == 1) {
    memcpy(value_bytes, &expected, sizeof expected);
    MUST(rc != 1 || sum == expected);
    stored(&t, sizeof expected, &o, rc);
    return;
  }
  MUST(rc == expected_rc);
  if (rc != 1)
    return;
  MUST(sum == expected);
  replace_sum(&t, sum);
  poison(&t);
}

static void set_time(const struct target *t, int rc, uint64_t ttl_ms) {
  MUST(rc == 0 || rc == 1);
  if (rc == 0) {
    check_miss(t);
    return;
  }
  struct value *v = space_live(t->space, t->key, f.now);
  MUST(v != NULL);
  if (ttl_ms == UINT64_MAX)
    return;
  v->expires_ms = model_expiry(f.now, ttl_ms);
  space_changed(t->space, t->key);
}

static void op_expire(void) {
  struct target t = aim();
  uint64_t ttl = draw_ttl();
  set_time(&t, t.view->ops->expire(KEY(t), ttl, NULL), ttl);
}

static void op_touch(void) {
  struct target t = aim();
  uint64_t ttl = byte() % 2 ? draw_ttl() : UINT64_MAX;
  set_time(&t, t.view->ops->touch(KEY(t), ttl, NULL), ttl);
}

/* ---- calls on all keys ---- */

static const char *draw_prefix(size_t *length) {
  size_t whole;
  int key = (int)byte();
  const char *text = model_key(key, &whole);
  *length = byte() % 4;
  if (*length == 3 || *length > whole)
    *length = whole;
  return text;
}

static int begins_with(int key, const char *prefix, size_t prefix_len) {
  size_t length;
  const char *text = model_key(key, &length);
  return length >= prefix_len && memcmp(text, prefix, prefix_len) == 0;
}

static void op_clear(void) {
  struct target t = aim_view();
  size_t length;
  uint64_t cursor = 0;
  const char *prefix = draw_prefix(&length);
  int rc;
  for (int i = 0; i < 100000; i++)
    if ((rc = t.view->ops->clear(t.view, f.now, prefix, length, &cursor,
                                 NULL)) != 0)
      break;
  MUST(rc == 1);
  for (t.key = 0; t.key < MODEL_KEYS; t.key++) {
    if (!begins_with(t.key, prefix, length))
      continue;
    poison(&t);
    space_leave(t.space, t.key, STORE_CLEARED, f.now);
  }
}

static uint8_t seen[MODEL_KEYS];

static int on_entry(void *ud, const char *key, size_t key_len,
                    const struct backend_item *item) {
  struct target *t = ud;
  size_t length;
  t->key = key_len == 1 ? key[0] - 'a' : (uint8_t)key[1];
  MUST(t->key >= 0 && t->key < MODEL_KEYS);
  const char *text = model_key(t->key, &length);
  MUST(length == key_len && memcmp(text, key, length) == 0);
  MUST(seen[t->key]++ == 0);
  check_hit(t, item, NULL);
  return 0;
}

static void op_scan(void) {
  struct target t = aim_view();
  size_t length, limit = 1 + byte() % 64;
  uint64_t cursor = 0;
  const char *prefix = draw_prefix(&length);
  int calls = 0, total = 0;
  memset(seen, 0, sizeof seen);
  do {
    int rc = t.view->ops->scan(t.view, f.now, prefix, length, &cursor, limit,
                               on_entry, &t, NULL);
    MUST(rc >= 0 && calls++ < 100000);
    total += rc;
  } while (cursor != 0);
  for (t.key = 0; t.key < MODEL_KEYS; t.key++) {
    total -= seen[t.key];
    if (seen[t.key])
      MUST(begins_with(t.key, prefix, length));
    else if (begins_with(t.key, prefix, length))
      check_miss(&t);
  }
  MUST(total == 0);
}

/* ---- leases ---- */

/* rc is TOKEN or WAIT. */
static void leased(const struct target *t, int rc, struct load *fresh,
                   struct waiter *waiter, const struct backend_item *item) {
  struct load *l = load_of(t->space_number, t->key);
  if (l) {
    MUST(rc == BACKEND_WAIT && item->owner == &l->owner);
    return; /* the waiter is queued */
  }
  MUST(rc == BACKEND_TOKEN && item->token != 0);
  for (int i = 0; i < LEASES; i++)
    MUST(f.loads[i].token != item->token ||
         f.loads[i].space != t->space_number || f.loads[i].key != t->key);
  MUST(waiter == NULL);
  *fresh = (struct load){.token = item->token,
                         .view = t->number,
                         .space = t->space_number,
                         .key = t->key};
}

static struct waiter *free_waiter(struct load *l) {
  for (int i = 0; l && i < WAITS; i++)
    if (!l->waiters[i].queued)
      return &l->waiters[i];
  return NULL;
}

static void take_lease(int refresh) {
  struct target t = aim();
  struct load *fresh = free_load(), *l = load_of(t.space_number, t.key);
  struct waiter *w = free_waiter(l);
  struct backend_wait first = {.wake = on_wake};
  struct backend_item item;
  int rc;
  if (fresh == NULL || (l && w == NULL))
    return;
  if (w)
    *w = (struct waiter){.wait = {.wake = on_wake}, .queued = 1};
  else
    first.owner = &fresh->owner;
  struct backend_wait *wait = w ? &w->wait : &first;
  rc = refresh ? t.view->ops->refresh(KEY(t), &item, wait)
               : t.view->ops->lease(KEY(t), buffer, VALUE_MAX, &item, wait);
  if (rc == BACKEND_HIT) {
    MUST(!refresh);
    check_hit(&t, &item, buffer);
    t.space->hits++;
    if (w)
      w->queued = 0;
    return;
  }
  if (!refresh)
    check_miss(&t);
  t.space->misses += !refresh;
  leased(&t, rc, fresh, w, &item);
}

static void op_lease(void) {
  take_lease(0);
}

static void op_refresh(void) {
  take_lease(1);
}

/* One of the loads, through a view of its space. */
static struct load *draw_load(struct target *t) {
  struct load *l = &f.loads[byte() % LEASES];
  int number = l->space == 0 && byte() % 2;
  if (l->token == 0)
    return NULL;
  if (l->space == 1)
    number = NAMED;
  if (f.views[number] == NULL)
    open_view(number);
  t->view = f.views[number];
  t->number = number;
  t->space_number = l->space;
  t->space = &f.spaces[l->space];
  aim_key(t, l->key);
  return l;
}

static void op_fill(void) {
  struct target t;
  struct load *l = draw_load(&t);
  struct store_options o = {.ttl_ms = draw_ttl()};
  size_t length = draw_value(&o.format);
  if (l == NULL)
    return;
  int poisoned = l->poisoned;
  int rc = t.view->ops->fill(KEY(t), l->token, value_bytes, length, o.format,
                             o.ttl_ms);
  end_load(l, BACKEND_HIT, value_bytes, length);
  if (poisoned)
    MUST(rc == 0);
  else
    stored(&t, length, &o, rc);
}

static void op_abandon(void) {
  static const char message[] = "no";
  struct target t;
  struct load *l = draw_load(&t);
  int with_message = byte() % 2;
  if (l == NULL)
    return;
  MUST(t.view->ops->abandon(KEY(t), l->token, with_message ? message : NULL,
                            2) == 1);
  uint64_t token = l->token;
  end_load(l, with_message ? BACKEND_ELOAD : BACKEND_MISS, message, 2);
  MUST(t.view->ops->abandon(KEY(t), token, NULL, 0) == 0);
  MUST(t.view->ops->fill(KEY(t), token, "", 0, 0, 0) == 0);
  MUST(t.view->ops->waiters(KEY(t), token) == -1);
  MUST(t.view->ops->valid(KEY(t), token) == 0);
}

static void op_ask_load(void) {
  struct target t;
  struct load *l = draw_load(&t);
  if (l == NULL)
    return;
  MUST(t.view->ops->waiters(KEY(t), l->token) == waiting(l));
  MUST(t.view->ops->valid(KEY(t), l->token) == !l->poisoned);
}

static void op_unwait(void) {
  struct target t;
  struct load *l = draw_load(&t);
  struct waiter *w;
  if (l == NULL)
    return;
  w = &l->waiters[byte() % WAITS];
  if (!w->queued)
    return;
  MUST(t.view->ops->unwait(t.view, &w->wait) == 1);
  MUST(t.view->ops->unwait(t.view, &w->wait) == 0);
  w->queued = 0;
}

/* ---- near copies ---- */

static uint32_t word(const uint32_t *at) {
  return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

static void op_get_near(void) {
  struct target t = aim();
  struct backend_item item;
  struct near_copy *n = &f.nears[byte() % NEARS];
  uint32_t *words = store_view_words(t.view);
  *n = (struct near_copy){t.number, t.key, 0, 0, 0, {0}};
  int rc = store_get_near(KEY(t), buffer, VALUE_MAX, &item, &n->near);
  if (rc == BACKEND_HIT) {
    check_hit(&t, &item, buffer);
    n->expires_ms = item.expires_ms;
    t.space->hits++;
  } else {
    check_miss(&t);
    t.space->misses++;
  }
  n->hit = rc;
  n->changes = t.space->keys[t.key].changes;
  MUST(n->near.clears == word(&words[0]));
  MUST(rc == BACKEND_MISS || n->near.shift < 32);
  MUST(rc == BACKEND_HIT || n->near.words == NULL || n->near.shift == 32);
  if (n->near.words == NULL)
    n->key = -1;
}

/* A copy that its words call good must be what the key holds, evictions
 * apart. */
static void op_use_near(void) {
  struct near_copy *n = &f.nears[byte() % NEARS];
  if (n->key < 0 || f.views[n->view] == NULL)
    return;
  struct space *s = &f.spaces[n->view >= NAMED];
  uint32_t *words = store_view_words(f.views[n->view]);
  int good = word(&n->near.words[0]) == n->near.version &&
             word(&words[0]) == n->near.clears;
  if (!n->hit)
    good = good || word(&words[1]) == n->near.inserts;
  else
    good = good && (n->expires_ms == 0 || n->expires_ms > f.now);
  if (!good)
    return;
  MUST(!n->hit || s->keys[n->key].changes == n->changes);
  MUST(n->hit || space_live(s, n->key, f.now) == NULL);
  if (n->hit && n->near.shift < 32)
    __atomic_store_n(&n->near.words[1],
                     word(&n->near.words[1]) | 1u << n->near.shift,
                     __ATOMIC_RELAXED);
}

/* ---- the store as a whole ---- */

static void check_bound(void) {
  struct store_info info;
  store_info(f.store, &info);
  MUST(info.max_bytes == f.bound);
  MUST((double)info.bytes <= (double)f.bound * 1.01 + ALLOWANCE);
}

static void check_stats(int number) {
  struct backend_stats stats;
  struct space *s = &f.spaces[number >= NAMED];
  f.views[number]->ops->stats(f.views[number], f.now, &stats);
  MUST(stats.hits == s->hits);
  MUST(stats.misses == s->misses);
  MUST(stats.sets == s->sets);
  MUST(stats.evictions == s->evictions);
  MUST(stats.expired == s->expired);
  MUST(stats.max_bytes == f.bound);
  MUST(stats.entries >= space_count(s, f.now));
}

static void reconcile(void) {
  for (int i = 0; i < MODEL_SPACES; i++)
    space_reconcile(&f.spaces[i], f.now);
}

static void sweep(size_t step) {
  int steps = 0;
  while (store_sweep(f.store, f.now, step))
    MUST(steps++ < 1000000);
  reconcile();
}

static void op_sweep(void) {
  store_sweep(f.store, f.now, 1 + byte());
}

/* After these nothing is left of what has expired or was cleared. What expires
 * while they last may be counted or not. */
static void op_settle(void) {
  uint64_t before = f.now;
  for (int i = 0; i < SETTLE_STEPS; i++, f.now += SECOND_MS)
    sweep(64);
  for (int i = 0; i < VIEWS; i++) {
    struct backend_stats stats;
    struct space *s = &f.spaces[i >= NAMED];
    if (f.views[i] == NULL)
      continue;
    check_stats(i);
    space_check_reported(s, before);
    f.views[i]->ops->stats(f.views[i], f.now, &stats);
    MUST(stats.entries >= space_count(s, f.now));
    MUST(stats.entries <= space_count(s, before));
  }
}

static void op_resize(void) {
  unsigned b = byte();
  f.bound = ((size_t)BOUND_LEAST << b % 5) + b * 61;
  if (f.least == 0 || f.bound < f.least)
    f.least = f.bound;
  for (int i = 0; i < MODEL_SPACES; i++) /* it may be laid out anew */
    f.spaces[i].pins_may_go = 1;
  store_resize(f.store, f.bound);
}

/* To the moment at which the next value expires. */
static void meet_expiry(void) {
  uint64_t next = UINT64_MAX;
  for (int i = 0; i < MODEL_SPACES; i++) {
    for (int key = 0; key < MODEL_KEYS; key++) {
      struct value *v = space_live(&f.spaces[i], key, f.now);
      if (v && v->expires_ms != 0 && v->expires_ms < next)
        next = v->expires_ms;
    }
  }
  if (next < f.now + SECOND_MS * SECOND_MS)
    f.now = next;
}

static void op_advance(void) {
  unsigned b = byte();
  if (b % 4 == 3) {
    meet_expiry();
    return;
  }
  f.now += b < 128 ? b : (uint64_t)(b - 127) * 400;
}

/* The last view of its name takes all with it, another one its loads: who waits
 * for these asks again. */
static void close_view(int i) {
  int alone = i >= NAMED, other = alone ? i : !i;
  struct space *s = &f.spaces[alone];
  struct backend *view = f.views[i];
  if (view == NULL)
    return;
  f.views[i] = NULL;
  view->ops->close(view);
  for (int n = 0; n < NEARS; n++)
    if (f.nears[n].view == i)
      f.nears[n].key = -1;
  int shared = f.views[other] != NULL;
  for (int l = 0; l < LEASES; l++)
    if (f.loads[l].token && f.loads[l].view == i)
      end_load(&f.loads[l], shared ? BACKEND_MISS : BACKEND_ELOAD, NULL, 0);
  if (shared)
    store_watch(f.views[other], space_watch, s);
  else
    space_reset(s);
}

static void op_close(void) {
  close_view((int)(byte() % VIEWS));
}

static void (*const operations[])(void) = {
    op_set,      op_set,      op_set,       op_set,       op_get,
    op_get,      op_get,      op_get_many,  op_get_short, op_set_many,
    op_set_with, op_cas,      op_add,       op_remove,    op_remove_many,
    op_exists,   op_info,     op_increment, op_increment, op_expire,
    op_touch,    op_clear,    op_scan,      op_lease,     op_lease,
    op_refresh,  op_fill,     op_abandon,   op_ask_load,  op_unwait,
    op_get_near, op_use_near, op_sweep,     op_settle,    op_resize,
    op_advance,  op_advance,  op_close};

static void begin(const uint8_t *data, size_t size) {
  if (buffer == NULL) {
    buffer = malloc(VALUE_MAX + 1);
    value_bytes = malloc(VALUE_MAX + 1);
    MUST(buffer != NULL && value_bytes != NULL);
  }
  f.in = (struct input){data, data + size};
  f.now = 1000;
  f.bound = (size_t)BOUND_LEAST << byte() % 5;
  f.least = f.bound;
  for (int i = 0; i < NEARS; i++)
    f.nears[i].key = -1;
  MUST(store_open(&f.store, f.bound) == 0);
}

static void end(void) {
  int store_first = f.now % 2;
  op_settle();
  check_bound();
  if (store_first)
    store_close(f.store);
  for (int i = 0; i < VIEWS; i++)
    close_view(i);
  if (!store_first)
    store_close(f.store);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  begin(data, size);
  for (int i = 0; i < OPERATIONS_MAX && f.in.at < f.in.end; i++) {
    operations[byte() % (sizeof operations / sizeof *operations)]();
    reconcile();
    check_bound();
  }
  end();
  return 0;
}

/* That there is no memory is another proof's matter: store_oom_test.c. */
int fuzz_with_failure(const uint8_t *data, size_t size, long after) {
  (void)data, (void)size, (void)after;
  return 0;
}
