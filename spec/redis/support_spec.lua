-- What the specs of the Redis backend stand on: the fake server does what its
-- script says, real servers come and go.
local ffi = require "ffi"
local process = require "spec.support.process"
local redis = require "spec.support.redis"
local socket = require "spec.support.socket"
local task = require "task"
local now = require("moonstash.task").now

local function connect(server)
  return assert(socket.connect(server.port ~= 0 and server.port or server.path))
end

-- The RESP form of a command.
local function resp(...)
  local parts = { ("*%d\r\n"):format(select("#", ...)) }
  for i, word in ipairs { ... } do parts[i + 1] = ("$%d\r\n%s\r\n"):format(#word, word) end
  return table.concat(parts)
end

-- Starts a fake with the script, sends these bytes and gives all it answers.
local function answer(script, bytes)
  local s = connect(redis.fake(script))
  if bytes then s:send(bytes) end
  return s:rest()
end

local function exists(pid)
  local file = io.open("/proc/" .. pid .. "/stat")
  if not file then return false end
  local text = file:read "*a"
  file:close()
  return text:match "^.*%) (%a)" ~= "Z"
end

-- Not every machine has an init that reaps what loses its parent.
local function adopt_orphans(on)
  pcall(ffi.cdef, "int prctl(int option, unsigned long a, ...);")
  local PR_SET_CHILD_SUBREAPER = 36
  ffi.C.prctl(PR_SET_CHILD_SUBREAPER, on and 1 or 0)
end

local PING3 = ("PING\r\n"):rep(3)

describe("the fake server", function()
  it("sends bytes with escapes, then closes", function()
    assert.equal("+OK\r\n\0\1\255\\ x\n", answer [[
      send +OK\r\n\0\x01\xff\\ x\n
      close]])
  end)

  it("sends what redis.escape has escaped", function()
    local bytes = {}
    for i = 0, 255 do bytes[i + 1] = string.char(i) end
    bytes = table.concat(bytes)
    assert.equal(bytes, answer("send " .. redis.escape(bytes) .. "\nclose"))
  end)

  it("repeats a text without end, until the peer goes", function()
    local fake = redis.fake "repeat forever +aaaa"
    local s = connect(fake)
    assert.equal(("+aaaa"):rep(100000), s:receive(500000))
    s:close()
    fake:wait_for "1 peer-reset"
  end)

  it("repeats a text a million times", function()
    local all = answer [[
      repeat 1048576 *1\r\n
      close]]
    assert.equal(4 * 2 ^ 20, #all)
    assert.truthy(all == ("*1\r\n"):rep(2 ^ 20))
  end)

  it("sends the same random bytes for the same seed", function()
    local one = answer "random 100000 7\nclose"
    assert.equal(100000, #one)
    assert.truthy(one == answer "random 100000 7\nclose")
    assert.falsy(one == answer "random 100000 8\nclose")
  end)

  it("sends a file", function()
    local text = ("a file\0\r\n"):rep(20000)
    local dir = process.directory { data = text }
    assert.truthy(text == answer("send-file " .. dir .. "/data\nclose"))
  end)

  it("splits what it writes into pieces that are read one by one", function()
    local s = connect(redis.fake [[
      split 3 50
      send +PONG\r\n
      split 0
      send +PONG\r\n
      close]])
    assert.same({ "+PO", "NG\r", "\n", "+PONG\r\n" }, { s:read(), s:read(), s:read(), s:read() })
    assert.is_nil(s:read())
  end)

  it("waits for commands and for bytes", function()
    local s = connect(redis.fake [[
      read 2
      send two
      read-bytes 3
      send three
      close]])
    s:send(resp("GET", "a\r\n"):sub(1, -2))
    task.sleep(0.01)
    s:send("\n" .. "PING\r\nab")
    assert.equal("two", s:receive(3))
    s:send "c"
    assert.equal("three", s:rest())
  end)

  it("logs commands, their connection and the read they came in", function()
    local fake = redis.fake "read 3\nsend x\nread 1\nsend y"
    local s = connect(fake)
    s:send(resp("GET", "a \"\\\r\n\0\255") .. resp("SET", "k", "") .. "PING\r\n")
    s:receive(1)
    s:send(resp("MGET", "a", "b"))
    s:receive(1)
    local other = connect(fake)
    other:send "PING\r\n"
    fake:wait_for "2 command"
    assert.same({
      { "GET", "a \"\\\r\n\0\255", connection = 1, read = 1 },
      { "SET", "k", "", connection = 1, read = 1 },
      { "PING", connection = 1, read = 1 },
      { "MGET", "a", "b", connection = 1, read = 2 },
      { "PING", connection = 2, read = 1 },
    }, fake:log())
  end)

  it("plays a section per connection, the last one again and again", function()
    local fake = redis.fake "send 1\nclose\nconnection\nsend 2\nclose"
    assert.same({ "1", "2", "2" },
      { connect(fake):rest(), connect(fake):rest(), (connect(fake):rest()) })
  end)

  it("plays connections side by side", function()
    local fake = redis.fake "hang\nconnection\nsend x\nclose"
    local first = connect(fake)
    assert.equal("x", connect(fake):rest())
    first:close()
    fake:wait_for "1 peer-closed"
  end)

  it("resets, closes by halves, and hangs", function()
    local bytes, message = answer "send x\nsleep 5\nreset"
    assert.same({ "x", "Connection reset by peer" }, { bytes, message })

    local fake = redis.fake "send x\nhalf-close\nread 1"
    local s = connect(fake)
    assert.equal("x", s:rest())
    s:send "PING\r\n"
    fake:wait_for 'command "PING"'

    fake = redis.fake "hang"
    s = connect(fake)
    s:send "PING\r\n"
    fake:wait_for "1 hang"
    s:close()
    fake:wait_for "1 peer-closed"
    assert.same({}, fake:log())
  end)

  for kind, options in pairs { tcp = {}, unix = { unix = true } } do
    it("refuses connections and accepts them again, " .. kind, function()
      local fake = redis.fake([[
        read 1
        refuse
        send no
        read 1
        listen
        send yes
        close
        connection
        send second
        close]], options)
      local to = options.unix and fake.path or fake.port
      local s = connect(fake)
      s:send "PING\r\n"
      assert.equal("no", s:receive(2))
      local other, message = socket.connect(to)
      assert.same({ nil, "Connection refused" }, { other, message })
      s:send "PING\r\n"
      assert.equal("yes", s:rest())
      assert.equal("second", socket.connect(to):rest())
    end)
  end

  it("listens at the port it is told", function()
    local port = socket.free_port()
    local fake = redis.fake("send x\nclose", { port = port })
    assert.equal(port, fake.port)
    assert.equal("redis://127.0.0.1:" .. port, fake.url)
    assert.equal("x", socket.connect(port):rest())
  end)

  it("names the line of a mistake in its script", function()
    for script, message in pairs {
      ["send x\nsned y"] = "script:2: unknown step: sned",
      ["send \\q"] = "script:1: unknown escape: \\q",
      ["send \\x4"] = "script:1: \\x needs two hexadecimal digits",
      ["# why\n\nsend"] = "script:3: a text is missing",
      ["read many"] = "script:1: 'many' is not a number",
      ["serve drop=0"] = "script:1: drop counts from 1",
      ["serve dorp=1"] = "script:1: unknown option: dorp",
      ["close now"] = "script:1: too much: now",
    } do
      local ok, err = pcall(redis.fake, script)
      assert.is_false(ok)
      assert.truthy(err:find(message, 1, true), err)
    end
  end)

  it("ends with its parent, even if that is killed", function()
    local parent = process.start { "-e", [[
      package.path = "./?.lua;" .. package.path
      local redis = require "spec.support.redis"
      local fake = redis.fake "hang"
      local server = redis.available() and redis.start()
      io.stdout:write(fake.pid, " ", server and server.pid or fake.pid, "\n")
      io.stdout:flush()
      task.sleep(100)]], env = { TMPDIR = process.directory() } }
    parent:wait_for "\n"
    local fake_pid, server_pid = parent:out():match "(%d+) (%d+)"
    assert.is_true(exists(fake_pid) and exists(server_pid))
    adopt_orphans(true)
    finally(function() adopt_orphans(false) end)
    parent:kill(process.SIGKILL)
    parent:wait()
    while exists(fake_pid) or exists(server_pid) do task.sleep(0.001) end
    ffi.C.waitpid(tonumber(fake_pid), nil, 0)
    ffi.C.waitpid(tonumber(server_pid), nil, 0)
  end)
end)

describe("the fake's handshake", function()
  it("is that of Redis 7.0.15", function()
    local s = connect(redis.fake "handshake\nsend done\nclose")
    s:send(resp("HELLO", "2", "AUTH", "u", "p", "SETNAME", "n"))
    local hello = "*14\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n"
      .. "$5\r\nproto\r\n:2\r\n$2\r\nid\r\n:1\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n"
      .. "$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"
    assert.equal(hello, s:receive(#hello))
    s:send(resp("CLIENT", "SETINFO", "LIB-NAME", "x") .. resp("AUTH", "p") .. resp("SELECT", "1"))
    local rest = "-ERR unknown subcommand 'SETINFO'. Try CLIENT HELP.\r\n+OK\r\n+OK\r\n"
    assert.equal(rest, s:receive(#rest))
    s:send(resp "INFO")
    assert.matches("redis_version:7%.0%.15\r\n", s:read())
    s:send "PING\r\n"
    assert.equal("+PONG\r\ndone", s:rest())
  end)

  it("may be another server's", function()
    local bytes = answer("handshake version=6.0.16 mode=cluster role=slave until=INFO\nclose",
      "HELLO 2\r\nINFO\r\n")
    assert.matches("\r\n6%.0%.16\r\n.*\r\ncluster\r\n.*\r\nslave\r\n.*redis_version:6%.0%.16\r\n"
      .. ".*redis_mode:cluster\r\n", bytes)
    assert.matches("^%-ERR unknown command 'HELLO'",
      answer("handshake hello=unknown until=HELLO\nclose", "HELLO 2\r\n"))
  end)
end)

describe("the fake's serve", function()
  it("is a tiny Redis", function()
    local commands, replies = {}, {}
    for _, pair in ipairs {
      { "GET k", "$-1" }, { "SET k v", "+OK" }, { "GET k", "$1\r\nv" }, { "STRLEN k", ":1" },
      { "SET k w NX", "$-1" }, { "PTTL k", ":-1" }, { "PTTL none", ":-2" },
      { "SET n 41 PX 100000 NX", "+OK" }, { "INCRBY n 1", ":42" }, { "PERSIST n", ":1" },
      { "PERSIST n", ":0" }, { "INCRBY k 1", "-ERR value is not an integer or out of range" },
      { "SET n 9223372036854775807", "+OK" },
      { "INCRBY n 1", "-ERR increment or decrement would overflow" },
      { "MGET k none n", "*3\r\n$1\r\nv\r\n$-1\r\n$19\r\n9223372036854775807" },
      { "GETRANGE n -3 -1", "$3\r\n807" }, { "GETRANGE n 0 1", "$2\r\n92" },
      { "GETRANGE none 0 -1", "$0\r\n" }, { "GETRANGE n 5 1", "$0\r\n" },
      { "EXISTS k k none", ":2" }, { "TOUCH k", ":1" }, { "PEXPIRE none 5", ":0" },
      { "PEXPIRE k 0", ":1" }, { "GET k", "$-1" }, { "SET k v PX 0",
        "-ERR invalid expire time in 'set' command" }, { "SET k v WHAT", "-ERR syntax error" },
      { "SCAN 0 MATCH n* COUNT 2000", "*2\r\n$1\r\n0\r\n*1\r\n$1\r\nn" },
      { "SCAN 0 MATCH x* COUNT 2000", "*2\r\n$1\r\n0\r\n*0" }, { "DEL n k", ":1" },
      { "SET a 1", "+OK" }, { "UNLINK a", ":1" }, { "SET b 1", "+OK" }, { "DBSIZE", ":1" },
      { "FLUSHDB ASYNC", "+OK" }, { "DBSIZE", ":0" }, { "ECHO x", "$1\r\nx" },
      { "PING", "+PONG" }, { "PING x", "$1\r\nx" }, { "GET", "-ERR wrong number of arguments for "
        .. "command" }, { "EVAL x 0", "-ERR unknown command 'EVAL'" },
    } do
      commands[#commands + 1] = pair[1] .. "\r\n"
      replies[#replies + 1] = pair[2] .. "\r\n"
    end
    assert.equal(table.concat(replies), (answer(
      ("serve count=%d\nclose"):format(#commands), table.concat(commands))))
  end)

  it("has keys that expire, for all connections", function()
    local fake = redis.fake "serve"
    local s, other = connect(fake), connect(fake)
    s:send "SET k v PX 30\r\n"
    assert.equal("+OK\r\n", s:receive(5))
    local reply
    repeat
      other:send "EXISTS k\r\n"
      reply = other:receive(4)
    until reply == ":0\r\n"
    s:send "GET k\r\n"
    assert.equal("$-1\r\n", s:receive(5))
  end)

  it("gives every key to SCAN", function()
    local fake = redis.fake "serve"
    local s = connect(fake)
    for i = 1, 500 do s:send(resp("SET", "key" .. i, "v")) end
    assert.equal(("+OK\r\n"):rep(500), s:receive(2500))
    local cursor, found, calls = "0", 0, 0
    repeat
      local one = connect(fake)
      one:send("SCAN " .. cursor .. " COUNT 50\r\n")
      local reply = one:read()
      cursor = reply:match "^%*2\r\n%$%d+\r\n(%d+)\r\n"
      found = found + select(2, reply:gsub("\r\nkey%d+", ""))
      calls = calls + 1
    until cursor == "0"
    assert.equal(500, found)
    assert.truthy(calls > 5)
  end)

  for fault, reply in pairs {
    ["drop=2"] = "+PONG\r\n+PONG\r\n",
    ["duplicate=2"] = ("+PONG\r\n"):rep(4),
    ["corrupt=2"] = "+PONG\r\n?PONG\r\n+PONG\r\n",
    ["insert=2 :7\\r\\n"] = "+PONG\r\n:7\r\n+PONG\r\n+PONG\r\n",
    ["close=2"] = "+PONG\r\n+PO",
  } do
    it("knows the fault " .. fault, function()
      assert.equal(reply, (answer("serve count=3 " .. fault .. "\nclose", PING3)))
    end)
  end

  it("knows the faults reset and freeze", function()
    local _, message = answer("serve reset=2", PING3)
    assert.equal("Connection reset by peer", message)

    local fake = redis.fake "serve freeze=2"
    local s = connect(fake)
    s:send(PING3)
    assert.equal("+PONG\r\n", s:receive(7))
    fake:wait_for "1 hang"
    s:close()
    fake:wait_for "1 peer-closed"
  end)

  it("is late with every N-th reply", function()
    local s = connect(redis.fake "serve delay=50 every=2")
    local began = now()
    s:send "PING\r\nPING\r\n"
    assert.equal("+PONG\r\n", s:read())
    assert.equal("+PONG\r\n", s:read())
    assert.truthy(now() - began > 0.045)
  end)

  it("answers a pipeline at once", function()
    local s = connect(redis.fake "serve")
    s:send(("PING\r\n"):rep(10))
    assert.equal(("+PONG\r\n"):rep(10), s:read())
  end)

  it("ends a connection that does not speak RESP", function()
    for _, bytes in ipairs { "*x\r\n", "*1\r\n+x\r\n", "*1\r\n$-1\r\n", "*2147483647\r\n",
      "*1\r\n$9223372036854775807\r\n", "*1\r\n$1\r\nabc\r\n", "*" .. ("1"):rep(40) } do
      local fake = redis.fake "serve"
      local s = connect(fake)
      s:send(bytes)
      assert.equal("-ERR Protocol error\r\n", s:rest())
      fake:wait_for "malformed"
    end
  end)
end)

describe("a real server", function()
  if redis.missing() then
    pending(redis.missing())
    return
  end

  local shared
  setup(function() shared = redis.shared() end)

  it("is shared by those who need nothing special", function()
    assert.equal(shared, redis.shared())
    assert.equal("OK", shared:cli("FLUSHALL"))
    assert.equal("OK", shared:cli("SET", "k", "a b\n"))
    assert.equal("a b\n", shared:cli("GET", "k"))
    assert.equal('"a b\\n"', shared:cli { "GET", "k", raw = false })
    assert.equal("", shared:cli { "GET", "k", db = 1 })
    assert.equal("OK", shared:cli { "SET", "k", input = "from stdin\0" })
    assert.equal("from stdin\0", shared:cli("GET", "k"))
    assert.matches("^ERR unknown command", shared:cli "NONSENSE")
    assert.equal("OK", shared:cli("DEBUG", "SLEEP", 0))
  end)

  it("has a password, a unix socket, options of its own", function()
    local server = redis.start { password = "a:b@c",
      args = { "--maxmemory", "50mb", "--databases", "3" } }
    assert.equal("PONG", server:cli "PING")
    assert.equal("databases\n3", server:cli("CONFIG", "GET", "databases"))
    assert.equal(("redis://:a%%3Ab%%40c@127.0.0.1:%d"):format(server.port), server.url)
    for _, to in ipairs { server.port, server.path } do
      local s = assert(socket.connect(to))
      s:send "PING\r\n"
      assert.equal("-NOAUTH Authentication required.\r\n", s:read())
    end
  end)

  it("may have no port at all", function()
    local server = redis.start { port = 0 }
    assert.equal("PONG", server:cli "PING")
    assert.equal("unix://" .. server.path, server.url)
  end)

  it("freezes and thaws", function()
    local server = redis.start()
    local s = connect(server)
    server:freeze()
    s:send "PING\r\n"
    local answered
    local reader = task.spawn(function() answered = s:read() end)
    task.sleep(0.02)
    assert.is_nil(answered)
    server:thaw()
    reader:join()
    assert.equal("+PONG\r\n", answered)
  end)

  it("is killed and started again at the same port", function()
    local server = redis.start()
    local s = connect(server)
    local port, pid = server.port, server.pid
    assert.equal("OK", server:cli("SET", "k", "v"))
    server:kill()
    assert.is_false(server:alive())
    assert.is_false(exists(pid))
    assert.equal("", s:rest())
    assert.same({ nil, "Connection refused" }, { socket.connect(port) })
    assert.has_error(function() server:cli "PING" end)
    server:restart()
    assert.equal(port, server.port)
    assert.equal("", server:cli("GET", "k"))
    server:freeze()
    server:stop()
    assert.is_false(server:alive())
  end)

  it("leaves neither a process nor a directory behind", function()
    local result = process.run { "-e", [[
      package.path = "./?.lua;" .. package.path
      local redis = require "spec.support.redis"
      local server, frozen = redis.start(), redis.start()
      local fake = redis.fake "serve"
      frozen:freeze()
      print(server.pid, frozen.pid, fake.pid, server.dir)]] }
    assert.equal("", result.err)
    local one, two, three, dir = result.out:match "^(%d+)\t(%d+)\t(%d+)\t(.*)\n"
    assert.same({ false, false, false }, { exists(one), exists(two), exists(three) })
    assert.is_nil(io.open(dir))
  end)

  it("is told apart from a taken port", function()
    assert.has_error(function() redis.start { port = shared.port } end,
      ("port %d is taken"):format(shared.port))
  end)
end)
