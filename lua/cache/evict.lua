-- on_evict: hooks that are told of values that have left the memory. The store
-- says so under its lock, on whatever thread; the backend keeps it in a queue,
-- and starts a detached task when there is something in it. Hooks run in that
-- task one after the other, so in the order of events, and may wait; what
-- comes meanwhile waits for them. The task ends with the queue's last event.
--
-- Nobody cancels a hook: the runtime's end lets the events that are queued
-- come through, as far as its time allows.
local backend = require "moonstash.backend"
local core = require "moonstash.task"
local hooks = require "cache.hooks"
local host = require "moonstash.host"
local task = require "task"

local BATCH = 256 -- hooks in a row before other tasks run
local WAIT_OK = 0
local min, pairs = math.min, pairs

local evict = {}

--- The Cache object of an alias by name: object.lua's.
evict.client = nil

local owners = {} -- view -> the alias whose it is, of all that were ever watched
local told = false -- that events were lost

-- An alias that has no such hook any more, or none on this view, is not told.
local function tell(view, joined, reason)
  local the_alias = owners[view]
  local ns, key = the_alias.ns, joined
  if ns ~= "" and joined:sub(1, #ns) == ns then key = joined:sub(#ns + 1) end
  hooks.evicted(the_alias.plugins, evict.client(the_alias.name), key, reason)
end

local function deliver(count)
  for _ = 1, count do tell(backend.next_event()) end
end

local function warn_of_loss()
  for view in pairs(owners) do
    if not told and backend.events_lost(view) > 0 then
      told = true
      host.log(1, "on_evict: more events than can wait for their hooks: some were dropped "
        .. "(evict_events_lost in stats)")
    end
  end
end

-- Cancelled (nobody but the runtime's end does that), it leaves what is left to
-- the next task.
local function run()
  if not told then warn_of_loss() end
  local left = backend.events()
  while left > 0 do
    task.shield(deliver, min(left, BATCH))
    left = backend.events()
    if left > 0 and core.yield() ~= WAIT_OK then return end
  end
end

--- Watches the alias's view if its plugins want that, or no longer.
function evict.follow(the_alias, enabled)
  local wanted = enabled and not the_alias.remote and hooks.watch(the_alias.plugins)
  local view = wanted and the_alias.view or nil
  local old = the_alias.watched
  if view == old then return end
  if old then backend.unwatch(old) end
  if view then
    owners[view] = the_alias
    backend.watch(view, run)
  end
  the_alias.watched = view
end

return evict
