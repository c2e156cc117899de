-- The Cache object: an alias with methods. What each method does is a local
-- function of the alias, which the seed's four functions (init.lua) call, too;
-- `what` is the name that the user called, for messages.
local backend = require "moonstash.backend"
local alias = require "cache.alias"
local key = require "cache.key"
local native = require "cache.native"
local raise = require "cache.raise"

local check_key, encode = key.check, native.encode
local state, memory, ttl_ms = alias.state, alias.memory, alias.ttl_ms
local RESULTS = backend.RESULTS
local type, pairs, tostring = type, pairs, tostring

local object = {}

local NONE, TTL = {}, { ttl = true }
local LATER = { timeout = true, namespace = true, dumps = true, loads = true, wait = true }

-- Raises on an option that is unknown, or not there yet. (An alias is named in
-- the options of the seed's functions only.)
local function check_options(opts, known, what)
  if type(opts) ~= "table" then raise("%s: options must be a table, not %s", what, type(opts)) end
  for name in pairs(opts) do
    if not known[name] then
      raise("%s: the option '%s' is %s", what, tostring(name),
        LATER[name] and "not in this version" or "unknown")
    end
  end
end

function object.get(the_alias, k, default, opts, what)
  check_key(k, what)
  if opts ~= nil then check_options(opts, NONE, what) end
  if not state.enabled then return default end
  local format, value = memory.get(the_alias, "", k)
  if format == RESULTS then value = value[1] end
  if format == nil or value == nil then return default end
  return value
end

local function ttl_of(the_alias, opts, what)
  if opts == nil then return the_alias.ttl_ms end
  if type(opts) ~= "table" then return ttl_ms(opts, what) end
  check_options(opts, TTL, what)
  if opts.ttl == nil then return the_alias.ttl_ms end
  return ttl_ms(opts.ttl, what)
end

function object.set(the_alias, k, value, opts, what)
  check_key(k, what)
  local ttl = ttl_of(the_alias, opts, what)
  if value == nil then raise("%s: the value is nil: use delete to remove a key", what) end
  if not state.enabled then return true end
  local bytes, format = encode(value, what)
  local status = memory.set(the_alias, "", k, bytes, format, ttl)
  if status == 1 then return true end
  return nil, alias.status_error(status, what)
end

function object.delete(the_alias, k, opts, what)
  check_key(k, what)
  if opts ~= nil then check_options(opts, NONE, what) end
  if not state.enabled then return 0 end
  return memory.remove(the_alias, "", k)
end

function object.clear(the_alias, namespace, opts, what)
  if namespace ~= nil then raise("%s: a namespace is not in this version", what) end
  if opts ~= nil then check_options(opts, NONE, what) end
  if not state.enabled then return true end
  backend.clear(the_alias.view, "")
  return true
end

local Cache = {}
Cache.__index = Cache
Cache.__name = "Cache"

-- The alias of a method's self; memory.get("k") has lost it.
local function alias_of(self, what)
  local found = type(self) == "table" and self.alias
  if not found then raise("%s: call it with a colon, as in cache.memory:%s(...)", what, what) end
  return found
end

function Cache:get(k, default, opts)
  return object.get(alias_of(self, "get"), k, default, opts, "get")
end

function Cache:set(k, value, opts)
  return object.set(alias_of(self, "set"), k, value, opts, "set")
end

function Cache:delete(k, opts)
  return object.delete(alias_of(self, "delete"), k, opts, "delete")
end

function Cache:clear(namespace, opts)
  return object.clear(alias_of(self, "clear"), namespace, opts, "clear")
end

function Cache:stats()
  return backend.stats(alias_of(self, "stats").view)
end

function Cache:__tostring()
  return ("cache '%s'"):format(self.alias.name)
end

local objects = {}

--- The Cache object of an alias: one per alias.
function object.of(name, what)
  local found = alias.find(name, what)
  objects[name] = objects[name] or setmetatable({ alias = found }, Cache)
  return objects[name]
end

return object
