/* One value's text, read by its kind.
 *
 * Every reader takes v->text and leaves in v->number what it means, or returns
 * a refusal: a phrase ("is not a boolean") that follows the quoted text.
 * Invariant: a text is accepted as a whole or not at all; blanks, signs and
 * trailing bytes are refused, never skipped, so that a typo does not pass for
 * another value. What is not accepted leaves v in no certain state: read into
 * a copy.
 *
 * A secret's text is never quoted, nor what is like a URL, so the phrases must
 * make sense without it. They repeat none of it either.
 */
#include "host/setting_internal.h"
#include "host/setting_url.h"

#include <string.h>
#include <strings.h>

enum { FRACTION_DIGITS = 15 /* digits after the point that count */ };

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
static const char a_url_as_hosts[] =
    "is not a list of hosts; a URL belongs in CACHE_REDIS_URL";
static const char not_a_listener[] =
    "is not an address to listen on (host:port or [v6]:port)";
static const char has_controls[] = "contains a control character";

/* Numbers */

const char *setting_read_boolean(const struct descriptor *d, struct value *v) {
  static const char *const words[] = {"false", "true", "0",   "1",
                                      "no",    "yes",  "off", "on"};

  (void)d;
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if (strcasecmp(v->text, words[i]) == 0) {
      v->number = i % 2; /* the words stand in pairs, no before yes */
      return NULL;
    }
  return not_a_boolean;
}

/* By hand: strtod takes hex, inf, nan, blanks, and the locale's comma. What is
 * not 0 must not become 0, for 0 means never. */
const char *setting_read_seconds(const struct descriptor *d, struct value *v) {
  const char *p = v->text;
  double number = 0, scale = 1;
  int digits = 0, nonzero = 0;

  (void)d;
  for (; span_is_digit(*p); p++, digits++) {
    number = number * 10 + (*p - '0');
    nonzero |= *p != '0';
  }
  if (*p == '.')
    for (int i = 0; span_is_digit(*++p); i++, digits++) {
      nonzero |= *p != '0';
      if (i >= FRACTION_DIGITS)
        continue; /* more than a double holds */
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

const char *setting_read_port(const struct descriptor *d, struct value *v) {
  uint64_t port;

  (void)d;
  if (!span_is_number(span_of(v->text), 1, SETTING_PORT_MAX, &port))
    return not_a_port;
  v->number = (double)port;
  return NULL;
}

const char *setting_read_db(const struct descriptor *d, struct value *v) {
  uint64_t db;

  (void)d;
  if (!span_is_number(span_of(v->text), 0, SETTING_DB_MAX, &db))
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

const char *setting_read_bytes(const struct descriptor *d, struct value *v) {
  uint64_t bytes;
  const char *suffix = span_digits(v->text, MEMORY_MAX_BYTES, &bytes);
  int shift = suffix != NULL ? suffix_shift(suffix) : -1;

  (void)d;
  /* Compared before it is shifted: 2^53 << 40 would wrap around. */
  if (shift < 0 || bytes > (MEMORY_MAX_BYTES >> shift))
    return not_bytes;
  bytes <<= shift;
  if (bytes < SETTING_MEMORY_MIN_BYTES)
    return too_few_bytes;
  v->number = (double)bytes;
  return NULL;
}

/* Text */

/* A control character is hardly ever meant: mostly it is the CR or the newline
 * of the file that the text came from. */
const char *setting_read_text(const struct descriptor *d, struct value *v) {
  (void)d;
  for (const char *p = v->text; *p != '\0'; p++)
    if ((unsigned char)*p < ' ' || *p == 0x7f)
      return has_controls;
  return NULL;
}

/* In any case, but kept in the spelling of the list, so that whoever asks can
 * compare with strcmp. */
const char *setting_read_choice(const struct descriptor *d, struct value *v) {
  for (int i = 0; d->choices[i] != NULL; i++)
    if (strcasecmp(v->text, d->choices[i]) == 0) {
      strcpy(v->text, d->choices[i]); /* of the same length */
      return NULL;
    }
  return d->not_a_choice;
}

/* Hosts and URLs: what they are made of is setting_url.c's */

/* An empty item is no host: "a,,b" and "a," are refused. */
const char *setting_read_hosts(const struct descriptor *d, struct value *v) {
  struct span item = span_of(v->text);
  struct address address;

  (void)d;
  while (item.at != NULL) {
    struct span rest = span_cut(&item, ',');

    if (!setting_read_address(item, &address))
      return setting_like_url(v->text) ? a_url_as_hosts : not_hosts;
    item = rest;
  }
  return NULL;
}

/* The port must be there: we have no usual one. */
const char *setting_read_listener(const struct descriptor *d, struct value *v) {
  struct address address;

  (void)d;
  if (!setting_read_address(span_of(v->text), &address) ||
      address.port.at == NULL)
    return not_a_listener;
  return NULL;
}

const char *setting_read_url(const struct descriptor *d, struct value *v) {
  const char *refusal = setting_read_text(d, v);
  struct url url;

  if (refusal == NULL)
    refusal = setting_split_url(v->text, &url);
  /* A comma would make it a list, which only CACHE_REDIS_HOST is. */
  if (refusal == NULL && url.address.host.at != NULL &&
      span_find(url.address.host, ',') != NULL)
    refusal = "names several hosts; give a list in CACHE_REDIS_HOST";
  return refusal;
}
