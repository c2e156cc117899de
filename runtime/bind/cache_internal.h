/* What the files of the cache's C half share: cache.c (state, hot calls),
 * cache_calls.c (the other calls), cache_lease.c (loads in flight). */
#ifndef MOONSTASH_BIND_CACHE_INTERNAL_H
#define MOONSTASH_BIND_CACHE_INTERNAL_H

#include <lauxlib.h>

#include "backend.h"
#include "bind/bind.h"
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

/* What Lua casts the pointer of `api` to (lua/cache/memory_ffi.lua). */
struct api {
  struct cache_bind *context;
  uint64_t (*now)(struct cache_bind *context);
  int (*get)(BACKEND_KEY_ARGS, void *buf, size_t cap, struct backend_item *out,
             struct backend_wait *wait);
  int (*set)(BACKEND_KEY_ARGS, const void *bytes, size_t length,
             uint32_t format, uint64_t ttl_ms, struct backend_wait *wait);
  int (*remove)(BACKEND_KEY_ARGS, struct backend_wait *wait);
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
  struct store *store;                /* the process's default one */
  struct store *own[CACHE_VIEWS_MAX]; /* a view's own store, or NULL; by view */
  struct dead *dead;                  /* references whose entries are gone */
  struct backend *views[CACHE_VIEWS_MAX];
  uint64_t leases[CACHE_VIEWS_MAX]; /* misses that lease has counted, by view */
  int view_count;
  uint64_t offset_ms; /* what tests have advanced the clock by */
  struct api api;
  struct buffer *buffers; /* all of them; mostly one */
  struct waiter *woken;   /* by the end of the load that ends just now */
};

/* The number of a Lua value whose entry is gone; see REFERENCE. */
struct dead {
  struct dead *next;
  double number;
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
extern const luaL_Reg cache_calls[], cache_leases[];
/* Makes the metatable of loads. */
void cache_open_leases(lua_State *L);

#endif
