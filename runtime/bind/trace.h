/* Tracebacks that span tasks. Every body runs below an error handler that
 * keeps the stack of the error in the task's record, as text, beside the error
 * value itself, which is never changed. When the same value is raised again in
 * another task (join, an error that goes up, a shared load), that task's text
 * begins with the first one's. */
#ifndef MOONSTASH_BIND_TRACE_H
#define MOONSTASH_BIND_TRACE_H

#include "bind/sched.h"

/* The handler: expects the scheduler as its upvalue. */
int trace_on_error(lua_State *L);

/* luaL_error, with the position of the user's line instead of our Lua half's.
 */
int trace_error(lua_State *L, const char *format, ...);

/* Remembers in t that the failure in the record at index (its err and trace)
 * may be raised again in t. */
void trace_note_cause(lua_State *L, struct task *t, int record);

/* Is the stack that the record at index keeps of a caught error (cause_trace)
 * one of the same task? Then no other task has passed the error on. */
int trace_is_own(lua_State *L, int record);

/* Replaces the traceback on top of L by one without Moonstash's own lines. */
void trace_without_ours(lua_State *L);

#endif
