/* Little-endian integers and doubles in bytes, on any machine. */
#ifndef MOONSTASH_BIND_BYTES_H
#define MOONSTASH_BIND_BYTES_H

#include <stdint.h>
#include <string.h>

static inline void bytes_put(char *out, uint64_t value, int size) {
  for (int i = 0; i < size; i++)
    out[i] = (char)(value >> (8 * i));
}

static inline uint64_t bytes_get(const char *in, int size) {
  uint64_t value = 0;
  for (int i = 0; i < size; i++)
    value |= (uint64_t)(unsigned char)in[i] << (8 * i);
  return value;
}

static inline void bytes_put32(char *out, uint32_t value) {
  bytes_put(out, value, 4);
}

static inline uint32_t bytes_get32(const char *in) {
  return (uint32_t)bytes_get(in, 4);
}

static inline void bytes_put64(char *out, uint64_t value) {
  bytes_put(out, value, 8);
}

static inline uint64_t bytes_get64(const char *in) {
  return bytes_get(in, 8);
}

static inline void bytes_put_double(char *out, double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  bytes_put64(out, bits);
}

static inline double bytes_get_double(const char *in) {
  uint64_t bits = bytes_get64(in);
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

#endif
