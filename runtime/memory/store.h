/* The memory backend: a bounded, thread-safe store of bytes in this process.
 *
 * A store owns the memory and the byte bound; a backend is a view of it with
 * keys and counters of its own (each cache alias opens one). Any thread may
 * call any view. Knows neither Lua nor libuv.
 */
#ifndef MOONSTASH_MEMORY_STORE_H
#define MOONSTASH_MEMORY_STORE_H

#include "backend.h"

struct store;

/* Makes a store that holds at most max_bytes, metadata included. Returns 0 or
 * BACKEND_ENOMEM. The store lives until store_close and its last view's
 * close, whichever is later. */
int store_open(struct store **out, size_t max_bytes);
void store_close(struct store *store);

/* Opens a view: a backend whose keys no other view sees. */
int store_view(struct store *store, struct backend **out);

/* Is told of a value that leaves the view for any reason (replaced, deleted,
 * cleared, expired, evicted), the view's close apart. Called under the store's
 * mutex, on whatever thread: must only note it. */
typedef void store_drop_fn(void *ud, const void *bytes, size_t length);
/* Watches the view's values of one format. Before the view is used. */
void store_watch_drops(struct backend *view, uint32_t format, store_drop_fn *fn,
                       void *ud);

/* Changes the byte bound; evicts until it holds. */
void store_resize(struct store *store, size_t max_bytes);

#endif
