/* What the caches of several runtimes of a process have in common: the store,
 * the aliases' views by name, and how the runtimes reach each other.
 *
 * Every runtime holds a reference to one pool, its own or that of the runtime
 * it shares with; who closes last frees it. Any thread may call anything here.
 * Locks are taken in this order: the pool's, then a member's or a store's.
 * Knows neither Lua nor libuv.
 */
#ifndef MOONSTASH_BIND_POOL_H
#define MOONSTASH_BIND_POOL_H

#include <pthread.h>
#include <stdint.h>

#include "memory/store.h"

struct pool;

/* Makes a pool whose store has this bound. NULL without memory. */
struct pool *pool_open(size_t max_bytes);
struct pool *pool_share(struct pool *pool); /* one more reference */
void pool_close(struct pool *pool);
/* Does another runtime hold a reference? */
int pool_is_shared(struct pool *pool);

/* The store, opened when first asked for; NULL without memory. */
struct store *pool_store(struct pool *pool);

/* The views of one name: the same keys for all who open it. */
struct pool_view {
  struct pool_view *next;
  struct store *store;   /* its own, or the pool's */
  int owns;              /* its own: the alias has a bound of its own */
  unsigned references;   /* guarded by the pool */
  _Atomic uint64_t asks; /* misses that lease has counted */
  char name[];
};
/* Opens the view of that name, of the pool's store or, with max_bytes, of one
 * of its own with that bound (the last one given holds). 0, or ENOMEM. */
int pool_view_open(struct pool *pool, const char *name, size_t max_bytes,
                   struct pool_view **out, struct backend **view);
void pool_view_close(struct pool *pool, struct pool_view *which,
                     struct backend *view);
int pool_view_is_shared(struct pool *pool, const struct pool_view *which);

/* A number that no other call has given: of a Lua state, for its references. */
uint64_t pool_next_state(struct pool *pool);
/* The place of a class in the lists of all states: 1 is no class's. 0 without
 * memory. */
unsigned pool_class(struct pool *pool, const char *name);
/* Is it this caller's turn to sweep the store? Then nobody else's for pause_ms.
 */
int pool_sweep_turn(struct pool *pool, uint64_t now_ms, uint64_t pause_ms);

/* ---- the runtimes ---- */

enum { POOL_MEMBERS_MAX = UINT16_MAX };

struct pool_member {
  struct pool_member *next;
  pthread_t thread;     /* on which it runs */
  unsigned number;      /* 1 to POOL_MEMBERS_MAX; unique among those present */
  void (*post)(void *); /* called with the pool locked, on any thread */
  void *ud;
};
/* 0, or ENOMEM when there are too many. */
int pool_join(struct pool *pool, struct pool_member *member);
void pool_leave(struct pool *pool, struct pool_member *member);
/* Asks the runtime of that number to look at its loads; it may be gone. */
void pool_post(struct pool *pool, unsigned number);
/* Does the runtime of that number run on the calling thread? */
int pool_is_here(struct pool *pool, unsigned number);

/* ---- who needs whom, across runtimes ---- */

/* Notes that the loads of `from` go on only when one of `to` has ended, until
 * pool_drop_needs(wait). Both are owners as the store knows them: compared,
 * never followed. 0; or 1, and nothing is noted, when `to` needs `from` already
 * (or there is no room for it): a wait would be for ever. */
int pool_add_need(struct pool *pool, const void *wait, const void *from,
                  const void *to);
void pool_drop_needs(struct pool *pool, const void *wait);

#endif
