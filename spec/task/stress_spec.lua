local task = require "task"
local process = require "spec.support.process"
local tasks = require "spec.support.tasks"

local COUNT = tonumber(os.getenv "SPEC_TASKS") or 1000000
local SEED = 20250611

-- Memory of the process in MB: "VmRSS", "VmSize".
local function megabytes(what)
  for line in io.lines "/proc/self/status" do
    local kb = line:match("^" .. what .. ":%s+(%d+)")
    if kb then return tonumber(kb) / 1024 end
  end
end

-- A sanitizer maps terabytes, and keeps memory that was freed.
local sanitized = megabytes "VmSize" > 1e6

-- A generator of our own: its numbers do not depend on who else draws.
local function random_numbers(seed)
  local state = seed
  return function(n) -- 1..n
    state = (state * 1103515245 + 12345) % 2147483648
    return math.floor(state / 65536) % n + 1
  end
end

local function id_of(t) return tonumber(tostring(t):match "^task (%d+)") end

describe("very many tasks", function()
  -- Takes 5 s, but not of ours: it runs beside the other tests.
  local stubborn
  setup(function()
    stubborn = process.start {
      "-e", [[
        task.spawn_detached(task.shield, task.sleep, 1000)
        task.spawn_detached(task.shield, function() task.event():wait() end)
        task.sleep(0)
      ]],
    }
  end)

  it("with random cancels and timeouts leave every counter where it was", function()
    local random = random_numbers(SEED)
    local gate, queue, semaphore = task.event(), task.queue(10), task.semaphore(3)
    local bodies = {
      function() end,
      function() return 1, 2, 3 end,
      function() task.yield() end,
      function() task.sleep(0) end,
      function() task.sleep(random(3) / 1000) end,
      function() gate:wait(random(2) / 1000) end,
      function() queue:push(1, random(2) / 1000) end,
      function() queue:pop(random(2) / 1000) end,
      function() semaphore:with(task.yield) end,
      function() pcall(task.gather, { task.yield, function() error "expected" end }) end,
      function() coroutine.wrap(task.yield)() end,
      function() task.shield(task.yield) end,
      function() task.defer(task.yield) end,
      function() task.spawn(task.sleep, 0.001) end,
      function()
        local child = task.spawn(task.sleep, 1000)
        child:pjoin(0.001)
        child:cancel()
      end,
      function() pcall(task.timeout, 0.001, task.sleep, random(2) / 1000) end,
      function() task.race { task.yield, function() task.sleep(1000) end } end,
      function() task.spawn(task.sleep, 0.001):detach() end,
    }
    tasks.leaves_nothing(function()
      local first, made = nil, 0
      while made < COUNT do
        local batch, n = {}, 2000
        for i = 1, n do batch[i] = task.spawn(bodies[random(#bodies)]) end
        first = first or id_of(batch[1])
        made = id_of(batch[n]) - first -- they spawn tasks, too
        for _ = 1, n / 4 do batch[random(n)]:cancel() end
        task.yield()
        for _ = 1, n / 4 do batch[random(n)]:cancel() end
        for i = 1, n do
          if not batch[i]:pjoin(random(5) / 1000) then batch[i]:cancel() end
        end
        for i = 1, n do batch[i]:pjoin() end
      end
      task.sleep(0.005) -- the detached ones
    end)
    assert.is_true(task.counters().pooled <= 256)
  end)

  it("sleep in at most 120 MB for 100,000 of them, and all wake", function()
    local count, begun, woken = 100000, 0, 0
    collectgarbage()
    local before = megabytes "VmRSS"
    task.scope(function(s)
      for i = 1, count do
        if i % 10000 == 0 then task.yield() end
        s:spawn(function()
          begun = begun + 1
          task.sleep(0.5)
          woken = woken + 1
        end)
      end
      tasks.await(function() return begun == count end)
      local grown = megabytes "VmRSS" - before
      if not sanitized then assert.is_true(grown <= 120, ("grown by %d MB"):format(grown)) end
    end)
    assert.equal(count, woken)
  end)

  it("use few coroutines when few of them live at a time", function()
    local before = task.counters().coroutines
    for _ = 1, 20000 do
      task.spawn(task.yield):join()
      task.spawn(error, "no", 0):pjoin()
    end
    assert.is_true(task.counters().coroutines <= before + 2)
  end)

  it("keep at most 256 coroutines when many have lived at a time", function()
    task.scope(function(s)
      for _ = 1, 5000 do s:spawn(task.yield) end
    end)
    local counters = task.counters()
    assert.is_true(counters.pooled <= 256)
    assert.is_true(counters.coroutines <= 256 + counters.alive)
  end)

  it("may be each other's children 100,000 deep", function()
    local function join(n)
      if n > 0 then return task.spawn(join, n - 1):join() + 1 end
      return 0
    end
    assert.equal(100000, task.spawn(join, 100000):join())
    local function leave(n)
      if n > 0 then task.spawn(leave, n - 1) end
    end
    task.spawn(leave, 100000):join()
  end)

  it("end when the outermost of 100,000 is cancelled", function()
    local function nest(n)
      if n > 0 then task.spawn(nest, n - 1):join() else task.sleep(1000) end
    end
    local before = task.counters().alive
    local t = task.spawn(nest, 100000)
    tasks.await(function() return task.counters().waiting >= 100000 end)
    t:cancel()
    assert.is_false((t:pjoin()))
    assert.equal(before, task.counters().alive)
  end)

  it("pass an error on through 20,000 of them", function()
    local function nest(n)
      if n == 0 then error("deep", 0) end
      task.spawn(nest, n - 1):join()
    end
    assert.same({ false, "deep" }, { task.spawn(nest, 20000):pjoin() })
  end)

  it("end when one of 100,000 siblings fails", function()
    local before = task.counters().alive
    local t = task.spawn(function()
      for i = 1, 100000 do
        task.spawn(task.sleep, 1000)
        if i % 10000 == 0 then task.yield() end
      end
      task.spawn(error, "one", 0)
      task.sleep(1000)
    end)
    assert.same({ false, "one" }, { t:pjoin() })
    assert.equal(before, task.counters().alive)
  end)

  it("cannot keep the runtime from closing, not even from inside a shield", function()
    local result = stubborn:wait()
    assert.equal(0, result.code)
    assert.matches("closed while tasks were still running: 2\n", result.err)
  end)
end)
