local task = require "task"
local tasks = require "spec.support.tasks"

local error_of, settle, leaves_nothing = tasks.error_of, tasks.settle, tasks.leaves_nothing

-- Runs fn in a task, cancels that while it waits, and returns its error.
local function cancelled(fn)
  local t = task.spawn(fn)
  settle()
  assert.equal("waiting", t:status())
  t:cancel "from outside"
  return select(2, t:pjoin())
end

describe("an event", function()
  it("wakes all who wait, and lets later ones through", function()
    local event, woken = task.event(), 0
    for _ = 1, 3 do
      task.spawn(function()
        assert.is_true(event:wait())
        woken = woken + 1
      end)
    end
    settle()
    assert.equal(0, woken)
    event:set()
    settle()
    assert.equal(3, woken)
    assert.is_true(event:wait())
    assert.is_true(event:is_set())
  end)

  it("may be cleared and set again", function()
    local event = task.event()
    event:set()
    event:clear()
    assert.is_false(event:is_set())
    local t = task.spawn(function() return event:wait(5) end)
    settle()
    event:set()
    assert.is_true(t:join())
  end)

  it("returns nil and a timeout", function()
    leaves_nothing(function()
      local ok, err = task.event():wait(0.001)
      assert.is_nil(ok)
      assert.equal("timeout", err.code)
    end)
  end)

  it("raises in a cancelled task, and forgets it", function()
    leaves_nothing(function()
      local event = task.event()
      assert.equal("from outside", cancelled(function() event:wait(1000) end).reason)
      event:set()
    end)
  end)

  it("may be set by a finalizer or a hook while its waiter is on the way out", function()
    for _ = 1, 20 do
      local event = task.event()
      local t = task.spawn(function()
        return coroutine.wrap(function()
          debug.sethook(function() event:set() end, "", 1)
          local ok = event:wait(5)
          debug.sethook()
          return ok, "on"
        end)()
      end)
      assert.same({ true, "on" }, { t:join() })
    end
  end)

  it("refuses a bad timeout", function()
    assert.matches("event:wait: the time must be", error_of(function() task.event():wait "1" end))
  end)
end)

describe("a semaphore", function()
  it("lets in as many as it has places, the others in order", function()
    local semaphore, inside, most, order = task.semaphore(2), 0, 0, {}
    task.scope(function(s)
      for i = 1, 6 do
        s:spawn(function()
          semaphore:acquire()
          inside = inside + 1
          most = math.max(most, inside)
          order[#order + 1] = i
          task.yield()
          inside = inside - 1
          semaphore:release()
        end)
      end
    end)
    assert.equal(2, most)
    assert.same({ 1, 2, 3, 4, 5, 6 }, order)
  end)

  it("gives its place back after with, also when the function fails", function()
    local semaphore, mine = task.semaphore(1), {}
    assert.same({ 1, nil, 3 }, { semaphore:with(function(...) return ... end, 1, nil, 3) })
    assert.equal(mine, error_of(semaphore.with, semaphore, error, mine))
    assert.is_true(semaphore:acquire(0))
  end)

  it("returns nil and a timeout when no place is free in time", function()
    leaves_nothing(function()
      local semaphore = task.semaphore(1)
      semaphore:acquire()
      local ok, err = semaphore:acquire(0.001)
      assert.is_nil(ok)
      assert.equal("timeout", err.code)
      semaphore:release()
      assert.is_true(semaphore:acquire(0))
    end)
  end)

  it("does not lose a place to a waiter that was cancelled", function()
    local semaphore = task.semaphore(1)
    semaphore:acquire()
    local first = task.spawn(function() semaphore:acquire() end)
    local second = task.spawn(function() return semaphore:acquire() end)
    settle()
    first:cancel()
    semaphore:release()
    assert.is_true(second:join(5))
    first:pjoin()
  end)

  it("gives back the place of a cancelled task that was inside with", function()
    local semaphore = task.semaphore(1)
    local err = cancelled(function() semaphore:with(task.sleep, 1000) end)
    assert.equal("from outside", err.reason)
    assert.is_true(semaphore:acquire(0))
  end)

  it("refuses a release that nobody owes, and bad counts", function()
    assert.matches("semaphore:release: it is not held", error_of(function()
      task.semaphore(1):release()
    end))
    for _, bad in ipairs { 0, -1, 1.5, "1" } do
      assert.matches("semaphore: an integer of at least 1 expected", error_of(task.semaphore, bad))
    end
    assert.matches("with: a function expected", error_of(function() task.semaphore(1):with(1) end))
  end)
end)

describe("a queue", function()
  it("hands values over in order", function()
    local queue = task.queue()
    for i = 1, 3 do assert.is_true(queue:push(i)) end
    assert.equal(3, queue:count())
    assert.same({ 1, 2, 3 }, { queue:pop(), queue:pop(), queue:pop() })
    assert.equal(0, queue:count())
  end)

  it("makes a reader wait, and serves the first one first", function()
    local queue, got = task.queue(), {}
    for i = 1, 3 do task.spawn(function() got[i] = queue:pop() end) end
    settle()
    for _, value in ipairs { "a", "b", "c" } do queue:push(value) end
    settle()
    assert.same({ "a", "b", "c" }, got)
  end)

  it("makes a writer wait while it is full, and keeps the order of the writers", function()
    local queue, got = task.queue(1), {}
    task.scope(function(s)
      for i = 1, 5 do s:spawn(function() assert.is_true(queue:push(i)) end) end
      settle()
      assert.equal(1, queue:count())
      for i = 1, 5 do
        got[i] = queue:pop()
        if i == 2 then s:spawn(function() queue:push "late" end) end
      end
    end)
    assert.same({ 1, 2, 3, 4, 5 }, got)
    assert.equal("late", queue:pop())
  end)

  it("takes false, and refuses nil", function()
    local queue = task.queue()
    queue:push(false)
    assert.is_false(queue:pop())
    assert.matches("the value is nil", error_of(function() queue:push(nil) end))
  end)

  it("returns nil and a timeout to readers and writers", function()
    leaves_nothing(function()
      local queue = task.queue(1)
      local value, err = queue:pop(0.001)
      assert.is_nil(value)
      assert.equal("timeout", err.code)
      queue:push(1)
      value, err = queue:push(2, 0.001)
      assert.is_nil(value)
      assert.equal("timeout", err.code)
      assert.equal(1, queue:pop())
      assert.equal(0, queue:count()) -- the 2 has not crept in
    end)
  end)

  it("forgets readers and writers that are cancelled", function()
    local queue = task.queue(1)
    assert.equal("from outside", cancelled(function() queue:pop() end).reason)
    queue:push "kept"
    assert.equal("from outside", cancelled(function() queue:push "lost" end).reason)
    assert.equal("kept", queue:pop())
    assert.equal(0, queue:count())
  end)

  it("gives out what it holds after close, then nil and code closed", function()
    local queue = task.queue()
    queue:push(1)
    queue:close()
    assert.equal("closed", select(2, queue:push(2)).code)
    assert.equal(1, queue:pop())
    local value, err = queue:pop()
    assert.is_nil(value)
    assert.equal("closed", err.code)
    assert.equal("queue:pop: the queue is closed", tostring(err))
  end)

  it("wakes waiting readers and writers with code closed", function()
    local empty, full = task.queue(), task.queue(1)
    full:push(1)
    local reader = task.spawn(function() return empty:pop() end)
    local writer = task.spawn(function() return full:push(2) end)
    settle()
    empty:close()
    full:close()
    assert.equal("closed", select(2, reader:join()).code)
    assert.equal("closed", select(2, writer:join()).code)
    assert.equal(1, full:pop())
  end)

  it("refuses bad capacities and timeouts", function()
    assert.matches("queue: an integer of at least 1 expected", error_of(task.queue, 0))
    assert.matches("queue:pop: the time", error_of(function() task.queue():pop(-1) end))
    assert.matches("queue:push: the time", error_of(function() task.queue():push(1, -1) end))
  end)
end)

describe("await", function()
  it("returns what resume is called with, later", function()
    local resume
    task.spawn(function()
      task.yield()
      assert.is_true(resume(1, nil, 3))
    end)
    local function check(...)
      assert.equal(3, select("#", ...))
      assert.same({ 1, nil, 3 }, { ... })
    end
    check(task.await(function(r) resume = r end))
  end)

  it("returns what resume is called with at once", function()
    assert.same({ 1, 2 }, { task.await(function(resume) resume(1, 2) end) })
  end)

  it("takes the first call of resume only", function()
    local accepted
    local value = task.await(function(resume) accepted = { resume "first", resume "second" } end)
    assert.equal("first", value)
    assert.same({ true, false }, accepted)
    local kept
    task.spawn(function()
      accepted = { kept "first", kept "second" }
    end)
    assert.equal("first", task.await(function(resume) kept = resume end))
    assert.same({ true, false }, accepted)
  end)

  it("raises what its function raises", function()
    local mine = {}
    assert.equal(mine, error_of(task.await, function() error(mine) end))
  end)

  it("calls the stop function when it is cancelled, and drops a late resume", function()
    leaves_nothing(function()
      local stopped, late = 0, nil
      local err = cancelled(function()
        task.await(function(resume)
          late = resume
          return function() stopped = stopped + 1 end
        end)
      end)
      assert.equal("from outside", err.reason)
      assert.equal(1, stopped)
      assert.is_false(late "too late")
    end)
  end)

  it("ends at a timeout around it", function()
    local stopped
    local err = error_of(task.timeout, 0.001, task.await, function()
      return function() stopped = true end
    end)
    assert.equal("timeout", err.code)
    assert.is_true(stopped)
  end)

  it("does not begin in a cancelled task", function()
    local begun = false
    local t = task.spawn(function()
      task.current():cancel()
      task.await(function() begun = true end)
    end)
    t:pjoin()
    assert.is_false(begun)
  end)

  it("does not begin where it could not wait", function()
    local begun = false
    local err = error_of(string.gsub, "x", ".", function()
      task.await(function() begun = true end)
    end)
    assert.matches("await: cannot wait here: inside 'gsub'", err)
    assert.is_false(begun)
  end)

  it("turns a C library's callbacks into waits", function()
    -- A watcher of file descriptors, as a C library has them: here the hook of
    -- LuaJIT stands for the callback that C makes at some time.
    local answer = task.await(function(resume)
      debug.sethook(function()
        debug.sethook()
        resume "from the callback"
      end, "", 1)
    end)
    assert.equal("from the callback", answer)
  end)

  it("refuses what is not a function", function()
    assert.matches("await: a function expected, not nil", error_of(task.await))
  end)
end)

describe("a wrong call", function()
  -- Its error, which must be one of the caller's line in this file.
  local function refused(fn, ...)
    local args, n = { ... }, select("#", ...)
    local err = error_of(function()
      local result = fn(unpack(args, 1, n))
      return result
    end)
    local line, message = tostring(err):match "sync_spec.lua:(%d+): (.*)"
    assert.equal(debug.getinfo(1, "l").currentline - 4, tonumber(line), err)
    return message
  end

  it("of a task's method without its task names the colon", function()
    for _, name in ipairs { "join", "pjoin", "cancel", "detach", "traceback", "status", "name" } do
      for _, self in ipairs { false, 1, {}, io.stdout, task.event() } do
        assert.equal(name .. ": call it with a colon, as in t:" .. name .. "()",
          refused(task.current()[name], self or nil))
      end
    end
  end)

  it("of another method without its object does, too", function()
    local event, semaphore, queue = task.event(), task.semaphore(1), task.queue()
    local scope
    task.scope(function(s) scope = s end)
    for what, fn in pairs {
      ["event:set"] = event.set, ["event:clear"] = event.clear,
      ["event:is_set"] = event.is_set, ["event:wait"] = event.wait,
      ["semaphore:acquire"] = semaphore.acquire, ["semaphore:release"] = semaphore.release,
      ["semaphore:with"] = semaphore.with,
      ["queue:count"] = queue.count, ["queue:push"] = queue.push, ["queue:pop"] = queue.pop,
      ["queue:close"] = queue.close,
      ["scope:spawn"] = scope.spawn,
    } do
      for _, self in ipairs { false, 1, {}, print, task.current() } do
        assert.equal(what .. ": call it with a colon, as in " .. what .. "()",
          refused(fn, self or nil))
      end
    end
  end)

  it("with a time that is no number names its type, as '1' is not 1", function()
    local event, t = task.event(), task.spawn(function() end)
    t:join()
    for what, call in pairs {
      sleep = { task.sleep, "1" },
      join = { t.join, t, "1" },
      pjoin = { t.pjoin, t, "1" },
      after = { task.after, "1", print },
      timeout = { task.timeout, "1", print },
      ["event:wait"] = { event.wait, event, "1" },
    } do
      assert.equal(what .. ": the time must be a number of seconds >= 0, not string",
        refused(unpack(call)))
    end
    assert.matches(">= 0, not %-1$", refused(task.sleep, -1))
    assert.matches("at least 1 expected, not string", refused(task.semaphore, "1"))
    assert.equal("name: a string expected, not table", refused(t.name, t, {}))
  end)
end)
