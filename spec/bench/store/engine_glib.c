/* A GHashTable behind a mutex, as bench_store sees it: one block per entry,
 * the table used as a set of them (4 + 8 bytes each), XXH3 as the hash, values
 * changed in their place. It evicts nothing by itself. */
#include "engine.h"

#include <pthread.h>
#include <stdlib.h>

#include <glib.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

struct node {
  char key[KEY_SIZE]; /* first: a key is compared with a node */
  char value[VALUE_SIZE];
};

struct table {
  pthread_mutex_t mutex;
  GHashTable *nodes;
};

static guint hash_of(gconstpointer key) {
  return (guint)XXH3_64bits(key, KEY_SIZE);
}

static gboolean equal(gconstpointer a, gconstpointer b) {
  return memcmp(a, b, KEY_SIZE) == 0;
}

static int copy_out(struct table *t, const char *key, char *value) {
  struct node *node = g_hash_table_lookup(t->nodes, key);
  if (node)
    memcpy(value, node->value, VALUE_SIZE);
  return node != NULL;
}

static int get(void *table, const char *key, char *value) {
  struct table *t = table;
  pthread_mutex_lock(&t->mutex);
  int hit = copy_out(t, key, value);
  pthread_mutex_unlock(&t->mutex);
  return hit;
}

static size_t get_many(void *table, char (*keys)[KEY_SIZE], size_t n,
                       char *values) {
  struct table *t = table;
  size_t hits = 0;
  pthread_mutex_lock(&t->mutex);
  for (size_t i = 0; i < n; i++)
    hits += (size_t)copy_out(t, keys[i], values + i * VALUE_SIZE);
  pthread_mutex_unlock(&t->mutex);
  return hits;
}

static void put(struct table *t, const char *key, const char *value) {
  struct node *node = g_hash_table_lookup(t->nodes, key);
  if (!node) {
    node = checked(malloc(sizeof *node));
    memcpy(node->key, key, KEY_SIZE);
    memcpy(node->value, value, VALUE_SIZE);
    g_hash_table_add(t->nodes, node);
  } else {
    memcpy(node->value, value, VALUE_SIZE);
  }
}

static void set(void *table, const char *key, const char *value) {
  struct table *t = table;
  pthread_mutex_lock(&t->mutex);
  put(t, key, value);
  pthread_mutex_unlock(&t->mutex);
}

static void replace(void *table, const char *key, const char *value,
                    const char *old) {
  struct table *t = table;
  pthread_mutex_lock(&t->mutex);
  if (!g_hash_table_remove(t->nodes, old))
    die("the oldest entry was lost");
  put(t, key, value);
  pthread_mutex_unlock(&t->mutex);
}

static int remove_one(void *table, const char *key) {
  struct table *t = table;
  pthread_mutex_lock(&t->mutex);
  int removed = g_hash_table_remove(t->nodes, key);
  pthread_mutex_unlock(&t->mutex);
  return removed;
}

static void idle(void) {
}

static const struct calls calls = {get,     get_many,   set,
                                   replace, remove_one, idle};

static void run(void *table, struct batch *batch) {
  engine_loops(&calls, table, batch);
}

static void *open_table(uint64_t entries) {
  struct table *t = checked(malloc(sizeof *t));
  (void)entries; /* it grows */
  pthread_mutex_init(&t->mutex, NULL);
  t->nodes = g_hash_table_new_full(hash_of, equal, free, NULL);
  return t;
}

static void full(void *table) {
  (void)table;
}

static uint64_t none(void *table) {
  (void)table;
  return 0;
}

static void close_table(void *table) {
  struct table *t = table;
  g_hash_table_destroy(t->nodes);
  pthread_mutex_destroy(&t->mutex);
  free(t);
}

const struct engine engine_glib = {
    "GHashTable", open_table, run, full, none, none, idle, idle, close_table};
