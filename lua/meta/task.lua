---@meta task
-- luacheck: ignore 241

---Structured tasks. Every piece of Lua runs in a task; a function that waits
---is just called, and other tasks run meanwhile (those are marked async here).
---Where Lua cannot wait (inside gsub and sort callbacks, in finalizers and
---hooks) such a function raises a sentence that says so.
---
---A parent ends after its children. The error of a child that nobody joins
---makes its parent fail, and that cancels the others; a cancel goes down to all
---below. It is raised at the next wait, as an error object with code
---"cancelled", and at each wait after that. Times are seconds, fractions count.
---@class tasklib
local task = {}

---@class task.Error tostring gives the message
---@field code "cancelled"|"timeout"|"closed"|"deadlock" what to test for
---@field message string what to read
---@field reason any cancelled: what cancel was given

---@class task.Counters of this runtime, now
---@field alive integer tasks that have not ended
---@field ready integer tasks that can run
---@field waiting integer tasks that wait
---@field deadlines integer armed timeouts and sleeps
---@field pooled integer coroutines kept for reuse
---@field coroutines integer coroutines in all
---@field slots integer places for them

---Starts fn(...) in a new task, a child of this one. It runs when this one
---waits or ends.
---@param fn async fun(...): ...
---@param ... any
---@return Task
function task.spawn(fn, ...) end

---The same, but a child of the runtime: nobody waits for it, and its error goes
---to the log.
---@param fn async fun(...): ...
---@param ... any
---@return Task
function task.spawn_detached(fn, ...) end

---The task that this code runs in; nil outside of any.
---@return Task?
function task.current() end

---Waits for that long. 0 lets the others run.
---@async
---@param seconds number >= 0
function task.sleep(seconds) end

---Lets the other tasks that can run do so, then goes on.
---@async
function task.yield() end

---Calls fn(...) when this task has ended, in whatever way; the newest first. It
---may wait and is not cancelled. Its error becomes the task's.
---@param fn async fun(...)
---@param ... any
function task.defer(fn, ...) end

---Calls fn(...) here; a cancel that comes meanwhile waits until it is over.
---@async
---@param fn async fun(...): ...
---@param ... any
---@return any ... what fn returned; its error is raised
function task.shield(fn, ...) end

---Calls fn(scope) and returns when it and every task of the scope have ended.
---The first error cancels the rest and is raised.
---@async
---@param fn async fun(scope: Scope): ...
---@return any ... what fn returned
function task.scope(fn) end

---Runs the functions at the same time and waits for all. The first error
---cancels the rest and is raised.
---@async
---@param fns table<any, async fun(): any>
---@return table results the first result of each, under its key
function task.gather(fns) end

---Runs the functions at the same time; the first that ends decides, the others
---are cancelled.
---@async
---@param fns table<any, async fun(): ...> at least one
---@return any ... what the first returned; its error is raised
function task.race(fns) end

---Calls fn(...) and gives it that long: after it, it is cancelled and an error
---with code "timeout" raised.
---@async
---@param seconds number >= 0
---@param fn async fun(...): ...
---@param ... any
---@return any ... what fn returned; its error is raised
function task.timeout(seconds, fn, ...) end

---Calls fn(...) once, after that time, in a child of this task.
---@param seconds number >= 0
---@param fn async fun(...): ...
---@param ... any
---@return Task
function task.after(seconds, fn, ...) end

---Calls fn(...) each time that long has passed, in a child of this task, until
---that is cancelled. A slow fn skips beats.
---@param seconds number > 0
---@param fn async fun(...)
---@param ... any
---@return Task
function task.every(seconds, fn, ...) end

---Turns a callback API into a wait: calls start(resume), then waits until
---resume(...) is called, now or later. resume tells whether it was the first
---call. What start returns, if it is a function, is called when the wait ends
---otherwise (cancelled): it is to stop what start has started.
---@async
---@param start fun(resume: fun(...): boolean): fun()?
---@return any ... what resume was given
function task.await(start) end

---An event that is not set.
---@return Event
function task.event() end

---A semaphore that n tasks can hold at a time.
---@param n integer >= 1
---@return Semaphore
function task.semaphore(n) end

---A queue between tasks.
---@param capacity? integer >= 1: push waits while it holds so many. Default: no bound
---@return Queue
function task.queue(capacity) end

---@return task.Counters
function task.counters() end

---The handle of a task. tostring gives its number and name.
---@class Task
local Task = {}

---Waits for the task's end; gives its results or raises its error.
---@async
---@param timeout? number seconds; after it an error with code "timeout" is raised
---@return any ... what its function returned
function Task:join(timeout) end

---Waits for the task's end and raises nothing of it.
---@async
---@param timeout? number seconds; after it: false and an error with code "timeout"
---@return boolean ok
---@return any ... what its function returned, or its error
function Task:pjoin(timeout) end

---Cancels it and all below it: at its next wait an error with code "cancelled"
---is raised in it. In a shield, or while others wait for a load of a cached
---function that it runs, this comes after that.
---@param reason? any becomes part of the message and err.reason
---@return boolean done false when it had ended or was cancelled before
function Task:cancel(reason) end

---Hands it to the runtime: its parent does not wait for it any more, nor
---cancel it, nor fail with it.
---@return Task self
function Task:detach() end

---Where it stands, or the stack of the error that it ended with.
---@return string? trace
function Task:traceback() end

---@return "ready"|"running"|"waiting"|"joining"|"done"|"failed"|"cancelled"
function Task:status() end

---Its name in messages; sets it when one is given.
---@param name? string
---@return string? name
function Task:name(name) end

---What task.scope gives its function.
---@class Scope
local Scope = {}

---Starts fn(...) in a task of the scope.
---@param fn async fun(...): ...
---@param ... any
---@return Task
function Scope:spawn(fn, ...) end

---A flag to wait for.
---@class Event
local Event = {}

---Sets it: all who wait go on.
function Event:set() end

---Takes it back: who waits from now on waits for the next set.
function Event:clear() end

---@return boolean
function Event:is_set() end

---Waits until it is set.
---@async
---@param timeout? number seconds
---@return true? ok nil after the timeout
---@return task.Error? err code "timeout"
function Event:wait(timeout) end

---Lets a number of tasks in at a time, first come first served.
---@class Semaphore
local Semaphore = {}

---Waits until there is room, and takes it.
---@async
---@param timeout? number seconds
---@return true? ok nil after the timeout
---@return task.Error? err code "timeout"
function Semaphore:acquire(timeout) end

---Gives it back, to the first who waits. Raises when nobody holds it.
function Semaphore:release() end

---acquire, fn(...), release, whatever happens.
---@async
---@param fn async fun(...): ...
---@param ... any
---@return any ... what fn returned; its error is raised
function Semaphore:with(fn, ...) end

---A queue: first in, first out.
---@class Queue
local Queue = {}

---How many values are in it.
---@return integer
function Queue:count() end

---Appends a value; waits while the queue is full.
---@async
---@param value any not nil
---@param timeout? number seconds
---@return true? ok nil after the timeout, and when the queue is closed
---@return task.Error? err code "timeout" or "closed"
function Queue:push(value, timeout) end

---Takes the first value; waits while there is none.
---@async
---@param timeout? number seconds
---@return any value nil after the timeout, and when the queue is closed and empty
---@return task.Error? err code "timeout" or "closed"
function Queue:pop(timeout) end

---Closes it: pushes fail, pops get what is left and then fail.
function Queue:close() end

return task
