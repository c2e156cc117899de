-- What every user of the cache writes, call by call.
local cache = require "cache"
local process = require "spec.support.process"
local support = require "spec.cache.support"

describe("everyday usage", function()
  before_each(support.fresh)

  it("gives nil for a key that was never set", function()
    assert.is_nil(cache.get_cached "my_key")
    assert.is_nil(cache.get_cached("my_key", { alias = "persistent" }))
  end)

  it("gets what was set, in the memory cache by default", function()
    assert.is_true(cache.set_cached("my_key", "my_value"))
    assert.equal("my_value", cache.get_cached "my_key")
    assert.equal("my_value", cache.get_cached("my_key", { alias = "memory" }))
    assert.equal("my_value", cache.memory:get "my_key")
  end)

  it("sets with a TTL on the persistent cache", function()
    assert.is_true(cache.set_cached("my_key", "my_value", { ttl = 300, alias = "persistent" }))
    assert.equal("my_value", cache.get_cached("my_key", { alias = "persistent" }))
    cache.testing.advance(300)
    assert.is_nil(cache.get_cached("my_key", { alias = "persistent" }))
  end)

  it("deletes and says how many were removed", function()
    cache.set_cached("my_key", "my_value", { alias = "persistent" })
    assert.equal(1, cache.delete_cached("my_key", { alias = "persistent" }))
    assert.equal(0, cache.delete_cached("my_key", { alias = "persistent" }))
    assert.is_nil(cache.get_cached("my_key", { alias = "persistent" }))
    cache.set_cached("my_key", 1)
    assert.equal(1, cache.delete_cached "my_key")
  end)

  it("clears one cache and leaves the other", function()
    cache.set_cached("a", 1, { alias = "persistent" })
    cache.set_cached("b", 2, { alias = "persistent" })
    cache.set_cached("a", 3)
    assert.is_true(cache.clear_cache { alias = "persistent" })
    assert.is_nil(cache.get_cached("a", { alias = "persistent" }))
    assert.is_nil(cache.get_cached("b", { alias = "persistent" }))
    assert.equal(3, cache.get_cached "a")
    assert.is_true(cache.clear_cache())
    assert.is_nil(cache.get_cached "a")
  end)

  it("keeps the keys of memory and persistent apart", function()
    cache.set_cached("k", "in memory")
    cache.set_cached("k", "in persistent", { alias = "persistent" })
    assert.equal("in memory", cache.get_cached "k")
    assert.equal("in persistent", cache.get_cached("k", { alias = "persistent" }))
    cache.delete_cached "k"
    assert.equal("in persistent", cache.get_cached("k", { alias = "persistent" }))
  end)

  it("decorates a function", function()
    local fetch, counter = support.counted(function(id) return { id = id, name = "Ann" } end)
    local get_user = cache.cached(fetch, {
      ttl = 600, alias = "persistent", key_builder = function(_, id) return "user:" .. id end,
    })
    assert.same({ id = 7, name = "Ann" }, get_user(7))
    assert.same({ id = 7, name = "Ann" }, get_user(7))
    assert.equal(1, counter.calls)
    assert.same({ id = 7, name = "Ann" }, cache.get_cached("user:7", { alias = "persistent" }))
    cache.testing.advance(600)
    get_user(7)
    assert.equal(2, counter.calls)
  end)

  it("gives Cache objects by name, the same one each time", function()
    local memory, persistent = cache.get_cache "memory", cache.get_cache "persistent"
    assert.is_true(memory:set("key", "value", 300))
    assert.is_true(persistent:set("key", { any = "value" }, { ttl = 3600 }))
    assert.equal("value", memory:get "key")
    assert.same({ any = "value" }, persistent:get "key")
    assert.equal(memory, cache.get_cache "memory")
    assert.equal(memory, cache.get_cache())
    assert.equal(memory, cache.memory)
    assert.equal(persistent, cache.persistent)
    assert.equal("cache 'memory'", tostring(memory))
  end)

  it("offers get, set, delete and clear as methods", function()
    local memory = cache.get_cache "memory"
    memory:set("a", 1)
    memory:set("b", 2)
    assert.equal(1, memory:delete "a")
    assert.equal(0, memory:delete "a")
    assert.equal("none", memory:get("a", "none"))
    assert.equal(2, memory:get("b", "none"))
    assert.is_true(memory:clear())
    assert.is_nil(memory:get "b")
  end)

  it("configures by hand from the settings", function()
    assert.has_no_error(function() cache.configure_caches(cache.settings) end)
    assert.equal(300, cache.settings.default_ttl)
    assert.equal(3600, cache.settings.persistent_ttl)
    assert.is_true(cache.settings.enabled)
    assert.equal(6379, cache.settings.redis_port)
    assert.is_nil(cache.settings.redis_host)
  end)
end)

describe("the environment", function()
  local function run(code, env)
    local result = process.run { "-e", code, env = env }
    assert.equal("", result.err)
    assert.equal(0, result.code)
    return result.out
  end

  it("turns caching off with CACHE_ENABLED=False", function()
    assert.equal("nil\t0\n", run([[
      cache.set_cached("k", 1)
      print(cache.get_cached "k", cache.delete_cached "k")]], { CACHE_ENABLED = "False" }))
  end)

  it("takes the default TTLs from CACHE_DEFAULT_TTL and CACHE_PERSISTENT_TTL", function()
    assert.equal("nil\t2\nnil\tnil\n", run([[
      local persistent = { alias = "persistent" }
      local function show() print(cache.get_cached "k", cache.get_cached("k", persistent)) end
      cache.set_cached("k", 1)
      cache.set_cached("k", 2, persistent)
      cache.testing.advance(60)
      show()
      cache.testing.advance(59.5)
      show()]], { CACHE_DEFAULT_TTL = "60", CACHE_PERSISTENT_TTL = "119.5" }))
  end)

  it("takes an empty CACHE_REDIS_HOST for none", function()
    assert.equal("1\n", run([[
      cache.set_cached("k", 1, { alias = "persistent" })
      print(cache.get_cached("k", { alias = "persistent" }))]], { CACHE_REDIS_HOST = "" }))
  end)

  it("never falls back silently when Redis is configured", function()
    local result = process.run { "-e", [[
      local p = cache.persistent
      print(p:set("k", 1), select(2, p:set("k", 1)).code, p:get("k"), p:get("k", "default"))
      print(cache.cached(function() return "loaded" end, { alias = "persistent", name = "f" })())
    ]], env = { CACHE_REDIS_URL = "unix:///nobody/here" } }
    assert.equal(0, result.code)
    assert.equal("nil\tconnection\tnil\tdefault\t"
      .. "get: Redis at /nobody/here: no such file or directory\nloaded\n", result.out)
  end)

  it("says at level info that persistent lives in memory, once", function()
    local code = [[require "cache" package.loaded.cache = nil require "cache"]]
    local quiet = process.run { "-e", code }
    assert.equal("", quiet.err)
    local loud = process.run { "-e", code, env = { MOONSTASH_LOG = "info" } }
    local _, lines = loud.err:gsub("the alias 'persistent' lives in memory", "")
    assert.equal(1, lines)
  end)
end)
