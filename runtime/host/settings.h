/* Settings: what the environment, and later configure_caches, ask for.
 *
 * One table describes every setting: its name, how its text is read, its
 * default. A value is always given as text and always kept beside where it
 * came from, so that --env can tell. Knows neither Lua nor libuv.
 */
#ifndef MOONSTASH_HOST_SETTINGS_H
#define MOONSTASH_HOST_SETTINGS_H

#include <stddef.h>
#include <stdint.h>

enum setting_id {
  SETTING_ENABLED,               /* boolean, true */
  SETTING_REDIS_HOST,            /* comma list of host[:port]; unset */
  SETTING_REDIS_PORT,            /* 1..65535, 6379 */
  SETTING_DEFAULT_TTL,           /* seconds, 300; 0 = never */
  SETTING_PERSISTENT_TTL,        /* seconds, 3600; 0 = never */
  SETTING_REDIS_URL,             /* redis://, rediss://, unix://; secret */
  SETTING_REDIS_USERNAME,        /* text */
  SETTING_REDIS_PASSWORD,        /* text; secret */
  SETTING_REDIS_PASSWORD_FILE,   /* path */
  SETTING_REDIS_DB,              /* 0.., 0 */
  SETTING_REDIS_MODE,            /* auto, standalone, cluster, sentinel */
  SETTING_REDIS_SENTINEL_MASTER, /* text */
  SETTING_REDIS_TLS,             /* boolean, false */
  SETTING_REDIS_TLS_CA,          /* path */
  SETTING_REDIS_TLS_CERT,        /* path */
  SETTING_REDIS_TLS_KEY,         /* path */
  SETTING_REDIS_TIMEOUT,         /* seconds, 1 */
  SETTING_REDIS_CONNECT_TIMEOUT, /* seconds, 1 */
  SETTING_REDIS_READ_FROM,       /* primary, replica, any; primary */
  SETTING_REQUIRE_REDIS,         /* boolean, false */
  SETTING_NAMESPACE,             /* text; empty */
  SETTING_MEMORY_MAX_BYTES,      /* bytes, also 64M, 1GiB; a quarter of the
                                    machine's or cgroup's memory, <= 1 GiB */
  SETTING_METRICS_LISTEN,        /* host:port */
  SETTING_LOG,                   /* MOONSTASH_LOG: error, warn, info, debug;
                                    warn */
  SETTING_COUNT
};

enum { SETTING_TEXT_MAX = 1024 }; /* bytes of one value's text */

struct settings; /* the effective values of one runtime */

/* Is told of a warning: one line, no newline at its end. */
typedef void settings_warn_fn(void *ud, const char *line);

/* Makes the defaults, then reads CACHE_* and MOONSTASH_LOG out of environ
 * (NULL: the defaults only). An empty variable counts as unset. An unknown
 * CACHE_* name warns with the nearest known one. Returns 0; or -1 with one
 * line in err naming variable and value (a secret's value is not shown): a
 * value that cannot be read, or settings that contradict each other. */
int settings_open(struct settings **out, char *const *environ_,
                  settings_warn_fn *warn, void *ud, char *err, size_t err_size);
void settings_close(struct settings *s);

/* The id of a lower-case name without CACHE_ ("default_ttl"; "log" for
 * MOONSTASH_LOG), or -1 with the nearest known name in *nearest. */
int settings_find(const char *name, const char **nearest);

/* Sets one value from its text ("" = back to the default, from where it is
 * unset again). Its source becomes "configure_caches". Returns 0; or -1 with
 * one line in err, and nothing has changed. Looks at this value alone: those
 * that need each other are put one after the other, then settings_check. */
int settings_put(struct settings *s, int id, const char *text, char *err,
                 size_t err_size);

/* Returns 0, or -1 with one line in err if settings contradict each other. */
int settings_check(const struct settings *s, char *err, size_t err_size);

/* A deep copy, for changing several at once and swapping on success: copy,
 * put each, check, then close one of the two. NULL: no memory. */
struct settings *settings_copy(const struct settings *s);

int settings_is_set(const struct settings *s, int id);
const char *settings_name(int id);     /* "default_ttl" */
const char *settings_variable(int id); /* "CACHE_DEFAULT_TTL" */
/* What the value is: 'b'oolean, 'n'umber (seconds, count, bytes), 's'tring. */
char settings_kind(int id);
int settings_is_secret(int id);
/* "default", "environment", "configure_caches", or for the byte bound's
 * default what it was computed from ("a quarter of the cgroup limit"). */
const char *settings_source(const struct settings *s, int id);
const char *settings_text(const struct settings *s, int id); /* NULL: unset */
double settings_number(const struct settings *s, int id); /* booleans: 0, 1 */

/* Writes the value as --env shows it: "unset", secrets as "****" (in a URL
 * only the password), bytes that are not printable ASCII as \xNN, and "..." at
 * the end of what does not fit. size >= 4. Returns buf. */
const char *settings_show(const struct settings *s, int id, char *buf,
                          size_t size);

#endif
