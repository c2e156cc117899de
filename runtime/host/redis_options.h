/* Where Redis is, out of the settings. */
#ifndef MOONSTASH_HOST_REDIS_OPTIONS_H
#define MOONSTASH_HOST_REDIS_OPTIONS_H

#include "host/settings.h"
#include "redis/conn.h"

/* Fills *out, of which only strings' first bytes need to be zero before.
 * Returns 1; 0 when no Redis is configured; or -1 with one line in err: what
 * this version lacks, or a password file that cannot be read. */
int redis_options_read(const struct settings *s, struct redis_options *out,
                       char *err, size_t err_size);

#endif
