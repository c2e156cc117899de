/* What has expired goes by itself: the stores are swept about once a second, in
 * as many steps as it takes. A step looks at as many entries as can be done in
 * about half a millisecond, going by the time of the one before. The common
 * store is swept by one of the runtimes that share it. The timer never keeps
 * the loop alive, and it also has the waits abroad looked at (abroad_watch). */
#include "bind/cache_internal.h"
#include "clock.h"

enum {
  SWEEP_MS = 1000,         /* from sweep to sweep, */
  STEP_MS = 5,             /* and from step to step of one */
  STEP_FEW = 128,          /* entries of a step: from this */
  STEP_MANY = 4096,        /* to this */
  STEP_NS = 400 * 1000,    /* fewer next time if it took longer, */
  TURN_MS = SWEEP_MS - 100 /* timers are not exact: a turn is not missed */
};

/* A step in each store. 1: there is more to do. */
static int sweep(struct cache_bind *c, uint64_t clock_ms) {
  uint64_t now = cache_now(c);
  int more = 0;
  size_t entries = c->sweep_entries;
  if (c->sweeping || pool_sweep_turn(c->pool, clock_ms, TURN_MS))
    more = store_sweep(pool_store(c->pool), now, entries);
  c->sweeping = more;
  for (int i = 1; i < c->view_count; i++)
    if (c->shared[i]->owns)
      more |= store_sweep(c->shared[i]->store, now, entries);
  return more;
}

static void pace(struct cache_bind *c, uint64_t took_ns) {
  if (took_ns > STEP_NS && c->sweep_entries > STEP_FEW)
    c->sweep_entries /= 2;
  else if (took_ns < STEP_NS / 4 && c->sweep_entries < STEP_MANY)
    c->sweep_entries *= 2;
}

static void on_timer(uv_timer_t *timer) {
  struct cache_bind *c = timer->data;
  uint64_t now = clock_update();
  uint64_t started = uv_hrtime();
  int more = sweep(c, now);
  pace(c, uv_hrtime() - started);
  if (now - c->watched_ms >= TURN_MS) {
    c->watched_ms = now;
    abroad_watch(c);
  }
  uv_timer_start(timer, on_timer, more ? STEP_MS : SWEEP_MS, 0);
}

void sweep_open(struct cache_bind *c) {
  if (c->stopped)
    return;
  uv_timer_init(c->bind->sched.loop, &c->sweeper);
  c->sweeper.data = c;
  c->sweep_entries = STEP_FEW;
  uv_unref((uv_handle_t *)&c->sweeper);
  uv_timer_start(&c->sweeper, on_timer, SWEEP_MS, 0);
}
