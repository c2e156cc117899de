-- One contender at one case, in a process of its own: no other case's traces
-- are in the way, and each start is another throw of the JIT compiler's dice.
-- run.lua starts it under moonstash, or in nginx for ngx.shared.DICT.
--   worker.lua CONTENDER CASE SECONDS [near=NAME:VALUE,... | trace]
-- Prints name=value pairs; ns= is of one window.
--
-- All contenders are objects with get(key) and set(key, value, ttl), and run
-- the same loops over the same numbers. What a loop gets goes into a sum, which
-- is checked: nothing is optimised away, and each hit was one. A window is
-- about SECONDS / WINDOWS of processor time, in slices, with the clock read at
-- its two ends alone; how many slices that takes is found while warming up.
local bit = require "bit"
local workload = require "spec.bench.lua_get.workload"

local who, case, seconds, option = ...
seconds = tonumber(seconds)

local DRAWS = 1000000 -- the length of the sequence; also the warm-up
local SLICE = 20000 -- operations between two looks at how far we are
local WINDOWS = 5
local SMALL, LARGE = 10000, 100000 -- keys
local FEW = 64 -- values that set takes in turn: made just now, so to speak
local TTL = 3600
local BATCH, CHUNK_BITS = 100, 9 -- of the cases gc
local CHUNK = 2 ^ CHUNK_BITS
local CYCLES = 5
local clock, band, rshift = os.clock, bit.band, bit.rshift

-- ---- the loops: fn(c, keys, order, from, to, values) gives a sum --------------

local loops = {}

function loops.text(c, keys, order, from, to)
  local sum = 0
  for i = from, to do sum = sum + #c:get(keys[order[i]]) end
  return sum
end

function loops.miss(c, keys, order, from, to)
  local sum = 0
  for i = from, to do
    if c:get(keys[order[i]]) == nil then sum = sum + 1 end
  end
  return sum
end

function loops.field(c, keys, order, from, to)
  local sum = 0
  for i = from, to do sum = sum + #c:get(keys[order[i]]).name end
  return sum
end

function loops.set(c, keys, order, from, to, values)
  for i = from, to do c:set(keys[order[i]], values[band(i, FEW - 1)], TTL) end
  return 0
end

-- Its sum: the hits.
function loops.get_or_set(c, keys, order, from, to, values)
  local sum = 0
  for i = from, to do
    local key = keys[order[i]]
    if c:get(key) ~= nil then
      sum = sum + 1
    else
      c:set(key, values[band(i, FEW - 1)], TTL)
    end
  end
  return sum
end

function loops.call(f, keys, order, from, to)
  local sum = 0
  for i = from, to do sum = sum + #f(keys[order[i]]) end
  return sum
end

-- These two have the keys as a list of lists.
function loops.text_chunks(c, keys, order, from, to)
  local sum = 0
  for i = from, to do
    local id = order[i]
    sum = sum + #c:get(keys[rshift(id, CHUNK_BITS)][band(id, CHUNK - 1)])
  end
  return sum
end

function loops.field_chunks(c, keys, order, from, to)
  local sum = 0
  for i = from, to do
    local id = order[i]
    sum = sum + #c:get(keys[rshift(id, CHUNK_BITS)][band(id, CHUNK - 1)]).name
  end
  return sum
end

-- What a case is: how many keys, what is stored ("text", "table" or nil), which
-- loop, and what that adds to its sum each time (nil: not known). capacity: how
-- many of the keys there is room for, if not for all.
local SIZE = workload.VALUE_SIZE
local CASES = {
  hit = { keys = SMALL, fill = "text", loop = loops.text, each = SIZE },
  miss = { keys = SMALL, fill = "text", loop = loops.miss, each = 1, missing = true },
  table = { keys = SMALL, fill = "table", loop = loops.field, each = 1 },
  copy = { keys = SMALL, fill = "table", loop = loops.field, each = 1 },
  set = { keys = SMALL, fill = "text", loop = loops.set },
  cached = { keys = SMALL, loop = loops.call, each = SIZE },
  hit_large = { keys = LARGE, fill = "text", loop = loops.text, each = SIZE },
  near_large = { keys = LARGE, fill = "text", loop = loops.text, each = SIZE },
  set_large = { keys = LARGE, fill = "text", loop = loops.set },
  evict = { keys = LARGE, loop = loops.set, capacity = SMALL, cycle = true },
  get_or_set = { keys = LARGE, loop = loops.get_or_set, capacity = SMALL },
  gc = { keys = LARGE, fill = "text", loop = loops.text_chunks, gc = true },
  gc_near = { keys = LARGE, fill = "text", loop = loops.text_chunks, gc = true },
  gc_table = { keys = SMALL, fill = "table", loop = loops.field_chunks, gc = true },
}

local function say(...)
  io.stdout:write(string.format(...), "\n")
end

-- ---- the contenders: fn(spec, case) gives an object ---------------------------

local contenders = {}

-- A store whose byte bound holds that many entries: a guess, corrected by what
-- a full store of that bound really holds.
local function ours_bounded(cache, entries)
  local function alias(bytes)
    cache.configure_caches { aliases = { bench = { max_bytes = bytes } } }
    return cache.get_cache "bench"
  end
  local some, bytes, c = workload.keys(entries * 3), SIZE * entries * 2, nil
  for _ = 1, 6 do
    c = alias(math.floor(bytes))
    c:clear()
    for i = 1, #some do c:set(some[i], workload.value(i), TTL) end
    local held = c:stats().entries
    if held <= entries and held > entries * 0.99 then break end
    bytes = bytes * entries * 0.995 / held
  end
  c:clear()
  return c
end

-- near=NAME:VALUE,...: what raises the bounds of near copies, be it fields of
-- an alias or settings.
local function ours_near(cache)
  local fields, list = {}, (option or ""):match "^near=(.+)$"
  if not list then return nil, "no setting given (near=NAME:VALUE,...)" end
  for name, value in list:gmatch "([%w_]+):(%d+)" do fields[name] = tonumber(value) end
  if pcall(cache.configure_caches, { aliases = { bench = fields } }) then
    return cache.get_cache "bench"
  end
  local ok, err = pcall(cache.configure_caches, fields)
  if not ok then return nil, tostring(err) end
  return cache.memory
end

function contenders.ours(spec)
  local cache = require "cache"
  if spec.capacity then return ours_bounded(cache, spec.capacity) end
  if case == "near_large" or case == "gc_near" then return ours_near(cache) end
  if case == "table" or case == "gc_table" then
    cache.configure_caches { aliases = { bench = { copy = false } } }
    return cache.get_cache "bench"
  end
  if case == "cached" then
    local function load_value(key) return workload.value(tonumber(key:match "%x+$", 16)) end
    return cache.cached(load_value, { name = "bench", ttl = TTL })
  end
  return cache.memory
end

local function resty(name)
  return function(spec)
    -- What it needs of nginx: a cached time, here a double in memory.
    local now = require("ffi").new("double[1]", os.time())
    rawset(_G, "ngx", { now = function() return now[0] end, log = function() end, ALERT = 1 })
    return assert(require(name).new(spec.capacity or spec.keys))
  end
end
contenders.lrucache = resty "resty.lrucache"
contenders.pureffi = resty "resty.lrucache.pureffi"

-- Its zone is as large as run.lua's nginx.conf says.
function contenders.dict()
  require "resty.core"
  return rawget(_G, "ngx").shared.bench
end

-- string.buffer.decode alone: the keys are the encoded tables themselves.
function contenders.decode()
  local decode = require("string.buffer").decode
  return { get = function(_, bytes) return decode(bytes) end, set = function() end }
end

-- Nothing but garbage: what the bench itself costs the collector.
function contenders.nothing()
  return { get = function(_, key) return key .. "!" end, set = function() end }
end

-- ---- what the JIT compiler says (option trace) ---------------------------------

-- Counts events until it is called with nil; says what it has seen.
local function watch_traces()
  local util, vmdef = require "jit.util", require "jit.vmdef"
  local counts, seen = nil, {}
  local function on_trace(what, number, func, pc, reason, detail)
    if not counts then return end
    if what == "stop" then
      local link = util.traceinfo(number).linktype
      counts[link] = (counts[link] or 0) + 1
    elseif what == "abort" then
      counts.abort = (counts.abort or 0) + 1
      local text = tostring(vmdef.traceerr[reason] or reason)
      if text:find "%%" then text = text:gsub("%%[sd]", (tostring(detail):gsub("%%", "%%%%"))) end
      text = ("%s at %s"):format(text, util.funcinfo(func, pc).loc)
      seen[text] = (seen[text] or 0) + 1
    elseif what == "flush" then
      counts.flush = (counts.flush or 0) + 1
    end
  end
  jit.attach(on_trace, "trace")
  return function(phase)
    if counts then
      local list = {}
      for name, n in pairs(counts) do
        if name ~= "phase" then list[#list + 1] = ("%s %d"):format(name, n) end
      end
      table.sort(list)
      say("trace=%s: %s", counts.phase, #list > 0 and table.concat(list, ", ") or "nothing new")
      for text, n in pairs(seen) do say("trace=  abort %dx: %s", n, text) end
    end
    counts, seen = phase and { phase = phase } or nil, {}
  end
end

-- ---- measuring ------------------------------------------------------------------

local spec = CASES[case]
local c, why = contenders[who](spec)
if not c then
  say("left_out=%s", why)
  return
end

local keys = workload.keys(spec.keys)
local order = (spec.cycle and workload.cycle or workload.zipf)(spec.keys, DRAWS)
say("checksum=%d", workload.checksum(order, DRAWS))
local values = {}
for i = 0, FEW - 1 do values[i] = workload.value(i) end

if spec.fill then
  -- Not kept: who stores bytes makes a new string of each hit.
  local value = workload[spec.fill == "text" and "value" or "table"]
  for i = 1, spec.keys do c:set(keys[i], value(i), TTL) end
end
if case == "cached" then
  for i = 1, spec.keys do c(keys[i]) end
end
if spec.missing then keys = workload.missing(spec.keys) end
if who == "decode" then
  local encode = require("string.buffer").encode
  for i = 1, spec.keys do keys[i] = encode(workload.table(i)) end
end

-- The keys as lists of CHUNK: one long list is one long step of the collector.
local function chunks_of(list)
  local chunks = {}
  for i = 1, #list do
    local high = rshift(i, CHUNK_BITS)
    chunks[high] = chunks[high] or {}
    chunks[high][band(i, CHUNK - 1)] = list[i]
  end
  return chunks
end

-- The longest of BATCH operations, with whatever steps the collector takes in
-- them, over the whole sequence; and how long they take as a rule.
local function longest_batch(loop, lists)
  local took, sum = {}, 0
  for from = 0, DRAWS - BATCH, BATCH do
    local started = clock()
    sum = sum + loop(c, lists, order, from, from + BATCH - 1)
    took[#took + 1] = clock() - started
  end
  assert(sum > 0)
  table.sort(took)
  say("batch_us=%.0f", took[#took] * 1e6)
  say("usual_us=%.1f", took[#took / 2] * 1e6)
end

-- The longest step of each of some whole cycles, step by step: with 0,
-- collectgarbage does what an allocation does when it is time.
local function longest_steps()
  local cycles = {}
  for i = 1, CYCLES do
    local longest = 0
    repeat
      local started = clock()
      local ended = collectgarbage("step", 0)
      longest = math.max(longest, clock() - started)
    until ended
    cycles[i] = longest
  end
  table.sort(cycles)
  say("step_us=%.0f", cycles[math.ceil(CYCLES / 2)] * 1e6)
  say("step_max_us=%.0f", cycles[CYCLES] * 1e6)
end

local function measure_gc()
  local lists = chunks_of(keys)
  keys = nil
  spec.loop(c, lists, order, 0, DRAWS - 1) -- the warm-up
  longest_batch(spec.loop, lists)
  longest_steps()
  say("heap_kb=%.0f", collectgarbage "count")
end

local position = 0
local function slices(n)
  local loop, sum = spec.loop, 0
  for _ = 1, n do
    sum = sum + loop(c, keys, order, position, position + SLICE - 1, values)
    position = (position + SLICE) % DRAWS
  end
  if spec.each then assert(sum == n * SLICE * spec.each, "not every one was as expected") end
  return sum
end

local function measure()
  local watch = option == "trace" and watch_traces() or function() end
  collectgarbage()
  collectgarbage()
  watch "warm-up"
  slices(DRAWS / SLICE / 2)
  local started = clock()
  slices(DRAWS / SLICE / 2)
  local slice = (clock() - started) / (DRAWS / SLICE / 2)
  local n = math.max(1, math.ceil(seconds / WINDOWS / slice))
  watch "measured"
  local sum = 0
  for _ = 1, WINDOWS do
    started = clock()
    sum = sum + slices(n)
    say("ns=%.2f", (clock() - started) / (n * SLICE) * 1e9)
  end
  watch()
  if case == "get_or_set" then say("hits=%.4f", sum / (WINDOWS * n * SLICE)) end
  if not spec.capacity then return end
  local held = who == "ours" and c:stats().entries or who == "dict" and #c:get_keys(0) or c:count()
  say("entries=%d", held)
end

if spec.gc then measure_gc() else measure() end
