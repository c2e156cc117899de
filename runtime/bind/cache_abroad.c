/* Waiting for the loads of other runtimes, on other threads.
 *
 * A load's end wakes its waiters on the loader's thread. Those of other
 * runtimes are not touched there: what came is copied (struct parcel), put in
 * their runtime's inbox, and their loop is told; there the wait is completed
 * and the value decoded. A Lua value never crosses: errors go as {code,
 * message} or as text, results that are not stored go encoded.
 *
 * Who owns a waiter. Until it arrives in the inbox, the backend: to take it
 * back is to get 1 from unwait. After a 0 its wake has come (then it is taken
 * from the inbox) or is on its way: it is then `forgotten`, the wake frees it,
 * and `owed` counts it: a runtime is not freed while a wake is owed.
 *
 * The loader is told of those who wait (pool_post), at first and when one goes:
 * it sees to it that its load ends though its task were dropped (lease_guard),
 * and that a cancelled task goes on for those abroad, no longer than for them
 * (abroad_held).
 *
 * Cycles. A task of another runtime cannot be looked at, so each runtime tells
 * the pool what it alone knows: for every wait abroad, which of its own loads
 * need that task to go on (lease_needs). Owners are all that is told and
 * compared. Whoever would close a circle runs fn directly instead. A task may
 * come to be needed after it has begun to wait: every WATCH_MS each runtime
 * looks again at its waits abroad, so such a circle lasts no longer. (What
 * tasks wait for through events or queues is not known, here as in one
 * runtime.) A runtime on the waiter's own thread cannot run meanwhile: fn runs
 * directly there, too.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bind/cache_load.h"

enum {
  WATCH_MS = 1000,
  LOOKS_MAX = 256,      /* loads that are looked at when a wait begins, */
  WATCH_PAIRS = 100000, /* and with all waits each time */
  FIND_TRIES = 100      /* each ends with a finalizer's error */
};

/* The first byte of a message from abroad: what it is. */
enum { SAYS_TEXT = 1, SAYS_CODE, SAYS_RESULTS };

/* What a load came to, in the waiter's memory. */
struct parcel {
  int status;
  uint32_t format;
  size_t length;
  char bytes[]; /* and a zero */
};

/* ---- on the loader's thread ---- */

/* NULL without memory: the waiter asks again. */
static struct parcel *pack(int status, const void *bytes,
                           const struct backend_item *item) {
  size_t length = bytes != NULL ? item->length : 0;
  struct parcel *p = malloc(sizeof *p + length + 1);
  if (p == NULL)
    return NULL;
  *p = (struct parcel){status, item->format, length};
  if (length > 0)
    memcpy(p->bytes, bytes, length);
  p->bytes[length] = '\0';
  return p;
}

static void free_waiter(struct waiter *w) {
  free(w->parcel);
  free(w);
}

void abroad_arrive(struct waiter *w, int status, const void *bytes,
                   const struct backend_item *item) {
  struct cache_bind *c = w->cache;
  struct parcel *p = pack(status, bytes, item);
  pthread_mutex_lock(&c->lock);
  w->parcel = p;
  w->arrived = 1;
  if (w->forgotten) {
    free_waiter(w);
    if (--c->owed == 0)
      pthread_cond_signal(&c->paid);
  } else {
    w->next = c->inbox;
    c->inbox = w;
    if (!c->stopped)
      uv_async_send(&c->async);
  }
  pthread_mutex_unlock(&c->lock); /* from here on c may be gone */
}

static int make_message(lua_State *L) {
  const char *code = NULL;
  if (lua_istable(L, 1)) {
    lua_pushliteral(L, "code");
    lua_rawget(L, 1);
    lua_pushliteral(L, "message");
    lua_rawget(L, 1);
    if (lua_type(L, 2) == LUA_TSTRING && lua_type(L, 3) == LUA_TSTRING)
      code = lua_tostring(L, 2);
  }
  if (code != NULL) {
    const char head[] = {SAYS_CODE};
    lua_pushlstring(L, head, 1);
    lua_pushstring(L, code); /* up to a zero, which ends it */
    lua_pushlstring(L, "", 1);
    lua_pushvalue(L, 3);
    lua_concat(L, 4);
    return 1;
  }
  const char head[] = {SAYS_TEXT};
  lua_settop(L, 1);
  lua_pushlstring(L, head, 1);
  if (luaL_callmeta(L, 1, "__tostring")) {
    lua_concat(L, 2);
  } else if (lua_isstring(L, 1)) {
    lua_pushvalue(L, 1);
    lua_concat(L, 2);
  } else {
    lua_pushfstring(L, "%s(error object is a %s value)", lua_tostring(L, 2),
                    luaL_typename(L, 1));
  }
  return 1;
}

const char *abroad_error(lua_State *L, struct cache_bind *c, int index,
                         size_t *length) {
  static const char unknown[] = {SAYS_TEXT, '?'};
  if (!pool_is_shared(c->pool))
    return NULL;
  lua_pushcfunction(L, make_message);
  lua_pushvalue(L, index);
  if (lua_pcall(L, 1, 1, 0) == 0 && lua_type(L, -1) == LUA_TSTRING)
    return lua_tolstring(L, -1, length);
  *length = sizeof unknown;
  return unknown;
}

const char *abroad_results(lua_State *L, struct cache_bind *c, int index,
                           size_t *length) {
  const char head[] = {SAYS_RESULTS};
  if (lua_type(L, index) != LUA_TSTRING || !pool_is_shared(c->pool))
    return NULL;
  lua_pushlstring(L, head, 1);
  lua_pushvalue(L, index);
  lua_concat(L, 2);
  return lua_tolstring(L, -1, length);
}

/* The scheduler's question: as task_held says. */
static int held_abroad(void *ud, const struct task *t) {
  struct cache_bind *c = ud;
  if (!pool_is_shared(c->pool))
    return 0;
  const struct load *load = c->loads;
  while (load != NULL && (load->owner != t || load_waiters(load) <= 0))
    load = load->next;
  return load != NULL;
}

/* A load that was not looked at yet this time, and that others wait for or that
 * a cancelled task runs. What is done about it may end others: hence one by
 * one. */
static struct load *next_asked(struct cache_bind *c) {
  for (struct load *load = c->loads; load != NULL; load = load->next) {
    const struct task *t = load->owner;
    if (load->looked == c->looks)
      continue;
    load->looked = c->looks;
    if ((t != NULL && t->flags & TASK_INTERRUPTS) ||
        (!load->guarded && load_waiters(load) > 0))
      return load;
  }
  return NULL;
}

/* Somebody abroad waits for a load here, or does no longer. */
static int look_at_loads(lua_State *L) {
  struct cache_bind *c = lua_touserdata(L, 1);
  int lost = 0;
  c->looks++;
  for (struct load *load; (load = next_asked(c)) != NULL;) {
    struct task *t = load->owner;
    int tell = t != NULL && t->flags & TASK_INTERRUPTS;
    load->guarded = 1;
    lua_settop(L, 1);
    if (t == NULL || t->state == TASK_DONE) {
      lost = 1;
      continue;
    }
    task_push_handle(L, t); /* it stays, whatever finalizers do */
    lua_pushcfunction(L, lease_guard);
    lua_pushlightuserdata(L, t);
    lua_call(L, 1, 0);
    if (tell && !task_held(t))
      task_interrupts_due(L, t);
  }
  return lost ? lease_collect(L) : 0;
}

/* ---- on the waiter's thread ---- */

static void forget_needs(struct waiter *w) {
  if (w->noted)
    pool_drop_needs(w->cache->pool, w);
  w->noted = 0;
}

static void leave(struct waiter *w) {
  struct cache_bind *c = w->cache;
  *(w->abroad_prev ? &w->abroad_prev->abroad_next : &c->abroad) =
      w->abroad_next;
  if (w->abroad_next != NULL)
    w->abroad_next->abroad_prev = w->abroad_prev;
  forget_needs(w);
  if (c->abroad == NULL)
    uv_unref((uv_handle_t *)&c->async);
}

static void enter(struct waiter *w) {
  struct cache_bind *c = w->cache;
  w->abroad_next = c->abroad;
  if (w->abroad_next != NULL)
    w->abroad_next->abroad_prev = w;
  c->abroad = w;
  w->round = c->round - 1;
  uv_ref((uv_handle_t *)&c->async);
}

/* unwait has given 0. */
static void forget_arrival(struct waiter *w) {
  struct cache_bind *c = w->cache;
  pthread_mutex_lock(&c->lock);
  if (w->arrived) {
    struct waiter **link = &c->inbox;
    while (*link != w)
      link = &(*link)->next;
    *link = w->next;
    free_waiter(w);
  } else {
    w->forgotten = 1;
    c->owed++;
  }
  pthread_mutex_unlock(&c->lock);
}

void abroad_take_back(struct waiter *w) {
  forget_needs(w);
  if (w->view->ops->unwait(w->view, &w->wait))
    free_waiter(w);
  else
    forget_arrival(w);
}

static void forget_abroad(lua_State *L, struct task *t, void *arg) {
  struct waiter *w = arg;
  struct cache_bind *c = w->cache;
  unsigned number = owner_number(w->far);
  (void)L, (void)t;
  leave(w);
  abroad_take_back(w);
  pool_post(c->pool, number); /* is the loader still needed? */
}

/* Tells the pool which loads here need the waiter's task. 1: it must not wait.
 */
static int note_needs(struct waiter *w, size_t most) {
  struct cache_bind *c = w->cache;
  const struct task *last = NULL;
  int bad = 0;
  if (w->task->loads > 0) {
    w->noted = 1;
    bad = pool_add_need(c->pool, w, owner_of(c, w->task), w->far);
  }
  for (struct load *l = c->loads; l != NULL && most-- > 0 && !bad; l = l->next)
    if (l->owner != NULL && l->owner != last && l->owner != w->task &&
        lease_needs(last = l->owner, w->task)) {
      w->noted = 1;
      bad = pool_add_need(c->pool, w, owner_of(c, last), w->far);
    }
  return bad;
}

int abroad_may_wait(struct waiter *w, const void *owner) {
  w->far = owner;
  return !pool_is_here(w->cache->pool, owner_number(owner)) &&
         !note_needs(w, LOOKS_MAX);
}

int abroad_wait(lua_State *L, struct waiter *w, const void *owner) {
  struct task *t = w->task;
  enter(w);
  t->waits_for = NULL; /* it is not ours to follow */
  pool_post(w->cache->pool, owner_number(owner));
  return task_wait(L, t, -1, forget_abroad, w);
}

/* ---- what came ---- */

static int push_message(lua_State *L, struct sched *s, const struct parcel *p) {
  const char *text = p->bytes + 1;
  size_t length = p->length > 0 ? p->length - 1 : 0;
  switch (p->length > 0 ? p->bytes[0] : 0) {
  case SAYS_RESULTS:
    lua_pushinteger(L, LEASE_GIVEN);
    lua_pushlstring(L, text, length);
    return 2;
  case SAYS_CODE:
    lua_pushinteger(L, WAIT_FAILED);
    sched_push_error(L, s, text, text + strlen(text) + 1);
    return 2;
  case SAYS_TEXT:
    lua_pushinteger(L, WAIT_FAILED);
    lua_pushlstring(L, text, length);
    return 2;
  default: /* the backend's own word */
    lua_pushinteger(L, WAIT_FAILED);
    sched_push_error(L, s, "closed", "cached: the cache was closed");
    return 2;
  }
}

/* The results of lease; L is NULL when nobody wants them. */
static int push_parcel(lua_State *L, struct task *t, void *arg) {
  struct waiter *w = arg;
  const struct parcel *p = w->parcel;
  int n = 1;
  if (L == NULL) {
    n = 0;
  } else if (p == NULL || p->status == BACKEND_MISS) {
    lua_pushinteger(L, LEASE_AGAIN);
  } else if (p->status == BACKEND_HIT) {
    lua_pushinteger(L, WAIT_OK);
    n += cache_push_value(L, p->format, p->bytes, p->length);
  } else {
    n = push_message(L, t->sched, p);
  }
  free_waiter(w);
  return n;
}

static int push_direct(lua_State *L, struct task *t, void *arg) {
  (void)t;
  free_waiter(arg);
  if (L == NULL)
    return 0;
  lua_pushinteger(L, LEASE_DIRECT);
  return 1;
}

/* Takes all that has come, first come first. */
static struct waiter *take_inbox(struct cache_bind *c, int *asked) {
  struct waiter *first = NULL, *w;
  pthread_mutex_lock(&c->lock);
  while ((w = c->inbox) != NULL) {
    c->inbox = w->next;
    w->next = first;
    first = w;
  }
  *asked = c->asked;
  c->asked = 0;
  pthread_mutex_unlock(&c->lock);
  return first;
}

static void on_news(uv_async_t *handle) {
  struct cache_bind *c = handle->data;
  lua_State *L = c->bind->L;
  int asked;
  for (struct waiter *w = take_inbox(c, &asked), *next; w != NULL; w = next) {
    next = w->next;
    leave(w);
    task_complete(w->task, push_parcel, w);
  }
  for (int i = 0; asked && i < FIND_TRIES; i++) {
    if (lua_cpcall(L, look_at_loads, c) == 0)
      return;
    lua_pop(L, 1); /* a finalizer's error */
  }
}

/* The pool's call, on any thread. */
static void on_post(void *ud) {
  struct cache_bind *c = ud;
  pthread_mutex_lock(&c->lock);
  if (!c->asked && !c->stopped)
    uv_async_send(&c->async);
  c->asked = 1;
  pthread_mutex_unlock(&c->lock);
}

/* Lets a waiter do without, unless what it waits for comes this very moment. */
static void send_direct(struct waiter *w) {
  if (!w->view->ops->unwait(w->view, &w->wait))
    return;
  pool_post(w->cache->pool, owner_number(w->far));
  leave(w);
  task_complete(w->task, push_direct, w);
}

void abroad_watch(struct cache_bind *c) {
  size_t pairs = 0, loads = 0;
  for (const struct load *l = c->loads; l != NULL; l = l->next)
    loads++;
  for (struct waiter *w = c->abroad, *next; w != NULL; w = next) {
    next = w->abroad_next;
    if (w->round == c->round)
      continue;
    if ((pairs += loads + 1) > WATCH_PAIRS)
      return; /* the others next time */
    w->round = c->round;
    forget_needs(w);
    if (note_needs(w, loads))
      send_direct(w);
  }
  c->round++;
}

/* ---- open and close ---- */

static int open_async(struct cache_bind *c) {
  struct sched *s = &c->bind->sched;
  if (s->closing) /* a finalizer may be the first to ask for caches */
    return 0;
  if (uv_async_init(s->loop, &c->async, on_news) < 0)
    return -ENOMEM;
  c->async.data = c;
  uv_unref((uv_handle_t *)&c->async);
  pthread_mutex_lock(&c->lock);
  c->stopped = 0;
  pthread_mutex_unlock(&c->lock);
  return 0;
}

int abroad_open(struct cache_bind *c) {
  struct sched *s = &c->bind->sched;
  int rc = -ENOMEM;
  if (pthread_mutex_init(&c->lock, NULL) != 0)
    return rc;
  pthread_cond_init(&c->paid, NULL);
  c->stopped = 1; /* there is no handle yet */
  c->member =
      (struct pool_member){.thread = pthread_self(), .post = on_post, .ud = c};
  if (pool_join(c->pool, &c->member) == 0) {
    rc = open_async(c);
    if (rc < 0)
      pool_leave(c->pool, &c->member);
  }
  if (rc < 0) {
    pthread_cond_destroy(&c->paid);
    pthread_mutex_destroy(&c->lock);
    return rc;
  }
  s->held_abroad = held_abroad;
  s->held_ud = c;
  return 0;
}

void abroad_stop(struct cache_bind *c) {
  pthread_mutex_lock(&c->lock);
  int open = !c->stopped;
  c->stopped = 1;
  pthread_mutex_unlock(&c->lock);
  if (!open)
    return;
  assert(c->abroad == NULL); /* the scheduler has ended the waits */
  uv_close((uv_handle_t *)&c->async, NULL);
  uv_close((uv_handle_t *)&c->sweeper, NULL);
}

void abroad_close(struct cache_bind *c) {
  pool_leave(c->pool, &c->member);
  c->bind->sched.held_abroad = NULL;
  pthread_mutex_lock(&c->lock);
  while (c->owed > 0)
    pthread_cond_wait(&c->paid, &c->lock);
  pthread_mutex_unlock(&c->lock);
  assert(c->inbox == NULL);
  pthread_cond_destroy(&c->paid);
  pthread_mutex_destroy(&c->lock);
}
