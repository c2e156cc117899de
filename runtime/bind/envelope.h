/* The envelope around a value that leaves the process for a shared server.
 *
 * Little-endian, 25 bytes and 8 more for each stamp that is there:
 *
 *    0  2  magic, C1 4D: no decimal text, no UTF-8, no msgpack
 *    2  1  version, 1
 *    3  1  type of the payload, envelope_type
 *    4  1  flags: which stamps follow
 *    5  4  length of the payload
 *    9  8  XXH3 of the full key (namespace and key joined)
 *   17  8  stamp, milliseconds since 1970, for each flag in order
 *       n  payload
 *       8  XXH3 of all the bytes before it
 *
 * The hash of the key is what makes a desynchronised stream or a renamed key
 * a miss instead of another key's value; the hash at the end is against
 * accidents, not against people. A short integer travels as plain decimal
 * text without an envelope, so that the server can count with it.
 *
 * Knows no Lua; nothing is kept, thread-safe.
 */
#ifndef MOONSTASH_BIND_ENVELOPE_H
#define MOONSTASH_BIND_ENVELOPE_H

#include <stddef.h>
#include <stdint.h>

enum envelope_type {
  ENVELOPE_RAW = 1,    /* a string as it is */
  ENVELOPE_VALUE = 2,  /* one value in the format of binary.c */
  ENVELOPE_RESULTS = 3 /* the same of {n = count, results...} */
};

enum {
  ENVELOPE_FRESH,
  ENVELOPE_STALE,
  ENVELOPE_ERROR,
  ENVELOPE_WRITTEN,
  ENVELOPE_STAMPS
};

enum {
  ENVELOPE_HEAD = 17,
  ENVELOPE_MAX = 25 + 8 * ENVELOPE_STAMPS, /* beside the payload */
  ENVELOPE_DECIMAL_MAX = 17                /* "-9007199254740992" */
};

struct envelope {
  unsigned type;                    /* envelope_type */
  unsigned flags;                   /* bit i: stamps[i] is there */
  uint64_t stamps[ENVELOPE_STAMPS]; /* ms: fresh, stale, error until; written */
  const char *payload;              /* open: points into the bytes */
  size_t length;                    /* of the payload, below 4 GiB */
};

/* Bytes of the sealed envelope. */
size_t envelope_size(const struct envelope *e);
/* The hash of a key, in its two pieces. */
uint64_t envelope_key(const char *ns, size_t ns_length, const char *key,
                      size_t key_length);
/* Writes the sealed envelope to out. */
void envelope_seal(const struct envelope *e, uint64_t key, char *out);
/* NULL with *e filled, or a sentence that says what is wrong. */
const char *envelope_open(struct envelope *e, const char *bytes, size_t length,
                          uint64_t key);
/* What envelope_open says to a value of another key. */
extern const char envelope_other_key[];
/* The stamp `written` of the head of an envelope, of which there may be only
 * the first bytes; 0 when there is none. */
uint64_t envelope_written(const char *bytes, size_t length);

/* Is it an integer in canonical decimal text, |n| <= 2^53, not -0? */
int envelope_read_decimal(const char *bytes, size_t length, int64_t *out);
/* Writes one; returns its length. */
size_t envelope_write_decimal(int64_t value,
                              char out[ENVELOPE_DECIMAL_MAX + 1]);

#endif
