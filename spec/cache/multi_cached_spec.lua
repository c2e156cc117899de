-- multi_cached(fn, opts): a map of many keys' values, of which fn makes only the
-- missing ones.
local cache = require "cache"
local support = require "spec.cache.support"
local task = require "task"
local time = require "spec.support.time"

local multi_cached, memory = cache.multi_cached, cache.memory
local raises, settle = support.raises, support.settle
local advance = cache.testing.advance

local function pack(...) return { n = select("#", ...), ... } end

local function letters(keys)
  local map = {}
  for _, k in ipairs(keys) do map[k] = "v" .. k end
  return map
end

local names = 0
-- A wrapper under a name of its own; `seen`: the key lists that fn got, joined;
-- and the name.
local function wrap(fn, opts)
  local seen = {}
  names = names + 1
  opts = opts or {}
  if not (opts.name or opts.key_builder) then opts.name = "multi." .. names end
  local f = multi_cached(function(keys, ...)
    seen[#seen + 1] = table.concat(keys, ",")
    return fn(keys, ...)
  end, opts)
  return f, seen, opts.name
end

-- The same, with a gate that fn waits at.
local function gated(fn, opts)
  local gate = task.event()
  local f, seen, name = wrap(function(...)
    gate:wait()
    return fn(...)
  end, opts)
  return f, seen, gate, name
end

local function fresh()
  support.fresh()
  cache.configure_caches { aliases = { multi_shared = { copy = false }, multi_json = {
    serializer = "json" } } }
end

describe("multi_cached, misused,", function()
  before_each(fresh)

  it("raises when it is made", function()
    for _, bad in pairs { 1, "f", {} } do
      raises("multi_cached: a function expected, not " .. type(bad), multi_cached, bad)
    end
    raises("multi_cached: a function expected, not nil", multi_cached)
    raises("multi_cached: options must be a table, not string", multi_cached, print, "x")
    for _, name in ipairs { "tll", "key", "skip_self", "copy" } do
      raises(("multi_cached: the option '%s' is unknown"):format(name), multi_cached, letters,
        { name = "x", [name] = true })
    end
    raises("multi_cached: the option 'tags' is not in this version", multi_cached, letters,
      { name = "x", tags = {} })
    raises("multi_cached: name must be a string, not a number", multi_cached, letters, { name = 5 })
    raises("multi_cached: ttl must be a number of seconds >= 0, or false for never, not -1",
      multi_cached, letters, { name = "x", ttl = -1 })
    raises("multi_cached: neg_ttl must be a number of seconds >= 0", multi_cached, letters,
      { name = "x", neg_ttl = "5" })
    raises("multi_cached: alias must be one of ", multi_cached, letters, { alias = "nobody" })
    raises("multi_cached: a wrapper on 'persistent' needs a name, key or key_builder", multi_cached,
      letters, { alias = "persistent" })
  end)

  it("raises when it is called, and does not run fn", function()
    local f, seen = wrap(letters)
    raises("multi_cached: the first argument must be a list of keys, not nil", f)
    raises("multi_cached: the first argument must be a list of keys, not string", f, "a")
    raises("multi_cached: the first argument must be a list of keys, not a map", f, { a = true })
    raises("multi_cached: keys[2] must be a string or a number, not boolean", f, { "a", true })
    raises("multi_cached: keys[1] must be a string or a number, not table", f, { {} })
    local g, other = wrap(letters, { key_builder = function() return 5 end })
    raises("multi_cached: key_builder: the key must be a string, not number", g, { "a" })
    raises("multi_cached: the key must have 1 to 65536 bytes", f, { ("x"):rep(65536) })
    local h = wrap(letters, { name = "n", namespace = ("x"):rep(100) })
    raises("multi_cached: the namespace and the key have", h, { ("x"):rep(65500) })
    assert.same({ {}, {} }, { seen, other })
  end)

  it("raises when fn returns no map", function()
    for _, bad in pairs { 5, "map", true } do
      local f, seen = wrap(function() return bad end)
      local ok, err = pcall(f, { "a" })
      assert.is_false(ok)
      assert.equal("multi_cached: the function must return a map, not " .. type(bad), err)
      pcall(f, { "a" })
      assert.equal(2, #seen)
    end
    local f = wrap(function() end)
    assert.same(pack(false, "multi_cached: the function must return a map, not nil"),
      pack(pcall(f, { "a" })))
  end)
end)

describe("multi_cached", function()
  before_each(fresh)

  it("gives fn the missing keys only, in their order", function()
    local f, seen = wrap(letters)
    assert.same({ c = "vc", a = "va" }, f { "c", "a" })
    assert.same({ b = "vb", c = "vc", a = "va", d = "vd" }, f { "d", "a", "b", "c" })
    assert.same({ "c,a", "d,b" }, seen)
    assert.same({ a = "va", b = "vb" }, f { "a", "b" })
    assert.equal(2, #seen)
  end)

  it("asks for a key once, though it is there twice", function()
    local f, seen = wrap(letters)
    assert.same({ a = "va", b = "vb" }, f { "a", "b", "a", "a" })
    assert.same({ "a,b" }, seen)
  end)

  it("leaves the caller's list as it is, and fn's is its own", function()
    local f = wrap(function(keys)
      local map = letters(keys)
      keys[1] = "changed"
      return map
    end)
    local list = { "a", "b", "a" }
    assert.same({ a = "va", b = "vb" }, f(list))
    assert.same({ "a", "b", "a" }, list)
    assert.same({ a = "va", b = "vb" }, f(list))
  end)

  it("stores each value under name:key", function()
    local f, _, name = wrap(letters, { ttl = 5 })
    f { "a", 7, 0.5 }
    assert.equal("va", memory:get(name .. ":a"))
    assert.equal("v7", memory:get(name .. ":7"))
    assert.equal("v0.5", memory:get(name .. ":0.5"))
    assert.is_true(time.is_left(5, memory:ttl(name .. ":a")))
  end)

  it("takes numbers for keys, and gives fn and caller numbers", function()
    local f, seen = wrap(letters)
    assert.same({ [1] = "v1", [2] = "v2" }, f { 1, 2 })
    assert.same({ [1] = "v1", [3] = "v3" }, f { 1, 3 })
    assert.same({ "1,2", "3" }, seen)
  end)

  it("takes 1 and \"1\" in one call", function() -- which share a key, see name:key
    local f = wrap(function(keys)
      local map = {}
      for _, k in ipairs(keys) do map[k] = "one" end
      return map
    end)
    assert.same({ [1] = "one", ["1"] = "one" }, f { 1, "1" })
  end)

  it("asks key_builder with fn, the key and the other arguments", function()
    local calls = {}
    local function fn(keys) return letters(keys) end
    local f = multi_cached(fn, { key_builder = function(...)
      calls[#calls + 1] = pack(...)
      return "built:" .. select(2, ...)
    end })
    f({ "a" }, "x", nil)
    assert.same({ pack(fn, "a", "x", nil) }, calls)
    assert.equal("va", memory:get "built:a")
  end)

  it("uses namespace, alias and serializer", function()
    local f = wrap(letters, { name = "m", namespace = "ns", alias = "multi_json" })
    f { "a" }
    local json = cache.get_cache "multi_json"
    assert.equal("va", json:get "ns:m:a")
    assert.equal("json", json:info("ns:m:a").format)
    wrap(letters, { name = "n", serializer = "msgpack" }) { "a" }
    assert.equal("msgpack", memory:info("n:a").format)
  end)

  it("gives copies on hits, the shared table with copy = false on the alias", function()
    local function tables(keys)
      local map = {}
      for _, k in ipairs(keys) do map[k] = { k } end
      return map
    end
    local f = wrap(tables)
    f({ "a" }).a[1] = "changed"
    assert.same({ a = { "a" } }, f { "a" })
    f({ "a" }).a[1] = "changed"
    assert.same({ a = { "a" } }, f { "a" })
    local g = wrap(tables, { alias = "multi_shared" })
    g { "a" }
    assert.is_true(rawequal(g({ "a" }).a, g({ "a" }).a))
  end)

  it("keeps false, 0, \"\" and cache.null", function()
    local values = { a = false, b = 0, c = "", d = cache.null }
    local f, seen = wrap(function() return values end)
    assert.same(values, f { "a", "b", "c", "d" })
    assert.same(values, f { "a", "b", "c", "d" })
    assert.equal(1, #seen)
  end)

  it("gives nil for what fn leaves out, and remembers that with neg_ttl", function()
    local function without_x(keys)
      local map = letters(keys)
      map.x = nil
      return map
    end
    local f, seen = wrap(without_x)
    assert.same({ a = "va" }, f { "a", "x" })
    assert.same({ a = "va" }, f { "a", "x" })
    assert.same({ "a,x", "x" }, seen)
    local g, other = wrap(without_x, { neg_ttl = 5 })
    assert.same({ a = "va" }, g { "a", "x" })
    assert.same({ a = "va" }, g { "a", "x" })
    assert.same({ "a,x" }, other)
    advance(5)
    g { "a", "x" }
    assert.same({ "a,x", "x" }, other)
  end)

  it("stores and returns what fn adds", function()
    local f, seen = wrap(function(keys)
      local map = letters(keys)
      map.extra, map[9] = "more", { 9 }
      return map
    end, { ttl = 5 })
    assert.same({ a = "va", extra = "more", [9] = { 9 } }, f { "a" })
    assert.same({ extra = "more", [9] = { 9 } }, f { "extra", 9 })
    assert.equal(1, #seen)
    advance(5)
    f { "extra" }
    assert.equal(2, #seen)
  end)

  it("does not replace a newer value by what fn adds", function()
    local f, _, name = wrap(function(keys)
      local map = letters(keys)
      memory:set("multi.newer:extra", "newer")
      map.extra = "older"
      return map
    end, { name = "multi.newer" })
    f { "a" }
    assert.equal("newer", memory:get(name .. ":extra"))
  end)

  it("asks cache_if for each key and value, also for what fn adds", function()
    local asked = {}
    local f = wrap(function(keys)
      local map = letters(keys)
      map.extra, map.b = "more", nil
      return map
    end, { neg_ttl = 5, cache_if = function(k, v)
      asked[k] = v == nil and "nil" or v
      return k == "a"
    end })
    f { "a", "b", "c" }
    assert.same({ a = "va", b = "nil", c = "vc", extra = "more" }, asked)
    asked = {}
    f { "a", "b", "c" }
    assert.same({ b = "nil", c = "vc", extra = "more" }, asked)
  end)

  it("returns nil, err as fn does, keeps nothing, and calls again", function()
    local err = { code = "mine" }
    local f, seen = wrap(function() return nil, err end, { neg_ttl = 5 })
    for _ = 1, 2 do
      local map, got = f { "a", "b" }
      assert.is_nil(map)
      assert.is_true(rawequal(err, got))
    end
    assert.same({ "a,b", "a,b" }, seen)
  end)

  it("raises what fn raises, the same object, and keeps nothing", function()
    local object = { code = "mine" }
    local f, seen = wrap(function() error(object) end)
    for _ = 1, 2 do
      local ok, err = pcall(f, { "a", "b" })
      assert.is_false(ok)
      assert.is_true(rawequal(object, err))
    end
    assert.equal(2, #seen)
  end)

  it("raises for a value that it cannot keep", function()
    local f = wrap(function() return { a = { x = print } } end)
    raises("multi_cached: value.x is a function, which cannot be cached", f, { "a" })
    local g = wrap(function() return { a = 1, extra = print } end)
    raises("multi_cached: value is a function, which cannot be cached", g, { "a" })
  end)

  it("loads anew what it cannot read, and replaces it", function()
    local f, seen, name = wrap(letters)
    memory:set(name .. ":a", "old", { dumps = function(v) return v end })
    assert.same({ a = "va", b = "vb" }, f { "a", "b" })
    assert.same({ a = "va", b = "vb" }, f { "a", "b" })
    assert.same({ "a,b" }, seen)
  end)

  it("hits on what set has stored", function()
    local f, seen, name = wrap(letters)
    memory:set(name .. ":a", "set")
    assert.same({ a = "set" }, f { "a" })
    assert.same({}, seen)
  end)

  it("calls through with all keys when caching is off", function()
    local f, seen = wrap(letters)
    f { "a" }
    cache.configure_caches { enabled = false }
    assert.same({ a = "va", b = "vb" }, f { "a", "b", "a" })
    assert.same({ "a", "a,b,a" }, seen)
    assert.same({}, f {})
    assert.equal(3, #seen)
    cache.configure_caches { enabled = true }
    assert.same({ a = "va" }, f { "a" })
    assert.equal(3, #seen)
  end)
end)

describe("calls of multi_cached at the same time", function()
  before_each(fresh)

  it("share the loads of the keys that both want", function()
    local f, seen, gate = gated(letters)
    local first = task.spawn(f, { "a", "b" })
    local second = task.spawn(f, { "b", "c" })
    settle()
    gate:set()
    assert.same({ a = "va", b = "vb" }, first:join())
    assert.same({ b = "vb", c = "vc" }, second:join())
    assert.same({ "a,b", "c" }, seen)
  end)

  it("cannot wait for each other, whatever the order", function()
    local f, seen, gate = gated(letters)
    local lists = { { "a", "b" }, { "b", "a" }, { "c", "a" }, { "b", "c" }, { "c", "b", "a" } }
    local tasks = {}
    for i, list in ipairs(lists) do tasks[i] = task.spawn(f, list) end
    settle()
    gate:set()
    for i, list in ipairs(lists) do assert.same(letters(list), tasks[i]:join()) end
    table.sort(seen)
    assert.same({ "a,b", "c" }, seen)
  end)

  it("share loads with cached functions of the same keys", function()
    local gate, calls = task.event(), 0
    local function key_builder(_, k) return "k:" .. k end
    local one = cache.cached(function(k)
      calls = calls + 1
      gate:wait()
      return "v" .. k
    end, { key_builder = key_builder })
    local f, seen = wrap(letters, { key_builder = key_builder })
    local first = task.spawn(one, "a")
    settle()
    local second = task.spawn(f, { "a", "b" })
    settle()
    gate:set()
    assert.equal("va", first:join())
    assert.same({ a = "va", b = "vb" }, second:join())
    assert.same({ { "b" }, 1 }, { seen, calls })
  end)

  it("get copies of their own", function()
    local f, seen, gate = gated(function() return { a = { list = {} } } end)
    local g, other, other_gate = gated(function() return { a = { list = {} } } end,
      { cache_if = function() return false end })
    for _, each in ipairs { { f, gate }, { g, other_gate } } do
      local tasks = {}
      for i = 1, 3 do tasks[i] = task.spawn(each[1], { "a" }) end
      settle()
      each[2]:set()
      local known = {}
      for _, t in ipairs(tasks) do
        local value = t:join().a
        assert.same({ list = {} }, value)
        assert.is_nil(known[value] or known[value.list])
        known[value], known[value.list] = true, true
        value.list[1] = "changed"
      end
    end
    assert.same({ { "a" }, { "a" } }, { seen, other })
  end)

  it("share an error", function()
    local object = { code = "mine" }
    local f, seen, gate = gated(function() error(object) end)
    local tasks = {}
    for i = 1, 3 do tasks[i] = task.spawn(pcall, f, { "a" }) end
    settle()
    gate:set()
    for _, t in ipairs(tasks) do
      local ok, err = t:join()
      assert.is_false(ok)
      assert.is_true(rawequal(object, err))
    end
    assert.equal(1, #seen)
  end)

  it("share nil, err", function()
    local err = setmetatable({}, {})
    local f, seen, gate = gated(function() return nil, err end)
    local tasks = {}
    for i = 1, 3 do tasks[i] = task.spawn(f, { "a", "b" }) end
    settle()
    gate:set()
    for _, t in ipairs(tasks) do
      local map, got = t:join()
      assert.is_nil(map)
      assert.is_true(rawequal(err, got))
    end
    assert.equal(1, #seen)
  end)

  it("share a key that fn left out", function()
    local f, seen, gate = gated(function() return {} end)
    local tasks = {}
    for i = 1, 3 do tasks[i] = task.spawn(f, { "a" }) end
    settle()
    gate:set()
    for _, t in ipairs(tasks) do assert.same(pack {}, pack(t:join())) end
    assert.equal(1, #seen)
  end)

  it("go on when the one who loads is cancelled: it loads for those who wait", function()
    local f, seen, gate = gated(letters)
    local first = task.spawn(f, { "a", "b" })
    settle()
    local second = task.spawn(f, { "b" })
    settle()
    first:cancel()
    settle()
    gate:set()
    assert.same({ b = "vb" }, second:join())
    first:pjoin()
    assert.same({ "a,b" }, seen)
  end)

  it("load anew after one was cancelled whom nobody waited for", function()
    local f, seen, gate = gated(letters)
    local first = task.spawn(f, { "a", "b" })
    settle()
    first:cancel()
    assert.is_false((first:pjoin()))
    gate:set()
    assert.same({ a = "va", b = "vb" }, f { "a", "b" })
    assert.same({ "a,b", "a,b" }, seen)
  end)

  it("leave the others alone when a waiting one is cancelled", function()
    local f, seen, gate = gated(letters)
    local tasks = {}
    for i = 1, 3 do tasks[i] = task.spawn(f, { "a" }) end
    settle()
    tasks[2]:cancel()
    assert.is_false((tasks[2]:pjoin()))
    gate:set()
    assert.same({ a = "va" }, tasks[1]:join())
    assert.same({ a = "va" }, tasks[3]:join())
    assert.same({ "a" }, seen)
  end)

  it("run fn directly when it asks for its own keys", function()
    local f, depth = nil, 0
    f = wrap(function(keys)
      depth = depth + 1
      if depth < 3 then
        local inner = f(keys)
        return inner
      end
      return letters(keys)
    end)
    assert.same({ a = "va" }, f { "a" })
    assert.equal(3, depth)
  end)

  it("run fn directly when two wrappers need each other's keys", function()
    local f, g
    local depth = 0
    local function key_builder(_, k) return "k:" .. k end
    f = wrap(function(keys)
      depth = depth + 1
      task.yield()
      return depth > 4 and letters(keys) or { a = g({ "b" }).b }
    end, { key_builder = key_builder })
    g = wrap(function(keys)
      depth = depth + 1
      task.yield()
      return depth > 4 and letters(keys) or { b = f({ "a" }).a }
    end, { key_builder = key_builder })
    local first, second = task.spawn(f, { "a" }), task.spawn(g, { "b" })
    assert.is_string(first:join().a)
    assert.is_string(second:join().b)
  end)

  it("do not store what was removed or set while fn ran", function()
    local f, _, gate, name = gated(letters)
    local t = task.spawn(f, { "a", "b", "c" })
    settle()
    memory:delete(name .. ":a")
    memory:set(name .. ":b", "newer")
    gate:set()
    assert.same({ a = "va", b = "vb", c = "vc" }, t:join())
    assert.same({ [name .. ":b"] = "newer", [name .. ":c"] = "vc" },
      memory:multi_get { name .. ":a", name .. ":b", name .. ":c" })
  end)

  it("end all loads when one value cannot be kept", function()
    local bad = true
    local f, seen, gate = gated(function(keys)
      return bad and { a = 1, b = print, c = 3 } or letters(keys)
    end)
    local first = task.spawn(pcall, f, { "a", "b", "c" })
    settle()
    local second = task.spawn(pcall, f, { "b" })
    local third = task.spawn(pcall, f, { "c" })
    settle()
    gate:set()
    assert.is_false((first:join()))
    assert.is_false((second:join()))
    third:join()
    bad = false
    assert.equal("vb", f({ "b", "c" }).b)
    assert.is_true(#seen >= 2)
  end)
end)
