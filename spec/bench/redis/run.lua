-- GET and SET over one connection, n in flight: Lua tasks on cache.persistent
-- beside the same loop in C on hiredis-async, and beside redis-benchmark (whose
-- n is the depth of its pipeline). One run on one machine, against a
-- redis-server of its own on core 0; the clients take turns on core 1.
--   cmake --build build --target moonstash bench_redis_hiredis
--   build/moonstash spec/bench/redis/run.lua [SECONDS] [peers | variants | jv]
-- SECONDS: of each short run (1); there are ROUNDS, and the table has medians.
-- peers: without Moonstash. variants: also those of client.lua. jv: no table,
-- but what the JIT compiler says of each of client.lua's loops, 64 in flight.
--
-- While a client measures, nothing here runs: it sleeps until the client must
-- be about to end.
local task = require "task"
local cpu = require "spec.bench.redis.cpu"
local process = require "spec.support.process"

local ROUNDS = 5
local SERVER_CORE, CLIENT_CORE = "0", "1"
local HOST = "127.0.0.1"
local KEYS = 10000 -- of client.lua
local WARMUP = 0.3 -- of the clients, seconds
local SLACK = 60 -- seconds that a run may take beyond its own
local PORTS, PORT_MIN, PORT_MAX = 20, 20000, 32000 -- attempts; below Linux's ephemeral ports
local INFLIGHT = { 1, 16, 64, 256 }
local BOTH = { [1] = true, [64] = true, [256] = true }
local PIPELINE = { [1] = 12000, [16] = 150000, [64] = 400000 } -- requests, for about a second

local seconds, mode = tonumber(arg[1]) or 1, arg[#arg]
if tonumber(mode) or #arg == 0 then mode = "plain" end
if not ({ plain = true, peers = true, variants = true, jv = true })[mode] then
  error("arguments: [SECONDS] [peers | variants | jv]", 0)
end

local program = process.binary()
local peer = program:gsub("[^/]*$", "") .. "spec/bench/bench_redis_hiredis"
local port -- of the server

-- ---- programs -------------------------------------------------------------------

-- Runs a program, which takes `least` seconds, on a core of its own.
local function run(core, least, options)
  table.insert(options, 1, "-c")
  table.insert(options, 2, core)
  options.program, options.timeout = "taskset", SLACK
  local running = process.start(options)
  task.sleep(least)
  local result = running:wait()
  if result.code ~= 0 then
    error(("%s ended with %s: %s"):format(table.concat(options, " "),
      tostring(result.code or "signal " .. result.signal), result.err), 0)
  end
  return result
end

local function redis_cli(...)
  return run(CLIENT_CORE, 0, { "redis-cli", "-h", HOST, "-p", port, ... }).out
end

-- It ends with this task, however this one ends.
local function start_server()
  math.randomseed(os.time() + os.clock() * 1e6)
  for _ = 1, PORTS do
    port = tostring(math.random(PORT_MIN, PORT_MAX))
    local server = process.start { program = "taskset", "-c", SERVER_CORE, "redis-server",
      "--bind", HOST, "--port", port, "--save", "", "--appendonly", "no" }
    if pcall(server.wait_for, server, "Ready to accept connections") then return end
    local ended = server:poll()
    if not ended or not ended.out:find("in use", 1, true) then
      error("redis-server does not start: " .. server:out() .. server:err(), 0)
    end
  end
  error("redis-server finds no free port", 0)
end

-- The line of name=value that a client prints.
local function figures(line)
  local found = {}
  for name, value in line:gmatch "([%w_]+)=(%S+)" do found[name] = tonumber(value) end
  if not (found.ops_per_s and found.cpu_us_per_op) then error("no figures in: " .. line, 0) end
  return found
end

-- ---- contenders: fn(op, n) gives the figures of one short run -----------------------

local function client(op, n, variant, option)
  return run(CLIENT_CORE, WARMUP + seconds, { program, option or "--",
    "spec/bench/redis/client.lua", op, tostring(n), tostring(seconds), variant,
    env = { CACHE_REDIS_HOST = HOST, CACHE_REDIS_PORT = port } })
end

local function moonstash(variant)
  return function(op, n)
    redis_cli("flushall")
    local found = figures(client(op, n, variant).out)
    local count = tonumber(redis_cli("dbsize"))
    if count ~= KEYS then error(("%s keys in Redis: did it use memory?"):format(count), 0) end
    return found
  end
end

local function hiredis(op, n)
  return figures(run(CLIENT_CORE, WARMUP + seconds, { peer, HOST, port, op, tostring(n),
    tostring(seconds) }).out)
end

-- It counts no processor time: that is the system's count of ended children,
-- its start included.
local function benchmark(op, n)
  local requests = math.ceil(PIPELINE[n] * seconds)
  local before = cpu.us(cpu.CHILDREN)
  local out = run(CLIENT_CORE, seconds / 2, { "redis-benchmark", "-h", HOST, "-p", port, "-t", op,
    "-c", "1", "-P", tostring(n), "-d", "64", "-r", tostring(KEYS), "-n", tostring(requests),
    "--csv" }).out
  local used = cpu.us(cpu.CHILDREN) - before
  local columns = {}
  for column in out:match('"' .. op:upper() .. '"[^\n]*'):gmatch '"([^"]*)"' do
    columns[#columns + 1] = tonumber(column) or column
  end
  return { ops_per_s = columns[2], p50_us = columns[5] * 1000, p99_us = columns[7] * 1000,
    cpu_us_per_op = used / requests }
end

-- In this order: redis-benchmark reads what hiredis' program has written.
local function contenders(n)
  local list = {}
  local function add(name, fn) list[#list + 1] = { name = name, run = fn, rounds = {} } end
  if BOTH[n] then
    if mode ~= "peers" then add("moonstash", moonstash "plain") end
    if mode == "variants" then
      add("moonstash, timeout = 0.1", moonstash "timeout")
      add("moonstash, serializer string", moonstash "string")
    end
    add("hiredis-async", hiredis)
  end
  if PIPELINE[n] then add("redis-benchmark -P " .. n, benchmark) end
  return list
end

-- ---- the table -------------------------------------------------------------------

local function median(rounds, name)
  local values = {}
  for i, found in ipairs(rounds) do values[i] = found[name] end
  table.sort(values)
  return values[math.ceil(#values / 2)]
end

local function print_row(contender, base)
  local rounds = contender.rounds
  local ops = median(rounds, "ops_per_s")
  print(("  %-30s %9.0f %8.0f %8.0f %11.3f %s"):format(contender.name, ops,
    median(rounds, "p50_us"), median(rounds, "p99_us"), median(rounds, "cpu_us_per_op"),
    base and ("%8.2fx"):format(ops / base) or ""))
end

-- The rounds of all contenders take turns, so that noise hits all alike.
local function compare(op, n)
  local list, base = contenders(n), nil
  for _ = 1, ROUNDS do
    for _, contender in ipairs(list) do table.insert(contender.rounds, contender.run(op, n)) end
  end
  print(("\n%s, %d in flight"):format(op:upper(), n))
  for _, contender in ipairs(list) do
    if contender.run == hiredis then base = median(contender.rounds, "ops_per_s") end
  end
  for _, contender in ipairs(list) do print_row(contender, base) end
end

if not io.open(peer) then error("build the target bench_redis_hiredis first", 0) end
start_server()
if mode == "jv" then
  for _, op in ipairs { "get", "set" } do
    local result = client(op, 64, "plain", "-jv")
    print(op:upper() .. ", 64 in flight: " .. result.out .. result.err)
  end
  return
end
print(("%-32s %9s %8s %8s %11s %9s"):format("medians of " .. ROUNDS, "ops/s", "p50 us", "p99 us",
  "CPU us/op", "/ hiredis"))
for _, op in ipairs { "get", "set" } do
  for _, n in ipairs(INFLIGHT) do compare(op, n) end
end
