/* What the connection's files share: conn.c (states, deadlines, open and
 * close), dial.c (names, addresses, sockets), handshake.c, pipe.c (commands
 * out, replies in). Nobody else includes this. */
#ifndef MOONSTASH_REDIS_CONN_INTERNAL_H
#define MOONSTASH_REDIS_CONN_INTERNAL_H

#include "backend.h"
#include "redis/conn.h"

enum conn_state {
  CONN_IDLE,       /* never used */
  CONN_RESOLVING,  /* a name is being looked up */
  CONN_CONNECTING, /* an address is being tried */
  CONN_HANDSHAKE,  /* connected; only our greeting goes out */
  CONN_READY,      /* PING was answered */
  CONN_BACKOFF,    /* until retry_ms */
  CONN_CLOSED
};

enum {             /* of how to go on after a failure */
       RETRY_SOON, /* at least every 500 ms */
       RETRY_SLOW  /* about every 30 s: it needs somebody to mend it */
};

enum {
  INPUT_SIZE = 64 * 1024, /* bytes read at once */
  WHY_SIZE = 256,         /* of a failure's sentence */
  GREETING_MAX = 8        /* commands of a handshake */
};

struct bytes { /* on their way out */
  char *data;
  size_t sent, length, capacity;
  int failed; /* there was no memory for all of them */
};

/* A socket and what waits on it. Outlives its connection's interest in it:
 * freed when libuv has let go of both handles. */
struct socket {
  union {
    uv_handle_t handle;
    uv_stream_t stream;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
  } io;
  uv_connect_t connect;
  uv_poll_t writable; /* on a duplicate of its fd; see pipe.c */
  int writable_fd;    /* the duplicate, -1: not needed so far */
  int open_handles;
  int blocked;             /* waits until it is writable */
  struct redis_conn *conn; /* NULL: abandoned */
  char input[INPUT_SIZE];
};

struct entry {             /* of the FIFO: a command without a reply */
  struct redis_call *call; /* NULL: a tombstone */
  int expect;              /* reply_type bits */
};

struct redis_conn {
  uv_loop_t *loop;
  struct redis_options options;
  redis_log_fn *log;
  void *log_ud;
  enum conn_state state;
  char name[300];       /* "127.0.0.1:6379" of what it talks to, or tries to */
  char why[WHY_SIZE];   /* the last failure */
  int down_status;      /* what commands get while it is down */
  int patient;          /* commands may wait for this attempt */
  int broken;           /* an error waits for the check phase: */
  char broken_by[128];  /* this one */
  int failing;          /* pending commands are being failed */
  int told;             /* the log knows that it is down */
  unsigned short_lived; /* connections in a row that were soon lost */
  unsigned attempts;    /* failed ones since it was up for a while */
  uint64_t ready_ms;    /* when it was ready last */
  uint64_t down_ms;     /* when it went down */
  unsigned random;      /* of jitter */
  uint64_t attempt_ms;  /* when the attempt, or its handshake, is over */
  uint64_t address_ms;  /* when the present address's or name's share is */
  uint64_t retry_ms;    /* BACKOFF: when the next attempt begins */
  uint64_t armed_ms;    /* what the timer is set to */

  /* dial.c */
  struct lookup *lookups[REDIS_HOSTS_MAX]; /* those under way, by host */
  struct addrinfo *addresses, *next_address;
  int next_host;
  int next_host_first; /* the last one took the connection, but not more */
  char refusal[128];   /* what the last address or name met */
  struct socket *socket;

  /* handshake.c */
  struct bytes greeting;
  uint8_t greetings[GREETING_MAX]; /* what each reply answers */
  int greeting_count, greeted;
  int plain; /* the server has no HELLO: AUTH and so on */

  /* pipe.c */
  struct reader *reader;
  struct entry *ring;  /* entries head .. tail - 1, modulo capacity */
  size_t capacity;     /* a power of two, or 0 */
  uint64_t head, tail; /* of all the commands ever */
  int reading;         /* what was read now answers nothing sent later: wait */
  uint64_t flushed;    /* those below were given to the kernel */
  const char *tape;    /* of the reply that is being handed out */
  size_t tape_length;
  struct bytes out;
  struct redis_call *making; /* between begin and commit */
  size_t making_length;      /* out.length before it */
  uint64_t allowed_ms;       /* longest of the calls since it was idle */
  uint64_t wire_ms;          /* since when the server owes us a byte */
  struct redis_call probe;   /* of all conn_probe's commands */
  int probes;                /* of them under way */
  uint64_t word;             /* that the first of these asks for */
  struct conn_stats stats;

  int open_handles;
  uv_prepare_t prepare; /* flushes what is left at the end of a turn */
  uv_check_t check;     /* judges deadlines */
  uv_timer_t timer;     /* wakes poll for them; does no more */
};

/* conn.c */
/* Ends the attempt or the connection: fails what is pending with that status,
 * and tries again. The text is a printf format; it completes "Redis at HOST:".
 */
void conn_drop(struct redis_conn *c, int status, int retry, const char *format,
               ...) __attribute__((format(printf, 4, 5)));
/* The same from inside a caller's call: takes effect in the check phase. */
void conn_break(struct redis_conn *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void conn_ready(struct redis_conn *c); /* the handshake is over */
void conn_arm(struct redis_conn *c);   /* the timer, for the next deadline */
/* Only calls that are allowed to wait longer than the rest keep it: silent for
 * so long that new commands had better not wait for it, too. */
int conn_is_silent(struct redis_conn *c);
uint64_t conn_stall_ms(const struct redis_conn *c);
unsigned conn_random(struct redis_conn *c, unsigned below);
uint64_t conn_time_ms(void); /* now, not as of the turn's beginning */

/* dial.c */
void dial_start(struct redis_conn *c);
/* Gives the present address up, or the look-up of the present name. */
void dial_next_address(struct redis_conn *c);
void dial_stop(struct redis_conn *c); /* closes and forgets it all */

/* handshake.c */
void handshake_start(struct redis_conn *c);
void handshake_reply(struct redis_conn *c, const struct reply *reply,
                     const char *rest);

/* pipe.c */
void bytes_command(struct bytes *b, size_t args, const char *name);
void bytes_arg(struct bytes *b, const void *a, size_t a_len, const void *z,
               size_t z_len);
void bytes_drop(struct bytes *b);
void pipe_flush(struct redis_conn *c);
void pipe_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf);
void pipe_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf);
void pipe_choose_word(struct redis_conn *c);
/* Fails every pending command with the connection's why. */
void pipe_fail(struct redis_conn *c, int status);
/* The socket keeps the loop alive while commands are pending. */
void pipe_hold_loop(struct redis_conn *c);

#endif
