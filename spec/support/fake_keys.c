/* The keys of `serve`: a tiny Redis in memory, strings only, one database.
 *
 * A hash table with a fixed number of buckets: a SCAN cursor is the number of
 * the next bucket, so that no key is left out or moves while somebody scans.
 * One lock around every command.
 */
#define _GNU_SOURCE
#include "fake_redis.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BUCKETS = 1024, SCAN_COUNT = 10, NUMBER_MAX = 24 };

struct entry {
  struct entry *next; /* in its bucket */
  struct buffer key;
  struct buffer value;
  int64_t expires_at_ms; /* monotonic; 0: never */
};

static struct entry *buckets[BUCKETS];
static size_t entries;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static const char syntax_error[] = "-ERR syntax error\r\n";
static const char not_a_number[] =
    "-ERR value is not an integer or out of range\r\n";

static int64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * MS_PER_S + now.tv_nsec / (US_PER_MS * US_PER_MS);
}

/* ---- the table ---- */

static struct entry **bucket_of(const struct slice *key) {
  uint64_t hash = 14695981039346656037u; /* FNV-1a */
  for (size_t i = 0; i < key->size; i++)
    hash = (hash ^ (unsigned char)key->data[i]) * 1099511628211u;
  return &buckets[hash % BUCKETS];
}

static void unlink_entry(struct entry **place) {
  struct entry *entry = *place;
  *place = entry->next;
  buffer_free(&entry->key);
  buffer_free(&entry->value);
  free(entry);
  entries--;
}

static bool expired(const struct entry *entry) {
  return entry->expires_at_ms != 0 && entry->expires_at_ms <= now_ms();
}

/* Where the key's entry hangs, or NULL. An expired one goes. */
static struct entry **find(const struct slice *key) {
  for (struct entry **place = bucket_of(key); *place != NULL;
       place = &(*place)->next) {
    struct entry *entry = *place;
    if (entry->key.size != key->size ||
        memcmp(entry->key.data, key->data, key->size) != 0)
      continue;
    if (!expired(entry))
      return place;
    unlink_entry(place);
    return NULL;
  }
  return NULL;
}

/* The key's entry, made if there is none; its value is replaced. */
static struct entry *put(const struct slice *key, const char *data,
                         size_t size) {
  struct entry **place = find(key);
  struct entry *entry = place != NULL ? *place : NULL;
  if (entry == NULL) {
    struct entry **bucket = bucket_of(key);
    entry = calloc(1, sizeof *entry);
    if (entry == NULL)
      abort();
    buffer_reserve(&entry->key, 1); /* memcmp and printf want a pointer */
    buffer_append(&entry->key, key->data, key->size);
    entry->next = *bucket;
    *bucket = entry;
    entries++;
  }
  entry->value.size = 0;
  buffer_append(&entry->value, data, size);
  return entry;
}

/* ---- arguments and replies ---- */

static bool to_int(const struct slice *slice, int64_t *number) {
  char text[NUMBER_MAX], back[NUMBER_MAX];
  if (slice->size == 0 || slice->size >= sizeof text)
    return false;
  memcpy(text, slice->data, slice->size);
  text[slice->size] = '\0';
  *number = strtoll(text, NULL, 10);
  snprintf(back, sizeof back, "%" PRId64, *number);
  return strcmp(text, back) == 0;
}

static void reply_int(struct buffer *reply, int64_t number) {
  buffer_printf(reply, ":%" PRId64 "\r\n", number);
}

static void reply_value(struct buffer *reply, struct entry **place) {
  if (place == NULL)
    buffer_printf(reply, "$-1\r\n");
  else
    reply_bulk(reply, (*place)->value.data, (*place)->value.size);
}

/* ---- the commands ---- */

static void run_get(const struct command *c, struct buffer *reply) {
  reply_value(reply, find(&c->arguments[1]));
}

static void run_mget(const struct command *c, struct buffer *reply) {
  buffer_printf(reply, "*%zu\r\n", c->count - 1);
  for (size_t i = 1; i < c->count; i++)
    reply_value(reply, find(&c->arguments[i]));
}

struct set_options {
  bool if_absent, if_present, keep_ttl;
  int64_t ttl_ms; /* 0: none */
};

/* Returns NULL, or the error. */
static const char *set_options(const struct command *c, struct set_options *o) {
  for (size_t i = 3; i < c->count; i++) {
    bool ms = command_is(c, i, "PX");
    if (command_is(c, i, "NX")) {
      o->if_absent = true;
    } else if (command_is(c, i, "XX")) {
      o->if_present = true;
    } else if (command_is(c, i, "KEEPTTL")) {
      o->keep_ttl = true;
    } else if ((ms || command_is(c, i, "EX")) && i + 1 < c->count) {
      if (!to_int(&c->arguments[++i], &o->ttl_ms))
        return not_a_number;
      if (o->ttl_ms <= 0 || o->ttl_ms > INT64_MAX / 4 / MS_PER_S)
        return "-ERR invalid expire time in 'set' command\r\n";
      o->ttl_ms *= ms ? 1 : MS_PER_S;
    } else {
      return syntax_error;
    }
  }
  return NULL;
}

static void run_set(const struct command *c, struct buffer *reply) {
  struct set_options o = {0};
  const char *error = set_options(c, &o);
  if (error != NULL) {
    buffer_printf(reply, "%s", error);
    return;
  }
  bool present = find(&c->arguments[1]) != NULL;
  if ((o.if_absent && present) || (o.if_present && !present)) {
    buffer_printf(reply, "$-1\r\n");
    return;
  }
  struct entry *entry =
      put(&c->arguments[1], c->arguments[2].data, c->arguments[2].size);
  if (!o.keep_ttl)
    entry->expires_at_ms = o.ttl_ms > 0 ? now_ms() + o.ttl_ms : 0;
  buffer_printf(reply, "+OK\r\n");
}

static void run_del(const struct command *c, struct buffer *reply) {
  int64_t count = 0;
  for (size_t i = 1; i < c->count; i++) {
    struct entry **place = find(&c->arguments[i]);
    if (place == NULL)
      continue;
    unlink_entry(place);
    count++;
  }
  reply_int(reply, count);
}

static void run_exists(const struct command *c, struct buffer *reply) {
  int64_t count = 0;
  for (size_t i = 1; i < c->count; i++)
    count += find(&c->arguments[i]) != NULL;
  reply_int(reply, count);
}

static void run_pttl(const struct command *c, struct buffer *reply) {
  struct entry **place = find(&c->arguments[1]);
  int64_t left = place == NULL ? -2 : -1;
  if (place != NULL && (*place)->expires_at_ms != 0)
    left = (*place)->expires_at_ms - now_ms();
  reply_int(reply, left);
}

static void run_pexpire(const struct command *c, struct buffer *reply) {
  struct entry **place = find(&c->arguments[1]);
  int64_t ttl_ms;
  if (!to_int(&c->arguments[2], &ttl_ms)) {
    buffer_printf(reply, "%s", not_a_number);
    return;
  }
  reply_int(reply, place != NULL);
  if (place == NULL)
    return;
  if (ttl_ms <= 0)
    unlink_entry(place);
  else if (__builtin_add_overflow(now_ms(), ttl_ms, &(*place)->expires_at_ms))
    (*place)->expires_at_ms = INT64_MAX;
}

static void run_persist(const struct command *c, struct buffer *reply) {
  struct entry **place = find(&c->arguments[1]);
  bool had = place != NULL && (*place)->expires_at_ms != 0;
  if (had)
    (*place)->expires_at_ms = 0;
  reply_int(reply, had);
}

static void run_incrby(const struct command *c, struct buffer *reply) {
  struct entry **place = find(&c->arguments[1]);
  char text[NUMBER_MAX];
  int64_t number = 0, by;
  struct slice old = {0};
  if (place != NULL)
    old = (struct slice){(*place)->value.data, (*place)->value.size};
  if (!to_int(&c->arguments[2], &by) ||
      (place != NULL && !to_int(&old, &number)))
    buffer_printf(reply, "%s", not_a_number);
  else if (__builtin_add_overflow(number, by, &number))
    buffer_printf(reply, "-ERR increment or decrement would overflow\r\n");
  else {
    snprintf(text, sizeof text, "%" PRId64, number);
    put(&c->arguments[1], text, strlen(text));
    reply_int(reply, number);
  }
}

static void run_strlen(const struct command *c, struct buffer *reply) {
  struct entry **place = find(&c->arguments[1]);
  reply_int(reply, place != NULL ? (int64_t)(*place)->value.size : 0);
}

static void run_getrange(const struct command *c, struct buffer *reply) {
  struct entry **place = find(&c->arguments[1]);
  int64_t from, to, size = place != NULL ? (int64_t)(*place)->value.size : 0;
  if (!to_int(&c->arguments[2], &from) || !to_int(&c->arguments[3], &to)) {
    buffer_printf(reply, "%s", not_a_number);
    return;
  }
  from = from >= 0 ? from : from < -size ? 0 : size + from;
  to = to >= size ? size - 1 : to >= 0 ? to : size + to;
  if (from > to || to < 0)
    reply_bulk(reply, "", 0);
  else
    reply_bulk(reply, (*place)->value.data + from, to - from + 1);
}

static void run_echo(const struct command *c, struct buffer *reply) {
  reply_bulk(reply, c->arguments[1].data, c->arguments[1].size);
}

static void run_flush(const struct command *c, struct buffer *reply) {
  (void)c; /* ASYNC, SYNC: all the same */
  for (int i = 0; i < BUCKETS; i++)
    while (buckets[i] != NULL)
      unlink_entry(&buckets[i]);
  buffer_printf(reply, "+OK\r\n");
}

static void run_dbsize(const struct command *c, struct buffer *reply) {
  (void)c;
  reply_int(reply, (int64_t)entries);
}

static bool matches(const char *pattern, struct buffer *key) {
  if (pattern == NULL)
    return true;
  buffer_reserve(key, 1);
  key->data[key->size] = '\0';
  return fnmatch(pattern, key->data, 0) == 0;
}

/* Returns how many keys of the bucket match, and adds them to `keys`. */
static int64_t scan_bucket(int64_t bucket, const char *pattern,
                           struct buffer *keys) {
  int64_t found = 0;
  for (struct entry *entry = buckets[bucket]; entry; entry = entry->next) {
    if (expired(entry) || !matches(pattern, &entry->key))
      continue;
    reply_bulk(keys, entry->key.data, entry->key.size);
    found++;
  }
  return found;
}

/* SCAN's arguments. Returns NULL, or the error. */
static const char *scan_options(const struct command *c, int64_t *cursor,
                                int64_t *count, char **pattern) {
  if (!to_int(&c->arguments[1], cursor) || *cursor < 0)
    return "-ERR invalid cursor\r\n";
  for (size_t i = 2; i < c->count; i += 2) {
    if (i + 1 == c->count)
      return syntax_error;
    const struct slice *value = &c->arguments[i + 1];
    if (command_is(c, i, "MATCH")) {
      free(*pattern);
      if ((*pattern = strndup(value->data, value->size)) == NULL)
        abort();
    } else if (command_is(c, i, "COUNT")) {
      if (!to_int(value, count) || *count < 1)
        return not_a_number;
    } else if (!command_is(c, i, "TYPE")) {
      return syntax_error;
    }
  }
  return NULL;
}

static void run_scan(const struct command *c, struct buffer *reply) {
  int64_t cursor = 0, count = SCAN_COUNT, found = 0;
  char *pattern = NULL, next[NUMBER_MAX];
  struct buffer keys = {0};
  const char *error = scan_options(c, &cursor, &count, &pattern);
  if (error != NULL) {
    buffer_printf(reply, "%s", error);
  } else {
    while (cursor < BUCKETS && found < count)
      found += scan_bucket(cursor++, pattern, &keys);
    snprintf(next, sizeof next, "%" PRId64, cursor < BUCKETS ? cursor : 0);
    buffer_printf(reply, "*2\r\n");
    reply_bulk(reply, next, strlen(next));
    buffer_printf(reply, "*%" PRId64 "\r\n", found);
    buffer_append(reply, keys.data, keys.size);
  }
  buffer_free(&keys);
  free(pattern);
}

static const struct {
  const char *name;
  int arity; /* with the name; negative: at least */
  void (*run)(const struct command *c, struct buffer *reply);
} commands[] = {
    {"GET", 2, run_get},           {"SET", -3, run_set},
    {"MGET", -2, run_mget},        {"DEL", -2, run_del},
    {"UNLINK", -2, run_del},       {"EXISTS", -2, run_exists},
    {"TOUCH", -2, run_exists},     {"PTTL", 2, run_pttl},
    {"PEXPIRE", 3, run_pexpire},   {"PERSIST", 2, run_persist},
    {"INCRBY", 3, run_incrby},     {"STRLEN", 2, run_strlen},
    {"GETRANGE", 4, run_getrange}, {"SCAN", -2, run_scan},
    {"ECHO", 2, run_echo},         {"FLUSHDB", -1, run_flush},
    {"FLUSHALL", -1, run_flush},   {"DBSIZE", 1, run_dbsize},
};

enum { COMMANDS = sizeof commands / sizeof commands[0] };

void keys_run(const struct command *command, struct buffer *reply) {
  int i = 0;
  while (i < COMMANDS && !command_is(command, 0, commands[i].name))
    i++;
  if (i == COMMANDS) { /* EVAL among them */
    const struct slice *name = &command->arguments[0];
    buffer_printf(reply, "-ERR unknown command '%.*s'\r\n",
                  (int)(name->size < 128 ? name->size : 128), name->data);
    return;
  }
  size_t arity = abs(commands[i].arity);
  if (commands[i].arity > 0 ? command->count != arity
                            : command->count < arity) {
    buffer_printf(reply, "-ERR wrong number of arguments for command\r\n");
    return;
  }
  pthread_mutex_lock(&lock);
  commands[i].run(command, reply);
  pthread_mutex_unlock(&lock);
}
