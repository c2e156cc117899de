#include "store_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ONE_BYTE_KEYS = 16, LARGE_KEYS = 248, GROUPS = 4 };

#define REASON(x) (1u << (x))

char model_about[80];

void model_must(int true_, const char *what) {
  if (true_)
    return;
  fprintf(stderr, "store: %s %s\n", what, model_about);
  abort();
}

static void *checked(void *p) {
  MUST(p != NULL);
  return p;
}

/* ---- keys ---- */

static size_t key_length(int key) {
  static const size_t large[] = {1000, 3000, 5000, 9000,
                                 300,  299,  256,  MODEL_KEY_MAX};
  if (key < ONE_BYTE_KEYS)
    return 1;
  return key < LARGE_KEYS ? 2 + (size_t)key * 37 % 299
                          : large[key - LARGE_KEYS];
}

const char *model_key(int key, size_t *length) {
  static char *texts[MODEL_KEYS];
  *length = key_length(key);
  if (texts[key] == NULL) {
    char *text = texts[key] = checked(malloc(*length));
    memset(text, key, *length);
    text[0] = (char)('a' + (*length == 1 ? key : key % GROUPS));
  }
  return texts[key];
}

static int key_of(const char *text, size_t length) {
  size_t expected;
  int key = length == 1 ? text[0] - 'a' : (uint8_t)text[length > 0];
  MUST(key >= 0 && key < MODEL_KEYS);
  const char *own = model_key(key, &expected);
  MUST(length == expected && memcmp(text, own, length) == 0);
  return key;
}

/* ---- what was told ---- */

static uint8_t *copy_of(const void *bytes, size_t length) {
  uint8_t *copy = checked(malloc(length + 1));
  if (length > 0)
    memcpy(copy, bytes, length);
  return copy;
}

void space_watch(void *ud, int reason, const char *key, size_t key_len,
                 uint32_t format, const void *bytes, size_t length) {
  struct space *s = ud;
  if (s->noted == s->noted_cap) {
    s->noted_cap = s->noted_cap * 2 + 16;
    s->events = checked(realloc(s->events, s->noted_cap * sizeof *s->events));
  }
  s->events[s->noted++] =
      (struct event){reason, key_of(key, key_len), format, length,
                     bytes || length == 0 ? copy_of(bytes, length) : NULL};
}

static void forget_event(struct space *s, size_t i) {
  free(s->events[i].bytes);
  memmove(s->events + i, s->events + i + 1,
          (--s->noted - i) * sizeof *s->events);
}

static int is_about(const struct event *e, const struct value *v) {
  return v->bytes != NULL && e->format == v->format && e->length == v->length &&
         (e->bytes == NULL || memcmp(e->bytes, v->bytes, v->length) == 0);
}

static int past(const struct value *v, uint64_t now) {
  return v->expires_ms != 0 && v->expires_ms <= now;
}

/* ---- values ---- */

struct value *space_live(struct space *s, int key, uint64_t now) {
  struct value *v = &s->keys[key].value;
  return v->bytes != NULL && !past(v, now) ? v : NULL;
}

void space_changed(struct space *s, int key) {
  s->keys[key].changes++;
}

static void drop(struct space *s, int key) {
  free(s->keys[key].value.bytes);
  s->keys[key].value.bytes = NULL;
}

void space_leave(struct space *s, int key, int reason, uint64_t now) {
  struct value *v = &s->keys[key].value;
  if (v->bytes == NULL)
    return;
  if (s->departed == s->departed_cap) {
    s->departed_cap = s->departed_cap * 2 + 16;
    s->departures = checked(
        realloc(s->departures, s->departed_cap * sizeof(*s->departures)));
  }
  /* An old value may have gone for room just before a new one took its place;
   * past its time, it may have been any of these. */
  unsigned reasons = REASON(reason);
  if (reason == STORE_REPLACED)
    reasons |= REASON(STORE_SIZE);
  if (past(v, now))
    reasons = REASON(STORE_EXPIRED) | REASON(STORE_SIZE) |
              (reason == STORE_CLEARED ? REASON(STORE_CLEARED) : 0);
  s->departures[s->departed++] = (struct departure){*v, reasons, key};
  v->bytes = NULL;
  space_changed(s, key);
}

uint64_t model_expiry(uint64_t now, uint64_t ttl_ms) {
  return ttl_ms == BACKEND_TTL_NEVER || ttl_ms > STORE_TIME_MAX - now
             ? 0
             : now + ttl_ms;
}

void space_put(struct space *s, int key, uint64_t now, const void *bytes,
               size_t length, const struct store_options *options) {
  space_leave(s, key, STORE_REPLACED, now);
  uint64_t expires = model_expiry(now, options->ttl_ms);
  s->keys[key].value = (struct value){copy_of(bytes, length),
                                      length,
                                      expires,
                                      now,
                                      options->format,
                                      options->weight,
                                      options->pin ? PIN_SURE : PIN_NO};
  space_changed(s, key);
  s->sets++;
}

void space_lost(struct space *s, int key, uint64_t now) {
  struct value *v = &s->keys[key].value;
  for (size_t i = 0; i < s->noted; i++) {
    struct event *e = &s->events[i];
    if (e->key != key || e->reason != STORE_SIZE || !is_about(e, v))
      continue;
    MUST(v->pin != PIN_SURE || s->pins_may_go || past(v, now));
    s->evictions++;
    drop(s, key);
    forget_event(s, i);
    return;
  }
  model_must(0, "a value was lost, and no eviction was reported");
}

void space_reset(struct space *s) {
  for (int key = 0; key < MODEL_KEYS; key++)
    drop(s, key);
  for (size_t i = 0; i < s->departed; i++)
    free(s->departures[i].value.bytes);
  while (s->noted > 0)
    forget_event(s, 0);
  free(s->departures);
  free(s->events);
  *s = (struct space){.departed = 0};
}

/* ---- checks ---- */

void space_check_item(struct space *s, int key,
                      const struct backend_item *item) {
  struct entry_model *k = &s->keys[key];
  const struct value *v = &k->value;
  MUST(item->length == v->length);
  MUST(item->format == v->format);
  MUST(item->expires_ms == v->expires_ms);
  MUST(item->created_ms == v->created_ms);
  MUST(item->version != 0);
  if (k->version != 0 && k->seen_at == k->changes)
    MUST(item->version == k->version);
  else
    MUST(item->version > k->version);
  k->version = item->version;
  k->seen_at = k->changes;
}

/* The oldest that left and that the event fits. */
static int is_of_departure(struct space *s, const struct event *e,
                           uint64_t now) {
  for (size_t i = 0; i < s->departed; i++) {
    struct departure *d = &s->departures[i];
    unsigned reasons = d->reasons;
    if (past(&d->value, now))
      reasons |= REASON(STORE_EXPIRED) | REASON(STORE_SIZE);
    if (d->key != e->key || !(reasons & REASON(e->reason)) ||
        !is_about(e, &d->value))
      continue;
    free(d->value.bytes);
    memmove(d, d + 1, (--s->departed - i) * sizeof *d);
    return 1;
  }
  return 0;
}

static void reconcile_one(struct space *s, const struct event *e,
                          uint64_t now) {
  struct value *v = &s->keys[e->key].value;
  s->evictions += e->reason == STORE_SIZE;
  s->expired += e->reason == STORE_EXPIRED;
  if (is_of_departure(s, e, now))
    return;
  model_must(is_about(e, v), "a value was reported that has not left");
  if (e->reason == STORE_SIZE)
    MUST(v->pin != PIN_SURE || s->pins_may_go || past(v, now));
  else
    MUST(e->reason == STORE_EXPIRED && past(v, now));
  drop(s, e->key);
}

void space_reconcile(struct space *s, uint64_t now) {
  const unsigned at_once = REASON(STORE_DELETED) | REASON(STORE_REPLACED);
  while (s->noted > 0) {
    reconcile_one(s, &s->events[0], now);
    forget_event(s, 0);
  }
  for (size_t i = 0; i < s->departed; i++)
    model_must(!(s->departures[i].reasons & at_once),
               "a value was deleted or replaced, and not reported");
}

void space_check_reported(struct space *s, uint64_t before) {
  model_must(s->departed == 0, "a value left and was not reported");
  for (int key = 0; key < MODEL_KEYS; key++)
    model_must(s->keys[key].value.bytes == NULL ||
                   !past(&s->keys[key].value, before),
               "an expired value was not swept");
}

uint64_t space_count(struct space *s, uint64_t now) {
  uint64_t count = 0;
  for (int key = 0; key < MODEL_KEYS; key++)
    count += space_live(s, key, now) != NULL;
  return count;
}

size_t space_pinned(struct space *s, int maybe) {
  size_t bytes = 0;
  for (int key = 0; key < MODEL_KEYS; key++) {
    const struct value *v = &s->keys[key].value;
    if (v->bytes != NULL &&
        (v->pin == PIN_SURE || (maybe && v->pin == PIN_MAYBE)))
      bytes += v->length + v->weight + key_length(key);
  }
  return bytes;
}
