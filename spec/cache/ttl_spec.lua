-- How long values live.
local cache = require "cache"
local support = require "spec.cache.support"
local task = require "task"

local raises = support.raises
local advance = cache.testing.advance

describe("a TTL", function()
  local memory = cache.memory

  before_each(support.fresh)

  it("is exact to the millisecond", function()
    for _, ttl in ipairs { 0.002, 0.25, 1.001, 4.35, 300, 86400 * 365 } do
      local alive = 0
      for _ = 1, 50 do -- real time passes, too, now and then within a turn
        memory:set("k", "v", ttl)
        advance(ttl - 0.001)
        if memory:get "k" == "v" then alive = alive + 1 end
        advance(0.001)
        assert.is_nil(memory:get "k", "at " .. ttl)
      end
      assert.is_true(alive > 0, "1 ms before " .. ttl)
    end
  end)

  it("may be given as a number or in the options", function()
    memory:set("a", 1, 2)
    memory:set("b", 1, { ttl = 2 })
    cache.set_cached("c", 1, { ttl = 2 })
    memory:set("d", 1, {})
    advance(2)
    assert.is_nil(memory:get "a")
    assert.is_nil(memory:get "b")
    assert.is_nil(memory:get "c")
    assert.equal(1, memory:get "d")
  end)

  it("is the alias's default when it is left out", function()
    memory:set("k", 1)
    cache.persistent:set("k", 1)
    cache.set_cached("l", 1)
    advance(299)
    assert.equal(1, memory:get "k")
    advance(1)
    assert.is_nil(memory:get "k")
    assert.is_nil(memory:get "l")
    assert.equal(1, cache.persistent:get "k")
    advance(3300)
    assert.is_nil(cache.persistent:get "k")
  end)

  it("means never when it is 0, false or math.huge", function()
    for _, never in ipairs { 0, -0, math.huge, 1e300 } do
      memory:set("k", "v", never)
      memory:set("l", "v", { ttl = never })
      advance(86400 * 365)
      assert.equal("v", memory:get "k")
      assert.equal("v", memory:get "l")
    end
    memory:set("k", "v", false)
    cache.set_cached("l", "v", { ttl = false })
    advance(86400 * 365)
    assert.equal("v", memory:get "k")
    assert.equal("v", memory:get "l")
  end)

  it("never becomes never because it is small", function()
    for _, ttl in ipairs { 0.0004, 1e-9, 5e-324 } do
      memory:set("k", "v", ttl)
      advance(0.001)
      assert.is_nil(memory:get "k")
    end
  end)

  it("is replaced by that of a new set", function()
    memory:set("k", "old", 10)
    memory:set("k", "new", 20)
    advance(15)
    assert.equal("new", memory:get "k")
    memory:set("k", "newer", 1)
    advance(1)
    assert.is_nil(memory:get "k")
    memory:set("k", "never", 0)
    memory:set("k", "default")
    advance(300)
    assert.is_nil(memory:get "k")
    memory:set("k", "short", 1)
    memory:set("k", "never", false)
    advance(1000)
    assert.equal("never", memory:get "k")
  end)

  it("raises when it is negative, NaN or no number", function()
    for text, bad in pairs { ["-1"] = -1, ["-inf"] = -math.huge, nan = 0 / 0, string = "5",
      boolean = true, ["function"] = print } do
      local message = "ttl must be a number of seconds >= 0, or false for never, not "
      if text ~= "nan" then message = message .. text end
      raises("set: " .. message, memory.set, memory, "k", 1, bad)
      raises("set: " .. message, memory.set, memory, "k", 1, { ttl = bad })
      raises("set_cached: " .. message, cache.set_cached, "k", 1, { ttl = bad })
      if type(bad) ~= "function" then
        raises("cached: " .. message, cache.cached, print, { ttl = bad, name = "n" })
      end
    end
    assert.is_nil(memory:get "k")
  end)

  it("passes in real time", function()
    memory:set("k", "v", 0.5)
    memory:set("l", "v", 0.05)
    assert.equal("v", memory:get "l")
    task.sleep(0.06)
    assert.is_nil(memory:get "l")
    assert.equal("v", memory:get "k")
  end)

  it("is kept within 10 ms by a script that never yields", function()
    local clock = require("moonstash.task").now
    local least, earliest = math.huge, math.huge
    for _ = 1, 5 do -- on a busy machine the best of a few tries
      local before = clock()
      memory:set("k", "v", 0.05)
      local after, last_hit = clock(), nil
      repeat
        local asked = clock()
        local hit = memory:get "k"
        if hit then last_hit = asked end
      until not hit
      earliest = math.min(earliest, clock() - before)
      least = math.min(least, last_hit - after)
    end
    assert.is_true(least < 0.06, least)
    assert.is_true(earliest > 0.04, earliest)
  end)

  it("counts what it ended as expired", function()
    local before = memory:stats()
    memory:set("k", "v", 1)
    advance(1)
    memory:get "k"
    local now = memory:stats()
    assert.equal(1, now.expired - before.expired)
    assert.equal(1, now.misses - before.misses)
    assert.equal(before.entries, now.entries)
  end)
end)

describe("cache.testing.advance", function()
  it("raises unless it is given seconds", function()
    for _, bad in ipairs { -1, math.huge, 0 / 0, "1", false, {} } do
      raises("advance: a number of seconds from 0", advance, bad)
    end
    raises("advance: a number of seconds from 0 to 1e+09 expected, not nil", advance)
  end)

  it("adds up", function()
    support.fresh()
    cache.memory:set("k", "v", 100) -- a slow machine takes a second for the 900
    for _ = 1, 900 do advance(0.1) end
    assert.equal("v", cache.memory:get "k")
    for _ = 1, 100 do advance(0.1) end
    assert.is_nil(cache.memory:get "k")
  end)
end)
