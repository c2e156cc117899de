/* Settings: one table, one value per row, one function per kind of text.
 *
 * Invariant: a value that is kept has been read without error, so whoever asks
 * for its text or number need not doubt it. Text is read into a value on the
 * stack and copied over only then; a refusal changes nothing.
 *
 * A refusal is a phrase ("is not a boolean") that follows the quoted text. A
 * secret's text is never quoted, so the phrases must make sense without it.
 * Quoted text comes from outside and goes to a terminal or a log: control and
 * non-ASCII bytes are escaped, and long text is cut.
 *
 * Settings contradict each other only as a whole: check_* look at the values
 * that are set, and name each by the name under which it was given.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* explicit_bzero */
#endif
#include "host/settings.h"
#include "host/memory_limit.h"

#include <assert.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
  PORT_MAX = 65535,
  DB_MAX = INT_MAX,
  FRACTION_DIGITS = 15, /* digits after the point that count */
  NAME_MAX_BYTES = 48,  /* longer names resemble none of ours */
  QUOTE_BYTES = 64,     /* text beyond this is cut in a message */
  QUOTE_SIZE = QUOTE_BYTES * 4 + sizeof "..."
};

#define MEMORY_MIN_BYTES ((uint64_t)64 * 1024)
#define MEMORY_MAX_BYTES ((uint64_t)1 << 53) /* exact as a double */
#define SECONDS_MIN 0.001                    /* the clock counts milliseconds */
#define SECONDS_MAX 1e10                     /* 317 years, exact as ms */

static const char not_a_boolean[] =
    "is not a boolean (true/false, 1/0, yes/no, on/off)";
static const char not_seconds[] =
    "is not a number of seconds (0, or 0.001 to 10000000000)";
static const char not_a_port[] = "is not a port (1 to 65535)";
static const char not_a_db[] = "is not a database number (0 or above)";
static const char not_bytes[] =
    "is not a number of bytes (such as 1048576, 64M or 1GiB)";
static const char too_few_bytes[] = "is below the minimum of 64 KiB";
static const char not_hosts[] =
    "is not a list of hosts (host, host:port or [v6]:port, with commas and "
    "no spaces between them)";
static const char not_a_listener[] =
    "is not an address to listen on (host:port or [v6]:port)";
static const char has_controls[] = "contains a control character";
static const char too_long[] = "is longer than 1023 bytes";

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

/* ---- Numbers ---------------------------------------------------------- */

static int is_digit(char c) {
  return c >= '0' && c <= '9';
}

/* Reads a run of digits. Returns what follows it, or NULL if there is none or
 * the number is above limit. */
static const char *read_digits(const char *text, uint64_t limit,
                               uint64_t *number) {
  if (!is_digit(*text))
    return NULL;
  for (*number = 0; is_digit(*text); text++) {
    unsigned digit = (unsigned)(*text - '0');

    if (*number > (limit - digit) / 10)
      return NULL;
    *number = *number * 10 + digit;
  }
  return text;
}

static int is_integer(const char *text, uint64_t min, uint64_t max,
                      uint64_t *number) {
  const char *end = read_digits(text, max, number);

  return end != NULL && *end == '\0' && *number >= min;
}

static const char *read_boolean(const struct descriptor *d, struct value *v) {
  static const char *const words[] = {"false", "true", "0",   "1",
                                      "no",    "yes",  "off", "on"};

  (void)d;
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if (strcasecmp(v->text, words[i]) == 0) {
      v->number = i % 2;
      return NULL;
    }
  return not_a_boolean;
}

/* By hand: strtod takes hex, inf, nan, blanks, and the locale's comma. What is
 * not 0 must not become 0, for 0 means never. */
static const char *read_seconds(const struct descriptor *d, struct value *v) {
  const char *p = v->text;
  double number = 0, scale = 1;
  int digits = 0, nonzero = 0;

  (void)d;
  for (; is_digit(*p); p++, digits++) {
    number = number * 10 + (*p - '0');
    nonzero |= *p != '0';
  }
  if (*p == '.')
    for (int i = 0; is_digit(*++p); i++, digits++) {
      nonzero |= *p != '0';
      if (i >= FRACTION_DIGITS)
        continue;
      number = number * 10 + (*p - '0');
      scale *= 10;
    }
  if (digits == 0 || *p != '\0')
    return not_seconds;
  v->number = number / scale;
  if (nonzero && !(v->number >= SECONDS_MIN && v->number <= SECONDS_MAX))
    return not_seconds;
  return NULL;
}

static const char *read_port(const struct descriptor *d, struct value *v) {
  uint64_t port;

  (void)d;
  if (!is_integer(v->text, 1, PORT_MAX, &port))
    return not_a_port;
  v->number = (double)port;
  return NULL;
}

static const char *read_db(const struct descriptor *d, struct value *v) {
  uint64_t db;

  (void)d;
  if (!is_integer(v->text, 0, DB_MAX, &db))
    return not_a_db;
  v->number = (double)db;
  return NULL;
}

/* "", "K", "KB", "Ki", "KiB" and so on, in any case: always powers of 1024.
 * Returns the power of two, or -1. */
static int suffix_shift(const char *suffix) {
  static const char units[] = "kmgt";
  const char *unit;

  if (*suffix == '\0')
    return 0;
  unit = strchr(units, *suffix | 0x20);
  if (unit == NULL)
    return -1;
  suffix++;
  if (*suffix == 'i' || *suffix == 'I')
    suffix++;
  if (*suffix == 'b' || *suffix == 'B')
    suffix++;
  return *suffix == '\0' ? (int)(unit - units + 1) * 10 : -1;
}

static const char *read_bytes(const struct descriptor *d, struct value *v) {
  uint64_t bytes;
  const char *suffix = read_digits(v->text, MEMORY_MAX_BYTES, &bytes);
  int shift = suffix != NULL ? suffix_shift(suffix) : -1;

  (void)d;
  if (shift < 0 || bytes > (MEMORY_MAX_BYTES >> shift))
    return not_bytes;
  bytes <<= shift;
  if (bytes < MEMORY_MIN_BYTES)
    return too_few_bytes;
  v->number = (double)bytes;
  return NULL;
}

/* ---- Text ------------------------------------------------------------- */

static const char *read_text(const struct descriptor *d, struct value *v) {
  (void)d;
  for (const char *p = v->text; *p != '\0'; p++)
    if ((unsigned char)*p < ' ' || *p == 0x7f)
      return has_controls;
  return NULL;
}

static const char *read_choice(const struct descriptor *d, struct value *v) {
  for (int i = 0; d->choices[i] != NULL; i++)
    if (strcasecmp(v->text, d->choices[i]) == 0) {
      strcpy(v->text, d->choices[i]); /* of the same length */
      return NULL;
    }
  return d->not_a_choice;
}

/* ---- Hosts and URLs --------------------------------------------------- */

/* A piece of a text that somebody else owns. at is NULL where it is absent. */
struct span {
  const char *at;
  size_t length;
};

static struct span span_of(const char *text) {
  return (struct span){text, strlen(text)};
}

static struct span span_between(const char *begin, const char *end) {
  assert(begin <= end);
  return (struct span){begin, (size_t)(end - begin)};
}

static const char *span_find(struct span s, char c) {
  return memchr(s.at, c, s.length);
}

/* Cuts s in two at c. Returns the part behind it, absent if there is no c. */
static struct span span_cut(struct span *s, char c) {
  const char *at = span_find(*s, c);
  const char *end = s->at + s->length;

  if (at == NULL)
    return (struct span){NULL, 0};
  *s = span_between(s->at, at);
  return span_between(at + 1, end);
}

static int span_is_number(struct span s, uint64_t min, uint64_t max,
                          uint64_t *number) {
  const char *end;

  if (s.length == 0 || !is_digit(*s.at))
    return 0;
  end = read_digits(s.at, max, number);
  return end == s.at + s.length && *number >= min;
}

struct address {
  struct span host; /* without brackets */
  struct span port; /* absent: not given */
};

/* Splits host, host:port, [v6] or [v6]:port. Loosely: what a host's name may
 * look like is the resolver's business. Returns 0 if it is none of them. */
static int read_address(struct span s, struct address *address) {
  uint64_t port;

  *address = (struct address){s, {NULL, 0}};
  if (s.length > 0 && *s.at == '[') {
    const char *end = s.at + s.length;
    const char *close = span_find(s, ']');

    if (close == NULL || (close + 1 < end && close[1] != ':'))
      return 0;
    address->host = span_between(s.at + 1, close);
    if (close + 1 < end)
      address->port = span_between(close + 2, end);
  } else {
    address->port = span_cut(&address->host, ':');
  }
  for (size_t i = 0; i < address->host.length; i++)
    if ((unsigned char)address->host.at[i] <= ' ' ||
        strchr("/@?#[]\x7f", address->host.at[i]) != NULL)
      return 0;
  return address->host.length > 0 &&
         (address->port.at == NULL ||
          span_is_number(address->port, 1, PORT_MAX, &port));
}

static const char *read_hosts(const struct descriptor *d, struct value *v) {
  struct span item = span_of(v->text);
  struct address address;

  (void)d;
  while (item.at != NULL) {
    struct span rest = span_cut(&item, ',');

    if (!read_address(item, &address))
      return not_hosts;
    item = rest;
  }
  return NULL;
}

static const char *read_listener(const struct descriptor *d, struct value *v) {
  struct address address;

  (void)d;
  if (!read_address(span_of(v->text), &address) || address.port.at == NULL)
    return not_a_listener;
  return NULL;
}

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

static int span_equals(struct span s, const char *text) {
  return s.at != NULL && s.length == strlen(text) &&
         memcmp(s.at, text, s.length) == 0;
}

static int hex_digit(char c) {
  static const char digits[] = "0123456789abcdef";
  const char *at =
      c != '\0' ? strchr(digits, is_digit(c) ? c : c | 0x20) : NULL;

  return at != NULL ? (int)(at - digits) : -1;
}

static int is_percent_encoded(struct span s) {
  for (size_t i = 0; i < s.length; i++)
    if (s.at[i] == '%' && (i + 2 >= s.length || hex_digit(s.at[i + 1]) < 0 ||
                           hex_digit(s.at[i + 2]) < 0))
      return 0;
  return 1;
}

/* Takes user and password off the front of the authority. The last @ counts:
 * a password may contain one, a host may not. */
static const char *read_userinfo(struct span *authority, struct url *url) {
  const char *at = memrchr(authority->at, '@', authority->length);

  if (at == NULL)
    return NULL;
  url->user = span_between(authority->at, at);
  *authority = span_between(at + 1, authority->at + authority->length);
  url->password = span_cut(&url->user, ':');
  if (!is_percent_encoded(url->user) || !is_percent_encoded(url->password))
    return "has a % in its user or password that is not followed by two hex "
           "digits (write % as %25)";
  return NULL;
}

/* Takes ?db=N off the end. Other parameters are refused: they would be
 * ignored, and a password among them would be shown. */
static const char *read_query(struct span *rest, struct url *url) {
  struct span query = span_cut(rest, '?');
  uint64_t db;

  if (query.at == NULL)
    return NULL;
  url->db = span_cut(&query, '=');
  if (!span_equals(query, "db") || !span_is_number(url->db, 0, DB_MAX, &db))
    return "has something other than ?db= and a number behind its ?";
  return NULL;
}

/* The part behind the authority, "/..." or nothing. */
static const char *read_path(struct span path, struct url *url) {
  uint64_t db;

  if (span_equals(url->scheme, "unix")) {
    url->path = path;
    return path.length > 1 ? NULL : "has no path of a socket";
  }
  if (path.length <= 1)
    return NULL;
  if (url->db.at != NULL)
    return "has two database numbers, /N and ?db=N";
  url->db = span_between(path.at + 1, path.at + path.length);
  if (!span_is_number(url->db, 0, DB_MAX, &db))
    return "has something other than a database number behind its host";
  return NULL;
}

static const char *split_url(const char *text, struct url *url) {
  const char *colon = strstr(text, "://");
  struct span rest, authority;
  const char *refusal, *slash;

  memset(url, 0, sizeof *url);
  url->scheme = span_between(text, colon != NULL ? colon : text);
  if (!span_equals(url->scheme, "redis") &&
      !span_equals(url->scheme, "rediss") && !span_equals(url->scheme, "unix"))
    return "does not begin with redis://, rediss:// or unix://";
  rest = span_of(colon + strlen("://"));
  if (span_find(rest, '#') != NULL)
    return "contains a # (write it as %23)";
  if ((refusal = read_query(&rest, url)) != NULL)
    return refusal;
  slash = span_find(rest, '/');
  authority = rest;
  if (slash != NULL)
    authority = span_between(rest.at, slash);
  rest = span_between(authority.at + authority.length, rest.at + rest.length);
  if ((refusal = read_userinfo(&authority, url)) != NULL)
    return refusal;
  if (span_equals(url->scheme, "unix") && authority.length > 0)
    return "names a host, but unix:// takes a path: unix:///run/redis.sock";
  if (!span_equals(url->scheme, "unix") &&
      !read_address(authority, &url->address))
    return "does not name one host, or has a port that is not 1 to 65535";
  return read_path(rest, url);
}

static const char *read_url(const struct descriptor *d, struct value *v) {
  const char *refusal = read_text(d, v);
  struct url url;

  if (refusal == NULL)
    refusal = split_url(v->text, &url);
  /* A comma would make it a list, which only CACHE_REDIS_HOST is. */
  if (refusal == NULL && url.address.host.at != NULL &&
      span_find(url.address.host, ',') != NULL)
    refusal = "names several hosts; give a list in CACHE_REDIS_HOST";
  return refusal;
}

/* ---- The table -------------------------------------------------------- */

static const char *const modes[] = {"auto", "standalone", "cluster", "sentinel",
                                    NULL};
static const char *const replicas[] = {"primary", "replica", "any", NULL};
static const char *const levels[] = {"error", "warn", "info", "debug", NULL};

/* clang-format off */
#define CACHE(ID, name, kind, read, ...)                                       \
  [SETTING_##ID] = {#name, "CACHE_" #ID, read, __VA_ARGS__, kind, 0}
#define SECRET(ID, name, kind, read, ...)                                      \
  [SETTING_##ID] = {#name, "CACHE_" #ID, read, __VA_ARGS__, kind, 1}
#define PLAIN(fallback) fallback, NULL, NULL
#define CHOICE(fallback, choices, listed)                                      \
  fallback, choices, "is not one of " listed

static const struct descriptor table[SETTING_COUNT] = {
  CACHE(ENABLED, enabled, 'b', read_boolean, PLAIN("true")),
  CACHE(REDIS_HOST, redis_host, 's', read_hosts, PLAIN(NULL)),
  CACHE(REDIS_PORT, redis_port, 'n', read_port, PLAIN("6379")),
  CACHE(DEFAULT_TTL, default_ttl, 'n', read_seconds, PLAIN("300")),
  CACHE(PERSISTENT_TTL, persistent_ttl, 'n', read_seconds, PLAIN("3600")),
  SECRET(REDIS_URL, redis_url, 's', read_url, PLAIN(NULL)),
  CACHE(REDIS_USERNAME, redis_username, 's', read_text, PLAIN(NULL)),
  SECRET(REDIS_PASSWORD, redis_password, 's', read_text, PLAIN(NULL)),
  CACHE(REDIS_PASSWORD_FILE, redis_password_file, 's', read_text, PLAIN(NULL)),
  CACHE(REDIS_DB, redis_db, 'n', read_db, PLAIN("0")),
  CACHE(REDIS_MODE, redis_mode, 's', read_choice,
        CHOICE("auto", modes, "auto, standalone, cluster, sentinel")),
  CACHE(REDIS_SENTINEL_MASTER, redis_sentinel_master, 's', read_text,
        PLAIN(NULL)),
  CACHE(REDIS_TLS, redis_tls, 'b', read_boolean, PLAIN("false")),
  CACHE(REDIS_TLS_CA, redis_tls_ca, 's', read_text, PLAIN(NULL)),
  CACHE(REDIS_TLS_CERT, redis_tls_cert, 's', read_text, PLAIN(NULL)),
  CACHE(REDIS_TLS_KEY, redis_tls_key, 's', read_text, PLAIN(NULL)),
  CACHE(REDIS_TIMEOUT, redis_timeout, 'n', read_seconds, PLAIN("1")),
  CACHE(REDIS_CONNECT_TIMEOUT, redis_connect_timeout, 'n', read_seconds,
        PLAIN("1")),
  CACHE(REDIS_READ_FROM, redis_read_from, 's', read_choice,
        CHOICE("primary", replicas, "primary, replica, any")),
  CACHE(REQUIRE_REDIS, require_redis, 'b', read_boolean, PLAIN("false")),
  CACHE(NAMESPACE, namespace, 's', read_text, PLAIN("")),
  /* Its default is computed; see make_default. */
  CACHE(MEMORY_MAX_BYTES, memory_max_bytes, 'n', read_bytes, PLAIN("0")),
  CACHE(METRICS_LISTEN, metrics_listen, 's', read_listener, PLAIN(NULL)),
  [SETTING_LOG] = {"log", "MOONSTASH_LOG", read_choice,
                   CHOICE("warn", levels, "error, warn, info, debug"), 's', 0},
};
/* clang-format on */

static const struct descriptor *describe(int id) {
  assert(id >= 0 && id < SETTING_COUNT);
  return &table[id];
}

/* ---- Messages --------------------------------------------------------- */

static size_t escaped_width(char c) {
  return c >= ' ' && c < 0x7f ? 1 : strlen("\\xNN");
}

static size_t escaped_length(const char *text) {
  size_t length = 0;

  for (; *text != '\0'; text++)
    length += escaped_width(*text);
  return length;
}

/* Writes text as printable ASCII, with \xNN for the rest, and "..." at the end
 * if it does not fit. */
static const char *escape(const char *text, char *buf, size_t size) {
  const char *end = escaped_length(text) < size ? "" : "...";
  size_t room = size - strlen(end), used = 0;

  assert(size >= sizeof "...");
  for (; *text != '\0'; text++) {
    size_t width = escaped_width(*text);

    if (used + width >= room)
      break;
    snprintf(buf + used, size - used, width == 1 ? "%c" : "\\x%02x",
             (unsigned char)*text);
    used += width;
  }
  strcpy(buf + used, end);
  return buf;
}

/* Text as a message quotes it: a beginning long enough to know it again. */
static const char *quote(const char *text, char buf[QUOTE_SIZE]) {
  char head[QUOTE_BYTES + 1];
  char escaped[QUOTE_BYTES * 4 + 1];
  size_t length = strlen(text);

  snprintf(head, sizeof head, "%.*s", QUOTE_BYTES, text);
  escape(head, escaped, sizeof escaped);
  snprintf(buf, QUOTE_SIZE, "%s%s", escaped, length > QUOTE_BYTES ? "..." : "");
  return buf;
}

__attribute__((format(printf, 3, 4))) static int fail(char *err, size_t size,
                                                      const char *format, ...) {
  va_list args;

  va_start(args, format);
  vsnprintf(err, size, format, args);
  va_end(args);
  return -1;
}

/* ---- One value -------------------------------------------------------- */

static void make_default(struct settings *s, int id) {
  const struct descriptor *d = describe(id);
  struct value *v = &s->values[id];
  const char *refusal = NULL;

  memset(v, 0, sizeof *v);
  v->origin = FROM_DEFAULT;
  if (id == SETTING_MEMORY_MAX_BYTES)
    snprintf(v->text, sizeof v->text, "%llu",
             (unsigned long long)s->memory.bytes);
  else if (d->fallback != NULL)
    snprintf(v->text, sizeof v->text, "%s", d->fallback);
  if (v->text[0] != '\0')
    refusal = d->read(d, v);
  assert(refusal == NULL);
  (void)refusal;
}

/* Reads text and keeps it, or says in err, under the name given, why not. */
static int put(struct settings *s, int id, const char *text, enum origin origin,
               const char *name, char *err, size_t size) {
  const struct descriptor *d = describe(id);
  struct value v = {.origin = origin};
  const char *refusal = too_long;
  char quoted[QUOTE_SIZE];

  if (strlen(text) < sizeof v.text) {
    strcpy(v.text, text);
    refusal = d->read(d, &v);
  }
  if (refusal == NULL)
    s->values[id] = v;
  explicit_bzero(&v, sizeof v); /* may have been a secret */
  if (refusal == NULL)
    return 0;
  if (d->secret)
    return fail(err, size, "%s: the value (not shown) %s", name, refusal);
  return fail(err, size, "%s: '%s' %s", name, quote(text, quoted), refusal);
}

int settings_put(struct settings *s, int id, const char *text, char *err,
                 size_t err_size) {
  if (text[0] != '\0')
    return put(s, id, text, FROM_CONFIGURE, describe(id)->name, err, err_size);
  make_default(s, id);
  return 0;
}

/* ---- Contradictions --------------------------------------------------- */

static int is_on(const struct settings *s, int id) {
  return settings_is_set(s, id) && s->values[id].number != 0;
}

/* A setting's name as it was given; one that was not given is named in the
 * way of the one that asks for it. */
static const char *label(const struct settings *s, int id, int asking) {
  int given = settings_is_set(s, id) ? id : asking;

  return s->values[given].origin == FROM_CONFIGURE ? settings_name(id)
                                                   : settings_variable(id);
}

static int clash(const struct settings *s, int a, int b, const char *what,
                 char *err, size_t size) {
  return fail(err, size, "%s and %s %s; set one of them", label(s, a, a),
              label(s, b, b), what);
}

static int needs(const struct settings *s, int id, int other, char *err,
                 size_t size) {
  if (!settings_is_set(s, id) || settings_is_set(s, other))
    return 0;
  return fail(err, size, "%s is set, but %s is not", label(s, id, id),
              label(s, other, id));
}

static int same_host(struct span a, struct span b) {
  return a.length == b.length && strncasecmp(a.at, b.at, a.length) == 0;
}

static int same_number(struct span text, double number) {
  uint64_t value;

  return span_is_number(text, 0, UINT32_MAX, &value) && (double)value == number;
}

/* Is text what s stands for once its %XX are decoded? */
static int same_decoded(struct span s, const char *text) {
  for (size_t i = 0; i < s.length; i++, text++) {
    char c = s.at[i];

    if (c == '%') {
      assert(i + 2 < s.length);
      c = (char)(hex_digit(s.at[i + 1]) * 16 + hex_digit(s.at[i + 2]));
      i += 2;
    }
    if (*text == '\0' || *text != c)
      return 0;
  }
  return *text == '\0';
}

/* REDIS_HOST beside a URL: the one host of the URL, or it is a contradiction.
 * A port that only one of the two names is no contradiction. */
static int same_address(const char *hosts, const struct address *address) {
  struct address other;

  return address->host.at != NULL && strchr(hosts, ',') == NULL &&
         read_address(span_of(hosts), &other) &&
         same_host(other.host, address->host) &&
         (other.port.at == NULL || address->port.at == NULL ||
          (other.port.length == address->port.length &&
           memcmp(other.port.at, address->port.at, other.port.length) == 0));
}

/* The URL beside the single settings of the same meaning. */
static int check_url(const struct settings *s, char *err, size_t size) {
  const struct value *v = s->values;
  const int id = SETTING_REDIS_URL;
  struct url url;

#define CLASH_UNLESS(same, other, what)     \
  if (settings_is_set(s, other) && !(same)) \
  return clash(s, id, other, what, err, size)

  if (!settings_is_set(s, id) || split_url(v[id].text, &url) != NULL)
    return 0;
  CLASH_UNLESS(same_address(v[SETTING_REDIS_HOST].text, &url.address),
               SETTING_REDIS_HOST, "name different hosts");
  CLASH_UNLESS(url.address.port.at == NULL ||
                   same_number(url.address.port, v[SETTING_REDIS_PORT].number),
               SETTING_REDIS_PORT, "name different ports");
  CLASH_UNLESS(url.db.at == NULL ||
                   same_number(url.db, v[SETTING_REDIS_DB].number),
               SETTING_REDIS_DB, "name different databases");
  CLASH_UNLESS(url.user.length == 0 ||
                   same_decoded(url.user, v[SETTING_REDIS_USERNAME].text),
               SETTING_REDIS_USERNAME, "name different users");
  CLASH_UNLESS(url.password.at == NULL ||
                   same_decoded(url.password, v[SETTING_REDIS_PASSWORD].text),
               SETTING_REDIS_PASSWORD, "give different passwords");
  CLASH_UNLESS(url.password.at == NULL, SETTING_REDIS_PASSWORD_FILE,
               "both give a password");
  CLASH_UNLESS(!span_equals(url.scheme, "rediss") ||
                   is_on(s, SETTING_REDIS_TLS),
               SETTING_REDIS_TLS, "disagree about TLS (rediss:// means on)");
#undef CLASH_UNLESS
  return 0;
}

static int check_password(const struct settings *s, char *err, size_t size) {
  if (!settings_is_set(s, SETTING_REDIS_PASSWORD) ||
      !settings_is_set(s, SETTING_REDIS_PASSWORD_FILE))
    return 0;
  return clash(s, SETTING_REDIS_PASSWORD, SETTING_REDIS_PASSWORD_FILE,
               "both give a password", err, size);
}

static int check_tls_pair(const struct settings *s, char *err, size_t size) {
  if (needs(s, SETTING_REDIS_TLS_CERT, SETTING_REDIS_TLS_KEY, err, size) < 0)
    return -1;
  return needs(s, SETTING_REDIS_TLS_KEY, SETTING_REDIS_TLS_CERT, err, size);
}

static int check_sentinel(const struct settings *s, char *err, size_t size) {
  const int mode = SETTING_REDIS_MODE, master = SETTING_REDIS_SENTINEL_MASTER;

  if (strcmp(s->values[mode].text, "sentinel") != 0 ||
      settings_is_set(s, master))
    return 0;
  return fail(err, size, "%s is sentinel, but %s is not set",
              label(s, mode, mode), label(s, master, mode));
}

static int check_required(const struct settings *s, char *err, size_t size) {
  const int id = SETTING_REQUIRE_REDIS;

  if (!is_on(s, id) || settings_is_set(s, SETTING_REDIS_HOST) ||
      settings_is_set(s, SETTING_REDIS_URL))
    return 0;
  return fail(err, size, "%s is on, but neither %s nor %s is set",
              label(s, id, id), label(s, SETTING_REDIS_HOST, id),
              label(s, SETTING_REDIS_URL, id));
}

int settings_check(const struct settings *s, char *err, size_t err_size) {
  static int (*const checks[])(const struct settings *, char *, size_t) = {
      check_url, check_password, check_tls_pair, check_sentinel,
      check_required};

  for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
    if (checks[i](s, err, err_size) < 0)
      return -1;
  return 0;
}

/* ---- Names ------------------------------------------------------------ */

static size_t min_of_three(size_t a, size_t b, size_t c) {
  size_t least = a < b ? a : b;

  return least < c ? least : c;
}

/* Levenshtein's distance in any case, one row at a time. */
static size_t edit_distance(struct span a, struct span b) {
  size_t row[NAME_MAX_BYTES + 1];

  assert(b.length <= NAME_MAX_BYTES);
  for (size_t j = 0; j <= b.length; j++)
    row[j] = j;
  for (size_t i = 1; i <= a.length; i++) {
    size_t diagonal = row[0];

    row[0] = i;
    for (size_t j = 1; j <= b.length; j++) {
      size_t differs = strncasecmp(a.at + i - 1, b.at + j - 1, 1) != 0;
      size_t above = row[j];

      row[j] = min_of_three(above + 1, row[j - 1] + 1, diagonal + differs);
      diagonal = above;
    }
  }
  return row[b.length];
}

/* The known name that is nearest, or -1 if more than about a quarter of it
 * would have to be changed: a wild guess helps nobody. */
static int nearest_id(struct span name) {
  size_t least = SIZE_MAX;
  int nearest = -1;

  if (name.length > NAME_MAX_BYTES)
    return -1;
  for (int id = 0; id < SETTING_COUNT; id++) {
    struct span known = span_of(table[id].name);
    size_t distance = edit_distance(name, known);

    if (distance < least && distance <= known.length / 4 + 1) {
      least = distance;
      nearest = id;
    }
  }
  return nearest;
}

int settings_find(const char *name, const char **nearest) {
  int near;

  *nearest = NULL;
  for (int id = 0; id < SETTING_COUNT; id++)
    if (strcmp(name, table[id].name) == 0)
      return id;
  near = nearest_id(span_of(name));
  if (near >= 0)
    *nearest = table[near].name;
  return -1;
}

/* ---- The environment -------------------------------------------------- */

static const char prefix[] = "CACHE_";

static int find_variable(struct span variable) {
  for (int id = 0; id < SETTING_COUNT; id++)
    if (span_equals(variable, table[id].variable))
      return id;
  return -1;
}

static void warn_unknown(struct span variable, settings_warn_fn *warn,
                         void *ud) {
  size_t skip = strlen(prefix);
  struct span name = {variable.at + skip, variable.length - skip};
  int near = nearest_id(name);
  char text[QUOTE_BYTES + 2], quoted[QUOTE_SIZE];
  char line[QUOTE_SIZE * 2];

  /* One byte more than quote shows, so that it marks the cut. */
  snprintf(text, sizeof text, "%.*s",
           variable.length > QUOTE_BYTES ? QUOTE_BYTES + 1
                                         : (int)variable.length,
           variable.at);
  quote(text, quoted);
  if (near >= 0)
    snprintf(line, sizeof line, "%s is not a setting; did you mean %s?", quoted,
             table[near].variable);
  else
    snprintf(line, sizeof line, "%s is not a setting", quoted);
  warn(ud, line);
}

/* One "NAME=value". Where a name occurs twice the first counts, as in getenv.
 */
static int read_variable(struct settings *s, const char *entry,
                         settings_warn_fn *warn, void *ud, char *err,
                         size_t size) {
  struct span variable = span_of(entry);
  struct span value = span_cut(&variable, '=');
  int id = find_variable(variable);

  if (value.length == 0)
    return 0;
  if (id >= 0 && s->values[id].origin == FROM_DEFAULT)
    return put(s, id, value.at, FROM_ENVIRONMENT, table[id].variable, err,
               size);
  if (id < 0 && warn != NULL && variable.length >= strlen(prefix) &&
      memcmp(variable.at, prefix, strlen(prefix)) == 0)
    warn_unknown(variable, warn, ud);
  return 0;
}

int settings_open(struct settings **out, char *const *environ_,
                  settings_warn_fn *warn, void *ud, char *err,
                  size_t err_size) {
  struct settings *s = malloc(sizeof *s);

  *out = NULL;
  if (s == NULL)
    return fail(err, err_size, "no memory for the settings");
  s->memory = memory_limit_share(memory_limit_ram(), memory_limit_cgroup(""));
  if (s->memory.bytes < MEMORY_MIN_BYTES)
    s->memory.bytes = MEMORY_MIN_BYTES;
  for (int id = 0; id < SETTING_COUNT; id++)
    make_default(s, id);
  for (; environ_ != NULL && *environ_ != NULL; environ_++)
    if (read_variable(s, *environ_, warn, ud, err, err_size) < 0)
      goto refuse;
  if (settings_check(s, err, err_size) < 0)
    goto refuse;
  *out = s;
  return 0;

refuse:
  settings_close(s);
  return -1;
}

void settings_close(struct settings *s) {
  if (s == NULL)
    return;
  explicit_bzero(s, sizeof *s); /* there may be passwords in it */
  free(s);
}

struct settings *settings_copy(const struct settings *s) {
  struct settings *copy = malloc(sizeof *copy);

  if (copy != NULL)
    *copy = *s;
  return copy;
}

/* ---- Answers ---------------------------------------------------------- */

int settings_is_set(const struct settings *s, int id) {
  (void)describe(id);
  return s->values[id].origin != FROM_DEFAULT;
}

const char *settings_name(int id) {
  return describe(id)->name;
}

const char *settings_variable(int id) {
  return describe(id)->variable;
}

char settings_kind(int id) {
  return describe(id)->kind;
}

int settings_is_secret(int id) {
  return describe(id)->secret;
}

const char *settings_source(const struct settings *s, int id) {
  (void)describe(id);
  switch (s->values[id].origin) {
  case FROM_ENVIRONMENT:
    return "environment";
  case FROM_CONFIGURE:
    return "configure_caches";
  case FROM_DEFAULT:
    break;
  }
  return id == SETTING_MEMORY_MAX_BYTES ? s->memory.source : "default";
}

const char *settings_text(const struct settings *s, int id) {
  if (!settings_is_set(s, id) && describe(id)->fallback == NULL)
    return NULL;
  return s->values[id].text;
}

double settings_number(const struct settings *s, int id) {
  (void)describe(id);
  return s->values[id].number;
}

/* The URL with **** for its password. A user without a password is masked too:
 * it is often a password whose colon was forgotten. */
static const char *show_url(const char *text, char *buf, size_t size) {
  char masked[SETTING_TEXT_MAX + sizeof "****"];
  struct span hidden;
  struct url url;
  const char *refusal = split_url(text, &url);

  assert(refusal == NULL);
  (void)refusal;
  hidden = url.password.at != NULL ? url.password : url.user;
  if (hidden.length == 0)
    return escape(text, buf, size);
  snprintf(masked, sizeof masked, "%.*s****%s", (int)(hidden.at - text), text,
           hidden.at + hidden.length);
  return escape(masked, buf, size);
}

const char *settings_show(const struct settings *s, int id, char *buf,
                          size_t size) {
  const char *text = settings_text(s, id);

  if (text == NULL || text[0] == '\0')
    return escape("unset", buf, size);
  if (id == SETTING_REDIS_URL)
    return show_url(text, buf, size);
  return escape(settings_is_secret(id) ? "****" : text, buf, size);
}
