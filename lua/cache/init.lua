-- The `cache` module. It is configured from the environment when it is first
-- required; lua/meta/cache.lua documents every function.
local alias = require "cache.alias"
local backend = require "moonstash.backend"
local settings = require "cache.settings"
local get_object = require "cache.object"

local cache = {}

cache.cached = require "cache.cached"
cache.settings = settings.view

function cache.get_cache(name)
  return get_object(name == nil and "memory" or name, 2)
end

cache.memory = get_object("memory", 2)
cache.persistent = get_object("persistent", 2)

-- Takes the alias out of an options table of the seed's four functions. Gives
-- the object and the other options, nil when there are none.
local function split(opts, what)
  if opts == nil then return cache.memory end
  if type(opts) ~= "table" then
    error(("%s: options must be a table, not %s"):format(what, type(opts)), 3)
  end
  local object = opts.alias == nil and cache.memory or get_object(opts.alias, 3)
  local rest
  for name, value in pairs(opts) do
    if name ~= "alias" then
      rest = rest or {}
      rest[name] = value
    end
  end
  return object, rest
end

function cache.get_cached(key, opts)
  local object, rest = split(opts, "get_cached")
  return object:get(key, nil, rest)
end

function cache.set_cached(key, value, opts)
  local object, rest = split(opts, "set_cached")
  return object:set(key, value, rest)
end

function cache.delete_cached(key, opts)
  local object, rest = split(opts, "delete_cached")
  return object:delete(key, rest)
end

function cache.clear_cache(opts)
  local object, rest = split(opts, "clear_cache")
  return object:clear(nil, rest)
end

function cache.configure_caches(values)
  if values == settings.view then values = settings.snapshot() end
  if values == nil then values = {} end
  if type(values) ~= "table" then
    error(("configure_caches: a table of settings expected, not %s"):format(type(values)), 2)
  end
  if values.aliases ~= nil then
    error("configure_caches: aliases are not in this version", 2)
  end
  alias.configure(values)
end

cache.testing = {}

function cache.testing.advance(seconds)
  if type(seconds) ~= "number" or not (seconds >= 0) then
    error(("advance: a number of seconds >= 0 expected, not %s"):format(tostring(seconds)), 2)
  end
  backend.advance(seconds * 1000)
end

return cache
