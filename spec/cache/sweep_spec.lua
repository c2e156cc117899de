-- What has expired goes by itself, about once a second.
local cache = require "cache"
local process = require "spec.support.process"
local support = require "spec.cache.support"
local task = require "task"

describe("an expired entry", function()
  before_each(support.fresh)

  local function gone(object)
    local give_up = os.time() + 20
    while object:stats().entries > 0 do
      assert.is_true(os.time() < give_up, "the entries are still there")
      task.sleep(0.05)
    end
    return true
  end

  it("is freed though nobody asks for it", function()
    local evictions = cache.memory:stats().evictions
    for i = 1, 5000 do cache.memory:set("k" .. i, "value", { ttl = 0.01 }) end
    cache.memory:set("stays", "value", { ttl = 300 })
    cache.memory:expire("stays", 0.02)
    assert.is_true(gone(cache.memory))
    assert.equal(evictions, cache.memory:stats().evictions)
  end)

  it("is freed in an alias's own store, too", function()
    cache.configure_caches { aliases = { sweep_spec = { max_bytes = 2 ^ 18 } } }
    local own = cache.get_cache "sweep_spec"
    for i = 1, 100 do own:set("k" .. i, "value", { ttl = 0.01 }) end
    assert.is_true(gone(own))
  end)

  it("keeps no script from ending", function()
    local result = process.run { "-e", "require('cache').memory:set('k', 1, { ttl = 60 })" }
    assert.equal(0, result.code)
  end)
end)
