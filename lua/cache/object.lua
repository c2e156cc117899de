-- The Cache object: an alias with methods.
local backend = require "moonstash.backend"
local alias = require "cache.alias"
local key = require "cache.key"
local native = require "cache.native"

local check_key, encode = key.check, native.encode
local find, state, memory = alias.find, alias.state, alias.memory
local RESULTS = backend.RESULTS
local type, error, pairs, tostring = type, error, pairs, tostring

local Cache = {}
Cache.__index = Cache
Cache.__name = "Cache"

local SET_OPTIONS = { ttl = true }
local LATER = { timeout = true, namespace = true, dumps = true, loads = true, wait = true,
  pin = true, weight = true, tags = true }

-- Raises on an option that is unknown, or not there yet.
local function check_options(opts, known, what)
  if type(opts) ~= "table" then
    error(("%s: options must be a table, not %s"):format(what, type(opts)), 3)
  end
  for name in pairs(opts) do
    if not known[name] then
      error(("%s: the option '%s' is %s"):format(what, tostring(name),
        LATER[name] and "not in this version" or "unknown"), 3)
    end
  end
end

local NONE = {}

function Cache:get(k, default, opts)
  check_key(k, "get")
  if opts ~= nil then check_options(opts, NONE, "get") end
  if not state.enabled then return default end
  local format, value = memory.get(find(self.alias, 2).view, "", k)
  if format == nil then return default end
  if format == RESULTS then value = value[1] end
  if value == nil then return default end
  return value
end

local function ttl_of(the_alias, opts, what)
  if opts == nil then return the_alias.ttl_ms end
  if type(opts) ~= "table" then return alias.ttl_ms(opts, what, 3) end
  check_options(opts, SET_OPTIONS, what)
  if opts.ttl == nil then return the_alias.ttl_ms end
  return alias.ttl_ms(opts.ttl, what, 3)
end

function Cache:set(k, value, opts)
  check_key(k, "set")
  local the_alias = find(self.alias, 2)
  local ttl_ms = ttl_of(the_alias, opts, "set")
  if value == nil then error("set: the value is nil: use delete to remove a key", 2) end
  if not state.enabled then return true end
  local ok, bytes, format = pcall(encode, value, "set")
  if not ok then error(bytes, 2) end
  local status = memory.set(the_alias.view, "", k, bytes, format, ttl_ms)
  if status == 1 then return true end
  return nil, alias.status_error(status, "set")
end

function Cache:delete(k, opts)
  check_key(k, "delete")
  if opts ~= nil then check_options(opts, NONE, "delete") end
  if not state.enabled then return 0 end
  return memory.remove(find(self.alias, 2).view, "", k)
end

function Cache:clear(namespace, opts)
  if namespace ~= nil then error("clear: a namespace is not in this version", 2) end
  if opts ~= nil then check_options(opts, NONE, "clear") end
  if not state.enabled then return true end
  backend.clear(find(self.alias, 2).view, "")
  return true
end

function Cache:stats()
  return backend.stats(find(self.alias, 2).view)
end

function Cache:__tostring()
  return ("cache '%s'"):format(self.alias)
end

local objects = {}

--- The Cache object of an alias: one per alias. level as in error().
return function(name, level)
  find(name, level + 1)
  objects[name] = objects[name] or setmetatable({ alias = name }, Cache)
  return objects[name]
end
