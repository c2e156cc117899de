-- What wrappers of functions share: options, names, and the end of a load.
local backend = require "moonstash.backend"
local funcinfo = require("jit.util").funcinfo
local alias = require "cache.alias"
local errors = require "moonstash.error"
local memory_driver = require "cache.memory"
local hooks = require "cache.hooks"
local native = require "cache.native"
local object = require "cache.object"
local raise = require "cache.raise"
local serializer = require "cache.serializer"

local memory, decode = alias.memory, serializer.decode
local decode_bytes = native.decode_bytes
local RESULTS, TABLE, REFERENCE = backend.RESULTS, backend.TABLE, backend.REFERENCE
local type, error, select, unpack, pairs, tostring, pcall, getmetatable, setmetatable =
  type, error, select, unpack, pairs, tostring, pcall, getmetatable, setmetatable

local wrap = {}

-- ---- options -----------------------------------------------------------------

local LATER = {}
for name in ([[version jitter idle_ttl max_ttl error_ttl lock lock_timeout
  stale_while_revalidate stale_if_error stale_if stale_backoff default soft_timeout
  hard_timeout background_completion refresh_ahead early_beta tags validate min_cost
  on_hit on_miss on_stale on_error compress sign max_l1_size l1_ttl invalidate
  envelope]]):gmatch "%S+" do
  LATER[name] = true
end

--- Raises unless opts is a table of options of these kinds.
function wrap.check_options(opts, known, what)
  if type(opts) ~= "table" then raise("%s: options must be a table, not %s", what, type(opts)) end
  for name, value in pairs(opts) do
    local kind = known[name]
    if not kind then
      raise("%s: the option '%s' is %s", what, tostring(name),
        LATER[name] and "not in this version" or "unknown")
    end
    if kind ~= "any" and type(value) ~= kind then
      raise("%s: %s must be a %s, not a %s", what, name, kind, type(value))
    end
  end
  if opts.name == "" then raise("%s: name must not be empty", what) end
  if type(opts.ttl) == "function" then
    raise("%s: a function as ttl is not in this version", what)
  end
end

-- ---- names -------------------------------------------------------------------

local automatic = {} -- name -> {proto: whose it is, weak; count: owners so far}

-- A name for the wrapper of a function that was given none: where it was
-- defined. Two closures of one prototype would share keys: that raises. A new
-- prototype there (the file was loaded again, or another one is called the
-- same) starts anew, under a name that nobody had.
local function automatic_name(fn, what)
  local proto, info = funcinfo(fn).proto, debug.getinfo(fn, "S")
  if not proto then raise("%s: a C function needs a name, key or key_builder", what) end
  local file = info.source:match "^@.-([^/]*)$" or info.short_src
  local name = ("%s:%d"):format(file, info.linedefined)
  local owner = automatic[name] or setmetatable({ count = 0 }, { __mode = "v" })
  if owner.proto == proto then
    raise("%s: %s is wrapped twice under its automatic name: give it a name, key or key_builder",
      what, name)
  end
  owner.proto, owner.count = proto, owner.count + 1
  automatic[name] = owner
  return owner.count == 1 and name or ("%s#%d"):format(name, owner.count)
end

--- The wrapper's name; nil when its keys need none.
function wrap.name(fn, opts, the_alias, what)
  if opts.name then return opts.name end
  if opts.key_builder or opts.key then return nil end
  if the_alias.name ~= "memory" then
    raise("%s: a wrapper on '%s' needs a name, key or key_builder: its keys must survive an "
      .. "edit of the script", what, the_alias.name)
  end
  return automatic_name(fn, what)
end

-- On a server the values of other serializers than native are nothing but the
-- format's bytes: they cannot say "nothing there".
local function check_remote(the_alias, ser, neg_ttl, what)
  if not the_alias.remote then return end
  if ser == serializer.none then raise("%s: %s", what, serializer.none_is_here) end
  if neg_ttl and ser ~= serializer.native then
    raise("%s: neg_ttl needs the serializer native on Redis: %s cannot say that nothing is there",
      what, ser.name)
  end
end

--- The fields that every wrapper has.
function wrap.new(fn, opts, what)
  if type(fn) ~= "function" then raise("%s: a function expected, not %s", what, type(fn)) end
  local the_alias = alias.find(opts.alias == nil and "memory" or opts.alias, what)
  local neg_ttl = opts.neg_ttl
  if neg_ttl == 0 then raise("%s: neg_ttl must not be 0: false turns it off", what) end
  local ser = opts.serializer ~= nil and serializer.find(opts.serializer, what) or nil
  check_remote(the_alias, ser or the_alias.serializer, neg_ttl, what)
  return {
    fn = fn,
    alias = the_alias,
    client = object.of(the_alias.name, what),
    ns = opts.namespace and alias.prefix(opts.namespace),
    key_builder = opts.key_builder,
    ttl_ms = opts.ttl ~= nil and alias.ttl_ms(opts.ttl, what) or nil,
    neg_ttl_ms = neg_ttl and alias.ttl_ms(neg_ttl, what, "neg_ttl") or nil,
    cache_if = opts.cache_if,
    serializer = ser,
    shared = opts.copy == false,
    copies = opts.copy == true,
    what = what,
    hits = 0, misses = 0, loads = 0, errors = 0,
  }
end

-- ---- values --------------------------------------------------------------------

local packed_mt, get_near = memory_driver.packed_mt, memory_driver.get_near

--- What the backend or a load gave, as found, results...
function wrap.read(self, format, value)
  if format == RESULTS then return true, unpack(value, 1, value.n) end
  local result, err = decode(self.serializer or self.alias.serializer, format, value, self.what)
  if result == nil or err then return false end
  if getmetatable(result) == packed_mt then return true, unpack(result, 1, result.n) end
  return true, result
end
local read = wrap.read

--- A waiter's outcome: tables come still encoded.
function wrap.read_waited(self, format, value)
  if format == RESULTS or format == TABLE then value = decode_bytes(value) end
  return read(self, format, value)
end

--- What give has handed to a waiter, as results.
function wrap.read_given(given)
  if type(given) == "string" then given = decode_bytes(given) end
  return unpack(given, 1, given.n)
end

-- Do hits share their tables?
local function is_shared(self)
  if self.alias.remote then return false end
  return self.shared or not self.copies and self.alias.shared
end

--- An index of the wrapper's own in the alias's present pool of near copies.
function wrap.new_index(self)
  local the_alias = self.alias
  return memory.index(the_alias.near, wrap.ns(self), is_shared(self),
    self.serializer or the_alias.serializer, false)
end

-- The index of the wrapper's key strings: the one that all use who read this
-- prefix, if this wrapper reads as they do.
local function index_of(self, ns)
  local the_alias = self.alias
  local common = alias.index(the_alias, ns)
  if common.shared == is_shared(self)
    and common.reader == (self.serializer or common.reader) then
    return common
  end
  if not self.index or self.index.pool ~= the_alias.near then self.index = wrap.new_index(self) end
  return self.index
end
wrap.index = index_of

local function find_remote(self, ns, key)
  local ser = self.serializer or self.alias.serializer
  local format, value = self.alias.driver.find(self.alias, ns, key, ser, self.what)
  if format == nil then return false end
  if format == RESULTS then return true, unpack(value, 1, value.n) end
  return true, value
end

local function find(self, ns, key)
  if self.alias.remote then return find_remote(self, ns, key) end
  local format, value = get_near(index_of(self, ns), self.alias, key, key, self.what)
  if format == nil then return false end
  return read(self, format, value)
end

-- Hooks see what they would of Cache:get: the first result, no error, and
-- whether it was a hit; then the other results.
local function as_get(found, first, ...) return first, nil, found, ... end

local function find_body(_, _, _, self, ns, key)
  return as_get(find(self, ns, key))
end

local function from_get(first, _, found, ...)
  if not found then return false end
  return true, first, ...
end

--- Looks a key up: found, results... - between the hooks of get, if the alias
--- has some.
function wrap.find(self, ns, key)
  local plugins = self.alias.plugins
  if not plugins then return find(self, ns, key) end
  return from_get(hooks.run(plugins, "get", self.client, key, nil, find_body, self.client, key, nil,
    self, ns, key))
end

-- ---- loads -------------------------------------------------------------------------

--- An xpcall handler: keeps the stack of an error that will be raised again.
wrap.note = errors.note

-- None but nils: "nothing there".
local function is_nothing(n, ...)
  for i = 1, n do
    if select(i, ...) ~= nil then return false end
  end
  return true
end

local function encode(self, driver, n, ...)
  local ser = self.serializer or self.alias.serializer
  if n == 1 and (...) ~= nil then return driver.encode(ser, (...), self.what) end
  if ser ~= serializer.native and ser ~= serializer.none and not is_nothing(n, ...) then
    raise("%s: the function gave %d results, and %s holds only one", self.what, n, ser.name)
  end
  return driver.encode_results(ser, n, ...)
end

-- How results are to be kept: the TTL in milliseconds, or nil for not at all.
local function ttl_of(self, n, ...)
  if is_nothing(n, ...) then
    local ser = self.serializer or self.alias.serializer
    return not (self.alias.remote and ser ~= serializer.native) and self.neg_ttl_ms or nil
  end
  local first, second = ...
  if first == nil and second ~= nil then return nil end -- Lua's nil, err
  return self.ttl_ms or self.alias.ttl_ms
end

local function prepare(self, driver, n, ...)
  local ttl_ms = ttl_of(self, n, ...)
  if ttl_ms and self.cache_if and not self.cache_if(...) then ttl_ms = nil end
  if not ttl_ms then return nil end
  return ttl_ms, encode(self, driver, n, ...)
end

-- On a server: it is told, unless the key has changed since the load began, and
-- nobody waits for its answer; those who wait here get the results.
local function store_remote(self, driver, key, load, bytes, kind, ttl_ms, ...)
  local stored = backend.valid(load)
    and driver.store(self.alias, wrap.ns(self), key, bytes, kind, ttl_ms)
  wrap.give(self, load, ...)
  return stored
end

-- Waiters get references from here: the entry's may be gone when they resume.
local function store(load, bytes, format, ttl_ms, ...)
  if format ~= REFERENCE then return backend.fill(load, bytes, format, ttl_ms) == 1 end
  local given = { n = select("#", ...), ... }
  local stored = backend.fill(load, bytes, format, ttl_ms, given) == 1
  if not stored then serializer.forget(format, bytes) end
  return stored
end

-- Results that are not stored, for those who wait: a copy each, as they would
-- get from the cache. What cannot be copied they share, those of this runtime;
-- for the others there is a copy as the second result.
local function to_give(self, load, n, ...)
  local none = (self.serializer or self.alias.serializer) == serializer.none
  local shared = is_shared(self)
  if not none and (not shared or backend.shared()) and backend.waiters(load) > 0 then
    local ok, bytes = pcall(native.encode_results, n, ...)
    if ok and not shared then return bytes end
    if ok then return { n = n, ... }, bytes end
  end
  return { n = n, ... }
end

--- Ends a load with results that are not to be stored, for those who wait.
function wrap.give(self, load, ...)
  backend.give(load, to_give(self, load, select("#", ...), ...))
end

-- Runs a body between the hooks of set, if there are some.
local function run_set(self, key, ttl_ms, body, ...)
  local plugins = self.alias.plugins
  if not plugins then return body(...) end
  return hooks.run(plugins, "set", self.client, key, { ttl = ttl_ms / 1000 }, body, ...)
end

--- Ends a load with the results of the function: stores them, or gives them
--- just to those who wait. Raises what cannot be stored.
--- driver is that of the load's beginning: if the alias has moved since, its
--- value belongs nowhere.
function wrap.finish(self, load, key, driver, ...)
  local n, remote = select("#", ...), self.alias.remote
  if self.alias.driver ~= driver then
    wrap.give(self, load, ...)
    return
  end
  local ok, ttl_ms, bytes, format = pcall(prepare, self, driver, n, ...)
  if not ok then
    backend.fail(load, ttl_ms)
    error(ttl_ms, 0)
  end
  if not ttl_ms then
    wrap.give(self, load, ...)
  elseif remote then
    run_set(self, key, ttl_ms, store_remote, self, driver, key, load, bytes, format, ttl_ms, ...)
  else
    run_set(self, key, ttl_ms, store, load, bytes, format, ttl_ms, ...)
  end
end

local NO_WAIT = { wait = false }

local function add_body(client, key, driver, ns, bytes, format, ttl_ms)
  if client.alias.driver ~= driver then -- it has moved while a hook waited
    serializer.forget(format, bytes)
    return false
  end
  return driver.add(client.alias, ns, key, NO_WAIT, bytes, format, ttl_ms, "multi_cached") == true
end

--- Stores a value that nobody has asked for, unless there is one: that may be
--- newer.
function wrap.add(self, ns, key, value)
  local client, driver = self.client, self.alias.driver
  local ttl_ms = self.ttl_ms or self.alias.ttl_ms
  local bytes, format = encode(self, driver, 1, value)
  return run_set(self, key, ttl_ms, add_body, client, key, driver, ns, bytes, format, ttl_ms)
end

--- Removes a key; how many there were.
function wrap.remove(self, ns, key)
  local plugins, the_alias = self.alias.plugins, self.alias
  local function body() return the_alias.driver.remove(the_alias, ns, key, nil, "invalidate") end
  if not plugins then return body() end
  return hooks.run(plugins, "delete", self.client, key, nil, body)
end

--- The prefix of a wrapper's keys.
function wrap.ns(self)
  return self.ns or self.alias.ns
end

return wrap
