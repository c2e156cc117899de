local task = require "task"
local now = require("moonstash.task").now
local tasks = require "spec.support.tasks"

local error_of, settle = tasks.error_of, tasks.settle

describe("sleep", function()
  it("takes at least its time", function()
    local begun = now()
    task.sleep(0.01)
    assert.is_true(now() - begun >= 0.01)
  end)

  it("wakes in the order of the times", function()
    local order = {}
    for _, ms in ipairs { 6, 2, 4 } do
      task.spawn(function()
        task.sleep(ms / 1000)
        order[#order + 1] = ms
      end)
    end
    tasks.await(function() return #order == 3 end)
    assert.same({ 2, 4, 6 }, order)
  end)

  it("of 0 s lets others run", function()
    local ran
    task.spawn(function() ran = true end)
    task.sleep(0)
    assert.is_true(ran)
  end)

  it("may last for ever, until it is cancelled", function()
    local t = task.spawn(task.sleep, math.huge)
    settle()
    assert.equal("waiting", t:status())
    t:cancel()
    assert.is_false((t:pjoin()))
  end)

  it("ends at a timeout", function()
    assert.equal("timeout", error_of(task.timeout, 0.001, task.sleep, 1000).code)
  end)

  it("refuses what is not a time", function()
    for _, bad in ipairs { -1, 0 / 0, "1", true, {} } do
      assert.matches("sleep: the time must be a number of seconds >= 0", error_of(task.sleep, bad))
    end
    assert.matches("time_spec.lua:%d+: sleep: ", error_of(function() task.sleep() end))
  end)
end)

describe("yield", function()
  it("lets every other ready task run first", function()
    local order = {}
    for i = 1, 3 do
      task.spawn(function()
        order[#order + 1] = i
        task.yield()
        order[#order + 1] = i + 10
      end)
    end
    settle()
    assert.same({ 1, 2, 3, 11, 12, 13 }, order)
  end)

  it("raises in a cancelled task", function()
    local t = task.spawn(function() while true do task.yield() end end)
    settle()
    t:cancel()
    t:pjoin()
    assert.equal("cancelled", t:status())
  end)

  it("does not keep deadlines from passing", function()
    local stop = false
    local t = task.spawn(function() while not stop do task.yield() end end)
    task.sleep(0.002)
    stop = true
    t:join()
  end)
end)

describe("after", function()
  it("runs a function later, with its arguments, and join gives its results", function()
    local begun = now()
    assert.same({ 1, 2 }, { task.after(0.005, function(...) return ... end, 1, 2):join() })
    assert.is_true(now() - begun >= 0.005)
  end)

  it("fails with the function's error", function()
    assert.equal("bang", error_of(function() task.after(0, error, "bang", 0):join() end))
  end)

  it("is called off by cancel", function()
    local ran
    local t = task.after(0.001, function() ran = true end)
    settle()
    t:cancel()
    task.sleep(0.003)
    assert.is_nil(ran)
  end)

  it("ends with its parent", function()
    local t
    local parent = task.spawn(function()
      t = task.after(1000, print)
      task.sleep(1000)
    end)
    settle()
    parent:cancel()
    parent:pjoin()
    assert.equal("cancelled", t:status())
  end)

  it("refuses bad times and what is not a function", function()
    assert.matches("after: the time must be a number of", error_of(task.after, -1, print))
    assert.matches("after: a function expected", error_of(task.after, 1))
  end)
end)

describe("every", function()
  it("runs a function again and again, with its arguments", function()
    local count = 0
    local t = task.every(0.001, function(step) count = count + step end, 2)
    tasks.await(function() return count >= 6 end)
    t:cancel()
    assert.is_false((t:pjoin()))
    local at_the_end = count
    task.sleep(0.004)
    assert.equal(at_the_end, count)
  end)

  it("skips beats while the function is slow, instead of piling them up", function()
    local calls = {}
    local t = task.every(0.002, function()
      calls[#calls + 1] = now()
      if #calls == 1 then task.sleep(0.02) end
    end)
    tasks.await(function() return #calls == 3 end)
    t:cancel()
    t:pjoin()
    assert.is_true(calls[2] - calls[1] >= 0.02)
    assert.is_true(calls[3] - calls[2] >= 0.0005)
  end)

  it("ends with the function's error, which goes up", function()
    local t = task.spawn(function()
      task.every(0.001, error, "bang", 0)
      task.sleep(1000)
    end)
    assert.same({ false, "bang" }, { t:pjoin() })
  end)

  it("keeps its parent alive, and ends at a timeout around that", function()
    local err = error_of(task.timeout, 0.01, function() task.every(0.001, function() end) end)
    assert.equal("timeout", err.code)
  end)

  it("refuses bad times and what is not a function", function()
    assert.matches("every: the time must be a number of seconds >", error_of(task.every, 0, print))
    assert.matches("every: a function expected", error_of(task.every, 1))
  end)
end)
