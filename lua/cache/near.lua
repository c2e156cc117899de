-- Near copies: hot values of a memory alias, kept in this Lua state. A hit among
-- them is a look into a Lua table and a few words of memory: no call, and no
-- new string.
--
-- What tells that a copy is out of date are words of the store that change with
-- its entries (struct store_near in runtime/memory/store.h): a copy is good while
-- its words[0] is the version it came with, the view's clears are those of the
-- pool, and the clock is before its expiry. LuaJIT keeps what it has loaded by
-- FFI for as long as it sees no store that could change it, in a loop for good,
-- though another thread may write it. So each look writes first, to words of
-- the pool's own, once in either width, and something else each time: `turn`
-- and `looks`. With that it has to load the others again.
--
-- A pool is the near tier of one alias: bounded in entries and bytes, with slots
-- that are given anew by CLOCK. An index finds slots by name: there is one for
-- each namespace, where names are keys, and for each wrapper whose names are
-- its only argument. That a name's slot is its own is the invariant. A value is
-- kept when its entry is read a second time; runtime/bind/cache_near.c remembers
-- the first. While half of the room is free, it is kept at once.
--
-- A miss is kept, too, and is good while nothing new is inserted in the view:
-- as the pool's present epoch, a number below 0, in the place of a slot's.
--
-- LuaJIT compiles a loop as it runs when it is hot, which for gets is when next to
-- nothing is near yet: the loop's trace becomes the way of what must be fetched,
-- and what is near leaves it each time, which makes it two or three times as
-- dear, for good. So is a look that has to note that there was one. When such
-- detours have become rare, all is compiled anew: see review.
--
-- A finalizer may run in the middle and come in here. What looks only, finds
-- each slot whole or out of date (expires 0, while it is written). What would
-- write finds `keeping` set and gives the alias a fresh pool; the interrupted
-- call ends in the old one, which is closed: its indexes find nothing. So does one
-- that a finalizer's error has ended leave it to the next.
local bit = require "bit"
local clear_table = require "table.clear"
local ffi = require "ffi"
local api = require "cache.memory_api"
local serializer = require "cache.serializer"

ffi.cdef [[
typedef struct {
  int32_t *words;        /* of the entry's neighbourhood in the store */
  uint64_t expires;      /* in ms after START; 0: out of date */
  int32_t version;       /* what words[0] must be */
  int32_t both;          /* the entry's two bits in words[1] */
  int32_t size;          /* bytes that count; of a free slot: the next one */
  uint8_t code, used;    /* used since the hand has last passed */
} moonstash_near_slot;
typedef struct {
  int32_t clears, inserts; /* the view's words as of what is kept */
  int32_t turn;            /* another one at each look */
  int32_t epoch;           /* of misses; below 0 */
  uint64_t looks, stale;   /* looks at copies; of these, at ones out of date */
  uint64_t absent;         /* looks at misses that were good */
  int32_t detours;         /* since the last review: what was not near, or was new */
  int32_t accepted;        /* as many there were when all was compiled anew */
  const int32_t *view;     /* the view's words */
  const uint64_t *clock;
  moonstash_near_slot *slots; /* from 1 on */
  int32_t **words;         /* the same memory by type: see find */
  uint64_t *longs;
  int32_t *ints;
  uint8_t *bytes;
} moonstash_near;
]]

local FIRST_SLOTS = 64 -- a power of two
local SHARE = 16 -- a value takes at most 1/16 of the bytes
local NAME_MAX = 256 -- bytes of a name under which a miss is kept
local MISSES = 0.85 -- of them there are so many at most, as a part of entries
local PERIOD = 4096 -- looks between two reviews; a power of two
local RARER, WARM = 4, 32 -- see review
local FLUSHES = 16 -- for the good of near copies, in one Lua state
local FILL = 0.8 -- of 2^n names: see round_down
local EPOCH_SIGN = bit.tobit(2 ^ 31)
local band, bor, tobit = bit.band, bit.bor, bit.tobit
local lshift, rshift = bit.lshift, bit.rshift
local pairs, tonumber, setmetatable = pairs, tonumber, setmetatable

local NEVER = 0xffffffffffffffffULL
local context = api.context
local START = api.now(context) - api.offset_ms[0] -- of the clock's word, never 0
local new_near, new_slots = ffi.typeof "moonstash_near", ffi.typeof "moonstash_near_slot[?]"

local near = {}

-- ---- looking -----------------------------------------------------------------

-- The clock's word says that the copy is past its time, or is no time at all:
-- where it cannot be trusted (see runtime/clock.h) a call can.
local function is_live(own, id)
  return api.now(context) - api.offset_ms[0] - START < own.longs[id * 4 + 1]
end

local flushes, flush = 0, jit.flush

-- Lets LuaJIT compile all anew when detours have become so much rarer that they
-- will be the exception in the recordings, too; for the last time when they are
-- less than one in a hundred looks. In a finalizer there is no flush: then some
-- other time.
local function review(own)
  local detours = own.detours
  own.detours = 0
  if detours * RARER >= own.accepted or flushes >= FLUSHES or not pcall(flush) then return end
  flushes = flushes + 1
  own.accepted = detours < WARM and 0 or detours
end

-- What find says of a value beside its format.
local ENCODED, READ, ABSENT = 64, 128, -1
near.ENCODED, near.READ, near.ABSENT = ENCODED, READ, ABSENT

--- The code and value of a good copy; ABSENT when it is known that nothing has
--- that name; nil when nothing is known. The code is the value's format, plus
--- ENCODED where it is bytes yet that make a table of the caller's own, plus READ
--- if the index's serializer has a say in what it becomes.
--
-- Where a slot lies is counted out each time: a pointer in a local would be an
-- object that every exit of a trace has to be able to make. What is in its place
-- is not written again: loads that miss a processor's caches overlap, stores wait
-- for each other.
function near.find(index, name)
  local id, own = index.map[name], index.own
  if not id then return nil end
  local turn = tobit(own.turn + 1)
  own.turn = turn
  if band(turn, PERIOD - 1) == 0 then review(own) end
  if id < 0 then
    if id ~= own.epoch or own.view[1] ~= own.inserts or own.view[0] ~= own.clears then
      return nil
    end
    own.absent = own.absent + 1
    return ABSENT
  end
  own.looks = own.looks + 1
  if own.words[id * 4][0] == own.ints[id * 8 + 4] and own.view[0] == own.clears
    and (own.clock[0] - START < own.longs[id * 4 + 1] or is_live(own, id)) then
    if own.bytes[id * 32 + 29] == 0 then
      own.bytes[id * 32 + 29] = 1
      own.detours = own.detours + 1
    end
    local both = own.ints[id * 8 + 5]
    if band(own.words[id * 4][1], both) ~= both then
      own.words[id * 4][1] = tobit(own.words[id * 4][1] + band(both, rshift(both, 1)))
      own.detours = own.detours + 1
    end
    return own.bytes[id * 32 + 28], index.values[id]
  end
  own.stale = own.stale + 1
  return nil
end

-- ---- pools -------------------------------------------------------------------

-- A Lua table that is nearly as large as it can be without growing is built anew
-- after every few names that come and go. With 2^n names it has twice that room,
-- as the new one comes before the old one goes.
local function round_down(entries)
  local room = 2 ^ math.ceil(math.log(entries) / math.log(2))
  if entries > room * FILL and entries < room then return math.floor(room * FILL) end
  return entries
end

local function slots_for(pool, n)
  local slots = new_slots(n)
  if pool.slots then ffi.copy(slots, pool.slots, ffi.sizeof(pool.slots)) end
  local own = pool.own
  own.slots, pool.slots, pool.room = slots, slots, n
  own.words, own.longs = ffi.cast("int32_t **", slots), ffi.cast("uint64_t *", slots)
  own.ints, own.bytes = ffi.cast("int32_t *", slots), ffi.cast("uint8_t *", slots)
end

local weak_values = { __mode = "v" }

--- A near tier for the alias, with these bounds (entries 0: none). Counts go on
--- where those of former, a pool of the same view, are.
function near.new(alias, entries, bytes, former)
  local own = new_near()
  own.view, own.clock, own.epoch = api.view_words(alias.pointer), api.clock, -1
  own.accepted = former and former.own.accepted or 2 * PERIOD
  own.clears, own.inserts = own.view[0], own.view[1]
  entries = entries > 0 and round_down(entries) or 0
  local pool = { own = own, alias = alias, entries = entries,
    misses = math.ceil(entries * MISSES), max_bytes = bytes, bytes = 0, count = 0, free = 0,
    hand = 0, used = 0, absent = 0,
    keeping = false, closed = false, values = {}, names = {}, owners = {},
    by_ns = setmetatable({}, weak_values) }
  if former then
    own.looks, own.stale, own.absent = former.own.looks, former.own.stale, former.own.absent
  end
  slots_for(pool, FIRST_SLOTS)
  return pool
end

--- An index of the pool. shared: tables are kept decoded, those of formats other
--- than native as `reader` decodes them. misses: these are kept, too.
function near.index(pool, ns, shared, reader, misses)
  return { pool = pool, own = pool.own, values = pool.values, ns = ns, shared = shared,
    reader = reader, plain = reader == serializer.native, misses = misses, map = {}, absent = 0 }
end

--- Entries, bytes, hits, misses of a pool.
function near.stats(pool)
  local own = pool.own
  return pool.used, pool.bytes, tonumber(own.looks - own.stale), tonumber(own.absent)
end


-- ---- keeping -----------------------------------------------------------------

-- Lets all copies go.
local function empty(pool)
  local owners, last = pool.owners, nil
  for id = 1, pool.count do
    local owner = owners[id]
    if owner and owner ~= last then
      pool.absent = pool.absent - owner.absent
      owner.map, owner.absent = {}, 0
      last = owner
    end
  end
  clear_table(pool.values)
  clear_table(pool.names)
  clear_table(owners)
  pool.bytes, pool.count, pool.free, pool.hand, pool.used = 0, 0, 0, 0, 0
end

-- The view has been cleared, or something was inserted: nothing is known of
-- misses.
local function new_epoch(own, inserts)
  own.inserts, own.epoch = inserts, bor(tobit(own.epoch - 1), EPOCH_SIGN)
end

--- Nothing is near any more, and nothing will be in this pool: whoever looks
--- there has to come for another index. Safe at any moment.
function near.close(pool)
  pool.closed = true
  for _, index in pairs(pool.by_ns) do index.map = {} end
  for id = 1, pool.count do
    local owner = pool.owners[id]
    if owner then owner.map = {} end
  end
end

local function renew(pool)
  local alias = pool.alias
  if alias.near ~= pool then return end
  near.close(pool)
  local fresh = near.new(alias, pool.entries, pool.max_bytes, pool)
  alias.near, alias.fast = fresh, alias.fast and fresh
end

-- The next slot in use that was not looked at since the hand has last passed.
local function sweep(pool)
  local slots, owners, id = pool.slots, pool.owners, pool.hand
  while true do
    id = id < pool.count and id + 1 or 1
    if owners[id] then
      if slots[id].used == 0 then break end
      slots[id].used = 0
    end
  end
  pool.hand = id
  return id
end

local function release(pool, id)
  local slot, owners, names = pool.slots[id], pool.owners, pool.names
  slot.expires = 0
  owners[id].map[names[id]] = nil
  owners[id], names[id], pool.values[id] = false, false, false
  pool.bytes, pool.used = pool.bytes - slot.size, pool.used - 1
  slot.size, pool.free = pool.free, id
end

-- A slot for a new name, which is in the index from here on.
local function take(pool, index, name)
  local id = pool.free
  if id ~= 0 then
    pool.free = pool.slots[id].size
  elseif pool.count < pool.entries then
    id = pool.count + 1
    if id == pool.room then slots_for(pool, pool.room * 2) end
    pool.count = id
  else
    id = sweep(pool)
    local slot, owner, old = pool.slots[id], pool.owners[id], pool.names[id]
    slot.expires = 0
    index.map[name] = id
    owner.map[old] = nil
    pool.bytes, pool.used = pool.bytes - slot.size, pool.used - 1
    return id
  end
  index.map[name] = id
  return id
end

-- Lets go what is of before a clear.
local function follow(pool, clears)
  empty(pool)
  pool.own.clears = clears
  new_epoch(pool.own, pool.own.inserts)
end

-- Makes the name free in the index, whatever it stands for.
local function forget(pool, index, name)
  local id = index.map[name]
  if not id then return end
  if id > 0 then return release(pool, id) end
  index.map[name] = nil
  index.absent, pool.absent = index.absent - 1, pool.absent - 1
end

-- While there is room for as much again, no other copy has to go.
local function has_plenty(pool)
  return pool.used * 2 < pool.entries and pool.bytes * 2 < pool.max_bytes
end

--- Is what the outcome is about to be kept? at_once: although it is new here.
function near.wanted(index, name, outcome, at_once)
  if outcome.words == nil or index.pool.entries == 0 then return false end
  if at_once or outcome.again ~= 0 or has_plenty(index.pool) then return true end
  local id = index.map[name]
  return id ~= nil and id > 0
end

local function fill(slot, code, size, outcome, item)
  slot.words, slot.version = outcome.words, outcome.version
  slot.both, slot.size = lshift(3, outcome.shift), size
  slot.code, slot.used = code, 0
  if item.expires_ms == 0 then
    slot.expires = NEVER
  else
    slot.expires = item.expires_ms - api.offset_ms[0] - START
  end
end

--- Keeps a value of that many bytes, with what the store has said about it.
function near.keep(index, name, code, value, size, outcome, item)
  local pool = index.pool
  if pool.keeping then return renew(pool) end
  pool.keeping = true
  if pool.own.clears ~= outcome.clears then follow(pool, outcome.clears) end
  forget(pool, index, name)
  if size <= pool.max_bytes / SHARE then
    while pool.bytes + size > pool.max_bytes do release(pool, sweep(pool)) end
    local id = take(pool, index, name)
    pool.values[id], pool.names[id], pool.owners[id] = value, name, index
    pool.bytes, pool.used = pool.bytes + size, pool.used + 1
    fill(pool.slots[id], code, size, outcome, item)
  end
  if pool.closed then index.map = {} end
  pool.keeping = false
end

-- Names that nothing had before something was inserted go, to make room.
local function drop_absent(pool, index)
  for name, id in pairs(index.map) do
    if id < 0 then index.map[name] = nil end
  end
  index.absent, pool.absent = 0, pool.absent - index.absent
end

--- Nothing was found under that name. It is kept if nothing has come in since
--- the last time that something was not found.
function near.note_absent(index, name, outcome)
  local pool = index.pool
  local own = pool.own
  if pool.keeping then return renew(pool) end
  if own.clears == outcome.clears and own.inserts ~= outcome.inserts then
    return new_epoch(own, outcome.inserts)
  end
  if not index.misses or outcome.again == 0 or pool.entries == 0 or #name > NAME_MAX then return end
  pool.keeping = true
  if own.clears ~= outcome.clears then follow(pool, outcome.clears) end
  forget(pool, index, name)
  if pool.absent >= pool.misses then drop_absent(pool, index) end
  if pool.absent < pool.misses then -- or they are other indexes'
    index.absent, pool.absent = index.absent + 1, pool.absent + 1
    index.map[name] = own.epoch
  end
  if pool.closed then index.map = {} end
  pool.keeping = false
end

return near
