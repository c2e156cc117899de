/* What the benches of the store share; what each is for stands in bench.h. */
#define _GNU_SOURCE /* CPU_SET and the calls that take one */
#include "bench.h"

#include <math.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

_Noreturn void die(const char *format, ...) {
  va_list args;
  fflush(stdout);
  fputs("bench: ", stderr);
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  exit(1);
}

void *checked(void *p) {
  if (p == NULL)
    die("not enough memory");
  return p;
}

uint64_t number_of(const char *text) {
  char *end;
  double number = strtod(text, &end);
  if (end == text || *end != '\0' || number < 0 || number > 1e15)
    die("not a number: %s", text);
  return (uint64_t)number;
}

/* ---- clocks and the machine ---- */

static uint64_t clock_ns(clockid_t id) {
  struct timespec t;
  clock_gettime(id, &t);
  return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

uint64_t thread_ns(void) {
  return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

uint64_t wall_ns(void) {
  return clock_ns(CLOCK_MONOTONIC);
}

size_t resident_bytes(void) {
  unsigned long size, resident;
  FILE *file = checked(fopen("/proc/self/statm", "r"));
  if (fscanf(file, "%lu %lu", &size, &resident) != 2)
    die("/proc/self/statm is not as expected");
  fclose(file);
  return resident * (size_t)sysconf(_SC_PAGESIZE);
}

void use_processors(unsigned count) {
  cpu_set_t all, some;
  unsigned taken = 0;
  CPU_ZERO(&some);
  if (sched_getaffinity(0, sizeof all, &all) != 0)
    die("sched_getaffinity failed");
  for (unsigned i = 0; i < CPU_SETSIZE && taken < count; i++) {
    if (!CPU_ISSET(i, &all))
      continue;
    CPU_SET(i, &some);
    taken++;
  }
  if (sched_setaffinity(0, sizeof some, &some) != 0)
    die("sched_setaffinity failed");
}

/* ---- draws ---- */

static double unit_of(uint64_t *state) {
  return (double)(draw(state) >> 11) * 0x1p-53;
}

void zipf_init(struct zipf *z, uint64_t n, double theta) {
  z->n = n;
  z->theta = theta;
  z->alpha = 1 / (1 - theta);
  z->zeta = 0;
  for (uint64_t i = n; i > 0; i--) /* the small ones first */
    z->zeta += pow((double)i, -theta);
  z->second = 1 + pow(2, -theta);
  z->eta = (1 - pow(2 / (double)n, 1 - theta)) / (1 - z->second / z->zeta);
}

uint64_t zipf_draw(const struct zipf *z, uint64_t *state) {
  double u = unit_of(state), at = u * z->zeta;
  uint64_t rank;
  if (at < 1)
    rank = 0;
  else if (at < z->second)
    rank = 1;
  else
    rank = (uint64_t)((double)z->n * pow(z->eta * u - z->eta + 1, z->alpha));
  return scatter(rank < z->n ? rank : z->n - 1, z->n);
}

uint64_t scatter(uint64_t rank, uint64_t n) {
  static const uint64_t prime = 4294967291; /* above n: prime to it */
  return rank * prime % n;
}

uint32_t *draw_ids(size_t count, uint64_t n, double theta, uint64_t seed) {
  uint32_t *ids = checked(malloc(count * sizeof *ids));
  struct zipf z = {0};
  if (theta > 0)
    zipf_init(&z, n, theta);
  for (size_t i = 0; i < count; i++)
    ids[i] =
        (uint32_t)(theta > 0 ? zipf_draw(&z, &seed) : draw_below(&seed, n));
  return ids;
}

/* ---- values ---- */

/* Word i of a value: id, stamp, and then what follows from both and i. */
static uint64_t word_of(uint64_t id, uint64_t stamp, size_t i) {
  return i == 0 ? id : i == 1 ? stamp : id * 31 + stamp + i;
}

void make_value(char *value, size_t length, uint64_t id, uint64_t stamp) {
  for (size_t at = 0, i = 0; at < length; at += sizeof id, i++) {
    uint64_t word = word_of(id, stamp, i);
    memcpy(value + at, &word,
           length - at < sizeof word ? length - at : sizeof word);
  }
}

void check_value(const char *value, size_t length, uint64_t id) {
  uint64_t stamp;
  if (length < VALUE_LEAST)
    die("key %llu has a value of %zu bytes", (unsigned long long)id, length);
  memcpy(&stamp, value + sizeof id, sizeof stamp);
  for (size_t at = 0, i = 0; at < length; at += sizeof id, i++) {
    uint64_t word = word_of(id, stamp, i);
    if (memcmp(value + at, &word,
               length - at < sizeof word ? length - at : sizeof word) != 0)
      die("key %llu has a wrong value at byte %zu of %zu",
          (unsigned long long)id, at, length);
  }
}

/* ---- histograms ---- */

void histogram_merge(struct histogram *into, const struct histogram *h) {
  for (int i = 0; i < BUCKETS; i++)
    into->counts[i] += h->counts[i];
  into->total += h->total;
  if (h->max > into->max)
    into->max = h->max;
}

/* The greatest number in a bucket; see histogram_add. */
static uint64_t bucket_end(unsigned bucket) {
  unsigned sub = 1u << SUB_BITS;
  if (bucket < 2 * sub)
    return bucket;
  unsigned shift = (bucket >> SUB_BITS) - 1;
  return ((uint64_t)(sub + bucket % sub + 1) << shift) - 1;
}

uint64_t histogram_at(const struct histogram *h, double q) {
  uint64_t seen = 0;
  for (unsigned i = 0; i < BUCKETS; i++) {
    seen += h->counts[i];
    if ((double)seen >= q * (double)h->total)
      return bucket_end(i) < h->max ? bucket_end(i) : h->max;
  }
  return h->max;
}

const char *show_ns(uint64_t ns) {
  static char texts[4][24];
  static unsigned next;
  char *text = texts[next++ % 4];
  if (ns < 1000)
    snprintf(text, sizeof *texts, "%u ns", (unsigned)ns);
  else if (ns < NS_PER_MS)
    snprintf(text, sizeof *texts, "%.2f us", (double)ns / 1e3);
  else
    snprintf(text, sizeof *texts, "%.2f ms", (double)ns / NS_PER_MS);
  return text;
}
