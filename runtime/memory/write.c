/* Writing: every change of an entry, under its shard's mutex.
 *
 * A put has an order, as each step may evict: first a slot of the index is made
 * sure of (that may split a page, or evict), then the bytes that the item will
 * take, and only then is the old entry looked for, the item written and the
 * slot turned to it. From the writing on nothing can fail or evict any more; a
 * put that fails before has changed nothing but what eviction does.
 */
#include "memory/internal.h"

/* 32 years; later changes are numbered without a time, and there is room for
 * 2^48 of them. */
static const uint64_t stamp_ms_most = (UINT64_C(1) << 40) - (UINT64_C(1) << 36);

uint64_t store_expiry(uint64_t now, uint64_t ttl_ms) {
  if (ttl_ms == BACKEND_TTL_NEVER || now > STORE_TIME_MAX ||
      ttl_ms > STORE_TIME_MAX - now)
    return 0;
  return now + ttl_ms;
}

/* Where there are more changes than numbers, the stamps run ahead of time. */
uint64_t store_stamp(struct shard *shard, uint64_t now) {
  uint64_t ms = now < stamp_ms_most ? now : stamp_ms_most;
  uint64_t stamp = ms << STAMP_COUNT_BITS;
  if (stamp <= shard->stamp)
    stamp = shard->stamp + 1;
  shard->stamp = stamp;
  return stamp;
}

uint64_t store_next_stamp(struct shard *shard, const struct item *item) {
  uint64_t stamp = item->stamp + 1;
  if (shard->stamp < stamp)
    shard->stamp = stamp;
  return stamp;
}

void store_join(const struct target *at, char *out) {
  memcpy(out, at->ns, at->ns_len);
  memcpy(out + at->ns_len, at->key, at->key_len);
}

int store_joined_equal(const struct target *at, const char *key,
                       size_t length) {
  return length == target_length(at) && memcmp(key, at->ns, at->ns_len) == 0 &&
         memcmp(key + at->ns_len, at->key, at->key_len) == 0;
}

void store_describe(const struct item *item, struct backend_item *out) {
  *out = (struct backend_item){.length = item_length(item),
                               .version = item->stamp,
                               .expires_ms = item->expires_ms,
                               .created_ms = item->stamp >> STAMP_COUNT_BITS,
                               .format = item->format};
}

struct content store_content(uint64_t now, const void *bytes, size_t length,
                             uint32_t format, uint64_t ttl_ms) {
  return (struct content){.bytes = bytes ? bytes : "",
                          .length = length,
                          .expires_ms = store_expiry(now, ttl_ms),
                          .format = format};
}

int store_find(struct target *at, struct place *place, struct item *item) {
  if (!index_find(at, place))
    return 0;
  const char *p = log_item(at->shard, place->bucket->items[place->slot]);
  item_read(p, item);
  int gone = entry_gone(at->store, p, item, at->now);
  if (gone) {
    entry_drop(at->shard, place, gone);
    return 0;
  }
  item_read_extra(at->store, p, item);
  return 1;
}

/* ---- put ---- */

/* What a split of a page may take from the bound: the page, and a directory of
 * twice the size. */
static size_t split_bytes(const struct shard *shard) {
  const struct directory *directory = shard->directory;
  return PAGE_BYTES + sizeof *directory +
         (2 * sizeof(uint32_t) << directory->bits);
}

/* A split of the page, if that has room and is worth it. What is evicted for it
 * may leave a slot, too. */
static int split_page(struct target *at, struct place *place) {
  return index_worth_split(at->shard, at->hash) &&
         evict_for(at->shard, split_bytes(at->shard), at->now) &&
         (index_find_free(at->shard, at->hash, place) ||
          index_split(at->shard, at->hash));
}

/* Sees to it that the target has a slot, or could have one: 1 with that if
 * nothing had to be evicted or split for it. */
static int make_slot(struct target *at, int known, struct place *place) {
  for (int first = 1;; first = 0) {
    if (known || index_find_free(at->shard, at->hash, place))
      return first;
    if (!split_page(at, place)) {
      evict_from_bucket(at->shard, at->hash);
      return 0;
    }
  }
}

/* The queue for a new item: that of the entry it replaces (unless that had its
 * place by being pinned); else the small one, but for those that have been
 * there before, and those that are to stay. */
static uint32_t choose_queue(struct target *at, const struct place *known,
                             const struct item *old,
                             const struct content *content) {
  const struct policy *policy =
      &store_policies[load_relaxed(&at->store->policy)];
  if (content->pin)
    return SEGMENT_MAIN;
  if (known && !(old->flags & ITEM_PINNED))
    return log_state(at->shard, known);
  if (!known && at->shard->full && ghost_take(at->shard, at->hash))
    return SEGMENT_MAIN;
  return policy->small_permille == 0 ? SEGMENT_MAIN : SEGMENT_SMALL;
}

/* Until the bytes fit that the item will take. What is evicted for them may
 * move to the very queue and fill its head: hence again. 1 if there was room,
 * 2 if that took an eviction, 0: none can be made. */
static int make_room(struct target *at, uint32_t state, const struct item *item,
                     size_t weight) {
  struct shard *shard = at->shard;
  size_t before = 0;
  for (int evicted = 0;; evicted = 1) {
    size_t bytes = log_bytes_needed(shard, state, item);
    if (bytes == SIZE_MAX) {
      if (!evict_more(shard, at->now))
        return 0;
      continue;
    }
    if (bytes + weight == 0 || (evicted && bytes <= before))
      return 1 + evicted;
    before = bytes;
    if (!evict_for(shard, bytes + weight, at->now))
      return 0;
  }
}

static size_t pinned_bytes(const struct item *item) {
  return item->flags & ITEM_PINNED ? item_size(item) - item->inlined +
                                         item_length(item) + item->weight
                                   : 0;
}

/* old: what the item replaces, or NULL. */
static int may_pin(const struct shard *shard, const struct item *item,
                   const struct item *old) {
  size_t less = old ? pinned_bytes(old) : 0;
  return !(item->flags & ITEM_PINNED) ||
         shard->pinned - less + pinned_bytes(item) <=
             store_fair(shard->store) / 2;
}

/* Those who keep near copies of misses are to look again. */
static void note_insert(struct target *at) {
  struct space *space = at->view->space;
  if (load_relaxed(&space->counts_inserts))
    __atomic_fetch_add(&space->words[1], 1, __ATOMIC_RELEASE);
}

static void insert(struct target *at, const struct place *place,
                   uint32_t offset) {
  index_insert(place, at->hash, offset);
  note_insert(at);
}

static void replace(struct target *at, const struct place *place,
                    struct item *old, uint32_t offset) {
  uint32_t replaced = place->bucket->items[place->slot];
  index_move(place, offset);
  entry_leave(at->shard, replaced, old, STORE_REPLACED);
}

int store_put(struct target *at, const struct content *content) {
  struct place place;
  struct item item, old;
  uint32_t offset;
  assert(content->format <= UINT8_MAX);
  int rc = log_plan(at, content, &item);
  if (rc < 0)
    return rc;
  int known = store_find(at, &place, &old);
  if (!may_pin(at->shard, &item, known ? &old : NULL))
    return BACKEND_ETOOLARGE;
  int calm = make_slot(at, known, &place);
  uint32_t state =
      choose_queue(at, calm && known ? &place : NULL, &old, content);
  size_t weighed = known ? old.weight : 0; /* that will be given back */
  int room = make_room(at, state, &item,
                       item.weight > weighed ? item.weight - weighed : 0);
  if (!room)
    return BACKEND_ETOOLARGE;
  if (!calm || room > 1) { /* the old entry may have moved, or gone */
    known = store_find(at, &place, &old);
    int found = known || index_find_free(at->shard, at->hash, &place);
    assert(found);
    (void)found;
  }
  item.stamp =
      content->stamp ? content->stamp : store_stamp(at->shard, at->now);
  if (!log_append(at, state, &item, content, &offset))
    return BACKEND_ENOMEM;
  if (known)
    replace(at, &place, &old, offset);
  else
    insert(at, &place, offset);
  entry_count(at->shard, &item, 1);
  stripe_add(at->view->space, sets, 1);
  store_poison(at);
  return 1;
}

/* An item is never changed: it is copied, with another head. */
int store_put_expiry(struct target *at, uint64_t expires_ms) {
  struct place place;
  struct item item;
  if (!store_find(at, &place, &item))
    return 0;
  struct item wanted = item;
  wanted.links = 0; /* the chain stays where it is */
  if (!make_room(at, log_state(at->shard, &place), &wanted, 0))
    return BACKEND_ETOOLARGE;
  if (!store_find(at, &place, &item)) /* evicted for its own sake */
    return 0;
  uint32_t state = log_state(at->shard, &place);
  item.expires_ms = expires_ms;
  item.stamp = store_next_stamp(at->shard, &item);
  return log_move(at->shard, &place, state, &item, 1) ? 1 : BACKEND_ENOMEM;
}

int store_delete(struct target *at) {
  struct place place;
  struct item item;
  int found = store_find(at, &place, &item);
  store_poison(at); /* a load may be bringing what the caller knows is old */
  if (found)
    entry_drop(at->shard, &place, STORE_DELETED);
  return found;
}
