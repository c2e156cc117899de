-- The native serializer, for values in memory: what pickle is to Python.
-- Scalars are stored as they are behind a format tag, everything else as
-- LuaJIT string.buffer bytes (our own bytes, never fed from outside the
-- process). What comes out is always a copy.
local backend = require "moonstash.backend"
local buffer = require "string.buffer"
local classes = require "cache.classes"
local raise = require "cache.raise"

local BYTES, INTEGER, NUMBER = backend.BYTES, backend.INTEGER, backend.NUMBER
local FALSE, TRUE, TABLE = backend.FALSE, backend.TRUE, backend.TABLE
local MAX_INTEGER = 2 ^ 53
local MAX_DEPTH = 32
local null = backend.null

local type, pairs, getmetatable, tostring = type, pairs, getmetatable, tostring
local plain_encode = buffer.encode
local is_int64, known_class = classes.is_int64, classes.known

local native = {}

--- The path to a part, for messages: value.a.b[3].
function native.path_of(path, key)
  if type(key) == "string" and key:find "^[%a_][%w_]*$" then return path .. "." .. key end
  return ("%s[%s]"):format(path, type(key) == "string" and ("%q"):format(key) or tostring(key))
end
local path_of = native.path_of

local storable = { boolean = true, number = true, string = true }

local function is_scalar(value, kind)
  return storable[kind] or value == null or kind == "cdata" and is_int64(value)
end

-- Walks a table before it is encoded: string.buffer would say only that
-- something is wrong, not where.
local function check_table(value, path, depth, above, what)
  if above[value] then raise("%s: %s is a cycle, which cannot be cached", what, path) end
  if depth > MAX_DEPTH then
    raise("%s: %s is nested deeper than %d tables", what, path, MAX_DEPTH)
  end
  local mt = getmetatable(value)
  if mt ~= nil then
    if not known_class(mt) then
      raise("%s: %s has a metatable, which cannot be cached (see cache.register_class)", what, path)
    end
    above.has_class = true
  end
  above[value] = true
  for key, part in pairs(value) do
    if not storable[type(key)] then
      raise("%s: %s has a key that is a %s, which cannot be cached", what, path, type(key))
    end
    local kind = type(part)
    if kind == "table" then
      check_table(part, path_of(path, key), depth + 1, above, what)
    elseif not storable[kind] and not is_scalar(part, kind) then
      raise("%s: %s is a %s, which cannot be cached", what, path_of(path, key), kind)
    end
  end
  above[value] = nil
end

--- Is it an integer that a counter may hold: |n| <= 2^53, not -0?
function native.is_integer(value)
  return value % 1 == 0 and value <= MAX_INTEGER and value >= -MAX_INTEGER
    and (value ~= 0 or 1 / value > 0)
end
local is_integer = native.is_integer

-- A fresh buffer each time: a finalizer that runs meanwhile may encode, too.
local function encode(value, has_class)
  if not has_class then return plain_encode(value) end
  return buffer.new(classes.buffer_options):encode(value):get()
end

--- Reads what string.buffer wrote.
function native.decode_bytes(bytes)
  return buffer.new(classes.buffer_options):set(bytes):decode()
end

--- Encodes a value: what to store, and its format. Raises for what cannot be
--- cached, naming the path to it; `what` begins the message.
function native.encode(value, what)
  local kind = type(value)
  if kind == "string" then return value, BYTES end
  if kind == "number" then return value, is_integer(value) and INTEGER or NUMBER end
  if kind == "boolean" then return value, value and TRUE or FALSE end
  if kind == "table" then
    local above = {}
    check_table(value, "value", 1, above, what)
    return encode(value, above.has_class), TABLE
  end
  if is_scalar(value, kind) then return encode(value), TABLE end
  raise("%s: value is a %s, which cannot be cached", what, kind)
end

--- Raises unless the value can be cached, naming the path to what cannot.
function native.check(value, what)
  local kind = type(value)
  if kind == "table" then
    check_table(value, "value", 1, {}, what)
  elseif not storable[kind] and not is_scalar(value, kind) then
    raise("%s: value is a %s, which cannot be cached", what, kind)
  end
end

--- All n results of a function in one table, nils too; raises what cannot be
--- cached. Then: is there an object of a class among them?
function native.check_results(n, ...)
  local results, above = { ... }, {}
  check_table(results, "results", 0, above, "cached")
  results.n = n
  return results, above.has_class
end

--- Encodes them.
function native.encode_results(n, ...)
  return encode(native.check_results(n, ...)), backend.RESULTS
end

return native
