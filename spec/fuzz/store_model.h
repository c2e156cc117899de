/* What a store has to hold: a reference for store_fuzz.c, as simple as can be.
 *
 * A space is what the views of one name share: an array of entries by the
 * number of their key, and the values that have left it but were not reported
 * yet. The store may evict what it likes, if it says so through its watcher;
 * all else must be as it is here.
 *
 * The watcher notes events. After each call the fuzz target applies to the
 * model what the call did, and then model_reconcile finds each event's value:
 * one that left (reported once, with a right reason), or one that is there and
 * was evicted or is past its time. What was deleted or replaced must have been
 * reported by then; what was cleared or expired, by the end of the sweeps.
 */
#ifndef MOONSTASH_SPEC_STORE_MODEL_H
#define MOONSTASH_SPEC_STORE_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "memory/store.h"

enum { MODEL_KEYS = 256, MODEL_SPACES = 2, MODEL_KEY_MAX = 60000 };

enum pin { PIN_NO, PIN_SURE, PIN_MAYBE };

/* A value, as it was when it was in the store. */
struct value {
  uint8_t *bytes; /* NULL: no value */
  size_t length;
  uint64_t expires_ms, created_ms;
  uint32_t format, weight;
  enum pin pin;
};

struct event {
  int reason, key;
  uint32_t format;
  size_t length;
  uint8_t *bytes; /* or NULL: not told */
};

struct departure {
  struct value value;
  unsigned reasons; /* 1 << STORE_x, those that are right */
  int key;
};

struct entry_model {
  struct value value;
  uint64_t changes; /* of the key, evictions apart; never back to 0 */
  uint64_t seen_at; /* `changes` when the version was last seen */
  uint64_t version; /* that was seen; 0: none yet */
};

struct space {
  struct entry_model keys[MODEL_KEYS];
  struct departure *departures;
  struct event *events;
  size_t departed, departed_cap, noted, noted_cap;
  uint64_t hits, misses, sets; /* as stats count them */
  uint64_t evictions, expired; /* events of these reasons */
  int pins_may_go;             /* the bound fell below them */
};

/* Ends the program with that sentence, and what it is about if that was set,
 * unless it is true. */
extern char model_about[80];
void model_must(int true_, const char *what);
#define MUST(condition) model_must(condition, #condition)

/* The text of a key; numbers of a letter share their first byte. */
const char *model_key(int key, size_t *length);

void space_reset(struct space *s); /* all is gone, unreported */
store_watch_fn space_watch;        /* its ud is the space */

/* The value if it is there and not past its time. */
struct value *space_live(struct space *s, int key, uint64_t now);
/* The store says that a live value is not there: it must have reported that.
 * Takes it out. */
void space_lost(struct space *s, int key, uint64_t now);
/* A new value in the key's place; what was there leaves. */
void space_put(struct space *s, int key, uint64_t now, const void *bytes,
               size_t length, const struct store_options *options);
/* The value leaves for that reason, or as expired. */
void space_leave(struct space *s, int key, int reason, uint64_t now);
/* Another TTL, or another number in the same place. */
void space_changed(struct space *s, int key);

/* What the store says of a live entry. */
void space_check_item(struct space *s, int key,
                      const struct backend_item *item);
/* After each call. */
void space_reconcile(struct space *s, uint64_t now);
/* After the sweeps: all that left before that time was reported. */
void space_check_reported(struct space *s, uint64_t before);
/* Values not past their time at `now`. */
uint64_t space_count(struct space *s, uint64_t now);
/* Bytes of values that are pinned for sure, or that may be. */
size_t space_pinned(struct space *s, int maybe);

/* When a value that is set now expires; 0: never. */
uint64_t model_expiry(uint64_t now, uint64_t ttl_ms);

#endif
