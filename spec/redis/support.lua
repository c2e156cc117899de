-- What the specs of the connection to Redis share. The alias `persistent` of
-- this very runtime is put on a server:
--
--   support.use(server, { redis_timeout = 0.1 })    after_each(support.unuse)
--
-- How long something took is measured less the time in which this process
-- could have run but the machine had no CPU for it: a deadline that is missed
-- for that reason is the machine's fault, a loop that is blocked is ours.
local cache = require "cache"
local core = require "moonstash.task"
local process = require "spec.support.process"
local task = require "task"

local support = {}

local persistent = cache.persistent
local SLACK = 0.05 -- seconds after its deadline within which a call must end
local FAST = 0.005 -- seconds that a call may take while there is no connection
local BACK = 1 -- seconds after the server's return within which we are back
local GIVE_UP = 15 -- seconds

support.now = core.now

--- Puts the alias `persistent` on a server (what redis.start or redis.fake
--- gives, a URL, or false: the settings say where); log = "warn" to see what
--- is logged.
function support.use(server, settings)
  local values = { redis_timeout = 0.1, redis_connect_timeout = 0.3, log = "error" }
  if server then values.redis_url = type(server) == "string" and server or server.url end
  for name, value in pairs(settings or {}) do values[name] = value end
  cache.configure_caches(values)
end

--- The same for specs of what is said and stored, where no deadline matters.
function support.settle_on(server, settings)
  local values = { redis_timeout = 10, redis_connect_timeout = 10 }
  for name, value in pairs(settings or {}) do values[name] = value end
  support.use(server, values)
end

--- Back to memory, with default settings. For after_each.
function support.unuse()
  cache.configure_caches { redis_url = "", redis_host = "", redis_port = "",
    redis_username = "", redis_password = "", redis_mode = "auto", redis_timeout = 1,
    redis_connect_timeout = 1, log = "warn", enabled = true,
    default_ttl = 300, persistent_ttl = 3600, namespace = "", aliases = { persistent = {} } }
  persistent:clear()
end

-- Seconds that this process has waited for a CPU so far.
local function starved()
  local file = io.open "/proc/self/schedstat"
  if not file then return 0 end
  local _, waited = file:read("*n", "*n")
  file:close()
  return (waited or 0) / 1e9
end

--- Seconds that fn(...) took, and its results.
function support.took(fn, ...)
  local began, waited = support.now(), starved()
  local a, b, c = fn(...)
  return support.now() - began - (starved() - waited), a, b, c
end

local function in_time(took, seconds, what)
  if took >= seconds then
    error(("%s took %.1f ms, not less than %.1f"):format(what, took * 1000, seconds * 1000), 3)
  end
end

local function check_error(value, err, code)
  if value ~= nil then error(("no error but %s"):format(tostring(value)), 3) end
  local found = type(err) == "table" and tostring(err.code) or "-"
  if not (" " .. code .. " "):find(" " .. found .. " ", 1, true) then
    error(("code %s (%s), expected %s"):format(found, tostring(err), code), 3)
  end
end

--- fn(...) gives nil and an error with that code (or one of "a b") within so
--- many seconds and 50 ms. Returns the error, and how long it took.
function support.fails(code, seconds, fn, ...)
  local took, value, err = support.took(fn, ...)
  check_error(value, err, code)
  in_time(took, seconds + SLACK, "the failure")
  return err, took
end

--- Every operation fails at once, with that code.
function support.all_fail_fast(code)
  local p = persistent
  for name, call in pairs {
    get = function() return p:get "k" end,
    set = function() return p:set("k", "v") end,
    add = function() return p:add("k", "v") end,
    delete = function() return p:delete "k" end,
    exists = function() return p:exists "k" end,
    increment = function() return p:increment "n" end,
    expire = function() return p:expire("k", 10) end,
    clear = function() return p:clear "ns" end,
    raw = function() return p:raw "PING" end,
    multi_set = function() return p:multi_set { k = "v" } end,
  } do
    local best = math.huge
    for _ = 1, 3 do -- one of them may meet what the machine is busy with
      local took, value, err = support.took(call)
      if value == false or value == 0 then value = nil end
      check_error(value, err, code)
      best = math.min(best, took)
    end
    in_time(best, FAST, name)
  end
end

--- Waits until done() is true; fails after a while.
function support.await(done, what)
  local until_s = support.now() + GIVE_UP
  while not done() do
    if support.now() > until_s then error("waited in vain for " .. (what or "it"), 2) end
    task.sleep(0.001)
  end
end

--- The server is there: `persistent` works within a second, and goes on to.
function support.comes_back()
  local took = support.took(support.await, function()
    return persistent:set("back", "yes") == true
  end, "the server")
  in_time(took, BACK, "to come back")
  for _ = 1, 5 do
    local value, err = persistent:get "back"
    if value ~= "yes" then error("back, but: " .. tostring(err or value), 2) end
  end
end

--- Sets so many keys; support.value(i) is what key(i) holds.
function support.key(i) return "key:" .. i end
function support.value(i) return "value of " .. support.key(i) end

function support.fill(n)
  for i = 1, n do assert(persistent:set(support.key(i), support.value(i))) end
end

--- Gets key(i): true if the value is its own, false and the error if there is
--- none; raises on a value of another key.
function support.get_own(i)
  local value, err = persistent:get(support.key(i))
  if value == nil then
    if err == nil then error("lost: " .. support.key(i), 2) end
    return false, err
  end
  if value ~= support.value(i) then
    error(("%s gave '%s'"):format(support.key(i), tostring(value)), 2)
  end
  return true
end

--- Runs n tasks of fn(stop) until support's caller stops them: stop() gives true
--- once ended. Returns a function that ends and joins them.
function support.load(n, fn)
  local ended, tasks = false, {}
  for i = 1, n do tasks[i] = task.spawn(fn, function() return ended end, i) end
  return function()
    ended = true
    for _, each in ipairs(tasks) do each:join() end
  end
end

--- Runs a script in a process of its own, with CACHE_REDIS_URL (and more: env)
--- set; p is the alias `persistent`. Gives what process.run gives.
function support.script(server, code, env)
  local all = { CACHE_REDIS_URL = type(server) == "string" and server or server.url,
    CACHE_REDIS_TIMEOUT = "0.1", CACHE_REDIS_CONNECT_TIMEOUT = "0.3" }
  for name, value in pairs(env or {}) do all[name] = value end
  return process.run { env = all, "-e",
    "local cache = require 'cache' local p = cache.persistent " .. code }
end

--- How many lines a text has.
function support.lines(text) return select(2, text:gsub("\n", "")) end

--- How many file descriptors this process has.
function support.fds()
  local pipe = assert(io.popen "ls /proc/$PPID/fd | wc -l")
  local n = tonumber(pipe:read "*a")
  pipe:close()
  return n
end

--- Runs a script in a process of its own: its output. It must neither fail nor
--- say anything on stderr.
function support.run(code, env)
  local result = process.run { "-e", code, env = env }
  if result.code ~= 0 or result.err ~= "" then
    error(("code %s\n%s%s"):format(result.code, result.out, result.err), 2)
  end
  return result.out
end

--- How often the server has run a command: calls(server, "get").
function support.calls(server, command)
  local pattern = "cmdstat_" .. command:lower() .. ":calls=(%d+)"
  return tonumber(server:cli("INFO", "commandstats"):match(pattern)) or 0
end

--- What CLIENT LIST says about our connections, each a map: name, db, ...
function support.clients(server)
  local found = {}
  for line in server:cli("CLIENT", "LIST"):gmatch "[^\n]+" do
    local client = {}
    for field, value in line:gmatch "(%S+)=(%S*)" do client[field] = value end
    if client.name == "moonstash" then found[#found + 1] = client end
  end
  return found
end

return support
