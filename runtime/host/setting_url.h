/* URLs and host addresses, as the settings give them: taken apart, not copied,
 * every part a span of the caller's text. Knows no settings. */
#ifndef MOONSTASH_HOST_SETTING_URL_H
#define MOONSTASH_HOST_SETTING_URL_H

#include "host/span.h"

#include <limits.h>

enum { SETTING_PORT_MAX = 65535, SETTING_DB_MAX = INT_MAX };

struct address {
  struct span host; /* without brackets */
  struct span port; /* absent: not given */
};

/* Splits host, host:port, [v6] or [v6]:port. Loosely: what a host's name may
 * look like is the resolver's business. Returns 0 if it is none of them. */
int setting_read_address(struct span s, struct address *address);

/* scheme://[user[:password]@]host[:port][/db][?db=N], or for unix sockets
 * unix://[user[:password]@]/path[?db=N]. What is not given is absent. */
struct url {
  struct span scheme;
  struct span user;
  struct span password;
  struct span path; /* unix only */
  struct span db;
  struct address address; /* not for unix */
};

/* Fills *url. Returns NULL, or a refusal ("contains a # ...") that repeats
 * nothing of the text; *url is then not to be used. */
const char *setting_split_url(const char *text, struct url *url);

/* Writes what s stands for once its %XX are decoded, as they are in what
 * setting_split_url has accepted. 0, or -1 when it does not fit or holds a NUL.
 */
int setting_decode(struct span s, char *out, size_t size);

/* Is text what s stands for once its %XX are decoded? Both %XX digits of
 * each must be there, as in what setting_split_url has accepted. */
int setting_same_decoded(struct span s, const char *text);

#endif
