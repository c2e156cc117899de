-- The memory backend for Lua by FFI calls, which compile: the hot path. What is
-- hot is kept near (near.lua); the calls that read fill that. The interface is
-- that of memory_c.lua.
--
-- A call takes item, buf, outcome and reader; busy says that they are taken. A finalizer
-- may call the cache meanwhile (the collector runs where Lua allocates, and
-- when a trace is left): that call finds busy set and puts a fresh set in
-- their place; the one below has its own in locals and ends with them. So busy
-- is about the present set only, and whoever ends may clear it: no call waits
-- in the middle, and what a finalizer calls ends before what it interrupted.
-- A finalizer's error ends the interrupted call, too, and leaves busy set: the
-- next call loses nothing but the time to make a set. Values that are larger
-- than buf are read by the C twin.
local backend = require "moonstash.backend"
local bit = require "bit"
local buffer = require "string.buffer"
local ffi = require "ffi"
local api = require "cache.memory_api"
local classes = require "cache.classes"
local near = require "cache.near"
local serializer = require "cache.serializer"
local twin = require "cache.memory_c"

local BYTES, INTEGER, NUMBER = backend.BYTES, backend.INTEGER, backend.NUMBER
local FALSE, TRUE = backend.FALSE, backend.TRUE
local TABLE, RESULTS, REFERENCE = backend.TABLE, backend.RESULTS, backend.REFERENCE
local HIT = 1
local CAP = ffi.sizeof "moonstash_buffer"

local context = api.context
local new_item, new_buffer = ffi.typeof "moonstash_item", ffi.typeof "moonstash_buffer"
local outcome_type = ffi.typeof "moonstash_outcome"
local seen = ffi.new("int32_t[?]", backend.NEAR_SEEN)

local function new_outcome()
  local fresh = outcome_type()
  fresh.seen = seen
  return fresh
end

local item, buf, reader = new_item(), new_buffer(), buffer.new(classes.buffer_options)
local outcome = new_outcome()
local busy = false
local ffi_string, tonumber, type = ffi.string, tonumber, type
local ENCODED, READ, band = near.ENCODED, near.READ, bit.band
local find_near, note_absent, wanted, keep = near.find, near.note_absent, near.wanted, near.keep

-- The present set is taken: by a call that a finalizer has interrupted to get
-- here, or by one that has ended with an error.
local function renew()
  local fresh_item, fresh_buf, fresh_outcome = new_item(), new_buffer(), new_outcome()
  local fresh_reader = buffer.new(classes.buffer_options)
  item, buf, outcome, reader, busy = fresh_item, fresh_buf, fresh_outcome, fresh_reader, false
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

-- A copy of a table or of results, from its bytes.
local function decode(bytes)
  if busy then renew() end
  local own_reader = reader
  busy = true
  own_reader:set(bytes)
  local value = own_reader:decode()
  busy = false
  return value
end

local function find(index, name)
  local code, value = find_near(index, name)
  if code == nil or code < ENCODED then return code, value end
  if band(code, ENCODED) ~= 0 then return code - ENCODED, decode(value) end
  return code, value
end

-- Of a hit that is to be kept: the value for the caller, and what is kept.
local function read_both(shared, own_buf, own_reader, format, length)
  if shared or format ~= TABLE and format ~= RESULTS then
    local value = read(own_buf, own_reader, format, length)
    return value, value
  end
  local bytes = ffi_string(own_buf, length)
  return read(own_buf, own_reader, format, length), bytes
end

-- What bytes of another serializer decode to, if it is a table that is shared.
-- That may run the user's code, and take long.
local function share(index, name, format, bytes, size, own_outcome, own, what)
  local kept_outcome, kept_item = outcome_type(own_outcome), new_item(own)
  busy = false
  local value = serializer.decode(index.reader, format, bytes, what)
  if type(value) ~= "table" then return format, bytes end
  keep(index, name, TABLE + READ, value, size, kept_outcome, kept_item)
  return TABLE, value
end

-- A hit that lies in the call's set, busy being set.
local function take(index, key, name, what, own, own_buf, own_outcome, own_reader)
  local format, length, shared = own.format, own.length, index.shared
  if not wanted(index, name, own_outcome, shared and format >= TABLE) then
    local value = read(own_buf, own_reader, format, length)
    busy = false
    return format, value
  end
  local value, kept = read_both(shared, own_buf, own_reader, format, length)
  if shared and format > RESULTS and format ~= REFERENCE then
    return share(index, name, format, value, length + #key, own_outcome, own, what)
  end
  local code = index.plain and format <= RESULTS and format or format + READ
  if not shared and (format == TABLE or format == RESULTS) then code = code + ENCODED end
  keep(index, name, code, kept, length + #key, own_outcome, own)
  busy = false
  return format, value
end

-- No number of 64 bits in a local here, and in fill of near.lua: it would be an
-- object that each exit further down has to be able to make, and of those the
-- compiler can take only so much.
local function fetch(index, alias, ns, key, name, what)
  if busy then renew() end
  local own, own_buf, own_outcome, own_reader = item, buf, outcome, reader
  busy = true
  index.own.detours = index.own.detours + 1
  local status = api.get_near(alias.pointer, api.now(context), ns, #ns, key, #key, own_buf, CAP,
    own, own_outcome)
  if status == HIT and own.length <= CAP then
    return take(index, key, name, what, own, own_buf, own_outcome, own_reader)
  end
  if status == 0 then note_absent(index, name, own_outcome) end
  busy = false
  if status == HIT then return twin.get(alias, ns, key) end
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

return { open = open, get = get, set = set, remove = remove, find = find, fetch = fetch,
  ABSENT = near.ABSENT, READ = READ, close = near.close,
  near = near.new, index = near.index, near_stats = near.stats }
