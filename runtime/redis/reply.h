/* Replies: bytes from a server, taken apart and kept as a tape.
 *
 * hiredis' redisReader parses; our object functions write what it finds to a
 * tape, one record after the other, an array's elements after its own record.
 * So a reply of any shape is one piece of memory without pointers into it,
 * which can be read, copied or handed on whole. A bulk string of REPLY_LARGE
 * bytes and more that stands alone goes past the parser, straight to its tape.
 *
 * Bytes from a server are untrusted: every limit below is checked before
 * memory is taken or time is spent, and its breach has a name. After an error
 * the reader is of no more use.
 */
#ifndef MOONSTASH_REDIS_REPLY_H
#define MOONSTASH_REDIS_REPLY_H

#include <stddef.h>
#include <stdint.h>

enum {
  REPLY_LARGE = 64 * 1024,      /* bytes of a bulk that skips the parser */
  REPLY_LINE_MAX = 64 * 1024,   /* bytes of a status, error or integer */
  REPLY_ELEMENTS_MAX = 1 << 20, /* of all the arrays of one reply */
  REPLY_DEPTH_MAX = 7,          /* arrays within arrays, as hiredis 0.14 */
  REPLY_BYTES_MAX = 64 << 20,   /* of one reply that is kept */
  REPLY_BULK_MAX = 512 << 20    /* of one bulk, a larger one is no Redis */
};

enum reply_type { /* bits, so that a set of them is an int */
                  REPLY_NIL = 1,
                  REPLY_STRING = 2, /* a bulk string */
                  REPLY_STATUS = 4, /* +OK */
                  REPLY_INTEGER = 8,
                  REPLY_ERROR = 16,
                  REPLY_ARRAY = 32,
                  REPLY_TOO_LARGE =
                      64 /* a bulk that was skipped; integer = its bytes */
};

struct reply {
  enum reply_type type;
  int64_t integer;  /* INTEGER: the value; ARRAY: how many replies follow */
  const char *text; /* STRING, STATUS, ERROR; points into the tape */
  size_t length;
};

/* Reads the record at `tape`; returns where the next one begins. */
const char *reply_read(const char *tape, struct reply *out);

struct reader;

/* NULL: no memory. */
struct reader *reader_open(void);
void reader_close(struct reader *r);
/* Gives the reader bytes to work on; they must stay until reader_next has
 * returned 0 or an error. */
void reader_feed(struct reader *r, const char *bytes, size_t length);
/* The next whole reply: 1 with its tape, which lasts until the next call; 0
 * when more bytes are needed; or -1, reader_error says why. */
int reader_next(struct reader *r, const char **tape, size_t *length);
/* Why reader_next gave -1; NULL when it did not. */
const char *reader_error(const struct reader *r);

#endif
