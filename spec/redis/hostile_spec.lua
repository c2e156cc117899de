-- A server that sends what none should: every call ends with its own value or
-- with nil, err, soon; never with another key's value. Where the order of the
-- replies is in doubt the connection is given up, and comes back.
local cache = require "cache"
local redis = require "spec.support.redis"
local support = require "spec.redis.support"
local task = require "task"

local persistent, null = cache.persistent, cache.null
local escape, fails, await, comes_back =
  redis.escape, support.fails, support.await, support.comes_back

local PATIENT = 10 -- seconds: what ends sooner has not ended by its deadline
local SOON = 1 -- seconds in which an error that needs no deadline is there
local TIMEOUT = 0.2

-- Puts `persistent` on a fake whose first connection plays these steps after its
-- handshake; the others are an honest server's.
local function play(steps, timeout)
  local fake = redis.fake("handshake\n" .. steps .. "\nconnection\nhandshake\nserve")
  support.use(fake, { redis_timeout = timeout or PATIENT, redis_connect_timeout = PATIENT })
  return fake
end

-- In [[...]] a script's own escapes stand as they are: \r\n is two bytes there.
local function get() return persistent:get "k" end
local function set() return persistent:set("k", "v") end

-- The call that meets this answer fails with that code, and counts as out of
-- step; the next connection works.
local function is_fatal(answer, call)
  play("read 1\n" .. answer .. "\nhang")
  local err = fails("connection", SOON, call or get)
  local stats = persistent:stats()
  assert.equal(1, stats.desyncs, answer)
  assert.equal(0, stats.in_flight)
  comes_back()
  return err
end

-- What a SET of this value is sent as.
local function stored(fake, key)
  local log = fake:log()
  for i = #log, 1, -1 do
    if log[i][1] == "SET" and log[i][2] == key then return log[i][3] end
  end
end

-- The bytes in which each of the keys is stored; its value is "of KEY".
local function envelopes(keys)
  local fake, found = redis.fake "handshake\nserve", {}
  support.settle_on(fake)
  for i, key in ipairs(keys) do
    assert(persistent:set(key, "of " .. key))
    found[i] = stored(fake, key)
  end
  return found
end

local function bulk(bytes)
  return ([[$%d\r\n%s\r\n]]):format(#bytes, escape(bytes))
end

describe("bytes that are no reply", function()
  after_each(support.unuse)

  it("end the connection, which comes back", function()
    for _, bytes in ipairs {
      "?", [[hello\r\n]], [[HTTP/1.1 400 Bad Request\r\n]], [[\0\0\0\0]], [[\r\n]],
      [[:x\r\n]], [[:\r\n]], [[:99999999999999999999\r\n]], [[$x\r\n]], [[$-2\r\n]],
      [[$3\r\nabcd\r\n]], [[*x\r\n]], [[*-2\r\n]], [[*4294967297\r\n]], [[*1\r\n?\r\n]],
    } do
      is_fatal("send " .. bytes)
    end
  end)

  it("may be a later protocol's, which we have not asked for", function()
    for _, bytes in ipairs { [[_\r\n]], [[#t\r\n]], [[,1\r\n]], [[%0\r\n]], [[~0\r\n]],
      [[>2\r\n+invalidate\r\n*0\r\n]] } do
      is_fatal("send " .. bytes)
    end
  end)

  it("may be cut off by the end of the connection", function()
    for _, bytes in ipairs {
      "$", "$3", [[$3\r\nab]], [[$3\r\nabc\r]], [[*2\r\n$1\r\na\r\n]], [[+OK\r]],
      [[$70000\r\nxxx]],
    } do
      for _, ending in ipairs { "close", "reset" } do
        play(("read 1\nsend %s\n%s"):format(bytes, ending))
        fails("connection", SOON, get)
      end
    end
    comes_back()
  end)

  it("may be cut off by silence: the deadline ends the call, then the link", function()
    play("read 1\nsend $3\\r\\nab\nhang", TIMEOUT)
    fails("timeout", TIMEOUT, get)
    await(function() return persistent:stats().stalls == 1 end, "the link's end")
    comes_back()
  end)

  it("may be random", function()
    for seed = 1, 12 do
      play(("read 1\nrandom 3000 %d\nhang"):format(seed), TIMEOUT)
      fails("connection timeout", TIMEOUT, get)
    end
    play "read 1\nrandom forever 5"
    fails("connection", SOON, get)
    comes_back()
  end)

  it("may come before anything was asked", function()
    for _, bytes in ipairs {
      [[+OK\r\n]], "?", [[*2147483647\r\n]], [[$9223372036854775807\r\n]],
    } do
      local fake = redis.fake("send " .. bytes .. "\nhang\nconnection\nhandshake\nserve")
      support.use(fake, { redis_connect_timeout = 0.1 })
      fails("connection", SOON, get)
      comes_back()
    end
  end)
end)

describe("a reply beyond a limit", function()
  after_each(support.unuse)

  -- Fails soon, with that limit's name, and costs next to no CPU.
  local function breaks(limit, steps, call)
    local before = os.clock()
    local err = is_fatal(steps, call)
    assert.truthy(err.message:find(limit, 1, true), err.message)
    assert.truthy(os.clock() - before < SOON) -- 10 ms, but for slow builds
  end

  it("of elements", function()
    for _, bytes in ipairs { [[*2147483647\r\n]], [[*1048577\r\n]], [[*2\r\n*1048576\r\n]] } do
      breaks("element limit", "send " .. bytes, function() return persistent:raw "ANY" end)
    end
  end)

  it("of depth", function()
    breaks("depth limit", [[repeat 1000000 *1\r\n]], function() return persistent:raw "ANY" end)
  end)

  it("of a string", function()
    breaks("more than 512 MiB", "send $9223372036854775807\\r\\n\nrepeat forever xxxxxxxx")
    breaks("more than 64 MiB", "send *1\\r\\n$67108865\\r\\n\nrepeat forever xxxxxxxx",
      function()
        local values, err = persistent:multi_get { "k" }
        return next(values), err
      end)
  end)

  it("of a line", function()
    for _, sign in ipairs { "+", "-", ":", "$", "*" } do
      breaks("line limit", ("send %s\nrepeat forever 11111111"):format(sign))
    end
    breaks("line limit", "send +a\\r\nrepeat forever bbbbbbbb")
  end)

  it("of a value is skipped, and the connection kept", function()
    local fake = play("read 1\nsend $67108865\\r\\n\nrepeat 67108865 x\nsend \\r\\n\nserve")
    fails("too_large", PATIENT, get)
    assert.is_true(set())
    assert.equal("v", get())
    assert.equal(1, persistent:stats().connects)
    assert.truthy(fake:alive())
  end)
end)

describe("a reply that its command cannot have", function()
  after_each(support.unuse)

  local p = persistent
  local cases = {
    get = { function() return p:get "k" end, ":1", "+OK", "*0", [[*1\r\n$1\r\nv]] },
    set = { set, "+PONG", "+QUEUED", "+", [[$1\r\nv]], ":1", "$-1", "*0" },
    add = { function() return p:add("k", "v") end, "+PONG", [[$1\r\nv]], ":1", "*0" },
    delete = { function() return p:delete "k" end, "+OK", [[$1\r\n1]], ":2", ":-1", "$-1" },
    exists = { function() return p:exists "k" end, "+OK", ":2", ":-1", "$-1" },
    increment = { function() return p:increment "k" end, "+OK", [[$1\r\n1]], "*0" },
    expire = { function() return p:expire("k", 5) end, "+OK", ":2", "$-1" },
    multi_get = { function() return p:multi_get { "a", "b" } end, "$-1", ":1", "*0", "*-1",
      [[*1\r\n$1\r\na]], [[*3\r\n$-1\r\n$-1\r\n$-1]], [[*2\r\n:1\r\n:2]], [[*2\r\n*0\r\n*0]] },
    multi_delete = { function() return p:multi_delete { "a", "b" } end, "+OK", ":3", ":-1" },
    clear = { function() return p:clear "ns" end, "+OK", "*0", [[*1\r\n$1\r\n0]],
      [[*2\r\n$1\r\nx\r\n*0]], [[*2\r\n:0\r\n*0]], [[*2\r\n$1\r\n0\r\n$1\r\na]],
      [[*2\r\n$1\r\n0\r\n*1\r\n:5]], [[*2\r\n$0\r\n\r\n*0]], [[*3\r\n$1\r\n0\r\n*0\r\n*0]] },
  }

  for name, case in pairs(cases) do
    it("ends the connection: " .. name, function()
      for i = 2, #case do
        play(("read 1\nsend %s\\r\\n\nhang"):format(case[i]))
        local value, err = case[1]()
        if type(value) ~= "table" and value ~= 0 then assert.is_nil(value, case[i]) end
        assert.equal("connection", err and err.code, name .. " " .. case[i])
        assert.equal(1, p:stats().desyncs)
      end
      comes_back()
    end)
  end
end)

describe("replies out of step", function()
  after_each(support.unuse)

  it("are noticed where there is one too many", function()
    play "read 1\nsend +OK\\r\\n+OK\\r\\n\nhang"
    assert.is_true(set())
    await(function() return persistent:stats().desyncs == 1 end, "the link's end")
    comes_back()
  end)

  it("are noticed in the handshake", function()
    for _, extra in ipairs { "+OK", "$-1", ":1", "*0", "+PONG" } do
      local fake = redis.fake(("handshake until=HELLO\nread 2\nsend +OK\\r\\n%s\\r\\n+PONG\\r\\n\n"
        .. "hang\nconnection\nhandshake\nserve"):format(extra))
      support.use(fake, { redis_timeout = PATIENT, redis_connect_timeout = PATIENT })
      fails("connection", SOON, set) -- the last reply is not taken for this one's
      assert.equal(1, persistent:stats().desyncs)
      comes_back()
    end
  end)

  it("are noticed on a connection where nobody waits", function()
    for _, bytes in ipairs {
      [[$1\r\nv\r\n]], [[-ERR\r\n]], [[*3\r\n+message\r\n+ch\r\n+text\r\n]], "x",
    } do
      play("read 1\nsend +OK\\r\\n\nsleep 5\nsend " .. bytes .. "\nhang")
      assert.is_true(set())
      await(function() return persistent:stats().desyncs == 1 end, "the link's end")
      comes_back()
    end
  end)

  it("never give a key the value of another", function()
    for _, fault in ipairs { "drop=5", "duplicate=5", "corrupt=5", "close=5", "reset=5", "freeze=5",
      [[insert=5 $1\r\nv\r\n]], [[insert=5 $-1\r\n]], [[insert=5 :7\r\n]] } do
      local fake = redis.fake(("handshake\nserve count=20\nserve %s\nconnection\nhandshake\nserve")
        :format(fault))
      support.use(fake, { redis_timeout = TIMEOUT, redis_connect_timeout = PATIENT })
      support.fill(20)
      local tasks, errors = {}, 0
      for i = 1, 20 do
        tasks[i] = task.spawn(function()
          local value = persistent:get(support.key(i)) -- a nil too many is a miss
          if value == nil then errors = errors + 1 end
          assert.equal(value and support.value(i), value)
        end)
      end
      for _, each in ipairs(tasks) do each:join() end
      assert.truthy(errors > 0, fault)
      comes_back()
      for i = 1, 20 do assert.equal(support.value(i), persistent:get(support.key(i))) end
    end
  end)

  it("are a miss where a value is another key's, and lead to a probe", function()
    local of_a, of_b = unpack(envelopes { "a", "b" })
    -- in step all the same: somebody has copied the value
    local fake = play("read 1\nsend " .. bulk(of_a) .. "\nserve")
    local foreign = persistent:stats().foreign
    fails("decode", SOON, persistent.get, persistent, "b")
    assert.equal(foreign + 1, persistent:stats().foreign)
    fake:wait_for 'command "ECHO"'
    assert.is_nil((persistent:get "b")) -- an answer that is ours
    assert.same({ 0, 1 }, { persistent:stats().desyncs, persistent:stats().connects })
    -- one reply behind: the probe's answer is not its own
    play(("read 1\nsend %s\nread 1\nsend %s\nhang"):format(bulk(of_a), bulk(of_b)))
    fails("decode", SOON, persistent.get, persistent, "b")
    await(function() return persistent:stats().desyncs == 1 end, "the link's end")
    assert.equal(foreign + 2, persistent:stats().foreign)
    comes_back()
  end)

  it("are misses in a list of values, too", function()
    local of_a, of_b, of_c = unpack(envelopes { "a", "b", "c" })
    play(("read 1\nsend *3\\r\\n%s%s%s\nserve"):format(bulk(of_b), bulk(of_a), bulk(of_c)))
    local foreign = persistent:stats().foreign
    local values, err = persistent:multi_get { "a", "b", "c" }
    assert.same({ c = "of c" }, values)
    assert.equal("decode", err.code)
    table.sort(err.keys)
    assert.same({ "a", "b" }, err.keys)
    assert.equal(foreign + 2, persistent:stats().foreign)
  end)
end)

describe("an end of the connection", function()
  after_each(support.unuse)

  it("in the handshake is tried again", function()
    for _, steps in ipairs { "close", "reset", "half-close\nhang", "read 1\nclose",
      "read 1\nreset", "read 1\nhalf-close\ndrain", "handshake until=HELLO\nclose",
      "read 1\nsend *2\\r\\n$7\\r\\nver\nclose", "split 1\nread 1\nsend +O\nreset" } do
      local fake = redis.fake(steps .. "\nconnection\nhandshake\nserve")
      support.use(fake, { redis_timeout = PATIENT, redis_connect_timeout = PATIENT })
      fails("connection", SOON, get)
      comes_back()
    end
  end)

  it("completes each waiting call once, with its value if that has come", function()
    for _, ending in ipairs { "close", "half-close\ndrain", "reset" } do
      -- the reset is late, so that what came before is not lost to it
      play("read 2\nsend $-1\\r\\n\nsleep 10\n" .. ending)
      local results = {}
      local tasks = {}
      for i = 1, 4 do
        tasks[i] = task.spawn(function()
          local value, err = persistent:get("k" .. i)
          assert.is_nil(value)
          results[i] = (results[i] or "") .. (err and err.code or "miss")
        end)
      end
      for _, each in ipairs(tasks) do each:join() end
      assert.same({ "miss", "connection", "connection", "connection" }, results)
      comes_back()
    end
  end)
end)

describe("replies byte by byte", function()
  after_each(support.unuse)

  it("are what they are in one piece", function()
    support.settle_on(redis.fake "split 1 0.05\nhandshake\nserve")
    local value = { list = { 1, 2.5, "\0\r\n$5\r\n", false, null }, text = ("x"):rep(300) }
    assert.is_true(persistent:set("table", value))
    assert.same(value, persistent:get "table")
    assert.is_true(persistent:set("empty", ""))
    assert.equal("", persistent:get "empty")
    assert.is_nil((persistent:get "none"))
    assert.equal(7, persistent:increment("n", 7))
    assert.is_false(persistent:add("n", 1))
    assert.same({ empty = "", n = 7 }, persistent:multi_get { "empty", "none", "n" })
    persistent:raw("SET", "plain", "")
    assert.same({ null, "" }, persistent:raw("MGET", "none", "plain"))
    assert.equal(3, persistent:multi_delete { "table", "empty", "n" })
    assert.equal(1, persistent:stats().connects)
  end)
end)

describe("what is sent", function()
  after_each(support.unuse)

  local fake

  before_each(function()
    fake = redis.fake "handshake\nserve"
    support.settle_on(fake)
    assert.is_nil((get())) -- it is connected
  end)

  -- Commands named so, since that many before.
  local function commands(name, before)
    local found = {}
    for i, command in ipairs(fake:log()) do
      if i > before and command[1] == name then found[#found + 1] = command end
    end
    return found
  end

  it("of many tasks goes out in a few writes", function()
    local before, tasks = #fake:log(), {}
    for i = 1, 64 do tasks[i] = task.spawn(persistent.get, persistent, "key " .. i) end
    for _, each in ipairs(tasks) do each:join() end
    local gets, reads = commands("GET", before), 0
    assert.equal(64, #gets)
    for i = 1, 64 do
      assert.equal("key " .. i, gets[i][2])
      if i == 1 or gets[i].read ~= gets[i - 1].read then reads = reads + 1 end
    end
    -- The first at once, then chunks of 4 to 16: 12 writes, of which the server
    -- may find several in one read.
    assert.truthy(reads <= 13, reads)
  end)

  it("goes out at once when nothing is under way, the next with its turn", function()
    local first = task.spawn(persistent.get, persistent, "first")
    local second = task.spawn(persistent.get, persistent, "second")
    local seen
    task.spawn(function() -- runs after them, in the same turn
      local until_s = support.now() + PATIENT
      repeat
        seen = fake:log_text()
      until seen:find('"GET" "first"', 1, true) or support.now() > until_s
    end):join()
    assert.truthy(seen:find('"GET" "first"', 1, true))
    assert.falsy(seen:find('"GET" "second"', 1, true))
    first:join()
    second:join()
    assert.equal(1, #commands("GET", #fake:log() - 1))
  end)

  it("by clear is SCAN and UNLINK, never KEYS", function()
    local ns = "a*[b]?"
    for i = 1, 30 do persistent:set("k" .. i, i, { namespace = ns }) end
    persistent:set("k1", "neighbour", { namespace = "a*[b]" })
    local before = #fake:log()
    assert.is_true(persistent:clear(ns))
    local sent = {}
    for i, command in ipairs(fake:log()) do
      if i > before then sent[command[1]:upper()] = true end
    end
    assert.same({ SCAN = true, UNLINK = true }, sent)
    assert.is_nil((persistent:get("k1", nil, { namespace = ns })))
    assert.equal("neighbour", persistent:get("k1", nil, { namespace = "a*[b]" }))
  end)
end)
