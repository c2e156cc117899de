/* Seals and opens envelopes; the layout is in the header. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "bind/bytes.h"
#include "bind/envelope.h"

enum {
  VERSION = 1,
  AT_VERSION = 2,
  AT_TYPE = 3,
  AT_FLAGS = 4,
  AT_LENGTH = 5,
  AT_KEY = 9,
  HASH = 8,
  STAMP = 8,
  ALL_FLAGS = (1 << ENVELOPE_STAMPS) - 1,
  KEY_JOINED_MAX = 512 /* bytes of a key that are joined on the stack */
};

static const char magic[2] = {(char)0xc1, 'M'};

static size_t stamp_count(unsigned flags) {
  return (size_t)__builtin_popcount(flags);
}

size_t envelope_size(const struct envelope *e) {
  return ENVELOPE_HEAD + STAMP * stamp_count(e->flags) + e->length + HASH;
}

const char envelope_other_key[] = "the value of another key";

uint64_t envelope_key(const char *ns, size_t ns_length, const char *key,
                      size_t key_length) {
  char joined[KEY_JOINED_MAX];
  if (ns_length == 0)
    return XXH3_64bits(key, key_length);
  if (ns_length + key_length <= sizeof joined) {
    memcpy(joined, ns, ns_length);
    memcpy(joined + ns_length, key, key_length);
    return XXH3_64bits(joined, ns_length + key_length);
  }
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, ns, ns_length);
  XXH3_64bits_update(&state, key, key_length);
  return XXH3_64bits_digest(&state);
}

void envelope_seal(const struct envelope *e, uint64_t key, char *out) {
  char *at = out + ENVELOPE_HEAD;
  assert(e->flags <= ALL_FLAGS && e->length <= UINT32_MAX);
  memcpy(out, magic, sizeof magic);
  out[AT_VERSION] = VERSION;
  out[AT_TYPE] = (char)e->type;
  out[AT_FLAGS] = (char)e->flags;
  bytes_put32(out + AT_LENGTH, (uint32_t)e->length);
  bytes_put64(out + AT_KEY, key);
  for (int i = 0; i < ENVELOPE_STAMPS; i++)
    if (e->flags & 1u << i) {
      bytes_put64(at, e->stamps[i]);
      at += STAMP;
    }
  memcpy(at, e->payload, e->length);
  at += e->length;
  bytes_put64(at, XXH3_64bits(out, (size_t)(at - out)));
}

/* Everything but the payload and its place. */
static const char *check_head(struct envelope *e, const char *bytes,
                              size_t length) {
  if (length < sizeof magic || memcmp(bytes, magic, sizeof magic) != 0)
    return "not written by Moonstash";
  if (length < ENVELOPE_HEAD + HASH)
    return "truncated";
  if (bytes[AT_VERSION] != VERSION)
    return "an unknown version of the envelope";
  e->type = (unsigned char)bytes[AT_TYPE];
  e->flags = (unsigned char)bytes[AT_FLAGS];
  e->length = bytes_get32(bytes + AT_LENGTH);
  if (e->type < ENVELOPE_RAW || e->type > ENVELOPE_RESULTS)
    return "an unknown type of payload";
  if (e->flags > ALL_FLAGS)
    return "an unknown flag";
  if (envelope_size(e) != length)
    return "a length that is not that of the payload";
  return NULL;
}

const char *envelope_open(struct envelope *e, const char *bytes, size_t length,
                          uint64_t key) {
  const char *error = check_head(e, bytes, length), *at = bytes + ENVELOPE_HEAD;
  if (error != NULL)
    return error;
  if (bytes_get64(bytes + length - HASH) != XXH3_64bits(bytes, length - HASH))
    return "damaged: the hash does not fit";
  if (bytes_get64(bytes + AT_KEY) != key)
    return envelope_other_key;
  for (int i = 0; i < ENVELOPE_STAMPS; i++) {
    e->stamps[i] = 0;
    if (e->flags & 1u << i) {
      e->stamps[i] = bytes_get64(at);
      at += STAMP;
    }
  }
  e->payload = at;
  return NULL;
}

uint64_t envelope_written(const char *bytes, size_t length) {
  const unsigned bit = 1u << ENVELOPE_WRITTEN;
  if (length < ENVELOPE_HEAD || memcmp(bytes, magic, sizeof magic) != 0)
    return 0;
  unsigned flags = (unsigned char)bytes[AT_FLAGS];
  size_t at = ENVELOPE_HEAD + STAMP * stamp_count(flags & (bit - 1));
  if (bytes[AT_VERSION] != VERSION || !(flags & bit) || at + STAMP > length)
    return 0;
  return bytes_get64(bytes + at);
}

int envelope_read_decimal(const char *bytes, size_t length, int64_t *out) {
  const int64_t exact = 1LL << 53;
  size_t minus = length > 0 && bytes[0] == '-', digits = length - minus;
  int64_t n = 0;
  if (digits == 0 || length > ENVELOPE_DECIMAL_MAX)
    return 0;
  if (bytes[minus] == '0' && length > 1)
    return 0; /* 007, -0 */
  for (size_t i = minus; i < length; i++) {
    if (bytes[i] < '0' || bytes[i] > '9')
      return 0;
    n = n * 10 + (bytes[i] - '0');
  }
  *out = minus ? -n : n;
  return n <= exact;
}

size_t envelope_write_decimal(int64_t value,
                              char out[ENVELOPE_DECIMAL_MAX + 1]) {
  assert(value >= -(1LL << 53) && value <= 1LL << 53);
  return (size_t)snprintf(out, ENVELOPE_DECIMAL_MAX + 1, "%lld",
                          (long long)value);
}
