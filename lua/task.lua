-- The `task` module: structured tasks for Lua. The C half (moonstash.task)
-- knows the scheduler; here its wait states become results and errors, and
-- everything that needs no scheduler is built from park and wake.
--
-- A wait returns a state first: 0 woken, 1 its deadline passed, 2 raise the
-- value that follows, 3 (join) the task failed with it.
local core = require "moonstash.task"
local errors = require "moonstash.error"

local pack = function(...) return { n = select("#", ...), ... } end
local unpack = unpack
local error, type, pairs, tostring = error, type, pairs, tostring
local getmetatable = getmetatable
local new_error, note = errors.new, errors.note

local OK, TIMEOUT, RAISE, FAILED = 0, 1, 2, 3

local task = {}
local Task = {} -- methods of a task's handle

local function timeout_error(what, seconds)
  return new_error("timeout", ("%s: timed out after %g s"):format(what, seconds))
end

local function check_function(fn, what)
  if type(fn) ~= "function" then
    error(("%s: a function expected, not %s"):format(what, type(fn)), 3)
  end
end

-- A wrong number as it is, of anything else the type: "1" is not 1.
local function told(value)
  return type(value) == "number" and tostring(value) or type(value)
end

local function check_self(self, class, what)
  if getmetatable(self) ~= class then
    error(("%s: call it with a colon, as in %s()"):format(what, what), 3)
  end
end

-- level: of the user's line, as for error; 3 is the caller of our caller.
local function check_seconds(seconds, what, more_than_zero, level)
  if type(seconds) ~= "number" or not (seconds >= 0) or (more_than_zero and seconds == 0) then
    error(("%s: the time must be a number of seconds %s 0, not %s"):format(what,
      more_than_zero and ">" or ">=", told(seconds)), level or 3)
  end
end

-- ---- the life of a task --------------------------------------------------

task.spawn = core.spawn
task.current = core.current

local function finish(state, ...)
  if state == OK then return ... end
  if state == TIMEOUT then error(timeout_error("join", (...)), 0) end
  error((...), 0)
end

local function joined(timeout, state, ...)
  if state == TIMEOUT then return finish(state, timeout) end
  return finish(state, ...)
end

function Task.join(self, timeout)
  if timeout == nil then return finish(core.join(self)) end
  return joined(timeout, core.join(self, timeout))
end

local function pfinish(timeout, state, ...)
  if state == OK then return true, ... end
  if state == FAILED then return false, (...) end
  if state == TIMEOUT then return false, timeout_error("pjoin", timeout) end
  error((...), 0)
end

function Task.pjoin(self, timeout)
  return pfinish(timeout, core.join(self, timeout, true))
end

local function cancelled(reason)
  local message = reason == nil and "cancelled" or "cancelled: " .. tostring(reason)
  local err = new_error("cancelled", message)
  err.reason = reason
  return err
end

function Task.cancel(self, reason)
  return core.cancel(self, cancelled(reason))
end

Task.detach = core.detach
Task.traceback = core.traceback

function Task.status(self)
  return core.status(self)
end

function Task.name(self, name)
  return (core.name(self, name))
end

core.metatable.__index = Task
core.metatable.__metatable = "moonstash.task"
core.metatable.__tostring = function(self)
  local name, id = core.name(self)
  return name and ("task %d (%s)"):format(id, name) or ("task %d"):format(id)
end

function task.spawn_detached(fn, ...)
  check_function(fn, "spawn_detached")
  return core.spawn_under(false, fn, ...)
end

function task.sleep(seconds)
  local state, err = core.sleep(seconds)
  if state == RAISE then error(err, 0) end
end

function task.yield()
  local state, err = core.yield()
  if state == RAISE then error(err, 0) end
end

function task.defer(fn, ...)
  check_function(fn, "defer")
  if select("#", ...) > 0 then
    local f, args = fn, pack(...)
    fn = function() return f(unpack(args, 1, args.n)) end
  end
  core.defer(fn)
end

local function unshield(me, ok, ...)
  core.shield(-1, me)
  if ok then return ... end
  error((...), 0)
end

function task.shield(fn, ...)
  check_function(fn, "shield")
  return unshield(core.shield(1), xpcall(fn, note, ...))
end

-- ---- several tasks ---------------------------------------------------------

-- Leaves the child that a scope ran in: an interrupt of the caller ends it.
local function leave(child, state, ...)
  if state == OK then return ... end
  if state == RAISE then core.cancel(child, cancelled("the scope was left")) end
  error((...), 0)
end

-- Runs fn(scope) in a child of its own, so that its failure is this call's.
local function run_scope(what, fn, scope)
  core.may_wait(what)
  local child = core.spawn(fn, scope)
  if scope then scope.task = child end
  return leave(child, core.join(child))
end

local Scope = {}
Scope.__index = Scope

function Scope:spawn(fn, ...)
  check_self(self, Scope, "scope:spawn")
  check_function(fn, "spawn")
  return core.spawn_under(self.task, fn, ...)
end

function task.scope(fn)
  check_function(fn, "scope")
  return run_scope("scope", fn, setmetatable({}, Scope))
end

local function check_functions(fns, what)
  if type(fns) ~= "table" then
    error(("%s: a table of functions expected, not %s"):format(what, type(fns)), 3)
  end
  for key, fn in pairs(fns) do
    if type(fn) ~= "function" then
      error(("%s: [%s] must be a function, not %s"):format(what, tostring(key), type(fn)), 3)
    end
  end
end

function task.gather(fns)
  check_functions(fns, "gather")
  return run_scope("gather", function()
    local tasks, results = {}, {}
    for key, fn in pairs(fns) do tasks[key] = core.spawn(fn) end
    for key, t in pairs(tasks) do results[key] = t:join() end
    return results
  end)
end

function task.race(fns)
  check_functions(fns, "race")
  if next(fns) == nil then error("race: at least one function expected", 2) end
  return run_scope("race", function()
    local me, ticket, first = core.current(), nil, nil
    local function ended(runner, ...)
      if first then return end
      first = { runner = runner, outcome = pack(...) }
      if ticket then core.wake(me, ticket) end
    end
    for _, fn in pairs(fns) do
      core.spawn(function()
        local runner = core.spawn(fn)
        ended(runner, core.join(runner))
      end)
    end
    ticket = core.ticket()
    finish(core.park(nil, "race"))
    core.cancel_children(cancelled("another one won the race"))
    local outcome = first.outcome
    if outcome[1] == FAILED then core.note_error(outcome[2], core.traceback(first.runner), true) end
    return finish(unpack(outcome, 1, outcome.n))
  end)
end

-- The deadline has passed: ends the child, then says so - unless the child
-- had its results ready all the same.
local function timed_out(child, seconds)
  local err = timeout_error("timeout", seconds)
  core.cancel(child, err)
  if core.held(child) then -- others wait for a load that it runs: it goes on
    core.detach(child)
    error(err, 0)
  end
  return finish(core.join(child))
end

local function timed(child, seconds, state, ...)
  if state == TIMEOUT then return timed_out(child, seconds) end
  return leave(child, state, ...)
end

function task.timeout(seconds, fn, ...)
  check_seconds(seconds, "timeout")
  check_function(fn, "timeout")
  core.may_wait("timeout")
  local child = core.spawn(fn, ...)
  return timed(child, seconds, core.join(child, seconds))
end

function task.after(seconds, fn, ...)
  check_seconds(seconds, "after")
  check_function(fn, "after")
  return core.spawn(function(...)
    task.sleep(seconds)
    return fn(...)
  end, ...)
end

function task.every(seconds, fn, ...)
  check_seconds(seconds, "every", true)
  check_function(fn, "every")
  return core.spawn(function(...)
    local due = core.now() + seconds
    while true do
      task.sleep(math.max(0, due - core.now()))
      fn(...)
      local late = core.now() - due -- a slow fn skips beats, it never piles up
      due = due + seconds * math.max(1, math.ceil(late / seconds))
    end
  end, ...)
end

-- ---- waiting for something --------------------------------------------------

local function awaited(stop, state, ...)
  if state == OK then return ... end
  if type(stop) == "function" then stop() end
  error((...), 0)
end

function task.await(start)
  check_function(start, "await")
  if not core.may_wait("await") then return finish(core.park(nil, "await")) end
  local me = core.current()
  local done, ticket, results
  local function resume(...)
    if done then return false end
    if ticket then
      done = true
      return core.wake(me, ticket, ...)
    end
    done, results = true, pack(...)
    return true
  end
  local stop = start(resume)
  if done then return unpack(results, 1, results.n) end
  ticket = core.ticket()
  return awaited(stop, core.park(nil, "await"))
end

-- A list of waiting tasks, first come first served: a ring with a head.
local function new_waiters()
  local head = {}
  head.next, head.prev = head, head
  return head
end

local function unlink(node)
  if not node.next then return end
  node.prev.next, node.next.prev = node.next, node.prev
  node.next, node.prev = nil, nil
end

-- Waits in the list, for the progress of the owner's task if that is known.
-- item: what the waker is to take. true, value of the waker; or false, err at
-- a timeout.
local function wait_in(waiters, timeout, what, owner, item)
  core.may_wait(what)
  local node = {
    task = core.current(), ticket = core.ticket(), item = item,
    prev = waiters.prev, next = waiters,
  }
  waiters.prev.next, waiters.prev = node, node
  local state, value = core.park(timeout, what, owner)
  unlink(node)
  if state == OK then return true, value end
  if state == TIMEOUT then return false, timeout_error(what, timeout) end
  error(value, 0)
end

-- Wakes the first that still waits. Returns its node, nil when there is none.
local function wake_first(waiters, value)
  while waiters.next ~= waiters do
    local node = waiters.next
    unlink(node)
    if core.wake(node.task, node.ticket, value) then return node end
  end
end

local function check_timeout(timeout, what)
  if timeout ~= nil then check_seconds(timeout, what, false, 4) end
end

local Event = {}
Event.__index = Event

function task.event()
  return setmetatable({ waiters = new_waiters(), on = false }, Event)
end

function Event:set()
  check_self(self, Event, "event:set")
  self.on = true
  while wake_first(self.waiters) do end
end

function Event:clear()
  check_self(self, Event, "event:clear")
  self.on = false
end

function Event:is_set()
  check_self(self, Event, "event:is_set")
  return self.on
end

function Event:wait(timeout)
  check_self(self, Event, "event:wait")
  check_timeout(timeout, "event:wait")
  if self.on then return true end
  local ok, err = wait_in(self.waiters, timeout, "event:wait")
  if ok then return true end
  return nil, err
end

-- Waits for an event that this task will set: false, without waiting, when
-- that task itself waits for the caller.
function Event:_wait_for(owner)
  if core.would_deadlock(owner) then return false end
  return self.on or (wait_in(self.waiters, nil, "event:wait", owner))
end

local Semaphore = {}
Semaphore.__index = Semaphore

local function check_count(n, what)
  if type(n) ~= "number" or n < 1 or n % 1 ~= 0 then
    error(("%s: an integer of at least 1 expected, not %s"):format(what, told(n)), 3)
  end
end

function task.semaphore(n)
  check_count(n, "semaphore")
  return setmetatable({ waiters = new_waiters(), free = n, size = n }, Semaphore)
end

function Semaphore:acquire(timeout)
  check_self(self, Semaphore, "semaphore:acquire")
  check_timeout(timeout, "semaphore:acquire")
  if self.free > 0 then
    self.free = self.free - 1
    return true
  end
  local ok, err = wait_in(self.waiters, timeout, "semaphore:acquire")
  if ok then return true end
  return nil, err
end

function Semaphore:release()
  check_self(self, Semaphore, "semaphore:release")
  if wake_first(self.waiters) then return end -- handed on, not freed
  if self.free == self.size then error("semaphore:release: it is not held", 2) end
  self.free = self.free + 1
end

local function release_after(semaphore, ok, ...)
  semaphore:release()
  if ok then return ... end
  error((...), 0)
end

function Semaphore:with(fn, ...)
  check_self(self, Semaphore, "semaphore:with")
  check_function(fn, "semaphore:with")
  self:acquire()
  return release_after(self, xpcall(fn, note, ...))
end

local Queue = {}
Queue.__index = Queue

function task.queue(capacity)
  if capacity ~= nil then check_count(capacity, "queue") end
  return setmetatable({
    capacity = capacity or math.huge,
    first = 1, last = 0, items = {},
    readers = new_waiters(), writers = new_waiters(),
    closed = false,
  }, Queue)
end

function Queue:count()
  check_self(self, Queue, "queue:count")
  return self.last - self.first + 1
end

local function closed_error(what)
  return new_error("closed", what .. ": the queue is closed")
end

local function append(queue, value)
  queue.last = queue.last + 1
  queue.items[queue.last] = value
end

local function take(queue)
  local value = queue.items[queue.first]
  queue.items[queue.first] = nil
  queue.first = queue.first + 1
  return value
end

function Queue:push(value, timeout)
  check_self(self, Queue, "queue:push")
  check_timeout(timeout, "queue:push")
  if value == nil then
    error("queue:push: the value is nil, which pop gives for a closed queue", 2)
  end
  if self.closed then return nil, closed_error("queue:push") end
  if wake_first(self.readers, value) then return true end
  if self:count() < self.capacity then
    append(self, value)
    return true
  end
  local ok, taken = wait_in(self.writers, timeout, "queue:push", nil, value)
  if ok and taken then return true end
  return nil, ok and closed_error("queue:push") or taken
end

function Queue:pop(timeout)
  check_self(self, Queue, "queue:pop")
  check_timeout(timeout, "queue:pop")
  if self:count() > 0 then
    local value = take(self)
    local writer = wake_first(self.writers, true)
    if writer then append(self, writer.item) end
    return value
  end
  if self.closed then return nil, closed_error("queue:pop") end
  local ok, value = wait_in(self.readers, timeout, "queue:pop")
  if not ok then return nil, value end
  if value == nil then return nil, closed_error("queue:pop") end
  return value
end

function Queue:close()
  check_self(self, Queue, "queue:close")
  self.closed = true
  while wake_first(self.readers) do end
  while wake_first(self.writers) do end
end

task.counters = core.counters

return task
