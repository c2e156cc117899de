-- The hot path compiles: a loop of it becomes machine code that stays in it.
local cache = require "cache"
local support = require "spec.cache.support"
local traceerr = require("jit.vmdef").traceerr
local util = require "jit.util"

local ipairs, tostring = ipairs, tostring -- busted's globals are slow to find

if not jit.status() then return end -- nothing to see

local LOOPS = 2000
local FIRST = 400

-- Where a trace begins is a matter of counters: the compiler may begin at a
-- function that is called in the loop, see that it leaves it, and begin anew.
-- So it does when a near copy is looked at for the first time since the hand has
-- passed: the next time there is nothing to write, which the guard says. Only an
-- abort of another kind says that something cannot be compiled.
local BEGINS_ANEW = {
  "guard would always fail",
  "leaving loop in root trace", "inner loop in root trace", "loop unroll limit reached",
  "call unroll limit reached", "down%-recursion, restarting", "retry recording",
}

local function begins_anew(reason)
  for _, pattern in ipairs(BEGINS_ANEW) do
    if reason:find(pattern) then return true end
  end
end

-- Runs a fresh copy of the loop until it is hot. Gives the aborts that count,
-- and whether a loop was compiled.
local function compile(code, a, b)
  local loop = assert(loadstring(("local a, b, n = ... for i = 1, n do %s end"):format(code)))
  local aborts, looped = {}, false
  local function on_trace(what, number, func, pc, reason, argument)
    if what == "abort" then
      local text = tostring(traceerr[reason] or reason)
      text = ("%s (%s) at %s"):format(text, tostring(argument), util.funcinfo(func, pc).loc)
      if not begins_anew(text) then aborts[#aborts + 1] = text end
    elseif what == "stop" then
      looped = looped or util.traceinfo(number).linktype == "loop"
    end
  end
  loop(a, b, FIRST) -- what is there only once, a cached function's load, say
  jit.flush()
  collectgarbage()
  jit.attach(on_trace, "trace")
  for _ = 1, 10 do loop(a, b, LOOPS) end
  jit.attach(on_trace)
  return table.concat(aborts, "\n"), looped
end

describe("a loop of", function()
  local memory = cache.memory
  local text = ("v"):rep(100)

  before_each(support.fresh)

  local function compiles(what, code, a, b)
    it(what .. " compiles", function()
      memory:set("key", text)
      local aborts, looped = compile(code, a, b)
      assert.equal("", aborts)
      assert.is_true(looped)
    end)
  end

  compiles("get, a string", "local v = a:get 'key'", memory)
  compiles("get with a default", "local v = a:get('key', 1)", memory)
  compiles("get, a miss", "local v = a:get 'none'", memory)
  compiles("set, a string", "a:set('key', b)", memory, text)
  compiles("set with a TTL", "a:set('key', b, 60)", memory, text)
  compiles("set and get, a number", "a:set('n', i) local v = a:get 'n'", memory)
  compiles("set and get, a boolean", "a:set('n', true) local v = a:get 'n'", memory)
  compiles("delete", "a:delete 'none'", memory)
  compiles("get_cached", "local v = a.get_cached 'key'", cache)
  compiles("set_cached", "a.set_cached('key', b)", cache, text)
  compiles("a cached function's hit, one string", "local v = a 'key'",
    cache.cached(function() return text end, { name = "compile.one" }))
  compiles("a cached function's hit, one number", "local v = a(7.5)",
    cache.cached(function() return text end, { name = "compile.number" }))
  compiles("a cached function's hit, a key_builder", "local v = a(b)",
    cache.cached(function() return text end, {
      key_builder = function(_, k) return "built:" .. k end,
    }), "key")

  local keys = {}
  for i = 1, 100 do keys[i] = "many:" .. i end
  compiles("get with many keys", "local v = a:get(b[i % 100 + 1])", memory, keys)
  compiles("get in a namespace", "local v = a:get 'key'", memory:with_namespace "compile")
  compiles("get, misses and sets in turn",
    "local k = b[i % 100 + 1] if not a:get(k) then a:set(k, k) else a:delete(k) end", memory, keys)
  compiles("a cached function's hit, many strings", "local v = a(b[i % 100 + 1])",
    cache.cached(function(k) return k end, { name = "compile.many" }), keys)

  it("get of hot keys is nothing but looks at near copies", function()
    for _, key in ipairs(keys) do memory:set(key, text) end
    for _ = 1, 3 do
      for _, key in ipairs(keys) do memory:get(key) end
    end
    local before = memory:stats()
    local aborts, looped = compile("local v = a:get(b[i % 100 + 1])", memory, keys)
    assert.equal("", aborts)
    assert.is_true(looped)
    assert.equal(10 * LOOPS + FIRST, memory:stats().near_hits - before.near_hits)
  end)
end)
