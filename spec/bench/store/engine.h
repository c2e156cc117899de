/* The engines that bench_store compares, and the loops it measures them with.
 *
 * Each engine's file defines the calls below as static functions and takes the
 * loops from here by engine_loops, so that the compiler knows what it calls:
 * no engine pays for the harness more than another. The store is called
 * through its backend_ops, as everyone calls it.
 */
#ifndef MOONSTASH_BENCH_ENGINE_H
#define MOONSTASH_BENCH_ENGINE_H

#include "bench.h"

enum { MANY = 16 }; /* keys of a get_many; and one in MANY of a mix is a set */

enum operation {
  GET_HIT,
  GET_MISS,
  GET_MANY,
  SET,     /* of a key that is there */
  MIX,     /* 15 gets, 1 set */
  DELETE,  /* of a key that is there */
  SET_NEW, /* into a full table: the oldest, or whichever, goes */
  OPERATIONS
};

/* What a thread is to do with a table. */
struct batch {
  enum operation operation;
  const uint32_t *ids; /* below entries */
  size_t count;        /* a multiple of MANY */
  uint64_t entries;    /* that the table was filled with: ids 0 .. */
  uint64_t next, step; /* SET_NEW: ids next, next + step ...; next moves on */
};

/* What an engine does; keys of KEY_SIZE, values of VALUE_SIZE. */
struct calls {
  int (*get)(void *table, const char *key, char *value); /* 1, or 0: a miss */
  /* Values packed as the keys are; returns how many were there: all n. */
  size_t (*get_many)(void *table, char (*keys)[KEY_SIZE], size_t n,
                     char *values);
  void (*set)(void *table, const char *key, const char *value);
  /* The same for a new key into a full table; old: that peers without
   * eviction delete for it. */
  void (*replace)(void *table, const char *key, const char *value,
                  const char *old);
  int (*remove)(void *table, const char *key); /* 1, or 0: not there */
  void (*idle)(void); /* between calls: no reference is held */
};

struct engine {
  const char *name;
  void *(*open)(uint64_t entries);
  void (*run)(void *table, struct batch *batch);
  void (*full)(void *table);           /* what is in there is all it takes */
  uint64_t (*evictions)(void *table);  /* so far */
  uint64_t (*bytes)(void *table);      /* by its own count; 0: it has none */
  void (*enter)(void), (*leave)(void); /* bracket what a thread does */
  void (*close)(void *table);
};

extern const struct engine engine_store, engine_glib, engine_lfht;

static inline __attribute__((always_inline)) void expect_id(const char *value,
                                                            uint64_t id) {
  if (memcmp(value, &id, sizeof id) != 0)
    die("key %llu has the value of another", (unsigned long long)id);
}

static inline __attribute__((always_inline)) void
loop_get(const struct calls *c, void *table, uint64_t id, int expected) {
  char key[KEY_SIZE], value[VALUE_SIZE];
  make_key(key, id);
  if (c->get(table, key, value) != expected)
    die("key %llu was %s", (unsigned long long)id, expected ? "lost" : "there");
  if (expected)
    expect_id(value, id);
}

static inline __attribute__((always_inline)) void
loop_set(const struct calls *c, void *table, uint64_t id) {
  char key[KEY_SIZE], value[VALUE_SIZE] = {0};
  make_key(key, id);
  memcpy(value, &id, sizeof id);
  c->set(table, key, value);
}

static inline __attribute__((always_inline)) void
loop_get_many(const struct calls *c, void *table, const uint32_t *ids) {
  char keys[MANY][KEY_SIZE], values[MANY * VALUE_SIZE];
  for (size_t i = 0; i < MANY; i++)
    make_key(keys[i], ids[i]);
  if (c->get_many(table, keys, MANY, values) != MANY)
    die("a key of a get_many was lost");
  for (size_t i = 0; i < MANY; i++)
    expect_id(values + i * VALUE_SIZE, ids[i]);
}

static inline __attribute__((always_inline)) void
loop_remove(const struct calls *c, void *table, uint64_t id) {
  char key[KEY_SIZE];
  make_key(key, id);
  if (!c->remove(table, key))
    die("key %llu was lost", (unsigned long long)id);
}

static inline __attribute__((always_inline)) void
loop_replace(const struct calls *c, void *table, struct batch *b) {
  char key[KEY_SIZE], old[KEY_SIZE], value[VALUE_SIZE] = {0};
  make_key(key, b->next);
  make_key(old, b->next - b->entries);
  memcpy(value, &b->next, sizeof b->next);
  c->replace(table, key, value, old);
  b->next += b->step;
}

#define ENGINE_EACH(what)                 \
  for (size_t i = 0; i < b->count; i++) { \
    what;                                 \
    c->idle();                            \
  }                                       \
  break

/* Runs a batch. */
static inline __attribute__((always_inline)) void
engine_loops(const struct calls *c, void *table, struct batch *b) {
  switch (b->operation) {
  case GET_HIT:
    ENGINE_EACH(loop_get(c, table, b->ids[i], 1));
  case GET_MISS:
    ENGINE_EACH(loop_get(c, table, b->ids[i] + b->entries, 0));
  case GET_MANY:
    ENGINE_EACH(loop_get_many(c, table, b->ids + i); i += MANY - 1);
  case SET:
    ENGINE_EACH(loop_set(c, table, b->ids[i]));
  case MIX:
    ENGINE_EACH(if (i % MANY == 0) loop_set(c, table, b->ids[i]);
                else loop_get(c, table, b->ids[i], 1));
  case DELETE:
    ENGINE_EACH(loop_remove(c, table, b->ids[i]));
  case SET_NEW:
    ENGINE_EACH(loop_replace(c, table, b));
  case OPERATIONS:
    break;
  }
}

#endif
