/* The reader; see the header.
 *
 * Bytes wait in `in` and go to the parser in slices: after every KiB that it
 * has consumed it moves the rest of its buffer, so that small slices cost less.
 * A large bulk is found where the parser has run dry: it takes a reply's first
 * byte at once, lines when they are whole, and a bulk with its header when all
 * of it is there. So if what it has not taken begins with a whole line, that is
 * the rest of a bulk's header; and if it has taken but one byte since the last
 * whole reply, the bulk stands alone. Then the parser is replaced by a fresh
 * one and the bulk is collected here.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memmem */
#endif
#include "redis/reply.h"

#include <assert.h>
#include <hiredis/hiredis.h>
#include <stdlib.h>
#include <string.h>

enum {
  SLICE = 8 * 1024,       /* bytes given to the parser at a time */
  RECORD = 9,             /* type and number, before a record's text */
  TAPE_FIRST = 512,       /* bytes of a new tape */
  TAPE_KEEP = 256 * 1024, /* a larger one is given back after its one reply */
  DIGITS_MAX = 20         /* of a bulk's length */
};

struct reader {
  redisReader *parser;
  const char *in; /* bytes that nobody has looked at yet */
  size_t in_left; /* how many */
  size_t held;    /* bytes of an unfinished reply that the parser was given */
  char *tape;     /* the reply that is being read, or was given last */
  size_t length;  /* of the tape */
  size_t capacity;
  size_t elements;    /* of arrays so far in this reply */
  int given;          /* the tape's reply was given: it makes room now */
  char *bulk;         /* a large bulk's tape; NULL while skipping */
  size_t bulk_length; /* of its text; 0: there is none */
  size_t bulk_left;   /* bytes to come, \r\n included */
  const char *error;
};

/* ---- the tape ---- */

const char *reply_read(const char *tape, struct reply *out) {
  int64_t number;
  memcpy(&number, tape + 1, sizeof number);
  *out = (struct reply){.type = (enum reply_type) * tape, .integer = number};
  tape += RECORD;
  if (!(out->type & (REPLY_STRING | REPLY_STATUS | REPLY_ERROR)))
    return tape;
  out->text = tape;
  out->length = (size_t)number;
  return tape + number;
}

static const char no_memory[] = "out of memory";
static const char too_many_bytes[] = "reply limit: more than 64 MiB";

static void put_record(char *at, enum reply_type type, int64_t number) {
  *at = (char)type;
  memcpy(at + 1, &number, sizeof number);
}

static void *fail(struct reader *r, const char *error) {
  if (r->error == NULL)
    r->error = error;
  return NULL;
}

/* Appends a record; anything but NULL says that it worked, as the parser
 * wants it. */
static void *append(struct reader *r, enum reply_type type, int64_t number,
                    const char *text, size_t length) {
  size_t need = r->length + RECORD + length;
  if (need > REPLY_BYTES_MAX)
    return fail(r, too_many_bytes);
  if (need > r->capacity) {
    size_t capacity = r->capacity ? r->capacity : TAPE_FIRST;
    while (capacity < need)
      capacity *= 2;
    char *tape = realloc(r->tape, capacity);
    if (tape == NULL)
      return fail(r, no_memory);
    r->tape = tape;
    r->capacity = capacity;
  }
  put_record(r->tape + r->length, type, number);
  if (length > 0)
    memcpy(r->tape + r->length + RECORD, text, length);
  r->length = need;
  return r;
}

/* ---- what the parser calls ---- */

static const char no_end[] = "a bulk string without its end";
static const char no_type[] = "a type that RESP2 does not have";

static void *on_string(const redisReadTask *task, char *text, size_t length) {
  struct reader *r = task->privdata;
  enum reply_type type = task->type == REDIS_REPLY_STRING   ? REPLY_STRING
                         : task->type == REDIS_REPLY_STATUS ? REPLY_STATUS
                         : task->type == REDIS_REPLY_ERROR  ? REPLY_ERROR
                                                            : 0;
  if (type == 0)
    return fail(r, no_type);
  if (type != REPLY_STRING && length > REPLY_LINE_MAX)
    return fail(r, "line limit: more than 64 KiB");
  if (type == REPLY_STRING && memcmp(text + length, "\r\n", 2) != 0)
    return fail(r, no_end); /* the parser does not look */
  return append(r, type, (int64_t)length, text, length);
}

#if HIREDIS_MAJOR >= 1
typedef size_t array_size;
#else
typedef int array_size;
#endif

static void *on_array(const redisReadTask *task, array_size size) {
  struct reader *r = task->privdata;
  size_t elements = (size_t)size;
  int depth = 1;
  for (const redisReadTask *up = task->parent; up != NULL; up = up->parent)
    depth++;
  if (task->type != REDIS_REPLY_ARRAY)
    return fail(r, no_type);
  if (depth > REPLY_DEPTH_MAX)
    return fail(r, "depth limit: more than 7 arrays within each other");
  if (elements > REPLY_ELEMENTS_MAX - r->elements)
    return fail(r, "element limit: more than 1048576");
  r->elements += elements;
  return append(r, REPLY_ARRAY, (int64_t)elements, NULL, 0);
}

static void *on_integer(const redisReadTask *task, long long value) {
  return append(task->privdata, REPLY_INTEGER, value, NULL, 0);
}

static void *on_nil(const redisReadTask *task) {
  if (task->type == REDIS_REPLY_NIL) /* RESP3's own, not $-1 or *-1 */
    return fail(task->privdata, no_type);
  return append(task->privdata, REPLY_NIL, 0, NULL, 0);
}

static void on_free(void *object) {
  (void)object; /* it was the reader itself */
}

#if HIREDIS_MAJOR >= 1
static void *on_double(const redisReadTask *task, double value, char *text,
                       size_t length) {
  (void)value;
  (void)text;
  (void)length;
  return fail(task->privdata, no_type);
}

static void *on_boolean(const redisReadTask *task, int value) {
  (void)value;
  return fail(task->privdata, no_type);
}
#endif

static redisReader *new_parser(struct reader *r) {
  static redisReplyObjectFunctions functions = {
    .createString = on_string,
    .createArray = on_array,
    .createInteger = on_integer,
#if HIREDIS_MAJOR >= 1
    .createDouble = on_double,
    .createBool = on_boolean,
#endif
    .createNil = on_nil,
    .freeObject = on_free,
  };
  redisReader *parser = redisReaderCreateWithFunctions(&functions);
  if (parser != NULL) {
    parser->privdata = r;
    parser->maxbuf = TAPE_KEEP; /* of its empty buffer */
  }
  return parser;
}

/* ---- open and close ---- */

struct reader *reader_open(void) {
  struct reader *r = calloc(1, sizeof *r);
  if (r != NULL && (r->parser = new_parser(r)) == NULL) {
    free(r);
    r = NULL;
  }
  return r;
}

void reader_close(struct reader *r) {
  if (r == NULL)
    return;
  redisReaderFree(r->parser);
  free(r->tape);
  free(r->bulk);
  free(r);
}

const char *reader_error(const struct reader *r) {
  return r->error;
}

void reader_feed(struct reader *r, const char *bytes, size_t length) {
  assert(r->in_left == 0);
  r->in = bytes;
  r->in_left = length;
}

/* ---- large bulks ---- */

static void advance(struct reader *r, size_t n) {
  r->in += n;
  r->in_left -= n;
}

/* The number in the whole line at `at`, and the line's length in *line; 0 when
 * there is no such line. */
static size_t read_line(const char *at, size_t available, size_t *line) {
  size_t value = 0, i = 0;
  for (; i < available && i < DIGITS_MAX && at[i] >= '0' && at[i] <= '9'; i++)
    if (value <= REPLY_BULK_MAX) /* else it is too large already */
      value = value * 10 + (size_t)(at[i] - '0');
  if (i + 1 >= available || at[i] != '\r' || at[i + 1] != '\n')
    return 0;
  *line = i + 2;
  return value;
}

/* Begins a bulk whose text is `length` bytes. */
static int begin_bulk(struct reader *r, size_t length) {
  if (length > REPLY_BULK_MAX) {
    fail(r, "reply limit: a bulk string of more than 512 MiB");
    return -1;
  }
  if (length <= REPLY_BYTES_MAX - RECORD) {
    r->bulk = malloc(RECORD + length + 2);
    if (r->bulk == NULL) {
      fail(r, no_memory);
      return -1;
    }
    put_record(r->bulk, REPLY_STRING, (int64_t)length);
  }
  r->bulk_length = length;
  r->bulk_left = length + 2;
  return 0;
}

/* Takes bytes of the bulk's text and of its end. */
static void collect(struct reader *r, const char *bytes, size_t n) {
  if (r->bulk != NULL)
    memcpy(r->bulk + RECORD + r->bulk_length + 2 - r->bulk_left, bytes, n);
  r->bulk_left -= n;
}

/* Has the parser run dry in a large bulk? If that stands alone it is begun, and
 * the parser empty: 1, else 0; -1 on errors. */
static int find_bulk(struct reader *r) {
  redisReader *old = r->parser;
  const char *at = old->buf + old->pos;
  size_t line, available = old->len - old->pos;
  size_t length = read_line(at, available, &line);
  if (length < REPLY_LARGE)
    return 0;
  if (r->held - available > 1) { /* within an array */
    if (length > REPLY_BYTES_MAX)
      fail(r, too_many_bytes);
    return r->error != NULL ? -1 : 0;
  }
  r->parser = new_parser(r);
  if (r->parser == NULL) {
    r->parser = old;
    fail(r, no_memory);
    return -1;
  }
  int rc = begin_bulk(r, length);
  if (rc == 0)
    collect(r, at + line, available - line);
  redisReaderFree(old);
  r->held = 0;
  return rc < 0 ? -1 : 1;
}

/* Collects or skips: 1 when the bulk is whole and its tape there. */
static int go_on_with_bulk(struct reader *r) {
  size_t n = r->bulk_left < r->in_left ? r->bulk_left : r->in_left;
  collect(r, r->in, n);
  advance(r, n);
  if (r->bulk_left > 0)
    return 0;
  size_t length = r->bulk_length;
  r->bulk_length = 0;
  if (r->bulk == NULL)
    return append(r, REPLY_TOO_LARGE, (int64_t)length, NULL, 0) ? 1 : -1;
  if (memcmp(r->bulk + RECORD + length, "\r\n", 2) != 0) {
    fail(r, no_end);
    return -1;
  }
  free(r->tape);
  r->tape = r->bulk;
  r->length = RECORD + length;
  r->capacity = RECORD + length + 2;
  r->bulk = NULL;
  return 1;
}

/* ---- reading ---- */

/* Makes room for the next reply. */
static void begin_reply(struct reader *r) {
  if (r->capacity > TAPE_KEEP) {
    free(r->tape);
    r->tape = NULL;
    r->capacity = 0;
  }
  r->length = r->elements = 0;
  r->given = 0;
}

/* What the parser holds must not grow without bounds, nor be looked through
 * from its start again and again for the end of a line. */
static int check_held(struct reader *r) {
  const redisReader *p = r->parser;
  const size_t most = 1 + REPLY_LINE_MAX + 2; /* of a line: sign and end, too */
  size_t left = p->len - p->pos;
  if (left > REPLY_BYTES_MAX)
    fail(r, too_many_bytes);
  else if (left > most && memmem(p->buf + p->pos, most, "\r\n", 2) == NULL)
    fail(r, "line limit: more than 64 KiB");
  return r->error == NULL;
}

/* The parser's next reply: 1, or 0 when it has run dry, or -1. */
static int parse(struct reader *r) {
  redisReader *p = r->parser;
  void *reply = NULL;
  if (redisReaderGetReply(p, &reply) != REDIS_OK) {
    fail(r, p->err == REDIS_ERR_OOM ? no_memory : p->errstr);
    return -1;
  }
  if (reply == NULL)
    return 0;
  r->held = p->len - p->pos;
  return 1;
}

int reader_next(struct reader *r, const char **tape, size_t *length) {
  int rc = 0;
  if (r->error != NULL)
    return -1;
  if (r->given)
    begin_reply(r);
  for (;;) {
    if (r->bulk_length > 0)
      rc = go_on_with_bulk(r);
    else if ((rc = parse(r)) == 0 && (rc = find_bulk(r)) == 1)
      continue;
    if (rc != 0 || r->in_left == 0)
      break;
    size_t n = r->in_left < SLICE ? r->in_left : SLICE;
    if (redisReaderFeed(r->parser, r->in, n) != REDIS_OK || !check_held(r)) {
      fail(r, no_memory);
      return -1;
    }
    r->held += n;
    advance(r, n);
  }
  r->given = rc == 1;
  *tape = r->tape;
  *length = r->length;
  return rc;
}
