local binary = require "moonstash.binary"
local codec = require "moonstash.codec"
local array_mt = codec.array_mt

local function hex(bytes)
  return (bytes:gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

describe("binary.encode", function()
  it("is compact", function()
    assert.equal("05", hex(binary.encode(5)))
    assert.equal("c8ff", hex(binary.encode(-1)))
    assert.equal("c98000", hex(binary.encode(128)))
    assert.equal("82c3a9", hex(binary.encode "é"))
    assert.equal("a3010203", hex(binary.encode { 1, 2, 3 }))
    assert.equal("b18161c0", hex(binary.encode { a = codec.null }))
    assert.equal("a0", hex(binary.encode(setmetatable({}, array_mt))))
  end)

  it("names the path to what it cannot hold", function()
    for message, value in pairs {
      ["value.a[2] is a function"] = { a = { 1, print } },
      ["value.x is a table with a metatable"] = { x = setmetatable({}, {}) },
    } do
      local ok, err = pcall(binary.encode, value)
      assert.is_false(ok)
      assert.equal(message .. ", which native cannot hold", err)
    end
  end)
end)

describe("classes in binary", function()
  local point = { __index = {} }
  local by_mt, by_name = { [point] = "Point" }, { Point = point }
  local value = { at = setmetatable({ x = 1, y = 2 }, point), list = setmetatable({ 1, 2 }, point) }

  it("come back by name", function()
    local result = binary.decode(binary.encode(value, by_mt), by_name)
    assert.same(value, result)
    assert.equal(point, getmetatable(result.at))
    assert.equal(point, getmetatable(result.list))
    assert.is_nil(getmetatable(result))
    local empty = binary.decode(binary.encode(setmetatable({}, point), by_mt), by_name)
    assert.equal(point, getmetatable(empty))
  end)

  it("that are not registered raise when written", function()
    local ok, err = pcall(binary.encode, value, {})
    assert.is_false(ok)
    assert.matches("^value%.%a+ is a table with a metatable that is no registered class", err)
  end)

  it("that are not registered are an error when read", function()
    local bytes = binary.encode(value, by_mt)
    local result, err = binary.decode(bytes, {})
    assert.is_nil(result)
    assert.matches("a class that is not registered", err)
    assert.is_nil(binary.decode(bytes))
  end)

  it("need a name of 1 to 255 bytes and a table", function()
    assert.has_error(function() binary.encode(value, { [point] = "" }) end)
    assert.has_error(function() binary.encode(value, { [point] = ("a"):rep(256) }) end)
    assert.is_nil(binary.decode("\205\5Point\1", by_name))
    assert.is_nil(binary.decode("\205\5Point", by_name))
    assert.is_nil(binary.decode("\205\5Point\205\5Point\176", by_name))
    assert.is_nil(binary.decode("\205\0\176", { [""] = point }))
  end)
end)

describe("binary.decode", function()
  it("keeps the mark of arrays", function()
    local marked = setmetatable({ 1, setmetatable({}, array_mt) }, array_mt)
    local result = binary.decode(binary.encode(marked))
    assert.same(marked, result)
    assert.equal(array_mt, getmetatable(result))
    assert.equal(array_mt, getmetatable(result[2]))
    assert.is_nil(getmetatable(binary.decode(binary.encode { 1 })))
  end)

  it("keeps int64 and uint64 apart", function()
    assert.equal("9007199254740993LL", tostring(binary.decode(binary.encode(9007199254740993LL))))
    assert.equal("9007199254740993ULL", tostring(binary.decode(binary.encode(9007199254740993ULL))))
    assert.equal(5, binary.decode(binary.encode(5ULL)))
  end)

  it("refuses what it did not write, with a reason and a place", function()
    for bytes, reason in pairs {
      [""] = "truncated at byte 0", ["\195"] = "truncated", ["\130a"] = "truncated",
      ["\207"] = "an unknown tag", ["\255"] = "an unknown tag", ["\1\1"] = "bytes after the value",
      ["\162\1"] = "a count beyond", ["\198\255\255\255\255"] = "a count beyond",
      ["\177\192\1"] = "a key that is no", ["\177\195\0\0\0\0\0\0\248\127\1"] = "a key that is NaN",
    } do
      local value, err = binary.decode(bytes)
      assert.is_nil(value)
      assert.matches(reason, err)
    end
  end)
end)

describe("the envelope", function()
  local KEY = "ns:key"

  it("takes 25 bytes beside a raw string, 8 more per stamp", function()
    assert.equal(25 + 5, #binary.seal(binary.RAW, "bytes", KEY))
    assert.equal(25 + 5 + 16, #binary.seal(binary.RAW, "bytes", KEY, { fresh = 1, error = 2 }))
  end)

  it("gives back type, bytes and stamps", function()
    local stamps = { fresh = 1700000000000, stale = 1700000000001, error = 1700000000002 }
    assert.same({ binary.RESULTS, "abc", 1700000000000, 1700000000001, 1700000000002 },
      { binary.open(binary.seal(binary.RESULTS, "abc", KEY, stamps), KEY) })
    local sealed = binary.seal(binary.RAW, "", KEY, { stale = 5 })
    local kind, bytes, fresh, stale, err = binary.open(sealed, KEY)
    assert.equal(binary.RAW, kind)
    assert.equal("", bytes)
    assert.is_nil(fresh)
    assert.equal(5, stale)
    assert.is_nil(err)
  end)

  it("does not open for another key", function()
    local kind, code, message = binary.open(binary.seal(binary.RAW, "abc", KEY), "ns:kez")
    assert.is_nil(kind)
    assert.equal("decode", code)
    assert.equal("the value of another key", message)
  end)

  it("notices every changed, missing or added byte", function()
    local sealed = binary.seal(binary.VALUE, "\163\1\2\3", KEY, { fresh = 77 })
    for i = 1, #sealed do
      for delta = 1, 255 do
        local byte = (sealed:byte(i) + delta) % 256
        local changed = sealed:sub(1, i - 1) .. string.char(byte) .. sealed:sub(i + 1)
        local kind, code = binary.open(changed, KEY)
        assert.is_nil(kind)
        assert.equal("decode", code)
      end
      assert.is_nil((binary.open(sealed:sub(1, i - 1), KEY)))
      assert.is_nil((binary.open(sealed:sub(i + 1), KEY)))
    end
    assert.is_nil((binary.open(sealed .. "\0", KEY)))
  end)

  it("refuses stamps that are no times, and types that it does not know", function()
    assert.has_error(function() binary.seal(binary.RAW, "", KEY, { fresh = -1 }) end,
      "stamps: fresh must be milliseconds since 1970")
    assert.has_error(function() binary.seal(binary.RAW, "", KEY, { stale = "1" }) end)
    assert.has_error(function() binary.seal(binary.RAW, "", KEY, { error = 0 / 0 }) end)
    assert.has_error(function() binary.seal(9, "", KEY) end)
  end)
end)

describe("binary.pack and unpack", function()
  local KEY = "k"

  it("write an integer as plain decimal text, so that the server can count", function()
    for number, text in pairs {
      [0] = "0", [7] = "7", [-7] = "-7", [2 ^ 53] = "9007199254740992",
      [-2 ^ 53] = "-9007199254740992",
    } do
      assert.equal(text, binary.pack(number, KEY))
      assert.equal(number, (binary.unpack(text, KEY)))
    end
  end)

  it("put an integer with stamps, -0 and other numbers into the envelope", function()
    for _, number in ipairs { -0.0, 1.5, 2 ^ 53 + 2, 1 / 0 } do
      assert.equal(25 + 9, #binary.pack(number, KEY))
      assert.equal(number, (binary.unpack(binary.pack(number, KEY), KEY)))
    end
    local value, kind, fresh = binary.unpack(binary.pack(7, KEY, nil, { fresh = 9 }), KEY)
    assert.same({ 7, binary.VALUE, 9 }, { value, kind, fresh })
  end)

  it("bring any value back", function()
    local values = { "", "text", "7", false, true, { 1, { a = "b" } }, 9007199254740993LL }
    for _, value in ipairs(values) do
      local bytes = binary.pack(value, KEY)
      assert.same(value, (binary.unpack(bytes, KEY)))
    end
    assert.equal(codec.null, (binary.unpack(binary.pack(codec.null, KEY), KEY)))
    local class = {}
    local packed = binary.pack(setmetatable({}, class), KEY, { [class] = "C" })
    assert.equal(class, getmetatable(binary.unpack(packed, KEY, { C = class })))
    assert.same({ nil, "decode" }, { unpack({ binary.unpack(packed, KEY) }, 1, 2) })
  end)

  it("do not take foreign bytes for a value", function()
    for _, bytes in ipairs { "", "text", "-", "-0", "007", "+7", " 7", "7 ", "1.0",
      "9007199254740993", "-9007199254740993", "99999999999999999", "12345678901234567890123", "{}",
      "\193M", "\193M\1" } do
      local value, code, message = binary.unpack(bytes, KEY)
      assert.is_nil(value)
      assert.equal("decode", code)
      assert.equal("string", type(message))
    end
  end)

  it("say what is wrong inside a sound envelope", function()
    assert.same({ nil, "decode", "a count beyond the bytes that are there at byte 5" },
      { binary.unpack(binary.seal(binary.VALUE, "\198\255\255\255\255", KEY), KEY) })
  end)
end)
