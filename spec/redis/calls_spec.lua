-- Calls that are more than one command, or any command: clear, many keys, raw.
local cache = require "cache"
local process = require "spec.support.process"
local redis = require "spec.support.redis"
local support = require "spec.redis.support"
local task = require "task"

local MIB = 2 ^ 20
local persistent = cache.persistent
local calls = support.calls

if redis.missing() then
  describe("calls", function() pending(redis.missing()) end)
  return
end

local server

local function start()
  server = redis.shared()
  support.settle_on(server)
end

-- Empties the server and its counts of commands.
local function empty()
  server:cli "FLUSHALL"
  server:cli("CONFIG", "RESETSTAT")
end

describe("clear of a namespace", function()
  setup(start)
  teardown(support.unuse)
  before_each(empty)

  it("is over when it returns, also with wait = false", function()
    server:cli("EVAL", "for i = 1, 5000 do redis.call('SET', 'w:' .. i, i) end", 0)
    assert.is_true((persistent:clear("w", { wait = false })))
    assert.equal("0", server:cli "DBSIZE")
  end)

  local function fill(prefix, n)
    server:cli("EVAL", "for i = 1, tonumber(ARGV[2]) do redis.call('SET', ARGV[1] .. i, i) end", 0,
      prefix, n)
  end

  it("goes in bounded steps, with 20,000 keys and as many of others", function()
    fill("ns:", 20000)
    fill("nsx:", 10000)
    fill("n", 10000)
    local longest, last = 0, support.now()
    local watch = task.spawn(function()
      while true do
        task.sleep(0.001)
        local now = support.now()
        longest, last = math.max(longest, now - last), now
      end
    end)
    assert.is_true(persistent:clear "ns")
    watch:cancel()
    assert.truthy(longest < 0.2, longest) -- the others run meanwhile
    assert.equal(20000, tonumber(server:cli "DBSIZE"))
    assert.equal("", server:cli("KEYS", "ns:*"))
    assert.truthy(calls(server, "scan") >= 30)
    assert.truthy(calls(server, "unlink") >= 15)
    assert.equal(1, calls(server, "keys")) -- that of this test
    assert.equal(0, calls(server, "flushdb"))
  end)

  it("touches no neighbour, whatever bytes it holds", function()
    local spaces = { "*", "a*", "?", "a?", "[a]", "[^a]", "[", "]", "\\", "\\*", "a", "ab", "a:b",
      "\0", "a\0", "a\0b", "\n", "a\r\nb", "\255", "{a}", ("n"):rep(60000) }
    local all = {}
    for i, space in ipairs(spaces) do all[space .. ":k"] = i end
    for i, space in ipairs(spaces) do
      persistent:multi_set(all)
      assert.is_true(persistent:with_namespace(space):clear())
      local keys = {}
      for key in pairs(all) do keys[#keys + 1] = key end
      local left = persistent:multi_get(keys)
      for j, other in ipairs(spaces) do
        local under = (other .. ":"):sub(1, #space + 1) == space .. ":" -- a:b is in a
        assert.equal(not under and j or nil, left[other .. ":k"], i .. " " .. j)
      end
    end
    assert.equal(0, calls(server, "keys"))
    assert.equal(0, calls(server, "flushdb"))
  end)

  it("may go on by itself (wait = false)", function()
    fill("ns:", 3000)
    fill("other:", 10)
    assert.is_true(persistent:clear("ns", { wait = false }))
    support.await(function() return persistent:raw "DBSIZE" == 10 end, "the end of clear")
  end)

  it("has its timeout for all of its steps together", function()
    local step = "read 1\nsleep 20\nsend *2\\r\\n$1\\r\\n7\\r\\n*0\\r\\n\n" -- cursor 7, no keys
    local fake = redis.fake("handshake\n" .. step:rep(100))
    support.settle_on(fake)
    finally(start)
    local took, ok, err = support.took(persistent.clear, persistent, "ns", { timeout = 0.15 })
    assert.same({ nil, "timeout", "clear: no answer from Redis within 0.15 s" },
      { ok, err.code, tostring(err) })
    assert.truthy(took > 0.1 and took < 1, took)
  end)
end)

describe("clear without a namespace", function()
  it("is FLUSHDB of the selected database alone, with one warning", function()
    server = redis.shared()
    empty()
    server:cli { "SET", "k", "v", db = 1 }
    server:cli { "SET", "k", "v", db = 2 }
    local result = process.run { "-e", [[
      local p = cache.persistent
      p:set("k", 1)
      print(p:clear(), p:clear(), p:exists "k")
      cache.clear_cache { alias = "persistent" }]], env = { CACHE_REDIS_URL = server.url .. "/1" } }
    assert.same({ code = 0, out = "true\ttrue\tfalse\n",
      err = "moonstash: warning: Redis: clear of a cache without a namespace is FLUSHDB: "
        .. "it removes every key of the database\n" }, result)
    assert.equal("0", server:cli { "DBSIZE", db = 1 })
    assert.equal("1", server:cli { "DBSIZE", db = 2 })
    assert.equal(3, calls(server, "flushdb"))
    assert.equal(0, calls(server, "flushall"))
  end)

  it("stays within CACHE_NAMESPACE", function()
    empty()
    server:cli("SET", "other", "v")
    assert.equal("true\tfalse\n", support.run([[
      local p = cache.persistent
      p:set("k", 1)
      print(p:clear(), p:exists "k")]], { CACHE_REDIS_URL = server.url, CACHE_NAMESPACE = "app" }))
    assert.equal("1", server:cli "DBSIZE")
    assert.equal(0, calls(server, "flushdb"))
  end)
end)

describe("calls on many keys", function()
  setup(start)
  teardown(support.unuse)
  before_each(empty)

  it("take 5,000, in few commands", function()
    local map, keys = {}, {}
    for i = 1, 5000 do
      keys[i] = "key" .. i
      map[keys[i]] = i % 2 == 0 and i or "value " .. i
    end
    assert.is_true(persistent:multi_set(map, 60))
    assert.same(map, persistent:multi_get(keys))
    assert.equal(5 * math.ceil(1000 / 7), calls(server, "mget")) -- in 5 writes
    assert.equal(5000, calls(server, "set"))
    assert.equal(5000, persistent:multi_delete(keys))
    assert.equal(5, calls(server, "unlink"))
    assert.same({}, persistent:multi_get(keys))
    assert.equal(0, persistent:multi_delete(keys))
  end)

  it("take one write and one round trip when they are small", function()
    local fake = redis.fake "handshake\nserve"
    support.settle_on(fake)
    finally(start)
    assert.is_true(persistent:exists "k" == false) -- connected
    local before = #fake:log()
    assert.is_true(persistent:multi_set { a = 1, b = 2, c = 3, d = 4 })
    assert.same({ a = 1, d = 4 }, persistent:multi_get { "a", "d", "none" })
    assert.equal(4, persistent:multi_delete { "a", "b", "c", "d" })
    local log = fake:log()
    local reads = {}
    for i = before + 1, #log do
      reads[log[i][1]] = reads[log[i][1]] or {}
      reads[log[i][1]][log[i].read] = true
    end
    for _, command in ipairs { "SET", "MGET", "UNLINK" } do
      local first = next(reads[command])
      assert.is_nil(next(reads[command], first), command)
    end
  end)

  it("name the keys whose values are too large, and do the others", function()
    local ok, err = persistent:multi_set { a = 1, big = ("x"):rep(8 * MIB), c = "3",
      bigger = ("x"):rep(9 * MIB), almost = ("x"):rep(8 * MIB - 20) }
    assert.is_nil(ok)
    assert.equal("too_large", err.code)
    table.sort(err.keys)
    assert.same({ "almost", "big", "bigger" }, err.keys)
    assert.same({ a = 1, c = "3" }, persistent:multi_get { "a", "big", "bigger", "almost", "c" })
  end)

  it("take large values piece by piece", function()
    local map, keys = {}, {}
    for i = 1, 10 do
      keys[i] = "k" .. i
      map[keys[i]] = tostring(i):rep(2 * MIB)
    end
    assert.is_true(persistent:multi_set(map))
    local found = persistent:multi_get(keys)
    for key, value in pairs(map) do assert.is_true(found[key] == value, key) end
  end)

  it("name the keys that the server has refused", function()
    server:cli("ACL", "SETUSER", "bulk", "on", ">pw", "~ok*", "&*", "+@all")
    finally(function() server:cli("ACL", "DELUSER", "bulk") end)
    support.settle_on(("redis://bulk:pw@127.0.0.1:%d"):format(server.port))
    local ok, err = persistent:multi_set { ok1 = 1, bad1 = 2, ok2 = 3, bad2 = 4 }
    assert.same({ nil, "server" }, { ok, err.code })
    assert.matches("^multi_set: NOPERM", tostring(err))
    table.sort(err.keys)
    assert.same({ "bad1", "bad2" }, err.keys)
    assert.same({ ok1 = 1, ok2 = 3 }, persistent:multi_get { "ok1", "ok2" })
    local found
    found, err = persistent:multi_get { "ok1", "bad1" } -- one command: all or nothing
    assert.same({}, found)
    assert.same({ "ok1", "bad1" }, err.keys)
    local count
    count, err = persistent:multi_delete { "ok1", "bad1" }
    assert.equal(0, count)
    assert.same({ "ok1", "bad1" }, err.keys)
    start()
  end)

  it("name all keys when nobody answers", function()
    local deaf = redis.fake "handshake\nhang"
    support.settle_on(deaf, { redis_timeout = 0.05 })
    finally(start)
    local keys, map = {}, {}
    for i = 1, 2500 do keys[i] = "k" .. i map["k" .. i] = i end
    local took, found, err = support.took(persistent.multi_get, persistent, keys)
    assert.same({}, found)
    assert.same({ "timeout", keys }, { err.code, err.keys })
    assert.truthy(took < 0.15, took) -- not once for each piece
    local ok
    ok, err = persistent:multi_set(map)
    assert.same({ nil, 2500 }, { ok, #err.keys })
    ok, err = persistent:multi_delete(keys)
    assert.same({ 0, 2500 }, { ok, #err.keys })
  end)

  it("take it for done when they do not wait", function()
    local keys, map = {}, {}
    for i = 1, 1500 do keys[i] = "k" .. i map["k" .. i] = i end
    assert.is_true(persistent:multi_set(map, { wait = false }))
    assert.same(map, persistent:multi_get(keys))
    assert.equal(1500, persistent:multi_delete(keys, { wait = false }))
    assert.same({}, persistent:multi_get(keys))
  end)

  it("tell a value that cannot be read from one that is not there", function()
    persistent:multi_set { a = 1, b = "two" }
    server:cli("SET", "raw", "not ours")
    local found, err = persistent:multi_get { "a", "raw", "none", "b" }
    assert.same({ a = 1, b = "two" }, found)
    assert.same({ "decode", { "raw" } }, { err.code, err.keys })
  end)
end)

describe("raw", function()
  setup(start)
  teardown(support.unuse)
  before_each(empty)

  local function raw(...) return persistent:raw(...) end

  it("gives replies of every type as Lua values", function()
    assert.equal("OK", raw("SET", "k", "v"))
    assert.equal("v", raw("get", "k"))
    assert.is_nil(raw("GET", "none"))
    assert.equal(0, select("#", raw("GET", "none")) - 1)
    assert.equal(3, raw("RPUSH", "l", "a", "b\0c", ""))
    assert.same({ "a", "b\0c", "" }, raw("LRANGE", "l", 0, -1))
    assert.same({}, raw("LRANGE", "none", 0, -1))
    assert.same({ "v", cache.null }, raw("MGET", "k", "none"))
    assert.same({ 1, "x", { "OK", { 2, {} } }, cache.null, { err = "ERR inner" } },
      raw("EVAL", "return {1, 'x', {{ok='OK'}, {2, {}}}, false, {err='ERR inner'}}", 0))
    assert.equal("PONG", raw "PING")
    assert.same({ "0", { "k" } }, raw("SCAN", "0", "MATCH", "k*", "COUNT", "1000"))
    for kind, value in pairs { string = "Hello World", integer = 12345, null = cache.null } do
      local got = raw("DEBUG", "PROTOCOL", kind)
      if value == cache.null then value = nil end
      assert.equal(value, got, kind)
    end
  end)

  it("gives an integer beyond 2^53 as its text", function()
    raw("SET", "n", "9007199254740991")
    assert.equal(2 ^ 53, raw("INCR", "n"))
    assert.equal("9007199254740993", raw("INCR", "n"))
    raw("SET", "n", "-9223372036854775807")
    assert.equal("-9223372036854775808", raw("DECR", "n"))
  end)

  it("takes strings and numbers, any bytes of them", function()
    raw("SET", "a\0\r\n", "v\0\r\n", "PX", 100000)
    assert.equal("v\0\r\n", raw("GET", "a\0\r\n"))
    raw("SET", "n", 2 ^ 53)
    assert.equal("9007199254740992", raw("GET", "n"))
    assert.equal("0.5", (raw("SET", "n", 0.5) and raw("GET", "n")))
    raw("SET", "big", ("x"):rep(9 * MIB)) -- it is your command
    assert.equal(9 * MIB, raw("STRLEN", "big"))
    for _, bad in pairs { true, {}, print } do
      assert.has_error(function() raw("SET", "k", bad) end,
        "raw: argument 2 must be a string or a number, not " .. type(bad))
    end
    assert.has_error(function() raw() end, "raw: the command must be a string, not nil")
    assert.has_error(function() raw("GET", nil) end,
      "raw: argument 1 must be a string or a number, not nil")
  end)

  it("uses no namespace", function()
    persistent:with_namespace("ns"):raw("SET", "k", "v")
    assert.equal("v", server:cli("GET", "k"))
  end)

  it("gives the server's errors with their codes", function()
    raw("LPUSH", "l", 1)
    for code, args in pairs {
      type = { "GET", "l" }, server = { "GET" },
    } do
      local value, err = raw(unpack(args))
      assert.same({ nil, code }, { value, err.code })
      assert.matches("^raw: %u+ ", tostring(err))
    end
    local _, err = raw("EVAL", "return redis.error_reply('MINE it is')", 0)
    assert.equal("raw: MINE it is", tostring(err))
  end)

  it("refuses what would block or change the connection that all share", function()
    for _, args in ipairs { { "SUBSCRIBE", "c" }, { "psubscribe", "c" }, { "BLPOP", "l", 0 },
      { "brpop", "l", 0 }, { "BLMOVE", "a", "b", "LEFT", "LEFT", 0 }, { "BZPOPMIN", "z", 0 },
      { "MULTI" }, { "EXEC" }, { "WATCH", "k" }, { "Select", 1 }, { "AUTH", "x" }, { "HELLO", 3 },
      { "QUIT" }, { "RESET" }, { "MONITOR" }, { "WAIT", 0, 0 }, { "CLIENT", "reply", "OFF" },
      { "CLIENT", "TRACKING", "ON" }, { "XREAD", "block", 0, "STREAMS", "s", "$" } } do
      local value, err = raw(unpack(args))
      assert.is_nil(value)
      assert.same({ "unsupported", ("raw: %s would block or change the connection that all share: "
        .. "not in this version"):format(args[1]:upper()) }, { err.code, tostring(err) })
      assert.equal("OK", raw("SET", "k", "v")) -- the connection is as it was
    end
    assert.equal(1, persistent:stats().connects)
  end)

  it("says what is wrong with a cluster, not with the command", function()
    local fake = redis.fake "handshake mode=cluster\nserve"
    support.settle_on(fake)
    finally(start)
    local _, of_get = persistent:get "k"
    local _, err = raw("GET", "k")
    assert.same({ "unsupported", "unsupported" }, { of_get.code, err.code })
    assert.equal((tostring(of_get):gsub("^get", "raw")), tostring(err))
    _, err = raw("SUBSCRIBE", "c")
    assert.matches("^raw: SUBSCRIBE would block", tostring(err))
  end)
end)

describe("increment with a TTL", function()
  setup(start)
  teardown(support.unuse)
  before_each(empty)

  it("never leaves a counter without one, however short it is", function()
    for i = 1, 4000 do assert(persistent:increment("rate:" .. i % 20, 1, { ttl = 0.003 })) end
    for i = 0, 19 do assert.is_true(persistent:raw("PTTL", "rate:" .. i) ~= -1) end
  end)

  it("works as it can on a server without transactions", function()
    support.use(redis.fake "handshake\nserve") -- knows no MULTI
    assert.equal(5, (persistent:increment("n", 5, { ttl = 10 })))
    assert.equal(7, (persistent:increment("n", 2, { ttl = 10 })))
    assert.is_true(persistent:ttl "n" <= 10)
    start()
  end)
end)

describe("a command that is not answered", function()
  after_each(support.unuse)

  it("ends the connection before others get each other's answers", function()
    support.use(redis.fake [[
      handshake
      serve drop=1
      connection
      handshake
      serve]])
    support.fails("connection", 0.1, persistent.raw, persistent, "GET", "k")
    support.comes_back()
    assert.equal(1, persistent:stats().desyncs)
  end)

  it("is not sent at all where it is known", function()
    support.use(redis.fake "handshake\nserve")
    support.fails("unsupported", 0.1, persistent.raw, persistent, "REPLCONF", "ACK", "0")
  end)
end)

describe("the timeout of a call on many keys", function()
  after_each(support.unuse)

  it("is that of the whole call", function()
    local fake = redis.fake "handshake\nserve delay=60 every=1"
    support.use(fake, { redis_timeout = 5 })
    local keys, map = {}, {}
    for i = 1, 3000 do keys[i], map["key" .. i] = "key" .. i, i end
    for op, argument in pairs { multi_get = keys, multi_delete = keys, multi_set = map } do
      local took, _, err = support.took(persistent[op], persistent, argument, { timeout = 0.1 })
      assert.equal("timeout", err.code)
      assert.is_true(took < 0.2)
      assert.matches("within 0.1 s", err.message, 1, true)
    end
  end)
end)
