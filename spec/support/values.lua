-- Random values of the cache's value model, and what it means that two are
-- the same.
local bit = require "bit"
local ffi = require "ffi"
local codec = require "moonstash.codec"

local values = {}

local bits = ffi.new "union { double number; uint64_t whole; int64_t negative; uint32_t half[2]; }"

local function random_bits()
  bits.half[0], bits.half[1] = math.random(0, 2 ^ 32 - 1), math.random(0, 2 ^ 32 - 1)
  return bits
end

local lengths = { 0, 1, 2, 5, 15, 16, 31, 32, 33, 100, 255, 256, 1500 }

local function random_bytes()
  local parts = {}
  for i = 1, lengths[math.random(#lengths)] do parts[i] = string.char(math.random(0, 255)) end
  return table.concat(parts)
end

local function utf8_char(code)
  local char = string.char
  if code < 0x80 then return char(code) end
  if code < 0x800 then return char(0xc0 + math.floor(code / 64), 0x80 + code % 64) end
  if code < 0x10000 then
    return char(0xe0 + math.floor(code / 4096), 0x80 + math.floor(code / 64) % 64, 0x80 + code % 64)
  end
  return char(0xf0 + math.floor(code / 262144), 0x80 + math.floor(code / 4096) % 64,
    0x80 + math.floor(code / 64) % 64, 0x80 + code % 64)
end

local function random_text()
  local parts = {}
  for i = 1, lengths[math.random(#lengths - 2)] do
    local range = math.random(6)
    local code = range == 1 and math.random(0, 0x10ffff) or range == 2 and math.random(0, 0x7ff)
      or range == 3 and math.random(0, 31) or math.random(32, 126)
    if code >= 0xd800 and code <= 0xdfff then code = 0xfffd end
    parts[i] = utf8_char(code)
  end
  return table.concat(parts)
end

local numbers = {
  function() return math.random(-200, 200) end,
  function() return math.random(-2 ^ 31, 2 ^ 31) end,
  function() return (math.random(2) - 1.5) * 2 * 2 ^ math.random(0, 53) + math.random(-1, 1) end,
  function() return 2 ^ math.random(-1074, 1023) end,
  function() return math.random(-1e6, 1e6) / 10 ^ math.random(1, 8) end,
  function() return -0.0 end,
  function()
    random_bits()
    -- FFI would hand the bits of a NaN on, and LuaJIT takes them for a tag.
    if bit.band(bits.half[1], 0x7ff00000) == 0x7ff00000 then return 0.5 end
    return bits.number
  end,
}

local function random_int64()
  if math.random(4) == 1 then return ffi.cast("int64_t", math.random(-1000, 1000)) end
  if math.random(2) == 1 then return ffi.cast("int64_t", random_bits().negative) end
  return ffi.cast("uint64_t", random_bits().whole)
end

-- options: text (strings are UTF-8), any_key (numbers and booleans are keys
-- too), no_int64, no_marks (arrays with the metatable are empty)
local function random_string(options)
  if options.text or math.random(2) == 1 then return random_text() end
  return random_bytes()
end

local function random_number() return numbers[math.random(#numbers)]() end

local scalars = {
  random_string,
  random_string,
  random_number,
  random_number,
  function() return math.random(2) == 1 end,
  function() return codec.null end,
  function(options) return options.no_int64 and 7 or random_int64() end,
}

local function random_key(options)
  local kind = options.any_key and math.random(6) or 6
  if kind == 1 then return random_number() end
  if kind == 2 then return math.random(1, 9) end
  if kind == 3 and options.any_key ~= "no booleans" then return math.random(2) == 1 end
  return random_string(options)
end

--- A random value of up to `depth` (5) tables within tables.
function values.random(options, depth)
  depth = depth or 5
  local most = depth < 3 and 20 or 5 -- elements: wide ones far down only
  local kind = depth > 0 and math.random(9) or 1
  if kind < 6 then return scalars[math.random(#scalars)](options) end
  local result = {}
  if kind == 6 then
    if math.random(2) == 1 then setmetatable(result, codec.array_mt) end
  elseif kind == 7 then
    for i = 1, math.random(most) do result[i] = values.random(options, depth - 1) end
    if not options.no_marks and math.random(4) == 1 then setmetatable(result, codec.array_mt) end
  else
    for _ = 1, math.random(most) do
      result[random_key(options)] = values.random(options, depth - 1)
    end
  end
  return result
end

local function digits(integer) return (tostring(integer):gsub("U?LL$", "")) end

-- An integer that a number holds exactly is that number.
local function plain(value)
  if type(value) ~= "cdata" then return value end
  local number = tonumber(value)
  if number >= -2 ^ 53 and number <= 2 ^ 53 and #digits(value) <= 17
    and ("%.0f"):format(number) == digits(value) then
    return number
  end
  return value
end

local function same_scalar(a, b)
  if type(a) == "number" and a == b then return a ~= 0 or 1 / a == 1 / b end
  if type(a) == "cdata" then return digits(a) == digits(b) end
  return a == b or (a ~= a and b ~= b)
end

--- Is b what a becomes on its way through a serializer? If not, where.
function values.difference(a, b, path)
  path = path or "value"
  a, b = plain(a), plain(b)
  if type(a) ~= type(b) then return ("%s: %s became %s"):format(path, tostring(a), tostring(b)) end
  if type(a) ~= "table" then
    if same_scalar(a, b) then return nil end
    return ("%s: %s became %s"):format(path, tostring(a), tostring(b))
  end
  if getmetatable(a) ~= getmetatable(b) then return path .. ": another metatable" end
  for key, value in pairs(a) do
    local found = values.difference(value, b[key], ("%s[%s]"):format(path, tostring(key)))
    if found then return found end
  end
  for key in pairs(b) do
    if a[key] == nil then return ("%s[%s] is new"):format(path, tostring(key)) end
  end
end

--- Bytes that fn(...) has allocated, garbage included.
function values.allocated(fn, ...)
  fn(...) -- what is made once is not counted
  collectgarbage()
  collectgarbage "stop"
  local before = collectgarbage "count"
  fn(...)
  local after = collectgarbage "count"
  collectgarbage "restart"
  return (after - before) * 1024
end

return values
