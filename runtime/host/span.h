/* A span: a piece of a text that somebody else owns.
 *
 * Host lists, URLs and "NAME=value" are taken apart without copying: a parser
 * cuts its text into spans, and each of them points into it. Invariant: a
 * span lies within one text that ends with a NUL, and is good as long as that
 * text lives and stays as it is. The span itself has no NUL at its end: only
 * its length says where it stops.
 *
 * Absent (at is NULL) is not the same as empty: "host:" has an empty port,
 * "host" has none.
 */
#ifndef MOONSTASH_HOST_SPAN_H
#define MOONSTASH_HOST_SPAN_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A piece of a text that somebody else owns. at is NULL where it is absent. */
struct span {
  const char *at;
  size_t length;
};

static inline int span_is_digit(char c) {
  return c >= '0' && c <= '9';
}

/* Reads a run of digits. Returns what follows it, or NULL if there is none or
 * the number is above limit. */
static inline const char *span_digits(const char *text, uint64_t limit,
                                      uint64_t *number) {
  if (!span_is_digit(*text))
    return NULL;
  for (*number = 0; span_is_digit(*text); text++) {
    unsigned digit = (unsigned)(*text - '0');

    if (*number > (limit - digit) / 10)
      return NULL;
    *number = *number * 10 + digit;
  }
  return text;
}

static inline struct span span_of(const char *text) {
  return (struct span){text, strlen(text)};
}

static inline struct span span_between(const char *begin, const char *end) {
  assert(begin <= end);
  return (struct span){begin, (size_t)(end - begin)};
}

static inline const char *span_find(struct span s, char c) {
  return memchr(s.at, c, s.length);
}

/* Cuts s in two at c. Returns the part behind it, absent if there is no c. */
static inline struct span span_cut(struct span *s, char c) {
  const char *at = span_find(*s, c);
  const char *end = s->at + s->length;

  if (at == NULL)
    return (struct span){NULL, 0};
  *s = span_between(s->at, at);
  return span_between(at + 1, end);
}

static inline int span_equals(struct span s, const char *text) {
  return s.at != NULL && s.length == strlen(text) &&
         memcmp(s.at, text, s.length) == 0;
}

/* Digits may be read beyond the span, but no further than the NUL. */
static inline int span_is_number(struct span s, uint64_t min, uint64_t max,
                                 uint64_t *number) {
  const char *end;

  if (s.length == 0 || !span_is_digit(*s.at))
    return 0;
  end = span_digits(s.at, max, number);
  return end == s.at + s.length && *number >= min;
}

#endif
