#include "store_room.h"

struct room open_room_of(size_t max_bytes) {
  struct room room;
  assert_int_equal(store_open(&room.store, max_bytes), 0);
  assert_int_equal(store_view(room.store, &room.memory), 0);
  return room;
}

void leave_room(struct room *room) {
  if (room->memory)
    room->memory->ops->close(room->memory);
  store_close(room->store);
}

int open_room(void **state) {
  struct room *room = malloc(sizeof *room);
  *room = open_room_of(ROOMY);
  *state = room;
  return 0;
}

int close_room(void **state) {
  struct room *room = *state;
  leave_room(room);
  free(room);
  return 0;
}

struct backend *memory_of(void **state) {
  return ((struct room *)*state)->memory;
}

struct backend *second_view(void **state) {
  struct backend *other;
  assert_int_equal(store_view(((struct room *)*state)->store, &other), 0);
  return other;
}

int set_for(struct backend *m, uint64_t now, const char *key, const char *value,
            uint64_t ttl_ms) {
  return m->ops->set(m, now, KEY(key), value, strlen(value), BACKEND_BYTES,
                     ttl_ms, NULL);
}

int set(struct backend *m, const char *key, const char *value) {
  return set_for(m, NOW, key, value, BACKEND_TTL_NEVER);
}

const char *get_at(struct backend *m, uint64_t now, const char *key) {
  static char buf[4096];
  struct backend_item item;
  int rc = m->ops->get(m, now, KEY(key), buf, sizeof buf - 1, &item, NULL);
  if (rc != BACKEND_HIT)
    return NULL;
  buf[item.length] = 0;
  return buf;
}

const char *get(struct backend *m, const char *key) {
  return get_at(m, NOW, key);
}

int exists(struct backend *m, uint64_t now, const char *key) {
  return m->ops->exists(m, now, KEY(key), NULL);
}

struct backend_item info(struct backend *m, const char *key) {
  struct backend_item item = {0};
  m->ops->info(m, NOW, KEY(key), &item, NULL);
  return item;
}

int add(struct backend *m, uint64_t now, const char *key, const char *value) {
  return m->ops->add(m, now, KEY(key), value, strlen(value), BACKEND_BYTES, 0,
                     NULL);
}

int remove_key(struct backend *m, const char *key) {
  return m->ops->remove(m, NOW, KEY(key), NULL);
}

int clear(struct backend *m, const char *prefix) {
  return m->ops->clear(m, NOW, prefix, strlen(prefix), NULL, NULL);
}

int increment(struct backend *m, const char *key, int64_t delta, int64_t *sum) {
  return m->ops->increment(m, NOW, KEY(key), delta, 0, sum, NULL);
}

struct backend_stats stats(struct backend *m) {
  struct backend_stats out;
  m->ops->stats(m, NOW, &out);
  return out;
}

void sweep_all(struct store *store, uint64_t now) {
  while (store_sweep(store, now, 10000)) {
  }
}

uint64_t random_next(uint64_t *seed) {
  *seed ^= *seed >> 12;
  *seed ^= *seed << 25;
  *seed ^= *seed >> 27;
  return *seed * UINT64_C(2685821657736338717) >> 16;
}

/* ---- check_store ---- */

/* What a shard's entries add up to. */
struct count {
  struct shard *shard;
  uint64_t entries, weights, in_chains;
  uint64_t in_rows; /* segments behind a wide one */
  uint64_t pinned;
  uint32_t *live;        /* bytes, by segment */
  uint32_t *pointed;     /* items, by segment */
  uint8_t *chained;      /* by segment: is it some entry's? */
  uint8_t *covered;      /* or behind a wide one */
  struct holding *held;  /* by id */
  uint32_t *page_owners; /* by page: shard + 1 */
};

/* A broken promise, in its own words: the locks are released before it is told,
 * as what fails goes on to close the store. */
#define REQUIRE(condition) \
  do {                     \
    if (!(condition))      \
      return #condition;   \
  } while (0)
#define PASS_ON(call)          \
  do {                         \
    const char *broken = call; \
    if (broken)                \
      return broken;           \
  } while (0)

static const char *check_chain(struct count *c, const struct item *item) {
  const struct shard *shard = c->shard;
  size_t segment = shard->store->segment_bytes;
  uint32_t at = item->chain;
  for (uint32_t i = 0; i < item->links; i++) {
    REQUIRE(at < shard->segment_count);
    REQUIRE(shard->segments[at].state == SEGMENT_CHAIN);
    REQUIRE(!c->chained[at]); /* a link is of one entry only */
    c->chained[at] = 1;
    c->in_chains++;
    memcpy(&at, shard->window + at * segment, CHAIN_HEAD);
  }
  REQUIRE((item->links > 0) == ((item->flags & ITEM_CHAINED) != 0));
  return NULL;
}

static const char *check_expiry(const struct count *c,
                                const struct segment *segment,
                                const struct item *item) {
  if (item->expires_ms == 0) {
    REQUIRE(segment->last_expiry == UINT64_MAX);
    return NULL;
  }
  REQUIRE(segment->first_expiry <= item->expires_ms);
  REQUIRE(segment->last_expiry >= item->expires_ms);
  REQUIRE(c->shard->first_expiry <= item->expires_ms);
  return NULL;
}

static void count_item(struct count *c, const struct item *item) {
  uint64_t bytes = ITEM_HEAD + item_extra(item) + item->key_len +
                   item_length(item) + item->weight;
  c->entries++;
  c->weights += item->weight;
  c->held[item->id].entries++;
  c->held[item->id].bytes += bytes;
  if (item->flags & ITEM_PINNED)
    c->pinned += bytes;
}

static const char *check_item(struct count *c, uint32_t offset,
                              struct item *item) {
  struct shard *shard = c->shard;
  uint32_t number = log_segment(shard, offset);
  REQUIRE(number < shard->segment_count);
  const struct segment *segment = &shard->segments[number];
  const char *p = log_item(shard, offset);
  item_read(p, item);
  item_read_extra(shard->store, p, item);
  REQUIRE(segment->state == SEGMENT_SMALL || segment->state == SEGMENT_MAIN);
  REQUIRE(offset % shard->store->segment_bytes + item_size(item) <=
          segment->used);
  REQUIRE((item->flags & ITEM_DEAD) == 0);
  REQUIRE(item->id > 0 && item->id < shard->store->owner_count);
  c->live[number] += (uint32_t)item_size(item);
  c->pointed[number]++;
  count_item(c, item);
  PASS_ON(check_expiry(c, segment, item));
  return check_chain(c, item);
}

static const char *check_slot(struct count *c, struct page *page,
                              unsigned number, unsigned slot, unsigned *passed,
                              const struct directory *directory) {
  struct store *store = c->shard->store;
  const struct bucket *bucket = &page->buckets[number];
  struct item item;
  PASS_ON(check_item(c, bucket->items[slot], &item));
  uint64_t hash =
      item_hash(store, log_item(c->shard, bucket->items[slot]), &item);
  unsigned home = hash % PAGE_BUCKETS, away = (number - home) % PAGE_BUCKETS;
  REQUIRE(store_shard(store, hash) == c->shard);
  REQUIRE(index_page(store, directory, hash) == page);
  REQUIRE(index_tag(hash) == bucket->tags[slot]);
  REQUIRE(away < PROBES);
  for (unsigned i = 0; i < away; i++)
    passed[(home + i) % PAGE_BUCKETS]++;
  return NULL;
}

static const char *check_page(struct count *c, struct page *page,
                              const struct directory *directory) {
  unsigned passed[PAGE_BUCKETS] = {0};
  for (unsigned b = 0; b < PAGE_BUCKETS; b++)
    for (unsigned slot = 0; slot < BUCKET_SLOTS; slot++)
      if (page->buckets[b].tags[slot] != 0)
        PASS_ON(check_slot(c, page, b, slot, passed, directory));
  for (unsigned b = 0; b < PAGE_BUCKETS; b++)
    REQUIRE(page->buckets[b].passed == 255 ||
            page->buckets[b].passed == passed[b]);
  return NULL;
}

/* Each page is named by one aligned block of a directory. */
static const char *check_directory(struct count *c, uint32_t *pages) {
  const struct store *store = c->shard->store;
  const struct directory *d = c->shard->directory;
  for (uint32_t at = 0, end; at < 1u << d->bits; at = end) {
    uint32_t number = d->pages[at];
    for (end = at; end < 1u << d->bits && d->pages[end] == number;)
      end++;
    uint32_t size = end - at;
    REQUIRE((size & (size - 1)) == 0 && at % size == 0);
    REQUIRE(number < store->page_count);
    REQUIRE(c->page_owners[number] == 0);
    c->page_owners[number] = 1;
    ++*pages;
    PASS_ON(check_page(c, &store->pages[number], d));
  }
  return NULL;
}

/* A segment that reaches over others has one item, or none any more. */
static const char *check_row(struct count *c, uint32_t number) {
  const struct segment *segment = &c->shard->segments[number];
  size_t bytes = c->shard->store->segment_bytes;
  REQUIRE(segment->used <= (segment->more + 1) * bytes);
  REQUIRE(segment->more == 0 || segment->used > segment->more * bytes);
  REQUIRE(segment->more == 0 || c->pointed[number] <= 1);
  REQUIRE(number + segment->more < c->shard->segment_count);
  for (uint32_t i = 1; i <= segment->more; i++) {
    REQUIRE(segment[i].state == SEGMENT_WIDE);
    REQUIRE(!c->covered[number + i]);
    c->covered[number + i] = 1;
    c->in_rows++;
  }
  return NULL;
}

static const char *check_queue(struct count *c, const struct queue *queue,
                               uint32_t state, size_t *dead) {
  const struct segment *segments = c->shard->segments;
  uint32_t before = NONE, count = 0;
  for (uint32_t at = queue->head; at != NONE; at = segments[at].next) {
    REQUIRE(segments[at].state == state);
    REQUIRE(segments[at].prev == before);
    REQUIRE(segments[at].live == c->live[at]);
    PASS_ON(check_row(c, at));
    *dead += segments[at].used - segments[at].live;
    before = at;
    count++;
  }
  REQUIRE(queue->tail == before);
  REQUIRE(queue->count == count);
  return NULL;
}

/* Items lie one after the other, and whom nobody points to says so. */
static const char *check_items(const struct count *c, uint32_t number) {
  const struct shard *shard = c->shard;
  const struct segment *segment = &shard->segments[number];
  uint32_t start = number * shard->store->segment_bytes, at = 0, live = 0;
  while (at < segment->used) {
    struct item item;
    item_read(log_item(shard, start + at), &item);
    at += (uint32_t)item_size(&item);
    live += !(item.flags & ITEM_DEAD);
  }
  REQUIRE(at == segment->used);
  REQUIRE(live == c->pointed[number]);
  return NULL;
}

static const char *check_free(const struct shard *shard, uint32_t first,
                              uint32_t *count) {
  for (uint32_t at = first; at != NONE; at = shard->segments[at].next) {
    REQUIRE(at < shard->segment_count && *count <= shard->segment_count);
    REQUIRE(shard->segments[at].state == SEGMENT_FREE);
    ++*count;
  }
  return NULL;
}

static const char *check_segments(struct count *c) {
  const struct shard *shard = c->shard;
  uint32_t spare = 0, cold = 0;
  size_t dead = 0;
  PASS_ON(check_queue(c, &shard->small, SEGMENT_SMALL, &dead));
  PASS_ON(check_queue(c, &shard->main, SEGMENT_MAIN, &dead));
  PASS_ON(check_free(shard, shard->spare_first, &spare));
  PASS_ON(check_free(shard, shard->cold_first, &cold));
  REQUIRE(shard->dead == dead);
  REQUIRE(shard->victim == NONE);
  REQUIRE(shard->spare_count == spare);
  REQUIRE(shard->segments_used ==
          shard->small.count + shard->main.count + c->in_chains + c->in_rows);
  REQUIRE(shard->segment_count == shard->segments_used + spare + cold);
  for (uint32_t i = 0; i < shard->segment_count; i++) {
    uint32_t state = shard->segments[i].state;
    REQUIRE((state == SEGMENT_CHAIN) == c->chained[i]);
    REQUIRE((state == SEGMENT_WIDE) == c->covered[i]);
    if (state == SEGMENT_SMALL || state == SEGMENT_MAIN)
      PASS_ON(check_items(c, i));
  }
  return NULL;
}

static const char *check_counts(const struct count *c) {
  const struct shard *shard = c->shard;
  REQUIRE(shard->entries == c->entries);
  REQUIRE(shard->pinned == c->pinned);
  for (uint32_t id = 0; id < shard->store->owner_count; id++) {
    REQUIRE(shard->held[id].entries == c->held[id].entries);
    REQUIRE(shard->held[id].bytes == c->held[id].bytes);
  }
  return NULL;
}

/* What the shard has of `used`. */
static size_t shard_bytes(const struct shard *shard) {
  size_t bytes = shard->segment_room * sizeof *shard->segments +
                 (size_t)shard->segments_used * shard->store->segment_bytes +
                 shard->ghost.count * sizeof *shard->ghost.lines;
  for (const struct directory *d = shard->directory; d; d = d->older)
    bytes += sizeof *d + (sizeof(uint32_t) << d->bits);
  return bytes;
}

static const char *check_shard(struct shard *shard, uint32_t *page_owners,
                               uint32_t *pages, size_t *bytes) {
  size_t segments = shard->segment_count + 1;
  const char *broken;
  struct count c = {.shard = shard, .page_owners = page_owners};
  c.live = calloc(segments, sizeof *c.live);
  c.pointed = calloc(segments, sizeof *c.pointed);
  c.chained = calloc(segments, 1);
  c.covered = calloc(segments, 1);
  c.held = calloc(shard->store->owner_count + 1, sizeof *c.held);
  broken = check_directory(&c, pages);
  if (!broken)
    broken = check_segments(&c);
  if (!broken)
    broken = check_counts(&c);
  *bytes += c.weights;
  free(c.live), free(c.pointed), free(c.chained), free(c.covered);
  free(c.held);
  return broken;
}

static size_t common_bytes(const struct store *store) {
  size_t per_id =
      sizeof *store->owners + store->shards_opened * sizeof(struct holding);
  size_t bytes = sizeof *store + store->shards_opened * sizeof(struct shard) +
                 PAGE_BYTES + store->page_count * PAGE_BYTES +
                 store->owner_count * per_id + shadow_bytes(store);
  if (store->marks)
    bytes += MARKS_MAX * sizeof *store->marks;
  for (const struct space *s = store->spaces; s; s = s->next)
    bytes += sizeof *s + strlen(s->name) + 1;
  return bytes;
}

static const char *check_marks(const struct store *store) {
  uint32_t count = 0;
  for (uint32_t i = 0; store->marks && i < MARKS_MAX; i++)
    count += store->marks[i].id != 0;
  REQUIRE(store->mark_count == count);
  return NULL;
}

static const char *check_locked(struct store *store, uint32_t *page_owners) {
  uint32_t pages = 0;
  size_t bytes = common_bytes(store);
  int queued = 0;
  for (uint32_t i = 0; i < store->shards_opened; i++) {
    struct shard *shard = &store->shards[i];
    bytes += shard_bytes(shard);
    queued |= shard->small.count + shard->main.count > 0;
    if (i < store_shard_count(store))
      PASS_ON(check_shard(shard, page_owners, &pages, &bytes));
    else
      REQUIRE(shard->entries == 0 && shard->segments_used == 0);
  }
  REQUIRE(pages == store->page_count);
  REQUIRE(store->used == bytes);
  REQUIRE(store->used <= store->max_bytes || !queued);
  return check_marks(store);
}

void check_store(struct store *store) {
  pthread_mutex_lock(&store->mutex);
  store_lock_all(store);
  uint32_t *page_owners = calloc(store->page_count + 1, sizeof *page_owners);
  const char *broken = check_locked(store, page_owners);
  free(page_owners);
  store_unlock_all(store);
  pthread_mutex_unlock(&store->mutex);
  if (broken)
    fail_msg("not so: %s", broken);
}
