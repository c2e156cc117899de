-- cached(fn, opts): a function that remembers. A miss takes the key's lease:
-- one caller loads, in its own task; the others wait for it and share its
-- results or its error. See lease in runtime/backend.h.
local backend = require "moonstash.backend"
local funcinfo = require("jit.util").funcinfo
local alias = require "cache.alias"
local errors = require "moonstash.error"
local keys = require "cache.key"
local native = require "cache.native"
local raise = require "cache.raise"

local state, get = alias.state, alias.memory.get
local note = errors.note
local of_arguments, check_key = keys.of_arguments, keys.check
local encode, encode_results = native.encode, native.encode_results
local decode = require("string.buffer").decode
local RESULTS, TABLE = backend.RESULTS, backend.TABLE
local HIT, TOKEN, AGAIN = backend.LEASE_HIT, backend.LEASE_TOKEN, backend.LEASE_AGAIN
local GIVEN, DIRECT = backend.LEASE_GIVEN, backend.LEASE_DIRECT
local WAIT_OK = 0
local type, error, select, unpack, pairs, tostring, xpcall, pcall =
  type, error, select, unpack, pairs, tostring, xpcall, pcall

local KNOWN = { ttl = "any", alias = "any", name = "string", key_builder = "function" }
local LATER = {}
for name in ([[namespace key skip_self version jitter idle_ttl max_ttl neg_ttl error_ttl lock
  lock_timeout stale_while_revalidate stale_if_error stale_if stale_backoff default soft_timeout
  hard_timeout background_completion refresh_ahead early_beta tags cache_if validate min_cost
  on_hit on_miss on_stale on_error serializer compress sign max_l1_size l1_ttl copy invalidate
  envelope]]):gmatch "%S+" do
  LATER[name] = true
end

local function check_options(opts)
  if type(opts) ~= "table" then raise("cached: options must be a table, not %s", type(opts)) end
  for name, value in pairs(opts) do
    local kind = KNOWN[name]
    if not kind then
      raise("cached: the option '%s' is %s", tostring(name),
        LATER[name] and "not in this version" or "unknown")
    end
    if kind ~= "any" and type(value) ~= kind then
      raise("cached: %s must be a %s, not a %s", name, kind, type(value))
    end
  end
  if opts.name == "" then raise "cached: name must not be empty" end
  if type(opts.ttl) == "function" then raise "cached: a function as ttl is not in this version" end
end

-- ---- names ----------------------------------------------------------------

local automatic = {} -- name -> {proto: whose it is, weak; count: owners so far}

-- A name for the wrapper of a function that was given none: where it was
-- defined. Two closures of one prototype would share keys: that raises. A new
-- prototype there (the file was loaded again, or another one is called the
-- same) starts anew, under a name that nobody had.
local function automatic_name(fn)
  local proto, info = funcinfo(fn).proto, debug.getinfo(fn, "S")
  if not proto then raise "cached: a C function needs a name or a key_builder" end
  local file = info.source:match "^@.-([^/]*)$" or info.short_src
  local name = ("%s:%d"):format(file, info.linedefined)
  local owner = automatic[name] or setmetatable({ count = 0 }, { __mode = "v" })
  if owner.proto == proto then
    raise("cached: %s is wrapped twice under its automatic name: give it a name or a key_builder",
      name)
  end
  owner.proto, owner.count = proto, owner.count + 1
  automatic[name] = owner
  return owner.count == 1 and name or ("%s#%d"):format(name, owner.count)
end

-- The wrapper's name; nil when a key_builder makes its keys.
local function own_name(fn, opts, the_alias)
  if opts.name then return opts.name end
  if opts.key_builder then return nil end
  if the_alias.name ~= "memory" then
    raise("cached: a wrapper on '%s' needs a name or a key_builder: its keys must survive an "
      .. "edit of the script", the_alias.name)
  end
  return automatic_name(fn)
end

-- ---- loads ----------------------------------------------------------------

-- A waiter's outcome comes with the bytes of a table still encoded.
local function waited(format, value)
  if format == RESULTS then
    value = decode(value)
    return unpack(value, 1, value.n)
  end
  if format == TABLE then return decode(value) end
  return value
end

-- Results that are not stored: none but nils ("nothing there"), or Lua's
-- nil, err.
local function is_passing(n, first, second, ...)
  if first ~= nil then return false end
  if second ~= nil then return true end
  for i = 1, n - 2 do
    if select(i, ...) ~= nil then return false end
  end
  return true
end

local function encode_all(n, ...)
  if n == 1 then return encode((...), "cached") end
  return encode_results(n, ...)
end

-- Ends the load whose fn has returned; gives its results back.
local function loaded(self, load, ok, ...)
  if not ok then
    backend.fail(load, (...))
    error((...), 0)
  end
  local n = select("#", ...)
  if is_passing(n, ...) then
    backend.give(load, { n = n, ... })
    return ...
  end
  local encoded, bytes, format = pcall(encode_all, n, ...)
  if not encoded then
    backend.fail(load, bytes)
    error(bytes, 0)
  end
  backend.fill(load, bytes, format, self.ttl_ms or self.alias.ttl_ms)
  return ...
end

local miss

-- What lease said.
local function leased(self, key, outcome, a, b, ...)
  if outcome == TOKEN then return loaded(self, a, xpcall(self.fn, note, ...)) end
  if outcome == HIT or outcome == WAIT_OK then return waited(a, b) end
  if outcome == GIVEN then return unpack(a, 1, a.n) end
  if outcome == AGAIN then return miss(self, key, ...) end
  if outcome == DIRECT then return self.fn(...) end -- waiting is impossible here, or a cycle
  error(a, 0) -- WAIT_FAILED, WAIT_RAISE
end

function miss(self, key, ...)
  local outcome, a, b = backend.lease(self.alias.view, "", key)
  return leased(self, key, outcome, a, b, ...)
end

-- The wrapper itself: on a hit without closures, tables and C calls, so that
-- it compiles.
local function wrapper(self)
  local fn, build, prefix, the_alias = self.fn, self.key_builder, self.prefix, self.alias
  return function(...)
    if not state.enabled then return fn(...) end
    local key
    if build then
      key = build(fn, ...)
      check_key(key, "cached: key_builder")
    else
      key = of_arguments(prefix, ...)
    end
    local format, value = get(the_alias, "", key)
    if format == nil then return miss(self, key, ...) end
    if format == RESULTS then return unpack(value, 1, value.n) end
    return value
  end
end

--- See lua/meta/cache.lua.
return function(fn, opts)
  if type(fn) ~= "function" then
    raise("cached: a function expected, not %s", type(fn))
  end
  if opts == nil then opts = {} end
  check_options(opts)
  local the_alias = alias.find(opts.alias == nil and "memory" or opts.alias, "cached")
  local ttl_ms = opts.ttl ~= nil and alias.ttl_ms(opts.ttl, "cached") or nil
  local name = own_name(fn, opts, the_alias)
  return wrapper {
    fn = fn,
    alias = the_alias,
    key_builder = opts.key_builder,
    prefix = name and keys.prefix(name),
    ttl_ms = ttl_ms,
  }
end
