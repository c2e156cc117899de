-- set with pin and weight: values that stay, values that count for more.
local cache = require "cache"
local redis = require "spec.support.redis"
local support = require "spec.cache.support"
local task = require "task"

local raises = support.raises
local ALIAS = "pin_spec"
local BOUND = 2 ^ 17

local c = cache.memory

local function use(definition)
  definition = definition or {}
  definition.max_bytes = definition.max_bytes or BOUND
  cache.configure_caches { aliases = { [ALIAS] = definition } }
  c = cache.get_cache(ALIAS)
end

local function fresh()
  support.fresh()
  use()
  c:clear()
end

local function forget() cache.configure_caches { aliases = { [ALIAS] = {} } } end

-- More than the store holds, and then some.
local function flood()
  local before, i = c:stats().evictions, 0
  repeat
    for _ = 1, 1000 do
      i = i + 1
      c:set("flood" .. i, ("x"):rep(200))
    end
  until c:stats().evictions - before > 3000 or i > 20000
  assert.is_true(i <= 20000)
end

describe("a pinned value", function()
  before_each(fresh)
  after_each(forget)

  it("survives a flood of others, and a plain one does not", function()
    c:set("pinned", { 1 }, { pin = true })
    c:set("plain", { 1 }, { pin = false })
    flood()
    assert.same({ 1 }, c:get "pinned")
    assert.is_nil(c:get "plain")
  end)

  it("may be of any kind, and is kept within the bound", function()
    local values = { number = 1.5, integer = 7, text = "x", yes = true, no = false, table = { 1 },
      null = cache.null }
    for key, value in pairs(values) do assert.is_true(c:set(key, value, { pin = true })) end
    flood()
    for key, value in pairs(values) do assert.same(value, c:get(key), key) end
    assert.is_true(c:stats().store.bytes <= BOUND)
  end)

  it("expires, and may be touched and counted, like any other", function()
    c:set("k", 1, { pin = true, ttl = 10 })
    c:set("l", 1, { pin = true, ttl = 10 })
    assert.equal(2, c:increment "k")
    assert.is_true(c:touch "k")
    assert.is_true(c:expire("l", 20))
    assert.is_true(math.abs(c:ttl "k" - 10) < 0.5)
    cache.testing.advance(10)
    assert.is_nil(c:get "k")
    assert.equal(1, c:get "l")
  end)

  it("is deleted and cleared like any other", function()
    c:set("k", 1, { pin = true })
    assert.equal(1, c:delete "k")
    assert.is_nil(c:get "k")
    c:set("k", 1, { pin = true })
    c:clear()
    assert.is_nil(c:get "k")
  end)

  it("is unpinned by a later set without pin, also by one of the same size", function()
    for _, value in ipairs { 2, ("another size"):rep(20) } do
      c:set("k", 1, { pin = true })
      c:set("k", value)
      flood()
      assert.is_nil(c:get "k")
    end
  end)

  it("is pinned by a later set with pin, also by one of the same size", function()
    c:set("k", 1)
    c:set("k", 2, { pin = true })
    flood()
    assert.equal(2, c:get "k")
  end)

  it("may also be set by multi_set, set_cached, a namespace and by reference", function()
    assert.is_true(c:multi_set({ a = 1, b = { 2 } }, { pin = true }))
    assert.is_true(cache.set_cached("c", 3, { alias = ALIAS, pin = true }))
    assert.is_true(c:with_namespace("ns"):set("d", 4, { pin = true }))
    assert.is_true(c:set("e", 5, { pin = true, namespace = "other" }))
    flood()
    assert.same({ a = 1, b = { 2 }, c = 3 }, c:multi_get { "a", "b", "c" })
    assert.equal(4, c:with_namespace("ns"):get "d")
    assert.equal(5, c:get("e", nil, { namespace = "other" }))
    use { serializer = "none" }
    local fn = function() end
    assert.is_true(c:set("f", fn, { pin = true }))
    flood()
    collectgarbage()
    assert.equal(fn, c:get "f")
  end)

  it("is too large when half of the store is pinned already", function()
    local function pin(key, value)
      return select(2, c:set(key, value:rep(1000), { pin = true }))
    end
    local stored, err = 0, pin("k0", "x")
    while not err do
      stored = stored + 1
      err = pin("k" .. stored, "x")
    end
    assert.equal("too_large", err.code)
    assert.matches("^set: .*half", tostring(err))
    assert.is_true(stored * 1000 <= BOUND / 2 and stored * 1000 > BOUND / 4)
    assert.is_true(c:set("plain", ("x"):rep(1000)))
    flood()
    for i = 0, stored - 1 do assert.is_string(c:get("k" .. i)) end
    local many, failed = c:multi_set({ more = ("x"):rep(1000) }, { pin = true })
    assert.is_nil(many)
    assert.equal("too_large", failed.code)
    assert.same({ "more" }, failed.keys)
    c:delete "k0"
    assert.is_nil(pin("k0", "x"))
    assert.is_nil(pin("k1", "y"))
  end)
end)

describe("a value with a weight", function()
  before_each(fresh)
  after_each(forget)

  -- How many of these fit.
  local function room(opts)
    c:clear()
    for i = 1, 1000 do assert.is_true(c:set("k" .. i, 1, opts)) end
    return c:stats().entries
  end

  it("leaves room for fewer", function()
    local plain, heavy = room(), room { weight = 4096 }
    assert.is_true(plain > 500)
    assert.is_true(heavy <= BOUND / 4096 and heavy >= BOUND / 4096 / 4, heavy)
    assert.is_true(c:stats().store.bytes <= BOUND)
    assert.equal(plain, room { weight = 0 })
  end)

  it("is too large above its share, which costs the others nothing", function()
    c:set("other", 1)
    for _, weight in ipairs { BOUND, 2 ^ 31 } do
      local ok, err = c:set("k", 1, { weight = weight })
      assert.is_nil(ok)
      assert.equal("too_large", err.code)
      assert.matches("weight", tostring(err))
    end
    assert.equal(1, c:get "other")
  end)

  it("gives its weight back when it goes", function()
    local before = c:stats().store.bytes
    for i = 1, 100 do
      c:set("k", i, { weight = 8192, pin = i % 2 == 0 })
      c:set("k", i, { weight = 16 * i })
    end
    assert.is_true(c:stats().store.bytes - before < 4096)
    c:delete "k"
    assert.is_true(c:stats().store.bytes <= before)
  end)
end)

describe("pin and weight, misused,", function()
  before_each(fresh)
  after_each(forget)

  it("raise", function()
    local function set(opts) return c.set, c, "k", 1, opts end
    local BYTES = "set: weight must be an integer from 0 to 2^31, not "
    raises("set: pin must be a boolean, not 1", set { pin = 1 })
    raises("set: pin must be a boolean, not string", set { pin = "yes" })
    raises(BYTES .. "-1", set { weight = -1 })
    raises(BYTES .. "1.5", set { weight = 1.5 })
    raises(BYTES, set { weight = 0 / 0 })
    raises(BYTES .. "inf", set { weight = math.huge })
    raises(BYTES .. "2147483649", set { weight = 2 ^ 31 + 1 })
    raises(BYTES .. "string", set { weight = "5" })
    raises("multi_set: pin must be a boolean", c.multi_set, c, { k = 1 }, { pin = 1 })
    raises("set_cached: pin must be a boolean", cache.set_cached, "k", 1, { pin = 1 })
  end)

  it("raise in the other calls", function()
    for _, name in ipairs { "pin", "weight" } do
      local opts = { [name] = name == "pin" or 1 }
      local text = (": the option '%s' is one of set and multi_set"):format(name)
      raises("add" .. text, c.add, c, "k", 1, opts)
      raises("get" .. text, c.get, c, "k", nil, opts)
      raises("increment" .. text, c.increment, c, "k", 1, opts)
      raises("cached: the option '" .. name .. "' is unknown", cache.cached, print, opts)
    end
  end)

  it("raise on an alias in Redis, which has neither, unless they ask for nothing", function()
    if redis.missing() then return pending(redis.missing()) end
    local server = redis.start()
    task.defer(cache.configure_caches, { redis_url = "" })
    task.defer(forget)
    cache.configure_caches { redis_url = server.url,
      aliases = { [ALIAS] = { backend = "redis" } } }
    local text = ": pin and weight are for memory, and 'pin_spec' lives in Redis"
    raises("set" .. text, c.set, c, "k", 1, { pin = true })
    raises("set" .. text, c.set, c, "k", 1, { weight = 1 })
    raises("multi_set" .. text, c.multi_set, c, { k = 1 }, { pin = true })
    raises("set_cached" .. text, cache.set_cached, "k", 1, { alias = ALIAS, pin = true })
    assert.is_true(c:set("k", 1, { pin = false, weight = 0 }))
  end)
end)

describe("stats().store", function()
  before_each(fresh)
  after_each(forget)

  it("has the numbers of the alias's own store", function()
    local before = c:stats().store
    assert.equal(BOUND, before.max_bytes)
    for i = 1, 100 do c:set("k" .. i, ("x"):rep(100)) end
    local store = c:stats().store
    assert.equal(100, store.entries - before.entries)
    assert.is_true(store.live_bytes - before.live_bytes >= 10000)
    assert.is_true(store.bytes >= store.live_bytes and store.bytes <= BOUND)
    assert.is_true(store.index_bytes > 0 and store.shards >= 1)
    assert.is_true(store.small_share >= 0 and store.small_share <= 1)
  end)

  it("has those of the common one, with all its aliases", function()
    local before = cache.memory:stats().store
    cache.memory:set("k", 1)
    cache.persistent:set("k", 1)
    assert.equal(2, cache.memory:stats().store.entries - before.entries)
    assert.equal(cache.memory:stats().max_bytes, cache.persistent:stats().store.max_bytes)
  end)
end)
