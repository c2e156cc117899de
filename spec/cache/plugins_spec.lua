-- Plugins: hooks around every operation, and the two plugins that come along.
local cache = require "cache"
local process = require "spec.support.process"
local support = require "spec.cache.support"
local task = require "task"

local raises, settle = support.raises, support.settle
local ALIAS = "plugins_spec"
local OPERATIONS = { "get", "set", "add", "delete", "exists", "increment", "expire", "ttl",
  "multi_get", "multi_set", "multi_delete", "clear", "info", "touch", "raw" }

local function pack(...) return { n = select("#", ...), ... } end

local c = nil -- the Cache object with the plugins

local function use(...)
  cache.configure_caches { aliases = { [ALIAS] = { plugins = { ... } } } }
  c = cache.get_cache(ALIAS)
  return c
end

local function fresh()
  support.fresh()
  use():clear()
end

-- A plugin that notes each hook's name and arguments in `calls`.
local function recorder()
  local calls, plugin = {}, {}
  for _, op in ipairs(OPERATIONS) do
    for _, name in ipairs { "pre_" .. op, "post_" .. op } do
      plugin[name] = function(...) calls[#calls + 1] = { name = name, args = pack(...) } end
    end
  end
  return plugin, calls
end

local function names_of(calls)
  local names = {}
  for i, call in ipairs(calls) do names[i] = call.name end
  return table.concat(names, " ")
end

describe("plugins, misused,", function()
  before_each(fresh)

  it("raise when they are configured", function()
    local function refuses(text, plugins)
      raises("configure_caches: aliases.x" .. text, cache.configure_caches,
        { aliases = { x = { plugins = plugins } } })
    end
    refuses(".plugins must be a table, not string", "timing")
    refuses(": plugins must be a list of tables, not one plugin", cache.plugins.timing())
    refuses(": plugins[1] must be a table, not function", { print })
    refuses(": plugins[2] must be a table, not string", { {}, "timing" })
    refuses(": plugins[1]: there is no hook 'pre_gett'", { { pre_gett = print } })
    refuses(": plugins[2]: there is no hook 'post_fetch'", { {}, { post_fetch = print } })
    refuses(": plugins[1].pre_get must be a function, not string", { { pre_get = "print" } })
  end)

  it("may have other fields, and hooks from a metatable", function()
    local seen = 0
    local class = { post_get = function() seen = seen + 1 end }
    class.__index = class
    local plugin = setmetatable({ prefix_length = 5, path_name = "x", profile = {} }, class)
    use(plugin):get "k"
    assert.equal(1, seen)
  end)
end)

describe("hooks", function()
  before_each(fresh)

  -- Runs the operation; checks that its two hooks were called with the client,
  -- this key, these options, and the post hook with ret.
  local function check(op, key, opts, ret, ...)
    local plugin, calls = recorder()
    use(plugin)
    local result = c[op](c, ...)
    assert.same(ret, result, op)
    assert.equal(("pre_%s post_%s"):format(op, op), names_of(calls))
    local pre, post = calls[1].args, calls[2].args
    assert.equal(3, pre.n)
    for _, args in ipairs { pre, post } do
      assert.equal(c, args[1])
      assert.same(key, args[2])
      assert.same(opts, args[3])
    end
    assert.is_number(post[4])
    assert.is_true(post[4] >= 0 and post[4] < 5)
    assert.same(ret, post[5])
    return post
  end

  it("surround every operation and see key, options, time and result", function()
    local opts = { timeout = 5 }
    check("get", "k", nil, nil, "k")
    check("get", "k", nil, "default", "k", "default")
    check("get", "k", opts, nil, "k", nil, opts)
    check("set", "k", nil, true, "k", 1)
    check("set", "k", { ttl = 60 }, true, "k", 1, 60)
    check("set", "k", { ttl = 60, timeout = 1 }, true, "k", 1, { ttl = 60, timeout = 1 })
    check("add", "k", nil, false, "k", 1)
    check("add", "new", { ttl = false }, true, "new", 1, false)
    check("exists", "k", opts, true, "k", opts)
    check("increment", "k", opts, 3, "k", 2, opts)
    check("expire", "k", opts, true, "k", 0, opts)
    check("touch", "k", opts, true, "k", nil, opts)
    check("ttl", "k", opts, math.huge, "k", opts)
    assert.equal("native", check("info", "none", opts, nil, "none", opts) and c:info("k").format)
    check("delete", "k", opts, 1, "k", opts)
    check("delete", "k", nil, 0, "k")
    check("multi_set", { a = 1 }, { ttl = 5 }, true, { a = 1 }, 5)
    check("multi_get", { "a", "b" }, opts, { a = 1 }, { "a", "b" }, opts)
    check("multi_delete", { "a", "b" }, nil, 1, { "a", "b" })
    check("clear", nil, nil, true)
    check("clear", "ns", opts, true, "ns", opts)
    check("raw", "GET", nil, nil, "GET", "k")
  end)

  it("see errors beside the result", function()
    c:set("k", "text")
    local post = check("increment", "k", nil, nil, "k")
    assert.equal("type", post[6].code)
    c:set("k", "text", { dumps = tostring })
    post = check("get", "k", nil, "default", "k", "default")
    assert.equal("decode", post[6].code)
    post = check("raw", "GET", nil, nil, "GET")
    assert.equal("unsupported", post[6].code)
  end)

  it("of get learn whether it was a hit", function()
    assert.is_false(check("get", "k", nil, "default", "k", "default")[7])
    for _, value in ipairs { 1, 0, "", false, cache.null, {} } do
      c:set("k", value)
      assert.is_true(check("get", "k", nil, value, "k", "default")[7])
    end
  end)

  it("see the object that was called, with its namespace", function()
    local plugin, calls = recorder()
    local inner = use(plugin):with_namespace "in"
    inner:set("k", 1)
    assert.equal(inner, calls[1].args[1])
    assert.equal("k", calls[1].args[2])
  end)

  it("run for get_cached, set_cached, delete_cached and clear_cache", function()
    local plugin, calls = recorder()
    use(plugin)
    cache.set_cached("k", 1, { alias = ALIAS, ttl = 5 })
    cache.get_cached("k", { alias = ALIAS })
    cache.delete_cached("k", { alias = ALIAS })
    cache.clear_cache { alias = ALIAS }
    assert.equal("pre_set post_set pre_get post_get pre_delete post_delete pre_clear post_clear",
      names_of(calls))
    assert.same({ ttl = 5 }, calls[1].args[3])
  end)

  it("run in the order of the list, before and after", function()
    local order = {}
    local function plugin(mark)
      return {
        pre_get = function() order[#order + 1] = "pre " .. mark end,
        post_get = function() order[#order + 1] = "post " .. mark end,
      }
    end
    use(plugin "a", plugin "b"):get "k"
    assert.same({ "pre a", "pre b", "post a", "post b" }, order)
  end)

  it("may wait; took is the operation's time alone", function()
    local took
    use({
      pre_get = function() task.sleep(0.03) end,
      post_get = function() task.sleep(0.03) end,
    }, { post_get = function(_, _, _, t) took = t end })
    c:set("k", 1)
    local others = 0
    local t = task.spawn(function()
      for _ = 1, 3 do
        task.sleep(0.005)
        others = others + 1
      end
    end)
    assert.equal(1, c:get "k")
    t:join()
    assert.equal(3, others)
    assert.is_true(took < 0.06) -- what the hooks alone take
  end)

  it("may use the cache themselves", function()
    use { post_set = function(client, key) client:increment("sets of " .. key) end }
    c:set("k", 1)
    c:set("k", 2)
    assert.equal(2, c:get "sets of k")
  end)

  it("do not change the result", function()
    use { pre_get = function() return "pre" end, post_get = function() return "post" end }
    c:set("k", 1)
    assert.same(pack(1), pack(c:get "k"))
    assert.same(pack(nil), pack(c:get "none"))
  end)

  it("run beside each other for two calls at once", function()
    local inside, most = 0, 0
    use { pre_get = function()
      inside = inside + 1
      most = math.max(most, inside)
      task.sleep(0.01)
      inside = inside - 1
    end }
    local tasks = {}
    for i = 1, 5 do tasks[i] = task.spawn(c.get, c, "k", i) end
    for i = 1, 5 do assert.equal(i, tasks[i]:join()) end
    assert.equal(5, most)
  end)

  it("do not run when caching is off", function()
    local plugin, calls = recorder()
    use(plugin)
    cache.configure_caches { enabled = false }
    c:get "k"
    c:set("k", 1)
    c:multi_get { "k" }
    c:clear()
    cache.cached(function() return 1 end, { alias = ALIAS, name = "plugins.off" })()
    assert.same({}, calls)
    cache.configure_caches { enabled = true }
    c:get "k"
    assert.equal("pre_get post_get", names_of(calls))
  end)

  it("do not run when the arguments are wrong", function()
    local plugin, calls = recorder()
    use(plugin)
    for _, op in ipairs(OPERATIONS) do
      assert.is_false(pcall(c[op], c, op == "clear" and 5 or nil))
    end
    assert.is_false(pcall(c.set, c, "k", print))
    assert.same({}, calls)
  end)

  it("that raise are logged and ignored, the others run", function()
    local result = process.run { "-e", [[
      local seen = 0
      cache.configure_caches {aliases = {a = {plugins = {
        {pre_get = function() error "pre is broken" end,
         post_get = function() error({}) end,
         post_set = function() error(nil) end},
        {pre_get = function() seen = seen + 1 end, post_get = function() seen = seen + 1 end}}}}}
      local a = cache.get_cache "a"
      print(a:set("k", 1), a:get "k", seen)]] }
    assert.equal("true\t1\t2\n", result.out)
    assert.equal(0, result.code)
    assert.truthy(result.err:find("plugin pre_get failed: .-pre is broken"), result.err)
    assert.truthy(result.err:find("plugin post_get failed: table"), result.err)
    assert.truthy(result.err:find("plugin post_set failed: nil"), result.err)
    local _, lines = result.err:gsub("\n", "")
    assert.equal(3, lines)
  end)

  it("do not hold a cancelled caller, nor does its load get lost", function()
    local gate = task.event()
    use { pre_set = function() gate:wait() end }
    local f = cache.cached(function() return "value" end,
      { alias = ALIAS, name = "plugins.cancel" })
    local first = task.spawn(f)
    settle()
    local second = task.spawn(f)
    settle()
    first:cancel()
    settle()
    gate:set()
    assert.equal("value", second:join())
    first:pjoin()
    assert.equal("value", f())
  end)
end)

describe("wrappers", function()
  before_each(fresh)

  it("look up with the hooks of get, and store with those of set", function()
    local plugin, calls = recorder()
    use(plugin)
    local f = cache.cached(function(x) return x, nil, 3 end, { alias = ALIAS, name = "w", ttl = 5 })
    assert.same(pack(1, nil, 3), pack(f(1)))
    assert.equal("pre_get post_get pre_set post_set", names_of(calls))
    local get, set = calls[2].args, calls[4].args
    assert.same({ c, "w:1" }, { get[1], get[2] })
    assert.is_nil(get[5])
    assert.is_false(get[7])
    assert.same({ c, "w:1", { ttl = 5 } }, { set[1], set[2], set[3] })
    assert.is_true(set[5])
    assert.same(pack(1, nil, 3), pack(f(1)))
    assert.equal("pre_get post_get pre_set post_set pre_get post_get", names_of(calls))
    get = calls[6].args
    assert.equal(1, get[5]) -- the first result, as Cache:get gives it
    assert.is_nil(get[6])
    assert.is_true(get[7])
  end)

  it("say to post_set when nothing was stored", function()
    local plugin, calls = recorder()
    use(plugin)
    local gate = task.event()
    local f = cache.cached(function()
      gate:wait()
      return 1
    end, { alias = ALIAS, key = "k" })
    local t = task.spawn(f)
    settle()
    c:delete "k"
    gate:set()
    t:join()
    assert.equal("post_set", calls[#calls].name)
    assert.is_false(calls[#calls].args[5])
  end)

  it("run no set hooks for what is not to be stored", function()
    local plugin, calls = recorder()
    use(plugin)
    cache.cached(function() return nil, "err" end, { alias = ALIAS, key = "k" })()
    cache.cached(function() return 1 end,
      { alias = ALIAS, key = "k", cache_if = function() return false end })()
    pcall(cache.cached(function() error "broken" end, { alias = ALIAS, key = "k" }))
    assert.equal("pre_get post_get pre_get post_get pre_get post_get", names_of(calls))
  end)

  it("invalidate and refresh with hooks", function()
    local plugin, calls = recorder()
    use(plugin)
    local f = cache.cached(function() return 1 end, { alias = ALIAS, key = "k" })
    cache.handle(f):refresh()
    assert.equal(1, cache.handle(f):invalidate())
    assert.equal("pre_set post_set pre_delete post_delete", names_of(calls))
    assert.equal(1, calls[4].args[5])
    cache.handle(f):with { only_if_cached = true } ()
    assert.equal("post_get", calls[#calls].name)
  end)

  it("of many keys have hooks for each key", function()
    local plugin, calls = recorder()
    use(plugin)
    local f = cache.multi_cached(function() return { a = 1, b = 2, extra = 3 } end,
      { alias = ALIAS, name = "m", ttl = 5 })
    f { "a", "b" }
    local counts = {}
    for _, call in ipairs(calls) do
      local name = call.name .. " " .. call.args[2]
      counts[name] = (counts[name] or 0) + 1
      if call.name == "post_set" then
        assert.same({ ttl = 5 }, call.args[3])
        assert.is_true(call.args[5])
      end
    end
    assert.same({ ["pre_get m:a"] = 1, ["post_get m:a"] = 1, ["pre_get m:b"] = 1,
      ["post_get m:b"] = 1, ["pre_set m:a"] = 1, ["post_set m:a"] = 1, ["pre_set m:b"] = 1,
      ["post_set m:b"] = 1, ["pre_set m:extra"] = 1, ["post_set m:extra"] = 1 }, counts)
  end)

  it("give the right results whatever serializer and copy say", function()
    for _, definition in ipairs { {}, { serializer = "json" }, { serializer = "none" },
      { copy = false } } do
      local plugin = recorder()
      definition.plugins = { plugin }
      cache.configure_caches { aliases = { [ALIAS] = definition } }
      local f = cache.cached(function() return { 1 } end, { alias = ALIAS, key = "k" })
      c:clear()
      for _ = 1, 3 do assert.same(pack { 1 }, pack(f())) end
      assert.same({ 1 }, c:get "k")
      assert.same({ hits = 2, misses = 1, loads = 1, errors = 0 }, cache.handle(f):stats())
    end
  end)
end)

describe("the timing plugin", function()
  before_each(fresh)

  it("keeps total, average, most, least and count of every operation", function()
    local timing = cache.plugins.timing()
    use(timing)
    c:set("k", 1)
    c:get "k"
    c:get "none"
    local p = timing.profiling
    assert.equal(2, p.get_count)
    assert.equal(1, p.set_count)
    assert.is_nil(p.delete_count)
    assert.is_true(p.get_total >= 0 and p.get_min <= p.get_avg and p.get_avg <= p.get_max)
    assert.is_true(math.abs(p.get_total / 2 - p.get_avg) < 1e-9)
    assert.is_true(p.get_max <= p.get_total)
  end)

  it("computes them right (114)", function()
    local timing = cache.plugins.timing()
    timing.post_get(nil, "k", nil, 1)
    timing.post_get(nil, "k", nil, 2)
    assert.same({ get_count = 2, get_total = 3, get_avg = 1.5, get_max = 2, get_min = 1 },
      timing.profiling)
  end)

  it("is one of its own with each call, and times what each operation is called", function()
    local a, b = cache.plugins.timing(), cache.plugins.timing()
    assert.not_equal(a, b)
    use(a)
    c:multi_set { k = 1 }
    c:multi_get { "k" }
    c:clear()
    assert.same({ 1, 1, 1 },
      { a.profiling.multi_set_count, a.profiling.multi_get_count, a.profiling.clear_count })
    assert.same({}, b.profiling)
  end)
end)

describe("the hit ratio plugin", function()
  local ratio

  before_each(function()
    fresh()
    local plugin = cache.plugins.hit_miss_ratio()
    ratio = plugin.hit_miss_ratio
    use(plugin)
  end)

  it("begins at nothing", function()
    assert.same({ total = 0, hits = 0, hit_ratio = 0 }, ratio)
  end)

  it("counts hits of get (115, 117)", function()
    c:get "k"
    assert.same({ total = 1, hits = 0, hit_ratio = 0 }, ratio)
    c:set("k", 1)
    c:get "k"
    assert.same({ total = 2, hits = 1, hit_ratio = 0.5 }, ratio)
    c:get "k"
    c:get "k"
    assert.same({ total = 4, hits = 3, hit_ratio = 0.75 }, ratio)
  end)

  it("counts each key of multi_get (116)", function()
    c:multi_get { "a", "b" }
    c:multi_set { a = 1, b = false }
    c:multi_get { "a", "b" }
    assert.same({ total = 4, hits = 2, hit_ratio = 0.5 }, ratio)
    c:multi_get {}
    assert.equal(4, ratio.total)
  end)

  it("does not take a default for a hit (q)", function()
    c:get("k", "default")
    c:get("k", 5, { timeout = 1 })
    assert.same({ total = 2, hits = 0, hit_ratio = 0 }, ratio)
  end)

  it("takes every stored value for a hit, whatever it is", function()
    for _, value in ipairs { false, 0, "", cache.null } do
      c:set("k", value)
      c:get("k", "default")
      c:multi_get { "k" }
    end
    assert.same({ total = 8, hits = 8, hit_ratio = 1 }, ratio)
  end)

  it("does not take a value that cannot be read for a hit", function()
    c:set("k", "text", { dumps = tostring })
    c:get("k", "default")
    assert.same({ total = 1, hits = 0, hit_ratio = 0 }, ratio)
  end)

  it("counts wrappers, too, whatever they return", function()
    for i, results in ipairs { pack(1), pack(false), pack(1, 2), pack(nil, nil, 3), pack(nil) } do
      local f = cache.cached(function() return unpack(results, 1, results.n) end,
        { alias = ALIAS, name = "ratio." .. i, neg_ttl = 5 })
      ratio.total, ratio.hits = 0, 0
      f()
      assert.same({ 1, 0 }, { ratio.total, ratio.hits })
      f()
      f()
      assert.same({ 3, 2 }, { ratio.total, ratio.hits })
    end
  end)

  it("counts wrappers of many keys", function()
    local f = cache.multi_cached(function() return { a = 1, b = 2 } end,
      { alias = ALIAS, name = "ratio.many" })
    f { "a" }
    f { "a", "b", "c" }
    assert.same({ 4, 2 }, { ratio.total, ratio.hits })
  end)
end)
