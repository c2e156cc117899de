/* The memory backend: a bounded, thread-safe store of bytes in this process.
 *
 * A store owns the memory and the byte bound. A view of it is a backend
 * (backend.h) with keys and counters of its own; views of the same name share
 * both. Any thread may call any view; readers take no lock. Knows neither Lua
 * nor libuv: nothing here waits, and time is what callers say it is.
 *
 * After fork the child's copy is no store any more: its calls return
 * BACKEND_ECLOSED (on Linux 4.14 and later).
 */
#ifndef MOONSTASH_MEMORY_STORE_H
#define MOONSTASH_MEMORY_STORE_H

#include "backend.h"

struct store;

/* The last clock time, in ms, that an entry can expire at (139 years): with a
 * later one it never does. */
#define STORE_TIME_MAX ((UINT64_C(1) << 42) - 1)

/* Makes a store that holds at most max_bytes, all of its own data included (and
 * what writers at this very moment are about to write).
 * Returns 0 or BACKEND_ENOMEM. The store lives until store_close and its last
 * view's close, whichever is later. */
int store_open(struct store **out, size_t max_bytes);
void store_close(struct store *store);

/* Opens a view: a backend whose keys no other view sees. 0, or ENOMEM. */
int store_view(struct store *store, struct backend **out);
/* The same for a view that shares keys, counters and leases with all views of
 * that name. The entries go with the last of them; leases that a view has taken
 * go with it: their waiters ask again. */
int store_view_named(struct store *store, const char *name,
                     struct backend **out);

/* Changes the byte bound; evicts until it holds, first what is not pinned, then
 * pinned entries down to half of it. Entries are copied when the store is laid
 * out anew for a bound of quite another size: that takes as much memory again
 * for a moment, with all locks held. A store can grow to what it has reserved
 * addresses for: 1 GiB, or 4 times the bound it was opened with. */
void store_resize(struct store *store, size_t max_bytes);

/* Why a value leaves. */
enum {
  STORE_SIZE = 1, /* for room */
  STORE_EXPIRED,  /* its time was over */
  STORE_DELETED,  /* on request */
  STORE_REPLACED, /* by a newer value */
  STORE_CLEARED   /* with many others, on request */
};

/* Is told of a value that leaves a view; not when the last view of that name
 * closes. Called under a lock of the store, on whatever thread: must only note
 * it. What it points to is valid during the call; bytes is NULL for a value of
 * several kilobytes and more. */
typedef void store_watch_fn(void *ud, int reason, const char *key,
                            size_t key_len, uint32_t format, const void *bytes,
                            size_t length);
/* Sets the view's watcher; fn NULL takes it away. */
void store_watch(struct backend *view, store_watch_fn *fn, void *ud);

/* set with more to say: a pinned entry is not evicted for room (it expires, is
 * deleted, replaced and cleared like any other, and in a crowd of keys of the
 * same hash even pinned ones make room); at most half of the bound can be
 * pinned. weight: bytes beyond its own that the entry counts for in the bound,
 * as it stands for something that is kept elsewhere. ETOOLARGE above either's
 * share. */
struct store_options {
  uint64_t ttl_ms;
  uint32_t format;
  uint32_t weight; /* bytes */
  int pin;         /* 1: keep it */
};
int store_set_with(BACKEND_KEY_ARGS, const void *bytes, size_t length,
                   const struct store_options *options);

/* Compare and set: stores if the key's entry still has this version (of get or
 * info; 0: if there is none). 1 stored, 0 it has another, or set's error. */
int store_cas(BACKEND_KEY_ARGS, uint64_t version, const void *bytes,
              size_t length, uint32_t format, uint64_t ttl_ms);

/* How a copy that is kept elsewhere (a near copy) can tell that it is out of
 * date, without a call: it is good as long as words[0] == version and the
 * view's words[0] == clears, and until its expires_ms. A miss is as good as
 * that too, or as long as the view's words[1] == inserts. Another thread may
 * write these words at any moment: compilers must not keep them in registers.
 * They stay readable as long as the view is open.
 *
 * words[1] holds how often entries of the neighbourhood were used, two bits
 * each. A use of the near copy adds 1 << shift unless both bits are set, in
 * plain arithmetic: a lost update does no harm. shift is 32 for a miss. */
struct store_near {
  uint32_t *words;  /* NULL: do not keep a copy of this one */
  uint32_t version; /* of words[0] */
  uint32_t shift;
  uint32_t clears, inserts; /* of the view's words */
};
/* get, and what a near copy of its outcome (hit or miss) needs. */
int store_get_near(BACKEND_KEY_ARGS, void *buf, size_t cap,
                   struct backend_item *out, struct store_near *near);
/* Locks the whole store for a moment. The view's own two words: [0] clears, [1]
 * inserts of new keys, which counts only from this call on. */
uint32_t *store_view_words(struct backend *view);

/* Frees what has expired or was cleared, in a bounded step that looks at some
 * `entries` of them. 1: there is more to do at once; 0: call again in a second
 * or so. Never waits: a part of the store that is in use is left for later. */
int store_sweep(struct store *store, uint64_t now, size_t entries);

/* Of a whole store. */
struct store_info {
  uint64_t max_bytes;  /* the bound */
  uint64_t bytes;      /* in use, all included; what the bound is about */
  uint64_t live_bytes; /* of those, keys, values and their headers */
  uint64_t index_bytes, policy_bytes; /* and these: ghosts, shadow caches */
  uint64_t entries;                   /* of all views */
  uint64_t lock_waits; /* of readers: 0, as none takes a lock; a way of reading
                          that would has to count here */
  uint32_t shards, segment_bytes;
  double small_share; /* of the room, for entries not yet used again */
};
void store_info(struct store *store, struct store_info *out);

#endif
