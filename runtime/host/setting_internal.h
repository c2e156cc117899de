/* What the files of the settings share: a value, its descriptor, and the steps
 * that setting_read.c and setting_message.c offer to settings.c. The way in
 * from outside is settings.h.
 */
#ifndef MOONSTASH_HOST_SETTING_INTERNAL_H
#define MOONSTASH_HOST_SETTING_INTERNAL_H

#include "host/memory_limit.h"
#include "host/settings.h"

enum {
  SETTING_QUOTE_BYTES = 64, /* text beyond this is cut in a message */
  SETTING_QUOTE_SIZE = SETTING_QUOTE_BYTES * 4 + sizeof "..."
};

#define SETTING_MEMORY_MIN_BYTES ((uint64_t)64 * 1024)

/* Where a value came from. */
enum origin { FROM_DEFAULT, FROM_ENVIRONMENT, FROM_CONFIGURE };

struct value {
  char text[SETTING_TEXT_MAX]; /* "" where number or text is unset */
  double number;               /* what the text means; 0 for strings */
  enum origin origin;
};

struct settings {
  struct value values[SETTING_COUNT];
  struct memory_limit memory; /* the default of memory_max_bytes */
};

struct descriptor;

/* Reads v->text into v->number (a choice also into its own spelling). Returns
 * NULL or the refusal. */
typedef const char *read_fn(const struct descriptor *d, struct value *v);

struct descriptor {
  const char *name;     /* "default_ttl" */
  const char *variable; /* "CACHE_DEFAULT_TTL" */
  read_fn *read;
  const char *fallback;       /* the default's text; NULL: unset */
  const char *const *choices; /* read_choice: NULL at the end */
  const char *not_a_choice;   /* read_choice: its refusal */
  char kind;                  /* 'b', 'n', 's' */
  char secret;
};

/* setting_read.c: a read_fn for each kind of text */

read_fn setting_read_boolean;  /* true/false, 1/0, yes/no, on/off */
read_fn setting_read_seconds;  /* 0, or 0.001 to 1e10, decimal */
read_fn setting_read_port;     /* 1 to SETTING_PORT_MAX */
read_fn setting_read_db;       /* 0 to SETTING_DB_MAX */
read_fn setting_read_bytes;    /* 1048576, 64M, 1GiB */
read_fn setting_read_text;     /* anything without control characters */
read_fn setting_read_choice;   /* one of d->choices */
read_fn setting_read_hosts;    /* host[:port],... */
read_fn setting_read_listener; /* host:port */
read_fn setting_read_url;      /* redis://, rediss://, unix:// */

/* setting_message.c */

/* Writes text as printable ASCII, with \xNN for the rest, and "..." at the end
 * if it does not fit. size >= 4. Returns buf. */
const char *setting_escape(const char *text, char *buf, size_t size);
/* Text as a message quotes it: escaped, and no more than its beginning. */
const char *setting_quote(const char *text, char buf[SETTING_QUOTE_SIZE]);
/* May text be a URL, and so hold a password? Then it is not quoted. */
int setting_like_url(const char *text);
/* Writes the one line of an error. Returns -1. */
__attribute__((format(printf, 3, 4))) int setting_fail(char *err, size_t size,
                                                       const char *format, ...);

#endif
