local task = require "task"
local tasks = require "spec.support.tasks"

local error_of, settle = tasks.error_of, tasks.settle

describe("a spawned task", function()
  it("runs with its arguments and gives all results to join", function()
    local t = task.spawn(function(...) return select("#", ...), ... end, 1, nil, "x", nil)
    local function check(...)
      assert.equal(5, select("#", ...))
      assert.same({ 4, 1, nil, "x", nil }, { ... })
    end
    check(t:join())
    check(t:join()) -- as often as one likes
  end)

  it("does not run before its parent waits", function()
    local ran = false
    local t = task.spawn(function() ran = true end)
    assert.is_false(ran)
    assert.equal("ready", t:status())
    t:join()
    assert.is_true(ran)
  end)

  it("runs in the order of spawning", function()
    local order = {}
    for i = 1, 5 do task.spawn(function() order[#order + 1] = i end) end
    settle()
    assert.same({ 1, 2, 3, 4, 5 }, order)
  end)

  it("is current while it runs, also inside its coroutines", function()
    local seen
    local t = task.spawn(function()
      seen = coroutine.wrap(function() return task.current() end)()
    end)
    t:join()
    assert.equal(t, seen)
    assert.are_not.equal(t, task.current())
  end)

  it("ends only when its children have ended", function()
    local gate = task.event()
    local t = task.spawn(function()
      task.spawn(function() gate:wait() end)
      return "result"
    end)
    settle()
    assert.equal("joining", t:status())
    gate:set()
    assert.equal("result", t:join())
    assert.equal("done", t:status())
  end)

  it("has an id, and a name when it is given one", function()
    local t = task.spawn(function() end)
    assert.is_nil(t:name())
    assert.matches("^task %d+$", tostring(t))
    assert.equal("worker", t:name "worker")
    assert.equal("worker", t:name())
    assert.matches("^task %d+ %(worker%)$", tostring(t))
    t:join()
    assert.equal("worker", t:name())
  end)

  it("keeps each result apart from what a pooled coroutine had before", function()
    for i = 1, 1000 do
      assert.equal(i, task.spawn(function(n) return n end, i):join())
    end
  end)

  it("refuses anything but a function", function()
    local err = error_of(function() task.spawn(1) end)
    assert.matches("spawn_spec.lua:%d+: spawn: a function expected, not number", err)
    assert.matches("spawn: a function expected, not no value", error_of(task.spawn))
    assert.matches("spawn_detached: a function expected", error_of(task.spawn_detached, {}))
  end)

  it("takes thousands of arguments and says when there are too many", function()
    local many = {}
    for i = 1, 7000 do many[i] = i end
    local count = function(...) return select("#", ...) end
    assert.equal(7000, task.spawn(count, unpack(many)):join())
    local slots = task.counters().slots
    local more = function(...) return task.spawn(count, 1, 2, 3, ...) end
    for i = 7001, 7990 do many[i] = i end
    for _ = 1, 10 do assert.matches("too many arguments", error_of(more, unpack(many))) end
    assert.is_true(task.counters().slots <= slots + 1)
  end)

  it("starts with the globals of its spawner, whoever had its coroutine before", function()
    task.spawn(function() setfenv(0, { leaked = true }) end):join()
    for _ = 1, 3 do
      assert.is_nil(task.spawn(function() return loadstring "return leaked" () end):join())
    end
  end)
end)

describe("join", function()
  it("raises the task's error, the very same table", function()
    local mine = { any = "table" }
    assert.equal(mine, error_of(function() task.spawn(error, mine):join() end))
  end)

  it("raises a nil error as nil", function()
    local ok, err = pcall(function() task.spawn(error, nil):join() end)
    assert.is_false(ok)
    assert.is_nil(err)
  end)

  it("raises the cancellation of a task that was cancelled", function()
    local t = task.spawn(tasks.sleeper())
    settle()
    t:cancel "enough"
    local err = error_of(t.join, t)
    assert.equal("cancelled", err.code)
    assert.equal("enough", err.reason)
    assert.equal("cancelled: enough", tostring(err))
  end)

  it("raises a timeout and leaves the task running", function()
    local gate = task.event()
    local t = task.spawn(function() gate:wait() return 7 end)
    local err = error_of(t.join, t, 0.005)
    assert.equal("timeout", err.code)
    assert.matches("timed out after 0.005 s", tostring(err))
    gate:set()
    assert.equal(7, t:join(1))
  end)

  it("is interrupted when the joiner is cancelled, and the task goes on", function()
    local gate = task.event()
    local t = task.spawn(function() gate:wait() return "fine" end)
    local joiner = task.spawn(function() return t:join() end)
    settle()
    joiner:cancel()
    assert.equal("cancelled", error_of(joiner.join, joiner).code)
    gate:set()
    assert.equal("fine", t:join())
  end)

  it("may be called by many tasks at once", function()
    local gate, sum = task.event(), 0
    local t = task.spawn(function() gate:wait() return 5 end)
    for i = 1, 10 do
      local joiner = task.spawn(function()
        local value = t:join()
        sum = sum + value
      end)
      if i % 3 == 0 then -- some leave early
        settle()
        joiner:cancel()
      end
    end
    settle()
    gate:set()
    settle()
    assert.equal(35, sum)
  end)

  it("refuses a task itself, a parent, and a circle", function()
    assert.matches("cannot join itself", error_of(function() task.current():join() end))
    local me = task.current()
    assert.matches("cannot join a parent", error_of(function()
      task.spawn(function() me:join() end):join()
    end))
    local a, b, err
    a = task.spawn(function() b:pjoin(1) end)
    b = task.spawn(function() err = error_of(a.join, a) end)
    settle()
    assert.matches("waits for this one: deadlock", err)
  end)

  it("says so when there are more results than Lua can hand over", function()
    local function ones(n, ...) -- n, and what there is
      if n == 0 then return ... end
      return ones(n - 10, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ...)
    end
    local t = task.spawn(ones, 12000)
    assert.matches("too many results", error_of(t.join, t))
    assert.matches("too many results", error_of(t.join, t))
  end)
end)

describe("pjoin", function()
  it("returns true and the results", function()
    assert.same({ true, 1, 2 }, { task.spawn(function() return 1, 2 end):pjoin() })
  end)

  it("returns false and the error, a table or nil as they are", function()
    local mine = {}
    local ok, err = task.spawn(error, mine):pjoin()
    assert.is_false(ok)
    assert.equal(mine, err)
    assert.same({ false, nil }, { task.spawn(error, nil):pjoin() })
  end)

  it("returns false and the cancellation", function()
    local t = task.spawn(tasks.sleeper())
    t:cancel()
    local ok, err = t:pjoin()
    assert.is_false(ok)
    assert.equal("cancelled", err.code)
  end)

  it("returns false and a timeout", function()
    local t = task.spawn(tasks.sleeper())
    local ok, err = t:pjoin(0.002)
    assert.is_false(ok)
    assert.equal("timeout", err.code)
    t:cancel()
    t:pjoin()
  end)

  it("raises when its own task is cancelled", function()
    local joiner = task.spawn(function() task.spawn(tasks.sleeper()):pjoin() end)
    settle()
    joiner:cancel "me"
    assert.equal("me", error_of(joiner.join, joiner).reason)
  end)

  it("collects the outcomes of several failing children", function()
    local list, errors = {}, {}
    for i = 1, 20 do list[i] = task.spawn(error, "e" .. i, 0) end
    for i = 20, 1, -1 do errors[i] = select(2, list[i]:pjoin()) end
    for i = 1, 20 do assert.equal("e" .. i, errors[i]) end
    task.sleep(0) -- nothing is left to go up
  end)

  it("stays fast when very many children have failed", function()
    local n, list = 20000, {}
    for i = 1, n do list[i] = task.spawn(error, "no", 0) end
    local before = os.clock()
    for i = 1, n do assert(not list[i]:pjoin()) end
    assert.is_true(os.clock() - before < 5)
  end)
end)

describe("a child's failure", function()
  -- Runs fn in a task of its own and returns the task, ended.
  local function ended(fn)
    local t = task.spawn(fn)
    t:pjoin()
    return t
  end

  it("is raised by its parent's current wait", function()
    local where
    ended(function()
      task.spawn(error, "bang", 0)
      local err = error_of(task.sleep, 1000)
      where = err
    end)
    assert.equal("bang", where)
  end)

  it("cancels its siblings", function()
    local list = {}
    ended(function()
      task.spawn(tasks.sleeper(list))
      task.spawn(function() task.sleep(0.001) error "bang" end)
      task.sleep(1000)
    end)
    assert.equal("cancelled", list[1]:status())
  end)

  it("is raised by every later wait, and fails a parent that swallows it", function()
    local count = 0
    local t = task.spawn(function()
      task.spawn(error, "bang", 0)
      for _ = 1, 3 do
        if not pcall(task.sleep, 0) then count = count + 1 end
      end
      return "fine"
    end)
    local ok, err = t:pjoin()
    assert.is_false(ok)
    assert.equal("bang", err)
    assert.equal(3, count)
    assert.equal("failed", t:status())
  end)

  it("fails a parent whose body has ended", function()
    local t = task.spawn(function()
      task.spawn(function() task.sleep(0.001) error("late", 0) end)
      return "fine"
    end)
    assert.same({ false, "late" }, { t:pjoin() })
  end)

  it("does not go up when somebody joins the child", function()
    local t = task.spawn(function()
      local child = task.spawn(function() task.sleep(0.001) error("bang", 0) end)
      local caught = select(2, pcall(child.join, child))
      task.sleep(0)
      return caught
    end)
    assert.equal("bang", t:join())
  end)

  it("waits while the parent is in pjoin, and goes up at the next other wait", function()
    local seen = {}
    ended(function()
      local slow = task.spawn(function() task.sleep(0.002) return "slow" end)
      task.spawn(error, "bang", 0)
      seen[1] = select(2, slow:pjoin())
      seen[2] = error_of(task.sleep, 0)
    end)
    assert.same({ "slow", "bang" }, seen)
  end)

  it("waits while the parent is in pjoin, and goes up at its end", function()
    local t = task.spawn(function()
      local slow = task.spawn(function() task.sleep(0.002) end)
      task.spawn(error, "bang", 0)
      slow:pjoin()
    end)
    assert.same({ false, "bang" }, { t:pjoin() })
  end)

  it("goes up at once again after a pjoin that was refused", function()
    local err
    ended(function()
      pcall(function() task.current():pjoin() end)
      task.spawn(error, "bang", 0)
      err = error_of(task.sleep, 0.5)
    end)
    assert.equal("bang", err)
  end)

  it("may still be joined when it comes with the end of a timed join", function()
    -- Both deadlines have passed when the busy slice ends: the child's first.
    local caught
    local t = task.spawn(function()
      task.spawn(function()
        task.sleep(0.002)
        local until_then = os.clock() + 0.03
        while os.clock() < until_then do end -- luacheck: ignore 542
      end)
      caught = error_of(task.timeout, 0.02, function() task.sleep(0.01) error("bang", 0) end)
      task.sleep(0)
      return "goes on"
    end)
    assert.equal("goes on", t:join())
    assert.is_truthy(caught == "bang" or caught.code == "timeout")
  end)

  it("of a deferred function's child fails the task", function()
    local t = task.spawn(function()
      task.defer(function()
        task.spawn(error, "bang", 0)
        task.sleep(0.001)
      end)
    end)
    assert.same({ false, "bang" }, { t:pjoin() })
  end)

  it("fails a parent that was cancelled at the same time", function()
    local t = task.spawn(function()
      task.spawn(function()
        pcall(task.sleep, 1000)
        error("bang", 0)
      end)
      task.sleep(1000)
    end)
    settle()
    t:cancel()
    assert.same({ false, "bang" }, { t:pjoin() })
    assert.equal("failed", t:status())
  end)
end)

describe("detach", function()
  it("lets a task outlive its parent", function()
    local gate, t = task.event(), nil
    task.spawn(function() t = task.spawn(function() gate:wait() return 3 end):detach() end):join()
    assert.equal("waiting", t:status())
    gate:set()
    assert.equal(3, t:join())
  end)

  it("lets a parent end that only waited for this child", function()
    local gate, child = task.event(), nil
    local parent = task.spawn(function()
      child = task.spawn(function() gate:wait() end)
      return "result"
    end)
    settle()
    assert.equal("joining", parent:status())
    child:detach()
    assert.equal("result", parent:join(1))
    gate:set()
    child:join()
  end)

  it("keeps a task that joins its own children", function()
    local gate, t = task.event(), nil
    task.spawn(function()
      t = task.spawn(function() task.spawn(function() gate:wait() end) end)
      settle()
      assert.equal("joining", t:status())
      t:detach()
    end):join()
    assert.equal("joining", t:status())
    gate:set()
    t:join()
    assert.equal("done", t:status())
  end)

  it("saves a task from the cancellation of its parent", function()
    local gate, t = task.event(), nil
    local parent = task.spawn(function()
      t = task.spawn(function() gate:wait() return "alive" end):detach()
      task.sleep(1000)
    end)
    settle()
    parent:cancel()
    parent:pjoin()
    gate:set()
    assert.equal("alive", t:join())
  end)

  it("does nothing to a task that has ended", function()
    local t = task.spawn(function() end)
    t:join()
    assert.equal(t, t:detach())
    assert.equal("done", t:status())
  end)

  it("keeps a failure from going up", function()
    local t = task.spawn_detached(function() task.sleep(0.001) error("mine", 0) end)
    assert.same({ false, "mine" }, { t:pjoin() })
    task.sleep(0)
  end)
end)
