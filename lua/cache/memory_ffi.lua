-- The memory backend for Lua by FFI calls, which compile: the hot path. The
-- declarations mirror runtime/backend.h and struct api of
-- runtime/bind/cache.c. The interface is that of memory_c.lua.
--
-- A call takes item, buf and reader; busy says that they are taken. A finalizer
-- may call the cache meanwhile (the collector runs where Lua allocates, and
-- when a trace is left): that call finds busy set and puts a fresh set in
-- their place; the one below has its own in locals and ends with them. So busy
-- is about the present set only, and whoever ends may clear it: no call waits
-- in the middle, and what a finalizer calls ends before what it interrupted.
-- A finalizer's error ends the interrupted call, too, and leaves busy set: the
-- next call loses nothing but the time to make a set. Values that are larger
-- than buf are read by the C twin.
local backend = require "moonstash.backend"
local buffer = require "string.buffer"
local ffi = require "ffi"
local classes = require "cache.classes"
local twin = require "cache.memory_c"

ffi.cdef [[
typedef struct {
  uint32_t length, length_high; /* one size_t in C; no value is above 2 GiB */
  uint64_t version, expires_ms, created_ms, token;
  void *owner;
  uint32_t format, pad;
} moonstash_item;
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
} moonstash_api;
]]
assert(ffi.sizeof "moonstash_item" == backend.ITEM_SIZE and ffi.abi "le" and ffi.abi "64bit")

local BYTES, INTEGER, NUMBER = backend.BYTES, backend.INTEGER, backend.NUMBER
local FALSE, TRUE = backend.FALSE, backend.TRUE
local TABLE, RESULTS, REFERENCE = backend.TABLE, backend.RESULTS, backend.REFERENCE
local HIT = 1
local CAP = ffi.sizeof "moonstash_buffer"

local api = ffi.cast("moonstash_api *", backend.api)
local context = api.context
local new_item, new_buffer = ffi.typeof "moonstash_item", ffi.typeof "moonstash_buffer"
local item, buf, reader = new_item(), new_buffer(), buffer.new(classes.buffer_options)
local busy = false
local ffi_string, tonumber = ffi.string, tonumber

-- The present set is taken: by a call that a finalizer has interrupted to get
-- here, or by one that has ended with an error.
local function renew()
  local fresh_item, fresh_buf = new_item(), new_buffer()
  local fresh_reader = buffer.new(classes.buffer_options)
  item, buf, reader, busy = fresh_item, fresh_buf, fresh_reader, false
end

-- The value that a call has left in its buffer.
local function read(own_buf, own_reader, format, length)
  if format == BYTES then return ffi_string(own_buf, length) end
  if format == INTEGER then return tonumber(own_buf.integer) end
  if format == NUMBER or format == REFERENCE then return own_buf.number end
  if format == TRUE then return true end
  if format == FALSE then return false end
  if format ~= TABLE and format ~= RESULTS then return ffi_string(own_buf, length) end
  own_reader:set(own_buf, length)
  return own_reader:decode()
end

local function get(alias, ns, key)
  local now = api.now(context)
  if busy then renew() end
  local own, own_buf, own_reader = item, buf, reader
  busy = true
  local status = api.get(alias.pointer, now, ns, #ns, key, #key, own_buf, CAP, own, nil)
  local format, value = own.format, nil
  local large = status == HIT and own.length > CAP
  if status == HIT and not large then value = read(own_buf, own_reader, format, own.length) end
  busy = false
  if large then return twin.get(alias, ns, key) end
  if status == HIT then return format, value end
  return nil, status
end

local function get_near(alias, ns, key, near)
  local now = api.now(context)
  if busy then renew() end
  local own, own_buf, own_reader = item, buf, reader
  busy = true
  local status = api.get(alias.pointer, now, ns, #ns, key, #key, own_buf, CAP, own, nil)
  local format, version, value, found = own.format, tonumber(own.version), nil, false
  local large = status == HIT and own.length > CAP
  if status == HIT and not large then
    local joined = ns == "" and key or ns .. key
    found = near.versions[joined] == version
    if found then
      value = near.values[joined]
    else
      value = read(own_buf, own_reader, format, own.length)
    end
  end
  busy = false
  if large then return twin.get_near(alias, ns, key, near) end
  if found then return nil, value, true end
  if status == HIT then return format, value, version end
  return nil, status
end

local function set_number(alias, ns, key, value, format, ttl_ms)
  local now = api.now(context)
  if busy then renew() end
  local own_buf = buf
  busy = true
  if format == INTEGER then own_buf.integer = value else own_buf.number = value end
  local status = api.set(alias.pointer, now, ns, #ns, key, #key, own_buf, 8, format, ttl_ms, nil)
  busy = false
  return status
end

local function set(alias, ns, key, value, format, ttl_ms)
  if format == INTEGER or format == NUMBER or format == REFERENCE then
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

-- A registered class: tables of it are read with its metatable from now on.
table.insert(classes.followers, function(options) reader = buffer.new(options) end)

return { open = open, get = get, get_near = get_near, set = set, remove = remove }
