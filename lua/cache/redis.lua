-- The Redis backend as a driver: the functions of cache/memory.lua on the
-- runtime's one connection. Every call waits for the server's answer, but for
-- those with wait = false, and gives nil, err when there is none.
--
-- Loads in flight are this process's own affair: their leases lie in a memory
-- view of all aliases here, which holds no values. What changes a key here also
-- removes it there, so that a load that is under way is not stored.
local backend = require "moonstash.backend"
local binary = require "moonstash.binary"
local core = require "moonstash.task"
local errors = require "moonstash.error"
local host = require "moonstash.host"
local redis = require "moonstash.redis"
local classes = require "cache.classes"
local memory = require "cache.memory"
local native = require "cache.native"
local raise = require "cache.raise"
local serializer = require "cache.serializer"

local hot = memory.hot
local NATIVE = serializer.native
local TABLE, RESULTS = backend.TABLE, backend.RESULTS
local TEXT, INTEGER, VALUE_MAX = redis.TEXT, redis.INTEGER, redis.VALUE_MAX
local RAW = binary.RAW
local WAIT_OK, WAIT_TIMEOUT = 0, 1
local CHUNK_KEYS, CHUNK_BYTES = 1000, 4 * 2 ^ 20 -- of a bulk call's one write
local error, type, min, huge, ipairs, unpack, tostring = error, type, math.min, math.huge, ipairs,
  unpack, tostring

local driver = {}

-- Calls go to alias.redis, which stays when the alias leaves Redis in the middle
-- of one: what is left of it gets the code "closed".

-- ---- outcomes ----------------------------------------------------------------

local CODES = {
  [redis.ECONNECTION] = "connection",
  [redis.ESERVER] = "server",
  [redis.EOVERLOADED] = "overloaded",
  [redis.ECLOSED] = "closed",
  [redis.EUNSUPPORTED] = "unsupported",
  [backend.ETYPE] = "type",
  [backend.ETOOLARGE] = "too_large",
}

local TOO_LARGE = "value limit: the value is too large, the most is 8 MiB"

local function failure(status, message, what)
  local code = CODES[status]
  local counting = status == backend.ETYPE and what == "increment"
  if message == "" and status == redis.ECLOSED then message = "Redis: the connection was closed" end
  if not code or counting or not message or message == "" then
    return memory.status_error(status, what)
  end
  return errors.new(code, what .. ": " .. message)
end

local function timed_out(timeout, what)
  return errors.new("timeout", ("%s: no answer from Redis within %g s"):format(what, timeout))
end

-- What a call of moonstash.redis gave: status and what follows, or nil, err.
local function outcome(what, timeout, state, status, a, b, c)
  if state == WAIT_OK then
    if status >= 0 then return status, a, b, c end
    return nil, failure(status, a, what)
  end
  if state == WAIT_TIMEOUT then return nil, timed_out(timeout, what) end
  error(status, 0) -- the task is to end
end

-- The yes or no of a call, as a boolean.
local function yes_or_no(status, err)
  if status == nil then return nil, err end
  return status > 0
end

-- Seconds to wait; 0 = for ever, -1 = not at all.
local function timeout_of(alias, opts)
  if opts == nil then return alias.timeout end
  if opts.wait == false then return -1 end
  return opts.timeout or alias.timeout
end

-- ---- values --------------------------------------------------------------------

function driver.encode(ser, value, what)
  if ser ~= NATIVE then return serializer.to_text(ser, value, what), TEXT end
  local kind = type(value)
  if kind == "string" then return value, RAW end
  if kind == "number" and native.is_integer(value) then return value, INTEGER end
  native.check(value, what)
  return binary.encode(value, classes.by_mt), binary.VALUE
end

function driver.encode_results(_, n, ...)
  local results = native.check_results(n, ...)
  return binary.encode(results, classes.by_mt), binary.RESULTS
end

local function decode_error(what, message)
  return errors.new("decode", ("%s: the value cannot be decoded: %s"):format(what, message))
end

-- What the server holds, as a Lua value that serializer.read takes: a table of
-- the native format is still encoded. nil, err when it cannot be read.
local function decode(reader, format, value, what)
  if reader ~= NATIVE then return serializer.from_text(reader, value, what) end
  if format ~= TABLE and format ~= RESULTS then return value end
  local decoded, message = binary.decode(value, classes.by_name)
  if decoded == nil then return nil, decode_error(what, message) end
  if format == RESULTS and (type(decoded) ~= "table" or type(decoded.n) ~= "number") then
    return nil, decode_error(what, "not the results of a function")
  end
  return decoded
end

function driver.get(alias, ns, key, opts, reader, what)
  local timeout = timeout_of(alias, opts)
  local status, format, value =
    outcome(what, timeout, redis.get(alias.redis, ns, key, timeout, reader == NATIVE))
  if status == nil then return nil, format, false end
  if status == 0 then return nil, nil, false end
  if format == nil then return nil, decode_error(what, value), false end
  local err
  value, err = decode(reader, format, value, what)
  if format == RESULTS and value then value = value[1] end
  return value, err, err == nil and value ~= nil
end

--- A value for a wrapper: format, value as wrap.read takes them; or nil.
function driver.find(alias, ns, key, ser, what)
  local timeout = alias.timeout
  local status, format, value =
    outcome(what, timeout, redis.get(alias.redis, ns, key, timeout, ser == NATIVE))
  if status ~= redis.HIT or format == nil then return nil end
  value = decode(ser, format, value, what)
  if value == nil then return nil end
  return format == RESULTS and RESULTS or backend.BYTES, value
end

-- ---- one key ---------------------------------------------------------------------

local function poison(alias, ns, key)
  hot.remove(alias, ns, key)
end

function driver.set(alias, ns, key, opts, bytes, kind, ttl, what)
  local timeout = timeout_of(alias, opts)
  poison(alias, ns, key)
  local status, err =
    outcome(what, timeout, redis.set(alias.redis, ns, key, timeout, bytes, kind, ttl, false))
  if status == nil then return nil, err end
  return true
end

--- Stores what a load has made, without waiting for the answer and without
--- ending that load.
function driver.store(alias, ns, key, bytes, kind, ttl)
  local state, status = redis.set(alias.redis, ns, key, -1, bytes, kind, ttl, false)
  return state == WAIT_OK and status == 1
end

function driver.add(alias, ns, key, opts, bytes, kind, ttl, what)
  local timeout = timeout_of(alias, opts)
  poison(alias, ns, key)
  return yes_or_no(outcome(what, timeout,
    redis.set(alias.redis, ns, key, timeout, bytes, kind, ttl, true)))
end

function driver.remove(alias, ns, key, opts, what)
  local timeout = timeout_of(alias, opts)
  poison(alias, ns, key)
  local status, err = outcome(what, timeout, redis.remove(alias.redis, ns, key, timeout))
  return status, status == nil and err or nil
end

function driver.exists(alias, ns, key, opts)
  local timeout = timeout_of(alias, opts)
  return yes_or_no(outcome("exists", timeout, redis.exists(alias.redis, ns, key, timeout)))
end

function driver.increment(alias, ns, key, opts, delta, ttl)
  local timeout = timeout_of(alias, opts)
  poison(alias, ns, key)
  local status, sum =
    outcome("increment", timeout, redis.increment(alias.redis, ns, key, timeout, delta, ttl))
  if status == nil then return nil, sum end
  return sum
end

function driver.expire(alias, ns, key, opts, ttl)
  local timeout = timeout_of(alias, opts)
  return yes_or_no(outcome("expire", timeout, redis.expire(alias.redis, ns, key, timeout, ttl)))
end

function driver.touch(alias, ns, key, opts, ttl)
  local timeout = timeout_of(alias, opts)
  return yes_or_no(outcome("touch", timeout, redis.touch(alias.redis, ns, key, timeout, ttl)))
end

function driver.info(alias, ns, key, opts, what)
  local timeout = timeout_of(alias, opts)
  local status, left, size, age =
    outcome(what, timeout, redis.info(alias.redis, ns, key, timeout))
  if status == nil then return nil, left end
  if status == 0 then return nil end
  return { age = age and age / 1000, ttl = left and left / 1000 or huge, size = size,
    tier = "redis", format = alias.serializer.name }
end

-- ---- many keys ---------------------------------------------------------------------

-- The error of a bulk call, with its keys; the first one's words count.
local function add_keys(err, first, keys, from, to)
  first = first or err
  first.keys = first.keys or {}
  for i = from, to do first.keys[#first.keys + 1] = keys[i] end
  return first
end

-- Will the next chunk fare as this one did?
local function is_hopeless(err)
  return err.code == "timeout" or err.code == "connection" or err.code == "closed"
    or err.code == "unsupported"
end

local function slice(list, from, to)
  if from == 1 and to == #list then return list end
  return { unpack(list, from, to) }
end

-- What is left of a timeout for each step of a call in several: a function that
-- gives seconds, nil when there are none.
local function budget(timeout)
  if timeout <= 0 then return function() return timeout end end
  local limit = core.now() + timeout
  return function()
    local left = limit - core.now()
    return left > 0 and left or nil
  end
end

-- Visits the list in pieces of at most CHUNK_KEYS; visit(from, to, timeout) gives an
-- error or nil. What is left after a hopeless one is not tried.
local function in_chunks(keys, timeout, what, visit)
  local first
  local time_left = budget(timeout)
  for from = 1, #keys, CHUNK_KEYS do
    local to, left = min(from + CHUNK_KEYS - 1, #keys), time_left()
    local err = left and visit(from, to, left) or not left and timed_out(timeout, what)
    if err then
      local hopeless = is_hopeless(err)
      first = add_keys(err, first, keys, from, hopeless and #keys or to)
      if hopeless then break end
    end
  end
  return first
end

-- Asks for the values of keys. has[key]: there is one, values[key] (of several
-- results the first, which may be nil); then the error about those that failed.
local function ask_many(alias, ns, keys, opts, reader)
  local has, values, err = {}, {}, nil
  local timeout, what = timeout_of(alias, opts), "multi_get"
  local bad = {}
  local lost = in_chunks(keys, timeout, what, function(from, to, left)
    local part = slice(keys, from, to)
    local status, formats, found, messages = outcome(what, timeout,
      redis.get_many(alias.redis, ns, part, left, reader == NATIVE))
    if status == nil then return formats end
    for i, key in ipairs(part) do
      local value
      err = messages[i]
      if formats[i] then value, err = decode(reader, formats[i], found[i], what) end
      if err then bad[#bad + 1] = key end
      if formats[i] == RESULTS and value then
        has[key], values[key] = true, value[1]
      elseif value ~= nil then
        has[key], values[key] = true, value
      end
    end
  end)
  if bad[1] then
    lost = add_keys(errors.new("decode", "multi_get: some values cannot be decoded"), lost, bad, 1,
      #bad)
  end
  return has, values, lost
end

function driver.get_many(alias, ns, keys, opts, reader)
  local _, found, err = ask_many(alias, ns, keys, opts, reader)
  if err then return found, err end
  return found
end

--- Values for a wrapper, of those that are there: has[key], values[key].
function driver.find_many(alias, ns, keys, ser)
  return ask_many(alias, ns, keys, nil, ser)
end

-- How many values from here on are one write's worth.
local function last_of_chunk(values, from)
  local bytes, to = 0, from
  for i = from, min(from + CHUNK_KEYS - 1, #values) do
    local value = values[i]
    bytes = bytes + (type(value) == "string" and #value or 0)
    if i > from and bytes > CHUNK_BYTES then break end
    to = i
  end
  return to
end

-- The values that are not too large to be sent, and an error about the others.
local function fitting(keys, values, kinds)
  local fit, err = { keys = {}, values = {}, kinds = {} }, nil
  for i, key in ipairs(keys) do
    if type(values[i]) == "string" and #values[i] > VALUE_MAX then
      err = add_keys(failure(backend.ETOOLARGE, TOO_LARGE, "multi_set"), err, keys, i, i)
    else
      local n = #fit.keys + 1
      fit.keys[n], fit.values[n], fit.kinds[n] = key, values[i], kinds[i]
    end
  end
  return fit, err
end

function driver.set_many(alias, ns, keys, opts, values, kinds, ttl)
  local fit, first = fitting(keys, values, kinds)
  local timeout = timeout_of(alias, opts)
  local from, time_left = 1, budget(timeout)
  for _, key in ipairs(keys) do poison(alias, ns, key) end
  while from <= #fit.keys do
    local to, left = last_of_chunk(fit.values, from), time_left()
    local state, status, message, statuses = WAIT_TIMEOUT, nil, nil, nil
    if left then
      state, status, message, statuses = redis.set_many(alias.redis, ns, slice(fit.keys, from, to),
        left, slice(fit.values, from, to), slice(fit.kinds, from, to), ttl)
    end
    local done, err = outcome("multi_set", timeout, state, status, message)
    if done == nil and statuses then
      for i, each in ipairs(statuses) do
        if each < 0 then first = add_keys(err, first, fit.keys, from + i - 1, from + i - 1) end
      end
    elseif done == nil then
      first = add_keys(err, first, fit.keys, from, is_hopeless(err) and #fit.keys or to)
    end
    if done == nil and is_hopeless(err) then break end
    from = to + 1
  end
  if first then return nil, first end
  return true
end

function driver.remove_many(alias, ns, keys, opts)
  local count, timeout = 0, timeout_of(alias, opts)
  for _, key in ipairs(keys) do poison(alias, ns, key) end
  local err = in_chunks(keys, timeout, "multi_delete", function(from, to, left)
    local status, err = outcome("multi_delete", timeout,
      redis.remove_many(alias.redis, ns, slice(keys, from, to), left))
    if status == nil then return err end
    count = count + (timeout < 0 and to - from + 1 or status)
  end)
  if err then return count, err end
  return count
end

-- ---- all keys ------------------------------------------------------------------------

local warned = false

-- A root object's clear takes everything in the database, also what others keep
-- there.
local function warn_of_flush()
  if warned then return end
  warned = true
  host.log(1, "Redis: clear of a cache without a namespace is FLUSHDB: it removes every key of the "
    .. "database")
end

-- Step by step, and each is waited for, also with wait = false; the timeout is
-- that of a step, unless the call has one.
local function clear_prefix(alias, prefix, opts)
  local cursor, generation = "0", alias.generation
  local own = opts and opts.timeout
  local timeout = own or alias.timeout
  local time_left = budget(own or 0)
  repeat
    local left = own and time_left() or not own and timeout
    if not left then return nil, timed_out(timeout, "clear") end
    local status, next_cursor =
      outcome("clear", timeout, redis.clear(alias.redis, prefix, cursor, left))
    if status == nil then return nil, next_cursor end
    if alias.generation ~= generation then -- the cursor is another server's, perhaps
      return nil, errors.new("closed", "clear: the cache was configured anew meanwhile")
    end
    cursor = next_cursor
  until status > 0
  return true
end

function driver.clear(alias, prefix, opts)
  backend.clear(alias.view, prefix) -- the loads in flight
  if prefix ~= "" then return clear_prefix(alias, prefix, opts) end
  warn_of_flush()
  local timeout = timeout_of(alias, opts)
  local status, err = outcome("clear", timeout, redis.clear(alias.redis, "", "0", timeout))
  if status == nil then return nil, err end
  return true
end

-- ---- any command -------------------------------------------------------------------------

local function argument(value, i)
  local kind = type(value)
  if kind == "string" then return value end
  if kind == "number" then return native.is_integer(value) and ("%d"):format(value)
    or ("%.17g"):format(value) end
  raise("raw: argument %d must be a string or a number, not %s", i, kind)
end

function driver.raw(alias, command, ...)
  local arguments, timeout = { command }, alias.timeout
  for i = 1, select("#", ...) do arguments[i + 1] = argument((select(i, ...)), i) end
  if not redis.may_share(arguments) then
    return nil, errors.new("unsupported", ("raw: %s would block or change the connection that all "
      .. "share: not in this version"):format(command:upper()))
  end
  local status, ok, reply =
    outcome("raw", timeout, redis.raw(alias.redis, arguments, nil, timeout))
  if status == nil then return nil, ok end
  if ok then return reply end
  local code = reply:find "^WRONGTYPE" and "type" or "server"
  return nil, errors.new(code, "raw: " .. tostring(reply))
end

function driver.stats(alias)
  return redis.stats(alias.redis)
end

return driver
