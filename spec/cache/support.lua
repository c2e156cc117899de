-- What the cache's specs share.
local cache = require "cache"

local support = {}

--- Both aliases empty, every setting at its default, caching on.
function support.fresh()
  cache.configure_caches {
    enabled = true, default_ttl = 300, persistent_ttl = 3600, memory_max_bytes = 64 * 2 ^ 20,
  }
  require("cache.alias").clear_all()
end

--- fn(...) raises a string that contains the text and begins with the position
--- of the call, which is here.
function support.raises(text, fn, ...)
  local here = debug.getinfo(1, "Sl")
  local ok, err = pcall(fn, ...)
  if ok then error("no error was raised, expected: " .. text, 2) end
  if type(err) ~= "string" or not err:find(text, 1, true) then
    error(("raised '%s', expected '%s'"):format(tostring(err), text), 2)
  end
  local position = ("%s:%d: "):format(here.short_src, here.currentline + 1)
  if err:sub(1, #position) ~= position then
    error(("the position is not %s but: %s"):format(position, err), 2)
  end
end

--- Lets the other tasks go as far as they can, also to where they wait for what
--- Redis answers.
function support.settle()
  local task = require "task"
  for _ = 1, 5 do task.yield() end
  while (cache.persistent:stats().in_flight or 0) > 0 do task.sleep(0.0005) end
  for _ = 1, 5 do task.yield() end
end

--- A function that counts its calls and gives its result; support.calls(it).
function support.counted(fn)
  local counter = { calls = 0 }
  return function(...)
    counter.calls = counter.calls + 1
    return fn(...)
  end, counter
end

return support
