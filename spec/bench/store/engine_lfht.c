/* liburcu's lock-free hash table in its fastest flavour (QSBR: a reader's lock
 * costs nothing), as bench_store sees it: made with a bucket for each entry,
 * XXH3 as the hash. What a writer takes out it frees after a grace period, a
 * thousand at a time. It evicts nothing by itself. */
#include "engine.h"

#include <stdlib.h>

#define _LGPL_SOURCE /* the readers' side inlined */
#include <urcu/urcu-qsbr.h>
#include <urcu/rculfhash.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

enum { RETIRED_MAX = 1024 };

struct node {
  struct cds_lfht_node link; /* first */
  char key[KEY_SIZE];
  char value[VALUE_SIZE];
};

/* What this thread took out and has not freed yet. */
static __thread struct {
  struct node *nodes[RETIRED_MAX];
  unsigned count;
} retired;

static int match(struct cds_lfht_node *link, const void *key) {
  return memcmp(((struct node *)link)->key, key, KEY_SIZE) == 0;
}

static void free_retired(void) {
  urcu_qsbr_synchronize_rcu();
  while (retired.count > 0)
    free(retired.nodes[--retired.count]);
}

static void retire(struct cds_lfht_node *link) {
  if (retired.count == RETIRED_MAX)
    free_retired(); /* outside of the readers' lock */
  retired.nodes[retired.count++] = (struct node *)link;
}

/* Under the readers' lock. */
static int copy_out(struct cds_lfht *t, const char *key, char *value) {
  struct cds_lfht_iter iter;
  cds_lfht_lookup(t, XXH3_64bits(key, KEY_SIZE), match, key, &iter);
  struct node *node = (struct node *)cds_lfht_iter_get_node(&iter);
  if (node)
    memcpy(value, node->value, VALUE_SIZE);
  return node != NULL;
}

static int get(void *table, const char *key, char *value) {
  urcu_qsbr_read_lock();
  int hit = copy_out(table, key, value);
  urcu_qsbr_read_unlock();
  return hit;
}

static size_t get_many(void *table, char (*keys)[KEY_SIZE], size_t n,
                       char *values) {
  size_t hits = 0;
  urcu_qsbr_read_lock();
  for (size_t i = 0; i < n; i++)
    hits += (size_t)copy_out(table, keys[i], values + i * VALUE_SIZE);
  urcu_qsbr_read_unlock();
  return hits;
}

static void set(void *table, const char *key, const char *value) {
  struct node *node = checked(malloc(sizeof *node));
  cds_lfht_node_init(&node->link);
  memcpy(node->key, key, KEY_SIZE);
  memcpy(node->value, value, VALUE_SIZE);
  urcu_qsbr_read_lock();
  struct cds_lfht_node *old = cds_lfht_add_replace(
      table, XXH3_64bits(key, KEY_SIZE), match, key, &node->link);
  urcu_qsbr_read_unlock();
  if (old)
    retire(old);
}

static int remove_one(void *table, const char *key) {
  struct cds_lfht_iter iter;
  urcu_qsbr_read_lock();
  cds_lfht_lookup(table, XXH3_64bits(key, KEY_SIZE), match, key, &iter);
  struct cds_lfht_node *link = cds_lfht_iter_get_node(&iter);
  int removed = link && cds_lfht_del(table, link) == 0;
  urcu_qsbr_read_unlock();
  if (removed)
    retire(link);
  return removed;
}

static void replace(void *table, const char *key, const char *value,
                    const char *old) {
  if (!remove_one(table, old))
    die("the oldest entry was lost");
  set(table, key, value);
}

static void idle(void) {
  urcu_qsbr_quiescent_state();
}

static const struct calls calls = {get,     get_many,   set,
                                   replace, remove_one, idle};

static void run(void *table, struct batch *batch) {
  engine_loops(&calls, table, batch);
}

static void *open_table(uint64_t entries) {
  unsigned long buckets = 1;
  while (buckets < entries)
    buckets *= 2;
  return checked(
      cds_lfht_new_flavor(buckets, 1, 0, 0, &urcu_qsbr_flavor, NULL));
}

static void full(void *table) {
  (void)table;
}

static uint64_t none(void *table) {
  (void)table;
  return 0;
}

static void enter(void) {
  urcu_qsbr_register_thread();
}

static void leave(void) {
  free_retired();
  urcu_qsbr_unregister_thread();
}

static void close_table(void *table) {
  struct cds_lfht_iter iter;
  urcu_qsbr_register_thread();
  urcu_qsbr_read_lock();
  cds_lfht_first(table, &iter);
  for (struct cds_lfht_node *link; (link = cds_lfht_iter_get_node(&iter));) {
    cds_lfht_next(table, &iter);
    if (cds_lfht_del(table, link) == 0)
      free(link); /* nobody else is left */
  }
  urcu_qsbr_read_unlock();
  urcu_qsbr_unregister_thread();
  cds_lfht_destroy(table, NULL);
}

const struct engine engine_lfht = {"lfht", open_table, run,   full,       none,
                                   none,   enter,      leave, close_table};
