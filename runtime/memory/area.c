/* Addresses: one reservation per store, of which little by little may be
 * written.
 *
 *   | alive |  pages of the index  | window of shard 0 | window 1 | ... | tail
 * | 4 KiB    page number x 4 KiB   offset of an item in its shard's window
 *
 * Nothing in here is ever unmapped or moved before the store closes: a reader
 * that holds no lock may look at any address it once found. What was never
 * written may be read (it is zero), also behind the last window, so that a
 * reader may copy from an item that has become another one meanwhile and find
 * out later. What is given back (area_discard) reads as zero again.
 *
 * In a large store memory beyond the first 2 MiB of a window is asked for in
 * huge pages, as far as the shard's share of the bound reaches: with them a
 * miss of the cache costs a third less. In a small one the last page of each
 * window, half empty, would weigh more than that, and a call that needs a huge
 * page of fragmented memory can take milliseconds. After fork the child finds
 * all of it zero (WIPEONFORK), and so no entry, no version that a near copy
 * knows, and `alive` 0.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "memory/internal.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

static const size_t huge_page = 2 << 20;
static const size_t step_bytes = 64 << 10; /* of the first huge page */
static const size_t tail_bytes = 1 << 20;  /* more than any item's claim */
static const size_t window_most = (size_t)4 << 30; /* offsets have 32 bits */
static const size_t window_usual = (size_t)1 << 30;
static const size_t huge_bound = (size_t)2 << 30; /* of stores with them */

static size_t round_up(size_t n, size_t unit) {
  return (n + unit - 1) / unit * unit;
}

/* The smallest window that does for this bound is the last that is tried. */
int area_open(struct store *store, size_t max_bytes) {
  uint32_t shards = store_shard_count(store);
  size_t fair = max_bytes / shards, page_bytes, total;
  size_t least = round_up(fair + fair / 4 + SEGMENT_MOST, huge_page);
  size_t window = fair * 4 > window_usual ? fair * 4 : window_usual;
  char *mapping = MAP_FAILED;
  if (least > window_most)
    least = window_most;
  for (window = round_up(window, huge_page);; window /= 2) {
    if (window > window_most)
      window = window_most;
    if (window < least)
      window = least;
    window = round_up(window, huge_page);
    page_bytes = shards * window / 2;
    total = huge_page + page_bytes + shards * window + tail_bytes + huge_page;
    mapping = mmap(NULL, total, PROT_READ,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping != MAP_FAILED || window == least)
      break;
  }
  if (mapping == MAP_FAILED)
    return BACKEND_ENOMEM;
  store->mapping = mapping;
  store->mapped = total;
  madvise(mapping, total, MADV_WIPEONFORK); /* older kernels: no such check */
  char *start = (char *)round_up((uintptr_t)mapping, huge_page);
  store->alive = (const uint32_t *)start;
  store->pages = (struct page *)(start + PAGE_BYTES);
  store->page_room = page_bytes / PAGE_BYTES - 1;
  store->window_bytes = window;
  for (uint32_t i = 0; i < shards; i++)
    store->shards[i].window = start + page_bytes + i * window;
  if (mprotect(start, PAGE_BYTES, PROT_READ | PROT_WRITE) != 0) {
    area_close(store);
    return BACKEND_ENOMEM;
  }
  *(uint32_t *)start = 1;
  return 0;
}

void area_close(struct store *store) {
  munmap(store->mapping, store->mapped);
}

/* Makes [*writable, end) of an area writable, in large steps; huge: up to where
 * its huge pages are worth it. */
static int extend(char *start, size_t *writable, size_t end, size_t huge) {
  while (*writable < end) {
    size_t step = *writable < huge_page ? step_bytes : huge_page;
    char *from = start + *writable;
    if (mprotect(from, step, PROT_READ | PROT_WRITE) != 0)
      return 0;
    if (step == huge_page && *writable + step <= huge)
      madvise(from, step, MADV_HUGEPAGE);
    *writable += step;
  }
  return 1;
}

int area_extend_window(struct shard *shard, size_t end) {
  struct store *store = shard->store;
  size_t huge = store->max_bytes >= huge_bound ? store_fair(store) : 0;
  shard_assert_locked(shard);
  if (end > store->window_bytes)
    return 0;
  return extend(shard->window, &shard->writable, end, huge);
}

/* Versions of a fresh page begin anywhere: should it have been another page
 * before, no near copy of that time takes it for what it knows. */
static void begin_versions(struct page *page, uint64_t serial) {
  for (uint64_t i = 0; i < PAGE_BUCKETS; i++) {
    uint64_t x = (serial * PAGE_BUCKETS + i + 1) * 0x9e3779b97f4a7c15;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93;
    store_relaxed(&page->buckets[i].version, (uint32_t)(x >> 32));
  }
}

/* The pages begin one page into their first huge page. */
uint32_t area_page(struct store *store) {
  uint32_t number = NONE;
  size_t huge = store->max_bytes >= huge_bound ? store->max_bytes / 8 : 0;
  pthread_mutex_lock(&store->page_mutex);
  size_t end = (store->page_count + 2) * PAGE_BYTES;
  if (store->page_count < store->page_room &&
      extend((char *)store->pages - PAGE_BYTES, &store->pages_writable, end,
             huge)) {
    number = (uint32_t)store->page_count++;
    begin_versions(&store->pages[number], store->page_serial++);
  }
  pthread_mutex_unlock(&store->page_mutex);
  return number;
}

void area_discard(void *start, size_t bytes) {
  madvise(start, bytes, MADV_DONTNEED);
}

void area_forget_pages(struct store *store) {
  pthread_mutex_lock(&store->page_mutex);
  area_discard(store->pages, store->page_count * PAGE_BYTES);
  store->page_count = 0;
  pthread_mutex_unlock(&store->page_mutex);
}
