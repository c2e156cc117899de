local process = require "spec.support.process"
local redis = require "spec.support.redis"
local task = require "task"

local file = assert(io.open "README.md")
local readme = file:read "*a"
file:close()

-- The fenced blocks of one language ("" for plain ones), in order.
local function blocks(language)
  local list, open, lines = {}, nil, nil
  for line in readme:gmatch "([^\n]*)\n" do
    local fence = line:match "^```(.*)$"
    if not fence then
      if open then lines[#lines + 1] = line end
    elseif open then
      if open == language then list[#list + 1] = table.concat(lines, "\n") end
      open = nil
    else
      open, lines = fence, {}
    end
  end
  return list
end

-- What is under a heading ("## Redis"), up to the next one of its level.
local function section(heading)
  local begin = assert(readme:find("\n" .. heading .. "\n", 1, true), heading)
  local level = heading:match "^#+ "
  return readme:sub(begin, (readme:find("\n" .. level, begin + 1, true) or 0) - 1)
end

local function needs_redis(text)
  return text:find 'backend = "redis"' or text:find "export CACHE_REDIS_HOST=%S"
end

-- What the README's programs print; with server they find that one where they
-- look for Redis.
local function expect_output(script, env)
  local expected, printed = {}, {}
  for line in script:gmatch "[^\n]+" do
    local text = line:match "%-%-> (.*)$"
    if text then expected[#expected + 1] = text:gsub(";.*", ""):gsub("%s+", " ") end
  end
  local result = process.run { "-", input = script, env = env }
  assert.equal("", result.err, script)
  assert.equal(0, result.code)
  for line in result.out:gmatch "[^\n]+" do printed[#printed + 1] = line:gsub("%s+", " ") end
  if #expected > 0 then assert.same(expected, printed) end
end

describe("README.md", function()
  it("opens with a script whose output is as printed", function()
    local script, output = blocks "lua"[1], blocks ""[1] .. "\n"
    local _, lines = script:gsub("\n", "\n")
    assert.is_true(lines < 10)
    local result = process.run { "-", input = script }
    assert.equal("", result.err)
    assert.equal(output, result.out)
  end)

  it("has two commands, one line each, before any other shell block", function()
    local commands = blocks "sh"
    assert.equal(2, #commands)
    for _, command in ipairs(commands) do
      local _, lines = command:gsub("\n", "")
      assert.equal(0, lines)
      assert.matches("%-%-no%-remove", command)
      assert.matches("%-%-no%-install%-recommends", command)
    end
    assert.matches("build/moonstash examples/tour.lua", commands[1])
    assert.matches("ctest", commands[2])
  end)

  it("has Lua that runs and prints what its comments say", function()
    for _, script in ipairs(blocks "lua") do
      if not needs_redis(script) then expect_output(script) end
    end
  end)

  it("has a development block that does what its comments say", function()
    local seen = 0
    for paragraph in (blocks "bash"[1] .. "\n\n"):gmatch "(.-)\n\n" do
      local env, on_redis = {}, needs_redis(paragraph)
      for name, value in paragraph:gmatch "export ([%w_]+)=(%S*)" do env[name] = value end
      local server = on_redis and not redis.missing() and redis.start()
      if server then env.CACHE_REDIS_PORT = tostring(server.port) end
      local result = (server or not on_redis) and process.run { "-e", [[
        print(cache.settings.enabled, cache.settings.default_ttl, cache.settings.persistent_ttl)
        cache.set_cached("k", 1)
        cache.set_cached("k", 2, {alias = "persistent"})
        print(cache.get_cached "k", cache.get_cached("k", {alias = "persistent"}))
      ]], env = env }
      if server then assert.equal("2", server:cli("GET", "k")) end
      local expected = paragraph:find "Disable" and "false\t300\t3600\nnil\tnil\n"
        or on_redis and "true\t300\t3600\n1\t2\n"
        or "true\t60\t300\n1\t2\n"
      if result then
        assert.equal("", result.err)
        assert.equal(expected, result.out)
      end
      seen = seen + 1
    end
    assert.equal(3, seen)
  end)

  it("lists every setting that does something", function()
    for _, name in ipairs { "CACHE_ENABLED", "CACHE_DEFAULT_TTL", "CACHE_PERSISTENT_TTL",
      "CACHE_MEMORY_MAX_BYTES", "MOONSTASH_LOG" } do
      assert.truthy(readme:find(name, 1, true), name)
    end
    for name in process.run({ "--env" }).out:gmatch "CACHE_%w*REDIS[%w_]*" do
      local without_it = name:find "TLS_" or name:find "SENTINEL_"
      assert.truthy(without_it or section("## Redis"):find("`" .. name, 1, true), name)
    end
  end)

  it("lists every option of the command line", function()
    local help = process.run({ "--help" }).out
    for option in help:gmatch "\n  (%-%-%a+)" do
      assert.truthy(readme:find("`" .. option, 1, true), option)
    end
  end)

  it("lists every function of the task module", function()
    for name in pairs(require "task") do
      local listed = readme:find(name .. "[%(%[]") or readme:find("`" .. name)
      assert.truthy(name == "counters" or listed, name)
    end
  end)
end)

-- ---- Redis -------------------------------------------------------------------

local PYTHON = "/usr/bin/python3" -- Debian's, which sees Debian's modules

-- Makes a client's connection and gives err.code of a get after it; nil when
-- there was no error. before(): what happens between a first get and that one.
local GET = [[
  local cache, task = require "cache", require "task"
  local caught = {}
  local first, err = cache.persistent:get "k"
  if ... then
    io.write "ready\n" io.flush()
    local f
    repeat task.sleep(0.002) f = io.open(...) until f
    first, err = cache.persistent:get "k"
  end
  print("code " .. (err and err.code or "none"))
]]

local function code_of(url, change, env)
  env = env or {}
  env.CACHE_REDIS_URL, env.CACHE_REDIS_TIMEOUT = url, env.CACHE_REDIS_TIMEOUT or "0.3"
  local dir = process.directory { ["get.lua"] = GET }
  local client = process.start { dir .. "/get.lua", change and dir .. "/go" or nil, env = env }
  if change then
    client:wait_for "ready\n"
    change(client)
    assert(io.open(dir .. "/go", "w")):close()
  end
  local result = client:wait()
  assert.equal(0, result.code, result.err)
  return result.out:match "code (%S+)", result.err
end

-- How to bring about each outage of the README's table: gives the code and what
-- was logged.
local outages = {
  ["down at the start"] = function() return code_of "redis://127.0.0.1:1" end,
  ["no answer to the connect"] = function()
    local server = redis.start()
    server:freeze()
    return code_of(server.url, nil,
      { CACHE_REDIS_TIMEOUT = "5", CACHE_REDIS_CONNECT_TIMEOUT = "0.2" })
  end,
  ["killed, or reset"] = function()
    local server = redis.start()
    return code_of(server.url, function(client)
      server:kill()
      client:wait_for("commands fail", "err")
    end)
  end,
  ["restarted while idle"] = function()
    local fake = redis.fake(
      "handshake\nserve count=1\nsleep 1200\nclose\nconnection\nhandshake\nserve")
    return code_of(fake.url, function() fake:wait_for "2 open" end)
  end,
  frozen = function()
    local server = redis.start()
    return code_of(server.url, function() server:freeze() end)
  end,
  slow = function() return code_of(redis.fake("handshake\nserve delay=600").url) end,
  ["loading its data"] = function()
    return code_of(redis.fake("handshake until=HELLO\nread 2\nsend +OK\\r\\n"
      .. "-LOADING Redis is loading the dataset in memory\\r\\n\nhang").url)
  end,
  ["wrong password"] = function()
    local server = redis.start { password = "secret" }
    return code_of(("redis://:other@%s:%d"):format(server.host, server.port))
  end,
  ["too many clients"] = function()
    local server = redis.start { args = { "--maxclients", "1" } }
    local other = process.start { program = "redis-cli", "-p", tostring(server.port), input = true }
    other:write "SET k v\n"
    other:wait_for "OK"
    return code_of(server.url)
  end,
  ["older than 6.2"] = function() return code_of(redis.fake("handshake version=6.0.16").url) end,
  ["a cluster"] = function() return code_of(redis.fake("handshake mode=cluster").url) end,
  ["not Redis, or out of step"] = function()
    return code_of(redis.fake("read 1\nsend HTTP/1.1 400 Bad Request\\r\\n\nhang").url)
  end,
  ["an error reply"] = function()
    return code_of(redis.fake("handshake\nread 1\nsend -READONLY You cannot\\r\\n\nhang").url)
  end,
  ["a key of another type"] = function()
    local server = redis.start()
    server:cli("LPUSH", "k", "v")
    return code_of(server.url)
  end,
}

describe("README.md, Redis", function()
  local chapter = section "## Redis"

  local function it_on_redis(sentence, fn)
    it(sentence, function()
      if redis.missing() then return pending(redis.missing()) end
      fn()
    end)
  end

  it_on_redis("has an example that other programs understand, and that understands them", function()
    local server = redis.start()
    local env = { CACHE_REDIS_HOST = "localhost", CACHE_REDIS_PORT = tostring(server.port) }
    for _, script in ipairs(blocks "lua") do
      if needs_redis(script) then expect_output(script, env) end
    end
    local python = blocks "python"[1]:gsub("6379", server.port)
    local has_module = process.run { program = PYTHON, "-c", "import redis" }
    if has_module.code == 0 then
      local result = process.run { program = PYTHON, "-", input = python }
      assert.equal("", result.err)
      assert.equal(python:match "# (.-)\n" .. "\n", result.out)
    else
      assert(not process.required "python", has_module.err)
      server:cli("SET", "api:user:8", '{"name": "Bob"}')
    end
    for command, answer in blocks "console"[1]:gmatch "%$ redis%-cli ([^\n]+)\n([^\n]+)" do
      local result = process.run { program = "sh", "-c",
        ("redis-cli -p %d %s"):format(server.port, command) }
      assert.equal(answer .. "\n", result.out)
    end
    local result = process.run { "-", env = env, input = [[
      local cache = require "cache"
      cache.configure_caches { aliases = { api = { serializer = "json", namespace = "api",
        backend = "redis" } } }
      local api = cache.get_cache "api"
      print(api:get("user:8").name, api:multi_get({ "user:9" })["user:9"].name, api:get "visits")
    ]] }
    assert.equal("Bob\tCy\t2\n", result.out)
  end)

  it_on_redis("has the outages that callers see as it says", function()
    local said, seen, tasks = {}, {}, {}
    local rows = chapter:match "\n| outage |[^\n]+\n[^\n]+\n(.-)\n\n" .. "\n"
    for name, code, more in rows:gmatch "| ([^|]-) | (%l+) |([^\n]+)" do
      name = name:gsub(" %(.*", "")
      local loud = more:find "gone, back" ~= nil and name ~= "frozen" -- that comes later
      said[name] = { code, loud }
      tasks[#tasks + 1] = function()
        local result, log = outages[name]()
        seen[name] = { result, log:find("; [^;]+ fail until", 1) ~= nil
          or log:find("; it is tried again", 1, true) ~= nil }
      end
    end
    task.gather(tasks)
    assert.same(said, seen)
  end)

  it_on_redis("lists the commands that suffice", function()
    local server = redis.start()
    local line = assert(chapter:match "\n    redis%-cli (ACL SETUSER [^\n]+)")
    local words = {}
    for word in line:gsub("'", ""):gmatch "%S+" do words[#words + 1] = word end
    assert.equal("OK", server:cli(words))
    local result = process.run { "-", env = { CACHE_NAMESPACE = "app",
      CACHE_REDIS_URL = ("redis://app:secret@%s:%d"):format(server.host, server.port) }, input = [[
      local cache = require "cache"
      local c = cache.persistent
      local function works(value, err)
        if err then error(tostring(err), 0) end
        return value
      end
      works(c:set("k", { 1 })) works(c:get "k") works(c:add("k", 1)) works(c:exists "k")
      works(c:increment "n") works(c:increment("m", 1, { ttl = 9 })) works(c:expire("n", 9))
      works(c:expire("n", 0)) works(c:touch "n") works(c:touch("n", 9)) works(c:ttl "n")
      works(c:info "k") works(c:multi_set { a = 1 }) works(c:multi_get { "a", "b" })
      works(c:multi_delete { "a" }) works(c:delete "k") works(c:with_namespace("x"):clear())
      local f = cache.cached(function() return 1 end, { alias = "persistent", name = "f" })
      assert(f() == 1 and f() == 1 and cache.handle(f):invalidate() == 1)
      works(c:clear())
      print(select(2, c:raw("SET", "other", 1)).code)
    ]] }
    assert.equal("", result.err)
    assert.equal("server\n", result.out)
    assert.equal("", server:cli("KEYS", "*"))
  end)

  it("lists the counters that stats gives", function()
    local result = process.run { "-e",
      "for name in pairs(cache.persistent:stats()) do print(name) end",
      env = { CACHE_REDIS_HOST = "127.0.0.1:1" } }
    local text = chapter:match "`stats%(%)` of such an alias:(.-)\n\n"
    for name in result.out:gmatch "%S+" do
      assert.truthy(text:find("%f[%w_]" .. name .. "%f[^%w_]"), name)
    end
  end)

  it("stops the start for what is not in this version", function()
    for name, value in pairs { CACHE_REDIS_MODE = "cluster", CACHE_REDIS_TLS = "true",
      CACHE_REDIS_READ_FROM = "replica", CACHE_REDIS_URL = "rediss://localhost" } do
      local env = { [name] = value }
      if name ~= "CACHE_REDIS_URL" then env.CACHE_REDIS_HOST = "localhost" end
      local result = process.run { "-e", "", env = env }
      assert.equal(1, result.code)
      assert.matches("^moonstash: " .. name .. ": [^\n]*not in this version\n$", result.err)
    end
  end)
end)
