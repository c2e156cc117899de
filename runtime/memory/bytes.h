/* Bytes that one thread reads while another may be writing them.
 *
 * Readers take no lock: they copy an item and then ask whether its bucket has
 * changed meanwhile (read.c); if so the copy is thrown away. The copying itself
 * must therefore be allowed to race. Plain copies do on every machine that we
 * know; ThreadSanitizer is shown relaxed atomic ones instead, so that it
 * reports every race but these.
 */
#ifndef MOONSTASH_MEMORY_BYTES_H
#define MOONSTASH_MEMORY_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SANITIZE_THREAD__)
#define STORE_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define STORE_TSAN 1
#endif
#endif

#define load_relaxed(p) __atomic_load_n(p, __ATOMIC_RELAXED)
#define load_acquire(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define store_relaxed(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define store_release(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define add_relaxed(p, v) __atomic_fetch_add(p, v, __ATOMIC_RELAXED)
#define sub_relaxed(p, v) __atomic_fetch_sub(p, v, __ATOMIC_RELAXED)
/* Orders the loads before it before those after it. ThreadSanitizer does not
 * know fences, and needs none: all it is shown are atomics. */
#ifdef STORE_TSAN
#define fence_acquire() ((void)0)
#define fence_release() ((void)0)
#else
#define fence_acquire() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define fence_release() __atomic_thread_fence(__ATOMIC_RELEASE)
#endif

/* Out of the store, and into it. */
#ifdef STORE_TSAN
static inline void bytes_out(void *to, const void *from, size_t n) {
  for (size_t i = 0; i < n; i++)
    ((uint8_t *)to)[i] = load_relaxed((const uint8_t *)from + i);
}

static inline void bytes_in(void *to, const void *from, size_t n) {
  for (size_t i = 0; i < n; i++)
    store_relaxed((uint8_t *)to + i, ((const uint8_t *)from)[i]);
}

static inline int bytes_equal(const void *stored, const void *own, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (load_relaxed((const uint8_t *)stored + i) != ((const uint8_t *)own)[i])
      return 0;
  return 1;
}
#else
static inline void bytes_out(void *to, const void *from, size_t n) {
  if (n > 0)
    memcpy(to, from, n);
}

static inline void bytes_in(void *to, const void *from, size_t n) {
  if (n > 0)
    memcpy(to, from, n);
}

/* Eight at a time, the last eight twice in part: keys are short, and a call of
 * memcmp takes longer than they do. */
static inline int bytes_equal(const void *stored, const void *own, size_t n) {
  const char *a = stored, *b = own;
  uint64_t x, y;
  if (n < sizeof x) {
    while (n > 0 && a[n - 1] == b[n - 1])
      n--;
    return n == 0;
  }
  for (size_t i = 0; i + sizeof x < n; i += sizeof x) {
    memcpy(&x, a + i, sizeof x);
    memcpy(&y, b + i, sizeof y);
    if (x != y)
      return 0;
  }
  memcpy(&x, a + n - sizeof x, sizeof x);
  memcpy(&y, b + n - sizeof y, sizeof y);
  return x == y;
}
#endif

#endif
