/* What the files of the cache's C half share: cache.c (state, hot calls),
 * cache_calls.c (the other calls), cache_lease.c (loads in flight),
 * cache_abroad.c (those of other runtimes), cache_sweep.c (what expires),
 * cache_evict.c (values that leave), cache_store.c (what only memory can),
 * cache_near.c (what near copies in Lua need). */
#ifndef MOONSTASH_BIND_CACHE_INTERNAL_H
#define MOONSTASH_BIND_CACHE_INTERNAL_H

#include <lauxlib.h>

#include "backend.h"
#include "bind/bind.h"
#include "bind/pool.h"
#include "memory/store.h"

enum { CACHE_VIEWS_MAX = 256 }; /* aliases of one runtime */

enum { /* value formats, after BACKEND_BYTES and BACKEND_INTEGER */
       FORMAT_NUMBER = BACKEND_FORMAT_USER, /* a double */
       FORMAT_FALSE,
       FORMAT_TRUE,
       FORMAT_TABLE,   /* string.buffer's encoding of one table */
       FORMAT_RESULTS, /* the same of {n = count, results...} */
       FORMAT_JSON,    /* what the serializers of these names made */
       FORMAT_MSGPACK,
       FORMAT_CUSTOM,
       FORMAT_REFERENCE /* the number of a Lua value that Lua keeps */
};

enum {                 /* what lease returns first, beside the WAIT_ states */
       LEASE_HIT = 10, /* format, value */
       LEASE_TOKEN,    /* load */
       LEASE_DIRECT,   /* to wait is impossible or a deadlock: do without */
       LEASE_AGAIN,    /* the load ended without an outcome: ask again */
       LEASE_GIVEN,    /* what give was given */
       LEASE_BUSY      /* "try": another task loads it */
};

enum { CACHE_SEEN = 16384 }; /* marks; a power of two */

/* What get_near says beside the value. */
struct cache_near {
  struct store_near store;
  uint32_t *seen; /* CACHE_SEEN marks that entries leave there, or NULL */
  uint32_t again; /* this one has left it before */
  uint32_t pad;   /* unused */
};

/* What Lua casts the pointer of `api` to (lua/cache/memory_ffi.lua). */
struct api {
  struct cache_bind *context;
  uint64_t (*now)(struct cache_bind *context);
  int (*get)(BACKEND_KEY_ARGS, void *buf, size_t cap, struct backend_item *out,
             struct backend_wait *wait);
  int (*set)(BACKEND_KEY_ARGS, const void *bytes, size_t length,
             uint32_t format, uint64_t ttl_ms, struct backend_wait *wait);
  int (*remove)(BACKEND_KEY_ARGS, struct backend_wait *wait);
  int (*get_near)(BACKEND_KEY_ARGS, void *buf, size_t cap,
                  struct backend_item *out, struct cache_near *near);
  uint32_t *(*view_words)(struct backend *view);
  const uint64_t *clock;     /* the process clock's word */
  const uint64_t *offset_ms; /* now() is ahead of it by that */
};

/* Where a value lies on its way from the backend to Lua. */
struct buffer {
  struct buffer *next;
  char *bytes;
  size_t cap;
  int taken;
};

struct cache_bind {
  struct bind *bind;
  struct pool *pool;   /* the bind's */
  struct evict *evict; /* NULL until something is watched */
  struct backend *views[CACHE_VIEWS_MAX];
  struct pool_view *shared[CACHE_VIEWS_MAX]; /* by view; [0] is NULL */
  int view_count;
  uint64_t offset_ms; /* what tests have advanced the clock by */
  struct api api;
  struct buffer *buffers; /* all of them; mostly one */
  struct waiter *woken;   /* by the end of the load that ends just now */
  struct load *loads;     /* those in flight */
  struct waiter *abroad;  /* waiters for loads of other runtimes */
  uint64_t looks;         /* how often the loads were looked through */
  struct pool_member member;
  uv_async_t async;     /* news in the inbox; keeps the loop alive while
                           somebody waits abroad */
  uv_timer_t sweeper;   /* never keeps it alive */
  size_t sweep_entries; /* of the next step */
  int sweeping;         /* the common store: there is more to do */
  uint64_t round;       /* of looks at the waits abroad */
  uint64_t watched_ms;  /* when the waits abroad were last looked through */

  pthread_mutex_t lock; /* guards all below: any thread */
  pthread_cond_t paid;  /* owed has become 0 */
  struct waiter *inbox; /* abroad, and woken; the first came last */
  unsigned owed;        /* forgotten waiters whose wake is still to come */
  int asked;            /* somebody abroad wants the loads looked at */
  int stopped;          /* the handles are closing */
};

union cache_scratch {
  int64_t integer;
  double number;
};

struct cache_bind *cache_of(lua_State *L);
uint64_t cache_now(struct cache_bind *c);
struct backend *cache_check_view(lua_State *L, int index);
/* Pushes format and value; bytes that C cannot read go on as a string. */
int cache_push_value(lua_State *L, uint32_t format, const char *bytes,
                     size_t length);
/* The bytes of the value at index in that format. */
const void *cache_value_bytes(lua_State *L, int index, uint32_t format,
                              union cache_scratch *scratch, size_t *length);

/* The strings of the list at index, as a userdata so that an error frees it. */
struct backend_slice *cache_check_list(lua_State *L, int index, size_t *n);

/* A buffer that nobody uses; NULL without memory. */
struct buffer *cache_take_buffer(struct cache_bind *c);
int cache_resize_buffer(struct buffer *b, size_t cap); /* 0, or -1 */
void cache_release_buffer(struct buffer *b);
int cache_view_index(const struct cache_bind *c, const struct backend *view);

/* More functions of the module. */
extern const luaL_Reg cache_calls[], cache_leases[], cache_evicts[],
    cache_stores[];
/* Fills in the part of api that near copies need. */
void cache_open_near(struct cache_bind *c);
/* Makes the metatable of loads. */
void cache_open_leases(lua_State *L);

/* cache_abroad.c: opens the inbox, 0 or a negative errno; begins to close its
 * handle; frees it when no wake is under way any more. */
int abroad_open(struct cache_bind *c);
void abroad_stop(struct cache_bind *c);
void abroad_close(struct cache_bind *c);
/* Looks for waits abroad that have come to be for ever, and ends them. */
void abroad_watch(struct cache_bind *c);

/* cache_sweep.c */
void sweep_open(struct cache_bind *c);
/* A new view: watched, if values are kept by reference already. 0, or -1
 * without memory. */
int cache_watch_view(struct cache_bind *c, struct backend *view);
/* How many events of the view were dropped. */
uint64_t cache_events_lost(struct cache_bind *c, const struct backend *view);
/* Closes the handle; frees what watched the views, which are closed. */
void cache_stop_evict(struct cache_bind *c);
void cache_free_evict(struct cache_bind *c);
/* Pushes a table of what is known of a view's store. */
void cache_push_store(lua_State *L, struct cache_bind *c,
                      const struct backend *view);

#endif
