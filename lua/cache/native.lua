-- The native serializer, for values in memory: what pickle is to Python.
-- Scalars are stored as they are behind a format tag, tables as LuaJIT
-- string.buffer bytes (our own bytes, never fed from outside the process).
-- What comes out is always a copy.
local backend = require "moonstash.backend"
local buffer = require "string.buffer"
local raise = require "cache.raise"

local BYTES, INTEGER, NUMBER = backend.BYTES, backend.INTEGER, backend.NUMBER
local FALSE, TRUE, TABLE = backend.FALSE, backend.TRUE, backend.TABLE
local MAX_INTEGER = 2 ^ 53
local MAX_DEPTH = 32

local type, pairs, getmetatable, tostring = type, pairs, getmetatable, tostring
local encode = buffer.encode

local native = {}

local function path_of(path, key)
  if type(key) == "string" and key:find "^[%a_][%w_]*$" then return path .. "." .. key end
  return ("%s[%s]"):format(path, type(key) == "string" and ("%q"):format(key) or tostring(key))
end

local storable = { boolean = true, number = true, string = true }

-- Walks a table before it is encoded: string.buffer would say only that
-- something is wrong, not where.
local function check_table(value, path, depth, above, what)
  if above[value] then raise("%s: %s is a cycle, which cannot be cached", what, path) end
  if depth > MAX_DEPTH then
    raise("%s: %s is nested deeper than %d tables", what, path, MAX_DEPTH)
  end
  if getmetatable(value) ~= nil then
    raise("%s: %s has a metatable, which cannot be cached", what, path)
  end
  above[value] = true
  for key, part in pairs(value) do
    if not storable[type(key)] then
      raise("%s: %s has a key that is a %s, which cannot be cached", what, path, type(key))
    end
    local kind = type(part)
    if kind == "table" then
      check_table(part, path_of(path, key), depth + 1, above, what)
    elseif not storable[kind] then
      raise("%s: %s is a %s, which cannot be cached", what, path_of(path, key), kind)
    end
  end
  above[value] = nil
end

local function integer_format(value)
  if value % 1 == 0 and value <= MAX_INTEGER and value >= -MAX_INTEGER
    and (value ~= 0 or 1 / value > 0) then
    return INTEGER
  end
  return NUMBER
end

--- Encodes a value: what to store, and its format. Raises for what cannot be
--- cached, naming the path to it; `what` begins the message.
function native.encode(value, what)
  local kind = type(value)
  if kind == "string" then return value, BYTES end
  if kind == "number" then return value, integer_format(value) end
  if kind == "boolean" then return value, value and TRUE or FALSE end
  if kind == "table" then
    check_table(value, "value", 1, {}, what)
    return encode(value), TABLE
  end
  raise("%s: value is a %s, which cannot be cached", what, kind)
end

--- Encodes all n results of a function, nils too.
function native.encode_results(n, ...)
  local results = { ... }
  check_table(results, "results", 0, {}, "cached")
  results.n = n
  return encode(results), backend.RESULTS
end

return native
