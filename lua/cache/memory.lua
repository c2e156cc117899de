-- The memory backend as a driver: what aliases that live in memory do. Redis
-- has the same functions in cache/redis.lua.
--
--   encode(ser, value, what)       -> bytes, format for set and add; raises
--   encode_results(ser, n, ...)    the same for all results of a function
--   get(alias, ns, key, opts, reader, what)           -> value, err, hit
--   find(alias, ns, key, ser, what) -> format, value as serializer.read takes it
--   set(alias, ns, key, opts, bytes, format, ttl_ms, what)  -> true
--   add(... the same)              -> true, false
--   remove(alias, ns, key, opts, what)   -> how many
--   exists expire touch            -> boolean
--   increment(alias, ns, key, opts, delta, ttl_ms)    -> the sum
--   info(alias, ns, key, opts)     -> a table without format; nil
--   get_many(alias, ns, keys, opts, reader)  -> found, err
--   set_many(alias, ns, keys, opts, values, formats, ttl_ms) -> true
--   remove_many(alias, ns, keys, opts)       -> count, err
--   clear(alias, prefix, opts)     -> true
--   raw(alias, command, ...)       -> the reply
--   stats(alias)                   -> a table
--
-- Each gives nil, err (get: nil, err, false) when it fails.
local backend = require "moonstash.backend"
local errors = require "moonstash.error"
local host = require "moonstash.host"
local native = require "cache.native"
local serializer = require "cache.serializer"

local decode, forget = serializer.decode, serializer.forget
local TABLE, RESULTS, REFERENCE = backend.TABLE, backend.RESULTS, backend.REFERENCE
local decode_bytes, huge, setmetatable = native.decode_bytes, math.huge, setmetatable

-- The hot calls: by FFI where they compile.
local use_ffi = not host.no_ffi and jit.status() and pcall(require, "ffi")
local hot = require(use_ffi and "cache.memory_ffi" or "cache.memory_c")

local READ = hot.READ

local memory = { hot = hot }

-- memory.index(alias, ns) is alias.lua's: the index of near copies of a prefix.

local STATUS = {
  [backend.ETOOLARGE] = { "too_large", "the key and value are too large for this cache" },
  [backend.ECLOSED] = { "closed", "the store is that of the process this one was forked from" },
  [backend.ENOMEM] = { "no_memory", "out of memory" },
  [backend.ETYPE] = { "type", "the value is not an integer" },
  [backend.ERANGE] = { "range", "the sum is beyond 2^53" },
}

--- A status below 0 as an error object.
function memory.status_error(status, what)
  local known = STATUS[status]
  if known then return errors.new(known[1], what .. ": " .. known[2]) end
  return errors.new("server", ("%s: the backend failed with status %d"):format(what, status))
end
local status_error = memory.status_error

function memory.encode(ser, value, what)
  return ser.encode(value, what)
end

--- Several results by reference (serializer none).
memory.packed_mt = {}

function memory.encode_results(ser, n, ...)
  if ser == serializer.none then
    return ser.encode(setmetatable({ n = n, ... }, memory.packed_mt), "cached")
  end
  return native.encode_results(n, ...)
end

function memory.get(alias, ns, key, _, reader, what)
  local format, value
  if reader == alias.serializer then
    format, value = memory.get_near(memory.index(alias, ns), alias, key, key, what)
  else
    format, value = hot.get(alias, ns, key)
  end
  if format == nil then return nil, nil, false end
  local err
  value, err = decode(reader, format, value, what)
  return value, err, err == nil and value ~= nil
end

--- The format and value of a key by way of an index of near copies, where it
--- has that name.
function memory.get_near(index, alias, key, name, what)
  local format, value = hot.find(index, name)
  if format ~= nil then
    if format < 0 then return nil end
    return format < READ and format or format - READ, value
  end
  return hot.fetch(index, alias, index.ns, key, name, what)
end

function memory.find(alias, ns, key)
  return hot.get(alias, ns, key)
end

local function is_special(opts)
  return opts and (opts.pin or opts.weight)
end

local function set(alias, ns, key, opts, bytes, format, ttl)
  if not is_special(opts) then return hot.set(alias, ns, key, bytes, format, ttl) end
  return backend.set_with(alias.view, ns, key, bytes, format, ttl, opts.pin, opts.weight or 0)
end

local function set_error(status, what, opts)
  if status ~= backend.ETOOLARGE or not is_special(opts) then return status_error(status, what) end
  return errors.new("too_large", what .. ": the value is too large for this cache with its weight, "
    .. "or for the half of it that may be pinned")
end

function memory.set(alias, ns, key, opts, bytes, format, ttl, what)
  local status = set(alias, ns, key, opts, bytes, format, ttl)
  if status == 1 then return true end
  forget(format, bytes)
  return nil, set_error(status, what, opts)
end

function memory.add(alias, ns, key, _, bytes, format, ttl, what)
  local status = backend.add(alias.view, ns, key, bytes, format, ttl)
  if status ~= 1 then forget(format, bytes) end
  if status >= 0 then return status == 1 end
  return nil, status_error(status, what)
end

-- A count, or nil, err.
local function counted(status, what)
  if status >= 0 then return status end
  return nil, status_error(status, what)
end

function memory.remove(alias, ns, key, _, what)
  return counted(hot.remove(alias, ns, key), what)
end

function memory.exists(alias, ns, key)
  return backend.exists(alias.view, ns, key)
end

function memory.increment(alias, ns, key, _, delta, ttl)
  local status, sum = backend.increment(alias.view, ns, key, delta, ttl)
  if status < 0 then return nil, status_error(status, "increment") end
  return sum
end

function memory.expire(alias, ns, key, _, ttl)
  return backend.expire(alias.view, ns, key, ttl)
end

function memory.touch(alias, ns, key, _, ttl)
  return backend.touch(alias.view, ns, key, ttl)
end

function memory.info(alias, ns, key)
  local age, left, size, format = backend.info(alias.view, ns, key)
  if not age then return nil end
  return { age = age / 1000, ttl = left and left / 1000 or huge, size = size, tier = "memory",
    format = serializer.format_name(alias.serializer, format) }
end

function memory.get_many(alias, ns, keys, _, reader)
  local found, bad = {}, nil
  local formats, values = backend.get_many(alias.view, ns, keys)
  if not formats then return found, status_error(values, "multi_get") end
  for i = 1, #keys do
    local format, value = formats[i], values[i]
    if format == TABLE or format == RESULTS then value = decode_bytes(value) end
    local err
    if format then value, err = decode(reader, format, value, "multi_get") end
    if err then
      bad = bad or {}
      bad[#bad + 1] = keys[i]
    end
    found[keys[i]] = value
  end
  if not bad then return found end
  local err = errors.new("decode", "multi_get: some values cannot be decoded")
  err.keys = bad
  return found, err
end

-- Stores one by one: which of the keys cannot be stored, and why the first.
local function failing(alias, ns, keys, opts, values, formats, ttl)
  local bad, first
  for i = 1, #keys do
    local status = set(alias, ns, keys[i], opts, values[i], formats[i], ttl)
    if status ~= 1 then
      forget(formats[i], values[i])
      bad = bad or {}
      bad[#bad + 1], first = keys[i], first or status
    end
  end
  return bad, first
end

function memory.set_many(alias, ns, keys, opts, values, formats, ttl)
  if formats[1] ~= REFERENCE -- which must not be stored twice
    and not is_special(opts)
    and backend.set_many(alias.view, ns, keys, values, formats, ttl) == 1 then
    return true
  end
  local bad, status = failing(alias, ns, keys, opts, values, formats, ttl)
  if not bad then return true end
  local err = set_error(status, "multi_set", opts)
  err.keys = bad
  return nil, err
end

function memory.remove_many(alias, ns, keys)
  return counted(backend.remove_many(alias.view, ns, keys), "multi_delete")
end

function memory.clear(alias, prefix)
  backend.clear(alias.view, prefix)
  return true
end

function memory.raw()
  return nil, errors.new("unsupported", "raw: the memory backend has no commands")
end

function memory.stats(alias)
  local stats = backend.stats(alias.view)
  local entries, bytes, hits, misses = hot.near_stats(alias.near)
  stats.hits, stats.misses = stats.hits + hits, stats.misses + misses
  stats.near_entries, stats.near_bytes, stats.near_hits = entries, bytes, hits
  return stats
end

return memory
