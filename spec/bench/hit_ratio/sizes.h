/* Values of many sizes: each key has its own, from 50 B to 64 KiB, drawn from a
 * Pareto distribution of index 1 that is cut off there: most are small, and as
 * many bytes are in each doubling of the size.
 *
 * The store's bound is 0.1, 1, 10 and 20 % of the bytes of all keys and values.
 * The simulations may hold as many bytes as were live in the store (store_info)
 * on average over the second half, and pay for an entry what the store does,
 * headers included:
 *   LRU  plain: the longest unused go until a new one fits
 *   GDS  GreedyDual-Size (Cao and Irani, USITS 1997) with a cost of 1 for each
 *        miss: LRU that knows of sizes, and is LRU where all are equal
 * Printed are the shares of requests that miss, and of bytes asked for.
 */
#ifndef MOONSTASH_BENCH_SIZES_H
#define MOONSTASH_BENCH_SIZES_H

#include "hit_ratio.h"

void sizes_head(void);
void sizes_print(const struct trace *t, const char *name);

#endif
