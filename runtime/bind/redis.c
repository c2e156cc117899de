/* The connection of a runtime, and how tasks wait for its answers.
 *
 * A call asks: it takes an ask, gives it to the backend as its wait, and the
 * task sleeps. The answer is copied into the ask inside the loop's callback,
 * where Lua must not be touched, and pushed when the pump resumes the task. A
 * task that gives up (its deadline, a cancellation) takes its wait back; the
 * reply that comes later finds nobody.
 *
 * What every call returns to Lua: a WAIT_ state; then, if that is WAIT_OK, the
 * backend's status, and behind an error its message, behind anything else what
 * the call has to say.
 */
#include "bind/redis.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bind/redis_internal.h"

struct redis_bind *redis_of(lua_State *L) {
  struct bind *b = lua_touserdata(L, lua_upvalueindex(1));
  return b->redis;
}

struct backend *redis_check_view(lua_State *L) {
  luaL_checktype(L, 1, LUA_TLIGHTUSERDATA);
  return lua_touserdata(L, 1);
}

/* ---- asking ---- */

static void release(struct ask *a) {
  if (a->bytes != a->small)
    free(a->bytes);
  free(a->items);
  free(a->statuses);
  a->bytes = NULL;
  a->items = NULL;
  a->statuses = NULL;
  a->next = a->redis->unused;
  a->redis->unused = a;
}

static void copy_answer(struct ask *a, const void *bytes, size_t length) {
  a->bytes = length <= sizeof a->small ? a->small : malloc(length);
  a->length = length;
  if (a->bytes == NULL) {
    a->status = BACKEND_ENOMEM;
    a->length = 0;
  } else {
    memcpy(a->bytes, bytes, length);
  }
}

/* Pushes the answer; L is NULL when nobody wants it any more. */
static int push_answer(lua_State *L, struct task *t, void *arg) {
  struct ask *a = arg;
  int n = 0;
  (void)t;
  if (L != NULL) {
    lua_pushinteger(L, WAIT_OK);
    lua_pushinteger(L, a->status);
    n = 2;
    if (a->status < 0 && a->statuses == NULL) {
      lua_pushlstring(L, a->bytes != NULL ? a->bytes : "", a->length);
      n++;
    } else if (a->push != NULL) {
      n += a->push(L, a);
    }
  }
  release(a);
  return n;
}

/* The backend's call, from the loop. */
static void on_wake(struct backend_wait *wait, int status, const void *bytes,
                    const struct backend_item *item) {
  struct ask *a = (struct ask *)wait;
  size_t length = item->length;
  a->status = status;
  a->item = *item;
  if (a->push == redis_push_info && status >= 0 && length > BACKEND_HEAD)
    length = BACKEND_HEAD;
  if (bytes != NULL)
    copy_answer(a, bytes, length);
  if (a->task != NULL) {
    task_complete(a->task, push_answer, a);
    return;
  }
  a->redis->unawaited--;
  a->redis->unawaited_lost += status < 0;
  release(a);
}

static void forget(lua_State *L, struct task *t, void *arg) {
  struct ask *a = arg;
  (void)L;
  (void)t;
  a->view->ops->unwait(a->view, &a->wait);
  if (a->redis->conn != NULL) /* late, or never: is it still in step? */
    conn_suspect(a->redis->conn);
  release(a);
}

/* One of our own, so that its memory is taken before anything is armed. */
static struct ask *take(struct redis_bind *r) {
  struct ask *a = r->unused;
  if (a != NULL)
    r->unused = a->next;
  else if ((a = malloc(sizeof *a)) == NULL)
    return NULL;
  memset(a, 0, offsetof(struct ask, small));
  a->wait.wake = on_wake;
  a->redis = r;
  return a;
}

struct ask *redis_ask(lua_State *L, const char *what, int *n) {
  struct redis_bind *r = redis_of(L);
  struct backend *view = redis_check_view(L);
  struct task *t = NULL;
  if (luaL_checknumber(L, 4) >= 0 &&
      !task_may_wait(L, &r->bind->sched, what, &t)) {
    *n = task_raise(L, t);
    return NULL;
  }
  struct ask *a = take(r);
  if (a == NULL) {
    lua_pushinteger(L, WAIT_OK);
    lua_pushinteger(L, BACKEND_ENOMEM);
    *n = 2;
    return NULL;
  }
  a->view = view;
  a->task = t;
  return a;
}

static const char *why_not(const struct redis_bind *r, int rc) {
  switch (rc) {
  case BACKEND_ETOOLARGE:
    return "value limit: the value is too large, the most is 8 MiB";
  case BACKEND_ENOMEM:
  case BACKEND_EINVAL:
  case BACKEND_ERANGE:
    return "";
  default:
    return r->conn != NULL ? conn_why(r->conn) : "";
  }
}

/* A call that cannot even begin. Its task still lets the loop turn before it
 * goes on: a script that does nothing but such calls would otherwise keep the
 * connection from ever coming back. */
static int refuse(lua_State *L, struct ask *a, int rc) {
  const char *why = why_not(a->redis, rc);
  struct task *t = a->task;
  if (t == NULL) {
    release(a);
    lua_pushinteger(L, WAIT_OK);
    lua_pushinteger(L, rc);
    lua_pushstring(L, why);
    return 3;
  }
  free(a->statuses); /* all of them have this one */
  a->statuses = NULL;
  a->status = rc;
  copy_answer(a, why, strlen(why));
  int n = task_wait(L, t, -1, NULL, NULL);
  task_complete(t, push_answer, a);
  return n;
}

static uint64_t milliseconds(double seconds) {
  const double most = 1e9; /* 30 years */
  return (uint64_t)((seconds < most ? seconds : most) * 1000 + 0.999);
}

int redis_wait(lua_State *L, struct ask *a, int rc) {
  struct redis_bind *r = a->redis;
  if (rc != BACKEND_WAIT)
    return refuse(L, a, rc);
  if (a->task == NULL) {
    r->unawaited++;
    lua_pushinteger(L, WAIT_OK);
    lua_pushinteger(L, 1);
    return 2;
  }
  double timeout = lua_tonumber(L, 4);
  conn_allow(r->conn, milliseconds(timeout));
  return task_wait(L, a->task, timeout > 0 ? timeout : -1, forget, a);
}

/* ---- the connection ---- */

static void on_log(void *ud, const char *line) {
  struct bind *b = ud;
  if (!b->redis->starting)
    b->host.log(b->host.ud, BIND_LOG_WARN, line);
}

static void use(struct redis_bind *r, struct redis_conn *conn) {
  if (r->conn != NULL)
    conn_close(r->conn);
  r->conn = conn;
  for (int i = 0; i < r->view_count; i++)
    redis_view_use(r->views[i], conn);
}

int bind_redis_configure(struct bind *b, char *err, size_t size) {
  struct redis_options options;
  memset(&options, 0, sizeof options); /* padding, too: they are compared */
  int configured = b->host.redis(b->host.ud, &options, err, size);
  if (configured < 0)
    return -1;
  struct redis_bind *r = b->redis;
  if (r == NULL) {
    r = b->redis = calloc(1, sizeof *r);
    if (r == NULL)
      goto no_memory;
    r->bind = b;
  }
  if (!configured) {
    use(r, NULL);
    return 0;
  }
  if (r->conn != NULL && memcmp(&options, &r->options, sizeof options) == 0)
    return 1;
  struct redis_conn *conn = conn_open(b->sched.loop, &options, on_log, b);
  if (conn == NULL)
    goto no_memory;
  r->options = options;
  use(r, conn);
  return 1;

no_memory:
  snprintf(err, size, "Redis: not enough memory");
  return -1;
}

int bind_redis_require(struct bind *b, char *err, size_t size) {
  int configured = bind_redis_configure(b, err, size);
  if (configured <= 0)
    return configured;
  struct redis_conn *conn = b->redis->conn;
  b->redis->starting = 1;
  conn_start(conn);
  while (conn_status(conn) == 0)
    uv_run(b->sched.loop, UV_RUN_ONCE);
  b->redis->starting = 0;
  if (conn_status(conn) == 1)
    return 0;
  snprintf(err, size, "%s", conn_why(conn));
  return -1;
}

int bind_redis_busy(const struct bind *b) {
  return b->redis != NULL ? b->redis->unawaited : 0;
}

void bind_redis_close(struct bind *b) {
  if (b->redis != NULL)
    use(b->redis, NULL);
}

void bind_redis_free(struct bind *b) {
  struct redis_bind *r = b->redis;
  if (r == NULL)
    return;
  for (int i = 0; i < r->view_count; i++)
    r->views[i]->ops->close(r->views[i]);
  for (struct ask *a = r->unused, *next; a != NULL; a = next) {
    next = a->next;
    free(a);
  }
  free(r);
  b->redis = NULL;
}

/* ---- the module ---- */

/* configure() -> whether Redis is configured; raises what is wrong with it */
static int l_configure(lua_State *L) {
  struct bind *b = lua_touserdata(L, lua_upvalueindex(1));
  char err[512];
  int rc = bind_redis_configure(b, err, sizeof err);
  if (rc < 0)
    return luaL_error(L, "%s", err);
  lua_pushboolean(L, rc);
  return 1;
}

/* view() -> a new backend on the connection, as a pointer */
static int l_view(lua_State *L) {
  struct redis_bind *r = redis_of(L);
  if (r->view_count == REDIS_VIEWS_MAX)
    return luaL_error(L, "too many aliases: at most %d", REDIS_VIEWS_MAX);
  struct backend **view = &r->views[r->view_count];
  if (redis_view_open(view) < 0)
    return luaL_error(L, "not enough memory");
  redis_view_use(*view, r->conn);
  r->view_count++;
  lua_pushlightuserdata(L, *view);
  return 1;
}

static void set_count(lua_State *L, const char *name, uint64_t value) {
  lua_pushnumber(L, (double)value);
  lua_setfield(L, -2, name);
}

/* stats(view) -> table of counts: the view's, then the connection's */
static int l_stats(lua_State *L) {
  struct redis_bind *r = redis_of(L);
  struct backend *view = redis_check_view(L);
  struct backend_stats stats;
  struct conn_stats conn = {0};
  view->ops->stats(view, 0, &stats);
  if (r->conn != NULL)
    conn_get_stats(r->conn, &conn);
  lua_createtable(L, 0, 16);
  set_count(L, "hits", stats.hits);
  set_count(L, "misses", stats.misses);
  set_count(L, "sets", stats.sets);
  set_count(L, "deletes", stats.deletes);
  set_count(L, "connects", conn.connects);
  set_count(L, "commands", conn.commands);
  set_count(L, "in_flight", conn.in_flight);
  set_count(L, "discarded", conn.discarded);
  set_count(L, "desyncs", conn.desyncs);
  set_count(L, "stalls", conn.stalls);
  set_count(L, "unawaited", (uint64_t)r->unawaited);
  set_count(L, "unawaited_lost", r->unawaited_lost);
  set_count(L, "undecodable", r->undecodable);
  set_count(L, "foreign", r->foreign);
  lua_pushboolean(L, conn.ready);
  lua_setfield(L, -2, "connected");
  return 1;
}

static void set_constants(lua_State *L) {
  static const struct {
    const char *name;
    int value;
  } constants[] = {
      {"TEXT", REDIS_TEXT},           {"INTEGER", REDIS_INTEGER},
      {"HIT", BACKEND_HIT},           {"ECONNECTION", BACKEND_ECONNECTION},
      {"ESERVER", BACKEND_ESERVER},   {"EOVERLOADED", BACKEND_EOVERLOADED},
      {"ECLOSED", BACKEND_ECLOSED},   {"EUNSUPPORTED", BACKEND_EUNSUPPORTED},
      {"VALUE_MAX", REDIS_VALUE_MAX},
  };
  for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
    lua_pushinteger(L, constants[i].value);
    lua_setfield(L, -2, constants[i].name);
  }
}

int bind_open_redis(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"configure", l_configure},
      {"view", l_view},
      {"stats", l_stats},
      {NULL, NULL},
  };
  struct bind *b = lua_touserdata(L, lua_upvalueindex(1));
  lua_newtable(L);
  bind_add_functions(L, b, functions);
  bind_add_functions(L, b, redis_calls);
  set_constants(L);
  return 1;
}
