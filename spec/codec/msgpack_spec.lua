local msgpack = require "moonstash.msgpack"
local codec = require "moonstash.codec"
local null, array_mt = codec.null, codec.array_mt

local function hex(bytes)
  return (bytes:gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

local function bytes(text)
  return (text:gsub("%s", ""):gsub("%x%x", function(pair)
    return string.char(tonumber(pair, 16))
  end))
end

describe("msgpack.encode", function()
  it("writes integers in the shortest form", function()
    for number, expected in pairs {
      [0] = "00", [127] = "7f", [128] = "cc80", [255] = "ccff", [256] = "cd0100",
      [65535] = "cdffff", [65536] = "ce00010000", [2 ^ 32 - 1] = "ceffffffff",
      [2 ^ 32] = "cf0000000100000000", [2 ^ 53] = "cf0020000000000000",
      [-1] = "ff", [-32] = "e0", [-33] = "d0df", [-128] = "d080", [-129] = "d1ff7f",
      [-32768] = "d18000", [-32769] = "d2ffff7fff", [-2 ^ 31] = "d280000000",
      [-2 ^ 31 - 1] = "d3ffffffff7fffffff", [-2 ^ 53] = "d3ffe0000000000000",
    } do
      assert.equal(expected, hex(msgpack.encode(number)), tostring(number))
    end
    assert.equal("cfffffffffffffffff", hex(msgpack.encode(18446744073709551615ULL)))
    assert.equal("d38000000000000000", hex(msgpack.encode(-9223372036854775807LL - 1)))
    assert.equal("05", hex(msgpack.encode(5LL)))
  end)

  it("writes other numbers as float64", function()
    assert.equal("cb3ff8000000000000", hex(msgpack.encode(1.5)))
    assert.equal("cb8000000000000000", hex(msgpack.encode(-0.0)))
    assert.equal("cb43b0000000000000", hex(msgpack.encode(2 ^ 60)))
    assert.equal("cb7ff0000000000000", hex(msgpack.encode(1 / 0)))
  end)

  it("writes text as str and other strings as bin", function()
    assert.equal("a2c3a9", hex(msgpack.encode "é"))
    assert.equal("c401ff", hex(msgpack.encode "\255"))
    assert.equal("d920" .. ("61"):rep(32), hex(msgpack.encode(("a"):rep(32))))
    assert.equal("da0100", hex(msgpack.encode(("a"):rep(256)):sub(1, 3)))
    assert.equal("db00010000", hex(msgpack.encode(("a"):rep(65536)):sub(1, 5)))
    assert.equal("c50100", hex(msgpack.encode(("\255"):rep(256)):sub(1, 3)))
  end)

  it("writes null, booleans, arrays and maps", function()
    assert.equal("93c0c2c3", hex(msgpack.encode { null, false, true }))
    assert.equal("80", hex(msgpack.encode {}))
    assert.equal("90", hex(msgpack.encode(setmetatable({}, array_mt))))
    assert.equal("8103a161", hex(msgpack.encode { [3] = "a" }))
    assert.equal("81c301", hex(msgpack.encode { [true] = 1 }))
    assert.equal("81cb3ff800000000000001", hex(msgpack.encode { [1.5] = 1 }))
    local t = {}
    for i = 1, 70000 do t[i] = 0 end
    assert.equal("dd00011170", hex(msgpack.encode(t):sub(1, 5)))
  end)

  it("names the path to what it cannot hold", function()
    for message, value in pairs {
      ["value.a[2] is a function"] = { a = { 1, print } },
      ["value has a key that is a table"] = { [{}] = 1 },
      ["value has a key that is a cdata"] = { [1LL] = 1 },
      ["value.x is a table with a metatable"] = { x = setmetatable({}, {}) },
    } do
      local ok, err = pcall(msgpack.encode, value)
      assert.is_false(ok)
      assert.equal(message .. ", which msgpack cannot hold", err)
    end
  end)
end)

describe("msgpack.decode", function()
  it("reads every form of a value", function()
    for text, expected in pairs {
      ["cc05"] = 5, ["cd0005"] = 5, ["ce00000005"] = 5, ["cf0000000000000005"] = 5,
      ["d0ff"] = -1, ["d1ffff"] = -1, ["d2ffffffff"] = -1, ["d3ffffffffffffffff"] = -1,
      ["ca3fc00000"] = 1.5, ["cb3ff8000000000000"] = 1.5, ["d90161"] = "a", ["da000161"] = "a",
      ["db0000000161"] = "a", ["c40161"] = "a", ["c5000161"] = "a", ["c60000000161"] = "a",
      ["c2"] = false, ["c0"] = null,
    } do
      assert.equal(expected, (msgpack.decode(bytes(text))), text)
    end
    for text, expected in pairs {
      ["9101"] = { 1 }, ["dc000101"] = { 1 }, ["dd0000000101"] = { 1 }, ["810102"] = { 2 },
      ["de00010102"] = { 2 }, ["df000000010102"] = { 2 }, ["82a16101a16102"] = { a = 2 },
    } do
      assert.same(expected, (msgpack.decode(bytes(text))), text)
    end
  end)

  it("gives integers exactly, as numbers where a number can hold them", function()
    assert.equal(2 ^ 53, msgpack.decode(bytes "cf0020000000000000"))
    assert.equal("9007199254740993LL", tostring(msgpack.decode(bytes "cf0020000000000001")))
    assert.equal("18446744073709551615ULL", tostring(msgpack.decode(bytes "cfffffffffffffffff")))
    assert.equal("-9223372036854775808LL", tostring(msgpack.decode(bytes "d38000000000000000")))
  end)

  it("marks an empty array, so that it is written as one again", function()
    assert.equal(array_mt, getmetatable(msgpack.decode "\144"))
    assert.is_nil(getmetatable(msgpack.decode "\128"))
  end)

  it("makes plain NaNs of whatever NaN comes", function()
    for _, text in ipairs { "cbffffffffffffffff", "cbfff9000000000001", "caffffffff",
      "cb7ff0000000000001" } do
      local value = msgpack.decode(bytes(text))
      assert.equal("number", type(value))
      assert.is_true(value ~= value)
    end
  end)

  it("refuses what it cannot give back, with a reason and a place", function()
    for text, reason in pairs {
      [""] = "truncated at byte 0", ["cc"] = "truncated at byte 1",
      ["a261"] = "truncated at byte 1",
      ["c1"] = "an unknown tag at byte", ["0000"] = "bytes after the value at byte 1",
      ["d40100"] = "an extension type", ["d6ff00000000"] = "an extension type",
      ["c7000100"] = "an extension type",
      ["92c0"] = "a count beyond", ["ddffffffff"] = "a count beyond",
      ["dfffffffff"] = "a count beyond",
      ["81c001"] = "a key that is no", ["819001"] = "a key that is no",
      ["81cb7ff800000000000001"] = "a key that is NaN",
      ["81cf002000000000000101"] = "a key that is no",
    } do
      local value, err = msgpack.decode(bytes(text))
      assert.is_nil(value, text)
      assert.matches(reason, err, nil, nil, text)
    end
  end)

  it("takes 32 tables within each other and no more", function()
    assert.is_table(msgpack.decode(("\145"):rep(31) .. "\144"))
    local value, err = msgpack.decode(("\145"):rep(32) .. "\144")
    assert.is_nil(value)
    assert.matches("nested deeper than 32 tables", err)
  end)
end)
