-- The memory backend for Lua by C functions: the twin of memory_ffi.lua, for
-- states with the JIT off or without FFI (a C call is the faster one there).
-- alias is one of cache/alias.lua, with the field view.
--
--   open(alias)                              prepares it for the calls below
--   get(alias, ns, key)                      -> format, value; nil on a miss
--   set(alias, ns, key, value, format, ttl)  -> 1, or a negative status
--   remove(alias, ns, key)                   -> 1, 0
--
-- and by way of near copies (near.lua):
--
--   near(alias, entries, bytes, former)      -> the near tier of an alias
--   near_stats(pool)                         -> entries, bytes, hits, misses
--   index(pool, ns, shared, reader, misses)  -> names of copies in it
--   close(pool)                              ends a pool: its indexes find nothing
--   find(index, name)                        -> code, value: the format, plus READ
--                                               if it is to be decoded; ABSENT:
--                                               there is none; nil: not near
--   fetch(index, alias, ns, key, name, what) -> as get; what it has got may be
--                                               near from now on
--
-- Here nothing is near but the tables that shared ones are decoded to: what
-- tells whether a copy is good costs as much as the value.
local backend = require "moonstash.backend"
local native = require "cache.native"
local serializer = require "cache.serializer"

local TABLE, RESULTS, REFERENCE = backend.TABLE, backend.RESULTS, backend.REFERENCE
local decode_bytes = native.decode_bytes
local get, set, remove = backend.get, backend.set, backend.remove
local type = type

local function near(_, entries)
  return { entries = entries, by_ns = setmetatable({}, { __mode = "v" }) }
end

local function index(pool, ns, shared, reader)
  return { pool = pool, ns = ns, shared = shared, reader = reader, values = {}, versions = {},
    plain = reader == serializer.native, count = 0 }
end

-- Keeps a decoded table; all go when there are too many.
local function keep(own, name, value, version)
  if own.versions[name] == nil then
    if own.count >= own.pool.entries then own.values, own.versions, own.count = {}, {}, 0 end
    own.count = own.count + 1
  end
  own.values[name], own.versions[name] = value, version
end

-- RESULTS are kept as such, which their field n tells.
local function fetch_shared(own, alias, ns, key, name, what)
  local format, value, version = get(alias.view, ns, key)
  if format == nil then return nil, value end
  if own.versions[name] == version then
    local format_kept = format == RESULTS and RESULTS or TABLE
    return format_kept, own.values[name]
  end
  if format == TABLE or format == RESULTS then
    value = decode_bytes(value)
  elseif format > RESULTS and format ~= REFERENCE then
    local decoded = serializer.decode(own.reader, format, value, what)
    if type(decoded) == "table" then format, value = TABLE, decoded end
  end
  if type(value) == "table" and own.pool.entries > 0 then keep(own, name, value, version) end
  return format, value
end

return {
  open = function() end,
  get = function(alias, ns, key)
    local format, value = get(alias.view, ns, key)
    if format == TABLE or format == RESULTS then return format, decode_bytes(value) end
    return format, value
  end,
  set = function(alias, ns, key, value, format, ttl_ms)
    return set(alias.view, ns, key, value, format, ttl_ms)
  end,
  remove = function(alias, ns, key)
    return remove(alias.view, ns, key)
  end,
  near = near,
  near_stats = function() return 0, 0, 0, 0 end,
  index = index,
  close = function() end,
  ABSENT = -1,
  READ = 128,
  find = function() return nil end,
  fetch = function(own, alias, ns, key, name, what)
    if own.shared then return fetch_shared(own, alias, ns, key, name, what) end
    local format, value = get(alias.view, ns, key)
    if format == TABLE or format == RESULTS then return format, decode_bytes(value) end
    return format, value
  end,
}
