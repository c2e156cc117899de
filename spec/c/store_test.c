/* The memory backend, sentence by sentence: each test's name is what a user of
 * backend.h may rely on. Time is an argument, so nothing here sleeps.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "store_room.h"

/* Single keys */

static void gives_back_what_was_set(void **state) {
  struct backend *m = memory_of(state);
  struct backend_item item;
  char buf[8];
  assert_null(get(m, "k"));
  assert_int_equal(m->ops->set(m, NOW, KEY("k"), "value", 5, 7, 50, NULL), 1);
  assert_int_equal(m->ops->get(m, NOW, KEY("k"), buf, sizeof buf, &item, NULL),
                   BACKEND_HIT);
  assert_memory_equal(buf, "value", 5);
  assert_int_equal(item.length, 5);
  assert_int_equal(item.format, 7);
  assert_int_equal(item.created_ms, NOW);
  assert_int_equal(item.expires_ms, NOW + 50);
  assert_int_equal(item.token, 0);
  assert_null(item.owner);
}

static void set_replaces_value_format_and_ttl(void **state) {
  struct backend *m = memory_of(state);
  m->ops->set(m, NOW, KEY("k"), "one", 3, 7, 50, NULL);
  assert_int_equal(m->ops->set(m, NOW + 1, KEY("k"), "two", 3, 8, 0, NULL), 1);
  assert_value(m, "k", "two");
  assert_int_equal(info(m, "k").format, 8);
  assert_int_equal(info(m, "k").expires_ms, 0);
  assert_int_equal(info(m, "k").created_ms, NOW + 1);
  set(m, "k", "a longer value that needs a larger block than before");
  assert_value(m, "k", "a longer value that needs a larger block than before");
  assert_int_equal(stats(m).entries, 1);
}

static void an_empty_value_is_a_hit(void **state) {
  struct backend *m = memory_of(state);
  assert_int_equal(m->ops->set(m, NOW, KEY("k"), NULL, 0, 0, 0, NULL), 1);
  assert_value(m, "k", "");
}

static void add_stores_only_when_the_key_is_missing(void **state) {
  struct backend *m = memory_of(state);
  assert_int_equal(add(m, NOW, "k", "one"), 1);
  assert_int_equal(add(m, NOW, "k", "two"), 0);
  assert_value(m, "k", "one");
  set_for(m, NOW, "k", "old", 10);
  assert_int_equal(add(m, NOW + 10, "k", "new"), 1);
  assert_value(m, "k", "new");
}

static void remove_tells_whether_there_was_an_entry(void **state) {
  struct backend *m = memory_of(state);
  set(m, "k", "v");
  assert_int_equal(remove_key(m, "k"), 1);
  assert_int_equal(remove_key(m, "k"), 0);
  assert_null(get(m, "k"));
}

static void exists_counts_neither_hit_nor_miss(void **state) {
  struct backend *m = memory_of(state);
  assert_int_equal(exists(m, NOW, "k"), 0);
  set(m, "k", "v");
  assert_int_equal(exists(m, NOW, "k"), 1);
  assert_int_equal(stats(m).hits + stats(m).misses, 0);
}

static void namespace_and_key_count_as_if_joined(void **state) {
  struct backend *m = memory_of(state);
  struct backend_item item;
  char buf[4];
  m->ops->set(m, NOW, "a:", 2, "b", 1, "v", 1, 0, 0, NULL);
  assert_value(m, "a:b", "v");
  assert_int_equal(
      m->ops->get(m, NOW, "a", 1, ":b", 2, buf, sizeof buf, &item, NULL), 1);
  assert_int_equal(m->ops->exists(m, NOW, "a:b", 3, NULL, 0, NULL), 1);
  assert_int_equal(m->ops->exists(m, NOW, NULL, 0, "a:b", 3, NULL), 1);
  assert_int_equal(m->ops->exists(m, NOW, "a:", 2, "c", 1, NULL), 0);
}

static void long_keys_join_in_the_same_way(void **state) {
  struct backend *m = memory_of(state);
  static char key[BACKEND_KEY_MAX];
  memset(key, 'x', sizeof key);
  for (size_t n = 200; n <= BACKEND_KEY_MAX; n = n < 300 ? n + 1 : n * 2) {
    m->ops->set(m, NOW, key, n / 3, key, n - n / 3, "v", 1, 0, 0, NULL);
    assert_int_equal(m->ops->exists(m, NOW, "", 0, key, n, NULL), 1);
    assert_int_equal(m->ops->remove(m, NOW, key, n - 1, key, 1, NULL), 1);
  }
}

static void keys_and_values_are_any_bytes(void **state) {
  struct backend *m = memory_of(state);
  struct backend_item item;
  char key[256], buf[256];
  for (int i = 0; i < 256; i++)
    key[i] = (char)i;
  m->ops->set(m, NOW, key, 128, key + 128, 128, key, 256, 0, 0, NULL);
  m->ops->set(m, NOW, "", 0, "\0", 1, "one", 3, 0, 0, NULL);
  m->ops->set(m, NOW, "", 0, "\0\0", 2, "two", 3, 0, 0, NULL);
  assert_int_equal(
      m->ops->get(m, NOW, "", 0, key, 256, buf, sizeof buf, &item, NULL), 1);
  assert_memory_equal(buf, key, 256);
  m->ops->get(m, NOW, "", 0, "\0", 1, buf, sizeof buf, &item, NULL);
  assert_memory_equal(buf, "one", 3);
}

static void a_key_has_1_to_65536_bytes(void **state) {
  struct backend *m = memory_of(state);
  static char key[BACKEND_KEY_MAX + 1];
  struct backend_item item;
  struct backend_slice bad[2] = {{"ok", 2}, {key, sizeof key}};
  int64_t sum;
  size_t used;
  assert_int_equal(m->ops->set(m, NOW, "", 0, "", 0, "v", 1, 0, 0, NULL),
                   BACKEND_EINVAL);
  assert_int_equal(
      m->ops->set(m, NOW, "", 0, key, BACKEND_KEY_MAX, "v", 1, 0, 0, NULL), 1);
#define LONG "n", 1, key, BACKEND_KEY_MAX
  assert_int_equal(m->ops->get(m, NOW, LONG, NULL, 0, &item, NULL), -6);
  assert_int_equal(m->ops->set(m, NOW, LONG, "v", 1, 0, 0, NULL), -6);
  assert_int_equal(m->ops->add(m, NOW, LONG, "v", 1, 0, 0, NULL), -6);
  assert_int_equal(m->ops->remove(m, NOW, LONG, NULL), -6);
  assert_int_equal(m->ops->exists(m, NOW, LONG, NULL), -6);
  assert_int_equal(m->ops->increment(m, NOW, LONG, 1, 0, &sum, NULL), -6);
  assert_int_equal(m->ops->expire(m, NOW, LONG, 1, NULL), -6);
  assert_int_equal(m->ops->info(m, NOW, LONG, &item, NULL), -6);
  assert_int_equal(m->ops->touch(m, NOW, LONG, 1, NULL), -6);
  assert_int_equal(m->ops->lease(m, NOW, LONG, NULL, 0, &item, NULL), -6);
  assert_int_equal(m->ops->fill(m, NOW, LONG, 1, "v", 1, 0, 0), -6);
  assert_int_equal(m->ops->abandon(m, NOW, LONG, 1, NULL, 0), -6);
  assert_int_equal(m->ops->exists(m, NOW, key, SIZE_MAX, key, 2, NULL), -6);
  assert_int_equal(m->ops->exists(m, NOW, key, 2, key, SIZE_MAX, NULL), -6);
  set(m, "ok", "v");
  assert_int_equal(m->ops->remove_many(m, NOW, "", 0, bad, 2, NULL), -6);
  assert_int_equal(m->ops->get_many(m, NOW, "", 0, bad, 2, NULL, 0, &used,
                                    (struct backend_item[2]){{0}}, NULL),
                   -6);
  assert_value(m, "ok", "v");
}

static void a_small_buffer_is_left_alone_and_told_the_length(void **state) {
  struct backend *m = memory_of(state);
  struct backend_item item;
  char buf[8] = "untouch";
  set(m, "k", "12345678");
  assert_int_equal(m->ops->get(m, NOW, KEY("k"), buf, 7, &item, NULL), 1);
  assert_int_equal(item.length, 8);
  assert_string_equal(buf, "untouch");
  assert_int_equal(m->ops->get(m, NOW, KEY("k"), buf, 8, &item, NULL), 1);
  assert_memory_equal(buf, "12345678", 8);
  assert_int_equal(stats(m).hits, 1); /* one answer, one hit */
}

static void every_change_gets_a_larger_version(void **state) {
  struct backend *m = memory_of(state);
  uint64_t last = 0;
  int64_t sum;
  increment(m, "k", 1, &sum);
  for (int step = 0; step < 7; step++) {
    uint64_t version = info(m, "k").version;
    assert_true(version > last);
    assert_int_equal(info(m, "k").version, version);
    last = version;
    if (step == 0)
      increment(m, "k", 1, &sum);
    else if (step == 1)
      set(m, "k", "v");
    else if (step == 2)
      set(m, "k", "a value of quite another size than the one before it");
    else if (step == 3)
      m->ops->expire(m, NOW, KEY("k"), 50, NULL);
    else if (step == 4)
      m->ops->touch(m, NOW, KEY("k"), 60, NULL);
    else if (step == 5)
      remove_key(m, "k"), add(m, NOW, "k", "again");
  }
}

static void reading_and_touching_change_no_version(void **state) {
  struct backend *m = memory_of(state);
  set(m, "k", "v");
  uint64_t version = info(m, "k").version;
  get(m, "k");
  add(m, NOW, "k", "other");
  m->ops->touch(m, NOW, KEY("k"), UINT64_MAX, NULL);
  assert_int_equal(info(m, "k").version, version);
}

static void raw_is_unsupported(void **state) {
  struct backend *m = memory_of(state);
  struct backend_slice args[1] = {{"PING", 4}};
  assert_int_equal(m->ops->raw(m, args, 1, NULL), BACKEND_EUNSUPPORTED);
  assert_string_equal(m->ops->name, "memory");
}

/* Time */

static void an_entry_lives_to_the_millisecond(void **state) {
  struct backend *m = memory_of(state);
  struct backend_item item;
  set_for(m, NOW, "k", "v", 1);
  assert_string_equal(get_at(m, NOW, "k"), "v");
  assert_null(get_at(m, NOW + 1, "k"));
  set_for(m, NOW, "k", "v", 500);
  assert_int_equal(exists(m, NOW + 499, "k"), 1);
  assert_int_equal(m->ops->info(m, NOW + 500, KEY("k"), &item, NULL), 0);
  assert_int_equal(exists(m, NOW, "k"), 0); /* it was dropped for good */
}

static void every_call_drops_what_is_past_its_time(void **state) {
  struct backend *m = memory_of(state);
  struct backend_item item;
  struct backend_slice k = {"k", 1};
  const uint64_t late = NOW + 5;
  size_t used;
  int64_t sum;
  for (int step = 0; step < 10; step++) {
    set_for(m, NOW, "k", "v", 5);
    uint64_t before = stats(m).expired;
    if (step == 0)
      assert_null(get_at(m, late, "k"));
    else if (step == 1)
      assert_int_equal(exists(m, late, "k"), 0);
    else if (step == 2)
      assert_int_equal(m->ops->remove(m, late, KEY("k"), NULL), 0);
    else if (step == 3)
      assert_int_equal(m->ops->expire(m, late, KEY("k"), 9, NULL), 0);
    else if (step == 4)
      assert_int_equal(m->ops->touch(m, late, KEY("k"), 9, NULL), 0);
    else if (step == 5)
      assert_int_equal(m->ops->info(m, late, KEY("k"), &item, NULL), 0);
    else if (step == 6)
      assert_int_equal(m->ops->increment(m, late, KEY("k"), 3, 0, &sum, NULL),
                       1); /* the old one was no integer */
    else if (step == 7)
      assert_int_equal(m->ops->remove_many(m, late, "", 0, &k, 1, NULL), 0);
    else if (step == 8)
      assert_int_equal(
          m->ops->get_many(m, late, "", 0, &k, 1, NULL, 0, &used, &item, NULL),
          0);
    else
      assert_int_equal(add(m, late, "k", "new"), 1);
    assert_int_equal(stats(m).expired, before + 1);
    assert_int_equal(stats(m).deletes, 0);
  }
}

static void a_ttl_of_0_never_expires(void **state) {
  struct backend *m = memory_of(state);
  set(m, "k", "v");
  assert_int_equal(info(m, "k").expires_ms, 0);
  assert_int_equal(exists(m, UINT64_MAX, "k"), 1);
}

static void a_ttl_of_more_than_a_century_never_expires(void **state) {
  struct backend *m = memory_of(state);
  const uint64_t most = (UINT64_C(1) << 42) - 1;
  set_for(m, NOW, "k", "v", UINT64_MAX - 10);
  assert_int_equal(info(m, "k").expires_ms, 0);
  assert_int_equal(exists(m, UINT64_MAX - 1, "k"), 1);
  set_for(m, NOW, "k", "v", most - NOW + 1);
  assert_int_equal(info(m, "k").expires_ms, 0);
  set_for(m, NOW, "k", "v", most - NOW);
  assert_true(info(m, "k").expires_ms == most);
  assert_int_equal(exists(m, most - 1, "k"), 1);
  assert_int_equal(exists(m, most, "k"), 0);
}

static void expire_sets_and_takes_away_the_time_left(void **state) {
  struct backend *m = memory_of(state);
  assert_int_equal(m->ops->expire(m, NOW, KEY("k"), 9, NULL), 0);
  set(m, "k", "v");
  assert_int_equal(m->ops->expire(m, NOW, KEY("k"), 9, NULL), 1);
  assert_int_equal(info(m, "k").expires_ms, NOW + 9);
  m->ops->expire(m, NOW, KEY("k"), BACKEND_TTL_NEVER, NULL);
  assert_int_equal(info(m, "k").expires_ms, 0);
}

static void touch_keeps_the_ttl_unless_given_one(void **state) {
  struct backend *m = memory_of(state);
  assert_int_equal(m->ops->touch(m, NOW, KEY("k"), 9, NULL), 0);
  set_for(m, NOW, "k", "v", 50);
  assert_int_equal(m->ops->touch(m, NOW, KEY("k"), UINT64_MAX, NULL), 1);
  assert_int_equal(info(m, "k").expires_ms, NOW + 50);
  assert_int_equal(m->ops->touch(m, NOW + 10, KEY("k"), 50, NULL), 1);
  assert_int_equal(info(m, "k").expires_ms, NOW + 60);
}

/* Increment */

static void increment_counts_from_0_and_gives_the_sum(void **state) {
  struct backend *m = memory_of(state);
  int64_t sum, stored;
  struct backend_item item;
  assert_int_equal(increment(m, "k", 5, &sum), 1);
  assert_int_equal(sum, 5);
  assert_int_equal(increment(m, "k", -7, &sum), 1);
  assert_int_equal(sum, -2);
  m->ops->get(m, NOW, KEY("k"), &stored, sizeof stored, &item, NULL);
  assert_int_equal(stored, -2);
  assert_int_equal(item.format, BACKEND_INTEGER);
}

static void increment_gives_a_new_key_its_ttl_and_keeps_an_old_one(void **s) {
  struct backend *m = memory_of(s);
  int64_t sum;
  m->ops->increment(m, NOW, KEY("k"), 1, 50, &sum, NULL);
  assert_int_equal(info(m, "k").expires_ms, NOW + 50);
  m->ops->increment(m, NOW + 10, KEY("k"), 1, 50, &sum, NULL);
  assert_int_equal(info(m, "k").expires_ms, NOW + 50);
  m->ops->increment(m, NOW + 50, KEY("k"), 1, 0, &sum, NULL);
  assert_int_equal(sum, 1);
  assert_int_equal(info(m, "k").expires_ms, 0);
}

static void increment_of_anything_else_is_a_type_error(void **state) {
  struct backend *m = memory_of(state);
  int64_t sum = 42;
  set(m, "k", "12345678");
  assert_int_equal(increment(m, "k", 1, &sum), BACKEND_ETYPE);
  m->ops->set(m, NOW, KEY("k"), "odd", 3, BACKEND_INTEGER, 0, NULL);
  assert_int_equal(increment(m, "k", 1, &sum), BACKEND_ETYPE);
  assert_int_equal(sum, 42);
  assert_value(m, "k", "odd");
}

static void increment_stops_at_2_to_the_53(void **state) {
  struct backend *m = memory_of(state);
  const int64_t top = INT64_C(1) << 53;
  int64_t sum = 42;
  assert_int_equal(increment(m, "new", top + 1, &sum), BACKEND_ERANGE);
  assert_int_equal(exists(m, NOW, "new"), 0);
  assert_int_equal(increment(m, "k", top, &sum), 1);
  assert_true(sum == top);
  assert_int_equal(increment(m, "k", 1, &sum), BACKEND_ERANGE);
  assert_int_equal(increment(m, "k", INT64_MAX, &sum), BACKEND_ERANGE);
  assert_true(sum == top);
  assert_int_equal(increment(m, "k", -top, &sum), 1);
  assert_int_equal(increment(m, "k", -top, &sum), 1);
  assert_int_equal(increment(m, "k", -1, &sum), BACKEND_ERANGE);
  assert_int_equal(increment(m, "k", INT64_MIN, &sum), BACKEND_ERANGE);
  assert_true(sum == -top);
}

/* The bound */

static void recently_used_entries_stay_under_pressure(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  char key[32];
  store_resize(room->store, TIGHT);
  set(m, "hot", "v"), set(m, "touched", "v"), set(m, "cold", "v");
  for (int i = 0; i < 20000; i++) {
    snprintf(key, sizeof key, "filler:%d", i);
    assert_int_equal(set(m, key, "some value or other"), 1);
    if (i % 100 == 0) {
      assert_value(m, "hot", "v");
      assert_int_equal(m->ops->touch(m, NOW, KEY("touched"), UINT64_MAX, NULL),
                       1);
    }
  }
  assert_null(get(m, "cold"));
  assert_null(get(m, "filler:0"));
  assert_non_null(get(m, "filler:19999"));
  assert_true(stats(m).evictions > 15000);
  check_store(room->store);
}

static void a_busy_counter_stays_under_pressure(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  char key[32];
  int64_t sum;
  store_resize(room->store, TIGHT);
  for (int i = 0; i < 10000; i++) {
    snprintf(key, sizeof key, "filler:%d", i);
    set(m, key, "v");
    if (i % 100 == 0)
      increment(m, "counter", 1, &sum);
  }
  assert_int_equal(sum, 100);
}

static void exists_and_info_are_no_use(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  char key[32];
  store_resize(room->store, TIGHT);
  set(m, "k", "v");
  for (int i = 0; i < 5000; i++) {
    snprintf(key, sizeof key, "filler:%d", i);
    set(m, key, "v");
    exists(m, NOW, "k"), info(m, "k");
  }
  assert_int_equal(exists(m, NOW, "k"), 0);
}

static void expired_entries_make_room_before_live_ones(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  char key[32];
  store_resize(room->store, TIGHT);
  for (int i = 0; i < 200; i++) {
    snprintf(key, sizeof key, "short:%d", i);
    set_for(m, NOW, key, "v", 10);
    get(m, key); /* a set reference bit does not save it */
  }
  for (int i = 0; stats(m).evictions == 0; i++) {
    snprintf(key, sizeof key, "live:%d", i);
    set_for(m, NOW + 10, key, "v", 0);
  } /* but for those that share their segment with live ones */
  assert_true(stats(m).expired >= 150);
}

static void the_bound_holds_with_all_metadata(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory, *other = second_view(state);
  static char value[TIGHT];
  uint64_t seed = 11;
  char key[64];
  int64_t sum;
  store_resize(room->store, TIGHT);
  for (int i = 0; i < 100000; i++) {
    struct backend *v = random_next(&seed) % 3 ? m : other;
    int n = snprintf(key, sizeof key, "%.*s%d", (int)(random_next(&seed) % 40),
                     "0123456789012345678901234567890123456789",
                     (int)(random_next(&seed) % 2000));
    size_t size = random_next(&seed) % (random_next(&seed) % 16 ? 200 : 9000);
    uint64_t op = random_next(&seed) % 16, now = NOW + i / 100;
    if (op < 9)
      v->ops->set(v, now, "", 0, key, n, value, size, 0, size, NULL);
    else if (op == 9)
      v->ops->increment(v, now, "", 0, key, n, 1, 0, &sum, NULL);
    else if (op == 10)
      v->ops->remove(v, now, "", 0, key, n, NULL);
    else if (op == 11 && i % 500 == 0)
      v->ops->clear(v, now, key, 2, NULL, NULL);
    else if (op == 12 && i % 50 == 0)
      store_resize(room->store, TIGHT / 2 + random_next(&seed) % TIGHT);
    else
      exists(v, now, key);
    assert_true(room->store->used <= room->store->max_bytes);
    if (i % 500 == 0)
      check_store(room->store);
  }
  sweep_all(room->store, NOW + 1000);
  struct store_info info;
  store_info(room->store, &info);
  assert_int_equal(stats(m).bytes + stats(other).bytes, info.live_bytes);
  assert_int_equal(stats(m).entries + stats(other).entries, info.entries);
  other->ops->close(other);
}

static void a_value_above_its_share_is_refused_and_changes_nothing(void **s) {
  struct room *room = *s;
  struct backend *m = room->memory;
  static char value[ROOMY];
  struct backend_item item;
  store_resize(room->store, TIGHT);
  assert_int_equal(m->ops->set(m, NOW, KEY("k"), value,
                               TIGHT / VALUE_SHARE - 128, 0, 0, NULL),
                   1);
  set(m, "k", "old");
  uint64_t version = info(m, "k").version;
  struct backend_stats before = stats(m);
  for (size_t size = TIGHT / VALUE_SHARE; size <= ROOMY; size *= 2) {
    assert_int_equal(m->ops->set(m, NOW, KEY("k"), value, size, 0, 5, NULL),
                     BACKEND_ETOOLARGE);
    assert_int_equal(m->ops->add(m, NOW, KEY("new"), value, size, 0, 5, NULL),
                     BACKEND_ETOOLARGE);
  }
  assert_int_equal(m->ops->set(m, NOW, KEY("k"), value, SIZE_MAX, 0, 5, NULL),
                   BACKEND_ETOOLARGE);
  struct backend_stats after = stats(m);
  assert_memory_equal(&before, &after, sizeof before);
  assert_int_equal(info(m, "k").version, version);
  assert_value(m, "k", "old");
  assert_int_equal(m->ops->lease(m, NOW, KEY("new"), NULL, 0, &item, NULL),
                   BACKEND_TOKEN);
}

static void resize_evicts_until_the_bound_holds(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  char key[32];
  for (int i = 0; i < 50000; i++) {
    snprintf(key, sizeof key, "%d", i);
    set(m, key, "v");
  }
  assert_int_equal(stats(m).entries, 50000);
  for (size_t bound = 4 << 20; bound > 0; bound /= 2) {
    store_resize(room->store, bound);
    assert_int_equal(stats(m).max_bytes, bound);
    if (bound >= 1024)
      check_store(room->store);
  }
  assert_int_equal(stats(m).entries, 0);
  assert_int_equal(set(m, "k", "v"), BACKEND_ETOOLARGE);
  store_resize(room->store, ROOMY);
  assert_int_equal(set(m, "k", "v"), 1);
}

/* Many keys */

static void clear_with_a_prefix_touches_no_neighbour(void **state) {
  struct backend *m = memory_of(state), *other = second_view(state);
  const char *stay[] = {"a", "b:1", "a;1", "A:1"};
  set(m, "a:", "v"), set(m, "a:1", "v"), set(m, "a:b:2", "v");
  m->ops->set(m, NOW, "a", 1, ":9", 2, "v", 1, 0, 0, NULL);
  for (int i = 0; i < 4; i++)
    set(m, stay[i], "v");
  set(other, "a:1", "theirs");
  assert_int_equal(clear(m, "a:"), 1);
  for (int i = 0; i < 4; i++)
    assert_value(m, stay[i], "v");
  assert_value(other, "a:1", "theirs");
  assert_int_equal(stats(m).entries, 4);
  assert_int_equal(stats(m).deletes, 4);
  clear(m, "");
  assert_int_equal(stats(m).entries, 0);
  assert_int_equal(stats(other).entries, 1);
  other->ops->close(other);
}

/* What scan has shown: how often each of the keys "k0".."k999". */
struct seen {
  int times[1000], calls, stop_at;
  size_t bytes;
};

static int note_seen(void *ud, const char *key, size_t key_len,
                     const struct backend_item *item) {
  struct seen *seen = ud;
  char copy[16] = {0};
  assert_true(key_len < sizeof copy && key[0] == 'k' && item->version > 0);
  memcpy(copy, key + 1, key_len - 1);
  seen->times[atoi(copy)]++;
  seen->bytes += item->length;
  return ++seen->calls == seen->stop_at ? 77 : 0;
}

static void set_thousand(struct backend *m) {
  char key[16];
  for (int i = 0; i < 1000; i++) {
    snprintf(key, sizeof key, "k%d", i);
    set(m, key, "four");
  }
}

static void
scan_visits_each_entry_once_and_hardly_more_than_the_limit(void **state) {
  struct backend *m = memory_of(state), *other = second_view(state);
  set_thousand(m);
  set(m, "x", "v"), set(other, "k1", "v");
  set_for(m, NOW - 5, "kold", "v", 5); /* past its time: not shown */
  for (size_t limit = 1; limit < 2000; limit = limit * 3 + 1) {
    struct seen seen = {0};
    uint64_t cursor = 0;
    do {
      int before = seen.calls;
      int n =
          m->ops->scan(m, NOW, "k", 1, &cursor, limit, note_seen, &seen, NULL);
      assert_true(n >= 0 && (size_t)n < limit + PROBES * BUCKET_SLOTS);
      assert_int_equal(seen.calls - before, n);
    } while (cursor != 0);
    assert_int_equal(seen.calls, 1000);
    assert_int_equal(seen.bytes, 4000);
    for (int i = 0; i < 1000; i++)
      assert_int_equal(seen.times[i], 1);
  }
  assert_int_equal(stats(m).hits + stats(m).misses, 0);
  assert_int_equal(stats(m).expired, 1);
  other->ops->close(other);
}

static void scan_misses_nothing_while_the_table_grows(void **state) {
  struct backend *m = memory_of(state);
  struct seen seen = {0};
  uint64_t cursor = 0;
  char key[16];
  int extra = 0;
  set_thousand(m);
  do {
    m->ops->scan(m, NOW, "k", 1, &cursor, 10, note_seen, &seen, NULL);
    for (int i = 0; i < 100; i++) {
      snprintf(key, sizeof key, "x%d", extra++);
      set(m, key, "v");
    }
    if (extra == 5000)
      clear(m, "x"), store_resize(((struct room *)*state)->store, 8 << 20);
  } while (cursor != 0);
  for (int i = 0; i < 1000; i++)
    assert_int_equal(seen.times[i], 1);
}

/* It may show a few again. */
static void scan_stops_when_told_and_goes_on_without_a_gap(void **state) {
  struct backend *m = memory_of(state);
  struct seen seen = {.stop_at = 300};
  uint64_t cursor = 0;
  set_thousand(m);
  assert_int_equal(
      m->ops->scan(m, NOW, "", 0, &cursor, 500, note_seen, &seen, NULL), 77);
  assert_int_equal(seen.calls, 300);
  do
    m->ops->scan(m, NOW, "", 0, &cursor, 999, note_seen, &seen, NULL);
  while (cursor != 0);
  for (int i = 0; i < 1000; i++)
    assert_true(seen.times[i] >= 1);
  assert_true(seen.calls < 1000 + PROBES * BUCKET_SLOTS);
}

static void get_many_packs_the_hits_one_after_the_other(void **state) {
  struct backend *m = memory_of(state);
  struct backend_slice keys[4] = {{"a", 1}, {"none", 4}, {"b", 1}, {"a", 1}};
  struct backend_item items[4];
  char buf[16];
  size_t used;
  set(m, "n:a", "first"), set(m, "n:b", "2nd");
  assert_int_equal(m->ops->get_many(m, NOW, "n:", 2, keys, 4, buf, sizeof buf,
                                    &used, items, NULL),
                   3);
  assert_int_equal(used, 13);
  assert_memory_equal(buf, "first2ndfirst", 13);
  assert_int_equal(items[0].length, 5);
  assert_int_equal(items[1].version, 0);
  assert_int_equal(items[2].length, 3);
  assert_int_equal(stats(m).hits, 3);
  assert_int_equal(stats(m).misses, 1);
  for (int i = 0; i < 4; i++)
    assert_null(items[i].owner);
  assert_int_equal(
      m->ops->get_many(m, NOW, "", 0, NULL, 0, NULL, 0, &used, NULL, NULL), 0);
}

static void get_many_tells_how_large_the_buffer_must_be(void **state) {
  struct backend *m = memory_of(state);
  struct backend_slice keys[2] = {{"a", 1}, {"b", 1}};
  struct backend_item items[2];
  char buf[8] = {0};
  size_t used;
  set(m, "a", "1234"), set(m, "b", "1234");
  assert_int_equal(
      m->ops->get_many(m, NOW, "", 0, keys, 2, buf, 7, &used, items, NULL), 2);
  assert_int_equal(used, 8);
  assert_int_equal(buf[7], 0);
  assert_null(items[0].owner);
  assert_int_equal(stats(m).hits, 0);
}

static void set_many_stores_all_and_gives_the_first_error(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  static char large[TIGHT];
  struct backend_slice keys[4] = {{"a", 1}, {"b", 1}, {"", 0}, {"c", 1}};
  struct backend_slice values[4] = {
      {"1", 1}, {large, sizeof large}, {"3", 1}, {"4", 1}};
  uint32_t formats[4] = {5, 6, 7, 8};
  int statuses[4];
  store_resize(room->store, TIGHT);
  assert_int_equal(m->ops->set_many(m, NOW, "", 0, keys, values, formats, 4, 9,
                                    statuses, NULL),
                   BACKEND_ETOOLARGE);
  const int each[4] = {1, BACKEND_ETOOLARGE, BACKEND_EINVAL, 1};
  assert_memory_equal(statuses, each, sizeof each);
  assert_value(m, "a", "1");
  assert_value(m, "c", "4");
  assert_int_equal(info(m, "c").format, 8);
  assert_int_equal(info(m, "c").expires_ms, NOW + 9);
  assert_int_equal(m->ops->set_many(m, NOW, "n:", 2, keys, values, formats, 1,
                                    9, NULL, NULL),
                   1);
  assert_value(m, "n:a", "1");
}

static void remove_many_counts_what_was_there(void **state) {
  struct backend *m = memory_of(state);
  struct backend_slice keys[4] = {{"a", 1}, {"none", 4}, {"b", 1}, {"a", 1}};
  set(m, "a", "v"), set(m, "b", "v"), set(m, "c", "v");
  assert_int_equal(m->ops->remove_many(m, NOW, "", 0, keys, 4, NULL), 2);
  assert_int_equal(stats(m).entries, 1);
  assert_int_equal(stats(m).deletes, 2);
}

/* Views */

static void views_share_the_bound_but_not_the_keys(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory, *other = second_view(state);
  char key[32];
  set(m, "k", "mine"), set(other, "k", "theirs");
  assert_value(m, "k", "mine");
  assert_value(other, "k", "theirs");
  remove_key(m, "k");
  assert_value(other, "k", "theirs");
  remove_key(other, "k");
  store_resize(room->store, TIGHT);
  set(other, "unread", "theirs");
  for (int i = 0; i < 5000; i++) {
    snprintf(key, sizeof key, "%d", i);
    set(m, key, "v");
  }
  assert_null(get(other, "unread"));
  assert_int_equal(stats(other).evictions, 1);
  assert_int_equal(stats(other).entries, 0);
  assert_int_equal(stats(other).bytes, 0);
  other->ops->close(other);
}

static void what_a_closed_view_had_goes_with_the_sweep(void **state) {
  struct room *room = *state;
  struct backend *other = second_view(state);
  set_thousand(other);
  set(room->memory, "k", "v");
  other->ops->close(other);
  sweep_all(room->store, NOW);
  struct store_info info;
  store_info(room->store, &info);
  assert_int_equal(info.entries, 1);
  assert_value(room->memory, "k", "v");
  check_store(room->store);
}

static void a_view_outlives_store_close(void **state) {
  (void)state;
  struct store *store;
  struct backend *m;
  assert_int_equal(store_open(&store, ROOMY), 0);
  assert_int_equal(store_view(store, &m), 0);
  store_close(store);
  set(m, "k", "v");
  assert_value(m, "k", "v");
  m->ops->close(m); /* the sanitizer tells whether all went */
}

static void stats_count_each_kind(void **state) {
  struct backend *m = memory_of(state);
  set(m, "a", "v"), set(m, "b", "v"), set(m, "c", "v");
  get(m, "a"), get(m, "a"), get(m, "none");
  remove_key(m, "b"), remove_key(m, "none");
  set_for(m, NOW, "t", "v", 1);
  exists(m, NOW + 1, "t");
  struct backend_stats got = stats(m);
  assert_int_equal(got.hits, 2);
  assert_int_equal(got.misses, 1);
  assert_int_equal(got.sets, 4);
  assert_int_equal(got.deletes, 1);
  assert_int_equal(got.expired, 1);
  assert_int_equal(got.evictions, 0);
  assert_int_equal(got.entries, 2);
  assert_true(got.bytes > 2 * ITEM_HEAD);
  assert_int_equal(got.max_bytes, ROOMY);
}

/* Leases */

/* A wait that notes its answer. */
struct noted {
  struct backend_wait wait; /* first: wake gets it */
  atomic_int woken;
  int status, order;
  char bytes[64];
  struct backend_item item;
};

static int wake_order; /* of all noted waits, in one thread */

static void note_wake(struct backend_wait *wait, int status, const void *bytes,
                      const struct backend_item *item) {
  struct noted *noted = (struct noted *)wait;
  noted->status = status;
  noted->item = *item;
  noted->order = wake_order++;
  if (bytes && item->length < sizeof noted->bytes)
    memcpy(noted->bytes, bytes, item->length);
  atomic_fetch_add(&noted->woken, 1);
}

static struct noted fresh_noted(void *owner) {
  return (struct noted){.wait = {.wake = note_wake, .owner = owner}};
}

static int lease(struct backend *m, const char *key, struct noted *noted,
                 uint64_t *token) {
  struct backend_item item;
  char buf[64];
  int rc = m->ops->lease(m, NOW, KEY(key), buf, sizeof buf, &item,
                         noted ? &noted->wait : NULL);
  if (token)
    *token = item.token;
  return rc;
}

static int fill(struct backend *m, const char *key, uint64_t token,
                const char *value) {
  return m->ops->fill(m, NOW, KEY(key), token, value, strlen(value), 9, 50);
}

static void one_caller_gets_the_token_the_others_wait(void **state) {
  struct backend *m = memory_of(state);
  struct noted first = fresh_noted("A"), others[5];
  struct backend_item item;
  uint64_t token, none;
  assert_int_equal(lease(m, "k", &first, &token), BACKEND_TOKEN);
  assert_true(token != 0);
  assert_null(first.wait.prev);
  for (int i = 0; i < 5; i++) {
    others[i] = fresh_noted("B");
    assert_int_equal(
        m->ops->lease(m, NOW, "", 0, "k", 1, NULL, 0, &item, &others[i].wait),
        BACKEND_WAIT);
    assert_string_equal(item.owner, "A");
    assert_int_equal(item.token, 0);
  }
  assert_int_equal(m->ops->waiters(m, NOW, KEY("k"), token), 5);
  assert_int_equal(stats(m).misses, 6);
  assert_int_equal(lease(m, "other", &first, &none), BACKEND_TOKEN);
  m->ops->abandon(m, NOW, KEY("other"), none, NULL, 0);
  wake_order = 0;
  assert_int_equal(fill(m, "k", token, "loaded"), 1);
  for (int i = 0; i < 5; i++) {
    assert_int_equal(others[i].woken, 1);
    assert_int_equal(others[i].order, i);
    assert_int_equal(others[i].status, BACKEND_HIT);
    assert_string_equal(others[i].bytes, "loaded");
    assert_int_equal(others[i].item.length, 6);
    assert_int_equal(others[i].item.format, 9);
    assert_int_equal(others[i].item.expires_ms, NOW + 50);
    assert_int_equal(others[i].item.version, info(m, "k").version);
  }
  assert_int_equal(first.woken, 0);
  assert_int_equal(m->ops->waiters(m, NOW, KEY("k"), token), -1);
}

static void a_lease_on_a_live_entry_is_a_hit(void **state) {
  struct backend *m = memory_of(state);
  struct noted noted = fresh_noted(NULL);
  struct backend_item item;
  char buf[8];
  set(m, "k", "value");
  assert_int_equal(
      m->ops->lease(m, NOW, KEY("k"), buf, sizeof buf, &item, &noted.wait),
      BACKEND_HIT);
  assert_memory_equal(buf, "value", 5);
  assert_int_equal(item.token, 0);
  assert_null(item.owner);
  assert_int_equal(stats(m).hits, 1);
  assert_int_equal(m->ops->lease(m, NOW, KEY("k"), buf, 2, &item, NULL), 1);
  assert_int_equal(item.length, 5);
}

static void a_lease_without_a_wait_queues_nothing(void **state) {
  struct backend *m = memory_of(state);
  struct noted owner = fresh_noted("A");
  struct backend_item item;
  uint64_t token;
  lease(m, "k", &owner, &token);
  assert_int_equal(m->ops->lease(m, NOW, KEY("k"), NULL, 0, &item, NULL),
                   BACKEND_WAIT);
  assert_string_equal(item.owner, "A");
  assert_int_equal(m->ops->waiters(m, NOW, KEY("k"), token), 0);
  assert_int_equal(fill(m, "k", token, "v"), 1);
}

static void leases_of_other_views_and_keys_are_apart(void **state) {
  struct backend *m = memory_of(state), *other = second_view(state);
  uint64_t mine, theirs;
  assert_int_equal(lease(m, "k", NULL, &mine), BACKEND_TOKEN);
  assert_int_equal(lease(other, "k", NULL, &theirs), BACKEND_TOKEN);
  assert_int_equal(fill(other, "k", mine, "v"), 0);
  assert_int_equal(fill(m, "j", mine, "v"), 0);
  assert_int_equal(fill(m, "k", 0, "v"), 0);
  clear(other, "");
  set(other, "k", "v");
  assert_int_equal(fill(m, "k", mine, "v"), 1);
  assert_int_equal(fill(m, "k", mine, "v"), 0);
  assert_int_equal(fill(other, "k", theirs, "v"), 0);
  other->ops->close(other);
}

static const struct backend_slice one_key = {"k", 1};
static const struct backend_slice one_value = {"v", 1};

/* The ways to change the key "k" under a load; 0 when there are no more. */
static int change_key(struct backend *m, int way) {
  int64_t sum;
  switch (way) {
  case 0:
    return set(m, "k", "new");
  case 1:
    return add(m, NOW, "k", "new");
  case 2:
    return increment(m, "k", 1, &sum);
  case 3:
    return remove_key(m, "k") == 0;
  case 4:
    return clear(m, "");
  case 5:
    return clear(m, "k");
  case 6:
    return m->ops->set_many(m, NOW, "", 0, &one_key, &one_value,
                            (uint32_t[]){0}, 1, 0, NULL, NULL);
  case 7:
    return m->ops->remove_many(m, NOW, "", 0, &one_key, 1, NULL) == 0;
  default:
    return 0;
  }
}

static void a_change_during_the_load_poisons_the_token(void **state) {
  struct backend *m = memory_of(state);
  for (int way = 0; way < 8; way++) {
    struct noted waiter = fresh_noted(NULL);
    uint64_t token;
    assert_int_equal(lease(m, "k", NULL, &token), BACKEND_TOKEN);
    assert_int_equal(lease(m, "k", &waiter, NULL), BACKEND_WAIT);
    assert_int_equal(change_key(m, way), 1);
    struct backend_item before = info(m, "k");
    assert_int_equal(m->ops->waiters(m, NOW, KEY("k"), token), 1);
    assert_int_equal(fill(m, "k", token, "stale"), 0);
    assert_int_equal(waiter.woken, 1); /* it gets the value all the same */
    assert_int_equal(waiter.status, BACKEND_HIT);
    assert_string_equal(waiter.bytes, "stale");
    assert_int_equal(waiter.item.version, 0);
    assert_int_equal(info(m, "k").version, before.version);
    remove_key(m, "k");
  }
  assert_int_equal(change_key(m, 8), 0);
}

static void what_changes_nothing_poisons_nothing(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  static char large[TIGHT];
  uint64_t token;
  int64_t sum;
  store_resize(room->store, TIGHT);
  lease(m, "k", NULL, &token);
  m->ops->expire(m, NOW, KEY("k"), 5, NULL);
  m->ops->touch(m, NOW, KEY("k"), 5, NULL);
  exists(m, NOW, "k"), get(m, "k"), info(m, "k");
  set(m, "j", "v"), clear(m, "kk"), clear(m, "j");
  m->ops->set(m, NOW, KEY("k"), large, sizeof large, 0, 0, NULL);
  increment(m, "k", INT64_MAX, &sum);
  assert_int_equal(fill(m, "k", token, "v"), 1);
  assert_value(m, "k", "v");
}

static void expiry_and_eviction_poison_nothing(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  struct backend_item item;
  char key[32];
  store_resize(room->store, TIGHT);
  set_for(m, NOW, "k", "old", 10);
  assert_int_equal(m->ops->lease(m, NOW + 10, KEY("k"), NULL, 0, &item, NULL),
                   BACKEND_TOKEN);
  for (int i = 0; i < 3000; i++) {
    snprintf(key, sizeof key, "%d", i);
    set(m, key, "v");
  }
  assert_int_equal(fill(m, "k", item.token, "new"), 1);
  assert_value(m, "k", "new");
}

static void a_miss_after_the_poison_gets_a_new_token(void **state) {
  struct backend *m = memory_of(state);
  struct noted old = fresh_noted(NULL), new = fresh_noted(NULL);
  uint64_t first, second;
  lease(m, "k", NULL, &first);
  lease(m, "k", &old, NULL);
  remove_key(m, "k");
  assert_int_equal(lease(m, "k", NULL, &second), BACKEND_TOKEN);
  assert_true(second != first);
  assert_int_equal(lease(m, "k", &new, NULL), BACKEND_WAIT);
  assert_int_equal(m->ops->waiters(m, NOW, KEY("k"), first), 1);
  assert_int_equal(fill(m, "k", second, "fresh"), 1);
  assert_int_equal(fill(m, "k", first, "stale"), 0);
  assert_string_equal(new.bytes, "fresh");
  assert_string_equal(old.bytes, "stale");
  assert_value(m, "k", "fresh");
}

static void a_refused_fill_still_answers_the_waiters(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  struct noted waiter = fresh_noted(NULL);
  static char large[TIGHT];
  uint64_t token;
  store_resize(room->store, TIGHT);
  lease(m, "k", NULL, &token);
  lease(m, "k", &waiter, NULL);
  assert_int_equal(
      m->ops->fill(m, NOW, KEY("k"), token, large, sizeof large, 3, 0),
      BACKEND_ETOOLARGE);
  assert_int_equal(waiter.woken, 1);
  assert_int_equal(waiter.status, BACKEND_HIT);
  assert_int_equal(waiter.item.length, sizeof large);
  assert_int_equal(waiter.item.version, 0);
  assert_int_equal(lease(m, "k", NULL, &token), BACKEND_TOKEN);
}

static void abandon_hands_the_message_to_the_waiters(void **state) {
  struct backend *m = memory_of(state);
  struct noted waiters[2] = {fresh_noted(NULL), fresh_noted(NULL)};
  uint64_t token;
  lease(m, "k", NULL, &token);
  lease(m, "k", &waiters[0], NULL), lease(m, "k", &waiters[1], NULL);
  assert_int_equal(m->ops->abandon(m, NOW, KEY("k"), token, "no db", 5), 1);
  assert_int_equal(m->ops->abandon(m, NOW, KEY("k"), token, "no db", 5), 0);
  for (int i = 0; i < 2; i++) {
    assert_int_equal(waiters[i].woken, 1);
    assert_int_equal(waiters[i].status, BACKEND_ELOAD);
    assert_string_equal(waiters[i].bytes, "no db");
    assert_int_equal(waiters[i].item.length, 5);
  }
  assert_int_equal(fill(m, "k", token, "late"), 0);
  assert_int_equal(exists(m, NOW, "k"), 0);
}

static void abandon_without_a_message_lets_another_load(void **state) {
  struct backend *m = memory_of(state);
  struct noted waiter = fresh_noted(NULL);
  uint64_t token, next;
  lease(m, "k", NULL, &token);
  lease(m, "k", &waiter, NULL);
  assert_int_equal(m->ops->abandon(m, NOW, KEY("k"), token, NULL, 0), 1);
  assert_int_equal(waiter.status, BACKEND_MISS);
  assert_int_equal(lease(m, "k", &waiter, &next), BACKEND_TOKEN);
  assert_true(next != token);
}

static void abandon_answers_the_waiters_of_a_poisoned_load(void **state) {
  struct backend *m = memory_of(state);
  struct noted waiter = fresh_noted(NULL);
  uint64_t token;
  lease(m, "k", NULL, &token);
  lease(m, "k", &waiter, NULL);
  set(m, "k", "new");
  assert_int_equal(m->ops->abandon(m, NOW, KEY("k"), token, "bad", 3), 1);
  assert_int_equal(waiter.status, BACKEND_ELOAD);
  assert_value(m, "k", "new");
}

static void unwait_takes_a_queued_wait_back(void **state) {
  struct backend *m = memory_of(state);
  struct noted waiters[4];
  uint64_t token;
  lease(m, "k", NULL, &token);
  for (int i = 0; i < 4; i++) {
    waiters[i] = fresh_noted(NULL);
    lease(m, "k", &waiters[i], NULL);
  }
  for (int i = 0; i < 4; i += i ? 2 : 1) { /* 0, 1 and 3: both ends */
    assert_int_equal(m->ops->unwait(m, &waiters[i].wait), 1);
    assert_null(waiters[i].wait.prev);
    assert_int_equal(m->ops->unwait(m, &waiters[i].wait), 0);
  }
  assert_int_equal(m->ops->waiters(m, NOW, KEY("k"), token), 1);
  fill(m, "k", token, "v");
  for (int i = 0; i < 4; i++)
    assert_int_equal(waiters[i].woken, i == 2);
  assert_int_equal(m->ops->unwait(m, &waiters[2].wait), 0);
}

static void free_wait(struct backend_wait *wait, int status, const void *bytes,
                      const struct backend_item *item) {
  (void)status, (void)bytes, (void)item;
  free(wait);
}

static void wake_may_free_its_wait(void **state) {
  struct backend *m = memory_of(state);
  struct backend_item item;
  uint64_t token;
  lease(m, "k", NULL, &token);
  for (int i = 0; i < 10; i++) {
    struct backend_wait *wait = calloc(1, sizeof *wait);
    wait->wake = free_wait;
    m->ops->lease(m, NOW, KEY("k"), NULL, 0, &item, wait);
  }
  assert_int_equal(fill(m, "k", token, "v"), 1);
}

static void closing_a_view_wakes_its_waiters(void **state) {
  struct backend *m = memory_of(state), *other = second_view(state);
  struct noted waiters[6], kept = fresh_noted(NULL);
  uint64_t token;
  char key[16];
  lease(m, "0", NULL, &token), lease(m, "0", &kept, NULL);
  for (int i = 0; i < 6; i++) {
    snprintf(key, sizeof key, "%d", i / 2);
    waiters[i] = fresh_noted(NULL);
    if (i % 2 == 0)
      lease(other, key, NULL, NULL);
    lease(other, key, &waiters[i], NULL);
  }
  remove_key(other, "0"); /* a poisoned load ends as well */
  other->ops->close(other);
  for (int i = 0; i < 6; i++) {
    assert_int_equal(waiters[i].woken, 1);
    assert_int_equal(waiters[i].status, BACKEND_ELOAD);
    assert_string_equal(waiters[i].bytes, "closed");
  }
  assert_int_equal(kept.woken, 0);
  assert_int_equal(fill(m, "0", token, "v"), 1);
  assert_int_equal(kept.woken, 1);
}

static void many_loads_at_once_keep_apart(void **state) {
  struct backend *m = memory_of(state);
  uint64_t tokens[2000];
  char key[16];
  for (int i = 0; i < 2000; i++) {
    snprintf(key, sizeof key, "%d", i);
    assert_int_equal(lease(m, key, NULL, &tokens[i]), BACKEND_TOKEN);
  }
  for (int i = 0; i < 2000; i++) {
    snprintf(key, sizeof key, "%d", i);
    assert_int_equal(fill(m, key, tokens[i], key), 1);
  }
  assert_value(m, "1234", "1234");
  assert_int_equal(((struct room *)*state)->store->lease_count, 0);
}

static int sum_up(void *ud, const char *key, size_t key_len,
                  const struct backend_item *item) {
  uint64_t *sum = ud;
  for (size_t i = 0; i < key_len; i++)
    *sum = *sum * 31 + (unsigned char)key[i];
  *sum = *sum * 31 + item->version;
  *sum = *sum * 31 + item->length;
  return 0;
}

/* Against a model: an array that does the same the simplest way */

enum { MODEL_KEYS = 120, MODEL_OPS = 200000, MODEL_VALUE = 48 };

struct model {
  struct backend *view;
  struct cell {
    int live;
    size_t length;
    char bytes[MODEL_VALUE];
    uint32_t format;
    uint64_t expires_ms, created_ms, version;
  } cells[MODEL_KEYS];
};

static struct cell *model_cell(struct model *model, int i, uint64_t now) {
  struct cell *cell = &model->cells[i];
  if (cell->expires_ms && cell->expires_ms <= now)
    cell->live = 0;
  return cell;
}

static void model_write(struct cell *cell, const char *bytes, size_t length,
                        uint32_t format, uint64_t now, uint64_t ttl_ms) {
  cell->live = 1;
  cell->length = length;
  cell->format = format;
  cell->created_ms = now;
  cell->expires_ms = ttl_ms ? now + ttl_ms : 0;
  memcpy(cell->bytes, bytes, length);
}

static void model_check(struct model *model, int i, uint64_t now,
                        const char *key, int changed) {
  struct backend *m = model->view;
  struct cell *cell = model_cell(model, i, now);
  struct backend_item item;
  char buf[MODEL_VALUE];
  int rc = m->ops->get(m, now, KEY(key), buf, sizeof buf, &item, NULL);
  assert_int_equal(rc, cell->live);
  if (!cell->live)
    return;
  assert_int_equal(item.length, cell->length);
  assert_memory_equal(buf, cell->bytes, cell->length);
  assert_int_equal(item.format, cell->format);
  assert_int_equal(item.expires_ms, cell->expires_ms);
  assert_int_equal(item.created_ms, cell->created_ms);
  assert_true(changed ? item.version > cell->version
                      : item.version == cell->version);
  cell->version = item.version;
}

static int model_increment(struct model *model, int i, uint64_t now,
                           const char *key, uint64_t ttl_ms) {
  struct backend *m = model->view;
  struct cell *cell = model_cell(model, i, now);
  int64_t sum, value = 0;
  int rc = m->ops->increment(m, now, KEY(key), 3, ttl_ms, &sum, NULL);
  if (cell->live && (cell->format != BACKEND_INTEGER || cell->length != 8)) {
    assert_int_equal(rc, BACKEND_ETYPE);
    return 0;
  }
  if (cell->live)
    memcpy(&value, cell->bytes, sizeof value);
  value += 3;
  if (value > INT64_C(1) << 53 || value < -(INT64_C(1) << 53)) {
    assert_int_equal(rc, BACKEND_ERANGE);
    return 0;
  }
  assert_int_equal(rc, 1);
  assert_true(sum == value);
  if (cell->live)
    memcpy(cell->bytes, &value, sizeof value);
  else
    model_write(cell, (char *)&value, sizeof value, 1, now, ttl_ms);
  return 1;
}

static void model_step(struct model *model, uint64_t now, uint64_t *seed) {
  struct backend *m = model->view;
  int i = (int)(random_next(seed) % MODEL_KEYS), changed = 0, rc;
  uint64_t ttl_ms = random_next(seed) % 3 ? random_next(seed) % 300 : 0;
  size_t length = random_next(seed) % MODEL_VALUE;
  uint32_t format = (uint32_t)(random_next(seed) % 4);
  char key[16], bytes[MODEL_VALUE];
  struct cell *cell = model_cell(model, i, now);
  int live = cell->live;
  snprintf(key, sizeof key, "%c:%d", 'a' + i % 3, i);
  for (size_t n = 0; n < length; n++)
    bytes[n] = (char)random_next(seed);
  switch (random_next(seed) % 10) {
  case 0:
  case 1:
  case 2: /* through another split of namespace and key */
    rc = m->ops->set(m, now, key, 2, key + 2, strlen(key) - 2, bytes, length,
                     format, ttl_ms, NULL);
    assert_int_equal(rc, 1);
    model_write(cell, bytes, length, format, now, ttl_ms);
    changed = 1;
    break;
  case 3:
    rc = m->ops->add(m, now, KEY(key), bytes, length, format, ttl_ms, NULL);
    assert_int_equal(rc, !live);
    if ((changed = !live))
      model_write(cell, bytes, length, format, now, ttl_ms);
    break;
  case 4:
    assert_int_equal(m->ops->remove(m, now, KEY(key), NULL), live);
    cell->live = 0;
    break;
  case 5:
    changed = model_increment(model, i, now, key, ttl_ms);
    break;
  case 6:
    assert_int_equal(m->ops->expire(m, now, KEY(key), ttl_ms, NULL), live);
    cell->expires_ms = ttl_ms ? now + ttl_ms : 0;
    changed = live;
    break;
  case 7:
    ttl_ms = ttl_ms ? ttl_ms : UINT64_MAX;
    assert_int_equal(m->ops->touch(m, now, KEY(key), ttl_ms, NULL), live);
    if ((changed = live && ttl_ms != UINT64_MAX))
      cell->expires_ms = now + ttl_ms;
    break;
  case 8:
    if (random_next(seed) % 50 == 0) {
      m->ops->clear(m, now, key, 2, NULL, NULL);
      for (int j = i % 3; j < MODEL_KEYS; j += 3)
        model->cells[j].live = 0;
    }
    break;
  default:
    assert_int_equal(exists(m, now, key), live);
  }
  model_check(model, i, now, key, changed);
}

static void behaves_like_a_plain_array(void **state) {
  struct model models[2] = {{.view = memory_of(state)},
                            {.view = second_view(state)}};
  uint64_t seed = 4711, now = NOW;
  for (int i = 0; i < MODEL_OPS; i++) {
    struct model *model = &models[random_next(&seed) % 2];
    now += random_next(&seed) % 4 == 0;
    model_step(model, now, &seed);
    if (i % 1000)
      continue;
    uint64_t live = 0, cursor = 0, sum = 0;
    for (int j = 0; j < MODEL_KEYS; j++)
      live += (uint64_t)model_cell(model, j, now)->live;
    assert_int_equal(model->view->ops->scan(model->view, now, "", 0, &cursor,
                                            1000, sum_up, &sum, NULL),
                     live);
    assert_int_equal(stats(model->view).entries, live);
    check_store(((struct room *)*state)->store);
  }
  assert_int_equal(stats(models[0].view).evictions, 0);
  models[1].view->ops->close(models[1].view);
}

/* Threads */

enum { THREADS = 4, THREAD_OPS = 400000, THREAD_KEYS = 400 };

struct hammer {
  struct backend *views[2];
  uint64_t seed, waited;
  const char *trouble; /* cmocka's asserts are for the main thread */
};

/* A value tells its key, and every byte of it follows from its first two. */
static size_t make_value(char *out, int key, uint64_t *seed) {
  size_t length = 3 + random_next(seed) % 300;
  out[0] = (char)key;
  out[1] = (char)(key >> 8);
  for (size_t i = 2; i < length; i++)
    out[i] = (char)(out[0] + 7 * out[1] + (int)(length + i));
  return length;
}

static int value_is_whole(const char *value, size_t length, int key) {
  if (length < 3 || value[0] != (char)key || value[1] != (char)(key >> 8))
    return 0;
  for (size_t i = 2; i < length; i++)
    if (value[i] != (char)(value[0] + 7 * value[1] + (int)(length + i)))
      return 0;
  return 1;
}

/* As note_wake, but whole values and no order. */
struct checked {
  struct backend_wait wait;
  int key, whole;
  atomic_int woken;
};

static void check_wake(struct backend_wait *wait, int status, const void *bytes,
                       const struct backend_item *item) {
  struct checked *checked = (struct checked *)wait;
  checked->whole = status != BACKEND_HIT ||
                   value_is_whole(bytes, item->length, checked->key);
  atomic_fetch_add(&checked->woken, 1);
}

static void hammer_lease(struct hammer *h, struct backend *m, int key,
                         const char *name, char *buf, size_t cap) {
  struct checked checked = {.wait = {.wake = check_wake}, .key = key};
  struct backend_item item;
  int rc = m->ops->lease(m, NOW, KEY(name), buf, cap, &item, &checked.wait);
  if (rc == BACKEND_HIT && !value_is_whole(buf, item.length, key))
    h->trouble = "lease: a torn value";
  if (rc == BACKEND_TOKEN) {
    uint64_t token = item.token;
    if (random_next(&h->seed) % 4 == 0)
      sched_yield(); /* lets others queue up */
    if (random_next(&h->seed) % 8 == 0) {
      rc = m->ops->abandon(m, NOW, KEY(name), token, "no", 2);
      if (rc != 1)
        h->trouble = "abandon: the lease is gone";
    } else {
      size_t length = make_value(buf, key, &h->seed);
      m->ops->fill(m, NOW, KEY(name), token, buf, length, 0, 0);
    }
  }
  if (rc != BACKEND_WAIT)
    return;
  int taken_back =
      random_next(&h->seed) % 2 && m->ops->unwait(m, &checked.wait);
  while (!taken_back && atomic_load(&checked.woken) == 0)
    sched_yield();
  h->waited += !taken_back;
  if (atomic_load(&checked.woken) != !taken_back ||
      (!taken_back && !checked.whole))
    h->trouble = "wait: woken wrongly";
}

static void hammer_step(struct hammer *h) {
  struct backend *m = h->views[random_next(&h->seed) % 2];
  int key = (int)(random_next(&h->seed) % THREAD_KEYS);
  uint64_t op = random_next(&h->seed) % 64;
  struct backend_item item;
  char name[16], buf[512];
  snprintf(name, sizeof name, "k%d", key);
  if (op < 16) {
    int rc = m->ops->get(m, NOW, KEY(name), buf, sizeof buf, &item, NULL);
    if (rc == BACKEND_HIT && !value_is_whole(buf, item.length, key))
      h->trouble = "get: a torn value";
  } else if (op < 28) {
    size_t length = make_value(buf, key, &h->seed);
    if (m->ops->set(m, NOW, KEY(name), buf, length, 0, 0, NULL) != 1)
      h->trouble = "set failed";
  } else if (op < 48) {
    hammer_lease(h, m, key, name, buf, sizeof buf);
  } else if (op < 58) {
    m->ops->remove(m, NOW, KEY(name), NULL);
  } else if (op < 60) {
    m->ops->expire(m, NOW, KEY(name), 5, NULL);
    exists(m, NOW + 5, name);
  } else if (op == 60) {
    uint64_t cursor = 0, sum = 0;
    m->ops->scan(m, NOW, "k", 1, &cursor, 20, sum_up, &sum, NULL);
  } else if (op == 61) {
    m->ops->clear(m, NOW, name, strlen(name), NULL, NULL);
  } else {
    stats(m);
    m->ops->touch(m, NOW, KEY(name), UINT64_MAX, NULL);
  }
}

static void *hammer_run(void *arg) {
  struct hammer *h = arg;
  for (int i = 0; i < THREAD_OPS && !h->trouble; i++)
    hammer_step(h);
  return NULL;
}

static void threads_see_whole_values_and_wake_once(void **state) {
  struct room *room = *state;
  struct backend *other = second_view(state);
  struct hammer hammers[THREADS];
  pthread_t threads[THREADS];
  uint64_t waited = 0;
  store_resize(room->store, TIGHT); /* evictions take part */
  for (int i = 0; i < THREADS; i++) {
    hammers[i] = (struct hammer){{room->memory, other}, 99 + i, 0, NULL};
    assert_int_equal(pthread_create(&threads[i], NULL, hammer_run, &hammers[i]),
                     0);
  }
  for (int i = 0; i < THREADS; i++) {
    pthread_join(threads[i], NULL);
    waited += hammers[i].waited;
  }
  for (int i = 0; i < THREADS; i++)
    if (hammers[i].trouble)
      fail_msg("%s", hammers[i].trouble);
  assert_int_equal(room->store->lease_count, 0);
  assert_true(stats(other).evictions > 0 && waited > 0);
  check_store(room->store);
  other->ops->close(other);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      IN_ROOM(gives_back_what_was_set),
      IN_ROOM(set_replaces_value_format_and_ttl),
      IN_ROOM(an_empty_value_is_a_hit),
      IN_ROOM(add_stores_only_when_the_key_is_missing),
      IN_ROOM(remove_tells_whether_there_was_an_entry),
      IN_ROOM(exists_counts_neither_hit_nor_miss),
      IN_ROOM(namespace_and_key_count_as_if_joined),
      IN_ROOM(long_keys_join_in_the_same_way),
      IN_ROOM(keys_and_values_are_any_bytes),
      IN_ROOM(a_key_has_1_to_65536_bytes),
      IN_ROOM(a_small_buffer_is_left_alone_and_told_the_length),
      IN_ROOM(every_change_gets_a_larger_version),
      IN_ROOM(reading_and_touching_change_no_version),
      IN_ROOM(raw_is_unsupported),
      IN_ROOM(an_entry_lives_to_the_millisecond),
      IN_ROOM(every_call_drops_what_is_past_its_time),
      IN_ROOM(a_ttl_of_0_never_expires),
      IN_ROOM(a_ttl_of_more_than_a_century_never_expires),
      IN_ROOM(expire_sets_and_takes_away_the_time_left),
      IN_ROOM(touch_keeps_the_ttl_unless_given_one),
      IN_ROOM(increment_counts_from_0_and_gives_the_sum),
      IN_ROOM(increment_gives_a_new_key_its_ttl_and_keeps_an_old_one),
      IN_ROOM(increment_of_anything_else_is_a_type_error),
      IN_ROOM(increment_stops_at_2_to_the_53),
      IN_ROOM(recently_used_entries_stay_under_pressure),
      IN_ROOM(a_busy_counter_stays_under_pressure),
      IN_ROOM(exists_and_info_are_no_use),
      IN_ROOM(expired_entries_make_room_before_live_ones),
      IN_ROOM(the_bound_holds_with_all_metadata),
      IN_ROOM(a_value_above_its_share_is_refused_and_changes_nothing),
      IN_ROOM(resize_evicts_until_the_bound_holds),
      IN_ROOM(clear_with_a_prefix_touches_no_neighbour),
      IN_ROOM(scan_visits_each_entry_once_and_hardly_more_than_the_limit),
      IN_ROOM(scan_misses_nothing_while_the_table_grows),
      IN_ROOM(scan_stops_when_told_and_goes_on_without_a_gap),
      IN_ROOM(get_many_packs_the_hits_one_after_the_other),
      IN_ROOM(get_many_tells_how_large_the_buffer_must_be),
      IN_ROOM(set_many_stores_all_and_gives_the_first_error),
      IN_ROOM(remove_many_counts_what_was_there),
      IN_ROOM(views_share_the_bound_but_not_the_keys),
      IN_ROOM(what_a_closed_view_had_goes_with_the_sweep),
      cmocka_unit_test(a_view_outlives_store_close),
      IN_ROOM(stats_count_each_kind),
      IN_ROOM(one_caller_gets_the_token_the_others_wait),
      IN_ROOM(a_lease_on_a_live_entry_is_a_hit),
      IN_ROOM(a_lease_without_a_wait_queues_nothing),
      IN_ROOM(leases_of_other_views_and_keys_are_apart),
      IN_ROOM(a_change_during_the_load_poisons_the_token),
      IN_ROOM(what_changes_nothing_poisons_nothing),
      IN_ROOM(expiry_and_eviction_poison_nothing),
      IN_ROOM(a_miss_after_the_poison_gets_a_new_token),
      IN_ROOM(a_refused_fill_still_answers_the_waiters),
      IN_ROOM(abandon_hands_the_message_to_the_waiters),
      IN_ROOM(abandon_without_a_message_lets_another_load),
      IN_ROOM(abandon_answers_the_waiters_of_a_poisoned_load),
      IN_ROOM(unwait_takes_a_queued_wait_back),
      IN_ROOM(wake_may_free_its_wait),
      IN_ROOM(closing_a_view_wakes_its_waiters),
      IN_ROOM(many_loads_at_once_keep_apart),
      IN_ROOM(behaves_like_a_plain_array),
      IN_ROOM(threads_see_whole_values_and_wake_once),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
