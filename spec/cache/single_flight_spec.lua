-- One load per key: who runs it, who waits, and what they get.
local core = require "moonstash.task"
local cache = require "cache"
local process = require "spec.support.process"
local support = require "spec.cache.support"
local task = require "task"

local cached, memory = cache.cached, cache.memory
local counted, settle = support.counted, support.settle

-- A wrapper under the key "k", the counter of its loads, and the gate they
-- wait at.
local function gated(fn, opts)
  local gate = task.event()
  local load, counter = counted(function(...)
    gate:wait()
    return fn(...)
  end)
  opts = opts or {}
  opts.key_builder = opts.key_builder or function() return "k" end
  return cached(load, opts), counter, gate
end

local function spawn_many(n, fn, ...)
  local tasks = {}
  for i = 1, n do tasks[i] = task.spawn(fn, ...) end
  settle()
  return tasks
end

local function pack(...) return { n = select("#", ...), ... } end

describe("callers of a cached function at the same time", function()
  before_each(support.fresh)

  it("share one run and its value", function()
    local f, counter, gate = gated(function() return "value" end)
    local tasks = spawn_many(100, f)
    gate:set()
    for _, t in ipairs(tasks) do assert.equal("value", t:join()) end
    assert.equal(1, counter.calls)
    assert.equal("value", memory:get "k")
  end)

  it("get all results, nils too", function()
    local f, counter, gate = gated(function() return 1, nil, "three", nil end)
    local tasks = spawn_many(10, f)
    gate:set()
    for _, t in ipairs(tasks) do assert.same({ 1, nil, "three", nil, n = 4 }, pack(t:join())) end
    assert.equal(1, counter.calls)
  end)

  it("get every kind of value", function()
    for _, value in ipairs { 0, -0.5, 1e300, "", ("x"):rep(100000), true, false } do
      support.fresh()
      local f, counter, gate = gated(function() return value end)
      local tasks = spawn_many(3, f)
      gate:set()
      for _, t in ipairs(tasks) do assert.is_true(rawequal(value, (t:join()))) end
      assert.equal(1, counter.calls)
    end
  end)

  it("get a copy each", function()
    local f, _, gate = gated(function() return { list = {} } end)
    local tasks = spawn_many(5, f)
    gate:set()
    local seen = {}
    for _, t in ipairs(tasks) do
      local value = t:join()
      assert.same({ list = {} }, value)
      assert.is_nil(seen[value])
      assert.is_nil(seen[value.list])
      seen[value], seen[value.list] = true, true
      value.list[1] = "changed"
    end
    assert.same({ list = {} }, memory:get "k")
  end)

  it("share an error, the same object, and it is not cached", function()
    local object = { code = "mine" }
    local f, counter, gate = gated(function() error(object) end)
    local tasks = spawn_many(10, f)
    gate:set()
    for _, t in ipairs(tasks) do assert.same({ false, object, n = 2 }, pack(t:pjoin())) end
    for _, t in ipairs(tasks) do assert.equal(object, select(2, t:pjoin())) end
    assert.equal(1, counter.calls)
    assert.is_false(pcall(f))
    assert.equal(2, counter.calls)
  end)

  it("share an error that is nil or false", function()
    for _, object in ipairs { false, "nil" } do
      if object == "nil" then object = nil end
      local f, counter, gate = gated(function() error(object) end)
      local tasks = spawn_many(3, function() return select("#", pcall(f)), pcall(f) end)
      gate:set()
      for _, t in ipairs(tasks) do
        local count, ok, err = t:join()
        assert.same({ 2, false }, { count, ok })
        assert.equal(object, err)
      end
      assert.is_true(counter.calls <= 4) -- one for all first calls, three more for the second
    end
  end)

  it("share nil, err: the same objects, not cached", function()
    local object = setmetatable({}, {})
    local f, counter, gate = gated(function() return nil, object, "more", nil end)
    local tasks = spawn_many(10, f)
    gate:set()
    for _, t in ipairs(tasks) do
      local results = pack(t:join())
      assert.equal(4, results.n)
      assert.is_nil(results[1])
      assert.equal(object, results[2])
      assert.equal("more", results[3])
    end
    assert.equal(1, counter.calls)
    f()
    assert.equal(2, counter.calls)
  end)

  it("share nothing, too, instead of looking one after the other", function()
    for _, nothing in ipairs { pack(), pack(nil), pack(nil, nil) } do
      local f, counter, gate = gated(function() return unpack(nothing, 1, nothing.n) end)
      local tasks = spawn_many(10, f)
      gate:set()
      for _, t in ipairs(tasks) do assert.same(nothing, pack(t:join())) end
      assert.equal(1, counter.calls)
    end
  end)

  it("share the refusal of a result that cannot be cached", function()
    local f, counter, gate = gated(function() return { print } end)
    local tasks = spawn_many(5, pcall, f)
    gate:set()
    for _, t in ipairs(tasks) do
      local ok, err = t:join()
      assert.is_false(ok)
      assert.truthy(err:find("cached: value[1] is a function", 1, true))
    end
    assert.equal(1, counter.calls)
  end)

  it("share a value that is too large to be stored", function()
    finally(support.fresh)
    cache.configure_caches { memory_max_bytes = 128 * 1024 }
    local f, counter, gate = gated(function() return ("x"):rep(64 * 1024) end)
    local tasks = spawn_many(5, f)
    gate:set()
    for _, t in ipairs(tasks) do assert.equal(64 * 1024, #t:join()) end
    assert.equal(1, counter.calls)
  end)

  it("do not wait for the load of another key", function()
    local f, counter, gate = gated(function(k) return k end, {
      key_builder = function(_, k) return k end,
    })
    local tasks = spawn_many(1, f, "a")
    tasks[2] = spawn_many(1, f, "b")[1]
    assert.equal(2, counter.calls)
    gate:set()
    assert.equal("a", tasks[1]:join())
    assert.equal("b", tasks[2]:join())
  end)

  it("do not wait for a load under the same key of the other alias", function()
    local f, in_memory, gate = gated(function() return "f" end)
    local g, in_persistent, gate2 = gated(function() return "g" end, { alias = "persistent" })
    local a, b = spawn_many(1, f)[1], spawn_many(1, g)[1]
    assert.equal(1, in_memory.calls)
    assert.equal(1, in_persistent.calls)
    gate:set()
    gate2:set()
    assert.equal("f", a:join())
    assert.equal("g", b:join())
  end)

  it("show fn's frames in the traceback of a waiter, too", function()
    local result = process.run { "-e", [[
      local function deep() task.sleep(0.01) error "it broke" end
      local f = cache.cached(function() deep() end, { name = "f" })
      task.spawn(pcall, f)
      task.yield()
      f()]] }
    assert.equal(1, result.code)
    assert.truthy(result.err:find("it broke", 1, true))
    assert.truthy(result.err:find("in function 'deep'", 1, true))
  end)
end)

describe("a key that changes during its load", function()
  before_each(support.fresh)

  for what, change in pairs {
    delete = function() return memory:delete "k" end,
    clear = function() return memory:clear() end,
    ["a newer set"] = function() return memory:set("k", "newer") end,
  } do
    it("is not given the old value after " .. what .. ", but waiters get it", function()
      local f, _, gate = gated(function() return "old" end)
      local tasks = spawn_many(3, f)
      change()
      local then_there = memory:get "k"
      gate:set()
      for _, t in ipairs(tasks) do assert.equal("old", t:join()) end
      assert.equal(then_there, memory:get "k")
      assert.equal(what == "a newer set" and "newer" or nil, memory:get "k")
    end)
  end

  it("is loaded anew for those who come after a delete", function()
    local version = 1
    local f, counter, gate = gated(function()
      local mine = version
      task.sleep(0.01)
      return "version " .. mine
    end)
    gate:set()
    local before = spawn_many(2, f)
    memory:delete "k"
    version = 2
    local after = spawn_many(2, f)
    for _, t in ipairs(before) do assert.equal("version 1", t:join()) end
    for _, t in ipairs(after) do assert.equal("version 2", t:join()) end
    assert.equal(2, counter.calls)
    assert.equal("version 2", memory:get "k")
  end)

  it("keeps the newer load's value even if the older one ends last", function()
    local first, second = task.event(), task.event()
    local gates = { first, second }
    local calls = 0
    local f = cached(function()
      calls = calls + 1
      local mine = calls
      gates[mine]:wait()
      return mine
    end, { key_builder = function() return "k" end })
    local old = spawn_many(1, f)[1]
    memory:delete "k"
    local new = spawn_many(1, f)[1]
    second:set()
    assert.equal(2, new:join())
    first:set()
    assert.equal(1, old:join())
    assert.equal(2, memory:get "k")
  end)

  it("may be changed by the load itself", function()
    local f = cached(function()
      memory:set("k", "own")
      return "returned"
    end, { key_builder = function() return "k" end })
    assert.equal("returned", f())
    assert.equal("own", memory:get "k")
  end)
end)

describe("cancelling around a load", function()
  before_each(support.fresh)

  it("ends a loader at once when nobody waits", function()
    local f, counter = gated(function() return "value" end)
    local t = spawn_many(1, f)[1]
    t:cancel()
    settle()
    assert.equal("cancelled", t:status())
    assert.is_nil(memory:get "k")
    local again = spawn_many(1, f)[1] -- the key is free again
    assert.equal(2, counter.calls)
    again:cancel()
    again:pjoin()
  end)

  it("lets a loader go on while others wait", function()
    local f, counter, gate = gated(function() return "value" end)
    local tasks = spawn_many(3, f)
    tasks[1]:cancel()
    settle()
    assert.equal("waiting", tasks[1]:status())
    gate:set()
    assert.equal("value", tasks[2]:join())
    assert.equal("value", tasks[3]:join())
    tasks[1]:pjoin()
    assert.equal(1, counter.calls)
    assert.equal("value", memory:get "k")
  end)

  it("lets what such a loader has spawned go on, too", function()
    for _, around in ipairs {
      function(fn) return task.gather { fn }[1] end,
      function(fn) return task.timeout(5, fn) end,
      function(fn) return task.spawn(fn):join() end,
      function(fn) return task.scope(function(scope) return scope:spawn(fn):join() end) end,
    } do
      support.fresh()
      local gate = task.event()
      local load, counter = counted(function()
        return around(function()
          gate:wait()
          return "value"
        end)
      end)
      local f = cached(load, { key_builder = function() return "k" end })
      local tasks = spawn_many(2, f)
      tasks[1]:cancel()
      settle()
      gate:set()
      assert.equal("value", tasks[2]:join())
      tasks[1]:pjoin()
      assert.equal(1, counter.calls)
    end
  end)

  it("ends that loader at its next wait after the load", function()
    local f, _, gate = gated(function() return "value" end)
    local got, reached
    local loader = task.spawn(function()
      got = f()
      task.sleep(10)
      reached = true
    end)
    settle()
    local waiter = spawn_many(1, f)[1]
    loader:cancel()
    gate:set()
    assert.equal("value", waiter:join())
    loader:pjoin()
    assert.equal("cancelled", loader:status())
    assert.equal("value", got)
    assert.is_nil(reached)
  end)

  it("lets a waiter leave alone", function()
    local f, counter, gate = gated(function() return "value" end)
    local tasks = spawn_many(3, f)
    tasks[2]:cancel()
    settle()
    assert.equal("cancelled", tasks[2]:status())
    assert.equal("waiting", tasks[1]:status())
    gate:set()
    assert.equal("value", tasks[1]:join())
    assert.equal("value", tasks[3]:join())
    assert.equal(1, counter.calls)
  end)

  it("ends a cancelled loader when its last waiter leaves", function()
    local f = gated(function() return "value" end)
    local tasks = spawn_many(3, f)
    tasks[1]:cancel()
    tasks[2]:cancel()
    settle()
    assert.equal("waiting", tasks[1]:status())
    tasks[3]:cancel()
    settle()
    for _, t in ipairs(tasks) do assert.equal("cancelled", t:status()) end
  end)

  it("gives the load to the next when the loader is just ending", function()
    local f, counter, gate = gated(function() return "value" end)
    local loader = spawn_many(1, f)[1]
    loader:cancel() -- woken to raise, has not run yet
    local waiter = task.spawn(f)
    gate:set()
    assert.equal("value", waiter:join())
    assert.is_true(counter.calls <= 2)
  end)

  it("gives the load to a waiter when the loader's own time is over", function()
    local f, counter, gate = gated(function() return "value" end)
    local ok, err = pcall(task.timeout, 0.01, f)
    assert.is_false(ok)
    assert.equal("timeout", err.code)
    gate:set()
    assert.equal("value", f())
    assert.equal(2, counter.calls)
  end)

  it("keeps a timeout around a call, although others wait for its load", function()
    local f, counter, gate = gated(function() return "value" end)
    local outcome
    local timed = task.spawn(function() outcome = pack(pcall(task.timeout, 0.02, f)) end)
    settle()
    local waiter = spawn_many(1, f)[1]
    timed:join()
    assert.is_false(outcome[1])
    assert.equal("timeout", outcome[2].code)
    assert.equal("waiting", waiter:status())
    gate:set()
    assert.equal("value", waiter:join())
    assert.equal(1, counter.calls)
  end)

  it("keeps a timeout around a gather that loads, although others wait for it", function()
    local get = cached(function() task.sleep(0.4) return 1 end, { name = "single_flight.gather" })
    local other = task.spawn(function() task.sleep(0.01) return get() end)
    local started = core.now()
    local ok, err = pcall(task.timeout, 0.05, task.gather, { get })
    assert.is_false(ok)
    assert.equal("timeout", err.code)
    assert.is_true(core.now() - started < 0.3)
    assert.equal(1, other:join())
  end)

  it("keeps a timeout around a waiting call", function()
    local f, counter, gate = gated(function() return "value" end)
    local loader = spawn_many(1, f)[1]
    local ok, err = pcall(task.timeout, 0.01, f)
    assert.is_false(ok)
    assert.equal("timeout", err.code)
    gate:set()
    assert.equal("value", loader:join())
    assert.equal(1, counter.calls)
  end)

  it("shares an error with code cancelled that is not the loader's own end", function()
    local victim = task.spawn(task.sleep, 10)
    local f, counter, gate = gated(function() return victim:join() end)
    local tasks = spawn_many(3, f)
    victim:cancel()
    gate:set()
    for _, t in ipairs(tasks) do
      local ok, err = t:pjoin()
      assert.is_false(ok)
      assert.equal("cancelled", err.code)
    end
    assert.equal(1, counter.calls)
  end)
end)

describe("a loader that is dropped in the middle", function()
  before_each(support.fresh)

  -- A task that runs fn in a task of its own, and gives what pjoin gives.
  local function watched(fn)
    return task.spawn(function() return task.spawn(fn):pjoin() end)
  end

  it("leaves the load to those who wait", function()
    local calls = 0
    local gate = task.event()
    local f = cached(function()
      calls = calls + 1
      gate:wait()
      if calls == 1 then coroutine.yield() end -- nobody to yield to: the task ends here
      return "value"
    end, { key_builder = function() return "k" end })
    local loader = watched(f)
    settle()
    local tasks = spawn_many(3, f)
    collectgarbage "stop"
    finally(function() collectgarbage "restart" end)
    gate:set()
    for _, t in ipairs(tasks) do assert.equal("value", t:join()) end
    assert.equal(2, calls)
    assert.is_false(loader:join())
  end)

  it("leaves the load to those who come later", function()
    local calls = 0
    local f = cached(function()
      calls = calls + 1
      if calls == 1 then coroutine.yield() end
      return "value"
    end, { key_builder = function() return "k" end })
    assert.is_false(watched(f):join())
    collectgarbage "stop"
    finally(function() collectgarbage "restart" end)
    assert.equal("value", f())
    assert.equal("value", f())
    assert.equal(2, calls)
  end)

  it("may be a coroutine that nobody resumes any more", function()
    local calls = 0
    local f = cached(function()
      calls = calls + 1
      if calls == 1 then coroutine.yield() end
      return "value"
    end, { key_builder = function() return "k" end })
    local co = coroutine.create(f)
    coroutine.resume(co)
    local waiter = spawn_many(1, f)[1]
    assert.equal("waiting", waiter:status())
    co = nil -- luacheck: ignore
    collectgarbage()
    assert.equal("value", waiter:join())
  end)

  it("is none while its coroutine lives: another task may go on with it", function()
    local calls = 0
    local f = cached(function()
      calls = calls + 1
      return coroutine.yield "half way"
    end, { key_builder = function() return "k" end })
    local co
    task.spawn(function()
      co = coroutine.create(f)
      assert(select(2, coroutine.resume(co)) == "half way")
    end):join()
    local waiter = spawn_many(1, f)[1]
    assert.equal("waiting", waiter:status())
    assert.same({ true, "value" }, { coroutine.resume(co, "value") })
    assert.equal("value", waiter:join())
    assert.equal(1, calls)
  end)

  it("keeps nobody from ending", function()
    local f = cached(function() coroutine.yield() end, { key_builder = function() return "k" end })
    for _ = 1, 20 do coroutine.wrap(f)() end
    collectgarbage()
    collectgarbage()
    assert.is_nil(memory:get "k")
  end)
end)

describe("a cycle of loads", function()
  before_each(support.fresh)

  it("of a function that calls itself with the same key runs fn directly", function()
    local depth = 0
    local f
    f = cached(function()
      depth = depth + 1
      if depth < 3 then return f() + 1 end
      return 1
    end, { key_builder = function() return "k" end })
    assert.equal(3, f())
    assert.equal(3, memory:get "k") -- the outer one's
  end)

  it("of two functions that need each other ends", function()
    local a, b
    local depth = 0
    a = cached(function()
      depth = depth + 1
      return depth > 2 and 1 or b() + 1
    end, { key_builder = function() return "a" end })
    b = cached(function() return a() + 1 end, { key_builder = function() return "b" end })
    assert.equal("number", type(a()))
  end)

  it("across tasks ends", function()
    local a, b
    local runs = { a = 0, b = 0 }
    local function loader(name, other)
      return function()
        runs[name] = runs[name] + 1
        if runs[name] > 1 then return 1 end
        task.sleep(0.01)
        return other()() + 1
      end
    end
    a = cached(loader("a", function() return b end), { key_builder = function() return "a" end })
    b = cached(loader("b", function() return a end), { key_builder = function() return "b" end })
    local x, y = task.spawn(a), task.spawn(b)
    assert.equal("number", type(task.timeout(5, function() return x:join() + y:join() end)))
  end)

  it("through a child that the load waits for ends", function()
    local runs = 0
    local f
    f = cached(function()
      runs = runs + 1
      if runs > 1 then return "inner" end
      return task.spawn(f):join() .. ", outer"
    end, { key_builder = function() return "k" end })
    assert.equal("inner, outer", task.timeout(5, f))
    assert.equal("inner, outer", memory:get "k")
  end)

  it("through one of several children ends", function()
    for _, gather in ipairs { task.gather, function(fns)
      return task.scope(function(s)
        local tasks, results = {}, {}
        for i, fn in ipairs(fns) do tasks[i] = s:spawn(fn) end
        for i, t in ipairs(tasks) do results[i] = t:join() end
        return results
      end)
    end } do
      support.fresh()
      local runs = 0
      local f
      f = cached(function()
        runs = runs + 1
        if runs > 1 then return "inner" end
        local slow = function() task.sleep(0.02) return "slow" end
        local late = function() task.sleep(0.01) return f() end
        local results = gather { slow, f, late, slow }
        return table.concat(results, ",")
      end, { key_builder = function() return "k" end })
      assert.equal("slow,inner,inner,slow", task.timeout(5, f))
      assert.equal("slow,inner,inner,slow", memory:get "k")
    end
  end)

  it("does not keep others from sharing the load", function()
    local f, outer
    local runs = 0
    f = cached(function()
      runs = runs + 1
      if runs > 1 then return "inner" end
      task.sleep(0.01)
      outer = f()
      task.sleep(0.01)
      return "outer"
    end, { key_builder = function() return "k" end })
    local tasks = spawn_many(5, f)
    for _, t in ipairs(tasks) do assert.equal("outer", t:join()) end
    assert.equal("inner", outer)
    assert.equal(2, runs)
  end)
end)

describe("many loads", function()
  it("leave no task and no waiter behind", function()
    support.fresh()
    local f = cached(function(k)
      task.sleep(0.001 * (k % 3))
      if k % 7 == 0 then error "seven" end
      if k % 5 == 0 then return nil, "five" end
      return k
    end, { name = "single_flight.many", ttl = 0.004 })
    local tasks = {}
    for i = 1, 600 do
      tasks[i] = task.spawn(function()
        for step = 1, 5 do
          pcall(f, (i * step) % 20)
          if step == 3 then memory:delete("single_flight.many:" .. i % 20) end
        end
      end)
      if i % 11 == 0 then tasks[i - 5]:cancel() end
    end
    for _, t in ipairs(tasks) do t:pjoin() end
    for k = 0, 19 do
      local ok, value = pcall(f, k)
      assert.equal(k % 7 ~= 0, ok)
      assert.equal(k % 7 ~= 0 and k % 5 ~= 0 and k or nil, ok and value or nil)
    end
  end)
end)
