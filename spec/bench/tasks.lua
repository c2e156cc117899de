-- Tasks against bare coroutines, in one run.
--   moonstash spec/bench/tasks.lua
local task = require "task"
local core = require "moonstash.task"

local N, ROUNDS = 1000000, 5
local SLEEPERS = 100000

local function empty() end
local co_create, co_resume = coroutine.create, coroutine.resume
local spawn = task.spawn

local function batches(n, fn) -- yields now and then: the loop is not to be held
  for _ = 1, n / 10000 do
    fn(10000)
    task.yield()
  end
end

local cases = {
  { "coroutine.create + resume", function()
    batches(N, function(n)
      for _ = 1, n do co_resume(co_create(empty)) end
    end)
  end },
  { "task.spawn + join", function()
    for _ = 1, N do spawn(empty):join() end
  end },
  { "task.yield", function()
    for _ = 1, N do task.yield() end
  end },
}

-- Best of the rounds, interleaved so that noise hits all cases alike.
local best = {}
for _ = 1, ROUNDS do
  for i, case in ipairs(cases) do
    local started = core.now()
    case[2]()
    local ns = (core.now() - started) / N * 1e9
    best[i] = math.min(best[i] or ns, ns)
  end
end
for i, case in ipairs(cases) do
  print(("%-28s %7.0f ns  %5.2fx of a bare coroutine"):format(case[1], best[i], best[i] / best[1]))
end

local function resident_mb()
  for line in io.lines "/proc/self/status" do
    local kb = line:match "^VmRSS:%s+(%d+)"
    if kb then return kb / 1024 end
  end
end

collectgarbage()
local before, woken = resident_mb(), 0
task.scope(function(scope)
  batches(SLEEPERS, function(n)
    for _ = 1, n do
      scope:spawn(function()
        task.sleep(2)
        woken = woken + 1
      end)
    end
  end)
  task.sleep(1)
  print(("%d sleeping tasks: %.1f MB, %.0f bytes each"):format(SLEEPERS, resident_mb() - before,
    (resident_mb() - before) * 2 ^ 20 / SLEEPERS))
end)
print(("%d of them woke"):format(woken))
