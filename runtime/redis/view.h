/* The Redis backend: the calls of backend.h on a connection.
 *
 * A view is a backend on a connection, with counters of its own; its keys are
 * the server's keys as they are. Values are bytes as the server has them: the
 * format tag of a set is not kept, and what get gives has the tag
 * BACKEND_BYTES. Every call answers later, through its wait, which it must
 * have; or at once with an error, for example while the server is away.
 * Leases are not here: a load in flight is the process's own affair.
 *
 * All on the connection's thread. Knows no Lua.
 */
#ifndef MOONSTASH_REDIS_VIEW_H
#define MOONSTASH_REDIS_VIEW_H

#include "backend.h"
#include "redis/conn.h"

/* Opens a view; no connection yet: calls give BACKEND_ECLOSED. 0, or
 * BACKEND_ENOMEM. Closed with ops->close, after its connection. */
int redis_view_open(struct backend **out);
/* The connection that calls use from now on; NULL: none. */
void redis_view_use(struct backend *view, struct redis_conn *conn);

/* May this command go over a connection that others share? Not if it blocks,
 * or changes what the connection is. args as for raw. */
int redis_may_share(const struct backend_slice *args, size_t n);

#endif
