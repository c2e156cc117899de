/* From a call's arguments to the shard and hash of its key. Inline, as it is a
 * good part of what a get costs.
 */
#ifndef MOONSTASH_MEMORY_TARGET_H
#define MOONSTASH_MEMORY_TARGET_H

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "memory/internal.h"

enum { HASH_STACK = 256 }; /* joined keys up to this are hashed in one piece */

static inline uint64_t target_hash_long(const struct store *store,
                                        const char *ns, size_t ns_len,
                                        const char *key, size_t key_len) {
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_64bits_reset_withSecret(&state, store->secret, SECRET_BYTES);
  XXH3_64bits_update(&state, ns, ns_len);
  XXH3_64bits_update(&state, key, key_len);
  return XXH3_64bits_digest(&state);
}

/* The split between ns and key must not show. */
static inline uint64_t target_hash(const struct store *store, uint32_t id,
                                   const char *ns, size_t ns_len,
                                   const char *key, size_t key_len) {
  uint64_t hash;
  char joined[HASH_STACK];
  if (ns_len == 0) {
    hash = XXH3_64bits_withSecret(key, key_len, store->secret, SECRET_BYTES);
  } else if (ns_len + key_len <= HASH_STACK) {
    memcpy(joined, ns, ns_len);
    memcpy(joined + ns_len, key, key_len);
    hash = XXH3_64bits_withSecret(joined, ns_len + key_len, store->secret,
                                  SECRET_BYTES);
  } else {
    hash = target_hash_long(store, ns, ns_len, key, key_len);
  }
  return hash ^ store_id_hash(id);
}

static inline int target_check(const struct view *view, size_t ns_len,
                               size_t key_len) {
  if (ns_len > BACKEND_KEY_MAX || key_len > BACKEND_KEY_MAX - ns_len ||
      ns_len + key_len == 0)
    return BACKEND_EINVAL;
  return load_relaxed(view->store->alive) ? 0 : BACKEND_ECLOSED;
}

static inline int target_aim(struct target *at, BACKEND_KEY_ARGS) {
  struct view *view = (struct view *)self;
  int rc = target_check(view, ns_len, key_len);
  if (rc < 0)
    return rc;
  at->view = view;
  at->store = view->store;
  at->ns = ns ? ns : ""; /* memcpy and memcmp take no NULL, even for 0 */
  at->key = key ? key : "";
  at->ns_len = ns_len;
  at->key_len = key_len;
  at->now = now;
  at->id = load_acquire(&view->space->id);
  at->hash = target_hash(at->store, at->id, at->ns, ns_len, at->key, key_len);
  at->shard = store_shard(at->store, at->hash);
  return 0;
}

#endif
