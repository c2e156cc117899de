/* Eviction policies to compare a store with: each is a simulation of a cache of
 * `capacity` entries of equal size, over keys 0 .. keys - 1.
 *
 * LRU; SIEVE (Zhang et al., NSDI 2024); S3-FIFO (Yang et al., SOSP 2023: small
 * queue 10 %, promotion from two hits on, ghost of the main queue's size); ARC
 * (Megiddo and Modha, FAST 2003); W-TinyLFU (Einziger et al., ToS 2017: window
 * 1 %, main 80 % protected, sketch of 4-bit counters aged every 10 capacities);
 * Belady's MIN (1966), which knows the future.
 */
#ifndef MOONSTASH_BENCH_POLICIES_H
#define MOONSTASH_BENCH_POLICIES_H

#include <stddef.h>
#include <stdint.h>

struct policy {
  const char *name;
  /* Replays n requests; returns how many missed. next[i] is where the key of
   * request i comes again, n when it does not. */
  uint64_t (*misses)(const uint32_t *requests, const uint32_t *next, size_t n,
                     uint32_t keys, uint32_t capacity);
};

extern const struct policy policies[]; /* ends with a NULL name */

#endif
