/* Plays a section of the script on one connection, in a thread of its own:
 * every call here may block.
 *
 * A connection is open while fd >= 0. Whatever finds that the peer has gone
 * closes it; steps that need it do nothing then, the others still run.
 */
#define _GNU_SOURCE
#include "fake_redis.h"

#include <ctype.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
  READ_BYTES = 64 * 1024,  /* per read(2) */
  WRITE_BYTES = 64 * 1024, /* what repeat and random have in memory */
  LOG_ARGUMENT_MAX = 4096  /* bytes of an argument in the log */
};

struct connection {
  int fd; /* -1: closed */
  int id;
  FILE *log; /* or NULL */
  struct buffer in;
  size_t taken;               /* bytes of in that are done with */
  struct command command;     /* the last one; points into in */
  struct buffer out;          /* replies that are not sent yet */
  size_t split;               /* bytes per write; 0: all */
  uint64_t pause_us;          /* after each of them */
  const struct step *profile; /* the last handshake, or NULL */
};

/* ---- the log ---- */

static void log_event(const struct connection *c, const char *event) {
  if (c->log == NULL)
    return;
  fprintf(c->log, "%d %s\n", c->id, event);
  fflush(c->log);
}

static void log_size(const struct connection *c, const char *event,
                     size_t size) {
  if (c->log == NULL)
    return;
  fprintf(c->log, "%d %s %zu\n", c->id, event, size);
  fflush(c->log);
}

static void log_argument(FILE *log, const struct slice *argument) {
  size_t size =
      argument->size < LOG_ARGUMENT_MAX ? argument->size : LOG_ARGUMENT_MAX;
  fputs(" \"", log);
  for (size_t i = 0; i < size; i++) {
    unsigned char byte = argument->data[i];
    if (isprint(byte) && byte != '"' && byte != '\\')
      putc(byte, log);
    else
      fprintf(log, "\\x%02x", byte);
  }
  putc('"', log);
  if (size < argument->size)
    fprintf(log, "+%zu", argument->size - size);
}

static void log_command(const struct connection *c) {
  if (c->log == NULL)
    return;
  flockfile(c->log);
  fprintf(c->log, "%d command", c->id);
  for (size_t i = 0; i < c->command.count; i++)
    log_argument(c->log, &c->command.arguments[i]);
  putc('\n', c->log);
  fflush(c->log);
  funlockfile(c->log);
}

/* ---- bytes in and out ---- */

static void pause_us(uint64_t us) {
  struct timespec left = {.tv_sec = us / US_PER_S,
                          .tv_nsec = us % US_PER_S * 1000};
  while (nanosleep(&left, &left) < 0 && errno == EINTR)
    ;
}

static void close_connection(struct connection *c, const char *event) {
  if (c->fd < 0)
    return;
  close(c->fd);
  c->fd = -1;
  log_event(c, event);
}

/* Reads once. Returns false if the peer has gone. */
static bool fill(struct connection *c) {
  ssize_t n;
  if (c->fd < 0)
    return false;
  c->in.size -= c->taken;
  if (c->taken > 0 && c->in.size > 0)
    memmove(c->in.data, c->in.data + c->taken, c->in.size);
  c->taken = 0;
  buffer_reserve(&c->in, READ_BYTES);
  do
    n = recv(c->fd, c->in.data + c->in.size, READ_BYTES, 0);
  while (n < 0 && errno == EINTR);
  if (n <= 0) {
    close_connection(c, n == 0 ? "peer-closed" : "peer-reset");
    return false;
  }
  c->in.size += n;
  log_size(c, "read", n);
  return true;
}

/* Returns false if the peer has gone. */
static bool put(struct connection *c, const char *data, size_t size) {
  while (c->fd >= 0 && size > 0) {
    size_t part = c->split > 0 && c->split < size ? c->split : size;
    ssize_t n = send(c->fd, data, part, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0) {
      close_connection(c, "peer-reset");
      return false;
    }
    data += n;
    size -= n;
    if (c->split > 0)
      pause_us(c->pause_us);
  }
  return c->fd >= 0;
}

static bool flush(struct connection *c) {
  bool open = put(c, c->out.data, c->out.size);
  c->out.size = 0;
  return open;
}

/* Takes a command that has been read already into c->command. Returns false
 * if there is none; what is not RESP ends the connection as in Redis. */
static bool take_command(struct connection *c) {
  while (c->fd >= 0 && c->taken < c->in.size) {
    ptrdiff_t n = command_parse(&c->command, c->in.data + c->taken,
                                c->in.size - c->taken);
    if (n < 0) {
      buffer_printf(&c->out, "-ERR Protocol error\r\n");
      flush(c);
      close_connection(c, "malformed");
    }
    if (n <= 0)
      return false;
    c->taken += n;
    if (c->command.count > 0) {
      log_command(c);
      return true;
    }
  }
  return false;
}

/* Waits for a command; what is to be sent goes first. */
static bool next_command(struct connection *c) {
  while (!take_command(c))
    if (!flush(c) || !fill(c))
      return false;
  return true;
}

/* ---- steps ---- */

static void run_close(struct connection *c, const struct step *step) {
  (void)step;
  /* Unread bytes would make close send RST in place of FIN. */
  char rest[4096];
  shutdown(c->fd, SHUT_WR);
  while (recv(c->fd, rest, sizeof rest, MSG_DONTWAIT) > 0)
    ;
  close_connection(c, "close");
}

static void run_reset(struct connection *c, const struct step *step) {
  (void)step;
  struct linger linger = {.l_onoff = 1, .l_linger = 0};
  setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
  close_connection(c, "reset");
}

static void run_half_close(struct connection *c, const struct step *step) {
  (void)step;
  shutdown(c->fd, SHUT_WR);
  log_event(c, "half-close");
}

static void run_hang(struct connection *c, const struct step *step) {
  (void)step;
  log_event(c, "hang");
  struct pollfd peer = {.fd = c->fd, .events = POLLRDHUP};
  while (poll(&peer, 1, -1) < 0 && errno == EINTR)
    ;
  close_connection(c, "peer-closed");
}

/* Reads on, and still logs commands as long as it sees some. */
static void run_drain(struct connection *c, const struct step *step) {
  (void)step;
  bool commands = true;
  do {
    ptrdiff_t n = 1;
    while (commands && n > 0 && c->taken < c->in.size) {
      n = command_parse(&c->command, c->in.data + c->taken,
                        c->in.size - c->taken);
      commands = n >= 0;
      if (n > 0)
        c->taken += n;
      if (n > 0 && c->command.count > 0)
        log_command(c);
    }
    if (!commands)
      c->taken = c->in.size;
  } while (fill(c));
}

static void run_read(struct connection *c, const struct step *step) {
  for (uint64_t i = 0; i < step->count && next_command(c); i++)
    ;
}

static void run_read_bytes(struct connection *c, const struct step *step) {
  uint64_t left = step->count;
  while (left > 0) {
    if (c->taken == c->in.size && !fill(c))
      return;
    size_t part = c->in.size - c->taken;
    part = part < left ? part : left;
    c->taken += part;
    left -= part;
  }
  log_size(c, "bytes", step->count);
}

static void run_send(struct connection *c, const struct step *step) {
  put(c, step->text.data, step->text.size);
}

static void run_repeat(struct connection *c, const struct step *step) {
  struct buffer chunk = {0};
  size_t size = step->text.size;
  uint64_t per_chunk = size < WRITE_BYTES ? WRITE_BYTES / size : 1;
  uint64_t left = step->count;
  for (uint64_t i = 0; i < per_chunk && i < left; i++)
    buffer_append(&chunk, step->text.data, size);
  for (bool open = true; open && left > 0;) {
    uint64_t times = per_chunk < left ? per_chunk : left;
    open = put(c, chunk.data, times * size);
    left -= step->count == UINT64_MAX ? 0 : times;
  }
  buffer_free(&chunk);
}

static void run_random(struct connection *c, const struct step *step) {
  uint64_t state = step->seed * 0x9E3779B97F4A7C15u | 1; /* xorshift64 */
  uint64_t left = step->count;
  char *chunk = malloc(WRITE_BYTES);
  if (chunk == NULL)
    abort();
  for (bool open = true; open && left > 0;) {
    size_t part = left < WRITE_BYTES ? left : WRITE_BYTES;
    for (size_t i = 0; i < part; i++) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      chunk[i] = (char)(state >> 32);
    }
    open = put(c, chunk, part);
    left -= step->count == UINT64_MAX ? 0 : part;
  }
  free(chunk);
}

static void run_send_file(struct connection *c, const struct step *step) {
  char *chunk = malloc(WRITE_BYTES);
  FILE *file = fopen(step->text.data, "rb");
  if (file == NULL || chunk == NULL) {
    perror(step->text.data);
    exit(1);
  }
  for (size_t n; (n = fread(chunk, 1, WRITE_BYTES, file)) > 0;)
    if (!put(c, chunk, n))
      break;
  fclose(file);
  free(chunk);
}

static void run_sleep(struct connection *c, const struct step *step) {
  (void)c;
  pause_us(step->pause_us);
}

static void run_split(struct connection *c, const struct step *step) {
  c->split = step->count;
  c->pause_us = step->pause_us;
}

static void run_refuse(struct connection *c, const struct step *step) {
  (void)step;
  listener_refuse();
  log_event(c, "refuse");
}

static void run_listen(struct connection *c, const struct step *step) {
  (void)step;
  listener_listen();
  log_event(c, "listen");
}

static void run_handshake(struct connection *c, const struct step *step) {
  const char *until = step->words[WORD_UNTIL];
  bool done = false;
  c->profile = step;
  while (!done && next_command(c)) {
    if (!answer_handshake(&c->command, step, c->id, &c->out))
      buffer_printf(&c->out, "-ERR unknown command in the handshake\r\n");
    done = command_is(&c->command, 0, until != NULL ? until : "PING");
  }
  flush(c);
}

/* ---- serve ---- */

static bool is_due(uint64_t wanted, uint64_t number) {
  return wanted != 0 && wanted == number;
}

/* Sends half of the reply and ends the connection. */
static void break_off(struct connection *c, const struct step *step,
                      const struct buffer *reply, uint64_t number) {
  buffer_append(&c->out, reply->data, reply->size / 2);
  if (!flush(c))
    return;
  if (is_due(step->numbers[NUMBER_RESET], number))
    run_reset(c, step);
  else
    run_close(c, step);
}

/* Adds reply `number` to what is sent, with the faults the step has for it. */
static void add_reply(struct connection *c, const struct step *step,
                      struct buffer *reply, uint64_t number) {
  const uint64_t *fault = step->numbers;
  uint64_t every = fault[NUMBER_EVERY] > 0 ? fault[NUMBER_EVERY] : 1;
  if (is_due(fault[NUMBER_FREEZE], number)) {
    if (flush(c))
      run_hang(c, step);
    return;
  }
  if (fault[NUMBER_DELAY] > 0 && number % every == 0 && flush(c))
    pause_us(fault[NUMBER_DELAY] * US_PER_MS);
  if (is_due(fault[NUMBER_DROP], number))
    return;
  if (is_due(fault[NUMBER_INSERT], number))
    buffer_append(&c->out, step->text.data, step->text.size);
  if (is_due(fault[NUMBER_CORRUPT], number))
    reply->data[0] = '?';
  if (is_due(fault[NUMBER_CLOSE], number) ||
      is_due(fault[NUMBER_RESET], number)) {
    break_off(c, step, reply, number);
    return;
  }
  buffer_append(&c->out, reply->data, reply->size);
  if (is_due(fault[NUMBER_DUPLICATE], number))
    buffer_append(&c->out, reply->data, reply->size);
}

static void run_serve(struct connection *c, const struct step *step) {
  uint64_t max = step->numbers[NUMBER_COUNT];
  struct buffer reply = {0};
  for (uint64_t number = 1; (max == 0 || number <= max) && next_command(c);
       number++) {
    reply.size = 0;
    if (!answer_handshake(&c->command, c->profile, c->id, &reply))
      keys_run(&c->command, &reply);
    add_reply(c, step, &reply, number);
  }
  flush(c);
  buffer_free(&reply);
}

/* ---- a connection ---- */

static const struct {
  void (*run)(struct connection *c, const struct step *step);
  bool closed_too; /* also when the connection is closed */
} actions[STEP_KINDS] = {
    [STEP_CLOSE] = {run_close, false},
    [STEP_DRAIN] = {run_drain, false},
    [STEP_HALF_CLOSE] = {run_half_close, false},
    [STEP_HANDSHAKE] = {run_handshake, false},
    [STEP_HANG] = {run_hang, false},
    [STEP_LISTEN] = {run_listen, true},
    [STEP_RANDOM] = {run_random, false},
    [STEP_READ] = {run_read, false},
    [STEP_READ_BYTES] = {run_read_bytes, false},
    [STEP_REFUSE] = {run_refuse, true},
    [STEP_REPEAT] = {run_repeat, false},
    [STEP_RESET] = {run_reset, false},
    [STEP_SEND] = {run_send, false},
    [STEP_SEND_FILE] = {run_send_file, false},
    [STEP_SERVE] = {run_serve, false},
    [STEP_SLEEP] = {run_sleep, true},
    [STEP_SPLIT] = {run_split, false},
};

void connection_play(int fd, int id, const struct section *section, FILE *log) {
  struct connection c = {.fd = fd, .id = id, .log = log};
  int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  log_event(&c, "open");
  for (const struct step *step = section->first; step; step = step->next)
    if (c.fd >= 0 || actions[step->kind].closed_too)
      actions[step->kind].run(&c, step);
  if (c.fd >= 0)
    run_drain(&c, NULL);
  buffer_free(&c.in);
  buffer_free(&c.out);
  free(c.command.arguments);
}
