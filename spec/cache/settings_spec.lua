-- Settings, configure_caches, and caching switched off.
local cache = require "cache"
local support = require "spec.cache.support"
local task = require "task"

local raises = support.raises
local memory, persistent = cache.memory, cache.persistent

describe("cache.settings", function()
  before_each(support.fresh)

  it("shows every setting under its lower-case name", function()
    assert.is_true(cache.settings.enabled)
    assert.equal(300, cache.settings.default_ttl)
    assert.equal(3600, cache.settings.persistent_ttl)
    assert.equal(64 * 2 ^ 20, cache.settings.memory_max_bytes)
    assert.is_nil(cache.settings.redis_host)
    assert.is_nil(cache.settings.no_such_setting)
    assert.is_nil(cache.settings[1])
  end)

  it("is read-only", function()
    assert.has_error(function() cache.settings.default_ttl = 5 end,
      "settings.default_ttl: settings are read-only; use cache.configure_caches")
    assert.equal(300, cache.settings.default_ttl)
    assert.is_false(pcall(setmetatable, cache.settings, {}))
  end)

  it("follows configure_caches", function()
    cache.configure_caches { default_ttl = 5, enabled = false }
    assert.equal(5, cache.settings.default_ttl)
    assert.is_false(cache.settings.enabled)
  end)
end)

describe("configure_caches", function()
  before_each(support.fresh)
  after_each(support.fresh)

  it("takes the settings themselves, an empty table and nothing", function()
    cache.configure_caches { default_ttl = 5 }
    cache.configure_caches(cache.settings)
    cache.configure_caches {}
    cache.configure_caches()
    assert.equal(5, cache.settings.default_ttl)
    assert.equal(3600, cache.settings.persistent_ttl)
    assert.equal(64 * 2 ^ 20, cache.settings.memory_max_bytes)
  end)

  it("overlays what it is given and keeps the rest", function()
    cache.configure_caches { default_ttl = 5 }
    cache.configure_caches { persistent_ttl = 6.5 }
    assert.equal(5, cache.settings.default_ttl)
    assert.equal(6.5, cache.settings.persistent_ttl)
  end)

  it("takes values as Lua or as the environment spells them", function()
    for text, value in pairs { yes = true, off = false, ["1"] = true, ["False"] = false } do
      cache.configure_caches { enabled = text }
      assert.equal(value, cache.settings.enabled)
    end
    cache.configure_caches { default_ttl = "2.5", memory_max_bytes = "1MiB" }
    assert.equal(2.5, cache.settings.default_ttl)
    assert.equal(2 ^ 20, cache.settings.memory_max_bytes)
  end)

  it("takes false, 0 and math.huge for a TTL that never ends", function()
    for _, never in ipairs { 0, math.huge } do
      cache.configure_caches { default_ttl = never }
      assert.equal(0, cache.settings.default_ttl)
    end
    cache.configure_caches { default_ttl = 5 }
    cache.configure_caches { default_ttl = false }
    memory:set("k", 1)
    cache.testing.advance(1e8)
    assert.equal(1, memory:get "k")
  end)

  it("raises on an unknown name and gives the nearest", function()
    raises("configure_caches: 'defaul_ttl' is not a setting; did you mean 'default_ttl'?",
      cache.configure_caches, { defaul_ttl = 5 })
    raises("configure_caches: 'enable' is not a setting; did you mean 'enabled'?",
      cache.configure_caches, { enable = false })
    raises("configure_caches: 'zzzzzzzzzzzz' is not a setting", cache.configure_caches,
      { zzzzzzzzzzzz = 1 })
    raises("configure_caches: setting names are strings, not 1", cache.configure_caches, { true })
  end)

  it("raises on a bad value and names setting and value", function()
    raises("configure_caches: default_ttl: '-1' is not a number of seconds", cache.configure_caches,
      { default_ttl = -1 })
    raises("configure_caches: default_ttl: 'soon' is not", cache.configure_caches,
      { default_ttl = "soon" })
    raises("configure_caches: default_ttl: 'nan' is not", cache.configure_caches,
      { default_ttl = 0 / 0 })
    raises("configure_caches: enabled: 'perhaps' is not a boolean", cache.configure_caches,
      { enabled = "perhaps" })
    raises("configure_caches: default_ttl must be a string, number or boolean, not a table",
      cache.configure_caches, { default_ttl = {} })
    raises("configure_caches: memory_max_bytes: '1' is below the minimum", cache.configure_caches,
      { memory_max_bytes = 1 })
    raises("configure_caches: a table of settings expected, not number", cache.configure_caches, 5)
  end)

  it("changes all or nothing", function()
    for bad, value in pairs {
      no_such = 1, enabled = "perhaps", persistent_ttl = {}, redis_host = "h,",
      aliases = { memory = { ttl = 1 }, settings_bad = { ttl = -1 } },
    } do
      pcall(cache.configure_caches, { default_ttl = 5, memory_max_bytes = "1MiB", [bad] = value })
      assert.equal(300, cache.settings.default_ttl)
      assert.equal(64 * 2 ^ 20, cache.settings.memory_max_bytes)
      memory:set("k", 1)
      cache.testing.advance(6)
      assert.equal(1, memory:get "k")
      assert.is_false((pcall(cache.get_cache, "settings_bad")))
    end
  end)

  it("refuses an alias on Redis where no Redis is configured", function()
    raises("configure_caches: aliases.far: the backend 'redis' needs redis_host or redis_url",
      cache.configure_caches, { default_ttl = 5, aliases = { far = { backend = "redis" } } })
    raises("get_cache: alias must be one of ", cache.get_cache, "far")
    assert.equal(300, cache.settings.default_ttl)
  end)

  it("refuses the alias tiered, which is not in this version", function()
    raises("configure_caches: aliases.far: the backend 'tiered' is not in this version",
      cache.configure_caches, { aliases = { far = { backend = "tiered" } } })
    raises("get_cache: alias must be one of ", cache.get_cache, "far")
    raises("configure_caches: aliases.tiered is not in this version", cache.configure_caches,
      { aliases = { tiered = {} } })
    raises("configure_caches: aliases.tiered is not in this version", cache.configure_caches,
      { aliases = { tiered = { backend = "memory" } } })
    assert.has_no_error(function() cache.configure_caches { aliases = {} } end)
  end)

  it("reaches objects and wrappers that exist", function()
    local f, counter = support.counted(function() return 1 end)
    local g = cache.cached(f, { name = "settings.ttl" })
    local h = cache.cached(f, { name = "settings.own_ttl", ttl = 1000 })
    cache.configure_caches { default_ttl = 10 }
    memory:set("k", 1)
    g()
    h()
    assert.equal(2, counter.calls)
    cache.testing.advance(10)
    assert.is_nil(memory:get "k")
    g()
    h()
    assert.equal(3, counter.calls)
    cache.configure_caches { persistent_ttl = 7 }
    persistent:set("k", 1)
    cache.testing.advance(7)
    assert.is_nil(persistent:get "k")
  end)

  it("leaves the TTL of what is stored alone", function()
    memory:set("k", 1)
    cache.configure_caches { default_ttl = 10 }
    cache.testing.advance(200)
    assert.equal(1, memory:get "k")
  end)

  it("keeps what is stored", function()
    memory:set("k", 1)
    cache.configure_caches { default_ttl = 10, memory_max_bytes = "1MiB" }
    assert.equal(1, memory:get "k")
  end)
end)

describe("with caching disabled", function()
  before_each(function()
    support.fresh()
    memory:set("k", "stored")
    cache.configure_caches { enabled = false }
  end)
  after_each(support.fresh)

  it("get gives the default", function()
    assert.is_nil(memory:get "k")
    assert.equal("default", memory:get("k", "default"))
    assert.is_nil(cache.get_cached "k")
    assert.is_nil(cache.get_cached("k", { alias = "persistent" }))
  end)

  it("set, delete and clear say what is right and do nothing", function()
    assert.is_true(memory:set("k", "new"))
    assert.is_true(memory:set("l", "new", 5))
    assert.is_true(cache.set_cached("k", "new", { ttl = 5 }))
    assert.equal(0, memory:delete "k")
    assert.equal(0, cache.delete_cached "k")
    assert.is_true(memory:clear())
    assert.is_true(cache.clear_cache { alias = "memory" })
    cache.configure_caches { enabled = true }
    assert.equal("stored", memory:get "k")
    assert.is_nil(memory:get "l")
  end)

  it("cached calls through, with every argument and result", function()
    local f, counter = support.counted(function(...) return select("#", ...), ... end)
    local g = cache.cached(f, { name = "settings.off" })
    for _ = 1, 2 do
      assert.same({ n = 4, 3, print, nil, nil },
        (function(...) return { n = select("#", ...), ... } end)(g(print, nil, nil)))
    end
    assert.equal(2, counter.calls)
    local built = cache.cached(f, { key_builder = function() error "is not asked" end })
    assert.equal(1, (built(5)))
  end)

  it("does not share runs", function()
    local f, counter = support.counted(function() task.sleep(0.001) return 1 end)
    local g = cache.cached(f, { name = "settings.share" })
    local a, b = task.spawn(g), task.spawn(g)
    assert.equal(2, a:join() + b:join())
    assert.equal(2, counter.calls)
  end)

  it("mistakes still raise", function()
    raises("get: the key must be a string", memory.get, memory, 1)
    raises("set: the value is nil", memory.set, memory, "k")
    raises("set: ttl must be", memory.set, memory, "k", 1, -1)
    raises("clear: the option 'x' is unknown", memory.clear, memory, nil, { x = 1 })
  end)

  it("may be enabled and disabled again at any time", function()
    local f, counter = support.counted(function() return 1 end)
    local g = cache.cached(f, { name = "settings.flip" })
    g()
    cache.configure_caches { enabled = true }
    g()
    g()
    assert.equal(2, counter.calls)
    cache.configure_caches { enabled = false }
    g()
    assert.equal(3, counter.calls)
    cache.configure_caches { enabled = true }
    g()
    assert.equal(3, counter.calls)
  end)

  it("may begin during a load, whose waiters get their value", function()
    cache.configure_caches { enabled = true }
    local f = cache.cached(function()
      task.sleep(0.005)
      return "value"
    end, { name = "settings.during" })
    local a, b = task.spawn(f), task.spawn(f)
    support.settle()
    cache.configure_caches { enabled = false }
    assert.equal("value", a:join())
    assert.equal("value", b:join())
  end)
end)
