-- What a call costs, beside a plain Lua table and the caches that Lua users
-- know, in one run on one core: processor time, the best of some rounds.
--   taskset -c 0 moonstash spec/bench/baseline.lua [DIR] [AIOCACHE]
-- DIR (build/peers): where lua-resty-lrucache is unpacked, without installing
-- it. AIOCACHE: a checkout of aiocache; its rows are left out without one.
local cache = require "cache"
local native = require "cache.native"
local serializer = require "cache.serializer"

local KEYS, ROUNDS, STEPS = 1000, 7, 200
local peers = arg[1] or "build/peers"

local keys, missing = {}, {}
for i = 1, KEYS do
  keys[i] = ("key:%012d"):format(i)
  missing[i] = ("none:%011d"):format(i)
end
local STRING, TABLE = ("x"):rep(100), { id = 1, name = "x", tags = { 1, 2, 3 } }

-- ns per call of fn(key, i), over all keys.
local function measure(fn, list)
  local best
  for _ = 1, ROUNDS do
    collectgarbage()
    local started = os.clock()
    for _ = 1, STEPS do
      for i = 1, KEYS do fn(list[i], i) end
    end
    local ns = (os.clock() - started) / (KEYS * STEPS) * 1e9
    best = math.min(best or ns, ns)
  end
  return best
end

local base -- a plain table read
local function row(name, fn, list)
  local ns = measure(fn, list or keys)
  base = base or ns
  print(("  %-44s %8.0f ns %8.1fx"):format(name, ns, ns / base))
end

-- ---- Lua and Moonstash ----------------------------------------------------------

local sink
local memory = cache.memory
local function section(name) print("\n" .. name) end

section "a 100-byte string"
local plain = {}
for i = 1, KEYS do plain[keys[i]] = STRING .. i end
row("plain table read", function(k) sink = plain[k] end)
for i = 1, KEYS do memory:set(keys[i], STRING .. i) end
row("memory:get, hit", function(k) sink = memory:get(k) end)
row("memory:get, miss", function(k) sink = memory:get(k) end, missing)
row("memory:set", function(k) memory:set(k, STRING) end)
local by_argument = cache.cached(function(k) return STRING .. k end, { name = "by_argument" })
local by_builder = cache.cached(function(k) return STRING .. k end,
  { key_builder = function(_, k) return k end })
for i = 1, KEYS do
  by_argument(keys[i])
  memory:set(keys[i], STRING .. i)
end
row("cached, hit, one argument", function(k) sink = by_argument(k) end)
row("cached, hit, key_builder", function(k) sink = by_builder(k) end)

section "a small table"
for i = 1, KEYS do memory:set(keys[i], TABLE) end
row("memory:get, hit (a copy)", function(k) sink = memory:get(k) end)
row("memory:set", function(k) memory:set(k, TABLE) end)
cache.configure_caches {
  aliases = { shared = { copy = false }, reference = { serializer = "none" } },
}
local shared, reference = cache.get_cache "shared", cache.get_cache "reference"
for i = 1, KEYS do
  shared:set(keys[i], TABLE)
  reference:set(keys[i], TABLE)
end
row("get, hit, copy = false", function(k) sink = shared:get(k) end)
row("get, hit, serializer none", function(k) sink = reference:get(k) end)

section "serializers, the small table"
for _, name in ipairs { "native", "json", "msgpack" } do
  local codec = serializer.find(name, "bench")
  local bytes, format = codec.encode(TABLE, "bench")
  row(name .. ", encode", function() sink = codec.encode(TABLE, "bench") end)
  row(name .. ", decode", function()
    sink = name == "native" and native.decode_bytes(bytes)
      or serializer.decode(codec, format, bytes, "bench")
  end)
end
local binary = require "moonstash.binary"
local sealed = binary.encode(TABLE)
row("binary (for Redis), encode", function() sink = binary.encode(TABLE) end)
row("binary (for Redis), decode", function() sink = binary.decode(sealed) end)

-- ---- lua-resty-lrucache -----------------------------------------------------------

local function find_lrucache()
  local path = peers .. "/usr/share/lua/5.1"
  if not io.open(path .. "/resty/lrucache.lua") then
    os.execute(("mkdir -p '%s' && cd '%s' && apt-get download -q lua-resty-lrucache "
      .. ">/dev/null 2>&1 && dpkg -x lua-resty-lrucache_*.deb ."):format(peers, peers))
  end
  if not io.open(path .. "/resty/lrucache.lua") then return false end
  package.path = path .. "/?.lua;" .. package.path
  -- What it needs of nginx: a cached time.
  local now = os.time()
  rawset(_G, "ngx", { now = function() return now end, log = function() end, ALERT = 1 })
  return true
end

if find_lrucache() then
  for _, name in ipairs { "resty.lrucache", "resty.lrucache.pureffi" } do
    section(name .. " (values by reference)")
    local lru = assert(require(name).new(KEYS * 2))
    for i = 1, KEYS do lru:set(keys[i], STRING .. i, 300) end
    row("get, hit", function(k) sink = lru:get(k) end)
    row("get, miss", function(k) sink = lru:get(k) end, missing)
    row("set", function(k) lru:set(k, STRING, 300) end)
  end
else
  print "\n(lua-resty-lrucache: not to be had here)"
end

-- ---- aiocache ------------------------------------------------------------------------

local AIOCACHE = [[
import asyncio, sys, time
sys.path.insert(0, sys.argv[1])
from aiocache import SimpleMemoryCache, cached
from aiocache.serializers import PickleSerializer
KEYS = ["key:%012d" % i for i in range(1000)]
async def measure(name, fn):
    best = None
    for _ in range(3):
        started = time.process_time()
        for k in KEYS: await fn(k)
        ns = (time.process_time() - started) / len(KEYS) * 1e9
        best = ns if best is None else min(best, ns)
    print("%s\t%d" % (name, best))
async def main():
    c = SimpleMemoryCache(serializer=PickleSerializer())
    value = {"id": 1, "name": "x", "tags": [1, 2, 3]}
    for k in KEYS: await c.set(k, value, ttl=300)
    await measure("get, hit", lambda k: c.get(k))
    await measure("get, miss", lambda k: c.get("none" + k))
    await measure("set", lambda k: c.set(k, value, ttl=300))
    try:
        @cached(ttl=300, serializer=PickleSerializer())
        async def f(k): return value
    except TypeError:
        @cached(SimpleMemoryCache(serializer=PickleSerializer()), ttl=300)
        async def f(k): return value
    for k in KEYS: await f(k)
    await measure("cached, hit", f)
asyncio.run(main())
]]

if arg[2] then
  section "aiocache, a small table"
  local name = os.tmpname()
  local file = assert(io.open(name, "w"))
  file:write(AIOCACHE)
  file:close()
  local pipe = io.popen(("/usr/bin/python3 %s '%s' 2>&1"):format(name, arg[2]))
  for line in pipe:lines() do
    local case, ns = line:match "^(.-)\t(%d+)$"
    if case then
      print(("  %-44s %8d ns %8.1fx"):format(case, ns, ns / base))
    else
      print("  " .. line)
    end
  end
  pipe:close()
  os.remove(name)
end
assert(sink ~= "never")
