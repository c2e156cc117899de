/* Shadow caches: which policy would miss least, found out on a sample.
 *
 * Each of POLICIES has a miniature cache of its own (miniature simulation:
 * Waldspurger et al., ATC 2017) that sees one key of R, and has 1/R of the
 * store's room: the same keys, with nothing in the entries but a name and their
 * uses. After an epoch of requests the misses of each are weighed in, older
 * epochs count 0.95 times less than the one after, and another policy is taken
 * when it would have missed 5 % less than the present one.
 *
 * S3-FIFO loses to a plain CLOCK where keys come back soon or never, and needs
 * a tiny or a large small queue where they come back late; no fixed share is
 * right for all. There are 32 to 256 entries in each cache, as many as 1/16 of
 * the bound allows.
 *
 *   nodes:   size cached ones and size ghosts; free ones in a list
 *   small, main, ghosts:  FIFOs of nodes, by number
 *   map:     open addressing, from a key to its node
 *
 * A request that finds another thread here goes unseen: nobody waits.
 */
#include <stdlib.h>

#include "memory/internal.h"

enum { EPOCH = 8, SIZE_LEAST = 32, SIZE_MOST = 256, BOUND_SHARE = 16 };
static const double memory_of_epochs = 0.95, advantage = 0.95;

/* Small shares in thousandths; the last is CLOCK with two bits: no small
 * queue at all. */
const struct policy store_policies[POLICIES] = {
    {100, 2}, {30, 2}, {300, 1}, {700, 1}, {0, 1}};

enum { NIL = 0xffff };
enum where { FREE, SMALL, MAIN, GHOST };

struct node {
  uint32_t key;
  uint16_t next; /* in its FIFO, or among the free ones */
  uint8_t where, uses;
};

struct fifo {
  uint16_t first, last, count;
};

struct mini {
  struct node *nodes; /* 2 x size */
  uint16_t *map;      /* node + 1, or 0 */
  uint16_t free;
  struct fifo queues[GHOST + 1];
  uint32_t misses; /* in this epoch */
  double weighed;  /* of those before */
};

struct shadow {
  pthread_mutex_t mutex;
  uint32_t size, mask; /* entries of each; of the map */
  uint32_t requests;   /* in this epoch */
  uint64_t entries;    /* of the store, that it was made for */
  char *memory;        /* of the minis */
  size_t bytes;        /* all in all */
  struct mini minis[POLICIES];
};

/* ---- the map ---- */

static uint32_t slot_of(const struct shadow *shadow, uint32_t key) {
  return (key * 2654435769u >> 7) & shadow->mask;
}

/* The slot that has the key's node, or where it belongs. */
static uint32_t find(const struct shadow *shadow, const struct mini *mini,
                     uint32_t key) {
  uint32_t at = slot_of(shadow, key);
  while (mini->map[at] && mini->nodes[mini->map[at] - 1].key != key)
    at = (at + 1) & shadow->mask;
  return at;
}

/* Those behind the gap move up if that brings them nearer to their slots. */
static void unmap(const struct shadow *shadow, struct mini *mini,
                  uint32_t key) {
  uint32_t gap = find(shadow, mini, key), at = gap;
  mini->map[gap] = 0;
  for (;;) {
    at = (at + 1) & shadow->mask;
    if (!mini->map[at])
      return;
    uint32_t wanted = slot_of(shadow, mini->nodes[mini->map[at] - 1].key);
    if (((at - wanted) & shadow->mask) < ((at - gap) & shadow->mask))
      continue;
    mini->map[gap] = mini->map[at];
    mini->map[at] = 0;
    gap = at;
  }
}

/* ---- a miniature cache ---- */

static void push(struct mini *mini, uint16_t number, enum where where,
                 uint8_t uses) {
  struct fifo *queue = &mini->queues[where];
  struct node *node = &mini->nodes[number];
  node->where = (uint8_t)where;
  node->uses = uses;
  node->next = NIL;
  if (queue->count++ > 0)
    mini->nodes[queue->last].next = number;
  else
    queue->first = number;
  queue->last = number;
}

static uint16_t pop(struct mini *mini, enum where where) {
  struct fifo *queue = &mini->queues[where];
  uint16_t number = queue->first;
  queue->first = mini->nodes[number].next;
  queue->count--;
  return number;
}

static void release(const struct shadow *shadow, struct mini *mini,
                    uint16_t number) {
  unmap(shadow, mini, mini->nodes[number].key);
  mini->nodes[number].where = FREE;
  mini->nodes[number].next = mini->free;
  mini->free = number;
}

static void drop_ghost(const struct shadow *shadow, struct mini *mini) {
  uint16_t number = pop(mini, GHOST);
  release(shadow, mini, number);
}

static void evict_small(const struct shadow *shadow, struct mini *mini,
                        const struct policy *policy) {
  uint16_t number = pop(mini, SMALL);
  if (mini->nodes[number].uses >= policy->promote) {
    push(mini, number, MAIN, 0);
    return;
  }
  if (mini->queues[GHOST].count >= shadow->size - 1)
    drop_ghost(shadow, mini);
  push(mini, number, GHOST, 0);
}

static void make_room(const struct shadow *shadow, struct mini *mini,
                      const struct policy *policy) {
  while (mini->queues[SMALL].count + mini->queues[MAIN].count >= shadow->size) {
    uint32_t small = mini->queues[SMALL].count;
    if (small > 0 && (small * 1000 > shadow->size * policy->small_permille ||
                      mini->queues[MAIN].count == 0)) {
      evict_small(shadow, mini, policy);
      continue;
    }
    uint16_t number = pop(mini, MAIN);
    if (mini->nodes[number].uses > 0)
      push(mini, number, MAIN, (uint8_t)(mini->nodes[number].uses - 1));
    else
      release(shadow, mini, number);
  }
}

/* A key that came back as a ghost leaves the ghosts' FIFO, wherever it is. */
static void unlink_ghost(struct mini *mini, uint16_t number) {
  struct fifo *queue = &mini->queues[GHOST];
  uint16_t before = NIL, at = queue->first;
  while (at != number) {
    before = at;
    at = mini->nodes[at].next;
  }
  if (before == NIL)
    queue->first = mini->nodes[at].next;
  else
    mini->nodes[before].next = mini->nodes[at].next;
  if (queue->last == number)
    queue->last = before;
  queue->count--;
}

static void request(const struct shadow *shadow, struct mini *mini,
                    const struct policy *policy, uint32_t key) {
  uint32_t at = find(shadow, mini, key);
  struct node *node = mini->map[at] ? &mini->nodes[mini->map[at] - 1] : NULL;
  int ghost = node && node->where == GHOST;
  if (node && !ghost) {
    node->uses += node->uses < USES_MAX;
    return;
  }
  mini->misses++;
  if (ghost) {
    uint16_t number = (uint16_t)(mini->map[at] - 1);
    unlink_ghost(mini, number);
    release(shadow, mini, number);
  }
  make_room(shadow, mini, policy);
  uint16_t number = mini->free;
  assert(number != NIL);
  mini->free = mini->nodes[number].next;
  mini->nodes[number].key = key;
  mini->map[find(shadow, mini, key)] = (uint16_t)(number + 1);
  push(mini, number, ghost || policy->small_permille == 0 ? MAIN : SMALL, 0);
}

/* ---- all of them ---- */

static void end_epoch(struct store *store, struct shadow *shadow) {
  uint32_t now = load_relaxed(&store->policy), best = now;
  for (uint32_t i = 0; i < POLICIES; i++) {
    struct mini *mini = &shadow->minis[i];
    mini->weighed = mini->weighed * memory_of_epochs + mini->misses;
    mini->misses = 0;
  }
  for (uint32_t i = 0; i < POLICIES; i++)
    if (shadow->minis[i].weighed < shadow->minis[best].weighed)
      best = i;
  if (shadow->minis[best].weighed < shadow->minis[now].weighed * advantage)
    store_relaxed(&store->policy, best);
  shadow->requests = 0;
}

void shadow_request(struct store *store, uint64_t hash) {
  struct shadow *shadow = load_acquire(&store->shadow);
  if (!shadow || pthread_mutex_trylock(&shadow->mutex) != 0)
    return;
  uint32_t key = (uint32_t)(hash ^ hash >> 32);
  for (uint32_t i = 0; i < POLICIES; i++)
    request(shadow, &shadow->minis[i], &store_policies[i], key);
  if (++shadow->requests >= EPOCH * shadow->size)
    end_epoch(store, shadow);
  pthread_mutex_unlock(&shadow->mutex);
}

static size_t map_room(uint32_t size) {
  size_t room = 4;
  while (room < 3 * (size_t)size)
    room *= 2;
  return room;
}

static size_t mini_bytes(uint32_t size) {
  return 2 * size * sizeof(struct node) + map_room(size) * sizeof(uint16_t);
}

static void empty(struct shadow *shadow) {
  char *p = shadow->memory;
  for (uint32_t i = 0; i < POLICIES; i++) {
    struct mini *mini = &shadow->minis[i];
    *mini = (struct mini){.nodes = (struct node *)p};
    mini->map = (uint16_t *)(mini->nodes + 2 * shadow->size);
    for (uint32_t n = 0; n < 2 * shadow->size; n++)
      mini->nodes[n].next = (uint16_t)(n + 1 < 2 * shadow->size ? n + 1 : NIL);
    memset(mini->map, 0, map_room(shadow->size) * sizeof(uint16_t));
    p += mini_bytes(shadow->size);
  }
  shadow->requests = 0;
}

static uint32_t choose_size(const struct store *store) {
  uint32_t size = SIZE_MOST;
  while (size > SIZE_LEAST &&
         POLICIES * mini_bytes(size) > store->max_bytes / BOUND_SHARE)
    size /= 2;
  return size;
}

static int take_memory(struct store *store, struct shadow *shadow,
                       uint32_t size) {
  size_t bytes = POLICIES * mini_bytes(size);
  char *memory = malloc(bytes);
  if (!memory)
    return 0;
  free(shadow->memory);
  store_charge(store,
               (ptrdiff_t)(sizeof *shadow + bytes) - (ptrdiff_t)shadow->bytes);
  shadow->memory = memory;
  store_relaxed(&shadow->bytes, sizeof *shadow + bytes);
  shadow->size = size;
  shadow->mask = (uint32_t)map_room(size) - 1;
  empty(shadow);
  return 1;
}

static struct shadow *make(struct store *store) {
  struct shadow *shadow = calloc(1, sizeof *shadow);
  if (!shadow || !take_memory(store, shadow, choose_size(store))) {
    free(shadow);
    return NULL;
  }
  pthread_mutex_init(&shadow->mutex, NULL);
  return shadow;
}

static void destroy(struct shadow *shadow) {
  pthread_mutex_destroy(&shadow->mutex);
  free(shadow->memory);
  free(shadow);
}

void shadow_resize(struct store *store) {
  struct shadow *shadow = load_acquire(&store->shadow);
  if (!shadow)
    return;
  pthread_mutex_lock(&shadow->mutex);
  uint32_t size = choose_size(store);
  if (size != shadow->size && take_memory(store, shadow, size))
    store_relaxed(&shadow->entries, 0); /* to be fitted again */
  pthread_mutex_unlock(&shadow->mutex);
}

/* Two shards may come here at once: one of them makes it. */
void shadow_fit(struct store *store, uint64_t entries) {
  struct shadow *shadow = load_acquire(&store->shadow), *none = NULL;
  if (!shadow) {
    shadow = make(store);
    if (!shadow)
      return;
    if (!__atomic_compare_exchange_n(&store->shadow, &none, shadow, 0,
                                     __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
      store_charge(store, -(ptrdiff_t)shadow->bytes);
      destroy(shadow);
      return;
    }
  }
  uint64_t known = load_relaxed(&shadow->entries);
  if (entries <= 2 * known && 2 * entries >= known && known > 0)
    return;
  if (pthread_mutex_trylock(&shadow->mutex) != 0)
    return;
  store_relaxed(&shadow->entries, entries > 0 ? entries : 1);
  empty(shadow);
  uint64_t below = entries > shadow->size
                       ? ((uint64_t)shadow->size << 32) / entries
                       : UINT32_MAX;
  store_relaxed(&store->sample_below, (uint32_t)below);
  pthread_mutex_unlock(&shadow->mutex);
}

size_t shadow_bytes(const struct store *store) {
  struct shadow *shadow = load_acquire(&store->shadow);
  return shadow ? load_relaxed(&shadow->bytes) : 0;
}

void shadow_close(struct store *store) {
  if (store->shadow)
    destroy(store->shadow);
}
