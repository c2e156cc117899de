-- Settings from the environment, as far as the command line shows them.
local process = require "spec.support.process"
local run = process.run

-- The line of --env about one variable: value, source.
local function shown(variable, env)
  local result = run { "--env", env = env }
  assert.equal("", result.err)
  assert.equal(0, result.code)
  return ("\n" .. result.out):match("\n" .. variable .. " +(%S+) +([^\n]*)")
end

describe("--env", function()
  it("shows every setting with its value and where that came from", function()
    local result = run { "--env", env = { CACHE_DEFAULT_TTL = "60" } }
    assert.equal(0, result.code)
    assert.equal("", result.err)
    local seen = {}
    for line in result.out:gmatch "[^\n]+" do
      local name = line:match "^(%S+) +%S+ +%S"
      assert.truthy(name, line)
      seen[name] = true
    end
    for _, name in ipairs { "CACHE_ENABLED", "CACHE_REDIS_HOST", "CACHE_REDIS_PORT",
      "CACHE_DEFAULT_TTL", "CACHE_PERSISTENT_TTL", "CACHE_REDIS_URL", "CACHE_NAMESPACE",
      "CACHE_MEMORY_MAX_BYTES", "MOONSTASH_LOG" } do
      assert.is_true(seen[name], name)
    end
  end)

  it("tells defaults, the environment and unset ones apart", function()
    assert.same({ "300", "default" }, { shown("CACHE_DEFAULT_TTL") })
    assert.same({ "60", "environment" },
      { shown("CACHE_DEFAULT_TTL", { CACHE_DEFAULT_TTL = "60" }) })
    assert.same({ "unset", "default" }, { shown("CACHE_REDIS_HOST") })
  end)

  it("takes an empty variable for unset", function()
    assert.same({ "300", "default" }, { shown("CACHE_DEFAULT_TTL", { CACHE_DEFAULT_TTL = "" }) })
    assert.same({ "unset", "default" }, { shown("CACHE_REDIS_HOST", { CACHE_REDIS_HOST = "" }) })
  end)

  it("shows the bound of memory with what it was derived from", function()
    local value, source = shown "CACHE_MEMORY_MAX_BYTES"
    assert.truthy(tonumber(value) >= 65536)
    assert.truthy(#source > 0 and source ~= "default")
    assert.same({ "64M", "environment" },
      { shown("CACHE_MEMORY_MAX_BYTES", { CACHE_MEMORY_MAX_BYTES = "64M" }) })
  end)

  it("masks secrets", function()
    local result = run { "--env", env = { CACHE_REDIS_PASSWORD = "hunter2" } }
    assert.equal(0, result.code)
    assert.matches("CACHE_REDIS_PASSWORD +%*%*%*%* +environment", result.out)
    assert.falsy(result.out:find("hunter2", 1, true))
  end)

  it("shows the defaults after -E", function()
    assert.matches("CACHE_DEFAULT_TTL +300 +default",
      run({ "-E", "--env", env = { CACHE_DEFAULT_TTL = "60" } }).out)
  end)

  it("runs nothing", function()
    local result = run { "-e", "print 'ran'", "--env", env = { LUA_INIT = "print 'ran'" } }
    assert.falsy(result.out:find "ran")
  end)
end)

describe("the environment", function()
  it("configures the cache", function()
    local function setting(name, env)
      return run({ "-e", ("print(require('cache').settings.%s)"):format(name), env = env }).out
    end
    assert.equal("60\n", setting("default_ttl", { CACHE_DEFAULT_TTL = "60" }))
    assert.equal("0.5\n", setting("persistent_ttl", { CACHE_PERSISTENT_TTL = "0.5" }))
    for _, off in ipairs { "false", "0", "no", "off", "OFF", "False" } do
      assert.equal("false\n", setting("enabled", { CACHE_ENABLED = off }))
    end
    for _, on in ipairs { "true", "1", "yes", "on", "ON", "True", "" } do
      assert.equal("true\n", setting("enabled", { CACHE_ENABLED = on }))
    end
  end)

  it("switches caching off without a change of the code", function()
    local chunk = "cache.set_cached('k', 1) print(cache.get_cached 'k')"
    assert.equal("1\n", run({ "-e", chunk }).out)
    assert.equal("nil\n", run({ "-e", chunk, env = { CACHE_ENABLED = "off" } }).out)
  end)

  -- variables and what the start says to them, beside CACHE_REDIS_HOST=h
  for variables, text in pairs {
    ["CACHE_REDIS_MODE=cluster"] = "CACHE_REDIS_MODE: Redis Cluster: not in this version",
    ["CACHE_REDIS_MODE=Sentinel CACHE_REDIS_SENTINEL_MASTER=m"] =
      "CACHE_REDIS_MODE: Redis Sentinel: not in this version",
    ["CACHE_REDIS_TLS=yes"] = "CACHE_REDIS_TLS: TLS: not in this version",
    ["CACHE_REDIS_HOST= CACHE_REDIS_URL=rediss://h"] =
      "CACHE_REDIS_URL: TLS (rediss://): not in this version",
    ["CACHE_REDIS_READ_FROM=replica"] =
      "CACHE_REDIS_READ_FROM: reads from replicas: not in this version",
    ["CACHE_REDIS_READ_FROM=any"] =
      "CACHE_REDIS_READ_FROM: reads from replicas: not in this version",
    ["CACHE_REDIS_HOST=a,b CACHE_REDIS_MODE=standalone"] =
      "CACHE_REDIS_HOST: several hosts, but a standalone Redis has one",
    ["CACHE_REDIS_HOST=" .. ("a,"):rep(16) .. "a"] =
      "CACHE_REDIS_HOST: more than 16 hosts, or a name of more than 255 bytes",
    ["CACHE_REDIS_HOST=" .. ("a"):rep(256)] =
      "CACHE_REDIS_HOST: more than 16 hosts, or a name of more than 255 bytes",
    ["CACHE_REDIS_HOST= CACHE_REDIS_URL=redis://" .. ("a"):rep(256)] =
      "CACHE_REDIS_URL: the host's name has more than 255 bytes",
    ["CACHE_REDIS_HOST= CACHE_REDIS_URL=unix:///" .. ("s"):rep(107)] =
      "CACHE_REDIS_URL: the socket's path has more than 107 bytes",
    ["CACHE_REDIS_USERNAME=" .. ("u"):rep(256)] = "CACHE_REDIS_USERNAME: more than 255 bytes",
    ["CACHE_REDIS_PASSWORD_FILE=/nobody/here"] =
      "CACHE_REDIS_PASSWORD_FILE: cannot read /nobody/here: No such file or directory",
    ["CACHE_REDIS_PASSWORD_FILE=/tmp"] =
      "CACHE_REDIS_PASSWORD_FILE: cannot read /tmp: Is a directory",
    ["CACHE_REDIS_PASSWORD_FILE=/dev/null"] =
      "CACHE_REDIS_PASSWORD_FILE: cannot read /dev/null: it is empty",
  } do
    it("stops the start at " .. variables:sub(1, 60), function()
      local env = { CACHE_REDIS_HOST = "h" }
      for name, value in variables:gmatch "(%S+)=(%S*)" do env[name] = value end
      for _, options in ipairs { { "-e", "print 'ran'" }, { "--busted" } } do
        options.env = env
        assert.same({ code = 1, out = "", err = "moonstash: " .. text .. "\n" }, run(options))
      end
      assert.equal("moonstash: " .. text .. "\n", run({ "--env", env = env }).err)
    end)
  end

  it("takes what Redis needs without a Redis for nothing", function()
    local env = { CACHE_REDIS_MODE = "cluster", CACHE_REDIS_TLS = "1",
      CACHE_REDIS_PASSWORD_FILE = "/nobody/here", CACHE_REDIS_HOST = "" }
    assert.same({ code = 0, out = "ran\n", err = "" }, run { "-e", "print 'ran'", env = env })
  end)

  it("refuses an address for metrics, which this version does not serve", function()
    local text = "CACHE_METRICS_LISTEN: not in this version\n"
    assert.same({ code = 1, out = "", err = "moonstash: " .. text },
      run { "-e", "print 'ran'", env = { CACHE_METRICS_LISTEN = "127.0.0.1:9100" } })
    local result = run { "-e", "cache.configure_caches { metrics_listen = '127.0.0.1:9100' }" }
    assert.equal(1, result.code)
    assert.matches("METRICS_LISTEN: not in this version", result.err, 1, true)
  end)

  it("warns of an unknown CACHE_ name and gives the nearest, then goes on", function()
    local result = run { "-e", "print 'ran'", env = { CACHE_DEFUALT_TTL = "60" } }
    assert.same({ code = 0, out = "ran\n", err = "moonstash: warning: "
      .. "CACHE_DEFUALT_TTL is not a setting; did you mean CACHE_DEFAULT_TTL?\n" }, result)
  end)

  it("warns once of each unknown name, and only of CACHE_ ones", function()
    local result = run { "-e", "require 'cache'",
      env = { CACHE_ENABLD = "1", CACHE_SOMETHING_ELSE = "1", CACHED = "1", MYCACHE_X = "1" } }
    assert.equal(0, result.code)
    local _, lines = result.err:gsub("\n", "\n")
    assert.equal(2, lines)
    assert.matches("CACHE_SOMETHING_ELSE is not a setting\n", result.err)
  end)

  for variable, value in pairs {
    CACHE_ENABLED = "maybe",
    CACHE_DEFAULT_TTL = "5 minutes",
    CACHE_PERSISTENT_TTL = "-1",
    CACHE_REDIS_PORT = "70000",
    CACHE_MEMORY_MAX_BYTES = "lots",
    MOONSTASH_LOG = "loud",
  } do
    it(("stops the start at %s=%s, in one line that names both"):format(variable, value), function()
      local result = run { "-e", "print 'ran'", env = { [variable] = value } }
      assert.is_true(result.code > 0)
      assert.equal("", result.out)
      assert.matches("^moonstash: [^\n]*\n$", result.err)
      assert.truthy(result.err:find(variable, 1, true))
      assert.truthy(result.err:find("'" .. value .. "'", 1, true))
    end)
  end

  it("never prints a secret that it refuses", function()
    local result = run { "--env", env = { CACHE_REDIS_PASSWORD = "hunter2\n" } }
    assert.is_true(result.code > 0)
    assert.falsy(result.err:find("hunter2", 1, true))
    assert.truthy(result.err:find("CACHE_REDIS_PASSWORD", 1, true))
  end)

  it("lets MOONSTASH_LOG say how much is told", function()
    local env = { CACHE_ENABLD = "1" }
    assert.matches("warning", run({ "-e", "", env = env }).err)
    assert.matches("info: Redis is not configured",
      run({ "-e", "require 'cache'", env = { MOONSTASH_LOG = "info" } }).err)
  end)
end)
