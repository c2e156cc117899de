-- busted inside Moonstash. The whole run is one task, so every test may wait
-- like any script. guard() adds what tasks call for: a time limit per test,
-- and a test that leaves tasks behind fails.
local core = require "moonstash.task"
local errors = require "moonstash.error"

local TEST_TIMEOUT = 10 -- seconds

local M = {}

local function describe_task(t)
  local where = core.traceback(t)
  where = where and where:match "\n\t([^\n]*[^%]]:%d+): " or "not started"
  return ("%s (%s at %s)"):format(tostring(t), core.status(t), where)
end

-- Fails when tasks are alive that were not when the test began; ends them.
local function check_left_alive(before)
  local left = {}
  for _, t in ipairs(core.children(core.current())) do
    if not before[t] then
      left[#left + 1] = describe_task(t)
      core.cancel(t, errors.new("cancelled", "cancelled: its test has ended"))
    end
  end
  if #left > 0 then
    error("the test left tasks alive: " .. table.concat(left, ", "), 0)
  end
end

-- Wraps the test's function so that the check is part of the test; a
-- `finally` of the test comes before it.
local function wrap(element)
  local run, finally = element.run, element.env and element.env.finally
  local before = {}
  for _, t in ipairs(core.children(core.current())) do before[t] = true end
  local checked_later = false
  if finally then
    element.env.finally = function(fn)
      checked_later = true
      finally(function()
        fn()
        check_left_alive(before)
      end)
    end
  end
  element.run = function(...)
    run(...)
    if not checked_later then check_left_alive(before) end
  end
  return run
end

local function clear_caches()
  if package.loaded["cache"] then require("cache.alias").clear_all() end
end

--- Subscribes to busted's events. options.timeout: seconds per test (10),
--- options.clear_cache: memory caches are emptied before each test.
function M.guard(busted, options)
  if M.guarded then return end
  M.guarded = true
  local timeout = options.timeout or TEST_TIMEOUT
  local original = {}
  busted.subscribe({ "test", "start" }, function(element)
    if element.descriptor ~= "it" then return nil, true end
    if options.clear_cache then clear_caches() end
    original[element] = wrap(element)
    core.limit(timeout, errors.new("timeout", ("the test took longer than %g s"):format(timeout)))
    return nil, true
  end)
  busted.subscribe({ "test", "end" }, function(element)
    core.limit()
    element.run, original[element] = original[element] or element.run, nil
    return nil, true
  end)
end

-- Takes our own options out of busted's.
local function split_arguments(...)
  local rest, options = {}, {}
  for _, argument in ipairs { ... } do
    local seconds = argument:match "^%-%-test%-timeout=(.*)$"
    if argument == "--clear-cache" then
      options.clear_cache = true
    elseif seconds then
      options.timeout = tonumber(seconds)
      if not options.timeout or options.timeout <= 0 then
        io.stderr:write(("moonstash: --test-timeout: '%s' is not a number of seconds\n"):format(seconds))
        os.exit(2)
      end
    else
      rest[#rest + 1] = argument
    end
  end
  return rest, options
end

--- moonstash --busted args...: runs the installed busted in this process.
function M.run(...)
  local arguments, options = split_arguments(...)
  local found, runner = pcall(require, "busted.runner")
  if not found then
    if not tostring(runner):find "module 'busted.runner' not found" then error(runner, 0) end
    io.stderr:write("moonstash: busted is not installed (Debian: apt-get install lua-busted)\n")
    os.exit(1)
  end
  table.insert(arguments, 1, "--ignore-lua") -- we are the interpreter
  arguments[0] = "busted"
  _G.arg = arguments
  local new_core = require "busted.core"
  package.loaded["busted.core"] = function(...)
    local busted = new_core(...)
    M.guard(busted, options)
    return busted
  end
  runner { standalone = false, output = "moonstash.report" }
end

return M
