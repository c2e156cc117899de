/* Clearing and scanning: what concerns all keys that begin with something.
 *
 * clear() of everything gives the space a new id. Items carry the id of their
 * time, so all that was there is out of reach at once, whatever there was; the
 * sweep frees it.
 *
 * clear(prefix) writes a mark: the prefix, and a stamp that is newer than every
 * item's so far. As long as there are marks, whoever finds an entry compares
 * its key with them; the sweep frees what they cover, and then the marks. In
 * a small store, for a long prefix, and when all marks are taken, the index is
 * gone through at once instead.
 *
 *   marks: 64 x { version | id, 0: free | stamp | purge | length, prefix }
 *
 * Readers look at marks without a lock: one is written while its id is 0, and
 * its version is raised when it is let go, before it is written again.
 *
 * A scan goes by the order of hashes and stands for its place by four numbers,
 * none of which a split disturbs: shard, the leading bits of the hash, how many
 * of these count, and a home bucket.
 */
#include <stdlib.h>

#include "memory/internal.h"

enum {
  MARKED_BYTES = 4 << 20, /* stores below this have no marks */
  SWEEP_AT_ONCE = 8192,   /* entries */
  CLEAR_BUCKETS = 1024,   /* home buckets that a step of clear, */
  SCAN_BUCKETS = 4096     /* and a call of scan goes through */
};

int mark_covers(const struct store *store, const char *p,
                const struct item *item) {
  for (uint32_t i = 0; i < MARKS_MAX; i++) {
    const struct mark *mark = &store->marks[i];
    uint32_t version;
    int covers;
    do {
      version = load_acquire(&mark->version);
      covers = load_acquire(&mark->id) == item->id;
      if (covers) {
        uint32_t length = load_relaxed(&mark->length);
        const char *key = item_key(p, item);
        covers = length <= MARK_PREFIX && item->key_len >= length &&
                 item->stamp <= load_relaxed(&mark->stamp);
        for (uint32_t n = 0; covers && n < length; n++)
          covers = load_relaxed(&mark->prefix[n]) == load_relaxed(&key[n]);
      }
      fence_acquire();
    } while (load_acquire(&mark->version) != version);
    if (covers)
      return 1;
  }
  return 0;
}

/* ---- clear ---- */

static int is_held(const struct store *store, uint32_t id) {
  for (uint32_t i = 0; i < store->shards_opened; i++)
    if (store->shards[i].held[id].entries > 0)
      return 1;
  return 0;
}

/* Tables by id for twice as many, or none of them. */
static int grow_tables(struct store *store, uint32_t count) {
  size_t before = store->owner_count, more = count - before;
  struct space **owners = realloc(store->owners, count * sizeof *owners);
  if (!owners)
    return 0;
  memset(owners + before, 0, more * sizeof *owners);
  store->owners = owners;
  for (uint32_t i = 0; i < store->shards_opened; i++) {
    struct shard *shard = &store->shards[i];
    struct holding *held = realloc(shard->held, count * sizeof *held);
    if (!held) /* what has grown already does no harm */
      return 0;
    memset(held + before, 0, more * sizeof *held);
    shard->held = held;
  }
  store_charge(
      store, (ptrdiff_t)(more * (sizeof *owners + store->shards_opened *
                                                      sizeof(struct holding))));
  store->owner_count = count;
  return 1;
}

/* One that nobody has and nothing is stored under; 0: there is none. */
static uint32_t take_id(struct store *store) {
  enum { FIRST = 16 };
  uint32_t count = store->owner_count ? store->owner_count * 2 : FIRST;
  for (uint32_t id = 1; id < store->owner_count; id++)
    if (!store->owners[id] && !is_held(store, id))
      return id;
  if (count > IDS_MAX || !grow_tables(store, count))
    return 0;
  return store->owner_count == FIRST ? 1 : store->owner_count / 2;
}

int store_renew(struct store *store, struct space *space) {
  uint32_t before = space->id, id = take_id(store);
  if (id == 0)
    return BACKEND_ENOMEM;
  store->owners[id] = space;
  if (before != 0 && !is_held(store, before))
    store->owners[before] = NULL;
  store_release(&space->id, id);
  return 0;
}

/* The ids whose entries are freed are free, too. */
static void free_ids(struct store *store, const struct space *space) {
  for (uint32_t id = 1; id < store->owner_count; id++)
    if (store->owners[id] == space && id != space->id && !is_held(store, id))
      store->owners[id] = NULL;
}

/* No item that comes later has a stamp that is not larger. */
uint64_t store_newest_stamp(struct store *store, uint64_t now) {
  uint64_t stamp = 0;
  for (uint32_t i = 0; i < store->shards_opened; i++) {
    uint64_t own = store_stamp(&store->shards[i], now);
    stamp = own > stamp ? own : stamp;
  }
  for (uint32_t i = 0; i < store->shards_opened; i++)
    store->shards[i].stamp = stamp;
  return stamp;
}

/* All shards are locked: 1; 0: no mark is to be had. */
static int put_mark(struct store *store, struct space *space, uint64_t now,
                    const char *prefix, size_t length) {
  uint32_t i = 0;
  if (store->max_bytes < MARKED_BYTES || length > MARK_PREFIX)
    return 0;
  if (!store->marks) {
    struct mark *marks = calloc(MARKS_MAX, sizeof *marks);
    if (!marks)
      return 0;
    store_charge(store, MARKS_MAX * sizeof *marks);
    store_release(&store->marks, marks);
  }
  while (i < MARKS_MAX && store->marks[i].id != 0)
    i++;
  if (i == MARKS_MAX)
    return 0;
  struct mark *mark = &store->marks[i];
  fence_release();
  store_relaxed(&mark->stamp, store_newest_stamp(store, now));
  store_relaxed(&mark->length, (uint32_t)length);
  bytes_in(mark->prefix, prefix, length);
  mark->purge = store->purge + 1;
  store_release(&mark->id, space->id);
  store_release(&store->mark_count, store->mark_count + 1);
  return 1;
}

/* Near copies are out of date when the clear has happened, not before. */
static int clear_by_mark(struct view *view, uint64_t now, const char *prefix,
                         size_t length) {
  struct store *store = view->store;
  struct space *space = view->space;
  pthread_mutex_lock(&store->mutex);
  store_lock_all(store);
  free_ids(store, space);
  int done = length == 0 ? store_renew(store, space) == 0
                         : put_mark(store, space, now, prefix, length);
  if (done) {
    store_relaxed(&store->purge, store->purge + 1);
    store_poison_prefix(store, space, prefix, length);
    store_release(&space->words[0], space->words[0] + 1);
  }
  store_unlock_all(store);
  pthread_mutex_unlock(&store->mutex);
  return done;
}

/* ---- scan ---- */

/* Where a scan stands. */
struct walk {
  struct view *view;
  uint64_t now;
  const char *prefix;
  size_t prefix_len;
  backend_scan_fn *fn;
  void *ud;
  uint32_t shard, from, depth, bucket; /* from: DIRECTORY_BITS of the hash */
  size_t seen;
  int clearing; /* what is seen is dropped, not shown */
  int stopped;  /* what fn returned */
};

static uint64_t pack_walk(const struct walk *w) {
  return (((uint64_t)w->shard << DIRECTORY_BITS | w->from) << 5 | w->depth)
             << 7 |
         (uint64_t)w->bucket << 1 | 1;
}

static void unpack_walk(struct walk *w, uint64_t cursor) {
  w->bucket = cursor >> 1 & (PAGE_BUCKETS - 1);
  w->depth = cursor >> 7 & 31;
  w->from = cursor >> 12 & ((1u << DIRECTORY_BITS) - 1);
  w->shard = (uint32_t)(cursor >> (12 + DIRECTORY_BITS));
}

static void visit_slot(struct walk *w, struct shard *shard, uint64_t home,
                       struct place *place) {
  struct store *store = shard->store;
  const char *p = log_item(shard, place->bucket->items[place->slot]);
  struct item item;
  item_read(p, &item);
  const char *key = item_key(p, &item);
  if (item.id != w->view->space->id ||
      !store_begins_with(key, item.key_len, w->prefix, w->prefix_len) ||
      item_hash(store, p, &item) % PAGE_BUCKETS != home)
    return;
  int gone = entry_gone(store, p, &item, w->now);
  if (!gone && w->clearing)
    gone = STORE_CLEARED;
  if (gone) {
    entry_drop(shard, place, gone);
    return;
  }
  struct backend_item out;
  item_read_extra(store, p, &item);
  store_describe(&item, &out);
  w->seen++;
  w->stopped = w->fn(w->ud, key, item.key_len, &out);
}

/* The entries whose home is that bucket of that page. */
static void visit_home(struct walk *w, struct shard *shard, struct page *page,
                       uint32_t home) {
  for (unsigned probe = 0; probe < PROBES && !w->stopped; probe++) {
    struct place place = {index_bucket(page, home, probe),
                          index_bucket(page, home, 0), 0};
    int passed = place.bucket->passed;
    for (; place.slot < BUCKET_SLOTS && !w->stopped; place.slot++)
      if (place.bucket->tags[place.slot] != 0)
        visit_slot(w, shard, home, &place);
    if (!passed)
      break;
  }
}

/* How many leading bits all hashes of the page at `from` have in common. */
static uint32_t depth_at(const struct shard *shard, uint32_t from) {
  const struct directory *d = shard->directory;
  uint32_t at = from >> (DIRECTORY_BITS - d->bits), spare = 0;
  while (spare < d->bits &&
         d->pages[(at >> spare ^ 1) << spare] == d->pages[at])
    spare++;
  return d->bits - spare;
}

/* One home bucket, in each of the pages that its page was split into since. */
static void visit_bucket(struct walk *w, struct shard *shard) {
  uint32_t end = w->from + (1u << (DIRECTORY_BITS - w->depth));
  for (uint32_t at = w->from; at < end && !w->stopped;
       at += 1u << (DIRECTORY_BITS - depth_at(shard, at))) {
    const struct directory *d = shard->directory;
    uint32_t page = d->pages[at >> (DIRECTORY_BITS - d->bits)];
    visit_home(w, shard, &shard->store->pages[page], w->bucket);
  }
  if (w->stopped)
    return; /* this one again: it was not seen to its end */
  if (++w->bucket == PAGE_BUCKETS) {
    w->bucket = 0;
    w->from = end;
  }
}

static int at_end(const struct walk *w) {
  return w->shard >= store_shard_count(w->view->store);
}

/* Until the next page begins, or the limit is reached. */
static size_t visit_page(struct walk *w, size_t limit) {
  struct shard *shard = &w->view->store->shards[w->shard];
  size_t buckets = 0;
  pthread_mutex_lock(&shard->mutex);
  if (w->bucket == 0)
    w->depth = depth_at(shard, w->from);
  do {
    visit_bucket(w, shard);
    buckets++;
  } while (w->bucket != 0 && w->seen < limit && !w->stopped);
  pthread_mutex_unlock(&shard->mutex);
  if (w->from >> DIRECTORY_BITS) {
    w->from = 0;
    w->shard++;
  }
  return buckets;
}

int store_scan(struct backend *self, uint64_t now, const char *prefix,
               size_t prefix_len, uint64_t *cursor, size_t limit,
               backend_scan_fn *fn, void *ud, STORE_NO_WAIT) {
  struct walk walk = {.view = (struct view *)self,
                      .now = now,
                      .prefix = prefix,
                      .prefix_len = prefix_len,
                      .fn = fn,
                      .ud = ud};
  assert(limit > 0);
  if (load_relaxed(walk.view->store->alive) == 0)
    return BACKEND_ECLOSED;
  unpack_walk(&walk, *cursor);
  for (size_t buckets = 0; !at_end(&walk) && walk.seen < limit &&
                           buckets < SCAN_BUCKETS && !walk.stopped;)
    buckets += visit_page(&walk, limit);
  *cursor = at_end(&walk) ? 0 : pack_walk(&walk);
  return walk.stopped ? walk.stopped : (int)walk.seen;
}

/* ---- clear, step by step ---- */

/* By the order of hashes, like a scan: in the log what is not yet cleared may
 * move to where the clear has been. 1 at the end. */
static int clear_step(struct view *view, uint64_t now, const char *prefix,
                      size_t length, uint64_t *cursor) {
  struct walk walk = {.view = view,
                      .now = now,
                      .prefix = prefix,
                      .prefix_len = length,
                      .clearing = 1};
  if (*cursor == 0)
    store_poison_prefix(view->store, view->space, prefix, length);
  unpack_walk(&walk, *cursor);
  for (size_t buckets = 0; !at_end(&walk) && buckets < CLEAR_BUCKETS;)
    buckets += visit_page(&walk, SIZE_MAX);
  *cursor = pack_walk(&walk);
  if (!at_end(&walk))
    return 0;
  __atomic_fetch_add(&view->space->words[0], 1, __ATOMIC_RELEASE);
  return 1;
}

int store_clear(struct backend *self, uint64_t now, const char *prefix,
                size_t prefix_len, uint64_t *cursor, STORE_NO_WAIT) {
  struct view *view = (struct view *)self;
  uint64_t own = 0;
  if (load_relaxed(view->store->alive) == 0)
    return BACKEND_ECLOSED;
  if (!cursor && load_relaxed(&view->store->mark_count) == MARKS_MAX)
    store_sweep_some(view->store, now, SIZE_MAX); /* a pass frees most */
  if (!cursor || *cursor == 0) {
    if (clear_by_mark(view, now, prefix, prefix_len)) {
      store_sweep_some(view->store, now, SWEEP_AT_ONCE);
      return 1;
    }
  }
  if (cursor)
    return clear_step(view, now, prefix, prefix_len, cursor);
  while (!clear_step(view, now, prefix, prefix_len, &own)) {
  }
  return 1;
}
