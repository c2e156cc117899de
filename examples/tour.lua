-- A tour of the cache: every call once, printed as it goes.
--   moonstash examples/tour.lua [text-file]
local cache = require "cache"
local task = require "task"

if not cache.settings.enabled then print "(caching is off: CACHE_ENABLED)" end

local file = arg[1] or "/usr/share/common-licenses/GPL-3"

local function section(title) print("\n-- " .. title) end

local function milliseconds(fn, ...)
  local started = os.clock()
  local result = fn(...)
  return (os.clock() - started) * 1000, result
end

section "Basic operations (the alias `memory`, 300 seconds)"
print("get, never set:", cache.get_cached("my_key"))
print("set:", cache.set_cached("my_key", "my_value"))
print("get:", cache.get_cached("my_key"))
print("delete:", cache.delete_cached("my_key"))
print("get, deleted:", cache.get_cached("my_key"))

section "Another alias, another TTL"
cache.set_cached("my_key", { any = "value", n = { 1, 2, 3 } }, { ttl = 300, alias = "persistent" })
local value = cache.get_cached("my_key", { alias = "persistent" })
if value then print("a table comes back as a copy:", value.any, #value.n) end
print("the other alias has its own keys:", cache.get_cached("my_key"))
cache.clear_cache { alias = "persistent" }
print("cleared:", cache.get_cached("my_key", { alias = "persistent" }))

section "Direct access"
local memory = cache.get_cache "memory"
memory:set("answer", 42, { ttl = 0.05 })
print("before the TTL:", memory:get("answer"))
task.sleep(0.06)
print("after it:", memory:get("answer"), memory:get("answer", "a default"))

section("A slow function, cached: the words of " .. file)
local function tokenize(path)
  local tokens = { counts = {}, total = 0 }
  for line in io.lines(path) do
    for word in line:lower():gmatch "%a+" do
      tokens.counts[word] = (tokens.counts[word] or 0) + 1
      tokens.total = tokens.total + 1
    end
  end
  return tokens
end

local words = cache.cached(tokenize, { ttl = 600 })
local cold, first = milliseconds(words, file)
local warm, again = milliseconds(words, file)
print(("%d words, %d of them 'the'"):format(first.total, first.counts.the))
print(("cold %.3f ms, cached %.3f ms"):format(cold, warm))
assert(again ~= first and again.total == first.total) -- a copy of its own

section "One load for many callers"
local loads = 0
local get_user = cache.cached(function(id)
  loads = loads + 1
  task.sleep(0.05) -- a database, say
  return { id = id, name = "user " .. id }
end, { ttl = 600, alias = "persistent", key_builder = function(_, id) return "user:" .. id end })

local callers = {}
for i = 1, 100 do callers[i] = function() return get_user(7) end end
local users = task.gather(callers)
print(("%d callers, %d load, the last one got %s"):format(#users, loads, users[100].name))

section "Counters"
local stats = memory:stats()
print(("memory: %d hits, %d misses, %d entries, %d bytes"):format(
  stats.hits, stats.misses, stats.entries, stats.bytes))
