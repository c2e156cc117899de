/* Allocations that fail on demand, in a program that is linked with
 * -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc: those of the objects it is
 * made of, not those of shared libraries (hiredis 0.14 aborts without memory).
 */
#ifndef MOONSTASH_SPEC_ALLOC_H
#define MOONSTASH_SPEC_ALLOC_H

/* After so many allocations all fail. */
void alloc_fail_after(long count);
/* They succeed again; did one fail? */
int alloc_fail_never(void);

#endif
