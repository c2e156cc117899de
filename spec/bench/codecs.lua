-- The serializers beside LuaJIT's string.buffer, in one run: processor time
-- per encode and decode, the best of some rounds.
--   moonstash spec/bench/codecs.lua
local buffer = require "string.buffer"
local json = require "moonstash.json"
local msgpack = require "moonstash.msgpack"
local binary = require "moonstash.binary"

local N, ROUNDS = 100000, 7
local KEY = "user:12345"

local values = {
  { "a string of 100 bytes", ("x"):rep(100) },
  { "{id=1,name=\"x\",tags={1,2,3}}", { id = 1, name = "x", tags = { 1, 2, 3 } } },
}

local codecs = {
  { "string.buffer", buffer.encode, buffer.decode },
  { "binary", binary.encode, binary.decode },
  { "binary, packed", function(value) return binary.pack(value, KEY) end,
    function(bytes) return binary.unpack(bytes, KEY) end },
  { "msgpack", msgpack.encode, msgpack.decode },
  { "json", json.encode, json.decode },
}

local function measure(fn, argument)
  local best
  for _ = 1, ROUNDS do
    collectgarbage()
    local started = os.clock()
    for _ = 1, N do fn(argument) end
    local ns = (os.clock() - started) / N * 1e9
    best = math.min(best or ns, ns)
  end
  return best
end

for _, value in ipairs(values) do
  print(("%-32s %8s %12s %12s"):format(value[1], "bytes", "encode", "decode"))
  for _, codec in ipairs(codecs) do
    local encoded = codec[2](value[2])
    print(("  %-30s %8d %9.0f ns %9.0f ns"):format(codec[1], #encoded, measure(codec[2], value[2]),
      measure(codec[3], encoded)))
  end
end
