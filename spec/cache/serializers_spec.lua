-- Serializers, on aliases and for single calls: what goes in, what comes out,
-- who can read whose values, and what is let go.
local cache = require "cache"
local ffi = require "ffi"
local support = require "spec.cache.support"

local raises = support.raises
local null, array = cache.null, cache.array
local huge = math.huge

local c -- the alias that a case defines

local function use(serializer, definition)
  definition = definition or {}
  definition.serializer = serializer
  cache.configure_caches { aliases = { serializers_spec = definition } }
  c = cache.get_cache "serializers_spec"
  return c
end

local function fresh()
  support.fresh()
  use("native"):clear()
end

-- What comes out for a value.
local function back(value)
  assert.is_true(c:set("k", value))
  local result, err = c:get("k", "no hit")
  assert.is_nil(err)
  return result
end

local function keeps(...)
  for i = 1, select("#", ...) do
    local value = select(i, ...)
    local result = back(value)
    assert.equal(type(value), type(result))
    assert.same(value, result)
  end
end

local function refuses(text, value)
  raises("set: " .. text, c.set, c, "k", value)
  raises("add: " .. text, c.add, c, "other", value)
  raises("multi_set: k: " .. text, c.multi_set, c, { k = value })
end

-- ---- native ------------------------------------------------------------------------

describe("the native serializer", function()
  before_each(fresh)

  it("keeps scalars of every kind", function()
    keeps(true, false, 0, 1, -1, 0.1, 1 / 3, 2 ^ 53, -2 ^ 53, 2 ^ 53 + 2, 2 ^ 1000, huge, -huge, "",
      "text", "\0\255", ("x"):rep(100000), null)
    assert.equal(-huge, 1 / back(-0))
    assert.equal(huge, 1 / back(0))
    local nan = back(0 / 0)
    assert.is_true(nan ~= nan)
  end)

  it("keeps 64-bit integers as what they are", function()
    for _, n in ipairs { 0LL, 1LL, -1LL, 9223372036854775807LL, -9223372036854775807LL - 1LL,
      0ULL, 18446744073709551615ULL } do
      local result = back(n)
      assert.is_true(ffi.typeof(result) == ffi.typeof(n) and result == n)
      result = back({ x = { n } }).x[1]
      assert.is_true(ffi.typeof(result) == ffi.typeof(n) and result == n)
    end
  end)

  it("keeps tables: lists, maps, keys of every plain kind, 32 deep", function()
    local deep = {}
    for _ = 1, 31 do deep = { deep } end
    keeps({}, { 1, 2, 3 }, { a = 1, [2] = "b", [0.5] = "c", [-1] = "d", [true] = "e" }, { { {} } },
      { 1, nil, 3 }, deep)
  end)

  it("keeps cache.null at any depth", function()
    local result = back { null, a = { b = null }, c = { 1, null, 3 } }
    assert.equal(null, result[1])
    assert.equal(null, result.a.b)
    assert.same({ 1, null, 3 }, result.c)
    assert.equal("userdata", type(result.a.b))
  end)

  it("copies a shared part", function()
    local part = { 1 }
    local result = back { part, part }
    assert.same({ { 1 }, { 1 } }, result)
    assert.is_false(rawequal(result[1], result[2]))
  end)

  it("names the part that it cannot keep", function()
    local cycle = {}
    cycle.a = { b = cycle }
    refuses("value is a function, which cannot be cached", print)
    refuses("value is a userdata", io.stdout)
    refuses("value is a thread", coroutine.create(print))
    refuses("value is a cdata", ffi.new "int[2]")
    refuses("value.a is a cdata", { a = ffi.new "struct { int x; }" })
    refuses("value[1][2].x is a function", { { 1, { x = print } } })
    refuses("value[\"not a name\"] is a function", { ["not a name"] = print })
    refuses("value[true] is a userdata", { [true] = io.stdout })
    refuses("value[1.5] is a thread", { [1.5] = coroutine.create(print) })
    refuses("value.a has a key that is a table, which cannot be cached", { a = { [{}] = 1 } })
    refuses("value has a key that is a userdata", { [null] = 1 })
    refuses("value.a.b is a cycle, which cannot be cached", cycle)
    refuses("value.a has a metatable, which cannot be cached (see cache.register_class)",
      { a = setmetatable({}, {}) })
    assert.is_false(c:exists "k")
  end)

  it("keeps random values", function()
    math.randomseed(7)
    local make
    local makers = {
      function() return math.random(-1000, 1000) end,
      function() return math.random() * 2 ^ math.random(-60, 60) end,
      function() return ("x"):rep(math.random(0, 20)) .. string.char(math.random(0, 255)) end,
      function() return math.random(2) == 1 end,
      function() return null end,
      function(depth)
        local t = {}
        for i = 1, depth < 5 and math.random(0, 4) or 0 do t[i] = make(depth + 1) end
        return t
      end,
      function(depth)
        local t = {}
        for _ = 1, depth < 5 and math.random(0, 4) or 0 do
          t["k" .. math.random(9)] = make(depth + 1)
        end
        return t
      end,
    }
    function make(depth) return makers[math.random(#makers)](depth) end
    for _ = 1, 500 do keeps(make(1)) end
  end)
end)

describe("a registered class", function()
  local Point = { __name = "serializers.Point" }
  Point.__index = Point
  function Point:sum() return self.x + self.y end

  before_each(fresh)

  it("raises before it is registered, and comes back afterwards", function()
    local point = setmetatable({ x = 1, y = 2 }, Point)
    refuses("value has a metatable, which cannot be cached (see cache.register_class)", point)
    assert.is_nil(cache.register_class("serializers.Point", Point))
    local result = back(point)
    assert.equal(3, result:sum())
    assert.equal(Point, getmetatable(result))
    assert.is_false(rawequal(point, result))
  end)

  it("comes back inside other values, by every way", function()
    cache.register_class("serializers.Point", Point)
    local function point(x) return setmetatable({ x = x, y = 1 }, Point) end
    c:set("k", { list = { point(1), point(2) }, plain = { 3 } })
    local value = c:get "k"
    assert.equal(3, value.list[2]:sum())
    assert.is_nil(getmetatable(value))
    assert.is_nil(getmetatable(value.plain))
    assert.equal(2, c:multi_get({ "k" }).k.list[1]:sum())
    local f = cache.cached(function() return point(5), { point(6) } end, { name = "serializers.f" })
    for _ = 1, 2 do
      local a, b = f()
      assert.same({ 6, 7 }, { a:sum(), b[1]:sum() })
    end
    c:set("large", { point(1), ("x"):rep(100000) })
    assert.equal(2, c:get("large")[1]:sum())
  end)

  it("stays readable when more are registered", function()
    cache.register_class("serializers.Point", Point)
    c:set("k", setmetatable({ x = 1, y = 2 }, Point))
    for i = 1, 20 do
      local class = { number = i }
      cache.register_class("serializers.class" .. i .. tostring(class), class)
      c:set("k" .. i, setmetatable({}, class))
      assert.equal(i, getmetatable(c:get("k" .. i)).number)
    end
    assert.equal(3, c:get("k"):sum())
  end)

  it("has one name and one metatable", function()
    cache.register_class("serializers.Point", Point)
    assert.is_nil(cache.register_class("serializers.Point", Point))
    raises("register_class: the name 'serializers.Point' is taken", cache.register_class,
      "serializers.Point", {})
    raises("register_class: this metatable is registered already", cache.register_class, "other",
      Point)
    raises("register_class: this metatable is registered already", cache.register_class, "other",
      getmetatable(array {}))
    raises("register_class: name must be a string, not nil", cache.register_class)
    raises("register_class: name must be a string, not table", cache.register_class, Point)
    raises("register_class: name must be a string, not empty", cache.register_class, "", {})
    raises("register_class: a metatable expected, not nil", cache.register_class, "other")
  end)
end)

describe("cache.array", function()
  before_each(fresh)

  it("marks a table, which stays what it is", function()
    local t = { 1, 2 }
    assert.equal(t, array(t))
    assert.same({ 1, 2 }, t)
    raises("array: a table expected, not nil", array)
    raises("array: a table expected, not string", array, "x")
  end)

  it("comes back marked", function()
    for _, name in ipairs { "native", "json", "msgpack" } do
      use(name)
      local mark = getmetatable(array {})
      assert.equal(mark, getmetatable(back(array {})), name)
      assert.equal(mark, getmetatable(back({ a = { array {} } }).a[1]))
      assert.is_nil(getmetatable(back {}))
      assert.same({ 1, 2 }, back(array { 1, 2 }))
    end
  end)

  it("tells [] from {} for others", function()
    use "json"
    c:set("list", array {})
    c:set("map", {})
    assert.equal(2, c:info("list").size)
    local json = require "moonstash.json"
    assert.same({ "[]", "{}" }, { json.encode(c:get "list"), json.encode(c:get "map") })
  end)
end)

-- ---- formats of others -----------------------------------------------------------------

describe("the json serializer", function()
  before_each(function()
    fresh()
    use "json"
  end)

  it("keeps what JSON has", function()
    keeps(true, false, 0, 1, -7, 0.1, 1 / 3, 2 ^ 53, -2 ^ 53, 2 ^ 53 + 2, 1e300, "", "text", "ключ",
      "\0\n\"", null, {}, { 1, 2, { "x" } }, { a = 1, b = { c = null } }, { null, 1 })
    assert.equal(-huge, 1 / back(-0))
    assert.equal(9007199254740993LL, back(9007199254740993LL))
    assert.equal(18446744073709551615ULL, back(18446744073709551615ULL))
  end)

  it("refuses what JSON has not, and names it", function()
    refuses("value is infinite, which json cannot hold", huge)
    refuses("value is NaN, which json cannot hold", 0 / 0)
    refuses("value.a.b is a function, which json cannot hold", { a = { b = print } })
    refuses("value has a key that is ", { [5] = 1 })
    refuses("value has a key that is a boolean", { [true] = 1 })
    refuses("value is a string that is not UTF-8", "\255")
    refuses("value is a cdata", ffi.new "int[1]")
    assert.is_false(c:exists "k")
  end)

  it("says so in info", function()
    for _, value in ipairs { { 1 }, "text", true, 5, 0.5 } do
      c:set("k", value)
      assert.equal("json", c:info("k").format)
    end
  end)

  it("counts", function()
    assert.equal(1, c:increment "n")
    assert.equal(1, c:get "n")
    c:set("n", 41)
    assert.equal(42, c:increment "n")
    assert.equal(42, c:get "n")
    for _, value in ipairs { 0.5, "5", true, { 1 } } do
      c:set("n", value)
      assert.equal("type", select(2, c:increment "n").code)
    end
  end)
end)

describe("the msgpack serializer", function()
  before_each(function()
    fresh()
    use "msgpack"
  end)

  it("keeps what MessagePack has", function()
    keeps(true, false, 0, -1, 127, 128, -129, 65536, 2 ^ 53, 0.1, 1e300, huge, -huge, "", "\0\255",
      ("x"):rep(70000), null, {}, { 1, 2, { "x" } }, { a = { null } }, { [5] = 1, [0.5] = 2 },
      { [true] = 1 })
    assert.equal(-huge, 1 / back(-0))
    assert.equal(18446744073709551615ULL, back(18446744073709551615ULL))
  end)

  it("refuses what it has not, and names it", function()
    refuses("value.a.b is a function, which msgpack cannot hold", { a = { b = print } })
    refuses("value is a cdata, which msgpack cannot hold", ffi.new "int[1]")
  end)

  it("does not count what it has written, but what increment has made", function()
    c:set("n", 5)
    assert.equal("msgpack", c:info("n").format)
    assert.equal("type", select(2, c:increment "n").code)
    assert.equal(5, c:get "n")
    assert.equal(2, c:increment("m", 2))
    assert.equal(2, c:get "m")
  end)
end)

describe("the string serializer", function()
  before_each(function()
    fresh()
    use "string"
  end)

  it("gives text back, whatever went in", function()
    for text, value in pairs { text = "text", ["\0\255"] = "\0\255", ["5"] = 5, ["-5"] = -5,
      ["0.5"] = 0.5, ["true"] = true, ["false"] = false, ["9007199254740992"] = 2 ^ 53,
      ["-0"] = -0, ["inf"] = huge, [""] = "", ["007"] = "007", ["1e3"] = "1e3", ["0"] = 0 } do
      assert.equal(text, back(value))
      assert.equal(text, c:multi_get({ "k" }).k)
      assert.equal("string", c:info("k").format)
    end
  end)

  it("takes strings, numbers and booleans only", function()
    for _, value in ipairs { {}, null, 1LL, print } do
      refuses("the string serializer takes strings, numbers and booleans, not a " .. type(value),
        value)
    end
  end)

  it("counts on decimal text", function()
    c:set("n", "41")
    assert.equal(42, c:increment "n")
    assert.equal("42", c:get "n")
    assert.equal(1, c:increment "m")
    for _, text in ipairs { "041", "+1", " 1", "1.0", "-0", "1e3", "", "9007199254740993" } do
      c:set("n", text)
      assert.equal("type", select(2, c:increment "n").code, text)
      assert.equal(text, c:get "n")
    end
  end)
end)

-- ---- none ---------------------------------------------------------------------------------

describe("the serializer none", function()
  before_each(function()
    fresh()
    use("none"):clear()
  end)

  it("gives the value itself", function()
    local cycle = {}
    cycle.self = cycle
    for _, value in ipairs { print, io.stdout, coroutine.create(print), {}, cycle, "text", 5, false,
      setmetatable({}, {}), ffi.new "int[1]", null } do
      c:set("k", value)
      assert.is_true(rawequal(value, c:get("k", "default")))
      assert.is_true(rawequal(value, c:multi_get({ "k" }).k))
    end
    assert.equal("none", c:info("k").format)
  end)

  it("knows TTLs, add, multi_set and the rest like the others", function()
    local value = {}
    assert.is_true(c:add("k", value, 5))
    assert.is_false(c:add("k", {}))
    assert.is_true(rawequal(value, c:get "k"))
    cache.testing.advance(5)
    assert.is_nil(c:get "k")
    c:multi_set { a = value, b = print }
    assert.is_true(rawequal(value, c:get "a"))
    assert.equal(print, c:get "b")
    assert.equal(2, c:multi_delete { "a", "b" })
    c:set("k", 5)
    assert.equal("type", select(2, c:increment "k").code)
    assert.equal(1, c:increment "n")
    assert.equal(1, c:get "n")
  end)

  it("keeps what it holds from the collector", function()
    c:set("k", { "kept" })
    for _ = 1, 5 do collectgarbage() end
    assert.same({ "kept" }, c:get "k")
  end)

  -- Values that are stored, then go by `way`, must be the collector's.
  local function lets_go(way, store)
    local weak = setmetatable({}, { __mode = "k" })
    local function put(key)
      local value = { key }
      weak[value] = true
      return (store or c.set)(c, key, value, 10)
    end
    for i = 1, 20 do put("k" .. i) end
    way(put)
    for _ = 1, 4 do collectgarbage() end
    local left = 0
    for _ in pairs(weak) do left = left + 1 end
    return left
  end

  it("lets go what is deleted, cleared, expired, replaced or evicted", function()
    assert.equal(0, lets_go(function() for i = 1, 20 do c:delete("k" .. i) end end))
    assert.equal(0, lets_go(function()
      local keys = {}
      for i = 1, 20 do keys[i] = "k" .. i end
      c:multi_delete(keys)
    end))
    assert.equal(0, lets_go(function() c:clear() end))
    assert.equal(0, lets_go(function()
      cache.testing.advance(10)
      for i = 1, 20 do c:get("k" .. i) end
    end))
    assert.equal(20, lets_go(function(put) for i = 1, 20 do put("k" .. i) end end))
    assert.equal(0, lets_go(function() for i = 1, 20 do c:set("k" .. i, 1) end end))
    use("native")
    assert.equal(0, lets_go(function()
      use "none"
      for i = 1, 20 do c:set("k" .. i, 1) end
    end))
    use("none", { max_bytes = 2 ^ 16 })
    assert.is_true(20 > lets_go(function() for i = 1, 8000 do c:set("other" .. i, i) end end))
    assert.is_true(c:stats().evictions > 4000)
    use "none" -- the store with them is not in use any more
    for _ = 1, 4 do collectgarbage() end
  end)

  it("lets go what it could not store", function()
    assert.equal(20, lets_go(function(put)
      for i = 1, 20 do assert.is_false(c:add("k" .. i, { "not stored" })) end
      assert.is_function(put)
    end))
    c:clear()
    for i = 1, 20 do c:set("k" .. i, 0) end
    assert.equal(0, lets_go(function() end, c.add))
    use("none", { max_bytes = 2 ^ 16 })
    local function long(client, key, value)
      local ok, err = client:set(key .. ("x"):rep(20000), value)
      assert.is_nil(ok)
      assert.equal("too_large", err.code)
    end
    assert.equal(0, lets_go(function() end, long))
    local function many(client, key, value)
      local kept = {}
      local ok, err = client:multi_set { [key .. ("x"):rep(20000)] = value, kept = kept }
      assert.is_nil(ok)
      assert.same({ key .. ("x"):rep(20000) }, err.keys)
      assert.is_true(rawequal(kept, client:get "kept"))
    end
    assert.equal(0, lets_go(function() end, many))
    for _ = 1, 4 do collectgarbage() end
    assert.same({}, c:get "kept")
    use "none"
  end)

  it("lets go what a wrapper's load could not store", function()
    local weak = setmetatable({}, { __mode = "k" })
    local f = cache.cached(function()
      local value = {}
      weak[value] = true
      c:delete "k"
      return value
    end, { alias = "serializers_spec", key = "k" })
    for _ = 1, 10 do assert.is_table(f()) end
    assert.is_false(c:exists "k")
    for _ = 1, 4 do collectgarbage() end
    assert.is_nil(next(weak))
  end)
end)

-- ---- the user's own --------------------------------------------------------------------------

describe("a serializer of one's own", function()
  before_each(fresh)

  it("writes and reads", function()
    use {
      dumps = function(v) return "<" .. v .. ">" end,
      loads = function(b) return b:sub(2, -2) end,
    }
    keeps("text", "")
    assert.same({ k = "" }, c:multi_get { "k" })
    assert.equal("custom", c:info("k").format)
    assert.equal(2, c:info("k").size)
    assert.equal("type", select(2, c:increment "k").code)
    assert.equal(1, c:increment "n")
    assert.equal(1, c:get "n")
  end)

  it("must give a string", function()
    for _, bad in pairs { 5, true, {}, print } do
      use { dumps = function() return bad end, loads = tostring }
      refuses("dumps must return a string, not " .. type(bad), "v")
    end
    use { dumps = function() end, loads = tostring }
    refuses("dumps must return a string, not nil", "v")
    assert.is_false(c:exists "k")
  end)

  it("may raise when it writes: the caller gets that", function()
    local object = { "mine" }
    use { dumps = function() error(object) end, loads = tostring }
    for _, call in ipairs {
      function() c:set("k", 1) end, function() c:add("k", 1) end,
      function() c:multi_set { k = 1 } end,
      cache.cached(function() return 1 end, { alias = "serializers_spec", key = "k" }),
    } do
      local ok, err = pcall(call)
      assert.is_false(ok)
      assert.is_true(rawequal(object, err))
    end
    assert.is_false(c:exists "k")
  end)

  it("may raise when it reads: a miss, code decode, and the value stays", function()
    local broken = true
    use { dumps = tostring, loads = function(b)
      if broken then error("cannot read", 0) end
      return b
    end }
    c:set("k", "v")
    local value, err = c:get("k", "default")
    assert.equal("default", value)
    assert.equal("decode", err.code)
    assert.equal("get: the value cannot be decoded: cannot read", tostring(err))
    assert.is_true(c:exists "k")
    local found, many = c:multi_get { "k", "none" }
    assert.same({}, found)
    assert.same({ "decode", { "k" } }, { many.code, many.keys })
    value, err = cache.get_cached("k", { alias = "serializers_spec" })
    assert.is_nil(value)
    assert.truthy(tostring(err):find "^get_cached: ")
    broken = false
    assert.equal("v", c:get "k")
  end)

  it("may read a value as anything; nil is a miss", function()
    for _, value in pairs { 5, false, {}, print, null } do
      use { dumps = function() return "x" end, loads = function() return value end }
      c:set("k", 1)
      assert.is_true(rawequal(value, c:get("k", "default")))
    end
    use { dumps = function() return "x" end, loads = function() end }
    c:set("k", 1)
    local value, err = c:get("k", "default")
    assert.equal("default", value)
    assert.is_nil(err)
    assert.same({}, c:multi_get { "k" })
  end)

  it("may wait", function()
    local task = require "task"
    use {
      dumps = function(v)
        task.sleep(0.001)
        return v
      end,
      loads = function(b)
        task.sleep(0.001)
        return b
      end,
    }
    keeps("v")
    local f = cache.cached(function() return "w" end, { alias = "serializers_spec", key = "f" })
    assert.same({ "w", "w" }, { f(), (f()) })
  end)

  it("may be for one call", function()
    local dumps = function(v) return v .. "!" end
    local loads = function(b) return b:sub(1, -2) end
    c:set("a", "v", { dumps = dumps })
    c:add("b", "w", { dumps = dumps, ttl = 5 })
    c:multi_set({ c = "x" }, { dumps = dumps })
    cache.set_cached("d", "y", { dumps = dumps })
    assert.equal("v", c:get("a", nil, { loads = loads }))
    assert.same({ a = "v", b = "w", c = "x" }, c:multi_get({ "a", "b", "c" }, { loads = loads }))
    assert.equal("y", cache.get_cached("d", { loads = loads }))
    local value, err = c:get "a"
    assert.is_nil(value)
    assert.equal("decode", err.code)
    assert.truthy(tostring(err):find("written by dumps of another serializer", 1, true))
    raises("set: dumps must return a string, not number", c.set, c, "a", "v",
      { dumps = function() return 5 end })
  end)

  it("must be complete, and of functions", function()
    for _, bad in ipairs { {}, { dumps = tostring }, { loads = tostring }, { dumps = 5, loads = 5 },
      { dumps = tostring, loads = "x" },
      { dumps = tostring, loads = tostring, encode = tostring } } do
      raises("configure_caches: aliases.x: a serializer is {dumps = function, loads = function}",
        cache.configure_caches, { aliases = { x = { serializer = bad } } })
    end
  end)
end)

-- ---- who can read whose values ------------------------------------------------------------------

describe("a value of one serializer", function()
  before_each(fresh)

  local own = { dumps = function(v) return require("moonstash.json").encode(v) end,
    loads = function(b) return (require("moonstash.json").decode(b)) end }

  it("is read right under every other", function()
    local value = { a = { 1, "x", true } }
    for _, written in ipairs { "native", "json", "msgpack", "none" } do
      for _, read in ipairs { "native", "json", "msgpack", "none", "string", own } do
        use(written)
        c:set("k", value)
        use(read)
        assert.same(value, c:get "k", written)
        assert.same({ k = value }, c:multi_get { "k" })
      end
    end
  end)

  it("is an error only when it was written by dumps, and there is no loads", function()
    use(own)
    c:set("k", { 1 })
    for _, read in ipairs { "native", "json", "msgpack", "none", "string" } do
      use(read)
      local value, err = c:get("k", "default")
      assert.equal("default", value)
      assert.equal("decode", err.code)
    end
    use(own)
    assert.same({ 1 }, c:get "k")
  end)

  it("is a counter under every one, if it is one", function()
    for _, name in ipairs { "native", "json", "msgpack", "none", "string", own } do
      use(name)
      c:delete "n"
      c:increment("n", 40)
      use "native"
      assert.equal(41, c:increment "n")
      use(name)
      assert.equal(42, c:increment "n")
      assert.equal(name == "string" and "42" or 42, c:get "n")
    end
    for _, name in ipairs { "native", "json", "string" } do
      use(name)
      c:set("n", 41)
      assert.equal(42, c:increment "n")
    end
  end)

  it("is replaced under another", function()
    for _, first in ipairs { "native", "json", "msgpack", "none", "string", own } do
      for _, second in ipairs { "native", "json", "msgpack", "none", "string", own } do
        use(first)
        c:set("k", "one")
        use(second)
        c:set("k", "two")
        assert.equal("two", c:get "k")
        assert.is_false(c:add("k", "three"))
        assert.equal(1, c:delete "k")
      end
    end
  end)
end)
