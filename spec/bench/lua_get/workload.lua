-- The keys, values and sequences that every contender of spec/bench/lua_get
-- gets: equal ones in every process, as LuaJIT's generator is a fixed one.
local bit = require "bit"
local ffi = require "ffi"

local SEED, EXPONENT, VALUE_SIZE = 42, 0.99, 100
local SPREAD = 2654435761 -- odd: i * SPREAD mod 2^32 is another for each i

local workload = { VALUE_SIZE = VALUE_SIZE }

-- 1..n in random order: what is drawn often is not neighbours in memory.
local function shuffled(n)
  local list = {}
  for i = 1, n do list[i] = i end
  for i = n, 2, -1 do
    local j = math.random(i)
    list[i], list[j] = list[j], list[i]
  end
  return list
end

-- LuaJIT hashes a few bytes of a string, at both ends and in the middle: were
-- these plain numbers, whole tens of them would collide in Lua tables.
local function numbered(format, n)
  local keys = {}
  for i = 1, n do keys[i] = format:format(i * SPREAD % 2 ^ 32) end
  return keys
end

--- n keys of 16 bytes.
function workload.keys(n) return numbered("session:%08x", n) end

--- As many that nobody sets.
function workload.missing(n) return numbered("nothing:%08x", n) end

--- A value of 100 bytes that no other number gives, and that differs all along.
function workload.value(i)
  local parts, number = {}, i
  for k = 1, VALUE_SIZE / 10 do
    number = (number * 16807 + 11) % (2 ^ 31 - 1)
    parts[k] = ("%010d"):format(number)
  end
  return table.concat(parts)
end

--- A small table.
function workload.table(i)
  return { id = i, name = "x", tags = { 1, 2, 3 } }
end

--- count numbers of 1..n by Zipf's law, as an FFI array from 0: a Lua table of
--- that size would be one long step for the garbage collector.
function workload.zipf(n, count)
  math.randomseed(SEED)
  local ids, sums, sum = shuffled(n), ffi.new("double[?]", n), 0
  for rank = 1, n do
    sum = sum + rank ^ -EXPONENT
    sums[rank - 1] = sum
  end
  local order = ffi.new("int32_t[?]", count)
  for i = 0, count - 1 do
    local drawn, low, high = math.random() * sum, 0, n - 1
    while low < high do
      local middle = bit.rshift(low + high, 1)
      if sums[middle] < drawn then low = middle + 1 else high = middle end
    end
    order[i] = ids[low + 1]
  end
  return order
end

--- All of 1..n in turn, again and again.
function workload.cycle(n, count)
  math.randomseed(SEED)
  local ids = shuffled(n)
  local order = ffi.new("int32_t[?]", count)
  for i = 0, count - 1 do order[i] = ids[i % n + 1] end
  return order
end

--- A number that tells two sequences apart.
function workload.checksum(order, count)
  local sum = 0
  for i = 0, count - 1 do sum = (sum * 31 + order[i]) % 2 ^ 40 end
  return sum
end

return workload
