local json = require "moonstash.json"
local codec = require "moonstash.codec"
local null, array_mt = codec.null, codec.array_mt

local function array(t) return setmetatable(t, array_mt) end

local function refuses(message, value)
  local ok, err = pcall(json.encode, value)
  assert.is_false(ok)
  assert.equal(message .. ", which json cannot hold", err)
end

describe("json.encode", function()
  it("writes scalars", function()
    assert.equal("true", json.encode(true))
    assert.equal("null", json.encode(null))
    assert.equal('"a"', json.encode "a")
    assert.equal('""', json.encode "")
  end)

  it("writes integers as integers", function()
    assert.equal("0", json.encode(0))
    assert.equal("-1", json.encode(-1))
    assert.equal("9007199254740992", json.encode(2 ^ 53))
    assert.equal("-9007199254740992", json.encode(-2 ^ 53))
    assert.equal("9223372036854775807", json.encode(9223372036854775807LL))
    assert.equal("-9223372036854775808", json.encode(-9223372036854775807LL - 1))
    assert.equal("18446744073709551615", json.encode(18446744073709551615ULL))
  end)

  it("reads 64-bit integers through references, and no other cdata", function()
    local ffi = require "ffi"
    local cell = ffi.new("int64_t[1]", 77)
    assert.equal("77", json.encode(ffi.cast("int64_t &", cell)))
    assert.equal("[77]", json.encode { cell[0] })
    local others = { cell, ffi.cast("int64_t *", cell), ffi.new "int32_t", ffi.new "double" }
    for _, value in ipairs(others) do
      refuses("value is a cdata", value)
    end
  end)

  it("writes other numbers with as few digits as bring them back", function()
    assert.equal("0.1", json.encode(0.1))
    assert.equal("0.30000000000000004", json.encode(0.1 + 0.2))
    assert.equal("0.3333333333333333", json.encode(1 / 3))
    assert.equal("5e-324", json.encode(5e-324))
    assert.equal("1.7976931348623157e+308", json.encode(1.7976931348623157e308))
    assert.equal("1e-07", json.encode(1e-7))
  end)

  it("never writes a number so that it looks like an integer it is not", function()
    assert.equal("-0.0", json.encode(-0.0))
    assert.equal("9007199254740994.0", json.encode(2 ^ 53 + 2))
    assert.equal("1.152921504606847e+18", json.encode(2 ^ 60))
  end)

  it("tells arrays from objects", function()
    assert.equal("[1,2,3]", json.encode { 1, 2, 3 })
    assert.equal("{}", json.encode {})
    assert.equal("[]", json.encode(array {}))
    assert.equal("[[],{}]", json.encode { array {}, {} })
    assert.equal('{"a":[1]}', json.encode { a = { 1 } })
  end)

  it("escapes what has to be", function()
    assert.equal([["\"\\/\b\f\n\r\t\u0000\u001f]] .. '\127é"',
      json.encode '"\\/\b\f\n\r\t\0\31\127é')
  end)

  it("names the path to what it cannot hold", function()
    refuses("value is a function", print)
    refuses("value is nil", nil)
    refuses("value.a.b[3] is a function", { a = { b = { 1, 2, print } } })
    refuses("value[\"a b\"][1] is a thread", { ["a b"] = { coroutine.create(print) } })
    refuses("value[\"\\195\\169\\\"\"] is a function", { ["é\""] = print })
    refuses("value.x is a userdata", { x = io.stdout })
    refuses("value.x is a cdata", { x = require("ffi").new "int[1]" })
    refuses("value is NaN", 0 / 0)
    refuses("value[1] is infinite", { -1 / 0 })
    refuses("value.s is a string that is not UTF-8", { s = "a\255" })
    refuses("value.k has a key that is a string that is not UTF-8", { k = { ["\192\128"] = 1 } })
    refuses("value.k has a key that is the number 3", { k = { [3] = 1 } })
    refuses("value has a key that is the number 1", { 1, nil, 3 })
    refuses("value has a key that is a boolean", { [true] = 1 })
    refuses("value.x is a table with a metatable", { x = setmetatable({}, {}) })
    refuses("value.x is an array with keys other than 1 to n", { x = array { [2] = 1 } })
    refuses("value.x is an array with keys other than 1 to n", { x = array { 1, y = 2 } })
  end)

  it("begins the path as it is told", function()
    local _, err = pcall(json.encode, { print }, "results")
    assert.equal("results[1] is a function, which json cannot hold", err)
  end)

  it("raises for a cycle, and copies what is shared", function()
    local t = { x = {} }
    t.x.back = t
    refuses("value.x.back is a cycle", t)
    local shared = { 1 }
    assert.equal("[[1],[1]]", json.encode { shared, shared })
  end)

  it("takes 32 tables within each other and no more", function()
    local t = {}
    for _ = 2, 32 do t = { t } end
    assert.equal(("["):rep(31) .. "{}" .. ("]"):rep(31), json.encode(t))
    local path = "value" .. ("[1]"):rep(32)
    refuses(path .. " is nested deeper than 32 tables", { t })
  end)

  it("reads and writes raw: no metamethod of an array runs", function()
    array_mt.__index = function() error "ran" end
    finally(function() array_mt.__index = nil end)
    assert.equal("[1]", json.encode(array { 1 }))
  end)
end)

describe("json.decode", function()
  it("reads what encode writes", function()
    assert.same({ a = { 1, 2, { b = "c" } }, d = false },
      json.decode '{"a":[1,2,{"b":"c"}],"d":false}')
    assert.equal(null, json.decode " null ")
    assert.same({ null }, json.decode "[null]")
  end)

  it("marks an empty array, so that it is written as one again", function()
    assert.equal(array_mt, getmetatable(json.decode "[]"))
    assert.is_nil(getmetatable(json.decode "{}"))
    assert.is_nil(getmetatable(json.decode "[1]"))
    assert.equal('{"a":[]}', json.encode(json.decode '{"a":[]}'))
  end)

  it("gives integers exactly, as numbers where a number can hold them", function()
    assert.equal(2 ^ 53, json.decode "9007199254740992")
    assert.equal("9007199254740993LL", tostring(json.decode "9007199254740993"))
    assert.equal("-9007199254740993LL", tostring(json.decode "-9007199254740993"))
    assert.equal("9223372036854775807LL", tostring(json.decode "9223372036854775807"))
    assert.equal("-9223372036854775808LL", tostring(json.decode "-9223372036854775808"))
    assert.equal("9223372036854775808ULL", tostring(json.decode "9223372036854775808"))
    assert.equal("18446744073709551615ULL", tostring(json.decode "18446744073709551615"))
    assert.equal(18446744073709551616, json.decode "18446744073709551616")
    assert.equal(1e20, json.decode "100000000000000000000")
    assert.equal(-9223372036854775808, json.decode "-9223372036854775809")
  end)

  it("gives other numbers as the nearest double", function()
    assert.equal(0.1, json.decode "0.1")
    assert.equal(100000, json.decode "1E5")
    assert.equal(1, json.decode "1.0")
    assert.equal(-1 / 0, 1 / json.decode "-0")
    assert.equal(-1 / 0, 1 / json.decode "-0.0e5")
    assert.equal(1e23, json.decode "1e23")
    assert.equal(2.2250738585072014e-308, json.decode "2.2250738585072014e-308")
    assert.equal(0, json.decode "1e-400")
    assert.equal(1, json.decode("1." .. ("0"):rep(1000)))
  end)

  it("refuses numbers that no double can be near", function()
    assert.same({ nil, "a number beyond the range of a double at byte 0" }, { json.decode "1e400" })
    assert.is_nil(json.decode("[" .. ("9"):rep(2000) .. "]"))
  end)

  it("reads escapes, surrogate pairs too", function()
    assert.equal('"\\/\b\f\n\r\t', json.decode [["\"\\\/\b\f\n\r\t"]])
    assert.equal("a\0b", json.decode [["a\u0000b"]])
    assert.equal("é€😀", json.decode [["\u00e9\u20AC\ud83d\uDE00"]])
    assert.same({ ["é"] = 1 }, json.decode [[{"\u00e9":1}]])
    assert.equal(("é"):rep(3000), json.decode('"' .. ([[\u00e9]]):rep(3000) .. '"'))
  end)

  it("keeps the last of several members with one name", function()
    assert.same({ a = 2 }, json.decode '{"a":1,"a":2}')
  end)

  it("refuses what is not JSON, with a reason and a place", function()
    for text, reason in pairs {
      [""] = "premature EOF", ["[1] x"] = "trailing garbage", ["01"] = "trailing garbage",
      ["1."] = "malformed number", ["-"] = "malformed number", ["1e"] = "malformed number",
      ["+1"] = "invalid", [".5"] = "invalid", ["NaN"] = "invalid", ["-Infinity"] = "malformed",
      ["/*c*/1"] = "comment", ["[1,]"] = "unallowed token", ["{1:2}"] = "object key",
      ["{'a':1}"] = "invalid", ["[1 2]"] = "after array element", ["nul"] = "invalid string",
      ['"abc'] = "without an end", ['"\\x"'] = "may not", ['"\\u12"'] = "non%-hex",
      ['"\1"'] = "invalid character", ['"a\nb"'] = "invalid character",
      ["\239\187\191[]"] = "invalid char", ["[1]\0"] = "garbage", ["\0"] = "invalid",
      ['"\255"'] = "not UTF%-8", ['"\192\128"'] = "not UTF%-8", ['"\237\160\128"'] = "not UTF%-8",
      ['"\244\144\128\128"'] = "not UTF%-8", ['"\\ud83d"'] = "half a surrogate",
      ['"\\ude00"'] = "half a surrogate", ['"\\ud83d\\u0041"'] = "half a surrogate",
      ['"\\ud83d\\ud83d"'] = "half a surrogate", ['"\\ud83dx"'] = "half a surrogate",
    } do
      local value, err = json.decode(text)
      assert.is_nil(value, text)
      assert.matches(reason, err, nil, nil, text)
    end
  end)

  it("takes 32 tables within each other and no more", function()
    assert.is_table(json.decode(("["):rep(32) .. ("]"):rep(32)))
    local value, err = json.decode(("["):rep(33) .. ("]"):rep(33))
    assert.is_nil(value)
    assert.equal("nested deeper than 32 tables at byte 33", err)
  end)

  it("raises only when it is given no string", function()
    assert.has_error(function() json.decode(nil) end)
    assert.has_error(function() json.decode {} end)
  end)

  it("does not follow the locale", function()
    local ffi = require "ffi"
    pcall(ffi.cdef, "char *setlocale(int category, const char *locale);")
    local LC_NUMERIC = 1
    local found
    for _, name in ipairs { "de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "de_DE" } do
      found = found or ffi.C.setlocale(LC_NUMERIC, name) ~= nil
    end
    if not found then pending "no locale with a decimal comma is installed" end
    finally(function() ffi.C.setlocale(LC_NUMERIC, "C") end)
    assert.equal("0.1", json.encode(0.1))
    assert.equal("0.30000000000000004", json.encode(0.1 + 0.2))
    assert.equal(0.1 + 0.2, json.decode "0.30000000000000004")
  end)
end)
