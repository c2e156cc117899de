-- cached(fn, opts): a function that remembers. A miss takes the key's lease:
-- one caller loads, in its own task; the others wait for it and share its
-- results or its error. See lease in runtime/backend.h.
local backend = require "moonstash.backend"
local alias = require "cache.alias"
local keys = require "cache.key"
local memory = require "cache.memory"
local raise = require "cache.raise"
local wrap = require "cache.wrap"

local state, look, get_near = alias.state, alias.memory.find, memory.get_near
local of_arguments, check_key, check_room = keys.of_arguments, keys.check, keys.check_room
local read_waited, read_given, find = wrap.read_waited, wrap.read_given, wrap.find
local finish, give, note, ns_of = wrap.finish, wrap.give, wrap.note, wrap.ns
local read, index_of, new_index = wrap.read, wrap.index, wrap.new_index
local RESULTS = backend.RESULTS
local HIT, TOKEN, AGAIN = backend.LEASE_HIT, backend.LEASE_TOKEN, backend.LEASE_AGAIN
local GIVEN, DIRECT = backend.LEASE_GIVEN, backend.LEASE_DIRECT
local WAIT_OK = 0
local KEYS_MAX = 16384 -- arguments whose key strings a wrapper remembers,
local KEY_SIZE_MAX = 256 -- and how long these may be
local type, error, select, unpack, pcall, xpcall = type, error, select, unpack, pcall, xpcall
local isyieldable = coroutine.isyieldable

local KNOWN = { ttl = "any", alias = "any", name = "string", key = "string",
  key_builder = "function", skip_self = "boolean", namespace = "string", cache_if = "function",
  neg_ttl = "any", serializer = "any", copy = "boolean" }

-- ---- keys ------------------------------------------------------------------

-- The key of a call. One plain argument finds its key by itself: the string is
-- built only when it is new.
local function key_of(self, ...)
  local first = ...
  local known = self.keys
  if known and select("#", ...) == 1 then
    local key = known[first]
    if key then return key end
    local kind = type(first)
    if kind == "string" or kind == "number" or kind == "boolean" then
      key = of_arguments(self.prefix, first)
      if #key > KEY_SIZE_MAX then return key end
      if self.key_count >= KEYS_MAX then self.keys, self.key_count = {}, 0 end
      self.keys[first], self.key_count = key, self.key_count + 1
      return key
    end
  end
  if self.key then return self.key end
  if self.key_builder then
    local key = self.key_builder(self.fn, ...)
    check_key(key, "cached: key_builder")
    return key
  end
  if self.skip_self then return of_arguments(self.prefix, select(2, ...)) end
  return of_arguments(self.prefix, ...)
end

-- ---- loads -----------------------------------------------------------------

-- Ends the load whose fn has returned; gives its results back.
local function loaded(self, load, key, driver, ok, ...)
  if not ok then
    self.errors = self.errors + 1
    backend.fail(load, (...))
    error((...), 0)
  end
  finish(self, load, key, driver, ...)
  return ...
end

local lease

-- What others have left under the key. Should this wrapper be unable to read
-- it, that counts as missing.
local function read_or_load(self, key, arguments, found, ...)
  if found then return ... end
  return lease(self, key, "refresh", unpack(arguments, 1, arguments.n))
end

-- What lease said.
local function leased(self, key, mode, outcome, a, b, ...)
  if outcome == TOKEN then
    self.loads = self.loads + 1
    return loaded(self, a, key, self.alias.driver, xpcall(self.fn, note, ...))
  end
  if outcome == HIT or outcome == WAIT_OK then
    local arguments = { n = select("#", ...), ... }
    return read_or_load(self, key, arguments, read_waited(self, a, b))
  end
  if outcome == GIVEN then return read_given(a) end
  if outcome == AGAIN then return lease(self, key, mode, ...) end
  if outcome == DIRECT then return self.fn(...) end -- waiting is impossible here, or a cycle
  error(a, 0) -- WAIT_FAILED, WAIT_RAISE
end

function lease(self, key, mode, ...)
  local ns = check_room(ns_of(self), key, "cached")
  local outcome, a, b = backend.lease(self.alias.view, ns, key, mode)
  return leased(self, key, mode, outcome, a, b, ...)
end

local function found_or_loaded(self, key, arguments, found, ...)
  if found then
    self.hits = self.hits + 1
    return ...
  end
  self.misses = self.misses + 1
  return lease(self, key, nil, unpack(arguments, 1, arguments.n))
end

-- ---- on a server --------------------------------------------------------------
--
-- Here the lease comes first: whoever holds it looks the key up and, if it is
-- missing, loads it; the others wait for either.

local call_remote

local function looked_up(self, load, key, arguments, ok, found, ...)
  if not ok then
    backend.fail(load, found)
    error(found, 0)
  end
  if found then
    self.hits = self.hits + 1
    give(self, load, ...)
    return ...
  end
  self.misses, self.loads = self.misses + 1, self.loads + 1
  return loaded(self, load, key, self.alias.driver,
    xpcall(self.fn, note, unpack(arguments, 1, arguments.n)))
end

local function leased_remote(self, ns, key, refresh, outcome, a, ...)
  if outcome == TOKEN and refresh then
    self.loads = self.loads + 1
    return loaded(self, a, key, self.alias.driver, xpcall(self.fn, note, ...))
  end
  if outcome == TOKEN then
    return looked_up(self, a, key, { n = select("#", ...), ... }, pcall(find, self, ns, key))
  end
  if outcome == GIVEN then
    self.hits = self.hits + 1
    return read_given(a)
  end
  if outcome == AGAIN then return call_remote(self, key, refresh, ...) end
  if outcome == DIRECT then return self.fn(...) end
  error(a, 0)
end

function call_remote(self, key, refresh, ...)
  local ns = check_room(ns_of(self), key, "cached")
  if not isyieldable() then return self.fn(...) end -- nothing can be asked for here
  local outcome, a = backend.lease(self.alias.view, ns, key, "refresh")
  return leased_remote(self, ns, key, refresh, outcome, a, ...)
end

-- The way of a call with hooks or a server.
local function call_slowly(self, key, ...)
  if self.alias.remote then return call_remote(self, key, false, ...) end
  return found_or_loaded(self, key, { n = select("#", ...), ... }, find(self, ns_of(self), key))
end

local PLAIN = { string = true, number = true, boolean = true }
local READ_CODE = alias.memory.READ
local NOT_NEAR = { pool = false, map = {} } -- an index that is nobody's

-- What find or fetch has given, to be read by the serializer.
local function read_hit(self, code, value, ...)
  return found_or_loaded(self, key_of(self, ...), { n = select("#", ...), ... },
    read(self, code < READ_CODE and code or code - READ_CODE, value))
end

-- A call that has not found its results as they are by that name.
local function call(self, index, name, code, value, ...)
  if not state.enabled then return self.fn(...) end
  if code ~= nil and code > RESULTS then return read_hit(self, code, value, ...) end
  local key, the_alias = key_of(self, ...), self.alias
  if not the_alias.fast then return call_slowly(self, key, ...) end
  if index == self.by_argument and not PLAIN[type(name)] then
    index, name = index_of(self, ns_of(self)), key
  elseif index.pool ~= the_alias.fast then
    index = new_index(self)
    self.by_argument = index
  end
  local format
  format, value = get_near(index, the_alias, key, name, "cached")
  if format == nil then
    self.misses = self.misses + 1
    return lease(self, key, nil, ...)
  end
  if format > RESULTS or not index.plain then return read_hit(self, format, value, ...) end
  self.hits = self.hits + 1
  if format == RESULTS then return unpack(value, 1, value.n) end
  return value
end

-- The wrapper itself: on a hit without closures, tables and C calls, so that
-- it compiles, and all in one function, as only so can a trace begin in it that
-- hands `...` on to nobody. A call with one plain argument finds its near copy by
-- that: no key is made.
local function wrapper(self)
  return function(...)
    local index, name = self.by_argument, ...
    if (not index or select("#", ...) ~= 1) and state.enabled and self.alias.fast then
      name = key_of(self, ...)
      index = index_of(self, self.ns or self.alias.ns)
    end
    local code, value
    if index then code, value = look(index, name) end
    if code == nil or code < 0 or code > RESULTS then
      return call(self, index, name, code, value, ...)
    end
    self.hits = self.hits + 1
    if code == RESULTS then return unpack(value, 1, value.n) end
    return value
  end
end

-- ---- the handle --------------------------------------------------------------

local Handle = {}
Handle.__index = Handle
Handle.__name = "cached.handle"

local selves = setmetatable({}, { __mode = "k" }) -- wrapper or handle -> self

local function self_of(handle, what)
  local self = selves[handle]
  if not self then raise("%s: call it with a colon, on what cache.handle gave", what) end
  return self
end

function Handle:key(...)
  return key_of(self_of(self, "key"), ...)
end

function Handle:invalidate(...)
  local self_ = self_of(self, "invalidate")
  local key = key_of(self_, ...)
  if not state.enabled then return 0 end
  return wrap.remove(self_, check_room(ns_of(self_), key, "invalidate"), key)
end

local function refresh(self, ...)
  if not state.enabled then return self.fn(...) end
  if self.alias.remote then return call_remote(self, key_of(self, ...), true, ...) end
  return lease(self, key_of(self, ...), "refresh", ...)
end

function Handle:refresh(...)
  return refresh(self_of(self, "refresh"), ...)
end

function Handle:original()
  return self_of(self, "original").fn
end

function Handle:stats()
  local self_ = self_of(self, "stats")
  return { hits = self_.hits, misses = self_.misses, loads = self_.loads, errors = self_.errors }
end

local WITH = { force_refresh = "boolean", only_if_cached = "boolean", bypass = "boolean" }

local function only_results(found, ...)
  if found then return ... end
end

function Handle:with(opts)
  local self_ = self_of(self, "with")
  wrap.check_options(opts, WITH, "with")
  local chosen = 0
  for _, on in pairs(opts) do chosen = chosen + (on and 1 or 0) end
  if chosen > 1 then raise "with: force_refresh, only_if_cached and bypass exclude each other" end
  if opts.bypass then return function(...) return self_.fn(...) end end
  if opts.force_refresh then return function(...) return refresh(self_, ...) end end
  if not opts.only_if_cached then return self_.wrapper end
  return function(...)
    if not state.enabled then return end
    return only_results(find(self_, ns_of(self_), key_of(self_, ...)))
  end
end

local cached = {}

--- cache.handle: see lua/meta/cache.lua.
function cached.handle(fn)
  local self = selves[fn]
  if not self then
    raise("handle: a function that cache.cached has made is expected, not %s",
      type(fn) == "function" and "any other" or type(fn))
  end
  return self.handle
end

--- cache.cached: see lua/meta/cache.lua.
function cached.cached(fn, opts)
  if type(fn) ~= "function" then raise("cached: a function expected, not %s", type(fn)) end
  if opts == nil then opts = {} end
  wrap.check_options(opts, KNOWN, "cached")
  local self = wrap.new(fn, opts, "cached")
  if opts.key then check_key(opts.key, "cached: key") end
  local name = wrap.name(fn, opts, self.alias, "cached")
  self.key, self.skip_self = opts.key, opts.skip_self
  self.prefix = name and keys.prefix(name)
  if not (opts.key or opts.key_builder or opts.skip_self) then self.keys, self.key_count = {}, 0 end
  self.by_argument = self.keys and NOT_NEAR
  self.wrapper = wrapper(self)
  self.handle = setmetatable({}, Handle)
  selves[self.wrapper], selves[self.handle] = self, self
  return self.wrapper
end

return cached
