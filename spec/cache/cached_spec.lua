-- cached(fn, opts): what is kept, what is not, and under which key.
local cache = require "cache"
local process = require "spec.support.process"
local support = require "spec.cache.support"

local cached, memory = cache.cached, cache.memory
local raises, counted = support.raises, support.counted

local names = 0
-- A wrapper under a name of its own, and the counter of its function's calls.
local function wrap(fn, opts)
  local load, counter = counted(fn)
  names = names + 1
  opts = opts or {}
  if not opts.key_builder then opts.name = opts.name or "cached_spec." .. names end
  return cached(load, opts), counter
end

-- The same under the key "k".
local function wrap_k(fn)
  return wrap(fn, { key_builder = function() return "k" end })
end

local function pack(...) return { n = select("#", ...), ... } end

describe("a cached function", function()
  before_each(support.fresh)

  it("runs once per key", function()
    local f, counter = wrap(function(a) return a * 2 end)
    assert.equal(4, f(2))
    assert.equal(4, f(2))
    assert.equal(6, f(3))
    assert.equal(2, counter.calls)
  end)

  it("is a plain function, fit for every place that takes one", function()
    local f = wrap(function(x) return x .. "!" end)
    assert.equal("function", type(f))
    assert.equal("a!b!", (("ab"):gsub(".", f)))
    assert.equal("a!b!", (("ab"):gsub(".", f)))
  end)

  it("gives a copy on a hit", function()
    local f = wrap(function() return { list = {} } end)
    f().list[1] = "changed"
    local hit = f()
    assert.same({ list = {} }, hit)
    hit.list[1] = "changed"
    assert.same({ list = {} }, f())
  end)

  it("keeps every kind of value", function()
    for _, value in ipairs { 1, 0, -1.5, "", "text", true, false, math.huge } do
      local f, counter = wrap(function() return value end)
      assert.equal(value, f())
      assert.equal(value, f())
      assert.equal(1, counter.calls)
    end
    local f = wrap(function() return { 1, { a = "b" } } end)
    assert.same(f(), f())
  end)

  it("keeps all results, trailing nils too", function()
    for _, results in ipairs { pack(1, 2, 3), pack(1, nil), pack(1, nil, nil), pack(1, nil, 3, nil),
      pack(false, "reason"), pack(false), pack("a", { 1 }, nil), pack(nil, nil, 3),
      pack({ 1 }, { 2 }) } do
      local f, counter = wrap(function() return unpack(results, 1, results.n) end)
      assert.same(results, pack(f()))
      assert.same(results, pack(f()))
      assert.equal(1, counter.calls)
    end
  end)

  it("shows Cache:get the first of many results", function()
    local f = wrap_k(function() return "first", "second" end)
    f()
    assert.equal("first", memory:get "k")
    assert.equal("first", cache.get_cached "k")
    f = wrap(function() return nil, nil, "third" end, { key_builder = function() return "l" end })
    f()
    assert.is_nil(memory:get "l")
    assert.equal("default", memory:get("l", "default"))
  end)

  it("hits on what set has stored under its key", function()
    local f, counter = wrap_k(function() return "loaded" end)
    memory:set("k", { "set" })
    assert.same({ { "set" }, n = 1 }, pack(f()))
    assert.equal(0, counter.calls)
    memory:delete "k"
    assert.equal("loaded", f())
  end)

  it("returns nil, err as it is, and does not cache it", function()
    local err = setmetatable({}, { __tostring = function() return "no" end })
    local f, counter = wrap(function() return nil, err, "more", nil end)
    for _ = 1, 2 do
      local results = pack(f())
      assert.equal(4, results.n)
      assert.is_nil(results[1])
      assert.equal(err, results[2])
      assert.equal("more", results[3])
    end
    assert.equal(2, counter.calls)
  end)

  it("does not cache nothing: no results, or only nils", function()
    for _, nothing in ipairs { pack(), pack(nil), pack(nil, nil, nil) } do
      local f, counter = wrap(function() return unpack(nothing, 1, nothing.n) end)
      assert.same(nothing, pack(f()))
      assert.same(nothing, pack(f()))
      assert.equal(2, counter.calls)
    end
  end)

  it("raises what fn raises, the same object, and caches nothing", function()
    for _, object in ipairs { "text", { code = 1 }, 7, false,
      setmetatable({}, { __tostring = function() error "broken" end }) } do
      local f, counter = wrap(function() error(object, 0) end)
      for _ = 1, 2 do
        local ok, err = pcall(f)
        assert.is_false(ok)
        assert.is_true(rawequal(object, err))
      end
      assert.equal(2, counter.calls)
    end
    local f, counter = wrap(function() error(nil) end)
    assert.same({ false, n = 2 }, pack(pcall(f)))
    assert.same({ false, n = 2 }, pack(pcall(f)))
    assert.equal(2, counter.calls)
  end)

  it("works again after an error", function()
    local fail = true
    local f = wrap(function()
      if fail then error "not yet" end
      return "now"
    end)
    assert.is_false(pcall(f))
    fail = false
    assert.equal("now", f())
    assert.equal("now", f())
  end)

  it("raises when a result cannot be cached, and names it", function()
    raises("cached: value is a function, which cannot be cached",
      (wrap(function() return print end)))
    raises("cached: value.a[1] is a function", (wrap(function() return { a = { print } } end)))
    raises("cached: results[2] is a userdata", (wrap(function() return 1, io.stdout end)))
    raises("cached: results[3].x has a metatable",
      (wrap(function() return 1, nil, { x = setmetatable({}, {}) } end)))
  end)

  it("passes its arguments on as they are", function()
    local seen
    local f = wrap_k(function(...)
      seen = pack(...)
      return 1
    end)
    local object = io.stdout
    f(nil, object, print, nil)
    assert.same({ nil, object, print, nil, n = 4 }, seen)
  end)

  it("shows fn's own frames when its error is not caught", function()
    local result = process.run { "-e", [[
      local function deep() error "it broke" end
      local f = cache.cached(function() deep() end, { name = "f" })
      f()]] }
    assert.equal(1, result.code)
    assert.truthy(result.err:find("it broke", 1, true))
    assert.truthy(result.err:find("in function 'deep'", 1, true))
  end)
end)

describe("a cached function's TTL", function()
  before_each(support.fresh)

  it("is the option's", function()
    local f, counter = wrap(function() return 1 end, { ttl = 0.5 })
    f()
    cache.testing.advance(0.4)
    f()
    assert.equal(1, counter.calls)
    cache.testing.advance(0.1)
    f()
    assert.equal(2, counter.calls)
  end)

  it("is the alias's default without the option", function()
    local f, in_memory = wrap(function() return 1 end)
    local g, in_persistent = wrap(function() return 1 end, { alias = "persistent" })
    f()
    g()
    cache.testing.advance(300)
    f()
    g()
    assert.equal(2, in_memory.calls)
    assert.equal(1, in_persistent.calls)
  end)

  it("is never for 0, false and math.huge", function()
    for _, never in pairs { 0, math.huge, [3] = false } do
      local f, counter = wrap(function() return 1 end, { ttl = never })
      f()
      cache.testing.advance(1e8)
      f()
      assert.equal(1, counter.calls)
    end
  end)

  it("starts when fn has returned", function()
    local f, counter = wrap(function()
      cache.testing.advance(10)
      return 1
    end, { ttl = 5 })
    f()
    cache.testing.advance(4)
    f()
    assert.equal(1, counter.calls)
  end)
end)

describe("the keys of cached functions", function()
  before_each(support.fresh)

  -- Do these calls have keys of their own, all different?
  local function all_differ(calls)
    local f, counter = wrap(function() return true end)
    for _ = 1, 2 do
      for _, call in ipairs(calls) do f(unpack(call, 1, call.n)) end
    end
    assert.equal(#calls, counter.calls)
  end

  local function all_same(calls)
    local f, counter = wrap(function() return true end)
    for _, call in ipairs(calls) do f(unpack(call, 1, call.n)) end
    assert.equal(1, counter.calls)
  end

  it("are typed and know how many arguments there were", function()
    all_differ { pack(), pack(nil), pack(nil, nil), pack(1), pack(1, nil), pack "1", pack(true),
      pack "true", pack(false), pack "false", pack "nil", pack "", pack("", ""), pack {},
      pack { 1 }, pack { "1" }, pack { { 1 } }, pack "{}", pack { true }, pack { [2] = 1 } }
  end)

  it("differ when strings contain what separates", function()
    all_differ { pack "a,b", pack("a", "b"), pack "1:a,1:b", pack "a,1:b", pack("a,1:b", ""),
      pack("a", "1:b"), pack "1:a", pack { "a", "b" }, pack { "a,b" }, pack { a = "b" },
      pack { ["a=1:b"] = "" }, pack { ["a"] = "b," }, pack "\0", pack "\0\0" }
  end)

  it("tell numbers apart to the last bit, but not 0 and -0", function()
    all_differ { pack(0.1), pack(0.1 + 2 ^ -56), pack(2 ^ 53), pack(2 ^ 53 - 1), pack(1e300),
      pack(math.huge), pack(-math.huge), pack(-1), pack(1), pack(2 ^ 63), pack(2 ^ 31) }
    all_same { pack(0), pack(-0), pack(0 * -1) }
    all_same { pack { 0 }, pack { -0 } }
  end)

  it("take tables by their contents, in any order", function()
    local a, b = {}, {}
    for i = 1, 50 do a["k" .. i], b["k" .. 51 - i] = i, 51 - i end
    all_same { pack(a), pack(b) }
    all_same { pack { x = 1, y = { true, z = "s" } }, pack { y = { z = "s", true }, x = 1 } }
    all_differ { pack { 1, 2 }, pack { 2, 1 }, pack { [1] = 1, ["1"] = 1 }, pack { [1] = 1 },
      pack { ["1"] = 1 }, pack { [true] = 1 }, pack { ["true"] = 1 }, pack { a = { b = 1 } },
      pack { a = {}, b = 1 }, pack({}, {}), pack { {}, {} }, pack { {} } }
    local shared = { 1 }
    all_same { pack { shared, shared }, pack { { 1 }, { 1 } } }
  end)

  it("raise for what has no key, and name key_builder", function()
    local f, counter = wrap(function() return 1 end)
    raises("cached: an argument is a function, of which no key can be made: give a key_builder",
      f, print)
    raises("cached: an argument is a userdata", f, 1, io.stdout)
    raises("cached: an argument is a thread", f, coroutine.create(print))
    raises("cached: an argument is a function", f, { a = { print } })
    raises("cached: an argument is a table with a metatable: give a key_builder", f,
      setmetatable({}, {}))
    raises("cached: an argument has a table as a key", f, { [{}] = 1 })
    raises("cached: an argument has a function as a key", f, { [print] = 1 })
    raises("cached: an argument is NaN", f, 0 / 0)
    raises("cached: an argument is NaN", f, { 0 / 0 })
    local cycle = {}
    cycle[1] = cycle
    raises("cached: an argument is a cycle", f, cycle)
    local deep = {}
    for _ = 1, 32 do deep = { deep } end
    raises("cached: an argument is nested deeper than 32 tables", f, deep)
    raises("cached: the name and the arguments make a key of", f, ("x"):rep(65536))
    raises("cached: the name and the arguments make a key of", f, ("x"):rep(40000),
      ("x"):rep(40000))
    assert.equal(0, counter.calls)
  end)

  it("begin with the name", function()
    local f = wrap(function() return "value" end, { name = "user" })
    f(7)
    f "x"
    f()
    assert.equal("value", memory:get "user:7")
    assert.equal("value", memory:get "user:1:x")
    assert.equal("value", memory:get "user:")
  end)

  it("never meet those of another name, whatever both contain", function()
    local calls = { pack(), pack(1), pack(12), pack "", pack "5", pack "x", pack(1, "x"),
      pack("1", 1), pack(nil), pack(true), pack {}, pack(-1), pack(math.huge) }
    local made, count = {}, 0
    for _, name in ipairs { "a", "a:", "a::", "a:1", "a:1:", "a:1:5", "a:1:x", "a:0:", "a:nil",
      "a:b", "a:b:", "a::b", "a:true", "a:-1", "a:{}", "a:inf", ":", "::", "a:1,1", "a:12" } do
      local key = require "cache.key"
      for _, call in ipairs(calls) do
        local text = key.of_arguments(key.prefix(name), unpack(call, 1, call.n))
        assert.is_nil(made[text], text)
        made[text], count = name, count + 1
      end
    end
    assert.equal(20 * #calls, count)
    assert.equal("user:v1:", require("cache.key").prefix "user:v1") -- as a reader expects
  end)

  it("are shared by wrappers that share a name", function()
    local f = wrap(function() return "f" end, { name = "cached_spec.shared" })
    local g, counter = wrap(function() return "g" end, { name = "cached_spec.shared" })
    f(1)
    assert.equal("f", g(1))
    assert.equal(0, counter.calls)
  end)

  it("are apart on memory and persistent", function()
    local f = wrap(function() return "f" end, { name = "cached_spec.apart" })
    local g = wrap(function() return "g" end, { name = "cached_spec.apart", alias = "persistent" })
    assert.equal("f", f(1))
    assert.equal("g", g(1))
    assert.equal("f", f(1))
  end)
end)

describe("key_builder", function()
  before_each(support.fresh)

  it("gets the function and all arguments, and makes the whole key", function()
    local seen
    local function load() return "value" end
    local f = cached(load, { key_builder = function(...)
      seen = pack(...)
      return "my key"
    end })
    f(1, nil, "x", nil)
    assert.same({ load, 1, nil, "x", nil, n = 5 }, seen)
    assert.equal("value", memory:get "my key")
  end)

  it("may look at one argument and ignore the others", function()
    local f, counter = wrap(function() return 1 end, {
      key_builder = function(_, self, id) return self.ns .. id end,
    })
    f({ ns = "a", x = print }, 1)
    f({ ns = "a", x = io.stdout }, 1)
    assert.equal(1, counter.calls)
  end)

  it("must return a key", function()
    for _, bad in ipairs { 1, true, {} } do
      local f, counter = wrap(function() return 1 end, { key_builder = function() return bad end })
      raises("cached: key_builder: the key must be a string, not " .. type(bad), f)
      assert.equal(0, counter.calls)
    end
    raises("cached: key_builder: the key must be a string, not nil",
      (wrap(print, { key_builder = function() end })))
    raises("cached: key_builder: the key must have 1 to 65536 bytes, not 0",
      (wrap(print, { key_builder = function() return "" end })))
  end)

  it("may raise: the caller gets it, fn does not run", function()
    local f, counter = wrap(function() return 1 end, {
      key_builder = function() error("no key", 0) end,
    })
    local ok, err = pcall(f)
    assert.is_false(ok)
    assert.equal("no key", err)
    assert.equal(0, counter.calls)
  end)
end)

describe("automatic names", function()
  before_each(support.fresh)

  it("are the file and line where fn is defined", function()
    local f = cached(function() return "value" end)
    local line = debug.getinfo(1, "l").currentline - 1
    f()
    assert.equal("value", memory:get(("cached_spec.lua::%d:"):format(line)))
  end)

  it("are refused to a second closure of the same place", function()
    local function make() return function() return 1 end end
    cached(make())
    raises("is wrapped twice under its automatic name: give it a name, key or key_builder", cached,
      make())
    local again = make()
    assert.has_no_error(function()
      cached(again, { name = "cached_spec.one" })
      cached(again, { key = "cached_spec.one" })
      cached(again, { key_builder = function() return "k" end })
    end)
  end)

  it("pass to a newer version of the file, which starts anew", function()
    local dir = process.directory { ["hot.lua"] = "return function() return 'old' end" }
    local old = cached(dofile(dir .. "/hot.lua"))
    assert.equal("old", old())
    local file = assert(io.open(dir .. "/hot.lua", "w"))
    file:write "return function() return 'new' end"
    file:close()
    local new = cached(dofile(dir .. "/hot.lua"))
    assert.equal("new", new())
    assert.equal("new", new())
    assert.equal("old", old())
    assert.has_no_error(function() cached(dofile(dir .. "/hot.lua")) end) -- unchanged, loaded again
  end)

  it("do not mix two files of the same name", function()
    local code = "return function() return %q end"
    local dir = process.directory {
      ["a/init.lua"] = code:format "a", ["b/init.lua"] = code:format "b",
    }
    local a, b = cached(dofile(dir .. "/a/init.lua")), cached(dofile(dir .. "/b/init.lua"))
    assert.equal("a", a())
    assert.equal("b", b())
    assert.equal("a", a())
  end)

  it("are made for chunks without a file, too", function()
    local f = cached(loadstring "return ... or 'chunk'")
    assert.equal("chunk", f())
    assert.equal(1, f(1))
  end)

  it("are not for persistent, where keys must survive an edit", function()
    raises("cached: a wrapper on 'persistent' needs a name, key or key_builder: its keys must "
      .. "survive an edit of the script", cached, function() end, { alias = "persistent" })
    assert.has_no_error(function()
      cached(function() end, { alias = "persistent", name = "cached_spec.p" })
      cached(function() end, { alias = "persistent", key = "cached_spec.p" })
      cached(function() end, { alias = "persistent", key_builder = function() return "p" end })
    end)
  end)

  it("are not for C functions", function()
    raises("cached: a C function needs a name, key or key_builder", cached, print)
    assert.equal("1", cached(tostring, { name = "cached_spec.tostring" })(1))
  end)
end)
