-- on_evict: hooks that are told of values that have left the memory.
local cache = require "cache"
local process = require "spec.support.process"
local redis = require "spec.support.redis"
local support = require "spec.cache.support"
local task = require "task"
local tasks = require "spec.support.tasks"

local ALIAS = "evict_spec"
local MIB = 2 ^ 20

local c, told = cache.memory, {}

local function note(_, key, reason) told[#told + 1] = key .. " " .. reason end

-- The alias, empty, with these fields and an on_evict.
local function use(definition, on_evict)
  definition = definition or {}
  definition.plugins = { { on_evict = on_evict or note } }
  cache.configure_caches { aliases = { [ALIAS] = definition } }
  c = cache.get_cache(ALIAS)
end

-- Waits until this many events were told; then there must be no more.
local function expect(...)
  tasks.await(function() return #told >= 1 end)
  tasks.settle()
  assert.same({ ... }, told)
  told = {}
end

local function nothing_since(count)
  task.sleep(0.002)
  tasks.settle()
  assert.equal(count, #told)
end

local function nothing()
  nothing_since(0)
end

local function fresh()
  support.fresh()
  cache.configure_caches { aliases = { [ALIAS] = {} } }
  told = {}
  use()
end

local function forget() cache.configure_caches { aliases = { [ALIAS] = {} } } end

describe("on_evict", function()
  before_each(fresh)
  after_each(forget)

  it("must be a function", function()
    support.raises("plugins[1].on_evict must be a function, not boolean",
      cache.configure_caches, { aliases = { [ALIAS] = { plugins = { { on_evict = true } } } } })
  end)

  it("is told of a deleted value, once", function()
    c:set("k", 1)
    c:delete "k"
    c:delete "k"
    expect "k deleted"
    c:multi_set { a = 1 }
    c:multi_delete { "a", "b" }
    expect "a deleted"
  end)

  it("is told of a replaced value, whichever way it was", function()
    c:set("k", 1)
    c:set("k", 2)
    expect "k replaced"
    c:set("k", ("another size"):rep(100))
    expect "k replaced"
    c:multi_set { k = 3 }
    expect "k replaced"
    local f = cache.cached(function() return 4 end, { alias = ALIAS, key = "k" })
    assert.equal(4, cache.handle(f):refresh())
    expect "k replaced"
    c:add("k", 5)
    nothing()
  end)

  it("is told of what clear takes, and of no neighbour", function()
    local ns = c:with_namespace "ns"
    c:set("k", 1)
    ns:set("k", 1)
    ns:clear()
    expect "ns:k cleared"
    c:clear()
    expect "k cleared"
  end)

  it("is told of an expired value once that is noticed", function()
    c:set("k", 1, 10)
    c:set("l", 1, 10)
    cache.testing.advance(10)
    c:get "k"
    c:set("l", 2)
    expect("k expired", "l expired")
  end)

  it("is told of what was evicted for room, of each once", function()
    use { max_bytes = 2 ^ 16 }
    local left = {}
    for i = 1, 2000 do c:set("k" .. i, ("x"):rep(100)) end
    local evictions = c:stats().evictions
    assert.is_true(evictions > 1000)
    tasks.await(function() return #told >= evictions end)
    tasks.settle()
    assert.equal(evictions, #told)
    for _, each in ipairs(told) do
      local key = each:match "^(k%d+) size$"
      assert.is_string(key, each)
      assert.is_nil(left[key], key)
      assert.is_false(c:exists(key))
      left[key] = true
    end
  end)

  it("is told in the order in which values left", function()
    local expected = {}
    for i = 1, 1000 do
      c:set("k" .. i, i)
      c:delete("k" .. i)
      expected[i] = ("k%d deleted"):format(i)
    end
    tasks.await(function() return #told >= 1000 end)
    assert.same(expected, told)
  end)

  it("gets the client, and the key without the alias's namespace", function()
    local client
    use({ namespace = "app" }, function(object, ...)
      client = object
      note(object, ...)
    end)
    c:set("k", 1)
    c:with_namespace("sub"):set("k", 1)
    c:set("k", 1, { namespace = "other" })
    c:set("k", 1, { namespace = "" })
    c:delete "k"
    c:with_namespace("sub"):delete "k"
    c:delete("k", { namespace = "other" })
    c:delete("k", { namespace = "" })
    expect("k deleted", "sub:k deleted", "other:k deleted", "k deleted")
    assert.equal(cache.get_cache(ALIAS), client)
  end)

  it("gets keys of any bytes and any length", function()
    local keys = { "\0", "a\0b", ("l"):rep(65536), ("m"):rep(20000), "\255" }
    local seen = {}
    use(nil, function(_, key) seen[#seen + 1] = key end)
    for _ = 1, 3 do
      for _, key in ipairs(keys) do
        c:set(key, 1)
        c:delete(key)
      end
    end
    tasks.await(function() return #seen >= 15 end)
    for i, key in ipairs(seen) do assert.is_true(key == keys[(i - 1) % 5 + 1], i) end
  end)

  it("runs in a task of the runtime's, after the call that it is about", function()
    local here
    use(nil, function(...)
      here = task.current()
      note(...)
    end)
    c:set("k", 1)
    c:delete "k"
    assert.same({}, told)
    expect "k deleted"
    assert.not_equal(task.current(), here)
    assert.equal("on_evict", here:name())
  end)

  it("may wait, and then the next one waits for it", function()
    local running, most = 0, 0
    use(nil, function(...)
      running = running + 1
      most = math.max(most, running)
      task.sleep(0.002)
      running = running - 1
      note(...)
    end)
    for i = 1, 3 do c:set("k" .. i, 1) end
    for i = 1, 3 do c:delete("k" .. i) end
    tasks.await(function() return #told >= 3 end)
    assert.same({ "k1 deleted", "k2 deleted", "k3 deleted" }, told)
    assert.equal(1, most)
  end)

  it("may change the cache, also so that it is told of that", function()
    use(nil, function(client, key, reason)
      note(client, key, reason)
      if key == "a" then
        client:set("b", 1)
        client:delete "b"
      end
    end)
    c:set("a", 1)
    c:delete "a"
    tasks.await(function() return #told >= 2 end)
    assert.same({ "a deleted", "b deleted" }, told)
  end)

  it("lets other tasks run, even when it never comes to an end", function()
    local turns = 0
    use({ max_bytes = MIB }, function(client)
      turns = turns + 1
      client:set("k", 1)
      client:delete "k"
    end)
    c:set("k", 1)
    c:delete "k"
    tasks.await(function() return turns > 1000 end)
    forget()
  end)

  it("of several plugins runs in their order; one that raises is logged and ignored", function()
    local result = process.run { "-", input = [[
      local cache = require "cache"
      local function say(what) return { on_evict = function(_, key) print(what, key) end } end
      cache.configure_caches { aliases = { a = { plugins = {
        say "one", { on_evict = function() error "broken" end }, {}, say "two" } } } }
      local a = cache.get_cache "a"
      a:set("k", 1)
      a:delete "k"]] }
    assert.equal("one\tk\ntwo\tk\n", result.out)
    assert.matches("plugin on_evict failed: .*broken", result.err)
    assert.equal(0, result.code)
  end)

  it("is not told while caching is off", function()
    c:set("k", 1)
    cache.configure_caches { enabled = false }
    require("cache.alias").clear_all()
    cache.configure_caches { enabled = true }
    nothing()
    c:set("k", 1)
    c:delete "k"
    expect "k deleted"
  end)

  it("is told no more once the alias is configured without it", function()
    c:set("k", 1)
    forget()
    c:delete "k"
    nothing()
    use()
    c:set("k", 1)
    c:delete "k"
    cache.configure_caches { aliases = { [ALIAS] = { plugins = { {} } } } }
    nothing()
  end)

  it("is told of what an alias leaves behind that moves to another store", function()
    c:set("k", 1)
    use { max_bytes = MIB }
    expect "k cleared"
    c:set("k", 2)
    c:delete "k"
    expect "k deleted"
    use()
    c:set("k", 3)
    c:delete "k"
    expect "k deleted"
  end)

  it("is told of its own alias only", function()
    cache.memory:set("k", 1)
    cache.memory:delete "k"
    nothing()
  end)

  it("goes together with values by reference", function()
    use { serializer = "none" }
    local weak = setmetatable({}, { __mode = "k" })
    for i = 1, 20 do
      local value = { i }
      weak[value] = true
      c:set("k", value)
    end
    c:delete "k"
    tasks.await(function() return #told >= 20 end)
    assert.equal("k replaced", told[19])
    assert.equal("k deleted", told[20])
    for _ = 1, 4 do collectgarbage() end
    assert.is_nil(next(weak))
    cache.configure_caches { aliases = { [ALIAS] = { serializer = "none" } } }
    c:set("k", function() end)
    c:delete "k"
    nothing_since(20)
  end)

  it("is no task that a test leaves behind", function()
    use(nil, function() task.sleep(0.01) end)
    for i = 1, 2 do
      c:set("k", i)
      c:delete "k"
    end
  end)

  it("leaves no task behind", function()
    tasks.leaves_nothing(function()
      c:set("k", 1)
      c:delete "k"
      expect "k deleted"
    end)
  end)

  it("drops what is too much, counts it, and warns once", function()
    local result = process.run { "-", input = [[
      local cache, task = require "cache", require "task"
      local told = 0
      cache.configure_caches { aliases = { a = { plugins = {
        { on_evict = function() told = told + 1 end } } } } }
      local a = cache.get_cache "a"
      for _ = 1, 2 do
        for i = 1, 70000 do a:set("k", i) end
        repeat task.sleep(0.001) until require("moonstash.backend").events() == 0
      end
      print(told + a:stats().evict_events_lost, a:stats().evict_events_lost > 0)
      local long = ("x"):rep(65000)
      for i = 1, 400 do a:set(long, i) end
      local lost = a:stats().evict_events_lost
      a:set(long, 0)
      print(a:stats().evict_events_lost - lost)
      ]] }
    assert.equal("139999\ttrue\n1\n", result.out)
    local _, warnings = result.err:gsub("on_evict: more events", "")
    assert.equal(1, warnings)
  end)

  it("on Redis is accepted, and never called", function()
    if redis.missing() then return pending(redis.missing()) end
    local server = redis.start()
    cache.configure_caches { redis_url = server.url }
    use { backend = "redis" }
    assert.is_true(c:set("k", 1))
    assert.is_true(c:set("k", 2))
    assert.equal(1, c:delete "k")
    nothing()
    cache.configure_caches { aliases = { [ALIAS] = {} }, redis_url = "" }
  end)
end)

describe("on_evict at the end of a script", function()
  local function run(script)
    return process.run { "-", input = [[
      local cache, task = require "cache", require "task"
      local function use(on_evict)
        cache.configure_caches { aliases = { a = { plugins = { { on_evict = on_evict } } } } }
        return cache.get_cache "a"
      end
    ]] .. script }
  end

  it("is still told of what has left", function()
    local result = run [[
      local a = use(print)
      a:set("k", 1)
      a:delete "k"]]
    assert.equal("cache 'a'\tk\tdeleted\n", result.out)
    assert.equal("", result.err)
  end)

  it("may still wait then", function()
    local result = run [[
      local a = use(function(_, key)
        task.sleep(0.01)
        print(key)
      end)
      for _, key in ipairs { "a", "b" } do a:set(key, 1) a:delete(key) end]]
    assert.equal("a\nb\n", result.out)
    assert.equal(0, result.code)
  end)

  it("is not interrupted by the end", function()
    local result = run [[
      local a, begun = nil, task.event()
      a = use(function(_, key)
        begun:set()
        task.sleep(0.01)
        print(key)
      end)
      for _, key in ipairs { "a", "b" } do a:set(key, 1) a:delete(key) end
      begun:wait()]]
    assert.equal("a\nb\n", result.out)
  end)

  it("is told of what tasks do as they end", function()
    local result = run [[
      local a = use(print)
      task.spawn_detached(function()
        task.defer(function() a:delete "k" end)
        a:set("k", 1)
        task.sleep(100)
      end)
      task.sleep(0.001)]]
    assert.equal("cache 'a'\tk\tdeleted\n", result.out)
  end)

  it("wakes a script that waits for nothing else", function()
    local result = run [[
      local gone = task.event()
      local a = use(function() gone:set() end)
      a:set("k", 1)
      a:delete "k"
      gone:wait()
      print "gone"]]
    assert.equal("gone\n", result.out)
    assert.equal("", result.err)
  end)

  it("does not hide a deadlock", function()
    local result = run [[
      local a = use(function() task.event():wait() end)
      a:multi_set { a = 1, b = 2 }
      a:multi_delete { "a", "b" }
      task.event():wait()]]
    assert.matches("deadlock: every task waits", result.err)
    assert.equal(1, result.code)
  end)

  it("leaves a script that is cancelled by a signal its code", function()
    local p = process.start { "-", input = [[
      local cache, task = require "cache", require "task"
      cache.configure_caches { aliases = { a = { plugins = { { on_evict = print } } } } }
      local a = cache.get_cache "a"
      a:set("k", 1)
      task.defer(function() a:delete "k" end)
      io.stdout:write "ready\n"
      io.stdout:flush()
      task.sleep(100)]] }
    p:wait_for "ready"
    p:kill(15)
    local result = p:wait()
    assert.equal(15, result.signal)
    assert.equal("ready\ncache 'a'\tk\tdeleted\n", result.out)
  end)
end)
