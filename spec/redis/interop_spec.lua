-- What lies in Redis: bytes that redis-cli and Python's client read and write as
-- the alias's serializer says, or envelopes that are nobody else's.
local cache = require "cache"
local ffi = require "ffi"
local process = require "spec.support.process"
local redis = require "spec.support.redis"
local support = require "spec.redis.support"
local time = require "spec.support.time"

local PYTHON = "/usr/bin/python3" -- Debian's, which sees Debian's modules
local MIB = 2 ^ 20
local ENVELOPE = 33 -- bytes around a native string
local persistent = cache.persistent
local null, huge = cache.null, math.huge

if redis.missing() then
  describe("interop", function() pending(redis.missing()) end)
  return
end

-- On Redis, one alias for each serializer.
local by_serializer = {}
local server

local function start()
  server = redis.shared()
  local aliases = {}
  for _, name in ipairs { "json", "msgpack", "string", "native" } do
    aliases["interop_" .. name] = { backend = "redis", serializer = name }
  end
  support.settle_on(server, { aliases = aliases })
  for _, name in ipairs { "json", "msgpack", "string", "native" } do
    by_serializer[name] = cache.get_cache("interop_" .. name)
  end
end

local function stop()
  local aliases = {}
  for name in pairs(by_serializer) do aliases["interop_" .. name] = { backend = "memory" } end
  cache.configure_caches { aliases = aliases }
  support.unuse()
end

local function empty() server:cli "FLUSHALL" end

-- The bytes of a key, as the server has them; nil when it is missing.
local function bytes_of(key) return (persistent:raw("GET", key)) end

describe("redis-cli", function()
  setup(start)
  teardown(stop)
  before_each(empty)

  it("reads what the serializers write: the format's bytes and nothing around them", function()
    local mixed = { 1, "two", true, null }
    for serializer, cases in pairs {
      json = { { mixed, '[1,"two",true,null]' }, { { a = { b = 0.5 } }, '{"a":{"b":0.5}}' },
        { "text", '"text"' }, { 42, "42" }, { true, "true" }, { null, "null" },
        { cache.array {}, "[]" }, { {}, "{}" } },
      msgpack = { { mixed, "\148\1\163two\195\192" }, { "text", "\164text" }, { 42, "*" },
        { -1, "\255" }, { false, "\194" }, { 300, "\205\1\44" } },
      string = { { "text", "text" }, { "a b\nc", "a b\nc" }, { 42, "42" }, { 0.5, "0.5" },
        { true, "true" }, { "", "" } },
    } do
      for i, case in ipairs(cases) do
        assert.is_true(by_serializer[serializer]:set("k", case[1]))
        assert.equal(case[2], server:cli("GET", "k"), ("%s %d"):format(serializer, i))
        assert.is_true(by_serializer[serializer]:multi_set { m = case[1] })
        assert.equal(case[2], server:cli("GET", "m"))
        server:cli("DEL", "k")
        assert.is_true(by_serializer[serializer]:add("k", case[1]))
        assert.equal(case[2], server:cli("GET", "k"))
      end
    end
  end)

  it("writes what the serializers read", function()
    local function reads(serializer, bytes, value)
      server:cli { "SET", "k", input = bytes }
      local c = by_serializer[serializer]
      assert.same({ value }, { c:get "k" })
      assert.same(value, c:multi_get({ "k" }).k)
      assert.same(value, cache.cached(error, { alias = "interop_" .. serializer, key = "k" })())
    end
    reads("json", ' { "a" : [ 1, 2.5, "\\u00e9" ] }\n', { a = { 1, 2.5, "é" } })
    reads("json", "null", null)
    reads("json", "7", 7)
    reads("json", '"7"', "7")
    reads("msgpack", "\146\1\163two", { 1, "two" })
    reads("msgpack", "\192", null)
    reads("string", "any\0bytes\255", "any\0bytes\255")
    reads("string", "7", "7")
    reads("native", "7", 7)
    reads("native", "-9007199254740992", -2 ^ 53)
  end)

  it("meets a miss and code decode where the bytes are not the format's", function()
    for serializer, bytes in pairs { json = "{", msgpack = "\193", native = "raw" } do
      server:cli { "SET", "k", input = bytes }
      local c = by_serializer[serializer]
      local value, err = c:get("k", "default")
      assert.same({ "default", "decode" }, { value, err.code })
      local found, many = c:multi_get { "k", "none" }
      assert.same({}, found)
      assert.same({ "decode", { "k" } }, { many.code, many.keys })
      assert.is_true(c:exists "k")
      assert.equal(bytes, server:cli("GET", "k")) -- it stays
      assert.is_false(c:add("k", "mine"))
    end
  end)

  it("sees native integers as decimal text, and all else as an opaque envelope", function()
    local c = by_serializer.native
    for value, text in pairs { [0] = "0", [-7] = "-7", [2 ^ 53] = "9007199254740992" } do
      c:set("k", value)
      assert.equal(text, server:cli("GET", "k"))
    end
    for _, value in ipairs { "text", "12", "", 0.5, -0, huge, 2 ^ 53 + 2, true, null, { 1 } } do
      c:set("k", value)
      assert.equal("\193M\1", server:cli("GET", "k"):sub(1, 3), tostring(value))
      assert.same(value, c:get "k")
      assert.matches("^ERR value is not an integer", server:cli("INCR", "k"))
    end
    c:set("k", "text")
    assert.equal(#"text" + ENVELOPE, tonumber(server:cli("STRLEN", "k")))
  end)

  it("counts with us, both ways", function()
    for _, serializer in ipairs { "native", "json", "string" } do
      local c = by_serializer[serializer]
      local as = serializer == "string" and tostring or function(n) return n end
      empty()
      assert.equal("1", server:cli("INCR", "n"))
      assert.equal(as(1), c:get "n")
      assert.equal(42, c:increment("n", 41))
      assert.equal("42", server:cli("GET", "n"))
      assert.equal("43", server:cli("INCR", "n"))
      assert.same({ n = as(43) }, c:multi_get { "n" })
      c:set("n", 7)
      assert.equal("8", server:cli("INCR", "n"))
      server:cli("SET", "n", "9223372036854775807")
      assert.equal("range", select(2, c:increment "n").code)
      server:cli("SET", "n", "9007199254740993") -- more than a number holds
      assert.equal("range", select(2, c:increment "n").code)
      assert.equal("9007199254740993", server:cli("GET", "n")) -- as it was
    end
    local value, err = by_serializer.native:get "n"
    assert.same({ nil, "decode" }, { value, err.code })
  end)

  it("sees TTLs in milliseconds", function()
    local function left(key) return tonumber(server:cli("PTTL", key)) end
    persistent:set("k", 1, 20.5)
    assert.is_true(time.is_left(20500, left "k"))
    persistent:set("k", 1, 0)
    assert.equal(-1, left "k")
    persistent:expire("k", 10.25)
    assert.is_true(time.is_left(10250, left "k"))
    persistent:touch("k", 8)
    assert.is_true(time.is_left(8000, left "k"))
    persistent:expire("k", false)
    assert.equal(-1, left "k")
    persistent:multi_set({ a = 1 }, 30)
    assert.is_true(time.is_left(30000, left "a"))
    persistent:increment("n", 1, { ttl = 40 })
    persistent:increment("n", 1, { ttl = 90 })
    assert.is_true(time.is_left(40000, left "n"))
    server:cli("PEXPIRE", "k", 50000)
    assert.is_true(time.is_left(50, persistent:ttl "k"))
    persistent:set("k", 1, 1e12) -- longer than a server's clock lasts would be an error
    assert.equal(1, persistent:get "k")
  end)

  it("cannot rename a native value: a miss, code decode", function()
    persistent:set("a", "value of a")
    server:cli("RENAME", "a", "b")
    local value, err = persistent:get "b"
    assert.same({ nil, "decode" }, { value, err.code })
    assert.truthy(err.message:find "another key")
    assert.is_true(persistent:exists "b")
    persistent:set("n", 5) -- an integer may: there is nothing around it
    server:cli("RENAME", "n", "m")
    assert.equal(5, persistent:get "m")
    assert.is_false(persistent:stats().desyncs > 0)
    assert.truthy(persistent:stats().foreign > 0)
  end)

  it("has other types: code type", function()
    server:cli("LPUSH", "k", "a")
    local function refuses(value, err)
      assert.is_nil(value)
      assert.equal("type", err.code)
    end
    refuses(persistent:get "k")
    refuses(persistent:increment "k")
    refuses(persistent:info "k")
    assert.equal("default", (persistent:get("k", "default")))
    assert.same({}, (persistent:multi_get { "k" })) -- MGET calls it missing
    assert.is_true(persistent:exists "k")
    assert.is_false(persistent:add("k", 1))
    assert.is_true(persistent:expire("k", 10))
    assert.equal(1, cache.cached(function() return 1 end, { alias = "persistent", key = "k" })())
    assert.is_true(persistent:set("k", "a string now"))
    assert.equal("a string now", persistent:get "k")
  end)
end)

describe("Python", function()
  setup(start)
  teardown(stop)
  before_each(empty)

  -- Runs Python with r, a client of the server, and json, msgpack.
  local function python(code)
    if os.execute(PYTHON .. " -c 'import redis, msgpack' 2>/dev/null") ~= 0 then
      assert(not process.required "python", "python3, python3-redis or python3-msgpack is missing")
      pending "python3, python3-redis or python3-msgpack is missing"
      return nil
    end
    local result = process.run { program = PYTHON, "-", input = ([[
import json, msgpack, redis
r = redis.Redis(unix_socket_path=%q)
]]):format(server.path) .. code }
    assert.equal("", result.err)
    return result.out
  end

  it("reads what we write", function()
    by_serializer.json:set("json", { list = { 1, "é", null }, n = 0.1 }, 100)
    by_serializer.msgpack:set("msgpack", { list = { 1, "é", null }, n = 0.1 })
    by_serializer.string:set("string", "a\0b\255")
    by_serializer.native:set("native", 42)
    by_serializer.native:increment("native", -2)
    local out = python [[
expected = {"list": [1, "é", None], "n": 0.1}
print(json.loads(r.get("json")) == expected, 90000 < r.pttl("json") <= 100000)
print(msgpack.unpackb(r.get("msgpack")) == expected, 290000 < r.pttl("msgpack") <= 300000)
print(r.get("string") == b"a\0b\xff", int(r.get("native")) == 40, r.incr("native"))
]]
    if not out then return end
    assert.equal("True True\nTrue True\nTrue True 41\n", out)
    assert.equal(41, by_serializer.native:get "native")
  end)

  it("writes what we read", function()
    local out = python [[
value = {"list": [1, "é", None, 2**53, -1.5], "nested": {"t": True}}
r.set("json", json.dumps(value), px=5000)
r.psetex("msgpack", 6000, msgpack.packb(value))
r.set("string", b"\0\xff\r\n")
r.set("native", 7)
r.mset({"ns:a": json.dumps("in a namespace")})
]]
    if not out then return end
    local value = { list = { 1, "é", null, 2 ^ 53, -1.5 }, nested = { t = true } }
    assert.same(value, by_serializer.json:get "json")
    assert.is_true(time.is_left(5, by_serializer.json:ttl "json"))
    assert.same(value, by_serializer.msgpack:get "msgpack")
    assert.is_true(time.is_left(6, by_serializer.msgpack:ttl "msgpack"))
    assert.equal("\0\255\r\n", by_serializer.string:get "string")
    assert.equal(8, by_serializer.native:increment "native")
    assert.equal("in a namespace", by_serializer.json:with_namespace("ns"):get "a")
  end)
end)

-- The bytes that must travel as they are: a server's protocol, globs, NULs.
local HARD = { "a b", "a\r\nb", "*3\r\n$3\r\nSET\r\n", "\0", "a\0b", "*", "[a-z]?\\", "{tag}k", ":",
  "é", "\255\254", ("k"):rep(65536), ("\0"):rep(65536) }

describe("bytes", function()
  setup(start)
  teardown(stop)
  before_each(empty)

  it("are any in a key, for every operation", function()
    local map = {}
    for i, key in ipairs(HARD) do
      assert.is_true(persistent:set(key, "value " .. i))
      assert.equal("value " .. i, persistent:get(key))
      assert.is_true(persistent:exists(key))
      assert.is_false(persistent:add(key, "other"))
      assert.is_true(persistent:expire(key, 10))
      assert.is_true(persistent:touch(key))
      assert.is_true(time.is_left(10, persistent:ttl(key)))
      map[key] = "value " .. i
    end
    assert.equal(#HARD, tonumber(server:cli "DBSIZE"))
    assert.same(map, persistent:multi_get(HARD))
    assert.equal(#HARD, persistent:multi_delete(HARD))
    assert.is_true(persistent:multi_set(map))
    for i, key in ipairs(HARD) do
      assert.equal("value " .. i, persistent:get(key))
      assert.equal(1, persistent:delete(key))
      assert.equal(3, persistent:increment(key, 3))
    end
  end)

  it("are any in a value, up to 8 MiB with what is around it", function()
    for _, size in ipairs { 0, 1, 255, 256, 16384, 65535, 65536, MIB, 8 * MIB - ENVELOPE } do
      local value = ("\0\r\n\255$6"):rep(math.ceil(size / 6)):sub(1, size)
      assert.is_true(persistent:set("k", value))
      assert.is_true(persistent:get "k" == value, size)
      assert.is_true(persistent:multi_get({ "k" }).k == value, size)
      assert.equal(size + ENVELOPE, persistent:info("k").size)
    end
    local text = ("x"):rep(8 * MIB)
    assert.is_true(by_serializer.string:set("k", text))
    assert.is_true(by_serializer.string:get "k" == text)
  end)

  it("are at most 8 MiB: code too_large, and the old value stays", function()
    persistent:set("k", "old")
    for size, c in pairs { [8 * MIB - ENVELOPE + 1] = persistent, [8 * MIB] = persistent,
      [8 * MIB + 1] = by_serializer.string } do
      for _, op in ipairs { "set", "add" } do
        local ok, err = c[op](c, "k", ("x"):rep(size))
        assert.same({ nil, "too_large" }, { ok, err and err.code })
        assert.equal(op .. ": value limit: the value is too large, the most is 8 MiB",
          tostring(err))
      end
    end
    assert.equal("old", persistent:get "k")
  end)

  it("are every kind of value, as it was", function()
    local Point = { __index = { sum = function(self) return self.x + self.y end } }
    cache.register_class("interop.Point", Point)
    local deep = "bottom"
    for _ = 1, 30 do deep = { deep } end
    local values = { true, false, null, 0, -0.0, 1.5, 2 ^ 53 + 2, huge, -huge, "", "text", {},
      { 1, 2, { a = "b", [0.5] = { true } } }, 9007199254740993LL, 18446744073709551615ULL, deep,
      cache.array { 1, 2 }, cache.array {}, setmetatable({ x = 1, y = 2 }, Point),
      { null, list = { null, 3 } } }
    for i, value in ipairs(values) do
      assert.is_true(persistent:set("k", value))
      local got = persistent:get "k"
      assert.same(value, got, i)
      assert.equal(getmetatable(value), getmetatable(got), i)
    end
    assert.equal(3, persistent:set("k", values[19]) and persistent:get("k"):sum())
    persistent:set("k", -0.0)
    assert.equal(-huge, 1 / persistent:get "k")
    persistent:set("k", 0 / 0)
    local nan = persistent:get "k"
    assert.is_true(nan ~= nan)
    for ctype, value in pairs { int64_t = -9007199254740993LL, uint64_t = 9007199254740993ULL } do
      persistent:set("k", value)
      assert.is_true(ffi.istype(ctype, (persistent:get "k")))
    end
  end)

  it("are what dumps returns, and what loads is given", function()
    local function dumps(value) return "<" .. value .. ">" end
    local function loads(bytes) return bytes:match "^<(.*)>$" end
    persistent:set("k", "once", { dumps = dumps })
    assert.equal("<once>", server:cli("GET", "k"))
    assert.equal("once", persistent:get("k", nil, { loads = loads }))
    assert.same({ k = "once" }, persistent:multi_get({ "k", "none" }, { loads = loads }))
    assert.equal("decode", select(2, persistent:get "k").code)
    cache.configure_caches { aliases = {
      persistent = { serializer = { dumps = dumps, loads = loads }, copy = false } } }
    finally(function() cache.configure_caches { aliases = { persistent = {} } } end)
    persistent:multi_set { k = "always" }
    assert.equal("<always>", server:cli("GET", "k"))
    assert.equal("always", persistent:get "k")
    assert.equal("custom", persistent:info("k").format)
    server:cli("SET", "k", "not so") -- loads gives nil: there is nothing
    assert.equal("default", persistent:get("k", "default"))
    assert.same({}, persistent:multi_get { "k" })
    assert.equal("loaded", cache.cached(function() return "loaded" end,
      { alias = "persistent", key = "k", copy = false })())
    assert.equal("<loaded>", bytes_of "k")
  end)

  it("are all results of a cached function, its nils too, for other processes as well", function()
    local g = cache.cached(function() return 1, nil, { "x" }, nil end,
      { alias = "persistent", key = "k" })
    assert.same({ 4, 1 }, { select("#", g()), (g()) })
    assert.equal("4\t1\tnil\tx\tnil\t1\n", support.run([[
      local f = cache.cached(error, { alias = "persistent", key = "k" })
      local a, b, c, d = f()
      print(select("#", f()), a, b, c[1], d, cache.persistent:get "k")]],
      { CACHE_REDIS_URL = server.url }))
    assert.equal(1, persistent:get "k")
    assert.equal("\193M\1\3", bytes_of("k"):sub(1, 4))
  end)
end)

describe("a server without room", function()
  it("refuses to store: code server; what it has can be read", function()
    local small = redis.start { args = { "--maxmemory-policy", "noeviction" } }
    support.settle_on(small)
    finally(support.unuse)
    persistent:set("k", "old")
    small:cli("CONFIG", "SET", "maxmemory", "1")
    local function refuses(op, value, err)
      assert.is_nil(value, op)
      assert.equal("server", err.code)
      assert.matches("^" .. op .. ": OOM command not allowed", tostring(err))
      return err
    end
    refuses("set", persistent:set("k", "new"))
    refuses("add", persistent:add("other", "new"))
    refuses("increment", persistent:increment "n")
    refuses("increment", persistent:increment("n", 1, { ttl = 5 }))
    local err = refuses("multi_set", persistent:multi_set { a = 1, b = 2 })
    table.sort(err.keys)
    assert.same({ "a", "b" }, err.keys)
    local f = cache.cached(function() return "loaded" end, { alias = "persistent", key = "f" })
    assert.equal("loaded", f())
    assert.equal("old", persistent:get "k")
    assert.is_true(persistent:exists "k")
    assert.equal(1, persistent:delete "k")
    small:cli("CONFIG", "SET", "maxmemory", "0")
    assert.is_true(persistent:set("k", "new"))
  end)
end)
