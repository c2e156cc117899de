/* The answers of the Redis backend, as Lua values. These run in the pump; they
 * may raise for want of memory and are called again then. */
#include <stdio.h>
#include <string.h>
#include <sys/time.h>

#include "backend.h"
#include "bind/cache_internal.h"
#include "bind/codec.h"
#include "bind/envelope.h"
#include "bind/redis_internal.h"
#include "redis/reply.h"

/* Pushes format and value of bytes from the server; nil and a message when they
 * should be an envelope and are none. Tables are still encoded. */
static void push_value(lua_State *L, struct ask *a, uint64_t key,
                       const char *bytes, size_t length) {
  struct envelope e;
  int64_t integer;
  static const uint32_t formats[] = {[ENVELOPE_RAW] = BACKEND_BYTES,
                                     [ENVELOPE_VALUE] = FORMAT_TABLE,
                                     [ENVELOPE_RESULTS] = FORMAT_RESULTS};
  if (!a->native) {
    lua_pushinteger(L, BACKEND_BYTES);
    lua_pushlstring(L, bytes, length);
    return;
  }
  if (envelope_read_decimal(bytes, length, &integer)) {
    lua_pushinteger(L, BACKEND_INTEGER);
    lua_pushnumber(L, (double)integer);
    return;
  }
  const char *error = envelope_open(&e, bytes, length, key);
  if (error == NULL) {
    lua_pushinteger(L, (lua_Integer)formats[e.type]);
    lua_pushlstring(L, e.payload, e.length);
    return;
  }
  lua_pushnil(L);
  lua_pushstring(L, error);
  a->redis->undecodable++;
  if (error != envelope_other_key)
    return;
  a->redis->foreign++;
  if (a->redis->conn != NULL)
    conn_suspect(a->redis->conn);
}

int redis_push_value(lua_State *L, struct ask *a) {
  if (a->status != BACKEND_HIT)
    return 0;
  push_value(L, a, a->key, a->bytes, a->length);
  return 2;
}

int redis_push_many(lua_State *L, struct ask *a) {
  const char *at = a->bytes;
  lua_createtable(L, (int)a->n, 0);
  lua_createtable(L, (int)a->n, 0);
  lua_newtable(L);
  int formats = lua_gettop(L) - 2;
  for (size_t i = 0; i < a->n; i++) {
    const struct backend_item *item = &a->items[i];
    if (item->version == 0)
      continue;
    push_value(L, a, item->token, at, item->length);
    int bad = lua_isnil(L, -2);
    lua_rawseti(L, bad ? formats + 2 : formats + 1, (int)i + 1);
    lua_rawseti(L, formats, (int)i + 1);
    at += item->length;
  }
  return 3;
}

int redis_push_sum(lua_State *L, struct ask *a) {
  lua_pushnumber(L, (double)a->sum);
  return 1;
}

int redis_push_info(lua_State *L, struct ask *a) {
  const struct backend_item *item = &a->item;
  struct timeval now;
  if (a->status != BACKEND_HIT)
    return 0;
  uint64_t written = envelope_written(a->bytes, a->length);
  gettimeofday(&now, NULL);
  double age = (double)now.tv_sec * 1000 + (double)(now.tv_usec / 1000) -
               (double)written;
  if (item->expires_ms != 0)
    lua_pushnumber(L, (double)item->expires_ms);
  else
    lua_pushnil(L);
  lua_pushnumber(L, (double)item->length);
  if (written == 0)
    lua_pushnil(L);
  else
    lua_pushnumber(L, age > 0 ? age : 0);
  return 3;
}

int redis_push_cursor(lua_State *L, struct ask *a) {
  char text[24];
  snprintf(text, sizeof text, "%llu", (unsigned long long)a->cursor);
  lua_pushstring(L, text);
  return 1;
}

int redis_push_statuses(lua_State *L, struct ask *a) {
  lua_pushlstring(L, a->bytes != NULL ? a->bytes : "", a->length);
  lua_createtable(L, (int)a->n, 0);
  for (size_t i = 0; i < a->n; i++) {
    lua_pushinteger(L, a->statuses[i]);
    lua_rawseti(L, -2, (int)i + 1);
  }
  return 2;
}

/* ---- any reply ---- */

/* An integer that a number cannot hold goes on as its text. */
static void push_integer(lua_State *L, int64_t value) {
  char text[24];
  if (value <= (1LL << 53) && value >= -(1LL << 53)) {
    lua_pushnumber(L, (double)value);
    return;
  }
  snprintf(text, sizeof text, "%lld", (long long)value);
  lua_pushstring(L, text);
}

/* Pushes the reply at tape: a nil within an array as cache.null, an error there
 * as {err = text}. Returns where the next one begins. The depth is bounded by
 * the reader's. */
static const char *push_reply(lua_State *L, const char *tape, int depth) {
  struct reply reply;
  tape = reply_read(tape, &reply);
  luaL_checkstack(L, 3, "reply");
  switch (reply.type) {
  case REPLY_INTEGER:
    push_integer(L, reply.integer);
    break;
  case REPLY_ERROR:
    if (depth > 0)
      lua_createtable(L, 0, 1);
    lua_pushlstring(L, reply.text, reply.length);
    if (depth > 0)
      lua_setfield(L, -2, "err");
    break;
  case REPLY_NIL:
    if (depth > 0)
      lua_pushlightuserdata(L, NULL);
    else
      lua_pushnil(L);
    break;
  case REPLY_ARRAY:
    lua_createtable(L, (int)reply.integer, 0);
    for (int i = 1; i <= (int)reply.integer; i++) {
      tape = push_reply(L, tape, depth + 1);
      lua_rawseti(L, -2, i);
    }
    break;
  default:
    lua_pushlstring(L, reply.text, reply.length);
  }
  return tape;
}

int redis_push_reply(lua_State *L, struct ask *a) {
  struct reply reply;
  reply_read(a->bytes, &reply);
  lua_pushboolean(L, reply.type != REPLY_ERROR);
  push_reply(L, a->bytes, 0);
  return 2;
}
