/* The backend interface: what every store of bytes offers to the cache.
 *
 * A backend is a struct whose first member points to a table of functions.
 * Every call names an entry by (ns, ns_len, key, key_len): the namespace
 * travels beside the key and counts as if the two were joined, so ("a:", "b")
 * and ("", "a:b") are the same entry. Every call takes `now`, milliseconds of
 * the process clock (clock.h), so that tests can move time.
 *
 * Values are bytes with a format tag that the backend keeps and does not read
 * (but for BACKEND_INTEGER, which increment understands). Nothing that a call
 * hands out points into the backend: get copies into the caller's buffer.
 *
 * `wait` is how a call that cannot answer at once answers later: it returns
 * BACKEND_WAIT and calls wait->wake exactly once, from whatever thread the
 * answer comes on. The caller owns the wait and keeps it alive until then or
 * until ops->unwait has returned 1. So must be what out-parameters point to;
 * keys and values are copied. The memory backend waits in `lease` only.
 *
 * Errors are negative codes; a call that fails has changed nothing.
 */
#ifndef MOONSTASH_BACKEND_H
#define MOONSTASH_BACKEND_H

#include <stddef.h>
#include <stdint.h>

enum {
  BACKEND_KEY_MAX = 64 * 1024, /* bytes of ns + key; at least 1 */
  BACKEND_TTL_NEVER = 0,       /* ttl_ms: the entry never expires */
  BACKEND_HEAD = 64            /* bytes that info gives of a value */
};

/* What a call returns. Counts and yes/no answers are 0 and above. */
enum {
  BACKEND_MISS = 0,          /* get, info: no such entry */
  BACKEND_HIT = 1,           /* get, info, lease: the value is in buf, out */
  BACKEND_TOKEN = 2,         /* lease: yours to fill; out->token */
  BACKEND_WAIT = 3,          /* the answer comes through wait->wake */
  BACKEND_ETOOLARGE = -1,    /* the value is above its share of the bound */
  BACKEND_ETYPE = -2,        /* increment: the value is not an integer */
  BACKEND_ERANGE = -3,       /* increment: the sum is beyond +-2^53 */
  BACKEND_ENOMEM = -4,       /* the allocator said no */
  BACKEND_EUNSUPPORTED = -5, /* this backend has no such operation */
  BACKEND_EINVAL = -6,       /* key length 0 or above BACKEND_KEY_MAX */
  BACKEND_ELOAD = -7,        /* wake: the load failed; bytes = its message */
  BACKEND_ECONNECTION = -8,  /* there is none, or it was lost meanwhile */
  BACKEND_ESERVER = -9,      /* the server's own error, in its words */
  BACKEND_EOVERLOADED = -10, /* a limit on what is under way */
  BACKEND_ECLOSED = -11      /* the backend was closed */
};

/* The format tag of a value: how its bytes are to be read. */
enum {
  BACKEND_BYTES = 0,      /* a string, as it is */
  BACKEND_INTEGER = 1,    /* int64_t in host byte order; increment's type */
  BACKEND_FORMAT_USER = 2 /* 2..255 belong to the serializers */
};

/* An entry as get, info and lease describe it. */
struct backend_item {
  size_t length;       /* bytes of the value; above the buffer's size: not
                          copied, call again with a larger one */
  uint64_t version;    /* grows with every change of this entry */
  uint64_t expires_ms; /* clock time of expiry; 0 = never */
  uint64_t created_ms; /* clock time of the last set */
  uint64_t token;      /* lease: BACKEND_TOKEN's token, else 0 */
  void *owner;         /* lease: who holds the load (its wait->owner) */
  uint32_t format;     /* the tag that set gave */
  uint32_t pad;        /* zero */
};

struct backend_wait;
/* Hands over the answer: status is a BACKEND_ code, or what the call returns
 * when it answers at once; bytes and item are valid during the call only. For a
 * lease it is HIT with the value, MISS for "ask again", or ELOAD. With an error
 * bytes are a message of item->length bytes (or NULL). Must not call the
 * backend; must only note and return. */
typedef void backend_wake_fn(struct backend_wait *wait, int status,
                             const void *bytes,
                             const struct backend_item *item);

struct backend_wait {
  backend_wake_fn *wake;      /* called once, on the completing thread */
  void *owner;                /* the task that asks (see item.owner) */
  struct backend_wait *next;  /* the backend's, while the wait is queued */
  struct backend_wait **prev; /* the backend's; NULL when not queued */
  void *call;                 /* the backend's, likewise */
};

/* A slice of the caller's memory: a key of a bulk call. */
struct backend_slice {
  const char *data;
  size_t length;
};

/* Counters of one backend since it was opened. */
struct backend_stats {
  uint64_t hits, misses;       /* get, get_many, lease */
  uint64_t sets, deletes;      /* entries written, removed on request */
  uint64_t evictions, expired; /* removed for room; found past their time */
  uint64_t entries, bytes;     /* now in this backend, metadata included */
  uint64_t max_bytes;          /* the bound of the store below */
};

struct backend;

/* One entry of scan: return 0 to go on, else scan stops and returns it. */
typedef int backend_scan_fn(void *ud, const char *key, size_t key_len,
                            const struct backend_item *item);

#define BACKEND_KEY_ARGS                                             \
  struct backend *self, uint64_t now, const char *ns, size_t ns_len, \
      const char *key, size_t key_len

struct backend_ops {
  const char *name; /* "memory", "redis" */

  /* HIT with *out and, if it fits in cap, the bytes in buf; or MISS. When it
   * answers later, the bytes come with the wake, not in buf. */
  int (*get)(BACKEND_KEY_ARGS, void *buf, size_t cap, struct backend_item *out,
             struct backend_wait *wait);
  /* n keys; values are packed into buf one after the other; items[i].length
   * bytes each, items[i].version 0 for a miss. Returns the number of hits;
   * *used above cap: what buf holds is undefined, call again with that much,
   * and none of it was counted. When it
   * answers later, the packed values come with the wake, and of items only
   * length and version are set. */
  int (*get_many)(struct backend *self, uint64_t now, const char *ns,
                  size_t ns_len, const struct backend_slice *keys, size_t n,
                  void *buf, size_t cap, size_t *used,
                  struct backend_item *items, struct backend_wait *wait);
  /* Stores; replaces value, format and TTL. 1, or an error. */
  int (*set)(BACKEND_KEY_ARGS, const void *bytes, size_t length,
             uint32_t format, uint64_t ttl_ms, struct backend_wait *wait);
  /* The same for n keys with one format each; 1 when all are stored, else the
   * first error (the others were tried). statuses: NULL, or n results. */
  int (*set_many)(struct backend *self, uint64_t now, const char *ns,
                  size_t ns_len, const struct backend_slice *keys,
                  const struct backend_slice *values, const uint32_t *formats,
                  size_t n, uint64_t ttl_ms, int *statuses,
                  struct backend_wait *wait);
  /* Stores unless the key exists: 1 stored, 0 it exists. */
  int (*add)(BACKEND_KEY_ARGS, const void *bytes, size_t length,
             uint32_t format, uint64_t ttl_ms, struct backend_wait *wait);
  /* 1 removed, 0 there was none. */
  int (*remove)(BACKEND_KEY_ARGS, struct backend_wait *wait);
  /* How many of n keys were removed. */
  int (*remove_many)(struct backend *self, uint64_t now, const char *ns,
                     size_t ns_len, const struct backend_slice *keys, size_t n,
                     struct backend_wait *wait);
  /* 1 or 0; not counted as a hit or miss, no use is noted. */
  int (*exists)(BACKEND_KEY_ARGS, struct backend_wait *wait);
  /* Adds delta to a BACKEND_INTEGER; a missing key counts from 0 and gets
   * ttl_ms, an existing TTL stays. 1 with *sum, ETYPE or ERANGE. */
  int (*increment)(BACKEND_KEY_ARGS, int64_t delta, uint64_t ttl_ms,
                   int64_t *sum, struct backend_wait *wait);
  /* Sets the time left; BACKEND_TTL_NEVER takes the TTL away. 1, or 0. */
  int (*expire)(BACKEND_KEY_ARGS, uint64_t ttl_ms, struct backend_wait *wait);
  /* HIT with *out, or MISS: for ttl and info; no use is noted. A server does
   * not know created_ms (0) nor the format: the value's first BACKEND_HEAD
   * bytes, if there are as many, come with the wake. */
  int (*info)(BACKEND_KEY_ARGS, struct backend_item *out,
              struct backend_wait *wait);
  /* Notes a use and, unless ttl_ms is UINT64_MAX, sets the time left. */
  int (*touch)(BACKEND_KEY_ARGS, uint64_t ttl_ms, struct backend_wait *wait);
  /* Removes every entry of this backend whose ns + key begins with prefix;
   * all of them for the empty prefix. 1 when they are gone; 0: that was one
   * bounded step, call again with the same *cursor (0 first). */
  int (*clear)(struct backend *self, uint64_t now, const char *prefix,
               size_t prefix_len, uint64_t *cursor, struct backend_wait *wait);
  /* Calls fn for about `limit` live entries that begin with prefix, from
   * *cursor on (0 first); *cursor is 0 again when all were seen. It may be a
   * few more, or fewer, even none, before the end. Entries that are set or
   * removed meanwhile may be missed or not; who goes on after fn has stopped
   * may see some again. fn must not call the backend. Returns the number of
   * entries seen. */
  int (*scan)(struct backend *self, uint64_t now, const char *prefix,
              size_t prefix_len, uint64_t *cursor, size_t limit,
              backend_scan_fn *fn, void *ud, struct backend_wait *wait);
  /* A command of the backend's own protocol; memory has none. The wake's bytes
   * are the reply as a tape (redis/reply.h), also of the server's errors. */
  int (*raw)(struct backend *self, const struct backend_slice *args, size_t n,
             struct backend_wait *wait);

  /* The one idea against stampedes and stale fills (memcache leases, Nishtala
   * et al., NSDI 2013). HIT: the value. TOKEN: the key is missing and the
   * caller is the one to load it, with fill or abandon to follow. WAIT:
   * another holds it (out->owner), wait->wake comes with its outcome. */
  int (*lease)(BACKEND_KEY_ARGS, void *buf, size_t cap,
               struct backend_item *out, struct backend_wait *wait);
  /* The same for a load of a key that may well be there: TOKEN or WAIT, never
   * HIT. The entry stays until the fill replaces it. Not counted. */
  int (*refresh)(BACKEND_KEY_ARGS, struct backend_item *out,
                 struct backend_wait *wait);
  /* Ends a load with its value: waiters get it; it is stored unless a set,
   * add, increment, remove or clear came in between. 1 stored, 0 refused, or
   * set's error (waiters have the value all the same). */
  int (*fill)(BACKEND_KEY_ARGS, uint64_t token, const void *bytes,
              size_t length, uint32_t format, uint64_t ttl_ms);
  /* Ends a load without a value: waiters get BACKEND_ELOAD and the message,
   * or, when message is NULL, MISS: one of them will load. 1, or 0 when there
   * is no such load. */
  int (*abandon)(BACKEND_KEY_ARGS, uint64_t token, const char *message,
                 size_t message_len);
  /* How many wait for this load; -1 when there is no such load. */
  int (*waiters)(BACKEND_KEY_ARGS, uint64_t token);
  /* Would the load's value be stored? 0: something came in between. */
  int (*valid)(BACKEND_KEY_ARGS, uint64_t token);
  /* Takes a queued wait back: 1, or 0 when wake has been or is being called. */
  int (*unwait)(struct backend *self, struct backend_wait *wait);

  void (*stats)(struct backend *self, uint64_t now, struct backend_stats *out);
  void (*close)(struct backend *self);
};

/* Backends embed this as their first member. */
struct backend {
  const struct backend_ops *ops;
};

#endif
