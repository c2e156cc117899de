-- What specs of tasks share.
local task = require "task"

local tasks = {}

--- The error that fn(...) raises; fails when it raises none.
function tasks.error_of(fn, ...)
  local ok, err = pcall(fn, ...)
  if ok then error("no error was raised", 2) end
  return err
end

--- Waits until done() is true, other tasks running meanwhile.
function tasks.await(done)
  while not done() do task.sleep(0.001) end
end

--- Lets every task run until it waits for something but its turn.
function tasks.settle()
  for _ = 1, 5 do task.yield() end
end

local KEPT = { "alive", "ready", "waiting", "deadlines" }

--- Runs fn and fails when it leaves a task alive, a wait or a deadline armed.
function tasks.leaves_nothing(fn)
  local before = task.counters()
  fn()
  local after = task.counters()
  for _, name in ipairs(KEPT) do
    if after[name] ~= before[name] then
      error(("%s: %d before, %d after"):format(name, before[name], after[name]), 2)
    end
  end
end

--- A task that waits until it is cancelled; it counts itself in list when it
--- has begun.
function tasks.sleeper(list)
  return function()
    if list then list[#list + 1] = task.current() end
    task.sleep(1000)
  end
end

return tasks
