-- busted inside Moonstash. Each test runs in tasks of its own, so that it may
-- wait like any script and cannot harm the next: one task for the test with
-- its before_each and after_each, a child of that for the test's function. A
-- test that takes too long fails, and so does one that leaves tasks behind,
-- detached ones included.
local core = require "moonstash.task"
local errors = require "moonstash.error"

local TEST_TIMEOUT = 10 -- seconds
local WAIT_RAISE = 2

local M = {}
local options = {} -- timeout, clear_cache: whoever says it first

-- Where the test stands, as the start of a message.
local function at(element)
  local trace = element.trace
  return trace and ("%s:%d: "):format(trace.short_src, trace.currentline) or ""
end

-- ---- tasks around a test -----------------------------------------------------

-- Runs fn(...) in a child of the current task and waits until that has ended,
-- whatever interrupts us meanwhile: busted must not go on beside it.
local function in_child(fn, ...)
  local args, n, results = { ... }, select("#", ...), nil
  core.yield() -- ends a slow slice of busted's before anybody waits for it
  local child = core.spawn(function() results = { fn(unpack(args, 1, n)) } end)
  local state, err = core.join(child)
  if state == WAIT_RAISE then
    core.shield(1)
    core.join(child)
    core.shield(-1)
  end
  return results, state, err
end

local function limit(element, what)
  local timeout = options.timeout or TEST_TIMEOUT
  core.limit(timeout, errors.new("timeout",
    ("%sthe %s took longer than %g s"):format(at(element), what, timeout)))
end

-- Runs the function, then raises what it has swallowed or not waited for: its
-- time limit, the error of a child.
local function run_out(run)
  run()
  if core.may_wait "test" then return end
  local _, err = core.yield()
  if not errors.is(err, "cancelled") then error(err, 0) end
end

local function describe_task(t)
  local where = core.traceback(t)
  where = where and where:match "\n\t([^\n]*[^%]]:%d+): "
  local state = where and core.status(t) .. " at " .. where or "not started"
  return ("%s (%s)"):format(tostring(t), state)
end

-- Cancels the tasks. Says which they are, or nil without any.
local function cancel_all(tasks, kind)
  local texts = {}
  for i, t in ipairs(tasks) do
    texts[i] = kind .. describe_task(t)
    core.cancel(t, errors.new("cancelled", "cancelled: its test has ended"))
  end
  return texts[1] and table.concat(texts, ", ")
end

-- Detached tasks hang below the runtime's root. known has those that do not
-- matter: busted's own task, what ran before the test, what refused to end.
-- Nor does the cache's own, which runs on_evict hooks some time after a test
-- has changed the cache.
local known = setmetatable({}, { __mode = "k" })
local HOOKS = "on_evict"

local function detached_tasks(before)
  local new = {}
  for _, t in ipairs(core.children(false)) do
    if not before[t] and not known[t] and core.name(t) ~= HOOKS then new[#new + 1] = t end
  end
  return new
end

local function tasks_before()
  local before = {}
  for _, t in ipairs(core.children(false)) do before[t] = true end
  return before
end

-- Ends the detached tasks since `before`, and those that they leave, within
-- the time of a test. Says which the first ones were, or nil.
local function end_detached(before, element)
  local tasks = detached_tasks(before)
  local left = cancel_all(tasks, "detached ")
  if not left then return nil end
  in_child(function()
    limit(element, "end of the detached tasks")
    while tasks[1] do
      for _, t in ipairs(tasks) do
        if core.join(t) == WAIT_RAISE then return end
      end
      tasks = detached_tasks(before)
      cancel_all(tasks, "")
    end
  end)
  for _, t in ipairs(detached_tasks(before)) do known[t] = true end
  return left
end

-- Ends the tasks that the current one has left, and the detached ones since
-- `before`. Says which, or nil.
local function end_tasks(before, element)
  local left = cancel_all(core.children(core.current()), "")
  local detached = before and end_detached(before, element)
  return left and detached and left .. ", " .. detached or left or detached
end

-- ---- the parts of a test -------------------------------------------------------
--
-- busted calls safe(descriptor, run, element) for each part of a test and for
-- the whole; safe catches errors and tells the output handler.

-- The last part: fails a test that was fine so far if it left tasks alive.
local function check_tasks(safe, status, element, before)
  local left = end_tasks(before, element)
  if not left or not (status:success() or status:pending()) then return end
  local failed = safe("it", function()
    error(("%sthe test left tasks alive: %s"):format(at(element), left), 0)
  end, element)
  status:set(tostring(failed))
end

-- `finally` runs before tasks are counted, and is not interrupted by what has
-- ended the test: it may wait to clean up.
local function run_finally(safe, status, element, finally)
  core.shield(1)
  local results = in_child(function()
    limit(element, "test's finally")
    local outcome = safe("finally", finally, element)
    check_tasks(safe, outcome, element)
    return outcome
  end)
  core.shield(-1)
  status:update(tostring(results and results[1]))
end

local function test_body(safe, run, element)
  local before, finally = tasks_before(), nil
  element.env.finally = function(fn) finally = fn end
  limit(element, "test")
  local status = safe("it", function() run_out(run) end, element)
  core.limit()
  if finally then run_finally(safe, status, element, finally) end
  check_tasks(safe, status, element, before)
  return status
end

-- The whole test with its before_each and after_each.
local function whole_test(busted, safe, run, element)
  if options.clear_cache and package.loaded["cache"] then require("cache.alias").clear_all() end
  local before = tasks_before()
  local results, state, err = in_child(function()
    local status = safe("it", function() run_out(run) end, element)
    check_tasks(safe, status, element, before)
    return status
  end)
  if not results then end_detached(before, element) end
  if state == WAIT_RAISE then busted.skipAll = true end -- interrupted: no more tests
  if results then return unpack(results) end
  return (safe("it", function() error(err, 0) end, element))
end

local PARTS = { before_each = true, after_each = true, strict_setup = true, strict_teardown = true,
  lazy_setup = true, lazy_teardown = true }

local function other_part(safe, descriptor, run, element)
  limit(element, descriptor:gsub("^strict_", ""))
  local status = safe(descriptor, run, element)
  core.limit()
  return status
end

local function guarded_safe(busted)
  local safe = busted.safe
  return function(descriptor, run, element)
    if PARTS[descriptor] then return other_part(safe, descriptor, run, element) end
    if descriptor ~= "it" or element.descriptor ~= "it" then
      return safe(descriptor, run, element)
    end
    if run ~= element.run then return whole_test(busted, safe, run, element) end
    local results, _, err = in_child(test_body, safe, run, element)
    if results then return results[1] end
    return (safe("it", function() error(err, 0) end, element))
  end
end

-- ---- starting it ------------------------------------------------------------------

-- busted's core, which its public face hides: each of its functions has it.
local function core_of(busted)
  if rawget(busted, "safe") then return busted end
  for i = 1, 255 do
    local name, value = debug.getupvalue(busted.it, i)
    if not name or name == "busted" then return value end
  end
end

--- Makes each test of this busted (`require "busted"`) one as described above.
-- more.timeout: seconds per test (10); more.clear_cache: memory caches are
-- emptied before each test. What the command line said goes first.
function M.guard(busted, more)
  for name, value in pairs(more or {}) do
    if options[name] == nil then options[name] = value end
  end
  if M.guarded then return end
  M.guarded = true
  busted = core_of(busted)
  busted.safe = guarded_safe(busted)
end

-- Takes our own options out of busted's.
local function split_arguments(...)
  local rest = {}
  for _, argument in ipairs { ... } do
    local seconds = argument:match "^%-%-test%-timeout=(.*)$"
    if argument == "--clear-cache" then
      options.clear_cache = true
    elseif seconds then
      options.timeout = tonumber(seconds)
      if not options.timeout or options.timeout <= 0 then
        io.stderr:write("moonstash: --test-timeout: '", seconds, "' is not a number of seconds\n")
        os.exit(2)
      end
    else
      rest[#rest + 1] = argument
    end
  end
  return rest
end

--- moonstash --busted args...: runs the installed busted in this process.
function M.run(...)
  local arguments = split_arguments(...)
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
    M.guard(busted)
    return busted
  end
  -- Whoever calls the runner gives the messages their name.
  loadstring("local run, options = ... run(options)", "@busted")(runner,
    { standalone = false, output = "moonstash.report" })
end

return M
