-- cached and multi_cached on Redis: one load among many callers, nothing stale
-- stored, and a server that fails is a miss.
local cache = require "cache"
local redis = require "spec.support.redis"
local support = require "spec.redis.support"
local task = require "task"
local time = require "spec.support.time"

local persistent = cache.persistent
local calls = support.calls

if redis.missing() then
  describe("cached", function() pending(redis.missing()) end)
  return
end

local server
local names = 0

local function name()
  names = names + 1
  return "cached" .. names
end

local function start()
  server = redis.shared()
  support.settle_on(server)
end

local function empty()
  server:cli "FLUSHALL"
  server:cli("CONFIG", "RESETSTAT")
end

-- cached(fn) on persistent, and the counter of fn's calls.
local function wrap(fn, opts)
  local counter = { calls = 0 }
  opts = opts or {}
  opts.alias, opts.key = "persistent", opts.key or name()
  return cache.cached(function(...)
    counter.calls = counter.calls + 1
    return fn(...)
  end, opts), counter, opts.key
end

-- Waits until what was sent without waiting has reached the server.
local function settled() assert.equal("PONG", persistent:raw "PING") end

describe("cached on Redis", function()
  setup(start)
  teardown(support.unuse)
  before_each(empty)

  it("asks once and loads once for 50 tasks", function()
    local f, counter = wrap(function()
      task.sleep(0.02)
      return { "loaded" }, "twice"
    end)
    local tasks = {}
    for i = 1, 50 do tasks[i] = task.spawn(function() return { f() } end) end
    local seen = {}
    for _, each in ipairs(tasks) do
      local results = each:join()
      assert.same({ { "loaded" }, "twice" }, results)
      assert.is_nil(seen[results[1]]) -- a copy each
      seen[results[1]] = true
    end
    assert.equal(1, counter.calls)
    settled()
    assert.equal(1, calls(server, "get"))
    assert.equal(1, calls(server, "set"))
  end)

  it("asks once for 50 tasks on a hit, too", function()
    local f, counter, key = wrap(error)
    persistent:set(key, { "there" })
    local tasks = {}
    for i = 1, 50 do tasks[i] = task.spawn(f) end
    for _, each in ipairs(tasks) do assert.same({ "there" }, each:join()) end
    assert.equal(0, counter.calls)
    assert.equal(1, calls(server, "get"))
  end)

  it("does not load what another process has loaded", function()
    local f, counter, key = wrap(error)
    support.run(([[cache.cached(function(id) return "by the other", id end,
      { alias = "persistent", key = %q })(7)]]):format(key), { CACHE_REDIS_URL = server.url })
    assert.same({ "by the other", 7 }, { f() })
    assert.equal(0, counter.calls)
    assert.equal("by the other", persistent:get(key))
    assert.equal("7\n", support.run(([[
      print((select(2, cache.cached(error, { alias = "persistent", key = %q })())))]]):format(key),
      { CACHE_REDIS_URL = server.url }))
  end)

  it("does not store what was changed while it was loaded", function()
    local namespaced = persistent:with_namespace "poison"
    for what, change in pairs {
      delete = function(key) namespaced:delete(key) end,
      set = function(key) namespaced:set(key, "newer") end,
      add = function(key) namespaced:add(key, "newer") end,
      increment = function(key) namespaced:increment(key) end,
      multi_set = function(key) namespaced:multi_set { [key] = "newer" } end,
      multi_delete = function(key) namespaced:multi_delete { key, "other" } end,
      clear = function() namespaced:clear() end,
      ["clear of all"] = function() persistent:clear "poison" end,
      ["set without waiting"] = function(key) namespaced:set(key, "newer", { wait = false }) end,
    } do
      local f, counter, key
      f, counter, key = wrap(function()
        change(key)
        return "old"
      end, { namespace = "poison" })
      assert.equal("old", f())
      settled()
      assert.not_equal("old", namespaced:get(key), what)
      assert.equal(1, counter.calls)
    end
  end)

  it("does not store what another alias on the same server has changed", function()
    cache.configure_caches { aliases = { cached_other = { backend = "redis" } } }
    finally(function()
      cache.configure_caches { aliases = { cached_other = { backend = "memory" } } }
    end)
    local other = cache.get_cache "cached_other"
    for what, change in pairs {
      delete = function(key) other:delete(key) end,
      set = function(key) other:set(key, "newer") end,
      clear = function() other:clear() end,
    } do
      local f, _, key
      f, _, key = wrap(function()
        change(key)
        return "old"
      end)
      assert.equal("old", f())
      settled()
      assert.not_equal("old", persistent:get(key), what)
    end
  end)

  it("stores nothing in memory of what began on Redis, nor the other way round", function()
    local f, counter
    f, counter = wrap(function()
      if counter.calls == 1 then support.unuse() end
      if counter.calls == 2 then start() end
      return counter.calls
    end)
    assert.equal(1, f()) -- began on Redis
    assert.equal(2, f()) -- in memory
    settled()
    assert.equal(3, f()) -- on Redis
    assert.equal(3, f())
  end)

  it("stores in spite of what only gives a TTL or looks", function()
    local f, _, key
    f, _, key = wrap(function()
      persistent:expire(key, 5)
      persistent:get(key)
      return "value"
    end)
    f()
    settled()
    assert.equal("value", persistent:get(key))
  end)

  it("stores no nil, err and no raised error; both callers get them", function()
    local f, counter, key = wrap(function()
      task.sleep(0.005)
      return nil, "sorry"
    end, { neg_ttl = 5 })
    local other = task.spawn(function() return { f() } end)
    assert.same({ nil, "sorry" }, { f() })
    assert.same({ nil, "sorry" }, other:join())
    assert.equal(1, counter.calls)
    settled()
    assert.is_false(persistent:exists(key))
    local g, raises, other_key = wrap(function() error { code = "mine" } end)
    for _ = 1, 2 do
      local ok, err = pcall(g)
      assert.is_false(ok)
      assert.equal("mine", err.code)
    end
    assert.equal(2, raises.calls)
    assert.is_false(persistent:exists(other_key))
  end)

  it("remembers nothing with neg_ttl, and for so long", function()
    local f, counter, key = wrap(function() end, { neg_ttl = 5, ttl = 100 })
    assert.equal(0, select("#", f()))
    settled()
    assert.is_nil(f())
    assert.equal(1, counter.calls)
    assert.is_true(time.is_left(5, persistent:ttl(key)))
    assert.is_nil(persistent:get(key))
    local g, again, other_key = wrap(function() end)
    g()
    g()
    assert.equal(2, again.calls)
    assert.is_false(persistent:exists(other_key))
  end)

  it("has no neg_ttl where the bytes cannot say nothing", function()
    for _, serializer in ipairs { "json", "msgpack", "string" } do
      local ok, err = pcall(wrap, print, { neg_ttl = 5, serializer = serializer })
      assert.is_false(ok)
      assert.truthy(err:find(("cached: neg_ttl needs the serializer native on Redis: %s cannot say "
        .. "that nothing is there"):format(serializer), 1, true), err)
    end
    support.unuse() -- in memory it may, and on Redis it is not stored
    local f, counter, key = wrap(function() end, { neg_ttl = 5, serializer = "json" })
    f()
    f()
    assert.equal(1, counter.calls)
    start()
    f()
    settled()
    assert.is_false(persistent:exists(key))
  end)

  it("stores the serializer's bytes, with the wrapper's TTL", function()
    local f, counter, key = wrap(function() return { id = 7 } end,
      { serializer = "json", ttl = 30 })
    f()
    settled()
    assert.equal('{"id":7}', server:cli("GET", key))
    assert.is_true(time.is_left(30000, tonumber(server:cli("PTTL", key))))
    server:cli("SET", key, '{"id":8}')
    assert.same({ id = 8 }, f())
    server:cli("SET", key, "{") -- cannot be read: as good as missing
    assert.same({ id = 7 }, f())
    assert.equal(2, counter.calls)
  end)

  it("refreshes and invalidates", function()
    local n = 0
    local f, _, key = wrap(function() n = n + 1 return n end)
    local handle = cache.handle(f)
    assert.equal(1, f())
    assert.equal(2, handle:refresh())
    assert.equal(2, f())
    settled()
    assert.equal("2", server:cli("GET", key))
    assert.equal(1, handle:invalidate())
    assert.equal(0, handle:invalidate())
    assert.equal(3, f())
    settled()
    assert.equal(3, handle:with { only_if_cached = true }())
    assert.equal(4, handle:with { force_refresh = true }())
    assert.equal(5, handle:with { bypass = true }())
    assert.equal(4, f())
    assert.equal(4, handle:stats().loads)
  end)

  it("runs fn directly where it cannot wait", function()
    local f, counter = wrap(function(word) return "<" .. word .. ">" end)
    local g = cache.multi_cached(function(keys) return { [keys[1]] = "[" .. keys[1] .. "]" } end,
      { alias = "persistent", name = name() })
    assert.equal("<a> <a>", (("a a"):gsub("%w", f)))
    assert.equal("[a] [b]", (("a b"):gsub("%w", function(w) return g({ w })[w] end)))
    assert.equal(2, counter.calls)
    local weight = wrap(function() return 1 end)
    local list = { 3, 1, 2 }
    table.sort(list, function(a, b) return a * weight() < b * weight() end)
    assert.same({ 1, 2, 3 }, list)
    assert.equal(0, calls(server, "get") + calls(server, "mget") + calls(server, "set"))
    local ok, err = pcall(string.gsub, "a", "a", function() return persistent:get "k" end)
    assert.is_false(ok)
    assert.truthy(tostring(err):find("get", 1, true), err)
    assert.equal("<a>", f "a") -- and as ever where it can
    assert.equal(1, calls(server, "get"))
  end)

  it("takes no answer, any error and a dead server for a miss", function()
    local own = redis.start()
    support.settle_on(own, { redis_timeout = 0.05 })
    finally(start)
    local f, counter = wrap(function() return "loaded" end)
    local g = cache.multi_cached(function(keys)
      local map = {}
      for _, key in ipairs(keys) do map[key] = "many " .. key end
      return map
    end, { alias = "persistent", name = name() })
    local function works()
      assert.same({ "loaded" }, { f() })
      assert.same({ a = "many a", b = "many b" }, g { "a", "b" })
    end
    works()
    own:freeze()
    works()
    own:thaw()
    own:kill()
    works()
    works()
    assert.truthy(counter.calls >= 3)
  end)

  it("has hooks around its look-ups and stores", function()
    local seen = {}
    local plugin = {
      pre_get = function(_, key) seen[#seen + 1] = "pre_get " .. key end,
      post_get = function(client, key, _, took, ret)
        assert.is_true(client == persistent and took >= 0)
        seen[#seen + 1] = ("post_get %s %s"):format(key, tostring(ret))
      end,
      pre_set = function(_, key, opts)
        seen[#seen + 1] = ("pre_set %s %s"):format(key, opts and opts.ttl)
        task.sleep(0.001) -- a hook may wait
      end,
      post_set = function(_, key, _, took, ret)
        assert.is_true(took >= 0)
        seen[#seen + 1] = ("post_set %s %s"):format(key, tostring(ret))
      end,
    }
    cache.configure_caches { aliases = { persistent = { plugins = { plugin } } } }
    finally(function() cache.configure_caches { aliases = { persistent = {} } } end)
    local f = wrap(function() return "v" end, { key = "hooked", ttl = 9 })
    f()
    f()
    persistent:set("k", 1, 8)
    persistent:get "k"
    assert.same({ "pre_get hooked", "post_get hooked nil", "pre_set hooked 9",
      "post_set hooked true", "pre_get hooked", "post_get hooked v", "pre_set k 8",
      "post_set k true", "pre_get k", "post_get k 1" }, seen)
  end)

  it("does not wait with wait = false; failures are counted", function()
    assert.is_true(persistent:set("k", "v", { wait = false }))
    assert.equal("v", persistent:get "k")
    assert.is_true(persistent:multi_set({ a = 1, b = 2 }, { wait = false }))
    assert.same({ a = 1, b = 2 }, persistent:multi_get { "a", "b" })
    persistent:delete("k", { wait = false })
    assert.is_false(persistent:exists "k")
    assert.equal("a", (("a"):gsub("a", function() -- also where nobody can wait
      assert.is_true(persistent:set("k", "from gsub", { wait = false }))
    end)))
    assert.equal("from gsub", persistent:get "k")
    server:cli("LPUSH", "list", 1)
    local before = persistent:stats().unawaited_lost
    server:cli("CONFIG", "SET", "maxmemory", "1")
    assert.is_true(persistent:set("other", "v", { wait = false }))
    settled()
    server:cli("CONFIG", "SET", "maxmemory", "0")
    assert.equal(before + 1, persistent:stats().unawaited_lost)
    assert.equal(0, persistent:stats().unawaited)
  end)

  it("sends what was set without waiting before the script ends", function()
    support.run([[cache.persistent:set("last", "words", { wait = false })
      cache.cached(function() return "loaded" end, { alias = "persistent", key = "f" })()]],
      { CACHE_REDIS_URL = server.url })
    assert.equal("words", persistent:get "last")
    assert.equal("loaded", persistent:get "f")
  end)
end)

describe("cached whose alias moves during a load", function()
  after_each(support.unuse)

  it("gives the value to all, and stores it nowhere", function()
    start()
    empty()
    local f = wrap(function(n)
      task.sleep(0.03)
      return "r" .. n
    end, { key = "moved" })
    local first, second = task.spawn(f, 1), task.spawn(f, 1)
    task.sleep(0.01)
    support.unuse()
    assert.equal("r1", first:join())
    assert.equal("r1", second:join())
    assert.is_nil(persistent:get "moved")
    assert.equal("0", server:cli "DBSIZE")
  end)
end)

describe("multi_cached on Redis", function()
  setup(start)
  teardown(support.unuse)
  before_each(empty)

  local function many(fn, opts)
    local asked = {}
    opts = opts or {}
    opts.alias, opts.name = "persistent", name()
    return cache.multi_cached(function(keys, ...)
      asked[#asked + 1] = table.concat(keys, ",")
      return fn(keys, ...)
    end, opts), asked, opts.name
  end

  local function doubled(keys)
    local map = {}
    for _, key in ipairs(keys) do map[key] = { key .. key } end
    return map
  end

  it("asks in one MGET, and fn only for what is missing", function()
    local f, asked, prefix = many(doubled)
    persistent:set(prefix .. ":b", "there")
    assert.same({ a = { "aa" }, b = "there", c = { "cc" } }, f { "a", "b", "c", "a" })
    assert.same({ "a,c" }, asked)
    settled()
    assert.same({ a = { "aa" }, b = "there", c = { "cc" } }, f { "a", "b", "c" })
    assert.same({ "a,c" }, asked)
    assert.equal(2, calls(server, "mget"))
    assert.same({ "aa" }, persistent:get(prefix .. ":a"))
  end)

  it("loads each key once among many callers", function()
    local f, asked = many(function(keys)
      task.sleep(0.01)
      return doubled(keys)
    end)
    local tasks = {}
    for i = 1, 20 do
      tasks[i] = task.spawn(f, i % 2 == 0 and { "a", "b", "c" } or { "b", "c", "d" })
    end
    for i, each in ipairs(tasks) do
      assert.same(doubled(i % 2 == 0 and { "a", "b", "c" } or { "b", "c", "d" }), each:join())
    end
    local count = {}
    for key in table.concat(asked, ","):gmatch "%w" do count[key] = (count[key] or 0) + 1 end
    assert.same({ a = 1, b = 1, c = 1, d = 1 }, count)
  end)

  it("does not store what was changed meanwhile, but the rest", function()
    local f, prefix, _
    f, _, prefix = many(function(keys)
      persistent:delete(prefix .. ":a")
      persistent:set(prefix .. ":b", "newer")
      return doubled(keys)
    end)
    assert.same(doubled { "a", "b", "c" }, f { "a", "b", "c" })
    settled()
    assert.same({ [prefix .. ":b"] = "newer", [prefix .. ":c"] = { "cc" } },
      persistent:multi_get { prefix .. ":a", prefix .. ":b", prefix .. ":c" })
  end)

  it("keeps what fn gives beyond, unless there is a value", function()
    local f, asked, prefix = many(function() return { a = 1, extra = 2, old = 3 } end)
    persistent:set(prefix .. ":old", "newer")
    assert.equal(1, f({ "a" }).a)
    settled()
    assert.same({ extra = 2, old = "newer" }, f { "extra", "old" })
    assert.same({ "a" }, asked)
  end)

  it("remembers with neg_ttl what fn leaves out", function()
    local f, asked = many(function() return {} end, { neg_ttl = 5 })
    assert.same({}, f { "a", "b" })
    settled()
    assert.same({}, f { "b", "a" })
    assert.same({ "a,b" }, asked)
  end)

  it("gives nil, err as fn says it, and stores nothing", function()
    local f, asked = many(function() return nil, "sorry" end, { neg_ttl = 5 })
    assert.same({ nil, "sorry" }, { f { "a" } })
    settled()
    assert.same({ nil, "sorry" }, { f { "a" } })
    assert.equal(2, #asked)
    assert.equal("0", server:cli "DBSIZE")
  end)
end)
