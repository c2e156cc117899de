-- A runtime that ends in the middle of loads ends cleanly, with nothing left.
local process = require "spec.support.process"

describe("a script that ends", function()
  local function run(code)
    local result = process.run { "-e", [[
      local f = cache.cached(function(k) task.sleep(k or 10) return "value" end, { name = "f" })
      local function both() for _ = 1, 3 do task.spawn(pcall, f) end task.yield() end
    ]] .. code }
    assert.is_nil(result.signal, result.err)
    assert.is_nil(result.err:find "Sanitizer", result.err)
    return result
  end

  it("with os.exit leaves its loads", function()
    local result = run "both() os.exit(3)"
    assert.equal(3, result.code)
    assert.equal("", result.err)
  end)

  it("with an error leaves its loads", function()
    local result = run "both() error 'ended'"
    assert.equal(1, result.code)
    assert.truthy(result.err:find "ended")
  end)

  it("with loads of detached tasks in flight", function()
    local result = run [[
      for _ = 1, 3 do task.spawn_detached(f) end
      task.yield()]]
    assert.equal(0, result.code)
    assert.equal("", result.err)
  end)

  it("with loads in coroutines that nobody resumes", function()
    local result = run [[
      local g = cache.cached(function() coroutine.yield() end, { name = "g" })
      keep = {}
      for i = 1, 3 do keep[i] = coroutine.create(g) coroutine.resume(keep[i]) end
      task.spawn_detached(g)
      task.yield()]]
    assert.equal(0, result.code)
  end)

  it("with a finalizer that uses the cache at the very end", function()
    local result = run [[
      keep = newproxy(true)
      getmetatable(keep).__gc = function()
        cache.memory:set("k", { 1 })
        io.write(cache.memory:get("k")[1], " ", tostring(pcall(f, 0)), "\n")
      end
      keep2 = coroutine.create(cache.cached(function() coroutine.yield() end, { name = "g" }))
      coroutine.resume(keep2)]]
    assert.equal(0, result.code)
    assert.equal("1 false\n", result.out)
  end)

  it("while waiters are ready to run", function()
    local result = run [[
      local gate = task.event()
      local g = cache.cached(function() gate:wait() return { "value" } end, { name = "g" })
      for _ = 1, 3 do task.spawn_detached(g) end
      task.yield()
      gate:set()
      task.yield()
      os.exit(0)]]
    assert.equal(0, result.code)
    assert.equal("", result.err)
  end)

  -- Five seconds, as long as a program may take to end its tasks.
  it("although its tasks do not: loads, waiters and all are dropped", function()
    if not jit.status() then return end -- once is enough
    local result = run [[
      local gate = task.event()
      local function stubborn(g)
        for _ = 1, 3 do
          task.spawn_detached(function()
            pcall(task.shield, g)
            task.shield(task.sleep, 1000)
          end)
        end
      end
      stubborn(cache.cached(function() task.sleep(1000) end, { name = "waits" }))
      stubborn(cache.cached(function() gate:wait() return { 1 } end, { name = "value" }))
      stubborn(cache.cached(function() gate:wait() error {} end, { name = "error" }))
      task.yield()
      gate:set()
      task.yield()
      error "ended"]]
    assert.equal(1, result.code)
    assert.truthy(result.err:find("closed while tasks were still running", 1, true))
  end)
end)
