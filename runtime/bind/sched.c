/* The scheduler: one pump that resumes ready tasks, between two polls.
 *
 *   spawn --> READY --pump--> RUNNING --task_wait--> WAITING
 *               ^                |                      |
 *               +--- task_wake, deadline, interrupt ----+
 *                                | body returns or raises
 *                                v
 *                             JOINING (children, deferred functions) --> DONE
 *
 * Invariants: a task is in the ready queue if and only if it is READY; while
 * it is WAITING its coroutine is suspended with an empty stack top, so that
 * whoever wakes it pushes the results there; s->current is the only RUNNING
 * one. Tasks form a tree below s->root: a parent is never DONE before its
 * children. The pump's Lua calls are protected; nothing else resumes.
 *
 * A turn of the loop: timers (ours only wakes), poll, check. In check every
 * task that the poll has made ready runs first, then deadlines are judged by
 * the time at which the poll returned: a reply that lay in a socket wins over
 * a deadline that passed while Lua was busy.
 */
#include "bind/sched.h"

#include <assert.h>
#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

#include "bind/bind.h"
#include "bind/sched_internal.h"
#include "bind/trace.h"
#include "clock.h"

enum {
  PUMP_BATCH = 256,     /* slices per turn beyond those ready at its start */
  SLOW_SLICE_MS = 100,  /* a slice above this is logged, once per site */
  SLOW_SITES_MAX = 256, /* sites remembered */
  STUCK_TASKS_MAX = 10, /* stacks in the report of a deadlock */
  NS_PER_MS = 1000000
};

void sched_ready(struct task *t) {
  struct sched *s = t->sched;
  assert(t->state != TASK_READY && t->state != TASK_DONE);
  t->state = TASK_READY;
  t->ready_next = NULL;
  *s->ready_end = t;
  s->ready_end = &t->ready_next;
  s->ready++;
}

static struct task *ready_pop(struct sched *s) {
  struct task *t = s->ready_first;
  if (t == NULL)
    return NULL;
  s->ready_first = t->ready_next;
  if (s->ready_first == NULL)
    s->ready_end = &s->ready_first;
  s->ready--;
  return t;
}

/* ---- the pump ---- */

static int is_ours(const lua_Debug *ar) {
  return strncmp(ar->short_src, "moonstash/", 10) == 0;
}

/* Fills ar with the source of the function on top of L, or, if that is one of
 * ours around a user's (every, after), of the user's. 0: there is none. */
static int find_users(lua_State *L, lua_Debug *ar) {
  int fn = lua_gettop(L), i = 0;
  if (!lua_isfunction(L, fn))
    return 0;
  lua_pushvalue(L, fn);
  do {
    if (lua_isfunction(L, -1)) {
      lua_getinfo(L, ">S", ar);
      if (*ar->what != 'C' && !is_ours(ar))
        return 1;
    }
    lua_settop(L, fn);
  } while (lua_getupvalue(L, fn, ++i) != NULL);
  return 0;
}

/* Pushes "file:line" of where t stands, or of its body when it has ended. */
static void push_site(lua_State *L, struct task *t, lua_State *co) {
  lua_Debug ar;
  lua_pushnil(L);
  for (int level = 0; t->state == TASK_WAITING && lua_getstack(co, level, &ar);
       level++) {
    lua_getinfo(co, "Slf", &ar);
    lua_xmove(co, L, 1);
    if (ar.currentline > 0 && !is_ours(&ar)) {
      lua_pushfstring(L, "%s:%d", ar.short_src, ar.currentline);
      return;
    }
    if (*ar.what == 'C')
      lua_pop(L, 1);
    else
      lua_replace(L, -2); /* the outermost of ours is the body */
  }
  if (t->state != TASK_WAITING && lua_isfunction(co, 1)) {
    lua_pushvalue(co, 1);
    lua_xmove(co, L, 1);
  }
  if (find_users(L, &ar)) {
    lua_pushfstring(L, "%s:%d", ar.short_src, ar.linedefined);
  } else {
    lua_pushfstring(L, "task %d", (int)t->id);
  }
}

/* Logs a slice that held the loop, once per site: as a warning when somebody
 * had to wait for it, else for information. */
static int log_slice(lua_State *L) {
  struct task *t = lua_touserdata(L, 1);
  struct sched *s = t->sched;
  int ms = (int)(intptr_t)lua_touserdata(L, 2);
  struct deadline *first = deadlines_first(&s->deadlines);
  int held_up = s->ready > 0 || (first && first->at_ns < uv_hrtime());
  push_site(L, t, t->co);
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->sites);
  lua_pushvalue(L, -2);
  lua_rawget(L, -2);
  int known = !lua_isnil(L, -1);
  lua_pop(L, 1);
  if (!known && s->site_count < SLOW_SITES_MAX) {
    s->site_count++;
    lua_pushvalue(L, -2);
    lua_pushboolean(L, 1);
    lua_rawset(L, -3);
    lua_pushfstring(L, "%s held the loop for %d ms without a wait",
                    lua_tostring(L, -2), ms);
    sched_log(s, held_up ? BIND_LOG_WARN : BIND_LOG_INFO, lua_tostring(L, -1));
  }
  return 0;
}

/* The slice ended in a yield: a wait, the task's abandoning, or nothing that
 * the scheduler knows. */
static void yielded(struct sched *s, lua_State *L, struct task *t) {
  int ours = lua_gettop(t->co) > 0 && lua_touserdata(t->co, -1) == (void *)s;
  if (t->flags & TASK_ABANDONED) {
    ending_drop_cancelled(s, L, t);
  } else if (ours && t->state == TASK_WAITING) {
    lua_settop(t->co, 0);
    wait_suspended(L, t);
  } else {
    ending_drop_failed(
        s, L, t,
        "coroutine.yield outside a coroutine: a task has nobody to "
        "yield to (task.yield lets others run)");
  }
}

/* Takes the results of a completed wait to the coroutine. */
static int push_results(lua_State *L) {
  struct task *t = lua_touserdata(L, 1);
  lua_settop(L, 0);
  return t->push(L, t, t->push_arg);
}

static void take_results(struct sched *s, lua_State *L, struct task *t) {
  int n = sched_guarded(L, s, push_results, t, NULL);
  t->push = NULL;
  lua_xmove(L, t->co, n);
  t->nargs = (uint32_t)n;
}

static void run_slice(struct sched *s, lua_State *L, struct task *t) {
  assert(t->state == TASK_READY && t->co != NULL);
  t->state = TASK_RUNNING;
  t->flags &= (uint16_t)~TASK_PJOINING;
  t->waits_for = NULL;
  if (!(t->flags & TASK_STARTED)) {
    t->flags |= TASK_STARTED;
    if (t->flags & TASK_CANCEL) { /* cancelled before it began */
      t->outcome = TASK_CANCELLED;
      record_get(L, t, "cancel");
      record_set(L, t, "err");
      lua_settop(t->co, 0);
      ending_advance(s, L, t);
      return;
    }
  }
  if (t->push != NULL)
    take_results(s, L, t);
  lua_State *co = t->co;
  uint64_t began = clock_now_ms();
  s->current = t;
  int status = lua_resume(co, (int)t->nargs);
  s->current = NULL;
  uint64_t took = clock_now_ms() - began;
  if (took >= SLOW_SLICE_MS)
    sched_guarded(L, s, log_slice, t, (void *)(intptr_t)took);
  if (status == LUA_YIELD)
    yielded(s, L, t);
  else if (status == 0)
    ending_returned(s, L, t);
  else /* xpcall itself could not go on: out of memory */
    ending_drop_failed(
        s, L, t, lua_isstring(co, -1) ? lua_tostring(co, -1) : "task failed");
}

static int has_news(const struct sched *s) {
  return s->news.pending != NULL && s->news.pending(s->news.ud);
}

static int start_news(lua_State *L) {
  struct sched *s = lua_touserdata(L, 1);
  s->news.start(L, s->news.ud);
  return 0;
}

static void begin_news(struct sched *s, lua_State *L) {
  if (has_news(s))
    sched_guarded(L, s, start_news, s, NULL);
}

static void run_ready(struct sched *s, lua_State *L) {
  uint64_t quota = (uint64_t)s->ready + PUMP_BATCH;
  struct task *t;
  begin_news(s, L);
  while (quota-- > 0 && (t = ready_pop(s)) != NULL) {
    run_slice(s, L, t);
    if (s->budget_ns != 0 && uv_hrtime() >= s->budget_ns)
      return;
    begin_news(s, L);
  }
}

static void expire_deadlines(struct sched *s, lua_State *L) {
  struct deadline *d;
  while ((d = deadlines_first(&s->deadlines)) && d->at_ns <= s->turn_ns) {
    if (d->kind == 0) {
      struct task *t = (struct task *)((char *)d - offsetof(struct task, wait));
      if (t->forget != NULL)
        t->forget(L, t, t->forget_arg);
      task_wake(t, WAIT_TIMEOUT, L, 0);
    } else {
      struct task *t =
          (struct task *)((char *)d - offsetof(struct task, limit));
      deadlines_disarm(&s->deadlines, d);
      t->flags |= TASK_LIMIT;
      wait_deliver(L, t);
    }
  }
}

static void cancel_mains(struct sched *s, lua_State *L, int signo) {
  for (struct task *t = s->root.children, *next; t != NULL; t = next) {
    next = t->next;
    if (t->flags & TASK_MAIN) {
      lua_pushfstring(L, "interrupted by signal %d", signo);
      sched_push_error(L, s, "cancelled", lua_tostring(L, -1));
      lua_remove(L, -2);
      task_cancel(L, t);
    }
  }
}

static int pump_protected(lua_State *L) {
  struct sched *s = lua_touserdata(L, 1);
  if (s->signal != 0 && !s->draining) {
    s->draining = 1;
    cancel_mains(s, L, s->signal);
  }
  run_ready(s, L);
  expire_deadlines(s, L);
  if (s->budget_ns == 0)
    run_ready(s, L);
  return 0;
}

static void pump(struct sched *s) {
  assert(!s->pumping);
  s->pumping = 1;
  clock_enter();
  if (lua_cpcall(s->L, pump_protected, s) != 0) {
    s->current = NULL;
    s->pump_error = 1;
    sched_log(s, BIND_LOG_ERROR, lua_tostring(s->L, -1));
    lua_pop(s->L, 1);
  }
  clock_leave();
  s->pumping = 0;
}

/* ---- the loop ---- */

static void on_idle(uv_idle_t *handle) {
  (void)handle; /* being active is all it is for: poll does not block */
}

static void on_timer(uv_timer_t *handle) {
  (void)handle; /* poll has returned; on_check judges */
}

static void on_async(uv_async_t *handle) {
  (void)handle; /* the same */
}

static void on_prepare(uv_prepare_t *handle) {
  struct sched *s = handle->data;
  struct deadline *first = deadlines_first(&s->deadlines);
  uint64_t due = first != NULL ? first->at_ns : UINT64_MAX;
  if (s->drain_ns != 0 && s->drain_ns < due)
    due = s->drain_ns;
  if (s->ready > 0)
    uv_idle_start(&s->idle, on_idle);
  else
    uv_idle_stop(&s->idle);
  if (due == UINT64_MAX) {
    uv_timer_stop(&s->timer);
    return;
  }
  uint64_t now = uv_hrtime();
  uint64_t left = due > now ? due - now : 0;
  uv_timer_start(&s->timer, on_timer, (left + NS_PER_MS - 1) / NS_PER_MS, 0);
}

static void on_check(uv_check_t *handle) {
  struct sched *s = handle->data;
  s->turn_ns = uv_hrtime();
  clock_update();
  if (s->ready > 0 || s->signal != 0 || s->deadlines.count > 0 || has_news(s))
    pump(s);
}

static void on_closed(uv_handle_t *handle) {
  ((struct sched *)handle->data)->open_handles--;
}

static void open_handle(struct sched *s, uv_handle_t *handle) {
  handle->data = s;
  uv_unref(handle);
  s->open_handles++;
}

static int open_handles(struct sched *s) {
  int rc = uv_async_init(s->loop, &s->async, on_async);
  if (rc < 0)
    return rc;
  uv_prepare_init(s->loop, &s->prepare);
  uv_check_init(s->loop, &s->check);
  uv_idle_init(s->loop, &s->idle);
  uv_timer_init(s->loop, &s->timer);
  uv_prepare_start(&s->prepare, on_prepare);
  uv_check_start(&s->check, on_check);
  open_handle(s, (uv_handle_t *)&s->async);
  open_handle(s, (uv_handle_t *)&s->prepare);
  open_handle(s, (uv_handle_t *)&s->check);
  open_handle(s, (uv_handle_t *)&s->idle);
  open_handle(s, (uv_handle_t *)&s->timer);
  return 0;
}

int sched_open(struct sched *s, lua_State *L, uv_loop_t *loop,
               const struct sched_hooks *hooks) {
  memset(s, 0, sizeof *s);
  s->L = L;
  s->loop = loop;
  s->hooks = *hooks;
  s->ready_end = &s->ready_first;
  s->pooled_slot = s->empty_slot = NO_SLOT;
  s->root.sched = s;
  s->root.state = TASK_RUNNING;
  s->root.wait.pos = s->root.limit.pos = DEADLINE_OFF;
  lua_newtable(L);
  s->anchors = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_newtable(L);
  s->sites = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_getglobal(L, "xpcall");
  s->xpcall = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_pushcfunction(L, sched_guard);
  s->guard = luaL_ref(L, LUA_REGISTRYINDEX);
  return open_handles(s);
}

void sched_close(struct sched *s) {
  uv_close((uv_handle_t *)&s->async, on_closed);
  uv_close((uv_handle_t *)&s->prepare, on_closed);
  uv_close((uv_handle_t *)&s->check, on_closed);
  uv_close((uv_handle_t *)&s->idle, on_closed);
  uv_close((uv_handle_t *)&s->timer, on_closed);
  s->closing = 1;
  for (struct task *t = &s->root; t != NULL; t = tree_next(&s->root, t, 0))
    if (t->state == TASK_WAITING && t->forget != NULL)
      t->forget(s->L, t, t->forget_arg);
  for (struct task *t; (t = ready_pop(s)) != NULL;)
    if (t->push != NULL)
      t->push(NULL, t, t->push_arg);
  s->deadlines.count = 0; /* they live in tasks that go with the state */
  deadlines_free(&s->deadlines);
  free(s->slots);
  s->slots = NULL;
  s->slot_count = s->slot_capacity = s->pooled = 0;
}

/* Nothing is ready, due or pending: no event will ever come. */
static int is_stuck(const struct sched *s) {
  return s->ready == 0 && s->deadlines.count == 0 &&
         (s->signal == 0 || s->draining) && !uv_loop_alive(s->loop) &&
         !has_news(s);
}

#define STUCK \
  "deadlock: every task waits, and nothing is left that could wake one"

static int fail_mains(lua_State *L) {
  struct sched *s = lua_touserdata(L, 1);
  for (struct task *t = s->root.children, *next; t != NULL; t = next) {
    next = t->next;
    if (t->flags & TASK_MAIN) {
      sched_push_error(L, s, "deadlock", STUCK);
      task_fail(L, t);
    }
  }
  return 0;
}

/* Pushes where main and the tasks below it wait. */
static void push_stuck(lua_State *L, struct task *main) {
  int shown = 0;
  lua_pushliteral(L, STUCK);
  for (struct task *t = main; t != NULL; t = tree_next(main, t, 0)) {
    if (t->state != TASK_WAITING || t->co == NULL)
      continue;
    if (shown++ == STUCK_TASKS_MAX) {
      lua_pushliteral(L, "\n...");
      lua_concat(L, 2);
      break;
    }
    if (t != main) {
      lua_pushfstring(L, "\ntask %d waits:", (int)t->id);
      lua_concat(L, 2);
    }
    luaL_traceback(L, t->co, lua_tostring(L, -1), 0);
    lua_remove(L, -2);
  }
  trace_without_ours(L);
}

/* The main tasks cannot even fail, as they wait in shields: tells the host. */
static int report_mains(lua_State *L) {
  struct sched *s = lua_touserdata(L, 1);
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  for (struct task *t = s->root.children; t != NULL; t = t->next) {
    if (!(t->flags & TASK_MAIN) || s->hooks.uncaught == NULL)
      continue;
    push_stuck(L, t);
    s->hooks.uncaught(s->hooks.ud, t, lua_tostring(L, -1));
    lua_pop(L, 1);
  }
  return 0;
}

int sched_run(struct sched *s) {
  int stuck = 0;
  while (s->mains > 0 && !s->pump_error) {
    if (is_stuck(s)) {
      int rc = lua_cpcall(s->L, stuck ? report_mains : fail_mains, s);
      if (rc != 0)
        lua_pop(s->L, 1);
      if (rc != 0 || stuck++ > 0)
        return -1;
      continue; /* poll would block for ever if they are in shields */
    }
    uv_ref((uv_handle_t *)&s->check); /* uv_run wants something alive */
    uv_run(s->loop, UV_RUN_ONCE);
    uv_unref((uv_handle_t *)&s->check);
  }
  return s->pump_error ? -1 : 0;
}

void sched_poll(struct sched *s, uint64_t budget_us) {
  uint64_t until = uv_hrtime() + budget_us * 1000;
  s->budget_ns = until;
  do {
    uv_ref((uv_handle_t *)&s->check);
    uv_run(s->loop, UV_RUN_NOWAIT);
    uv_unref((uv_handle_t *)&s->check);
  } while (s->ready > 0 && uv_hrtime() < until);
  s->budget_ns = 0;
}

void sched_cancel_all(lua_State *L, struct sched *s, const char *reason) {
  s->draining = 1;
  sched_push_error(L, s, "cancelled", reason);
  tree_cancel_below(L, &s->root);
  lua_pop(L, 1);
}

static int drain_protected(lua_State *L) {
  sched_cancel_all(L, lua_touserdata(L, 1), "cancelled: the runtime closes");
  return 0;
}

int sched_drain(struct sched *s, unsigned drain_ms) {
  if (s->alive == 0 && !has_news(s))
    return 0;
  uint64_t until = s->drain_ns = uv_hrtime() + (uint64_t)drain_ms * NS_PER_MS;
  if (lua_cpcall(s->L, drain_protected, s) != 0)
    lua_pop(s->L, 1);
  while ((s->alive > 0 || has_news(s)) && !s->pump_error &&
         uv_hrtime() < until) {
    if (is_stuck(s))
      break;
    uv_ref((uv_handle_t *)&s->check);
    int now = s->ready > 0 || has_news(s);
    uv_run(s->loop, now ? UV_RUN_NOWAIT : UV_RUN_ONCE);
    uv_unref((uv_handle_t *)&s->check);
  }
  s->drain_ns = 0;
  return (int)s->alive;
}

void sched_interrupt(struct sched *s, int signo) {
  s->signal = signo;
  uv_async_send(&s->async);
}
