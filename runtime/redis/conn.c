/* The states of a connection and its deadlines; see conn.h. */
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "redis/conn_internal.h"

enum {
  RETRY_FIRST_MS = 50, /* jitter of the first attempt after a loss */
  RETRY_MIN_MS = 20,
  RETRY_MAX_MS = 500,        /* so that we are back within a second */
  STABLE_MS = 1000,          /* a connection shorter than that has failed */
  SHORT_LIVED_MAX = 3,       /* such ones; then "is back" must be true */
  RETRY_SLOW_MS = 30 * 1000, /* wrong credentials, a server we cannot use */
  STALL_FACTOR = 2,          /* silence, in command timeouts */
  STALL_MIN_MS = 200,
  STALL_MAX_MS = 60 * 1000, /* also where commands have no timeout */
  NS_PER_MS = 1000000
};

uint64_t conn_time_ms(void) {
  return uv_hrtime() / NS_PER_MS;
}

unsigned conn_random(struct redis_conn *c, unsigned below) {
  c->random = c->random * 1103515245u + 12345u;
  return (c->random >> 8) % below;
}

uint64_t conn_stall_ms(const struct redis_conn *c) {
  uint64_t ms = c->options.timeout_ms * STALL_FACTOR;
  if (ms == 0 || ms > STALL_MAX_MS)
    return STALL_MAX_MS;
  return ms > STALL_MIN_MS ? ms : STALL_MIN_MS;
}

void conn_allow(struct redis_conn *c, uint64_t ms) {
  if (ms == 0 || ms > STALL_MAX_MS)
    ms = STALL_MAX_MS;
  if (ms > c->allowed_ms)
    c->allowed_ms = ms;
}

/* How long the server may be silent now. */
static uint64_t silence_ms(const struct redis_conn *c) {
  uint64_t stall = conn_stall_ms(c);
  return c->allowed_ms > stall ? c->allowed_ms : stall;
}

static void say(struct redis_conn *c, const char *format, ...) {
  char line[sizeof c->name + WHY_SIZE + 64];
  va_list args;
  va_start(args, format);
  vsnprintf(line, sizeof line, format, args);
  va_end(args);
  if (c->log != NULL)
    c->log(c->log_ud, line);
}

/* ---- deadlines ---- */

/* When something is due in this state; 0: nothing. */
static uint64_t due_ms(const struct redis_conn *c) {
  uint64_t stable = 0, stall;
  switch (c->state) {
  case CONN_HANDSHAKE:
    return c->attempt_ms;
  case CONN_RESOLVING:
  case CONN_CONNECTING:
    return c->address_ms < c->attempt_ms ? c->address_ms : c->attempt_ms;
  case CONN_READY:
    if (c->told)
      stable = c->ready_ms + STABLE_MS;
    if (c->head >= c->flushed)
      return stable;
    stall = c->wire_ms + silence_ms(c);
    return stable != 0 && stable < stall ? stable : stall;
  case CONN_BACKOFF:
    return c->retry_ms;
  default:
    return 0;
  }
}

static void on_timer(uv_timer_t *timer) {
  (void)timer; /* poll has returned; on_check judges */
}

void conn_arm(struct redis_conn *c) {
  uint64_t due = c->broken ? 1 : due_ms(c);
  if (due == 0 || c->state == CONN_CLOSED)
    return;
  if (uv_is_active((uv_handle_t *)&c->timer) && c->armed_ms <= due)
    return;
  uint64_t turn = uv_now(c->loop); /* what libuv counts from */
  c->armed_ms = due;
  uv_timer_start(&c->timer, on_timer, due > turn ? due - turn : 0, 0);
}

static void tell_back(struct redis_conn *c) {
  say(c, "Redis at %s is back after %.1f s", c->name,
      (double)(conn_time_ms() - c->down_ms) / 1000);
  c->told = 0;
}

/* A deadline has passed. */
static void judge(struct redis_conn *c, uint64_t now) {
  double seconds = (double)c->options.connect_timeout_ms / 1000;
  switch (c->state) {
  case CONN_RESOLVING:
  case CONN_CONNECTING:
    if (now < c->attempt_ms)
      dial_next_address(c);
    else if (c->state == CONN_RESOLVING)
      conn_drop(c, BACKEND_ECONNECTION, RETRY_SOON,
                "the name was not resolved within %g s", seconds);
    else
      conn_drop(c, BACKEND_ECONNECTION, RETRY_SOON, "no connection within %g s",
                seconds);
    break;
  case CONN_HANDSHAKE:
    conn_drop(c, BACKEND_ECONNECTION, RETRY_SOON,
              "connected, but not answered within %g s", seconds);
    break;
  case CONN_READY:
    if (c->told && now >= c->ready_ms + STABLE_MS) {
      tell_back(c);
      break;
    }
    c->stats.stalls++;
    conn_drop(c, BACKEND_ECONNECTION, RETRY_SOON,
              "silent for %g s: the connection was given up",
              (double)silence_ms(c) / 1000);
    break;
  case CONN_BACKOFF:
    dial_start(c);
    break;
  default:
    break;
  }
}

static void on_check(uv_check_t *check) {
  struct redis_conn *c = check->data;
  uint64_t due = due_ms(c), now = uv_now(c->loop);
  if (c->broken) {
    conn_drop(c, BACKEND_ECONNECTION, RETRY_SOON, "%s", c->broken_by);
  } else if (due != 0 && now >= due) {
    judge(c, now);
  }
  conn_arm(c);
}

/* Arms the timer here, too: it may just have gone off for a deadline that has
 * been put off since. */
static void on_prepare(uv_prepare_t *prepare) {
  struct redis_conn *c = prepare->data;
  pipe_flush(c);
  conn_arm(c);
}

/* ---- up and down ---- */

void conn_start(struct redis_conn *c) {
  if (c->state == CONN_IDLE)
    dial_start(c);
}

void conn_ready(struct redis_conn *c) {
  c->state = CONN_READY;
  c->stats.connects++;
  c->ready_ms = conn_time_ms();
  if (c->told && c->short_lived < SHORT_LIVED_MAX)
    tell_back(c);
  pipe_hold_loop(c);
  pipe_flush(c);
  conn_arm(c);
}

/* Says why commands fail now. The server's words are in it: no line of a log
 * shall end where they want it. */
static void set_why(struct redis_conn *c, const char *text) {
  snprintf(c->why, sizeof c->why, "Redis at %.100s: %.140s", c->name, text);
  char *at = c->why;
  for (; *at != '\0'; at++)
    if ((unsigned char)*at < ' ' || *at == 0x7f)
      *at = '?';
  if (at[-1] == '.') /* more follows in the log */
    at[-1] = '\0';
}

int conn_is_silent(struct redis_conn *c) {
  char text[64];
  uint64_t stall = conn_stall_ms(c);
  if (c->state != CONN_READY || c->allowed_ms <= stall || c->head >= c->flushed)
    return 0;
  uint64_t silent = conn_time_ms() - c->wire_ms;
  if (silent <= stall)
    return 0;
  snprintf(text, sizeof text, "silent for %.1f s", (double)silent / 1000);
  set_why(c, text);
  return 1;
}

/* How long to wait before the next attempt. */
static uint64_t retry_delay(struct redis_conn *c, int retry) {
  unsigned most = RETRY_FIRST_MS;
  if (retry == RETRY_SLOW)
    return RETRY_SLOW_MS - conn_random(c, RETRY_SLOW_MS / 4);
  if (c->attempts == 0)
    return c->patient ? 0 : conn_random(c, RETRY_FIRST_MS);
  for (unsigned i = 1; i < c->attempts && most < RETRY_MAX_MS; i++)
    most *= 2;
  if (most > RETRY_MAX_MS)
    most = RETRY_MAX_MS;
  return RETRY_MIN_MS + conn_random(c, most - RETRY_MIN_MS);
}

static void tell_down(struct redis_conn *c, int retry) {
  if (c->told || c->patient)
    return;
  c->told = 1;
  c->down_ms = conn_time_ms();
  const char *next = retry == RETRY_SLOW ? "it is tried again in 30 s"
                     : c->down_status == BACKEND_ECONNECTION
                         ? "commands fail until it is back"
                         : "commands fail until that has changed";
  say(c, "%s; %s", c->why, next);
}

void conn_drop(struct redis_conn *c, int status, int retry, const char *format,
               ...) {
  char text[WHY_SIZE];
  uint64_t now = conn_time_ms();
  int was_good = c->state == CONN_READY && now - c->ready_ms >= STABLE_MS;
  va_list args;
  if (c->state == CONN_CLOSED)
    return;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  set_why(c, text);
  c->broken = 0;
  if (c->state == CONN_READY)
    c->short_lived = was_good ? 0 : c->short_lived + 1;
  c->next_host_first = c->state == CONN_HANDSHAKE;
  c->patient = was_good && c->head == c->tail;
  c->attempts = was_good ? 0 : c->attempts + 1;
  c->down_status = status;
  c->state = CONN_BACKOFF;
  c->retry_ms = now + retry_delay(c, retry);
  dial_stop(c);
  tell_down(c, retry);
  pipe_fail(c, status);
  conn_arm(c);
}

void conn_break(struct redis_conn *c, const char *format, ...) {
  va_list args;
  if (c->broken)
    return;
  va_start(args, format);
  vsnprintf(c->broken_by, sizeof c->broken_by, format, args);
  va_end(args);
  set_why(c, c->broken_by);
  c->broken = 1;
  conn_arm(c);
}

int conn_status(const struct redis_conn *c) {
  if (c->state == CONN_READY && !c->broken)
    return 1;
  if (c->state == CONN_CLOSED)
    return BACKEND_ECLOSED;
  if (c->broken || c->failing)
    return BACKEND_ECONNECTION;
  return c->patient ? 0 : c->down_status;
}

const char *conn_why(const struct redis_conn *c) {
  return c->why;
}

void conn_get_stats(const struct redis_conn *c, struct conn_stats *out) {
  *out = c->stats;
  out->in_flight = c->tail - c->head;
  out->ready = conn_status(c) == 1;
}

/* ---- open and close ---- */

static void on_closed(uv_handle_t *handle) {
  struct redis_conn *c = handle->data;
  if (--c->open_handles > 0)
    return;
  bytes_drop(&c->out);
  bytes_drop(&c->greeting);
  free(c->ring);
  free(c);
}

static void open_handle(struct redis_conn *c, uv_handle_t *handle) {
  handle->data = c;
  uv_unref(handle);
  c->open_handles++;
}

struct redis_conn *conn_open(uv_loop_t *loop, const struct redis_options *o,
                             redis_log_fn *log, void *ud) {
  struct redis_conn *c = calloc(1, sizeof *c);
  if (c == NULL)
    return NULL;
  c->loop = loop;
  c->options = *o;
  c->log = log;
  c->log_ud = ud;
  c->patient = 1;
  c->random = (unsigned)uv_hrtime() ^ (unsigned)(uintptr_t)c;
  snprintf(c->why, sizeof c->why, "not connected yet");
  pipe_choose_word(c);
  uv_prepare_init(loop, &c->prepare);
  uv_check_init(loop, &c->check);
  uv_timer_init(loop, &c->timer);
  uv_prepare_start(&c->prepare, on_prepare);
  uv_check_start(&c->check, on_check);
  open_handle(c, (uv_handle_t *)&c->prepare);
  open_handle(c, (uv_handle_t *)&c->check);
  open_handle(c, (uv_handle_t *)&c->timer);
  return c;
}

void conn_close(struct redis_conn *c) {
  if (c->state == CONN_CLOSED)
    return;
  c->reading = 0; /* in a callback of a read: what is there may go out */
  pipe_flush(c);
  c->state = CONN_CLOSED;
  snprintf(c->why, sizeof c->why, "Redis: the connection was closed");
  dial_stop(c);
  pipe_fail(c, BACKEND_ECLOSED);
  uv_close((uv_handle_t *)&c->prepare, on_closed);
  uv_close((uv_handle_t *)&c->check, on_closed);
  uv_close((uv_handle_t *)&c->timer, on_closed);
}
