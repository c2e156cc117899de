/* A connection to one Redis server: it comes up by itself, stays up, carries
 * commands in order, and says how each of them ended.
 *
 *   begin(count) command(..) arg(..) ... commit     -> on_reply, count times
 *
 * Commands of all callers share the one connection. Each is an entry of a FIFO;
 * the server answers in order, so the reply that comes belongs to the entry at
 * the head. A caller that gives up (conn_cancel) leaves a tombstone there: its
 * reply is read and thrown away. An entry is never removed before its reply has
 * come, or the connection has gone.
 *
 * Whatever makes the order doubtful - a protocol error, a reply without a
 * command, a reply of a kind that the command cannot have - ends the
 * connection: all that is pending fails, once each, and a new one is made.
 *
 * While there is no connection commands fail at once: nothing is queued. Only
 * before the first attempt to connect has had an outcome, and after the server
 * has closed an idle connection, do commands wait for it.
 *
 * States: idle -> resolving -> connecting -> handshake -> ready, from where an
 * error leads to backoff and from there to resolving again.
 *
 * Pending commands keep the loop alive, and so does an attempt to connect while
 * it lasts; an idle connection, or the wait for the next attempt, does not.
 *
 * Everything happens on the loop's thread. on_reply is called from the loop,
 * never from inside begin ... commit or cancel. Deadlines are judged in the
 * loop's check phase, after the sockets were read. Knows no Lua.
 */
#ifndef MOONSTASH_REDIS_CONN_H
#define MOONSTASH_REDIS_CONN_H

#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "redis/reply.h"

enum {                              /* limits, each a named refusal */
       REDIS_IN_FLIGHT_MAX = 8192,  /* commands without a reply */
       REDIS_UNSENT_MAX = 32 << 20, /* bytes not yet taken by the kernel */
       REDIS_VALUE_MAX = 8 << 20,   /* bytes of one value that is set */
       REDIS_HOSTS_MAX = 16,        /* addresses to try, in order */
       REDIS_PATH_MAX = 107         /* bytes of a unix socket's path */
};

enum { REDIS_AUTO, REDIS_STANDALONE }; /* redis_options.mode */

struct redis_host {
  char name[256]; /* a name, an IPv4 or an IPv6 address */
  int port;
};

/* Where and how to connect. Text that is not used is empty. */
struct redis_options {
  struct redis_host hosts[REDIS_HOSTS_MAX];
  int host_count;                /* 0: path */
  char path[REDIS_PATH_MAX + 1]; /* a unix socket */
  char username[256];
  char password[1024];
  int db;
  int mode;
  uint64_t timeout_ms;         /* of a command; the stall limit is twice it, */
                               /* or more: see conn_allow */
  uint64_t connect_timeout_ms; /* names and addresses; then the handshake */
};

/* Is warned of what happens to a connection: one line. */
typedef void redis_log_fn(void *ud, const char *line);

struct redis_call;

/* The outcome of command `index` of a call, 0 first: *reply is its reply's
 * first record and rest what follows on the tape. NULL: it failed, and with it
 * those of the call's commands that are still to come; status is a negative
 * BACKEND_ code and conn_why says more. After the last index, or a failure, the
 * call is the caller's again. May begin other commands, also of this call. */
typedef void redis_reply_fn(struct redis_call *call, uint32_t index, int status,
                            const struct reply *reply, const char *rest);

/* Commands that belong together; the caller's memory, and alive until the last
 * outcome or conn_cancel. */
struct redis_call {
  redis_reply_fn *on_reply;
  uint64_t first;    /* the connection's: entry of the first command */
  uint32_t count;    /* commands */
  uint32_t answered; /* of these */
};

struct conn_stats {
  uint64_t connects;  /* times it became ready */
  uint64_t commands;  /* sent */
  uint64_t discarded; /* replies that came too late for their callers */
  uint64_t desyncs;   /* replies that cannot be */
  uint64_t stalls;    /* times a silent server was given up */
  uint64_t in_flight; /* commands without a reply now */
  int ready;
};

struct redis_conn;

/* Makes one; it connects when it is first used. Copies the options. NULL: no
 * memory, or no handles. */
struct redis_conn *conn_open(uv_loop_t *loop, const struct redis_options *o,
                             redis_log_fn *log, void *ud);
/* Closes it: what is pending fails (BACKEND_ECLOSED) before this returns; what
 * the socket takes at once is still sent. Frees itself when the loop has run.
 * To close it again, from a callback of this, does nothing. */
void conn_close(struct redis_conn *c);

/* Starts to connect, if it has not begun. */
void conn_start(struct redis_conn *c);
/* 1 ready; 0 on its way for the first time; else the negative BACKEND_ code
 * that commands get now, see conn_why. */
int conn_status(const struct redis_conn *c);
/* A sentence about the last failure: begin's, or the status of on_reply. */
const char *conn_why(const struct redis_conn *c);

/* Begins a call of `count` commands with about `bytes` of arguments. 0; or a
 * BACKEND_ code, and nothing has begun. */
int conn_begin(struct redis_conn *c, struct redis_call *call, uint32_t count,
               size_t bytes);
/* One command: what its reply may be (reply_type bits; an error always may),
 * how many arguments follow, and its name (NULL: it is the first argument). */
void conn_command(struct redis_conn *c, int expect, size_t args,
                  const char *name);
void conn_arg(struct redis_conn *c, const void *bytes, size_t length);
/* An argument in two pieces: namespace and key. */
void conn_arg2(struct redis_conn *c, const void *a, size_t a_len, const void *b,
               size_t b_len);
void conn_arg_int(struct redis_conn *c, int64_t value);
/* The call cannot be made, for want of memory: commit will say so. */
void conn_spoil(struct redis_conn *c);
/* Ends the call's commands: 0, or BACKEND_ENOMEM and none was sent. */
int conn_commit(struct redis_conn *c);
/* The caller will wait so long for what it has just committed, 0: for ever. A
 * server that is silent meanwhile has not stalled. */
void conn_allow(struct redis_conn *c, uint64_t ms);
/* Nobody wants the outcome any more: on_reply is not called again. */
void conn_cancel(struct redis_conn *c, struct redis_call *call);

/* Asks the server to repeat a word that nobody can guess, behind the commands
 * so far: if it is answered by anything else, the replies are out of step and
 * the connection goes. */
void conn_probe(struct redis_conn *c);
/* Is it a probe's answer? Then another command had none. */
int conn_is_probe(const struct redis_conn *c, const struct reply *reply);
/* A value was read that belongs to another key, or an answer did not come in
 * time: probes, unless a probe is under way. */
void conn_suspect(struct redis_conn *c);

/* Inside on_reply: the whole tape. */
const char *conn_tape(const struct redis_conn *c, size_t *length);

/* A reply was not what its command must have: the connection goes. */
void conn_desync(struct redis_conn *c, const char *what);

void conn_get_stats(const struct redis_conn *c, struct conn_stats *out);

#endif
