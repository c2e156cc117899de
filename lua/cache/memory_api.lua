-- The C half of the memory backend for FFI: struct api of
-- runtime/bind/cache_internal.h, and what its calls take. The declarations
-- mirror runtime/backend.h and runtime/memory/store.h.
local backend = require "moonstash.backend"
local ffi = require "ffi"

ffi.cdef [[
typedef struct {
  uint32_t length, length_high; /* one size_t in C; no value is above 2 GiB */
  uint64_t version, expires_ms, created_ms, token;
  void *owner;
  uint32_t format, pad;
} moonstash_item;
typedef struct { /* struct cache_near */
  int32_t *words; /* compared, not counted with: signed ones are cheaper */
  int32_t version, shift, clears, inserts;
  int32_t *seen;
  int32_t again, pad;
} moonstash_outcome;
typedef union {
  double number;
  int64_t integer;
  char bytes[65536];
} moonstash_buffer;
typedef struct {
  void *context;
  uint64_t (*now)(void *context);
  int (*get)(void *self, uint64_t now, const char *ns, size_t ns_len,
             const char *key, size_t key_len, void *buf, size_t cap,
             moonstash_item *out, void *wait);
  int (*set)(void *self, uint64_t now, const char *ns, size_t ns_len,
             const char *key, size_t key_len, const void *bytes, size_t length,
             uint32_t format, uint64_t ttl_ms, void *wait);
  int (*remove)(void *self, uint64_t now, const char *ns, size_t ns_len,
                const char *key, size_t key_len, void *wait);
  int (*get_near)(void *self, uint64_t now, const char *ns, size_t ns_len,
                  const char *key, size_t key_len, void *buf, size_t cap,
                  moonstash_item *out, moonstash_outcome *near);
  int32_t *(*view_words)(void *view);
  const uint64_t *clock, *offset_ms;
} moonstash_api;
]]
assert(ffi.sizeof "moonstash_item" == backend.ITEM_SIZE and ffi.abi "le" and ffi.abi "64bit")
assert(ffi.sizeof "moonstash_outcome" == backend.NEAR_SIZE)

return ffi.cast("moonstash_api *", backend.api)
