/* Reading without a lock. What a reader may rely on stands in index.c:
 *
 *   version of the bucket    --- acquire --->
 *   tags, the slot's offset  --- acquire --->
 *   the item: key? value     (copied, may be another's by now)
 *                            --- fence ----->
 *   version of the bucket: as before? then all of it was true at once
 *
 * The writer's half: the slot changes, then the version, then a fence, and only
 * then are the item's old bytes written again (log.c, take_segment). So if a
 * byte that was copied came from a later item, the version that is read after
 * it is a later one, too: fence to fence (C11 7.17.4), on every machine.
 *
 * Nothing of the item's memory is ever written by a reader. A use is noted in
 * the bucket, by a plain load and store that may lose another's: two bits of
 * frequency need no exactness. Counts of hits lie in stripes.
 *
 * A reader that finds the entry past its time drops it if the mutex is free
 * just then; the sweep will otherwise.
 */
#include "memory/target.h"

#define INLINE static inline __attribute__((always_inline))

enum { MANY = 16 }; /* keys of get_many that are under way at once */

enum { SEEN, ABSENT, AGAIN };

/* What a look has found, and what must still be so after the copy. */
struct sight {
  struct bucket *bucket, *home;
  const char *p;
  uint64_t second; /* of the item's head */
  uint32_t version, home_version;
  unsigned slot;
};

INLINE int unchanged(const struct bucket *bucket, uint32_t version) {
  fence_acquire();
  return load_acquire(&bucket->version) == version;
}

INLINE int look(const struct target *at, struct page *page,
                struct sight *sight) {
  uint8_t tag = index_tag(at->hash);
  for (unsigned probe = 0; probe < PROBES; probe++) {
    struct bucket *bucket = index_bucket(page, at->hash, probe);
    uint32_t version = load_acquire(&bucket->version);
    if (probe == 0) {
      sight->home = bucket;
      sight->home_version = version;
    }
    for (unsigned bits = index_match(bucket, tag); bits; bits &= bits - 1) {
      unsigned slot = (unsigned)__builtin_ctz(bits);
      const char *p = log_item(at->shard, load_acquire(&bucket->items[slot]));
      __builtin_prefetch(p + 64);
      __builtin_prefetch(p + 128);
      if (item_matches(at, p, &sight->second)) {
        sight->bucket = bucket;
        sight->slot = slot;
        sight->version = version;
        sight->p = p;
        return SEEN;
      }
    }
    int passed = load_relaxed(&bucket->passed);
    if (!unchanged(bucket, version))
      return AGAIN;
    if (!passed)
      break;
  }
  return ABSENT;
}

INLINE struct page *page_for(const struct target *at) {
  return index_page(at->store, load_acquire(&at->shard->directory), at->hash);
}

/* Looks until what it has found stood still: SEEN or ABSENT. A copy of the
 * value is to be checked by the caller. */
INLINE int look_up(const struct target *at, struct sight *sight) {
  for (;;) {
    struct page *page = page_for(at);
    int rc = look(at, page, sight);
    if (rc == SEEN)
      return SEEN;
    if (rc == ABSENT && page_for(at) == page) /* and was not split meanwhile */
      return ABSENT;
  }
}

static __attribute__((noinline)) int is_marked(const struct store *store,
                                               const char *p) {
  struct item item;
  item_read(p, &item);
  return mark_covers(store, p, &item);
}

/* Is the item past its time, or cleared? */
INLINE int is_gone(const struct target *at, const struct sight *sight) {
  uint64_t expires_ms = sight->second >> 22;
  return (expires_ms != 0 && expires_ms <= at->now) ||
         (load_relaxed(&at->store->mark_count) > 0 &&
          is_marked(at->store, sight->p));
}

/* Dropped, or left to the sweep. (It aims anew: a target whose address goes
 * nowhere stays in registers all through a get.) */
static __attribute__((noinline)) void try_to_drop(BACKEND_KEY_ARGS) {
  struct target at;
  struct place place;
  struct item item;
  if (target_aim(&at, STORE_KEY) < 0 ||
      pthread_mutex_trylock(&at.shard->mutex) != 0)
    return;
  if (at.id == at.view->space->id && at.shard == store_shard(at.store, at.hash))
    store_find(&at, &place, &item);
  pthread_mutex_unlock(&at.shard->mutex);
}

#define AT_KEY \
  &at->view->backend, at->now, at->ns, at->ns_len, at->key, at->key_len

/* The same for an item with more to its head. */
static __attribute__((noinline)) int copy_long(const struct shard *shard,
                                               const char *p, void *buf,
                                               size_t cap,
                                               struct backend_item *out) {
  struct item item;
  item_read(p, &item);
  item_read_extra(shard->store, p, &item);
  store_describe(&item, out);
  return out->length > cap || item_copy_value(shard, p, &item, buf);
}

/* Copies the value, if there is room, and describes it: SEEN; AGAIN. */
INLINE int copy(const struct target *at, const struct sight *sight, void *buf,
                size_t cap, struct backend_item *out) {
  const char *p = sight->p;
  uint64_t first, second = sight->second;
  uint8_t format;
  int whole = 1;
  if ((second & (ITEM_CHAINED | ITEM_WEIGHED)) == 0) {
    bytes_out(&first, p, 8);
    bytes_out(&format, p + 18, 1);
    out->length = second >> 4 & 0x3ffff;
    out->version = first >> 12;
    out->expires_ms = second >> 22;
    out->created_ms = first >> (12 + STAMP_COUNT_BITS);
    out->token = 0;
    out->owner = NULL;
    out->format = format;
    out->pad = 0;
    if (out->length <= cap)
      bytes_out(buf, p + ITEM_HEAD + target_length(at), out->length);
  } else {
    whole = copy_long(at->shard, p, buf, cap, out);
  }
  return unchanged(sight->bucket, sight->version) && whole ? SEEN : AGAIN;
}

INLINE int note_miss(struct space *space, struct bucket *home, uint32_t version,
                     struct store_near *near) {
  if (near) {
    near->words = &home->version;
    near->version = version;
    near->shift = 32;
  }
  stripe_add(space, misses, 1);
  return BACKEND_MISS;
}

/* Near copies of sampled keys would hide them from the shadow caches; in a
 * small store, where most are sampled, they are allowed all the same. */
enum { HIDE_LEAST = 16 };
INLINE int may_be_near(const struct target *at) {
  uint32_t below = load_relaxed(&at->store->sample_below);
  return below > UINT32_MAX / HIDE_LEAST ||
         !shadow_samples(at->store, at->hash);
}

INLINE int read_entry(struct target *at, void *buf, size_t cap,
                      struct backend_item *out, struct store_near *near) {
  struct sight sight;
  int gone;
  do {
    if (look_up(at, &sight) == ABSENT)
      return note_miss(at->view->space, sight.home, sight.home_version, near);
    gone = is_gone(at, &sight);
  } while (copy(at, &sight, buf, cap, out) == AGAIN);
  if (gone) {
    try_to_drop(AT_KEY);
    if (near) /* as if it had never been there: looked up once more */
      near->words = NULL;
    stripe_add(at->view->space, misses, 1);
    return BACKEND_MISS;
  }
  index_note_use(sight.bucket, sight.slot);
  if (near) {
    near->words = may_be_near(at) ? &sight.bucket->version : NULL;
    near->version = sight.version;
    near->shift = 2 * sight.slot;
  }
  if (out->length <= cap) /* else counted when the caller comes again */
    stripe_add(at->view->space, hits, 1);
  return BACKEND_HIT;
}

/* Is what was found still the view's own? A clear gives the space another id,
 * and later the old one to somebody else. Asked after the copy. */
INLINE int is_own(const struct target *at) {
  return load_acquire(&at->view->space->id) == at->id;
}

INLINE int get(struct target *at, void *buf, size_t cap,
               struct backend_item *out, struct store_near *near) {
  for (;;) {
    if (shadow_samples(at->store, at->hash))
      shadow_request(at->store, at->hash);
    int rc = read_entry(at, buf, cap, out, near);
    if (rc != BACKEND_HIT || is_own(at))
      return rc;
    rc = target_aim(at, AT_KEY);
    if (rc < 0)
      return rc;
  }
}

/* What most gets are: a key without a namespace, with a plain head, alive and
 * not too long; or no such key. Whatever is else, or has changed meanwhile,
 * begins anew in get(): SLOW. What counts here is how few instructions there
 * are between one get's wait for memory and the next one's, which the processor
 * then waits for at the same time. */
enum { SLOW = 100 };

/* Of an item: its head, plain or not. */
struct head {
  uint64_t first, second;
  uint8_t tail[3]; /* key length - 1, format */
};

/* Is it the key's? -1: not to be told here. */
INLINE int is_plain_match(const char *p, struct head *head, uint32_t id,
                          const char *key, size_t key_len) {
  uint16_t stored_len;
  bytes_out(&head->first, p, 8);
  bytes_out(&head->second, p + 8, 8);
  bytes_out(head->tail, p + 16, 3);
  memcpy(&stored_len, head->tail, 2);
  if (head->second & (ITEM_CHAINED | ITEM_WEIGHED | ITEM_DEAD))
    return -1;
  return (head->first & (IDS_MAX - 1)) == id &&
         stored_len + (size_t)1 == key_len &&
         bytes_equal(p + ITEM_HEAD, key, key_len);
}

INLINE int take_plain(const struct store *store, struct space *space,
                      uint64_t now, const char *value, const struct head *head,
                      const struct sight *sight, void *buf, size_t cap,
                      struct backend_item *out, struct store_near *near) {
  size_t length = head->second >> 4 & 0x3ffff;
  uint64_t expires_ms = head->second >> 22;
  if (length > cap || expires_ms - 1 < now || /* 0, never, is the largest */
      load_relaxed(&store->mark_count) > 0)
    return SLOW;
  bytes_out(buf, value, length);
  if (!unchanged(sight->bucket, sight->version) ||
      load_acquire(&space->id) != (head->first & (IDS_MAX - 1)))
    return SLOW;
  *out = (struct backend_item){.length = length,
                               .version = head->first >> 12,
                               .expires_ms = expires_ms,
                               .created_ms =
                                   head->first >> (12 + STAMP_COUNT_BITS),
                               .format = head->tail[2]};
  if (near) {
    near->words = &sight->bucket->version;
    near->version = sight->version;
    near->shift = 2 * sight->slot;
  }
  index_note_use(sight->bucket, sight->slot);
  stripe_add(space, hits, 1);
  return BACKEND_HIT;
}

INLINE int get_plain(const struct view *view, uint64_t now, const char *key,
                     size_t key_len, void *buf, size_t cap,
                     struct backend_item *out, struct store_near *near) {
  struct store *store = view->store;
  struct space *space = view->space;
  uint32_t id = load_acquire(&space->id);
  uint64_t hash = target_hash(store, id, "", 0, key, key_len);
  const struct shard *shard = store_shard(store, hash);
  struct page *page = index_page(store, load_acquire(&shard->directory), hash);
  struct sight sight = {.home = index_bucket(page, hash, 0)};
  struct head head;
  if (shadow_samples(store, hash))
    return SLOW;
  sight.bucket = sight.home;
  sight.version = sight.home_version = load_acquire(&sight.home->version);
  for (unsigned probe = 0;;) {
    unsigned bits = index_match(sight.bucket, index_tag(hash));
    for (; bits; bits &= bits - 1) {
      sight.slot = (unsigned)__builtin_ctz(bits);
      const char *p =
          log_item(shard, load_acquire(&sight.bucket->items[sight.slot]));
      int match = is_plain_match(p, &head, id, key, key_len);
      if (match > 0)
        return take_plain(store, space, now, p + ITEM_HEAD + key_len, &head,
                          &sight, buf, cap, out, near);
      if (match < 0)
        return SLOW;
    }
    int passed = load_relaxed(&sight.bucket->passed);
    if (!unchanged(sight.bucket, sight.version))
      return SLOW;
    if (!passed || ++probe == PROBES)
      break;
    sight.bucket = index_bucket(page, hash, probe);
    sight.version = load_acquire(&sight.bucket->version);
  }
  if (index_page(store, load_acquire(&shard->directory), hash) != page)
    return SLOW;
  return note_miss(space, sight.home, sight.home_version, near);
}

INLINE int may_be_plain(const struct view *view, size_t ns_len,
                        size_t key_len) {
  return ns_len == 0 && key_len - 1 < BACKEND_KEY_MAX &&
         load_relaxed(view->store->alive);
}

static __attribute__((noinline)) int get_any(BACKEND_KEY_ARGS, void *buf,
                                             size_t cap,
                                             struct backend_item *out,
                                             struct store_near *near) {
  struct target at;
  int rc = target_aim(&at, STORE_KEY);
  return rc < 0 ? rc : get(&at, buf, cap, out, near);
}

__attribute__((flatten)) int store_get(BACKEND_KEY_ARGS, void *buf, size_t cap,
                                       struct backend_item *out,
                                       STORE_NO_WAIT) {
  struct view *view = (struct view *)self;
  int rc = may_be_plain(view, ns_len, key_len)
               ? get_plain(view, now, key, key_len, buf, cap, out, NULL)
               : SLOW;
  return rc != SLOW ? rc : get_any(STORE_KEY, buf, cap, out, NULL);
}

/* The view's words come first: a change that is not in them is not in what is
 * read after them either, or the near copy is out of date from the start. */
__attribute__((flatten)) int store_get_near(BACKEND_KEY_ARGS, void *buf,
                                            size_t cap,
                                            struct backend_item *out,
                                            struct store_near *near) {
  struct view *view = (struct view *)self;
  near->clears = load_acquire(&view->space->words[0]);
  near->inserts = load_acquire(&view->space->words[1]);
  int rc = may_be_plain(view, ns_len, key_len)
               ? get_plain(view, now, key, key_len, buf, cap, out, near)
               : SLOW;
  return rc != SLOW ? rc : get_any(STORE_KEY, buf, cap, out, near);
}

int store_peek(struct target *at, struct backend_item *out) {
  struct sight sight;
  char none; /* nothing is copied */
  int gone;
  do {
    if (look_up(at, &sight) == ABSENT)
      return BACKEND_MISS;
    gone = is_gone(at, &sight);
  } while (copy(at, &sight, &none, 0, out) == AGAIN);
  if (!is_own(at))
    return target_aim(at, AT_KEY) < 0 ? BACKEND_MISS : store_peek(at, out);
  if (!gone)
    return BACKEND_HIT;
  try_to_drop(AT_KEY);
  return BACKEND_MISS;
}

int store_note_use(struct target *at) {
  struct backend_item item;
  struct sight sight;
  if (store_peek(at, &item) == BACKEND_MISS || look_up(at, &sight) == ABSENT)
    return 0;
  index_note_use(sight.bucket, sight.slot);
  return 1;
}

/* ---- many ---- */

/* The item that is likely the one, while others are on their way. */
static void prefetch_item(const struct target *at) {
  struct bucket *bucket = index_bucket(page_for(at), at->hash, 0);
  unsigned bits = index_match(bucket, index_tag(at->hash));
  if (bits) {
    uint32_t offset = load_relaxed(&bucket->items[__builtin_ctz(bits)]);
    const char *p = log_item(at->shard, offset);
    __builtin_prefetch(p);
    __builtin_prefetch(p + 64);
    __builtin_prefetch(p + 128);
  }
}

/* Packs as much as fits; where the buffer ends, only lengths are looked at. */
struct pack {
  char *buf;
  size_t cap, used;
  int hits;
  struct backend_item *items;
};

static int aim_many(struct target *at, struct backend *self, uint64_t now,
                    const char *ns, size_t ns_len,
                    const struct backend_slice *keys, size_t n) {
  for (size_t i = 0; i < n; i++) {
    int rc =
        target_aim(&at[i], self, now, ns, ns_len, keys[i].data, keys[i].length);
    if (rc < 0)
      return rc;
    __builtin_prefetch(index_bucket(page_for(&at[i]), at[i].hash, 0), 1);
  }
  return 0;
}

static void get_window(struct target *at, size_t n, struct pack *pack) {
  for (size_t i = 0; i < n; i++)
    prefetch_item(&at[i]);
  for (size_t i = 0; i < n; i++) {
    size_t left = pack->used < pack->cap ? pack->cap - pack->used : 0;
    struct backend_item *item = &pack->items[i];
    if (get(&at[i], pack->buf + (left ? pack->used : 0), left, item, NULL) ==
        BACKEND_HIT) {
      pack->used += item->length;
      pack->hits++;
    } else {
      *item = (struct backend_item){0};
    }
  }
}

/* Whoever has to come again with a larger buffer would count twice. */
static void take_back(struct space *space, size_t n, const struct pack *pack) {
  const struct backend_item *items = pack->items;
  size_t used = 0;
  for (size_t i = 0; i < n; i++) {
    size_t left = used < pack->cap ? pack->cap - used : 0;
    if (items[i].version == 0)
      stripe_add(space, misses, -1);
    else if (items[i].length <= left)
      stripe_add(space, hits, -1);
    used += items[i].length;
  }
}

int store_get_many(struct backend *self, uint64_t now, const char *ns,
                   size_t ns_len, const struct backend_slice *keys, size_t n,
                   void *buf, size_t cap, size_t *used,
                   struct backend_item *items, STORE_NO_WAIT) {
  struct pack pack = {.buf = buf, .cap = cap, .items = items};
  struct target at[MANY];
  for (size_t i = 0; i < n; i++) { /* a call that fails has done nothing */
    int rc = target_check((struct view *)self, ns_len, keys[i].length);
    if (rc < 0)
      return rc;
  }
  for (size_t i = 0; i < n; i += MANY) {
    size_t count = n - i < MANY ? n - i : MANY;
    pack.items = items + i;
    int rc = aim_many(at, self, now, ns, ns_len, keys + i, count);
    if (rc < 0)
      return rc;
    get_window(at, count, &pack);
  }
  pack.items = items;
  *used = pack.used;
  if (pack.used > cap)
    take_back(((struct view *)self)->space, n, &pack);
  return pack.hits;
}
