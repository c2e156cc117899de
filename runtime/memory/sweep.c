/* The sweep: what has expired or was cleared gives its bytes back, without
 * anyone asking for it.
 *
 * A pass goes over a shard's segments by number. One is looked into, item by
 * item in the order of its bytes, if its first expiry is over, or if something
 * was cleared since (store.purge counts these): 10 ns for an item that is to
 * stay, some 100 for one that goes. Nothing else is kept per entry: no timer,
 * no list. A call looks at about as many entries as it is told to and goes on
 * there the next time, so that a million that expire at once are a few hundred
 * calls of half a millisecond; only one thread sweeps at a time, and a shard
 * that is in use just then is left for the next pass.
 */
#include "memory/internal.h"

static int is_due(const struct shard *shard, const struct segment *segment,
                  uint64_t now) {
  return (segment->state == SEGMENT_SMALL || segment->state == SEGMENT_MAIN) &&
         (segment->first_expiry <= now || shard->purged != shard->sweep_purge);
}

/* The shard's first expiry as it stands; a pass has just ended. */
static void end_pass(struct shard *shard) {
  uint64_t first = UINT64_MAX;
  for (uint32_t i = 0; i < shard->segment_count; i++) {
    const struct segment *segment = &shard->segments[i];
    if ((segment->state == SEGMENT_SMALL || segment->state == SEGMENT_MAIN) &&
        segment->first_expiry < first)
      first = segment->first_expiry;
  }
  shard->first_expiry = first;
  shard->purged = shard->sweep_purge;
  shard->sweep_at = 0;
}

/* Goes on with a pass; how many entries of the budget are left. The pass has
 * ended when sweep_at is 0 again. */
static size_t sweep_shard(struct shard *shard, uint64_t now, size_t entries) {
  if (shard->sweep_at == 0)
    shard->sweep_purge = load_relaxed(&shard->store->purge);
  while (shard->sweep_at < shard->segment_count) {
    uint32_t number = shard->sweep_at;
    if (is_due(shard, &shard->segments[number], now)) {
      if (entries == 0)
        return 0;
      size_t looked = evict_dead(shard, number, now);
      entries -= looked < entries ? looked : entries;
    }
    shard->sweep_at++;
  }
  end_pass(shard);
  return entries;
}

static int has_work(const struct shard *shard, uint64_t now) {
  return shard->sweep_at > 0 || shard->first_expiry <= now ||
         shard->purged != load_relaxed(&shard->store->purge);
}

/* Marks whose pass every shard has ended with. */
static void end_marks(struct store *store) {
  uint32_t purged = store->purge;
  for (uint32_t i = 0; i < store_shard_count(store); i++)
    if ((int32_t)(load_relaxed(&store->shards[i].purged) - purged) < 0)
      purged = load_relaxed(&store->shards[i].purged);
  for (uint32_t i = 0; i < MARKS_MAX && store->mark_count > 0; i++) {
    struct mark *mark = &store->marks[i];
    if (mark->id == 0 || (int32_t)(mark->purge - purged) > 0)
      continue;
    store_release(&mark->id, 0);
    store_release(&mark->version, mark->version + 1);
    store_release(&store->mark_count, store->mark_count - 1);
  }
}

int store_sweep(struct store *store, uint64_t now, size_t entries) {
  int more = 0;
  if (load_relaxed(store->alive) == 0 ||
      pthread_mutex_trylock(&store->mutex) != 0)
    return 0;
  uint32_t count = store_shard_count(store), first = store->sweep_shard;
  for (uint32_t i = 0; i < count && entries > 0; i++) {
    struct shard *shard = &store->shards[(first + i) % count];
    store->sweep_shard = (first + i) % count;
    if (pthread_mutex_trylock(&shard->mutex) != 0)
      continue;
    if (has_work(shard, now))
      entries = sweep_shard(shard, now, entries);
    more = shard->sweep_at > 0;
    pthread_mutex_unlock(&shard->mutex);
  }
  if (store->mark_count > 0)
    end_marks(store);
  pthread_mutex_unlock(&store->mutex);
  return more || entries == 0;
}

void store_sweep_some(struct store *store, uint64_t now, size_t entries) {
  enum { STEP = 1024 };
  for (size_t done = 0; done < entries && store_sweep(store, now, STEP);
       done += STEP) {
  }
}
