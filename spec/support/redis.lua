-- Redis servers for specs, real ones and the scripted fake of fake_redis.c.
--
--   local redis = require "spec.support.redis"
--   if redis.missing() then return pending(redis.missing()) end
--
--   local server = redis.start { password = "secret", args = { "--maxmemory", "10mb" } }
--   server:cli("SET", "k", "v")       -- redis-cli's output without the last newline
--   server:freeze() server:thaw() server:kill() server:restart() server:stop()
--
--   local fake = redis.fake [[
--     handshake
--     read 1
--     send $5\r\nhel
--     hang
--   ]]
--   fake:log()    -- { { "HELLO", "2", connection = 1, read = 1 }, ... }
--
-- Both have host, port, path (of the unix socket), pid and url. They end with the
-- test, or with the run if a setup started them; and with our process, however
-- that ends: the kernel sees to it.
local process = require "spec.support.process"
local socket = require "spec.support.socket"
local task = require "task"

local SIGCONT, SIGSTOP = 18, 19
local HOST = "127.0.0.1"
local POLL = 0.002 -- seconds between two looks
local START_TIMEOUT = 20 -- seconds
local START_TRIES = 10 -- a free port may be somebody else's by then

local redis = {}

--- Are redis-server and redis-cli installed?
function redis.available()
  return process.has "redis-server" and process.has "redis-cli" and process.has "setpriv"
end

--- Why specs with a real server must be skipped, or nil. Raises instead where
--- MOONSTASH_REQUIRE names redis.
function redis.missing()
  if redis.available() then return nil end
  local message = "redis-server, redis-cli or setpriv is not installed"
  if process.required "redis" then error("MOONSTASH_REQUIRE=redis: " .. message, 2) end
  return message
end

local function encoded(text)
  return (text:gsub("[^%w]", function(byte) return ("%%%02X"):format(byte:byte()) end))
end

local function url_of(self)
  local login = self.password and ":" .. encoded(self.password) .. "@" or ""
  if self.port == 0 then return "unix://" .. login .. self.path end
  return ("redis://%s%s:%d"):format(login, self.host, self.port)
end

-- ---- a real server ----------------------------------------------------------

local Server = {}
Server.__index = Server

-- pdeathsig: the kernel kills it when we end, even by SIGKILL. It holds over
-- the exec of redis-server, and for one that is stopped.
local function launch(self)
  local options = { program = "setpriv", "--pdeathsig", "KILL",
    "redis-server", "--port", tostring(self.port), "--bind", HOST,
    "--unixsocket", self.path, "--dir", self.dir, "--save", "", "--appendonly", "no",
    "--enable-debug-command", "yes" }
  local function add(...)
    for _, word in ipairs { ... } do options[#options + 1] = tostring(word) end
  end
  if self.password then add("--requirepass", self.password) end
  add(unpack(self.args))
  self.process = process.start(options)
  self.pid = self.process.pid
end

-- Does it answer? A password that is asked for is an answer. The path is ours
-- alone, at the port somebody else may answer; it is opened after the port.
local function answers(self)
  local s = socket.connect(self.path)
  if not s then return false end
  s:send "PING\r\n"
  local reply = s:read()
  s:close()
  return reply ~= nil and (reply:find "^%+PONG" or reply:find "^%-NOAUTH") ~= nil
end

-- Waits until it answers; false if it has ended, for its port is taken.
local function await_start(self)
  local left = START_TIMEOUT
  while true do
    local ended = self.process:poll()
    if ended and ended.out:find "Address already in use" then return false end
    if ended then error("redis-server has ended: " .. ended.out .. ended.err, 0) end
    if answers(self) then return true end
    if left <= 0 then error("redis-server does not answer: " .. self.process:out(), 0) end
    task.sleep(POLL)
    left = left - POLL
  end
end

--- Starts a server and waits until it answers. Options, none needed:
---   args      more of redis-server's command line
---   password  of the default user
---   port      a certain one; 0: none
--- It always has a unix socket too, at server.path.
function redis.start(options)
  options = options or {}
  local self = setmetatable({ host = HOST, password = options.password,
    args = options.args or {}, dir = process.directory() }, Server)
  self.path = self.dir .. "/redis.sock"
  for _ = 1, START_TRIES do
    self.port = options.port or socket.free_port()
    self.url = url_of(self)
    launch(self)
    if await_start(self) then return self end
    if options.port then error(("port %d is taken"):format(options.port), 2) end
  end
  error("no port stays free", 2)
end

local shared

--- One server for all specs of this run that need nothing special; they empty
--- it themselves and leave it as they found it. Ask for it in a setup: asked
--- for in a test it lives as long as that test.
function redis.shared()
  if not (shared and shared:alive()) then shared = redis.start() end
  return shared
end

--- Does its process run?
function Server:alive() return self.process:poll() == nil end

--- What redis-cli prints, without the last newline; an error reply too. A table
--- in place of the words may have the fields db, input (-x: the last argument)
--- and raw = false (replies as people see them).
function Server:cli(...)
  local words = type((...)) == "table" and ... or { ... }
  local options = { program = "redis-cli", input = words.input,
    env = { REDISCLI_AUTH = self.password or false } }
  local function add(...)
    for _, word in ipairs { ... } do options[#options + 1] = tostring(word) end
  end
  if self.port ~= 0 then add("-h", self.host, "-p", self.port) else add("-s", self.path) end
  if words.db then add("-n", words.db) end
  if words.input then add "-x" end
  if words.raw == false then add "--no-raw" end
  add(unpack(words))
  local result = process.run(options)
  if result.code ~= 0 then error("redis-cli: " .. result.err .. result.out, 2) end
  return (result.out:gsub("\n$", ""))
end

local function state(pid)
  local file = assert(io.open(("/proc/%d/stat"):format(pid)))
  local text = file:read "*a"
  file:close()
  return text:match "^.*%) (%a)"
end

--- Stops it from running (SIGSTOP): connections stay, nobody answers.
function Server:freeze()
  self.process:kill(SIGSTOP)
  while state(self.pid) ~= "T" do task.sleep(POLL) end
end

function Server:thaw() self.process:kill(SIGCONT) end

--- Ends it in order (SIGTERM).
function Server:stop()
  if not self:alive() then return end
  self.process:kill(process.SIGTERM)
  self:thaw()
  self.process:wait()
end

--- Ends it at once (SIGKILL).
function Server:kill()
  if not self:alive() then return end
  self.process:kill(process.SIGKILL)
  self.process:wait()
end

--- Starts it again, empty, at the same port and path.
function Server:restart()
  self:stop()
  launch(self)
  if not await_start(self) then error(("port %d is taken"):format(self.port), 2) end
end

-- ---- the fake -----------------------------------------------------------------

local Fake = {}
Fake.__index = Fake

--- Starts fake_redis with a script; fake_redis.c tells the language. Options:
--- port (a certain one), unix (true: a unix socket at fake.path in its place).
function redis.fake(script, options)
  options = options or {}
  local dir = process.directory()
  local self = setmetatable({ host = HOST, log_path = dir .. "/log" }, Fake)
  local start = { program = process.binary():gsub("[^/]+$", "fake_redis"),
    input = script .. "\nlog " .. self.log_path .. "\n" } -- last: line numbers stay
  if options.unix then
    self.path = dir .. "/redis.sock"
    start[1], start[2] = "--unix", self.path
  elseif options.port then
    start[1], start[2] = "--port", tostring(options.port)
  end
  start[#start + 1] = "-"
  self.process = process.start(start)
  self.pid = self.process.pid
  self.process:wait_for "\n"
  self.port = tonumber(self.process:out():match "^port (%d+)\n")
  self.url = url_of(self)
  return self
end

--- The log as it is, for what log() leaves out.
function Fake:log_text()
  local file = assert(io.open(self.log_path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

local function unescape(text)
  return (text:gsub("\\x(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end))
end

--- The commands so far, in their order: lists of words with the fields
--- connection (1, 2, ...) and read: in which of the connection's reads it came.
function Fake:log()
  local commands, reads = {}, {}
  for id, event, more in self:log_text():gmatch "(%d+) ([%l-]+)([^\n]*)\n" do
    id = tonumber(id)
    if event == "read" then reads[id] = (reads[id] or 0) + 1 end
    if event == "command" then
      local command = { connection = id, read = reads[id] }
      for word in more:gmatch '"([^"]*)"' do command[#command + 1] = unescape(word) end
      commands[#commands + 1] = command
    end
  end
  return commands
end

--- Waits until the log contains the text: '2 open', 'command "GET"'.
function Fake:wait_for(text)
  local left = START_TIMEOUT
  while not self:log_text():find(text, 1, true) do
    if left <= 0 then error(("no '%s' in the log:\n%s"):format(text, self:log_text()), 2) end
    if self.process:poll() then error("fake_redis has ended: " .. self.process:err(), 2) end
    task.sleep(POLL)
    left = left - POLL
  end
end

--- Does its process run?
function Fake:alive() return self.process:poll() == nil end

--- Ends it; its connections are closed.
function Fake:stop()
  if not self:alive() then return end
  self.process:kill(process.SIGKILL)
  self.process:wait()
end

--- Bytes in the form in which they can stand in a script's text.
function redis.escape(bytes)
  return (bytes:gsub("[^ -%[%]-~]", function(byte) return ("\\x%02x"):format(byte:byte()) end))
end

return redis
