/* Loads in flight, and who waits for them: between cache_lease.c (those of this
 * runtime) and cache_abroad.c (those of others). */
#ifndef MOONSTASH_BIND_CACHE_LOAD_H
#define MOONSTASH_BIND_CACHE_LOAD_H

#include <assert.h>

#include "bind/cache_internal.h"

/* A load in progress: the token of a lease. */
struct load {
  struct cache_bind *cache;
  struct backend *view;
  uint64_t token;           /* 0 before the lease, and once it has ended */
  struct load *next, *prev; /* in cache->loads, while it has a token */
  struct task *owner;       /* who runs it; outlives it; NULL outside tasks */
  uint64_t looked;          /* last looked at in cache->looks, */
  int guarded;              /* and its owner has its guard */
  int refresh;              /* asks with refresh instead of lease */
  size_t key_len;
  char key[]; /* namespace and key, joined */
};

struct parcel; /* what came from another runtime */

/* A task that waits for another one's load. */
struct waiter {
  struct backend_wait wait; /* wait.owner: this task, or none, see below */
  struct cache_bind *cache;
  struct backend *view;
  struct task *task;       /* NULL outside tasks */
  struct task *loader;     /* whose interrupts this waiter holds back */
  struct waiter *next;     /* in cache->woken, or in the inbox */
  struct outcome *outcome; /* NULL: none, ask again */
  /* Abroad: */
  const void *far;                          /* the load's owner */
  struct waiter *abroad_next, *abroad_prev; /* in cache->abroad */
  int noted;                                /* in the pool's needs */
  uint64_t round;                           /* of the last watch */
  struct parcel *parcel;                    /* guarded by the cache's lock, */
  int arrived, forgotten;                   /* like these */
};

/* The owner of a load, as other runtimes see it too: a task, and the number of
 * its runtime in the bits that no pointer to Lua's memory has. */
enum { OWNER_BITS = 48 };

static inline void *owner_of(const struct cache_bind *c, const struct task *t) {
  uint64_t number = c->member.number;
  assert((uint64_t)(uintptr_t)t >> OWNER_BITS == 0);
  return (void *)((uintptr_t)t | (uintptr_t)(number << OWNER_BITS));
}

static inline unsigned owner_number(const void *owner) {
  return (unsigned)((uint64_t)(uintptr_t)owner >> OWNER_BITS);
}

/* Of an owner of this runtime only. */
static inline struct task *owner_task(const void *owner) {
  return (struct task *)((uintptr_t)owner & (((uintptr_t)1 << OWNER_BITS) - 1));
}

static inline int load_waiters(const struct load *load) {
  return load->view->ops->waiters(load->view, cache_now(load->cache), "", 0,
                                  load->key, load->key_len, load->token);
}

/* cache_lease.c */

/* Does the loader need `me` to go on? */
int lease_needs(const struct task *loader, const struct task *me);
/* A protected function: gives the task (a light userdata) its guard, once. */
int lease_guard(lua_State *L);
int lease_collect(lua_State *L); /* another: collects garbage */

/* cache_abroad.c */

/* Takes a waiter back that no task sleeps on, queued or just woken; it is gone
 * then. */
void abroad_take_back(struct waiter *w);
/* May the task wait for that load of another runtime? */
int abroad_may_wait(struct waiter *w, const void *owner);
/* Waits for it: `return abroad_wait(L, w, owner)`. */
int abroad_wait(lua_State *L, struct waiter *w, const void *owner);
/* The backend's call for a waiter of another runtime than the load's: on the
 * loader's thread. */
void abroad_arrive(struct waiter *w, int status, const void *bytes,
                   const struct backend_item *item);

/* Pushes what other runtimes are to get of a load that has no value: of an
 * error, or of encoded results (a string); NULL when nobody is there. */
const char *abroad_error(lua_State *L, struct cache_bind *c, int index,
                         size_t *length);
const char *abroad_results(lua_State *L, struct cache_bind *c, int index,
                           size_t *length);

#endif
