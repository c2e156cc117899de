local task = require "task"
local tasks = require "spec.support.tasks"

-- The pattern of the line that is `below` lines below the caller's.
local function line(below)
  return ("trace_spec.lua:%d:"):format(debug.getinfo(2, "l").currentline + (below or 0))
end

-- A task that has failed by fn.
local function failed(fn)
  local t = task.spawn(fn)
  assert.is_false((t:pjoin()))
  return t
end

local bang_line = line(1)
local function bang() error "bang" end
local bang_frame = bang_line .. " in function"

describe("the traceback of a failed task", function()
  it("begins with the message and names the failing lines", function()
    local here = line(1)
    local trace = failed(function() local x = bang() return x end):traceback()
    assert.matches("^[^\n]*" .. bang_line .. " bang\nstack traceback:\n", trace)
    assert.matches(bang_line .. " in function 'bang'", trace)
    assert.matches(here .. " in function", trace)
  end)

  it("keeps the line of an error that the virtual machine raised", function()
    local here = line(1)
    local trace = failed(function() local t = nil; return t.x end):traceback()
    assert.matches(here .. " attempt to index local 't'", trace)
    assert.matches(here .. " in function", trace)
  end)

  it("has none of Moonstash's own lines", function()
    local trace = failed(function() task.scope(function() task.gather { bang } end) end):traceback()
    assert.is_nil(trace:find("moonstash/", 1, true))
    assert.is_nil(trace:find "'xpcall'")
  end)

  it("spans tasks: the child's stack, then to whom it was passed on", function()
    local child
    local here = line(4)
    local parent = failed(function()
      child = task.spawn(bang)
      child:name "loader"
      child:join()
    end)
    local trace = parent:traceback()
    assert.equal(1, trace:find(child:traceback(), 1, true))
    local _, id = require("moonstash.task").name(parent)
    assert.matches("\npassed on to task " .. id .. ":\nstack traceback:\n", trace, 1, true)
    assert.matches(here .. " in function", trace)
  end)

  it("names the task it was passed on to", function()
    local parent = task.spawn(function() task.spawn(bang):join() end)
    parent:name "server"
    parent:pjoin()
    assert.matches("passed on to task %d+ %(server%):", parent:traceback())
  end)

  it("spans tasks also when nobody joined the child", function()
    local trace = failed(function()
      task.spawn(bang)
      task.sleep(1000)
    end):traceback()
    assert.matches(bang_frame .. ".*passed on to task %d+:", trace)
    trace = failed(function() task.spawn(bang) end):traceback() -- its body had ended
    assert.matches(bang_frame, trace)
  end)

  it("spans gather, race, timeout, scope, shield and semaphore:with", function()
    for _, fn in ipairs {
      function() task.gather { bang } end,
      function() task.race { bang } end,
      function() task.timeout(5, bang) end,
      function() task.scope(bang) end,
      function() task.shield(bang) end,
      function() task.semaphore(1):with(bang) end,
    } do
      assert.matches(bang_line .. " bang.*" .. bang_frame, failed(fn):traceback())
    end
  end)

  it("passes on no error that stayed in its task, though one of ours caught it", function()
    local f = require("cache").cached(bang, { name = "trace_spec.bang" })
    for _, fn in ipairs {
      function() task.shield(bang) end,
      function() task.semaphore(1):with(bang) end,
      function() f(1) end,
      function() task.defer(bang) end,
    } do
      local trace = failed(fn):traceback()
      assert.matches(bang_line .. " bang\nstack traceback:\n.*" .. bang_frame, trace)
      assert.is_nil(trace:find "passed on")
      assert.equal(1, select(2, trace:gsub("stack traceback:", "")))
    end
    local here = line(1)
    local trace = failed(function() require "no.such.module" end):traceback()
    assert.matches(here .. " module 'no.such.module' not found:", trace)
    assert.is_nil(trace:find "passed on")
  end)

  it("keeps the first task's stack of an error that passes a shield later on", function()
    local trace = failed(function()
      task.shield(function() task.spawn(bang):join() end)
    end):traceback()
    assert.matches(bang_frame .. ".*passed on to task %d+:\nstack traceback:", trace)
    trace = failed(function() task.race { bang } end):traceback()
    local _, times = trace:gsub("passed on to", "")
    assert.equal(2, times) -- to race's own task, then to its caller's
  end)

  it("has none of the cache's own lines, but those of a user's cache/ directory", function()
    local cache = require "cache"
    local user = assert(loadstring("local x = ...; x() return 1", "@cache/alias.lua"))
    local f = cache.cached(function() user(bang) end, { name = "trace_spec.user" })
    local trace = failed(function() f(1) end):traceback()
    assert.matches("\tcache/alias.lua:1: in function", trace)
    assert.is_nil(trace:find("cache/cached.lua", 1, true))
    assert.is_nil(trace:find("moonstash/", 1, true))
  end)

  it("keeps the stack of a deferred function's error", function()
    local trace = failed(function() task.defer(bang) end):traceback()
    assert.matches(bang_frame, trace)
  end)

  it("is text for an error object, made with its __tostring", function()
    local mine = setmetatable({}, { __tostring = function() return "my error" end })
    assert.matches("^my error\nstack traceback:", failed(function() error(mine) end):traceback())
    assert.matches("^%(error object is a table value%)\n",
      failed(function() error {} end):traceback())
    local bad = setmetatable({}, { __tostring = function() error "no" end })
    assert.matches("^%(error object is a table value%)\n",
      failed(function() error(bad) end):traceback())
  end)

  it("stays of a readable length however long the chain of tasks", function()
    local function nest(n)
      if n == 0 then bang() end
      task.spawn(nest, n - 1):join()
    end
    local trace = failed(function() nest(2000) end):traceback()
    assert.matches("in function 'bang'", trace)
    assert.is_true(#trace < 20000)
  end)

  it("is there for the next error after a stack overflow", function()
    local function endless() return 1 + endless() end
    assert.matches("stack overflow", select(2, task.spawn(endless):pjoin()))
    assert.matches(bang_line .. " bang", failed(bang):traceback())
  end)

  it("is absent when the error is nil, or a cancellation", function()
    assert.is_nil(failed(function() error(nil) end):traceback())
    local t = task.spawn(tasks.sleeper())
    tasks.settle()
    t:cancel()
    t:pjoin()
    assert.is_nil(t:traceback())
  end)
end)

describe("the traceback of a living task", function()
  it("tells where it waits", function()
    local here = line(1)
    local t = task.spawn(function() task.sleep(1000) end)
    tasks.settle()
    assert.matches(here .. " in function", t:traceback())
    t:cancel()
    t:pjoin()
  end)

  it("is empty for one that has not begun or has returned", function()
    local t = task.spawn(print)
    assert.equal("stack traceback:", t:traceback())
    t:cancel()
    t:pjoin()
    t = task.spawn(function() end)
    t:join()
    assert.is_nil(t:traceback())
  end)
end)
