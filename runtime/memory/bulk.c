/* The calls of a view: on one key, on many, and leases. Every call takes the
 * store's mutex once, works with the steps of store.c and lets it go.
 *
 * A lease is a load in flight: who asked first holds its token, who asks later
 * hangs a wait on it. Invariants, whenever the mutex is free:
 * - a key has at most one lease that is not poisoned, and then no live entry;
 * - a wait hangs on one lease exactly while its prev is set; it is the
 *   caller's memory, and who takes it off the list (fill, abandon, close, or
 *   unwait) is the only one who answers it;
 * - wake is called with the mutex free, and after it the wait may be gone.
 */
#include "memory/internal.h"

#include <limits.h>
#include <stddef.h>
#include <stdlib.h>

static const uint64_t touch_keeps_ttl = UINT64_MAX;
static const int64_t integer_max = INT64_C(1) << 53; /* exact as a double */

/* Calls on one key: what each promises stands in backend.h. None waits, so the
 * answer is always the return value. */

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
    entry->referenced = 1;  /* it was read, too: a busy counter stays */
    at->view->stats.sets++; /* and nothing to poison: the key was not missing */
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

/* Unlike the calls that write a value these poison no lease: what a load
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
    pack(items, n, buf);
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
                    size_t n, uint64_t ttl_ms, STORE_NO_WAIT) {
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

static int begins_with(const char *key, size_t key_len, const char *prefix,
                       size_t prefix_len) {
  return prefix_len == 0 ||
         (key_len >= prefix_len && memcmp(key, prefix, prefix_len) == 0);
}

/* A load of a cleared key would bring back what the caller wanted gone. */
static void poison_prefix(struct view *view, const char *prefix,
                          size_t prefix_len) {
  struct store *store = view->store;
  for (size_t i = 0; store->lease_count > 0 && i < STORE_LEASE_BUCKETS; i++)
    for (struct lease *lease = store->leases[i]; lease; lease = lease->next)
      if (lease->view == view &&
          begins_with(lease->key, lease->key_len, prefix, prefix_len))
        lease->poisoned = 1;
}

/* A walk over all buckets with the mutex held, until the view has no entries
 * left. It costs in proportion to the whole store, not to the prefix. */
static int clear(struct backend *self, uint64_t now, const char *prefix,
                 size_t prefix_len, STORE_NO_WAIT) {
  struct view *view = (struct view *)self;
  struct store *store = view->store;
  pthread_mutex_lock(&store->mutex);
  poison_prefix(view, prefix, prefix_len);
  for (size_t i = 0; i < store->bucket_count && view->stats.entries > 0; i++) {
    for (struct entry *entry = store->buckets[i], *next; entry; entry = next) {
      next = entry->next; /* dropping one leaves the others where they are */
      if (entry->view != view ||
          !begins_with(entry->bytes, entry->key_len, prefix, prefix_len))
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
  return begins_with(entry->bytes, entry->key_len, walk->prefix,
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

/* Leases. They are no part of the bound: there are as many as tasks that load,
 * and to refuse one for room would only send a stampede to the loader. */

static struct lease **lease_bucket(struct store *store, uint64_t hash) {
  return &store->leases[hash & (STORE_LEASE_BUCKETS - 1)];
}

/* The link to the key's lease with this token, or with token 0 to the one that
 * is not poisoned. The link holds NULL when there is none. */
static struct lease **find_lease(const struct target *at, uint64_t token) {
  struct lease **link = lease_bucket(at->view->store, at->hash);
  store_assert_locked(at->view->store);
  for (; *link; link = &(*link)->next) {
    struct lease *lease = *link;
    if (lease->hash == at->hash && lease->view == at->view &&
        (token ? lease->token == token : !lease->poisoned) &&
        store_joined_equal(at, lease->key, lease->key_len))
      break;
  }
  return link;
}

void store_poison(const struct target *at) {
  if (at->view->store->lease_count == 0)
    return;
  struct lease *lease = *find_lease(at, 0);
  if (lease)
    lease->poisoned = 1;
}

/* Takes a lease out and gives its waits back, oldest first. From here on
 * unwait has no hold on them. */
static struct backend_wait *end_lease(struct store *store,
                                      struct lease **link) {
  struct lease *lease = *link;
  struct backend_wait *waits = NULL, *wait;
  while ((wait = lease->waits)) {
    lease->waits = wait->next;
    wait->prev = NULL;
    wait->next = waits;
    waits = wait;
  }
  *link = lease->next;
  free(lease);
  assert(store->lease_count > 0);
  store->lease_count--;
  return waits;
}

/* Mutex free: the caller's code runs here. */
static void wake_all(struct backend_wait *wait, int status, const void *bytes,
                     const struct backend_item *item) {
  while (wait) {
    struct backend_wait *next = wait->next; /* wake may free the wait */
    wait->next = NULL;
    wait->wake(wait, status, bytes, item);
    wait = next;
  }
}

/* At the front, so that neither queueing nor unwait has to look for an end;
 * end_lease turns the order round. */
static void push_wait(struct lease *lease, struct backend_wait *wait) {
  assert(wait->wake);
  wait->next = lease->waits;
  wait->prev = &lease->waits;
  if (wait->next)
    wait->next->prev = &wait->next;
  lease->waits = wait;
}

/* A missing key: the caller loads it, or waits for who does. */
static int take_lease(struct target *at, struct backend_item *out,
                      struct backend_wait *wait) {
  struct store *store = at->view->store;
  struct lease *lease = *find_lease(at, 0);
  *out = (struct backend_item){0};
  if (lease) {
    out->owner = lease->owner;
    if (wait)
      push_wait(lease, wait);
    at->view->stats.misses++;
    return BACKEND_WAIT;
  }
  lease = store->alloc(NULL, sizeof *lease + target_length(at));
  if (!lease)
    return BACKEND_ENOMEM;
  struct lease **bucket = lease_bucket(store, at->hash);
  *lease = (struct lease){.next = *bucket,
                          .view = at->view,
                          .hash = at->hash,
                          .token = ++store->token,
                          .owner = wait ? wait->owner : NULL,
                          .key_len = (uint32_t)target_length(at)};
  store_join(at, lease->key);
  *bucket = lease;
  store->lease_count++;
  out->token = lease->token;
  out->owner = lease->owner;
  at->view->stats.misses++;
  return BACKEND_TOKEN;
}

/* Looking and taking the lease are one step under the mutex: of any number of
 * callers that miss at once exactly one gets the token. */
static int lease(BACKEND_KEY_ARGS, void *buf, size_t cap,
                 struct backend_item *out, struct backend_wait *wait) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct entry *entry = store_find(&at);
  return store_end(&at, entry ? store_read(entry, buf, cap, out)
                              : take_lease(&at, out, wait));
}

/* The lease ends before the value is stored, as the put would poison it. The
 * waiters get the caller's bytes, so they get them even if the store does
 * not. */
static int fill(BACKEND_KEY_ARGS, uint64_t token, const void *bytes,
                size_t length, uint32_t format, uint64_t ttl_ms) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct lease **link = token ? find_lease(&at, token) : NULL;
  if (!link || !*link)
    return store_end(&at, 0);
  int poisoned = (*link)->poisoned;
  struct backend_wait *waits = end_lease(at.view->store, link);
  struct backend_item item = {.length = length,
                              .expires_ms = store_expiry(now, ttl_ms),
                              .created_ms = now,
                              .format = format};
  rc = poisoned ? 0 : store_put(&at, bytes, length, format, ttl_ms);
  if (rc == 1)
    item.version = at.view->store->version; /* put took the last one */
  store_end(&at, rc);
  wake_all(waits, BACKEND_HIT, bytes, &item);
  return rc;
}

static int abandon(BACKEND_KEY_ARGS, uint64_t token, const char *message,
                   size_t message_len) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct lease **link = token ? find_lease(&at, token) : NULL;
  if (!link || !*link)
    return store_end(&at, 0);
  struct backend_wait *waits = end_lease(at.view->store, link);
  store_end(&at, 1);
  struct backend_item item = {.length = message ? message_len : 0};
  wake_all(waits, message ? BACKEND_ELOAD : BACKEND_MISS, message, &item);
  return 1;
}

static int waiters(BACKEND_KEY_ARGS, uint64_t token) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct lease **link = token ? find_lease(&at, token) : NULL;
  if (!link || !*link)
    return store_end(&at, -1);
  int count = 0;
  for (struct backend_wait *wait = (*link)->waits; wait; wait = wait->next)
    count++;
  return store_end(&at, count);
}

/* Whoever clears prev answers the wait: fill, abandon and close do so under
 * the mutex before they wake, so a 0 here means wake has come or will. */
static int unwait(struct backend *self, struct backend_wait *wait) {
  struct view *view = (struct view *)self;
  pthread_mutex_lock(&view->store->mutex);
  int queued = wait->prev != NULL;
  if (queued) {
    *wait->prev = wait->next;
    if (wait->next)
      wait->next->prev = wait->prev;
    wait->prev = NULL;
    wait->next = NULL;
  }
  pthread_mutex_unlock(&view->store->mutex);
  return queued;
}

/* Ends every load of a view that closes. Locks and unlocks by itself. */
static void end_leases(struct view *view) {
  static const char message[] = "closed";
  const struct backend_item item = {.length = sizeof message - 1};
  struct store *store = view->store;
  struct backend_wait *waits = NULL, **end = &waits;
  pthread_mutex_lock(&store->mutex);
  for (size_t i = 0; i < STORE_LEASE_BUCKETS; i++) {
    for (struct lease **link = &store->leases[i]; *link;) {
      if ((*link)->view != view) {
        link = &(*link)->next;
        continue;
      }
      *end = end_lease(store, link); /* *link is the one after it now */
      while (*end)
        end = &(*end)->next;
    }
  }
  pthread_mutex_unlock(&store->mutex);
  wake_all(waits, BACKEND_ELOAD, message, &item);
}

/* The view as a whole */

static void stats(struct backend *self, uint64_t now,
                  struct backend_stats *out) {
  struct view *view = (struct view *)self;
  (void)now;
  pthread_mutex_lock(&view->store->mutex);
  *out = view->stats;
  out->max_bytes = view->store->max_bytes;
  pthread_mutex_unlock(&view->store->mutex);
}

/* The caller sees to it that no other call on this view is under way. */
static void close_view(struct backend *self) {
  struct view *view = (struct view *)self;
  end_leases(view);
  clear(self, 0, "", 0, NULL);
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
    .lease = lease,
    .fill = fill,
    .abandon = abandon,
    .waiters = waiters,
    .unwait = unwait,
    .stats = stats,
    .close = close_view,
};
