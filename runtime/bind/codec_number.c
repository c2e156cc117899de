/* Doubles as JSON has them.
 *
 * printf and strtod are exact, but they follow the locale, which belongs to
 * the program around us: their decimal point is exchanged here. Short numbers
 * are read without strtod: with at most 2^53 as digits and at most 22 as power
 * of ten both are exact doubles, so that one division or multiplication rounds
 * once and correctly (Clinger, PLDI 1990).
 */
#include <assert.h>
#include <float.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bind/codec.h"

enum {
  ALWAYS_EXACT = 15, /* any decimal of so many digits survives a double */
  ALWAYS_ENOUGH = 17,
  POWER_MAX = 22, /* the largest power of ten that is an exact double */
  POINT_MAX = 8   /* bytes of a locale's decimal point */
};

/* Puts '.' where printf put the locale's decimal point. */
static int use_point(char *text, int length) {
  size_t at = strspn(text, "-0123456789");
  if (text[at] == '\0' || text[at] == 'e' || text[at] == '.')
    return length;
  size_t after = at + strcspn(text + at, "0123456789");
  memmove(text + at + 1, text + after, strlen(text + after) + 1);
  text[at] = '.';
  return (int)strlen(text);
}

int number_format(char text[NUMBER_SHORT_MAX], double value) {
  int digits = fabs(value) < DBL_MIN ? 1 : ALWAYS_EXACT, length;
  assert(isfinite(value));
  do
    length = snprintf(text, NUMBER_SHORT_MAX, "%.*g", digits++, value);
  while (digits <= ALWAYS_ENOUGH && strtod(text, NULL) != value);
  length = use_point(text, length);
  if (strpbrk(text, ".e") == NULL) {
    memcpy(text + length, ".0", sizeof ".0");
    length += 2;
  }
  return length;
}

struct scan {
  const char *at, *end;
  uint64_t digits;
  int count; /* of digits, without leading zeros */
};

static void scan_digits(struct scan *s) {
  for (; s->at < s->end && *s->at >= '0' && *s->at <= '9'; s->at++) {
    if (s->count > 0 || *s->at != '0')
      s->count++;
    if (s->count <= ALWAYS_EXACT)
      s->digits = s->digits * 10 + (uint64_t)(*s->at - '0');
  }
}

static int scan_exponent(struct scan *s) {
  int negative = 0, exponent = 0;
  if (s->at == s->end)
    return 0;
  s->at++; /* e or E */
  if (s->at < s->end && (*s->at == '-' || *s->at == '+'))
    negative = *s->at++ == '-';
  for (; s->at < s->end && exponent < 10 * POWER_MAX; s->at++)
    exponent = exponent * 10 + (*s->at - '0');
  return negative ? -exponent : exponent;
}

/* Reads it when digits and power are small; else returns 0. */
static int parse_short(const char *text, size_t length, double *value) {
  static const double powers[POWER_MAX + 1] = {
      1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
      1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
  int negative = length > 0 && text[0] == '-', power = 0;
  struct scan s = {text + negative, text + length, 0, 0};
  scan_digits(&s);
  if (s.at < s.end && *s.at == '.') {
    const char *point = s.at++;
    scan_digits(&s);
    power = (int)(point + 1 - s.at);
  }
  power += scan_exponent(&s);
  if (s.count > ALWAYS_EXACT || power > POWER_MAX || power < -POWER_MAX)
    return 0;
  double n = (double)s.digits;
  n = power < 0 ? n / powers[-power] : n * powers[power];
  *value = negative ? -n : n;
  return 1;
}

double number_parse(const char *text, size_t length) {
  char copy[NUMBER_TEXT_MAX + POINT_MAX + 1];
  double value;
  assert(length <= NUMBER_TEXT_MAX);
  if (parse_short(text, length, &value))
    return value;
  const char *point = localeconv()->decimal_point;
  size_t point_length = strnlen(point, POINT_MAX);
  const char *dot = memchr(text, '.', length);
  size_t head = dot != NULL ? (size_t)(dot - text) : length;
  memcpy(copy, text, head);
  size_t at = head;
  if (dot != NULL) {
    memcpy(copy + at, point, point_length);
    at += point_length;
    memcpy(copy + at, dot + 1, length - head - 1);
    at += length - head - 1;
  }
  copy[at] = '\0';
  return strtod(copy, NULL);
}
