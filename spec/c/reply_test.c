/* The reader of replies, with every kind of bytes a server can send, cut where
 * a network may cut them. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "redis/reply.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "alloc.h"

enum {
  KIB = 1024,
  MIB = 1024 * KIB,
  /* 10 ms on our machines; sanitizers and valgrind are far slower, and work
   * that grows with the square of its input is slower still. */
  CPU_MS_MAX = 1000
};

/* ---- bytes ---- */

struct bytes {
  char *data;
  size_t length;
};

static void put(struct bytes *b, const void *data, size_t length) {
  b->data = realloc(b->data, b->length + length + 1);
  assert_non_null(b->data);
  memcpy(b->data + b->length, data, length);
  b->length += length;
  b->data[b->length] = '\0';
}

static void put_text(struct bytes *b, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void put_text(struct bytes *b, const char *format, ...) {
  char text[256];
  va_list args;
  va_start(args, format);
  int n = vsnprintf(text, sizeof text, format, args);
  va_end(args);
  put(b, text, (size_t)n);
}

/* A bulk string of that many bytes, zero bytes and line ends among them. */
static void put_bulk(struct bytes *b, size_t length) {
  static const char pattern[] = "\0\r\n$5\r\nabc";
  char *text = malloc(length + 2);
  assert_non_null(text);
  for (size_t i = 0; i < length; i++)
    text[i] = (char)(pattern[i % (sizeof pattern - 1)] + (char)(i / 4096));
  memcpy(text + length, "\r\n", 2);
  put_text(b, "$%zu\r\n", length);
  put(b, text, length + 2);
  free(text);
}

/* ---- replies as text ---- */

static uint64_t hash(const char *text, size_t length) {
  uint64_t h = 14695981039346656037u;
  for (size_t i = 0; i < length; i++)
    h = (h ^ (unsigned char)text[i]) * 1099511628211u;
  return h;
}

static void show_text(struct bytes *out, const struct reply *reply) {
  if (reply->length > 64)
    put_text(out, "%zu bytes %016llx", reply->length,
             (unsigned long long)hash(reply->text, reply->length));
  else
    put(out, reply->text, reply->length);
}

/* Appends the reply at tape; returns where it ends. */
static const char *show(struct bytes *out, const char *tape, const char *end) {
  struct reply reply;
  assert_true(tape < end);
  const char *rest = reply_read(tape, &reply);
  assert_true(rest <= end);
  switch (reply.type) {
  case REPLY_NIL:
    put_text(out, "nil");
    break;
  case REPLY_INTEGER:
    put_text(out, ":%lld", (long long)reply.integer);
    break;
  case REPLY_TOO_LARGE:
    put_text(out, "too large: %lld", (long long)reply.integer);
    break;
  case REPLY_ARRAY:
    put_text(out, "[");
    for (int64_t i = 0; i < reply.integer; i++) {
      put_text(out, i > 0 ? " " : "");
      rest = show(out, rest, end);
    }
    put_text(out, "]");
    break;
  default:
    put_text(out, reply.type == REPLY_STRING   ? "'"
                  : reply.type == REPLY_STATUS ? "+"
                                               : "-");
    show_text(out, &reply);
    put_text(out, reply.type == REPLY_STRING ? "'" : "");
  }
  return rest;
}

/* Feeds the reader and shows what comes out; the piece is a copy of its own,
 * so that reading past it, or keeping a pointer to it, is seen. */
static int feed(struct reader *r, struct bytes *out, const char *bytes,
                size_t length) {
  const char *tape;
  size_t tape_length;
  int rc;
  char *piece = malloc(length + (length == 0));
  assert_non_null(piece);
  memcpy(piece, bytes, length);
  reader_feed(r, piece, length);
  while ((rc = reader_next(r, &tape, &tape_length)) == 1) {
    assert_ptr_equal(show(out, tape, tape + tape_length), tape + tape_length);
    put_text(out, "\n");
  }
  free(piece);
  if (rc < 0) {
    assert_non_null(reader_error(r));
    put_text(out, "error: %s\n", reader_error(r));
    assert_int_equal(reader_next(r, &tape, &tape_length), -1);
  } else {
    assert_null(reader_error(r));
  }
  return rc;
}

/* What a reader says to bytes that come in three pieces. */
static char *read_split(const struct bytes *in, size_t first, size_t second) {
  struct bytes out = {NULL, 0};
  struct reader *r = reader_open();
  assert_non_null(r);
  put_text(&out, "%s", "");
  if (feed(r, &out, in->data, first) == 0 &&
      feed(r, &out, in->data + first, second) == 0)
    feed(r, &out, in->data + first + second, in->length - first - second);
  reader_close(r);
  return out.data;
}

/* ... in pieces of n. */
static char *read_pieces(const struct bytes *in, size_t n) {
  struct bytes out = {NULL, 0};
  struct reader *r = reader_open();
  int rc = 0;
  assert_non_null(r);
  put_text(&out, "%s", "");
  for (size_t at = 0; at < in->length && rc == 0; at += n)
    rc =
        feed(r, &out, in->data + at, n < in->length - at ? n : in->length - at);
  reader_close(r);
  return out.data;
}

static void expect(const char *expected, char *shown) {
  assert_string_equal(expected, shown);
  free(shown);
}

/* Reads it whole, in every two pieces and byte by byte: always the same. */
static void reads_as(const char *expected, const char *bytes, size_t length) {
  struct bytes in = {NULL, 0};
  put(&in, bytes, length);
  for (size_t i = 0; i <= length; i++)
    expect(expected, read_split(&in, i, 0));
  expect(expected, read_pieces(&in, 1));
  free(in.data);
}

#define READS_AS(expected, bytes) reads_as(expected, bytes, sizeof bytes - 1)

/* ---- every type ---- */

static void reads_every_type(void **state) {
  (void)state;
  READS_AS("+OK\n", "+OK\r\n");
  READS_AS("-ERR no\n", "-ERR no\r\n");
  READS_AS(":-42\n", ":-42\r\n");
  READS_AS("'abc'\n", "$3\r\nabc\r\n");
  READS_AS("nil\n", "$-1\r\n");
  READS_AS("nil\n", "*-1\r\n");
  READS_AS("[]\n", "*0\r\n");
  READS_AS("''\n", "$0\r\n\r\n");
  READS_AS("+\n", "+\r\n");
  READS_AS("-\n", "-\r\n");
  READS_AS("", "");
}

static void reads_integers_to_their_ends(void **state) {
  (void)state;
  READS_AS(":9223372036854775807\n", ":9223372036854775807\r\n");
  READS_AS(":-9223372036854775808\n", ":-9223372036854775808\r\n");
  READS_AS(":0\n", ":0\r\n");
}

static void reads_nested_arrays(void **state) {
  (void)state;
  READS_AS("['a' :1 nil nil +OK -E [] ['' [:2]]]\n",
           "*8\r\n$1\r\na\r\n:1\r\n$-1\r\n*-1\r\n+OK\r\n-E\r\n*0\r\n"
           "*2\r\n$0\r\n\r\n*1\r\n:2\r\n");
  READS_AS("[[[[[[[:1]]]]]]]\n", "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n"
                                 ":1\r\n");
  READS_AS("['0' ['k' 'l']]\n",
           "*2\r\n$1\r\n0\r\n*2\r\n$1\r\nk\r\n$1\r\nl\r\n");
}

static void reads_any_byte_in_a_string(void **state) {
  struct bytes in = {NULL, 0}, expected = {NULL, 0};
  char all[256];
  (void)state;
  for (int i = 0; i < 256; i++)
    all[i] = (char)i;
  put_text(&in, "$256\r\n");
  put(&in, all, sizeof all);
  put_text(&in, "\r\n$4\r\n\r\n\r\n\r\n");
  put_text(&expected, "'256 bytes %016llx'\n'\r\n\r\n'\n",
           (unsigned long long)hash(all, sizeof all));
  reads_as(expected.data, in.data, in.length);
  free(in.data);
  free(expected.data);
}

static void a_mixed_stream_is_the_same_however_it_is_cut(void **state) {
  struct bytes in = {NULL, 0};
  (void)state;
  put_text(&in, "+OK\r\n$5\r\na\r\nbc\r\n:-7\r\n$-1\r\n*0\r\n");
  put_text(&in, "*3\r\n$2\r\nk1\r\n*2\r\n:1\r\n$-1\r\n-ERR x\r\n");
  put_text(&in,
           "$0\r\n\r\n*-1\r\n*2\r\n$1\r\n0\r\n*1\r\n$3\r\nkey\r\n+PONG\r\n");
  char *whole = read_split(&in, in.length, 0);
  assert_string_equal(whole, "+OK\n'a\r\nbc'\n:-7\nnil\n[]\n"
                             "['k1' [:1 nil] -ERR x]\n''\nnil\n"
                             "['0' ['key']]\n+PONG\n");
  for (size_t a = 0; a <= in.length; a++)
    for (size_t b = 0; b <= in.length - a; b++)
      expect(whole, read_split(&in, a, b));
  for (size_t n = 1; n < in.length; n++)
    expect(whole, read_pieces(&in, n));
  free(whole);
  free(in.data);
}

static void many_replies_in_one_piece_come_one_by_one(void **state) {
  struct bytes in = {NULL, 0}, expected = {NULL, 0};
  (void)state;
  for (int i = 0; i < 5000; i++) {
    put_text(&in, "$4\r\n%04d\r\n", i);
    put_text(&expected, "'%04d'\n", i);
  }
  expect(expected.data, read_split(&in, in.length, 0));
  expect(expected.data, read_pieces(&in, 64 * KIB));
  expect(expected.data, read_pieces(&in, 1000));
  free(in.data);
  free(expected.data);
}

/* ---- large strings ---- */

/* Cuts at every place that matters: around each boundary that is given. */
static void cut_around(const struct bytes *in, const size_t *places, size_t n) {
  char *whole = read_split(in, in->length, 0);
  assert_null(strstr(whole, "error"));
  for (size_t i = 0; i < n; i++)
    for (size_t at = places[i] > 26 ? places[i] - 26 : 0;
         at <= places[i] + 4 && at <= in->length; at++) {
      expect(whole, read_split(in, at, 0));
      expect(whole, read_split(in, at, 1 < in->length - at));
    }
  for (size_t n = 1021; n < in->length; n *= 3)
    expect(whole, read_pieces(in, n));
  free(whole);
}

static void large_strings_alone_and_between_small_replies(void **state) {
  static const size_t sizes[] = {REPLY_LARGE - 1, REPLY_LARGE, REPLY_LARGE + 1,
                                 3 * REPLY_LARGE + 17};
  (void)state;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    struct bytes in = {NULL, 0}, alone = {NULL, 0};
    size_t places[4];
    put_bulk(&alone, sizes[i]);
    char *text = read_split(&alone, alone.length, 0);
    size_t end = alone.length, header = alone.length - sizes[i] - 2;
    cut_around(&alone, (const size_t[]){header, end}, 2);

    put_text(&in, "+OK\r\n$3\r\nabc\r\n");
    places[0] = in.length;
    put(&in, alone.data, alone.length);
    places[1] = places[0] + header;
    places[2] = in.length;
    put_text(&in, "*1\r\n:5\r\n$-1\r\n");
    places[3] = in.length;
    cut_around(&in, places, 4);
    struct bytes expected = {NULL, 0};
    put_text(&expected, "+OK\n'abc'\n%s[:5]\nnil\n", text);
    expect(expected.data, read_split(&in, in.length, 0));
    free(expected.data);
    free(in.data);
    free(alone.data);
    free(text);
  }
}

static void large_strings_back_to_back_and_in_an_array(void **state) {
  struct bytes in = {NULL, 0}, one = {NULL, 0}, expected = {NULL, 0};
  size_t places[5];
  (void)state;
  put_bulk(&one, REPLY_LARGE + 3);
  char *text = read_split(&one, one.length, 0);
  for (int i = 0; i < 2; i++) {
    put(&in, one.data, one.length);
    places[i] = in.length;
  }
  put_text(&in, "*3\r\n$1\r\na\r\n");
  places[2] = in.length;
  put(&in, one.data, one.length);
  places[3] = in.length;
  put_text(&in, ":1\r\n");
  put(&in, one.data, one.length);
  places[4] = in.length;
  cut_around(&in, places, 5);
  size_t quoted = strlen(text) - 1;
  put_text(&expected, "%s%s['a' %.*s :1]\n%s", text, text, (int)quoted, text,
           text);
  expect(expected.data, read_split(&in, in.length, 0));
  free(expected.data);
  free(text);
  free(one.data);
  free(in.data);
}

/* A string of zeroes in pieces, without having it in memory. */
static int feed_zeroes(struct reader *r, struct bytes *out, size_t length) {
  static const char zeroes[64 * KIB];
  int rc = 0;
  while (length > 0 && rc == 0) {
    const char *tape;
    size_t tape_length, n = length < sizeof zeroes ? length : sizeof zeroes;
    reader_feed(r, zeroes, n);
    rc = reader_next(r, &tape, &tape_length);
    length -= n;
  }
  if (rc < 0)
    put_text(out, "error: %s\n", reader_error(r));
  return rc;
}

static double cpu_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec * 1000 + (double)t.tv_nsec / 1e6;
}

static size_t memory_used(void) {
  struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

static void skip_one(size_t length, size_t cut) {
  struct bytes out = {NULL, 0}, expected = {NULL, 0};
  char header[32];
  int n = snprintf(header, sizeof header, "$%zu\r\n", length);
  size_t before = memory_used();
  struct reader *r = reader_open();
  assert_non_null(r);
  assert_int_equal(feed(r, &out, "+OK\r\n", 5), 0);
  assert_int_equal(feed(r, &out, header, cut), 0);
  assert_int_equal(feed(r, &out, header + cut, (size_t)n - cut), 0);
  assert_int_equal(feed_zeroes(r, &out, length), 0);
  assert_in_range(memory_used() - before, 0, MIB); /* nothing is kept */
  assert_int_equal(feed(r, &out, "\r", 1), 0);
  assert_int_equal(feed(r, &out, "\n$3\r\nabc\r\n:1\r\n", 14), 0);
  reader_close(r);
  put_text(&expected, "+OK\ntoo large: %zu\n'abc'\n:1\n", length);
  expect(expected.data, out.data);
  free(expected.data);
}

static void a_string_that_is_too_large_is_skipped(void **state) {
  const size_t length = REPLY_BYTES_MAX + 1;
  (void)state;
  for (size_t cut = 0; cut <= 11; cut++)
    skip_one(length, cut);
}

static void the_largest_string_that_is_kept(void **state) {
  struct bytes out = {NULL, 0};
  const char *tape;
  size_t tape_length;
  struct reply reply;
  struct reader *r = reader_open();
  const size_t most = REPLY_BYTES_MAX - 9; /* its record's type and number */
  char header[32];
  int n = snprintf(header, sizeof header, "$%zu\r\n", most);
  (void)state;
  assert_int_equal(feed(r, &out, header, (size_t)n), 0);
  assert_int_equal(feed_zeroes(r, &out, most), 0);
  reader_feed(r, "\r\n", 2);
  assert_int_equal(reader_next(r, &tape, &tape_length), 1);
  assert_ptr_equal(reply_read(tape, &reply), tape + tape_length);
  assert_int_equal(reply.type, REPLY_STRING);
  assert_int_equal(reply.length, most);
  size_t with = memory_used();
  assert_int_equal(reader_next(r, &tape, &tape_length), 0);
  if (with > REPLY_BYTES_MAX) /* else a sanitizer has the memory */
    assert_true(memory_used() < with - most); /* it was given back */
  reader_close(r);
  skip_one(most + 1, 0);
}

/* ---- limits ---- */

struct hostile {
  const char *error;
  const char *begin; /* then `repeat` up to `length` bytes */
  const char *repeat;
  size_t length, memory;
};

/* Fed without end (64 KiB at a time) it must end with that error. */
static void assert_refused(const struct hostile *h) {
  struct bytes in = {NULL, 0}, out = {NULL, 0};
  const char *tape;
  size_t tape_length, before;
  int rc = 0;
  put_text(&in, "%s", h->begin);
  if (h->repeat != NULL) {
    size_t n = strlen(h->repeat), end = h->length / n * n + in.length;
    in.data = realloc(in.data, end + 1);
    for (; in.length < end; in.length += n)
      memcpy(in.data + in.length, h->repeat, n);
  }
  before = memory_used();
  struct reader *r = reader_open();
  double begin = cpu_ms();
  for (size_t at = 0; at < in.length && rc >= 0; at += 64 * KIB) {
    size_t left = in.length - at;
    reader_feed(r, in.data + at, left < 64 * KIB ? left : 64 * KIB);
    while ((rc = reader_next(r, &tape, &tape_length)) == 1)
      ;
  }
  double took = cpu_ms() - begin;
  if (rc != -1)
    fail_msg("no error, but %d: %s", rc, h->error);
  assert_string_equal(reader_error(r), h->error);
  size_t used = memory_used() - before;
  print_message("%6.2f ms, %5zu KiB: %s\n", took, used / KIB, h->error);
  assert_true(used <= h->memory);
  assert_true(took < CPU_MS_MAX);
  reader_close(r);
  free(in.data);
  free(out.data);
}

static void each_limit_has_its_error_and_costs_little(void **state) {
  static const char elements[] = "element limit: more than 1048576";
  static const char depth[] =
      "depth limit: more than 7 arrays within each other";
  static const char bytes[] = "reply limit: more than 64 MiB";
  static const char bulk[] = "reply limit: a bulk string of more than 512 MiB";
  static const char line[] = "line limit: more than 64 KiB";
  static const struct hostile all[] = {
      {elements, "*1048577\r\n", NULL, 0, MIB},
      {elements, "*2147483647\r\n", NULL, 0, MIB},
      {elements, "*2\r\n*1048575\r\n", ":1\r\n", 3 * MIB, 16 * MIB},
      {elements, "*1048576\r\n", "*2\r\n:1\r\n:2\r\n", 6 * MIB, 64 * MIB},
      {depth, "", "*1\r\n", 4 * MIB, MIB},
      {depth, "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*0\r\n", NULL, 0, MIB},
      {bulk, "$536870913\r\n", NULL, 0, MIB},
      {bulk, "$9223372036854775807\r\n", "x", 4 * MIB, MIB},
      {bytes, "*1\r\n$67108865\r\n", "x", 4 * MIB, MIB},
      {bytes, "*1\r\n$9223372036854775807\r\n", "x", 4 * MIB, MIB},
      {line, "+", "a", 100 * MIB, MIB},
      {line, "-", "a", 100 * MIB, MIB},
      {line, ":", "1", 100 * MIB, MIB},
      {line, "$", "1", 100 * MIB, MIB},
      {line, "*", "1", 100 * MIB, MIB},
      {line, "+", "\r", 100 * MIB, MIB},
      {line, "+a\r", "b", 100 * MIB, MIB},
      {line, "*2\r\n+", "a", 100 * MIB, MIB},
  };
  (void)state;
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    assert_refused(&all[i]);
}

/* Many strings in one array, each of them allowed, all of them too much. */
static void a_large_array_is_refused_and_its_memory_bounded(void **state) {
  struct bytes out = {NULL, 0}, element = {NULL, 0};
  size_t before = memory_used();
  struct reader *r = reader_open();
  int rc, fed = 0;
  (void)state;
  put_bulk(&element, MIB);
  rc = feed(r, &out, "*1000\r\n", 7);
  for (; rc == 0 && fed < 1000; fed++)
    rc = feed(r, &out, element.data, element.length);
  assert_int_equal(fed, 64);
  assert_string_equal(out.data, "error: reply limit: more than 64 MiB\n");
  assert_true(memory_used() - before < 80 * (size_t)MIB);
  reader_close(r);
  free(out.data);
  free(element.data);
}

static void memory_of_a_large_array_is_given_back(void **state) {
  struct bytes in = {NULL, 0};
  const char *tape;
  size_t tape_length, before = memory_used();
  struct reader *r = reader_open();
  (void)state;
  put_text(&in, "*2\r\n");
  put_bulk(&in, 4 * MIB);
  put_bulk(&in, 4 * MIB);
  reader_feed(r, in.data, in.length);
  assert_int_equal(reader_next(r, &tape, &tape_length), 1);
  assert_int_equal(reader_next(r, &tape, &tape_length), 0);
  free(in.data);
  reader_feed(r, "+OK\r\n", 5);
  assert_int_equal(reader_next(r, &tape, &tape_length), 1);
  assert_true(memory_used() - before < MIB);
  reader_close(r);
}

static void a_line_may_be_as_long_as_its_limit(void **state) {
  static const size_t lengths[] = {REPLY_LINE_MAX - 1, REPLY_LINE_MAX,
                                   REPLY_LINE_MAX + 1};
  (void)state;
  for (size_t i = 0; i < 3; i++) {
    struct bytes in = {NULL, 0};
    char *line = malloc(lengths[i]);
    memset(line, 'a', lengths[i]);
    put_text(&in, "*2\r\n:1\r\n-");
    put(&in, line, lengths[i]);
    put_text(&in, "\r\n");
    char *shown = read_split(&in, in.length, 0);
    if (lengths[i] <= REPLY_LINE_MAX)
      assert_non_null(strstr(shown, "[:1 -6553"));
    else
      assert_string_equal(shown, "error: line limit: more than 64 KiB\n");
    for (size_t n = 997; n < in.length; n *= 4)
      expect(shown, read_pieces(&in, n));
    for (size_t at = in.length - 4; at < in.length; at++)
      expect(shown, read_split(&in, at, 0));
    free(shown);
    free(line);
    free(in.data);
  }
}

static void the_most_elements_are_read(void **state) {
  struct bytes in = {NULL, 0};
  struct reply reply;
  const char *tape;
  size_t tape_length;
  struct reader *r = reader_open();
  (void)state;
  put_text(&in, "*%d\r\n", REPLY_ELEMENTS_MAX);
  size_t begin = in.length;
  in.data = realloc(in.data, begin + 4 * (size_t)REPLY_ELEMENTS_MAX);
  for (size_t i = 0; i < REPLY_ELEMENTS_MAX; i++, in.length += 4)
    memcpy(in.data + in.length, ":1\r\n", 4);
  reader_feed(r, in.data, in.length);
  assert_int_equal(reader_next(r, &tape, &tape_length), 1);
  assert_ptr_not_equal(reply_read(tape, &reply), tape + tape_length);
  assert_int_equal(reply.integer, REPLY_ELEMENTS_MAX);
  assert_int_equal(reader_next(r, &tape, &tape_length), 0);
  reader_close(r);
  free(in.data);
}

/* ---- malformed ---- */

static void refuses(const char *bytes, size_t length) {
  struct bytes in = {NULL, 0};
  put_text(&in, "+before\r\n");
  put(&in, bytes, length);
  put_text(&in, "+after\r\n+after\r\n+after\r\n");
  for (size_t i = 0; i <= in.length; i++) {
    char *shown = read_split(&in, i, 0);
    if (strncmp(shown, "+before\nerror: ", 15) != 0)
      fail_msg("cut at %zu: %.*s is read as %s", i, (int)length, bytes, shown);
    assert_null(strstr(shown, "after")); /* nothing behind the mistake */
    free(shown);
  }
  char *shown = read_pieces(&in, 1);
  assert_memory_equal(shown, "+before\nerror: ", 15);
  free(shown);
  free(in.data);
}

#define REFUSES(bytes) refuses(bytes, sizeof bytes - 1)

static void refuses_what_is_no_reply(void **state) {
  (void)state;
  REFUSES("?\r\n");
  REFUSES("\r\n");
  REFUSES("\n");
  REFUSES("\0\r\n");
  REFUSES("HTTP/1.1 400 Bad Request\r\n");
  REFUSES("OK\r\n");
  REFUSES(" +OK\r\n");
  REFUSES("*1\r\n?\r\n");
}

static void refuses_bad_numbers(void **state) {
  (void)state;
  REFUSES(":\r\n");
  REFUSES(":x\r\n");
  REFUSES(":1x\r\n");
  REFUSES(": 1\r\n");
  REFUSES(":+1\r\n");
  REFUSES(":1.5\r\n");
  REFUSES(":9223372036854775808\r\n");
  REFUSES(":-9223372036854775809\r\n");
  REFUSES("$\r\n");
  REFUSES("$x\r\n");
  REFUSES("$-2\r\n");
  REFUSES("$3x\r\nabc\r\n");
  REFUSES("$18446744073709551616\r\n");
  REFUSES("$99999999999999999999999999\r\n");
  REFUSES("$070000\r\n");
  REFUSES("*\r\n");
  REFUSES("*x\r\n");
  REFUSES("*-2\r\n");
  REFUSES("*4294967297\r\n");
  REFUSES("*18446744073709551617\r\n");
}

static void refuses_strings_without_their_end(void **state) {
  struct bytes in = {NULL, 0};
  (void)state;
  REFUSES("$3\r\nabcd\r\n");
  REFUSES("$3\r\nabc\n\r");
  REFUSES("$0\r\nx\r\n");
  REFUSES("*2\r\n$1\r\nab\r\n");
  put_bulk(&in, REPLY_LARGE);
  in.data[in.length - 1] = '\r';
  char *shown = read_split(&in, 10, 1000);
  assert_string_equal(shown, "error: a bulk string without its end\n");
  free(shown);
  free(in.data);
}

static void refuses_the_types_of_resp3(void **state) {
  (void)state;
  REFUSES("_\r\n");
  REFUSES("#t\r\n");
  REFUSES(",1.5\r\n");
  REFUSES("(123456789012345678901234567890\r\n");
  REFUSES("=7\r\ntxt:abc\r\n");
  REFUSES("!5\r\nERR x\r\n");
  REFUSES("%1\r\n+a\r\n:1\r\n");
  REFUSES("~1\r\n:1\r\n");
  REFUSES(">2\r\n+a\r\n:1\r\n");
  REFUSES("|1\r\n+a\r\n:1\r\n+b\r\n");
  REFUSES("*1\r\n%1\r\n+a\r\n:1\r\n");
}

/* Random changes of good bytes, cut at random: whatever comes out is whole. */
static void random_changes_break_nothing(void **state) {
  static const char good[] =
      "*3\r\n$2\r\nk1\r\n*2\r\n:1\r\n$-1\r\n-ERR x\r\n$5\r\nhello\r\n+OK\r\n"
      ":12\r\n*0\r\n$0\r\n\r\n*2\r\n$1\r\n0\r\n*1\r\n$3\r\nkey\r\n";
  static const char alphabet[] = "*$+-:0123456789\r\n\0\xff";
  unsigned seed = 1;
  (void)state;
  for (int i = 0; i < 20000; i++) {
    struct bytes in = {NULL, 0};
    put(&in, good, sizeof good - 1);
    for (int changes = 1 + rand_r(&seed) % 4; changes > 0; changes--)
      in.data[(size_t)rand_r(&seed) % in.length] =
          alphabet[(size_t)rand_r(&seed) % (sizeof alphabet - 1)];
    size_t a = (size_t)rand_r(&seed) % in.length;
    size_t b = (size_t)rand_r(&seed) % (in.length - a);
    char *whole = read_split(&in, in.length, 0);
    expect(whole, read_split(&in, a, b));
    free(whole);
    free(in.data);
  }
}

/* ---- no memory ---- */

static void every_allocation_may_fail(void **state) {
  struct bytes in = {NULL, 0}, out = {NULL, 0};
  (void)state;
  put_text(&in, "*2\r\n");
  put_bulk(&in, 3000);
  put_text(&in, ":1\r\n");
  put_bulk(&in, REPLY_LARGE);
  put_text(&in, "+OK\r\n");
  int failed = 1;
  long after = 0;
  for (; failed; after++) {
    const char *tape;
    size_t tape_length;
    int rc = -1;
    alloc_fail_after(after);
    struct reader *r = reader_open();
    if (r != NULL) {
      reader_feed(r, in.data, in.length);
      while ((rc = reader_next(r, &tape, &tape_length)) == 1)
        ;
    }
    failed = alloc_fail_never();
    assert_int_equal(rc, failed ? -1 : 0);
    if (failed && r != NULL)
      assert_string_equal(reader_error(r), "out of memory");
    reader_close(r);
  }
  assert_in_range(after, 4, 100);
  free(in.data);
  free(out.data);
}

static void closes_nothing(void **state) {
  (void)state;
  reader_close(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_every_type),
      cmocka_unit_test(reads_integers_to_their_ends),
      cmocka_unit_test(reads_nested_arrays),
      cmocka_unit_test(reads_any_byte_in_a_string),
      cmocka_unit_test(a_mixed_stream_is_the_same_however_it_is_cut),
      cmocka_unit_test(many_replies_in_one_piece_come_one_by_one),
      cmocka_unit_test(large_strings_alone_and_between_small_replies),
      cmocka_unit_test(large_strings_back_to_back_and_in_an_array),
      cmocka_unit_test(a_string_that_is_too_large_is_skipped),
      cmocka_unit_test(the_largest_string_that_is_kept),
      cmocka_unit_test(each_limit_has_its_error_and_costs_little),
      cmocka_unit_test(a_large_array_is_refused_and_its_memory_bounded),
      cmocka_unit_test(memory_of_a_large_array_is_given_back),
      cmocka_unit_test(a_line_may_be_as_long_as_its_limit),
      cmocka_unit_test(the_most_elements_are_read),
      cmocka_unit_test(refuses_what_is_no_reply),
      cmocka_unit_test(refuses_bad_numbers),
      cmocka_unit_test(refuses_strings_without_their_end),
      cmocka_unit_test(refuses_the_types_of_resp3),
      cmocka_unit_test(random_changes_break_nothing),
      cmocka_unit_test(every_allocation_may_fail),
      cmocka_unit_test(closes_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
