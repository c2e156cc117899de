/* The store: a bounded hash table of entries with CLOCK eviction.
 *
 * Every entry is one malloc'd block and sits in two structures at once:
 *
 * - A chained hash table whose bucket is the TOP bits of the hash and whose
 *   chains are sorted by hash. Read bucket after bucket, the table is one list
 *   sorted by hash, whatever its size: doubling cuts each chain in two, halving
 *   joins neighbours, and a scan's cursor (a hash) survives both.
 * - A ring that the CLOCK hand goes round (Corbato, 1968). A use sets the
 *   entry's reference bit; the hand clears a set bit and evicts at a clear one,
 *   and takes an entry past its time whatever its bit. New entries go in right
 *   behind the hand, so each lives for a full turn at least.
 *
 * Invariants, whenever the mutex is free:
 * - bytes = the costs of all entries + the bucket array, and is <= max_bytes
 *   (but for the smallest array under a bound too small for any entry);
 * - an entry is in the chain of its hash and in the ring, or it is freed;
 * - no two live entries have the same view and joined key;
 * - a key with an entry past its time is as good as absent: store_find, the
 *   one way to an entry by key, drops it on sight.
 *
 * One mutex guards the store and its views. Allocation comes first in every
 * call, so that a call that fails has changed nothing.
 */
#include "memory/internal.h"

#include <stddef.h>
#include <stdlib.h>
#include <sys/random.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

enum {
  HASH_BITS = 64,
  HASH_STACK = 256,  /* joined keys up to this are hashed in one piece */
  MALLOC_HEADER = 8, /* what malloc adds to a block, */
  MALLOC_ALIGN = 16  /* and what the sum is rounded up to */
};

/* Keys */

/* The split between ns and key must not show: short keys are joined on the
 * stack, as one-shot hashing is several times faster than streaming. */
static uint64_t hash_joined(const struct target *at, uint64_t seed) {
  if (target_length(at) <= HASH_STACK) {
    char joined[HASH_STACK];
    store_join(at, joined);
    return XXH3_64bits_withSeed(joined, target_length(at), seed);
  }
  XXH3_state_t state;
  XXH3_INITSTATE(&state); /* reset compares with the seed in it */
  XXH3_64bits_reset_withSeed(&state, seed);
  XXH3_64bits_update(&state, at->ns, at->ns_len);
  XXH3_64bits_update(&state, at->key, at->key_len);
  return XXH3_64bits_digest(&state);
}

int store_aim(struct target *at, BACKEND_KEY_ARGS) {
  if (ns_len > BACKEND_KEY_MAX || key_len > BACKEND_KEY_MAX - ns_len ||
      ns_len + key_len == 0)
    return BACKEND_EINVAL;
  at->view = (struct view *)self;
  at->ns = ns ? ns : ""; /* memcpy and memcmp take no NULL, even for 0 */
  at->key = key ? key : "";
  at->ns_len = ns_len;
  at->key_len = key_len;
  at->now = now;
  at->hash = hash_joined(at, at->view->store->seed + at->view->id);
  return 0;
}

/* Hashes before it locks: the mutex is held for the table's work only. */
int store_begin(struct target *at, BACKEND_KEY_ARGS) {
  int rc = store_aim(at, STORE_KEY);
  if (rc == 0)
    pthread_mutex_lock(&at->view->store->mutex);
  return rc;
}

int store_end(struct target *at, int rc) {
  pthread_mutex_unlock(&at->view->store->mutex);
  return rc;
}

int store_joined_equal(const struct target *at, const char *key,
                       size_t length) {
  return length == target_length(at) && memcmp(key, at->ns, at->ns_len) == 0 &&
         memcmp(key + at->ns_len, at->key, at->key_len) == 0;
}

void store_join(const struct target *at, char *out) {
  memcpy(out, at->ns, at->ns_len);
  memcpy(out + at->ns_len, at->key, at->key_len);
}

uint64_t store_expiry(uint64_t now, uint64_t ttl_ms) {
  if (ttl_ms == BACKEND_TTL_NEVER)
    return 0;
  return ttl_ms > UINT64_MAX - now ? UINT64_MAX : now + ttl_ms;
}

/* The table and the ring */

/* What an entry takes from the bound: its block as malloc rounds it. The block
 * is asked for at its full size, so equal costs can take each other's place. */
static size_t entry_cost(size_t key_len, size_t length) {
  size_t size =
      offsetof(struct entry, bytes) + key_len + length + MALLOC_HEADER;
  return (size + MALLOC_ALIGN - 1) / MALLOC_ALIGN * MALLOC_ALIGN;
}

/* The first link of the chain whose entry has at least this hash. */
static struct entry **find_link(struct store *store, uint64_t hash) {
  struct entry **link = &store->buckets[hash >> store->hash_shift];
  while (*link && (*link)->hash < hash)
    link = &(*link)->next;
  return link;
}

/* Behind the hand in the ring: the hand meets it last of all. */
static void insert(struct store *store, struct entry *entry) {
  struct entry **link = find_link(store, entry->hash);
  size_t cost = entry_cost(entry->key_len, entry->length);
  entry->next = *link;
  *link = entry;
  if (!store->hand)
    store->hand = entry->ring_next = entry->ring_prev = entry;
  entry->ring_next = store->hand;
  entry->ring_prev = store->hand->ring_prev;
  entry->ring_prev->ring_next = entry->ring_next->ring_prev = entry;
  store->entries++;
  store->bytes += cost;
  entry->view->stats.entries++;
  entry->view->stats.bytes += cost;
}

/* The value of the entry goes. */
static void note_drop(struct entry *entry) {
  struct view *view = entry->view;
  if (view->on_drop && entry->format == view->on_drop_format)
    view->on_drop(view->on_drop_ud, entry_value(entry), entry->length);
}

void store_drop(struct entry *entry) {
  note_drop(entry);
  struct store *store = entry->view->store;
  struct entry **link = find_link(store, entry->hash);
  size_t cost = entry_cost(entry->key_len, entry->length);
  store_assert_locked(store);
  while (*link != entry)
    link = &(*link)->next;
  *link = entry->next;
  if (store->hand == entry)
    store->hand = entry->ring_next == entry ? NULL : entry->ring_next;
  entry->ring_prev->ring_next = entry->ring_next;
  entry->ring_next->ring_prev = entry->ring_prev;
  assert(store->bytes >= cost && entry->view->stats.bytes >= cost);
  store->entries--;
  store->bytes -= cost;
  entry->view->stats.entries--;
  entry->view->stats.bytes -= cost;
  free(entry);
}

/* Moves the hand until `bytes` more fit, or nothing is left. Two turns at most:
 * the first clears every reference bit. */
static void make_room(struct store *store, size_t bytes, uint64_t now) {
  while (store->hand && store->bytes + bytes > store->max_bytes) {
    struct entry *entry = store->hand;
    int expired = entry_expired(entry, now);
    if (entry->referenced && !expired) {
      entry->referenced = 0;
      store->hand = entry->ring_next;
      continue;
    }
    if (expired)
      entry->view->stats.expired++;
    else
      entry->view->stats.evictions++;
    store_drop(entry);
  }
}

/* Doubles the buckets once there is an entry for each. Without memory for that
 * the chains just grow longer. */
static void grow(struct store *store) {
  size_t count = store->bucket_count, size = count * sizeof(struct entry *);
  if (store->entries < count || size * 2 > store->max_bytes / STORE_TABLE_SHARE)
    return;
  struct entry **buckets = store->alloc(store->buckets, size * 2);
  if (!buckets)
    return;
  store->buckets = buckets;
  store->bucket_count *= 2;
  store->bytes += size;
  store->hash_shift--;
  for (size_t i = count; i-- > 0;) { /* downwards: 2i is not read any more */
    struct entry *low = buckets[i], **cut = &low;
    while (*cut && (*cut)->hash >> store->hash_shift == 2 * i)
      cut = &(*cut)->next;
    buckets[2 * i + 1] = *cut;
    *cut = NULL;
    buckets[2 * i] = low;
  }
}

/* For a smaller bound. Should realloc fail to shrink a block, the old one does;
 * its tail is then memory that is held and not counted. */
static void halve(struct store *store) {
  size_t count = store->bucket_count / 2, size = count * sizeof(struct entry *);
  for (size_t i = 0; i < count; i++) {
    struct entry *odd = store->buckets[2 * i + 1], **end = &store->buckets[i];
    *end = store->buckets[2 * i];
    while (*end)
      end = &(*end)->next;
    *end = odd;
  }
  struct entry **buckets = store->alloc(store->buckets, size);
  store->buckets = buckets ? buckets : store->buckets;
  store->bucket_count = count;
  store->bytes -= size;
  store->hash_shift++;
}

/* Entries */

struct entry *store_find(struct target *at) {
  struct entry *entry = *find_link(at->view->store, at->hash);
  store_assert_locked(at->view->store);
  for (; entry && entry->hash == at->hash; entry = entry->next) {
    if (entry->view != at->view ||
        !store_joined_equal(at, entry->bytes, entry->key_len))
      continue;
    if (!entry_expired(entry, at->now))
      return entry;
    at->view->stats.expired++;
    store_drop(entry);
    return NULL;
  }
  return NULL;
}

int store_put(struct target *at, const void *bytes, size_t length,
              uint32_t format, uint64_t ttl_ms) {
  struct store *store = at->view->store;
  struct entry *old = store_find(at), *entry = old;
  size_t share = store->max_bytes / STORE_VALUE_SHARE;
  assert(format <= UINT8_MAX);
  if (length > share || entry_cost(target_length(at), length) > share)
    return BACKEND_ETOOLARGE;
  size_t cost = entry_cost(target_length(at), length);
  if (!old || entry_cost(old->key_len, old->length) != cost) {
    entry = store->alloc(NULL, cost - MALLOC_HEADER);
    if (!entry)
      return BACKEND_ENOMEM;
    entry->view = at->view;
    entry->hash = at->hash;
    entry->key_len = (uint32_t)target_length(at);
    entry->length = length;
    entry->referenced = old ? old->referenced : 0;
    store_join(at, entry->bytes);
    if (old)
      store_drop(old); /* before room is made, which might evict it */
    grow(store);       /* may need room of its own */
    make_room(store, cost, at->now);
    assert(store->bytes + cost <= store->max_bytes);
    insert(store, entry);
  } else {
    note_drop(old);
  }
  entry->length = length; /* a block of this cost holds it */
  entry->format = (uint8_t)format;
  entry->version = ++store->version;
  entry->created_ms = at->now;
  entry->expires_ms = store_expiry(at->now, ttl_ms);
  memcpy(entry_value(entry), bytes ? bytes : "", length);
  at->view->stats.sets++;
  store_poison(at);
  return 1;
}

int store_delete(struct target *at) {
  struct entry *entry = store_find(at);
  store_poison(at); /* a load may be bringing what the caller knows is old */
  if (!entry)
    return 0;
  at->view->stats.deletes++;
  store_drop(entry);
  return 1;
}

void store_describe(const struct entry *entry, struct backend_item *out) {
  *out = (struct backend_item){.length = entry->length,
                               .version = entry->version,
                               .expires_ms = entry->expires_ms,
                               .created_ms = entry->created_ms,
                               .format = entry->format};
}

int store_read(struct entry *entry, void *buf, size_t cap,
               struct backend_item *out) {
  store_describe(entry, out);
  entry->referenced = 1;
  if (entry->length > cap)
    return BACKEND_HIT; /* counted when the caller comes with a larger buf */
  if (entry->length > 0)
    memcpy(buf, entry_value(entry), entry->length);
  entry->view->stats.hits++;
  return BACKEND_HIT;
}

/* Views and the store itself */

/* Gives one reference back; views use it, too. */
void store_close(struct store *store) {
  pthread_mutex_lock(&store->mutex);
  assert(store->references > 0);
  size_t left = --store->references;
  pthread_mutex_unlock(&store->mutex);
  if (left > 0)
    return;
  assert(store->entries == 0 && store->lease_count == 0);
  pthread_mutex_destroy(&store->mutex);
  free(store->buckets);
  free(store);
}

int store_view(struct store *store, struct backend **out) {
  pthread_mutex_lock(&store->mutex);
  struct view *view = store->alloc(NULL, sizeof *view);
  if (view) {
    *view = (struct view){.backend = {&store_calls}, .store = store};
    view->id = ++store->views_opened;
    store->references++;
    *out = &view->backend;
  }
  pthread_mutex_unlock(&store->mutex);
  return view ? 0 : BACKEND_ENOMEM;
}

void store_watch_drops(struct backend *self, uint32_t format, store_drop_fn *fn,
                       void *ud) {
  struct view *view = (struct view *)self;
  pthread_mutex_lock(&view->store->mutex);
  view->on_drop = fn;
  view->on_drop_ud = ud;
  view->on_drop_format = format;
  pthread_mutex_unlock(&view->store->mutex);
}

int store_open(struct store **out, size_t max_bytes) {
  struct store *store = calloc(1, sizeof *store);
  if (!store)
    return BACKEND_ENOMEM;
  store->buckets = calloc(STORE_BUCKETS_MIN, sizeof(struct entry *));
  if (!store->buckets || pthread_mutex_init(&store->mutex, NULL) != 0) {
    free(store->buckets);
    free(store);
    return BACKEND_ENOMEM;
  }
  /* Without a random seed (no getrandom) the address has to do. */
  if (getrandom(&store->seed, sizeof store->seed, 0) != sizeof store->seed)
    store->seed = (uint64_t)(uintptr_t)store;
  store->alloc = realloc;
  store->bucket_count = STORE_BUCKETS_MIN;
  store->hash_shift = HASH_BITS - __builtin_ctz(STORE_BUCKETS_MIN);
  store->bytes = STORE_BUCKETS_MIN * sizeof(struct entry *);
  store->max_bytes = max_bytes;
  store->references = 1;
  *out = store;
  return 0;
}

void store_set_alloc(struct store *store, store_alloc_fn *alloc) {
  pthread_mutex_lock(&store->mutex);
  store->alloc = alloc;
  pthread_mutex_unlock(&store->mutex);
}

void store_resize(struct store *store, size_t max_bytes) {
  pthread_mutex_lock(&store->mutex);
  store->max_bytes = max_bytes;
  while (store->bucket_count > STORE_BUCKETS_MIN &&
         store->bucket_count * sizeof(struct entry *) >
             max_bytes / STORE_TABLE_SHARE)
    halve(store);
  make_room(store, 0, 0); /* no clock here: what it takes counts as evicted */
  pthread_mutex_unlock(&store->mutex);
}
