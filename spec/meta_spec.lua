-- lua/meta documents what the modules export, all of it and nothing else.
local cache = require "cache"
local host = require "moonstash.host"
local redis = require "spec.support.redis"
local task = require "task"

-- Methods that are no part of the API begin with an underscore, or raise that
-- they are not in this version.

local function read(name)
  local file = assert(io.open(("lua/meta/%s.lua"):format(name)))
  local text = file:read "*a"
  file:close()
  return text
end

-- What a meta file declares: functions by full name ("cache.get_cached",
-- "Cache:get"), each {params, lines of its comment}; classes by name, each
-- field to type, with those of the class it extends; and tables of the module
-- by name ("testing").
local function parse(text)
  local functions, classes, tables, doc, current = {}, {}, {}, {}, nil
  for line in text:gmatch "[^\n]*" do
    local name, params = line:match "^function ([%w_.:]+)%(([^)]*)%) end$"
    local field, kind = line:match "^%-%-%-@field ([%w_]+%??) (.*)$"
    if name then
      functions[name] = { params = params, doc = doc }
    elseif line:find "^%-%-%-@class" then
      local parent
      current, parent = line:match "^%-%-%-@class ([%w_.]+)", line:match "^%S+ %S+ : ([%w_.]+)"
      classes[current] = {}
      if parent then assert(classes[parent], line .. ": that class is not above it") end
      for inherited, its_kind in pairs(classes[parent] or {}) do
        classes[current][inherited] = its_kind
      end
    elseif field then
      classes[current][field:gsub("%?$", "")] = kind
    end
    local inner = line:match "^%a+%.(%a+) = {}$"
    if inner then tables[inner] = true end
    if line:find "^%-%-%-" then
      doc[#doc + 1] = line
    elseif line ~= "" or #doc == 0 then
      doc = {}
    end
  end
  return { functions = functions, classes = classes, tables = tables }
end

local function sorted(set)
  local list = {}
  for name in pairs(set) do list[#list + 1] = name end
  table.sort(list)
  return list
end

-- The names that are declared with this prefix ("cache.", "Cache:").
local function declared(meta, prefix)
  local names = {}
  for name in pairs(meta.functions) do
    local rest = name:match("^" .. prefix:gsub("%.", "%%.") .. "([%w_.]+)$")
    if rest then names[rest] = true end
  end
  return sorted(names)
end

-- The public functions of a table; prefix for those of a table inside.
local function functions_of(t, names, prefix)
  names, prefix = names or {}, prefix or ""
  for name, value in pairs(t) do
    local public = not name:find "^_"
    if public and type(value) == "function" then names[prefix .. name] = true end
  end
  return names
end

local function index_of(object)
  return getmetatable(object).__index
end

-- Does the method say that it is not in this version? Called without
-- arguments, none does anything that matters here.
local function is_later(name, method, object)
  local ok, err = pcall(method, object)
  return not ok and tostring(err):find(name .. " is not in this version$") ~= nil
end

local function is_async(fn)
  return table.concat(fn.doc, "\n"):find("---@async", 1, true) ~= nil
end

for module, text in pairs { cache = read "cache", task = read "task" } do
  local meta = parse(text)

  describe("lua/meta/" .. module .. ".lua", function()
    it("is a meta file that loads and gives a table", function()
      assert.equal("---@meta " .. module, text:match "^[^\n]*")
      local chunk = assert(loadstring(text))
      assert.is_table(setfenv(chunk, {})())
    end)

    it("describes every function, and its parameters by name and in order", function()
      for name, fn in pairs(meta.functions) do
        local doc = table.concat(fn.doc, "\n")
        local params, counted = {}, 0
        for line in doc:gmatch "[^\n]+" do
          local param = line:match "^%-%-%-@param ([%w_]+)" or line:match "^%-%-%-@param (%.%.%.)"
          if param then params[#params + 1] = param end
          if line:find "^%-%-%-%u" or line:find "^%-%-%-%l" or line:find "@return" then
            counted = counted + 1
          end
        end
        assert.equal(fn.params, table.concat(params, ", "), name)
        assert.is_true(counted > 0, name .. " has no description")
      end
    end)

    it("gives every parameter, field and result a type", function()
      for line in text:gmatch "[^\n]+" do
        if line:find "^%-%-%-@param" or line:find "^%-%-%-@field" then
          assert.truthy(line:match "^%-%-%-@%w+ [%w_.]+%?? %S+", line)
        elseif line:find "^%-%-%-@return" then
          assert.truthy(line:match "^%-%-%-@return %S+", line)
        end
      end
    end)
  end)
end

-- Every word of the cache's source: no option can have a name outside of it.
local function words_of_source()
  local words = { no_such_option = true }
  local modules = {}
  for name in pairs(package.preload) do modules[name] = true end
  for name in pairs(package.loaded) do modules[name] = true end
  for name in pairs(modules) do
    local file = io.open(("lua/%s.lua"):format(name:gsub("%.", "/")))
    if file and name:find "^cache" then
      for word in file:read "*a":gmatch "[%a_][%w_]*" do words[word] = true end
    end
    if file then file:close() end
  end
  return sorted(words)
end

describe("the cache module", function()
  local meta = parse(read "cache")
  local words = words_of_source()

  -- Those of the words that call(word) takes: does not refuse as unknown or
  -- as of a later version.
  local function accepted(call, refusal)
    local names = {}
    for _, word in ipairs(words) do
      local ok, err = pcall(call, word)
      if ok or not tostring(err):find(refusal:format(word), 1, true) then names[word] = true end
    end
    return sorted(names)
  end

  after_each(function() cache.configure_caches { aliases = { meta = {} } } end)

  it("has sources to look for options in", function()
    assert.is_true(#words > 500)
  end)

  it("exports the functions that are documented", function()
    local names = functions_of(cache)
    for name in pairs(meta.tables) do functions_of(cache[name], names, name .. ".") end
    assert.same(declared(meta, "cache."), sorted(names))
  end)

  it("exports the fields that are documented", function()
    local names = {}
    for name, value in pairs(cache) do
      if type(value) ~= "function" and not meta.tables[name] then names[name] = true end
    end
    assert.same(sorted(meta.classes.cachelib), sorted(names))
  end)

  it("gives Cache objects the methods that are documented", function()
    local here, object = {}, cache.memory:with_namespace "meta"
    for name in pairs(functions_of(index_of(object))) do
      here[name] = not is_later(name, object[name], object) or nil
    end
    assert.same(declared(meta, "Cache:"), sorted(here))
  end)

  it("gives handles the methods that are documented", function()
    local handle = cache.handle(cache.cached(print, { name = "meta.handle" }))
    assert.same(declared(meta, "Handle:"), sorted(functions_of(index_of(handle))))
  end)

  it("has the settings that are documented", function()
    local names, i = {}, 0
    while host.setting(i) do
      names[host.setting(i).name] = true
      i = i + 1
    end
    assert.same(sorted(meta.classes["cache.Settings"]), sorted(names))
  end)

  it("has the counters that are documented", function()
    local handle = cache.handle(cache.cached(print, { name = "meta.stats" }))
    local ratio = cache.plugins.hit_miss_ratio()
    assert.same(sorted(meta.classes["cache.Stats"]), sorted(cache.memory:stats()))
    assert.same(sorted(meta.classes["cache.StoreStats"]), sorted(cache.memory:stats().store))
    assert.same(sorted(meta.classes["cache.HandleStats"]), sorted(handle:stats()))
    assert.same(sorted(meta.classes["cache.HitMissRatio"]), sorted(ratio.hit_miss_ratio))
    for name in pairs(ratio) do assert.truthy(meta.classes["cache.HitMissRatioPlugin"][name]) end
    for name in pairs(cache.plugins.timing()) do
      assert.truthy(meta.classes["cache.TimingPlugin"][name], name)
    end
  end)

  -- Runs fn with persistent on a server that plays this script.
  local function on_redis(script, fn)
    local server = redis.fake("handshake\n" .. script)
    local before = { redis_url = "", redis_timeout = 1, log = cache.settings.log }
    task.defer(cache.configure_caches, before)
    cache.configure_caches { redis_url = server.url, redis_timeout = 0.05, log = "error" }
    fn(cache.persistent)
    cache.configure_caches(before)
  end

  it("has the counters of Redis that are documented", function()
    on_redis("hang", function(object)
      assert.same(sorted(meta.classes["cache.RedisStats"]), sorted(object:stats()))
    end)
  end)

  it("gives info the fields that are documented", function()
    cache.memory:set("meta", 1)
    assert.same(sorted(meta.classes["cache.Info"]), sorted(cache.memory:info "meta"))
    cache.memory:delete "meta"
  end)

  it("gives errors the fields that are documented, and codes that are", function()
    cache.configure_caches { aliases = { meta = { max_bytes = 65536 } } }
    local object, huge = cache.get_cache "meta", ("x"):rep(65536)
    object:set("text", "x")
    object:set("limit", 2 ^ 53)
    object:set("custom", 1, { dumps = tostring })
    local names, codes = {}, {}
    for _, result in ipairs {
      { object:set("k", huge) }, { object:multi_set { k = huge } }, { object:increment "text" },
      { object:increment "limit" }, { object:get "custom" }, { object:multi_get { "custom" } },
      { object:raw "PING" },
    } do
      for name in pairs(result[2]) do names[name] = true end
      codes[result[2].code] = true
    end
    assert.same(sorted(meta.classes["cache.Error"]), sorted(names))
    on_redis("read 1\nsend -ERR no\\r\\n\nhang", function(remote)
      codes[select(2, remote:get "k").code] = true -- server
      codes[select(2, remote:get "k").code] = true -- timeout
      local err
      repeat err = select(2, remote:set("k", 1, { wait = false })) until err
      codes[err.code] = true -- overloaded
    end)
    on_redis("hang", function(remote)
      remote:get "k" -- so that it is connected
      local waiting = task.spawn(remote.get, remote, "k", nil, { timeout = 5 })
      task.yield()
      cache.configure_caches { redis_url = "redis://127.0.0.1:1" }
      codes[select(2, waiting:join()).code] = true -- closed
      codes[select(2, remote:get "k").code] = true -- connection
    end)
    codes.no_memory = true -- which a spec cannot bring about
    local documented = {}
    local list = read "cache":match "\n%-%-%-@alias cache%.ErrorCode\n(.-)\n\n"
    for code in list:gmatch '| "([%w_]+)"' do documented[code] = true end
    assert.same(sorted(documented), sorted(codes))
  end)

  -- The calls by name, each with arguments that are right but for the options.
  local function with_options(name)
    local object, fn = cache.memory, print
    return ({
      ["cache.get_cached"] = function(opts) cache.get_cached("meta", opts) end,
      ["cache.set_cached"] = function(opts) cache.set_cached("meta", 1, opts) end,
      ["cache.delete_cached"] = function(opts) cache.delete_cached("meta", opts) end,
      ["cache.clear_cache"] = function(opts) cache.clear_cache(opts) end,
      ["cache.cached"] = function(opts) cache.cached(fn, opts) end,
      ["cache.multi_cached"] = function(opts) cache.multi_cached(fn, opts) end,
      ["Cache:get"] = function(opts) object:get("meta", nil, opts) end,
      ["Cache:set"] = function(opts) object:set("meta", 1, opts) end,
      ["Cache:add"] = function(opts) object:add("meta", 1, opts) end,
      ["Cache:delete"] = function(opts) object:delete("meta", opts) end,
      ["Cache:clear"] = function(opts) object:clear("meta", opts) end,
      ["Cache:exists"] = function(opts) object:exists("meta", opts) end,
      ["Cache:increment"] = function(opts) object:increment("meta", 1, opts) end,
      ["Cache:expire"] = function(opts) object:expire("meta", 1, opts) end,
      ["Cache:touch"] = function(opts) object:touch("meta", 1, opts) end,
      ["Cache:ttl"] = function(opts) object:ttl("meta", opts) end,
      ["Cache:info"] = function(opts) object:info("meta", opts) end,
      ["Cache:multi_get"] = function(opts) object:multi_get({ "meta" }, opts) end,
      ["Cache:multi_set"] = function(opts) object:multi_set({ meta = 1 }, opts) end,
      ["Cache:multi_delete"] = function(opts) object:multi_delete({ "meta" }, opts) end,
      ["Handle:with"] = function(opts)
        cache.handle(cache.cached(fn, { name = "meta.with" })):with(opts)
      end,
    })[name]
  end

  it("takes the options that are documented, and no other", function()
    for name, fn in pairs(meta.functions) do
      local call = with_options(name)
      assert.equal(fn.params:find "opts" ~= nil, call ~= nil, name)
      if call then
        local doc = table.concat(fn.doc, "\n")
        local class = doc:match "@param opts%?? [%w.|]-(cache%.%w+Options)%f[%W]"
        local options = sorted(assert(meta.classes[class], name .. " names no class of options"))
        assert.same(options, accepted(function(word) -- {} is good for no option
          call { [word] = {} }
        end, "the option '%s' is "), name)
      end
    end
  end)

  it("takes the fields of an alias that are documented, and no other", function()
    assert.same(sorted(meta.classes["cache.AliasDefinition"]), accepted(function(word)
      local definition = { backend = "none" } -- so that none is defined
      definition[word] = {}
      cache.configure_caches { aliases = { meta = definition } }
    end, "there is no field '%s'"))
  end)

  it("takes the fields of a serializer that are documented, and no other", function()
    local names = {}
    for _, word in ipairs(words) do
      local spec = { dumps = tostring, loads = tonumber }
      spec[word] = print
      if pcall(cache.configure_caches, { aliases = { meta = { serializer = spec } } }) then
        names[word] = true
      end
    end
    assert.same(sorted(meta.classes["cache.CustomSerializer"]), sorted(names))
  end)

  it("knows the serializers that are documented, and no other", function()
    local names, documented = {}, {}
    for _, word in ipairs(words) do
      if pcall(cache.configure_caches, { aliases = { meta = { serializer = word } } }) then
        names[word] = true
      end
    end
    local list = read "cache":match "\n%-%-%-@alias cache%.Serializer\n(.-)\n\n"
    for name in list:gmatch '| "([%w_]+)"' do documented[name] = true end
    assert.same(sorted(documented), sorted(names))
  end)

  it("has the hooks that are documented, and no other", function()
    local names = {}
    for _, word in ipairs(words) do
      for _, hook in ipairs { word, "pre_" .. word, "post_" .. word } do
        local ok, err = pcall(cache.configure_caches, { -- which must be a function
          aliases = { meta = { plugins = { { [hook] = 5 } } } },
        })
        if not ok and tostring(err):find(hook .. " must be a function", 1, true) then
          names[hook] = true
        end
      end
    end
    assert.same(sorted(meta.classes["cache.Plugin"]), sorted(names))
  end)

  it("waits in what is marked async, and nowhere else", function()
    local waiting = {} -- every hook waits
    for name in pairs(meta.classes["cache.Plugin"]) do waiting[name] = task.yield end
    cache.configure_caches { aliases = { meta = { plugins = { waiting } } } }
    local object, with_alias = cache.get_cache "meta", { alias = "meta" }
    local fn = function() return 1 end
    local cached = cache.cached(fn, { name = "meta.async", alias = "meta" })
    local handle = cache.handle(cached)
    local calls = {
      ["cache.get_cached"] = function() cache.get_cached("k", with_alias) end,
      ["cache.set_cached"] = function() cache.set_cached("k", 1, with_alias) end,
      ["cache.delete_cached"] = function() cache.delete_cached("k", with_alias) end,
      ["cache.clear_cache"] = function() cache.clear_cache(with_alias) end,
      ["cache.get_cache"] = function() cache.get_cache "meta" end,
      ["cache.configure_caches"] = function() cache.configure_caches {} end,
      ["cache.cached"] = function() cache.cached(fn, { name = "meta.a", alias = "meta" }) end,
      ["cache.multi_cached"] = function()
        cache.multi_cached(fn, { name = "meta.b", alias = "meta" })
      end,
      ["cache.handle"] = function() cache.handle(cached) end,
      ["cache.array"] = function() cache.array {} end,
      ["cache.register_class"] = function() cache.register_class("meta.class", cache.testing) end,
      ["cache.plugins.timing"] = function() cache.plugins.timing() end,
      ["cache.plugins.hit_miss_ratio"] = function() cache.plugins.hit_miss_ratio() end,
      ["cache.testing.advance"] = function() cache.testing.advance(0) end,
      ["Handle:key"] = function() handle:key(1) end,
      ["Handle:invalidate"] = function() handle:invalidate(1) end,
      ["Handle:refresh"] = function() handle:refresh(1) end,
      ["Handle:original"] = function() handle:original() end,
      ["Handle:stats"] = function() handle:stats() end,
      ["Handle:with"] = function() handle:with { force_refresh = true } end,
      ["Cache:get"] = function() object:get "k" end,
      ["Cache:set"] = function() object:set("k", 1) end,
      ["Cache:add"] = function() object:add("k", 1) end,
      ["Cache:delete"] = function() object:delete "k" end,
      ["Cache:clear"] = function() object:clear() end,
      ["Cache:exists"] = function() object:exists "k" end,
      ["Cache:increment"] = function() object:increment "n" end,
      ["Cache:expire"] = function() object:expire("k", 1) end,
      ["Cache:touch"] = function() object:touch "k" end,
      ["Cache:ttl"] = function() object:ttl "k" end,
      ["Cache:info"] = function() object:info "k" end,
      ["Cache:multi_get"] = function() object:multi_get { "k" } end,
      ["Cache:multi_set"] = function() object:multi_set { k = 1 } end,
      ["Cache:multi_delete"] = function() object:multi_delete { "k" } end,
      ["Cache:raw"] = function() object:raw "PING" end,
      ["Cache:stats"] = function() object:stats() end,
      ["Cache:with_namespace"] = function() object:with_namespace "meta" end,
    }
    assert.same(sorted(meta.functions), sorted(calls))
    for name, call in pairs(calls) do
      local others_ran = false
      local other = task.spawn(function() others_ran = true end)
      call()
      assert.equal(is_async(meta.functions[name]), others_ran, name)
      other:join()
    end
  end)
end)

describe("the task module", function()
  local meta = parse(read "task")

  it("exports the functions that are documented", function()
    assert.same(declared(meta, "task."), sorted(functions_of(task)))
  end)

  it("gives its objects the methods that are documented", function()
    assert.same(declared(meta, "Event:"), sorted(functions_of(index_of(task.event()))))
    assert.same(declared(meta, "Semaphore:"), sorted(functions_of(index_of(task.semaphore(1)))))
    assert.same(declared(meta, "Queue:"), sorted(functions_of(index_of(task.queue()))))
    assert.same(declared(meta, "Task:"),
      sorted(functions_of(require("moonstash.task").metatable.__index)))
    task.scope(function(scope)
      assert.same(declared(meta, "Scope:"), sorted(functions_of(index_of(scope))))
    end)
  end)

  it("has the counters that are documented", function()
    assert.same(sorted(meta.classes["task.Counters"]), sorted(task.counters()))
  end)

  it("marks what waits as async, and only that", function()
    local e, s, q = task.event(), task.semaphore(1), task.queue(1)
    s:acquire()
    local child
    local calls = { -- each would have to wait
      ["task.sleep"] = function() task.sleep(0) end,
      ["task.yield"] = function() task.yield() end,
      ["task.scope"] = function() task.scope(print) end,
      ["task.gather"] = function() task.gather { print } end,
      ["task.race"] = function() task.race { print } end,
      ["task.timeout"] = function() task.timeout(1, print) end,
      ["task.shield"] = function() task.shield(task.yield) end,
      ["task.await"] = function() task.await(function() end) end,
      ["Task:join"] = function() child:join() end,
      ["Task:pjoin"] = function() child:pjoin() end,
      ["Event:wait"] = function() e:wait() end,
      ["Semaphore:acquire"] = function() s:acquire() end,
      ["Semaphore:with"] = function() s:with(print) end,
      ["Queue:push"] = function()
        q:push(1)
        q:push(2)
      end,
      ["Queue:pop"] = function() task.queue():pop() end,
    }
    child = task.spawn(function() e:wait() end)
    for name, fn in pairs(meta.functions) do
      assert.equal(calls[name] ~= nil, is_async(fn), name)
    end
    for name, call in pairs(calls) do
      local ok, err = pcall(string.gsub, "x", ".", function() call() end)
      assert.is_false(ok, name)
      assert.truthy(tostring(err):find("cannot wait here", 1, true), name)
    end
    e:set()
    child:join()
  end)
end)
