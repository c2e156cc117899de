-- The memory backend for Lua by FFI calls, which compile: the hot path. The
-- declarations mirror runtime/backend.h and struct api of
-- runtime/bind/cache.c. The interface is that of memory_c.lua.
--
-- All calls share buf, item and scratch. A finalizer may call the cache while
-- they are in use (the collector runs where Lua allocates, and when a trace is
-- left): busy says so, and the C twin, which has buffers of its own, takes
-- over. It also takes values that are larger than buf.
local backend = require "moonstash.backend"
local buffer = require "string.buffer"
local ffi = require "ffi"
local twin = require "cache.memory_c"

ffi.cdef [[
typedef struct {
  uint32_t length, length_high; /* one size_t in C; no value is above 2 GiB */
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
assert(ffi.sizeof "moonstash_item" == backend.ITEM_SIZE and ffi.abi "le" and ffi.abi "64bit")

local BYTES, INTEGER, NUMBER = backend.BYTES, backend.INTEGER, backend.NUMBER
local FALSE, TRUE = backend.FALSE, backend.TRUE
local HIT = 1
local CAP = 64 * 1024 -- bytes of buf

local api = ffi.cast("moonstash_api *", backend.api)
local context = api.context
local item = ffi.new "moonstash_item"
local buf = ffi.new("double[?]", CAP / 8)
local integers = ffi.cast("int64_t *", buf)
local scratch_integer, scratch_number = ffi.new "int64_t[1]", ffi.new "double[1]"
local reader = buffer.new()
local busy = false
local ffi_string, tonumber = ffi.string, tonumber

-- The value that a call has left in buf.
local function read(format, length)
  if format == BYTES then return ffi_string(buf, length) end
  if format == INTEGER then return tonumber(integers[0]) end
  if format == NUMBER then return buf[0] end
  if format == TRUE then return true end
  if format == FALSE then return false end
  reader:set(buf, length)
  return reader:decode()
end

local function get(alias, ns, key)
  if busy then return twin.get(alias, ns, key) end
  local now = api.now(context)
  busy = true
  local status = api.get(alias.pointer, now, ns, #ns, key, #key, buf, CAP, item, nil)
  local format, value = item.format, nil
  local large = status == HIT and item.length > CAP
  if status == HIT and not large then value = read(format, item.length) end
  busy = false
  if large then return twin.get(alias, ns, key) end
  if status == HIT then return format, value end
  return nil, status
end

local function set_number(alias, ns, key, value, format, ttl_ms)
  if busy then return twin.set(alias, ns, key, value, format, ttl_ms) end
  local now = api.now(context)
  busy = true
  local bytes
  if format == INTEGER then
    scratch_integer[0] = value
    bytes = scratch_integer
  else
    scratch_number[0] = value
    bytes = scratch_number
  end
  local status = api.set(alias.pointer, now, ns, #ns, key, #key, bytes, 8, format, ttl_ms, nil)
  busy = false
  return status
end

local function set(alias, ns, key, value, format, ttl_ms)
  if format == INTEGER or format == NUMBER then
    return set_number(alias, ns, key, value, format, ttl_ms)
  end
  local bytes, length = nil, 0
  if format ~= TRUE and format ~= FALSE then bytes, length = value, #value end
  return api.set(alias.pointer, api.now(context), ns, #ns, key, #key, bytes, length, format,
    ttl_ms, nil)
end

local function remove(alias, ns, key)
  return api.remove(alias.pointer, api.now(context), ns, #ns, key, #key, nil)
end

-- A light userdata does not compile, a cdata pointer does.
local function open(alias)
  alias.pointer = ffi.cast("void *", alias.view)
end

return { open = open, get = get, set = set, remove = remove }
