/* The memory store where the system gives no memory: in every operation each
 * allocation, mapping, change of a mapping and advice fails once, alone or with
 * all that follow it in the same call.
 *
 * A run is a list of operations, drawn from a seed, on a store beside a model
 * of it (spec/fuzz/store_model.h). It is repeated with the n-th request failing
 * for n = 0, 1, ... until there is no n-th. A call in which one failed has
 * succeeded or returned BACKEND_ENOMEM and changed nothing: all that was stored
 * is there, or was evicted and reported. Then the run goes on without failures,
 * and when it is closed nothing may be left, neither blocks nor mappings.
 *
 * The store's files are compiled for this with their requests under names of
 * ours: see the list in CMakeLists.txt.
 */
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "store_model.h"

/* ---- requests ---- */

static struct {
  long left;   /* requests until one fails; below 0: none does */
  int all;     /* then all do */
  int failed;  /* how many did, */
  int before;  /* and before this operation */
  long blocks; /* live */
  long mapped; /* bytes */
} system_memory = {.left = -1};

static int fails(void) {
  if (system_memory.left < 0)
    return 0;
  if (system_memory.left > 0) {
    system_memory.left--;
    return 0;
  }
  if (!system_memory.all)
    system_memory.left = -1;
  system_memory.failed++;
  errno = ENOMEM;
  return 1;
}

static void *counted(void *p) {
  system_memory.blocks += p != NULL;
  return p;
}

void *oom_malloc(size_t size);
void *oom_calloc(size_t count, size_t size);
void *oom_realloc(void *old, size_t size);
void *oom_aligned_alloc(size_t alignment, size_t size);
int oom_posix_memalign(void **out, size_t alignment, size_t size);
void oom_free(void *p);
void *oom_mmap(void *at, size_t length, int prot, int flags, int fd, off_t off);
int oom_munmap(void *at, size_t length);
int oom_mprotect(void *at, size_t length, int prot);
int oom_madvise(void *at, size_t length, int advice);

void *oom_malloc(size_t size) {
  return fails() ? NULL : counted(malloc(size));
}

void *oom_calloc(size_t count, size_t size) {
  return fails() ? NULL : counted(calloc(count, size));
}

void *oom_realloc(void *old, size_t size) {
  if (fails())
    return NULL;
  return old ? realloc(old, size) : counted(malloc(size));
}

void *oom_aligned_alloc(size_t alignment, size_t size) {
  return fails() ? NULL : counted(aligned_alloc(alignment, size));
}

int oom_posix_memalign(void **out, size_t alignment, size_t size) {
  if (fails())
    return ENOMEM;
  int rc = posix_memalign(out, alignment, size);
  system_memory.blocks += rc == 0;
  return rc;
}

void oom_free(void *p) {
  system_memory.blocks -= p != NULL;
  free(p);
}

void *oom_mmap(void *at, size_t length, int prot, int flags, int fd,
               off_t off) {
  void *p = fails() ? MAP_FAILED : mmap(at, length, prot, flags, fd, off);
  if (p != MAP_FAILED && !(flags & MAP_FIXED))
    system_memory.mapped += (long)length;
  return p;
}

int oom_munmap(void *at, size_t length) {
  system_memory.mapped -= (long)length;
  return munmap(at, length);
}

int oom_mprotect(void *at, size_t length, int prot) {
  return fails() ? -1 : mprotect(at, length, prot);
}

int oom_madvise(void *at, size_t length, int advice) {
  return fails() ? -1 : madvise(at, length, advice);
}

/* ---- a run ---- */

enum {
  KEYS = 240, /* of the model's: those without the largest */
  VALUE_MAX = 4000,
  MANY = 6,
  AFTER = 30, /* operations after the one in which a request failed */
  RUN_MAX = 400,
  LEAST_BOUND = 64 * 1024
};

struct plan {
  const char *name;
  size_t bound;
  size_t value_max;
  int steps;
  void (*const *operations)(void);
  unsigned count; /* of operations */
};

static struct {
  struct store *store;
  struct backend *view, *twin, *other; /* twin: of view's name */
  struct space spaces[2];              /* other's is the second */
  uint64_t random, now, token;
  int key, token_key; /* of the operation; of the load in flight */
  size_t value_max;
  char value[VALUE_MAX], buf[MANY * VALUE_MAX];
  size_t length;
} run;

static uint64_t draw(uint64_t below) {
  uint64_t x = run.random += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return (x ^ x >> 31) % below;
}

static void draw_value(void) {
  run.length = draw(run.value_max);
  memset(run.value, (int)draw(256), run.length);
}

#define ONE_SPACE (&run.spaces[0])
#define KEY run.view, run.now, "", 0, key_of_run(), length_of_run()

static const char *key_of_run(void) {
  size_t length;
  return model_key(run.key, &length);
}

static size_t length_of_run(void) {
  size_t length;
  model_key(run.key, &length);
  return length;
}

/* A call's answer, where memory may be missing. */
static int allowed(int rc, int least, int most) {
  if (rc == BACKEND_ENOMEM)
    MUST(system_memory.failed > system_memory.before);
  else
    MUST(rc >= least && rc <= most);
  return rc;
}

static struct value *live(void) {
  return space_live(ONE_SPACE, run.key, run.now);
}

static void check_missing(void) {
  if (live())
    space_lost(ONE_SPACE, run.key, run.now);
}

/* A value may be too large for a small bound; where its share ends is the
 * store's own affair. */
static void stored(int rc, const struct store_options *o) {
  size_t all = run.length + length_of_run();
  if (rc == BACKEND_ETOOLARGE && all > LEAST_BOUND / 64)
    return;
  if (allowed(rc, 1, 1) == 1)
    space_put(ONE_SPACE, run.key, run.now, run.value, run.length, o);
}

static const struct store_options plain = {.format = 2};

static void set(void) {
  draw_value();
  stored(run.view->ops->set(KEY, run.value, run.length, 2, 0, NULL), &plain);
}

static void set_pinned(void) {
  struct store_options o = {.format = 2, .pin = 1, .weight = 50};
  draw_value();
  run.length %= 300;
  int rc = store_set_with(KEY, run.value, run.length, &o);
  if (rc != BACKEND_ETOOLARGE) /* enough is pinned */
    stored(rc, &o);
}

static void set_many(void) {
  struct backend_slice keys[MANY], values[MANY];
  uint32_t formats[MANY];
  int statuses[MANY], first = run.key % (KEYS - MANY);
  draw_value();
  for (int i = 0; i < MANY; i++) {
    keys[i].data = model_key(first + i, &keys[i].length);
    values[i] = (struct backend_slice){run.value, run.length};
    formats[i] = 2;
  }
  int rc = run.view->ops->set_many(run.view, run.now, "", 0, keys, values,
                                   formats, MANY, 0, statuses, NULL);
  MUST(rc == 1 || rc == BACKEND_ETOOLARGE || rc == BACKEND_ENOMEM);
  for (int i = 0; i < MANY; i++) {
    run.key = first + i;
    stored(statuses[i], &plain);
  }
}

static void add(void) {
  draw_value();
  int rc = run.view->ops->add(KEY, run.value, run.length, 2, 0, NULL);
  if (rc == 0) {
    MUST(live() != NULL);
    return;
  }
  if (rc == 1)
    check_missing();
  stored(rc, &plain);
}

static void cas(void) {
  struct backend_item item = {.version = 0};
  draw_value();
  if (allowed(run.view->ops->info(KEY, &item, NULL), 0, 1) < 0)
    return;
  int rc = store_cas(KEY, item.version, run.value, run.length, 2, 0);
  if (rc == 0)
    check_missing();
  else
    stored(rc, &plain);
}

static void delete_key(void) {
  int rc = allowed(run.view->ops->remove(KEY, NULL), 0, 1);
  if (rc == 0)
    check_missing();
  if (rc == 1) {
    MUST(live() != NULL);
    space_leave(ONE_SPACE, run.key, STORE_DELETED, run.now);
  }
}

static void increment(void) {
  struct store_options o = {.format = BACKEND_INTEGER};
  int64_t sum = 0, one = 1;
  if (live() && live()->format != BACKEND_INTEGER)
    delete_key();
  if (live()) /* a sum that follows another is the fuzz target's matter */
    return;
  int rc = run.view->ops->increment(KEY, one, 0, &sum, NULL);
  MUST(rc != 1 || sum == one);
  memcpy(run.value, &one, sizeof one);
  run.length = sizeof one;
  stored(rc, &o);
}

static void get(void) {
  struct backend_item item;
  int rc = allowed(
      run.view->ops->get(KEY, run.buf, sizeof run.buf, &item, NULL), 0, 1);
  if (rc == 0)
    check_missing();
  if (rc != 1)
    return;
  MUST(live() != NULL);
  space_check_item(ONE_SPACE, run.key, &item);
  MUST(memcmp(run.buf, live()->bytes, item.length) == 0);
}

static void get_near(void) {
  struct backend_item item;
  struct store_near near;
  store_view_words(run.view);
  int rc =
      allowed(store_get_near(KEY, run.buf, sizeof run.buf, &item, &near), 0, 1);
  if (rc == 0)
    check_missing();
  if (rc == 1)
    space_check_item(ONE_SPACE, run.key, &item);
}

static void get_many(void) {
  struct backend_slice keys[MANY];
  struct backend_item items[MANY];
  size_t used;
  int first = run.key % (KEYS - MANY);
  for (int i = 0; i < MANY; i++)
    keys[i].data = model_key(first + i, &keys[i].length);
  int rc = allowed(run.view->ops->get_many(run.view, run.now, "", 0, keys, MANY,
                                           run.buf, sizeof run.buf, &used,
                                           items, NULL),
                   0, MANY);
  for (int i = 0; rc >= 0 && i < MANY; i++) {
    run.key = first + i;
    if (items[i].version == 0)
      check_missing();
    else
      space_check_item(ONE_SPACE, run.key, &items[i]);
  }
}

static void expire(void) {
  int rc = allowed(run.view->ops->expire(KEY, 5000, NULL), 0, 1);
  if (rc == 0)
    check_missing();
  if (rc != 1)
    return;
  live()->expires_ms = run.now + 5000;
  space_changed(ONE_SPACE, run.key);
}

/* A clear that fails in its first step has changed nothing; after a later one
 * it is to be called until it is through. */
static void clear(void) {
  uint64_t cursor = 0;
  size_t whole, length = draw(4) ? 1 : 0;
  const char *prefix = model_key(run.key, &whole);
  int rc, steps = 0;
  for (;; steps++) {
    rc = run.view->ops->clear(run.view, run.now, prefix, length, &cursor, NULL);
    if (rc == 1 || (rc < 0 && steps == 0))
      break;
    if (rc < 0)
      system_memory.left = -1;
  }
  if (allowed(rc, 1, 1) != 1)
    return;
  for (int key = 0; key < MODEL_KEYS; key++)
    if (memcmp(model_key(key, &whole), prefix, length) == 0)
      space_leave(ONE_SPACE, key, STORE_CLEARED, run.now);
}

static int on_entry(void *ud, const char *key, size_t key_len,
                    const struct backend_item *item) {
  (void)ud;
  run.key = key_len == 1 ? key[0] - 'a' : (uint8_t)key[1];
  MUST(live() != NULL);
  space_check_item(ONE_SPACE, run.key, item);
  return 0;
}

static void scan(void) {
  uint64_t cursor = 0;
  do {
    int rc = run.view->ops->scan(run.view, run.now, "", 0, &cursor, 50,
                                 on_entry, NULL, NULL);
    if (allowed(rc, 0, KEYS) < 0)
      return;
  } while (cursor != 0);
}

static int woken;

static void on_wake(struct backend_wait *wait, int status, const void *bytes,
                    const struct backend_item *item) {
  (void)wait, (void)bytes, (void)item;
  woken += status == BACKEND_HIT ? 1 : 1000;
}

/* Takes the load of a key, has another wait for it, and fills it. */
static void load(void) {
  struct backend_wait wait = {.wake = on_wake}, none = {.wake = on_wake};
  struct backend_item item, later;
  int rc = run.view->ops->refresh(KEY, &item, &none);
  if (allowed(rc, BACKEND_TOKEN, BACKEND_TOKEN) != BACKEND_TOKEN)
    return;
  rc = allowed(run.twin->ops->refresh(run.twin, run.now, "", 0, key_of_run(),
                                      length_of_run(), &later, &wait),
               BACKEND_WAIT, BACKEND_WAIT);
  woken = 0;
  draw_value();
  stored(run.view->ops->fill(KEY, item.token, run.value, run.length, 2, 0),
         &plain);
  MUST(woken == (rc == BACKEND_WAIT));
}

static void lease(void) {
  struct backend_item item;
  struct backend_wait wait = {.wake = on_wake};
  int rc =
      allowed(run.view->ops->lease(KEY, run.buf, sizeof run.buf, &item, &wait),
              BACKEND_HIT, BACKEND_TOKEN);
  if (rc == BACKEND_HIT)
    MUST(live() != NULL);
  if (rc != BACKEND_TOKEN)
    return;
  check_missing();
  MUST(run.view->ops->abandon(KEY, item.token, NULL, 0) == 1);
}

static void resize(void) {
  size_t bound = (size_t)LEAST_BOUND << draw(5);
  ONE_SPACE->pins_may_go = 1;
  store_resize(run.store, bound);
}

static void sweep(void) {
  run.now += draw(2000);
  store_sweep(run.store, run.now, 1 + draw(100));
}

static void fill_other(void) {
  size_t length;
  const char *key = model_key(run.key, &length);
  draw_value();
  int rc = run.other->ops->set(run.other, run.now, "", 0, key, length,
                               run.value, run.length, 2, 0, NULL);
  if (rc != BACKEND_ETOOLARGE && allowed(rc, 1, 1) == 1)
    space_put(&run.spaces[1], run.key, run.now, run.value, run.length, &plain);
}

/* Two views of one name, one without. */
static void reopen(void) {
  if (run.other) {
    run.other->ops->close(run.other);
    space_reset(&run.spaces[1]);
    run.other = NULL;
  }
  if (allowed(store_view(run.store, &run.other), 0, 0) < 0) {
    run.other = NULL;
    system_memory.left = -1;
    MUST(store_view(run.store, &run.other) == 0);
  }
  store_watch(run.other, space_watch, &run.spaces[1]);
}

static void reopen_twin(void) {
  run.twin->ops->close(run.twin);
  if (allowed(store_view_named(run.store, "one", &run.twin), 0, 0) == 0)
    return;
  system_memory.left = -1;
  MUST(store_view_named(run.store, "one", &run.twin) == 0);
}

static void open_run(const struct plan *plan) {
  system_memory.failed = system_memory.before = 0;
  if (allowed(store_open(&run.store, plan->bound), 0, 0) < 0) {
    system_memory.left = -1;
    MUST(store_open(&run.store, plan->bound) == 0);
  }
  struct backend **views[] = {&run.view, &run.twin, &run.other};
  for (int i = 0; i < 3; i++) {
    int rc = i < 2 ? store_view_named(run.store, "one", views[i])
                   : store_view(run.store, views[i]);
    if (allowed(rc, 0, 0) == 0)
      continue;
    system_memory.left = -1;
    i--;
  }
  store_watch(run.view, space_watch, &run.spaces[0]);
  store_watch(run.other, space_watch, &run.spaces[1]);
}

static void close_run(void) {
  run.twin->ops->close(run.twin);
  run.view->ops->close(run.view);
  store_close(run.store);
  run.other->ops->close(run.other);
  space_reset(&run.spaces[0]);
  space_reset(&run.spaces[1]);
}

static void reconcile(void) {
  space_reconcile(&run.spaces[0], run.now);
  space_reconcile(&run.spaces[1], run.now);
}

/* All of it, without failures. */
static void verify(void) {
  size_t length;
  system_memory.left = -1;
  system_memory.before = system_memory.failed;
  reconcile();
  for (run.key = 0; run.key < KEYS; run.key++) {
    get();
    const char *key = model_key(run.key, &length);
    int there =
        run.other->ops->exists(run.other, run.now, "", 0, key, length, NULL);
    MUST(there == (space_live(&run.spaces[1], run.key, run.now) != NULL));
  }
  reconcile();
}

/* Whether the n-th request failed: there was one. */
static int run_once(const struct plan *plan, uint64_t seed, long n, int all) {
  int after = 0, failed;
  snprintf(model_about, sizeof model_about, "%s, request %ld%s", plan->name, n,
           all ? " and all after it" : "");
  run.random = seed;
  run.now = 1000;
  run.value_max = plan->value_max;
  system_memory.left = n;
  system_memory.all = all;
  open_run(plan);
  failed = system_memory.failed;
  for (int i = 0; i < plan->steps && after < AFTER; i++) {
    run.key = (int)draw(KEYS);
    system_memory.before = failed;
    plan->operations[draw(plan->count)]();
    if (system_memory.failed && !failed)
      verify();
    failed = system_memory.failed;
    system_memory.left = failed ? -1 : system_memory.left;
    reconcile();
    after += failed > 0;
  }
  system_memory.left = failed ? -1 : system_memory.left;
  close_run();
  return system_memory.failed > 0;
}

/* ---- plans ---- */

static void (*const growing[])(void) = {set, set, set, add, fill_other};
static void (*const mixed[])(void) = {
    set,        set,        set,    set_pinned, set_many,    add,
    cas,        get,        get,    load,       increment,   get_many,
    lease,      delete_key, scan,   expire,     resize,      sweep,
    fill_other, clear,      reopen, load,       reopen_twin, get_near};

#define PLAN(name, bound, value_max, steps, operations) \
  {                                                     \
    name, bound, value_max, steps, operations,          \
        sizeof operations / sizeof *operations          \
  }

static const struct plan plans[] = {
    PLAN("small values", 4 << 20, 100, 300, growing),
    PLAN("large values", 1 << 20, VALUE_MAX, 300, growing),
    PLAN("all operations", 1 << 20, 1000, RUN_MAX, mixed),
    PLAN("all, in little room", 256 << 10, VALUE_MAX, RUN_MAX, mixed)};

int main(void) {
  for (size_t p = 0; p < sizeof plans / sizeof *plans; p++) {
    const struct plan *plan = &plans[p];
    long runs = 0;
    run_once(plan, p, -1, 0); /* what a process needs once may stay */
    long blocks = system_memory.blocks, mapped = system_memory.mapped;
    for (int all = 0; all < 2; all++) {
      for (long n = 0; run_once(plan, p, n, all); n++, runs++) {
        MUST(system_memory.blocks == blocks);
        MUST(system_memory.mapped == mapped);
      }
    }
    MUST(runs > 0);
    printf("%s: %ld requests failed\n", plan->name, runs);
  }
  return 0;
}
