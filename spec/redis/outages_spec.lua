-- The server goes away, freezes, comes back: what a caller sees. Every call
-- ends in time with its own value or with nil, err, and the script goes on.
local cache = require "cache"
local redis = require "spec.support.redis"
local socket = require "spec.support.socket"
local support = require "spec.redis.support"
local task = require "task"

local persistent = cache.persistent
local use, fails, await, comes_back = support.use, support.fails, support.await, support.comes_back
local fill, get_own, key = support.fill, support.get_own, support.key

local TIMEOUT, CONNECT = 0.1, 0.3 -- seconds; those of support.use
local STALL = 2 * TIMEOUT

if redis.missing() then
  describe("outages", function() pending(redis.missing()) end)
  return
end

describe("a server that is not there", function()
  after_each(support.unuse)

  it("is missed at once, and found within a second of its start", function()
    local port = socket.free_port()
    use("redis://:secret@127.0.0.1:" .. port)
    local err = fails("connection", CONNECT, persistent.get, persistent, "k")
    assert.equal(("get: Redis at 127.0.0.1:%d: connection refused"):format(port), err.message)
    support.all_fail_fast "connection"
    redis.start { port = port, password = "secret" }
    comes_back()
  end)

  it("does not keep a loop of failing calls from seeing that it is back", function()
    local server = redis.start()
    use(server)
    fill(1)
    server:kill()
    local found
    local loop = task.spawn(function()
      local began = support.now()
      repeat
        found = persistent:exists "k" -- nothing else in here waits
      until found == false or support.now() > began + 5
    end)
    server:restart()
    loop:join()
    assert.is_false(found)
  end)

  it("is told of by every call while it is away, in the middle of a script", function()
    local server = redis.start()
    use(server)
    fill(1)
    server:kill()
    fails("connection", TIMEOUT, function()
      local ok, err
      repeat ok, err = get_own(1) until not ok
      return nil, err
    end)
    support.all_fail_fast "connection"
    server:restart()
    comes_back()
    assert.is_nil((persistent:get(key(1)))) -- it came back empty
  end)
end)

describe("a server that is killed", function()
  after_each(support.unuse)

  it("in the middle of a reply fails all that is pending, once each", function()
    local server = redis.start()
    use(server, { redis_timeout = 5 })
    fill(20)
    assert(persistent:raw("SETRANGE", "huge", 60 * 2 ^ 20, "x"))
    await(function() return persistent:stats().in_flight == 0 end)
    local outcomes = {}
    local function note(i, value, err)
      outcomes[#outcomes + 1] = { i = i, value = value, err = err }
    end
    local tasks = { task.spawn(function() note(0, persistent:raw("GET", "huge")) end) }
    for i = 1, 20 do
      tasks[i + 1] = task.spawn(function() note(i, persistent:get(key(i))) end)
    end
    task.sleep(0.004)
    assert.equal(22, persistent:stats().in_flight) -- with the probe behind raw
    server:kill()
    local took = support.took(function()
      for _, each in ipairs(tasks) do each:join() end
    end)
    assert.is_true(took < 1)
    assert.equal(21, #outcomes)
    for _, each in ipairs(outcomes) do
      assert.is_nil(each.value)
      assert.equal("connection", each.err.code)
    end
    server:restart()
    comes_back()
  end)
end)

describe("a server that is frozen", function()
  local server

  before_each(function()
    server = redis.start()
    use(server)
    fill(10)
  end)
  after_each(support.unuse)

  it("costs a timeout, then nothing, and is back when it thaws", function()
    server:freeze()
    local err = fails("timeout", TIMEOUT, persistent.get, persistent, "k")
    assert.equal("get: no answer from Redis within 0.1 s", err.message)
    await(function() return not persistent:stats().connected end)
    assert.equal(1, persistent:stats().stalls)
    support.all_fail_fast "connection"
    err = fails("connection", 0, persistent.get, persistent, "k")
    assert.matches(("Redis at 127.0.0.1:%d: "):format(server.port), err.message, 1, true)
    server:thaw()
    comes_back()
    for i = 1, 10 do assert.is_true(get_own(i)) end
  end)

  it("is noticed although commands are sent all the time", function()
    local failed, slowest = 0, 0
    local stop = support.load(1, function(ended)
      while not ended() do
        task.spawn(function()
          local took, ok, err = support.took(get_own, math.random(10))
          if not ok then
            failed = failed + 1
            assert(err.code == "timeout" or err.code == "connection", err.code)
          end
          slowest = math.max(slowest, took)
        end)
        task.sleep(0.01)
      end
    end)
    task.sleep(0.05)
    server:freeze()
    local took = support.took(await, function() return persistent:stats().stalls == 1 end)
    assert.is_true(took < STALL + 0.01 + 0.05, took)
    support.all_fail_fast "connection"
    server:thaw()
    comes_back()
    stop()
    assert.is_true(failed >= 5)
    assert.is_true(slowest < TIMEOUT + 0.05, slowest)
  end)

  it("is noticed when nothing else wakes the loop", function()
    local fake = redis.fake "handshake\nread 2\nsleep 80\nsend +OK\\r\\n\nhang"
    local took, result = support.took(support.script, fake, [[
      for _, name in ipairs { "a", "b" } do assert(p:set(name, 1, { wait = false })) end
      task.event():wait() -- for nothing: the script ends when it is clear that nothing comes]])
    assert.matches("Redis at [%d.:]+: silent for 0.2 s: the connection was given up", result.err)
    assert.equal(1, result.code)
    assert.is_true(took < 1, took)
  end)

  it("is noticed under load of calls that have longer timeouts of their own", function()
    local stop = support.load(1, function(ended)
      while not ended() do
        task.spawn(function() persistent:get("k", nil, { timeout = 0.3 }) end)
        task.sleep(0.01)
      end
    end)
    task.sleep(0.05)
    server:freeze()
    local took = support.took(await, function() return persistent:stats().stalls == 1 end)
    assert.is_true(took > 0.25 and took < 0.3 + 0.01 + 0.05, took)
    server:thaw()
    comes_back()
    stop()
  end)

  it("when we connect is given up after the connect timeout", function()
    server:freeze()
    use(server, { redis_timeout = 2 })
    local err, took = fails("connection", CONNECT, persistent.get, persistent, "k")
    assert.is_true(took > CONNECT - 0.05)
    assert.matches("connected, but not answered within 0.3 s", err.message, 1, true)
    support.all_fail_fast "connection"
    server:thaw()
    comes_back()
  end)

  it("has its late answers thrown away", function()
    for _ = 1, 5 do
      server:freeze()
      local asked = {}
      for i = 1, 5 do asked[i] = task.spawn(get_own, i) end
      for i = 1, 5 do
        local _, err = asked[i]:join()
        assert.equal("timeout", err.code)
      end
      server:thaw()
      for i = 6, 10 do assert.is_true(get_own(i)) end
    end
    local stats = persistent:stats()
    assert.same({ 1, 25, 0, 0 },
      { stats.connects, stats.discarded, stats.desyncs, stats.in_flight })
  end)
end)

describe("a server that is restarted", function()
  after_each(support.unuse)

  it("while we are idle is back at the next call, or a second later", function()
    local server = redis.start()
    use(server)
    fill(1)
    server:restart()
    comes_back()
  end)

  it("under load costs errors, and no wrong value", function()
    local server = redis.start()
    use(server)
    fill(100)
    local codes, slowest = {}, 0
    local stop = support.load(16, function(ended)
      while not ended() do
        local i = math.random(100)
        local took, value, err = support.took(persistent.get, persistent, key(i))
        slowest = math.max(slowest, took)
        if err then
          codes[err.code] = true
          task.sleep(0.001)
        elseif value ~= nil then
          assert(value == support.value(i), value)
        else
          persistent:set(key(i), support.value(i))
        end
      end
    end)
    task.sleep(0.05)
    for _ = 1, 2 do
      server:restart()
      comes_back()
    end
    server:kill()
    task.sleep(0.05)
    server:restart()
    comes_back()
    stop()
    codes.timeout = nil -- also possible, while it ends
    assert.same({ connection = true }, codes)
    assert.is_true(slowest < TIMEOUT + 0.05, slowest)
    assert.equal(0, persistent:stats().desyncs)
  end)

  it("and closes an idle connection does not fail the next call", function()
    local server = redis.start { args = { "--timeout", "1" } }
    use(server, { redis_timeout = 1 })
    fill(1)
    local began = support.now()
    repeat -- the first moment at which it is not connected
      task.yield()
      assert(support.now() < began + 5, "the server does not close it")
    until not persistent:stats().connected
    assert.is_true(get_own(1))
    assert.equal(2, persistent:stats().connects)
  end)
end)

describe("answers that come too late", function()
  local server
  local SHORT = 0.04

  before_each(function()
    server = redis.start { args = { "--hz", "500" } } -- it ends pauses in time
    use(server, { redis_timeout = SHORT })
    fill(50)
  end)
  after_each(support.unuse)

  it("never become another key's", function()
    local timeouts = 0
    for _ = 1, 12 do
      assert(persistent:raw("CLIENT", "PAUSE", 2.5 * SHORT * 1000, "ALL"))
      local tasks = {}
      for i = 1, 50 do
        tasks[i] = task.spawn(function()
          for j = i, i + 3 do
            local ok, err = get_own((j - 1) % 50 + 1)
            if not ok then
              assert(err.code == "timeout", err.message)
              timeouts = timeouts + 1
            end
          end
        end)
      end
      for _, each in ipairs(tasks) do each:join() end
    end
    local stats = persistent:stats()
    assert.equal(timeouts, stats.discarded)
    assert.is_true(timeouts >= 12 * 50)
    assert.same({ 1, 0 }, { stats.connects, stats.desyncs })
  end)

  it("are thrown away when a task was cancelled, or had a time limit", function()
    use(server, { redis_timeout = 5 })
    for _ = 1, 5 do
      assert(persistent:raw("CLIENT", "PAUSE", 30, "ALL"))
      local cancelled, kept = {}, {}
      for i = 1, 50 do
        if i % 2 == 0 then
          cancelled[#cancelled + 1] = task.spawn(get_own, i)
        else
          kept[#kept + 1] = task.spawn(get_own, i)
        end
      end
      task.yield()
      for _, each in ipairs(cancelled) do each:cancel() end
      local ok, err = pcall(task.timeout, 0.005, get_own, 1)
      assert.is_false(ok and true or false)
      assert.equal("timeout", err.code)
      for _, each in ipairs(kept) do assert.is_true((each:join())) end
      for _, each in ipairs(cancelled) do pcall(each.join, each) end
      for i = 50, 1, -1 do assert.is_true(get_own(i)) end
    end
    local stats = persistent:stats()
    assert.same({ 1, 5 * 26, 0 }, { stats.connects, stats.discarded, stats.desyncs })
  end)

  it("are waited for as long as the call says", function()
    assert(persistent:raw("CLIENT", "PAUSE", 400, "ALL")) -- longer than a stall
    local patient = task.spawn(function() return persistent:get(key(1), nil, { timeout = 5 }) end)
    local forever = task.spawn(function() return persistent:get(key(2), nil, { timeout = 0 }) end)
    fails("timeout", SHORT, persistent.get, persistent, key(3))
    assert.equal(support.value(1), (patient:join()))
    assert.equal(support.value(2), (forever:join()))
    assert.is_true(get_own(4))
    assert.equal(1, persistent:stats().connects)
  end)

  it("may be a table's, a missing key's or a number's: the next is still right", function()
    assert(persistent:set("table", { a = { 1, 2, "x" } }))
    assert(persistent:set("number", 42))
    for _ = 1, 6 do
      assert(persistent:raw("CLIENT", "PAUSE", 1.5 * SHORT * 1000, "ALL"))
      local asked = {}
      for i, name in ipairs { "table", "none", "number", key(1) } do
        asked[i] = task.spawn(function() return persistent:get(name) end)
      end
      for _, each in ipairs(asked) do each:join() end
      await(function() return persistent:stats().in_flight == 0 end)
      assert.same({ a = { 1, 2, "x" } }, (persistent:get "table"))
      assert.is_nil((persistent:get "none"))
      assert.equal(42, (persistent:get "number"))
      assert.is_true(get_own(1))
    end
  end)
end)

describe("a unix socket", function()
  after_each(support.unuse)

  it("is missed and found like a port", function()
    local server = redis.start { port = 0 }
    use(server)
    support.fill(1)
    server:kill()
    fails("connection", TIMEOUT, function()
      local ok, err
      repeat ok, err = get_own(1) until not ok
      return nil, err
    end)
    local err = fails("connection", 0.005, persistent.get, persistent, "k")
    assert.matches("Redis at " .. server.path, err.message, 1, true)
    server:restart()
    comes_back()
    server:freeze()
    fails("timeout", TIMEOUT, persistent.get, persistent, "k")
    server:thaw()
    comes_back()
  end)
end)

describe("a connection that is lost again and again", function()
  it("does not fill the log", function()
    local fake = redis.fake(("handshake\nserve count=1\nclose\nconnection\n"):rep(6)
      .. "handshake\nserve")
    local result = support.script(fake, [[
      local now = require("moonstash.task").now
      local began, ready
      repeat
        p:get "k"
        task.sleep(0.001)
        began = p:stats().connects < 7 and now() or began
      until began and now() > began + 1.1]])
    assert.equal(6, support.lines(result.err), result.err) -- three times lost and back
    assert.matches("is back after [%d.]+ s\n$", result.err)
  end)
end)

describe("whatever happens", function()
  after_each(support.unuse)

  it("every call ends once, in time, and with its own value or an error", function()
    local server = redis.start { args = { "--hz", "500" } }
    use(server)
    fill(100)
    local calls, ends, slowest, hits = 0, 0, 0, 0
    local stop = support.load(24, function(ended, n)
      while not ended() do
        local i = math.random(100)
        calls = calls + 1
        local took, value, err
        if n % 3 == 0 then
          local keys = { key(i), key(i % 100 + 1), "none" }
          took, value, err = support.took(persistent.multi_get, persistent, keys)
          for name, each in pairs(value) do assert(each == "value of " .. name, each) end
        elseif n % 3 == 1 then
          took, value, err = support.took(persistent.get, persistent, key(i))
          assert(value == nil or value == support.value(i), value)
          hits = hits + (value and 1 or 0)
        else
          took, value, err = support.took(persistent.set, persistent, key(i), support.value(i))
          assert(value == true or err)
        end
        ends = ends + 1
        slowest = math.max(slowest, took)
        if err then
          assert(err.code == "timeout" or err.code == "connection", err.message)
          task.sleep(0.002)
        end
      end
    end)
    for round = 1, 12 do
      local fault = round % 4
      if fault == 0 then
        server:freeze()
        task.sleep(math.random() * 2.5 * TIMEOUT)
        server:thaw()
      elseif fault == 1 then
        server:cli("CLIENT", "PAUSE", math.random(20, 150), "ALL")
      elseif fault == 2 then
        server:cli("CLIENT", "KILL", "TYPE", "normal")
      else
        server:kill()
        server:restart()
      end
      task.sleep(math.random() * 0.15)
    end
    comes_back()
    stop()
    assert.equal(calls, ends)
    assert.is_true(hits > 100)
    assert.is_true(slowest < TIMEOUT + 0.05, slowest)
    assert.same({ 0, 0 }, { persistent:stats().desyncs, persistent:stats().in_flight })
  end)
end)

describe("a call that may wait longer than the others", function()
  local server

  before_each(function()
    server = redis.start()
    use(server)
    fill(1)
  end)
  after_each(support.unuse)

  it("gets its answer, while the others fail at once", function()
    server:freeze()
    local patient = task.spawn(function() return persistent:get(key(1), nil, { timeout = 0 }) end)
    fails("timeout", TIMEOUT, persistent.get, persistent, key(1))
    task.sleep(STALL)
    local err = fails("connection", 0, persistent.get, persistent, key(1))
    assert.matches("silent for", err.message, 1, true)
    server:thaw()
    assert.equal(support.value(1), (patient:join()))
    assert.is_true(get_own(1))
    assert.equal(1, persistent:stats().connects)
  end)

  it("may be one that sends much", function()
    server:freeze()
    local patient = task.spawn(function()
      return persistent:set("large", ("x"):rep(7 * 2 ^ 20), { timeout = 5 })
    end)
    task.sleep(3 * STALL)
    server:thaw()
    assert.is_true((patient:join()))
    assert.equal(7 * 2 ^ 20, #persistent:get("large", nil, { timeout = 5 }))
  end)
end)
