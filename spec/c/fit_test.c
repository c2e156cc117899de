/* What finds room: keys of every length, entries of great weight, and what
 * stays when the bound changes.
 */
#include "store_room.h"

enum { MIB = 1 << 20, KEY_MOST = BACKEND_KEY_MAX };

static const size_t lengths[] = {1,     2,     100,   900,     1000, 1023,
                                 1024,  4000,  8191,  8192,    8193, 9000,
                                 16000, 30000, 65535, KEY_MOST};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

/* A key of that length; keys of different letters differ. */
static const char *long_key(char letter, size_t length) {
  static char text[KEY_MOST];
  memset(text, letter, length);
  return text;
}

#define LONG(letter, length) NOW, "", 0, long_key(letter, length), length

static int put_long(struct backend *m, char letter, size_t length,
                    uint64_t ttl_ms) {
  return m->ops->set(m, LONG(letter, length), &length, sizeof length, 0, ttl_ms,
                     NULL);
}

static int has_long(struct backend *m, char letter, size_t length) {
  struct backend_item item;
  size_t value = 0;
  int rc =
      m->ops->get(m, LONG(letter, length), &value, sizeof value, &item, NULL);
  if (rc == BACKEND_HIT)
    assert_int_equal(value, length);
  return rc;
}

static void put_all(struct backend *m, uint64_t ttl_ms) {
  for (int i = 0; i < LENGTHS; i++)
    assert_int_equal(put_long(m, 'k', lengths[i], ttl_ms), 1);
}

static int count_all(struct backend *m) {
  int count = 0;
  for (int i = 0; i < LENGTHS; i++)
    count += has_long(m, 'k', lengths[i]);
  return count;
}

static int on_key(void *ud, const char *key, size_t key_len,
                  const struct backend_item *item) {
  assert_int_equal(item->length, sizeof(size_t));
  assert_memory_equal(key, long_key('k', key_len), key_len);
  ++*(int *)ud;
  return 0;
}

static void flood(struct room *room, int count) {
  char key[32];
  for (int i = 0; i < count; i++) {
    snprintf(key, sizeof key, "n%d", i);
    assert_int_equal(set(room->memory, key, key), 1);
    assert_true(room->store->used <= room->store->max_bytes);
  }
}

static void keys_of_any_length(size_t bound) {
  struct room room = open_room_of(bound);
  struct backend *m = room.memory;
  uint64_t cursor = 0;
  int seen = 0;
  put_all(m, 0);
  put_all(m, 0); /* each in its own place */
  assert_int_equal(count_all(m), LENGTHS);
  check_store(room.store);
  do
    m->ops->scan(m, NOW, "k", 1, &cursor, 4, on_key, &seen, NULL);
  while (cursor != 0);
  assert_int_equal(seen, LENGTHS);
  for (int i = 0; i < LENGTHS; i++)
    assert_int_equal(m->ops->expire(m, LONG('k', lengths[i]), 500, NULL), 1);
  check_store(room.store);
  assert_int_equal(count_all(m), LENGTHS);
  sweep_all(room.store, NOW + 500);
  assert_int_equal(stats(m).entries, 0);
  check_store(room.store);
  put_all(m, 0);
  assert_int_equal(clear(m, "kk"), 1);
  assert_int_equal(count_all(m), 1);
  sweep_all(room.store, NOW);
  check_store(room.store);
  put_all(m, 0);
  for (int i = 0; i < LENGTHS; i++)
    assert_int_equal(m->ops->remove(m, LONG('k', lengths[i]), NULL), 1);
  assert_int_equal(stats(m).entries, 0);
  check_store(room.store);
  leave_room(&room);
}

static void keys_of_any_length_are_keys(void **state) {
  (void)state;
  keys_of_any_length(MIB);
  keys_of_any_length(64 * MIB);
}

/* The evictions that a flood means move them, or take them. */
static void long_keys_that_are_pinned_stay(void **state) {
  (void)state;
  struct room room = open_room_of(MIB);
  struct backend *m = room.memory;
  struct store_options pin = {.pin = 1};
  for (int i = 0; i < LENGTHS; i++)
    assert_int_equal(store_set_with(m, LONG('k', lengths[i]), &lengths[i],
                                    sizeof lengths[i], &pin),
                     1);
  for (int i = 0; i < 8; i++)
    assert_int_equal(put_long(m, (char)('a' + i), KEY_MOST, 0), 1);
  flood(&room, 30000);
  check_store(room.store);
  assert_int_equal(count_all(m), LENGTHS);
  for (int i = 0; i < 8; i++)
    assert_int_equal(has_long(m, (char)('a' + i), KEY_MOST), 0);
  leave_room(&room);
}

/* Small entries lie everywhere, so that there is no row of free segments. */
static void a_long_key_finds_room_in_a_full_store(void **state) {
  (void)state;
  struct room room = open_room_of(MIB);
  uint64_t seed = 1;
  flood(&room, 30000);
  for (int i = 0; i < 2000; i++) {
    size_t length = 1 + random_next(&seed) % KEY_MOST;
    assert_int_equal(put_long(room.memory, (char)('a' + i % 26), length, i % 3),
                     1);
    assert_int_equal(has_long(room.memory, (char)('a' + i % 26), length), 1);
    assert_true(room.store->used <= MIB);
    if (i % 100 == 0)
      check_store(room.store);
  }
  leave_room(&room);
}

static void heavy_entries_do_not_all_go_at_once(void **state) {
  (void)state;
  struct room room = open_room_of(MIB);
  struct backend *m = room.memory;
  struct store_options options = {.weight = 10000};
  char key[32];
  for (int i = 0; i < 1000; i++) {
    snprintf(key, sizeof key, "k%d", i);
    assert_int_equal(store_set_with(m, NOW, KEY(key), "v", 1, &options), 1);
    if (i > 200)
      assert_in_range(stats(m).entries, 75, 104);
  }
  check_store(room.store);
  leave_room(&room);
}

/* In the new bound there is room for a part, to which pinned ones belong. */
static void a_smaller_bound_keeps_what_has_room(void **state) {
  (void)state;
  struct room room = open_room_of(64 * MIB);
  struct backend *m = room.memory;
  struct store_options pin = {.pin = 1};
  char key[32];
  for (int i = 0; i < 100; i++) {
    snprintf(key, sizeof key, "pin%d", i);
    assert_int_equal(store_set_with(m, NOW, KEY(key), key, strlen(key), &pin),
                     1);
  }
  flood(&room, 100000);
  store_resize(room.store, MIB);
  check_store(room.store);
  assert_true(room.store->used <= MIB);
  assert_in_range(stats(m).entries, 5000, 30000);
  for (int i = 0; i < 100; i++) {
    snprintf(key, sizeof key, "pin%d", i);
    assert_value(m, key, key);
  }
  assert_int_equal(stats(m).evictions, 100100 - stats(m).entries);
  leave_room(&room);
}

static void a_larger_bound_keeps_all(void **state) {
  (void)state;
  struct room room = open_room_of(MIB);
  struct backend *m = room.memory;
  put_all(m, 0);
  flood(&room, 3000);
  assert_int_equal(stats(m).evictions, 0);
  store_resize(room.store, 64 * MIB);
  check_store(room.store);
  assert_int_equal(stats(m).entries, 3000 + LENGTHS);
  assert_int_equal(count_all(m), LENGTHS);
  leave_room(&room);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(keys_of_any_length_are_keys),
      cmocka_unit_test(long_keys_that_are_pinned_stay),
      cmocka_unit_test(a_long_key_finds_room_in_a_full_store),
      cmocka_unit_test(heavy_entries_do_not_all_go_at_once),
      cmocka_unit_test(a_smaller_bound_keeps_what_has_room),
      cmocka_unit_test(a_larger_bound_keeps_all),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
