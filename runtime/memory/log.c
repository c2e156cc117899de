/* The log: where items lie. Each shard has two queues of segments,
 *
 *   small:  head (written to) <- ... <- tail        a segment:
 *   main:   head (written to) <- ... <- tail        | item | item | dead | .. |
 *
 *   item:   stamp 52 | id 12 | expires 42 | inlined 18 | flags 4   16 bytes
 *           key length - 1: 16 | format: 8                          3 bytes
 *           [first link: 32 | bytes in the chain: 32]        if chained
 *           [weight: 32]                                     if weighed
 *           key | value, or the rest of it
 *
 * An item is written once and not changed while it lives: what replaces it is
 * written at the head of a queue, and the old bytes are dead. A segment whose
 * bytes are all dead is free at once; what evicts the others is evict.c. So any
 * size of value finds its place in any free segment, and there is no
 * fragmentation but the ends of segments that were too short for the next item.
 *
 * A value that does not fit into a segment has its first part in segments of
 * its own, chained by a number in their first four bytes; the item has the
 * rest. When the item moves, these stay.
 *
 * The bound counts segments in use, whole. Free ones are taken again last in,
 * first out; beyond a few their pages are given back.
 */
#include <stdlib.h>

#include "memory/internal.h"

enum { SEGMENTS_FIRST = 16, OS_PAGE = 4096 };

/* ---- items ---- */

static void item_write(char *p, const struct item *item) {
  uint64_t first = item->stamp << 12 | item->id;
  uint64_t second =
      item->expires_ms << 22 | (uint64_t)item->inlined << 4 | item->flags;
  uint16_t key_len = (uint16_t)(item->key_len - 1);
  uint8_t format = (uint8_t)item->format;
  assert(item->expires_ms <= STORE_TIME_MAX && item->inlined < 1 << 18);
  bytes_in(p, &first, 8);
  bytes_in(p + 8, &second, 8);
  bytes_in(p + 16, &key_len, 2);
  bytes_in(p + 18, &format, 1);
  p += ITEM_HEAD;
  if (item->flags & ITEM_CHAINED) {
    bytes_in(p, &item->chain, 4);
    bytes_in(p + 4, &item->chained, 4);
    p += 8;
  }
  if (item->flags & ITEM_WEIGHED)
    bytes_in(p, &item->weight, 4);
}

static uint32_t links_of(const struct store *store, uint32_t chained) {
  size_t payload = chain_payload(store);
  return (uint32_t)((chained + payload - 1) / payload);
}

void item_read_extra(const struct store *store, const char *p,
                     struct item *item) {
  p += ITEM_HEAD;
  item->chained = item->weight = 0;
  item->chain = NONE;
  if (item->flags & ITEM_CHAINED) {
    bytes_out(&item->chain, p, 4);
    bytes_out(&item->chained, p + 4, 4);
    p += 8;
  }
  item->links = links_of(store, item->chained);
  if (item->flags & ITEM_WEIGHED)
    bytes_out(&item->weight, p, 4);
}

static uint32_t weight_at(const char *p, const struct item *item) {
  uint32_t weight = 0;
  if (item->flags & ITEM_WEIGHED)
    bytes_out(&weight, item_key(p, item) - sizeof weight, sizeof weight);
  return weight;
}

int item_copy_value(const struct shard *shard, const char *p,
                    const struct item *item, void *to) {
  size_t payload = chain_payload(shard->store), segment = payload + CHAIN_HEAD;
  size_t left = item->chained;
  uint32_t at = item->chain;
  char *out = to;
  while (left > 0) {
    size_t part = left < payload ? left : payload;
    if (at >= shard->store->window_bytes / segment)
      return 0;
    const char *link = shard->window + at * segment;
    bytes_out(&at, link, CHAIN_HEAD);
    bytes_out(out, link + CHAIN_HEAD, part);
    out += part;
    left -= part;
  }
  bytes_out(out, item_key(p, item) + item->key_len, item->inlined);
  return 1;
}

uint64_t item_hash(const struct store *store, const char *p,
                   const struct item *item) {
  return store_hash(store, item->id, item_key(p, item), item->key_len);
}

/* ---- segments ---- */

static int has_pages(const struct store *store) {
  return store->segment_bytes >= OS_PAGE;
}

/* One that was never in use. */
static uint32_t fresh_segment(struct shard *shard) {
  size_t end = (size_t)(shard->segment_count + 1) * shard->store->segment_bytes;
  if (shard->segment_count == shard->segment_room) {
    uint32_t room =
        shard->segment_room ? shard->segment_room * 2 : SEGMENTS_FIRST;
    struct segment *more = realloc(shard->segments, room * sizeof *more);
    if (!more)
      return NONE;
    store_charge(shard->store,
                 (ptrdiff_t)((room - shard->segment_room) * sizeof *more));
    shard->segments = more;
    shard->segment_room = room;
  }
  if (!area_extend_window(shard, end))
    return NONE;
  return shard->segment_count++;
}

/* NONE when there is no memory for one. The fence: whoever reads what is
 * written into it sees that its old items are no longer pointed to. */
static uint32_t take_segment(struct shard *shard, uint32_t state) {
  uint32_t number = shard->spare_first;
  if (number != NONE) {
    shard->spare_first = shard->segments[number].next;
    shard->spare_count--;
  } else if (shard->cold_first != NONE) {
    number = shard->cold_first;
    shard->cold_first = shard->segments[number].next;
  } else {
    number = fresh_segment(shard);
    if (number == NONE)
      return NONE;
  }
  shard->segments[number] = (struct segment){
      .next = NONE, .prev = NONE, .state = state, .first_expiry = UINT64_MAX};
  store_relaxed(&shard->segments_used, shard->segments_used + 1);
  store_charge(shard->store, shard->store->segment_bytes);
  fence_release();
  return number;
}

/* Takes the numbers [from, end) out of a list of free segments. */
static uint32_t strike(struct shard *shard, uint32_t *first, uint32_t from,
                       uint32_t end) {
  uint32_t struck = 0;
  for (uint32_t *link = first; *link != NONE;) {
    uint32_t *next = &shard->segments[*link].next;
    if (*link >= from && *link < end) {
      *link = *next;
      struck++;
    } else {
      link = next;
    }
  }
  return struck;
}

/* The first of so many free segments in a row, also of such that were never in
 * use, but not many more than the bound has. NONE: there is no such row. */
static uint32_t find_row(const struct shard *shard, size_t span) {
  const struct store *store = shard->store;
  size_t most = 2 * store_fair(store) / store->segment_bytes;
  size_t end = store->window_bytes / store->segment_bytes, row = 0;
  end = most < end ? most : end;
  for (uint32_t i = 0; i < end; i++) {
    int free =
        i >= shard->segment_count || shard->segments[i].state == SEGMENT_FREE;
    row = free ? row + 1 : 0;
    if (row == span)
      return i + 1 - (uint32_t)row;
  }
  return NONE;
}

/* Sees to it that the segments below this number exist. */
static int make_segments(struct shard *shard, uint32_t end) {
  while (shard->segment_count < end) {
    uint32_t number = fresh_segment(shard);
    if (number == NONE)
      return 0;
    shard->segments[number].state = SEGMENT_FREE;
    shard->segments[number].next = shard->cold_first;
    shard->cold_first = number;
  }
  return 1;
}

/* One segment for an item with a key that no single one holds. */
static uint32_t take_wide(struct shard *shard, uint32_t state, size_t span) {
  uint32_t from = find_row(shard, span), end = from + (uint32_t)span;
  if (from == NONE || !make_segments(shard, end))
    return NONE;
  shard->spare_count -= strike(shard, &shard->spare_first, from, end);
  strike(shard, &shard->cold_first, from, end);
  for (uint32_t i = from; i < end; i++)
    shard->segments[i] =
        (struct segment){.next = NONE,
                         .prev = NONE,
                         .state = i == from ? state : SEGMENT_WIDE,
                         .more = i == from ? (uint32_t)span - 1 : 0,
                         .first_expiry = UINT64_MAX};
  store_relaxed(&shard->segments_used, shard->segments_used + (uint32_t)span);
  store_charge(shard->store, (ptrdiff_t)(span * shard->store->segment_bytes));
  fence_release();
  return from;
}

static void give_segment(struct shard *shard, uint32_t number) {
  struct segment *segment = &shard->segments[number];
  size_t bytes = shard->store->segment_bytes;
  segment->state = SEGMENT_FREE;
  if (shard->spare_count < SPARE || !has_pages(shard->store)) {
    segment->next = shard->spare_first;
    shard->spare_first = number;
    shard->spare_count++;
  } else {
    area_discard(shard->window + number * bytes, bytes);
    segment->next = shard->cold_first;
    shard->cold_first = number;
  }
  store_relaxed(&shard->segments_used, shard->segments_used - 1);
  store_charge(shard->store, -(ptrdiff_t)bytes);
}

static struct queue *queue_of(struct shard *shard, uint32_t state) {
  return state == SEGMENT_SMALL ? &shard->small : &shard->main;
}

static void push_segment(struct shard *shard, uint32_t number) {
  struct segment *segments = shard->segments;
  struct queue *queue = queue_of(shard, segments[number].state);
  segments[number].next = queue->head;
  if (queue->head != NONE)
    segments[queue->head].prev = number;
  else
    queue->tail = number;
  queue->head = number;
  queue->count++;
}

void log_unlink_segment(struct shard *shard, uint32_t number) {
  struct segment *segments = shard->segments, *own = &segments[number];
  struct queue *queue = queue_of(shard, own->state);
  if (own->prev != NONE)
    segments[own->prev].next = own->next;
  else
    queue->head = own->next;
  if (own->next != NONE)
    segments[own->next].prev = own->prev;
  else
    queue->tail = own->prev;
  own->next = own->prev = NONE;
  queue->count--;
}

void log_free_segment(struct shard *shard, uint32_t number) {
  struct segment *segment = &shard->segments[number];
  assert(segment->live == 0 && shard->dead >= segment->used);
  shard->dead -= segment->used;
  for (uint32_t more = segment->more; more > 0; more--)
    give_segment(shard, number + more);
  give_segment(shard, number);
}

/* A segment becomes the head. An open one of nothing but dead items ends. */
static void begin_segment(struct shard *shard, uint32_t number) {
  uint32_t before = queue_of(shard, shard->segments[number].state)->head;
  push_segment(shard, number);
  if (before != NONE && shard->segments[before].live == 0 &&
      before != shard->victim) {
    log_unlink_segment(shard, before);
    log_free_segment(shard, before);
  }
}

static uint32_t open_segment(struct shard *shard, uint32_t state, size_t span) {
  uint32_t number =
      span > 1 ? take_wide(shard, state, span) : take_segment(shard, state);
  if (number != NONE)
    begin_segment(shard, number);
  return number;
}

void log_requeue(struct shard *shard, uint32_t number, uint32_t state) {
  shard->segments[number].state = state;
  begin_segment(shard, number);
}

/* ---- appending ---- */

int log_plan(const struct target *at, const struct content *content,
             struct item *item) {
  size_t segment = at->store->segment_bytes, payload = chain_payload(at->store);
  size_t share = store_fair(at->store) / VALUE_SHARE;
  size_t head = ITEM_HEAD + target_length(at) + (content->weight ? 4 : 0);
  *item = (struct item){
      .expires_ms = content->expires_ms,
      .id = at->id,
      .flags = (content->weight ? ITEM_WEIGHED : 0) |
               (content->pin ? ITEM_PINNED : 0),
      .key_len = (uint32_t)target_length(at),
      .weight = content->weight,
      .format = content->format,
  };
  if (content->length > share || content->weight > share ||
      head + content->length + content->weight > share)
    return BACKEND_ETOOLARGE;
  if (head + content->length > segment) {
    size_t room = head + 8 < segment ? segment - head - 8 : 0;
    size_t over = content->length - (room < content->length ? room : 0);
    size_t whole = (over + payload - 1) / payload * payload;
    item->chained =
        (uint32_t)(whole < content->length ? whole : content->length);
    item->links = links_of(at->store, item->chained);
    item->flags |= item->chained ? ITEM_CHAINED : 0;
  }
  item->inlined = (uint32_t)(content->length - item->chained);
  return 0;
}

static size_t spanned(const struct store *store, size_t size) {
  return (size + store->segment_bytes - 1) / store->segment_bytes;
}

/* Many small entries of great weight must not all go at once: a segment ends,
 * too, when its items weigh as much as so many of its kind. */
static int fits_head(struct shard *shard, uint32_t state, size_t size,
                     size_t weight) {
  enum { WEIGHT_MOST = 8 };
  uint32_t head = queue_of(shard, state)->head;
  size_t bytes = shard->store->segment_bytes;
  if (head == NONE)
    return 0;
  const struct segment *segment = &shard->segments[head];
  return segment->used + size <= bytes &&
         (weight == 0 || segment->weight == 0 ||
          segment->weight + weight <= WEIGHT_MOST * bytes);
}

size_t log_bytes_needed(struct shard *shard, uint32_t state,
                        const struct item *item) {
  size_t bytes = shard->store->segment_bytes, room = shard->segment_room;
  size_t size = item_size(item);
  size_t span = fits_head(shard, state, size, item->weight)
                    ? 0
                    : spanned(shard->store, size);
  size_t segments = item->links + span, end = shard->segments_used + segments;
  if (segments == 0)
    return 0;
  if (span > 1) {
    uint32_t row = find_row(shard, span);
    if (row == NONE)
      return SIZE_MAX;
    end = row + span > shard->segment_count ? row + span : shard->segment_count;
    end += item->links;
  }
  while (room < end)
    room = room ? room * 2 : SEGMENTS_FIRST;
  return segments * bytes +
         (room - shard->segment_room) * sizeof *shard->segments;
}

/* Where an item of this size goes, as its offset; NONE without memory. */
static uint32_t find_room(struct shard *shard, uint32_t state, size_t size,
                          uint32_t weight) {
  if (!fits_head(shard, state, size, weight) &&
      open_segment(shard, state, spanned(shard->store, size)) == NONE)
    return NONE;
  uint32_t head = queue_of(shard, state)->head;
  struct segment *segment = &shard->segments[head];
  uint32_t offset = head * shard->store->segment_bytes + segment->used;
  segment->used += (uint32_t)size;
  segment->live += (uint32_t)size;
  segment->weight += weight;
  return offset;
}

/* Takes that back, before anything else is written. */
static void leave_room(struct shard *shard, uint32_t offset,
                       const struct item *item) {
  uint32_t number = log_segment(shard, offset);
  struct segment *segment = &shard->segments[number];
  segment->used -= (uint32_t)item_size(item);
  segment->live -= (uint32_t)item_size(item);
  segment->weight -= item->weight;
  if (segment->more > 0) { /* not for others */
    log_unlink_segment(shard, number);
    log_free_segment(shard, number);
  }
}

static void note_expiry(struct shard *shard, uint32_t offset,
                        uint64_t expires_ms) {
  struct segment *segment = &shard->segments[log_segment(shard, offset)];
  if (expires_ms == 0) {
    segment->last_expiry = UINT64_MAX;
    return;
  }
  if (expires_ms < segment->first_expiry)
    segment->first_expiry = expires_ms;
  if (expires_ms > segment->last_expiry)
    segment->last_expiry = expires_ms;
  if (expires_ms < shard->first_expiry)
    shard->first_expiry = expires_ms;
}

static void free_chain(struct shard *shard, uint32_t at, uint32_t links) {
  for (uint32_t i = 0, next; i < links; i++, at = next) {
    bytes_out(&next, shard->window + (size_t)at * shard->store->segment_bytes,
              CHAIN_HEAD);
    give_segment(shard, at);
  }
}

/* Fills links with the first bytes of a value; from the last to the first, as
 * each names the next. */
static int write_chain(struct shard *shard, struct item *item,
                       const char *bytes) {
  size_t payload = chain_payload(shard->store);
  item->chain = NONE;
  for (uint32_t i = item->links; i-- > 0;) {
    uint32_t number = take_segment(shard, SEGMENT_CHAIN);
    if (number == NONE) {
      free_chain(shard, item->chain, item->links - 1 - i);
      return 0;
    }
    char *link = shard->window + (size_t)number * shard->store->segment_bytes;
    bytes_in(link, &item->chain, CHAIN_HEAD);
    size_t left = item->chained - i * payload;
    bytes_in(link + CHAIN_HEAD, bytes + i * payload,
             left < payload ? left : payload);
    item->chain = number;
  }
  return 1;
}

int log_append(const struct target *at, uint32_t state, struct item *item,
               const struct content *content, uint32_t *offset) {
  struct shard *shard = at->shard;
  size_t size = item_size(item);
  *offset = find_room(shard, state, size, item->weight); /* rows come first */
  if (*offset == NONE)
    return 0;
  if (!write_chain(shard, item, content->bytes)) {
    leave_room(shard, *offset, item);
    return 0;
  }
  char *p = log_item(shard, *offset);
  char *key = p + ITEM_HEAD + item_extra(item);
  item_write(p, item);
  bytes_in(key, at->ns, at->ns_len);
  bytes_in(key + at->ns_len, at->key, at->key_len);
  bytes_in(key + item->key_len, (const char *)content->bytes + item->chained,
           item->inlined);
  note_expiry(shard, *offset, item->expires_ms);
  return 1;
}

/* The one change of an item: it says that it is dead, for those who walk over
 * the segment. The version was raised before. The segment goes if that was its
 * last item, unless it is written to, or being emptied, which ends with that.
 */
static void die(struct shard *shard, uint32_t offset, size_t size) {
  uint32_t number = log_segment(shard, offset);
  char *flags = log_item(shard, offset) + 8;
  uint8_t dead = (uint8_t)*flags | ITEM_DEAD;
  bytes_in(flags, &dead, 1);
  struct segment *segment = &shard->segments[number];
  assert(segment->live >= size);
  segment->live -= (uint32_t)size;
  shard->dead += size;
  if (segment->live == 0 && number != shard->victim &&
      number != queue_of(shard, segment->state)->head) {
    log_unlink_segment(shard, number);
    log_free_segment(shard, number);
  }
}

int log_move(struct shard *shard, const struct place *place, uint32_t state,
             const struct item *item, int changed) {
  size_t size = item_size(item);
  uint32_t offset = place->bucket->items[place->slot];
  uint32_t to =
      find_room(shard, state, size, weight_at(log_item(shard, offset), item));
  if (to == NONE)
    return 0;
  bytes_in(log_item(shard, to), log_item(shard, offset), size);
  if (changed)
    item_write(log_item(shard, to), item);
  note_expiry(shard, to, item->expires_ms);
  index_move(place, to);
  die(shard, offset, size);
  return 1;
}

void log_forget(struct shard *shard, uint32_t offset, const struct item *item) {
  if (item->flags & ITEM_CHAINED)
    free_chain(shard, item->chain, item->links);
  die(shard, offset, item_size(item));
}

uint32_t log_state(const struct shard *shard, const struct place *place) {
  uint32_t offset = place->bucket->items[place->slot];
  return shard->segments[log_segment(shard, offset)].state;
}

void log_open(struct shard *shard) {
  shard->small = shard->main = (struct queue){NONE, NONE, 0};
  shard->spare_first = shard->cold_first = shard->victim = NONE;
  shard->spare_count = 0;
  shard->first_expiry = UINT64_MAX;
}

/* The window's pages go, the addresses stay: readers may still look there. */
void log_forget_all(struct shard *shard) {
  assert(shard->segments_used == 0 && shard->dead == 0);
  if (shard->writable > 0)
    area_discard(shard->window, shard->writable);
  store_charge(shard->store,
               -(ptrdiff_t)(shard->segment_room * sizeof *shard->segments));
  free(shard->segments);
  shard->segments = NULL;
  shard->segment_count = shard->segment_room = 0;
  log_open(shard);
}

size_t log_live_bytes(const struct shard *shard) {
  size_t bytes = 0;
  for (uint32_t i = 0; i < shard->segment_count; i++)
    if (shard->segments[i].state == SEGMENT_CHAIN)
      bytes += chain_payload(shard->store);
    else if (shard->segments[i].state != SEGMENT_FREE)
      bytes += shard->segments[i].live;
  return bytes;
}
