local codec = require "moonstash.codec"
local values = require "spec.support.values"
local process = require "spec.support.process"

local json = require "moonstash.json"
local msgpack = require "moonstash.msgpack"
local binary = require "moonstash.binary"

local ROUNDS = 5000
local PYTHON = "/usr/bin/python3" -- Debian's, which sees Debian's modules

local function check(original, back, err)
  assert.is_nil(err)
  local difference = values.difference(original, back)
  assert(difference == nil, difference)
end

describe("random values come back the same through", function()
  for name, case in pairs {
    json = { json, { text = true, no_marks = true } },
    msgpack = { msgpack, { any_key = true, no_marks = true } },
    binary = { binary, { any_key = true } },
  } do
    it(name, function()
      math.randomseed(20240607)
      for _ = 1, ROUNDS do
        local value = values.random(case[2])
        check(value, case[1].decode(case[1].encode(value)))
      end
    end)
  end

  it("binary's envelope", function()
    math.randomseed(20240608)
    for i = 1, ROUNDS do
      local value = values.random { any_key = true }
      check(value, (binary.unpack(binary.pack(value, "k" .. i, nil, { fresh = i }), "k" .. i)))
      check(value, (binary.unpack(binary.pack(value, "k" .. i), "k" .. i)))
    end
  end)
end)

describe("numbers", function()
  it("come back through JSON bit by bit", function()
    math.randomseed(20240609)
    for _ = 1, 50000 do
      local value = values.random({ no_int64 = true }, 0)
      if type(value) == "number" then check(value, json.decode(json.encode(value))) end
    end
  end)

  it("have no more digits in JSON than needed", function()
    math.randomseed(20240610)
    for _ = 1, 5000 do
      local number = math.random() * 10 ^ math.random(-20, 20)
      local text = json.encode(number)
      local digits = text:gsub("e.*", ""):gsub("%.0$", ""):gsub("%D", "")
      local count = #digits:gsub("^0+", ""):gsub("0+$", "")
      assert.equal(number, tonumber(text))
      for n = 1, count - 1 do
        assert.are_not.equal(number, tonumber(("%." .. n .. "g"):format(number)))
      end
    end
  end)
end)

-- ---- Python ---------------------------------------------------------------------

-- Reads frames (a line with the length, then the bytes), gives back each as
-- Python understands and writes it. Types are what Python has to see.
local SCRIPT = [[
import sys, json
form = sys.argv[1]
if form == "msgpack": import msgpack
def reject(name): raise ValueError(name)
def exchange(data, i):
    if form == "json":
        value = json.loads(data.decode("utf-8"), parse_constant=reject)
        return json.dumps(value, allow_nan=False, ensure_ascii=i % 2 == 0).encode("utf-8")
    value = msgpack.unpackb(data, raw=False, strict_map_key=False)
    return msgpack.packb(value, use_bin_type=True)
i = 0
while True:
    line = sys.stdin.buffer.readline()
    if not line: break
    answer = exchange(sys.stdin.buffer.read(int(line)), i)
    sys.stdout.buffer.write(b"%d\n" % len(answer) + answer)
    i += 1
]]

local function skip_without_python(module)
  local found = process.has(PYTHON)
    and process.run({ program = PYTHON, "-c", "import " .. module }).code == 0
  if found then return end
  assert(not process.required "python", "python3 or its module " .. module .. " is missing")
  pending(("%s with the module %s is not installed"):format(PYTHON, module))
end

local function through_python(form, encoded)
  local frames = {}
  for i, bytes in ipairs(encoded) do frames[i] = #bytes .. "\n" .. bytes end
  local result = process.run { program = PYTHON, "-c", SCRIPT, form, timeout = 50,
    input = table.concat(frames) }
  assert.equal("", result.err)
  local answers, at = {}, 1
  while at <= #result.out do
    local line = result.out:match("^%d+\n", at)
    answers[#answers + 1] = result.out:sub(at + #line, at + #line + tonumber(line) - 1)
    at = at + #line + tonumber(line)
  end
  return answers
end

local function exchange(module, form, options)
  math.randomseed(20240611)
  local originals, encoded = {}, {}
  for i = 1, 1000 do
    originals[i] = values.random(options)
    encoded[i] = module.encode(originals[i])
  end
  local answers = through_python(form, encoded)
  assert.equal(#encoded, #answers)
  for i, answer in ipairs(answers) do check(originals[i], module.decode(answer)) end
end

-- What Python makes of Lua's bytes and the other way round, as Python's repr.
local TYPES = [[
import sys, json
if sys.argv[1] == "msgpack": import msgpack
def load(data):
    if sys.argv[1] == "json": return json.loads(data)
    return msgpack.unpackb(data, raw=False, strict_map_key=False)
for line in sys.stdin: print(repr(load(bytes.fromhex(line.strip()))))
]]

local function reprs(form, list)
  local lines = {}
  for i, bytes in ipairs(list) do
    lines[i] = bytes:gsub(".", function(c) return ("%02x"):format(c:byte()) end)
  end
  local result = process.run { program = PYTHON, "-c", TYPES, form,
    input = table.concat(lines, "\n") .. "\n" }
  assert.equal("", result.err)
  return result.out
end

describe("Python's json", function()
  it("reads what we write, and we read what it writes", function()
    skip_without_python "json"
    exchange(json, "json", { text = true, no_marks = true })
  end)

  it("sees the types we mean", function()
    skip_without_python "json"
    assert.equal("[1, -0.0, 1.152921504606847e+18, 18446744073709551615, 0.1, None, True, [], {}, "
      .. "'é\\x00']\n",
      reprs("json", { json.encode { 1, -0.0, 2 ^ 60, 18446744073709551615ULL, 0.1, codec.null,
        true,
        setmetatable({}, codec.array_mt), {}, "é\0" } }))
  end)
end)

describe("Python's msgpack", function()
  it("reads what we write, and we read what it writes", function()
    skip_without_python "msgpack"
    -- To Python, True is 1.
    exchange(msgpack, "msgpack", { any_key = "no booleans", no_marks = true })
  end)

  it("sees the types we mean", function()
    skip_without_python "msgpack"
    assert.equal("[1, -0.0, 1.152921504606847e+18, 18446744073709551615, 0.1, None, True, [], {}, "
      .. "'é', b'\\xff', {1.5: 1}]\n",
      reprs("msgpack", { msgpack.encode { 1, -0.0, 2 ^ 60, 18446744073709551615ULL, 0.1, codec.null,
        true,
        setmetatable({}, codec.array_mt), {}, "é", "\255", { [1.5] = 1 } } }))
  end)
end)
