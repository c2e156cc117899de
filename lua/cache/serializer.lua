-- Serializers by name: how a value becomes bytes with a format tag, and back.
-- In memory the tag says how bytes are to be read, so what one alias wrote
-- under one serializer reads right under any other.
--
--   encode(value, what) -> value or bytes for the backend, format; raises
--   decode              -> turns what the backend gave into this serializer's
--                          kind of value; nil when there is nothing to do
local backend = require "moonstash.backend"
local json = require "moonstash.json"
local msgpack = require "moonstash.msgpack"
local native = require "cache.native"
local errors = require "moonstash.error"
local raise = require "cache.raise"

local BYTES, INTEGER = backend.BYTES, backend.INTEGER
local JSON, MSGPACK, CUSTOM = backend.JSON, backend.MSGPACK, backend.CUSTOM
local REFERENCE, RESULTS = backend.REFERENCE, backend.RESULTS
local type, tostring, tonumber, error, pcall, pairs, getmetatable, newproxy =
  type, tostring, tonumber, error, pcall, pairs, getmetatable, newproxy

local serializer = {}

-- ---- none: the value itself, by reference ------------------------------------

-- The store holds a number, this the value. Numbers whose entries have gone
-- come back through backend.dead, and are asked for before each new value and
-- in each cycle of the collector: it is only for the collector that it matters.
-- No other state has these numbers: what it has stored is not found here.
local values = {} -- number in the store -> value
local last, limit = 0, 0
local watching = false

local function forget_dead()
  local number = backend.dead()
  while number do
    values[number] = nil
    number = backend.dead()
  end
end

local function watch_collector()
  local sentinel = newproxy(true)
  getmetatable(sentinel).__gc = function()
    forget_dead()
    watch_collector()
  end
end

local function encode_reference(value)
  forget_dead()
  if not watching then
    watching = true
    backend.watch_references()
    watch_collector()
  end
  if last == limit then last, limit = backend.numbers() end
  last = last + 1
  values[last] = value
  return last, REFERENCE
end

--- Lets go what encode has made but the backend did not take.
function serializer.forget(format, value)
  if format == REFERENCE then values[value] = nil end
end

-- ---- the others -----------------------------------------------------------------

-- An integer is stored as one, so that increment works on it as it would on
-- the decimal text that these formats write.
local function encoder(encode, format, integers)
  return function(value, what)
    if integers and type(value) == "number" and native.is_integer(value) then
      return value, INTEGER
    end
    local ok, bytes = pcall(encode, value)
    if not ok then raise("%s: %s", what, tostring(bytes)) end
    return bytes, format
  end
end

local function as_counter(text)
  if not text:find "^%-?[1-9]%d*$" and text ~= "0" then return nil end
  local n = tonumber(text)
  return native.is_integer(n) and ("%d"):format(n) == text and n or nil
end

local function to_string(value, what)
  local kind = type(value)
  if kind ~= "string" and kind ~= "number" and kind ~= "boolean" then
    raise("%s: the string serializer takes strings, numbers and booleans, not a %s", what, kind)
  end
  return kind == "number" and ("%.17g"):format(value) or tostring(value)
end

local function encode_string(value, what)
  local text = to_string(value, what)
  local n = as_counter(text)
  if n then return n, INTEGER end
  return text, BYTES
end

local function decode_string(value)
  if type(value) == "number" then return ("%.17g"):format(value) end
  return type(value) == "boolean" and tostring(value) or value
end

local by_name = {
  native = { name = "native", encode = native.encode },
  json = { name = "json", encode = encoder(json.encode, JSON, true),
    writes = { [INTEGER] = true }, dump = json.encode, load = json.decode },
  msgpack = { name = "msgpack", encode = encoder(msgpack.encode, MSGPACK, false),
    dump = msgpack.encode, load = msgpack.decode },
  string = { name = "string", encode = encode_string, decode = decode_string,
    writes = { [INTEGER] = true, [BYTES] = true } },
  none = { name = "none", encode = encode_reference },
}

serializer.native, serializer.none = by_name.native, by_name.none

--- Why it is refused on a server.
serializer.none_is_here = "the serializer 'none' keeps values in this process, not in Redis"

local function custom(spec, what)
  for name, fn in pairs(spec) do
    if (name ~= "dumps" and name ~= "loads") or type(fn) ~= "function" then
      raise("%s: a serializer is {dumps = function, loads = function}", what)
    end
  end
  if not spec.dumps or not spec.loads then
    raise("%s: a serializer is {dumps = function, loads = function}", what)
  end
  return serializer.custom(spec.dumps, spec.loads)
end

--- A serializer of the user's own functions; either may be nil.
function serializer.custom(dumps, loads)
  return {
    name = "custom",
    loads = loads,
    encode = dumps and function(value, what)
      local bytes = dumps(value)
      if type(bytes) ~= "string" then
        raise("%s: dumps must return a string, not %s", what, type(bytes))
      end
      return bytes, CUSTOM
    end,
  }
end

--- The serializer of that name or description; raises when there is none.
function serializer.find(spec, what)
  if type(spec) == "table" then return custom(spec, what) end
  local found = by_name[spec]
  if not found then
    raise("%s: serializer must be native, json, msgpack, string, none or {dumps, loads}, not %s",
      what, type(spec) == "string" and ("'%s'"):format(spec) or tostring(spec))
  end
  return found
end

local function decode_error(what, message)
  return nil, errors.new("decode", ("%s: the value cannot be decoded: %s"):format(what, message))
end

local function decode_custom(self, value, what)
  local loads = self.loads
  if not loads then return decode_error(what, "it was written by dumps of another serializer") end
  local ok, result = pcall(loads, value)
  if ok then return result end
  if errors.is(result, "cancelled") then error(result, 0) end
  return decode_error(what, tostring(result))
end

--- What the backend gave, as a value; nil, err when it cannot be read.
function serializer.decode(self, format, value, what)
  if format == RESULTS then value = value[1] end
  if format <= RESULTS then
    if self.decode and value ~= nil then return self.decode(value) end
    return value
  end
  if format == REFERENCE then return values[value] end
  if format == CUSTOM then return decode_custom(self, value, what) end
  local result, message
  if format == JSON then
    result, message = json.decode(value)
  else
    result, message = msgpack.decode(value)
  end
  if result == nil then return decode_error(what, message) end
  return result
end

-- ---- for a server: bytes as the format says, and nothing around them -----------

--- The bytes of a value; raises what the serializer cannot write. Not for
--- native, whose bytes carry an envelope.
function serializer.to_text(self, value, what)
  if self.name == "string" then return to_string(value, what) end
  if self.name == "custom" then return (self.encode(value, what)) end
  if not self.dump then
    raise("%s: %s", what, serializer.none_is_here)
  end
  local ok, bytes = pcall(self.dump, value)
  if not ok then raise("%s: %s", what, tostring(bytes)) end
  return bytes
end

--- The value of such bytes; nil, err when they cannot be read.
function serializer.from_text(self, bytes, what)
  if self.name == "string" then return bytes end
  if self.name == "custom" then return decode_custom(self, bytes, what) end
  if not self.load then return decode_error(what, "the serializer 'none' reads no bytes") end
  local result, message = self.load(bytes)
  if result == nil then return decode_error(what, message) end
  return result
end

local format_names = {
  [BYTES] = "native", [INTEGER] = "native", [backend.NUMBER] = "native", [backend.TRUE] = "native",
  [backend.FALSE] = "native", [backend.TABLE] = "native", [RESULTS] = "native", [JSON] = "json",
  [MSGPACK] = "msgpack", [CUSTOM] = "custom", [REFERENCE] = "none",
}

--- The name of a format, for info; of one that several write, what an alias with
--- this serializer calls it.
function serializer.format_name(self, format)
  if self.writes and self.writes[format] then return self.name end
  return format_names[format]
end

return serializer
