#include "alloc.h"

#include <stddef.h>

static long left = -1; /* allocations that still succeed; below 0: all do */
static int failed;

void alloc_fail_after(long count) {
  left = count;
  failed = 0;
}

int alloc_fail_never(void) {
  left = -1;
  return failed;
}

static int fails(void) {
  if (left != 0) {
    left -= left > 0;
    return 0;
  }
  failed = 1;
  return 1;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

void *__wrap_malloc(size_t size) {
  return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size) {
  return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size) {
  return fails() ? NULL : __real_realloc(old, size);
}
