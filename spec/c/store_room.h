/* A store to test, short words for what is done with it, and a check of all
 * that its structures promise each other.
 */
#ifndef MOONSTASH_SPEC_STORE_ROOM_H
#define MOONSTASH_SPEC_STORE_ROOM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "memory/internal.h"

enum {
  ROOMY = 64 << 20, /* a bound that nothing here reaches */
  TIGHT = 64 << 10,
  NOW = 1000
};

struct room {
  struct store *store;
  struct backend *memory;
};

#define IN_ROOM(test) \
  cmocka_unit_test_setup_teardown(test, open_room, close_room)

/* A room with a ROOMY store and a view of it; with any other bound. */
int open_room(void **state);
int close_room(void **state);
struct room open_room_of(size_t max_bytes);
void leave_room(struct room *room);
struct backend *memory_of(void **state);
/* A second view of the same store; the test closes it. */
struct backend *second_view(void **state);

/* Short forms for keys that are C strings without a namespace. */
#define KEY(key) "", 0, key, strlen(key)

int set_for(struct backend *m, uint64_t now, const char *key, const char *value,
            uint64_t ttl_ms);
int set(struct backend *m, const char *key, const char *value);
/* The value at a moment, in a static buffer, or NULL. */
const char *get_at(struct backend *m, uint64_t now, const char *key);
const char *get(struct backend *m, const char *key);
int exists(struct backend *m, uint64_t now, const char *key);
struct backend_item info(struct backend *m, const char *key);
int add(struct backend *m, uint64_t now, const char *key, const char *value);
int remove_key(struct backend *m, const char *key);
int clear(struct backend *m, const char *prefix);
int increment(struct backend *m, const char *key, int64_t delta, int64_t *sum);
struct backend_stats stats(struct backend *m);
/* Sweeps until there is no more to do. */
void sweep_all(struct store *store, uint64_t now);
uint64_t random_next(uint64_t *seed); /* xorshift64* */

#define assert_value(m, key, value)  \
  do {                               \
    const char *got = get(m, key);   \
    assert_non_null(got);            \
    assert_string_equal(got, value); \
  } while (0)

/* Walks every structure and recounts; any broken invariant fails. */
void check_store(struct store *store);

#endif
