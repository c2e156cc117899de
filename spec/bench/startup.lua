-- Start to finish of an empty chunk, beside luajit, in one run.
--   moonstash spec/bench/startup.lua [runs]
local core = require "moonstash.task"

local runs = tonumber(arg[1]) or 300
local commands = { "luajit -e ''", arg[-1] .. " -e ''" }

local times = { {}, {} }
for _ = 1, runs do
  for i, command in ipairs(commands) do
    local started = core.now()
    assert(os.execute(command) == 0, command)
    table.insert(times[i], (core.now() - started) * 1000)
  end
end
for i, command in ipairs(commands) do
  table.sort(times[i])
  print(("%-40s median %6.3f ms, fastest %6.3f ms"):format(command, times[i][math.ceil(runs / 2)],
    times[i][1]))
end
print(("difference of the medians: %.3f ms"):format(
  times[2][math.ceil(runs / 2)] - times[1][math.ceil(runs / 2)]))
