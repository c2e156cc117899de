/* Deadlines: a binary heap ordered by time, intrusive in both directions.
 *
 * Invariant: heap[d->pos] == d for every armed deadline d, a disarmed one has
 * pos == DEADLINE_OFF, and no node is earlier than its parent. The nodes live
 * in the tasks; the heap owns only the array of pointers.
 */
#ifndef MOONSTASH_BIND_DEADLINE_H
#define MOONSTASH_BIND_DEADLINE_H

#include <stddef.h>
#include <stdint.h>

#define DEADLINE_OFF UINT32_MAX

struct deadline {
  uint64_t at_ns; /* uv_hrtime() at which it is due */
  uint32_t pos;   /* index in the heap, or DEADLINE_OFF */
  uint32_t kind;  /* the owner's: which of its deadlines this is */
};

struct deadlines {
  struct deadline **heap;
  uint32_t count, capacity;
};

/* Arms d, which must be off. Returns 0, or -1 when out of memory. */
int deadlines_arm(struct deadlines *q, struct deadline *d, uint64_t at_ns);
/* Disarms d; does nothing when it is off. */
void deadlines_disarm(struct deadlines *q, struct deadline *d);
/* The earliest one, or NULL. */
struct deadline *deadlines_first(const struct deadlines *q);
void deadlines_free(struct deadlines *q);

#endif
