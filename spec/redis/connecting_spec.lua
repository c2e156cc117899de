-- The way to a connection: addresses, names, passwords, and servers that do
-- not want us, or that we cannot use.
local bit = require "bit"
local cache = require "cache"
local ffi = require "ffi"
local process = require "spec.support.process"
local redis = require "spec.support.redis"
local socket = require "spec.support.socket"
local support = require "spec.redis.support"
local task = require "task"

local C = ffi.C
local persistent = cache.persistent
local use, fails, await, comes_back = support.use, support.fails, support.await, support.comes_back
local script, lines = support.script, support.lines

local CONNECT = 0.3 -- seconds; as support.use has it
-- What an outage of some length sees, and how it is logged: once.
local ASKS = [[
  local _, err = p:get "k"
  print(err.code)
  print(err.message)
  for _ = 1, 10 do
    task.sleep(0.015)
    local _, again = p:get "k"
    assert(again.code == err.code and again.message == err.message, again.message)
  end
]]

-- A port of 127.0.0.1 that answers nothing: the kernel drops what comes, for
-- its queue of connections is full. Gives the port.
ffi.cdef "int listen(int fd, int backlog);"
local function black_hole()
  local port = socket.free_port()
  local address = ffi.new("uint8_t[16]")
  ffi.cast("uint16_t *", address)[0] = 2
  address[2], address[3] = bit.rshift(port, 8), bit.band(port, 0xff)
  address[4], address[7] = 127, 1
  local fd = C.socket(2, 1 + 0x80000, 0)
  task.defer(function() C.close(fd) end)
  assert(C.bind(fd, address, 16) == 0 and C.listen(fd, 0) == 0)
  assert(socket.connect(port)) -- the only place in the queue
  return port
end

describe("connecting", function()
  after_each(support.unuse)

  it("to an address that answers nothing ends at the connect timeout", function()
    local port = black_hole()
    use("redis://127.0.0.1:" .. port, { redis_timeout = 2 })
    local err, took = fails("connection", CONNECT, persistent.get, persistent, "k")
    assert.is_true(took > CONNECT - 0.05)
    assert.equal(("get: Redis at 127.0.0.1:%d: no connection within 0.3 s"):format(port),
      err.message)
    support.all_fail_fast "connection"
  end)

  it("ends a call at its own timeout, if that is the shorter one", function()
    use("redis://127.0.0.1:" .. black_hole(), { redis_timeout = 0.05 })
    fails("timeout", 0.05, persistent.get, persistent, "k")
    fails("timeout", 0.1, persistent.get, persistent, "k", nil, { timeout = 0.1 })
  end)

  it("goes on to the next host", function()
    local fake = redis.fake "handshake\nserve"
    for _, first in ipairs { socket.free_port(), black_hole() } do
      use(false, { redis_host = ("127.0.0.1:%d,127.0.0.1:%d"):format(first, fake.port),
        redis_timeout = 1 })
      assert.is_true((persistent:set("k", "v")))
      assert.equal("v", (persistent:get "k"))
      support.unuse()
    end
  end)

  it("goes on to the next host when one takes connections and says nothing", function()
    local silent, fake = redis.fake "hang", redis.fake "handshake\nserve"
    use(false, { redis_host = ("127.0.0.1:%d,127.0.0.1:%d"):format(silent.port, fake.port) })
    fails("timeout", 0.1, persistent.get, persistent, "k")
    comes_back()
  end)

  it("tries all the addresses of a name", function()
    local fake = redis.fake "handshake\nserve" -- on 127.0.0.1; localhost may be ::1 first
    use("redis://localhost:" .. fake.port)
    assert.is_true((persistent:set("k", "v")))
  end)

  it("does not block the loop while names are looked up", function()
    local ticks = 0
    local stop = support.load(1, function(ended)
      while not ended() do
        task.sleep(0.001)
        ticks = ticks + 1
      end
    end)
    use("redis://nowhere.invalid:6379", { redis_timeout = 2 })
    local err = fails("connection", CONNECT, persistent.get, persistent, "k")
    assert.matches("^get: Redis at nowhere.invalid:6379: ", err.message)
    support.all_fail_fast "connection"
    await(function() return ticks > 10 end)
    stop()
  end)

  it("to a server that is slow to greet is waited for", function()
    local fake = redis.fake "sleep 150\nsplit 1 0.1\nhandshake\nsplit 0\nserve"
    use(fake, { redis_timeout = 2, redis_connect_timeout = 1 })
    assert.is_true((persistent:set("k", "v")))
    assert.equal(1, persistent:stats().connects)
  end)

  it("to a server that does not greet ends at the connect timeout", function()
    local fake = redis.fake "hang"
    use(fake, { redis_timeout = 2 })
    local err = fails("connection", CONNECT, persistent.get, persistent, "k")
    assert.matches("connected, but not answered within 0.3 s", err.message, 1, true)
  end)

  it("to a server that greets byte by byte for ever ends at the connect timeout", function()
    local fake = redis.fake "split 1 10\nread 1\nrepeat forever *1\\r\\n"
    use(fake, { redis_timeout = 2 })
    fails("connection", CONNECT, persistent.get, persistent, "k")
  end)

  for name, bytes in pairs {
    ["that is no Redis"] = "HTTP/1.1 400 Bad Request\\r\\n\\r\\n",
    ["that greets with nonsense"] = "+OK\\r\\n+OK\\r\\n+PONG\\r\\n",
    ["that greets with an endless line"] = "-" .. ("x"):rep(70000),
    ["that says more than was asked"] = "*0\\r\\n+OK\\r\\n+PONG\\r\\n+PONG\\r\\n",
  } do
    it("to a server " .. name .. " fails, again and again, not in a tight loop", function()
      local fake = redis.fake("read 3\nsend " .. bytes .. "\nhang")
      use(fake)
      fails("connection", 0.1, persistent.get, persistent, "k")
      task.sleep(0.3)
      support.all_fail_fast "connection"
      local _, connections = fake:log_text():gsub("open\n", "")
      assert.is_true(connections >= 2 and connections <= 12, connections)
    end)
  end

  it("does not let a server write to the log what it wants", function()
    local fake = redis.fake "read 3\nsend -ERR a\\nmoonstash: all is well\\x1b[2J\\r\\n\nhang"
    local result = script(fake, "print(select(2, p:get 'k'))")
    assert.equal(("get: Redis at 127.0.0.1:%d: ERR a?moonstash: all is well?[2J\n"):format(
      fake.port), result.out)
    assert.equal(1, lines(result.err))
  end)
end)

describe("a name server that does not answer", function()
  local dir, fd

  -- Runs a script where names are asked of port 53 of an address that is ours.
  local function without_names(code)
    return process.run { program = "unshare", "-rm", "sh", "-c",
      'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"', "sh", dir .. "/resolv.conf",
      process.binary(), "-e", code,
      env = { CACHE_REDIS_URL = "redis://redis.example:6379", CACHE_REDIS_CONNECT_TIMEOUT = "0.3",
        CACHE_REDIS_TIMEOUT = "2" } }
  end

  setup(function()
    local last = 2 + C.getpid() % 250
    dir = process.directory { ["resolv.conf"] = ("nameserver 127.0.0.%d\n"):format(last) }
    fd = C.socket(2, 2 + 0x80000, 0)
    local ours = fd
    task.defer(function() C.close(ours) end)
    local address = ffi.new("uint8_t[16]", { 2, 0, 0, 53, 127, 0, 0, last })
    if C.bind(fd, address, 16) < 0 or without_names("").code ~= 0 then fd = nil end
  end)

  it("costs the connect timeout, and the loop goes on", function()
    if not fd then return pending "port 53 and a mount namespace cannot be had" end
    local result = without_names [[
      local cache, now = require "cache", require "moonstash.task".now
      local p, ticks, late, began = cache.persistent, 0, 0, now()
      local ticker = task.spawn(function()
        while true do
          local before = now()
          task.sleep(0.001)
          ticks, late = ticks + 1, math.max(late, now() - before)
        end
      end)
      local _, err = p:get "k"
      print(err)
      print(now() - began < 0.4, ticks > 50, late < 0.2)
      ticker:cancel()
      os.exit(0)
    ]]
    assert.equal("get: Redis at redis.example:6379: the name was not resolved within 0.3 s\n"
      .. "true\ttrue\ttrue\n", result.out)
    assert.equal(0, result.code)
  end)

  it("does not keep the script from ending", function()
    if not fd then return pending "port 53 and a mount namespace cannot be had" end
    local took = support.took(without_names, "local _ = require('cache').persistent:get 'k'")
    assert.is_true(took < 2, took)
  end)
end)

if redis.missing() then
  describe("a server's refusal", function() pending(redis.missing()) end)
  return
end

describe("a password", function()
  after_each(support.unuse)

  local cases = {
    ["that is wrong"] = { password = "right", login = ":wrong-secret@", says = "WRONGPASS" },
    ["that is missing"] = { password = "right", login = "", says = "NOAUTH" },
    ["of a user that does not exist"] = { login = "nobody:wrong-secret@", says = "WRONGPASS" },
  }
  for name, case in pairs(cases) do
    it(name .. " is told once, and not tried again and again", function()
      local server = redis.start { password = case.password }
      local result = script(("redis://%s127.0.0.1:%d"):format(case.login, server.port), ASKS)
      local code, message = result.out:match "^(%l+)\n(.*)\n$"
      assert.equal("server", code)
      assert.matches(("^get: Redis at 127.0.0.1:%d: %s "):format(server.port, case.says), message)
      assert.equal(1, lines(result.err), result.err)
      assert.matches(case.says, result.err)
      assert.falsy((result.out .. result.err):find("secret", 1, true))
      local received = server:cli("INFO", "stats"):match "total_connections_received:(%d+)"
      assert.equal(3, tonumber(received)) -- the look of redis.start, ours, this
    end)
  end

  it("that is right is enough, however it is spelled", function()
    local server = redis.start { password = "p:@/ %" }
    use(server)
    assert.is_true((persistent:set("k", "v")))
    assert.equal("OK", server:cli("ACL", "SETUSER", "anna", "on", ">p:@/ %", "~*", "+@all"))
    use(false, { redis_host = "127.0.0.1", redis_port = server.port, redis_username = "anna",
      redis_password = "p:@/ %" })
    assert.equal("v", (persistent:get "k"))
    assert.equal("anna", (persistent:raw("ACL", "WHOAMI")))
  end)

  it("is never repeated, not even by a proxy that repeats commands", function()
    for _, answer in ipairs {
      "-ERR unknown command `AUTH`, with args beginning with: `hidden-",
      "-ERR what is hidden-secret",
    } do
      local fake = redis.fake("handshake hello=unknown until=HELLO\nread 2\n"
        .. "send -ERR\\r\\n-ERR\\r\\n\nread 1\nsend " .. answer .. "\\r\\n\nhang")
      local result = script("redis://:hidden-secret@127.0.0.1:" .. fake.port, [[
        local _, err = p:get "k"
        print(err.code, err.message, tostring(err))
        for name, value in pairs(p:stats()) do print(name, value) end
      ]], { MOONSTASH_LOG = "debug" })
      assert.matches("^server\t", result.out)
      assert.falsy((result.out .. result.err):find("hidden", 1, true))
    end
  end)
end)

describe("a user without rights", function()
  after_each(support.unuse)

  it("is connected; each call is refused", function()
    local server = redis.start()
    server:cli("ACL", "SETUSER", "weak", "on", ">pw", "~*", "-@all")
    local result = script(("redis://weak:pw@127.0.0.1:%d"):format(server.port),
      ASKS .. "print(p:stats().connects, p:stats().commands)")
    assert.matches("^server\nget: NOPERM [^\n]*\n1\t11\n", result.out)
    assert.equal("", result.err)
  end)

  it("may have the rights that are needed, and no more", function()
    local server = redis.start()
    server:cli("ACL", "SETUSER", "app", "on", ">pw", "~*", "-@all", "+get", "+set", "+hello")
    use("redis://app:pw@127.0.0.1:" .. server.port)
    assert.is_true((persistent:set("k", "v")))
    assert.equal("v", (persistent:get "k"))
    assert.equal("server", select(2, persistent:delete "k").code)
    server:cli("ACL", "SETUSER", "default", "-hello")
    server:cli("CLIENT", "KILL", "TYPE", "normal")
    comes_back()
  end)
end)

describe("a server that is full", function()
  after_each(support.unuse)

  it("is told of in its own words, and used when there is room", function()
    local server = redis.start { args = { "--maxclients", "1" } }
    local other = assert(socket.connect(server.port))
    other:send "PING\r\n"
    assert.equal("+PONG\r\n", other:read())
    use(server)
    local err = fails("server", 0.1, persistent.get, persistent, "k")
    assert.equal(("get: Redis at 127.0.0.1:%d: ERR max number of clients reached"):format(
      server.port), err.message)
    for _ = 1, 20 do
      task.sleep(0.01)
      assert.equal(err.message, select(2, persistent:get "k").message)
    end
    support.all_fail_fast "server"
    other:close()
    comes_back()
  end)
end)

describe("a server that is loading", function()
  after_each(support.unuse)

  it("is waited for", function()
    local server = redis.start { args = { "--loading-process-events-interval-bytes", "1024" } }
    use(server, { redis_timeout = 1 })
    assert(persistent:raw("DEBUG", "POPULATE", 2000))
    assert(persistent:raw "SAVE")
    server.args[#server.args + 1], server.args[#server.args + 2] = "--key-load-delay", "200"
    local codes = {}
    local stop = support.load(1, function(ended)
      while not ended() do
        local value, err = persistent:get "key:1"
        if err then codes[err.message:match ": (%u+) " or err.code] = true end
        if value then assert.equal("value:1", value) end
        task.sleep(0.005)
      end
    end)
    server:restart()
    comes_back()
    stop()
    assert.is_true(codes.LOADING)
  end)

  it("by its answer to PING", function()
    local fake = redis.fake([[
      handshake until=HELLO
      read 2
      send -ERR unknown subcommand\r\n-LOADING Redis is loading the dataset in memory\r\n
      drain
      connection
      handshake
      serve]])
    use(fake)
    local err = fails("server", 0.1, persistent.get, persistent, "k")
    assert.matches("LOADING Redis is loading", err.message, 1, true)
    comes_back()
  end)

  it("is not one that cannot save", function()
    use(redis.fake [[
      handshake until=HELLO
      read 2
      send -ERR unknown subcommand\r\n-MISCONF Redis is configured to save\r\n
      serve]])
    assert.is_nil(select(2, persistent:get "k"))
  end)
end)

describe("a server that we cannot use", function()
  after_each(support.unuse)

  local cases = {
    ["of before 6.2"] = { "version=6.0.16", "version 6.0 is too old: at least 6.2 is needed" },
    ["of version 5"] = { "version=5.0.3 hello=unknown",
      "version 5.0 is too old: at least 6.2 is needed" },
    ["that is a cluster's"] = { "mode=cluster", "Redis Cluster: not in this version" },
    ["that is a sentinel"] = { "mode=sentinel", "Redis Sentinel: not in this version" },
    ["that is an old proxy's cluster"] = { "mode=cluster hello=unknown",
      "Redis Cluster: not in this version" },
  }
  for name, case in pairs(cases) do
    it(name .. " is told of once, and every call says so", function()
      local fake = redis.fake("handshake " .. case[1] .. "\nserve")
      local result = script(fake, ASKS)
      local message = ("Redis at 127.0.0.1:%d: %s"):format(fake.port, case[2])
      assert.equal("unsupported\nget: " .. message .. "\n", result.out)
      assert.equal("moonstash: warning: " .. message .. "; commands fail until that has changed\n",
        result.err)
      local _, connections = fake:log_text():gsub("open\n", "")
      assert.is_true(connections < 10) -- no tight loop
      use(fake)
      persistent:get "k"
      support.all_fail_fast "unsupported"
    end)
  end

  it("is not one of 6.2", function()
    use(redis.fake "handshake version=6.2.0\nserve")
    assert.is_true((persistent:set("k", "v")))
  end)

  it("is not a cluster's, if we are told that it stands alone", function()
    use(redis.fake "handshake mode=cluster\nserve", { redis_mode = "standalone" })
    assert.is_true((persistent:set("k", "v")))
  end)

  it("says so when it protects itself", function()
    use(redis.fake "send -DENIED Redis is running in protected mode because\\r\\n\nclose")
    local err = fails("server", 0.1, persistent.get, persistent, "k")
    assert.matches("DENIED Redis is running in protected mode", err.message, 1, true)
  end)
end)

describe("the greeting", function()
  after_each(support.unuse)

  local function words(fake)
    local list = {}
    for _, command in ipairs(fake:log()) do list[#list + 1] = table.concat(command, " ") end
    return list
  end

  it("is one write, and PING the last of it", function()
    local fake = redis.fake "handshake\nserve"
    use("redis://anna:pw@127.0.0.1:" .. fake.port .. "/3")
    persistent:exists "k"
    assert.same({ "HELLO 2 AUTH anna pw SETNAME moonstash", "SELECT 3",
      "CLIENT SETINFO LIB-NAME moonstash", "PING", "EXISTS k" }, words(fake))
    for i = 1, 4 do assert.equal(1, fake:log()[i].read) end
  end)

  it("is the one of old where there is no HELLO", function()
    local fake = redis.fake "handshake hello=unknown\nserve"
    use("redis://anna:pw@127.0.0.1:" .. fake.port .. "/3")
    persistent:exists "k"
    local list = words(fake)
    for _ = 1, 4 do table.remove(list, 1) end -- what was sent with HELLO
    assert.same({ "AUTH anna pw", "CLIENT SETNAME moonstash", "INFO server", "SELECT 3", "PING",
      "EXISTS k" }, list)
  end)
end)
