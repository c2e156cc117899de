/* Messages about settings: one line each, safe to show.
 *
 * Quoted text comes from outside and goes to a terminal or a log. Invariant:
 * what setting_escape writes is printable ASCII and ends with a NUL, whatever
 * it was given: control and non-ASCII bytes become \xNN, so that no text can
 * start a line of its own or talk to the terminal. Long text is cut, and "..."
 * says that it was.
 */
#include "host/setting_internal.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static size_t escaped_width(char c) {
  return c >= ' ' && c < 0x7f ? 1 : strlen("\\xNN");
}

static size_t escaped_length(const char *text) {
  size_t length = 0;

  for (; *text != '\0'; text++)
    length += escaped_width(*text);
  return length;
}

/* Whether "..." is needed is settled first, so that the loop need not take
 * anything back; an escape is written whole or not at all. */
const char *setting_escape(const char *text, char *buf, size_t size) {
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

/* Cut first and escaped then, so that no cut falls inside an escape. */
const char *setting_quote(const char *text, char buf[SETTING_QUOTE_SIZE]) {
  char head[SETTING_QUOTE_BYTES + 1];
  char escaped[SETTING_QUOTE_BYTES * 4 + 1];
  size_t length = strlen(text);

  snprintf(head, sizeof head, "%.*s", SETTING_QUOTE_BYTES, text);
  setting_escape(head, escaped, sizeof escaped);
  snprintf(buf, SETTING_QUOTE_SIZE, "%s%s", escaped,
           length > SETTING_QUOTE_BYTES ? "..." : "");
  return buf;
}

int setting_like_url(const char *text) {
  return strstr(text, "://") != NULL || strchr(text, '@') != NULL;
}

int setting_fail(char *err, size_t size, const char *format, ...) {
  va_list args;

  va_start(args, format);
  vsnprintf(err, size, format, args);
  va_end(args);
  return -1;
}
