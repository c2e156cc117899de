/* Contradictions: settings that are each well read, but not together.
 *
 * settings_check runs one small check after the other over all values, and the
 * first that fails says why. Only what was given can contradict: a default
 * gives way to what is beside it. Invariant: the checks look and change
 * nothing, so they may run after every change, on a copy as well.
 *
 * A message names each setting by the name under which it was given, the
 * variable or configure_caches' key, since that is where its reader will have
 * to change it. No text that was given is repeated: there may be a password in
 * it.
 */
#include "host/setting_internal.h"
#include "host/setting_url.h"

#include <assert.h>
#include <string.h>
#include <strings.h>

/* Asked for, not merely on: a default makes no demands. */
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

/* Both are named, for we cannot know which of them is the mistake. */
static int clash(const struct settings *s, int a, int b, const char *what,
                 char *err, size_t size) {
  return setting_fail(err, size, "%s and %s %s; set one of them",
                      label(s, a, a), label(s, b, b), what);
}

static int needs(const struct settings *s, int id, int other, char *err,
                 size_t size) {
  if (!settings_is_set(s, id) || settings_is_set(s, other))
    return 0;
  return setting_fail(err, size, "%s is set, but %s is not", label(s, id, id),
                      label(s, other, id));
}

/* Names of hosts know no case. */
static int same_host(struct span a, struct span b) {
  return a.length == b.length && strncasecmp(a.at, b.at, a.length) == 0;
}

/* As numbers, for 06379 and 6379 are the same port. */
static int same_number(struct span text, double number) {
  uint64_t value;

  return span_is_number(text, 0, UINT32_MAX, &value) && (double)value == number;
}

/* REDIS_HOST beside a URL: the one host of the URL, or it is a contradiction.
 * A port that only one of the two names is no contradiction. */
static int same_address(const char *hosts, const struct address *address) {
  struct address other;

  return address->host.at != NULL && strchr(hosts, ',') == NULL &&
         setting_read_address(span_of(hosts), &other) &&
         same_host(other.host, address->host) &&
         (other.port.at == NULL || address->port.at == NULL ||
          (other.port.length == address->port.length &&
           memcmp(other.port.at, address->port.at, other.port.length) == 0));
}

/* The URL beside the single settings of the same meaning. To say the same twice
 * is harmless, and a setting may add what the URL leaves open; only another
 * value for the same thing is refused, as there is no order between them. */
static int check_url(const struct settings *s, char *err, size_t size) {
  const struct value *v = s->values;
  const int id = SETTING_REDIS_URL;
  struct url url;

#define CLASH_UNLESS(same, other, what)     \
  if (settings_is_set(s, other) && !(same)) \
  return clash(s, id, other, what, err, size)

  if (!settings_is_set(s, id) || setting_split_url(v[id].text, &url) != NULL)
    return 0;
  CLASH_UNLESS(same_address(v[SETTING_REDIS_HOST].text, &url.address),
               SETTING_REDIS_HOST, "name different hosts");
  CLASH_UNLESS(url.address.port.at == NULL ||
                   same_number(url.address.port, v[SETTING_REDIS_PORT].number),
               SETTING_REDIS_PORT, "name different ports");
  CLASH_UNLESS(url.db.at == NULL ||
                   same_number(url.db, v[SETTING_REDIS_DB].number),
               SETTING_REDIS_DB, "name different databases");
  CLASH_UNLESS(
      url.user.length == 0 ||
          setting_same_decoded(url.user, v[SETTING_REDIS_USERNAME].text),
      SETTING_REDIS_USERNAME, "name different users");
  CLASH_UNLESS(
      url.password.at == NULL ||
          setting_same_decoded(url.password, v[SETTING_REDIS_PASSWORD].text),
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

/* A certificate is of no use without its key, nor a key without it. */
static int check_tls_pair(const struct settings *s, char *err, size_t size) {
  if (needs(s, SETTING_REDIS_TLS_CERT, SETTING_REDIS_TLS_KEY, err, size) < 0)
    return -1;
  return needs(s, SETTING_REDIS_TLS_KEY, SETTING_REDIS_TLS_CERT, err, size);
}

/* Said at the start rather than by a connection that can never come. */
static int check_required(const struct settings *s, char *err, size_t size) {
  const int id = SETTING_REQUIRE_REDIS;

  if (!is_on(s, id) || settings_is_set(s, SETTING_REDIS_HOST) ||
      settings_is_set(s, SETTING_REDIS_URL))
    return 0;
  return setting_fail(err, size, "%s is on, but neither %s nor %s is set",
                      label(s, id, id), label(s, SETTING_REDIS_HOST, id),
                      label(s, SETTING_REDIS_URL, id));
}

int settings_check(const struct settings *s, char *err, size_t err_size) {
  static int (*const checks[])(const struct settings *, char *, size_t) = {
      check_url, check_password, check_tls_pair, check_required};

  for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
    if (checks[i](s, err, err_size) < 0)
      return -1;
  return 0;
}
