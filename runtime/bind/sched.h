/* Tasks: the scheduler that runs Lua coroutines on a libuv loop.
 *
 * Every piece of Lua runs in a task. A wait is a C function that arms
 * something, calls task_wait and returns its result; the completion calls
 * task_wake, which only puts the task on the ready queue. One pump, run from
 * the loop's check phase, resumes ready tasks. Nothing else calls into Lua.
 *
 * The first result of every wait, in Lua, is a WAIT_ state; the Lua half
 * (lua/task.lua) raises or returns by it.
 */
#ifndef MOONSTASH_BIND_SCHED_H
#define MOONSTASH_BIND_SCHED_H

#include <lua.h>
#include <stdint.h>
#include <uv.h>

#include "bind/deadline.h"

enum wait_state {
  WAIT_OK = 0,      /* values follow */
  WAIT_TIMEOUT = 1, /* the wait's own deadline passed */
  WAIT_RAISE = 2,   /* raise the value that follows */
  WAIT_FAILED = 3   /* join: the task failed with the value that follows */
};

enum task_state {
  TASK_READY,   /* in the ready queue */
  TASK_RUNNING, /* on the CPU; also while it runs a nested coroutine */
  TASK_WAITING, /* armed; leaves by task_wake, a deadline or an interrupt */
  TASK_JOINING, /* its body has ended, its children have not */
  TASK_DONE     /* ended; only the Lua handle may still exist */
};

enum task_outcome { TASK_OK, TASK_FAILED, TASK_CANCELLED };

enum {                           /* task.flags */
       TASK_STARTED = 1 << 0,    /* the body has run a first slice */
       TASK_RECORD = 1 << 1,     /* the handle has a record table (its env) */
       TASK_MAIN = 1 << 2,       /* the runtime runs until these have ended */
       TASK_DEFERS = 1 << 3,     /* the record holds deferred functions */
       TASK_IN_SHIELD = 1 << 4,  /* spawned inside a shield of its parent */
       TASK_ABANDONED = 1 << 5,  /* never resumed again (os.exit) */
       TASK_CANCEL = 1 << 6,     /* interrupt: cancelled; record.cancel */
       TASK_CHILD_FAIL = 1 << 7, /* interrupt: a child failed; record.failure */
       TASK_LIMIT = 1 << 8, /* interrupt: its time limit passed; record.limit */
       TASK_DEFERRING = 1 << 9, /* its body has ended, deferred functions run */
       TASK_YIELDED = 1 << 10,  /* task.yield: ready again at once */
       TASK_PJOINING =
           1 << 11, /* waits in pjoin: failures of other children wait */
       TASK_PENDING = 1 << 12, /* record.pending holds such failures */
       TASK_WOKEN = 1 << 13,   /* woken on the way to its yield; see push */
       TASK_TOLD = 1 << 14,    /* it was told of its TASK_CHILD_FAIL */
       TASK_INTERRUPTS = TASK_CANCEL | TASK_CHILD_FAIL | TASK_LIMIT
};

struct task;
struct sched;

/* Is called when a wait ends otherwise than by task_wake: forget `arg`. */
typedef void task_forget_fn(lua_State *L, struct task *t, void *arg);
/* Pushes a completed wait's results on L, the WAIT_ state first, then frees arg
 * and returns how many. It may raise before it frees: it is called again. L
 * NULL: nobody wants them, only free arg. */
typedef int task_push_fn(lua_State *L, struct task *t, void *arg);

/* A task is the userdata behind its Lua handle. While it is not DONE the
 * handle and the coroutine are anchored in the registry by `slot`. */
struct task {
  struct sched *sched;
  lua_State *co;            /* its coroutine; NULL once the body has ended */
  struct task *parent;      /* NULL once DONE */
  struct task *children;    /* first child */
  struct task *next, *prev; /* siblings; NULL-ended both ways */
  struct task *ready_next;  /* in the ready queue */
  struct task *joiners;     /* first of the tasks that wait to join this */
  struct task *join_next, *join_prev; /* in the joiners of waits_for */
  struct task *waits_for; /* whose progress this wait needs, if known */
  task_forget_fn *forget; /* while WAITING; may be NULL */
  void *forget_arg;
  task_push_fn *push; /* while READY, after task_complete */
  void *push_arg;
  struct deadline wait;  /* of the current wait */
  struct deadline limit; /* of the whole task */
  uint64_t generation;   /* of the current wait; grows */
  uint64_t id;           /* 1, 2, ... per scheduler */
  uint32_t slot;         /* index of its anchor and coroutine */
  uint32_t nargs;        /* values on co for the next resume */
  uint32_t shield;       /* depth of shields; interrupts wait while > 0 */
  uint32_t held;         /* waiters of this runtime on loads it runs */
  uint32_t loads;        /* how many it runs */
  uint32_t raised;       /* interrupts raised since the drain began */
  uint16_t flags;        /* TASK_ bits */
  uint8_t state;         /* enum task_state */
  uint8_t outcome;       /* enum task_outcome, once the body has ended */
};

/* What the scheduler tells its host. Called from the pump, outside Lua. */
struct sched_hooks {
  void (*log)(void *ud, int level, const char *line);
  /* A task nobody joins failed and has no parent to fail: main, detached.
   * trace: message and stack; NULL for a nil error object. */
  void (*uncaught)(void *ud, const struct task *t, const char *trace);
  void *ud;
};

/* Do other runtimes wait for a load that t runs? */
typedef int sched_held_fn(void *ud, const struct task *t);
/* Work that comes from elsewhere than tasks and the loop's handles. */
struct sched_news {
  int (*pending)(void *ud);              /* is a task to be started for it? */
  void (*start)(lua_State *L, void *ud); /* starts that; may raise */
  void *ud;
};

struct slot {         /* an anchored coroutine, in use or pooled */
  lua_State *co;      /* NULL: none yet, or dropped after a raw error */
  uint32_t next_free; /* in a free list, else NO_SLOT */
};

#define NO_SLOT UINT32_MAX

struct sched {
  lua_State *L; /* the state's main thread; never yields */
  uv_loop_t *loop;
  uv_prepare_t prepare; /* before poll: decide how long it may block */
  uv_check_t check;     /* after poll: pump, then judge deadlines */
  uv_idle_t idle;       /* on while tasks are ready: poll must not block */
  uv_timer_t timer;     /* wakes poll for the first deadline; does no more */
  uv_async_t async;     /* wakes poll from signal handlers and threads */
  struct sched_hooks hooks;
  sched_held_fn *held_abroad; /* the cache's; NULL while there is none */
  void *held_ud;
  struct sched_news news; /* pending NULL: there never is any */
  struct task root;       /* parent of main and detached tasks; never runs */
  struct task *current;   /* whose slice runs; NULL between slices */
  struct task *ready_first, **ready_end;
  struct deadlines deadlines;
  struct slot *slots;
  uint32_t slot_count, slot_capacity;
  uint32_t pooled_slot, empty_slot; /* free lists: with a coroutine, without */
  uint32_t pooled;                  /* length of the first */
  uint32_t ready, waiting, alive, mains; /* counts of tasks */
  uint64_t next_id;
  uint64_t turn_ns;   /* uv_hrtime() when this turn's poll had returned */
  uint64_t budget_ns; /* uv_hrtime() after which poll returns; 0 = none */
  uint64_t drain_ns;  /* uv_hrtime() at which a drain gives up; 0 = none */
  int anchors, xpcall, handler, error_mt, sites, defer_runner, guard; /* refs */
  int site_count; /* entries of sites */
  int pumping;    /* inside pump, so no nesting */
  int pump_error; /* the pump itself failed (out of memory) */
  int exiting;    /* os.exit was called; exit_code holds */
  int exit_code;
  int draining; /* everything is cancelled and about to end */
  int closing;  /* sched_close has begun: nobody is woken any more */
  int main_failed;
  int told_left; /* the host has been warned of tasks that outlived a drain */
  int open_handles;    /* of the five above, not yet closed */
  volatile int signal; /* set by sched_interrupt, read by the pump */
};

/* Opens the scheduler on a loop and a fresh state. Returns 0 or a negative
 * errno; on failure nothing is left open. */
int sched_open(struct sched *s, lua_State *L, uv_loop_t *loop,
               const struct sched_hooks *hooks);
/* Closes its handles: the loop must run once more before they are gone
 * (open_handles reaches 0). Tasks that are left are dropped with the state. */
void sched_close(struct sched *s);

/* Makes a task from the function and nargs arguments on top of L (popped) and
 * pushes its handle. A child of a cancelled parent is born cancelled, unless it
 * is born in a shield. Raises when out of memory, when there are thousands of
 * arguments, and when the runtime has closed. */
struct task *sched_spawn(struct sched *s, lua_State *L, struct task *parent,
                         int nargs);
/* Runs the loop until no main task is left. Returns 0, or -1 when stuck:
 * tasks wait and nothing can wake them (the main tasks are then cancelled with
 * an error that says so and the loop runs on; those that a shield keeps from
 * failing are reported as uncaught). */
int sched_run(struct sched *s);
/* Runs ready tasks and due I/O for about budget_us. */
void sched_poll(struct sched *s, uint64_t budget_us);
/* Cancels every task, with this reason. They end in the turns that follow. */
void sched_cancel_all(lua_State *L, struct sched *s, const char *reason);
/* Cancels every task and runs the loop until they have ended, and those that
 * are started for news meanwhile, at most drain_ms.
 * Returns how many have not. */
int sched_drain(struct sched *s, unsigned drain_ms);
/* Signal- and thread-safe: cancels the main tasks in the loop's next turn. */
void sched_interrupt(struct sched *s, int signo);

/* Call it before arming anything. Raises, with the reason, when `what` cannot
 * wait here. Else *t is the task whose code L runs, and 1 says go on, 0 that
 * an interrupt is due: return task_raise(L, *t). */
int task_may_wait(lua_State *L, struct sched *s, const char *what,
                  struct task **t);
/* The same for a pjoin: failures of other children stay pending. */
int task_may_pjoin(lua_State *L, struct sched *s, struct task **t);
/* Pushes WAIT_RAISE and the pending interrupt; returns 2 for the C function
 * to return, or parks the task for good when it ignores a drain. */
int task_raise(lua_State *L, struct task *t);
/* Arms the current task's wait and yields: `return task_wait(...)`. timeout
 * in seconds, < 0 = none. */
int task_wait(lua_State *L, struct task *t, double timeout,
              task_forget_fn *forget, void *arg);
/* Lets the other ready tasks run, then goes on: `return task_yield(L, t)`. */
int task_yield(lua_State *L, struct task *t);
/* Ends t's wait: the nvalues on top of `from` (popped) become its results
 * after WAIT_OK (`state`). Only for a task that is WAITING. */
void task_wake(struct task *t, int state, lua_State *from, int nvalues);
/* The same from an I/O callback, which must not touch Lua: push runs when the
 * pump resumes t. */
void task_complete(struct task *t, task_push_fn *push, void *arg);
/* Is t in that very wait still? */
int task_is_waiting(const struct task *t, uint64_t generation);

/* Cancels t and its children. The error object is on top of L (popped).
 * Returns 1, or 0 when t had ended or was cancelled before. */
int task_cancel(lua_State *L, struct task *t);
/* Makes t fail with the error object on top of L (popped) at its wait. */
void task_fail(lua_State *L, struct task *t);
/* Ends the running task here: it is never resumed; its children and deferred
 * functions run to their end as ever. The caller yields at once. */
int task_abandon(lua_State *L, struct task *t);
/* The failed child whose handle is at index is being joined: it is no longer
 * one that t's next wait would raise. */
void task_failure_taken(lua_State *L, struct task *t, int handle);
/* Undoes the current task's armed wait (a coroutine wrapper found that it
 * cannot pass the yield on). */
void task_unwait(lua_State *L, struct task *t);
/* Moves t below another parent. The old one, if it only waited for t, ends. */
void task_set_parent(lua_State *L, struct task *t, struct task *parent);
/* Delivers a pending interrupt after a shield or a held load has ended. */
void task_interrupts_due(lua_State *L, struct task *t);
/* Would `t` wait for itself if it waited for `on`? Walks the waits-for chain.
 */
int task_would_deadlock(const struct task *t, const struct task *on);
/* Do others, here or in another runtime, wait for a load that t runs? */
int task_held(const struct task *t);
/* The same for the task or one below it. */
int task_is_held(struct task *top);
int task_set_limit(struct task *t, double seconds);
void task_push_handle(lua_State *L, const struct task *t);
/* Pushes t's record table, making it if needed; the handle is at index. */
void task_push_record(lua_State *L, int handle, struct task *t);
/* Pushes an error object {code, message} with the errors' metatable. */
void sched_push_error(lua_State *L, struct sched *s, const char *code,
                      const char *message);

#endif
