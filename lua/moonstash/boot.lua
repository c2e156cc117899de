-- Runs once in every new state, before anything else: what standard Lua gets
-- to know of tasks. Waits pass through coroutines; a module's top level may
-- wait; os.exit drains.
local core = require "moonstash.task"
local host = require "moonstash.host"

-- ---- coroutines: a wait inside a user's coroutine belongs to the task -------
--
-- A wait yields the WAIT value. Each resume that gets it passes it on outwards
-- until the scheduler has it, and passes the results back inwards.

local WAIT = core.WAIT
local co_resume, co_yield, co_create = coroutine.resume, coroutine.yield, coroutine.create
local isyieldable = coroutine.isyieldable
local waiting = setmetatable({}, { __mode = "k" }) -- coroutines inside a wait

local pass

local function back(co, ...)
  waiting[co] = nil
  return pass(co, co_resume(co, ...))
end

function pass(co, ...)
  local _, first = ...
  if first ~= WAIT then return ... end
  if isyieldable() then
    waiting[co] = true
    return back(co, co_yield(WAIT))
  end
  core.unwait()
  return pass(co, co_resume(co, 2,
    "cannot wait here: the coroutine was resumed inside a C function that calls Lua back"))
end

local function resume(co, ...)
  if waiting[co] then return false, "cannot resume a coroutine that is waiting in another task" end
  return pass(co, co_resume(co, ...))
end

local function unwrap(ok, ...)
  if ok then return ... end
  local err = ...
  error(err, type(err) == "string" and 2 or 0)
end

coroutine.resume = resume

function coroutine.wrap(fn)
  local co = co_create(fn)
  return function(...) return unwrap(resume(co, ...)) end
end

-- ---- require and dofile in Lua, so that a chunk may wait ----------------------

local loading = {} -- name -> {task, event} of the loads in progress
local builtin = {} -- values of built-in modules: one per state, whatever
                   -- happens to package.loaded

-- The built-in Lua files, after package.preload.
table.insert(package.loaders, 2, function(name)
  if builtin[name] ~= nil then return function() return builtin[name] end end
  local chunk = host.embedded(name)
  if not chunk then return ("\n\tno built-in module '%s'"):format(name) end
  return function(...)
    builtin[name] = chunk(...)
    return builtin[name]
  end
end)

local errors = require "moonstash.error" -- tells the C side about error objects

-- Fails at the line that called require, five levels up.
local function find_loader(name)
  local tried = {}
  for _, searcher in ipairs(package.loaders) do
    local loader = searcher(name)
    if type(loader) == "function" then return loader end
    if type(loader) == "string" then tried[#tried + 1] = loader end
  end
  error(("module '%s' not found:%s"):format(name, table.concat(tried)), 5)
end

local function load_module(name)
  return find_loader(name)(name)
end

-- Ends a load: keeps what the chunk returned, wakes those who wait for it.
local function loaded(name, load, ok, value)
  loading[name] = nil
  if load.done then load.done:set() end
  if not ok then error(value, 0) end
  if value ~= nil then
    package.loaded[name] = value
  elseif package.loaded[name] == nil then
    package.loaded[name] = true
  end
  return package.loaded[name]
end

-- Did the loading task end in the middle, by a stray coroutine.yield?
local function is_dead(loader)
  local status = loader and core.status(loader)
  return status == "done" or status == "failed" or status == "cancelled"
end

-- Waits until another task has loaded the module.
local function await_load(name, load)
  local me = core.current()
  if load.task == me or me == nil then
    error(("loop or previous error loading module '%s'"):format(name), 3)
  end
  load.done = load.done or require("task").event()
  if not load.done:_wait_for(load.task) then
    error(("loop loading module '%s': its loader waits for this task"):format(name), 3)
  end
end

function require(name)
  if type(name) == "number" then name = tostring(name) end
  if type(name) ~= "string" then
    error(("bad argument #1 to 'require' (string expected, got %s)"):format(
      name == nil and "no value" or type(name)), 2)
  end
  while true do
    local value = package.loaded[name]
    if value then return value end
    local load = loading[name]
    if not load or is_dead(load.task) then break end
    await_load(name, load)
  end
  local load = { task = core.current() }
  loading[name] = load
  return loaded(name, load, xpcall(load_module, errors.note, name))
end

function dofile(name)
  local chunk, err = loadfile(name)
  if not chunk then error(err, 0) end
  return chunk()
end

-- ---- os.exit ---------------------------------------------------------------------

function os.exit(code)
  if code == nil or code == true then code = 0 end
  if code == false then code = 1 end
  if type(code) ~= "number" then
    error(("bad argument #1 to 'exit' (number expected, got %s)"):format(type(code)), 2)
  end
  core.exit(code) -- returns only where it could not stop the task at once
  local _, err = core.sleep(0)
  error(err, 0)
end
