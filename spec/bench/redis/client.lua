-- n tasks that use cache.persistent on Redis, each with one call in flight and
-- the next one right after it, as long as told. See run.lua.
--   CACHE_REDIS_HOST=127.0.0.1 moonstash spec/bench/redis/client.lua get|set N SECONDS [VARIANT]
-- VARIANT: plain (or nothing), timeout (each call has timeout = 0.1), string
-- (serializer "string": bytes without an envelope).
--
-- Each reply is checked by its length, a sampled one by its bytes; a wrong one
-- ends the run. It prints one line of name=value. Keys, their order, the
-- values, the sampling of latencies and that line are those of
-- hiredis_async.c: change both. Without CACHE_REDIS_HOST the backend is memory,
-- where nobody waits, and the tasks take turns by task.yield.
local ffi = require "ffi"
local cache = require "cache"
local task = require "task"
local cpu = require "spec.bench.redis.cpu"
local now = require("moonstash.task").now

local KEYS = 10000
local STRIDE = 7919 -- from key to key; prime to KEYS, so that all have a turn
local VALUE_SIZE = 64
local WARMUP = 0.3 -- seconds
local SAMPLE_ALL = 16 -- below this many in flight each latency is measured
local SAMPLE = 17 -- else one in so many; odd, so that no task is favoured
local HISTOGRAM = 100000 -- buckets of 1 us; the last one takes all above
local WRITERS = 50
local TIMEOUT = 0.1

local op, n, seconds = arg[1], tonumber(arg[2]), tonumber(arg[3])
local variant = arg[4] or "plain"
local variants = { plain = true, timeout = true, string = true }
if op ~= "get" and op ~= "set" or not n or not seconds or not variants[variant] then
  error("arguments: get|set N SECONDS [plain|timeout|string]", 0)
end

local yield = not cache.settings.redis_host and task.yield
if variant == "string" then
  cache.configure_caches { aliases = { persistent = { serializer = "string" } } }
end
local persistent = cache.persistent

-- ---- keys and values -----------------------------------------------------------

local PAD = ("x"):rep(VALUE_SIZE - 16)
local keys = {} -- of 16 bytes, as redis-benchmark's
for i = 1, KEYS do keys[i] = ("key:%012d"):format(i - 1) end

local writers = {}
for first = 1, WRITERS do
  writers[first] = function()
    for i = first, KEYS, WRITERS do assert(persistent:set(keys[i], keys[i] .. PAD, 0)) end
  end
end
task.gather(writers)

-- Whoever reads keeps no values: each reply makes a string, as it does for a user.
local values = {}
if op == "set" then
  for i = 1, KEYS do values[i] = keys[i] .. PAD end
end
collectgarbage()

-- ---- figures --------------------------------------------------------------------

local histogram = ffi.new("uint32_t[?]", HISTOGRAM)

local function record(took)
  local us = math.min(took * 1e6, HISTOGRAM - 1)
  histogram[us] = histogram[us] + 1
end

-- Microseconds that this share of the sampled latencies do not exceed.
local function percentile(share)
  local total, below = 0, 0
  for us = 0, HISTOGRAM - 1 do total = total + histogram[us] end
  for us = 0, HISTOGRAM - 1 do
    below = below + histogram[us]
    if below > 0 and below >= share * total then return us end
  end
  return 0
end

-- ---- the loop ---------------------------------------------------------------------

local running, operations, position = true, 0, 0
local sample = n < SAMPLE_ALL and 1 or SAMPLE
local until_sample = sample

local function wrong(i, value, err)
  error(("%s of %s: %s (%s)"):format(op, keys[i], tostring(value), tostring(err)), 0)
end

local function get_loop(opts)
  while running do
    local i = (position + STRIDE) % KEYS
    position, i = i, i + 1
    local started
    until_sample = until_sample - 1
    if until_sample == 0 then until_sample, started = sample, now() end
    local value, err = persistent:get(keys[i], nil, opts)
    if not value or #value ~= VALUE_SIZE then wrong(i, value, err) end
    operations = operations + 1
    if started then
      record(now() - started)
      if value ~= keys[i] .. PAD then wrong(i, value) end
    end
    if yield then yield() end
  end
end

local function set_loop(ttl)
  while running do
    local i = (position + STRIDE) % KEYS
    position, i = i, i + 1
    local started
    until_sample = until_sample - 1
    if until_sample == 0 then until_sample, started = sample, now() end
    local value, err = persistent:set(keys[i], values[i], ttl)
    if value ~= true then wrong(i, value, err) end
    operations = operations + 1
    if started then record(now() - started) end
    if yield then yield() end
  end
end

if op == "get" then
  local opts = variant == "timeout" and { timeout = TIMEOUT } or nil
  for _ = 1, n do task.spawn(get_loop, opts) end
else
  local ttl = variant == "timeout" and { ttl = 0, timeout = TIMEOUT } or 0
  for _ = 1, n do task.spawn(set_loop, ttl) end
end

task.sleep(WARMUP)
ffi.fill(histogram, ffi.sizeof(histogram))
operations = 0
local began_cpu, began = cpu.us(cpu.SELF), now()
task.sleep(seconds)
local took, used = now() - began, cpu.us(cpu.SELF) - began_cpu
local done = operations
running = false
if done == 0 then error("no reply within the measured window", 0) end
print(("ops_per_s=%.0f p50_us=%d p99_us=%d cpu_us_per_op=%.3f ops=%d seconds=%.3f"):format(
  done / took, percentile(0.5), percentile(0.99), used / done, done, took))
