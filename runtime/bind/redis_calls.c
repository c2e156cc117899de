/* The calls of the Redis backend, as C functions for Lua. Each takes the view,
 * namespace, key (or what stands for it) and timeout first, and returns as
 * redis.c says; what is named after the arrow follows the status. */
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "bind/cache_internal.h"
#include "bind/codec.h"
#include "bind/envelope.h"
#include "bind/redis_internal.h"

struct key {
  const char *ns, *key;
  size_t ns_len, key_len;
};

static struct key check_key(lua_State *L) {
  struct key k;
  k.ns = luaL_checklstring(L, 2, &k.ns_len);
  k.key = luaL_checklstring(L, 3, &k.key_len);
  return k;
}

#define CALL_KEY a->view, 0, k.ns, k.ns_len, k.key, k.key_len

/* Declares a call on one key: `a` asks, `k` is the key. */
#define ASK_KEY(what)                     \
  int n;                                  \
  struct key k = check_key(L);            \
  struct ask *a = redis_ask(L, what, &n); \
  if (a == NULL)                          \
  return n

/* get(view, ns, key, timeout, native) -> format, value; or nil, message for
 * what is not in our envelope */
static int l_get(lua_State *L) {
  int native = lua_toboolean(L, 5);
  ASK_KEY("get");
  a->push = redis_push_value;
  a->native = native;
  if (native)
    a->key = envelope_key(k.ns, k.ns_len, k.key, k.key_len);
  return redis_wait(L, a, a->view->ops->get(CALL_KEY, NULL, 0, NULL, &a->wait));
}

static uint64_t wall_ms(void) {
  struct timeval now;
  gettimeofday(&now, NULL);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_usec / 1000;
}

/* The value at index as bytes of that kind; what they are made in is on the
 * stack of L or in out. */
static struct backend_slice make_bytes(lua_State *L, int index, int kind,
                                       const struct key *k,
                                       struct codec_buffer *out) {
  struct backend_slice bytes;
  if (kind == REDIS_INTEGER) {
    bytes.data = codec_reserve(out, ENVELOPE_DECIMAL_MAX + 1);
    bytes.length =
        envelope_write_decimal((int64_t)luaL_checknumber(L, index), out->data);
    return bytes;
  }
  bytes.data = luaL_checklstring(L, index, &bytes.length);
  if (kind == REDIS_TEXT || bytes.length > REDIS_VALUE_MAX)
    return bytes;
  struct envelope e = {.type = (unsigned)kind,
                       .flags = 1u << ENVELOPE_WRITTEN,
                       .payload = bytes.data,
                       .length = bytes.length};
  e.stamps[ENVELOPE_WRITTEN] = wall_ms();
  bytes.length = envelope_size(&e);
  char *sealed = codec_reserve(out, bytes.length);
  envelope_seal(&e, envelope_key(k->ns, k->ns_len, k->key, k->key_len), sealed);
  bytes.data = sealed;
  return bytes;
}

/* set(view, ns, key, timeout, value, kind, ttl_ms, only_new) */
static int l_set(lua_State *L) {
  struct codec_buffer out;
  int kind = (int)luaL_checkinteger(L, 6), only_new = lua_toboolean(L, 8);
  uint64_t ttl_ms = (uint64_t)luaL_checknumber(L, 7);
  struct key key = check_key(L);
  codec_buffer_init(&out, L);
  struct backend_slice bytes = make_bytes(L, 5, kind, &key, &out);
  ASK_KEY(only_new ? "add" : "set");
  int rc = only_new ? a->view->ops->add(CALL_KEY, bytes.data, bytes.length, 0,
                                        ttl_ms, &a->wait)
                    : a->view->ops->set(CALL_KEY, bytes.data, bytes.length, 0,
                                        ttl_ms, &a->wait);
  return redis_wait(L, a, rc);
}

/* remove(view, ns, key, timeout) */
static int l_remove(lua_State *L) {
  ASK_KEY("delete");
  return redis_wait(L, a, a->view->ops->remove(CALL_KEY, &a->wait));
}

/* exists(view, ns, key, timeout) */
static int l_exists(lua_State *L) {
  ASK_KEY("exists");
  return redis_wait(L, a, a->view->ops->exists(CALL_KEY, &a->wait));
}

/* increment(view, ns, key, timeout, delta, ttl_ms) -> sum */
static int l_increment(lua_State *L) {
  int64_t delta = (int64_t)luaL_checknumber(L, 5);
  uint64_t ttl_ms = (uint64_t)luaL_checknumber(L, 6);
  ASK_KEY("increment");
  a->push = redis_push_sum;
  return redis_wait(
      L, a,
      a->view->ops->increment(CALL_KEY, delta, ttl_ms, &a->sum, &a->wait));
}

/* expire(view, ns, key, timeout, ttl_ms) */
static int l_expire(lua_State *L) {
  uint64_t ttl_ms = (uint64_t)luaL_checknumber(L, 5);
  ASK_KEY("expire");
  return redis_wait(L, a, a->view->ops->expire(CALL_KEY, ttl_ms, &a->wait));
}

/* touch(view, ns, key, timeout[, ttl_ms]) */
static int l_touch(lua_State *L) {
  uint64_t ttl_ms =
      lua_isnoneornil(L, 5) ? UINT64_MAX : (uint64_t)luaL_checknumber(L, 5);
  ASK_KEY("touch");
  return redis_wait(L, a, a->view->ops->touch(CALL_KEY, ttl_ms, &a->wait));
}

/* info(view, ns, key, timeout) -> ms left (nil = never), size, ms since it was
 * written (nil = unknown) */
static int l_info(lua_State *L) {
  ASK_KEY("info");
  a->push = redis_push_info;
  return redis_wait(L, a, a->view->ops->info(CALL_KEY, NULL, &a->wait));
}

/* ---- many keys ---- */

/* get_many(view, ns, keys, timeout, native) -> formats, values, messages:
 * sparse lists */
static int l_get_many(lua_State *L) {
  size_t ns_len, count, used;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  struct backend_slice *keys = cache_check_list(L, 3, &count);
  int native = lua_toboolean(L, 5), n;
  struct ask *a = redis_ask(L, "multi_get", &n);
  if (a == NULL)
    return n;
  int rc = BACKEND_ENOMEM;
  a->push = redis_push_many;
  a->native = native;
  a->n = count;
  a->items = calloc(count + 1, sizeof *a->items);
  if (a->items != NULL)
    rc = a->view->ops->get_many(a->view, 0, ns, ns_len, keys, count, NULL, 0,
                                &used, a->items, &a->wait);
  for (size_t i = 0; native && rc == BACKEND_WAIT && i < count; i++)
    a->items[i].token = envelope_key(ns, ns_len, keys[i].data, keys[i].length);
  return redis_wait(L, a, rc);
}

/* set_many(view, ns, keys, timeout, values, kinds, ttl_ms) -> statuses: a list
 */
static int l_set_many(lua_State *L) {
  struct codec_buffer out;
  size_t ns_len, count;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  struct backend_slice *keys = cache_check_list(L, 3, &count);
  uint64_t ttl_ms = (uint64_t)luaL_checknumber(L, 7);
  struct backend_slice *values =
      lua_newuserdata(L, (count + 1) * sizeof *values);
  lua_createtable(L, (int)count, 0); /* keeps what the values are made in */
  int kept = lua_gettop(L);
  for (size_t i = 0; i < count; i++) {
    struct key k = {ns, keys[i].data, ns_len, keys[i].length};
    lua_rawgeti(L, 6, (int)i + 1);
    lua_rawgeti(L, 5, (int)i + 1);
    codec_buffer_init(&out, L);
    values[i] =
        make_bytes(L, kept + 2, (int)lua_tointeger(L, kept + 1), &k, &out);
    lua_pushlstring(L, values[i].data, values[i].length);
    values[i].data = lua_tostring(L, -1);
    lua_rawseti(L, kept, (int)i + 1);
    lua_settop(L, kept);
  }
  int n;
  struct ask *a = redis_ask(L, "multi_set", &n);
  if (a == NULL)
    return n;
  int rc = BACKEND_ENOMEM;
  a->push = redis_push_statuses;
  a->n = count;
  a->statuses = calloc(count + 1, sizeof *a->statuses);
  if (a->statuses != NULL)
    rc = a->view->ops->set_many(a->view, 0, ns, ns_len, keys, values, NULL,
                                count, ttl_ms, a->statuses, &a->wait);
  return redis_wait(L, a, rc);
}

/* remove_many(view, ns, keys, timeout) */
static int l_remove_many(lua_State *L) {
  size_t ns_len, count;
  const char *ns = luaL_checklstring(L, 2, &ns_len);
  struct backend_slice *keys = cache_check_list(L, 3, &count);
  int n;
  struct ask *a = redis_ask(L, "multi_delete", &n);
  if (a == NULL)
    return n;
  return redis_wait(
      L, a,
      a->view->ops->remove_many(a->view, 0, ns, ns_len, keys, count, &a->wait));
}

/* clear(view, prefix, cursor, timeout) -> cursor: one step; status 1: done */
static int l_clear(lua_State *L) {
  size_t length;
  const char *prefix = luaL_checklstring(L, 2, &length);
  uint64_t cursor = strtoull(luaL_checkstring(L, 3), NULL, 10);
  int n;
  struct ask *a = redis_ask(L, "clear", &n);
  if (a == NULL)
    return n;
  a->push = redis_push_cursor;
  a->cursor = cursor;
  return redis_wait(
      L, a,
      a->view->ops->clear(a->view, 0, prefix, length, &a->cursor, &a->wait));
}

/* may_share(args): may this command go over the one connection? */
static int l_may_share(lua_State *L) {
  size_t count;
  struct backend_slice *args = cache_check_list(L, 1, &count);
  lua_pushboolean(L, count > 0 && redis_may_share(args, count));
  return 1;
}

/* raw(view, args, nil, timeout) -> ok, the reply or the server's error */
static int l_raw(lua_State *L) {
  size_t count;
  struct backend_slice *args = cache_check_list(L, 2, &count);
  int n;
  struct ask *a = redis_ask(L, "raw", &n);
  if (a == NULL)
    return n;
  a->push = redis_push_reply;
  return redis_wait(L, a, a->view->ops->raw(a->view, args, count, &a->wait));
}

const luaL_Reg redis_calls[] = {
    {"get", l_get},
    {"set", l_set},
    {"remove", l_remove},
    {"exists", l_exists},
    {"increment", l_increment},
    {"expire", l_expire},
    {"touch", l_touch},
    {"info", l_info},
    {"get_many", l_get_many},
    {"set_many", l_set_many},
    {"remove_many", l_remove_many},
    {"clear", l_clear},
    {"may_share", l_may_share},
    {"raw", l_raw},
    {NULL, NULL},
};
