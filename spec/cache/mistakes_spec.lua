-- Mistakes raise, and the message names the argument, what was expected, and
-- the line of the user's call.
local cache = require "cache"
local process = require "spec.support.process"
local support = require "spec.cache.support"

local raises = support.raises
local memory = cache.memory

describe("a mistake", function()
  before_each(support.fresh)

  -- fn(...) refuses `given` as an alias and lists those that exist, each of them
  -- and no other; other specs may have defined some.
  local function refuses_alias(what, given, fn, ...)
    raises(what .. ": alias must be one of '", fn, ...)
    local listed = select(2, pcall(fn, ...)):match("must be one of (.*), not " .. given .. "$")
    local names = {}
    for name in assert(listed, "not " .. given):gmatch "'([^']*)'" do
      names[name] = true
      assert.has_no_error(function() cache.get_cache(name) end)
    end
    assert.is_true(names.memory and names.persistent)
  end

  it("with an alias that does not exist raises and lists those that do", function()
    local function f() end
    refuses_alias("get_cache", "'nowhere'", cache.get_cache, "nowhere")
    refuses_alias("get_cache", "5", cache.get_cache, 5)
    refuses_alias("get_cache", "false", cache.get_cache, false)
    refuses_alias("get_cached", "'nowhere'", cache.get_cached, "k", { alias = "nowhere" })
    refuses_alias("set_cached", "'nowhere'", cache.set_cached, "k", 1, { alias = "nowhere" })
    refuses_alias("delete_cached", "'nowhere'", cache.delete_cached, "k", { alias = "nowhere" })
    refuses_alias("clear_cache", "'nowhere'", cache.clear_cache, { alias = "nowhere" })
    refuses_alias("cached", "'nowhere'", cache.cached, f, { alias = "nowhere" })
    refuses_alias("cached", "1", cache.cached, f, { alias = 1 })
    refuses_alias("multi_cached", "'nowhere'", cache.multi_cached, f, { alias = "nowhere" })
  end)

  it("with an alias that does not exist names just two when no other is defined", function()
    local result = process.run { "-e", [[
      local cache = require "cache"
      print(select(2, pcall(cache.get_cache, "sessions")))
      cache.configure_caches { aliases = { app = {} } }
      print(select(2, pcall(cache.get_cache, "sessions")))
    ]] }
    local two, three = result.out:match "^(.-)\n(.-)\n$"
    local message = "get_cache: alias must be one of %s, not 'sessions'"
    assert.equal(message:format "'memory', 'persistent'", two:match "get_cache.*")
    assert.equal(message:format "'app', 'memory', 'persistent'", three:match "get_cache.*")
  end)

  it("with an alias of a later version says so", function()
    raises("get_cache: the alias 'tiered' is not in this version", cache.get_cache, "tiered")
    raises("get_cached: the alias 'tiered' is not in this version", cache.get_cached, "k",
      { alias = "tiered" })
    raises("cached: the alias 'tiered' is not in this version", cache.cached, function() end,
      { alias = "tiered" })
  end)

  it("with an option that does not exist raises", function()
    raises("get: the option 'tll' is unknown", memory.get, memory, "k", nil, { tll = 1 })
    raises("set: the option 'tll' is unknown", memory.set, memory, "k", 1, { tll = 1 })
    raises("delete: the option 'ttl' is unknown", memory.delete, memory, "k", { ttl = 1 })
    raises("clear: the option '1' is unknown", memory.clear, memory, nil, { "x" })
    raises("get_cached: the option 'ttl' is unknown", cache.get_cached, "k", { ttl = 1 })
    raises("set_cached: the option 'tll' is unknown", cache.set_cached, "k", 1, { tll = 1 })
    raises("delete_cached: the option 'x' is unknown", cache.delete_cached, "k", { x = 1 })
    raises("clear_cache: the option 'x' is unknown", cache.clear_cache, { x = 1 })
    raises("cached: the option 'tll' is unknown", cache.cached, function() end, { tll = 1 })
    raises("cached: the option '1' is unknown", cache.cached, function() end, { 600 })
  end)

  it("with an option of a later version says so", function()
    local tags_message = ": the option 'tags' is not in this version"
    local opts = { tags = 1 }
    raises("get" .. tags_message, memory.get, memory, "k", nil, opts)
    raises("set" .. tags_message, memory.set, memory, "k", 1, opts)
    raises("add" .. tags_message, memory.add, memory, "k", 1, opts)
    raises("delete" .. tags_message, memory.delete, memory, "k", opts)
    raises("clear" .. tags_message, memory.clear, memory, nil, opts)
    raises("exists" .. tags_message, memory.exists, memory, "k", opts)
    raises("increment" .. tags_message, memory.increment, memory, "k", 1, opts)
    raises("expire" .. tags_message, memory.expire, memory, "k", 1, opts)
    raises("touch" .. tags_message, memory.touch, memory, "k", 1, opts)
    raises("ttl" .. tags_message, memory.ttl, memory, "k", opts)
    raises("info" .. tags_message, memory.info, memory, "k", opts)
    raises("multi_get" .. tags_message, memory.multi_get, memory, { "k" }, opts)
    raises("multi_set" .. tags_message, memory.multi_set, memory, { k = 1 }, opts)
    raises("multi_delete" .. tags_message, memory.multi_delete, memory, { "k" }, opts)
    raises("get_cached" .. tags_message, cache.get_cached, "k", opts)
    raises("set_cached" .. tags_message, cache.set_cached, "k", 1, opts)
    raises("delete_cached" .. tags_message, cache.delete_cached, "k", opts)
    raises("clear_cache" .. tags_message, cache.clear_cache, opts)
    for name in ([[version jitter idle_ttl max_ttl error_ttl lock lock_timeout
      stale_while_revalidate stale_if_error stale_if stale_backoff default
      soft_timeout hard_timeout background_completion refresh_ahead early_beta tags
      validate min_cost on_hit on_miss on_stale on_error compress sign max_l1_size
      l1_ttl invalidate envelope]]):gmatch "%S+" do
      local message = (": the option '%s' is not in this version"):format(name)
      raises("cached" .. message, cache.cached, function() end, { [name] = 1 })
      raises("multi_cached" .. message, cache.multi_cached, function() end, { [name] = 1 })
    end
    raises("cached: a function as ttl is not in this version", cache.cached, function() end,
      { ttl = function() end })
  end)

  it("with an option of the wrong type raises", function()
    for name, expected in pairs {
      namespace = "a string", timeout = "a number of seconds >= 0", dumps = "a function",
      wait = "a boolean",
    } do
      raises(("set: %s must be %s, not table"):format(name, expected), memory.set, memory, "k", 1,
        { [name] = {} })
    end
    raises("get: loads must be a function, not table", memory.get, memory, "k", nil, { loads = {} })
    raises("get: timeout must be a number of seconds >= 0, not -1", memory.get, memory, "k", nil,
      { timeout = -1 })
    raises("clear: the namespace must be a string, not number", memory.clear, memory, 5)
    for name, kind in pairs {
      namespace = "string", key = "string", skip_self = "boolean", cache_if = "function",
      copy = "boolean",
    } do
      raises(("cached: %s must be a %s, not a table"):format(name, kind), cache.cached,
        function() end, { [name] = {} })
    end
    raises("cached: neg_ttl must be a number of seconds >= 0", cache.cached, function() end,
      { neg_ttl = {} })
    raises("cached: serializer must be native, json, msgpack, string, none or {dumps, loads}",
      cache.cached, function() end, { serializer = 1 })
  end)

  it("with a method of a later version says so", function()
    for _, name in ipairs {
      "fetch", "fetch_many", "refresh", "remove_by_tag", "scan", "health", "lock",
      "optimistic_lock",
    } do
      raises(name .. " is not in this version", memory[name], memory, "k")
    end
  end)

  it("with options that are no table raises", function()
    raises("get: options must be a table, not number", memory.get, memory, "k", nil, 5)
    raises("delete: options must be a table, not string", memory.delete, memory, "k", "x")
    raises("clear: options must be a table, not boolean", memory.clear, memory, nil, true)
    raises("get_cached: options must be a table, not string", cache.get_cached, "k", "persistent")
    raises("set_cached: options must be a table, not number", cache.set_cached, "k", 1, 300)
    raises("delete_cached: options must be a table, not string", cache.delete_cached, "k", "x")
    raises("clear_cache: options must be a table, not string", cache.clear_cache, "persistent")
    raises("cached: options must be a table, not number", cache.cached, function() end, 600)
  end)

  it("with what cached is given raises", function()
    raises("cached: a function expected, not nil", cache.cached)
    raises("cached: a function expected, not table", cache.cached, { ttl = 5 })
    raises("cached: name must be a string, not a number", cache.cached, function() end,
      { name = 5 })
    raises("cached: name must not be empty", cache.cached, function() end, { name = "" })
    raises("cached: key_builder must be a function, not a string", cache.cached, function() end,
      { key_builder = "user:%d" })
  end)

  it("of a dot for a colon says so", function()
    raises("get: call it with a colon, as in cache.memory:get(...)", memory.get, "k")
    raises("set: call it with a colon", memory.set, "k", 1)
    raises("delete: call it with a colon", memory.delete, "k")
    raises("clear: call it with a colon", memory.clear)
    raises("stats: call it with a colon", memory.stats)
  end)

  it("changes nothing", function()
    memory:set("k", "kept")
    pcall(memory.set, memory, "k", 1, { tll = 1 })
    pcall(memory.set, memory, "k", 1, -1)
    pcall(memory.delete, memory, "k", { x = 1 })
    pcall(memory.clear, memory, 5)
    pcall(memory.clear, memory, nil, { tags = { "t" } })
    pcall(cache.clear_cache, { x = 1 })
    assert.equal("kept", memory:get "k")
  end)

  it("is shown at the user's line, through helpers, tail calls and coroutines", function()
    local dir = process.directory { ["app.lua"] = [[
local cache = require "cache"
local function helper(...)
  return cache.set_cached(...) -- a tail call
end
local f = cache.cached(function() return print end, { name = "f" })
local lines = {
  function()
    cache.get_cached(5)
  end,
  function()
    helper("k", { print })
    return 1
  end,
  function()
    error(select(2, coroutine.resume(coroutine.create(function()
      cache.memory:set("k", print)
    end))), 0)
  end,
  function()
    f(print)
    return 1
  end,
  function()
    f()
    return 1
  end,
  function()
    cache.configure_caches { x = 1 }
  end,
  function()
    cache.cached(f, { x = 1 })
  end,
  function()
    cache.settings.x = 1
  end,
  function()
    cache.get_cache("x")
    return 1
  end,
  function()
    cache.testing.advance(-1)
  end,
}
for _, fn in ipairs(lines) do print((select(2, pcall(fn)):match "^[^:]*:%d+:")) end
]] }
    local result = process.run { "app.lua", cwd = dir }
    assert.equal("", result.err)
    local expected = {}
    for _, line in ipairs { 8, 11, 16, 20, 24, 28, 31, 34, 37, 41 } do
      expected[#expected + 1] = ("app.lua:%d:\n"):format(line)
    end
    assert.equal(table.concat(expected), result.out)
  end)
end)
