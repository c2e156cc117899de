/* How much memory the machine, or the container we are in, lets us use, and
 * the share of it that the default store takes.
 */
#ifndef MOONSTASH_HOST_MEMORY_LIMIT_H
#define MOONSTASH_HOST_MEMORY_LIMIT_H

#include <stdint.h>

struct memory_limit {
  uint64_t bytes;     /* the default store's bound */
  const char *source; /* what it was computed from, a static phrase */
};

#define MEMORY_UNLIMITED UINT64_MAX

/* The machine's RAM in bytes, or MEMORY_UNLIMITED if it does not tell. */
uint64_t memory_limit_ram(void);

/* The lowest limit of our cgroup and those above it, v2 or v1, in bytes, or
 * MEMORY_UNLIMITED. root is put before /proc and /sys ("": this machine). */
uint64_t memory_limit_cgroup(const char *root);

/* A quarter of the lower of the two, at most 1 GiB. */
struct memory_limit memory_limit_share(uint64_t ram, uint64_t cgroup);

#endif
