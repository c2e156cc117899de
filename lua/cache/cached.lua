-- cached(fn, opts): a function that remembers. A miss takes the key's lease:
-- one caller loads, in its own task; the others wait for it and share its
-- results or its error. See lease in runtime/backend.h.
local backend = require "moonstash.backend"
local core = require "moonstash.task"
local alias = require "cache.alias"
local errors = require "moonstash.error"
local keys = require "cache.key"
local native = require "cache.native"

local find, state, memory = alias.find, alias.state, alias.memory
local of_arguments, check_key = keys.of_arguments, keys.check
local RESULTS, TABLE = backend.RESULTS, backend.TABLE
local HIT, TOKEN, AGAIN = backend.LEASE_HIT, backend.LEASE_TOKEN, backend.LEASE_AGAIN
local WAIT_OK, WAIT_RAISE, WAIT_FAILED = 0, 2, 3
local decode = require("string.buffer").decode
local type, error, select, unpack, pairs, tostring, xpcall, pcall =
  type, error, select, unpack, pairs, tostring, xpcall, pcall

local KNOWN = { ttl = "any", alias = "string", name = "string", key_builder = "function" }
local LATER = {}
for name in ([[namespace key skip_self version jitter idle_ttl max_ttl neg_ttl error_ttl lock
  lock_timeout stale_while_revalidate stale_if_error stale_if stale_backoff default soft_timeout
  hard_timeout background_completion refresh_ahead early_beta tags cache_if validate min_cost
  on_hit on_miss on_stale on_error serializer compress sign max_l1_size l1_ttl copy invalidate
  envelope]]):gmatch "%S+" do
  LATER[name] = true
end

local function check_options(opts)
  if type(opts) ~= "table" then
    error(("cached: options must be a table, not %s"):format(type(opts)), 3)
  end
  for name, value in pairs(opts) do
    local kind = KNOWN[name]
    if not kind then
      error(("cached: the option '%s' is %s"):format(tostring(name),
        LATER[name] and "not in this version" or "unknown"), 3)
    end
    if kind ~= "any" and type(value) ~= kind then
      error(("cached: %s must be a %s, not a %s"):format(name, kind, type(value)), 3)
    end
  end
  if opts.ttl ~= nil then alias.ttl_ms(opts.ttl, "cached", 3) end
end

-- ---- names ----------------------------------------------------------------

local automatic = {} -- automatic name -> the prototype that has it

-- A name for the wrapper of a function that was given none: where it was
-- defined. Two closures of one prototype would share keys: that raises.
local function automatic_name(fn)
  local info = debug.getinfo(fn, "S")
  local name = ("%s:%d"):format(info.short_src:match "[^/]*$", info.linedefined)
  local site = ("%s:%d-%d"):format(info.source, info.linedefined, info.lastlinedefined)
  return name, site
end

local function own_name(fn, opts)
  if opts.name then return opts.name end
  if opts.key_builder then return nil end
  if opts.alias and opts.alias ~= "memory" then
    error(("cached: a wrapper on '%s' needs a name or a key_builder: its keys must survive an "
      .. "edit of the script"):format(opts.alias), 3)
  end
  local name, site = automatic_name(fn)
  if automatic[name] == site then
    error(("cached: %s is wrapped twice under its automatic name: give it a name or a "
      .. "key_builder"):format(name), 3)
  end
  automatic[name] = site
  return name
end

-- ---- loads ----------------------------------------------------------------

local function note(err)
  if not errors.is(err, "cancelled") then
    core.note_error(err, debug.traceback(tostring(err), 2))
  end
  return err
end

-- The results of a hit: all of them, as fn returned them.
local function results_of(format, value)
  if format == RESULTS then return unpack(value, 1, value.n) end
  return value
end

-- A waiter's outcome comes with the bytes of a table still encoded.
local function waited(format, value)
  if format == RESULTS or format == TABLE then value = decode(value) end
  return results_of(format, value)
end

local function encode_results(n, ...)
  if n == 1 then return native.encode((...), "cached") end
  return native.encode_results("cached", n, ...)
end

-- Ends the load whose fn has returned; gives its results back.
local function loaded(self, load, ok, ...)
  if not ok then
    local err = ...
    local mine = errors.is(err, "cancelled") -- the caller's end, not the load's
    if mine then backend.abandon(load) else backend.abandon(load, err) end
    error(err, 0)
  end
  local n = select("#", ...)
  if n == 0 or (...) == nil then -- nothing there, or Lua's nil, err: not cached
    backend.abandon(load)
    return ...
  end
  local encoded, bytes, format = pcall(encode_results, n, ...)
  if not encoded then
    backend.abandon(load, bytes)
    error(bytes, 0)
  end
  backend.fill(load, bytes, format, self.ttl_ms or find(self.alias, 2).ttl_ms)
  return ...
end

local miss

-- What lease said.
local function leased(self, key, outcome, a, b, ...)
  if outcome == HIT then return results_of(a, b) end
  if outcome == TOKEN then return loaded(self, a, xpcall(self.fn, note, ...)) end
  if outcome == WAIT_OK then return waited(a, b) end
  if outcome == AGAIN then return miss(self, key, ...) end
  if outcome == WAIT_RAISE or outcome == WAIT_FAILED then error(a, 0) end
  return self.fn(...) -- LEASE_DIRECT: here waiting is impossible, or a cycle
end

function miss(self, key, ...)
  local outcome, a, b = backend.lease(find(self.alias, 2).view, "", key)
  return leased(self, key, outcome, a, b, ...)
end

local function key_of(self, ...)
  local build = self.key_builder
  if not build then return of_arguments(self.name, "cached", ...) end
  local key = build(self.fn, ...)
  check_key(key, "cached: key_builder")
  return key
end

local function call(self, ...)
  if not state.enabled then return self.fn(...) end
  local key = key_of(self, ...)
  local format, value = memory.get(find(self.alias, 2).view, "", key)
  if format ~= nil then return results_of(format, value) end
  return miss(self, key, ...)
end

--- See lua/meta/cache.lua.
return function(fn, opts)
  if type(fn) ~= "function" then
    error(("cached: a function expected, not %s"):format(type(fn)), 2)
  end
  if opts == nil then opts = {} end
  check_options(opts)
  find(opts.alias or "memory", 2)
  local self = {
    fn = fn,
    alias = opts.alias or "memory",
    key_builder = opts.key_builder,
    name = own_name(fn, opts),
    ttl_ms = opts.ttl ~= nil and alias.ttl_ms(opts.ttl, "cached", 2) or nil,
  }
  return function(...) return call(self, ...) end
end
