-- Two processes share a job through Redis. One is killed in the middle of it,
-- the other takes over: what the first had computed is there.
--   CACHE_REDIS_HOST=localhost moonstash examples/redis.lua
local cache = require "cache"
local task = require "task"

if not (cache.settings.redis_host or cache.settings.redis_url) then
  io.stderr:write "Set CACHE_REDIS_HOST to where a Redis server is: CACHE_REDIS_HOST=localhost\n"
  os.exit(1)
end
cache.configure_caches { aliases = { jobs = { backend = "redis", namespace = "jobs", ttl = 60 } } }

local STEPS, ENOUGH = 60, 20
local shared = cache.get_cache "jobs"

-- Slow work: what one process has computed, every other finds in Redis.
local computed = 0
local square = cache.cached(function(n)
  computed = computed + 1
  task.sleep(0.02)
  return n * n
end, { alias = "jobs", name = "square" })

local function work()
  local sum = 0
  for n = 1, STEPS do
    sum = sum + square(n)
    shared:set("progress", { step = n, sum = sum })
  end
  return sum
end

if arg[1] == "worker" then
  work()
  return
end

-- Another Moonstash, in the background, that runs this script.
local function start_worker()
  local shell = io.popen(("'%s' '%s' worker >&2 & echo $!"):format(arg[-1], arg[0]))
  local pid = shell:read "*n"
  shell:close()
  return pid
end

local function wait_for_progress()
  repeat
    task.sleep(0.01)
    local progress = shared:get "progress"
  until progress and progress.step >= ENOUGH
end

assert(shared:clear()) -- raises here when Redis cannot be reached
local worker = start_worker()
print(("process %d computes squares"):format(worker))
task.timeout(10, wait_for_progress)
os.execute("kill -9 " .. worker)

local progress = shared:get "progress"
print(("killed at step %d of %d, sum %d"):format(progress.step, STEPS, progress.sum))
local sum = work()
print(("this process had to compute %d of them, sum %d"):format(computed, sum))
shared:clear()
