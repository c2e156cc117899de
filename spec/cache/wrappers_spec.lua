-- cached and its handle, option by option. What every backend must do stands in
-- contract_spec.lua, who runs fn when in single_flight_spec.lua.
local cache = require "cache"
local support = require "spec.cache.support"
local task = require "task"
local time = require "spec.support.time"

local cached, handle, memory = cache.cached, cache.handle, cache.memory
local counted, raises, settle = support.counted, support.raises, support.settle
local advance = cache.testing.advance

local function pack(...) return { n = select("#", ...), ... } end

local names = 0
-- A wrapper under a name of its own, the counter of fn's calls, the name.
local function wrap(fn, opts)
  local load, counter = counted(fn)
  names = names + 1
  opts = opts or {}
  if not (opts.name or opts.key or opts.key_builder) then opts.name = "wrappers." .. names end
  return cached(load, opts), counter, opts.name
end

-- The same, with a gate that fn waits at.
local function gated(fn, opts)
  local gate = task.event()
  local f, counter, name = wrap(function(...)
    gate:wait()
    return fn(...)
  end, opts)
  return f, counter, gate, name
end

local function together(n, fn, ...)
  local tasks = {}
  for i = 1, n do tasks[i] = task.spawn(fn, ...) end
  settle()
  return tasks
end

local function fresh()
  support.fresh()
  cache.configure_caches { aliases = {
    wrappers_shared = { copy = false }, wrappers_none = { serializer = "none" },
    wrappers_json = { serializer = "json" }, wrappers_spaced = { namespace = "spaced", ttl = 7 },
  } }
end

describe("cached, misused,", function()
  before_each(fresh)

  it("raises unless it is given a function", function()
    for _, bad in pairs { 1, "f", true, {} } do
      raises("cached: a function expected, not " .. type(bad), cached, bad)
    end
    raises("cached: a function expected, not nil", cached)
    raises("cached: a function expected, not nil", cached, nil, { name = "x" })
  end)

  it("raises for options that are none, unknown, or of later versions", function()
    raises("cached: options must be a table, not string", cached, print, "name")
    raises("cached: options must be a table, not number", cached, print, 5)
    raises("cached: the option 'tll' is unknown", cached, print, { tll = 5 })
    raises("cached: the option '1' is unknown", cached, print, { "name" })
    for _, name in ipairs { "version", "jitter", "idle_ttl", "max_ttl", "error_ttl", "lock",
      "lock_timeout", "stale_while_revalidate", "stale_if_error", "stale_if", "stale_backoff",
      "default", "soft_timeout", "hard_timeout", "background_completion", "refresh_ahead",
      "early_beta", "tags", "validate", "min_cost", "on_hit", "on_miss", "on_stale", "on_error",
      "compress", "sign", "max_l1_size", "l1_ttl", "invalidate", "envelope" } do
      raises(("cached: the option '%s' is not in this version"):format(name), cached, print,
        { name = "x", [name] = 1 })
    end
  end)

  it("raises for an option of the wrong kind, and names it", function()
    local function refuses(text, opts)
      opts.name = opts.name == nil and "x" or opts.name
      raises("cached: " .. text, cached, print, opts)
    end
    refuses("name must be a string, not a number", { name = 5 })
    refuses("name must not be empty", { name = "" })
    refuses("key must be a string, not a boolean", { key = true })
    refuses("key: the key must have 1 to 65536 bytes, not 0", { key = "" })
    refuses("key_builder must be a function, not a string", { key_builder = "key" })
    refuses("skip_self must be a boolean, not a number", { skip_self = 1 })
    refuses("namespace must be a string, not a table", { namespace = {} })
    refuses("cache_if must be a function, not a boolean", { cache_if = true })
    refuses("copy must be a boolean, not a string", { copy = "no" })
    refuses("a function as ttl is not in this version", { ttl = function() return 1 end })
    for _, bad in pairs { -1, "5", true, {} } do
      local what = type(bad) == "number" and "-1" or type(bad)
      local says = " must be a number of seconds >= 0, or false for never, not " .. what
      refuses("ttl" .. says, { ttl = bad })
      refuses("neg_ttl" .. says, { neg_ttl = bad })
    end
    refuses("neg_ttl must not be 0: false turns it off", { neg_ttl = 0 })
    refuses("serializer must be native, json, msgpack, string, none or {dumps, loads}, not 'xml'",
      { serializer = "xml" })
    refuses("a serializer is {dumps = function, loads = function}", { serializer = {} })
    refuses("a serializer is {dumps = function, loads = function}",
      { serializer = { dumps = print } })
    refuses("alias must be one of ", { alias = "nobody" })
    refuses("alias must be one of ", { alias = 5 })
    refuses("the alias 'tiered' is not in this version", { alias = "tiered" })
  end)

  it("needs a name on every alias but memory", function()
    for _, name in ipairs { "persistent", "wrappers_json" } do
      raises(("cached: a wrapper on '%s' needs a name, key or key_builder"):format(name), cached,
        function() return 1 end, { alias = name })
      assert.is_function(cached(function() return 1 end, { alias = name, key = "k" }))
    end
    raises("cached: a C function needs a name", cached, print)
  end)

  it("raises when a call has no key, and does not run fn", function()
    local f, counter = wrap(function() return 1 end)
    raises("cached: an argument is a function, of which no key can be made: give a key_builder", f,
      print)
    local long = ("n"):rep(100)
    local g = wrap(function() return 1 end, { namespace = long, key = ("k"):rep(65500) })
    raises("cached: the namespace and the key have 65601 bytes together, the most is 65536", g)
    raises("invalidate: the namespace and the key have 65601 bytes together",
      handle(g).invalidate, handle(g))
    assert.equal(0, counter.calls)
  end)
end)

describe("cached's key", function()
  before_each(fresh)

  it("may be fixed: one value, whatever the arguments", function()
    local f, counter = wrap(function(x) return x end, { key = "fixed" })
    assert.same({ 1, 1, 1 }, { f(1), f(2), f() })
    assert.equal(1, counter.calls)
    assert.equal(1, memory:get "fixed")
    assert.equal("fixed", handle(f):key("anything", print))
  end)

  it("leaves out the first argument with skip_self", function()
    local f, counter, name = wrap(function(_, x) return x end, { skip_self = true })
    assert.equal(1, f({}, 1))
    assert.equal(1, f(io.stdout, 1))
    assert.equal(2, f(nil, 2))
    assert.equal(2, counter.calls)
    assert.equal(name .. ":1", handle(f):key({}, 1))
    assert.equal(name .. ":", handle(f):key {})
    assert.equal(name .. ":", handle(f):key())
  end)

  it("is found by one plain argument, and 1, \"1\", true and \"true\" differ", function()
    local f, counter = wrap(function(x) return { type(x), tostring(x) } end)
    for _ = 1, 3 do
      for _, x in ipairs { 1, "1", true, "true", false, "false", "", 0.1, "0.1" } do
        assert.same({ type(x), tostring(x) }, f(x))
      end
    end
    assert.equal(9, counter.calls)
    local keys = {}
    for _, x in ipairs { 1, "1", true, "true", false, "false" } do
      local key = handle(f):key(x)
      assert.equal(key, handle(f):key(x))
      assert.is_nil(keys[key])
      keys[key] = true
    end
  end)

  it("is the same for 0 and -0, and for one argument alone and remembered", function()
    local f, counter, name = wrap(function(x) return x end)
    f(0)
    f(-0)
    assert.equal(1, counter.calls)
    assert.equal(name .. ":0", handle(f):key(-0))
    assert.equal(name .. ":1:a", handle(f):key "a")
    assert.equal(name .. ":1:a", handle(f):key "a")
    assert.equal(name .. ":1:a,nil", handle(f):key("a", nil))
    assert.equal(name .. ":nil", handle(f):key(nil))
    assert.equal(name .. ":", handle(f):key())
  end)

  it("remembers a bounded number of arguments, and no long ones", function()
    local f = wrap(function(x) return x end, { name = "w" })
    local of = handle(f)
    collectgarbage()
    collectgarbage()
    local before = collectgarbage "count"
    for i = 1, 100000 do of:key("argument " .. i) end
    for i = 1, 300 do of:key(("x"):rep(60000) .. i) end
    collectgarbage()
    collectgarbage()
    assert.is_true(collectgarbage "count" - before < 5 * 1024) -- KiB
    assert.equal("w:15:argument 100000", of:key "argument 100000")
    assert.equal("w:10:argument 1", of:key "argument 1")
  end)

  it("follows the alias's namespace, unless the wrapper has its own", function()
    local f = wrap(function() return 1 end, { key = "k", alias = "wrappers_spaced" })
    local g = wrap(function() return 2 end,
      { key = "k", alias = "wrappers_spaced", namespace = "g" })
    local h = wrap(function() return 3 end,
      { key = "k", alias = "wrappers_spaced", namespace = "" })
    assert.same({ 1, 2, 3 }, { f(), g(), h() })
    local root = { namespace = "" }
    local spaced = cache.get_cache "wrappers_spaced"
    assert.same({ ["spaced:k"] = 1, ["g:k"] = 2, k = 3 },
      spaced:multi_get({ "spaced:k", "g:k", "k" }, root))
    assert.equal(1, spaced:get "k")
    assert.equal("k", handle(g):key())
    assert.equal(1, handle(g):invalidate())
    assert.is_nil(spaced:get("g:k", nil, root))
    assert.equal(1, spaced:get "k")
  end)
end)

describe("cached's times", function()
  before_each(fresh)

  it("are the wrapper's, else the alias's", function()
    wrap(function() return 1 end, { key = "a", ttl = 5 })()
    wrap(function() return 1 end, { key = "b" })()
    wrap(function() return 1 end, { key = "c", ttl = 0 })()
    local spaced = cache.get_cache "wrappers_spaced"
    wrap(function() return 1 end, { key = "d", alias = "wrappers_spaced" })()
    assert.is_true(time.is_left(5, memory:ttl "a"))
    assert.is_true(time.is_left(300, memory:ttl "b"))
    assert.equal(math.huge, memory:ttl "c")
    assert.is_true(time.is_left(7, spaced:ttl "d"))
  end)

  it("remember nothing for neg_ttl, never a nil, err", function()
    for _, nothing in ipairs { pack(), pack(nil), pack(nil, nil, nil) } do
      local f, counter = wrap(function() return unpack(nothing, 1, nothing.n) end,
        { neg_ttl = 3, ttl = 100 })
      assert.same(nothing, pack(f()))
      assert.same(nothing, pack(f()))
      assert.equal(1, counter.calls)
      advance(3)
      f()
      assert.equal(2, counter.calls)
    end
    local f, counter = wrap(function() return nil, "err" end, { neg_ttl = 3 })
    f()
    f()
    assert.equal(2, counter.calls)
    local g, never = wrap(function() end, { neg_ttl = false })
    g()
    g()
    assert.equal(2, never.calls)
    local h, forever = wrap(function() end, { neg_ttl = math.huge })
    h()
    advance(1e8)
    h()
    assert.equal(1, forever.calls)
  end)

  it("take a false for a value, not for nothing", function()
    local f, counter = wrap(function() return false end)
    assert.same({ false, false }, { f(), f() })
    assert.equal(1, counter.calls)
    local g, other = wrap(function() return cache.null end)
    assert.same({ cache.null, cache.null }, { g(), g() })
    assert.equal(1, other.calls)
  end)
end)

describe("cache_if", function()
  before_each(fresh)

  it("sees all results", function()
    local seen
    local f = wrap(function() return 1, nil, 3, nil end, { cache_if = function(...)
      seen = pack(...)
      return true
    end })
    f()
    assert.same(pack(1, nil, 3, nil), seen)
    assert.same(pack(1, nil, 3, nil), pack(f()))
  end)

  it("decides by what is true in Lua", function()
    for answer, calls in pairs { [true] = 1, [0] = 1, [false] = 2 } do
      local f, counter = wrap(function() return 1 end, { cache_if = function() return answer end })
      f()
      f()
      assert.equal(calls, counter.calls)
    end
    local f, counter = wrap(function() return 1 end, { cache_if = function() end })
    f()
    f()
    assert.equal(2, counter.calls)
  end)

  it("is asked about nothing with neg_ttl, and never about nil, err", function()
    local asked = 0
    local function cache_if()
      asked = asked + 1
      return false
    end
    wrap(function() end, { neg_ttl = 5, cache_if = cache_if })()
    assert.equal(1, asked)
    wrap(function() return nil, "err" end, { neg_ttl = 5, cache_if = cache_if })()
    wrap(function() end, { cache_if = cache_if })()
    assert.equal(1, asked)
  end)

  it("keeps out results that could not be cached", function()
    local f = wrap(function() return print end, { cache_if = function(v) return v ~= print end })
    assert.equal(print, f())
    assert.equal(print, f())
  end)

  it("raises to the caller and to all who wait, if it does", function()
    local f, counter, gate = gated(function() return 1 end,
      { cache_if = function() error("no idea", 0) end })
    local tasks = together(3, pcall, f)
    gate:set()
    for _, t in ipairs(tasks) do assert.same(pack(false, "no idea"), pack(t:join())) end
    assert.equal(1, counter.calls)
  end)
end)

-- What a wrapper hands out is nobody else's, unless copy = false.
describe("results", function()
  before_each(fresh)

  it("are copies, also for those who waited", function()
    local f, _, gate = gated(function() return { list = {} }, { 2 } end)
    local tasks = together(3, function() return { f() } end)
    gate:set()
    local seen = {}
    for _, t in ipairs(tasks) do
      local results = t:join()
      assert.same({ { list = {} }, { 2 } }, results)
      for _, part in ipairs { results[1], results[1].list, results[2] } do
        assert.is_nil(seen[part])
        seen[part] = true
      end
    end
  end)

  it("are copies for those who waited when they are not stored, too", function()
    local f, _, gate = gated(function() return { list = {} } end,
      { cache_if = function() return false end })
    local tasks = together(4, f)
    gate:set()
    local seen = {}
    for _, t in ipairs(tasks) do
      local value = t:join()
      assert.same({ list = {} }, value)
      assert.is_nil(seen[value] or seen[value.list])
      seen[value], seen[value.list] = true, true
      value.list[1] = "changed"
    end
  end)

  it("that cannot be copied are shared by those who waited", function()
    local object = setmetatable({}, {})
    local f, counter, gate = gated(function() return object, print end,
      { cache_if = function() return false end })
    local tasks = together(3, f)
    gate:set()
    for _, t in ipairs(tasks) do
      local a, b = t:join()
      assert.is_true(rawequal(object, a))
      assert.equal(print, b)
    end
    assert.equal(1, counter.calls)
  end)

  it("keep an error object as it is for those who waited", function()
    local err = { code = "mine" }
    local f, _, gate = gated(function() error(err) end)
    local tasks = together(3, pcall, f)
    gate:set()
    for _, t in ipairs(tasks) do
      local _, got = t:join()
      assert.is_true(rawequal(err, got))
    end
  end)

  it("are shared with copy = false: hits are one table", function()
    local f, counter = wrap(function() return { 1 } end, { copy = false, ttl = 10 })
    f()
    local hit = f()
    assert.same({ 1 }, hit)
    assert.is_true(rawequal(hit, f()))
    assert.equal(1, counter.calls)
    handle(f):invalidate()
    local own = f()
    assert.is_false(rawequal(hit, own))
    assert.is_false(rawequal(hit, f()))
    assert.is_true(rawequal(f(), f()))
    advance(10)
    f()
    assert.equal(3, counter.calls)
  end)

  it("are shared with copy = false when there are several", function()
    local f, counter = wrap(function() return { 1 }, nil, { 3 }, nil end, { copy = false })
    f()
    local a, b = pack(f()), pack(f())
    assert.same(pack({ 1 }, nil, { 3 }, nil), a)
    assert.is_true(rawequal(a[1], b[1]) and rawequal(a[3], b[3]))
    assert.equal(4, b.n)
    assert.equal(1, counter.calls)
  end)

  it("are shared with every serializer", function()
    for _, serializer in ipairs { "native", "json", "msgpack",
      { dumps = function(v) return v[1] end, loads = function(b) return { b } end } } do
      local f, counter = wrap(function() return { "x" } end,
        { copy = false, serializer = serializer })
      f()
      local hit = f()
      assert.same({ "x" }, hit)
      assert.is_true(rawequal(hit, f()))
      assert.equal(1, counter.calls)
    end
  end)

  it("are shared by all on an alias with copy = false, unless a wrapper copies", function()
    local shared = cache.get_cache "wrappers_shared"
    local f = wrap(function() return { 1 } end, { key = "k", alias = "wrappers_shared" })
    local g = wrap(function() return { 1 } end,
      { key = "k", alias = "wrappers_shared", copy = true })
    f()
    assert.is_true(rawequal(f(), f()))
    assert.is_true(rawequal(f(), shared:get "k"))
    assert.is_false(rawequal(g(), g()))
    assert.is_false(rawequal(g(), f()))
    shared:set("k", { 2 })
    assert.same({ 2 }, f())
    assert.is_true(rawequal(f(), shared:get "k"))
  end)

  it("are never those of before the alias was given another store", function()
    local shared = cache.get_cache "wrappers_shared"
    local f = wrap(function() return { "own" } end,
      { key = "k", alias = "wrappers_json", copy = false })
    for round = 1, 6 do
      cache.configure_caches { aliases = {
        wrappers_shared = { copy = false, max_bytes = round % 2 == 0 and 2 ^ 20 or nil },
        wrappers_json = { serializer = "json", max_bytes = round % 2 == 0 and 2 ^ 20 or nil },
      } }
      shared:set("k", { round })
      assert.same({ round }, shared:get "k")
      assert.same({ round }, shared:get "k")
      cache.get_cache("wrappers_json"):set("k", { round })
      assert.same({ round }, f())
      assert.same({ round }, f())
    end
  end)

  it("are fn's own with the serializer none, for all", function()
    local object = setmetatable({}, {})
    local f, counter, gate = gated(function() return object, print end, { serializer = "none" })
    local tasks = together(3, f)
    gate:set()
    for _, t in ipairs(tasks) do
      local a, b = t:join()
      assert.is_true(rawequal(object, a))
      assert.equal(print, b)
    end
    local a, b = f()
    assert.is_true(rawequal(object, a))
    assert.equal(print, b)
    assert.equal(1, counter.calls)
  end)

  it("reach those who waited also when a delete kept them out of the cache", function()
    for _, serializer in ipairs { "none", "native", "json" } do
      local f, counter, gate = gated(function() return { "value" } end,
        { key = "k", serializer = serializer })
      local tasks = together(3, f)
      memory:delete "k"
      gate:set()
      for _, t in ipairs(tasks) do assert.same({ "value" }, t:join()) end
      assert.equal(1, counter.calls)
      assert.is_false(memory:exists "k")
    end
  end)
end)

describe("a wrapper's serializer", function()
  before_each(fresh)

  it("is its own, or the alias's", function()
    wrap(function() return { 1 } end, { key = "a", serializer = "json" })()
    assert.equal("json", memory:info("a").format)
    wrap(function() return { 1 } end, { key = "b", alias = "wrappers_json" })()
    assert.equal("json", cache.get_cache("wrappers_json"):info("b").format)
    wrap(function() return { 1 } end,
      { key = "c", alias = "wrappers_json", serializer = "native" })()
    assert.equal("native", cache.get_cache("wrappers_json"):info("c").format)
  end)

  it("holds one result, unless it is native or none", function()
    for _, serializer in ipairs { "json", "msgpack", "string" } do
      local f, counter = wrap(function() return "a", "b" end, { serializer = serializer })
      raises(("cached: the function gave 2 results, and %s holds only one"):format(serializer), f)
      assert.equal(1, counter.calls)
      local g, other = wrap(function() return "a" end, { serializer = serializer })
      assert.same(pack "a", pack(g()))
      assert.same(pack "a", pack(g()))
      assert.equal(1, other.calls)
      local nothing, third = wrap(function() end, { serializer = serializer, neg_ttl = 5 })
      assert.same(pack(), pack(nothing()))
      assert.same(pack(), pack(nothing()))
      assert.equal(1, third.calls)
    end
    for _, serializer in ipairs { "native", "none" } do
      local f, counter = wrap(function() return "a", nil, "c", nil end, { serializer = serializer })
      assert.same(pack("a", nil, "c", nil), pack(f()))
      assert.same(pack("a", nil, "c", nil), pack(f()))
      assert.equal(1, counter.calls)
    end
  end)

  it("loads anew what it cannot read, once, and replaces it", function()
    local f, counter = wrap(function() return { "new" } end, { key = "k" })
    memory:set("k", "old", { dumps = function(v) return v end })
    assert.same({ "new" }, f())
    assert.same({ "new" }, f())
    assert.equal(1, counter.calls)
    assert.same({ "new" }, memory:get "k")
    local g, other, gate = gated(function() return { "newer" } end, { key = "k", serializer = {
      dumps = function() return "x" end, loads = function() return { "newer" } end } })
    memory:set("k", "old", { dumps = function(v) return v end })
    local broken = wrap(function() return 1 end, { key = "k", serializer = {
      dumps = tostring, loads = function() error "no" end } })
    assert.equal(1, broken())
    gate:set()
    assert.same({ "newer" }, g())
    assert.equal(0, other.calls) -- it could read what broken has written
  end)
end)

describe("the handle's", function()
  before_each(fresh)

  local function numbered(opts)
    local n = 0
    return wrap(function()
      n = n + 1
      return n
    end, opts)
  end

  it("functions refuse what is no handle and no cached function", function()
    raises("handle: a function that cache.cached has made is expected, not any other", handle,
      print)
    raises("handle: a function that cache.cached has made is expected, not nil", handle)
    raises("handle: a function that cache.cached has made is expected, not table", handle, {})
    local h = handle((numbered()))
    for _, name in ipairs { "key", "invalidate", "refresh", "original", "stats", "with" } do
      raises(name .. ": call it with a colon, on what cache.handle gave", h[name], 1)
    end
    raises("with: options must be a table, not nil", h.with, h)
    raises("with: the option 'ttl' is unknown", h.with, h, { ttl = 5 })
    raises("with: bypass must be a boolean, not a number", h.with, h, { bypass = 1 })
    raises("with: force_refresh, only_if_cached and bypass exclude each other", h.with, h,
      { bypass = true, force_refresh = true })
  end)

  it("identity is one per wrapper", function()
    local f, g = numbered(), numbered()
    assert.equal(handle(f), handle(f))
    assert.not_equal(handle(f), handle(g))
  end)

  it("original is the function itself", function()
    local function fn() return 1 end
    assert.equal(fn, handle(cached(fn, { name = "original" })):original())
  end)

  it("key is where the value lies", function()
    local f = numbered()
    f("a", { b = 1 })
    assert.equal(1, memory:get(handle(f):key("a", { b = 1 })))
    raises("cached: an argument is a function", handle(f).key, handle(f), print)
  end)

  it("invalidate removes one call's results", function()
    local f, counter = numbered()
    f "a"
    f "b"
    assert.equal(1, handle(f):invalidate "a")
    assert.equal(0, handle(f):invalidate "a")
    assert.equal(0, handle(f):invalidate())
    assert.equal(3, f "a")
    assert.equal(2, f "b")
    assert.equal(3, counter.calls)
  end)

  it("refresh loads although it is there, and stores", function()
    local f, counter = numbered { ttl = 10 }
    assert.equal(1, f())
    advance(6)
    assert.equal(2, handle(f):refresh())
    assert.equal(2, f())
    advance(6)
    assert.equal(2, f()) -- its TTL began anew
    assert.equal(2, counter.calls)
    local g = numbered()
    assert.equal(1, handle(g):refresh "new")
    assert.equal(1, g "new")
  end)

  it("refresh leaves the old value when fn fails", function()
    local fail
    local f = wrap(function()
      if fail then error("broken", 0) end
      return "old"
    end)
    f()
    fail = true
    local ok, err = pcall(handle(f).refresh, handle(f))
    assert.same({ false, "broken" }, { ok, err })
    assert.equal("old", f())
  end)

  it("refresh at the same time is one run for all, and others hit meanwhile", function()
    local f, counter, gate = gated(function() return { "new" }, 2 end, { key = "k" })
    memory:set("k", "old")
    local tasks = together(5, function() return pack(handle(f):refresh()) end)
    assert.equal("old", f())
    gate:set()
    for _, t in ipairs(tasks) do assert.same(pack({ "new" }, 2), t:join()) end
    assert.equal(1, counter.calls)
    assert.same(pack({ "new" }, 2), pack(f()))
  end)

  it("refresh joins a load that is under way", function()
    local f, counter, gate = gated(function() return "value" end)
    local first = task.spawn(f)
    settle()
    local second = task.spawn(function() return handle(f):refresh() end)
    settle()
    gate:set()
    assert.equal("value", first:join())
    assert.equal("value", second:join())
    assert.equal(1, counter.calls)
  end)

  it("refresh stores nothing stale: delete, set, clear or increment came in between", function()
    local ways = {
      { function() memory:delete "k" end, nil },
      { function() memory:clear() end, nil },
      { function() memory:multi_delete { "k" } end, nil },
      { function() memory:set("k", 7) end, 7 },
      { function() memory:multi_set { k = 8 } end, 8 },
      { function() memory:increment("k", 8) end, 9 },
    }
    for i, way in ipairs(ways) do
      memory:set("k", 1)
      local f, counter, gate = gated(function() return "stale" end, { key = "k" })
      local t = task.spawn(function() return handle(f):refresh() end)
      settle()
      way[1]()
      gate:set()
      assert.equal("stale", t:join())
      assert.equal(way[2], memory:get "k", i)
      assert.equal(1, counter.calls)
    end
  end)

  it("refresh is stored when only the TTL was changed in between", function()
    memory:set("k", 1)
    local f, _, gate = gated(function() return "new" end, { key = "k" })
    local t = task.spawn(function() return handle(f):refresh() end)
    settle()
    memory:expire("k", 5)
    gate:set()
    t:join()
    assert.equal("new", memory:get "k")
  end)

  it("stats count hits, misses, loads and errors of the wrapper", function()
    local fail = false
    local f = wrap(function() return fail and error("broken", 0) or 1 end)
    assert.same({ hits = 0, misses = 0, loads = 0, errors = 0 }, handle(f):stats())
    f()
    f()
    f()
    handle(f):refresh()
    fail = true
    pcall(f, "other")
    assert.same({ hits = 2, misses = 2, loads = 3, errors = 1 }, handle(f):stats())
    local g = wrap(function() return { 1 } end, { serializer = "json", copy = false })
    g()
    g()
    assert.same({ hits = 1, misses = 1, loads = 1, errors = 0 }, handle(g):stats())
  end)

  it("with{force_refresh} is a refresh", function()
    local f, counter = numbered()
    f()
    local forced = handle(f):with { force_refresh = true }
    assert.same({ 2, 3, 3 }, { forced(), forced(), f() })
    assert.equal(3, counter.calls)
  end)

  it("with{only_if_cached} never runs fn", function()
    local f, counter = wrap(function() return 1, nil, 3 end)
    local known = handle(f):with { only_if_cached = true }
    assert.same(pack(), pack(known()))
    f()
    assert.same(pack(1, nil, 3), pack(known()))
    assert.equal(1, counter.calls)
    local g, other = wrap(function() end, { neg_ttl = 5 })
    g()
    assert.same(pack(), pack(handle(g):with { only_if_cached = true } ()))
    assert.equal(1, other.calls)
  end)

  it("with{bypass} neither reads nor writes", function()
    local f, counter = numbered()
    local bypass = handle(f):with { bypass = true }
    assert.same({ 1, 2 }, { bypass(), bypass() })
    assert.equal(3, f())
    assert.same({ 4, 3 }, { bypass(), f() })
    assert.equal(4, counter.calls)
    assert.equal(print, handle(wrap(function(x) return x end)):with { bypass = true } (print))
  end)

  it("with{} is the wrapper, and options are read once", function()
    local f, counter = numbered()
    local opts = {}
    local same = handle(f):with(opts)
    opts.bypass = true
    assert.same({ 1, 1, 1 }, { same(), same(), f() })
    assert.equal(1, counter.calls)
    assert.equal(1, handle(f):with { bypass = false, force_refresh = false } ())
  end)

  it("functions follow configure_caches", function()
    local f, counter = numbered()
    f()
    cache.configure_caches { enabled = false }
    assert.equal(2, handle(f):with { force_refresh = true } ())
    assert.equal(3, handle(f):with { bypass = true } ())
    assert.same(pack(), pack(handle(f):with { only_if_cached = true } ()))
    assert.equal(4, handle(f):refresh())
    assert.equal(0, handle(f):invalidate())
    cache.configure_caches { enabled = true }
    assert.equal(1, f())
    assert.equal(4, counter.calls)
  end)
end)
