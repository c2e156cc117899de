/* Settings: one table, one value per row.
 *
 * The table says of each setting how it is called, how its text is read and
 * what it is by default. Invariant: a value that is kept has been read without
 * error, so whoever asks for its text or number need not doubt it. Text is read
 * into a value on the stack and copied over only then; a refusal changes
 * nothing.
 *
 * Other rooms: setting_read.c reads one text, setting_check.c finds settings
 * that contradict each other, setting_message.c words what went wrong.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* explicit_bzero */
#endif
#include "host/setting_internal.h"
#include "host/setting_url.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { NAME_MAX_BYTES = 48 /* longer names resemble none of ours */ };

static const char too_long[] = "is longer than 1023 bytes";

/* The table */

static const char *const modes[] = {"auto", "standalone", "cluster", "sentinel",
                                    NULL};
static const char *const replicas[] = {"primary", "replica", "any", NULL};
static const char *const levels[] = {"error", "warn", "info", "debug", NULL};

/* A row: id, name, kind ('b', 'n', 's'), which setting_read_ reads its text,
 * and the default, which is text as well and goes through the same reader. */
/* clang-format off */
#define CACHE(ID, name, kind, text, ...)                                       \
  [SETTING_##ID] = {#name, "CACHE_" #ID, setting_read_##text, __VA_ARGS__,     \
                    kind, 0}
#define SECRET(ID, name, kind, text, ...)                                      \
  [SETTING_##ID] = {#name, "CACHE_" #ID, setting_read_##text, __VA_ARGS__,     \
                    kind, 1}
#define PLAIN(fallback) fallback, NULL, NULL
#define CHOICE(fallback, choices, listed)                                      \
  fallback, choices, "is not one of " listed

static const struct descriptor table[SETTING_COUNT] = {
  CACHE(ENABLED, enabled, 'b', boolean, PLAIN("true")),
  CACHE(REDIS_HOST, redis_host, 's', hosts, PLAIN(NULL)),
  CACHE(REDIS_PORT, redis_port, 'n', port, PLAIN("6379")),
  CACHE(DEFAULT_TTL, default_ttl, 'n', seconds, PLAIN("300")),
  CACHE(PERSISTENT_TTL, persistent_ttl, 'n', seconds, PLAIN("3600")),
  SECRET(REDIS_URL, redis_url, 's', url, PLAIN(NULL)),
  CACHE(REDIS_USERNAME, redis_username, 's', text, PLAIN(NULL)),
  SECRET(REDIS_PASSWORD, redis_password, 's', text, PLAIN(NULL)),
  CACHE(REDIS_PASSWORD_FILE, redis_password_file, 's', text, PLAIN(NULL)),
  CACHE(REDIS_DB, redis_db, 'n', db, PLAIN("0")),
  CACHE(REDIS_MODE, redis_mode, 's', choice,
        CHOICE("auto", modes, "auto, standalone, cluster, sentinel")),
  CACHE(REDIS_SENTINEL_MASTER, redis_sentinel_master, 's', text,
        PLAIN(NULL)),
  CACHE(REDIS_TLS, redis_tls, 'b', boolean, PLAIN("false")),
  CACHE(REDIS_TLS_CA, redis_tls_ca, 's', text, PLAIN(NULL)),
  CACHE(REDIS_TLS_CERT, redis_tls_cert, 's', text, PLAIN(NULL)),
  CACHE(REDIS_TLS_KEY, redis_tls_key, 's', text, PLAIN(NULL)),
  CACHE(REDIS_TIMEOUT, redis_timeout, 'n', seconds, PLAIN("1")),
  CACHE(REDIS_CONNECT_TIMEOUT, redis_connect_timeout, 'n', seconds,
        PLAIN("1")),
  CACHE(REDIS_READ_FROM, redis_read_from, 's', choice,
        CHOICE("primary", replicas, "primary, replica, any")),
  CACHE(REQUIRE_REDIS, require_redis, 'b', boolean, PLAIN("false")),
  CACHE(NAMESPACE, namespace, 's', text, PLAIN("")),
  /* Its default is computed; see make_default. */
  CACHE(MEMORY_MAX_BYTES, memory_max_bytes, 'n', bytes, PLAIN("0")),
  CACHE(METRICS_LISTEN, metrics_listen, 's', listener, PLAIN(NULL)),
  [SETTING_LOG] = {"log", "MOONSTASH_LOG", setting_read_choice,
                   CHOICE("warn", levels, "error, warn, info, debug"), 's', 0},
};
/* clang-format on */

static const struct descriptor *describe(int id) {
  assert(id >= 0 && id < SETTING_COUNT);
  return &table[id];
}

/* One value */

/* A default that its own reader refuses is our mistake, never the user's: hence
 * the assert. The bound of the memory was raised to its minimum by then. */
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

/* Reads text and keeps it, or says in err, under the name given, why not. The
 * copy on the stack is what keeps a refused text from leaving half a value. */
static int put(struct settings *s, int id, const char *text, enum origin origin,
               const char *name, char *err, size_t size) {
  const struct descriptor *d = describe(id);
  struct value v = {.origin = origin};
  const char *refusal = too_long;
  char quoted[SETTING_QUOTE_SIZE];

  if (strlen(text) < sizeof v.text) {
    strcpy(v.text, text);
    refusal = d->read(d, &v);
  }
  if (refusal == NULL)
    s->values[id] = v;
  explicit_bzero(&v, sizeof v); /* may have been a secret */
  if (refusal == NULL)
    return 0;
  if (d->secret || setting_like_url(text))
    return setting_fail(err, size, "%s: the value (not shown) %s", name,
                        refusal);
  return setting_fail(err, size, "%s: '%s' %s", name,
                      setting_quote(text, quoted), refusal);
}

int settings_put(struct settings *s, int id, const char *text, char *err,
                 size_t err_size) {
  if (text[0] != '\0')
    return put(s, id, text, FROM_CONFIGURE, describe(id)->name, err, err_size);
  make_default(s, id);
  return 0;
}

/* Names */

static size_t min_of_three(size_t a, size_t b, size_t c) {
  size_t least = a < b ? a : b;

  return least < c ? least : c;
}

/* Levenshtein's distance in any case. One row of his matrix is enough: each
 * cell needs the one above, the one to the left and the one between them,
 * which is kept in diagonal as the row is overwritten. */
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

/* The environment */

static const char prefix[] = "CACHE_";

/* By the variable's full name and in its case, as getenv would: Cache_Enabled
 * is somebody else's. */
static int find_variable(struct span variable) {
  for (int id = 0; id < SETTING_COUNT; id++)
    if (span_equals(variable, table[id].variable))
      return id;
  return -1;
}

/* A warning, no refusal: other programs may have variables of this prefix. */
static void warn_unknown(struct span variable, settings_warn_fn *warn,
                         void *ud) {
  size_t skip = strlen(prefix);
  struct span name = {variable.at + skip, variable.length - skip};
  int near = nearest_id(name);
  char text[SETTING_QUOTE_BYTES + 2], quoted[SETTING_QUOTE_SIZE];
  char line[SETTING_QUOTE_SIZE * 2];

  /* One byte more than quote shows, so that it marks the cut. */
  snprintf(text, sizeof text, "%.*s",
           variable.length > SETTING_QUOTE_BYTES ? SETTING_QUOTE_BYTES + 1
                                                 : (int)variable.length,
           variable.at);
  setting_quote(text, quoted);
  if (near >= 0)
    snprintf(line, sizeof line, "%s is not a setting; did you mean %s?", quoted,
             table[near].variable);
  else
    snprintf(line, sizeof line, "%s is not a setting", quoted);
  warn(ud, line);
}

/* One "NAME=value". Where a name occurs twice the first counts, as in getenv.
 * An empty value counts as unset, as in shells' ${NAME:-default}. */
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

/* Defaults stand before the first variable is read, so that it does not matter
 * which variables come, or in what order. */
int settings_open(struct settings **out, char *const *environ_,
                  settings_warn_fn *warn, void *ud, char *err,
                  size_t err_size) {
  struct settings *s = malloc(sizeof *s);

  *out = NULL;
  if (s == NULL)
    return setting_fail(err, err_size, "no memory for the settings");
  s->memory = memory_limit_share(memory_limit_ram(), memory_limit_cgroup(""));
  if (s->memory.bytes < SETTING_MEMORY_MIN_BYTES)
    s->memory.bytes = SETTING_MEMORY_MIN_BYTES;
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

/* One block without pointers of its own: assignment is a deep copy. */
struct settings *settings_copy(const struct settings *s) {
  struct settings *copy = malloc(sizeof *copy);

  if (copy != NULL)
    *copy = *s;
  return copy;
}

/* Answers */

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

/* A text that is empty by default is set to "", unlike one that has none. */
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
  const char *refusal = setting_split_url(text, &url);

  assert(refusal == NULL);
  (void)refusal;
  hidden = url.password.at != NULL ? url.password : url.user;
  if (hidden.length == 0)
    return setting_escape(text, buf, size);
  snprintf(masked, sizeof masked, "%.*s****%s", (int)(hidden.at - text), text,
           hidden.at + hidden.length);
  return setting_escape(masked, buf, size);
}

const char *settings_show(const struct settings *s, int id, char *buf,
                          size_t size) {
  const char *text = settings_text(s, id);

  if (text == NULL || text[0] == '\0')
    return setting_escape("unset", buf, size);
  if (id == SETTING_REDIS_URL)
    return show_url(text, buf, size);
  return setting_escape(settings_is_secret(id) ? "****" : text, buf, size);
}
