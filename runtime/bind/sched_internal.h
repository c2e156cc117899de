/* What the scheduler's files share: sched.c (pump, loop), wait.c, tree.c,
 * ending.c, record.c. Nobody else includes this. */
#ifndef MOONSTASH_BIND_SCHED_INTERNAL_H
#define MOONSTASH_BIND_SCHED_INTERNAL_H

#include "bind/sched.h"

/* sched.c */
void sched_ready(struct task *t); /* puts it at the end of the ready queue */
void sched_log(struct sched *s, int level, const char *line);

/* record.c */
uint32_t slot_take(struct sched *s, lua_State *L); /* with a fresh coroutine */
void slot_fill(struct sched *s, lua_State *L, uint32_t slot);
/* Calls fn with a and b as light userdata; returns how many values it pushed.
 * Between slices the error of a finalizer cannot stop it: see record.c. */
int sched_guarded(lua_State *L, struct sched *s, lua_CFunction fn,
                  const void *a, const void *b);
int sched_guard(lua_State *L); /* what s->guard refers to */
void sched_push_table(lua_State *L, struct sched *s); /* an empty one, so */
void slot_drop_thread(struct sched *s, lua_State *L, uint32_t slot);
void slot_release(struct sched *s, lua_State *L, uint32_t slot);
void slot_set_handle(struct sched *s, lua_State *L,
                     uint32_t slot); /* pops it */
void record_push(lua_State *L, struct task *t);
/* Pops the value on top of L into a field of t's record. */
void record_set(lua_State *L, struct task *t, const char *field);
/* Pushes a field of t's record; nil when there is no record. */
void record_get(lua_State *L, struct task *t, const char *field);

/* wait.c */
uint64_t wait_due_ns(double seconds);
/* Ends a wait without results; the waited-for is told to forget it. */
void wait_forget(lua_State *L, struct task *t);
/* t's slice has ended in a wait: what ended that on its way counts now. */
void wait_suspended(lua_State *L, struct task *t);
/* Wakes t with the value of its interrupt, if it waits and may be told. */
void wait_deliver(lua_State *L, struct task *t);

/* tree.c */
struct task *tree_next(struct task *top, struct task *t, int skip);
void tree_unlink(struct task *t);
/* Cancels everything below top with the object on top of L (kept), but for what
 * a shield or a load that others wait for keeps. */
void tree_cancel_below(lua_State *L, struct task *top);

/* ending.c: what the pump calls when a slice has ended the body */
void ending_returned(struct sched *s, lua_State *L, struct task *t);
/* Ends t without its coroutine's consent: that is never resumed again. */
void ending_drop_cancelled(struct sched *s, lua_State *L, struct task *t);
void ending_drop_failed(struct sched *s, lua_State *L, struct task *t,
                        const char *message);
void ending_advance(struct sched *s, lua_State *L, struct task *t);
/* Lets the pending failures of t's children go up. */
void ending_raise_pending(lua_State *L, struct task *t);

#endif
