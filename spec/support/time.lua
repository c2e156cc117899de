-- Lets time pass for a cache under test. A backend in this process is told of
-- it (cache.testing.advance); on a server there is nothing but to wait, so that
-- its cases count in shorter units.
--
-- A case says `ttl = 4 * time.unit(backend)` and time.pass(backend, 4.1), in
-- units; what must still be there is looked at a good part of a unit earlier.
local cache = require "cache"
local task = require "task"

local time = {}

local SERVER_UNIT = 0.2 -- seconds

--- How many seconds a unit has with this backend (see contract_spec.lua).
function time.unit(backend)
  return backend.in_process and 1 or SERVER_UNIT
end

--- Lets units of time pass.
function time.pass(backend, units)
  if backend.in_process then
    cache.testing.advance(units)
  else
    task.sleep(units * SERVER_UNIT)
  end
end

--- Is that what is left of a TTL that was set a moment ago? On a loaded machine
--- a moment may be long.
function time.is_left(ttl, left)
  return left == ttl or left ~= nil and left < ttl and left > ttl / 2
end

return time
