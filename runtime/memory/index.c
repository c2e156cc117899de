/* The index: from a key's hash to the offset of its item.
 *
 * hash: | shard | directory ...  |  (sampling)  | tag: 8 | bucket: 6 |
 *
 *   directory           page, 4 KiB             bucket, 64 bytes
 *   +---+      +----------------------------+   version, uses, tags[11],
 *   | 0 |----->| bucket 0 | 1 | ...     | 63|   passed, items[11]
 *   | 1 |--.   +----------------------------+
 *   | 2 |--+-->| ...                        |
 *   | 3 |---.
 *   +---+    `-> ...
 *
 * Extendible hashing (Fagin et al., TODS 1979): when a page has no slot left
 * for an entry it is split in two, and when it was named by one entry of the
 * directory only, that is doubled. Either step is bounded, however large the
 * index is, so that no call has to pay for growth; pages stay where they are.
 * Within its page an entry lies in one of the PROBES buckets from its home on
 * (cyclic); `passed` counts those that had to go on, so that a search knows
 * where to end, and nothing is left behind by a removal.
 *
 * Readers come without a lock (read.c). For them:
 * - a change of a bucket is one store (a slot's item, or its tag), and after it
 *   the version is raised, before the call ends and before any memory that the
 *   old item had is written again. Who reads a bucket and finds the version as
 *   it was has read a state that was true at some moment in between. So there
 *   is no odd version, and nobody to wait for: a reader begins anew only when a
 *   writer has got on;
 * - an entry never moves within a page. A split copies entries to the new page,
 *   then turns the directory, then removes them from the old page: who misses a
 *   key and finds the directory as it was has missed it for good;
 * - an entry that goes into a bucket other than its home raises the version of
 *   its home as well, and a split raises all versions of the page: so a miss is
 *   true as long as its home's version is (store_near).
 */
#include <stdlib.h>

#include "memory/internal.h"

enum {
  PASSED_MANY = 255, /* stays: how many is no longer known */
  SPLIT_LEAST = PAGE_BUCKETS * BUCKET_SLOTS / 2 /* entries in a page */
};

static size_t directory_bytes(uint32_t bits) {
  return sizeof(struct directory) + (sizeof(uint32_t) << bits);
}

static struct directory *new_directory(uint32_t bits) {
  struct directory *directory = malloc(directory_bytes(bits));
  if (directory) {
    directory->bits = bits;
    directory->older = NULL;
  }
  return directory;
}

/* Takes the one of a single page out of those that were in use: a store that is
 * laid out anew needs no memory for it. A reader may look at it all the while.
 */
static struct directory *reuse_directory(struct shard *shard) {
  struct directory *directory, **link = &shard->directory;
  while (*link && (*link)->bits > 0)
    link = &(*link)->older;
  directory = *link;
  if (directory && link != &shard->directory)
    *link = directory->older;
  return directory;
}

int index_open(struct shard *shard) {
  uint32_t page = area_page(shard->store);
  if (page == NONE)
    return BACKEND_ENOMEM;
  store_charge(shard->store, PAGE_BYTES);
  struct directory *directory = reuse_directory(shard);
  if (!directory) {
    directory = new_directory(0);
    if (!directory) /* the page is lost; the store, too */
      return BACKEND_ENOMEM;
    store_charge(shard->store, (ptrdiff_t)directory_bytes(0));
  }
  store_release(&directory->pages[0], page);
  if (directory != shard->directory) {
    directory->older = shard->directory;
    store_release(&shard->directory, directory);
  }
  return 0;
}

void index_close(struct shard *shard) {
  for (struct directory *each = shard->directory, *older; each; each = older) {
    older = each->older;
    free(each);
  }
}

static void bump(struct bucket *bucket) {
  store_release(&bucket->version, bucket->version + 1);
}

/* ---- looking ---- */

static struct page *page_of(const struct shard *shard, uint64_t hash) {
  return index_page(shard->store, shard->directory, hash);
}

/* The slot of a target's entry or, without a target, the one that points to an
 * offset. Inlined into both callers, so that neither asks which it is. */
static inline __attribute__((always_inline)) int
search(const struct shard *shard, uint64_t hash, const struct target *at,
       uint32_t offset, struct place *place) {
  struct page *page = page_of(shard, hash);
  uint8_t tag = index_tag(hash);
  uint64_t second;
  place->home = index_bucket(page, hash, 0);
  for (unsigned probe = 0; probe < PROBES; probe++) {
    struct bucket *bucket = index_bucket(page, hash, probe);
    for (unsigned bits = index_match(bucket, tag); bits; bits &= bits - 1) {
      unsigned slot = (unsigned)__builtin_ctz(bits);
      uint32_t item = bucket->items[slot];
      if (at ? item_matches(at, log_item(shard, item), &second)
             : item == offset) {
        place->bucket = bucket;
        place->slot = slot;
        return 1;
      }
    }
    if (bucket->passed == 0)
      break;
  }
  return 0;
}

int index_find(const struct target *at, struct place *place) {
  shard_assert_locked(at->shard);
  return search(at->shard, at->hash, at, 0, place);
}

int index_find_item(struct shard *shard, uint64_t hash, uint32_t offset,
                    struct place *place) {
  return search(shard, hash, NULL, offset, place);
}

static int find_free_in(struct page *page, uint64_t hash, struct place *place) {
  place->home = index_bucket(page, hash, 0);
  for (unsigned probe = 0; probe < PROBES; probe++) {
    struct bucket *bucket = index_bucket(page, hash, probe);
    unsigned bits = index_match(bucket, 0);
    if (bits) {
      place->bucket = bucket;
      place->slot = (unsigned)__builtin_ctz(bits);
      return 1;
    }
  }
  return 0;
}

int index_find_free(struct shard *shard, uint64_t hash, struct place *place) {
  return find_free_in(page_of(shard, hash), hash, place);
}

/* ---- changes ---- */

void index_set_uses(const struct place *place, unsigned uses) {
  unsigned shift = 2 * place->slot;
  uint32_t others = load_relaxed(&place->bucket->uses) & ~(3u << shift);
  store_relaxed(&place->bucket->uses, others | uses << shift);
}

/* The buckets between the home and the entry's own. */
static struct bucket *next_bucket(struct bucket *bucket) {
  uintptr_t page = (uintptr_t)bucket / PAGE_BYTES * PAGE_BYTES;
  uintptr_t offset = ((uintptr_t)bucket + sizeof *bucket) % PAGE_BYTES;
  return (struct bucket *)(page + offset);
}

/* `passed` first: who does not see it yet has read before the insertion. */
void index_insert(const struct place *place, uint64_t hash, uint32_t offset) {
  struct bucket *own = place->bucket;
  for (struct bucket *b = place->home; b != own; b = next_bucket(b))
    if (b->passed != PASSED_MANY)
      store_release(&b->passed, b->passed + 1);
  index_set_uses(place, 0);
  store_release(&own->items[place->slot], offset);
  store_release(&own->tags[place->slot], index_tag(hash));
  bump(own);
  if (place->home != own)
    bump(place->home);
}

void index_move(const struct place *place, uint32_t offset) {
  store_release(&place->bucket->items[place->slot], offset);
  bump(place->bucket);
}

void index_remove(const struct place *place) {
  struct bucket *own = place->bucket;
  store_release(&own->tags[place->slot], 0);
  bump(own);
  for (struct bucket *b = place->home; b != own; b = next_bucket(b))
    if (b->passed != PASSED_MANY)
      store_release(&b->passed, b->passed - 1);
}

/* ---- growth ---- */

struct split {
  struct shard *shard;
  struct page *old, *new;
  uint64_t bit; /* of index_bits: set in the new page's hashes */
};

/* How many of the directory's entries name the page of this one: 2^(these
 * bits), an aligned block. */
static uint32_t spare_bits(const struct directory *directory, uint32_t at) {
  uint32_t page = directory->pages[at], bits = 0;
  while (bits < directory->bits &&
         directory->pages[(at >> bits ^ 1) << bits] == page)
    bits++;
  return bits;
}

/* Readers may still have the old directory, which stays right for them: what
 * has moved since they find out at the end. */
static int double_directory(struct shard *shard) {
  struct directory *old = shard->directory;
  if (old->bits == DIRECTORY_BITS)
    return 0;
  struct directory *new = new_directory(old->bits + 1);
  if (!new)
    return 0;
  for (uint32_t i = 0; i < 1u << old->bits; i++)
    new->pages[2 * i] = new->pages[2 * i + 1] = old->pages[i];
  new->older = old;
  store_release(&shard->directory, new);
  store_charge(shard->store, (ptrdiff_t)directory_bytes(new->bits));
  return 1;
}

static unsigned count_entries(const struct page *page) {
  unsigned entries = 0;
  for (unsigned i = 0; i < PAGE_BUCKETS; i++)
    entries += BUCKET_SLOTS -
               (unsigned)__builtin_popcount(index_match(&page->buckets[i], 0));
  return entries;
}

/* The hashes of a bucket's entries, for which their keys must be read. */
static void hash_bucket(const struct split *s, const struct bucket *bucket,
                        uint64_t *hashes) {
  struct item item;
  for (unsigned i = 0; i < BUCKET_SLOTS; i++) {
    if (bucket->tags[i] == 0)
      continue;
    const char *p = log_item(s->shard, bucket->items[i]);
    item_read(p, &item);
    hashes[i] = item_hash(s->shard->store, p, &item);
  }
}

static void prefetch_bucket(const struct split *s, unsigned number) {
  const struct bucket *bucket = &s->old->buckets[number % PAGE_BUCKETS];
  for (unsigned i = 0; i < BUCKET_SLOTS; i++)
    if (bucket->tags[i] != 0) /* a head and a short key: two lines at most */
      __builtin_prefetch(log_item(s->shard, bucket->items[i]));
}

/* What becomes of a bucket's entries: bits of slots. */
struct fate {
  uint16_t moved, lost;
};

/* Copies those of the new page, which nobody knows yet. It holds a part of what
 * the old one held; should an entry find no room all the same, it is lost. */
static struct fate copy_bucket(const struct split *s, unsigned number,
                               const uint64_t *hashes) {
  const struct bucket *bucket = &s->old->buckets[number];
  struct fate fate = {0, 0};
  for (unsigned i = 0; i < BUCKET_SLOTS; i++) {
    struct place to;
    if (bucket->tags[i] == 0 ||
        !(index_bits(s->shard->store, hashes[i]) & s->bit))
      continue;
    if (!find_free_in(s->new, hashes[i], &to)) {
      fate.lost |= (uint16_t)(1u << i);
      continue;
    }
    index_insert(&to, hashes[i], bucket->items[i]);
    index_set_uses(&to, load_relaxed(&bucket->uses) >> (2 * i) & USES_MAX);
    fate.moved |= (uint16_t)(1u << i);
  }
  return fate;
}

/* Takes the copied ones out, and raises every version: near copies of misses
 * have to look again. */
static void remove_copied(const struct split *s, const struct fate *fates,
                          uint64_t (*hashes)[BUCKET_SLOTS]) {
  for (unsigned b = 0; b < PAGE_BUCKETS; b++) {
    for (unsigned i = 0; i < BUCKET_SLOTS; i++) {
      struct place place = {&s->old->buckets[b],
                            index_bucket(s->old, hashes[b][i], 0), i};
      if (fates[b].moved >> i & 1)
        index_remove(&place);
      else if (fates[b].lost >> i & 1)
        entry_drop(s->shard, &place, STORE_SIZE);
    }
    bump(&s->old->buckets[b]);
  }
}

static void turn_directory(struct directory *directory, uint32_t at,
                           uint32_t bits, uint32_t page) {
  uint32_t half = 1u << (bits - 1), first = (at >> bits << bits) + half;
  for (uint32_t i = 0; i < half; i++)
    store_release(&directory->pages[first + i], page);
}

/* With many hashes alike a smaller page would not help. */
int index_worth_split(const struct shard *shard, uint64_t hash) {
  return count_entries(page_of(shard, hash)) >= SPLIT_LEAST;
}

int index_split(struct shard *shard, uint64_t hash) {
  uint64_t hashes[PAGE_BUCKETS][BUCKET_SLOTS] = {{0}};
  struct fate fates[PAGE_BUCKETS];
  struct split s = {.shard = shard, .old = page_of(shard, hash)};
  uint64_t bits = index_bits(shard->store, hash);
  shard_assert_locked(shard);
  if (!index_worth_split(shard, hash))
    return 0;
  struct directory *d = shard->directory;
  uint32_t at = (uint32_t)(bits >> 1 >> (63 - d->bits));
  if (spare_bits(d, at) == 0 && !double_directory(shard))
    return 0;
  uint32_t number = area_page(shard->store);
  if (number == NONE)
    return 0;
  store_charge(shard->store, PAGE_BYTES);
  d = shard->directory;
  at = (uint32_t)(bits >> (64 - d->bits));
  uint32_t spare = spare_bits(d, at);
  s.new = &shard->store->pages[number];
  s.bit = UINT64_C(1) << (64 - d->bits + spare - 1);
  prefetch_bucket(&s, 0);
  prefetch_bucket(&s, 1);
  for (unsigned b = 0; b < PAGE_BUCKETS; b++) {
    prefetch_bucket(&s, b + 2);
    hash_bucket(&s, &s.old->buckets[b], hashes[b]);
  }
  for (unsigned b = 0; b < PAGE_BUCKETS; b++)
    fates[b] = copy_bucket(&s, b, hashes[b]);
  turn_directory(d, at, spare, number);
  remove_copied(&s, fates, hashes);
  return 1;
}
