-- What is bounded: commands in flight, bytes unsent, values, replies; and calls
-- that nobody waits for.
local cache = require "cache"
local redis = require "spec.support.redis"
local support = require "spec.redis.support"
local task = require "task"

local persistent = cache.persistent
local use, fails, await, comes_back = support.use, support.fails, support.await, support.comes_back
local MIB = 2 ^ 20

-- A server that never reads. wait(): until we are connected to it.
local function deaf()
  local fake = redis.fake "handshake\nhang"
  use(fake, { redis_timeout = 20 })
  task.spawn(function() persistent:exists "k" end)
  await(function() return persistent:stats().connected end)
  return fake
end

describe("the limit", function()
  after_each(support.unuse)

  it("of commands in flight is 8192", function()
    deaf()
    local stop = support.load(8191, function() persistent:exists "k" end)
    await(function() return persistent:stats().in_flight == 8192 end)
    for _ = 1, 3 do
      local err = fails("overloaded", 0.005, persistent.get, persistent, "k")
      assert.matches("in-flight limit: 8192 commands wait for a reply", err.message, 1, true)
      err = fails("overloaded", 0.005, persistent.set, persistent, "k", "v", { wait = false })
      assert.matches("in-flight limit", err.message, 1, true)
    end
    support.unuse() -- ends them
    stop()
  end)

  it("of bytes that the server does not take is 32 MiB", function()
    deaf()
    local value, calls, refused = ("x"):rep(4 * MIB), {}, 0
    for i = 1, 20 do
      calls[i] = task.spawn(function()
        local ok, err = persistent:set("k" .. i, value)
        assert.is_nil(ok)
        if err.code == "overloaded" then
          assert.matches("unsent limit: 32 MiB wait to be sent", err.message, 1, true)
          refused = refused + 1
        end
      end)
    end
    await(function() return refused > 0 end)
    task.sleep(0.01)
    assert.is_true(refused >= 20 - 8 - 4 and refused <= 20 - 8, refused) -- the kernel takes some
    assert.equal(21 - refused, persistent:stats().in_flight)
    support.unuse()
    for _, each in ipairs(calls) do each:join() end
  end)

  it("of a value that is set is 8 MiB", function()
    local fake = redis.fake "handshake\nserve"
    use(fake, { redis_timeout = 5 })
    local most = ("x"):rep(8 * MIB - 64)
    assert.is_true((persistent:set("k", most)))
    assert.equal(#most, #(persistent:get "k"))
    local err = fails("too_large", 0.05, persistent.set, persistent, "k", ("x"):rep(8 * MIB + 1))
    assert.matches("too large", err.message, 1, true)
    assert.equal(1, persistent:stats().connects)
  end)

  it("of a reply is 64 MiB: the value is skipped, the connection stays", function()
    use(redis.fake(("handshake\nread 1\nsend $%d\\r\\n\nrepeat %d %s\nsend \\r\\n\nserve"):format(
      70 * MIB, 70 * 1024, ("x"):rep(1024))), { redis_timeout = 5 })
    local err = fails("too_large", 5, persistent.get, persistent, "k")
    assert.truthy(err.message:find "reply limit" or err.message:find "too large", err.message)
    assert.is_nil(select(2, persistent:get "k"))
    assert.equal(1, persistent:stats().connects)
  end)

  for name, case in pairs {
    ["of a bulk is 512 MiB"] = { "$536870913\\r\\n", "reply limit" },
    ["of elements is a million"] = { "*1048577\\r\\n", "element limit" },
    ["of elements holds for the largest number, too"] = { "*2147483647\\r\\n", "element limit" },
    ["of depth is 7"] = { ("*1\\r\\n"):rep(9) .. ":1\\r\\n", "depth" },
    ["of a line is 64 KiB"] = { "+" .. ("x"):rep(70000), "line limit" },
  } do
    it(name .. ": more ends the connection", function()
      use(redis.fake("handshake\nread 1\nsend " .. case[1]
        .. "\nhang\nconnection\nhandshake\nserve"), { redis_timeout = 2 })
      local err = fails("connection", 0.05, persistent.raw, persistent, "ECHO", "x")
      assert.matches(case[2], err.message:lower(), 1, true)
      assert.equal(1, persistent:stats().desyncs)
      comes_back()
    end)
  end

  it("of what waits for a connection is none: nothing is sent later", function()
    if redis.missing() then return pending(redis.missing()) end
    local server = redis.start()
    use(server)
    support.fill(1)
    server:kill()
    await(function() return not persistent:stats().connected end)
    for i = 1, 50 do
      assert.is_nil((persistent:set("late" .. i, "v")))
      assert.is_nil((persistent:set("later" .. i, "v", { wait = false })))
    end
    server:restart()
    comes_back()
    assert.equal("back", server:cli("KEYS", "*"))
  end)
end)

describe("calls that nobody waits for", function()
  if redis.missing() then return pending(redis.missing()) end

  after_each(support.unuse)

  it("are counted when they are lost", function()
    local server = redis.start()
    use(server)
    support.fill(1)
    local before = persistent:stats().unawaited_lost
    server:freeze()
    for i = 1, 100 do assert.is_true((persistent:set("k" .. i, i, { wait = false }))) end
    assert.equal(100, persistent:stats().unawaited)
    await(function() return persistent:stats().unawaited == 0 end)
    assert.equal(before + 100, persistent:stats().unawaited_lost)
    server:thaw()
    comes_back()
  end)

  it("are refused, not lost, while there is no connection", function()
    use(("redis://127.0.0.1:%d"):format(require("spec.support.socket").free_port()))
    fails("connection", 0.1, persistent.get, persistent, "k")
    local before = persistent:stats().unawaited_lost
    local err = fails("connection", 0.005, persistent.set, persistent, "k", "v", { wait = false })
    assert.matches("connection refused", err.message, 1, true)
    assert.equal(before, persistent:stats().unawaited_lost)
    assert.equal(0, persistent:stats().unawaited)
  end)

  it("are sent before the script ends", function()
    local server = redis.start()
    for _, ending in ipairs { "", "os.exit(0)", "error 'x'" } do
      server:cli "FLUSHALL"
      local result = support.script(server,
        "for i = 1, 5000 do assert(p:set('k' .. i, 'v', { wait = false })) end " .. ending,
        { CACHE_REDIS_TIMEOUT = "5" })
      assert.equal(ending:find "error" and 1 or 0, result.code)
      assert.equal("5000", server:cli "DBSIZE")
    end
  end)

  it("do not keep the script from ending for long", function()
    local server = redis.start()
    server:freeze()
    local took, result = support.took(support.script, server,
      "p:set('k', 'v', { wait = false })", { CACHE_REDIS_TIMEOUT = "5" })
    assert.equal(0, result.code)
    assert.is_true(took < 2, took)
  end)
end)
