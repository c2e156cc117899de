/* Values that leave the store, for Lua: events for on_evict, and the numbers of
 * values that Lua keeps by reference.
 *
 * A view has one watcher, which the store calls under a lock of its own and on
 * whatever thread: all it does is to note. Events wait in a bounded queue, a
 * list of chunks that the producers fill at one end and the loop's thread reads
 * at the other. The first one of an empty queue wakes the loop; the pump then
 * starts a task that hands them to Lua, and no other before that has ended: so
 * hooks run in order, and may wait.
 *
 * Invariants: the mutex guards the queue and the dead; no Lua code runs and no
 * store is called while it is held, for the store's lock is the outer one. Only
 * the loop's thread takes events, so the first one stays where it is while that
 * reads it without the mutex.
 *
 * Nothing is watched until an alias has an on_evict or a value is kept by
 * reference.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bind/cache_internal.h"

enum {
  EVENTS_MAX = 64 << 10,        /* that wait; more are dropped */
  EVENT_BYTES_MAX = 16 << 20,   /* of these, keys and headers */
  CHUNK_BYTES = (16 << 10) - 64 /* of a chunk; larger for a larger event */
};

struct watch { /* a view's watcher; never freed before the view is closed */
  struct watch *next;
  struct evict *evict;
  struct backend *view;
  atomic_int events;  /* an on_evict wants to know */
  atomic_ullong lost; /* events that were dropped */
};

struct event { /* in a chunk, not aligned; the key follows */
  struct watch *watch;
  uint32_t key_len;
  int reason; /* STORE_ */
};

struct chunk {
  struct chunk *next;
  size_t cap, used, read; /* bytes: read <= used <= cap */
  char bytes[];
};

/* The number of a Lua value whose entry is gone; see FORMAT_REFERENCE. */
struct dead {
  struct dead *next;
  double number;
};

struct evict {
  struct bind *bind;
  struct watch *watches;
  int references;    /* every view is watched for values by reference */
  int async_open;    /* the two below are there */
  uv_async_t async;  /* wakes the loop; does not keep it alive */
  int task;          /* reference: {the function, its last task's handle} */
  uv_mutex_t mutex;  /* guards what follows */
  struct dead *dead; /* not yet told to Lua */
  uint64_t *states;  /* whose references are ours */
  size_t state_count;
  struct chunk *first, *last;
  size_t bytes;        /* of events in the chunks */
  atomic_size_t count; /* of events; read without the mutex, too */
  int closed;          /* the async is: no more events */
};

static struct evict *evict_of(lua_State *L) {
  return cache_of(L)->evict;
}

/* ---- on any thread ---- */

/* References are numbers: that of the state that made them, and a count. So
 * what another state has stored is nothing to this one, never another value. */
#define REFERENCES ((uint64_t)1 << 30) /* of a state; then it gets another */
#define NUMBERS_END ((uint64_t)1 << 53)

/* With the mutex held: has this state made it? */
static int is_ours(const struct evict *e, double number) {
  size_t i = 0;
  while (i < e->state_count && e->states[i] != (uint64_t)number / REFERENCES)
    i++;
  return i < e->state_count;
}

/* Out of memory the value stays until the state closes. */
static void note_dead(struct evict *e, const void *bytes, size_t length) {
  struct dead *dead;
  double number;
  if (bytes == NULL || length != sizeof number)
    return;
  memcpy(&number, bytes, sizeof number);
  uv_mutex_lock(&e->mutex);
  if (is_ours(e, number) && (dead = malloc(sizeof *dead)) != NULL) {
    *dead = (struct dead){e->dead, number};
    e->dead = dead;
  }
  uv_mutex_unlock(&e->mutex);
}

/* Room for an event at the end of the queue; NULL when there is none. */
static char *reserve(struct evict *e, size_t size) {
  struct chunk *last = e->last;
  if (e->count == EVENTS_MAX || size > EVENT_BYTES_MAX - e->bytes)
    return NULL;
  if (last == NULL || size > last->cap - last->used) {
    size_t cap = size > CHUNK_BYTES ? size : CHUNK_BYTES;
    last = malloc(sizeof *last + cap);
    if (last == NULL)
      return NULL;
    *last = (struct chunk){.cap = cap};
    if (e->last != NULL)
      e->last->next = last;
    else
      e->first = last;
    e->last = last;
  }
  char *room = last->bytes + last->used;
  last->used += size;
  e->bytes += size;
  return room;
}

static void note_event(struct evict *e, const struct event *event,
                       const char *key) {
  uv_mutex_lock(&e->mutex);
  if (!e->closed) {
    char *room = reserve(e, sizeof *event + event->key_len);
    if (room != NULL) {
      memcpy(room, event, sizeof *event);
      memcpy(room + sizeof *event, key, event->key_len);
      if (e->count++ == 0)
        uv_async_send(&e->async);
    } else {
      event->watch->lost++;
    }
  }
  uv_mutex_unlock(&e->mutex);
}

/* The store's call. */
static void on_leave(void *ud, int reason, const char *key, size_t key_len,
                     uint32_t format, const void *bytes, size_t length) {
  struct watch *w = ud;
  struct event event = {w, (uint32_t)key_len, reason};
  if (format == FORMAT_REFERENCE)
    note_dead(w->evict, bytes, length);
  if (w->events)
    note_event(w->evict, &event, key);
}

/* ---- watchers ---- */

static struct evict *open_evict(struct cache_bind *c) {
  if (c->evict != NULL)
    return c->evict;
  struct evict *e = calloc(1, sizeof *e);
  if (e == NULL || uv_mutex_init(&e->mutex) < 0) {
    free(e);
    return NULL;
  }
  e->bind = c->bind;
  return c->evict = e;
}

static struct watch *find_watch(const struct evict *e,
                                const struct backend *view) {
  struct watch *w = e != NULL ? e->watches : NULL;
  while (w != NULL && w->view != view)
    w = w->next;
  return w;
}

/* The view's watcher, which is told from now on; NULL without memory. */
static struct watch *watch_view(struct evict *e, struct backend *view) {
  struct watch *w = find_watch(e, view);
  if (w == NULL) {
    w = calloc(1, sizeof *w);
    if (w == NULL)
      return NULL;
    w->next = e->watches;
    w->evict = e;
    w->view = view;
    e->watches = w;
  }
  store_watch(view, on_leave, w);
  return w;
}

int cache_watch_view(struct cache_bind *c, struct backend *view) {
  if (c->evict == NULL || !c->evict->references)
    return 0;
  return watch_view(c->evict, view) != NULL ? 0 : -1;
}

/* watch_references(): values are kept by reference from now on, in any view */
static int l_watch_references(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct evict *e = open_evict(c);
  for (int i = 0; e != NULL && i < c->view_count; i++)
    if (watch_view(e, c->views[i]) == NULL)
      e = NULL;
  if (e == NULL)
    return luaL_error(L, "not enough memory");
  e->references = 1;
  return 0;
}

/* numbers() -> a, b: for references: those above a, up to b, are this state's
 */
static int l_numbers(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct evict *e = open_evict(c);
  uint64_t *states = NULL, state = pool_next_state(c->pool);
  if (state >= NUMBERS_END / REFERENCES)
    return luaL_error(L, "the serializer 'none' has no more numbers");
  if (e != NULL) {
    uv_mutex_lock(&e->mutex);
    states = realloc(e->states, (e->state_count + 1) * sizeof *states);
    if (states != NULL) {
      e->states = states;
      states[e->state_count++] = state;
    }
    uv_mutex_unlock(&e->mutex);
  }
  if (states == NULL)
    return luaL_error(L, "not enough memory");
  lua_pushnumber(L, (double)(state * REFERENCES));
  lua_pushnumber(L, (double)((state + 1) * REFERENCES - 1));
  return 2;
}

/* dead() -> a number whose entry is gone, or nothing */
static int l_dead(lua_State *L) {
  struct evict *e = evict_of(L);
  if (e == NULL)
    return 0;
  uv_mutex_lock(&e->mutex);
  struct dead *dead = e->dead;
  if (dead != NULL)
    e->dead = dead->next;
  uv_mutex_unlock(&e->mutex);
  if (dead == NULL)
    return 0;
  lua_pushnumber(L, dead->number);
  free(dead);
  return 1;
}

/* ---- events ---- */

/* The last task for events has not ended. */
static int is_delivering(lua_State *L, const struct evict *e) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, e->task);
  lua_rawgeti(L, -1, 2);
  const struct task *t = lua_touserdata(L, -1);
  lua_pop(L, 2);
  return t != NULL && t->state != TASK_DONE;
}

/* The scheduler's question, outside of slices. It allocates nothing. */
static int has_events(void *ud) {
  struct evict *e = ud;
  return e->count > 0 && !is_delivering(e->bind->L, e);
}

/* Starts the task. Is called again should it raise: a finalizer may. */
static void start_task(lua_State *L, void *ud) {
  struct evict *e = ud;
  struct sched *s = &e->bind->sched;
  if (is_delivering(L, e))
    return;
  lua_rawgeti(L, LUA_REGISTRYINDEX, e->task);
  lua_rawgeti(L, -1, 1);
  struct task *t = sched_spawn(s, L, &s->root, 0);
  lua_pushvalue(L, -1);
  lua_rawseti(L, -3, 2); /* the slot is there: nothing is allocated */
  task_push_record(L, -1, t);
  lua_pushliteral(L, "on_evict");
  lua_setfield(L, -2, "name");
  lua_pop(L, 3);
}

static void on_async(uv_async_t *async) {
  (void)async; /* poll has returned: the pump asks has_events */
}

/* Makes the way from the watchers to the function at index. */
static void open_async(lua_State *L, struct evict *e, int index) {
  luaL_checktype(L, index, LUA_TFUNCTION);
  lua_createtable(L, 2, 0);
  lua_pushvalue(L, index);
  lua_rawseti(L, -2, 1);
  lua_pushboolean(L, 0);
  lua_rawseti(L, -2, 2);
  e->task = luaL_ref(L, LUA_REGISTRYINDEX);
  int rc = uv_async_init(e->bind->sched.loop, &e->async, on_async);
  if (rc < 0) {
    luaL_unref(L, LUA_REGISTRYINDEX, e->task);
    luaL_error(L, "cannot watch the store: %s", uv_strerror(rc));
  }
  uv_unref((uv_handle_t *)&e->async);
  e->bind->sched.news = (struct sched_news){has_events, start_task, e};
  e->async_open = 1;
}

/* watch(view, fn): notes what leaves the view; whenever there are events a
 * detached task runs fn, always the first one that was given. */
static int l_watch(lua_State *L) {
  struct cache_bind *c = cache_of(L);
  struct backend *view = cache_check_view(L, 1);
  struct evict *e = open_evict(c);
  if (c->bind->sched.closing)
    return 0;
  if (e != NULL && !e->async_open)
    open_async(L, e, 2);
  struct watch *w = e != NULL ? watch_view(e, view) : NULL;
  if (w == NULL)
    return luaL_error(L, "not enough memory");
  w->events = 1;
  return 0;
}

/* unwatch(view): no more events of it */
static int l_unwatch(lua_State *L) {
  struct evict *e = evict_of(L);
  struct watch *w = find_watch(e, cache_check_view(L, 1));
  if (w == NULL)
    return 0;
  w->events = 0;
  if (!e->references)
    store_watch(w->view, NULL, NULL);
  return 0;
}

/* events() -> how many wait */
static int l_events(lua_State *L) {
  struct evict *e = evict_of(L);
  lua_pushinteger(L, e != NULL ? (lua_Integer)e->count : 0);
  return 1;
}

/* The first event; the key behind it. There must be one. */
static const char *first_event(struct evict *e, struct event *out) {
  uv_mutex_lock(&e->mutex);
  struct chunk *chunk = e->first;
  while (chunk->read == chunk->used) { /* emptied, and too small for the next */
    e->first = chunk->next;
    free(chunk);
    chunk = e->first;
  }
  const char *at = chunk->bytes + chunk->read;
  uv_mutex_unlock(&e->mutex);
  memcpy(out, at, sizeof *out);
  return at + sizeof *out;
}

static void take_event(struct evict *e, const struct event *event) {
  size_t size = sizeof *event + event->key_len;
  uv_mutex_lock(&e->mutex);
  struct chunk *chunk = e->first;
  chunk->read += size;
  e->bytes -= size;
  e->count--;
  if (chunk->read == chunk->used && chunk->next != NULL) {
    e->first = chunk->next;
    free(chunk);
  } else if (chunk->read == chunk->used) {
    chunk->read = chunk->used = 0;
  }
  uv_mutex_unlock(&e->mutex);
}

/* next_event() -> view, key, reason of the first one, which it takes; nothing
 * when there is none */
static int l_next_event(lua_State *L) {
  static const char *const reasons[] = {
      [STORE_SIZE] = "size",       [STORE_EXPIRED] = "expired",
      [STORE_DELETED] = "deleted", [STORE_REPLACED] = "replaced",
      [STORE_CLEARED] = "cleared",
  };
  struct evict *e = evict_of(L);
  struct event event;
  if (e == NULL || e->count == 0)
    return 0;
  const char *key = first_event(e, &event);
  lua_pushlightuserdata(L, event.watch->view);
  lua_pushlstring(L, key, event.key_len);
  lua_pushstring(L, reasons[event.reason]);
  take_event(e, &event);
  return 3;
}

uint64_t cache_events_lost(struct cache_bind *c, const struct backend *view) {
  struct watch *w = find_watch(c->evict, view);
  return w != NULL ? w->lost : 0;
}

/* events_lost(view) -> how many of its events were dropped */
static int l_events_lost(lua_State *L) {
  lua_pushnumber(
      L, (double)cache_events_lost(cache_of(L), cache_check_view(L, 1)));
  return 1;
}

/* ---- the end ---- */

void cache_stop_evict(struct cache_bind *c) {
  struct evict *e = c->evict;
  if (e == NULL)
    return;
  uv_mutex_lock(&e->mutex);
  e->closed = 1;
  uv_mutex_unlock(&e->mutex);
  e->bind->sched.news.pending = NULL;
  if (e->async_open)
    uv_close((uv_handle_t *)&e->async, NULL);
}

void cache_free_evict(struct cache_bind *c) {
  struct evict *e = c->evict;
  if (e == NULL)
    return;
  for (struct watch *each = e->watches, *next; each != NULL; each = next) {
    next = each->next;
    free(each);
  }
  for (struct dead *each = e->dead, *next; each != NULL; each = next) {
    next = each->next;
    free(each);
  }
  for (struct chunk *each = e->first, *next; each != NULL; each = next) {
    next = each->next;
    free(each);
  }
  uv_mutex_destroy(&e->mutex);
  free(e->states);
  free(e);
  c->evict = NULL;
}

const luaL_Reg cache_evicts[] = {
    {"watch", l_watch},
    {"unwatch", l_unwatch},
    {"watch_references", l_watch_references},
    {"numbers", l_numbers},
    {"dead", l_dead},
    {"events", l_events},
    {"next_event", l_next_event},
    {"events_lost", l_events_lost},
    {NULL, NULL},
};
