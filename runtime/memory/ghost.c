/* The ghost of a shard: which keys it evicted from the small queue lately, as
 * 16-bit fingerprints, so that one that comes back goes straight to the main
 * queue (S3-FIFO: Yang et al., SOSP 2023). About as many as the shard has
 * entries, in a fixed table:
 *
 *   line (one of `count`, by the hash):  31 fingerprints, a ring | where it is
 *
 * A wrong match, one in 2,000, costs a better place in the queues than
 * deserved. The table is made when the shard evicts for the first time, and
 * made anew, empty, when it has become much too small or too large.
 */
#include <stdlib.h>

#include "memory/internal.h"

enum { LINE_KEYS = 31, NEXT = 31 };

static uint16_t *line_of(const struct ghost *ghost, uint64_t hash) {
  return ghost->lines[(hash >> 14 & 0xffffffff) * ghost->count >> 32];
}

static uint16_t fingerprint(uint64_t hash) {
  uint16_t print = (uint16_t)(hash ^ hash >> 40);
  return print ? print : 1;
}

/* Where it is in the line; LINE_KEYS: nowhere. */
static unsigned find_print(const uint16_t *line, uint16_t print) {
  uint32_t same = 0;
#ifdef __SSE2__
  const __m128i wanted = _mm_set1_epi16((short)print);
  for (unsigned i = 0; i < 2; i++) {
    const __m128i *half = (const __m128i *)(line + 16 * i);
    __m128i low = _mm_cmpeq_epi16(_mm_loadu_si128(half), wanted);
    __m128i high = _mm_cmpeq_epi16(_mm_loadu_si128(half + 1), wanted);
    same |= (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(low, high)) << 16 * i;
  }
#else
  for (unsigned i = 0; i < LINE_KEYS; i++)
    same |= (uint32_t)(line[i] == print) << i;
#endif
  same &= (1u << LINE_KEYS) - 1;
  return same ? (unsigned)__builtin_ctz(same) : LINE_KEYS;
}

void ghost_close(struct shard *shard) {
  store_charge(shard->store,
               -(ptrdiff_t)(shard->ghost.count * sizeof *shard->ghost.lines));
  free(shard->ghost.lines);
  shard->ghost = (struct ghost){NULL, 0};
}

/* Without memory there is no ghost. */
static void fit(struct shard *shard) {
  uint64_t lines = shard->entries / LINE_KEYS + 1;
  if (shard->ghost.count >= lines / 2 && shard->ghost.count / 4 <= lines &&
      shard->ghost.count > 0)
    return;
  ghost_close(shard);
  shard->ghost.lines = calloc(lines, sizeof *shard->ghost.lines);
  if (!shard->ghost.lines)
    return;
  shard->ghost.count = (uint32_t)lines;
  store_charge(shard->store, (ptrdiff_t)(lines * sizeof *shard->ghost.lines));
}

void ghost_add(struct shard *shard, uint64_t hash) {
  fit(shard);
  if (shard->ghost.count == 0)
    return;
  uint16_t *line = line_of(&shard->ghost, hash);
  line[line[NEXT]] = fingerprint(hash);
  line[NEXT] = (uint16_t)((line[NEXT] + 1) % LINE_KEYS);
}

int ghost_take(struct shard *shard, uint64_t hash) {
  if (shard->ghost.count == 0)
    return 0;
  uint16_t *line = line_of(&shard->ghost, hash), print = fingerprint(hash);
  unsigned at = find_print(line, print);
  if (at == LINE_KEYS)
    return 0;
  line[at] = 0;
  return 1;
}
