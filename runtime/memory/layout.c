/* How a bound is divided, and what happens when it changes.
 *
 *   bound            shards                segment
 *   below 64 MiB     1                     1/128 of the shard,
 *   to 1 GiB         of 32 to 64 MiB       1 KiB to 128 KiB,
 *   above            16, of 2 GiB at most  a power of two
 *
 * Small shards would refuse large values, large ones make writers wait for each
 * other. A segment is what is evicted at once: small enough to be a small part
 * of its shard, large enough for few of them to be half empty.
 *
 * When the bound changes so much that the segments are too large or much too
 * small for it, the store is laid out anew, with all shards locked: the entries
 * that have room in the new bound, pinned ones first, then those of the main
 * queue, the newest first, are taken aside and put back; the others are
 * evicted. Readers that are on their way find versions that have changed.
 */
#include <stdlib.h>

#include "memory/internal.h"

/* An entry on its way. */
struct carried {
  struct carried *next;
  struct item item;
  uint32_t state; /* of its segment */
  unsigned uses;
  char bytes[]; /* key, value */
};

struct carry {
  struct carried *entries; /* the one to be put back first is the first */
  size_t bytes, most;      /* that they will take, about; that they may */
};

struct layout layout_choose(size_t max_bytes, uint32_t shards_most) {
  struct layout layout = {0, SEGMENT_LEAST};
  size_t limit = (size_t)2 << 30; /* of a shard; offsets have 32 bits */
  while (2u << layout.shard_bits <= shards_most &&
         ((max_bytes >> layout.shard_bits >= 2 * (size_t)SHARD_BYTES &&
           1u << layout.shard_bits < SHARDS_USUAL) ||
          max_bytes >> layout.shard_bits > limit))
    layout.shard_bits++;
  size_t share = (max_bytes >> layout.shard_bits) / SEGMENT_SHARE;
  while (layout.segment_bytes < SEGMENT_MOST &&
         2 * (size_t)layout.segment_bytes <= share)
    layout.segment_bytes *= 2;
  return layout;
}

/* Makes an index and a log in each of so many shards. 0; ENOMEM. */
int layout_open(struct store *store, struct layout layout) {
  store_relaxed(&store->shard_bits, layout.shard_bits);
  store_relaxed(&store->segment_bytes, layout.segment_bytes);
  for (uint32_t i = 0; i < 1u << layout.shard_bits; i++) {
    struct shard *shard = &store->shards[i];
    log_open(shard);
    if (index_open(shard) < 0)
      return BACKEND_ENOMEM;
  }
  return 0;
}

/* ---- carrying ---- */

/* What an entry takes where it is put back: with its part of the index, and of
 * the ends of segments. */
static size_t carried_bytes(const struct item *item) {
  enum { INDEXED = 16 };
  size_t bytes = ITEM_HEAD + INDEXED + item->key_len + item_length(item);
  return bytes + bytes / 4 + item->weight;
}

/* Takes an entry out, unseen by counters and watchers. */
static void take_entry(struct carry *carry, struct shard *shard,
                       const struct place *place, struct item *item) {
  uint32_t offset = place->bucket->items[place->slot];
  const char *p = log_item(shard, offset);
  item_read_extra(shard->store, p, item);
  size_t bytes = item->key_len + item_length(item);
  struct carried *entry = carry->bytes + carried_bytes(item) <= carry->most
                              ? malloc(sizeof *entry + bytes)
                              : NULL;
  if (!entry)
    return;
  carry->bytes += carried_bytes(item);
  *entry = (struct carried){.next = carry->entries,
                            .item = *item,
                            .state = log_state(shard, place),
                            .uses = index_uses(place)};
  bytes_out(entry->bytes, item_key(p, item), item->key_len);
  item_copy_value(shard, p, item, entry->bytes + item->key_len);
  carry->entries = entry;
  index_remove(place);
  entry_count(shard, item, -1);
  log_forget(shard, offset, item);
}

/* The entries of a segment with, or without, these flags. The segment may be
 * free before its end. */
static void take_segment(struct carry *carry, struct shard *shard,
                         uint32_t number, uint32_t flags) {
  const struct segment *segment = &shard->segments[number];
  uint32_t start = number * shard->store->segment_bytes, at = 0;
  uint32_t used = segment->used, state = segment->state;
  while (at < used && segment->state == state) {
    uint32_t offset = start + at;
    const char *p = log_item(shard, offset);
    struct item item;
    struct place place;
    item_read(p, &item);
    at += (uint32_t)item_size(&item);
    if ((item.flags & (ITEM_PINNED | ITEM_DEAD)) == flags &&
        !entry_gone(shard->store, p, &item, 0) &&
        index_find_item(shard, item_hash(shard->store, p, &item), offset,
                        &place))
      take_entry(carry, shard, &place, &item);
  }
}

static void take_queue(struct carry *carry, struct shard *shard,
                       const struct queue *queue, uint32_t flags) {
  for (uint32_t number = queue->head, next; number != NONE; number = next) {
    next = shard->segments[number].next;
    take_segment(carry, shard, number, flags);
  }
}

static void take_all(struct store *store, struct carry *carry) {
  uint32_t count = store_shard_count(store);
  for (uint32_t i = 0; i < count; i++)
    take_queue(carry, &store->shards[i], &store->shards[i].main, ITEM_PINNED);
  for (uint32_t i = 0; i < count; i++)
    take_queue(carry, &store->shards[i], &store->shards[i].main, 0);
  for (uint32_t i = 0; i < count; i++)
    take_queue(carry, &store->shards[i], &store->shards[i].small, 0);
}

/* Where there is no room after all it is evicted: told and counted late. */
static void put_back(struct store *store, struct carried *entry) {
  const struct item *was = &entry->item;
  struct target at = {.store = store,
                      .ns = "",
                      .key = entry->bytes,
                      .key_len = was->key_len,
                      .id = was->id};
  struct content content = {.bytes = entry->bytes + was->key_len,
                            .length = item_length(was),
                            .expires_ms = was->expires_ms,
                            .format = was->format,
                            .weight = was->weight,
                            .pin = (was->flags & ITEM_PINNED) != 0};
  struct item item;
  struct place place;
  uint32_t offset;
  at.hash = store_hash(store, at.id, at.key, at.key_len);
  at.shard = store_shard(store, at.hash);
  while (!index_find_free(at.shard, at.hash, &place) &&
         index_split(at.shard, at.hash)) {
  }
  int fits = log_plan(&at, &content, &item) == 0 &&
             index_find_free(at.shard, at.hash, &place);
  item.stamp = was->stamp;
  if (!fits || !log_append(&at, entry->state, &item, &content, &offset)) {
    entry_tell(store, was, entry->bytes, STORE_SIZE, content.bytes);
    return;
  }
  index_insert(&place, at.hash, offset);
  index_set_uses(&place, entry->uses);
  entry_count(at.shard, &item, 1);
}

/* All; those for which there is no room now go first, as they came last. */
static void put_all_back(struct store *store, struct carry *carry) {
  size_t used = store->used + RESERVE * (size_t)store->segment_bytes;
  size_t room = used < store->max_bytes ? store->max_bytes - used : 0;
  while (carry->entries) {
    struct carried *entry = carry->entries;
    carry->entries = entry->next;
    if (carry->bytes > room) {
      carry->bytes -= carried_bytes(&entry->item);
      entry_tell(store, &entry->item, entry->bytes, STORE_SIZE,
                 entry->bytes + entry->item.key_len);
    } else {
      put_back(store, entry);
    }
    free(entry);
  }
}

/* ---- a new bound ---- */

static void lay_out_anew(struct store *store, struct layout layout,
                         size_t max_bytes) {
  struct carry carry = {NULL, 0, max_bytes};
  store_newest_stamp(store, 0); /* entries may get into other shards */
  take_all(store, &carry);
  for (uint32_t i = 0; i < store_shard_count(store); i++) {
    struct shard *shard = &store->shards[i];
    evict_everything(shard);
    ghost_close(shard);
    log_forget_all(shard);
  }
  store_charge(store, -(ptrdiff_t)(store->page_count * PAGE_BYTES));
  area_forget_pages(store);
  store_relaxed(&store->max_bytes, max_bytes);
  int rc = layout_open(store, layout);
  assert(rc == 0); /* pages and a directory were there before */
  (void)rc;
  shadow_resize(store);
  put_all_back(store, &carry);
  /* Who missed an entry meanwhile is to look again. */
  for (struct space *space = store->spaces; space; space = space->next) {
    __atomic_fetch_add(&space->words[0], 1, __ATOMIC_RELEASE);
    __atomic_fetch_add(&space->words[1], 1, __ATOMIC_RELEASE);
  }
}

/* Too few segments, pages that take half of the bound (they are never given
 * back one by one), or shards or segments of quite another size. */
static int needs_layout(const struct store *store, struct layout layout,
                        size_t max_bytes) {
  size_t segments = (max_bytes >> store->shard_bits) / store->segment_bytes;
  return (segments < SEGMENTS_FEW &&
          layout.segment_bytes < store->segment_bytes) ||
         (max_bytes < store->max_bytes &&
          store->page_count * PAGE_BYTES > max_bytes / 2) ||
         layout.shard_bits + 2 <= store->shard_bits ||
         store->shard_bits + 2 <= layout.shard_bits ||
         layout.segment_bytes >= LAYOUT_STEP * store->segment_bytes;
}

void store_resize(struct store *store, size_t max_bytes) {
  if (load_relaxed(store->alive) == 0)
    return;
  pthread_mutex_lock(&store->mutex);
  store_lock_all(store);
  struct layout layout = layout_choose(max_bytes, store->shards_opened);
  size_t most = store->window_bytes << layout.shard_bits;
  max_bytes = max_bytes < most ? max_bytes : most;
  if (needs_layout(store, layout, max_bytes))
    lay_out_anew(store, layout, max_bytes);
  most = store->window_bytes << store->shard_bits;
  store_relaxed(&store->max_bytes, max_bytes < most ? max_bytes : most);
  store_unlock_all(store);
  evict_all_over(store);
  pthread_mutex_unlock(&store->mutex);
}
