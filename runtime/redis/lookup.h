/* Looks a name up without ever waiting for it.
 *
 * getaddrinfo cannot be interrupted, and where the name server is silent it
 * takes 10 s and more. In libuv's pool it would take one of the few threads
 * all that time, and the loop could not be closed before. Here each look-up
 * has a thread of its own; one that nobody wants any more ends by itself.
 */
#ifndef MOONSTASH_REDIS_LOOKUP_H
#define MOONSTASH_REDIS_LOOKUP_H

#include <netdb.h>
#include <uv.h>

struct lookup;

/* Is called on the loop, once, and l is gone then. Addresses are the
 * receiver's, to free with freeaddrinfo; NULL: there are none, error says why.
 */
typedef void lookup_fn(struct lookup *l, void *ud, struct addrinfo *addresses,
                       const char *error);

/* NULL: no memory, or no thread. */
struct lookup *lookup_start(uv_loop_t *loop, const char *name, int port,
                            lookup_fn *fn, void *ud);
/* Shall it keep the loop alive? At first it does. */
void lookup_hold_loop(struct lookup *l, int hold);
/* Nobody wants it any more: fn is not called. */
void lookup_abandon(struct lookup *l);

#endif
