-- How much fits, and what the counters say.
local cache = require "cache"
local support = require "spec.cache.support"

local KIB = 1024
local memory = cache.memory

describe("the byte bound", function()
  before_each(support.fresh)
  after_each(support.fresh)

  it("refuses a value above its share: nil and an error to test", function()
    cache.configure_caches { memory_max_bytes = 128 * KIB }
    memory:set("k", "old")
    local ok, err = memory:set("k", ("x"):rep(64 * KIB))
    assert.is_nil(ok)
    assert.equal("too_large", err.code)
    assert.equal("set: the key and value are too large for this cache", tostring(err))
    assert.equal("set: the key and value are too large for this cache", err.message)
    assert.equal("old", memory:get "k")
    ok, err = cache.set_cached("k", { ("x"):rep(64 * KIB) })
    assert.is_nil(ok)
    assert.equal("too_large", err.code)
    assert.truthy(tostring(err):find("^set_cached: "))
  end)

  it("holds, whatever is stored", function()
    cache.configure_caches { memory_max_bytes = 256 * KIB }
    for i = 1, 5000 do
      memory:set("k" .. i, ("x"):rep(i % 700))
      cache.persistent:set("k" .. i, { i, "some text" })
      if i % 500 == 0 then
        local bytes = memory:stats().bytes + cache.persistent:stats().bytes
        assert.is_true(bytes <= 256 * KIB, bytes)
      end
    end
    local stats = memory:stats()
    assert.equal(256 * KIB, stats.max_bytes)
    assert.is_true(stats.evictions > 0)
    assert.is_true(stats.entries > 100)
    assert.same({ 5000, "some text" }, cache.persistent:get "k5000")
  end)

  it("may be lowered and raised while entries exist", function()
    for i = 1, 1000 do memory:set("k" .. i, ("x"):rep(KIB)) end
    assert.equal(1000, memory:stats().entries)
    cache.configure_caches { memory_max_bytes = 256 * KIB }
    assert.is_true(memory:stats().bytes <= 256 * KIB)
    assert.is_true(memory:stats().entries > 50)
    cache.configure_caches { memory_max_bytes = "64M" }
    for i = 1, 1000 do memory:set("k" .. i, ("x"):rep(KIB)) end
    assert.equal(1000, memory:stats().entries)
  end)

  it("lets a wrapper's value through that does not fit", function()
    cache.configure_caches { memory_max_bytes = 128 * KIB }
    local load, counter = support.counted(function() return ("x"):rep(64 * KIB) end)
    local f = cache.cached(load, { name = "bounds.large" })
    assert.equal(64 * KIB, #f())
    assert.equal(64 * KIB, #f())
    assert.equal(2, counter.calls)
  end)
end)

describe("stats", function()
  before_each(support.fresh)

  local function difference(fn)
    local before = memory:stats()
    fn()
    local after, result = memory:stats(), {}
    for name, value in pairs(after) do
      local differs = value ~= before[name] and name ~= "store" and not name:find "^near"
      if differs then result[name] = value - before[name] end
    end
    return result
  end

  it("counts hits, misses, sets, deletes, entries and bytes", function()
    local changed = difference(function()
      memory:set("a", 1)
      memory:set("b", 2)
      memory:set("b", 3)
      memory:get "a"
      memory:get "b"
      memory:get "none"
      memory:delete "a"
      memory:delete "none"
    end)
    assert.is_true(changed.bytes > 0)
    changed.bytes = nil
    assert.same({ sets = 3, hits = 2, misses = 1, deletes = 1, entries = 1 }, changed)
  end)

  it("has every counter as a number", function()
    local stats = memory:stats()
    for _, name in ipairs { "hits", "misses", "sets", "deletes", "evictions", "expired", "entries",
      "bytes", "max_bytes", "near_entries", "near_bytes", "near_hits" } do
      assert.is_number(stats[name], name)
    end
  end)

  it("counts per alias", function()
    local changed = difference(function()
      cache.persistent:set("a", 1)
      cache.persistent:get "a"
    end)
    assert.same({}, changed)
  end)

  it("counts a wrapper's miss as one miss and its hit as one hit", function()
    local f = cache.cached(function(n) return n end, { name = "bounds.stats" })
    local changed = difference(function()
      f(1)
      f(1)
      f(1)
    end)
    changed.bytes = nil
    assert.same({ sets = 1, hits = 2, misses = 1, entries = 1 }, changed)
  end)

  it("counts what clear removes as deletes", function()
    memory:set("a", 1)
    memory:set("b", 1)
    assert.equal(2, difference(function() memory:clear() end).deletes)
    assert.equal(0, memory:stats().entries)
  end)
end)
