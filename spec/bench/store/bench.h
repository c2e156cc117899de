/* What the benches of the store share: clocks, draws, keys and values that
 * carry who they are, histograms.
 *
 * A key is 16 bytes made from a number, its id. A value begins with its id and
 * a stamp, and the rest follows from these two, so that a value of another key,
 * a torn one and a half-copied one are all told from a right one. A wrong
 * value ends the program: die().
 */
#ifndef MOONSTASH_BENCH_H
#define MOONSTASH_BENCH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
  KEY_SIZE = 16,
  VALUE_SIZE = 100,
  VALUE_LEAST = 16, /* id and stamp */
  SUB_BITS = 3,     /* of a histogram: 8 buckets for each power of two */
  BUCKETS = 64 * 8, /* enough for any uint64_t */
  NS_PER_MS = 1000000
};

#define NS_PER_S 1000000000ull

/* Prints to standard error and exits with status 1. */
_Noreturn void die(const char *format, ...)
    __attribute__((format(printf, 1, 2)));
/* p, or death when it is NULL. */
void *checked(void *p);
/* The number that text begins with and consists of; 1e6 is one. Or death. */
uint64_t number_of(const char *text);

/* Nanoseconds: of CPU that this thread has used; of a clock on the wall. */
uint64_t thread_ns(void);
uint64_t wall_ns(void);
/* Resident memory of the process in bytes. */
size_t resident_bytes(void);
/* Lets the process run on this many processors at most. */
void use_processors(unsigned count);

/* splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a generator, and its last
 * step as a hash of a number. */
static inline uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

static inline uint64_t draw(uint64_t *state) {
  return mix(*state += 0x9e3779b97f4a7c15u);
}

static inline uint64_t draw_below(uint64_t *state, uint64_t n) {
  return (uint64_t)((unsigned __int128)draw(state) * n >> 64);
}

/* Zipf's law over n ids, after Gray et al. (SIGMOD 1994). Ranks are scattered
 * over the ids, so that popular ones are no neighbours in memory. */
struct zipf {
  uint64_t n;
  double theta, alpha, zeta, eta, second;
};

void zipf_init(struct zipf *z, uint64_t n, double theta);
uint64_t zipf_draw(const struct zipf *z, uint64_t *state);
/* A permutation of 0 .. n - 1, for n below 2^32. */
uint64_t scatter(uint64_t rank, uint64_t n);
/* Memory for count ids below n, drawn by Zipf's law, or evenly for theta 0. */
uint32_t *draw_ids(size_t count, uint64_t n, double theta, uint64_t seed);

static inline void make_key(char *key, uint64_t id) {
  uint64_t tail = mix(id);
  memcpy(key, &id, sizeof id);
  memcpy(key + sizeof id, &tail, sizeof tail);
}

/* length: VALUE_LEAST at least. */
void make_value(char *value, size_t length, uint64_t id, uint64_t stamp);
void check_value(const char *value, size_t length, uint64_t id);

/* Counts of nanoseconds: buckets of 1/8 of a power of two. */
struct histogram {
  uint64_t counts[BUCKETS], total, max;
};

static inline void histogram_add(struct histogram *h, uint64_t ns) {
  unsigned log = ns ? 63u - (unsigned)__builtin_clzll(ns) : 0, bucket;
  if (log < SUB_BITS)
    bucket = (unsigned)ns;
  else
    bucket =
        (unsigned)(ns >> (log - SUB_BITS)) + ((log - SUB_BITS) << SUB_BITS);
  h->counts[bucket]++;
  h->total++;
  if (ns > h->max)
    h->max = ns;
}

void histogram_merge(struct histogram *into, const struct histogram *h);
/* The upper end of the bucket in which the share q of the counts lies. */
uint64_t histogram_at(const struct histogram *h, double q);

/* A time for people, as in "1.25 us"; up to 4 results at a time are valid. */
const char *show_ns(uint64_t ns);

#endif
