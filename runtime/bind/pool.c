/* See pool.h. One mutex guards all of it; what it holds is small and seldom
 * asked for: at the opening of views, at waits across runtimes. */
#include "bind/pool.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { NEEDS_MAX = 1024 }; /* loads that need loads elsewhere: beyond, none */

struct named { /* a class */
  struct named *next;
  unsigned place;
  char name[];
};

/* An edge of the graph of loads that need each other across runtimes. */
struct need {
  struct need *next;
  const void *wait, *from, *to;
  uint64_t seen; /* by the search of that number */
};

struct pool {
  pthread_mutex_t mutex; /* guards all below but the atomics */
  unsigned references;
  size_t max_bytes;
  struct store *store; /* NULL until it is needed */
  struct pool_view *views;
  struct pool_member *members;
  struct named *classes;
  struct need *needs;
  size_t need_count;
  uint64_t searches;
  _Atomic uint64_t states;
  _Atomic uint64_t swept_ms; /* when somebody last took the turn */
};

struct pool *pool_open(size_t max_bytes) {
  struct pool *pool = calloc(1, sizeof *pool);
  if (pool == NULL || pthread_mutex_init(&pool->mutex, NULL) != 0) {
    free(pool);
    return NULL;
  }
  pool->references = 1;
  pool->max_bytes = max_bytes;
  return pool;
}

struct pool *pool_share(struct pool *pool) {
  pthread_mutex_lock(&pool->mutex);
  pool->references++;
  pthread_mutex_unlock(&pool->mutex);
  return pool;
}

void pool_close(struct pool *pool) {
  pthread_mutex_lock(&pool->mutex);
  unsigned left = --pool->references;
  pthread_mutex_unlock(&pool->mutex);
  if (left > 0)
    return;
  assert(pool->views == NULL && pool->members == NULL && pool->needs == NULL);
  for (struct named *each = pool->classes, *next; each != NULL; each = next) {
    next = each->next;
    free(each);
  }
  if (pool->store != NULL)
    store_close(pool->store);
  pthread_mutex_destroy(&pool->mutex);
  free(pool);
}

int pool_is_shared(struct pool *pool) {
  pthread_mutex_lock(&pool->mutex);
  int shared = pool->references > 1;
  pthread_mutex_unlock(&pool->mutex);
  return shared;
}

static struct store *store_of(struct pool *pool) {
  if (pool->store == NULL && store_open(&pool->store, pool->max_bytes) < 0)
    pool->store = NULL;
  return pool->store;
}

struct store *pool_store(struct pool *pool) {
  pthread_mutex_lock(&pool->mutex);
  struct store *store = store_of(pool);
  pthread_mutex_unlock(&pool->mutex);
  return store;
}

/* ---- views ---- */

static struct pool_view *find_view(struct pool *pool, const char *name,
                                   int owns) {
  struct pool_view *v = pool->views;
  while (v != NULL && (v->owns != owns || strcmp(v->name, name) != 0))
    v = v->next;
  return v;
}

static struct pool_view *make_view(struct pool *pool, const char *name,
                                   size_t max_bytes) {
  size_t length = strlen(name) + 1;
  struct pool_view *v = calloc(1, sizeof *v + length);
  if (v == NULL)
    return NULL;
  memcpy(v->name, name, length);
  v->owns = max_bytes > 0;
  v->store = store_of(pool);
  if (v->owns && store_open(&v->store, max_bytes) < 0)
    v->store = NULL;
  if (v->store == NULL) {
    free(v);
    return NULL;
  }
  v->next = pool->views;
  pool->views = v;
  return v;
}

/* With the pool locked. */
static void release_view(struct pool *pool, struct pool_view *v) {
  if (v->references > 0)
    return;
  struct pool_view **link = &pool->views;
  while (*link != v)
    link = &(*link)->next;
  *link = v->next;
  if (v->owns)
    store_close(v->store);
  free(v);
}

int pool_view_open(struct pool *pool, const char *name, size_t max_bytes,
                   struct pool_view **out, struct backend **view) {
  int rc = BACKEND_ENOMEM;
  pthread_mutex_lock(&pool->mutex);
  struct pool_view *found = find_view(pool, name, max_bytes > 0);
  struct pool_view *v = found ? found : make_view(pool, name, max_bytes);
  if (v != NULL)
    rc = store_view_named(v->store, name, view);
  if (rc == 0) {
    v->references++;
    *out = v;
    if (found != NULL && v->owns)
      store_resize(v->store, max_bytes);
  } else if (v != NULL) {
    release_view(pool, v);
  }
  pthread_mutex_unlock(&pool->mutex);
  return rc;
}

void pool_view_close(struct pool *pool, struct pool_view *which,
                     struct backend *view) {
  pthread_mutex_lock(&pool->mutex);
  view->ops->close(view);
  which->references--;
  release_view(pool, which);
  pthread_mutex_unlock(&pool->mutex);
}

int pool_view_is_shared(struct pool *pool, const struct pool_view *which) {
  pthread_mutex_lock(&pool->mutex);
  int shared = which->references > 1;
  pthread_mutex_unlock(&pool->mutex);
  return shared;
}

/* ---- numbers ---- */

uint64_t pool_next_state(struct pool *pool) {
  return ++pool->states;
}

unsigned pool_class(struct pool *pool, const char *name) {
  size_t length = strlen(name) + 1;
  pthread_mutex_lock(&pool->mutex);
  struct named *found = pool->classes;
  while (found != NULL && strcmp(found->name, name) != 0)
    found = found->next;
  if (found == NULL && (found = malloc(sizeof *found + length)) != NULL) {
    memcpy(found->name, name, length);
    found->place = pool->classes != NULL ? pool->classes->place + 1 : 2;
    found->next = pool->classes;
    pool->classes = found;
  }
  unsigned place = found != NULL ? found->place : 0;
  pthread_mutex_unlock(&pool->mutex);
  return place;
}

int pool_sweep_turn(struct pool *pool, uint64_t now_ms, uint64_t pause_ms) {
  uint64_t last = atomic_load(&pool->swept_ms);
  return now_ms - last >= pause_ms &&
         atomic_compare_exchange_strong(&pool->swept_ms, &last, now_ms);
}

/* ---- runtimes ---- */

static struct pool_member *find_member(struct pool *pool, unsigned number) {
  struct pool_member *m = pool->members;
  while (m != NULL && m->number != number)
    m = m->next;
  return m;
}

int pool_join(struct pool *pool, struct pool_member *member) {
  unsigned number = 1;
  pthread_mutex_lock(&pool->mutex);
  while (number <= POOL_MEMBERS_MAX && find_member(pool, number) != NULL)
    number++;
  int rc = number <= POOL_MEMBERS_MAX ? 0 : BACKEND_ENOMEM;
  if (rc == 0) {
    member->number = number;
    member->next = pool->members;
    pool->members = member;
  }
  pthread_mutex_unlock(&pool->mutex);
  return rc;
}

void pool_leave(struct pool *pool, struct pool_member *member) {
  pthread_mutex_lock(&pool->mutex);
  struct pool_member **link = &pool->members;
  while (*link != member)
    link = &(*link)->next;
  *link = member->next;
  pthread_mutex_unlock(&pool->mutex);
}

void pool_post(struct pool *pool, unsigned number) {
  pthread_mutex_lock(&pool->mutex);
  struct pool_member *m = find_member(pool, number);
  if (m != NULL)
    m->post(m->ud);
  pthread_mutex_unlock(&pool->mutex);
}

int pool_is_here(struct pool *pool, unsigned number) {
  pthread_mutex_lock(&pool->mutex);
  struct pool_member *m = find_member(pool, number);
  int here = m != NULL && pthread_equal(m->thread, pthread_self());
  pthread_mutex_unlock(&pool->mutex);
  return here;
}

/* ---- needs ---- */

/* Is there a way from `at` to `to`? Each edge is taken once. */
static int leads_to(struct pool *pool, const void *at, const void *to) {
  if (at == to)
    return 1;
  for (struct need *n = pool->needs; n != NULL; n = n->next) {
    if (n->from != at || n->seen == pool->searches)
      continue;
    n->seen = pool->searches;
    if (leads_to(pool, n->to, to))
      return 1;
  }
  return 0;
}

static int is_noted(const struct pool *pool, const void *wait, const void *from,
                    const void *to) {
  const struct need *n = pool->needs;
  while (n != NULL && (n->wait != wait || n->from != from || n->to != to))
    n = n->next;
  return n != NULL;
}

int pool_add_need(struct pool *pool, const void *wait, const void *from,
                  const void *to) {
  struct need *n = malloc(sizeof *n);
  pthread_mutex_lock(&pool->mutex);
  pool->searches++;
  int known = is_noted(pool, wait, from, to);
  int bad = n == NULL || leads_to(pool, to, from) ||
            (!known && pool->need_count == NEEDS_MAX);
  if (!bad && !known) {
    *n = (struct need){pool->needs, wait, from, to, 0};
    pool->needs = n;
    pool->need_count++;
    n = NULL;
  }
  pthread_mutex_unlock(&pool->mutex);
  free(n);
  return bad;
}

void pool_drop_needs(struct pool *pool, const void *wait) {
  pthread_mutex_lock(&pool->mutex);
  for (struct need **link = &pool->needs; *link != NULL;) {
    struct need *n = *link;
    if (n->wait != wait) {
      link = &n->next;
      continue;
    }
    *link = n->next;
    pool->need_count--;
    free(n);
  }
  pthread_mutex_unlock(&pool->mutex);
}
