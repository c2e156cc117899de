/* The store, as bench_store sees it. */
#include "engine.h"

#include <stdlib.h>

#include "memory/store.h"

enum {
  ENTRY_BYTES = 256,       /* of the bound for each entry: enough for all */
  LEAST_BYTES = 256 * 1024 /* of the bound beyond that */
};

static const uint64_t now_ms = 1; /* nothing expires here */

struct table {
  struct store *store;
  struct backend *view;
};

static int get(void *table, const char *key, char *value) {
  struct backend *view = ((struct table *)table)->view;
  struct backend_item item;
  int rc = view->ops->get(view, now_ms, "", 0, key, KEY_SIZE, value, VALUE_SIZE,
                          &item, NULL);
  if (rc < 0 || (rc == BACKEND_HIT && item.length != VALUE_SIZE))
    die("get returned %d", rc);
  return rc;
}

static size_t get_many(void *table, char (*keys)[KEY_SIZE], size_t n,
                       char *values) {
  struct backend *view = ((struct table *)table)->view;
  struct backend_slice slices[MANY];
  struct backend_item items[MANY];
  size_t used;
  for (size_t i = 0; i < n; i++)
    slices[i] = (struct backend_slice){keys[i], KEY_SIZE};
  int hits = view->ops->get_many(view, now_ms, "", 0, slices, n, values,
                                 n * VALUE_SIZE, &used, items, NULL);
  if (hits < 0 || used != (size_t)hits * VALUE_SIZE)
    die("get_many returned %d", hits);
  return (size_t)hits;
}

static void set(void *table, const char *key, const char *value) {
  struct backend *view = ((struct table *)table)->view;
  int rc = view->ops->set(view, now_ms, "", 0, key, KEY_SIZE, value, VALUE_SIZE,
                          BACKEND_BYTES, BACKEND_TTL_NEVER, NULL);
  if (rc != 1)
    die("set returned %d", rc);
}

static void replace(void *table, const char *key, const char *value,
                    const char *old) {
  (void)old; /* the store sees to that */
  set(table, key, value);
}

static int remove_one(void *table, const char *key) {
  struct backend *view = ((struct table *)table)->view;
  return view->ops->remove(view, now_ms, "", 0, key, KEY_SIZE, NULL);
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
  if (store_open(&t->store, entries * ENTRY_BYTES + LEAST_BYTES) != 0 ||
      store_view(t->store, &t->view) != 0)
    die("the store does not open");
  return t;
}

static struct backend_stats stats_of(void *table) {
  struct backend *view = ((struct table *)table)->view;
  struct backend_stats stats;
  view->ops->stats(view, now_ms, &stats);
  return stats;
}

static void full(void *table) {
  struct store *store = ((struct table *)table)->store;
  struct store_info info;
  store_info(store, &info);
  store_resize(store, info.bytes);
}

static uint64_t evictions(void *table) {
  return stats_of(table).evictions;
}

static uint64_t bytes(void *table) {
  return stats_of(table).bytes;
}

static void close_table(void *table) {
  struct table *t = table;
  t->view->ops->close(t->view);
  store_close(t->store);
  free(t);
}

const struct engine engine_store = {
    "store", open_table, run, full, evictions, bytes, idle, idle, close_table};
