-- What only a program of its own can show: deadlocks, os.exit, finalizers at
-- the end, slow slices in the log.
local process = require "spec.support.process"

local function run(code, options)
  options = options or {}
  options[1], options[2] = "-e", code
  return process.run(options)
end

describe("a script in which nothing can wake any task", function()
  it("fails with code deadlock and says so", function()
    local result = run "task.event():wait()"
    assert.equal(1, result.code)
    assert.matches("deadlock: every task waits, and nothing is left that could wake one",
      result.err)
  end)

  it("may catch the error, but not wait any more", function()
    local result = run [[
      local ok, err = pcall(function() task.event():wait() end)
      print(ok, err.code, pcall(task.sleep, 0))
    ]]
    assert.equal("false\tdeadlock\tfalse\tdeadlock: every task waits, and nothing is left that "
      .. "could wake one\n", result.out)
  end)

  it("ends the waiting children of a main task that has returned", function()
    local result = run "task.spawn(function() task.event():wait() end)"
    assert.equal(1, result.code)
    assert.matches("deadlock", result.err)
  end)

  it("ends also when the main task is in a shield", function()
    local result = run "task.shield(function() task.event():wait() end)"
    assert.equal(1, result.code)
    assert.matches("^moonstash: deadlock: every task waits[^\n]*\nstack traceback:\n", result.err)
    assert.matches("%(command line%):1: in main chunk", result.err)
  end)

  it("shows where the children wait that shields keep from ending", function()
    local result = run "task.spawn(task.shield, function()\ntask.event():wait() end)"
    assert.equal(1, result.code)
    assert.matches("deadlock: every task waits[^\n]*\ntask 2 waits:\nstack traceback:\n"
      .. ".*%(command line%):2: in function", result.err)
  end)

  it("warns once that tasks are left, and of how many", function()
    local result = run "task.shield(function() task.event():wait() end)"
    local _, warnings = result.err:gsub("closed while tasks were still running: 1\n", "")
    assert.equal(1, warnings)
    result = run "task.spawn(task.shield, function() task.event():wait() end)"
    _, warnings = result.err:gsub("closed while tasks were still running: 2\n", "")
    assert.equal(1, warnings)
  end)

  it("ends when it is interrupted and only a shield is left waiting", function()
    local p = process.start { "-e", [[
      task.every(1, function() end)
      print "up"
      io.stdout:flush()
      task.shield(function() task.event():wait() end)
    ]] }
    p:wait_for "up"
    p:kill(process.SIGTERM)
    assert.equal(process.SIGTERM, p:wait().signal)
  end)

  it("is not one that waits for a deadline", function()
    assert.equal("nil\n", run("print((task.event():wait(0.01)))").out)
  end)
end)

describe("os.exit", function()
  it("ends the script with its code from any depth of tasks", function()
    local result = run [[
      task.defer(function() print "deferred" end)
      task.spawn(function() task.spawn(function() os.exit(7) print "on" end):join() print "on" end)
      task.sleep(1000)
      print "on"
    ]]
    assert.equal(7, result.code)
    assert.equal("deferred\n", result.out)
    assert.equal("", result.err)
  end)

  it("ends the script from a coroutine, from gsub, and from a coroutine in gsub", function()
    for _, code in ipairs {
      "coroutine.wrap(function() os.exit(7) end)() print 'on'",
      "('x'):gsub('x', function() os.exit(7) end) print 'on'",
      "local co = coroutine.wrap(function() os.exit(7) print 'on' end) ('x'):gsub('x', co)",
    } do
      local result = run(code)
      assert.same({ 7, "", "" }, { result.code, result.out, result.err })
    end
  end)

  it("ends the children of a shield that it was called in", function()
    local result = run [[
      task.shield(function()
        task.spawn(function() task.sleep(1000) end)
        os.exit(7)
      end)
    ]]
    assert.equal(7, result.code)
  end)

  it("keeps the first code", function()
    assert.equal(7, run("task.defer(os.exit, 8) os.exit(7)").code)
  end)

  it("hands a cancellation to a shielded task that joins the one that called it", function()
    local result = run [[
      local t = task.spawn(function() task.sleep(0.001) os.exit(3) end)
      task.shield(function()
        local ok, err = t:pjoin()
        print(ok, err.code)
      end)
    ]]
    assert.equal("false\tcancelled\n", result.out)
    assert.equal(3, result.code)
  end)
end)

describe("the end of a script", function()
  it("is not kept up by detached tasks, which are cancelled and drained", function()
    local result = run [[
      task.spawn_detached(function()
        task.defer(print, "cleaned up")
        task.sleep(1000)
      end)
      task.sleep(0)
    ]]
    assert.same({ 0, "cleaned up\n", "" }, { result.code, result.out, result.err })
  end)

  it("parks a detached task that swallows every cancellation", function()
    local result = run [[
      task.spawn_detached(function() while true do pcall(task.sleep, 1) end end)
      task.sleep(0)
    ]]
    assert.equal(0, result.code)
  end)

  it("reports the failure of a detached task", function()
    local result = run "task.spawn_detached(error, 'bang', 0) task.sleep(0.001)"
    assert.equal(0, result.code)
    assert.matches("^moonstash: task %d+ failed: bang\nstack traceback:", result.err)
  end)

  it("may be reached by finalizers that use tasks", function()
    local result = run [[
      local t = task.spawn_detached(function() task.sleep(1000) end)
      local event = task.event()
      task.spawn_detached(function() event:wait() end)
      task.sleep(0)
      keep = newproxy(true)
      getmetatable(keep).__gc = function()
        t:cancel()
        event:set()
        print(task.counters().slots, pcall(task.spawn, print))
        print(pcall(task.sleep, 1))
      end
    ]]
    assert.equal(0, result.code)
    assert.matches("^0\tfalse\tspawn: the runtime has closed\n", result.out)
    assert.matches("sleep: cannot wait here: outside a task\n$", result.out)
  end)
end)

describe("errors that nobody takes", function()
  it("of several children are all told", function()
    local result = run [[
      print(pcall(task.scope, function()
        local first = task.spawn(error, "first", 0)
        task.spawn(error, "second", 0)
        task.spawn(error, "third", 0)
        first:pjoin()
      end))
    ]]
    assert.equal("false\tsecond\n", result.out)
    assert.matches("task %d+ failed: third", result.err)
    assert.is_nil(result.err:find "first")
  end)

  it("are told when the parent fails of something else", function()
    local result = run [[
      print(pcall(task.scope, function()
        local first = task.spawn(error, "first", 0)
        task.spawn(error, "second", 0)
        first:pjoin()
        error("own", 0)
      end))
    ]]
    assert.equal("false\town\n", result.out)
    assert.matches("task %d+ failed: second", result.err)
  end)

  it("of finalizers are logged, and stop nothing", function()
    local result = run [[
      local function junk()
        getmetatable(newproxy(true)).__gc = function() error("finalizer", 0) end
      end
      local sum = 0
      local ok = pcall(task.scope, function(s)
        for i = 1, 5000 do
          s:spawn(function()
            pcall(junk)
            sum = sum + 1
            return 1, 2, 3
          end)
        end
      end)
      collectgarbage "stop"
      print "alive"
    ]]
    assert.equal("alive\n", result.out)
    assert.equal(0, result.code)
    assert.is_nil(result.err:find "out of memory")
  end)
end)

describe("a slice that holds the loop", function()
  local busy = [[
    local function busy()
      local begun = os.clock()
      while os.clock() - begun < 0.12 do end
    end
  ]]

  local function slow_lines(code)
    local result = run(busy .. code, { slow = true })
    assert.equal(0, result.code)
    local lines = {}
    for line in result.err:gmatch "([^\n]*) held the loop for %d+ ms without a wait\n" do
      lines[#lines + 1] = line
    end
    return lines
  end

  it("is logged once for the line of its wait", function()
    -- Another task is ready, so somebody is held up.
    local lines = slow_lines [[
      local function step()
        busy()
        task.sleep(0) -- line 7
      end
      local other = task.spawn(function() while true do task.yield() end end)
      step()
      step()
      other:cancel()
    ]]
    assert.equal("moonstash: warning: (command line):7", lines[1])
    for i = 2, #lines do assert.are_not.equal(lines[1], lines[i]) end
  end)

  it("is logged with the user's function, when every or after runs it", function()
    local lines = slow_lines [[
      local other = task.spawn(function() while true do task.yield() end end)
      local t
      t = task.every(0.001, function() -- line 7
        busy()
        if t.n then t:cancel() end
        t = setmetatable({ n = 1, cancel = function() task.current():cancel() end }, nil)
      end)
      task.after(0.4, function() other:cancel() end)
    ]]
    assert.matches("warning: (command line):7", table.concat(lines, "\n"), 1, true)
  end)
end)
