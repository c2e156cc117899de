/* What the files of the fake server share: scripts, commands, connections.
 * The script language is told at the top of fake_redis.c.
 */
#ifndef FAKE_REDIS_H
#define FAKE_REDIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { US_PER_MS = 1000, MS_PER_S = 1000, US_PER_S = 1000 * 1000 };

/* ---- bytes ---- */

struct slice {
  const char *data; /* somebody else's */
  size_t size;
};

struct buffer {
  char *data; /* ours; no NUL at its end */
  size_t size;
  size_t capacity;
};

/* Room for `size` more bytes. Out of memory ends the program. */
void buffer_reserve(struct buffer *buffer, size_t size);
void buffer_append(struct buffer *buffer, const void *data, size_t size);
void buffer_printf(struct buffer *buffer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Frees what it holds; it is empty then. */
void buffer_free(struct buffer *buffer);

/* ---- scripts (fake_script.c) ---- */

enum step_kind {
  STEP_CLOSE,
  STEP_DRAIN,
  STEP_HALF_CLOSE,
  STEP_HANDSHAKE,
  STEP_HANG,
  STEP_LISTEN,
  STEP_RANDOM,
  STEP_READ,
  STEP_READ_BYTES,
  STEP_REFUSE,
  STEP_REPEAT,
  STEP_RESET,
  STEP_SEND,
  STEP_SEND_FILE,
  STEP_SERVE,
  STEP_SLEEP,
  STEP_SPLIT,
  STEP_KINDS
};

/* handshake's options: words. */
enum step_word {
  WORD_HELLO, /* ok, unknown */
  WORD_MODE,
  WORD_ROLE,
  WORD_UNTIL, /* the command that ends it */
  WORD_VERSION,
  WORD_COUNT
};

/* serve's options: numbers; 0 is "not given". Where nothing else is said it is
 * the number of a reply, counted from 1 within the connection. */
enum step_number {
  NUMBER_CLOSE,
  NUMBER_CORRUPT,
  NUMBER_COUNT, /* commands to serve */
  NUMBER_DELAY, /* ms */
  NUMBER_DROP,
  NUMBER_DUPLICATE,
  NUMBER_EVERY, /* which replies delay is for */
  NUMBER_FREEZE,
  NUMBER_INSERT,
  NUMBER_RESET,
  NUMBERS
};

struct step {
  enum step_kind kind;
  uint64_t count;            /* repetitions, commands, bytes or a size */
  uint64_t pause_us;         /* of sleep and split */
  uint64_t seed;             /* of random */
  struct buffer text;        /* what is sent, or a path and a NUL */
  char *words[WORD_COUNT];   /* NULL: not given */
  uint64_t numbers[NUMBERS]; /* 0: not given */
  struct step *next;         /* in its section, or NULL */
};

struct section {
  struct step *first;   /* NULL: an empty section */
  struct section *next; /* for the next connection; NULL: this one repeats */
};

struct script {
  struct section *first; /* never NULL */
  char *log_path;        /* or NULL */
};

/* Reads a script to the end of the file. A mistake ends the program (2) with
 * a line that begins with name and the line's number. */
struct script *script_read(FILE *file, const char *name);

/* ---- commands (fake_command.c) ---- */

struct command {
  struct slice *arguments; /* ours; they point into what was parsed */
  size_t count;
  size_t capacity;
};

/* Parses the first command, an array of bulk strings or an inline command.
 * Returns how many bytes it takes, 0 if it is not complete, -1 if it is none.
 */
ptrdiff_t command_parse(struct command *command, const char *data, size_t size);
/* Is argument i that word, in any case? */
bool command_is(const struct command *command, size_t i, const char *word);

void reply_bulk(struct buffer *reply, const char *data, size_t size);

/* What a server says at the beginning of a connection. Returns false for
 * other commands. */
bool answer_handshake(const struct command *command, const struct step *profile,
                      int id, struct buffer *reply);

/* ---- the keys that `serve` has (fake_keys.c) ---- */

/* Runs the command; the keys are the same for all connections. Any thread. */
void keys_run(const struct command *command, struct buffer *reply);

/* ---- connections (fake_steps.c) ---- */

/* Plays the section on a connection, then closes it. */
void connection_play(int fd, int id, const struct section *section, FILE *log);

/* ---- the listener (fake_redis.c) ---- */

void listener_refuse(void);
void listener_listen(void);

#endif
