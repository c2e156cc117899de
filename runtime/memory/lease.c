/* Leases: a lease is a load in flight. Who asks first for a missing key holds
 * its token, who asks later hangs a wait on it, and the load's outcome answers
 * them all (memcache leases, Nishtala et al., NSDI 2013).
 *
 *   leases[hash] -> lease {space, key, token} -> newer ... -> older
 *                     `- waits, the callers' own, newest first
 *
 * They sit in a small chained hash table of their own, newest first. A set,
 * removal or clear of the key poisons its lease: the load goes on for its
 * waiters, but its value is stale before it arrives and is not stored. The next
 * who misses then gets a new lease, so a key may have several poisoned ones
 * beside the one that counts.
 *
 * Looking a key up and taking its lease happen under the key's shard, as do a
 * put and its poison: of any number of callers that miss at once exactly one
 * gets the token, and no change of the key slips in between. The table has a
 * mutex of its own inside of that. Its hash leaves the space's id out, which a
 * clear changes.
 *
 * Invariants, whenever the mutex is free:
 * - a key has at most one lease that is not poisoned, and then no live entry,
 *   unless the lease is a refresh of it;
 * - a wait hangs on one lease exactly while its prev is set; it is the
 *   caller's memory, and who takes it off the list (fill, abandon, close, or
 *   unwait) is the only one who answers it;
 * - wake is called with no mutex held, and after it the wait may be gone.
 *
 * Leases are no part of the bound: there are as many as tasks that load, and to
 * refuse one for room would only send a stampede to the loader.
 */
#include <stdlib.h>

#include "memory/internal.h"

/* A load in flight. A poisoned one is found by its token only. */
struct lease {
  struct lease *next;         /* in its bucket, newest first */
  struct space *space;        /* whose key it is */
  struct view *view;          /* who has taken it */
  uint64_t hash;              /* of the key, without id */
  uint64_t token;             /* what fill and abandon show; never 0 */
  void *owner;                /* the loader's wait->owner; not ours */
  struct backend_wait *waits; /* the callers' own, newest first */
  int poisoned;               /* the key changed: fill stores nothing */
  uint32_t key_len;           /* bytes of ns + key */
  char key[];
};

static uint64_t lease_hash(const struct target *at) {
  return at->hash ^ store_id_hash(at->id);
}

static struct lease **lease_bucket(struct store *store, uint64_t hash) {
  return &store->leases[hash & (LEASE_BUCKETS - 1)];
}

/* The link to the key's lease with this token, or with token 0 to the one that
 * is not poisoned. The link holds NULL when there is none. */
static struct lease **find_lease(const struct target *at, uint64_t token) {
  uint64_t hash = lease_hash(at);
  struct lease **link = lease_bucket(at->store, hash);
  for (; *link; link = &(*link)->next) {
    struct lease *lease = *link;
    if (lease->hash == hash && lease->space == at->view->space &&
        (token ? lease->token == token : !lease->poisoned) &&
        store_joined_equal(at, lease->key, lease->key_len))
      break;
  }
  return link;
}

void store_poison_lease(const struct target *at) {
  pthread_mutex_lock(&at->store->lease_mutex);
  struct lease *lease = *find_lease(at, 0);
  if (lease)
    lease->poisoned = 1;
  pthread_mutex_unlock(&at->store->lease_mutex);
}

/* A load of a cleared key would bring back what the caller wanted gone. */
void store_poison_prefix(struct store *store, struct space *space,
                         const char *prefix, size_t prefix_len) {
  pthread_mutex_lock(&store->lease_mutex);
  for (size_t i = 0; store->lease_count > 0 && i < LEASE_BUCKETS; i++)
    for (struct lease *lease = store->leases[i]; lease; lease = lease->next)
      if (lease->space == space &&
          store_begins_with(lease->key, lease->key_len, prefix, prefix_len))
        lease->poisoned = 1;
  pthread_mutex_unlock(&store->lease_mutex);
}

/* Takes a lease out and gives its waits back, oldest first. From here on
 * unwait has no hold on them. */
static struct backend_wait *end_lease(struct store *store,
                                      struct lease **link) {
  struct lease *lease = *link;
  struct backend_wait *waits = NULL, *wait;
  while ((wait = lease->waits)) {
    lease->waits = wait->next;
    wait->prev = NULL;
    wait->next = waits;
    waits = wait;
  }
  *link = lease->next;
  free(lease);
  assert(store->lease_count > 0);
  store_relaxed(&store->lease_count, store->lease_count - 1);
  return waits;
}

/* No mutex held: the caller's code runs here. */
static void wake_all(struct backend_wait *wait, int status, const void *bytes,
                     const struct backend_item *item) {
  while (wait) {
    struct backend_wait *next = wait->next; /* wake may free the wait */
    wait->next = NULL;
    wait->wake(wait, status, bytes, item);
    wait = next;
  }
}

/* At the front, so that neither queueing nor unwait has to look for an end;
 * end_lease turns the order round. */
static void push_wait(struct lease *lease, struct backend_wait *wait) {
  assert(wait->wake);
  wait->next = lease->waits;
  wait->prev = &lease->waits;
  if (wait->next)
    wait->next->prev = &wait->next;
  lease->waits = wait;
}

static struct lease *new_lease(const struct target *at, void *owner) {
  struct store *store = at->store;
  struct lease *lease = malloc(sizeof *lease + target_length(at));
  if (!lease)
    return NULL;
  *lease = (struct lease){.space = at->view->space,
                          .view = at->view,
                          .hash = lease_hash(at),
                          .token = ++store->token,
                          .owner = owner,
                          .key_len = (uint32_t)target_length(at)};
  store_join(at, lease->key);
  struct lease **bucket = lease_bucket(store, lease->hash);
  lease->next = *bucket;
  *bucket = lease;
  store_relaxed(&store->lease_count, store->lease_count + 1);
  return lease;
}

/* A missing key: the caller loads it, or waits for who does. */
static int take_lease(struct target *at, struct backend_item *out,
                      struct backend_wait *wait) {
  int rc = BACKEND_ENOMEM;
  *out = (struct backend_item){0};
  pthread_mutex_lock(&at->store->lease_mutex);
  struct lease *lease = *find_lease(at, 0);
  if (lease) {
    rc = BACKEND_WAIT;
    if (wait)
      push_wait(lease, wait);
  } else if ((lease = new_lease(at, wait ? wait->owner : NULL))) {
    rc = BACKEND_TOKEN;
    out->token = lease->token;
  }
  if (lease)
    out->owner = lease->owner;
  pthread_mutex_unlock(&at->store->lease_mutex);
  return rc;
}

int store_lease(BACKEND_KEY_ARGS, void *buf, size_t cap,
                struct backend_item *out, struct backend_wait *wait) {
  struct target at;
  struct place place;
  struct item item;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  if (store_find(&at, &place, &item)) {
    const char *p = log_item(at.shard, place.bucket->items[place.slot]);
    store_describe(&item, out);
    index_note_use(place.bucket, place.slot);
    if (out->length <= cap) { /* else counted when the caller comes again */
      item_copy_value(at.shard, p, &item, buf);
      stripe_add(at.view->space, hits, 1);
    }
    return store_end(&at, BACKEND_HIT);
  }
  rc = take_lease(&at, out, wait);
  if (rc > 0)
    stripe_add(at.view->space, misses, 1);
  return store_end(&at, rc);
}

int store_refresh(BACKEND_KEY_ARGS, struct backend_item *out,
                  struct backend_wait *wait) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  return rc < 0 ? rc : store_end(&at, take_lease(&at, out, wait));
}

/* Ends the load with this token: 1 with its waits, and whether it was poisoned;
 * 0 when there is none. */
static int take_out(const struct target *at, uint64_t token,
                    struct backend_wait **waits, int *poisoned) {
  int found = 0;
  pthread_mutex_lock(&at->store->lease_mutex);
  struct lease **link = token ? find_lease(at, token) : NULL;
  if (link && *link) {
    found = 1;
    *poisoned = (*link)->poisoned;
    *waits = end_lease(at->store, link);
  }
  pthread_mutex_unlock(&at->store->lease_mutex);
  return found;
}

/* The lease ends before the value is stored, as the put would poison it. The
 * waiters get the caller's bytes, so they get them even if the store does
 * not. */
int store_fill(BACKEND_KEY_ARGS, uint64_t token, const void *bytes,
               size_t length, uint32_t format, uint64_t ttl_ms) {
  struct target at;
  struct backend_wait *waits;
  int poisoned, rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  if (!take_out(&at, token, &waits, &poisoned))
    return store_end(&at, 0);
  struct content content = store_content(now, bytes, length, format, ttl_ms);
  struct backend_item item = {.length = length,
                              .expires_ms = content.expires_ms,
                              .created_ms = now,
                              .format = format};
  rc = poisoned ? 0 : store_put(&at, &content);
  if (rc == 1)
    item.version = at.shard->stamp; /* put took the last one */
  store_end(&at, rc);
  wake_all(waits, BACKEND_HIT, bytes, &item);
  return rc;
}

int store_abandon(BACKEND_KEY_ARGS, uint64_t token, const char *message,
                  size_t message_len) {
  struct target at;
  struct backend_wait *waits;
  int poisoned, rc = store_aim(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  if (!take_out(&at, token, &waits, &poisoned))
    return 0;
  struct backend_item item = {.length = message ? message_len : 0};
  wake_all(waits, message ? BACKEND_ELOAD : BACKEND_MISS, message, &item);
  return 1;
}

int store_waiters(BACKEND_KEY_ARGS, uint64_t token) {
  struct target at;
  int count = -1, rc = store_aim(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  pthread_mutex_lock(&at.store->lease_mutex);
  struct lease **link = token ? find_lease(&at, token) : NULL;
  if (link && *link) {
    count = 0;
    for (struct backend_wait *wait = (*link)->waits; wait; wait = wait->next)
      count++;
  }
  pthread_mutex_unlock(&at.store->lease_mutex);
  return count;
}

int store_valid(BACKEND_KEY_ARGS, uint64_t token) {
  struct target at;
  int rc = store_aim(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  pthread_mutex_lock(&at.store->lease_mutex);
  struct lease **link = token ? find_lease(&at, token) : NULL;
  int valid = link && *link && !(*link)->poisoned;
  pthread_mutex_unlock(&at.store->lease_mutex);
  return valid;
}

int store_unwait(struct backend *self, struct backend_wait *wait) {
  struct store *store = ((struct view *)self)->store;
  if (load_relaxed(store->alive) == 0)
    return 0;
  pthread_mutex_lock(&store->lease_mutex);
  int queued = wait->prev != NULL;
  if (queued) {
    *wait->prev = wait->next;
    if (wait->next)
      wait->next->prev = wait->prev;
    wait->prev = NULL;
    wait->next = NULL;
  }
  pthread_mutex_unlock(&store->lease_mutex);
  return queued;
}

struct backend_wait *store_end_leases(struct view *view) {
  struct store *store = view->store;
  struct backend_wait *waits = NULL, **end = &waits;
  pthread_mutex_lock(&store->lease_mutex);
  for (size_t i = 0; i < LEASE_BUCKETS; i++) {
    for (struct lease **link = &store->leases[i]; *link;) {
      if ((*link)->view != view) {
        link = &(*link)->next;
        continue;
      }
      *end = end_lease(store, link); /* *link is the one after it now */
      while (*end)
        end = &(*end)->next;
    }
  }
  pthread_mutex_unlock(&store->lease_mutex);
  return waits;
}

void store_wake_closed(struct backend_wait *waits, int shared) {
  static const char message[] = "closed";
  struct backend_item item = {.length = shared ? 0 : sizeof message - 1};
  wake_all(waits, shared ? BACKEND_MISS : BACKEND_ELOAD,
           shared ? NULL : message, &item);
}
