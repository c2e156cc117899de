-- How a script begins and ends with Redis: the start that depends on it, the
-- end with calls under way, and nothing that is left behind.
local cache = require "cache"
local process = require "spec.support.process"
local redis = require "spec.support.redis"
local socket = require "spec.support.socket"
local support = require "spec.redis.support"
local task = require "task"

local persistent = cache.persistent
local use, await, script = support.use, support.await, support.script
local PROMPT = 1 -- seconds in which a script starts and ends, and more

describe("CACHE_REQUIRE_REDIS", function()
  -- The start fails within so many seconds, with one line, which is returned.
  local function stops_the_start(server, seconds, env)
    env = env or {}
    env.CACHE_REQUIRE_REDIS = "1"
    local took, result = support.took(script, server, "print 'it runs'", env)
    assert.equal(1, result.code)
    assert.equal("", result.out)
    assert.equal(1, support.lines(result.err), result.err)
    assert.is_true(took < seconds + PROMPT, took)
    assert.matches("%(CACHE_REQUIRE_REDIS is on%)\n$", result.err)
    return result.err
  end

  it("stops the start when nobody is there", function()
    local port = socket.free_port()
    assert.equal(("moonstash: Redis at 127.0.0.1:%d: connection refused "
      .. "(CACHE_REQUIRE_REDIS is on)\n"):format(port),
      stops_the_start("redis://127.0.0.1:" .. port, 0))
  end)

  it("stops the start when the server does not answer", function()
    assert.matches("connected, but not answered within 0.3 s",
      stops_the_start(redis.fake "hang", 0.3), 1, true)
  end)

  it("stops the start when the server is not what it must be", function()
    assert.matches("version 6.0 is too old",
      stops_the_start(redis.fake "handshake version=6.0.16", 0), 1, true)
    assert.matches("Redis Cluster: not in this version",
      stops_the_start(redis.fake "handshake mode=cluster", 0), 1, true)
  end)

  if redis.missing() then return pending(redis.missing()) end

  it("stops the start when the server is frozen, or the password wrong", function()
    local server = redis.start { password = "right" }
    local err = stops_the_start("redis://:hidden@127.0.0.1:" .. server.port, 0)
    assert.matches("WRONGPASS", err)
    assert.falsy(err:find "hidden")
    server:freeze()
    stops_the_start(server, 0.3)
  end)

  it("lets a script run when the server is there", function()
    local result = script(redis.start(), [[
      assert(p:stats().connected)
      assert(p:set("k", 1))
      print(p:get "k")]], { CACHE_REQUIRE_REDIS = "1" })
    assert.same({ code = 0, out = "1\n", err = "" }, result)
  end)
end)

describe("a script that ends", function()
  for name, case in pairs {
    ["with calls under way"] = { "handshake\nhang" },
    ["while it is greeting"] = { "hang" },
    ["while it is waiting for its next attempt"] = { "close" },
  } do
    for _, ending in ipairs { "os.exit(3)", "error 'x'" } do
      it(("%s ends at once, by %s"):format(name, ending), function()
        local took, result = support.took(script, redis.fake(case[1]), [[
          for i = 1, 100 do task.spawn_detached(function() p:get "k" end) end
          task.sleep(0.1) ]] .. ending, { CACHE_REDIS_TIMEOUT = "20",
            CACHE_REDIS_CONNECT_TIMEOUT = "20" })
        assert.equal(ending:find "exit" and 3 or 1, result.code)
        assert.is_true(took < PROMPT, took)
      end)
    end
  end

  it("by a signal does so with calls under way", function()
    local hang = redis.fake "handshake\nread 1\nhang"
    local p = process.start { env = { CACHE_REDIS_URL = hang.url, CACHE_REDIS_TIMEOUT = "20" },
      "-e", "require('cache').persistent:get 'k'" }
    hang:wait_for 'command "GET"'
    p:kill(process.SIGTERM)
    local took = support.took(p.wait, p)
    assert.is_true(took < PROMPT, took)
  end)

  it("is not stuck while it waits for Redis without a timeout", function()
    if redis.missing() then return pending(redis.missing()) end
    local server = redis.start { args = { "--hz", "500" } }
    local result = script(server, [[
      assert(p:set("k", "v"))
      assert(p:raw("CLIENT", "PAUSE", 150, "ALL"))
      print(p:get("k", nil, { timeout = 0 }))]], { CACHE_REDIS_TIMEOUT = "0" })
    assert.same({ code = 0, out = "v\n", err = "" }, result)
    for _, fake in ipairs { "sleep 150\nhandshake\nserve", "handshake\nserve delay=150",
      "refuse\nclose\nsleep 150\nlisten\nconnection\nhandshake\nserve" } do
      result = script(redis.fake(fake), [[
        local _, err
        repeat _, err = p:get("k", nil, { timeout = 0 }) until not err
        print "done"]])
      assert.equal("done\n", result.out)
      assert.equal(0, result.code)
    end
  end)

  it("still reports tasks that wait for each other", function()
    local fake = redis.fake "handshake\nserve"
    local result = script(fake, "p:get 'k' local e = task.event() e:wait()")
    assert.equal(1, result.code)
    assert.matches("wait", result.err)
  end)
end)

describe("nothing is left behind", function()
  after_each(support.unuse)

  -- Kilobytes of memory that this process uses.
  local function memory()
    local file = assert(io.open "/proc/self/statm")
    local _, pages = file:read("*n", "*n")
    file:close()
    return pages * 4
  end

  -- Does a sanitizer or valgrind keep what was freed?
  local function watched()
    local file = assert(io.open "/proc/self/maps")
    local maps = file:read "*a"
    file:close()
    return maps:find "libasan" or maps:find "vgpreload"
  end

  it("by 60 connections that are configured, used, broken and closed", function()
    local fakes = { redis.fake "handshake\nserve", redis.fake "hang", redis.fake "handshake\nhang",
      redis.fake "handshake\nread 1\nsend $5\\r\\nab\nclose", redis.fake "read 1\nreset",
      { url = "redis://127.0.0.1:" .. socket.free_port() }, { url = "unix:///nowhere/at.all" },
      { url = "redis://nowhere.invalid:1" } }
    local function round(i)
      local fake = fakes[i % #fakes + 1]
      use(fake, { redis_timeout = 0.005 })
      local calls = {}
      for n = 1, 3 do calls[n] = task.spawn(function() persistent:get "k" end) end
      persistent:set("k", "v")
      if i % 2 == 0 then persistent:set("k", ("v"):rep(2 ^ 20), { wait = false }) end
      support.unuse()
      for _, each in ipairs(calls) do each:join() end
    end
    for i = 1, #fakes do round(i) end
    local before = support.fds()
    for i = 1, 60 do round(i) end
    await(function() return support.fds() <= before end, "sockets to be closed")
  end)

  it("by 200 connections that are lost", function()
    local fake = redis.fake "handshake\nserve count=2 close=2" -- in the middle of a reply
    local function lose(from, to)
      for i = from, to do
        use(fake, { redis_timeout = 1 + i / 1000 }) -- another connection
        assert.is_nil(select(2, persistent:get "k"))
        assert.equal("connection", select(2, persistent:get "k").code)
      end
      collectgarbage()
    end
    lose(1, 100)
    local fds, kilobytes = support.fds(), memory()
    lose(101, 300)
    assert.is_true(support.fds() <= fds)
    if not watched() then assert.is_true(memory() - kilobytes < 1024, memory() - kilobytes) end
  end)

  it("of what was under way when the configuration changes", function()
    local first, second = redis.fake "handshake\nhang", redis.fake "handshake\nserve"
    use(first, { redis_timeout = 5 })
    local codes = {}
    for i = 1, 50 do
      task.spawn(function() codes[i] = select(2, persistent:get("k" .. i)).code end)
    end
    await(function() return persistent:stats().in_flight == 50 end)
    use(second)
    assert.is_true((persistent:set("k", "v")))
    await(function() return #codes == 50 end)
    for i = 1, 50 do assert.equal("closed", codes[i]) end
    assert.equal(1, persistent:stats().commands)
  end)
end)

describe("after the end", function()
  it("a finalizer's call is told that the connection is closed", function()
    local server = redis.start()
    local result = support.script(server, [[
      p:set("k", 1)
      local u = newproxy(true)
      getmetatable(u).__gc = function() print(select(2, p:set("z", 1, { wait = false })).code) end
    ]])
    assert.equal("closed\n", result.out)
  end)
end)

describe("a password", function()
  after_each(support.unuse)

  it("is nowhere to be seen", function()
    local fake = redis.fake "handshake\nserve count=2\nclose\nconnection\nclose"
    local result = process.run { env = { MOONSTASH_LOG = "debug",
        CACHE_REDIS_URL = ("redis://anna:hid%%%%64en@127.0.0.1:%d"):format(fake.port):gsub("%%%%",
          "%%"), CACHE_REDIS_TIMEOUT = "0.2" },
      "-e", [[
        local cache = require "cache"
        local p = cache.persistent
        for _ = 1, 5 do
          local _, err = p:get "k"
          if err then
            print(err, err.message, err.code)
            for k, v in pairs(err) do print(k, v) end
          end
        end
        for k, v in pairs(p:stats()) do print(k, v) end
        print(pcall(cache.configure_caches, { redis_url = "redis://:hidden@bad host:x" }))
        print(pcall(cache.configure_caches, { redis_password = "other", redis_db = "x" }))
      ]] }
    assert.equal("HELLO 2 AUTH anna hidden SETNAME moonstash", table.concat(fake:log()[1], " "))
    assert.matches("connection", result.out)
    assert.falsy((result.out .. result.err):find("hid", 1, true), result.out .. result.err)
    local env = process.run { "--env", env = { CACHE_REDIS_URL = "redis://anna:hidden@127.0.0.1:1",
      CACHE_REDIS_PASSWORD = "hidden" } }
    assert.falsy((env.out .. env.err):find("hid", 1, true))
  end)
end)
