local task = require "task"
local tasks = require "spec.support.tasks"

local error_of, settle = tasks.error_of, tasks.settle

describe("cancel", function()
  it("ends a waiting task with an error that carries the reason", function()
    local caught
    local t = task.spawn(function()
      local ok, err = pcall(task.sleep, 1000)
      caught = not ok and err
      error(err, 0)
    end)
    settle()
    assert.is_true(t:cancel "no more")
    assert.equal("cancelled", select(2, t:pjoin()).code)
    assert.equal("no more", caught.reason)
    assert.equal("cancelled: no more", tostring(caught))
    assert.equal("cancelled", t:status())
  end)

  it("keeps a task that has not begun from running", function()
    local ran = false
    local t = task.spawn(function() ran = true end)
    t:cancel()
    assert.is_false((t:pjoin()))
    assert.is_false(ran)
    assert.equal("cancelled", t:status())
  end)

  it("says whether there was something to cancel", function()
    local t = task.spawn(tasks.sleeper())
    assert.is_true(t:cancel())
    assert.is_false(t:cancel())
    t:pjoin()
    assert.is_false(t:cancel())
  end)

  it("raises at every wait until the task ends", function()
    local count = 0
    local t = task.spawn(function()
      for _ = 1, 5 do
        if not pcall(task.sleep, 0) then count = count + 1 end
      end
      return "its own end"
    end)
    settle()
    t:cancel()
    t:pjoin()
    assert.is_true(count >= 4)
    assert.equal("done", t:status()) -- what it made of it is its own affair
  end)

  it("goes down the tree", function()
    local list = {}
    local t = task.spawn(function()
      task.spawn(tasks.sleeper(list))
      task.spawn(function()
        task.spawn(tasks.sleeper(list))
        task.sleep(1000)
      end)
      task.sleep(1000)
    end)
    settle()
    t:cancel()
    t:pjoin()
    assert.equal(2, #list)
    for _, child in ipairs(list) do assert.equal("cancelled", child:status()) end
  end)

  it("does not reach the canceller's own wait, nor siblings", function()
    local a = task.spawn(tasks.sleeper())
    local b = task.spawn(function() task.sleep(0.002) return "b" end)
    settle()
    a:cancel()
    assert.equal("b", b:join())
  end)

  it("of oneself is raised at the next wait", function()
    local reached
    local t = task.spawn(function()
      task.current():cancel()
      reached = true
      task.sleep(0)
      reached = "too far"
    end)
    t:pjoin()
    assert.is_true(reached)
    assert.equal("cancelled", t:status())
  end)

  it("also ends children that are spawned afterwards", function()
    local child
    local t = task.spawn(function()
      pcall(task.sleep, 1000)
      child = task.spawn(tasks.sleeper())
      return "ends"
    end)
    settle()
    t:cancel()
    assert.equal("ends", t:join(5))
    assert.equal("cancelled", child:status())
  end)

  it("ends a body's children when the body has ended", function()
    local list = {}
    local t = task.spawn(function() task.spawn(tasks.sleeper(list)) end)
    settle()
    assert.equal("joining", t:status())
    t:cancel()
    assert.is_false((t:pjoin()))
    assert.equal("cancelled", t:status())
    assert.equal("cancelled", list[1]:status())
  end)

  it("wins over results that are on their way", function()
    local t = task.spawn(function()
      task.sleep(0)
      task.sleep(0) -- raises, whatever came first
    end)
    task.yield()
    t:cancel()
    assert.is_false((t:pjoin()))
  end)
end)

describe("a shield", function()
  it("returns what its function returns, and raises what it raises", function()
    assert.same({ 1, nil, 3 }, { task.shield(function(...) return ... end, 1, nil, 3) })
    local mine = {}
    assert.equal(mine, error_of(task.shield, error, mine))
    assert.matches("shield: a function expected, not nil", error_of(task.shield))
  end)

  it("lets waits go on in a cancelled task, and raises after it", function()
    local steps = {}
    local t = task.spawn(function()
      task.shield(function()
        task.sleep(0.002)
        steps[#steps + 1] = "inside"
      end)
      steps[#steps + 1] = "after"
      task.sleep(0)
      steps[#steps + 1] = "too far"
    end)
    settle()
    t:cancel()
    t:pjoin()
    assert.same({ "inside", "after" }, steps)
    assert.equal("cancelled", t:status())
  end)

  it("protects the children that are born in it, until it ends", function()
    local result, list = nil, {}
    local t = task.spawn(function()
      task.shield(function()
        task.spawn(tasks.sleeper(list))
        result = task.gather { function() task.sleep(0.002) return "inside" end }[1]
      end)
      task.sleep(1000)
    end)
    settle()
    t:cancel()
    t:pjoin()
    assert.equal("inside", result)
    assert.equal("cancelled", list[1]:status())
  end)

  it("does not protect children from before", function()
    local list = {}
    local t = task.spawn(function()
      task.spawn(tasks.sleeper(list))
      task.yield()
      task.shield(function()
        task.sleep(0.002)
        list[2] = list[1]:status()
      end)
    end)
    settle()
    t:cancel()
    t:pjoin()
    assert.equal("cancelled", list[2])
  end)

  it("nests", function()
    local t = task.spawn(function()
      return task.shield(function()
        task.shield(task.sleep, 0)
        task.sleep(0)
        return "still shielded"
      end)
    end)
    task.yield()
    t:cancel()
    assert.equal("still shielded", t:join())
  end)

  it("keeps a child's failure for later", function()
    local steps = {}
    local t = task.spawn(function()
      task.spawn(error, "bang", 0)
      task.shield(task.sleep, 0.001)
      steps[1] = "shielded"
      task.sleep(0)
    end)
    assert.same({ false, "bang" }, { t:pjoin() })
    assert.same({ "shielded" }, steps)
  end)

  it("is also a load that others wait for, with the children that it spawns", function()
    local gate = task.event()
    local load = require("cache").cached(function()
      return task.gather { function() gate:wait() return "loaded" end }[1]
    end, { name = "cancel_spec" })
    local first = task.spawn(load)
    settle()
    local second = task.spawn(load)
    settle()
    first:cancel()
    settle()
    gate:set()
    assert.equal("loaded", second:join(5))
    first:pjoin()
    require("cache").clear_cache()
  end)

  it("may be left in a coroutine: its task ends it", function()
    local list = {}
    local t = task.spawn(function()
      coroutine.wrap(function()
        task.shield(function()
          task.spawn(tasks.sleeper(list))
          coroutine.yield()
        end)
      end)()
      error("bang", 0)
    end)
    assert.same({ false, "bang" }, { t:pjoin(5) })
  end)

  it("that a coroutine carries elsewhere ends for the task that it was for", function()
    local co = coroutine.create(function() task.shield(coroutine.yield) end)
    local gate = task.event()
    local first = task.spawn(function()
      coroutine.resume(co)
      gate:wait()
      task.sleep(1000)
    end)
    settle()
    local second = task.spawn(function()
      assert(coroutine.resume(co))
      task.sleep(1000)
    end)
    settle()
    first:cancel()
    second:cancel()
    assert.is_false((first:pjoin(5)))
    assert.is_false((second:pjoin(5)))
    assert.equal("cancelled", first:status())
    assert.equal("cancelled", second:status())
  end)
end)

describe("deferred functions", function()
  local function order_of(body)
    local order = {}
    local t = task.spawn(body, function(what)
      return function() order[#order + 1] = what end
    end)
    t:pjoin()
    return order, t
  end

  it("run when the task has ended, newest first", function()
    assert.same({ "body", "b", "a" }, (order_of(function(note)
      task.defer(note "a")
      task.defer(note "b")
      note "body" ()
    end)))
  end)

  it("get the arguments that defer was given", function()
    local seen
    task.spawn(function()
      task.defer(function(...) seen = { select("#", ...), ... } end, 1, nil, 3)
    end):join()
    assert.same({ 3, 1, nil, 3 }, seen)
  end)

  it("run after the children have ended", function()
    assert.same({ "child", "deferred" }, (order_of(function(note)
      task.defer(note "deferred")
      task.spawn(function()
        task.sleep(0.001)
        note "child" ()
      end)
    end)))
  end)

  it("run after an error, and after a cancellation", function()
    local order, t = order_of(function(note)
      task.defer(note "deferred")
      error "bang"
    end)
    assert.same({ "deferred" }, order)
    assert.equal("failed", t:status())
    order, t = order_of(function(note)
      task.defer(note "deferred")
      task.current():cancel()
      task.sleep(1)
    end)
    assert.same({ "deferred" }, order)
    assert.equal("cancelled", t:status())
  end)

  it("may wait, also in a cancelled task", function()
    local done = false
    local t = task.spawn(function()
      task.defer(function()
        task.sleep(0.001)
        done = true
      end)
      task.sleep(1000)
    end)
    settle()
    t:cancel()
    t:pjoin()
    assert.is_true(done)
  end)

  it("all run, and the first error of theirs fails the task", function()
    local ran = 0
    local t = task.spawn(function()
      task.defer(function() ran = ran + 1 end)
      task.defer(function() ran = ran + 1 error("second", 0) end)
      task.defer(function() ran = ran + 1 error("first", 0) end)
      return "result"
    end)
    assert.same({ false, "first" }, { t:pjoin() })
    assert.equal(3, ran)
  end)

  it("may defer more", function()
    assert.same({ "a", "b" }, (order_of(function(note)
      task.defer(function()
        note "a" ()
        task.defer(note "b")
      end)
    end)))
  end)

  it("survive a cancellation that comes from one of them", function()
    local order, t = order_of(function(note)
      task.defer(note "last")
      task.defer(function()
        task.current():cancel()
        task.sleep(0)
        note "went on" ()
      end)
    end)
    assert.same({ "went on", "last" }, order)
    assert.equal("done", t:status())
  end)

  it("end their children when they are cancelled", function()
    local list = {}
    local t = task.spawn(function()
      task.defer(function()
        task.spawn(tasks.sleeper(list))
        task.sleep(0)
      end)
    end)
    tasks.await(function() return list[1] end)
    t:cancel()
    t:pjoin(5)
    assert.equal("cancelled", list[1]:status())
  end)

  it("leave results alone", function()
    assert.equal(5, task.spawn(function() task.defer(function() return 6 end) return 5 end):join())
  end)

  it("must be functions", function()
    assert.matches("defer: a function expected, not nil", error_of(task.defer))
  end)
end)
