-- Where Redis is: what the environment and configure_caches say, and that nobody
-- connects before there is a need.
local cache = require "cache"
local process = require "spec.support.process"
local redis = require "spec.support.redis"
local socket = require "spec.support.socket"
local support = require "spec.redis.support"
local task = require "task"

local run, clients = support.run, support.clients
local persistent = cache.persistent

-- Stores a value and says where it is.
local SET = [[print(cache.persistent:set("k", "v"), cache.persistent:get "k",
  cache.persistent:stats().connected)]]
local STORED = "true\tv\ttrue\n"

describe("the environment", function()
  if redis.missing() then
    pending(redis.missing())
    return
  end

  local server
  setup(function() server = redis.shared() end)
  before_each(function() server:cli "FLUSHALL" end)

  local function stores(env, db)
    assert.equal(STORED, run(SET, env))
    assert.matches("^\193M\1.*v", server:cli { "GET", "k", db = db })
  end

  it("takes CACHE_REDIS_HOST: a name, an address, with and without its port", function()
    local port = tostring(server.port)
    stores { CACHE_REDIS_HOST = "localhost", CACHE_REDIS_PORT = port }
    stores { CACHE_REDIS_HOST = "127.0.0.1", CACHE_REDIS_PORT = port }
    stores { CACHE_REDIS_HOST = "localhost:" .. port }
    stores { CACHE_REDIS_HOST = "127.0.0.1:" .. port, CACHE_REDIS_PORT = "1" }
  end)

  it("takes an IPv6 address in brackets", function()
    local ok, six = pcall(redis.start, { args = { "--bind", "::1" } })
    if not ok then
      if process.required "ipv6" then error(six, 0) end
      return pending "no IPv6 here"
    end
    for _, env in ipairs {
      { CACHE_REDIS_HOST = ("[::1]:%d"):format(six.port) },
      { CACHE_REDIS_HOST = "[::1]", CACHE_REDIS_PORT = tostring(six.port) },
      { CACHE_REDIS_URL = ("redis://[::1]:%d"):format(six.port) },
    } do
      assert.equal(STORED, run(SET, env))
    end
  end)

  it("tries several hosts in their order", function()
    stores { CACHE_REDIS_HOST = ("127.0.0.1:%d,127.0.0.1:%d"):format(socket.free_port(),
      server.port) } -- nobody listens at the first
  end)

  it("takes CACHE_REDIS_URL, with its database", function()
    local base = ("redis://127.0.0.1:%d"):format(server.port)
    stores { CACHE_REDIS_URL = base }
    stores { CACHE_REDIS_URL = base .. "/" }
    stores({ CACHE_REDIS_URL = base .. "/3" }, 3)
    stores({ CACHE_REDIS_URL = base .. "?db=4" }, 4)
    stores({ CACHE_REDIS_URL = base, CACHE_REDIS_DB = "5" }, 5)
    stores({ CACHE_REDIS_HOST = "127.0.0.1", CACHE_REDIS_PORT = tostring(server.port),
      CACHE_REDIS_DB = "6" }, 6)
  end)

  it("takes a host in the one and the port in the other", function()
    local port = tostring(server.port)
    stores { CACHE_REDIS_URL = "redis://127.0.0.1", CACHE_REDIS_PORT = port }
    stores { CACHE_REDIS_URL = "redis://127.0.0.1:" .. port, CACHE_REDIS_HOST = "127.0.0.1" }
    stores { CACHE_REDIS_URL = "redis://127.0.0.1", CACHE_REDIS_HOST = "127.0.0.1:" .. port }
  end)

  it("takes a unix socket", function()
    stores { CACHE_REDIS_URL = "unix://" .. server.path }
    stores({ CACHE_REDIS_URL = "unix://" .. server.path .. "?db=2" }, 2)
  end)

  it("takes an empty variable for unset", function()
    local code = [[print(cache.persistent:set("k", 1), cache.persistent:info("k").tier)]]
    assert.equal("true\tmemory\n", run(code, { CACHE_REDIS_HOST = "", CACHE_REDIS_URL = "" }))
    stores { CACHE_REDIS_URL = server.url, CACHE_REDIS_HOST = "", CACHE_REDIS_PASSWORD = "",
      CACHE_REDIS_PORT = "", CACHE_REDIS_DB = "", CACHE_REDIS_USERNAME = "" }
  end)

  it("says at level info where persistent lives", function()
    local code = [[require "cache" cache.persistent:set("k", 1)]]
    local result = process.run { "-e", code, env = { MOONSTASH_LOG = "info" } }
    assert.matches("^moonstash: info: Redis is not configured: [^\n]*\n$", result.err)
    result = process.run { "-e", code,
      env = { MOONSTASH_LOG = "info", CACHE_REDIS_URL = server.url } }
    assert.falsy(result.err:find "not configured")
  end)

  it("puts CACHE_NAMESPACE before the keys", function()
    assert.equal(STORED, run(SET, { CACHE_REDIS_URL = server.url, CACHE_NAMESPACE = "app" }))
    assert.equal("app:k", server:cli("KEYS", "*"))
    run([[cache.persistent:with_namespace("a"):with_namespace("b"):set("k", 1)
      cache.set_cached("k", 2, { alias = "persistent", namespace = "other" })]],
      { CACHE_REDIS_URL = server.url, CACHE_NAMESPACE = "app" })
    assert.equal("1", server:cli("GET", "app:a:b:k"))
    assert.equal("2", server:cli("GET", "other:k"))
    run("cache.persistent:clear()", { CACHE_REDIS_URL = server.url, CACHE_NAMESPACE = "app" })
    assert.equal("other:k", server:cli("KEYS", "*"))
  end)

  it("takes the TTL of what is stored from CACHE_PERSISTENT_TTL", function()
    run(SET, { CACHE_REDIS_URL = server.url, CACHE_PERSISTENT_TTL = "40" })
    local left = tonumber(server:cli("PTTL", "k"))
    assert.truthy(left > 30000 and left <= 40000, left)
    run(SET, { CACHE_REDIS_URL = server.url, CACHE_PERSISTENT_TTL = "0" })
    assert.equal("-1", server:cli("PTTL", "k"))
  end)
end)

describe("who we are", function()
  if redis.missing() then
    pending(redis.missing())
    return
  end

  local server
  setup(function()
    server = redis.start { password = "p@ss:w/rd" }
    server:cli("ACL", "SETUSER", "us:er", "on", ">pw @2", "~*", "&*", "+@all")
  end)

  local function whoami(env)
    return run([[local name, err = cache.persistent:raw("ACL", "WHOAMI")
      print(name or err.code)]], env)
  end

  it("is said by the URL, percent-encoded", function()
    local at = ("@127.0.0.1:%d"):format(server.port)
    assert.equal("default\n", whoami { CACHE_REDIS_URL = "redis://:p%40ss%3Aw%2Frd" .. at })
    assert.equal("us:er\n", whoami { CACHE_REDIS_URL = "redis://us%3Aer:pw%20%402" .. at .. "/3" })
    assert.equal("us:er\n",
      whoami { CACHE_REDIS_URL = "unix://us%3Aer:pw%20%402@" .. server.path .. "?db=2" })
  end)

  it("is said by CACHE_REDIS_USERNAME and CACHE_REDIS_PASSWORD", function()
    local url = ("redis://127.0.0.1:%d"):format(server.port)
    assert.equal("default\n", whoami { CACHE_REDIS_URL = url, CACHE_REDIS_PASSWORD = "p@ss:w/rd" })
    assert.equal("us:er\n", whoami { CACHE_REDIS_URL = url, CACHE_REDIS_USERNAME = "us:er",
      CACHE_REDIS_PASSWORD = "pw @2" })
    assert.equal("us:er\n", whoami { CACHE_REDIS_HOST = "127.0.0.1:" .. server.port,
      CACHE_REDIS_USERNAME = "us:er", CACHE_REDIS_PASSWORD = "pw @2" })
    assert.equal("us:er\n", whoami { CACHE_REDIS_URL = url:gsub("//", "//us%%3Aer@"),
      CACHE_REDIS_PASSWORD = "pw @2" })
  end)

  it("is said by the first line of CACHE_REDIS_PASSWORD_FILE", function()
    for i, text in ipairs { "p@ss:w/rd", "p@ss:w/rd\n", "p@ss:w/rd\r\n", "p@ss:w/rd\nmore\n" } do
      local file = process.directory { password = text } .. "/password"
      assert.equal("default\n", whoami { CACHE_REDIS_HOST = "127.0.0.1:" .. server.port,
        CACHE_REDIS_PASSWORD_FILE = file }, i)
    end
  end)

  it("is no empty line in a password file", function()
    local file = process.directory { password = "\n" } .. "/password"
    assert.same({ code = 1, out = "", err = ("moonstash: CACHE_REDIS_PASSWORD_FILE: cannot read "
      .. "%s: its first line is empty\n"):format(file) }, process.run { "-e", "print 'ran'",
      env = { CACHE_REDIS_HOST = "h", CACHE_REDIS_PASSWORD_FILE = file } })
  end)

  it("is told to the server: CLIENT LIST shows our name", function()
    support.settle_on(server)
    finally(support.unuse)
    assert.is_true(persistent:set("k", 1))
    local found = clients(server)
    assert.equal(1, #found)
    assert.equal("moonstash", found[1].name)
    assert.equal("0", found[1].db)
  end)

  it("is told with the name of the library, where the server knows that", function()
    local fake = redis.fake "handshake version=7.2.0\nserve"
    assert.equal(STORED, run(SET, { CACHE_REDIS_URL = fake.url }))
    local said
    for _, command in ipairs(fake:log()) do
      said = said or table.concat(command, " "):find "^CLIENT SETINFO LIB%-NAME moonstash"
    end
    assert.truthy(said, fake:log_text())
  end)
end)

describe("the connection", function()
  local fake
  before_each(function() fake = redis.fake "handshake\nserve" end)
  after_each(support.unuse)

  local function opens()
    return select(2, fake:log_text():gsub(" open\n", ""))
  end

  it("is not made before there is a use for it", function()
    assert.equal("false\n", run([[
      local task = require "task"
      local p = cache.persistent
      cache.cached(print, { alias = "persistent", name = "f" })
      cache.memory:set("k", 1)
      p:with_namespace "x"
      p:multi_get {}
      task.sleep(0.02)
      print(p:stats().connected)]], { CACHE_REDIS_URL = fake.url }))
    assert.equal(0, opens())
    assert.equal(STORED, run(SET, { CACHE_REDIS_URL = fake.url }))
    assert.equal(1, opens())
  end)

  it("is never made with caching off", function()
    assert.equal("true\tnil\tfalse\n", run(SET, { CACHE_REDIS_URL = fake.url,
      CACHE_ENABLED = "0" }))
    assert.equal("1\t0\ttrue\tfalse\t5\t0\tloaded\n", run([[
      local p = cache.persistent
      local f = cache.cached(function() return "loaded" end, { alias = "persistent", name = "f" })
      local g = cache.multi_cached(function() return {} end, { alias = "persistent", name = "g" })
      g { "a" }
      p:multi_get { "a" }
      p:multi_set { a = 1 }
      print(p:get("k", 1), p:delete "k", p:clear(), p:exists "k", p:increment("k", 5),
        p:multi_delete { "k" }, f())]], { CACHE_REDIS_URL = fake.url, CACHE_ENABLED = "False" }))
    assert.equal(0, opens())
  end)

  it("is one for all aliases", function()
    support.settle_on(fake, { aliases = { settings_a = { backend = "redis" },
      settings_b = { backend = "redis", namespace = "b" } } })
    finally(function()
      cache.configure_caches { aliases = { settings_a = {}, settings_b = {} } }
    end)
    for _, alias in ipairs { "persistent", "settings_a", "settings_b" } do
      assert.is_true(cache.set_cached("k", alias, { alias = alias }))
    end
    assert.equal(1, opens())
  end)

  it("gives up after CACHE_REDIS_TIMEOUT, or the call's own", function()
    local deaf = redis.fake "handshake\nhang"
    support.settle_on(deaf, { redis_timeout = 0.05 })
    local function fails(seconds, ...)
      local value, err = persistent:get("k", nil, ...)
      assert.is_nil(value)
      assert.equal("timeout", err.code)
      assert.equal(("get: no answer from Redis within %g s"):format(seconds), tostring(err))
    end
    fails(0.05)
    support.settle_on(deaf, { redis_timeout = 20 })
    fails(0.03, { timeout = 0.03 })
  end)

  it("waits as long as it takes with a timeout of 0, or one beyond all clocks", function()
    local slow = redis.fake "handshake\nserve delay=60"
    support.settle_on(slow, { redis_timeout = 0.01 })
    assert.equal("timeout", select(2, persistent:get "k").code)
    for _, forever in ipairs { 0, 1e9, 1e300, math.huge } do
      assert.same({ nil, nil }, { persistent:get("k", nil, { timeout = forever }) })
    end
    support.settle_on(slow, { redis_timeout = 0, redis_connect_timeout = 0 })
    assert.is_true(persistent:set("k", "v"))
    assert.equal("v", persistent:get "k")
    assert.equal(0, persistent:stats().stalls)
  end)

  it("stays when other settings change", function()
    support.settle_on(fake)
    persistent:set("k", "v")
    support.settle_on(fake, { default_ttl = 7, persistent_ttl = 8, aliases = { persistent = {} } })
    cache.configure_caches(cache.settings)
    assert.equal("v", persistent:get "k")
    assert.equal(1, opens())
  end)
end)

describe("configure_caches", function()
  after_each(support.unuse)

  it("takes Cache objects and wrappers to another server, to none, and back", function()
    local one, other = redis.fake "handshake\nserve", redis.fake "handshake\nserve"
    local loads = 0
    local f = cache.cached(function() loads = loads + 1 return loads end,
      { alias = "persistent", name = "settings.follows" })
    local namespaced = persistent:with_namespace "n"
    support.unuse()
    persistent:set("k", "memory")
    namespaced:set("k", "memory n")
    assert.equal(1, f())

    support.settle_on(one)
    assert.is_nil(persistent:get "k")
    assert.is_true(persistent:set("k", "one"))
    assert.is_true(namespaced:set("k", "one n"))
    assert.equal(2, f())
    support.settle_on(other)
    assert.is_nil(persistent:get "k")
    assert.is_nil(namespaced:get "k")
    assert.equal(3, f())
    one:wait_for "1 peer-" -- left behind
    support.settle_on(one)
    assert.equal("one", persistent:get "k")
    assert.equal("one n", namespaced:get "k")
    assert.equal(2, f())
    support.unuse()
    assert.is_nil(persistent:get "k") -- what memory had is old by now
    assert.equal(4, f())
    assert.equal("memory", (persistent:set("k", 1) and persistent:info "k").tier)
  end)

  it("fails what is under way to a server that it leaves: code closed", function()
    local deaf = redis.fake "handshake\nhang"
    support.settle_on(deaf)
    local code
    local waiter = task.spawn(function() code = select(2, persistent:get "k").code end)
    deaf:wait_for 'command "PING"'
    support.unuse()
    waiter:join()
    assert.equal("closed", code)
  end)

  it("does not store in the new server what a load began under the old one", function()
    local one, other = redis.fake "handshake\nserve", redis.fake "handshake\nserve"
    support.settle_on(one)
    local f = cache.cached(function()
      support.settle_on(other)
      return "loaded"
    end, { alias = "persistent", name = "settings.moves" })
    assert.equal("loaded", f())
    assert.is_true(persistent:set("end", 1))
    assert.falsy(other:log_text():find 'command "SET" "settings.moves')
  end)

  it("may come while a hook waits: what was encoded for the old place is stored nowhere", function()
    local fake = redis.fake "handshake\nserve"
    local move
    local function hook() move() end
    local plugins = { { pre_set = hook, pre_add = hook, pre_multi_set = hook } }
    local function here()
      support.unuse()
      cache.configure_caches { aliases = { persistent = { plugins = plugins } } }
    end
    local function there()
      support.settle_on(fake, { aliases = { persistent = { plugins = plugins } } })
    end
    local function value() return { 1 } end
    for _, way in ipairs { { here, there }, { there, here } } do
      for op, call in pairs {
        set = function() return persistent:set("k", value()) end,
        add = function() return persistent:add("k", value()) end,
        multi_set = function() return persistent:multi_set { k = value() } end,
      } do
        way[1]()
        move = way[2]
        local ok, err = call()
        assert.same({ nil, "closed" }, { ok, err and err.code }, op)
        assert.equal(op .. ": the alias has moved to another backend meanwhile", tostring(err))
        for _, place in ipairs { here, there } do
          place()
          assert.is_nil(persistent:get "k")
        end
      end
    end
  end)

  it("defines aliases on Redis", function()
    local fake = redis.fake "handshake\nserve"
    support.settle_on(fake, { aliases = {
      settings_sessions = { backend = "redis", namespace = "s", serializer = "json", ttl = 5 } } })
    finally(function() cache.configure_caches { aliases = { settings_sessions = {} } } end)
    local sessions = cache.get_cache "settings_sessions"
    assert.is_true(sessions:set("k", { user = 7 }))
    assert.same({ user = 7 }, sessions:get "k")
    local info = sessions:info "k"
    assert.same({ "redis", "json" }, { info.tier, info.format })
    local command = fake:log()
    for _, each in ipairs(command) do if each[1] == "SET" then command = each end end
    assert.same({ "SET", "s:k", '{"user":7}', "PX", "5000" }, { unpack(command) })
    assert.is_nil(cache.memory:get "s:k")
  end)

  it("does not take Redis away from an alias that needs it", function()
    local fake = redis.fake "handshake\nserve"
    support.settle_on(fake, { aliases = { settings_far = { backend = "redis" } } })
    local far = cache.get_cache "settings_far"
    assert.is_true(far:set("k", 1))
    local text = "aliases.settings_far: the backend 'redis' needs redis_host or redis_url"
    local ok, err = pcall(cache.configure_caches, { redis_url = "", default_ttl = 5 })
    assert.is_false(ok)
    assert.truthy(err:find(text, 1, true), err)
    assert.equal(300, cache.settings.default_ttl)
    assert.equal(1, far:get "k")
    cache.configure_caches { redis_url = "", aliases = { settings_far = { backend = "memory" } } }
    assert.equal("memory", (far:set("k", 1) and far:info "k").tier)
  end)

  it("refuses what this version does not have, and changes nothing", function()
    local fake = redis.fake "handshake\nserve"
    support.settle_on(fake)
    persistent:set("k", "v")
    for text, values in pairs {
      ["redis_mode: Redis Cluster: not in this version"] = { redis_mode = "cluster" },
      ["redis_tls: TLS: not in this version"] = { redis_tls = true },
      ["redis_read_from: reads from replicas: not in this version"] = { redis_read_from = "any" },
      ["redis_password_file: cannot read /nobody: No such file or directory"] =
        { redis_password_file = "/nobody" },
    } do
      values.default_ttl = 5
      local ok, err = pcall(cache.configure_caches, values)
      assert.is_false(ok)
      assert.truthy(err:lower():find(text:lower(), 1, true), err)
      assert.equal(300, cache.settings.default_ttl)
      assert.equal("v", persistent:get "k")
    end
  end)

  it("refuses the serializer none for an alias that lives on Redis", function()
    local text = ": the serializer 'none' keeps values in this process, not in Redis"
    local none = { persistent = { serializer = "none" } }
    local fake = redis.fake "handshake\nserve"
    local function refuses(values)
      local ok, err = pcall(cache.configure_caches, values)
      assert.is_false(ok)
      assert.truthy(err:find("configure_caches: aliases.persistent" .. text, 1, true), err)
      assert.equal(300, cache.settings.default_ttl)
    end
    refuses { redis_url = fake.url, default_ttl = 5, aliases = none }
    cache.configure_caches { aliases = none } -- in memory it may
    refuses { redis_url = fake.url, default_ttl = 5 }
    cache.configure_caches { aliases = { persistent = {} } }
    support.settle_on(fake)
    refuses { default_ttl = 5, aliases = none }
    local ok, err = pcall(cache.cached, print, { alias = "persistent", name = "none",
      serializer = "none" })
    assert.is_false(ok)
    assert.truthy(err:find("cached" .. text, 1, true), err)
  end)

  it("flips caching off and on while Redis is there", function()
    local fake = redis.fake "handshake\nserve"
    support.settle_on(fake)
    persistent:set("k", "v")
    cache.configure_caches { enabled = false }
    assert.is_nil(persistent:get "k")
    assert.equal("OK", persistent:raw("SET", "raw", "1")) -- not caching: it goes on
    cache.configure_caches { enabled = true }
    assert.equal("v", persistent:get "k")
  end)
end)
