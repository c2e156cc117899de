/* The calls of a view: on one key, on many, on all, and the table of them that
 * makes a view a backend. What each promises stands in backend.h; the leases
 * are lease.c's.
 *
 * A call takes the store's mutex once, works with the steps of store.c and lets
 * it go. Invariant: the answer is the return value, found with the mutex held,
 * so it was true of the whole store at one moment. Nothing here waits.
 *
 * Calls that walk the whole table (clear, scan) have no index by view or
 * prefix to go by: what they save in memory and in every set, they pay in
 * steps over the entries of others.
 */
#include "memory/internal.h"

#include <limits.h>
#include <stdlib.h>

static const uint64_t touch_keeps_ttl = UINT64_MAX;
static const int64_t integer_max = INT64_C(1) << 53; /* exact as a double */

/* Calls on one key. Each is framed by store_begin and store_end; what stands
 * between them is one atomic step. */

/* Only the miss is counted here: store_read counts a hit once it fits, as a
 * caller whose buffer is too small comes again. */
static int get(BACKEND_KEY_ARGS, void *buf, size_t cap,
               struct backend_item *out, STORE_NO_WAIT) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct entry *entry = store_find(&at);
  if (entry)
    return store_end(&at, store_read(entry, buf, cap, out));
  at.view->stats.misses++;
  return store_end(&at, BACKEND_MISS);
}

static int set(BACKEND_KEY_ARGS, const void *bytes, size_t length,
               uint32_t format, uint64_t ttl_ms, STORE_NO_WAIT) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  return store_end(&at, store_put(&at, bytes, length, format, ttl_ms));
}

/* Looking and storing under one lock is what sets this apart from a get and
 * a set: of many that add a key at once, one is told that it did. */
static int add(BACKEND_KEY_ARGS, const void *bytes, size_t length,
               uint32_t format, uint64_t ttl_ms, STORE_NO_WAIT) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  if (store_find(&at))
    return store_end(&at, 0);
  return store_end(&at, store_put(&at, bytes, length, format, ttl_ms));
}

static int remove_one(BACKEND_KEY_ARGS, STORE_NO_WAIT) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  return rc < 0 ? rc : store_end(&at, store_delete(&at));
}

/* To ask is not to use: no reference bit, no count, or whoever watches a cache
 * would change what stays in it. The same goes for info. */
static int exists(BACKEND_KEY_ARGS, STORE_NO_WAIT) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  return rc < 0 ? rc : store_end(&at, store_find(&at) != NULL);
}

/* An existing counter is changed in its place: same size, same TTL, and no
 * allocation that could fail. */
static int add_to(struct target *at, int64_t delta, uint64_t ttl_ms,
                  int64_t *sum) {
  struct entry *entry = store_find(at);
  int64_t value = 0;
  if (entry &&
      (entry->format != BACKEND_INTEGER || entry->length != sizeof value))
    return BACKEND_ETYPE;
  if (entry)
    memcpy(&value, entry_value(entry), sizeof value);
  if (__builtin_add_overflow(value, delta, &value) || value > integer_max ||
      value < -integer_max)
    return BACKEND_ERANGE;
  if (entry) {
    memcpy(entry_value(entry), &value, sizeof value);
    entry->version = ++at->view->store->version;
    entry->referenced = 1; /* it was read, too: a busy counter stays */
    at->view->stats.sets++;
    store_poison(at); /* a refresh may be bringing the old count */
  } else {
    int rc = store_put(at, &value, sizeof value, BACKEND_INTEGER, ttl_ms);
    if (rc < 0)
      return rc;
  }
  *sum = value;
  return 1;
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
static void set_time_left(struct target *at, struct entry *entry,
                          uint64_t ttl_ms) {
  entry->expires_ms = store_expiry(at->now, ttl_ms);
  entry->version = ++at->view->store->version;
}

static int expire(BACKEND_KEY_ARGS, uint64_t ttl_ms, STORE_NO_WAIT) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct entry *entry = store_find(&at);
  if (entry)
    set_time_left(&at, entry, ttl_ms);
  return store_end(&at, entry != NULL);
}

static int info(BACKEND_KEY_ARGS, struct backend_item *out, STORE_NO_WAIT) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct entry *entry = store_find(&at);
  if (entry)
    store_describe(entry, out);
  return store_end(&at, entry ? BACKEND_HIT : BACKEND_MISS);
}

/* A use without the value: it keeps the entry from eviction, and from expiry
 * only when it is given a TTL. */
static int touch(BACKEND_KEY_ARGS, uint64_t ttl_ms, STORE_NO_WAIT) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct entry *entry = store_find(&at);
  if (entry)
    entry->referenced = 1;
  if (entry && ttl_ms != touch_keeps_ttl)
    set_time_left(&at, entry, ttl_ms);
  return store_end(&at, entry != NULL);
}

/* Calls on many keys */

/* All keys are looked at before the first is touched: a call that fails has
 * changed nothing. */
static int check_keys(struct backend *self, uint64_t now, const char *ns,
                      size_t ns_len, const struct backend_slice *keys,
                      size_t n) {
  struct target at;
  assert(n <= INT_MAX);
  for (size_t i = 0; i < n; i++) {
    int rc =
        store_aim(&at, self, now, ns, ns_len, keys[i].data, keys[i].length);
    if (rc < 0)
      return rc;
  }
  return 0;
}

/* Packs the values of the entries that get_many left in items[].owner. */
static void pack(struct backend_item *items, size_t n, char *buf) {
  for (size_t i = 0; i < n; i++) {
    struct entry *entry = items[i].owner;
    if (!entry)
      continue;
    store_read(entry, buf, entry->length, &items[i]);
    buf += entry->length;
  }
}

/* Two passes under one lock: whether all values fit is known only after all
 * were found, and then nothing may be in buf if they do not. */
static int get_many(struct backend *self, uint64_t now, const char *ns,
                    size_t ns_len, const struct backend_slice *keys, size_t n,
                    void *buf, size_t cap, size_t *used,
                    struct backend_item *items, STORE_NO_WAIT) {
  struct view *view = (struct view *)self;
  struct target at;
  int hits = 0, rc = check_keys(self, now, ns, ns_len, keys, n);
  if (rc < 0)
    return rc;
  *used = 0;
  pthread_mutex_lock(&view->store->mutex);
  for (size_t i = 0; i < n; i++) {
    store_aim(&at, self, now, ns, ns_len, keys[i].data, keys[i].length);
    struct entry *entry = store_find(&at);
    items[i] = (struct backend_item){0};
    if (!entry)
      continue;
    store_describe(entry, &items[i]);
    items[i].owner = entry; /* stays alive: the same now for all keys */
    *used += entry->length;
    hits++;
  }
  if (*used <= cap) {
    pack(items, n, buf); /* counts the hits; none if the caller comes again */
    view->stats.misses += n - (size_t)hits;
  }
  for (size_t i = 0; i < n; i++)
    items[i].owner = NULL; /* nothing returned points into the store */
  pthread_mutex_unlock(&view->store->mutex);
  return hits;
}

/* A bad key or a value too large costs the others nothing: a bulk set is many
 * sets under one lock, not one atomic step. */
static int set_many(struct backend *self, uint64_t now, const char *ns,
                    size_t ns_len, const struct backend_slice *keys,
                    const struct backend_slice *values, const uint32_t *formats,
                    size_t n, uint64_t ttl_ms, int *statuses, STORE_NO_WAIT) {
  struct view *view = (struct view *)self;
  struct target at;
  int first = 1;
  pthread_mutex_lock(&view->store->mutex);
  for (size_t i = 0; i < n; i++) {
    int rc =
        store_aim(&at, self, now, ns, ns_len, keys[i].data, keys[i].length);
    if (rc == 0)
      rc = store_put(&at, values[i].data, values[i].length, formats[i], ttl_ms);
    if (rc < 0 && first > 0)
      first = rc;
    if (statuses)
      statuses[i] = rc;
  }
  pthread_mutex_unlock(&view->store->mutex);
  return first;
}

static int remove_many(struct backend *self, uint64_t now, const char *ns,
                       size_t ns_len, const struct backend_slice *keys,
                       size_t n, STORE_NO_WAIT) {
  struct view *view = (struct view *)self;
  struct target at;
  int removed = 0, rc = check_keys(self, now, ns, ns_len, keys, n);
  if (rc < 0)
    return rc;
  pthread_mutex_lock(&view->store->mutex);
  for (size_t i = 0; i < n; i++) {
    store_aim(&at, self, now, ns, ns_len, keys[i].data, keys[i].length);
    removed += store_delete(&at);
  }
  pthread_mutex_unlock(&view->store->mutex);
  return removed;
}

/* Calls on all keys. They read the table bucket by bucket, and stay right under
 * store_drop, which neither moves entries nor shrinks the table. */

/* A walk over all buckets with the mutex held, until the view has no entries
 * left. It costs in proportion to the whole store, not to the prefix. */
static int clear(struct backend *self, uint64_t now, const char *prefix,
                 size_t prefix_len, uint64_t *cursor, STORE_NO_WAIT) {
  struct view *view = (struct view *)self;
  struct store *store = view->store;
  (void)cursor; /* all in one step */
  pthread_mutex_lock(&store->mutex);
  store_poison_prefix(view, prefix, prefix_len);
  for (size_t i = 0; i < store->bucket_count && view->stats.entries > 0; i++) {
    for (struct entry *entry = store->buckets[i], *next; entry; entry = next) {
      next = entry->next; /* dropping one leaves the others where they are */
      if (entry->view != view ||
          !store_begins_with(entry->bytes, entry->key_len, prefix, prefix_len))
        continue;
      if (entry_expired(entry, now))
        view->stats.expired++;
      else
        view->stats.deletes++;
      store_drop(entry);
    }
  }
  pthread_mutex_unlock(&store->mutex);
  return 1;
}

/* Where scan is: entries of this view and prefix, by ascending hash. */
struct walk {
  struct target at; /* only view and now are set */
  const char *prefix;
  size_t prefix_len;
  uint64_t from; /* hashes below were seen by earlier calls */
};

/* Whether scan is to show the entry; drops it if it is past its time. */
static int walk_shows(struct walk *walk, struct entry *entry) {
  if (entry->hash < walk->from || entry->view != walk->at.view)
    return 0;
  if (entry_expired(entry, walk->at.now)) {
    entry->view->stats.expired++;
    store_drop(entry);
    return 0;
  }
  return store_begins_with(entry->bytes, entry->key_len, walk->prefix,
                           walk->prefix_len);
}

/* The cursor is the hash to go on from. The limit never cuts between entries
 * of the same hash, or the cursor could not get past them. */
static int scan_from(struct walk *walk, uint64_t *cursor, size_t limit,
                     backend_scan_fn *fn, void *ud) {
  struct store *store = walk->at.view->store;
  struct backend_item item;
  uint64_t last = 0;
  size_t seen = 0;
  /* Chains are sorted: what this bucket holds below from, walk_shows skips. */
  size_t first = walk->from >> store->hash_shift;
  for (size_t i = first; i < store->bucket_count; i++) {
    for (struct entry *entry = store->buckets[i], *next; entry; entry = next) {
      next = entry->next;
      if (!walk_shows(walk, entry))
        continue;
      *cursor = entry->hash;
      if (seen >= limit && entry->hash != last)
        return (int)seen;
      last = entry->hash;
      seen++;
      store_describe(entry, &item);
      int rc = fn(ud, entry->bytes, entry->key_len, &item);
      *cursor = last + 1; /* 0 after the last hash of all: the end */
      if (rc != 0)
        return rc;
    }
  }
  *cursor = 0;
  return (int)seen;
}

static int scan(struct backend *self, uint64_t now, const char *prefix,
                size_t prefix_len, uint64_t *cursor, size_t limit,
                backend_scan_fn *fn, void *ud, STORE_NO_WAIT) {
  struct walk walk = {.at = {.view = (struct view *)self, .now = now},
                      .prefix = prefix,
                      .prefix_len = prefix_len,
                      .from = *cursor};
  assert(limit > 0 && limit <= INT_MAX);
  pthread_mutex_lock(&walk.at.view->store->mutex);
  return store_end(&walk.at, scan_from(&walk, cursor, limit, fn, ud));
}

static int raw(struct backend *self, const struct backend_slice *args, size_t n,
               STORE_NO_WAIT) {
  (void)self, (void)args, (void)n;
  return BACKEND_EUNSUPPORTED;
}

/* The view as a whole */

/* A copy under the mutex, so that the numbers fit each other. */
static void stats(struct backend *self, uint64_t now,
                  struct backend_stats *out) {
  struct view *view = (struct view *)self;
  (void)now;
  pthread_mutex_lock(&view->store->mutex);
  *out = view->stats;
  out->max_bytes = view->store->max_bytes;
  pthread_mutex_unlock(&view->store->mutex);
}

/* The caller sees to it that no other call on this view is under way. Leases
 * end first, for their waiters must not outlive the view they wait on; then the
 * entries go, which point to it; and last the reference, which may have been
 * the only thing that kept the store. */
static void close_view(struct backend *self) {
  struct view *view = (struct view *)self;
  store_end_leases(view);
  clear(self, 0, "", 0, NULL, NULL);
  assert(view->stats.entries == 0 && view->stats.bytes == 0);
  store_close(view->store); /* the view's reference */
  free(view);
}

const struct backend_ops store_calls = {
    .name = "memory",
    .get = get,
    .get_many = get_many,
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
    .clear = clear,
    .scan = scan,
    .raw = raw,
    .lease = store_lease,
    .refresh = store_refresh,
    .fill = store_fill,
    .abandon = store_abandon,
    .waiters = store_waiters,
    .valid = store_valid,
    .unwait = store_unwait,
    .stats = stats,
    .close = close_view,
};
