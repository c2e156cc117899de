/* A trace of requests, as bench_hit_ratio's files share it. */
#ifndef MOONSTASH_BENCH_HIT_RATIO_H
#define MOONSTASH_BENCH_HIT_RATIO_H

#include "store/bench.h"

struct trace {
  uint32_t *requests, *next; /* next: see policies.h */
  char (*names)[24];         /* of keys: what the store is asked for */
  size_t length;
  uint32_t keys, distinct; /* distinct: those that are asked for */
};

#endif
