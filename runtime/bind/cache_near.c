/* What near copies need: copies of hot values that a Lua state keeps in tables
 * of its own (lua/cache/near.lua). The store says with each value how to tell
 * that a copy of it is out of date; the rest is words in memory that Lua reads
 * by FFI, without a call.
 *
 * The words of a view are readable while it is open, and views stay open until
 * the Lua state has gone: no copy outlives what it looks at.
 */
#include "bind/cache_internal.h"
#include "clock.h"

enum { SEEN_WAYS = 4 }; /* marks that share a place; a power of two */

/* Has the entry been read before? From now on it has. Where it lies in the
 * store says which one it is: should another come to lie there, that costs a
 * copy too many. Marks that share a place push each other out, oldest first. */
static uint32_t seen_again(uint32_t *seen, const struct store_near *near) {
  uintptr_t at = (uintptr_t)near->words / sizeof *near->words;
  uint64_t mixed = (at << 6 | near->shift) * UINT64_C(0x9e3779b97f4a7c15);
  uint32_t mark = (uint32_t)(mixed >> 32), last = mark;
  uint32_t *place = &seen[mark & (CACHE_SEEN - 1) & ~(SEEN_WAYS - 1U)];
  for (int i = 0; i < SEEN_WAYS; i++) {
    uint32_t found = place[i];
    place[i] = last;
    if (found == mark)
      return 1;
    last = found;
  }
  return 0;
}

static int get_near(BACKEND_KEY_ARGS, void *buf, size_t cap,
                    struct backend_item *out, struct cache_near *near) {
  int status = store_get_near(self, now, ns, ns_len, key, key_len, buf, cap,
                              out, &near->store);
  near->again = status >= 0 && near->store.words != NULL &&
                seen_again(near->seen, &near->store);
  return status;
}

void cache_open_near(struct cache_bind *c) {
  c->api.get_near = get_near;
  c->api.view_words = store_view_words;
  c->api.clock = clock_word();
  c->api.offset_ms = &c->offset_ms;
}
