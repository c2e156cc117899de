/* Leases: a lease is a load in flight. Who asks first for a missing key holds
 * its token, who asks later hangs a wait on it, and the load's outcome answers
 * them all (memcache leases, Nishtala et al., NSDI 2013).
 *
 * They sit in a small chained hash table of their own, by the low bits of the
 * key's hash, newest first. A set, removal or clear of the key poisons its
 * lease: the load goes on for its waiters, but its value is stale before it
 * arrives and is not stored. The next who misses then gets a new lease, so a
 * key may have several poisoned ones beside the one that counts.
 *
 * Invariants, whenever the mutex is free:
 * - a key has at most one lease that is not poisoned, and then no live entry,
 *   unless the lease is a refresh of it;
 * - a wait hangs on one lease exactly while its prev is set; it is the
 *   caller's memory, and who takes it off the list (fill, abandon, close, or
 *   unwait) is the only one who answers it;
 * - wake is called with the mutex free, and after it the wait may be gone.
 *
 * Leases are no part of the bound: there are as many as tasks that load, and to
 * refuse one for room would only send a stampede to the loader.
 */
#include "memory/internal.h"

#include <stdlib.h>

static struct lease **lease_bucket(struct store *store, uint64_t hash) {
  return &store->leases[hash & (STORE_LEASE_BUCKETS - 1)];
}

/* The link to the key's lease with this token, or with token 0 to the one that
 * is not poisoned. The link holds NULL when there is none. */
static struct lease **find_lease(const struct target *at, uint64_t token) {
  struct lease **link = lease_bucket(at->view->store, at->hash);
  store_assert_locked(at->view->store);
  for (; *link; link = &(*link)->next) {
    struct lease *lease = *link;
    if (lease->hash == at->hash && lease->view == at->view &&
        (token ? lease->token == token : !lease->poisoned) &&
        store_joined_equal(at, lease->key, lease->key_len))
      break;
  }
  return link;
}

void store_poison(const struct target *at) {
  if (at->view->store->lease_count == 0)
    return;
  struct lease *lease = *find_lease(at, 0);
  if (lease)
    lease->poisoned = 1;
}

/* A load of a cleared key would bring back what the caller wanted gone. */
void store_poison_prefix(struct view *view, const char *prefix,
                         size_t prefix_len) {
  struct store *store = view->store;
  for (size_t i = 0; store->lease_count > 0 && i < STORE_LEASE_BUCKETS; i++)
    for (struct lease *lease = store->leases[i]; lease; lease = lease->next)
      if (lease->view == view &&
          store_begins_with(lease->key, lease->key_len, prefix, prefix_len))
        lease->poisoned = 1;
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
  store->lease_count--;
  return waits;
}

/* Mutex free: the caller's code runs here. */
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

/* A missing key: the caller loads it, or waits for who does. */
static int take_lease(struct target *at, struct backend_item *out,
                      struct backend_wait *wait) {
  struct store *store = at->view->store;
  struct lease *lease = *find_lease(at, 0);
  *out = (struct backend_item){0};
  if (lease) {
    out->owner = lease->owner;
    if (wait)
      push_wait(lease, wait);
    return BACKEND_WAIT;
  }
  lease = store->alloc(NULL, sizeof *lease + target_length(at));
  if (!lease)
    return BACKEND_ENOMEM;
  struct lease **bucket = lease_bucket(store, at->hash);
  *lease = (struct lease){.next = *bucket,
                          .view = at->view,
                          .hash = at->hash,
                          .token = ++store->token,
                          .owner = wait ? wait->owner : NULL,
                          .key_len = (uint32_t)target_length(at)};
  store_join(at, lease->key);
  *bucket = lease;
  store->lease_count++;
  out->token = lease->token;
  out->owner = lease->owner;
  return BACKEND_TOKEN;
}

/* Looking and taking the lease are one step under the mutex: of any number of
 * callers that miss at once exactly one gets the token. */
int store_lease(BACKEND_KEY_ARGS, void *buf, size_t cap,
                struct backend_item *out, struct backend_wait *wait) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct entry *entry = store_find(&at);
  if (entry)
    return store_end(&at, store_read(entry, buf, cap, out));
  rc = take_lease(&at, out, wait);
  at.view->stats.misses += rc > 0;
  return store_end(&at, rc);
}

int store_refresh(BACKEND_KEY_ARGS, struct backend_item *out,
                  struct backend_wait *wait) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  return rc < 0 ? rc : store_end(&at, take_lease(&at, out, wait));
}

/* The lease ends before the value is stored, as the put would poison it. The
 * waiters get the caller's bytes, so they get them even if the store does
 * not. */
int store_fill(BACKEND_KEY_ARGS, uint64_t token, const void *bytes,
               size_t length, uint32_t format, uint64_t ttl_ms) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct lease **link = token ? find_lease(&at, token) : NULL;
  if (!link || !*link)
    return store_end(&at, 0);
  int poisoned = (*link)->poisoned;
  struct backend_wait *waits = end_lease(at.view->store, link);
  struct backend_item item = {.length = length,
                              .expires_ms = store_expiry(now, ttl_ms),
                              .created_ms = now,
                              .format = format};
  rc = poisoned ? 0 : store_put(&at, bytes, length, format, ttl_ms);
  if (rc == 1)
    item.version = at.view->store->version; /* put took the last one */
  store_end(&at, rc);
  wake_all(waits, BACKEND_HIT, bytes, &item);
  return rc;
}

int store_abandon(BACKEND_KEY_ARGS, uint64_t token, const char *message,
                  size_t message_len) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct lease **link = token ? find_lease(&at, token) : NULL;
  if (!link || !*link)
    return store_end(&at, 0);
  struct backend_wait *waits = end_lease(at.view->store, link);
  store_end(&at, 1);
  struct backend_item item = {.length = message ? message_len : 0};
  wake_all(waits, message ? BACKEND_ELOAD : BACKEND_MISS, message, &item);
  return 1;
}

int store_waiters(BACKEND_KEY_ARGS, uint64_t token) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct lease **link = token ? find_lease(&at, token) : NULL;
  if (!link || !*link)
    return store_end(&at, -1);
  int count = 0;
  for (struct backend_wait *wait = (*link)->waits; wait; wait = wait->next)
    count++;
  return store_end(&at, count);
}

int store_valid(BACKEND_KEY_ARGS, uint64_t token) {
  struct target at;
  int rc = store_begin(&at, STORE_KEY);
  if (rc < 0)
    return rc;
  struct lease **link = token ? find_lease(&at, token) : NULL;
  return store_end(&at, link && *link && !(*link)->poisoned);
}

/* Whoever clears prev answers the wait: fill, abandon and close do so under
 * the mutex before they wake, so a 0 here means wake has come or will. */
int store_unwait(struct backend *self, struct backend_wait *wait) {
  struct view *view = (struct view *)self;
  pthread_mutex_lock(&view->store->mutex);
  int queued = wait->prev != NULL;
  if (queued) {
    *wait->prev = wait->next;
    if (wait->next)
      wait->next->prev = wait->prev;
    wait->prev = NULL;
    wait->next = NULL;
  }
  pthread_mutex_unlock(&view->store->mutex);
  return queued;
}

/* A closed view has no outcome to offer, and its callers may not ask again:
 * they get an error. All waits are gathered first, as wake needs the mutex
 * free and the leases must not change meanwhile. */
void store_end_leases(struct view *view) {
  static const char message[] = "closed";
  const struct backend_item item = {.length = sizeof message - 1};
  struct store *store = view->store;
  struct backend_wait *waits = NULL, **end = &waits;
  pthread_mutex_lock(&store->mutex);
  for (size_t i = 0; i < STORE_LEASE_BUCKETS; i++) {
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
  pthread_mutex_unlock(&store->mutex);
  wake_all(waits, BACKEND_ELOAD, message, &item);
}
