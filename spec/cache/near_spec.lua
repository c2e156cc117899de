-- Near copies: what is hot is kept in the Lua state, and nobody can tell but by
-- stats. See cache/near.lua.
local cache = require "cache"
local process = require "spec.support.process"
local support = require "spec.cache.support"

if not jit.status() then return end -- the driver of C functions keeps nothing near

local memory = cache.memory

local function define(fields)
  cache.configure_caches { aliases = { near_spec = fields } }
  local client = cache.get_cache "near_spec"
  client:clear()
  return client
end

-- Gets until the value is near: it is at the second touch.
local function warm(client, key)
  for _ = 1, 3 do client:get(key) end
end

local function near_hits(client, fn)
  local before = client:stats().near_hits
  fn()
  return client:stats().near_hits - before
end

local function is_near(client, key)
  return near_hits(client, function() client:get(key) end) == 1
end

describe("a near copy", function()
  before_each(support.fresh)

  local COUNT = 1000

  local function fill()
    local client = define {}
    for i = 1, COUNT do client:set("k" .. i, i) end
    return client
  end

  local function get_all(client)
    for i = 1, COUNT do assert(client:get("k" .. i)) end
  end

  it("is made at once while there is plenty of room, and counts as a hit", function()
    local client = fill()
    local hits = client:stats().hits
    assert.equal(0, near_hits(client, function() get_all(client) end))
    assert.equal(COUNT, client:stats().near_entries)
    assert.equal(COUNT, near_hits(client, function() get_all(client) end))
    assert.equal(hits + 2 * COUNT, client:stats().hits)
  end)

  -- In a process of its own: what others have read, is remembered.
  for _, bound in ipairs { "near_entries = 1000", "near_bytes = 2 ^ 20" } do
    it("is made when a value is read a second time, with half taken of " .. bound, function()
      local result = process.run { "-e", ([[
        cache.configure_caches { aliases = { spec = { %s } } }
        local client, text = cache.get_cache "spec", ("v"):rep(1280)
        for i = 1, 600 do client:set("k" .. i, text) end
        for _ = 1, 2 do
          for i = 1, 600 do client:get("k" .. i) end
          print(client:stats().near_entries)
        end
      ]]):format(bound) }
      local first, second = result.out:match "^(%d+)\n(%d+)\n$"
      assert(tonumber(first) >= 400 and tonumber(first) < 450, result.out)
      assert.equal("600", second)
    end)
  end

  -- Not the first gets decide what a loop's trace is, but those that come to stay.
  it("has all compiled anew when it has become the rule, a few times", function()
    local client, flushes = fill(), 0
    local function on_trace(what) flushes = flushes + (what == "flush" and 1 or 0) end
    local function rounds(n)
      for _ = 1, n do get_all(client) end
    end
    jit.attach(on_trace, "trace")
    rounds(20)
    local first = flushes
    rounds(80)
    local last = flushes
    rounds(100)
    jit.attach(on_trace)
    assert(first >= 1, first)
    assert(last <= 5, last)
    assert.equal(last, flushes)
  end)

  it("holds every kind of value", function()
    for _, value in ipairs { "text", "", 0, -7, 1.25, 2 ^ 60, true, false } do
      memory:set("k", value)
      warm(memory, "k")
      assert.is_true(is_near(memory, "k"))
      assert.equal(value, memory:get("k", "default"))
    end
    memory:set("k", { 1, { 2 } })
    warm(memory, "k")
    assert.is_true(is_near(memory, "k"))
    local t = memory:get "k"
    t[2][1] = "changed"
    assert.same({ 1, { 2 } }, memory:get "k")
  end)

  local changes = {
    set = function() memory:set("k", "new") return "new" end,
    delete = function() memory:delete "k" end,
    clear = function() memory:clear() end,
    multi_set = function() memory:multi_set { k = "new" } return "new" end,
    multi_delete = function() memory:multi_delete { "k" } end,
    ["a time that is over"] = function()
      memory:expire("k", 5)
      warm(memory, "k")
      assert.equal("old", memory:get "k")
      cache.testing.advance(5)
    end,
    ["expire to now"] = function()
      memory:expire("k", 0.001)
      cache.testing.advance(0.002)
    end,
    ["another object's set"] = function()
      cache.set_cached("k", 5)
      return 5
    end,
    ["another configuration"] = function()
      cache.configure_caches { default_ttl = 7 }
      return "old"
    end,
  }
  for what, change in pairs(changes) do
    it("ends with " .. what, function()
      memory:set("k", "old")
      warm(memory, "k")
      assert.is_true(is_near(memory, "k"))
      local expected = change()
      for _ = 1, 4 do assert.equal(expected, memory:get "k") end
    end)
  end

  it("ends with increment", function()
    memory:set("n", 1)
    for i = 2, 20 do
      warm(memory, "n")
      assert.equal(i, memory:increment "n")
      assert.equal(i, memory:get "n")
    end
  end)

  it("ends when its entry is evicted, and with the alias's own store", function()
    local client = define { max_bytes = 2 ^ 20 }
    client:set("k", "v")
    warm(client, "k")
    assert.is_true(is_near(client, "k"))
    define {}
    assert.is_nil(client:get "k")
    client = define { max_bytes = 2 ^ 20 }
    assert.is_nil(client:get "k")
  end)

  it("is not looked at while caching is off or the alias has hooks", function()
    memory:set("k", "v")
    warm(memory, "k")
    cache.configure_caches { enabled = false }
    assert.equal("default", memory:get("k", "default"))
    cache.configure_caches { enabled = true }
    assert.equal("v", memory:get "k")
    local client, seen = define {}, 0
    client:set("k", "v")
    warm(client, "k")
    local function count(_, _, _, _, _, _, hit) seen = seen + (hit and 1 or 0) end
    cache.configure_caches { aliases = { near_spec = { plugins = { { post_get = count } } } } }
    for _ = 1, 4 do assert.equal("v", client:get "k") end
    assert.equal(4, seen)
  end)

  it("of one namespace is not another's, however their keys read", function()
    local a, b, c = memory:with_namespace "a", memory:with_namespace "a:b", memory
    a:set("b:k", 1)
    c:set("k", 3)
    c:set("b:k", 4)
    for _ = 1, 5 do
      assert.equal(1, a:get "b:k")
      assert.equal(1, b:get "k")
      assert.equal(1, c:get "a:b:k")
      assert.equal(3, c:get "k")
      assert.equal(4, c:get "b:k")
      assert.equal(1, c:get("b:k", nil, { namespace = "a" }))
      assert.is_nil(a:get "k")
    end
    a:set("b:k", 2)
    for _, got in ipairs { a:get "b:k", b:get "k", c:get "a:b:k" } do assert.equal(2, got) end
  end)

  it("is the same table each time where copy = false", function()
    local client = define { copy = false }
    client:set("k", { 1 })
    local t = client:get "k"
    for _ = 1, 5 do assert.equal(t, client:get "k") end
    client:set("k", { 2 })
    assert.same({ 2 }, client:get "k")
    client = define { copy = false, serializer = "json" }
    client:set("k", { a = 1 })
    t = client:get "k"
    for _ = 1, 5 do assert.equal(t, client:get "k") end
    assert.same({ a = 1 }, client:get("k", nil, { loads = function() return { a = 1 } end }))
  end)

  it("of a serializer goes through it", function()
    local client = define { serializer = "string" }
    client:set("k", 5)
    for _ = 1, 5 do assert.equal("5", client:get "k") end
    client = define { serializer = "json" }
    client:set("k", { 1 })
    for _ = 1, 5 do assert.same({ 1 }, client:get "k") end
    client = define { serializer = "none" }
    local f = print
    client:set("k", f)
    for _ = 1, 5 do assert.equal(f, client:get "k") end
  end)

  it("keeps no reference alive that has left the cache", function()
    local client = define { serializer = "none" }
    local weak = setmetatable({}, { __mode = "v" })
    weak[1] = {}
    client:set("k", weak[1])
    warm(client, "k")
    assert.is_true(is_near(client, "k"))
    client:delete "k"
    for _ = 1, 3 do collectgarbage() end
    assert.is_nil(weak[1])
  end)

  it("of a miss is good until the key is there", function()
    memory:get "none"
    local misses = memory:stats().misses
    for i = 1, 20 do assert.equal(i, memory:get("none", i)) end
    assert.equal(misses + 20, memory:stats().misses)
    memory:set("none", 1)
    assert.equal(1, memory:get "none")
    memory:delete "none"
    for _ = 1, 4 do assert.is_nil(memory:get "none") end
    assert.equal("now", memory:increment "none" == 1 and "now")
    assert.equal(1, memory:get "none")
  end)
end)

describe("near copies", function()
  before_each(support.fresh)

  it("are bounded in entries, and hot ones stay", function()
    local client = define { near_entries = 100 }
    for i = 1, 1000 do client:set("k" .. i, i) end
    for round = 1, 3 do
      for i = 1, 1000 do
        assert.equal(i, client:get("k" .. i))
        assert.equal(1, client:get "k1")
        assert(client:stats().near_entries <= 100, round)
      end
    end
    assert.equal(100, client:stats().near_entries)
    assert.is_true(is_near(client, "k1"))
  end)

  it("are bounded in bytes, and large values are not kept", function()
    local client = define { near_bytes = 64 * 1024 }
    for i = 1, 200 do client:set("k" .. i, ("v"):rep(1000) .. i) end
    for _ = 1, 3 do
      for i = 1, 200 do
        assert.equal(("v"):rep(1000) .. i, client:get("k" .. i))
        assert(client:stats().near_bytes <= 64 * 1024)
      end
    end
    assert.is_true(client:stats().near_entries > 40)
    client:set("large", ("v"):rep(10000))
    warm(client, "large")
    assert.is_false(is_near(client, "large"))
  end)

  it("are turned off by 0", function()
    local client = define { near_entries = 0 }
    client:set("k", "v")
    warm(client, "k")
    for _ = 1, 5 do assert.is_nil(client:get "none") end
    assert.is_false(is_near(client, "k"))
    assert.equal(0, client:stats().near_entries)
  end)

  it("of misses are bounded", function()
    local client = define { near_entries = 64 }
    collectgarbage()
    local before = collectgarbage "count"
    for i = 1, 100000 do client:get("none" .. i % 20000) end
    collectgarbage()
    assert(collectgarbage "count" - before < 1024)
  end)

  it("never give a value to the wrong key, whatever happens", function()
    local client = define { near_entries = 50, max_bytes = 128 * 1024 }
    local model = {}
    math.randomseed(7)
    for step = 1, 60000 do
      local key, dice = "k" .. math.random(150), math.random(100)
      if dice <= 10 then
        model[key] = key .. ":" .. step
        client:set(key, model[key])
      elseif dice <= 12 then
        model[key] = nil
        client:delete(key)
      elseif dice == 13 and step % 50 == 0 then
        model = {}
        client:clear()
      else
        assert(client:get(key) == model[key])
      end
    end
  end)

  it("go when the cache is cleared", function()
    for i = 1, 100 do
      memory:set("k" .. i, i)
      warm(memory, "k" .. i)
    end
    memory:clear()
    memory:set("other", 1)
    warm(memory, "other")
    assert.equal(1, memory:stats().near_entries)
  end)

  it("outlive an error that a finalizer has raised while one was made", function()
    local near = require "cache.near"
    memory:set("k", "v")
    warm(memory, "k")
    local the_alias = require("cache.alias").find("memory", "spec")
    the_alias.near.keeping = true -- as such an error leaves it
    memory:set("k", "w")
    for _ = 1, 4 do assert.equal("w", memory:get "k") end
    assert.is_true(is_near(memory, "k"))
    assert.is_function(near.keep)
  end)
end)

describe("a wrapper's near copies", function()
  before_each(support.fresh)

  it("are found by one plain argument, each type by itself", function()
    local f, counter = support.counted(function(k) return type(k) .. tostring(k), nil, "third" end)
    f = cache.cached(f, { name = "near.plain" })
    for _ = 1, 5 do
      for _, k in ipairs { 1, "1", true, "true", 1.5, "near.plain:1" } do
        local a, b, c = f(k)
        assert.equal(type(k) .. tostring(k), a)
        assert.is_nil(b)
        assert.equal("third", c)
        assert.equal(3, select("#", f(k)))
      end
      assert.equal("nilnil", (f(nil)))
      assert.equal("nilnil", (f()))
      assert.equal("number1", (f(1, 2)))
    end
    assert.equal(9, counter.calls)
  end)

  it("end with what invalidates, clears, expires or stores", function()
    local f, counter = support.counted(function(k) return k end)
    f = cache.cached(f, { name = "near.ends", ttl = 10 })
    local function calls(n)
      for _ = 1, 5 do assert.equal("a", f "a") end
      assert.equal(n, counter.calls)
    end
    calls(1)
    cache.handle(f):invalidate "a"
    calls(2)
    memory:clear()
    calls(3)
    cache.testing.advance(10)
    calls(4)
    cache.configure_caches { default_ttl = 7 }
    calls(4)
    memory:set(cache.handle(f):key "a", "other")
    assert.equal("other", f "a")
    cache.configure_caches { enabled = false }
    calls(9)
  end)

  it("are copies, unless copy = false", function()
    local function load() return { 1 }, { 2 } end
    local f = cache.cached(load, { name = "near.copies" })
    local g = cache.cached(load, { name = "near.shared", copy = false })
    for _ = 1, 5 do
      local a, b = f "k"
      assert.same({ { 1 }, { 2 } }, { a, b })
      a[1], b[1] = "changed", "changed"
    end
    g "k"
    local a, b = g "k"
    for _ = 1, 5 do
      local c, d = g "k"
      assert.is_true(a == c and b == d)
    end
  end)

  it("count as its hits", function()
    local f = cache.cached(function(k) return k end, { name = "near.counts" })
    for _ = 1, 10 do f "k" end
    local stats = cache.handle(f):stats()
    assert.same({ 9, 1, 1 }, { stats.hits, stats.misses, stats.loads })
    assert.is_true(memory:stats().near_hits >= 5)
  end)
end)
