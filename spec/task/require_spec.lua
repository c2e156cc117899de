local task = require "task"
local process = require "spec.support.process"
local tasks = require "spec.support.tasks"

local error_of = tasks.error_of

-- Writes modules and makes them loadable for the rest of the test.
local function modules(files)
  local path = process.directory(files)
  local before = package.path
  package.path = path .. "/?.lua;" .. before
  task.defer(function()
    package.path = before
    for name in pairs(files) do package.loaded[name:gsub("%.lua$", "")] = nil end
  end)
  return path
end

describe("require", function()
  it("loads a module whose top level waits", function()
    modules { ["req_waits.lua"] = "require('task').sleep(0.002) return {name = ...}" }
    assert.same({ name = "req_waits" }, require "req_waits")
    assert.equal(require "req_waits", package.loaded.req_waits)
  end)

  it("runs a module once for tasks that require it at the same time", function()
    modules {
      ["req_once.lua"] = "REQ_ONCE = (REQ_ONCE or 0) + 1 require('task').sleep(0.002) return {}",
    }
    local function load() return require "req_once" end
    local results = task.gather { load, load, load }
    assert.equal(results[1], results[2])
    assert.equal(results[1], results[3])
    assert.equal(1, _G.REQ_ONCE)
    _G.REQ_ONCE = nil
  end)

  it("runs a module once also when its searcher waits", function()
    local count = 0
    table.insert(package.loaders, function(name)
      if name ~= "req_searched" then return end
      task.sleep(0.001)
      return function()
        count = count + 1
        return "found"
      end
    end)
    local function load() return require "req_searched" end
    assert.same({ "found", "found" }, task.gather { load, load })
    assert.equal(1, count)
    table.remove(package.loaders)
    package.loaded.req_searched = nil
  end)

  it("raises loop for a module that requires itself", function()
    modules { ["req_self.lua"] = "require 'req_self'" }
    local err = error_of(require, "req_self")
    assert.matches("loop or previous error loading module 'req_self'", err)
  end)

  it("raises loop for modules that require each other", function()
    modules { ["req_a.lua"] = "require 'req_b'", ["req_b.lua"] = "require 'req_a'" }
    assert.matches("loop or previous error loading module 'req_a'", error_of(require, "req_a"))
  end)

  it("raises loop across tasks, instead of waiting for ever", function()
    modules {
      ["req_x.lua"] = "require('task').sleep(0.001) return require 'req_y'",
      ["req_y.lua"] = "require('task').sleep(0.001) return require 'req_x'",
    }
    local x = task.spawn(require, "req_x")
    local y = task.spawn(require, "req_y")
    local _, of_x = x:pjoin()
    local _, of_y = y:pjoin()
    assert.matches("loop loading module", tostring(of_x) .. tostring(of_y))
  end)

  it("raises loop in a task that the module waits for", function()
    modules { ["req_joins.lua"] = "require('task').spawn(require, 'req_joins'):join()" }
    assert.matches("loop loading module 'req_joins'", error_of(require, "req_joins"))
  end)

  it("raises a module's error, and tries again the next time", function()
    modules { ["req_fails.lua"] = "REQ_FAILS = (REQ_FAILS or 0) + 1 error('no ' .. REQ_FAILS, 0)" }
    assert.equal("no 1", error_of(require, "req_fails"))
    assert.equal("no 2", error_of(require, "req_fails"))
    _G.REQ_FAILS = nil
  end)

  it("lets a waiting task try itself when the first one has failed or was cancelled", function()
    modules { ["req_again.lua"] = "require('task').sleep(REQ_SLEEP) return 'loaded'" }
    _G.REQ_SLEEP = 1000
    local first = task.spawn(require, "req_again")
    local second = task.spawn(function() return require "req_again" end)
    tasks.settle()
    _G.REQ_SLEEP = 0
    first:cancel()
    assert.equal("loaded", second:join(5))
    assert.is_false((first:pjoin()))
    _G.REQ_SLEEP = nil
  end)

  it("lets the next one load a module whose loader was lost in a stray yield", function()
    modules { ["req_stray.lua"] = "if not REQ_OK then coroutine.yield() end return 'loaded'" }
    assert.is_false((task.spawn(require, "req_stray"):pjoin()))
    _G.REQ_OK = true
    assert.equal("loaded", require "req_stray")
    _G.REQ_OK = nil
  end)

  it("names the caller's line and the places it looked at for a missing module", function()
    local line = debug.getinfo(1, "l").currentline + 1
    local err = error_of(function() local _ = require "req.missing" return _ end)
    assert.matches("require_spec.lua:" .. line .. ": module 'req.missing' not found:", err, 1, true)
    assert.matches("no file '[^']*req/missing.lua'", err)
  end)

  it("keeps what standard Lua promises", function()
    modules {
      ["req_nothing.lua"] = "REQ_NAME = ...",
      ["req_sets.lua"] = "package.loaded[...] = 'set'",
      ["req_false.lua"] = "return false",
      ["req_syntax.lua"] = "x =",
    }
    assert.is_true(require "req_nothing")
    assert.equal("req_nothing", _G.REQ_NAME)
    assert.equal("set", require "req_sets")
    assert.is_false(require "req_false")
    assert.matches("error loading module 'req_syntax' from file", error_of(require, "req_syntax"))
    assert.matches("string expected, got no value", error_of(require))
    _G.REQ_NAME = nil
  end)
end)

describe("dofile", function()
  it("runs a file that waits, and returns its results", function()
    local path = modules { ["plain.lua"] = "require('task').sleep(0.001) return 1, nil, 3" }
    local function check(...)
      assert.equal(3, select("#", ...))
      assert.same({ 1, nil, 3 }, { ... })
    end
    check(dofile(path .. "/plain.lua"))
  end)

  it("raises the file's errors, also a syntax error", function()
    local path = modules { ["bad.lua"] = "x =", ["fails.lua"] = "error('bang', 0)" }
    assert.matches("bad.lua:1:", error_of(dofile, path .. "/bad.lua"))
    assert.equal("bang", error_of(dofile, path .. "/fails.lua"))
    assert.matches("cannot open", error_of(dofile, path .. "/none.lua"))
  end)
end)
