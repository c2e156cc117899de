-- Replays a trace of requests, one key per line, through a cached function.
--   moonstash examples/replay.lua FILE [MAX_BYTES]
-- Prints the hit ratio, the loads that the cache has saved and the speed; on a
-- terminal it shows how far it is.
local cache = require "cache"

local path = arg[1]
if not path then
  io.stderr:write("usage: moonstash examples/replay.lua FILE [MAX_BYTES]\n")
  os.exit(2)
end
if arg[2] then cache.configure_caches { memory_max_bytes = arg[2] } end

local file, err = io.open(path)
if not file then
  io.stderr:write(err, "\n")
  os.exit(1)
end
local size = file:seek "end"
file:seek "set"

-- What a miss costs elsewhere: here it only makes a value of 100 bytes.
local loads = 0
local fetch = cache.cached(function(key)
  loads = loads + 1
  return key .. ("."):rep(100 - #key)
end, { name = "fetch", ttl = false, key_builder = function(_, key) return key end })

local WIDTH = 40
local show_progress = os.execute "test -t 2" == 0 -- stderr is a terminal

local function progress(done)
  local filled = math.floor(WIDTH * done)
  local bar = ("#"):rep(filled) .. (" "):rep(WIDTH - filled)
  io.stderr:write(("\r[%s] %3.0f %%"):format(bar, 100 * done))
end

local requests, bytes, started = 0, 0, os.clock()
for key in file:lines() do
  if #key > 0 then
    requests = requests + 1
    assert(#fetch(key) >= 100)
  end
  bytes = bytes + #key + 1
  if show_progress and requests % 20000 == 0 then progress(bytes / size) end
end
local seconds = os.clock() - started
if show_progress then io.stderr:write("\r\27[K") end

local stats = cache.memory:stats()
print(("%s: %d requests"):format(path:match "[^/]*$", requests))
print(("hit ratio %.4f, %d loads, %d saved, %d evictions"):format(
  requests > 0 and 1 - loads / requests or 0, loads, requests - loads, stats.evictions))
print(("%d entries, %d of %d bytes"):format(stats.entries, stats.bytes, stats.max_bytes))
print(("%.0f requests/s"):format(requests / math.max(seconds, 1e-6)))
