-- Where Lua cannot wait: callbacks of C functions, finalizers, plain coroutines.
local cache = require "cache"
local support = require "spec.cache.support"
local task = require "task"

local cached, memory = cache.cached, cache.memory
local counted, settle = support.counted, support.settle

describe("inside a callback of a C function", function()
  before_each(support.fresh)

  it("get, set, delete and clear work", function()
    local out = ("abc"):gsub(".", function(c)
      memory:set(c, c .. "!")
      local value = memory:get(c)
      memory:delete(c)
      return value
    end)
    assert.equal("a!b!c!", out)
    table.sort({ 3, 1, 2 }, function(a, b)
      memory:set("last", { a, b })
      return a < b
    end)
    assert.equal(2, #memory:get "last")
    assert.equal("x", (("x"):gsub(".", function() memory:clear() end)))
  end)

  it("a cached function works on hits and on misses whose fn does not wait", function()
    local load, counter = counted(function(c) return c:upper() end)
    local upper = cached(load, { name = "no_wait.upper" })
    assert.equal("ABAB", (("abab"):gsub(".", upper)))
    assert.equal(2, counter.calls)
    assert.equal("ABAB", (("abab"):gsub(".", upper)))
    assert.equal(2, counter.calls)
    local rank = cached(function(n) return -n end, { name = "no_wait.rank" })
    local list = { 1, 3, 2, 5, 4 }
    table.sort(list, function(a, b) return rank(a) < rank(b) end)
    assert.same({ 5, 4, 3, 2, 1 }, list)
  end)

  it("a cached function that waits on a miss raises a sentence and frees the key", function()
    local f = cached(function(c)
      task.sleep(0.001)
      return c:upper()
    end, { name = "no_wait.sleeps" })
    local ok, err = pcall(string.gsub, "a", ".", f)
    assert.is_false(ok)
    assert.truthy(tostring(err):find("sleep: cannot wait here: inside 'gsub'", 1, true))
    assert.equal("A", f "a")
    assert.equal("A", (("a"):gsub(".", f)))
  end)

  it("a cached function does not hang on another task's load: fn runs here, unstored", function()
    local gate = task.event()
    local waits = true
    local load, counter = counted(function(c)
      if waits then gate:wait() end
      return waits and c:upper() or c .. "!"
    end)
    local f = cached(load, { name = "no_wait.other" })
    local loader = task.spawn(f, "a")
    settle()
    waits = false
    assert.equal("a!", (("a"):gsub(".", f)))
    assert.equal(2, counter.calls)
    assert.is_nil(memory:get "no_wait.other:1:a")
    waits = true
    gate:set()
    assert.equal("A", loader:join())
    assert.equal("A", f "a")
  end)

  it("a load taken there may be waited for by nobody, but cycles still end", function()
    local f
    local depth = 0
    f = cached(function(c)
      depth = depth + 1
      return depth < 3 and f(c) .. "+" or c
    end, { name = "no_wait.cycle" })
    assert.equal("a++", (("a"):gsub(".", f)))
  end)
end)

describe("inside a coroutine", function()
  before_each(support.fresh)

  it("a cached function waits as anywhere else", function()
    local load, counter = counted(function()
      task.sleep(0.005)
      return "value"
    end)
    local f = cached(load, { name = "no_wait.coroutine" })
    local function through_coroutine() return coroutine.wrap(function() return f() end)() end
    local a, b, c = task.spawn(through_coroutine), task.spawn(f), task.spawn(through_coroutine)
    assert.same({ "value", "value", "value" }, { a:join(), b:join(), c:join() })
    assert.equal(1, counter.calls)
  end)

  it("of a gsub callback, a wait for another's load raises and leaves nothing behind", function()
    local gate = task.event()
    local f = cached(function()
      gate:wait()
      return "value"
    end, { name = "no_wait.nested" })
    local loader = task.spawn(f)
    settle()
    local ok, err = pcall(string.gsub, "a", ".", function() return coroutine.wrap(f)() end)
    assert.is_false(ok)
    assert.truthy(tostring(err):find("cannot wait here", 1, true))
    gate:set()
    assert.equal("value", loader:join())
    assert.equal("value", f())
  end)
end)

describe("inside a finalizer", function()
  before_each(support.fresh)

  it("the cache works, and a cached function that does not wait", function()
    local f = cached(function(x) return x + 1 end, { name = "no_wait.gc" })
    local seen = {}
    local function litter()
      local proxy = newproxy(true)
      getmetatable(proxy).__gc = function()
        memory:set("gc", { 1 })
        seen = { memory:get "gc", f(1), f(1) }
      end
    end
    litter()
    collectgarbage()
    assert.same({ { 1 }, 2, 2 }, seen)
  end)
end)
