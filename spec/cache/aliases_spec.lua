-- configure_caches and aliases: what exists follows, all or nothing.
local cache = require "cache"
local process = require "spec.support.process"
local support = require "spec.cache.support"
local task = require "task"
local time = require "spec.support.time"

local configure, get_cache = cache.configure_caches, cache.get_cache
local raises, settle = support.raises, support.settle
local MIB = 2 ^ 20

local function define(name, definition) configure { aliases = { [name] = definition } } end

local function assert_ttl(expected, client, key)
  local left = client:ttl(key or "k")
  assert.is_true(time.is_left(expected, left), left)
end

-- A fresh alias of that definition, as its Cache object.
local names = 0
local function make(definition)
  names = names + 1
  local name = "aliases_" .. names % 8 -- names are for ever, and at most 100
  define(name, {})
  get_cache(name):clear()
  define(name, definition)
  return get_cache(name), name
end

describe("configure_caches, misused,", function()
  before_each(support.fresh)

  it("raises for what is no table", function()
    raises("configure_caches: a table of settings expected, not string", configure, "x")
    raises("configure_caches: a table of settings expected, not boolean", configure, true)
    raises("configure_caches: aliases must be a table, not string", configure, { aliases = "x" })
    raises("configure_caches: aliases must be a table, not boolean", configure, { aliases = false })
    assert.is_nil(configure())
    assert.is_nil(configure {})
  end)

  it("raises for a bad setting, and names it", function()
    raises("configure_caches: ", configure, { default_tll = 5 })
    raises("configure_caches: setting names are strings, not 1", configure, { 5 })
    raises("configure_caches: default_ttl must be a string, number or boolean, not a table",
      configure, { default_ttl = {} })
    for name, bad in pairs { default_ttl = -1, persistent_ttl = "soon", enabled = "maybe",
      memory_max_bytes = -5 } do
      local ok, err = pcall(configure, { [name] = bad })
      assert.is_false(ok)
      assert.truthy(err:lower():find(name, 1, true), err)
    end
  end)

  it("raises for a bad definition, and names alias and field", function()
    local function refuses(text, definition)
      raises("configure_caches: aliases.x" .. text, configure, { aliases = { x = definition } })
    end
    refuses(" must be a table, not string", "memory")
    refuses(": there is no field 'max_size'", { max_size = 1 })
    refuses(": there is no field '1'", { "memory" })
    refuses(".backend must be a string, not number", { backend = 1 })
    refuses(": the backend 'disk' is unknown: use 'memory' or 'redis'", { backend = "disk" })
    refuses(": the backend 'redis' needs redis_host or redis_url", { backend = "redis" })
    refuses(".max_bytes bounds a store in memory: Redis has maxmemory",
      { backend = "redis", max_bytes = 2 ^ 20 })
    refuses(": the serializer 'none' keeps values in this process, not in Redis",
      { backend = "redis", serializer = "none" })
    refuses(": the backend 'tiered' is not in this version", { backend = "tiered" })
    for _, bad in pairs { 0, -1, 65535, 0 / 0, 2 ^ 60, "1M", true } do
      refuses(".max_bytes must be a number of bytes, at least 65536", { max_bytes = bad })
    end
    for _, bad in pairs { -1, "5", true, 0 / 0 } do
      refuses(": ttl must be a number of seconds >= 0, or false for never", { ttl = bad })
    end
    refuses(": serializer must be native, json", { serializer = "xml" })
    refuses(": serializer must be native, json", { serializer = 5 })
    refuses(": a serializer is {dumps = function, loads = function}", { serializer = {} })
    for _, bad in pairs { -1, 1.5, 2 ^ 31, "5", true, 0 / 0, math.huge } do
      refuses(".near_entries must be an integer from 0 to 16777216", { near_entries = bad })
      refuses(".near_bytes must be an integer from 0 to 2147483647", { near_bytes = bad })
    end
    refuses(".namespace must be a string, not number", { namespace = 5 })
    refuses(".copy must be a boolean, not string", { copy = "no" })
    refuses(".plugins must be a table, not function", { plugins = print })
    raises("configure_caches: alias names are strings, not number", configure, { aliases = { {} } })
    raises("configure_caches: aliases.tiered is not in this version", configure,
      { aliases = { tiered = {} } })
  end)

  it("changes nothing when a part of it is wrong", function()
    local good, name = make { ttl = 10 }
    for _, bad in ipairs {
      { default_ttl = 7, aliases = { [name] = { ttl = 20 }, new = { ttl = -1 } } },
      { default_ttl = 7, nonsense = 1, aliases = { [name] = { ttl = 20 }, new = {} } },
      { default_ttl = -1, enabled = false, aliases = { [name] = { ttl = 20 }, new = {} } },
      { default_ttl = 7, enabled = false, aliases = { new = {}, memory = { backend = "redis" } } },
    } do
      assert.is_false(pcall(configure, bad))
      good:set("k", 1)
      cache.memory:set("k", 1)
      assert_ttl(10, good)
      assert_ttl(300, cache.memory)
      assert.equal(300, cache.settings.default_ttl)
      assert.is_false(pcall(get_cache, "new"))
    end
  end)

  it("takes at most 100 aliases, all or nothing", function()
    local many = {}
    for i = 1, 100 do many["aliases_many_" .. i] = {} end
    raises("aliases, the most is 100", configure, { default_ttl = 7, aliases = many })
    assert.equal(300, cache.settings.default_ttl)
    assert.is_false(pcall(get_cache, "aliases_many_1"))
  end)
end)

describe("get_cache", function()
  it("raises for an alias that nobody has defined", function()
    raises("get_cache: alias must be one of ", get_cache, "nobody")
    raises(", not 'nobody'", get_cache, "nobody")
    raises("get_cache: alias must be one of ", get_cache, 5)
    raises("get_cache: alias must be one of ", get_cache, {})
    raises("get_cache: alias must be one of ", get_cache, false)
    raises("get_cache: the alias 'tiered' is not in this version", get_cache, "tiered")
    for name, call in pairs {
      get_cached = cache.get_cached, delete_cached = cache.delete_cached,
    } do
      raises(name .. ": alias must be one of ", call, "k", { alias = "nobody" })
      raises(name .. ": options must be a table, not string", call, "k", "memory")
      raises(name .. ": the option 'tll' is unknown", call, "k", { tll = 1 })
      raises(name .. ": the key must be a string, not number", call, 5)
    end
    raises("set_cached: alias must be one of ", cache.set_cached, "k", 1, { alias = "nobody" })
    raises("set_cached: options must be a table, not number", cache.set_cached, "k", 1, 300)
    raises("set_cached: the value is nil", cache.set_cached, "k")
    raises("clear_cache: alias must be one of ", cache.clear_cache, { alias = "nobody" })
    raises("clear_cache: options must be a table, not string", cache.clear_cache, "memory")
  end)

  it("gives one object per alias, whatever is configured since", function()
    local object, name = make { ttl = 5 }
    assert.equal(object, get_cache(name))
    define(name, { max_bytes = MIB })
    assert.equal(object, get_cache(name))
    assert.equal("cache '" .. name .. "'", tostring(object))
    local inner = object:with_namespace("a"):with_namespace "b"
    assert.equal("cache '" .. name .. "' a:b:", tostring(inner))
  end)
end)

describe("an alias's", function()
  before_each(support.fresh)

  it("keys are its own", function()
    local a, b = make {}, make {}
    a:set("k", "a")
    b:set("k", "b")
    cache.memory:set("k", "m")
    assert.same({ "a", "b", "m" }, { a:get "k", b:get "k", cache.memory:get "k" })
    a:clear()
    assert.is_nil(a:get "k")
    assert.same({ "b", "m" }, { b:get "k", cache.memory:get "k" })
  end)

  it("definition is replaced as a whole, and is a copy of the giver's", function()
    local plugins = {}
    local definition = { ttl = 5, namespace = "n", plugins = plugins }
    local object, name = make(definition)
    definition.ttl, definition.namespace = "bad", 5
    plugins[1] = "bad"
    configure {}
    object:set("k", 1)
    assert_ttl(5, object)
    assert.equal(1, object:get("n:k", nil, { namespace = "" }))
    define(name, {})
    object:set("k", 1)
    assert_ttl(300, object)
    assert.equal(1, object:get("k", nil, { namespace = "" }))
  end)

  it("ttl is the default of sets, and follows", function()
    local object, name = make { ttl = 5 }
    local f = cache.cached(function() return 1 end, { alias = name, key = "f" })
    local function sets_with(ttl)
      object:set("k", 1)
      object:delete "f"
      f()
      assert_ttl(ttl, object)
      assert_ttl(ttl, object, "f")
    end
    sets_with(5)
    define(name, { ttl = 20.5 })
    sets_with(20.5)
    for _, never in pairs { 0, math.huge, [3] = false } do
      define(name, { ttl = never })
      sets_with(math.huge)
    end
    define(name, {})
    sets_with(300)
    configure { default_ttl = 60 }
    sets_with(60)
  end)

  it("namespace stands before all keys, and follows", function()
    local object, name = make { namespace = "one" }
    local inner = object:with_namespace "in"
    local f = cache.cached(function() return "f" end, { alias = name, key = "f" })
    local root = { namespace = "" }
    object:set("k", 1)
    inner:set("k", 2)
    f()
    assert.same({ ["one:k"] = 1, ["one:in:k"] = 2, ["one:f"] = "f" },
      object:multi_get({ "one:k", "one:in:k", "one:f" }, root))
    define(name, { namespace = "two" })
    assert.is_nil(object:get "k")
    assert.is_nil(inner:get "k")
    object:set("k", 3)
    inner:set("k", 4)
    f()
    assert.same({ ["two:k"] = 3, ["two:in:k"] = 4, ["two:f"] = "f", ["one:k"] = 1 },
      object:multi_get({ "two:k", "two:in:k", "two:f", "one:k" }, root))
    object:clear()
    assert.is_nil(object:get "k")
    assert.equal(1, object:get("one:k", nil, root))
    define(name, { namespace = "one" })
    assert.same({ 1, 2 }, { object:get "k", inner:get "k" })
  end)

  it("serializer follows, and what another has written can still be read", function()
    local object, name = make { serializer = "json" }
    local f = cache.cached(function(x) return { x } end, { alias = name, name = "aliases.ser" })
    object:set("a", { 1 })
    f(1)
    assert.equal("json", object:info("a").format)
    assert.equal("json", object:info("aliases.ser:1").format)
    define(name, { serializer = "msgpack" })
    assert.same({ 1 }, object:get "a")
    assert.same({ 1 }, f(1))
    object:set("b", { 2 })
    f(2)
    assert.equal("msgpack", object:info("b").format)
    assert.equal("msgpack", object:info("aliases.ser:2").format)
    define(name, {})
    assert.same({ a = { 1 }, b = { 2 } }, object:multi_get { "a", "b" })
    assert.same({ { 1 }, { 2 } }, { f(1), f(2) })
  end)

  it("copy = false hands out shared tables, and follows", function()
    local object, name = make {}
    local f = cache.cached(function() return { 1 } end, { alias = name, key = "f" })
    object:set("k", { 1 })
    f()
    assert.is_false(rawequal(object:get "k", object:get "k"))
    assert.is_false(rawequal(f(), f()))
    define(name, { copy = false })
    assert.is_true(rawequal(object:get "k", object:get "k"))
    assert.is_true(rawequal(f(), f()))
    local old = object:get "k"
    object:set("k", { 2 })
    assert.same({ 2 }, object:get "k")
    assert.same({ 1 }, old)
    object:delete "k"
    assert.is_nil(object:get "k")
    assert.equal("gone", object:get("k", "gone"))
    define(name, { copy = true })
    assert.is_false(rawequal(f(), f()))
  end)

  it("copy = false does not mix up loads of different calls", function()
    local object = make { copy = false }
    object:set("k", "x", { dumps = function(v) return v end })
    local function loads(bytes) return { "one", bytes } end
    local function other(bytes) return { "other", bytes } end
    assert.same({ "one", "x" }, object:get("k", nil, { loads = loads }))
    assert.same({ "other", "x" }, object:get("k", nil, { loads = other }))
    assert.equal("decode", select(2, object:get "k").code)
  end)

  it("plugins follow", function()
    local seen = {}
    local function plugin(mark)
      return { post_get = function(_, key) seen[#seen + 1] = mark .. key end }
    end
    local object, name = make { plugins = { plugin "a" } }
    local f = cache.cached(function() return 1 end, { alias = name, key = "f" })
    object:get "k"
    f()
    define(name, { plugins = { plugin "b" } })
    object:get "k"
    f()
    define(name, {})
    object:get "k"
    f()
    assert.same({ "ak", "af", "bk", "bf" }, seen)
  end)

  it("max_bytes is a store of its own, which may be resized, given and taken away", function()
    local object, name = make { max_bytes = MIB }
    local f = cache.cached(function() return "f" end, { alias = name, key = "f" })
    assert.equal(MIB, object:stats().max_bytes)
    for i = 1, 2000 do object:set("k" .. i, ("x"):rep(1000)) end
    local entries = object:stats().entries
    assert.is_true(object:stats().bytes <= MIB and entries > 500)
    define(name, { max_bytes = MIB / 2 })
    assert.is_true(object:stats().bytes <= MIB / 2 and object:stats().entries < entries)
    assert.equal(MIB / 2, object:stats().max_bytes)
    assert.equal(1000, #object:get "k2000")
    define(name, {}) -- its values are not carried over
    assert.is_nil(object:get "k2000")
    assert.equal(cache.memory:stats().max_bytes, object:stats().max_bytes)
    assert.equal("f", f())
    assert.equal("f", object:get "f")
    define(name, { max_bytes = MIB })
    assert.is_nil(object:get "f")
    assert.equal(0, object:stats().entries)
    assert.equal("f", f())
    assert.equal("f", object:get "f")
  end)

  it("max_bytes may come and go as often as one likes", function()
    local object, name = make {}
    for i = 1, 600 do
      define(name, { max_bytes = i % 2 == 0 and MIB or nil })
      object:set("k", i)
      assert.equal(i, object:get "k")
    end
  end)

  it("own store does not take part in others' evictions", function()
    local object = make { max_bytes = MIB }
    object:set("k", "v")
    configure { memory_max_bytes = MIB }
    for i = 1, 3000 do cache.memory:set("k" .. i, ("x"):rep(1000)) end
    assert.equal("v", object:get "k")
    assert.is_true(cache.memory:stats().evictions > 0)
    assert.equal(0, object:stats().evictions)
  end)

  it("loads that began before it was configured end well", function()
    local object, name = make {}
    local gate = task.event()
    local f = cache.cached(function()
      gate:wait()
      return { "value" }
    end, { alias = name, key = "k" })
    local tasks = { task.spawn(f), task.spawn(f) }
    settle()
    define(name, { max_bytes = MIB, namespace = "ns", copy = false, serializer = "json" })
    gate:set()
    for _, t in ipairs(tasks) do assert.same({ "value" }, t:join()) end
    assert.same({ "value" }, f())
    assert.same({ "value" }, object:get "k")
    define(name, {})
    assert.is_nil(object:get "k") -- what the first load has left is not there again
  end)
end)

describe("the aliases that are always there", function()
  before_each(support.fresh)
  after_each(function() configure { aliases = { memory = {}, persistent = {} } } end)

  it("may be defined, too", function()
    configure { aliases = { memory = { ttl = 5, namespace = "m" }, persistent = { ttl = 60 } } }
    cache.set_cached("k", 1)
    cache.set_cached("k", 2, { alias = "persistent" })
    assert_ttl(5, cache.memory)
    assert_ttl(60, cache.persistent)
    assert.equal(1, cache.memory:get("m:k", nil, { namespace = "" }))
    configure { aliases = { memory = {}, persistent = {} } }
    cache.set_cached("k", 1)
    assert_ttl(300, cache.memory)
  end)

  it("follow their settings", function()
    configure { default_ttl = 10, persistent_ttl = 40 }
    cache.memory:set("k", 1)
    cache.persistent:set("k", 1)
    assert_ttl(10, cache.memory)
    assert_ttl(40, cache.persistent)
    configure { default_ttl = false, persistent_ttl = math.huge }
    cache.memory:set("k", 1)
    cache.persistent:set("k", 1)
    assert.same({ math.huge, math.huge }, { cache.memory:ttl "k", cache.persistent:ttl "k" })
    configure(cache.settings)
    configure { default_ttl = 300, persistent_ttl = 3600 }
  end)
end)

describe("enabled", function()
  before_each(support.fresh)

  it("may be flipped while objects and wrappers are in use", function()
    local object, name = make {}
    local calls = 0
    local f = cache.cached(function()
      calls = calls + 1
      return calls
    end, { alias = name, key = "k" })
    for round = 1, 3 do
      configure { enabled = true }
      assert.equal(1, f())
      assert.equal(1, object:get "k")
      configure { enabled = false }
      assert.equal(2 * round, f())
      assert.equal(2 * round + 1, f())
      assert.is_nil(object:get "k")
      assert.is_false(cache.settings.enabled)
      calls = 2 * round + 1
    end
  end)

  it("flipped off during a load leaves the callers their value", function()
    local object, name = make {}
    local gate = task.event()
    local f = cache.cached(function()
      gate:wait()
      return "value"
    end, { alias = name, key = "k" })
    local tasks = { task.spawn(f), task.spawn(f) }
    settle()
    configure { enabled = false }
    gate:set()
    assert.same({ "value", "value" }, { tasks[1]:join(), (tasks[2]:join()) })
    assert.is_nil(object:get "k")
  end)
end)

describe("CACHE_NAMESPACE", function()
  local function run(code, env)
    local result = process.run { "-e", code, env = env }
    assert.same({ "", 0 }, { result.err, result.code })
    return result.out
  end

  it("stands before the keys of every alias that has no namespace of its own", function()
    assert.equal("1\t1\t2\tnil\n", run([[
      cache.configure_caches {aliases = {a = {}, b = {namespace = "own"}, c = {namespace = ""}}}
      local root = {namespace = ""}
      cache.memory:set("k", 1)
      cache.get_cache "b":set("k", 2)
      cache.get_cache "c":set("k", 3)
      print(cache.memory:get "k", cache.memory:get("app:k", nil, root),
        cache.get_cache "b":get("own:k", nil, root), cache.get_cache "c":get("app:k", nil, root))
    ]], { CACHE_NAMESPACE = "app" }))
  end)

  it("is what clear of a root object clears", function()
    assert.equal("nil\t2\n", run([[
      cache.memory:set("k", 1)
      cache.memory:set("k", 2, {namespace = "other"})
      cache.clear_cache()
      print(cache.memory:get "k", cache.memory:get("k", nil, {namespace = "other"}))
    ]], { CACHE_NAMESPACE = "app" }))
  end)

  it("may be set by configure_caches, and wrappers follow", function()
    assert.equal("1\t2\tnil\t1\n", run([[
      local n = 0
      local f = cache.cached(function() n = n + 1 return n end, {key = "k"})
      local a = f()
      cache.configure_caches {namespace = "app"}
      local b = f()
      cache.memory:delete "k"
      local c = cache.memory:get "k"
      cache.configure_caches {namespace = ""}
      print(a, b, c, f())
    ]]))
  end)
end)
