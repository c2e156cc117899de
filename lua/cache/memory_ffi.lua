-- The memory backend for Lua by FFI calls, which compile: the hot path. The
-- declarations mirror runtime/backend.h and struct api of
-- runtime/bind/cache.c. The interface is that of memory_c.lua.
local backend = require "moonstash.backend"
local buffer = require "string.buffer"
local ffi = require "ffi"

ffi.cdef [[
typedef struct {
  size_t length;
  uint64_t version, expires_ms, created_ms, token;
  void *owner;
  uint32_t format, pad;
} moonstash_item;
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
} moonstash_api;
]]
assert(ffi.sizeof "moonstash_item" == backend.ITEM_SIZE)

local BYTES, INTEGER, NUMBER = backend.BYTES, backend.INTEGER, backend.NUMBER
local FALSE, TRUE = backend.FALSE, backend.TRUE
local HIT = 1

local api = ffi.cast("moonstash_api *", backend.api)
local context = api.context
local item = ffi.new "moonstash_item"
local cap = 4096
local buf = ffi.new("char[?]", cap)
local integer, number = ffi.new "int64_t[1]", ffi.new "double[1]"
local as_integers, as_numbers = ffi.typeof "int64_t *", ffi.typeof "double *"
local reader = buffer.new()
local ffi_string, ffi_cast, tonumber = ffi.string, ffi.cast, tonumber

local function grow(needed)
  cap = tonumber(needed)
  buf = ffi.new("char[?]", cap)
end

local function get(view, ns, key)
  local status = api.get(view, api.now(context), ns, #ns, key, #key, buf, cap, item, nil)
  if status ~= HIT then return nil, status end
  local length = tonumber(item.length)
  if length > cap then
    grow(length)
    return get(view, ns, key)
  end
  local format = item.format
  if format == BYTES then return format, ffi_string(buf, length) end
  if format == INTEGER then return format, tonumber(ffi_cast(as_integers, buf)[0]) end
  if format == NUMBER then return format, ffi_cast(as_numbers, buf)[0] end
  if format == TRUE then return format, true end
  if format == FALSE then return format, false end
  reader:set(buf, length)
  return format, reader:decode()
end

local function set(view, ns, key, value, format, ttl_ms)
  local bytes, length = value, 0
  if format == INTEGER then
    integer[0] = value
    bytes, length = integer, 8
  elseif format == NUMBER then
    number[0] = value
    bytes, length = number, 8
  elseif format == TRUE or format == FALSE then
    bytes = nil
  else
    length = #value
  end
  return api.set(view, api.now(context), ns, #ns, key, #key, bytes, length, format, ttl_ms, nil)
end

local function remove(view, ns, key)
  return api.remove(view, api.now(context), ns, #ns, key, #key, nil)
end

return { get = get, set = set, remove = remove }
