/* What the files of the memory backend share: the store's structs and the
 * steps that store.c, lease.c and calls.c offer each other. Tests look in
 * here too.
 *
 * A step that takes a target, an entry or a view is called with the store's
 * mutex held, unless it says otherwise.
 */
#ifndef MOONSTASH_MEMORY_INTERNAL_H
#define MOONSTASH_MEMORY_INTERNAL_H

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "memory/store.h"

enum {
  STORE_VALUE_SHARE = 8,    /* an entry takes at most 1/8 of the bound */
  STORE_TABLE_SHARE = 8,    /* and so does the bucket array */
  STORE_BUCKETS_MIN = 16,   /* a power of two */
  STORE_LEASE_BUCKETS = 256 /* a power of two; loads in flight are few */
};

struct view;

/* A cached value: one block, the joined key and the value at its end. */
struct entry {
  struct entry *next;                  /* in its bucket, by ascending hash */
  struct entry *ring_next, *ring_prev; /* the CLOCK ring of all entries */
  struct view *view;                   /* whose it is; outlives the entry */
  uint64_t hash;                       /* of the joined key, view's seed */
  uint64_t version;                    /* store's counter at the last change */
  uint64_t expires_ms;                 /* clock time of expiry; 0 = never */
  uint64_t created_ms;                 /* clock time of the last set */
  size_t length;                       /* bytes of the value */
  uint32_t key_len;                    /* bytes of ns + key */
  uint8_t format;                      /* the tag that set gave */
  uint8_t referenced;                  /* used since the hand last passed */
  char bytes[];                        /* key_len of key, length of value */
};

/* A load in flight. A poisoned one is found by its token only. */
struct lease {
  struct lease *next;         /* in its bucket, newest first */
  struct view *view;          /* whose key it is */
  uint64_t hash;              /* as of an entry with this key */
  uint64_t token;             /* what fill and abandon show; never 0 */
  void *owner;                /* the loader's wait->owner; not ours */
  struct backend_wait *waits; /* the callers' own, newest first */
  int poisoned;               /* the key changed: fill stores nothing */
  uint32_t key_len;           /* bytes of ns + key */
  char key[];
};

/* Allocates (block NULL) or resizes like realloc; free() takes it back. */
typedef void *store_alloc_fn(void *block, size_t size);

struct store {
  pthread_mutex_t mutex; /* guards all below and every view's counters */
  store_alloc_fn *alloc; /* realloc, or a test's */
  struct entry **buckets;
  struct entry *hand;    /* next to be judged by CLOCK; NULL: no entries */
  size_t bucket_count;   /* a power of two */
  size_t entries;        /* of all views */
  size_t bytes;          /* entries with their headers, and buckets */
  size_t max_bytes;      /* bytes never stays above it */
  uint64_t version;      /* last version given out */
  uint64_t token;        /* last lease token given out */
  uint64_t seed;         /* of the hash; random */
  uint64_t views_opened; /* gives views their ids */
  size_t references;     /* store_close's one and one for each view */
  unsigned hash_shift;   /* hash >> hash_shift is the bucket */
  size_t lease_count;    /* in leases, poisoned ones too */
  struct lease *leases[STORE_LEASE_BUCKETS];
};

struct view {
  struct backend backend;     /* first: a view is a backend */
  struct store *store;        /* holds one reference */
  uint64_t id;                /* unique in the store; varies the hash */
  struct backend_stats stats; /* max_bytes is filled in on request */
  store_drop_fn *on_drop;     /* told of values of this format that go */
  void *on_drop_ud;
  uint32_t on_drop_format;
};

/* What one call is about: a key of a view at a moment. */
struct target {
  struct view *view;
  const char *ns, *key; /* the caller's; never NULL */
  size_t ns_len, key_len;
  uint64_t hash; /* of the two as if joined */
  uint64_t now;  /* clock time in ms */
};

/* The arguments of BACKEND_KEY_ARGS, to pass them on. */
#define STORE_KEY self, now, ns, ns_len, key, key_len
/* Memory answers at once: only lease has a use for its wait. */
#define STORE_NO_WAIT struct backend_wait *wait __attribute__((unused))

#define store_assert_locked(store) \
  assert(pthread_mutex_trylock(&(store)->mutex) == EBUSY)

static inline size_t target_length(const struct target *at) {
  return at->ns_len + at->key_len;
}

static inline char *entry_value(struct entry *entry) {
  return entry->bytes + entry->key_len;
}

static inline int entry_expired(const struct entry *entry, uint64_t now) {
  return entry->expires_ms != 0 && entry->expires_ms <= now;
}

/* Whether a joined key begins with prefix; all begin with the empty one. */
static inline int store_begins_with(const char *key, size_t key_len,
                                    const char *prefix, size_t prefix_len) {
  return prefix_len == 0 ||
         (key_len >= prefix_len && memcmp(key, prefix, prefix_len) == 0);
}

/* store.c */

/* Replaces the allocator (realloc), for tests that make it fail. */
void store_set_alloc(struct store *store, store_alloc_fn *alloc);
/* Fills *at, no lock needed. 0, or BACKEND_EINVAL for a bad length. */
int store_aim(struct target *at, BACKEND_KEY_ARGS);
/* The two ends of a single-key call: aim and lock, unlock and pass rc on. */
int store_begin(struct target *at, BACKEND_KEY_ARGS);
int store_end(struct target *at, int rc);
/* Whether ns + key are these bytes. */
int store_joined_equal(const struct target *at, const char *key, size_t length);
void store_join(const struct target *at, char *out);
/* The live entry or NULL; one past its time is dropped and counted. */
struct entry *store_find(struct target *at);
/* Sets and poisons: 1, or an error that left all as it was. */
int store_put(struct target *at, const void *bytes, size_t length,
              uint32_t format, uint64_t ttl_ms);
/* Frees the entry; the caller counts why. */
void store_drop(struct entry *entry);
/* Removes on request and poisons: 1, or 0 when there was none. */
int store_delete(struct target *at);
/* Copies a hit if it fits in cap and counts it then; describes it in any
 * case. Returns BACKEND_HIT. */
int store_read(struct entry *entry, void *buf, size_t cap,
               struct backend_item *out);
void store_describe(const struct entry *entry, struct backend_item *out);
/* now + ttl_ms, at most UINT64_MAX; 0 for BACKEND_TTL_NEVER. */
uint64_t store_expiry(uint64_t now, uint64_t ttl_ms);

/* lease.c */

/* The key changed: a load of it in flight is not to be stored. */
void store_poison(const struct target *at);
/* The same for every key of the view that begins with prefix. */
void store_poison_prefix(struct view *view, const char *prefix,
                         size_t prefix_len);
/* Ends every load of a view that closes. Locks and unlocks by itself. */
void store_end_leases(struct view *view);
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

/* calls.c */

/* What a view's backend points to. */
extern const struct backend_ops store_calls;

#endif
