-- multi_cached(fn, opts): a function of a list of keys that remembers each
-- key's value. fn gets only the keys that are missing. Each of these is leased
-- like cached's one key; a call takes what is free, loads and fills that, and
-- only then waits for what others load: two calls cannot wait for each other.
local backend = require "moonstash.backend"
local alias = require "cache.alias"
local keys = require "cache.key"
local raise = require "cache.raise"
local wrap = require "cache.wrap"

local state = alias.state
local check_key, check_room = keys.check, keys.check_room
local find, finish, note, ns_of = wrap.find, wrap.finish, wrap.note, wrap.ns
local read_waited, read_given = wrap.read_waited, wrap.read_given
local HIT, TOKEN, GIVEN = backend.LEASE_HIT, backend.LEASE_TOKEN, backend.LEASE_GIVEN
local BUSY, AGAIN, DIRECT = backend.LEASE_BUSY, backend.LEASE_AGAIN, backend.LEASE_DIRECT
local WAIT_OK = 0
local type, error, pcall, xpcall, setmetatable = type, error, pcall, xpcall, setmetatable
local next, pairs, ipairs, isyieldable = next, pairs, ipairs, coroutine.isyieldable

local KNOWN = { ttl = "any", alias = "any", name = "string", key_builder = "function",
  namespace = "string", cache_if = "function", neg_ttl = "any", serializer = "any" }

local function key_of(self, k, ...)
  local key
  if self.key_builder then
    key = self.key_builder(self.fn, k, ...)
  else
    key = self.name .. ":" .. (type(k) == "number" and ("%.17g"):format(k) or k)
  end
  check_key(key, self.key_builder and "multi_cached: key_builder" or "multi_cached")
  check_room(ns_of(self), key, "multi_cached")
  return key
end

-- The keys without duplicates, and what each is stored under.
local function cache_keys(self, list, ...)
  if type(list) ~= "table" then
    raise("multi_cached: the first argument must be a list of keys, not %s", type(list))
  end
  if #list == 0 and next(list) ~= nil then
    raise "multi_cached: the first argument must be a list of keys, not a map"
  end
  local unique, under = {}, {}
  for i, k in ipairs(list) do
    local kind = type(k)
    if kind ~= "string" and kind ~= "number" then
      raise("multi_cached: keys[%d] must be a string or a number, not %s", i, kind)
    end
    if not under[k] then
      unique[#unique + 1], under[k] = k, key_of(self, k, ...)
    end
  end
  return unique, under
end

-- Ends the loads of this call with an error.
local function fail_all(loads, err)
  for _, load in pairs(loads) do backend.fail(load, err) end
end

-- Stores what fn returned beyond what it was asked for.
local function store_extra(self, map, asked, ...)
  for k, value in pairs(map) do
    if not asked[k] and (type(k) == "string" or type(k) == "number")
      and (not self.cache_if or self.cache_if(k, value)) then
      wrap.add(self, ns_of(self), key_of(self, k, ...), value)
    end
  end
end

-- Ends one load; the others are still to be ended when it raises.
local function finish_one(self, load, k, key, driver, value)
  local one = setmetatable({ cache_if = self.cache_if and function(v)
    return self.cache_if(k, v)
  end }, { __index = self })
  finish(one, load, key, driver, value)
end

-- Runs fn for the keys whose loads this call holds. Gives fn's map, or nil, err
-- as fn said it.
local function run(self, wanted, loads, under, ...)
  self.loads = self.loads + 1
  local driver = self.alias.driver
  local ok, map, err = xpcall(self.fn, note, wanted, ...)
  if not ok then
    self.errors = self.errors + 1
    fail_all(loads, map)
    error(map, 0)
  end
  if map == nil and err ~= nil then
    for _, load in pairs(loads) do backend.give(load, { n = 2, nil, err }) end
    return nil, err
  end
  if type(map) ~= "table" then
    local message = ("multi_cached: the function must return a map, not %s"):format(type(map))
    fail_all(loads, message)
    error(message, 0)
  end
  for k, load in pairs(loads) do
    loads[k] = nil
    local stored, message = pcall(finish_one, self, load, k, under[k], driver, map[k])
    if not stored then
      fail_all(loads, message)
      error(message, 0)
    end
  end
  return map
end

-- On a server the leases come first, as in cached.lua: what this call holds is
-- looked up in one question, and then fn gets what is missing of it.
local function look_up_leased(self, wanted, loads, under, result)
  local asked, list, missing = {}, {}, {}
  for _, k in ipairs(wanted) do
    local key = under[k]
    if not asked[key] then list[#list + 1], asked[key] = key, true end
  end
  local ok, has, values = pcall(self.alias.driver.find_many, self.alias, ns_of(self), list,
    self.serializer or self.alias.serializer)
  if not ok then
    fail_all(loads, has)
    error(has, 0)
  end
  for _, k in ipairs(wanted) do
    local key = under[k]
    if not has[key] then
      self.misses, missing[#missing + 1] = self.misses + 1, k
    else
      self.hits, result[k] = self.hits + 1, values[key]
      if loads[k] then wrap.give(self, loads[k], values[key]) end
      loads[k] = nil
    end
  end
  return missing
end

-- Loads one key whose load this call holds, if it is still missing.
local function load_one(self, k, load, under, ...)
  local loads, result = { [k] = load }, {}
  if self.alias.remote and not look_up_leased(self, { k }, loads, under, result)[1] then
    return result[k]
  end
  local map, err = run(self, { k }, loads, under, ...)
  return map and map[k], err
end

-- Waits for a key that another call loads; loads it when that came to nothing.
local function await(self, k, under, ...)
  local mode
  while true do
    local outcome, a, b = backend.lease(self.alias.view, ns_of(self), under[k], mode)
    if outcome == TOKEN then
      return load_one(self, k, a, under, ...)
    elseif outcome == HIT or outcome == WAIT_OK then
      local found, value = read_waited(self, a, b)
      if found then return value end
      mode = "refresh" -- it cannot be read here: as good as missing
    elseif outcome == GIVEN then
      return read_given(a)
    elseif outcome == DIRECT then
      local map, err = self.fn({ k }, ...)
      return map and map[k], err
    elseif outcome ~= AGAIN then
      error(a, 0)
    end
  end
end

-- Asks for a key's lease without waiting. A value that came meanwhile is a HIT,
-- one that cannot be read here as good as missing.
local function try_lease(self, key, mode)
  local outcome, a, b = backend.lease(self.alias.view, ns_of(self), key, mode)
  if outcome ~= HIT then return outcome, a end
  local found, value = read_waited(self, a, b)
  if found then return HIT, value end
  return try_lease(self, key, "try refresh")
end

-- Sorts the missing keys: leased by this call, or loaded by others.
local function take_leases(self, missing, under, result, mode)
  local wanted, loads, busy = {}, {}, {}
  for _, k in ipairs(missing) do
    local outcome, a = try_lease(self, under[k], mode)
    if outcome == TOKEN then
      wanted[#wanted + 1], loads[k] = k, a
    elseif outcome == BUSY then
      busy[#busy + 1] = k
    elseif outcome == HIT then
      result[k] = a
    else
      wanted[#wanted + 1] = k
    end
  end
  return wanted, loads, busy
end

-- Loads what this call has leased, and waits for what others load.
local function load_all(self, wanted, loads, busy, under, result, ...)
  if #wanted > 0 then
    local map, err = run(self, wanted, loads, under, ...)
    if not map then return nil, err end
    store_extra(self, map, under, ...)
    for k, value in pairs(map) do result[k] = value end
  end
  for _, k in ipairs(busy) do
    local value, err = await(self, k, under, ...)
    if err ~= nil then return nil, err end
    result[k] = value
  end
  return result
end

local function call_remote(self, list, ...)
  local unique, under = cache_keys(self, list, ...)
  local result = {}
  if #unique == 0 then return result end
  local wanted, loads, busy = take_leases(self, unique, under, result, "try refresh")
  local missing = look_up_leased(self, wanted, loads, under, result)
  return load_all(self, missing, loads, busy, under, result, ...)
end

local function call(self, list, ...)
  if self.alias.remote then
    if not isyieldable() then return self.fn(list, ...) end
    return call_remote(self, list, ...)
  end
  local unique, under = cache_keys(self, list, ...)
  local result, missing = {}, {}
  for _, k in ipairs(unique) do
    local found, value = find(self, ns_of(self), under[k])
    if found then
      self.hits, result[k] = self.hits + 1, value
    else
      self.misses, missing[#missing + 1] = self.misses + 1, k
    end
  end
  if #missing == 0 then return result end
  local wanted, loads, busy = take_leases(self, missing, under, result, "try")
  return load_all(self, wanted, loads, busy, under, result, ...)
end

--- cache.multi_cached: see lua/meta/cache.lua.
return function(fn, opts)
  if type(fn) ~= "function" then raise("multi_cached: a function expected, not %s", type(fn)) end
  if opts == nil then opts = {} end
  wrap.check_options(opts, KNOWN, "multi_cached")
  local self = wrap.new(fn, opts, "multi_cached")
  self.name = wrap.name(fn, opts, self.alias, "multi_cached")
  return function(list, ...)
    if not state.enabled then return fn(list, ...) end
    return call(self, list, ...)
  end
end
