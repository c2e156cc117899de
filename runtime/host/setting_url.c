/* URLs and host addresses, cut into spans of the text they were read from.
 *
 * A URL is taken apart from both ends towards its host, for that is where the
 * text is least certain: the scheme at the front, ?db= at the end, then what
 * is before the first slash, and of that what is before the last @. Invariant:
 * whatever is accepted has been looked at whole. A part that has no place in
 * struct url is refused, so nothing that was asked for is silently ignored.
 *
 * Nothing is decoded here: the parts stay as they are written, percent signs
 * and all, but each %XX in user and password is known to be a good one. What
 * a host's name may look like is left to the resolver.
 *
 * A refusal is a phrase that follows the quoted text (setting_internal.h). It
 * never repeats any of the text: there may be a password in it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memrchr */
#endif
#include "host/setting_url.h"

#include <assert.h>
#include <string.h>

int setting_read_address(struct span s, struct address *address) {
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
  } else { /* a v6 address without brackets fails: "::1" has port ":1" */
    address->port = span_cut(&address->host, ':');
  }
  for (size_t i = 0; i < address->host.length; i++)
    if ((unsigned char)address->host.at[i] <= ' ' ||
        strchr("/@?#[]\x7f", address->host.at[i]) != NULL)
      return 0;
  return address->host.length > 0 &&
         (address->port.at == NULL ||
          span_is_number(address->port, 1, SETTING_PORT_MAX, &port));
}

/* strchr would find the NUL at the end of digits, hence the check. */
static int hex_digit(char c) {
  static const char digits[] = "0123456789abcdef";
  const char *at =
      c != '\0' ? strchr(digits, span_is_digit(c) ? c : c | 0x20) : NULL;

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
  if (!span_equals(query, "db") ||
      !span_is_number(url->db, 0, SETTING_DB_MAX, &db))
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
  if (!span_is_number(url->db, 0, SETTING_DB_MAX, &db))
    return "has something other than a database number behind its host";
  return NULL;
}

/* The # comes before all else: in a URL it begins a fragment, in a password
 * that was not encoded it is just a byte, and either reading would cut off what
 * the other means. */
const char *setting_split_url(const char *text, struct url *url) {
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
      !setting_read_address(authority, &url->address))
    return "does not name one host, or has a port that is not 1 to 65535";
  return read_path(rest, url);
}

/* The character at *i, decoded; *i is then at its last byte. */
static char decoded_at(struct span s, size_t *i) {
  if (s.at[*i] != '%')
    return s.at[*i];
  assert(*i + 2 < s.length);
  *i += 2;
  return (char)(hex_digit(s.at[*i - 1]) * 16 + hex_digit(s.at[*i]));
}

int setting_decode(struct span s, char *out, size_t size) {
  size_t n = 0;

  for (size_t i = 0; i < s.length; i++) {
    out[n] = decoded_at(s, &i);
    if (out[n] == '\0' || ++n == size)
      return -1;
  }
  out[n] = '\0';
  return 0;
}

/* Decodes as it compares, so that no copy of a password is left behind. */
int setting_same_decoded(struct span s, const char *text) {
  for (size_t i = 0; i < s.length; i++, text++) {
    char c = decoded_at(s, &i);

    if (*text == '\0' || *text != c)
      return 0;
  }
  return *text == '\0';
}
