/* Eviction: S3-FIFO (Yang et al., SOSP 2023) on segments.
 *
 *   new key --> [ small queue ] --used enough--> [ main queue ] <--.
 *      |              |                               |            | used: back
 *      |              '--> ghost, gone                '------------'  to the
 * head,
 *      '-- was a ghost lately ----------> main        '--> gone       one use
 * less
 *
 * When a segment is wanted and the bound allows none, the tail of one queue is
 * emptied, item by item: the small queue's while that has more than its share
 * of the room, else the main one's. The share, and how many uses take an entry
 * on to the main queue, are those of a policy that shadow.c chooses. A segment
 * goes before the tails do if all its entries are past their time, or if a good
 * part of its bytes is dead: then what is live moves to the head of its queue,
 * and nothing is lost.
 *
 * Uses are the two bits in an entry's bucket, which readers raise; to evict a
 * segment means to read its items in order, and the bucket of each. These are
 * fetched ahead, BATCH at a time.
 *
 * Work is bounded: a segment is at most 128 KiB, and after a dozen (more, where
 * they are small) whose survivors left no room the next is emptied whatever its
 * uses (but for pinned entries, which are at most half of a shard).
 */
#include <sched.h>

#include "memory/internal.h"

enum {
  BATCH = 16,
  PATIENCE = 12,             /* segments that may yield nothing, */
  PATIENT_BYTES = 256 << 10, /* or so many bytes of small ones, */
  TRIES = 1000,              /* and times to try another shard's mutex */
  DEAD_SHARE = 4,            /* clean a segment once 1/4 of it is dead, */
  DEAD_ALL = 8,              /* if 1/8 of all is */
  DEAD_EARLY = 2             /* before the bound is reached: half, of all too */
};

enum how { FROM_SMALL, FROM_MAIN, CLEAN, FORCE, DISCARD };

struct batch {
  unsigned count;
  uint32_t offsets[BATCH];
  uint64_t hashes[BATCH];
  struct item items[BATCH];
};

/* ---- one entry ---- */

void entry_tell(const struct store *store, const struct item *item,
                const char *key, int reason, const void *value) {
  struct space *space = store->owners[item->id];
  if (!space)
    return;
  if (reason == STORE_SIZE)
    stripe_add(space, evictions, 1);
  else if (reason == STORE_EXPIRED)
    stripe_add(space, expired, 1);
  else if (reason != STORE_REPLACED)
    stripe_add(space, deletes, 1);
  for (struct view *view = space->views; view; view = view->next)
    if (view->watch)
      view->watch(view->watch_ud, reason, key, item->key_len, item->format,
                  value, item_length(item));
}

void entry_count(struct shard *shard, const struct item *item, int sign) {
  struct holding *held = &shard->held[item->id];
  uint64_t bytes = (uint64_t)ITEM_HEAD + item_extra(item) + item->key_len +
                   item->weight + item_length(item);
  if (sign < 0)
    bytes = -bytes;
  held->entries += (uint64_t)(int64_t)sign;
  held->bytes += bytes;
  store_relaxed(&shard->entries, shard->entries + (uint64_t)(int64_t)sign);
  if (item->flags & ITEM_PINNED)
    shard->pinned += bytes;
  if (item->weight)
    store_charge(shard->store, sign * (ptrdiff_t)item->weight);
}

/* What leaves is counted here, and watchers are told, replaced or not. */
void entry_leave(struct shard *shard, uint32_t offset, struct item *item,
                 int reason) {
  const char *p = log_item(shard, offset), *key = item_key(p, item);
  item_read_extra(shard->store, p, item);
  entry_tell(shard->store, item, key, reason,
             item->flags & ITEM_CHAINED ? NULL : key + item->key_len);
  entry_count(shard, item, -1);
  log_forget(shard, offset, item);
}

void entry_drop(struct shard *shard, const struct place *place, int reason) {
  uint32_t offset = place->bucket->items[place->slot];
  struct item item;
  item_read(log_item(shard, offset), &item);
  index_remove(place);
  entry_leave(shard, offset, &item, reason);
}

int entry_gone(const struct store *store, const char *p,
               const struct item *item, uint64_t now) {
  const struct space *space = store->owners[item->id];
  if (!space || item->id != load_relaxed(&space->id))
    return STORE_CLEARED;
  if (item_expired(item, now))
    return STORE_EXPIRED;
  return load_relaxed(&store->mark_count) > 0 && mark_covers(store, p, item)
             ? STORE_CLEARED
             : 0;
}

/* ---- a segment ---- */

/* The next live items of a segment, from *at on, with their buckets on the
 * way. */
static void read_batch(struct shard *shard, uint32_t start, uint32_t used,
                       uint32_t *at, struct batch *batch) {
  struct store *store = shard->store;
  batch->count = 0;
  while (*at < used && batch->count < BATCH) {
    unsigned i = batch->count;
    const char *p = log_item(shard, start + *at);
    item_read(p, &batch->items[i]);
    batch->offsets[i] = start + *at;
    *at += (uint32_t)item_size(&batch->items[i]);
    if (batch->items[i].flags & ITEM_DEAD)
      continue;
    batch->count++;
    batch->hashes[i] = item_hash(store, p, &batch->items[i]);
    struct page *page = index_page(store, shard->directory, batch->hashes[i]);
    __builtin_prefetch(index_bucket(page, batch->hashes[i], 0), 1);
  }
}

/* To the head of a queue, with so many uses. Without a segment for it, which
 * the reserve should be, it goes. One with a segment wider than others is alone
 * there and takes it along. */
static void move(struct shard *shard, const struct place *place,
                 const struct item *item, uint32_t state, unsigned uses) {
  uint32_t victim = shard->victim;
  if (shard->segments[victim].more > 0) {
    shard->victim = NONE;
    log_requeue(shard, victim, state);
    index_set_uses(place, uses);
  } else if (log_move(shard, place, state, item, 0))
    index_set_uses(place, uses);
  else
    entry_drop(shard, place, STORE_SIZE);
}

/* An entry of a segment that is being emptied. */
static void judge(struct shard *shard, const struct place *place, uint64_t hash,
                  const struct item *item, enum how how, uint32_t state) {
  const struct policy *policy =
      &store_policies[load_relaxed(&shard->store->policy)];
  unsigned uses = index_uses(place);
  if (how == CLEAN) {
    move(shard, place, item, state, uses);
  } else if (item->flags & ITEM_PINNED && how != DISCARD) {
    move(shard, place, item, SEGMENT_MAIN, uses);
  } else if (how == FROM_SMALL && uses >= policy->promote) {
    move(shard, place, item, SEGMENT_MAIN, 0);
  } else if (how == FROM_MAIN && uses > 0) {
    move(shard, place, item, SEGMENT_MAIN, uses - 1);
  } else {
    if (how == FROM_SMALL)
      ghost_add(shard, hash);
    entry_drop(shard, place, STORE_SIZE);
  }
}

static void empty_segment(struct shard *shard, uint32_t number, enum how how,
                          uint64_t now) {
  struct store *store = shard->store;
  uint32_t start = number * store->segment_bytes, at = 0;
  uint32_t state = shard->segments[number].state;
  uint32_t used = shard->segments[number].used;
  struct batch batch;
  shard->victim = number;
  log_unlink_segment(shard, number);
  while (at < used) {
    read_batch(shard, start, used, &at, &batch);
    for (unsigned i = 0; i < batch.count; i++) {
      const struct item *item = &batch.items[i];
      struct place place;
      if (!index_find_item(shard, batch.hashes[i], batch.offsets[i], &place))
        continue; /* dead since, by the eviction of a neighbour */
      int gone =
          entry_gone(store, log_item(shard, batch.offsets[i]), item, now);
      if (gone)
        entry_drop(shard, &place, gone);
      else
        judge(shard, &place, batch.hashes[i], item, how, state);
    }
  }
  if (shard->victim == NONE) /* it is in a queue again */
    return;
  shard->victim = NONE;
  log_free_segment(shard, number);
}

size_t evict_dead(struct shard *shard, uint32_t number, uint64_t now) {
  struct store *store = shard->store;
  struct segment *segment = &shard->segments[number];
  uint32_t start = number * store->segment_bytes, at = 0;
  uint64_t first = UINT64_MAX;
  size_t looked = 0;
  uint32_t state = segment->state;
  while (at < segment->used && segment->state == state) {
    uint32_t offset = start + at;
    const char *p = log_item(shard, offset);
    struct item item;
    struct place place;
    item_read(p, &item);
    at += (uint32_t)item_size(&item);
    looked++;
    if (item.flags & ITEM_DEAD)
      continue;
    int gone = entry_gone(store, p, &item, now);
    if (gone &&
        index_find_item(shard, item_hash(store, p, &item), offset, &place))
      entry_drop(shard, &place, gone); /* may free the segment */
    else if (!gone && item.expires_ms != 0 && item.expires_ms < first)
      first = item.expires_ms;
  }
  if (segment->state == state)
    segment->first_expiry = first;
  return looked;
}

/* ---- which one ---- */

/* A segment outside the queues' order that is cheap to have back: one of
 * nothing but expired entries, else the one with most dead bytes, if these are
 * at least 1/share of it. */
static uint32_t find_cheap(struct shard *shard, unsigned share, uint64_t now) {
  uint32_t best = NONE, most = shard->store->segment_bytes / share;
  for (uint32_t i = 0; i < shard->segment_count; i++) {
    const struct segment *segment = &shard->segments[i];
    if (segment->state != SEGMENT_SMALL && segment->state != SEGMENT_MAIN)
      continue;
    if (segment->last_expiry <= now && segment->used > 0)
      return i;
    if (i == shard->small.head || i == shard->main.head)
      continue;
    if (segment->used - segment->live > most) {
      best = i;
      most = segment->used - segment->live;
    }
  }
  return best;
}

static int is_small_over(const struct shard *shard) {
  const struct policy *policy =
      &store_policies[load_relaxed(&shard->store->policy)];
  uint64_t all = shard->small.count + shard->main.count;
  if (shard->small.count == 0 || shard->main.count == 0)
    return shard->small.count > 0;
  return shard->small.count * UINT64_C(1000) > all * policy->small_permille;
}

/* Empties one segment: 1; 0: there is none. */
static int evict_segment(struct shard *shard, uint64_t now, int force) {
  size_t queued = (size_t)(shard->small.count + shard->main.count) *
                  shard->store->segment_bytes;
  shard_assert_locked(shard);
  if (shard->dead > queued / DEAD_ALL || shard->first_expiry <= now) {
    uint32_t cheap = find_cheap(shard, DEAD_SHARE, now);
    if (cheap != NONE) {
      empty_segment(shard, cheap, CLEAN, now);
      return 1;
    }
  }
  if (queued == 0)
    return 0;
  int small = is_small_over(shard);
  enum how how = force ? FORCE : small ? FROM_SMALL : FROM_MAIN;
  empty_segment(shard, small ? shard->small.tail : shard->main.tail, how, now);
  return 1;
}

/* ---- room ---- */

static unsigned patience(const struct store *store) {
  return PATIENCE + PATIENT_BYTES / store->segment_bytes;
}

static int fits(const struct store *store, size_t bytes) {
  return load_relaxed(&store->used) + bytes +
             RESERVE * (size_t)store->segment_bytes <=
         load_relaxed(&store->max_bytes);
}

/* The shard to take from: its own, unless that has much less than others. */
static struct shard *find_giver(struct shard *shard) {
  struct store *store = shard->store;
  size_t own = (size_t)shard->segments_used * store->segment_bytes;
  struct shard *most = shard;
  uint32_t segments = shard->segments_used;
  if (own >= store_fair(store) / 4 * 3)
    return shard;
  for (uint32_t i = 0; i < store_shard_count(store); i++) {
    uint32_t others = load_relaxed(&store->shards[i].segments_used);
    if (others > segments) {
      most = &store->shards[i];
      segments = others;
    }
  }
  return most;
}

static void evict_from(struct shard *giver, uint64_t now, int force) {
  giver->full = 1;
  evict_segment(giver, now, force);
}

/* From another shard, if its mutex can be had. */
static int evict_elsewhere(struct shard *giver, uint64_t now, int force) {
  if (pthread_mutex_trylock(&giver->mutex) != 0) {
    sched_yield();
    return 0;
  }
  evict_from(giver, now, force);
  pthread_mutex_unlock(&giver->mutex);
  return 1;
}

static void fit_shadows(struct shard *shard) {
  struct store *store = shard->store;
  uint64_t entries = 0;
  for (uint32_t i = 0; i < store_shard_count(store); i++)
    entries += load_relaxed(&store->shards[i].entries);
  shadow_fit(store, entries);
}

/* A segment with much that is dead costs nothing to have back. */
static void clean_early(struct shard *shard, uint64_t now) {
  size_t queued = (size_t)(shard->small.count + shard->main.count) *
                  shard->store->segment_bytes;
  uint32_t cheap = shard->dead > queued / DEAD_EARLY
                       ? find_cheap(shard, DEAD_EARLY, now)
                       : NONE;
  if (cheap != NONE)
    empty_segment(shard, cheap, CLEAN, now);
}

/* A shard whose mutex cannot be had for long is passed over, for its own. */
int evict_for(struct shard *shard, size_t bytes, uint64_t now) {
  struct store *store = shard->store;
  clean_early(shard, now);
  if (fits(store, bytes))
    return 1;
  fit_shadows(shard);
  for (unsigned fruitless = 0, busy = 0; !fits(store, bytes);) {
    struct shard *giver = busy < TRIES ? find_giver(shard) : shard;
    unsigned most = load_relaxed(&giver->segments_used) + 8;
    size_t before = load_relaxed(&store->used);
    if (giver == shard) {
      evict_from(giver, now, fruitless >= patience(store));
    } else if (!evict_elsewhere(giver, now, fruitless >= patience(store))) {
      busy++;
      continue;
    }
    fruitless = load_relaxed(&store->used) < before ? 0 : fruitless + 1;
    if (fruitless > most)
      return 0;
  }
  return 1;
}

int evict_more(struct shard *shard, uint64_t now) {
  uint32_t before = shard->segments_used;
  shard->full = 1;
  for (uint32_t n = 0; n <= before + PATIENCE; n++)
    if (!evict_segment(shard, now, n >= PATIENCE))
      return 0;
    else if (shard->segments_used < before)
      return 1;
  return 0;
}

/* More may be pinned than the bound now allows. */
static void discard_pinned(struct shard *shard) {
  size_t most = store_fair(shard->store) / 2;
  pthread_mutex_lock(&shard->mutex);
  while (shard->main.count > 0 &&
         (!fits(shard->store, 0) || shard->pinned > most))
    empty_segment(shard, shard->main.tail, DISCARD, 0);
  while (shard->small.count > 0 && !fits(shard->store, 0))
    empty_segment(shard, shard->small.tail, DISCARD, 0);
  pthread_mutex_unlock(&shard->mutex);
}

void evict_all_over(struct store *store) {
  uint32_t count = store_shard_count(store);
  unsigned idle = 0;
  for (uint32_t i = 0; !fits(store, 0) && idle < 2 * count;
       i = (i + 1) % count) {
    struct shard *shard = &store->shards[i];
    pthread_mutex_lock(&shard->mutex);
    size_t before = load_relaxed(&store->used);
    unsigned most =
        shard->segments_used + patience(store); /* past all pinned ones */
    for (unsigned n = 0; n <= most && load_relaxed(&store->used) >= before; n++)
      evict_segment(shard, 0, n >= patience(store));
    idle = load_relaxed(&store->used) < before ? 0 : idle + 1;
    pthread_mutex_unlock(&shard->mutex);
  }
  for (uint32_t i = 0; i < count; i++)
    discard_pinned(&store->shards[i]);
}

void evict_everything(struct shard *shard) {
  while (shard->small.count > 0)
    empty_segment(shard, shard->small.tail, DISCARD, 0);
  while (shard->main.count > 0)
    empty_segment(shard, shard->main.tail, DISCARD, 0);
}

/* Many keys whose hashes share their leading bits can fill a page's buckets
 * before the page is worth a split: they make room for each other, pinned ones
 * last. */
void evict_from_bucket(struct shard *shard, uint64_t hash) {
  struct page *page = index_page(shard->store, shard->directory, hash);
  struct place place = {.bucket = index_bucket(page, hash, 0)}, least;
  unsigned fewest = UINT32_MAX;
  struct item item;
  for (place.slot = 0; place.slot < BUCKET_SLOTS; place.slot++) {
    const char *p = log_item(shard, place.bucket->items[place.slot]);
    if (place.bucket->tags[place.slot] == 0)
      continue;
    item_read(p, &item);
    unsigned uses = index_uses(&place);
    uses += item.flags & ITEM_PINNED ? USES_MAX + 1 : 0; /* those last */
    if (uses < fewest) {
      fewest = uses;
      least = place;
      least.home = index_bucket(page, item_hash(shard->store, p, &item), 0);
    }
  }
  if (fewest != UINT32_MAX)
    entry_drop(shard, &least, STORE_SIZE);
}
