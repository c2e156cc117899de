/* See deadline.h for the structure and its invariant. */
#include "bind/deadline.h"

#include <assert.h>
#include <stdlib.h>

enum { FIRST_CAPACITY = 64 };

static void place(struct deadlines *q, struct deadline *d, uint32_t pos) {
  q->heap[pos] = d;
  d->pos = pos;
}

static void sift_up(struct deadlines *q, struct deadline *d, uint32_t pos) {
  while (pos > 0) {
    uint32_t up = (pos - 1) / 2;
    if (q->heap[up]->at_ns <= d->at_ns)
      break;
    place(q, q->heap[up], pos);
    pos = up;
  }
  place(q, d, pos);
}

static void sift_down(struct deadlines *q, struct deadline *d, uint32_t pos) {
  for (;;) {
    uint32_t down = 2 * pos + 1;
    if (down >= q->count)
      break;
    if (down + 1 < q->count && q->heap[down + 1]->at_ns < q->heap[down]->at_ns)
      down++;
    if (d->at_ns <= q->heap[down]->at_ns)
      break;
    place(q, q->heap[down], pos);
    pos = down;
  }
  place(q, d, pos);
}

int deadlines_arm(struct deadlines *q, struct deadline *d, uint64_t at_ns) {
  assert(d->pos == DEADLINE_OFF);
  if (q->count == q->capacity) {
    uint32_t capacity = q->capacity ? 2 * q->capacity : FIRST_CAPACITY;
    struct deadline **heap = realloc(q->heap, capacity * sizeof *heap);
    if (heap == NULL)
      return -1;
    q->heap = heap;
    q->capacity = capacity;
  }
  d->at_ns = at_ns;
  sift_up(q, d, q->count++);
  return 0;
}

void deadlines_disarm(struct deadlines *q, struct deadline *d) {
  if (d->pos == DEADLINE_OFF)
    return;
  assert(d->pos < q->count && q->heap[d->pos] == d);
  uint32_t pos = d->pos;
  struct deadline *last = q->heap[--q->count];
  d->pos = DEADLINE_OFF;
  if (last == d)
    return;
  if (pos > 0 && last->at_ns < q->heap[(pos - 1) / 2]->at_ns)
    sift_up(q, last, pos);
  else
    sift_down(q, last, pos);
}

struct deadline *deadlines_first(const struct deadlines *q) {
  return q->count ? q->heap[0] : NULL;
}

void deadlines_free(struct deadlines *q) {
  assert(q->count == 0);
  free(q->heap);
  q->heap = NULL;
  q->capacity = 0;
}
