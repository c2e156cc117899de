-- What may be cached, and what comes out: always a copy, always the same value.
local cache = require "cache"
local ffi = require "ffi"
local support = require "spec.cache.support"

local raises = support.raises

describe("a cached value", function()
  local memory = cache.memory

  before_each(support.fresh)

  local function back(value)
    assert.is_true(memory:set("k", value))
    return memory:get "k"
  end

  it("is a hit when it is false, 0 or an empty string", function()
    for _, value in ipairs { 0, "" } do
      assert.equal(value, back(value))
      assert.equal(value, memory:get("k", "default"))
    end
    assert.is_false(back(false))
    assert.is_false(memory:get("k", "default"))
    assert.is_true(back(true))
  end)

  it("is the same number, to the last bit", function()
    for _, n in ipairs { 1, -1, 0.1, -0.1, 2 ^ 53, -2 ^ 53, 2 ^ 53 - 1, 2 ^ 53 + 2, 2 ^ 63, -2 ^ 63,
      1e300, -1e300, 2 ^ -1074, 1 / 3, math.pi, math.huge, -math.huge, 4294967296, 2147483648 } do
      assert.equal(n, back(n))
    end
    assert.equal(-math.huge, 1 / back(-0)) -- minus zero
    assert.equal(math.huge, 1 / back(0))
    local nan = back(0 / 0)
    assert.not_equal(nan, nan)
  end)

  it("is the same string, whatever bytes it has", function()
    local all = {}
    for i = 0, 255 do all[#all + 1] = string.char(i) end
    for _, text in ipairs { "a", table.concat(all), "\0", "\0\0\1", "1", "true", ("x"):rep(4096),
      ("x"):rep(4097), ("xyz"):rep(100000), ("\255"):rep(2 ^ 21) } do
      assert.is_true(back(text) == text)
    end
  end)

  it("reads rightly whatever size was read before it", function()
    local sizes = { 0, 1, 8, 4095, 4096, 4097, 65536, 2 ^ 20, 2 ^ 20 + 1, 3 * 2 ^ 20 }
    for _, size in ipairs(sizes) do memory:set("n" .. size, ("s"):rep(size)) end
    memory:set("number", 1.5)
    memory:set("table", { 1 })
    for _ = 1, 2 do
      for _, size in ipairs(sizes) do
        assert.equal(size, #memory:get("n" .. size))
        assert.equal(1.5, memory:get "number")
        assert.same({ 1 }, memory:get "table")
      end
    end
  end)

  it("is a table with the same contents", function()
    for _, t in ipairs { {}, { 1, 2, 3 }, { a = 1, b = { c = { d = "deep" } } },
      { [1] = "one", [2.5] = "x", [-1] = "y", [true] = "yes", [false] = "no", ["1"] = "string" },
      { 1, nil, 3 }, { n = 0 / 1, s = "", f = false }, { [math.huge] = 1 },
      { { { {} } } } } do
      assert.same(t, back(t))
    end
    assert.equal(-math.huge, 1 / back({ -0 })[1])
    assert.equal(math.huge, back({ math.huge })[1])
    local nan = back({ 0 / 0 })[1]
    assert.not_equal(nan, nan)
  end)

  it("is a copy: changing what went in or came out changes nothing", function()
    local went_in = { list = { 1, 2 } }
    memory:set("k", went_in)
    went_in.list[1] = "changed"
    local first = memory:get "k"
    assert.same({ list = { 1, 2 } }, first)
    first.list[1], first.more = "changed", true
    assert.same({ list = { 1, 2 } }, memory:get "k")
    assert.not_equal(memory:get "k", memory:get "k")
    assert.not_equal(memory:get("k").list, memory:get("k").list)
  end)

  it("copies a table that occurs twice, twice", function()
    local shared = { 1 }
    local out = back { a = shared, b = shared }
    assert.same({ a = { 1 }, b = { 1 } }, out)
    assert.not_equal(out.a, out.b)
  end)

  it("may be 32 tables deep and no deeper", function()
    local function nested(depth)
      local top = {}
      local t = top
      for _ = 2, depth do
        t.t = {}
        t = t.t
      end
      return top
    end
    assert.same(nested(32), back(nested(32)))
    raises("value" .. (".t"):rep(32) .. " is nested deeper than 32 tables", memory.set, memory, "k",
      nested(33))
  end)

  it("may hold many keys", function()
    local t = {}
    for i = 1, 5000 do t[i], t["k" .. i] = i, { i } end
    assert.same(t, back(t))
  end)

  it("cannot be nil: that raises and names delete", function()
    memory:set("k", 1)
    raises("set: the value is nil: use delete", memory.set, memory, "k", nil)
    raises("set_cached: the value is nil", cache.set_cached, "k")
    assert.equal(1, memory:get "k")
  end)

  it("cannot hold a function, userdata, thread, cdata: the path is named", function()
    raises("set: value is a function, which cannot be cached", memory.set, memory, "k", print)
    raises("set: value is a userdata", memory.set, memory, "k", io.stdout)
    raises("set: value is a thread", memory.set, memory, "k", coroutine.create(print))
    raises("set: value is a cdata", memory.set, memory, "k", ffi.new "int[1]")
    raises("set: value.a.b[3] is a function, which cannot be cached", memory.set, memory, "k",
      { a = { b = { 1, 2, print } } })
    raises("set: value.f is a userdata", memory.set, memory, "k", { f = io.stdout })
    raises('set: value["not a name"][1] is a thread', memory.set, memory, "k",
      { ["not a name"] = { coroutine.create(print) } })
    raises("set: value[true] is a cdata", memory.set, memory, "k", { [true] = ffi.new "int[1]" })
    raises("set_cached: value[2.5] is a function", cache.set_cached, "k", { [2.5] = print })
    assert.is_nil(memory:get "k")
  end)

  it("cannot have keys that are no strings, numbers or booleans", function()
    raises("set: value has a key that is a table", memory.set, memory, "k", { [{}] = 1 })
    raises("set: value.a has a key that is a function", memory.set, memory, "k",
      { a = { [print] = 1 } })
  end)

  it("cannot be a cycle", function()
    local t = { a = { b = {} } }
    t.a.b[1] = t.a
    raises("set: value.a.b[1] is a cycle", memory.set, memory, "k", t)
    local self = {}
    self.self = self
    raises("set: value.self is a cycle", memory.set, memory, "k", self)
  end)

  it("cannot have a metatable", function()
    raises("set: value has a metatable", memory.set, memory, "k", setmetatable({}, {}))
    raises("set: value.inner has a metatable", memory.set, memory, "k",
      { inner = setmetatable({}, { __metatable = "locked" }) })
  end)

  it("leaves the old value in place when the new one is refused", function()
    memory:set("k", "old")
    pcall(memory.set, memory, "k", { print })
    assert.equal("old", memory:get "k")
  end)

  it("survives the collector", function()
    for i = 1, 200 do memory:set("k" .. i, { i, tostring(i), { i } }) end
    collectgarbage()
    for i = 1, 200 do assert.same({ i, tostring(i), { i } }, memory:get("k" .. i)) end
  end)

  it("is not mixed up with another one by a finalizer that uses the cache", function()
    local numbers, text, huge = { 1.25, 7 }, ("a"):rep(300), ("z"):rep(100000)
    memory:set("table", { 1, { 2 }, "three" })
    memory:set("text", text)
    memory:set("float", 1.25)
    memory:set("integer", 7)
    memory:set("huge", huge)
    local others = { "table", "text", "float", "integer", "huge" }
    local turn, runs = 0, 0
    local function litter()
      local proxy = newproxy(true)
      getmetatable(proxy).__gc = function()
        runs, turn = runs + 1, turn % #others + 1
        memory:get(others[turn])
        memory:set("scratch", runs + 0.5)
        memory:set("scratch2", runs)
      end
    end
    local pause, step = collectgarbage("setpause", 1), collectgarbage("setstepmul", 10000)
    local i = 0
    while runs < 3000 and i < 100000 do
      i = i + 1
      litter()
      assert(memory:get "float" == numbers[1] and memory:get "integer" == numbers[2])
      assert(memory:get "text" == text and memory:get("table")[2][1] == 2)
      memory:set("n", i + 0.25)
      memory:set("i", i)
      assert(memory:get "n" == i + 0.25 and memory:get "i" == i)
      if i % 100 == 0 then assert(memory:get "huge" == huge) end
    end
    collectgarbage("setpause", pause)
    collectgarbage("setstepmul", step)
    assert.is_true(runs >= 3000)
  end)
end)

describe("a key", function()
  local memory = cache.memory

  before_each(support.fresh)

  it("is any bytes, from 1 to 65,536 of them", function()
    local all = {}
    for i = 0, 255 do all[#all + 1] = string.char(i) end
    local keys = { "a", "\0", "\0\0", " ", table.concat(all), ("k"):rep(65536), ("k"):rep(65535),
      ("k"):rep(256), ("k"):rep(257), "ключ", "a\nb", "a:b", "a:b:" }
    for i, key in ipairs(keys) do assert.is_true(memory:set(key, i)) end
    for i, key in ipairs(keys) do assert.equal(i, memory:get(key)) end
  end)

  it("raises when it is empty or too long", function()
    local long = ("k"):rep(65537)
    raises("get: the key must have 1 to 65536 bytes, not 0", memory.get, memory, "")
    raises("set: the key must have 1 to 65536 bytes, not 65537", memory.set, memory, long, 1)
    raises("delete: the key must have 1 to 65536 bytes", memory.delete, memory, "")
    raises("get_cached: the key must have 1 to 65536 bytes", cache.get_cached, long)
    raises("set_cached: the key must have 1 to 65536 bytes", cache.set_cached, "", 1)
    raises("delete_cached: the key must have 1 to 65536 bytes", cache.delete_cached, "")
  end)

  it("raises when it is no string, numbers too", function()
    for _, key in ipairs { 1, true, {}, print } do
      raises("get: the key must be a string, not " .. type(key), memory.get, memory, key)
      raises("set: the key must be a string, not " .. type(key), memory.set, memory, key, 1)
      raises("delete: the key must be a string", memory.delete, memory, key)
      raises("get_cached: the key must be a string", cache.get_cached, key)
      raises("set_cached: the key must be a string", cache.set_cached, key, 1)
      raises("delete_cached: the key must be a string", cache.delete_cached, key)
    end
    raises("get: the key must be a string, not nil", memory.get, memory)
  end)
end)
