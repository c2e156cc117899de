-- Bytes that nobody should have written: no decoder raises, hangs, or takes
-- more than 128 times the memory of its input.
local bit = require "bit"
local ffi = require "ffi"
local codec = require "moonstash.codec"
local values = require "spec.support.values"

local json = require "moonstash.json"
local msgpack = require "moonstash.msgpack"
local binary = require "moonstash.binary"

local PER_BYTE, FIXED = 128, 16384
local KEY = "k"
local class = {}

local function array(t) return setmetatable(t, codec.array_mt) end

local sample = {
  id = 1, name = "é\1\"\\", tags = { 1, -2, 300, -70000, 2 ^ 40 }, on = true, off = false,
  none = codec.null, rate = 0.1, zero = -0.0, big = 9007199254740993LL,
  most = 18446744073709551615ULL, empty = {}, list = array {},
  text = ("x"):rep(40), deep = { { { { "end" } } } },
}

local function unpack_value(bytes)
  local value, _, message = binary.unpack(bytes, KEY, { C = class })
  if value == nil then return nil, message end
  return value
end

local decoders = {
  json = { decode = json.decode, sample = json.encode(sample) },
  msgpack = { decode = msgpack.decode, sample = msgpack.encode(sample) },
  binary = {
    decode = function(bytes) return binary.decode(bytes, { C = class }) end,
    sample = binary.encode({ sample, setmetatable({ 1 }, class), array { 1 } }, { [class] = "C" }),
  },
  envelope = { decode = unpack_value, sample = binary.pack(sample, KEY, nil, { fresh = 5 }) },
}

local function answers(decode, bytes)
  local value, message = decode(bytes)
  if value == nil then assert(type(message) == "string" and message ~= "", "no message") end
  return value
end

for name, it_has in pairs(decoders) do
  local decode, bytes = it_has.decode, it_has.sample

  describe("the decoder of " .. name, function()
    it("refuses a value that is cut off anywhere", function()
      assert.is_table(answers(decode, bytes))
      for i = 0, #bytes - 1 do assert.is_nil(answers(decode, bytes:sub(1, i))) end
    end)

    it("survives the change of any one byte", function()
      for i = 1, #bytes do
        local before, after = bytes:sub(1, i - 1), bytes:sub(i + 1)
        for byte = 0, 255 do answers(decode, before .. string.char(byte) .. after) end
      end
    end)

    it("survives the loss or doubling of any bytes", function()
      for i = 1, #bytes do
        for length = 1, 9 do
          answers(decode, bytes:sub(1, i - 1) .. bytes:sub(i + length))
          answers(decode, bytes:sub(1, i + length) .. bytes:sub(i))
        end
      end
    end)

    it("survives random bytes", function()
      math.randomseed(20240612)
      local buffer = ffi.new "uint8_t[64]"
      local text = '{}[]":,0123456789.eE-+truefalsn\\u \n'
      for i = 1, 100000 do
        local length = math.random(0, 64)
        for at = 0, length - 1 do
          buffer[at] = i % 2 == 0 and name == "json" and text:byte(math.random(#text))
            or math.random(0, 255)
        end
        answers(decode, ffi.string(buffer, length))
      end
    end)
  end)
end

-- ---- memory -----------------------------------------------------------------------

local function u32(n, big_endian)
  local bytes = string.char(n % 256, bit.rshift(n, 8) % 256, bit.rshift(n, 16) % 256,
    bit.rshift(n, 24))
  return big_endian and bytes:reverse() or bytes
end

local N = 20000

-- Nested counts that each promise all that is left.
local function greedy(tag, big_endian, rest)
  local parts = {}
  for i = 1, 31 do parts[i] = tag .. u32(N - 5 * i, big_endian) end
  return table.concat(parts) .. rest:rep(N - 5 * 31)
end

local inputs = {
  msgpack = {
    ["empty arrays"] = "\221" .. u32(N, true) .. ("\144"):rep(N),
    ["empty maps"] = "\221" .. u32(N, true) .. ("\128"):rep(N),
    ["arrays in arrays"] = "\221" .. u32(N / 32, true) .. (("\145"):rep(30) .. "\144"):rep(N / 32),
    ["maps in maps"] = "\221" .. u32(N / 32, true) .. (("\129\1"):rep(30) .. "\128"):rep(N / 32),
    ["a map of small keys"] = "\223" .. u32(N, true) .. ("\1\128"):rep(N),
    ["strings"] = "\221" .. u32(N, true) .. ("\161a"):rep(N),
    ["64-bit integers"] = "\221" .. u32(N, true) .. ("\207\255\255\255\255\255\255\255\255"):rep(N),
    ["counts of arrays"] = greedy("\221", true, "\1"),
    ["counts of maps"] = greedy("\223", true, "\1"),
    ["a huge array"] = "\221\255\255\255\255",
    ["a huge map"] = "\223\255\255\255\255",
    ["a huge string"] = "\219\255\255\255\255a",
    ["a nesting bomb"] = ("\145"):rep(N),
  },
  binary = {
    ["empty arrays"] = "\198" .. u32(N) .. ("\160"):rep(N),
    ["empty maps"] = "\198" .. u32(N) .. ("\176"):rep(N),
    ["arrays in arrays"] = "\198" .. u32(N / 32) .. (("\161"):rep(30) .. "\160"):rep(N / 32),
    ["maps in maps"] = "\198" .. u32(N / 32) .. (("\177\1"):rep(30) .. "\176"):rep(N / 32),
    ["a map of small keys"] = "\199" .. u32(N) .. ("\1\176"):rep(N),
    ["64-bit integers"] = "\198" .. u32(N) .. ("\204\255\255\255\255\255\255\255\255"):rep(N),
    ["counts of arrays"] = greedy("\198", false, "\1"),
    ["counts of maps"] = greedy("\199", false, "\1"),
    ["counts of marked arrays"] = greedy("\206", false, "\1"),
    ["a huge array"] = "\198\255\255\255\255",
    ["a huge map"] = "\199\255\255\255\255",
    ["a huge string"] = "\197\255\255\255\255a",
    ["a nesting bomb"] = ("\161"):rep(N),
    ["classes"] = "\198" .. u32(N) .. ("\205\1C\176"):rep(N),
  },
  json = {
    ["empty arrays"] = "[" .. ("[],"):rep(N) .. "0]",
    ["empty objects"] = "[" .. ("{},"):rep(N) .. "0]",
    ["arrays in arrays"] = "[" .. (("["):rep(31) .. ("]"):rep(31) .. ","):rep(N / 62) .. "0]",
    ["doubles"] = "[" .. ("-0,"):rep(N) .. "0]",
    ["integers"] = "[" .. ("128,"):rep(N) .. "0]",
    ["escapes"] = '"' .. ("\\n"):rep(N) .. '"',
    ["a string without an end"] = '"' .. ("\\n"):rep(N),
    ["escapes before a string without an end"] = '["' .. ("\\n"):rep(N) .. '","' .. ("a"):rep(N),
    ["many members"] = "{" .. ('"":{},'):rep(N) .. '"":0}',
    ["digits"] = ("1"):rep(N),
    ["more digits"] = "0." .. ("1"):rep(N),
    ["letters"] = ("t"):rep(N),
    ["a nesting bomb"] = ("["):rep(N),
    ["a bomb of objects"] = ('{"":'):rep(N),
    ["blanks"] = (" "):rep(N),
  },
}

describe("memory stays in bounds for", function()
  for name, list in pairs(inputs) do
    for what, bytes in pairs(list) do
      it(("%s in %s"):format(what, name), function()
        local used = values.allocated(decoders[name].decode, bytes)
        local bound = PER_BYTE * #bytes + FIXED
        assert(used <= bound, ("%d bytes for %d"):format(used, #bytes))
      end)
    end
  end
end)

-- ---- time -------------------------------------------------------------------------

-- Numbers whose hashes (LuaJIT's hashrot on x86) all end in 17 zero bits.
local function colliding(count)
  local keys, exponent = {}, 0x43300000
  local number = ffi.new "union { double number; int32_t half[2]; }"
  while #keys < count do
    local high = bit.lshift(exponent, 1)
    local a = bit.rol(high, 14)
    local b = bit.rol(a, 5)
    for low = 0, 2 ^ 19 - 1 do
      local mixed = bit.bxor(b, low)
      if #keys < count and bit.band(bit.rshift(mixed, 13), 15) == bit.band(low, 15) then
        local whole = bit.bor(low, bit.lshift(bit.band(mixed, 0x1fff), 19))
        number.half[0] = bit.bxor(bit.tobit(whole + a), high)
        number.half[1] = exponent
        keys[#keys + 1] = number.number
      end
    end
    exponent = exponent + 1
  end
  return keys
end

local function map_of(keys)
  local parts = {}
  for i, key in ipairs(keys) do parts[i] = msgpack.encode(key) .. "\1" end
  return "\223" .. u32(#keys, true) .. table.concat(parts)
end

local function seconds(fn, ...)
  local started = os.clock() -- processor time: this machine may be busy
  fn(...)
  return os.clock() - started
end

describe("time stays in bounds", function()
  it("for a map of numbers that all fall into one chain", function()
    local bytes = map_of(colliding(2 ^ 16)) -- a plain table takes 3 s
    local value, message
    local took = seconds(function() value, message = msgpack.decode(bytes) end)
    assert(took < 1.5, took)
    if value == nil then assert.matches("a map whose keys collide", message) end
  end)

  it("without refusing large maps of usual numbers", function()
    local keys = {}
    for i = 1, 100000 do keys[i] = i * 1.37 + 2 ^ 40 end
    local value, message = msgpack.decode(map_of(keys))
    assert.is_nil(message)
    assert.equal(1, value[keys[77]])
  end)

  it("for a megabyte of anything", function()
    for name, byte in pairs { msgpack = "\1", binary = "\1", json = "[" } do
      assert(seconds(decoders[name].decode, byte:rep(2 ^ 20)) < 1)
    end
    assert(seconds(json.decode, '"' .. ("\\u00e9"):rep(2 ^ 18) .. '"') < 1)
    assert(seconds(json.decode, "[" .. ("[],"):rep(2 ^ 18) .. "0]") < 1)
  end)
end)
