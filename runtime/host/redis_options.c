/* Puts together where Redis is: from the URL, and from the single settings what
 * it leaves open (settings_check has seen to it that they do not disagree). */
#include "host/redis_options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/setting_url.h"

enum {
  NO_LIMIT_MS = 60 * 1000, /* a connect timeout of 0 */
  MS_PER_S = 1000
};

static const char *text_of(const struct settings *s, int id) {
  const char *text = settings_text(s, id);
  return text != NULL ? text : "";
}

static int fail(char *err, size_t size, int id, const char *what) {
  snprintf(err, size, "%s: %s", settings_variable(id), what);
  return -1;
}

static int copy(char *out, size_t size, struct span s) {
  if (s.length >= size)
    return -1;
  memcpy(out, s.at != NULL ? s.at : "", s.length);
  out[s.length] = '\0';
  return 0;
}

/* What is configured and not there must not be ignored. */
static int check_later(const struct settings *s, char *err, size_t size) {
  const char *mode = text_of(s, SETTING_REDIS_MODE);
  if (strcmp(mode, "cluster") == 0)
    return fail(err, size, SETTING_REDIS_MODE,
                "Redis Cluster: not in this version");
  if (strcmp(mode, "sentinel") == 0)
    return fail(err, size, SETTING_REDIS_MODE,
                "Redis Sentinel: not in this version");
  if (settings_number(s, SETTING_REDIS_TLS) != 0)
    return fail(err, size, SETTING_REDIS_TLS, "TLS: not in this version");
  if (strncmp(text_of(s, SETTING_REDIS_URL), "rediss:", 7) == 0)
    return fail(err, size, SETTING_REDIS_URL,
                "TLS (rediss://): not in this version");
  if (strcmp(text_of(s, SETTING_REDIS_READ_FROM), "primary") != 0)
    return fail(err, size, SETTING_REDIS_READ_FROM,
                "reads from replicas: not in this version");
  return 0;
}

/* ---- where ---- */

static int add_host(struct redis_options *o, struct address *address,
                    int port) {
  uint64_t number;
  if (o->host_count == REDIS_HOSTS_MAX)
    return -1;
  struct redis_host *host = &o->hosts[o->host_count];
  if (copy(host->name, sizeof host->name, address->host) < 0)
    return -1;
  host->port = port;
  if (address->port.at != NULL &&
      span_is_number(address->port, 1, SETTING_PORT_MAX, &number))
    host->port = (int)number;
  o->host_count++;
  return 0;
}

static int read_hosts(const struct settings *s, struct redis_options *o,
                      char *err, size_t size) {
  struct span item = span_of(text_of(s, SETTING_REDIS_HOST));
  int port = (int)settings_number(s, SETTING_REDIS_PORT);
  struct address address;
  while (item.at != NULL) {
    struct span rest = span_cut(&item, ',');
    if (!setting_read_address(item, &address) ||
        add_host(o, &address, port) < 0)
      return fail(err, size, SETTING_REDIS_HOST,
                  "more than 16 hosts, or a name of more than 255 bytes");
    item = rest;
  }
  if (o->host_count > 1 && o->mode == REDIS_STANDALONE)
    return fail(err, size, SETTING_REDIS_HOST,
                "several hosts, but a standalone Redis has one");
  return 0;
}

static int read_url(const struct settings *s, struct redis_options *o,
                    char *err, size_t size) {
  const int id = SETTING_REDIS_URL;
  struct url url;
  if (!settings_is_set(s, id))
    return 0;
  const char *refusal = setting_split_url(settings_text(s, id), &url);
  if (refusal != NULL)
    return fail(err, size, id, refusal);
  if (url.path.at != NULL) {
    if (copy(o->path, sizeof o->path, url.path) < 0)
      return fail(err, size, id, "the socket's path has more than 107 bytes");
    o->host_count = 0;
  } else if (o->host_count == 0 || url.address.port.at != NULL) {
    o->host_count = 0; /* the same host, and this one has the port */
    if (add_host(o, &url.address, (int)settings_number(s, SETTING_REDIS_PORT)) <
        0)
      return fail(err, size, id, "the host's name has more than 255 bytes");
  }
  if (url.db.at != NULL)
    o->db = atoi(url.db.at); /* it is a number: see setting_url.c */
  if (setting_decode(url.user, o->username, sizeof o->username) < 0 ||
      setting_decode(url.password, o->password, sizeof o->password) < 0)
    return fail(err, size, id, "the user or password is too long");
  return 0;
}

/* ---- who ---- */

/* The first line of the file. */
static int read_password_file(const struct settings *s, struct redis_options *o,
                              char *err, size_t size) {
  const int id = SETTING_REDIS_PASSWORD_FILE;
  const char *path = settings_text(s, id);
  if (path == NULL)
    return 0;
  FILE *file = fopen(path, "re");
  char *got =
      file != NULL ? fgets(o->password, sizeof o->password, file) : NULL;
  int error = file == NULL || ferror(file) ? errno : 0;
  if (file != NULL)
    fclose(file);
  if (got == NULL) {
    snprintf(err, size, "%s: cannot read %s: %s", settings_variable(id), path,
             error != 0 ? strerror(error) : "it is empty");
    return -1;
  }
  size_t length = strcspn(o->password, "\r\n");
  if (length == 0) {
    snprintf(err, size, "%s: cannot read %s: its first line is empty",
             settings_variable(id), path);
    return -1;
  }
  if (length == sizeof o->password - 1)
    return fail(err, size, id, "the password has more than 1022 bytes");
  o->password[length] = '\0';
  return 0;
}

static int read_user(const struct settings *s, struct redis_options *o,
                     char *err, size_t size) {
  const int user = SETTING_REDIS_USERNAME, password = SETTING_REDIS_PASSWORD;
  if (settings_is_set(s, user) &&
      copy(o->username, sizeof o->username, span_of(text_of(s, user))) < 0)
    return fail(err, size, user, "more than 255 bytes");
  if (settings_is_set(s, password) &&
      copy(o->password, sizeof o->password, span_of(text_of(s, password))) < 0)
    return fail(err, size, password, "more than 1023 bytes");
  return read_password_file(s, o, err, size);
}

static uint64_t milliseconds(double seconds) {
  const double most = 1e9; /* 30 years */
  return (uint64_t)((seconds < most ? seconds : most) * MS_PER_S + 0.5);
}

int redis_options_read(const struct settings *s, struct redis_options *out,
                       char *err, size_t err_size) {
  if (!settings_is_set(s, SETTING_REDIS_HOST) &&
      !settings_is_set(s, SETTING_REDIS_URL))
    return 0;
  if (check_later(s, err, err_size) < 0)
    return -1;
  memset(out, 0, sizeof *out);
  out->mode = strcmp(text_of(s, SETTING_REDIS_MODE), "standalone") == 0
                  ? REDIS_STANDALONE
                  : REDIS_AUTO;
  out->db = (int)settings_number(s, SETTING_REDIS_DB);
  out->timeout_ms = milliseconds(settings_number(s, SETTING_REDIS_TIMEOUT));
  out->connect_timeout_ms =
      milliseconds(settings_number(s, SETTING_REDIS_CONNECT_TIMEOUT));
  if (out->connect_timeout_ms == 0)
    out->connect_timeout_ms = NO_LIMIT_MS;
  if (settings_is_set(s, SETTING_REDIS_HOST) &&
      read_hosts(s, out, err, err_size) < 0)
    return -1;
  if (read_url(s, out, err, err_size) < 0 ||
      read_user(s, out, err, err_size) < 0)
    return -1;
  return 1;
}
