/* The connection and the backend's calls as an embedder in C uses them: a loop,
 * a server at the other end of a socket (the test itself), waits; no Lua. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "redis/conn.h"
#include "redis/view.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "alloc.h"

enum { GIVE_UP_MS = 20 * 1000, TEXT_MAX = 4096 };

/* ---- the server ---- */

static struct {
  uv_loop_t loop;
  uv_timer_t host; /* what else the loop is for: a connection that nobody waits
                      for does not keep it running */
  int listener, port;
  int peer;           /* the accepted connection, or -1 */
  char got[TEXT_MAX]; /* what it has said since the last expect() */
  size_t got_length;
  struct redis_conn *conn;
  struct backend *view;
  char log[TEXT_MAX];
} t;

static void listen_somewhere(void) {
  struct sockaddr_in address = {.sin_family = AF_INET};
  socklen_t size = sizeof address;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  t.listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  assert_int_equal(bind(t.listener, (struct sockaddr *)&address, size), 0);
  assert_int_equal(listen(t.listener, 8), 0);
  assert_int_equal(getsockname(t.listener, (struct sockaddr *)&address, &size),
                   0);
  t.port = ntohs(address.sin_port);
}

static void on_timer(uv_timer_t *timer) {
  (void)timer;
}

/* One turn of the loop, and of the server. */
static void turn(void) {
  uv_run(&t.loop, UV_RUN_ONCE);
  if (t.peer < 0) {
    t.peer = accept4(t.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    t.got_length = 0;
  }
  ssize_t n = t.peer < 0 ? 0
                         : recv(t.peer, t.got + t.got_length,
                                sizeof t.got - 1 - t.got_length, 0);
  if (n > 0)
    t.got_length += (size_t)n;
  t.got[t.got_length] = '\0';
}

#define UNTIL(condition)                                              \
  do {                                                                \
    uint64_t until_ms = uv_hrtime() / 1000000 + GIVE_UP_MS;           \
    while (!(condition)) {                                            \
      if (uv_hrtime() / 1000000 > until_ms)                           \
        fail_msg("waited in vain for " #condition "; got %s", t.got); \
      turn();                                                         \
    }                                                                 \
  } while (0)

static void say(const char *text) {
  assert_int_equal(send(t.peer, text, strlen(text), MSG_NOSIGNAL),
                   (ssize_t)strlen(text));
}

/* The server waits until a command has come whose end is this. */
static void expect(const char *end) {
  UNTIL(memmem(t.got, t.got_length, end, strlen(end)) != NULL);
  t.got_length = 0;
}

static void hang_up(void) {
  close(t.peer);
  t.peer = -1;
}

static void greet(void) {
  expect("PING\r\n");
  say("*2\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n+OK\r\n+PONG\r\n");
}

static int is_ready(void) {
  return conn_status(t.conn) == 1;
}

static void ready(void) {
  conn_start(t.conn);
  greet();
  UNTIL(is_ready());
}

static void on_log(void *ud, const char *line) {
  (void)ud;
  assert_null(strchr(line, '\n'));
  snprintf(t.log, sizeof t.log, "%s", line);
}

static struct conn_stats stats(void) {
  struct conn_stats s;
  conn_get_stats(t.conn, &s);
  return s;
}

static void open_conn(void) {
  struct redis_options options = {
      .host_count = 1, .timeout_ms = 10000, .connect_timeout_ms = 10000};
  strcpy(options.hosts[0].name, "127.0.0.1");
  options.hosts[0].port = t.port;
  t.conn = conn_open(&t.loop, &options, on_log, NULL);
  assert_non_null(t.conn);
  redis_view_use(t.view, t.conn);
}

static void close_conn(void) {
  struct redis_conn *conn = t.conn;
  t.conn = NULL; /* those who are told now may want to close it, too */
  redis_view_use(t.view, NULL);
  conn_close(conn);
}

/* ---- answers ---- */

/* A wait, and what it was told. */
struct answer {
  struct backend_wait wait; /* first */
  int count, status;
  char bytes[TEXT_MAX];
  size_t length;
  struct backend_item item;
};

static int inside; /* a call is being made: nothing may be told now */

static void on_wake(struct backend_wait *wait, int status, const void *bytes,
                    const struct backend_item *item) {
  struct answer *a = (struct answer *)wait;
  assert_false(inside);
  a->count++;
  a->status = status;
  a->item = *item;
  a->length = item->length < sizeof a->bytes ? item->length : 0;
  if (bytes != NULL)
    memcpy(a->bytes, bytes, a->length);
  a->bytes[a->length] = '\0';
}

static struct answer *fresh(struct answer *a) {
  memset(a, 0, sizeof *a);
  a->wait.wake = on_wake;
  return a;
}

#define OPS (*t.view->ops)
#define KEY(key) t.view, 1000, "n:", 2, key, strlen(key)

#define WAITS(call)                         \
  do {                                      \
    inside++;                               \
    assert_int_equal((call), BACKEND_WAIT); \
    inside--;                               \
  } while (0)

static void is_answered(struct answer *a, int status, const char *bytes) {
  UNTIL(a->count > 0);
  assert_int_equal(a->count, 1);
  assert_int_equal(a->status, status);
  if (bytes != NULL)
    assert_string_equal(a->bytes, bytes);
}

/* A call, what the server must see of it, what it says, how it ends. */
#define ANSWERS(call, command, reply, status, bytes) \
  do {                                               \
    fresh(&a);                                       \
    WAITS(call);                                     \
    expect(command);                                 \
    say(reply);                                      \
    is_answered(&a, status, bytes);                  \
  } while (0)

/* The same for a reply that cannot be: the connection goes, and comes back. */
#define DESYNCS(call, command, reply)           \
  do {                                          \
    fresh(&a);                                  \
    WAITS(call);                                \
    expect(command);                            \
    say(reply);                                 \
    is_answered(&a, BACKEND_ECONNECTION, NULL); \
    assert_true(a.length > 0);                  \
    assert_int_equal(stats().desyncs, 1);       \
    assert_false(is_ready());                   \
    close_conn();                               \
    hang_up();                                  \
    open_conn();                                \
    ready();                                    \
  } while (0)

/* ---- begin and end of a test ---- */

static int set_up(void **state) {
  (void)state;
  memset(&t, 0, sizeof t);
  t.peer = -1;
  listen_somewhere();
  uv_loop_init(&t.loop);
  uv_timer_init(&t.loop, &t.host);
  uv_timer_start(&t.host, on_timer, 1, 1);
  assert_int_equal(redis_view_open(&t.view), 0);
  open_conn();
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  if (t.conn != NULL)
    close_conn();
  t.view->ops->close(t.view);
  uv_close((uv_handle_t *)&t.host, NULL);
  assert_int_equal(uv_run(&t.loop, UV_RUN_DEFAULT), 0);
  assert_int_equal(uv_loop_close(&t.loop), 0);
  if (t.peer >= 0)
    close(t.peer);
  close(t.listener);
  return 0;
}

/* ---- the calls ---- */

static void single_keys(void **state) {
  struct answer a;
  (void)state;
  ready();
  ANSWERS(OPS.get(KEY("k"), NULL, 0, NULL, &a.wait),
          "*2\r\n$3\r\nGET\r\n$3\r\nn:k\r\n", "$3\r\nabc\r\n", BACKEND_HIT,
          "abc");
  assert_int_equal(a.length, 3);
  ANSWERS(OPS.get(KEY("k"), NULL, 0, NULL, &a.wait), "n:k\r\n", "$0\r\n\r\n",
          BACKEND_HIT, "");
  ANSWERS(OPS.get(KEY("k"), NULL, 0, NULL, &a.wait), "n:k\r\n", "$-1\r\n",
          BACKEND_MISS, "");
  ANSWERS(OPS.get(KEY("k"), NULL, 0, NULL, &a.wait), "n:k\r\n",
          "-WRONGTYPE Operation against a key\r\n", BACKEND_ETYPE,
          "WRONGTYPE Operation against a key");
  ANSWERS(OPS.set(KEY("k"), "v", 1, 0, 0, &a.wait),
          "*3\r\n$3\r\nSET\r\n$3\r\nn:k\r\n$1\r\nv\r\n", "+OK\r\n", 1, "");
  ANSWERS(OPS.set(KEY("k"), "\r\n", 2, 0, 1500, &a.wait),
          "*5\r\n$3\r\nSET\r\n$3\r\nn:k\r\n$2\r\n\r\n\r\n"
          "$2\r\nPX\r\n$4\r\n1500\r\n",
          "-OOM command not allowed\r\n", BACKEND_ESERVER,
          "OOM command not allowed");
  ANSWERS(OPS.add(KEY("k"), "v", 1, 0, 0, &a.wait), "$2\r\nNX\r\n", "+OK\r\n",
          1, "");
  ANSWERS(OPS.add(KEY("k"), "v", 1, 0, 0, &a.wait), "$2\r\nNX\r\n", "$-1\r\n",
          0, "");
  ANSWERS(OPS.remove(KEY("k"), &a.wait), "UNLINK\r\n$3\r\nn:k\r\n", ":1\r\n", 1,
          "");
  ANSWERS(OPS.exists(KEY("k"), &a.wait), "EXISTS\r\n$3\r\nn:k\r\n", ":0\r\n", 0,
          "");
  ANSWERS(OPS.expire(KEY("k"), 5, &a.wait),
          "PEXPIRE\r\n$3\r\nn:k\r\n$1\r\n5\r\n", ":1\r\n", 1, "");
  ANSWERS(OPS.expire(KEY("k"), BACKEND_TTL_NEVER, &a.wait),
          "EXISTS\r\n$3\r\nn:k", ":0\r\n:1\r\n", 1, "");
  ANSWERS(OPS.touch(KEY("k"), UINT64_MAX, &a.wait), "TOUCH\r\n$3\r\nn:k",
          ":1\r\n", 1, "");
}

static void information_about_a_key(void **state) {
  struct answer a;
  (void)state;
  ready();
  ANSWERS(OPS.info(KEY("k"), NULL, &a.wait), "PTTL\r\n$3\r\nn:k\r\n",
          "$3\r\nabc\r\n:3\r\n:500\r\n", BACKEND_HIT, "abc");
  assert_int_equal(a.item.length, 3);
  assert_int_equal(a.item.expires_ms, 1500);
  ANSWERS(OPS.info(KEY("k"), NULL, &a.wait), "PTTL\r\n$3\r\nn:k\r\n",
          "$0\r\n\r\n:3\r\n:-1\r\n", BACKEND_HIT, "");
  assert_int_equal(a.item.expires_ms, 0);
  assert_memory_equal(a.bytes, "\0\0\0", 3); /* not the other value's */
  ANSWERS(OPS.info(KEY("k"), NULL, &a.wait), "PTTL\r\n$3\r\nn:k\r\n",
          "$0\r\n\r\n:0\r\n:-2\r\n", BACKEND_MISS, "");
  ANSWERS(OPS.info(KEY("k"), NULL, &a.wait), "PTTL\r\n$3\r\nn:k\r\n",
          "$3\r\nabc\r\n-ERR no\r\n:1\r\n", BACKEND_ESERVER, "ERR no");
  ANSWERS(OPS.get(KEY("k"), NULL, 0, NULL, &a.wait), "n:k\r\n", "$1\r\nv\r\n",
          BACKEND_HIT, "v"); /* the third reply was thrown away */
}

static void increments(void **state) {
  struct answer a;
  int64_t sum = 0;
  (void)state;
  ready();
  ANSWERS(OPS.increment(KEY("n"), 5, 0, &sum, &a.wait),
          "*3\r\n$6\r\nINCRBY\r\n$3\r\nn:n\r\n$1\r\n5\r\n", ":12\r\n", 1, "");
  assert_int_equal(sum, 12);
#define WITH_TTL(reply, status, message)                                      \
  ANSWERS(OPS.increment(KEY("n"), -5, 700, &sum, &a.wait), "EXEC\r\n", reply, \
          status, message)
  WITH_TTL("+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:-5\r\n", 1, "");
  assert_int_equal(sum, -5);
  WITH_TTL("-ERR unknown command\r\n+OK\r\n:-7\r\n-ERR no MULTI\r\n", 1, "");
  assert_int_equal(sum, -7); /* no transactions there: as it came */
  WITH_TTL("+OK\r\n-OOM no\r\n-OOM no\r\n-EXECABORT\r\n", BACKEND_ESERVER,
           "OOM no");
  WITH_TTL("+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n$-1\r\n-WRONGTYPE no\r\n",
           BACKEND_ETYPE, "WRONGTYPE no");
#undef WITH_TTL
  ANSWERS(OPS.increment(KEY("n"), 5, 0, &sum, &a.wait), "$1\r\n5\r\n",
          "-ERR value is not an integer or out of range\r\n", BACKEND_ETYPE,
          NULL);
  fresh(&a);
  WAITS(OPS.increment(KEY("n"), 5, 0, &sum, &a.wait));
  expect("$1\r\n5\r\n");
  say(":9007199254740993\r\n");
  expect("INCRBY\r\n$3\r\nn:n\r\n$2\r\n-5\r\n"); /* it is taken back */
  assert_int_equal(a.count, 0);
  say(":9007199254740988\r\n");
  is_answered(&a, BACKEND_ERANGE, NULL);
  assert_int_equal(
      OPS.increment(KEY("n"), (INT64_C(1) << 53) + 1, 0, &sum, &a.wait),
      BACKEND_ERANGE);
}

static void many_keys(void **state) {
  struct answer a;
  static const struct backend_slice keys[] = {{"a", 1}, {"b", 1}, {"c", 1}};
  struct backend_item items[3];
  int statuses[3] = {9, 9, 9};
  size_t used;
  (void)state;
  ready();
  ANSWERS(
      OPS.get_many(t.view, 0, "n:", 2, keys, 3, NULL, 0, &used, items, &a.wait),
      "*4\r\n$4\r\nMGET\r\n$3\r\nn:a\r\n$3\r\nn:b\r\n$3\r\nn:c\r\n",
      "*3\r\n$1\r\nA\r\n$-1\r\n$2\r\nCC\r\n", 2, "ACC");
  assert_int_equal(items[0].length, 1);
  assert_int_equal(items[1].version, 0);
  assert_int_equal(items[2].length, 2);
  ANSWERS(OPS.set_many(t.view, 0, "n:", 2, keys, keys, NULL, 3, 0, statuses,
                       &a.wait),
          "$3\r\nn:c\r\n$1\r\nc\r\n", "+OK\r\n-READONLY x\r\n+OK\r\n",
          BACKEND_ESERVER, "READONLY x");
  assert_int_equal(statuses[0], 1);
  assert_int_equal(statuses[1], BACKEND_ESERVER);
  assert_int_equal(statuses[2], 1);
  ANSWERS(
      OPS.set_many(t.view, 0, "n:", 2, keys, keys, NULL, 3, 0, NULL, &a.wait),
      "$3\r\nn:c\r\n$1\r\nc\r\n", "-OOM first\r\n+OK\r\n-ERR last\r\n",
      BACKEND_ESERVER, "OOM first");
  ANSWERS(OPS.remove_many(t.view, 0, "n:", 2, keys, 3, &a.wait),
          "*4\r\n$6\r\nUNLINK\r\n$3\r\nn:a\r\n", ":2\r\n", 2, "");
}

static void a_connection_that_ends_in_the_middle_of_a_call(void **state) {
  struct answer a, b;
  static const struct backend_slice keys[] = {{"a", 1}, {"b", 1}, {"c", 1}};
  int statuses[3] = {9, 9, 9};
  (void)state;
  ready();
  WAITS(OPS.set_many(t.view, 0, "n:", 2, keys, keys, NULL, 3, 0, statuses,
                     &fresh(&a)->wait));
  WAITS(OPS.info(KEY("k"), NULL, &fresh(&b)->wait));
  expect("PTTL\r\n$3\r\nn:k\r\n");
  say("+OK\r\n-OOM no\r\n");
  hang_up();
  is_answered(&a, BACKEND_ESERVER,
              "OOM no"); /* the first error is the call's */
  assert_int_equal(statuses[0], 1);
  assert_int_equal(statuses[1], BACKEND_ESERVER);
  assert_int_equal(statuses[2], BACKEND_ECONNECTION);
  is_answered(&b, BACKEND_ECONNECTION, NULL);
  assert_non_null(strstr(b.bytes, "the server closed the connection"));
  ready();
  WAITS(OPS.info(KEY("k"), NULL, &fresh(&b)->wait));
  expect("PTTL\r\n$3\r\nn:k\r\n");
  say("$3\r\nabc\r\n:3\r\n:5");
  hang_up();
  is_answered(&b, BACKEND_ECONNECTION, NULL);
}

static void a_status_that_is_not_ok_in_the_middle_of_a_call(void **state) {
  struct answer a;
  static const struct backend_slice keys[] = {{"a", 1}, {"b", 1}, {"c", 1}};
  int statuses[3] = {9, 9, 9};
  (void)state;
  ready();
  WAITS(OPS.set_many(t.view, 0, "n:", 2, keys, keys, NULL, 3, 0, statuses,
                     &fresh(&a)->wait));
  expect("n:c\r\n$1\r\nc\r\n");
  say("+OK\r\n+QUEUED\r\n+OK\r\n");
  is_answered(&a, BACKEND_ECONNECTION, NULL);
  assert_int_equal(statuses[0], 1);
  assert_int_equal(statuses[1], BACKEND_ECONNECTION);
  assert_int_equal(statuses[2], BACKEND_ECONNECTION);
  assert_int_equal(stats().desyncs, 1);
}

static char seen[TEXT_MAX];

static int on_key(void *ud, const char *key, size_t key_len,
                  const struct backend_item *item) {
  assert_ptr_equal(ud, seen);
  assert_int_equal(item->version, 1);
  snprintf(seen + strlen(seen), 64, "%.*s,", (int)key_len, key);
  return strncmp(key, "n:stop", 6) == 0 ? -77 : 0;
}

static void all_keys(void **state) {
  struct answer a;
  uint64_t cursor = 7;
  (void)state;
  ready();
  seen[0] = '\0';
  ANSWERS(OPS.scan(t.view, 0, "n:", 2, &cursor, 10, on_key, seen, &a.wait),
          "SCAN\r\n$1\r\n7\r\n$5\r\nMATCH\r\n$3\r\nn:*\r\n$5\r\nCOUNT\r\n",
          "*2\r\n$20\r\n18446744073709551615\r\n"
          "*3\r\n$3\r\nn:a\r\n$5\r\nother\r\n$3\r\nn:b\r\n",
          2, "");
  assert_string_equal(seen, "n:a,n:b,");
  assert_true(cursor == UINT64_MAX);
  cursor = 0;
  ANSWERS(OPS.scan(t.view, 0, "n:", 2, &cursor, 10, on_key, seen, &a.wait),
          "COUNT\r\n$2\r\n10\r\n",
          "*2\r\n$1\r\n0\r\n*2\r\n$6\r\nn:stop\r\n$3\r\nn:b\r\n", -77, "");
  cursor = 0;
  ANSWERS(OPS.clear(t.view, 0, "*[n", 3, &cursor, &a.wait),
          "MATCH\r\n$6\r\n\\*\\[n*\r\n", "*2\r\n$2\r\n17\r\n*0\r\n", 0, "");
  assert_int_equal(cursor, 17);
  fresh(&a);
  WAITS(OPS.clear(t.view, 0, "n:", 2, &cursor, &a.wait));
  expect("SCAN\r\n$2\r\n17\r\n");
  say("*2\r\n$1\r\n0\r\n*2\r\n$3\r\nn:a\r\n$3\r\nm:b\r\n");
  expect("*2\r\n$6\r\nUNLINK\r\n$3\r\nn:a\r\n"); /* and no neighbour */
  say(":1\r\n");
  is_answered(&a, 1, "");
  ANSWERS(OPS.clear(t.view, 0, "", 0, &cursor, &a.wait), "FLUSHDB\r\n",
          "+OK\r\n", 1, "");
  struct backend_stats counts;
  OPS.stats(t.view, 0, &counts);
  assert_int_equal(counts.deletes, 1); /* FLUSHDB does not say how many */
}

/* ---- replies that cannot be ---- */

static void impossible_replies_end_the_connection(void **state) {
  struct answer a;
  static const struct backend_slice keys[] = {{"a", 1}, {"b", 1}};
  struct backend_item items[2];
  int64_t sum;
  size_t used;
  uint64_t cursor = 0;
  (void)state;
  ready();
#define GET_ OPS.get(KEY("k"), NULL, 0, NULL, &a.wait)
  DESYNCS(GET_, "n:k\r\n", ":1\r\n");
  DESYNCS(GET_, "n:k\r\n", "+OK\r\n");
  DESYNCS(GET_, "n:k\r\n", "*0\r\n");
  DESYNCS(GET_, "n:k\r\n", "?\r\n");
  DESYNCS(OPS.set(KEY("k"), "v", 1, 0, 0, &a.wait), "v\r\n", "$1\r\nv\r\n");
  DESYNCS(OPS.set(KEY("k"), "v", 1, 0, 0, &a.wait), "v\r\n", "+PONG\r\n");
  DESYNCS(OPS.add(KEY("k"), "v", 1, 0, 0, &a.wait), "NX\r\n", "+QUEUED\r\n");
  DESYNCS(
      OPS.set_many(t.view, 0, "n:", 2, keys, keys, NULL, 2, 0, NULL, &a.wait),
      "n:b\r\n$1\r\nb\r\n", "+OK\r\n+PONG\r\n");
  DESYNCS(OPS.clear(t.view, 0, "", 0, &cursor, &a.wait), "ASYNC\r\n",
          "+PONG\r\n");
  DESYNCS(OPS.set(KEY("k"), "v", 1, 0, 0, &a.wait), "v\r\n", "$-1\r\n");
  DESYNCS(OPS.remove(KEY("k"), &a.wait), "n:k\r\n", ":2\r\n");
  DESYNCS(OPS.remove(KEY("k"), &a.wait), "n:k\r\n", ":-1\r\n");
  DESYNCS(OPS.exists(KEY("k"), &a.wait), "n:k\r\n", ":2\r\n");
  DESYNCS(OPS.info(KEY("k"), NULL, &a.wait), "PTTL\r\n$3\r\nn:k\r\n",
          "$1\r\nv\r\n:-1\r\n:1\r\n");
  DESYNCS(OPS.info(KEY("k"), NULL, &a.wait), "PTTL\r\n$3\r\nn:k\r\n",
          "$1\r\nv\r\n:1\r\n:-3\r\n");
  DESYNCS(OPS.increment(KEY("k"), 1, 5, &sum, &a.wait), "EXEC\r\n", ":1\r\n");
  DESYNCS(OPS.increment(KEY("k"), 1, 5, &sum, &a.wait), "EXEC\r\n",
          "+OK\r\n+QUEUED\r\n+QUEUED\r\n*1\r\n+OK\r\n");
#define MGET_ \
  OPS.get_many(t.view, 0, "n:", 2, keys, 2, NULL, 0, &used, items, &a.wait)
  DESYNCS(MGET_, "n:b\r\n", "*1\r\n$1\r\na\r\n");
  DESYNCS(MGET_, "n:b\r\n", "*3\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n");
  DESYNCS(MGET_, "n:b\r\n", "*2\r\n$1\r\na\r\n:1\r\n");
  DESYNCS(MGET_, "n:b\r\n", "*2\r\n*0\r\n*0\r\n");
  DESYNCS(OPS.remove_many(t.view, 0, "n:", 2, keys, 2, &a.wait), "n:b\r\n",
          ":3\r\n");
#define SCAN_ OPS.scan(t.view, 0, "n:", 2, &cursor, 10, on_key, seen, &a.wait)
  DESYNCS(SCAN_, "SCAN\r\n", "*0\r\n");
  DESYNCS(SCAN_, "SCAN\r\n", "*1\r\n$1\r\n0\r\n");
  DESYNCS(SCAN_, "SCAN\r\n", "*3\r\n$1\r\n0\r\n*0\r\n*0\r\n");
  DESYNCS(SCAN_, "SCAN\r\n", "*2\r\n$1\r\nx\r\n*0\r\n");
  DESYNCS(SCAN_, "SCAN\r\n", "*2\r\n$0\r\n\r\n*0\r\n");
  DESYNCS(SCAN_, "SCAN\r\n", "*2\r\n$2\r\n-1\r\n*0\r\n");
  DESYNCS(SCAN_, "SCAN\r\n", "*2\r\n$20\r\n18446744073709551616\r\n*0\r\n");
  DESYNCS(SCAN_, "SCAN\r\n", "*2\r\n:0\r\n*0\r\n");
  DESYNCS(SCAN_, "SCAN\r\n", "*2\r\n$1\r\n0\r\n$3\r\nn:a\r\n");
  DESYNCS(SCAN_, "SCAN\r\n", "*2\r\n$1\r\n0\r\n*1\r\n:1\r\n");
  DESYNCS(SCAN_, "SCAN\r\n", "*2\r\n$1\r\n0\r\n*1\r\n*1\r\n$3\r\nn:a\r\n");
}

static void a_value_too_large_fails_its_call_only(void **state) {
  struct answer a, b;
  static char zeroes[64 * 1024];
  size_t left = REPLY_BYTES_MAX + 1;
  char header[32];
  (void)state;
  ready();
  WAITS(OPS.get(KEY("k"), NULL, 0, NULL, &fresh(&a)->wait));
  WAITS(OPS.get(KEY("l"), NULL, 0, NULL, &fresh(&b)->wait));
  expect("n:l\r\n");
  snprintf(header, sizeof header, "$%zu\r\n", left);
  say(header);
  while (left > 0) {
    ssize_t n = send(t.peer, zeroes,
                     left < sizeof zeroes ? left : sizeof zeroes, MSG_NOSIGNAL);
    left -= n > 0 ? (size_t)n : 0;
    turn();
  }
  say("\r\n$1\r\nl\r\n");
  is_answered(&a, BACKEND_ETOOLARGE, NULL);
  assert_non_null(strstr(a.bytes, "reply limit"));
  is_answered(&b, BACKEND_HIT, "l");
}

static void what_nobody_asked_for_ends_the_connection(void **state) {
  struct answer a;
  (void)state;
  ready();
  say("$6\r\nsecret\r\n");
  UNTIL(stats().desyncs == 1);
  assert_false(is_ready());
  hang_up();
  ready();
  ANSWERS(OPS.get(KEY("k"), NULL, 0, NULL, &a.wait), "n:k\r\n", "$1\r\nv\r\n",
          BACKEND_HIT, "v");
}

/* ---- giving up ---- */

static void a_wait_that_is_taken_back_leaves_a_tombstone(void **state) {
  struct answer a, b;
  (void)state;
  ready();
  WAITS(OPS.get(KEY("first"), NULL, 0, NULL, &fresh(&a)->wait));
  WAITS(OPS.get(KEY("second"), NULL, 0, NULL, &fresh(&b)->wait));
  assert_int_equal(OPS.unwait(t.view, &a.wait), 1);
  assert_int_equal(OPS.unwait(t.view, &a.wait), 0);
  expect("n:second\r\n");
  assert_int_equal(stats().in_flight, 2);
  say("$5\r\nfirst\r\n$6\r\nsecond\r\n");
  is_answered(&b, BACKEND_HIT, "second");
  assert_int_equal(a.count, 0);
  assert_int_equal(stats().discarded, 1);
  assert_int_equal(stats().in_flight, 0);
}

static void a_close_fails_everything_once(void **state) {
  struct answer answers[20];
  (void)state;
  ready();
  for (size_t i = 0; i < 20; i++) {
    struct backend_wait *wait = &fresh(&answers[i])->wait;
    WAITS(i % 2 ? OPS.info(KEY("k"), NULL, wait)
                : OPS.get(KEY("k"), NULL, 0, NULL, wait));
  }
  assert_int_equal(OPS.unwait(t.view, &answers[3].wait), 1);
  close_conn();
  for (size_t i = 0; i < 20; i++) {
    assert_int_equal(answers[i].count, i != 3);
    assert_int_equal(answers[i].status, i != 3 ? BACKEND_ECLOSED : 0);
  }
  fresh(&answers[0]);
  assert_int_equal(OPS.get(KEY("k"), NULL, 0, NULL, &answers[0].wait),
                   BACKEND_ECLOSED);
  assert_int_equal(answers[0].count, 0);
}

static void a_close_before_the_connection_is_there(void **state) {
  struct answer a;
  (void)state;
  WAITS(OPS.get(KEY("k"), NULL, 0, NULL, &fresh(&a)->wait));
  close_conn();
  assert_int_equal(a.count, 1);
  assert_int_equal(a.status, BACKEND_ECLOSED);
}

static void a_close_in_the_handshake(void **state) {
  struct answer a;
  (void)state;
  WAITS(OPS.get(KEY("k"), NULL, 0, NULL, &fresh(&a)->wait));
  expect("PING\r\n");
  say("*2\r\n");
  turn();
  close_conn();
  assert_int_equal(a.count, 1);
}

static void commands_wait_for_the_first_connection(void **state) {
  struct answer a;
  (void)state;
  WAITS(OPS.get(KEY("k"), NULL, 0, NULL, &fresh(&a)->wait));
  greet();
  expect("n:k\r\n");
  say("$1\r\nv\r\n");
  is_answered(&a, BACKEND_HIT, "v");
}

/* ---- calls from inside of replies ---- */

struct probe {
  struct redis_call call; /* first */
  const char *name;
  void (*then)(struct probe *);
  int outcomes, status, again;
};

static struct probe probes[4];
static char told[TEXT_MAX]; /* the names of those that were told, in order */

static void on_probe(struct redis_call *call, uint32_t index, int status,
                     const struct reply *reply, const char *rest) {
  struct probe *p = (struct probe *)call;
  (void)index;
  (void)rest;
  assert_false(inside);
  p->outcomes++;
  p->status = status;
  assert_true(status < 0 || reply != NULL);
  snprintf(told + strlen(told), 64, "%s%s ", p->name, status < 0 ? "!" : "");
  if (p->then != NULL)
    p->then(p);
}

/* Makes the call: conn_begin's or conn_commit's answer. */
static int make(struct probe *p, uint32_t count) {
  inside++;
  int rc = conn_begin(t.conn, &p->call, count, 16);
  if (rc == 0) {
    for (uint32_t i = 0; i < count; i++) {
      conn_command(t.conn, REPLY_STATUS, 1, "DO");
      conn_arg(t.conn, p->name, strlen(p->name));
    }
    rc = conn_commit(t.conn);
  }
  inside--;
  return rc;
}

static void make_all(void (*then)(struct probe *)) {
  static const char *const names[] = {"a", "b", "c", "d"};
  told[0] = '\0';
  memset(probes, 0, sizeof probes);
  for (int i = 0; i < 4; i++) {
    probes[i].name = names[i];
    probes[i].call.on_reply = on_probe;
  }
  probes[0].then = then;
  for (int i = 0; i < 4; i++)
    assert_int_equal(make(&probes[i], 2), 0);
  expect("d\r\n*2\r\n$2\r\nDO\r\n$1\r\nd\r\n");
}

static void once_more(struct probe *p) {
  if (p->call.answered == p->call.count && !p->again++) {
    int flag = inside; /* this is a call from inside a reply, which may */
    inside = 0;
    assert_int_equal(make(p, 1), 0);
    inside = flag;
  }
}

static void a_reply_may_begin_commands(void **state) {
  (void)state;
  ready();
  make_all(once_more);
  say("+1\r\n+2\r\n+1\r\n+2\r\n+1\r\n+2\r\n+1\r\n+2\r\n");
  UNTIL(strcmp(told, "a a b b c c d d ") == 0);
  expect("*2\r\n$2\r\nDO\r\n$1\r\na\r\n");
  say("+3\r\n");
  UNTIL(strcmp(told, "a a b b c c d d a ") == 0);
  assert_int_equal(stats().in_flight, 0);
}

static void cancel_others(struct probe *p) {
  if (p->outcomes == 1) {
    conn_cancel(t.conn, &probes[1].call);
    conn_cancel(t.conn, &probes[3].call);
  } else {
    conn_cancel(t.conn, &probes[3].call); /* once more does no harm */
  }
}

static void a_reply_may_cancel_others(void **state) {
  (void)state;
  ready();
  make_all(cancel_others);
  say("+1\r\n+2\r\n+1\r\n+2\r\n+1\r\n+2\r\n+1\r\n+2\r\n");
  UNTIL(stats().in_flight == 0);
  assert_string_equal(told, "a a c c ");
  assert_int_equal(stats().discarded, 4);
}

static void cancel_itself(struct probe *p) {
  conn_cancel(t.conn, &p->call);
}

static void a_reply_may_cancel_its_own_call(void **state) {
  (void)state;
  ready();
  make_all(cancel_itself);
  say("+1\r\n+2\r\n+1\r\n+2\r\n+1\r\n+2\r\n+1\r\n+2\r\n");
  UNTIL(stats().in_flight == 0);
  assert_string_equal(told, "a b b c c d d ");
}

static void close_now(struct probe *p) {
  (void)p;
  if (t.conn != NULL)
    close_conn();
}

static void a_reply_may_close_the_connection(void **state) {
  (void)state;
  ready();
  make_all(close_now);
  say("+1\r\n+2\r\n+1\r\n+2\r\n");
  UNTIL(t.conn == NULL);
  assert_string_equal(told, "a a! b! c! d! ");
  for (int i = 0; i < 4; i++)
    assert_int_equal(probes[i].status, BACKEND_ECLOSED);
}

static void a_failure_may_close_the_connection(void **state) {
  (void)state;
  ready();
  make_all(close_now);
  hang_up();
  UNTIL(t.conn == NULL);
  assert_string_equal(told, "a! b! c! d! ");
  assert_int_equal(probes[0].status, BACKEND_ECONNECTION);
  assert_int_equal(probes[3].status, BACKEND_ECLOSED);
}

static void try_again(struct probe *p) {
  p->again = make(p, 1);
  if (probes[1].outcomes == 0)
    conn_cancel(t.conn, &probes[2].call);
}

static void a_failure_begins_nothing_and_may_cancel(void **state) {
  (void)state;
  ready();
  make_all(try_again);
  hang_up();
  UNTIL(probes[3].outcomes == 1);
  assert_string_equal(told, "a! b! d! ");
  assert_int_equal(probes[0].again, BACKEND_ECONNECTION);
  ready();
}

static void spoil_it(struct probe *p) {
  (void)p;
  conn_desync(t.conn, "the test says so");
}

static void a_reply_may_end_the_connection(void **state) {
  (void)state;
  ready();
  make_all(spoil_it);
  probes[0].then = spoil_it;
  say("+1\r\n+2\r\n+1\r\n+2\r\n");
  UNTIL(probes[3].outcomes == 1);
  assert_string_equal(told, "a a! b! c! d! ");
  assert_non_null(strstr(conn_why(t.conn), "protocol error: the test says so"));
  hang_up();
  ready();
}

/* The kernel says at once that the peer is gone; nobody is told before the
 * loop runs. */
static void nobody_is_told_from_inside_a_call(void **state) {
  struct answer answers[100];
  struct linger reset = {.l_onoff = 1};
  int begun = 0;
  (void)state;
  ready();
  setsockopt(t.peer, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  hang_up();
  inside++;
  for (int i = 0; i < 100; i++) {
    int rc = OPS.get(KEY("k"), NULL, 0, NULL, &fresh(&answers[i])->wait);
    begun += rc == BACKEND_WAIT;
    assert_true(rc == BACKEND_WAIT || rc == BACKEND_ECONNECTION);
  }
  inside--;
  assert_true(begun > 0);
  int answered = 0;
  UNTIL((answered = 0, ({
           for (int i = 0; i < 100; i++)
             answered += answers[i].count;
         }),
         answered == begun));
  ready();
}

/* ---- is it in step? ---- */

static const char *nonce_of(const char *text) {
  static char nonce[17];
  const char *at = strstr(text, "ECHO\r\n$16\r\n");
  assert_non_null(at);
  memcpy(nonce, at + strlen("ECHO\r\n$16\r\n"), 16);
  return nonce;
}

static void a_suspect_connection_is_asked_for_an_echo(void **state) {
  char reply[64];
  (void)state;
  ready();
  conn_suspect(t.conn);
  conn_suspect(t.conn); /* is being asked already */
  UNTIL(strstr(t.got, "ECHO") != NULL);
  snprintf(reply, sizeof reply, "$16\r\n%s\r\n", nonce_of(t.got));
  t.got_length = 0;
  say(reply);
  UNTIL(stats().in_flight == 0);
  assert_true(is_ready());
  conn_suspect(t.conn);
  UNTIL(strstr(t.got, "ECHO") != NULL);
  say(reply); /* the former word */
  UNTIL(stats().desyncs == 1);
  assert_non_null(strstr(conn_why(t.conn), "out of step"));
  hang_up();
  ready();
  conn_suspect(t.conn); /* asks again after a loss */
  expect("ECHO\r\n");
}

/* ---- no memory ---- */

static void every_allocation_may_fail(void **state) {
  struct answer a;
  static const struct backend_slice keys[] = {{"a", 1}, {"b", 1}};
  uint64_t cursor = 0;
  int64_t sum;
  (void)state;
  ready();
  for (int kind = 0; kind < 3; kind++)
    for (long after = 0, failed = 1; failed; after++) {
      fresh(&a);
      alloc_fail_after(after);
      int rc = kind == 0 ? OPS.set_many(t.view, 0, "n:", 2, keys, keys, NULL, 2,
                                        0, NULL, &a.wait)
               : kind == 1 ? OPS.clear(t.view, 0, "n:", 2, &cursor, &a.wait)
                           : OPS.increment(KEY("n"), 1, 1000, &sum, &a.wait);
      failed = alloc_fail_never();
      if (failed) {
        assert_int_equal(rc, BACKEND_ENOMEM);
        assert_int_equal(stats().in_flight, 0);
        continue;
      }
      assert_int_equal(rc, BACKEND_WAIT);
      static const char *const last[] = {"n:b\r\n$1\r\nb\r\n", "$4\r\n1000\r\n",
                                         "EXEC\r\n"};
      static const char *const replies[] = {
          "+OK\r\n+OK\r\n", "*2\r\n$1\r\n0\r\n*0\r\n",
          "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:1\r\n"};
      expect(last[kind]);
      say(replies[kind]);
      is_answered(&a, 1, "");
    }
}

static void a_reply_without_memory_ends_the_connection(void **state) {
  struct answer a;
  (void)state;
  for (long after = 0; after < 3; after++) {
    static const struct backend_slice keys[] = {{"a", 1}};
    struct backend_item items[1];
    size_t used;
    if (!is_ready())
      ready();
    WAITS(OPS.get_many(t.view, 0, "n:", 2, keys, 1, NULL, 0, &used, items,
                       &fresh(&a)->wait));
    expect("n:a\r\n");
    static char reply[2000];
    memset(reply, 'x', sizeof reply - 1);
    memcpy(reply, "*1\r\n$1980\r\n", 11);
    memcpy(reply + 11 + 1980, "\r\n", 3);
    say(reply);
    alloc_fail_after(after);
    UNTIL(a.count > 0);
    int failed = alloc_fail_never();
    assert_int_equal(a.count, 1);
    if (a.status == BACKEND_ECONNECTION)
      hang_up();
    else /* there was none for the values: the reader has got over it */
      assert_int_equal(a.status, failed ? BACKEND_ENOMEM : 1);
  }
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
  const struct CMUnitTest tests[] = {
      TEST(single_keys),
      TEST(information_about_a_key),
      TEST(increments),
      TEST(many_keys),
      TEST(a_connection_that_ends_in_the_middle_of_a_call),
      TEST(a_status_that_is_not_ok_in_the_middle_of_a_call),
      TEST(all_keys),
      TEST(impossible_replies_end_the_connection),
      TEST(a_value_too_large_fails_its_call_only),
      TEST(what_nobody_asked_for_ends_the_connection),
      TEST(a_wait_that_is_taken_back_leaves_a_tombstone),
      TEST(a_close_fails_everything_once),
      TEST(a_close_before_the_connection_is_there),
      TEST(a_close_in_the_handshake),
      TEST(commands_wait_for_the_first_connection),
      TEST(a_reply_may_begin_commands),
      TEST(a_reply_may_cancel_others),
      TEST(a_reply_may_cancel_its_own_call),
      TEST(a_reply_may_close_the_connection),
      TEST(a_failure_may_close_the_connection),
      TEST(a_failure_begins_nothing_and_may_cancel),
      TEST(a_reply_may_end_the_connection),
      TEST(nobody_is_told_from_inside_a_call),
      TEST(a_suspect_connection_is_asked_for_an_echo),
      TEST(every_allocation_may_fail),
      TEST(a_reply_without_memory_ends_the_connection),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
