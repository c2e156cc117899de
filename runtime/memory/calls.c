/* The calls of a view on one key and on many, and the table of them that makes
 * a view a backend. What each promises stands in backend.h; reading is
 * read.c's, leases are lease.c's, what goes over all keys is clear.c's.
 *
 *   call  ->  store_begin: hash, lock the key's shard  ->  write.c  ->  unlock
 *
 * A call that writes is one atomic step under its shard's mutex; one on many
 * keys is as many steps. Nothing here waits for anything but that mutex.
 */
#include <limits.h>

#include "memory/internal.h"

static const uint64_t touch_keeps_ttl = UINT64_MAX;
static const int64_t integer_max = INT64_C(1) << 53; /* exact as a double */

/* ---- one key ---- */

static int set(BACKEND_KEY_ARGS, const void *bytes, size_t length,
               uint32_t format, uint64_t ttl_ms, STORE_NO_WAIT) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct content content = store_content(now, bytes, length, format, ttl_ms);
  return store_end(&at, store_put(&at, &content));
}

int store_set_with(BACKEND_KEY_ARGS, const void *bytes, size_t length,
                   const struct store_options *options) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct content content =
      store_content(now, bytes, length, options->format, options->ttl_ms);
  content.pin = options->pin;
  content.weight = options->weight;
  return store_end(&at, store_put(&at, &content));
}

/* Looking and storing under one lock is what sets this apart from a get and
 * a set: of many that add a key at once, one is told that it did. */
static int add(BACKEND_KEY_ARGS, const void *bytes, size_t length,
               uint32_t format, uint64_t ttl_ms, STORE_NO_WAIT) {
  struct target at;
  struct place place;
  struct item item;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  if (store_find(&at, &place, &item))
    return store_end(&at, 0);
  struct content content = store_content(now, bytes, length, format, ttl_ms);
  return store_end(&at, store_put(&at, &content));
}

int store_cas(BACKEND_KEY_ARGS, uint64_t version, const void *bytes,
              size_t length, uint32_t format, uint64_t ttl_ms) {
  struct target at;
  struct place place;
  struct item item;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  if ((store_find(&at, &place, &item) ? item.stamp : 0) != version)
    return store_end(&at, 0);
  struct content content = store_content(now, bytes, length, format, ttl_ms);
  return store_end(&at, store_put(&at, &content));
}

static int remove_one(BACKEND_KEY_ARGS, STORE_NO_WAIT) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  return rc < 0 ? rc : store_end(&at, store_delete(&at));
}

/* To ask is not to use: no frequency, no count, or whoever watches a cache
 * would change what stays in it. The same goes for info. */
static int info(BACKEND_KEY_ARGS, struct backend_item *out, STORE_NO_WAIT) {
  struct target at;
  int rc = store_aim(&at, STORE_KEY);
  return rc < 0 ? rc : store_peek(&at, out);
}

static int exists(BACKEND_KEY_ARGS, STORE_NO_WAIT) {
  struct backend_item item;
  return info(STORE_KEY, &item, wait);
}

/* The counter's own way: no ghost is asked, and its TTL stays. */
static int add_to(struct target *at, int64_t delta, uint64_t ttl_ms,
                  int64_t *sum) {
  struct place place;
  struct item item;
  int64_t value = 0;
  int known = store_find(at, &place, &item);
  if (known) {
    if (item.format != BACKEND_INTEGER || item_length(&item) != sizeof value)
      return BACKEND_ETYPE;
    item_copy_value(at->shard,
                    log_item(at->shard, place.bucket->items[place.slot]), &item,
                    &value);
    index_note_use(place.bucket, place.slot); /* a busy counter stays */
  }
  if (__builtin_add_overflow(value, delta, &value) || value > integer_max ||
      value < -integer_max)
    return BACKEND_ERANGE;
  struct content content =
      store_content(at->now, &value, sizeof value, BACKEND_INTEGER, ttl_ms);
  if (known) {
    content.expires_ms = item.expires_ms;
    content.stamp = store_next_stamp(at->shard, &item);
    content.weight = item.weight;
    content.pin = (item.flags & ITEM_PINNED) != 0;
  }
  int rc = store_put(at, &content);
  if (rc == 1)
    *sum = value;
  return rc;
}

static int increment(BACKEND_KEY_ARGS, int64_t delta, uint64_t ttl_ms,
                     int64_t *sum, STORE_NO_WAIT) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  return rc < 0 ? rc : store_end(&at, add_to(&at, delta, ttl_ms, sum));
}

/* A new version, since whoever compares versions is to see the new time, too.
 * Unlike the calls that write a value these poison no lease: what a load
 * brings is as fresh as before. */
static int expire(BACKEND_KEY_ARGS, uint64_t ttl_ms, STORE_NO_WAIT) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  return store_end(&at, store_put_expiry(&at, store_expiry(now, ttl_ms)));
}

/* A use without the value: it keeps the entry from eviction, and from expiry
 * only when it is given a TTL. */
static int touch(BACKEND_KEY_ARGS, uint64_t ttl_ms, STORE_NO_WAIT) {
  struct target at;
  int rc = store_aim(&at, STORE_KEY);
  if (rc == 0)
    rc = store_note_use(&at);
  if (rc <= 0 || ttl_ms == touch_keeps_ttl)
    return rc;
  return expire(STORE_KEY, ttl_ms, wait);
}

/* ---- many keys ---- */

/* A bad key or a value too large costs the others nothing: a bulk set is many
 * sets. */
static int set_many(struct backend *self, uint64_t now, const char *ns,
                    size_t ns_len, const struct backend_slice *keys,
                    const struct backend_slice *values, const uint32_t *formats,
                    size_t n, uint64_t ttl_ms, int *statuses, STORE_NO_WAIT) {
  int first = 1;
  for (size_t i = 0; i < n; i++) {
    int rc = set(self, now, ns, ns_len, keys[i].data, keys[i].length,
                 values[i].data, values[i].length, formats[i], ttl_ms, wait);
    if (rc < 0 && first > 0)
      first = rc;
    if (statuses)
      statuses[i] = rc;
  }
  return first;
}

static int remove_many(struct backend *self, uint64_t now, const char *ns,
                       size_t ns_len, const struct backend_slice *keys,
                       size_t n, STORE_NO_WAIT) {
  struct view *view = (struct view *)self;
  int removed = 0;
  assert(n <= INT_MAX);
  for (size_t i = 0; i < n; i++) { /* a call that fails has removed nothing */
    int rc = store_check_key(view, ns_len, keys[i].length);
    if (rc < 0)
      return rc;
  }
  for (size_t i = 0; i < n; i++)
    removed += remove_one(self, now, ns, ns_len, keys[i].data, keys[i].length,
                          wait) == 1;
  return removed;
}

static int raw(struct backend *self, const struct backend_slice *args, size_t n,
               STORE_NO_WAIT) {
  (void)self, (void)args, (void)n;
  return BACKEND_EUNSUPPORTED;
}

/* ---- the view as a whole ---- */

/* With all shards locked, so that the numbers fit each other. */
static void stats(struct backend *self, uint64_t now,
                  struct backend_stats *out) {
  struct view *view = (struct view *)self;
  struct space *space = view->space;
  (void)now;
  *out = (struct backend_stats){.max_bytes =
                                    load_relaxed(&view->store->max_bytes)};
  if (load_relaxed(view->store->alive) == 0)
    return;
  store_lock_all(view->store);
  for (unsigned i = 0; i <= STRIPES; i++) {
    struct stripe *stripe = &space->stripes[i];
    out->hits += load_relaxed(&stripe->hits);
    out->misses += load_relaxed(&stripe->misses);
    out->sets += load_relaxed(&stripe->sets);
    out->deletes += load_relaxed(&stripe->deletes);
    out->evictions += load_relaxed(&stripe->evictions);
    out->expired += load_relaxed(&stripe->expired);
  }
  for (uint32_t i = 0; i < store_shard_count(view->store); i++) {
    out->entries += view->store->shards[i].held[space->id].entries;
    out->bytes += view->store->shards[i].held[space->id].bytes;
  }
  store_unlock_all(view->store);
}

const struct backend_ops store_calls = {
    .name = "memory",
    .get = store_get,
    .get_many = store_get_many,
    .set = set,
    .set_many = set_many,
    .add = add,
    .remove = remove_one,
    .remove_many = remove_many,
    .exists = exists,
    .increment = increment,
    .expire = expire,
    .info = info,
    .touch = touch,
    .clear = store_clear,
    .scan = store_scan,
    .raw = raw,
    .lease = store_lease,
    .refresh = store_refresh,
    .fill = store_fill,
    .abandon = store_abandon,
    .waiters = store_waiters,
    .valid = store_valid,
    .unwait = store_unwait,
    .stats = stats,
    .close = store_close_view,
};
