/* The tags of binary.c's format, which json.c writes too. */
#ifndef MOONSTASH_BIND_CODEC_BINARY_H
#define MOONSTASH_BIND_CODEC_BINARY_H

#include "bind/codec.h"

enum {
  BINARY_SMALL_MAX = 0x7f, /* and below: the integer itself */
  BINARY_STRING = 0x80,    /* | length */
  BINARY_ARRAY = 0xa0,     /* | count */
  BINARY_MAP = 0xb0,       /* | count */
  BINARY_NULL = 0xc0,
  BINARY_FALSE,
  BINARY_TRUE,
  BINARY_DOUBLE,
  BINARY_STRING8,
  BINARY_STRING32,
  BINARY_ARRAY32,
  BINARY_MAP32,
  BINARY_INT8,
  BINARY_INT16,
  BINARY_INT32,
  BINARY_INT64,
  BINARY_UINT64,
  BINARY_CLASS,
  BINARY_MARKED
};
enum { BINARY_FEW_BYTES = 32, BINARY_FEW_ELEMENTS = 16 };

#define BINARY_IS_TABLE(tag)                         \
  (((tag) >= BINARY_ARRAY && (tag) < BINARY_NULL) || \
   (tag) == BINARY_ARRAY32 || (tag) == BINARY_MAP32)

/* Reads one value (a codec_reader.value). */
int binary_read_value(struct codec_reader *r);

#endif
