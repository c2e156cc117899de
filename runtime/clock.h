/* The process clock: one 64-bit word of monotonic milliseconds.
 *
 * Reading it is one load. Loops write it every turn (clock_update). While a
 * loop stays inside Lua for longer than CLOCK_TICK_MS, a ticker thread writes
 * it instead, so that a TTL is judged right even in a script that never
 * yields; when no loop is inside Lua for a while the thread parks. Where
 * threads are forbidden the word is not trusted and each read is a call.
 *
 * This word and its ticker are the only globals of the library. Both are
 * shared by every runtime of the process and live until it ends.
 */
#ifndef MOONSTASH_CLOCK_H
#define MOONSTASH_CLOCK_H

#include <stdint.h>

enum { CLOCK_TICK_MS = 2 };

/* Starts using the clock. threads = 0 forbids the ticker in this process from
 * then on. Returns 0 or a negative errno. Thread-safe, may be repeated. */
int clock_open(int threads);

/* Now, in milliseconds since an arbitrary start; never 0, never goes back. */
uint64_t clock_now_ms(void);

/* The word itself, for readers that compilers do not see through: whoever
 * finds it to be 0 or UINT64_MAX, which are no time, calls clock_now_ms. */
const uint64_t *clock_word(void);

/* Reads the system's clock and writes the word. */
uint64_t clock_update(void);

/* Bracket every stretch of Lua: while a loop is inside, the ticker ticks. Both
 * on one thread, and they nest. Call clock_update before entering: neither
 * reads the system's clock, and neither makes a call unless the ticker is
 * parked. */
void clock_enter(void);
void clock_leave(void);

#endif
