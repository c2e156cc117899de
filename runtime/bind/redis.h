/* The Redis backend for Lua: the module moonstash.redis, and its connection.
 *
 * One connection per runtime. It is made from what the host says
 * (bind_host.redis) when bind_redis_configure is called, and again when that
 * says something else.
 */
#ifndef MOONSTASH_BIND_REDIS_H
#define MOONSTASH_BIND_REDIS_H

#include "bind/bind.h"

/* Makes the connection, if Redis is configured: 1; 0 it is not; -1 with one
 * line in err. Connects when it is first used. */
int bind_redis_configure(struct bind *b, char *err, size_t size);
/* Runs the loop until it is connected: 0; or -1 with one line in err. */
int bind_redis_require(struct bind *b, char *err, size_t size);
/* Commands that nobody waits for, without a reply so far. */
int bind_redis_busy(const struct bind *b);
/* Closes the connection; its handles go when the loop runs. */
void bind_redis_close(struct bind *b);
/* Frees the rest, after the Lua state. */
void bind_redis_free(struct bind *b);

#endif
