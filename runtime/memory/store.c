/* The store as a whole: how it is opened, its views, its numbers.
 *
 * Memory is a bounded log (log.c) with an index (index.c) in as many shards as
 * the bound is large; readers take no lock (read.c), writers their shard's; who
 * goes when there is no room, evict.c decides. Everything that is allocated is
 * counted in `used`, which stays within the bound.
 *
 * A space is what is stored under a name (views of the same name share it), or
 * of one view without a name. Its items carry an id, a small number which the
 * hash depends on too; owners[id] says whose it is. Clearing a space gives it
 * another id (clear.c), closing it leaves its id without an owner: what still
 * has it goes bit by bit.
 */
#include <stdlib.h>
#include <sys/random.h>

#include "memory/target.h"

/* ---- targets ---- */

int store_aim(struct target *at, BACKEND_KEY_ARGS) {
  return target_aim(at, STORE_KEY);
}

uint64_t store_hash(const struct store *store, uint32_t id, const char *key,
                    size_t key_len) {
  return target_hash(store, id, "", 0, key, key_len);
}

int store_check_key(const struct view *view, size_t ns_len, size_t key_len) {
  return target_check(view, ns_len, key_len);
}

/* Should the space have been cleared, or the store been laid out anew, between
 * hashing and locking, both begin again. */
int store_begin(struct target *at, BACKEND_KEY_ARGS) {
  for (;;) {
    int rc = target_aim(at, STORE_KEY);
    if (rc < 0)
      return rc;
    pthread_mutex_lock(&at->shard->mutex);
    if (at->id == at->view->space->id &&
        at->shard == store_shard(at->store, at->hash))
      return 0;
    pthread_mutex_unlock(&at->shard->mutex);
  }
}

int store_end(struct target *at, int rc) {
  pthread_mutex_unlock(&at->shard->mutex);
  return rc;
}

struct stripe *store_take_stripe(struct space *space, uintptr_t self) {
  uint32_t at = store_stripe_number(self);
  for (uint32_t i = 0; i < STRIPES; i++) {
    struct stripe *stripe = &space->stripes[(at + i) % STRIPES];
    uintptr_t owner = load_relaxed(&stripe->owner);
    if (owner == self ||
        (owner == 0 &&
         __atomic_compare_exchange_n(&stripe->owner, &owner, self, 0,
                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED)))
      return stripe;
  }
  return &space->stripes[STRIPES];
}

void store_lock_all(struct store *store) {
  for (uint32_t i = 0; i < store->shards_opened; i++)
    pthread_mutex_lock(&store->shards[i].mutex);
}

void store_unlock_all(struct store *store) {
  for (uint32_t i = store->shards_opened; i-- > 0;)
    pthread_mutex_unlock(&store->shards[i].mutex);
}

void store_charge(struct store *store, ptrdiff_t bytes) {
  add_relaxed(&store->used, (size_t)bytes);
}

/* ---- open and close ---- */

/* Without getrandom the address and the clock's noise have to do. */
static void fill_secret(struct store *store) {
  if (getrandom(store->secret, SECRET_BYTES, 0) == SECRET_BYTES)
    return;
  for (size_t i = 0; i < SECRET_BYTES; i++) {
    uint64_t x = (uintptr_t)store + i * UINT64_C(0x9e3779b97f4a7c15);
    store->secret[i] =
        (uint8_t)((x ^ x >> 29) * UINT64_C(0xbf58476d1ce4e5b9) >> 56);
  }
}

static void init_mutexes(struct store *store) {
  pthread_mutexattr_t attr;
  pthread_mutexattr_init(&attr);
#ifdef PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP /* spins a little, then sleeps */
  pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
#endif
  for (uint32_t i = 0; i < store->shards_opened; i++)
    pthread_mutex_init(&store->shards[i].mutex, &attr);
  pthread_mutexattr_destroy(&attr);
  pthread_mutex_init(&store->mutex, NULL);
  pthread_mutex_init(&store->page_mutex, NULL);
  pthread_mutex_init(&store->lease_mutex, NULL);
}

/* The last one out. */
static void free_store(struct store *store) {
  assert(!store->spaces && store->lease_count == 0);
  for (uint32_t i = 0; i < store->shards_opened; i++) {
    struct shard *shard = &store->shards[i];
    index_close(shard);
    free(shard->segments);
    free(shard->held);
    free(shard->ghost.lines);
    pthread_mutex_destroy(&shard->mutex);
  }
  pthread_mutex_destroy(&store->mutex);
  pthread_mutex_destroy(&store->page_mutex);
  pthread_mutex_destroy(&store->lease_mutex);
  shadow_close(store);
  area_close(store);
  free(store->marks);
  free(store->owners);
  free(store);
}

static void release(struct store *store) {
  pthread_mutex_lock(&store->mutex);
  assert(store->references > 0);
  size_t left = --store->references;
  pthread_mutex_unlock(&store->mutex);
  if (left == 0)
    free_store(store);
}

/* A forked child has the parent's locks as they were: it leaves all alone. */
void store_close(struct store *store) {
  if (load_relaxed(store->alive) != 0)
    release(store);
}

int store_open(struct store **out, size_t max_bytes) {
  struct layout layout = layout_choose(max_bytes, SHARDS_MAX);
  uint32_t shards = 1u << layout.shard_bits;
  size_t bytes = sizeof(struct store) + shards * sizeof(struct shard);
  struct store *store;
  if (posix_memalign((void **)&store, 64, bytes) != 0)
    return BACKEND_ENOMEM;
  memset(store, 0, bytes);
  store->max_bytes = max_bytes;
  store->shard_bits = layout.shard_bits;
  store->shards_opened = shards;
  store->references = 1;
  for (uint32_t i = 0; i < shards; i++)
    store->shards[i].store = store;
  if (area_open(store, max_bytes) < 0) {
    free(store);
    return BACKEND_ENOMEM;
  }
  fill_secret(store);
  init_mutexes(store);
  store_charge(store, (ptrdiff_t)bytes + PAGE_BYTES); /* and `alive` */
  if (layout_open(store, layout) < 0) {
    free_store(store);
    return BACKEND_ENOMEM;
  }
  *out = store;
  return 0;
}

void store_info(struct store *store, struct store_info *out) {
  *out = (struct store_info){.max_bytes = load_relaxed(&store->max_bytes)};
  if (load_relaxed(store->alive) == 0)
    return;
  store_lock_all(store);
  out->bytes = load_relaxed(&store->used);
  for (uint32_t i = 0; i < store_shard_count(store); i++) {
    const struct shard *shard = &store->shards[i];
    const struct directory *directory = shard->directory;
    out->live_bytes += log_live_bytes(shard);
    out->entries += shard->entries;
    out->policy_bytes += shard->ghost.count * sizeof *shard->ghost.lines;
    for (; directory; directory = directory->older)
      out->index_bytes += sizeof(uint32_t) << directory->bits;
  }
  out->index_bytes += store->page_count * PAGE_BYTES;
  out->lock_waits = load_relaxed(&store->lock_waits);
  out->shards = store_shard_count(store);
  out->segment_bytes = store->segment_bytes;
  out->small_share =
      store_policies[load_relaxed(&store->policy)].small_permille / 1000.0;
  store_unlock_all(store);
  out->policy_bytes += shadow_bytes(store);
}

/* ---- views ---- */

static struct space *find_space(struct store *store, const char *name) {
  struct space *space = *name ? store->spaces : NULL;
  while (space && strcmp(space->name, name) != 0)
    space = space->next;
  return space;
}

static size_t space_bytes(const char *name) {
  return sizeof(struct space) + strlen(name) + 1;
}

/* A new one, with an id. All is locked. */
static struct space *open_space(struct store *store, const char *name) {
  struct space *space;
  if (posix_memalign((void **)&space, 64, space_bytes(name)) != 0)
    return NULL;
  memset(space, 0, space_bytes(name));
  strcpy(space->name, name);
  if (store_renew(store, space) < 0) {
    free(space);
    return NULL;
  }
  space->next = store->spaces;
  store->spaces = space;
  store_charge(store, (ptrdiff_t)space_bytes(name));
  return space;
}

/* Its entries are nobody's now, and go with the sweep. */
static void close_space(struct store *store, struct space *space) {
  struct space **link = &store->spaces;
  while (*link != space)
    link = &(*link)->next;
  *link = space->next;
  for (uint32_t id = 0; id < store->owner_count; id++)
    if (store->owners[id] == space)
      store->owners[id] = NULL;
  for (uint32_t i = 0; store->marks && i < MARKS_MAX; i++)
    if (store->marks[i].id == space->id)
      store->marks[i].purge = store->purge; /* the id will be another's */
  store_relaxed(&store->purge, store->purge + 1);
  store_charge(store, -(ptrdiff_t)space_bytes(space->name));
  free(space);
}

int store_view_named(struct store *store, const char *name,
                     struct backend **out) {
  if (load_relaxed(store->alive) == 0)
    return BACKEND_ECLOSED;
  struct view *view = calloc(1, sizeof *view);
  if (!view)
    return BACKEND_ENOMEM;
  view->backend.ops = &store_calls;
  view->store = store;
  pthread_mutex_lock(&store->mutex);
  store_lock_all(store);
  view->space = find_space(store, name);
  if (!view->space)
    view->space = open_space(store, name);
  if (view->space) {
    view->next = view->space->views;
    view->space->views = view;
    store->references++;
  }
  store_unlock_all(store);
  evict_all_over(store); /* a space has its size, too */
  pthread_mutex_unlock(&store->mutex);
  if (!view->space) {
    free(view);
    return BACKEND_ENOMEM;
  }
  *out = &view->backend;
  return 0;
}

int store_view(struct store *store, struct backend **out) {
  return store_view_named(store, "", out);
}

/* The caller sees to it that no other call on this view is under way. Leases
 * end first, for their waiters must not outlive the view they wait on. */
void store_close_view(struct backend *self) {
  struct view *view = (struct view *)self, **link;
  struct store *store = view->store;
  if (load_relaxed(store->alive) == 0)
    return;
  pthread_mutex_lock(&store->mutex);
  struct backend_wait *waits = store_end_leases(view);
  store_lock_all(store);
  for (link = &view->space->views; *link != view;)
    link = &(*link)->next;
  *link = view->next;
  int shared = view->space->views != NULL;
  if (!shared)
    close_space(store, view->space);
  store_unlock_all(store);
  pthread_mutex_unlock(&store->mutex);
  store_wake_closed(waits, shared);
  free(view);
  release(store);
}

void store_watch(struct backend *self, store_watch_fn *fn, void *ud) {
  struct view *view = (struct view *)self;
  if (load_relaxed(view->store->alive) == 0)
    return;
  store_lock_all(view->store);
  view->watch = fn;
  view->watch_ud = ud;
  store_unlock_all(view->store);
}

/* With all shards locked: an insertion that has not seen the flag is over. */
uint32_t *store_view_words(struct backend *self) {
  struct view *view = (struct view *)self;
  if (load_relaxed(view->store->alive) == 0)
    return view->space->words;
  store_lock_all(view->store);
  store_relaxed(&view->space->counts_inserts, 1);
  store_unlock_all(view->store);
  return view->space->words;
}
