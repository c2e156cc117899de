-- What every backend does, case by case: the same file runs for each alias of
-- the list below (and, by drivers_spec.lua, with the memory backend's other
-- driver). Numbers are those of aiocache's own tests, letters those of
-- its bugs, which must go right here (research/aiocache.md sections 2 and 4).
--
-- A backend of the list:
--   alias       its name; aliases: what configure_caches needs for it
--   in_process  time passes as a test says, and there are no commands (raw)
--   too_large   a value that it refuses, if there is one
local cache = require "cache"
local support = require "spec.cache.support"
local task = require "task"
local time = require "spec.support.time"

local raises, settle = support.raises, support.settle
local null, huge = cache.null, math.huge
local MIB = 2 ^ 20
local TOO_LARGE = ("x"):rep(200 * 1024) -- of a store of 1 MiB

local on_redis = cache.settings.redis_url ~= nil -- spec/redis/contract_spec.lua's run
local backends = {
  { alias = "memory", in_process = true, too_large = TOO_LARGE },
  on_redis and { alias = "persistent" }
    or { alias = "persistent", in_process = true, too_large = TOO_LARGE },
  { alias = "contract_own", in_process = true, too_large = TOO_LARGE,
    aliases = { contract_own = { backend = "memory", max_bytes = MIB } } },
}

local c, backend -- the Cache object and the backend of the case that runs

local function fresh()
  support.fresh()
  cache.configure_caches { memory_max_bytes = MIB, aliases = backend.aliases }
  c = cache.get_cache(backend.alias)
  c:clear()
end

local function seconds(units) return units * time.unit(backend) end
local function pass(units) time.pass(backend, units) end

local function pack(...) return { n = select("#", ...), ... } end

local names = 0
-- cached or multi_cached on the backend's alias, and the counter of fn's calls.
local function wrap(make, fn, opts)
  local load, counter = support.counted(fn)
  opts = opts or {}
  opts.alias = backend.alias
  names = names + 1
  if not (opts.name or opts.key or opts.key_builder) then opts.name = "contract." .. names end
  return make(load, opts), counter
end

local function together(n, fn, ...)
  local tasks = {}
  for i = 1, n do tasks[i] = task.spawn(fn, ...) end
  settle()
  return tasks
end

-- ---- single keys ---------------------------------------------------------------

local function reading()
  it("gives nil for a missing key, or the default (1)", function()
    assert.same(pack(nil), pack(c:get "k"))
    assert.same(pack(1), pack(c:get("k", 1)))
    assert.same(pack(false), pack(c:get("k", false)))
    assert.equal(null, c:get("k", null))
  end)

  it("gives what was set (2, 9)", function()
    assert.same(pack(true), pack(c:set("k", "value")))
    assert.same(pack "value", pack(c:get "k"))
    assert.same(pack "value", pack(c:get("k", "default")))
  end)

  it("takes a stored false, 0, empty string and cache.null for hits (3)", function()
    for _, value in ipairs { false, 0, "", null } do
      c:set("k", value)
      assert.equal(value, c:get("k", "default"))
      assert.is_true(c:exists "k")
      assert.is_false(c:add("k", "other"))
      local found = c:multi_get { "k" }
      assert.equal(value, found.k)
    end
  end)

  it("gives the default when loads says there is nothing (4)", function()
    c:set("k", "v", { dumps = function(v) return v end })
    assert.equal(1, c:get("k", 1, { loads = function() return nil end }))
  end)

  it("gives back every kind of value, as it was", function()
    local values = { true, 1, -1, 0.5, -1e300, 2 ^ 53, -2 ^ 53, 2 ^ 53 + 2, 2 ^ 60, huge, -huge,
      "", "text", ("x"):rep(10000), "\0\1\255\r\n$5\r\n", { 1, 2, { a = "b" } }, {},
      { [3] = true }, { [1.5] = "x", [true] = 0 }, 9007199254740993LL, 18446744073709551615ULL }
    for _, value in ipairs(values) do
      c:set("k", value)
      assert.same(value, c:get "k")
    end
    c:set("k", 0 / 0)
    local nan = c:get "k"
    assert.is_true(nan ~= nan)
  end)

  it("tells -0 from 0", function()
    c:set("k", -0)
    assert.equal(-huge, 1 / c:get "k")
    c:set("k", 0)
    assert.equal(huge, 1 / c:get "k")
    c:set("k", { -0 })
    assert.equal(-huge, 1 / c:get("k")[1])
  end)

  it("keeps what a caller does to a value out of the cache (n)", function()
    local value = { list = { 1 } }
    c:set("k", value)
    value.list[1] = "changed"
    assert.same({ list = { 1 } }, c:get "k")
    c:get("k").list[1] = "changed"
    assert.same({ list = { 1 } }, c:get "k")
    c:multi_get({ "k" }).k.list[1] = "changed"
    assert.same({ list = { 1 } }, c:get "k")
  end)

  it("takes any bytes as a key (52)", function()
    local keys = { "hello world", "\0", "a\0b", "a\r\nb", "*", "ключ", ":", "{t}",
      ("k"):rep(65536) }
    for i, key in ipairs(keys) do c:set(key, i) end
    for i, key in ipairs(keys) do assert.equal(i, c:get(key), i) end
  end)

  it("takes dumps and loads for one call (118)", function()
    c:set("k", { 1, 2 }, { dumps = function(v) return table.concat(v, "+") end })
    assert.equal("<1+2>", c:get("k", nil, { loads = function(b) return "<" .. b .. ">" end }))
  end)
end

local function removing()
  it("removes nothing where nothing is: 0 (6)", function()
    assert.equal(0, c:delete "k")
  end)

  it("removes a key: 1 (7)", function()
    c:set("k", "v")
    assert.equal(1, c:delete "k")
    assert.is_nil(c:get "k")
    assert.equal(0, c:delete "k")
  end)

  it("does not care what the value was (8)", function()
    for _, value in ipairs { false, 0, "", null, { } } do
      c:set("k", value)
      assert.equal(1, c:delete "k")
      assert.is_false(c:exists "k")
    end
  end)

  it("adds what is not there (17)", function()
    assert.is_true(c:add("k", "v", { ttl = seconds(1) }))
    assert.equal("v", c:get "k")
    pass(1.2)
    assert.is_nil(c:get "k")
    assert.is_true(c:add("k", "again"))
    assert.equal("again", c:get "k")
  end)

  it("does not add what is there: false, and nothing changes (18)", function()
    c:set("k", "old", seconds(1))
    assert.is_false(c:add("k", "new", seconds(100)))
    assert.equal("old", c:get "k")
    pass(1.2)
    assert.is_nil(c:get "k")
  end)

  it("says whether a key exists, strictly as a boolean (19, 20)", function()
    assert.is_false(c:exists "k")
    c:set("k", false)
    assert.is_true(c:exists "k")
    c:delete "k"
    assert.is_false(c:exists "k")
  end)
end

-- ---- counters ------------------------------------------------------------------

local function counting()
  it("counts from 0 (21)", function()
    assert.equal(1, c:increment "a")
    assert.equal(2, c:increment("b", 2))
    assert.equal(-2, c:increment("c", -2))
    assert.equal(0, c:increment("d", 0))
    assert.equal(0, c:get "d")
  end)

  it("adds to an integer (22)", function()
    c:set("k", 2)
    assert.equal(4, c:increment("k", 2))
    assert.equal(5, c:increment("k", 1))
    assert.equal(2, c:increment("k", -3))
    assert.equal(2, c:get "k")
  end)

  it("refuses what is not an integer: code type (23)", function()
    for _, value in ipairs { "value", "12", "", 1.5, -0, 2 ^ 53 + 2, huge, true, false, null,
      {} } do
      c:set("k", value)
      local sum, err = c:increment "k"
      assert.is_nil(sum)
      assert.equal("type", err.code)
      assert.equal("increment: the value is not an integer", tostring(err))
      assert.same(value, c:get "k")
    end
  end)

  it("reads back as a number that may be set and added to (g)", function()
    c:increment("k", 41)
    assert.equal(41, c:get "k")
    assert.equal(41, c:multi_get({ "k" }).k)
    c:set("k", 7)
    assert.equal(8, c:increment "k")
    assert.equal(8, c:get "k")
  end)

  it("goes to 2^53 and not beyond: code range", function()
    for sign = -1, 1, 2 do
      c:set("k", sign * (2 ^ 53 - 1))
      assert.equal(sign * 2 ^ 53, c:increment("k", sign))
      local sum, err = c:increment("k", sign)
      assert.is_nil(sum)
      assert.equal("range", err.code)
      assert.equal(sign * 2 ^ 53, c:get "k")
      assert.equal(sign * 2 ^ 53 - sign, c:increment("k", -sign))
    end
    assert.equal("range", select(2, c:increment("k", 2 ^ 53)).code)
  end)

  it("makes a counter that never expires", function()
    c:increment "k"
    assert.equal(huge, c:ttl "k")
  end)

  it("gives a new counter opts.ttl, and leaves an old one's TTL", function()
    c:increment("k", 1, { ttl = seconds(2) })
    c:increment("k", 1, { ttl = seconds(100) })
    assert.is_true(c:ttl "k" <= seconds(2))
    pass(2.2)
    assert.equal(1, c:increment("k", 1, { ttl = 0 }))
    assert.equal(huge, c:ttl "k")
    c:set("k", 1, seconds(2))
    c:increment "k"
    pass(2.2)
    assert.is_false(c:exists "k")
  end)
end

-- ---- time ------------------------------------------------------------------------

local function living()
  it("lets a value go at the end of its TTL (12, 13)", function()
    for _, units in ipairs { 1, 1.5 } do
      assert.is_true(c:set("a", "v", seconds(units)))
      assert.is_true(c:set("b", "v", { ttl = seconds(units) }))
      pass(units - 0.4)
      assert.equal("v", c:get "a")
      assert.equal("v", c:get "b")
      pass(0.6)
      assert.is_nil(c:get "a")
      assert.is_nil(c:get "b")
      assert.is_false(c:exists "a")
      assert.is_nil(c:ttl "a")
      assert.equal(0, c:delete "a")
    end
  end)

  it("lets real time pass, too", function()
    c:set("k", "v", 0.2)
    assert.equal("v", c:get "k")
    task.sleep(0.25)
    assert.is_nil(c:get "k")
    c:set("k", "v", 0.0001) -- shorter than the clock can tell, but not never
    task.sleep(0.005)
    assert.is_nil(c:get "k")
  end)

  it("starts the TTL anew with each set (10)", function()
    c:set("k", "old", seconds(4))
    pass(2.1)
    c:set("k", "new", seconds(4))
    pass(2.1)
    assert.equal("new", c:get "k")
    pass(2)
    assert.is_nil(c:get "k")
  end)

  it("takes the old TTL away with each set", function()
    c:set("k", "v", seconds(1))
    c:set("k", "v", 0)
    pass(1.2)
    assert.equal("v", c:get "k")
  end)

  it("keeps a value for ever with 0, false and math.huge (11, 49, i)", function()
    for _, never in pairs { 0, huge, 1e300, [4] = false } do
      c:set("a", "v", never)
      c:set("b", "v", { ttl = never })
      c:add("c" .. tostring(never), "v", never)
      c:multi_set({ d = "v" }, never)
      for _, key in ipairs { "a", "b", "c" .. tostring(never), "d" } do
        assert.equal(huge, c:ttl(key))
      end
    end
    pass(1.2)
    assert.equal("v", c:get "a")
  end)

  it("uses the alias's default TTL (46, 47, 48)", function()
    local name = backend.alias == "persistent" and "persistent_ttl" or "default_ttl"
    cache.configure_caches { [name] = seconds(2) }
    c:set("set", 1)
    c:add("add", 1)
    c:multi_set { multi = 1 }
    c:set("longer", 1, seconds(20))
    for _, key in ipairs { "set", "add", "multi" } do
      assert.is_true(c:ttl(key) <= seconds(2) and c:ttl(key) > seconds(1), key)
    end
    pass(2.2)
    assert.same({ longer = 1 }, c:multi_get { "set", "add", "multi", "longer" })
    cache.configure_caches { [name] = 0 }
    c:set("set", 1)
    assert.equal(huge, c:ttl "set")
  end)

  it("expires what exists (24)", function()
    c:set("k", "v")
    assert.is_true(c:expire("k", seconds(1)))
    assert.is_true(c:ttl "k" <= seconds(1))
    pass(1.2)
    assert.is_nil(c:get "k")
    c:set("k", "v")
    assert.is_true(c:expire("k", seconds(1.5)))
    pass(1.2)
    assert.equal("v", c:get "k")
  end)

  it("takes the TTL away with expire 0 or false (25, 58)", function()
    for _, never in pairs { 0, huge, [3] = false } do
      c:set("k", "v", seconds(1))
      assert.is_true(c:expire("k", never))
      assert.equal(huge, c:ttl "k")
    end
    assert.is_true(c:expire("k", 0)) -- it has none: still there
    pass(1.2)
    assert.equal("v", c:get "k")
  end)

  it("cannot expire what is missing (26)", function()
    assert.is_false(c:expire("k", 1))
    assert.is_false(c:expire("k", 0))
    c:set("k", "v", seconds(1))
    pass(1.2)
    assert.is_false(c:expire("k", 100))
    assert.is_nil(c:get "k")
  end)

  it("tells the time left", function()
    assert.is_nil(c:ttl "k")
    c:set("k", "v", seconds(10))
    local left = c:ttl "k"
    assert.is_true(left <= seconds(10) and left > seconds(9))
    pass(2)
    assert.is_true(c:ttl "k" <= left - seconds(2))
  end)

  it("touches: a use, and a new TTL if there is one", function()
    assert.is_false(c:touch "k")
    c:set("k", "v", seconds(2))
    assert.is_true(c:touch "k")
    assert.is_true(c:ttl "k" <= seconds(2))
    assert.is_true(c:touch("k", seconds(10)))
    pass(2.2)
    assert.equal("v", c:get "k")
    assert.is_true(c:touch("k", 0))
    assert.equal(huge, c:ttl "k")
  end)

  it("does not let an old TTL remove what was set after clear or delete (e)", function()
    c:set("a", "old", seconds(1))
    c:set("b", "old", seconds(1))
    c:clear()
    c:set("a", "new", seconds(10))
    c:delete "b"
    c:set("b", "new", 0)
    pass(1.2)
    assert.equal("new", c:get "a")
    assert.equal("new", c:get "b")
  end)

  it("knows no entry younger than now, however many there are at once", function()
    if not backend.in_process then return end
    for i = 1, 30000 do
      c:set("k", i)
    end
    local age = c:info("k").age
    pass(60) -- until no number is ahead of the clock
    assert.is_true(age >= 0 and age < seconds(60))
  end)

  it("informs", function()
    assert.is_nil(c:info "k")
    c:set("k", "12345", seconds(10))
    pass(2)
    local info = c:info "k"
    assert.is_true(info.age >= seconds(2) and info.age < seconds(4))
    assert.is_true(info.ttl <= seconds(8) and info.ttl > seconds(6))
    assert.is_true(info.size >= 5)
    assert.equal("native", info.format)
    assert.is_string(info.tier)
    if backend.in_process then assert.same({ 5, "memory" }, { info.size, info.tier }) end
    c:set("k", 1, 0)
    assert.equal(huge, c:info("k").ttl)
  end)

  it("goes on when very many keys expire at once (r)", function()
    if not backend.in_process then return pending "the server's own affair" end
    for i = 1, 10000 do c:set("k" .. i, i, seconds(1)) end
    pass(1.2)
    local started = os.clock()
    for i = 1, 100 do c:get("k" .. i) c:set("new" .. i, i) end
    assert.is_true(os.clock() - started < 0.1)
  end)
end

-- ---- many keys ---------------------------------------------------------------------

local function bulk()
  it("gets the hits as a map (5)", function()
    c:set("KEY", "value")
    assert.same({ KEY = "value" }, c:multi_get { "KEY", "KEY_1" })
    assert.same({}, c:multi_get { "none", "at all" })
  end)

  it("sets a map (14)", function()
    assert.is_true(c:multi_set { a = "1", b = { 2 }, d = false })
    assert.same({ a = "1", b = { 2 }, d = false }, c:multi_get { "a", "b", "c", "d" })
    assert.equal("1", c:get "a")
  end)

  it("sets a TTL on all of them (15, 16)", function()
    for _, ttl in ipairs { seconds(1), seconds(1.5) } do
      c:multi_set({ a = 1, b = 2 }, ttl)
      c:multi_set({ c = 3 }, { ttl = ttl })
      assert.same({ a = 1, b = 2, c = 3 }, c:multi_get { "a", "b", "c" })
      pass(1.7)
      assert.same({}, c:multi_get { "a", "b", "c" })
    end
  end)

  it("removes and counts", function()
    c:multi_set { a = 1, b = 2, c = 3 }
    assert.equal(2, c:multi_delete { "a", "b", "none" })
    assert.same({ c = 3 }, c:multi_get { "a", "b", "c" })
    assert.equal(1, c:multi_delete { "c", "c" })
  end)

  it("takes empty lists and maps", function()
    assert.same({}, c:multi_get {})
    assert.is_true(c:multi_set {})
    assert.equal(0, c:multi_delete {})
  end)

  it("takes a key more than once", function()
    c:set("a", { 1 })
    local keys = { "a", "b", "a", "b" }
    assert.same({ a = { 1 } }, c:multi_get(keys))
    assert.same({ "a", "b", "a", "b" }, keys)
  end)

  it("takes very many", function()
    local map, keys = {}, {}
    for i = 1, 2000 do
      keys[i] = "key" .. i
      map[keys[i]] = ("x"):rep(i % 50)
    end
    assert.is_true(c:multi_set(map))
    assert.same(map, c:multi_get(keys))
    assert.equal(2000, c:multi_delete(keys))
    assert.same({}, c:multi_get(keys))
  end)

  it("sets what it can, and names the keys that it cannot", function()
    if not backend.too_large then return pending "no value is too large" end
    local ok, err = c:multi_set { a = 1, b = backend.too_large, c = 3, d = backend.too_large }
    assert.is_nil(ok)
    assert.equal("too_large", err.code)
    table.sort(err.keys)
    assert.same({ "b", "d" }, err.keys)
    assert.same({ a = 1, c = 3 }, c:multi_get { "a", "b", "c", "d" })
  end)

  it("gets what it can, and names the keys that it cannot read", function()
    c:multi_set({ a = "1", b = "bad", c = "3" }, { dumps = tostring })
    local function loads(bytes)
      if bytes == "bad" then error "no" end
      return tonumber(bytes)
    end
    local found, err = c:multi_get({ "a", "b", "c", "none" }, { loads = loads })
    assert.same({ a = 1, c = 3 }, found)
    assert.equal("decode", err.code)
    assert.same({ "b" }, err.keys)
  end)

  it("stores all or nothing when a value cannot be encoded", function()
    raises("multi_set: b: value.x is a function", c.multi_set, c, { a = 1, b = { x = print } })
    assert.same({}, c:multi_get { "a", "b" })
  end)

  it("refuses a value that is too large, and keeps the old one", function()
    if not backend.too_large then return pending "no value is too large" end
    c:set("k", "old")
    for _, op in ipairs { "set", "add" } do
      local ok, err = c[op](c, op == "set" and "k" or "other", backend.too_large)
      assert.is_nil(ok)
      assert.equal("too_large", err.code)
      assert.equal(op .. ": the key and value are too large for this cache", tostring(err))
    end
    assert.equal("old", c:get "k")
  end)

  it("stays within its bound (119)", function()
    if not backend.too_large then return pending "no bound" end
    for i = 1, 3000 do c:set("k" .. i, ("x"):rep(1000)) end
    local stats = c:stats()
    assert.is_true(stats.bytes <= MIB and stats.entries > 500 and stats.evictions > 1000)
    assert.equal(1000, #c:get "k3000")
    assert.equal(MIB, stats.max_bytes)
  end)
end

-- ---- namespaces ---------------------------------------------------------------------

local function namespaces()
  it("puts ns: before the keys (50, 51, 63)", function()
    local ns = c:with_namespace "test"
    ns:set("key", "v")
    assert.equal("v", c:get "test:key")
    assert.is_nil(c:get "key")
    c:set("test:other", "w")
    assert.equal("w", ns:get "other")
    assert.equal("v", c:get("key", nil, { namespace = "test" }))
  end)

  it("adds up", function()
    local inner = c:with_namespace("a"):with_namespace "b"
    inner:set("k", 1)
    assert.equal(1, c:get "a:b:k")
    assert.equal(1, c:with_namespace("a:b"):get "k")
    assert.equal(1, c:with_namespace("a"):get "b:k")
  end)

  it("may be another for one call, which replaces the object's (50)", function()
    local ns = c:with_namespace "own"
    local other, none = { namespace = "other" }, { namespace = "" }
    ns:set("k", "own")
    ns:set("k", "other", other)
    ns:set("k", "none", none)
    assert.same({ "own", "other", "none" }, { c:get "own:k", c:get "other:k", c:get "k" })
    assert.same({ "own", "other", "none" },
      { ns:get "k", ns:get("k", nil, other), ns:get("k", nil, none) })
    assert.is_false(ns:add("k", 1, other))
    assert.is_true(ns:exists("k", other))
    assert.is_true(ns:expire("k", 10, other))
    assert.is_true(ns:touch("k", nil, other))
    assert.is_true(ns:ttl("k", other) <= 10)
    assert.is_true(ns:info("k", other).ttl <= 10)
    assert.is_true(ns:multi_set({ m = 1 }, other))
    assert.same({ m = 1, k = "other" }, ns:multi_get({ "m", "k" }, other))
    assert.equal(1, ns:multi_delete({ "m" }, other))
    assert.equal(3, ns:increment("n", 3, other))
    assert.equal(3, c:get "other:n")
    assert.equal(1, ns:delete("k", other))
    assert.same({ "own", "none" }, { c:get "own:k", c:get "k" })
    assert.is_nil(c:get "other:k")
    ns:clear(nil, other)
    assert.is_nil(c:get "other:n")
    assert.equal("own", ns:get "k")
  end)

  it("never shares keys with a neighbour", function()
    local spaces = { "test", "testing", "tes", "a", "a:b", "ab", "*", "a*", "t?st", "[t]est", "\\*",
      "{test}", "te\0st", "TEST" }
    for _, space in ipairs(spaces) do c:with_namespace(space):set("k", space) end
    for _, space in ipairs(spaces) do assert.equal(space, c:with_namespace(space):get "k") end
  end)

  it("takes any bytes, but a namespace and a key of more than 64 KiB raise", function()
    local ns = c:with_namespace(("n"):rep(100))
    local key = ("k"):rep(65536)
    local text = ": the namespace and the key have 65637 bytes together, the most is 65536"
    for op, value in pairs { get = false, set = "v", add = "v", delete = false, exists = false,
      increment = 1, expire = 1, touch = 1, ttl = false, info = false } do
      raises(op .. text, ns[op], ns, key, value or nil)
    end
    raises("multi_get" .. text, ns.multi_get, ns, { "a", key })
    raises("multi_set" .. text, ns.multi_set, ns, { [key] = 1 })
    raises("multi_delete" .. text, ns.multi_delete, ns, { "a", key })
    assert.is_true(ns:set(key:sub(102), "fits"))
    assert.equal("fits", ns:get(key:sub(102)))
  end)
end

local function clearing()
  it("clears all (27, 30)", function()
    c:set("a", 1)
    c:with_namespace("ns"):set("b", 2)
    assert.is_true(c:clear())
    assert.is_false(c:exists "a")
    assert.is_false(c:exists "ns:b")
  end)

  it("clears a namespace (28)", function()
    c:set("k", 1, { namespace = "test" })
    c:set("k", 2)
    assert.is_true(c:clear "test")
    assert.is_false(c:exists("k", { namespace = "test" }))
    assert.equal(2, c:get "k")
  end)

  it("clears nothing without a word (29)", function()
    assert.is_true(c:clear())
    assert.is_true(c:clear "nobody")
    assert.is_true(c:with_namespace("nobody"):clear())
  end)

  it("clears only the object's own namespace (f)", function()
    local ns = c:with_namespace "ns"
    c:set("k", "root")
    ns:set("k", "ns")
    ns:with_namespace("inner"):set("k", "inner")
    assert.is_true(ns:clear())
    assert.is_nil(ns:get "k")
    assert.is_nil(c:get "ns:inner:k")
    assert.equal("root", c:get "k")
  end)

  it("clears an inner namespace and not its outer one", function()
    local outer = c:with_namespace "outer"
    outer:set("k", 1)
    outer:with_namespace("inner"):set("k", 2)
    outer:with_namespace("inner"):clear()
    assert.equal(1, outer:get "k")
    assert.is_nil(c:get "outer:inner:k")
  end)

  it("never clears a neighbour's keys, whatever the name holds (31, f)", function()
    local spaces = { "nm", "nma", "nmb", "no", "test", "testing", "*", "t*", "t?st", "[t]est",
      "\\*", "te\0st", "^test", "%w" }
    for _, cleared in ipairs(spaces) do
      for _, space in ipairs(spaces) do c:set("k", space, { namespace = space }) end
      c:clear(cleared)
      for _, space in ipairs(spaces) do
        local expected = space ~= cleared and space or nil
        assert.equal(expected, c:get("k", nil, { namespace = space }), space)
      end
    end
  end)

  it("clears what a key_builder has named, too (f)", function()
    local f, counter = wrap(cache.cached, function() return 1 end, {
      namespace = "built", key_builder = function() return "my key" end })
    f()
    c:clear "built"
    f()
    assert.equal(2, counter.calls)
  end)

  it("leaves the other aliases alone", function()
    local other = cache.get_cache(backend.alias == "memory" and "persistent" or "memory")
    other:set("k", "other")
    c:set("k", "mine")
    c:clear()
    assert.equal("other", other:get "k")
    assert.is_nil(c:get "k")
  end)
end

-- ---- what is asked wrongly -------------------------------------------------------------

-- name -> the arguments that a good call has before its options
local OF_A_KEY = {
  get = pack("k", nil), set = pack("k", 1), add = pack("k", 1), delete = pack "k",
  exists = pack "k", increment = pack("k", 1), expire = pack("k", 1), touch = pack("k", 1),
  ttl = pack "k", info = pack "k",
}
local OF_MANY = { multi_get = pack { "k" }, multi_set = pack { k = 1 },
  multi_delete = pack { "k" } }

local function each_call(tables, visit)
  for _, calls in ipairs(tables) do
    for op, args in pairs(calls) do visit(op, args) end
  end
end

-- The arguments, and one after them.
local function with(args, n, value)
  local all = { unpack(args, 1, args.n) }
  all[n] = value
  return unpack(all, 1, math.max(args.n, n))
end

local function misuse()
  it("raises for a key that is none", function()
    each_call({ OF_A_KEY }, function(op, args)
      for _, bad in pairs { 5, true, {}, print } do
        raises(op .. ": the key must be a string, not " .. type(bad), c[op], c, with(args, 1, bad))
      end
      raises(op .. ": the key must be a string, not nil", c[op], c)
      raises(op .. ": the key must have 1 to 65536 bytes, not 0", c[op], c, with(args, 1, ""))
      raises(op .. ": the key must have 1 to 65536 bytes, not 65537", c[op], c,
        with(args, 1, ("x"):rep(65537)))
    end)
  end)

  it("raises for options that are none, or unknown (34)", function()
    each_call({ OF_A_KEY, OF_MANY, { clear = pack(nil) } }, function(op, args)
      local takes_ttl = op == "set" or op == "add" or op == "multi_set"
      for _, bad in pairs { "x", true, print } do
        local says = takes_ttl and ": ttl must be" or ": options must be a table, not " .. type(bad)
        raises(op .. says, c[op], c, with(args, args.n + 1, bad))
      end
      raises(op .. ": the option 'tll' is unknown", c[op], c, with(args, args.n + 1, { tll = 1 }))
      raises(op .. ": the option '1' is unknown", c[op], c, with(args, args.n + 1, { "ttl" }))
      raises(op .. ": the option 'tags' is not in this version", c[op], c,
        with(args, args.n + 1, { tags = {} }))
    end)
  end)

  it("raises for an option of the wrong kind", function()
    each_call({ OF_A_KEY, OF_MANY, { clear = pack(nil) } }, function(op, args)
      local function refuses(text, opts)
        raises(op .. ": " .. text, c[op], c, with(args, args.n + 1, opts))
      end
      refuses("namespace must be a string, not 5", { namespace = 5 })
      refuses("namespace must be a string, not table", { namespace = {} })
      refuses("timeout must be a number of seconds >= 0, not -1", { timeout = -1 })
      refuses("timeout must be a number of seconds >= 0, not string", { timeout = "1" })
      refuses("timeout must be a number of seconds >= 0, not nan", { timeout = math.abs(0 / 0) })
    end)
    for _, op in ipairs { "set", "add", "multi_set" } do
      local value = op == "multi_set" and { k = 1 } or "k"
      local function refuses(text, opts)
        if op == "multi_set" then raises(op .. text, c[op], c, value, opts) end
        if op ~= "multi_set" then raises(op .. text, c[op], c, value, 1, opts) end
      end
      refuses(": dumps must be a function, not string", { dumps = "json" })
      refuses(": wait must be a boolean, not 0", { wait = 0 })
    end
    raises("get: loads must be a function, not string", c.get, c, "k", nil, { loads = "json" })
    raises("multi_get: loads must be a function, not table", c.multi_get, c, { "k" },
      { loads = {} })
  end)

  it("raises for a TTL that is none (45)", function()
    local says = ": ttl must be a number of seconds >= 0, or false for never, not "
    for _, bad in pairs { -1, -huge, math.abs(0 / 0), "5", "1.5", true, print } do
      local what = type(bad) == "number" and tostring(bad) or type(bad)
      raises("set" .. says .. what, c.set, c, "k", 1, bad)
      raises("set" .. says .. what, c.set, c, "k", 1, { ttl = bad })
      raises("add" .. says .. what, c.add, c, "k", 1, bad)
      raises("add" .. says .. what, c.add, c, "k", 1, { ttl = bad })
      raises("multi_set" .. says .. what, c.multi_set, c, { k = 1 }, bad)
      raises("expire" .. says .. what, c.expire, c, "k", bad)
      raises("touch" .. says .. what, c.touch, c, "k", bad)
      raises("increment" .. says .. what, c.increment, c, "k", 1, { ttl = bad })
    end
    raises("expire" .. says .. "nil", c.expire, c, "k")
    assert.is_false(c:exists "k")
  end)

  it("raises for a value that cannot be kept, and names the part", function()
    local cycle = { list = {} }
    cycle.list[1] = cycle
    local deep = {}
    for _ = 1, 33 do deep = { deep } end
    for _, op in ipairs { "set", "add" } do
      local function refuses(text, value) raises(op .. ": " .. text, c[op], c, "k", value) end
      refuses("the value is nil: use delete to remove a key", nil)
      refuses("value is a function, which cannot be cached", print)
      refuses("value is a userdata", io.stdout)
      refuses("value is a thread", coroutine.create(print))
      refuses("value.a.b[2] is a function", { a = { b = { 1, print } } })
      refuses("value[\"a b\"] is a userdata", { ["a b"] = io.stdout })
      refuses("value has a key that is a table", { [{}] = 1 })
      refuses("value.list[1] is a cycle", cycle)
      refuses("value" .. ("[1]"):rep(32) .. " is nested deeper than 32 tables", deep)
      refuses("value has a metatable", setmetatable({}, {}))
      refuses("value.x has a metatable", { x = setmetatable({}, {}) })
    end
    assert.is_false(c:exists "k")
  end)

  it("raises for other wrong arguments", function()
    for _, bad in pairs { 1.5, math.abs(0 / 0), huge, -huge, 2 ^ 54 } do
      raises("increment: delta must be an integer, not " .. tostring(bad), c.increment, c, "k", bad)
    end
    raises("increment: delta must be an integer, not string", c.increment, c, "k", "1")
    raises("increment: delta must be an integer, not table", c.increment, c, "k", {})
    for _, op in ipairs { "multi_get", "multi_delete" } do
      raises(op .. ": keys must be a list, not nil", c[op], c)
      raises(op .. ": keys must be a list, not string", c[op], c, "k")
      raises(op .. ": keys must be a list, not a map", c[op], c, { k = true })
      raises(op .. ": keys[2]: the key must be a string, not number", c[op], c, { "a", 5 })
      raises(op .. ": keys[1]: the key must have 1 to 65536 bytes, not 0", c[op], c, { "" })
    end
    raises("multi_set: a map of values by key expected, not string", c.multi_set, c, "k")
    raises("multi_set: a map of values by key expected, not nil", c.multi_set, c)
    raises("multi_set: the key must be a string, not number", c.multi_set, c, { "a" })
    raises("clear: the namespace must be a string, not number", c.clear, c, 5)
    raises("clear: the namespace must be a string, not table", c.clear, c, { namespace = "x" })
    raises("clear: the namespace must not be empty", c.clear, c, "")
    raises("clear: the namespace must not be empty", c.clear, c, nil, { namespace = "" })
    raises("with_namespace: the namespace must be a string, not empty", c.with_namespace, c, "")
    raises("with_namespace: the namespace must be a string, not nil", c.with_namespace, c)
    raises("raw: the command must be a string, not nil", c.raw, c)
  end)

  it("raises when the colon was forgotten", function()
    each_call({ OF_A_KEY, OF_MANY, { clear = pack(), stats = pack(), raw = pack "x",
      with_namespace = pack "n" } }, function(op, args)
      raises(op .. ": call it with a colon", c[op], unpack(args, 1, args.n))
    end)
  end)

  it("raises for what later versions will have", function()
    for _, op in ipairs { "fetch", "fetch_many", "refresh", "remove_by_tag", "scan", "health",
      "lock", "optimistic_lock" } do
      raises(op .. " is not in this version", c[op], c, "k")
    end
  end)

  it("takes a timeout with every call (40, 41)", function()
    for _, timeout in ipairs { 0, 0.5, 5, huge } do
      local opts = { timeout = timeout }
      assert.is_true(c:set("k", 1, opts))
      assert.equal(1, c:get("k", nil, opts))
      assert.is_false(c:add("k", 2, opts))
      assert.equal(2, c:increment("k", 1, opts))
      assert.is_true(c:exists("k", opts) and c:expire("k", 9, opts) and c:touch("k", 9, opts))
      assert.is_true(c:ttl("k", opts) <= 9 and c:info("k", opts).ttl <= 9)
      assert.is_true(c:multi_set({ m = 1 }, opts))
      assert.same({ m = 1 }, c:multi_get({ "m" }, opts))
      assert.equal(1, c:multi_delete({ "m" }, opts))
      assert.equal(1, c:delete("k", opts))
      assert.is_true(c:clear(nil, opts))
    end
  end)

  it("has commands of its own, or says that there are none (35, 36)", function()
    if not backend.in_process then return pending "the server's own commands" end
    local reply, err = c:raw("GET", "k")
    assert.is_nil(reply)
    assert.equal("unsupported", err.code)
    assert.equal("raw: the memory backend has no commands", tostring(err))
  end)
end

-- ---- disabled ------------------------------------------------------------------------------

local function disabled()
  local function off()
    cache.configure_caches { enabled = false }
  end

  it("answers every call as if nothing were cached (38)", function()
    c:set("k", "old")
    off()
    assert.same(pack(nil), pack(c:get "k"))
    assert.same(pack "default", pack(c:get("k", "default")))
    assert.same(pack(true), pack(c:set("k", "new")))
    assert.same(pack(true), pack(c:set("k", "new", { ttl = 5 })))
    assert.same(pack(true), pack(c:add("k", "new")))
    assert.same(pack(0), pack(c:delete "k"))
    assert.same(pack(false), pack(c:exists "k"))
    assert.same(pack(1), pack(c:increment "k"))
    assert.same(pack(-7), pack(c:increment("k", -7)))
    assert.same(pack(false), pack(c:expire("k", 1)))
    assert.same(pack(false), pack(c:touch "k"))
    assert.same(pack(nil), pack(c:ttl "k"))
    assert.same(pack(nil), pack(c:info "k"))
    assert.same({}, c:multi_get { "k" })
    assert.same(pack(true), pack(c:multi_set { k = "new" }))
    assert.same(pack(0), pack(c:multi_delete { "k" }))
    assert.same(pack(true), pack(c:clear()))
    assert.same(pack(true), pack(c:clear "ns"))
    assert.equal("default", c:with_namespace("ns"):get("k", "default"))
    assert.is_table(c:stats())
    cache.configure_caches { enabled = true }
    assert.equal("old", c:get "k")
  end)

  it("answers get_cached, set_cached, delete_cached and clear_cache so, too", function()
    local opts = { alias = backend.alias }
    cache.set_cached("k", "old", opts)
    off()
    assert.same(pack(nil), pack(cache.get_cached("k", opts)))
    assert.is_true(cache.set_cached("k", "new", opts))
    assert.equal(0, cache.delete_cached("k", opts))
    assert.is_true(cache.clear_cache(opts))
    cache.configure_caches { enabled = true }
    assert.equal("old", cache.get_cached("k", opts))
  end)

  it("still raises for what is asked wrongly", function()
    off()
    raises("get: the key must be a string, not nil", c.get, c)
    raises("set: the value is nil", c.set, c, "k")
    raises("set: ttl must be", c.set, c, "k", 1, -1)
    raises("get: the option 'tll' is unknown", c.get, c, "k", nil, { tll = 1 })
    raises("increment: delta must be an integer", c.increment, c, "k", 0.5)
    raises("multi_get: keys must be a list", c.multi_get, c)
    raises("multi_set: the key must be a string", c.multi_set, c, { 1 })
  end)

  it("takes values that could not be cached", function()
    off()
    assert.is_true(c:set("k", print))
    assert.is_true(c:multi_set { k = print })
    assert.equal(print, (wrap(cache.cached, function() return print end))())
  end)

  it("calls through wrappers, with all keys (c, d)", function()
    local f, counter = wrap(cache.cached, function(a) return a, nil end)
    local seen
    local m = wrap(cache.multi_cached, function(keys, extra)
      seen = { keys, extra }
      return { a = 1, b = 2 }
    end)
    f(1)
    m { "a", "b" }
    off()
    assert.same(pack(1, nil), pack(f(1)))
    assert.same(pack(1, nil), pack(f(1)))
    assert.equal(3, counter.calls)
    assert.same({ a = 1, b = 2 }, m({ "a", "b", "a" }, "extra"))
    assert.same({ { "a", "b", "a" }, "extra" }, seen)
    assert.same({ a = 1, b = 2 }, m {})
    assert.same({ {} }, seen)
    local handle = cache.handle(f)
    assert.equal(0, handle:invalidate(1))
    assert.equal(1, (handle:refresh(1)))
    assert.equal(4, counter.calls)
    assert.same(pack(), pack(handle:with { only_if_cached = true } (1)))
    assert.equal(4, counter.calls)
    cache.configure_caches { enabled = true }
    assert.equal(1, (f(1)))
    assert.equal(4, counter.calls)
  end)
end

-- ---- wrappers ---------------------------------------------------------------------------------

local function decorating()
  it("remembers until the TTL ends (60, 68)", function()
    local n = 0
    local f, counter = wrap(cache.cached, function()
      n = n + 1
      return n
    end, { key = "key", ttl = seconds(2) })
    assert.same({ 1, 1 }, { f(), f() })
    assert.equal(1, c:get "key")
    pass(2.2)
    assert.is_nil(c:get "key")
    assert.equal(2, f())
    assert.equal(2, counter.calls)
  end)

  it("asks key_builder for the key, with fn and its arguments (61, 67)", function()
    local seen
    local function fn(self, a, b) return self .. a .. tostring(b) end
    local f = cache.cached(fn, { alias = backend.alias, key_builder = function(...)
      seen = pack(...)
      return "built"
    end })
    f("self", 1, nil)
    assert.same(pack(fn, "self", 1, nil), seen)
    assert.equal("self1nil", c:get "built")
  end)

  it("keeps what cache_if accepts (62)", function()
    local f, counter = wrap(cache.cached, function(x) return x end,
      { cache_if = function(x) return x > 0 end })
    for _, x in ipairs { 1, 1, -1, -1 } do assert.equal(x, f(x)) end
    assert.equal(3, counter.calls)
  end)

  it("stores under its namespace, or under none (63)", function()
    local f = wrap(cache.cached, function() return 1 end, { key = "key", namespace = "ns" })
    local g = wrap(cache.cached, function() return 2 end, { key = "key" })
    assert.same({ 1, 2 }, { f(), g() })
    assert.equal(1, c:get "ns:key")
    assert.equal(2, c:get "key")
  end)

  it("prefers key to key_builder (64)", function()
    local f = wrap(cache.cached, function() return 1 end,
      { key = "key", key_builder = function() return "built" end })
    f()
    assert.equal(1, c:get "key")
    assert.is_nil(c:get "built")
  end)

  it("makes a key of name and arguments, without the first if it is told so (65, 66)", function()
    local f = wrap(cache.cached, function() return 1 end, { name = "stub" })
    f(1, "a", { b = 2 })
    assert.equal(1, c:get "stub:1,1:a,{1:b=2,}")
    local g = wrap(cache.cached, function() return 2 end, { name = "method", skip_self = true })
    g({}, 1)
    assert.equal(2, c:get "method:1")
  end)

  it("passes on what fn raises, and keeps nothing (73)", function()
    local f, counter = wrap(cache.cached, function() error("broken", 0) end)
    assert.same(pack(false, "broken"), pack(pcall(f)))
    assert.same(pack(false, "broken"), pack(pcall(f)))
    assert.equal(2, counter.calls)
  end)

  it("raises for results that it cannot keep (l)", function()
    local f = wrap(cache.cached, function() return { x = print } end)
    raises("cached: value.x is a function, which cannot be cached", f)
  end)

  it("remembers nothing only when it is told to (452)", function()
    local f, counter = wrap(cache.cached, function() return nil end)
    f()
    f()
    assert.equal(2, counter.calls)
    local g, other = wrap(cache.cached, function() return nil end, { neg_ttl = seconds(2) })
    assert.same(pack(nil), pack(g()))
    assert.same(pack(nil), pack(g()))
    assert.equal(1, other.calls)
    pass(2.2)
    g()
    assert.equal(2, other.calls)
  end)

  it("keeps all results", function()
    local kept = { pack(1, 2), pack(1, nil), pack(false, "x"), pack(nil, nil, 3),
      pack({ 1 }, null, nil) }
    for _, results in ipairs(kept) do
      local f, counter = wrap(cache.cached, function() return unpack(results, 1, results.n) end)
      assert.same(results, pack(f()))
      assert.same(results, pack(f()))
      assert.equal(1, counter.calls)
    end
  end)

  it("treats nil, err as a failure", function()
    local f, counter = wrap(cache.cached, function() return nil, "err", 3 end,
      { neg_ttl = seconds(9) })
    assert.same(pack(nil, "err", 3), pack(f()))
    assert.same(pack(nil, "err", 3), pack(f()))
    assert.equal(2, counter.calls)
  end)

  it("lets the handle invalidate and refresh", function()
    local n = 0
    local f, counter = wrap(cache.cached, function()
      n = n + 1
      return n
    end)
    local handle = cache.handle(f)
    f "a"
    assert.equal(1, handle:invalidate "a")
    assert.equal(0, handle:invalidate "a")
    assert.equal(2, f "a")
    assert.equal(3, handle:refresh "a")
    assert.equal(3, f "a")
    assert.equal(3, counter.calls)
  end)
end

local function stampedes()
  local function gated(fn, opts)
    local gate = task.event()
    local f, counter = wrap(cache.cached, function(...)
      gate:wait()
      return fn(...)
    end, opts)
    return f, counter, gate
  end

  it("runs fn once for all who ask at the same time (80, a)", function()
    local f, counter, gate = gated(function() return { "value" } end)
    local tasks = together(50, f)
    gate:set()
    for _, t in ipairs(tasks) do assert.same({ "value" }, t:join()) end
    assert.equal(1, counter.calls)
  end)

  it("runs different keys side by side (81)", function()
    local f, counter, gate = gated(function(n) return n end)
    local tasks = { task.spawn(f, 1), task.spawn(f, 2), task.spawn(f, 3) }
    settle()
    assert.equal(3, counter.calls)
    gate:set()
    for i, t in ipairs(tasks) do assert.equal(i, t:join()) end
  end)

  it("shares an error and nothing, too (b)", function()
    local function outcome(fn)
      local f, counter, gate = gated(fn)
      local tasks = together(10, pcall, f)
      gate:set()
      local first = pack(tasks[1]:join())
      for _, t in ipairs(tasks) do assert.same(first, pack(t:join())) end
      assert.equal(1, counter.calls)
      return first
    end
    assert.same(pack(false, "broken"), outcome(function() error("broken", 0) end))
    assert.same(pack(true, nil), outcome(function() return nil end))
    assert.same(pack(true, nil, "err"), outcome(function() return nil, "err" end))
  end)

  it("goes on when the one who loads is cancelled (82, b)", function()
    local f, counter, gate = gated(function() return "value" end)
    local tasks = together(5, f)
    tasks[1]:cancel()
    settle()
    gate:set()
    for i = 2, 5 do assert.equal("value", tasks[i]:join()) end
    assert.equal(1, counter.calls)
  end)

  it("lets another load when the one who loads is cancelled alone (b)", function()
    local f, counter, gate = gated(function() return "value" end)
    local t = task.spawn(f)
    settle()
    t:cancel()
    assert.is_false((t:pjoin()))
    gate:set()
    assert.equal("value", f())
    assert.equal(2, counter.calls)
  end)

  it("does not store what was invalidated meanwhile (j)", function()
    local ways = {
      function() c:delete "key" end,
      function() c:clear() end,
      function() c:multi_delete { "key" } end,
      function() c:set("key", "newer") end,
      function() c:add("key", "newer") end,
      function() c:multi_set { key = "newer" } end,
    }
    for i, invalidate in ipairs(ways) do
      c:clear()
      local f, _, gate = gated(function() return "stale" end, { key = "key" })
      local t = task.spawn(f)
      settle()
      invalidate()
      gate:set()
      assert.equal("stale", t:join())
      assert.equal(i > 3 and "newer" or nil, c:get "key", i)
    end
    local f, _, gate = gated(function() return 5 end, { key = "counter" })
    local t = task.spawn(f)
    settle()
    c:increment "counter"
    gate:set()
    t:join()
    assert.equal(1, c:get "counter")
  end)

  it("does not store a refresh that was overtaken", function()
    local ways = {
      function() c:delete "key" end,
      function() c:set("key", 9) end,
      function() c:increment("key", 8) end,
    }
    for i, overtake in ipairs(ways) do
      c:set("key", 1)
      local f, _, gate = gated(function() return "stale" end, { key = "key" })
      local t = task.spawn(function() return cache.handle(f):refresh() end)
      settle()
      assert.equal(1, c:get "key") -- what is there serves meanwhile
      overtake()
      gate:set()
      assert.equal("stale", t:join())
      assert.equal(i > 1 and 9 or nil, c:get "key")
    end
  end)
end

local function many()
  local function letters(keys)
    local map = {}
    for _, k in ipairs(keys) do map[k] = "v" .. k end
    return map
  end

  it("asks only for the missing keys (92, 93, 98, 99)", function()
    local seen
    local f, counter = wrap(cache.multi_cached, function(keys)
      seen = keys
      return letters(keys)
    end)
    assert.same({ a = "va" }, f { "a" })
    assert.same({ a = "va", b = "vb" }, f { "a", "b" })
    assert.same({ "b" }, seen)
    assert.same({ a = "va", b = "vb" }, f { "b", "a" })
    assert.equal(2, counter.calls)
  end)

  it("gives fn the keys as they are, and hits next time (94, 102, h)", function()
    local seen
    local f, counter = wrap(cache.multi_cached, function(keys)
      seen = keys
      return letters(keys)
    end, { key_builder = function(_, k) return "p:" .. k end })
    assert.same({ a = "va" }, f { "a" })
    assert.same({ "a" }, seen)
    assert.equal("va", c:get "p:a")
    assert.same({ a = "va" }, f { "a" })
    assert.equal(1, counter.calls)
  end)

  it("leaves out what cache_if rejects, but returns it (95)", function()
    local f, counter = wrap(cache.multi_cached, letters,
      { cache_if = function(k, v) return k ~= "b" and v == "v" .. k end })
    assert.same({ a = "va", b = "vb" }, f { "a", "b" })
    assert.same({ a = "va", b = "vb" }, f { "a", "b" })
    assert.equal(2, counter.calls)
  end)

  it("passes the other arguments on (96)", function()
    local seen
    local f = wrap(cache.multi_cached, function(keys, ...)
      seen = pack(...)
      return letters(keys)
    end)
    f({ "a" }, 1, nil)
    assert.same(pack(1, nil), seen)
  end)

  it("may be wrapped again (97)", function()
    local inner, inner_counter = wrap(cache.multi_cached, letters)
    local outer = wrap(cache.multi_cached, function(keys) return inner(keys) end)
    assert.same({ a = "va", b = "vb" }, outer { "a", "b" })
    assert.same({ a = "va", b = "vb" }, outer { "a", "b" })
    assert.same({ a = "va" }, inner { "a" })
    assert.equal(1, inner_counter.calls)
  end)

  it("does not ask at all for no keys (100)", function()
    local f, counter = wrap(cache.multi_cached, letters)
    assert.same({}, f {})
    assert.equal(0, counter.calls)
  end)

  it("expires", function()
    local f, counter = wrap(cache.multi_cached, letters, { ttl = seconds(1) })
    f { "a", "b" }
    pass(1.2)
    f { "a" }
    assert.equal(2, counter.calls)
  end)
end

-- ---- all of it, for each -------------------------------------------------------------------

for _, each in ipairs(backends) do
  describe("the alias " .. each.alias, function()
    before_each(function()
      backend = each
      fresh()
    end)
    after_each(support.fresh)

    describe("reads and writes: it", reading)
    describe("removes and adds: it", removing)
    describe("counts: it", counting)
    describe("knows time: it", living)
    describe("takes many keys: it", bulk)
    describe("has namespaces: it", namespaces)
    describe("clears: it", clearing)
    describe("misused: it", misuse)
    describe("disabled: it", disabled)
    describe("behind cached: it", decorating)
    describe("with many callers: it", stampedes)
    describe("behind multi_cached: it", many)
  end)
end
