local task = require "task"
local tasks = require "spec.support.tasks"

local error_of, settle = tasks.error_of, tasks.settle

local function fail(after, message)
  return function()
    task.sleep(after)
    error(message, 0)
  end
end

local function give(after, ...)
  local values, n = { ... }, select("#", ...)
  return function()
    task.sleep(after)
    return unpack(values, 1, n)
  end
end

-- Cancels a task that runs fn while it waits, and returns its error.
local function cancelled(fn)
  local t = task.spawn(fn)
  settle()
  t:cancel "from outside"
  return select(2, t:pjoin())
end

describe("gather", function()
  it("returns all results by key", function()
    local results = task.gather { a = give(0.002, 1), b = give(0, 2, 3), give(0.001, "x") }
    assert.same({ a = 1, b = 2, "x" }, results)
  end)

  it("returns an empty table for one", function()
    assert.same({}, task.gather {})
  end)

  it("raises the first error, cancels the rest, and the caller may go on", function()
    local list = {}
    local functions = { tasks.sleeper(list), fail(0.002, "bang"), fail(0.01, "later") }
    local err = error_of(task.gather, functions)
    assert.equal("bang", err)
    assert.equal("cancelled", list[1]:status())
    task.sleep(0)
  end)

  it("keeps an error table", function()
    local mine = {}
    assert.equal(mine, error_of(task.gather, { function() error(mine) end }))
  end)

  it("ends with its caller's cancellation", function()
    local list = {}
    local err = cancelled(function() task.gather { tasks.sleeper(list) } end)
    assert.equal("from outside", err.reason)
    assert.equal("cancelled", list[1]:status())
  end)

  it("ends at a timeout around it", function()
    assert.equal("timeout", error_of(task.timeout, 0.002, task.gather, { tasks.sleeper() }).code)
  end)

  it("refuses what is not a table of functions", function()
    assert.matches("gather: a table of functions expected, not nil", error_of(task.gather))
    assert.matches("gather: %[k%] must be a function, not number", error_of(task.gather, { k = 1 }))
  end)
end)

describe("race", function()
  it("returns the results of the first that ends, and cancels the others", function()
    local list = {}
    local function check(...)
      assert.equal(3, select("#", ...))
      assert.same({ "first", nil, 3 }, { ... })
    end
    check(task.race { tasks.sleeper(list), give(0.001, "first", nil, 3), tasks.sleeper(list) })
    assert.equal("cancelled", list[1]:status())
    assert.equal("cancelled", list[2]:status())
  end)

  it("raises when the first that ends has failed, and the caller may go on", function()
    assert.equal("bang", error_of(task.race, { tasks.sleeper(), fail(0.001, "bang") }))
    task.sleep(0)
  end)

  it("takes one that needs no wait", function()
    assert.equal("now", task.race { function() return "now" end, tasks.sleeper() })
  end)

  it("waits until the losers have cleaned up", function()
    local cleaned = false
    task.race {
      give(0.001),
      function()
        task.defer(function()
          task.sleep(0.001)
          cleaned = true
        end)
        task.sleep(1000)
      end,
    }
    assert.is_true(cleaned)
  end)

  it("ends with its caller's cancellation", function()
    local list = {}
    assert.equal("from outside", cancelled(function() task.race { tasks.sleeper(list) } end).reason)
    assert.equal("cancelled", list[1]:status())
  end)

  it("ends at a timeout around it", function()
    assert.equal("timeout", error_of(task.timeout, 0.002, task.race, { tasks.sleeper() }).code)
  end)

  it("refuses an empty table and what is not a function", function()
    assert.matches("race: at least one function expected", error_of(task.race, {}))
    assert.matches("race: %[1%] must be a function, not string", error_of(task.race, { "x" }))
  end)
end)

describe("timeout", function()
  it("returns the results of a function that is in time", function()
    assert.same({ 1, nil, 3 }, { task.timeout(5, function(...) return ... end, 1, nil, 3) })
  end)

  it("raises code timeout when it is not, and has ended it", function()
    local list = {}
    local err = error_of(task.timeout, 0.002, tasks.sleeper(list))
    assert.equal("timeout", err.code)
    assert.equal("timeout: timed out after 0.002 s", tostring(err))
    assert.equal("cancelled", list[1]:status())
    task.sleep(0) -- the caller goes on
  end)

  it("raises the function's own error", function()
    local mine = {}
    assert.equal(mine, error_of(task.timeout, 5, error, mine))
    task.sleep(0)
  end)

  it("gives the results of a function that ends all the same", function()
    local result = task.timeout(0.002, function()
      pcall(task.sleep, 1000)
      return "salvaged"
    end)
    assert.equal("salvaged", result)
  end)

  it("nests: the nearest one fires", function()
    local inner
    local outer = task.timeout(5, function()
      inner = error_of(task.timeout, 0.001, task.sleep, 1000)
      return "outer"
    end)
    assert.equal("outer", outer)
    assert.equal("timeout", inner.code)
    assert.equal("timeout", error_of(task.timeout, 0.001, function()
      task.timeout(1000, task.sleep, 1000)
    end).code)
  end)

  it("ends with its caller's cancellation", function()
    local list = {}
    local err = cancelled(function() task.timeout(9, tasks.sleeper(list)) end)
    assert.equal("from outside", err.reason)
    assert.equal("cancelled", list[1]:status())
  end)

  it("of 0 s lets a function run that needs no wait", function()
    assert.equal(1, task.timeout(0, function() return 1 end))
    assert.equal("timeout", error_of(task.timeout, 0, task.sleep, 1).code)
  end)

  it("refuses bad times and what is not a function", function()
    for _, bad in ipairs { -1, 0 / 0, "1", {} } do
      local err = error_of(task.timeout, bad, print)
      assert.matches("timeout: the time must be a number of seconds >= 0", err)
    end
    assert.matches("timeout: a function expected", error_of(task.timeout, 1))
  end)

  it("loses against a reply that was there while Lua was busy", function()
    local queue, got = task.queue(), nil
    local t = task.spawn(function() got = queue:pop(0.01) end)
    settle()
    local begun = os.clock()
    while os.clock() - begun < 0.03 do end -- luacheck: ignore 542
    queue:push "in time"
    t:join()
    assert.equal("in time", got)
  end)
end)

describe("scope", function()
  it("returns its function's results when all its tasks have ended", function()
    local done = 0
    local a, b = task.scope(function(s)
      for i = 1, 3 do
        s:spawn(function(n)
          task.sleep(0.001 * n)
          done = done + 1
        end, i)
      end
      return "a", "b"
    end)
    assert.same({ "a", "b", 3 }, { a, b, done })
  end)

  it("raises a task's error, cancels the others, and the caller may go on", function()
    local list = {}
    local err = error_of(task.scope, function(s)
      s:spawn(tasks.sleeper(list))
      s:spawn(fail(0.001, "bang"))
    end)
    assert.equal("bang", err)
    assert.equal("cancelled", list[1]:status())
    task.sleep(0)
  end)

  it("raises its function's error after it has ended the tasks", function()
    local list = {}
    local err = error_of(task.scope, function(s)
      s:spawn(tasks.sleeper(list))
      task.yield()
      error("mine", 0)
    end)
    assert.equal("mine", err)
    assert.equal("cancelled", list[1]:status())
  end)

  it("lets its tasks spawn into it, until it has ended", function()
    local scope, deep
    task.scope(function(s)
      scope = s
      s:spawn(function()
        task.sleep(0.001)
        s:spawn(function() deep = true end)
      end)
    end)
    assert.is_true(deep)
    assert.matches("spawn: the parent task has ended", error_of(scope.spawn, scope, print))
  end)

  it("cancels what is spawned into it after it has failed", function()
    local late
    error_of(task.scope, function(s)
      s:spawn(function()
        task.defer(function() late = s:spawn(tasks.sleeper()) end)
        task.sleep(1000)
      end)
      task.yield()
      error "bang"
    end)
    assert.equal("cancelled", late:status())
  end)

  it("ends with its caller's cancellation", function()
    local list = {}
    local err = cancelled(function()
      task.scope(function(s) s:spawn(tasks.sleeper(list)) end)
    end)
    assert.equal("from outside", err.reason)
    assert.equal("cancelled", list[1]:status())
  end)

  it("ends at a timeout around it", function()
    local err = error_of(task.timeout, 0.002, task.scope, function(s) s:spawn(tasks.sleeper()) end)
    assert.equal("timeout", err.code)
  end)

  it("refuses what is not a function", function()
    assert.matches("scope: a function expected", error_of(task.scope))
    task.scope(function(s)
      assert.matches("spawn: a function expected", error_of(s.spawn, s, 1))
    end)
  end)
end)
