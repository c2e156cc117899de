/* The peer of client.lua: the same loop in C on hiredis' async API and libuv.
 *
 *   bench_redis_hiredis HOST PORT get|set INFLIGHT SECONDS
 *
 * INFLIGHT logical clients share one connection. Each has one command in
 * flight and issues its next one from the callback of the reply, so that from
 * the first turn to the last reply the connection holds exactly that many.
 * A run: all keys are written, the clients start, WARMUP_MS pass, then SECONDS
 * are measured; then nobody issues any more, and the last reply ends it.
 *
 * Every reply is checked; a wrong one ends the program with status 1. It
 * prints one line of name=value. Keys, their order, the values, the sampling
 * of latencies and that line are those of client.lua: change both.
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <uv.h>
#include <hiredis/hiredis.h>
#include <hiredis/async.h>
#include <hiredis/adapters/libuv.h>

enum {
  KEYS = 10000,
  STRIDE = 7919, /* from key to key; prime to KEYS, so that all have a turn */
  KEY_SIZE = 16, /* "key:" and 12 digits, as redis-benchmark's */
  VALUE_SIZE = 64,
  INFLIGHT_MAX = 65536,
  SECONDS_MAX = 3600,
  WARMUP_MS = 300,
  SAMPLE_ALL = 16, /* below this many in flight each latency is measured */
  SAMPLE = 17,     /* else one in so many; odd, so that no client is favoured */
  HISTOGRAM = 100000, /* buckets of 1 us; the last one takes all above */
};

struct client {
  struct bench *bench;
  unsigned key;        /* of the command in flight */
  uint64_t started_ns; /* when it was issued; 0: not sampled */
};

struct bench {
  uv_loop_t loop;
  uv_timer_t timer; /* ends the warm-up, then the measured window */
  redisAsyncContext *redis;
  struct client *clients;
  unsigned inflight; /* clients that have a command in flight */
  int is_set;        /* SET, or else GET */
  int done;          /* the window is over: issue nothing more */
  uint64_t window_ms;
  unsigned next_key;
  unsigned sample;       /* one in so many ... */
  unsigned until_sample; /* ... and so many to the next */
  uint64_t operations;   /* replies since the window began */
  uint64_t began_ns;     /* the window; 0 while warming up */
  double began_cpu_us;
  char keys[KEYS][KEY_SIZE + 1];
  char values[KEYS][VALUE_SIZE + 1];
  uint32_t histogram[HISTOGRAM];
};

__attribute__((noreturn, format(printf, 1, 2))) static void
die(const char *format, ...) {
  va_list args;
  va_start(args, format);
  fputs("bench_redis_hiredis: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  exit(1);
}

static double cpu_us(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 +
         (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/* ---- figures ---- */

static void record(struct bench *bench, uint64_t ns) {
  uint64_t us = ns / 1000;
  bench->histogram[us < HISTOGRAM ? us : HISTOGRAM - 1]++;
}

/* Microseconds that this share of the sampled latencies do not exceed. */
static unsigned percentile(const struct bench *bench, double share) {
  uint64_t total = 0, below = 0;
  for (unsigned us = 0; us < HISTOGRAM; us++)
    total += bench->histogram[us];
  for (unsigned us = 0; us < HISTOGRAM; us++) {
    below += bench->histogram[us];
    if (below > 0 && (double)below >= share * (double)total)
      return us;
  }
  return 0;
}

static void print_figures(const struct bench *bench) {
  double seconds = (double)(uv_hrtime() - bench->began_ns) / 1e9;
  double used_us = cpu_us() - bench->began_cpu_us;
  if (bench->operations == 0)
    die("no reply within the measured window");
  printf("ops_per_s=%.0f p50_us=%u p99_us=%u cpu_us_per_op=%.3f ops=%llu "
         "seconds=%.3f\n",
         (double)bench->operations / seconds, percentile(bench, 0.5),
         percentile(bench, 0.99), used_us / (double)bench->operations,
         (unsigned long long)bench->operations, seconds);
}

/* ---- the loop ---- */

static void check_reply(const struct client *client, const redisReply *reply) {
  struct bench *bench = client->bench;
  if (!reply)
    die("the connection is lost: %s", bench->redis->errstr);
  if (reply->type == REDIS_REPLY_ERROR)
    die("the server says: %s", reply->str);
  if (bench->is_set) {
    if (reply->type != REDIS_REPLY_STATUS || strcmp(reply->str, "OK") != 0)
      die("a SET is answered with type %d", reply->type);
    return;
  }
  if (reply->type != REDIS_REPLY_STRING || reply->len != VALUE_SIZE)
    die("a GET is answered with type %d, %zu bytes", reply->type,
        (size_t)reply->len);
  if (memcmp(reply->str, bench->values[client->key], VALUE_SIZE) != 0)
    die("the value of %s is not what was set", bench->keys[client->key]);
}

static redisCallbackFn on_reply;

static void issue(struct client *client) {
  struct bench *bench = client->bench;
  client->key = bench->next_key = (bench->next_key + STRIDE) % KEYS;
  client->started_ns = 0;
  if (--bench->until_sample == 0) {
    bench->until_sample = bench->sample;
    client->started_ns = uv_hrtime();
  }
  const char *argv[] = {bench->is_set ? "SET" : "GET", bench->keys[client->key],
                        bench->values[client->key]};
  const size_t lengths[] = {3, KEY_SIZE, VALUE_SIZE};
  if (redisAsyncCommandArgv(bench->redis, on_reply, client,
                            bench->is_set ? 3 : 2, argv, lengths) != REDIS_OK)
    die("cannot issue: %s", bench->redis->errstr);
}

static void on_reply(redisAsyncContext *redis, void *reply, void *data) {
  struct client *client = data;
  struct bench *bench = client->bench;
  check_reply(client, reply);
  bench->operations++;
  if (client->started_ns)
    record(bench, uv_hrtime() - client->started_ns);
  if (!bench->done)
    issue(client);
  else if (--bench->inflight == 0)
    redisAsyncDisconnect(redis); /* frees it once this callback is back */
}

static void on_window_end(uv_timer_t *timer) {
  struct bench *bench = timer->data;
  print_figures(bench);
  bench->done = 1;
  uv_close((uv_handle_t *)timer, NULL);
}

static void on_warm(uv_timer_t *timer) {
  struct bench *bench = timer->data;
  memset(bench->histogram, 0, sizeof bench->histogram);
  bench->operations = 0;
  uv_timer_start(timer, on_window_end, bench->window_ms, 0);
  bench->began_cpu_us = cpu_us();
  bench->began_ns = uv_hrtime();
}

static void run(struct bench *bench, const char *host, int port) {
  uv_loop_init(&bench->loop);
  bench->redis = redisAsyncConnect(host, port);
  if (!bench->redis || bench->redis->err)
    die("cannot connect: %s", bench->redis ? bench->redis->errstr : "memory");
  if (redisLibuvAttach(bench->redis, &bench->loop) != REDIS_OK)
    die("cannot attach the connection to the loop");
  uv_timer_init(&bench->loop, &bench->timer);
  bench->timer.data = bench;
  uv_timer_start(&bench->timer, on_warm, WARMUP_MS, 0);
  for (unsigned i = 0; i < bench->inflight; i++) {
    bench->clients[i].bench = bench;
    issue(&bench->clients[i]);
  }
  uv_run(&bench->loop, UV_RUN_DEFAULT);
  if (uv_loop_close(&bench->loop) != 0)
    die("the loop has handles left");
}

/* ---- before it ---- */

/* Makes all keys and values, and writes them over a connection of its own. */
static void write_keys(struct bench *bench, const char *host, int port) {
  redisContext *redis = redisConnect(host, port);
  if (!redis || redis->err)
    die("cannot connect: %s", redis ? redis->errstr : "no memory");
  for (unsigned i = 0; i < KEYS; i++) {
    snprintf(bench->keys[i], sizeof bench->keys[i], "key:%012u", i);
    memset(bench->values[i], 'x', VALUE_SIZE);
    memcpy(bench->values[i], bench->keys[i], KEY_SIZE);
    redisAppendCommand(redis, "SET %s %s", bench->keys[i], bench->values[i]);
  }
  for (unsigned i = 0; i < KEYS; i++) {
    redisReply *reply;
    if (redisGetReply(redis, (void **)&reply) != REDIS_OK)
      die("cannot write the keys: %s", redis->errstr);
    if (reply->type != REDIS_REPLY_STATUS)
      die("cannot write the keys: %s", reply->str ? reply->str : "?");
    freeReplyObject(reply);
  }
  redisFree(redis);
}

/* The argument as a number from min to max; ends the program if it is none. */
static double number(const char *text, const char *name, double min,
                     double max) {
  char *end;
  double value = strtod(text, &end);
  if (end == text || *end || !(value >= min && value <= max))
    die("%s must be from %g to %g, not '%s'", name, min, max, text);
  return value;
}

int main(int argc, char **argv) {
  if (argc != 6)
    die("arguments: HOST PORT get|set INFLIGHT SECONDS");
  int port = (int)number(argv[2], "PORT", 1, 65535);
  if (strcmp(argv[3], "get") != 0 && strcmp(argv[3], "set") != 0)
    die("what to do is get or set, not '%s'", argv[3]);
  struct bench *bench = calloc(1, sizeof *bench);
  if (!bench)
    die("no memory");
  bench->is_set = strcmp(argv[3], "set") == 0;
  bench->inflight = (unsigned)number(argv[4], "INFLIGHT", 1, INFLIGHT_MAX);
  bench->window_ms =
      (uint64_t)(number(argv[5], "SECONDS", 0.01, SECONDS_MAX) * 1000);
  bench->sample = bench->inflight < SAMPLE_ALL ? 1 : SAMPLE;
  bench->until_sample = bench->sample;
  bench->clients = calloc(bench->inflight, sizeof *bench->clients);
  if (!bench->clients)
    die("no memory");
  write_keys(bench, argv[1], port);
  run(bench, argv[1], port);
  free(bench->clients);
  free(bench);
  return 0;
}
