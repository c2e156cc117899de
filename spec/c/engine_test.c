/* The memory engine, where its inner workings could show: hashes that collide,
 * values longer than a segment, marks, ids, layouts, watchers, near copies.
 * Each test's name is what a user of store.h may rely on.
 */
#include <stdatomic.h>
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store_room.h"

enum { MIB = 1 << 20 };

static int set_bytes(struct backend *m, const char *key, const void *bytes,
                     size_t length) {
  return m->ops->set(m, NOW, KEY(key), bytes, length, 0, 0, NULL);
}

static int set_number(struct backend *m, const char *prefix, int i) {
  char key[64];
  snprintf(key, sizeof key, "%s%d", prefix, i);
  return set(m, key, key);
}

static const char *get_number(struct backend *m, const char *prefix, int i) {
  char key[64];
  snprintf(key, sizeof key, "%s%d", prefix, i);
  return get(m, key);
}

static struct store_info info_of(struct store *store) {
  struct store_info out;
  store_info(store, &out);
  return out;
}

static int set_pinned(struct backend *m, const char *key, const void *bytes,
                      size_t length) {
  struct store_options options = {.pin = 1};
  return store_set_with(m, NOW, KEY(key), bytes, length, &options);
}

/* Keys whose hashes are as one likes: XXH3 of eight bytes can be turned back */

static uint64_t turn(uint64_t x, int by) {
  return x << by | x >> (64 - by);
}

static uint64_t inverse_of(uint64_t odd) {
  uint64_t x = odd;
  for (int i = 0; i < 6; i++)
    x *= 2 - odd * x;
  return x;
}

static void key_with_hash(const struct backend *m, uint64_t hash, char *key) {
  const struct view *view = (const struct view *)m;
  const uint64_t factor = UINT64_C(0x9FB21C651E98DF25);
  uint64_t x = hash ^ store_id_hash(view->space->id), words[2];
  memcpy(words, view->store->secret + 8, sizeof words);
  x ^= x >> 28 ^ x >> 56;
  x *= inverse_of(factor);
  x ^= (x >> 35) + 8;
  x *= inverse_of(factor);
  for (int i = 0; i < 63; i++)
    x ^= turn(x, 49) ^ turn(x, 24);
  x ^= words[0] ^ words[1];
  x = x >> 32 | x << 32;
  memcpy(key, &x, 8);
  assert_true(store_hash(view->store, view->space->id, key, 8) == hash);
}

/* Alike in shard, directory bits, tag and bucket. */
static void colliding_key(const struct backend *m, uint32_t i, char *key) {
  key_with_hash(m, UINT64_C(0x123456789) << 28 | (uint64_t)i << 14 | 0x1234,
                key);
}

static void colliding_keys_make_room_for_each_other_only(void **state) {
  enum { KEYS = 5000, OTHERS = 20000 };
  struct room *room = *state;
  struct backend *m = room->memory;
  char key[8];
  for (int i = 0; i < OTHERS; i++)
    set_number(m, "other", i);
  uint64_t index = info_of(room->store).index_bytes;
  for (uint32_t i = 0; i < KEYS; i++) {
    colliding_key(m, i, key);
    assert_int_equal(m->ops->set(m, NOW, "", 0, key, 8, "v", 1, 0, 0, NULL), 1);
    assert_int_equal(m->ops->exists(m, NOW, "", 0, key, 8, NULL), 1);
  }
  assert_true(info_of(room->store).index_bytes < index + 8 * PAGE_BYTES);
  uint64_t there = 0;
  for (uint32_t i = 0; i < KEYS; i++) {
    colliding_key(m, i, key);
    there += (uint64_t)m->ops->exists(m, NOW, "", 0, key, 8, NULL);
  }
  assert_true(there >= BUCKET_SLOTS && there <= PROBES * BUCKET_SLOTS);
  assert_int_equal(stats(m).entries + stats(m).evictions, KEYS + OTHERS);
  assert_true(stats(m).entries - there > OTHERS - 8 * BUCKET_SLOTS);
  check_store(room->store);
}

static void colliding_keys_are_told_apart_by_every_call(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  char key[8], value[8];
  struct backend_item item;
  for (int round = 0; round < 20; round++) {
    for (uint32_t i = 0; i < 60; i++) {
      colliding_key(m, i, key);
      m->ops->set(m, NOW, "", 0, key, 8, key, 8, 0, 0, NULL);
    }
    for (uint32_t i = 0; i < 60; i += 2) {
      colliding_key(m, i, key);
      assert_int_equal(m->ops->remove(m, NOW, "", 0, key, 8, NULL), 1);
    }
    for (uint32_t i = 0; i < 60; i++) {
      colliding_key(m, i, key);
      int rc = m->ops->get(m, NOW, "", 0, key, 8, value, 8, &item, NULL);
      assert_int_equal(rc, i % 2);
      if (rc)
        assert_memory_equal(value, key, 8);
    }
    check_store(room->store);
  }
}

static void colliding_pinned_keys_do_no_harm(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  struct store_options options = {.pin = 1};
  char key[8];
  for (uint32_t i = 0; i < 300; i++) {
    colliding_key(m, i, key);
    assert_int_equal(store_set_with(m, NOW, "", 0, key, 8, "v", 1, &options),
                     1);
    for (int use = 0; use < 3; use++)
      m->ops->touch(m, NOW, "", 0, key, 8, UINT64_MAX, NULL);
  }
  check_store(room->store);
}

/* Values of all sizes */

static char *pattern(size_t length, unsigned seed) {
  static char bytes[1 << 20];
  for (size_t i = 0; i < length; i++)
    bytes[i] = (char)(i * 31 + (i >> 8) * 7 + seed);
  return bytes;
}

static void assert_pattern(struct backend *m, uint64_t now, const char *key,
                           size_t length, unsigned seed) {
  static char buf[1 << 20];
  struct backend_item item;
  assert_int_equal(m->ops->get(m, now, KEY(key), buf, sizeof buf, &item, NULL),
                   BACKEND_HIT);
  assert_int_equal(item.length, length);
  assert_memory_equal(buf, pattern(length, seed), length);
}

static void every_length_up_to_the_share_comes_back_whole(void **state) {
  (void)state;
  struct room room = open_room_of(MIB);
  struct backend *m = room.memory;
  char keys[2][256] = {"k"};
  size_t segment = room.store->segment_bytes, share = MIB / VALUE_SHARE;
  memset(keys[1], 'k', sizeof keys[1] - 1);
  for (int k = 0; k < 2; k++) {
    size_t length = 0, most = share - ITEM_HEAD - strlen(keys[k]);
    while (length <= most) {
      unsigned seed = (unsigned)length;
      assert_int_equal(set_bytes(m, keys[k], pattern(length, seed), length), 1);
      assert_pattern(m, NOW, keys[k], length, seed);
      size_t near = length % segment;
      length += near < 50 || near > segment - 320 ? 1 : 37;
    }
    assert_int_equal(set_bytes(m, keys[k], pattern(most, 1), most), 1);
    assert_int_equal(set_bytes(m, keys[k], pattern(share, 2), most + 1),
                     BACKEND_ETOOLARGE);
    assert_pattern(m, NOW, keys[k], most, 1);
    check_store(room.store);
  }
  leave_room(&room);
}

static void a_long_value_stays_whole_wherever_it_goes(void **state) {
  (void)state;
  struct room room = open_room_of(MIB);
  struct backend *m = room.memory;
  enum { LONG = 30000 };
  struct backend_item item;
  assert_int_equal(set_bytes(m, "long", pattern(LONG, 1), LONG), 1);
  for (int i = 0; i < 60000; i++) {
    set_number(m, "filler", i);
    if (i % 100 == 0)
      assert_pattern(m, NOW, "long", LONG, 1);
  }
  assert_int_equal(m->ops->expire(m, NOW, KEY("long"), 500, NULL), 1);
  assert_pattern(m, NOW + 499, "long", LONG, 1);
  assert_int_equal(m->ops->touch(m, NOW, KEY("long"), 900, NULL), 1);
  assert_pattern(m, NOW + 899, "long", LONG, 1);
  check_store(room.store);
  assert_int_equal(set_bytes(m, "long", pattern(LONG + 9000, 2), LONG + 9000),
                   1);
  assert_pattern(m, NOW, "long", LONG + 9000, 2);
  assert_int_equal(m->ops->lease(m, NOW, KEY("long"), NULL, 0, &item, NULL),
                   BACKEND_HIT);
  assert_int_equal(item.length, LONG + 9000);
  assert_int_equal(m->ops->expire(m, NOW, KEY("long"), 5, NULL), 1);
  assert_int_equal(exists(m, NOW + 5, "long"), 0);
  check_store(room.store);
  leave_room(&room);
}

/* Clearing */

/* With so many other entries that the sweep takes many clears for a pass. */
static void clear_prefixes_in(size_t max_bytes, int others) {
  enum { GROUPS = 40, EACH = 12, ROUNDS = 1000 };
  struct room room = open_room_of(max_bytes);
  struct backend *m = room.memory;
  int there[GROUPS][EACH] = {{0}};
  char key[32], prefix[16];
  uint64_t seed = 5;
  uint32_t most = 0;
  for (int i = 0; i < others; i++)
    set_number(m, "other", i);
  for (int round = 0; round < ROUNDS; round++) {
    for (int n = 0; n < 20; n++) {
      int g = (int)(random_next(&seed) % GROUPS);
      int i = (int)(random_next(&seed) % EACH);
      snprintf(key, sizeof key, "g%d:%d", g, i);
      assert_int_equal(set(m, key, "v"), 1);
      there[g][i] = 1;
    }
    int g = (int)(random_next(&seed) % GROUPS);
    snprintf(prefix, sizeof prefix, "g%d:", g);
    assert_int_equal(clear(m, prefix), 1);
    memset(there[g], 0, sizeof there[g]);
    for (int i = 0; i < EACH; i++) {
      snprintf(key, sizeof key, "g%d:%d", g, i);
      assert_null(get(m, key));
    }
    int other = (int)(random_next(&seed) % GROUPS);
    for (int i = 0; i < EACH; i++) {
      snprintf(key, sizeof key, "g%d:%d", other, i);
      assert_int_equal(exists(m, NOW, key), there[other][i]);
    }
    most = room.store->mark_count > most ? room.store->mark_count : most;
    if (round % 500 == 0)
      check_store(room.store);
  }
  assert_int_equal(most, max_bytes >= 4 * MIB ? MARKS_MAX : 0);
  sweep_all(room.store, NOW);
  assert_int_equal(room.store->mark_count, 0);
  check_store(room.store);
  leave_room(&room);
}

static void prefixes_are_cleared_at_once_in_a_large_store(void **state) {
  (void)state;
  clear_prefixes_in(64 * MIB, 700000);
}

static void prefixes_are_cleared_at_once_in_a_small_store(void **state) {
  (void)state;
  clear_prefixes_in(3 * MIB, 5000);
}

static void clear_in_steps_misses_nothing_that_moves_meanwhile(void **state) {
  (void)state;
  enum { KEYS = 72000 };
  struct room room = open_room_of(3 * MIB);
  struct backend *m = room.memory;
  uint64_t cursor = 0;
  int step = 0;
  for (int i = 0; i < KEYS; i++) {
    set_number(m, "a:", i);
    get_number(m, "a:", i), get_number(m, "a:", i), get_number(m, "a:", i);
  }
  while (m->ops->clear(m, NOW, "a:", 2, &cursor, NULL) == 0)
    for (int i = 0; i < 12000; i++)
      set_number(m, "b:", step++);
  for (int i = 0; i < KEYS; i++)
    assert_null(get_number(m, "a:", i));
  check_store(room.store);
  leave_room(&room);
}

static void clear_forgets_all_thousands_of_times(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory, *other = second_view(state);
  set(other, "k", "theirs");
  for (int round = 0; round < 10000; round++) {
    for (int i = 0; i < 5; i++)
      assert_int_equal(set_number(m, "k", i), 1);
    assert_int_equal(stats(m).entries, 5);
    assert_int_equal(clear(m, ""), 1);
    assert_null(get_number(m, "k", round % 5));
    assert_int_equal(stats(m).entries, 0);
  }
  assert_value(other, "k", "theirs");
  check_store(room->store);
  other->ops->close(other);
}

/* As if a sweep never came to an end: more clears than there are ids. */
static void clear_works_when_all_ids_are_taken(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  for (int i = 0; i < 400000; i++)
    set_number(m, "ballast", i);
  for (int round = 0; round < 6000; round++) {
    assert_int_equal(set_number(m, "k", round), 1);
    pthread_mutex_lock(&room->store->mutex);
    room->store->purge++; /* all is to be looked at again */
    for (uint32_t i = 0; i < store_shard_count(room->store); i++)
      room->store->shards[i].sweep_at = 0; /* from the start */
    pthread_mutex_unlock(&room->store->mutex);
    assert_int_equal(clear(m, ""), 1);
    assert_null(get_number(m, "k", round));
    if (round == 0)
      for (int i = 0; i < 400000; i++)
        set_number(m, "ballast", i);
  }
  check_store(room->store);
  sweep_all(room->store, NOW);
  assert_int_equal(info_of(room->store).entries, stats(m).entries);
  check_store(room->store);
}

/* The bound */

static void any_bound_holds_at_every_moment(void **state) {
  (void)state;
  static char value[MIB];
  for (size_t bound = 40 << 10; bound < 5 * MIB; bound += bound / 7) {
    struct room room = open_room_of(bound);
    uint64_t seed = bound;
    for (int i = 0; info_of(room.store).policy_bytes == 0 || i % 5000; i++) {
      char key[32];
      size_t most = random_next(&seed) % 20 ? 100 : bound / 10;
      snprintf(key, sizeof key, "%d", (int)(random_next(&seed) % 50000));
      set_bytes(room.memory, key, value, random_next(&seed) % most);
      if (room.store->used > room.store->max_bytes)
        fail_msg("%zu of %zu", room.store->used, room.store->max_bytes);
    }
    check_store(room.store);
    leave_room(&room);
  }
}

static void the_bound_holds_when_it_shrinks_below_the_index(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  char key[4];
  store_resize(room->store, 32 * MIB);
  for (int i = 0; i < 3000000; i++) {
    memcpy(key, &i, 4);
    m->ops->set(m, NOW, "", 0, key, 4, NULL, 0, 0, 0, NULL);
  }
  for (size_t bound = 16 * MIB; bound > MIB; bound = bound / 4 * 3) {
    store_resize(room->store, bound);
    check_store(room->store);
    assert_true(room->store->used <= bound);
    assert_int_equal(set(m, "k", "v"), 1);
    assert_value(m, "k", "v");
  }
}

static void fill_up(struct backend *m, int entries) {
  static char long_key[32];
  for (int i = 0; i < entries; i++) {
    set_number(m, "n", i);
    if (i % 1000 == 0) {
      snprintf(long_key, sizeof long_key, "long%d", i);
      set_bytes(m, long_key, pattern(20000, 0), 20000);
    }
    if (i % 1500 == 0) {
      snprintf(long_key, sizeof long_key, "pin%d", i);
      set_pinned(m, long_key, "v", 1);
    }
    if (i % 5000 == 0)
      clear(m, "n1");
  }
}

static void a_store_goes_on_through_all_its_layouts(void **state) {
  (void)state;
  struct room room = open_room_of((size_t)1 << 30);
  struct backend *m = room.memory, *named;
  const size_t bounds[] = {256 << 10, 64 * MIB, 2 * MIB,  (size_t)1 << 30,
                           100 * MIB, 30 * MIB, 64 << 10, 4 * MIB};
  assert_int_equal(store_view_named(room.store, "name", &named), 0);
  for (unsigned i = 0; i < sizeof bounds / sizeof *bounds; i++) {
    fill_up(m, 60000), fill_up(named, 5000);
    check_store(room.store);
    store_resize(room.store, bounds[i]);
    check_store(room.store);
    assert_true(room.store->used <= bounds[i]);
    assert_int_equal(set(m, "k", "v"), 1);
    assert_value(m, "k", "v");
    assert_int_equal(set(named, "k", "w"), 1);
    assert_value(named, "k", "w");
    sweep_all(room.store, NOW);
    check_store(room.store);
  }
  named->ops->close(named);
  leave_room(&room);
}

static void a_layout_anew_outdates_near_copies_of_misses(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  struct store_near near;
  struct backend_item item;
  uint32_t *words = store_view_words(m);
  assert_int_equal(store_get_near(m, NOW, KEY("k"), NULL, 0, &item, &near), 0);
  store_resize(room->store, 256 << 10);
  assert_true(words[0] != near.clears || *near.words != near.version);
  assert_int_equal(words[0], near.clears + 1);
}

static void pinned_entries_stay_and_others_make_room(void **state) {
  (void)state;
  struct room room = open_room_of(MIB);
  struct backend *m = room.memory;
  char key[32];
  int pinned = 0;
  for (; pinned < 100000; pinned++) {
    snprintf(key, sizeof key, "pin%d", pinned);
    int rc = set_pinned(m, key, key, strlen(key));
    if (rc == BACKEND_ETOOLARGE)
      break;
    assert_int_equal(rc, 1);
  }
  struct backend_stats before = stats(m);
  assert_in_range(before.bytes, MIB / 2 - 100, MIB / 2);
  assert_int_equal(set_pinned(m, "pin5", "pin5", 4), 1); /* in its place */
  assert_int_equal(set_pinned(m, "pin", "new", 3), BACKEND_ETOOLARGE);
  for (int i = 0; i < 60000; i++)
    assert_int_equal(set_number(m, "n", i), 1);
  for (int i = 0; i < pinned; i++) {
    snprintf(key, sizeof key, "pin%d", i);
    assert_value(m, key, key);
  }
  check_store(room.store);
  for (size_t bound = MIB / 10 * 9; bound > 300 << 10; bound = bound / 10 * 9) {
    store_resize(room.store, bound);
    check_store(room.store);
    assert_int_equal(set(m, "k", "v"), 1);
  }
  leave_room(&room);
}

static void a_pinned_counter_counts_at_the_limit(void **state) {
  (void)state;
  struct room room = open_room_of(MIB);
  struct backend *m = room.memory;
  struct store_options options = {.pin = 1, .format = BACKEND_INTEGER};
  int64_t sum = 0;
  assert_int_equal(store_set_with(m, NOW, KEY("c"), &sum, 8, &options), 1);
  for (int i = 0;; i++) {
    char key[32];
    snprintf(key, sizeof key, "pin%d", i);
    if (set_pinned(m, key, "v", 1) < 0)
      break;
  }
  assert_int_equal(increment(m, "c", 1, &sum), 1);
  assert_int_equal(sum, 1);
  leave_room(&room);
}

static void a_weight_counts_for_the_bound(void **state) {
  (void)state;
  struct room room = open_room_of(MIB);
  struct backend *m = room.memory;
  struct store_options options = {.weight = 10000};
  char key[32];
  assert_int_equal(store_set_with(m, NOW, KEY("k"), "v", 1, &options), 1);
  assert_true(stats(m).bytes > 10000);
  for (int i = 0; i < 1000; i++) {
    snprintf(key, sizeof key, "k%d", i);
    assert_int_equal(store_set_with(m, NOW, KEY(key), "v", 1, &options), 1);
    assert_true(room.store->used <= MIB);
  }
  assert_in_range(stats(m).entries, 1, 104);
  check_store(room.store);
  options.weight = MIB / VALUE_SHARE;
  assert_int_equal(store_set_with(m, NOW, KEY("k"), "v", 1, &options),
                   BACKEND_ETOOLARGE);
  leave_room(&room);
}

static void views_count_for_the_bound(void **state) {
  (void)state;
  enum { VIEWS = 100 };
  struct room room = open_room_of(MIB);
  struct backend *views[VIEWS];
  for (int i = 0; i < 60000; i++)
    set_number(room.memory, "n", i);
  for (int i = 0; i < VIEWS; i++) {
    assert_int_equal(store_view(room.store, &views[i]), 0);
    check_store(room.store);
  }
  for (int i = 0; i < VIEWS; i++)
    views[i]->ops->close(views[i]);
  check_store(room.store);
  leave_room(&room);
}

/* After fork */

static int fails_in_the_child(struct room *room) {
  struct backend *m = room->memory, *other;
  struct backend_item item;
  char buf[8];
  uint64_t cursor = 0;
  int64_t sum;
  if (m->ops->get(m, NOW, KEY("k"), buf, 8, &item, NULL) != BACKEND_ECLOSED ||
      set(m, "k", "v") != BACKEND_ECLOSED ||
      remove_key(m, "k") != BACKEND_ECLOSED ||
      exists(m, NOW, "k") != BACKEND_ECLOSED ||
      increment(m, "n", 1, &sum) != BACKEND_ECLOSED ||
      clear(m, "k") != BACKEND_ECLOSED)
    return 1;
  if (m->ops->scan(m, NOW, "", 0, &cursor, 9, NULL, NULL, NULL) !=
          BACKEND_ECLOSED ||
      m->ops->lease(m, NOW, KEY("k"), buf, 8, &item, NULL) != BACKEND_ECLOSED ||
      store_view(room->store, &other) != BACKEND_ECLOSED)
    return 2;
  store_resize(room->store, MIB);
  store_watch(m, NULL, NULL);
  store_view_words(m);
  if (store_sweep(room->store, NOW, 100) != 0 || stats(m).entries != 0)
    return 3;
  m->ops->close(m);
  store_close(room->store);
  return 0;
}

static void a_forked_child_has_no_store_and_the_parent_goes_on(void **state) {
  struct room *room = *state;
  int status;
  for (int i = 0; i < 1000; i++)
    set_number(room->memory, "n", i);
  pid_t pid = fork();
  if (pid == 0) {
    alarm(20);
    pthread_mutex_lock(&room->store->shards[0].mutex); /* as another thread's */
    pthread_mutex_lock(&room->store->mutex);
    _exit(fails_in_the_child(room));
  }
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_int_equal(status, 0);
  assert_non_null(get_number(room->memory, "n", 7));
  check_store(room->store);
}

/* Sweeps */

static void sweeps_in_small_steps_free_all_that_expired(void **state) {
  struct room *room = *state;
  struct backend *m = room->memory;
  char key[32];
  int steps = 0;
  for (int i = 0; i < 100000; i++) {
    snprintf(key, sizeof key, "k%d", i);
    set_for(m, NOW, key, "v", i % 2 ? 10 : 0);
  }
  assert_int_equal(store_sweep(room->store, NOW + 9, 1000), 0);
  assert_int_equal(stats(m).entries, 100000);
  while (store_sweep(room->store, NOW + 10, 1000)) {
    steps++;
    if (steps % 10 == 0)
      check_store(room->store);
  }
  assert_in_range(steps, 10, 110);
  assert_int_equal(stats(m).entries, 50000);
  assert_int_equal(stats(m).expired, 50000);
  assert_int_equal(store_sweep(room->store, NOW + 10, 1000), 0);
  check_store(room->store);
}

/* Views of one name */

static void views_of_one_name_share_all_and_end_with_the_last(void **state) {
  struct room *room = *state;
  struct backend *a, *b, *c;
  struct backend_item item;
  assert_int_equal(store_view_named(room->store, "x", &a), 0);
  assert_int_equal(store_view_named(room->store, "x", &b), 0);
  assert_int_equal(store_view_named(room->store, "y", &c), 0);
  set(a, "k", "v");
  assert_value(b, "k", "v");
  assert_null(get(c, "k"));
  assert_int_equal(stats(a).hits, 1);
  assert_int_equal(stats(b).sets, 1);
  a->ops->lease(a, NOW, KEY("l"), NULL, 0, &item, NULL);
  uint64_t token = item.token;
  assert_int_equal(b->ops->lease(b, NOW, KEY("l"), NULL, 0, &item, NULL),
                   BACKEND_WAIT);
  assert_int_equal(clear(b, ""), 1);
  assert_int_equal(a->ops->valid(a, NOW, KEY("l"), token), 0);
  assert_int_equal(b->ops->waiters(b, NOW, KEY("l"), token), 0);
  assert_int_equal(b->ops->fill(b, NOW, KEY("l"), token, "v", 1, 0, 0), 0);
  set(a, "k", "v");
  a->ops->close(a);
  assert_value(b, "k", "v");
  b->ops->close(b);
  assert_int_equal(store_view_named(room->store, "x", &a), 0);
  assert_null(get(a, "k"));
  assert_int_equal(stats(a).sets, 0);
  a->ops->close(a), c->ops->close(c);
  check_store(room->store);
}

static void on_closed(struct backend_wait *wait, int status, const void *bytes,
                      const struct backend_item *item) {
  struct store *store = ((struct room *)wait->owner)->store;
  (void)bytes, (void)item;
  assert_int_equal(status, BACKEND_MISS);
  assert_int_equal(pthread_mutex_trylock(&store->mutex), 0);
  pthread_mutex_unlock(&store->mutex);
  wait->owner = NULL;
}

static void who_waits_on_a_closing_view_is_woken_without_a_lock(void **state) {
  struct room *room = *state;
  struct backend *a, *b;
  struct backend_item item;
  struct backend_wait wait = {.wake = on_closed, .owner = room};
  char none;
  store_view_named(room->store, "x", &a),
      store_view_named(room->store, "x", &b);
  assert_int_equal(a->ops->lease(a, NOW, KEY("k"), &none, 0, &item, NULL),
                   BACKEND_TOKEN);
  assert_int_equal(b->ops->lease(b, NOW, KEY("k"), &none, 0, &item, &wait),
                   BACKEND_WAIT);
  a->ops->close(a);
  assert_null(wait.owner);
  b->ops->close(b);
}

static void cas_stores_only_over_the_version_it_names(void **state) {
  struct backend *m = memory_of(state);
#define CAS(version, value) \
  store_cas(m, NOW, KEY("k"), version, value, strlen(value), 0, 0)
  assert_int_equal(CAS(1, "v"), 0);
  assert_int_equal(CAS(0, "one"), 1);
  assert_int_equal(CAS(0, "two"), 0);
  uint64_t version = info(m, "k").version;
  assert_int_equal(CAS(version, "two"), 1);
  assert_int_equal(CAS(version, "three"), 0);
  assert_value(m, "k", "two");
}

/* Watchers */

enum { WATCHED = 5000 };
struct watched {
  int reasons[STORE_CLEARED + 1];
  int left[WATCHED]; /* how often each key's value left */
};

static void note_left(void *ud, int reason, const char *key, size_t key_len,
                      uint32_t format, const void *bytes, size_t length) {
  struct watched *watched = ud;
  char copy[16] = {0};
  (void)format, (void)bytes, (void)length;
  memcpy(copy, key + 1, key_len - 1);
  watched->reasons[reason]++;
  watched->left[atoi(copy)]++;
}

static void watchers_are_told_of_every_departure_once(void **state) {
  (void)state;
  static struct watched watched;
  struct room room = open_room_of(256 << 10);
  struct backend *m = room.memory;
  int sets[WATCHED] = {0}, removed = 0;
  uint64_t seed = 3;
  store_watch(m, note_left, &watched);
  for (int i = 0; i < 100000; i++) {
    int n = (int)(random_next(&seed) % WATCHED);
    char key[16];
    snprintf(key, sizeof key, "k%d", n);
    if (i % 10 == 0)
      removed += remove_key(m, key);
    else
      sets[n] +=
          set_for(m, NOW, key, "some value", random_next(&seed) % 4 ? 0 : 10);
    if (i % 30000 == 29999)
      clear(m, i % 60000 == 29999 ? "k1" : "");
  }
  sweep_all(room.store, NOW + 10);
  assert_int_equal(watched.reasons[STORE_DELETED], removed);
  assert_int_equal(watched.reasons[STORE_EXPIRED], stats(m).expired);
  assert_int_equal(watched.reasons[STORE_SIZE], stats(m).evictions);
  assert_true(watched.reasons[STORE_REPLACED] > 0);
  for (int n = 0; n < WATCHED; n++) {
    char key[16];
    snprintf(key, sizeof key, "k%d", n);
    assert_int_equal(sets[n], watched.left[n] + exists(m, NOW + 10, key));
  }
  leave_room(&room);
}

/* Near copies */

static void near_copies_are_good_as_long_as_their_words_say(void **state) {
  (void)state;
  enum { KEYS = 3000 };
  static struct store_near near[KEYS];
  static char values[KEYS][16];
  struct room room = open_room_of(128 << 10);
  struct backend *m = room.memory;
  struct backend_item item;
  uint64_t seed = 9;
  int good = 0;
  for (int i = 0; i < 200000; i++) {
    int n = (int)(random_next(&seed) % KEYS);
    char key[16], value[16] = {0}, now[16] = {0};
    snprintf(key, sizeof key, "k%d", n);
    snprintf(value, sizeof value, "%d", i);
    uint64_t op = random_next(&seed) % 8;
    if (op == 0)
      set(m, key, value);
    else if (op == 1 && i % 4 == 0)
      remove_key(m, key);
    else if (op == 2 && i % 5000 == 0)
      clear(m, "k1");
    const uint32_t *words = near[n].words;
    int valid = words && words[0] == near[n].version &&
                ((struct view *)m)->space->words[0] == near[n].clears;
    m->ops->get(m, NOW, KEY(key), now, sizeof now, &item, NULL);
    if (valid)
      assert_string_equal(now, values[n]);
    good += valid;
    memset(values[n], 0, sizeof values[n]);
    store_get_near(m, NOW, KEY(key), values[n], sizeof values[n], &item,
                   &near[n]);
  }
  assert_true(good > 1000);
  leave_room(&room);
}

/* Threads */

enum { THERE = 20000, READERS = 3 };
struct reading {
  struct backend *memory;
  atomic_int *ended;
  int may_miss, reads;
  const char *trouble; /* cmocka's asserts are for the main thread */
};

static void *read_all(void *arg) {
  struct reading *r = arg;
  struct backend *m = r->memory;
  struct backend_item item;
  char key[16], value[16];
  for (uint64_t seed = 77; !atomic_load(r->ended) && !r->trouble; r->reads++) {
    size_t length = (size_t)snprintf(key, sizeof key, "k%d",
                                     (int)(random_next(&seed) % THERE));
    int rc = m->ops->get(m, NOW, KEY(key), value, sizeof value, &item, NULL);
    if (rc != BACKEND_HIT && !r->may_miss)
      r->trouble = "a key that is there was missed";
    if (rc == BACKEND_HIT &&
        (item.length != length || memcmp(key, value, length) != 0))
      r->trouble = "a torn value";
  }
  return NULL;
}

static void start_readers(struct reading *readings, pthread_t *threads,
                          struct backend *m, atomic_int *ended, int may_miss) {
  for (int i = 0; i < READERS; i++) {
    readings[i] = (struct reading){m, ended, may_miss, 0, NULL};
    assert_int_equal(pthread_create(&threads[i], NULL, read_all, &readings[i]),
                     0);
  }
}

static void end_readers(struct reading *readings, pthread_t *threads,
                        atomic_int *ended) {
  atomic_store(ended, 1);
  for (int i = 0; i < READERS; i++) {
    pthread_join(threads[i], NULL);
    if (readings[i].trouble)
      fail_msg("%s", readings[i].trouble);
  }
}

static void readers_miss_nothing_while_the_index_grows(void **state) {
  struct room *room = *state;
  struct reading readings[READERS];
  pthread_t threads[READERS];
  atomic_int ended = 0;
  for (int i = 0; i < THERE; i++)
    set_number(room->memory, "k", i);
  start_readers(readings, threads, room->memory, &ended, 0);
  for (int i = 0; i < 400000; i++)
    set_number(room->memory, "x", i);
  end_readers(readings, threads, &ended);
  assert_int_equal(stats(room->memory).evictions, 0);
  check_store(room->store);
}

static void readers_see_whole_values_while_all_changes(void **state) {
  struct room *room = *state;
  struct reading readings[READERS];
  pthread_t threads[READERS];
  atomic_int ended = 0;
  start_readers(readings, threads, room->memory, &ended, 1);
  for (int round = 0; round < 12; round++) {
    for (int i = 0; i < THERE; i++)
      set_number(room->memory, "k", i);
    if (round % 3 == 0)
      clear(room->memory, "");
    else
      store_resize(room->store, (size_t)(round % 2 ? 48 * MIB : MIB / 4));
    sweep_all(room->store, NOW);
  }
  end_readers(readings, threads, &ended);
  check_store(room->store);
}

/* Views and their ids */

/* A clear gives a view another id, and its old one to who asks next. A reader
 * that has hashed the key before must not take the other's value for its own.
 */
static void a_reader_never_finds_what_another_view_has(void **state) {
  struct room *room = *state;
  struct backend *other;
  struct backend_item item;
  struct target at;
  assert_int_equal(store_view(room->store, &other), 0);
  assert_int_equal(store_aim(&at, room->memory, NOW, KEY("k")), 0);
  clear(room->memory, "");
  clear(other, "");
  set(other, "k", "theirs");
  assert_int_equal(((struct view *)other)->space->id, at.id);
  assert_int_equal(store_peek(&at, &item), BACKEND_MISS);
  assert_value(other, "k", "theirs");
  other->ops->close(other);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      IN_ROOM(colliding_keys_make_room_for_each_other_only),
      IN_ROOM(colliding_keys_are_told_apart_by_every_call),
      IN_ROOM(colliding_pinned_keys_do_no_harm),
      cmocka_unit_test(every_length_up_to_the_share_comes_back_whole),
      cmocka_unit_test(a_long_value_stays_whole_wherever_it_goes),
      cmocka_unit_test(prefixes_are_cleared_at_once_in_a_large_store),
      cmocka_unit_test(prefixes_are_cleared_at_once_in_a_small_store),
      cmocka_unit_test(clear_in_steps_misses_nothing_that_moves_meanwhile),
      IN_ROOM(clear_forgets_all_thousands_of_times),
      IN_ROOM(clear_works_when_all_ids_are_taken),
      cmocka_unit_test(any_bound_holds_at_every_moment),
      IN_ROOM(the_bound_holds_when_it_shrinks_below_the_index),
      cmocka_unit_test(a_store_goes_on_through_all_its_layouts),
      IN_ROOM(a_layout_anew_outdates_near_copies_of_misses),
      cmocka_unit_test(pinned_entries_stay_and_others_make_room),
      IN_ROOM(a_pinned_counter_counts_at_the_limit),
      cmocka_unit_test(a_weight_counts_for_the_bound),
      cmocka_unit_test(views_count_for_the_bound),
      IN_ROOM(a_forked_child_has_no_store_and_the_parent_goes_on),
      IN_ROOM(sweeps_in_small_steps_free_all_that_expired),
      IN_ROOM(views_of_one_name_share_all_and_end_with_the_last),
      IN_ROOM(who_waits_on_a_closing_view_is_woken_without_a_lock),
      IN_ROOM(cas_stores_only_over_the_version_it_names),
      cmocka_unit_test(watchers_are_told_of_every_departure_once),
      cmocka_unit_test(near_copies_are_good_as_long_as_their_words_say),
      IN_ROOM(readers_miss_nothing_while_the_index_grows),
      IN_ROOM(readers_see_whole_values_while_all_changes),
      IN_ROOM(a_reader_never_finds_what_another_view_has),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
