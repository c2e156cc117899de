/* What the files of the memory backend share: the store's structs and the
 * steps that they offer each other. Tests look in here too.
 *
 *   store                                     who knows whom
 *   |- space   keys and counters of a name      store.c  open, views, resize
 *   |- shard   1..64, by the hash's top bits    calls.c  what backend_ops says
 *   |   |- directory -> pages of buckets        read.c   readers, without locks
 *   |   |- log: queues of segments of items     write.c  put, delete, count
 *   |   `- ghost: who was evicted lately        index.c, log.c, evict.c,
 * ghost.c
 *   |- leases: loads in flight                  lease.c
 *   |- shadow caches, which choose a policy     shadow.c
 *   `- marks: prefixes that were cleared        clear.c, sweep.c
 *
 * Lock order: store.mutex, then shards by number, then the innermost ones; a
 * shard beyond the first is otherwise only tried. A step that takes a shard, or
 * a target, is called with the shard's mutex held, unless it says otherwise.
 */
#ifndef MOONSTASH_MEMORY_INTERNAL_H
#define MOONSTASH_MEMORY_INTERNAL_H

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "memory/bytes.h"
#include "memory/store.h"

enum {
  BUCKET_SLOTS = 11,
  PAGE_BUCKETS = 64,
  PAGE_BYTES = 4096,
  PROBES = 8,          /* buckets that an entry may be away from its home */
  DIRECTORY_BITS = 22, /* of the hash, at most */
  USES_MAX = 3,        /* what two frequency bits hold */

  SHARDS_MAX = 64,
  SHARD_BYTES = 32 << 20, /* a shard has this much, or half as many */
  SHARDS_USUAL = 16,
  SEGMENT_LEAST = 1 << 10,
  SEGMENT_MOST = 1 << 17, /* the longest key fits in */
  SEGMENT_SHARE = 128,    /* a segment is 1/128 of its shard, or its least */
  SEGMENTS_FEW = 24,      /* in a shard: below, the store is laid out anew, */
  LAYOUT_STEP = 4,        /* or when its segments ought to be so much larger */
  VALUE_SHARE = 8,        /* an entry takes at most 1/8 of its shard */
  RESERVE = 1,            /* segments that only eviction may take */
  SPARE = 4,              /* free segments whose pages are kept */
  NONE = 0xffffffff,      /* no segment */

  STRIPES = 16, /* of the counters of a space */
  SECRET_BYTES = 192,
  IDS_MAX = 4096,
  MARKS_MAX = 64,
  MARK_PREFIX = 232 /* bytes; a longer one is cleared step by step */
};

/* ---- the index: see index.c ---- */

/* One cache line. A slot is in use when its tag is not 0. */
struct bucket {
  uint32_t version;             /* changes after every change of the bucket */
  uint32_t uses;                /* two bits for each slot; anyone may write */
  uint8_t tags[BUCKET_SLOTS];   /* of the hash, never 0 */
  uint8_t passed;               /* entries that found no slot here; 255: many */
  uint32_t items[BUCKET_SLOTS]; /* offsets in the shard's window */
};

struct page {
  struct bucket buckets[PAGE_BUCKETS];
};

/* Which page a hash belongs to, by its leading bits (below the shard's). */
struct directory {
  struct directory *older; /* replaced ones: readers may still look at them */
  uint32_t bits;
  uint32_t pages[]; /* 2^bits numbers of pages */
};

/* A slot of the index. */
struct place {
  struct bucket *bucket;
  struct bucket *home; /* where the probing began */
  unsigned slot;
};

/* ---- the log: see log.c ---- */

enum { ITEM_HEAD = 19, CHAIN_HEAD = 4 };
enum { STAMP_COUNT_BITS = 12 }; /* changes that a millisecond has numbers for */
enum { ITEM_CHAINED = 1, ITEM_WEIGHED = 2, ITEM_PINNED = 4, ITEM_DEAD = 8 };

/* An item's head, unpacked. */
struct item {
  uint64_t stamp;      /* when it was set: ms << 12, and a count */
  uint64_t expires_ms; /* 0: never */
  uint32_t id;         /* whose it is: of a space, at a time */
  uint32_t flags;      /* ITEM_ */
  uint32_t inlined;    /* bytes of the value that stand in the item */
  uint32_t key_len;
  uint32_t chain,
      chained;    /* first segment of the chain, bytes that lie there */
  uint32_t links; /* how many segments those are */
  uint32_t weight;
  uint32_t format;
};

/* WIDE: a segment before it reaches over this one, for a key so long. */
enum { SEGMENT_FREE, SEGMENT_SMALL, SEGMENT_MAIN, SEGMENT_CHAIN, SEGMENT_WIDE };

struct segment {
  uint32_t next, prev;   /* in its queue, or list of free ones (next only) */
  uint32_t used;         /* bytes written */
  uint32_t live;         /* bytes of items that the index points to */
  uint32_t state;        /* SEGMENT_ */
  uint32_t more;         /* segments behind it that belong to it */
  uint32_t weight;       /* of all items written */
  uint64_t first_expiry; /* of its items; UINT64_MAX: none expires */
  uint64_t last_expiry;  /* UINT64_MAX: some never do */
};

/* A FIFO of segments: appended to at the head, evicted from the tail. */
struct queue {
  uint32_t head, tail, count;
};

/* ---- policy ---- */

/* Fingerprints of keys that were evicted before they were used again. */
struct ghost {
  uint16_t (*lines)[32]; /* 31 fingerprints, a ring, and where it goes on */
  uint32_t count;        /* of lines */
};

enum { POLICIES = 5 };
struct policy {
  uint32_t small_permille; /* share of the small queue */
  uint32_t promote;        /* uses that take an entry on to the main one */
};
extern const struct policy store_policies[POLICIES];

struct shadow; /* shadow.c */

struct lease;
enum { LEASE_BUCKETS = 256 }; /* a power of two; loads in flight are few */

struct shard {
  pthread_mutex_t mutex; /* guards all below but what readers look at */
  struct store *store;
  struct directory *directory; /* readers load it */
  char *window;                /* the log's addresses; readers, too */
  struct segment *segments;    /* that have ever been in use */
  uint32_t segment_count, segment_room;
  uint32_t victim; /* the segment that is being emptied, or NONE */
  uint32_t spare_first, spare_count; /* free segments that keep their pages, */
  uint32_t cold_first;               /* and those that do not */
  uint32_t segments_used;
  size_t writable; /* bytes of the window that may be written */
  struct queue small, main;
  size_t dead;           /* bytes in the queues that no slot points to */
  size_t pinned;         /* bytes of pinned items */
  struct holding *held;  /* by id, as many as store.owners */
  uint64_t stamp;        /* of the last change */
  uint64_t entries;      /* live ones, of all spaces */
  uint64_t first_expiry; /* not later than that of any segment */
  struct ghost ghost;
  int full;             /* something was evicted for room */
  uint32_t sweep_at;    /* the segment that the sweep looks at next */
  uint32_t sweep_purge; /* store.purge when its pass began */
  uint32_t purged;      /* that it has ended with */
} __attribute__((aligned(64)));

/* Counts of one thread, which took it first. */
struct stripe {
  uintptr_t owner; /* of store_thread; 0: free */
  uint64_t hits, misses, sets, deletes, evictions, expired;
} __attribute__((aligned(64)));

/* Keys under a name, and what is counted of them. */
struct space {
  uint32_t words[2];  /* clears, inserts: see store_near */
  uint32_t id;        /* of new items; clear takes another */
  int counts_inserts; /* somebody keeps near copies of misses */
  struct space *next; /* in the store's list */
  struct view *views;
  struct stripe stripes[STRIPES + 1]; /* the last for those without one */
  char name[];                        /* "" has no name */
};

/* What a shard has stored under an id. */
struct holding {
  uint64_t entries, bytes;
};

/* A handle of a space. */
struct view {
  struct backend backend; /* first: a view is a backend */
  struct store *store;    /* holds one reference */
  struct space *space;    /* likewise */
  struct view *next;      /* in the space */
  store_watch_fn *watch;
  void *watch_ud;
};

/* A prefix that was cleared, as long as what it named is not freed. */
struct mark {
  uint32_t version; /* changes with every change */
  uint32_t id;      /* 0: not in use */
  uint64_t stamp;   /* items with a larger one came later */
  uint32_t purge;   /* the pass that frees */
  uint32_t length;
  char prefix[MARK_PREFIX];
};

struct store {
  const uint32_t *alive; /* 0 in a child after fork: see area.c */
  struct page *pages;
  uint32_t shard_bits; /* shards = 2^bits */
  uint32_t segment_bytes;
  size_t max_bytes;      /* used stays within */
  uint32_t sample_below; /* hashes that the shadow caches see; 0: none yet */
  uint32_t mark_count;
  uint8_t secret[SECRET_BYTES]; /* of the hash */

  size_t used __attribute__((aligned(64))); /* bytes, all of it */
  uint64_t lock_waits;                      /* of readers: see store_info */
  uint32_t policy;                          /* index in store_policies */

  pthread_mutex_t page_mutex; /* guards these four; the innermost lock */
  size_t page_count, page_room, pages_writable;
  uint64_t page_serial; /* pages made so far */

  pthread_mutex_t lease_mutex; /* guards these three; an innermost one, too */
  struct lease *leases[LEASE_BUCKETS];
  size_t lease_count; /* readable without it */
  uint64_t token;     /* the last one */

  pthread_mutex_t mutex; /* guards what follows */
  size_t window_bytes;   /* of each shard */
  char *mapping;         /* all of the addresses: pages, windows */
  size_t mapped;
  size_t references; /* store_close's one and one for each view */
  struct space *spaces;
  struct space **owners; /* by id: whose it is; NULL: of one that closed, or
                            free. Moved with all shards locked */
  uint32_t owner_count;
  uint32_t sweep_shard;
  uint32_t purge; /* passes that were asked for */
  struct mark *marks;
  struct shadow *shadow;
  uint32_t shards_opened; /* at first: later there may be fewer */
  struct shard shards[];
};

/* What one call is about: a key of a view at a moment. */
struct target {
  struct view *view;
  struct store *store;
  struct shard *shard;
  const char *ns, *key; /* the caller's; never NULL */
  size_t ns_len, key_len;
  uint64_t hash; /* of the two as if joined, and of the id */
  uint64_t now;  /* clock time in ms */
  uint32_t id;
};

/* What is to be stored. */
struct content {
  const void *bytes;
  size_t length;
  uint64_t expires_ms;
  uint64_t stamp; /* of a changed entry; 0: it is set now */
  uint32_t format, weight;
  int pin;
};

/* The arguments of BACKEND_KEY_ARGS, to pass them on. */
#define STORE_KEY self, now, ns, ns_len, key, key_len
/* Memory answers at once: only lease has a use for its wait. */
#define STORE_NO_WAIT struct backend_wait *wait __attribute__((unused))

#define shard_assert_locked(shard) \
  assert(pthread_mutex_trylock(&(shard)->mutex) == EBUSY)

static inline size_t target_length(const struct target *at) {
  return at->ns_len + at->key_len;
}

static inline struct shard *store_shard(struct store *store, uint64_t hash) {
  return &store->shards[hash >> 1 >> (63 - load_relaxed(&store->shard_bits))];
}

static inline uint32_t store_shard_count(const struct store *store) {
  return 1u << load_relaxed(&store->shard_bits);
}

/* What a shard may take when all take the same. */
static inline size_t store_fair(const struct store *store) {
  return load_relaxed(&store->max_bytes) >> load_relaxed(&store->shard_bits);
}

/* Whether a joined key begins with prefix; all begin with the empty one. */
static inline int store_begins_with(const char *key, size_t key_len,
                                    const char *prefix, size_t prefix_len) {
  return key_len >= prefix_len && bytes_equal(key, prefix, prefix_len);
}

/* ---- area.c: addresses, and what may be written of them ---- */

/* Reserves addresses for pages and windows. 0, or ENOMEM. */
int area_open(struct store *store, size_t max_bytes);
void area_close(struct store *store);
/* Sees to it that the shard's window may be written up to `end`. 1 or 0. */
int area_extend_window(struct shard *shard, size_t end);
/* The number of a fresh page without entries; NONE without memory. */
uint32_t area_page(struct store *store);
/* Gives back a segment's pages; addresses stay. */
void area_discard(void *start, size_t bytes);
/* Gives all index pages back. All shards are locked and empty. */
void area_forget_pages(struct store *store);

/* ---- index.c ---- */

static inline uint64_t index_bits(const struct store *store, uint64_t hash) {
  return hash << load_relaxed(&store->shard_bits);
}

static inline struct page *index_page(const struct store *store,
                                      const struct directory *directory,
                                      uint64_t hash) {
  uint64_t bits = index_bits(store, hash);
  uint32_t at = (uint32_t)(bits >> 1 >> (63 - directory->bits));
  return &store->pages[load_acquire(&directory->pages[at])];
}

static inline uint8_t index_tag(uint64_t hash) {
  uint8_t tag = (uint8_t)(hash >> 6);
  return tag ? tag : 1;
}

static inline struct bucket *index_bucket(struct page *page, uint64_t hash,
                                          unsigned probe) {
  return &page->buckets[(hash + probe) % PAGE_BUCKETS];
}

/* Bits of the slots with this tag. Without the lock the answer holds if the
 * version does. */
static inline unsigned index_match(const struct bucket *bucket, uint8_t tag) {
#if defined(__SSE2__) && !defined(STORE_TSAN)
  __m128i tags = _mm_loadu_si128((const __m128i *)bucket->tags);
  __m128i same = _mm_cmpeq_epi8(tags, _mm_set1_epi8((char)tag));
  return (unsigned)_mm_movemask_epi8(same) & ((1u << BUCKET_SLOTS) - 1);
#else
  unsigned bits = 0;
  for (unsigned i = 0; i < BUCKET_SLOTS; i++)
    bits |= (unsigned)(load_relaxed(&bucket->tags[i]) == tag) << i;
  return bits;
#endif
}

/* Makes the first page of an empty shard. 0, or ENOMEM. */
int index_open(struct shard *shard);
void index_close(struct shard *shard);
/* The slot of the target's entry; 0 when there is none. */
int index_find(const struct target *at, struct place *place);
/* The slot that points to this item, whose hash is given; 0: no slot does. */
int index_find_item(struct shard *shard, uint64_t hash, uint32_t offset,
                    struct place *place);
/* A slot that is not in use, for this hash; 0: all within reach are taken. */
int index_find_free(struct shard *shard, uint64_t hash, struct place *place);
/* Whether splitting the page of this hash would make room. */
int index_worth_split(const struct shard *shard, uint64_t hash);
/* Splits the page of this hash: 1; 0: no memory, or not worth it. */
int index_split(struct shard *shard, uint64_t hash);
/* Points a free slot, a used one, nothing to the item. */
void index_insert(const struct place *place, uint64_t hash, uint32_t offset);
void index_move(const struct place *place, uint32_t offset);
void index_remove(const struct place *place);
static inline unsigned index_uses(const struct place *place) {
  return load_relaxed(&place->bucket->uses) >> (2 * place->slot) & USES_MAX;
}
void index_set_uses(const struct place *place, unsigned uses);
static inline void index_note_use(struct bucket *bucket, unsigned slot) {
  uint32_t uses = load_relaxed(&bucket->uses);
  if ((uses >> (2 * slot) & USES_MAX) != USES_MAX)
    store_relaxed(&bucket->uses, uses + (1u << (2 * slot)));
}

/* ---- log.c ---- */

static inline void item_read(const char *p, struct item *item) {
  uint64_t first, second;
  uint16_t key_len;
  uint8_t format;
  bytes_out(&first, p, 8);
  bytes_out(&second, p + 8, 8);
  bytes_out(&key_len, p + 16, 2);
  bytes_out(&format, p + 18, 1);
  item->stamp = first >> 12;
  item->id = first & (IDS_MAX - 1);
  item->expires_ms = second >> 22;
  item->inlined = second >> 4 & 0x3ffff;
  item->flags = second & 15;
  item->key_len = (uint32_t)key_len + 1;
  item->format = format;
}

/* Bytes between the head and the key. */
static inline unsigned item_extra_of(unsigned flags) {
  return (flags & ITEM_CHAINED ? 8 : 0) + (flags & ITEM_WEIGHED ? 4 : 0);
}
static inline unsigned item_extra(const struct item *item) {
  return item_extra_of(item->flags);
}

static inline size_t item_size(const struct item *item) {
  return ITEM_HEAD + item_extra(item) + item->key_len + item->inlined;
}

static inline const char *item_key(const char *p, const struct item *item) {
  return p + ITEM_HEAD + item_extra(item);
}

static inline size_t chain_payload(const struct store *store) {
  return load_relaxed(&store->segment_bytes) - CHAIN_HEAD;
}

/* The rest of the head. */
void item_read_extra(const struct store *store, const char *p,
                     struct item *item);
static inline size_t item_length(const struct item *item) {
  return item->inlined + (size_t)item->chained;
}
static inline int item_expired(const struct item *item, uint64_t now) {
  return item->expires_ms != 0 && item->expires_ms <= now;
}
/* Copies the value (item_read_extra was called); 0: the chain made no sense, so
 * the item was no longer one. */
int item_copy_value(const struct shard *shard, const char *p,
                    const struct item *item, void *to);
/* The hash of the item's key, as a target's. */
uint64_t item_hash(const struct store *store, const char *p,
                   const struct item *item);

/* Is it the target's? *second: the second eight bytes of its head. */
static inline int item_matches(const struct target *at, const char *p,
                               uint64_t *second) {
  uint64_t first;
  uint16_t key_len;
  bytes_out(&first, p, 8);
  bytes_out(&key_len, p + 16, 2);
  if ((first & (IDS_MAX - 1)) != at->id || key_len + 1u != target_length(at))
    return 0;
  bytes_out(second, p + 8, 8);
  const char *key = p + ITEM_HEAD + item_extra_of(*second & 15);
  return (at->ns_len == 0 || bytes_equal(key, at->ns, at->ns_len)) &&
         bytes_equal(key + at->ns_len, at->key, at->key_len);
}

static inline char *log_item(const struct shard *shard, uint32_t offset) {
  return shard->window + offset;
}
static inline uint32_t log_segment(const struct shard *shard, uint32_t offset) {
  return offset / shard->store->segment_bytes;
}
/* The shape of a new item: sizes, chain links. 0; ETOOLARGE. */
int log_plan(const struct target *at, const struct content *content,
             struct item *item);
/* Bytes that storing this item in the queue takes from the bound, but for its
 * weight: segments, and the table of them. SIZE_MAX: no row of free segments is
 * long enough for its key. */
size_t log_bytes_needed(struct shard *shard, uint32_t state,
                        const struct item *item);
/* Writes a new item at the head of a queue (SEGMENT_SMALL or MAIN); room was
 * made. 1 with *offset; 0 without memory. */
int log_append(const struct target *at, uint32_t state, struct item *item,
               const struct content *content, uint32_t *offset);
/* Copies an entry's item to the head of a queue: 1; 0: no segment to be had.
 * changed: with this head (item_read_extra was called), not its own. */
int log_move(struct shard *shard, const struct place *place, uint32_t state,
             const struct item *item, int changed);
/* The queue that an entry is in. */
uint32_t log_state(const struct shard *shard, const struct place *place);
/* The item is no longer pointed to: its bytes are dead, its chain free. */
void log_forget(struct shard *shard, uint32_t offset, const struct item *item);
/* Takes a segment out of its queue; frees one that is out and empty; makes one
 * that is out the head of a queue. */
void log_unlink_segment(struct shard *shard, uint32_t number);
void log_free_segment(struct shard *shard, uint32_t number);
void log_requeue(struct shard *shard, uint32_t number, uint32_t state);
/* An empty log; and from one without live items back to that. */
void log_open(struct shard *shard);
void log_forget_all(struct shard *shard);
size_t log_live_bytes(const struct shard *shard);

/* ---- evict.c ---- */

/* Evicts until `bytes` more fit below the bound, beside the reserve: 1; 0:
 * nothing is left to evict. */
int evict_for(struct shard *shard, size_t bytes, uint64_t now);
/* Evicts until this shard has fewer segments: 1; 0: it is left with what is
 * pinned. */
int evict_more(struct shard *shard, uint64_t now);
/* The same for the bound itself, from all shards. Locks by itself. */
void evict_all_over(struct store *store);
/* Evicts all that the shard has, pinned or not. */
void evict_everything(struct shard *shard);
/* Drops expired and cleared items of a segment; how many it looked at. */
size_t evict_dead(struct shard *shard, uint32_t number, uint64_t now);
/* Evicts the least used of the hash's home bucket. */
void evict_from_bucket(struct shard *shard, uint64_t hash);
/* Takes an entry out for a reason: index, log, counters, watchers. */
void entry_drop(struct shard *shard, const struct place *place, int reason);
/* Its two halves: counts an item in (1) or out (-1); what is to be done about
 * one that no slot points to any more. */
void entry_count(struct shard *shard, const struct item *item, int sign);
void entry_leave(struct shard *shard, uint32_t offset, struct item *item,
                 int reason);
/* Counts and tells the watchers that an entry has left. value may be NULL. */
void entry_tell(const struct store *store, const struct item *item,
                const char *key, int reason, const void *value);
/* The reason why an item is as good as gone; 0: it is live. */
int entry_gone(const struct store *store, const char *p,
               const struct item *item, uint64_t now);

/* ---- ghost.c, shadow.c ---- */

void ghost_add(struct shard *shard, uint64_t hash);
/* Was it evicted lately? Forgets it, too. */
int ghost_take(struct shard *shard, uint64_t hash);
void ghost_close(struct shard *shard);

static inline int shadow_samples(const struct store *store, uint64_t hash) {
  return (uint32_t)(hash >> 14) < load_relaxed(&store->sample_below);
}
/* Shows a request to the shadow caches, unless another thread is at them. No
 * lock needed. */
void shadow_request(struct store *store, uint64_t hash);
/* The store is full, with so many entries: makes the shadow caches, or makes
 * them anew when that has changed a lot. */
void shadow_fit(struct store *store, uint64_t entries);
/* Makes them as large as the present bound allows. */
void shadow_resize(struct store *store);
size_t shadow_bytes(const struct store *store);
void shadow_close(struct store *store);

/* ---- layout.c ---- */

/* How a bound is divided. */
struct layout {
  uint32_t shard_bits, segment_bytes;
};
struct layout layout_choose(size_t max_bytes, uint32_t shards_most);
/* Makes an index and a log in each shard of the layout. 0; ENOMEM. */
int layout_open(struct store *store, struct layout layout);

/* ---- store.c ---- */

void store_charge(struct store *store, ptrdiff_t bytes);
/* What the id adds to the hash. */
static inline uint64_t store_id_hash(uint32_t id) {
  return id * UINT64_C(0x9e3779b97f4a7c15);
}
/* 0; EINVAL for a bad length; ECLOSED after fork. */
int store_check_key(const struct view *view, size_t ns_len, size_t key_len);
uint64_t store_hash(const struct store *store, uint32_t id, const char *key,
                    size_t key_len);
/* Fills *at, no lock needed. 0; EINVAL for a bad length; ECLOSED after fork. */
int store_aim(struct target *at, BACKEND_KEY_ARGS);
/* The two ends of a call that writes: aim and lock, unlock and pass rc on. */
int store_begin(struct target *at, BACKEND_KEY_ARGS);
int store_end(struct target *at, int rc);
void store_close_view(struct backend *self);
void store_lock_all(struct store *store);
void store_unlock_all(struct store *store);
/* This thread's counters in the space; the common ones when it has none. */
struct stripe *store_take_stripe(struct space *space, uintptr_t self);
static inline uintptr_t store_thread(void) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_thread_pointer)
#define STORE_THREAD_POINTER
#endif
#endif
#ifdef STORE_THREAD_POINTER
  return (uintptr_t)__builtin_thread_pointer();
#else
  return (uintptr_t)pthread_self();
#endif
}
static inline uint32_t store_stripe_number(uintptr_t self) {
  return (uint32_t)(self >> 12) * 2654435769u >> 28;
}
static inline struct stripe *store_stripe(struct space *space) {
  uintptr_t self = store_thread();
  struct stripe *stripe = &space->stripes[store_stripe_number(self)];
  return load_relaxed(&stripe->owner) == self ? stripe
                                              : store_take_stripe(space, self);
}
/* A locked instruction would keep a get from overlapping with the next. */
static inline void stripe_add_to(const struct space *space,
                                 const struct stripe *stripe, uint64_t *field,
                                 uint64_t n) {
  if (stripe == &space->stripes[STRIPES])
    add_relaxed(field, n);
  else
    store_relaxed(field, *field + n);
}
#define stripe_add(space, field, n)                                \
  do {                                                             \
    struct stripe *stripe_ = store_stripe(space);                  \
    stripe_add_to(space, stripe_, &stripe_->field, (uint64_t)(n)); \
  } while (0)
/* now + ttl_ms as an item can hold it; 0 for BACKEND_TTL_NEVER. */
uint64_t store_expiry(uint64_t now, uint64_t ttl_ms);
/* A number that is larger than any given before in this shard. */
uint64_t store_stamp(struct shard *shard, uint64_t now);
/* One that is larger than any in the store; all later ones are larger still.
 * All shards are locked. */
uint64_t store_newest_stamp(struct store *store, uint64_t now);
/* The next version of an entry that keeps the time at which it was set. */
uint64_t store_next_stamp(struct shard *shard, const struct item *item);

/* ---- write.c ---- */

/* Whether a joined key is the target's. */
int store_joined_equal(const struct target *at, const char *key, size_t length);
void store_join(const struct target *at, char *out);
/* The live entry, with its item; one past its time is dropped. 1 or 0. */
int store_find(struct target *at, struct place *place, struct item *item);
/* Sets and poisons: 1, or an error that left all as it was. */
int store_put(struct target *at, const struct content *content);
/* Sets the time of expiry of a live entry: 1, 0 when there is none, an error.
 */
int store_put_expiry(struct target *at, uint64_t expires_ms);
/* Removes on request and poisons: 1, or 0 when there was none. */
int store_delete(struct target *at);
void store_describe(const struct item *item, struct backend_item *out);
struct content store_content(uint64_t now, const void *bytes, size_t length,
                             uint32_t format, uint64_t ttl_ms);

/* ---- read.c ---- */

int store_get(BACKEND_KEY_ARGS, void *buf, size_t cap, struct backend_item *out,
              struct backend_wait *wait);
int store_get_many(struct backend *self, uint64_t now, const char *ns,
                   size_t ns_len, const struct backend_slice *keys, size_t n,
                   void *buf, size_t cap, size_t *used,
                   struct backend_item *items, struct backend_wait *wait);
/* Looks an entry up without noting a use: HIT with *out, MISS. No lock. */
int store_peek(struct target *at, struct backend_item *out);
/* Notes a use: 1, or 0 when there is no such entry. No lock. */
int store_note_use(struct target *at);

/* ---- clear.c, sweep.c ---- */

/* store_sweep until all that was cleared is freed, or this many were seen. */
void store_sweep_some(struct store *store, uint64_t now, size_t entries);
int store_clear(struct backend *self, uint64_t now, const char *prefix,
                size_t prefix_len, uint64_t *cursor, struct backend_wait *wait);
/* Gives a space a new id: what it had is cleared. All shards are locked. 0;
 * ENOMEM. */
int store_renew(struct store *store, struct space *space);
int store_scan(struct backend *self, uint64_t now, const char *prefix,
               size_t prefix_len, uint64_t *cursor, size_t limit,
               backend_scan_fn *fn, void *ud, struct backend_wait *wait);
/* Was the item's key cleared by prefix after it was set? */
int mark_covers(const struct store *store, const char *p,
                const struct item *item);

/* ---- lease.c ---- */

/* The key changed: a load of it in flight is not to be stored. */
void store_poison_lease(const struct target *at);
static inline void store_poison(const struct target *at) {
  if (load_relaxed(&at->store->lease_count) > 0)
    store_poison_lease(at);
}
/* The same for every key of the space that begins with prefix. */
void store_poison_prefix(struct store *store, struct space *space,
                         const char *prefix, size_t prefix_len);
/* Ends every load that this view has begun, and gives back who waits for them.
 * Locks and unlocks by itself. */
struct backend_wait *store_end_leases(struct view *view);
/* Those ask again, if others keep the space open; else there is nobody to ask,
 * and they get an error. */
void store_wake_closed(struct backend_wait *waits, int shared);
/* The calls of backend_ops with these names. They lock by themselves. */
int store_lease(BACKEND_KEY_ARGS, void *buf, size_t cap,
                struct backend_item *out, struct backend_wait *wait);
int store_refresh(BACKEND_KEY_ARGS, struct backend_item *out,
                  struct backend_wait *wait);
int store_fill(BACKEND_KEY_ARGS, uint64_t token, const void *bytes,
               size_t length, uint32_t format, uint64_t ttl_ms);
int store_abandon(BACKEND_KEY_ARGS, uint64_t token, const char *message,
                  size_t message_len);
int store_waiters(BACKEND_KEY_ARGS, uint64_t token);
int store_valid(BACKEND_KEY_ARGS, uint64_t token);
int store_unwait(struct backend *self, struct backend_wait *wait);

/* ---- calls.c ---- */

/* What a view's backend points to. */
extern const struct backend_ops store_calls;

#endif
