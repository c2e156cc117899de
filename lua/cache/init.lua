-- The `cache` module. It is configured from the environment when it is first
-- required; lua/meta/cache.lua documents every function.
local alias = require "cache.alias"
local backend = require "moonstash.backend"
local cached = require "cache.cached"
local classes = require "cache.classes"
local hooks = require "cache.hooks"
local object = require "cache.object"
local raise = require "cache.raise"
local settings = require "cache.settings"

local pairs, tostring, type = pairs, tostring, type

local cache = {}

cache.cached, cache.handle = cached.cached, cached.handle
cache.multi_cached = require "cache.multi"
cache.settings = settings.view
cache.null = backend.null
cache.array, cache.register_class = classes.array, classes.register
cache.plugins = { timing = hooks.timing, hit_miss_ratio = hooks.hit_miss_ratio }

function cache.get_cache(name)
  return object.of(name == nil and "memory" or name, "get_cache")
end

cache.memory = cache.get_cache "memory"
cache.persistent = cache.get_cache "persistent"

-- Takes the alias out of an options table of get_cached and its like. Gives
-- the Cache object and the other options, nil when there are none.
local function split(opts, what)
  if opts == nil then return cache.memory end
  if type(opts) ~= "table" then raise("%s: options must be a table, not %s", what, type(opts)) end
  local rest
  for name, value in pairs(opts) do
    if name ~= "alias" then
      rest = rest or {}
      rest[name] = value
    end
  end
  return object.of(opts.alias == nil and "memory" or opts.alias, what), rest
end

function cache.get_cached(key, opts)
  local client, rest = split(opts, "get_cached")
  return object.get(client, key, nil, rest, "get_cached")
end

function cache.set_cached(key, value, opts)
  local client, rest = split(opts, "set_cached")
  return object.set(client, key, value, rest, "set_cached")
end

function cache.delete_cached(key, opts)
  local client, rest = split(opts, "delete_cached")
  return object.delete(client, key, rest, "delete_cached")
end

function cache.clear_cache(opts)
  local client, rest = split(opts, "clear_cache")
  return object.clear(client, nil, rest, "clear_cache")
end

function cache.configure_caches(values)
  if values == settings.view then values = settings.snapshot() end
  if values == nil then values = {} end
  if type(values) ~= "table" then
    raise("configure_caches: a table of settings expected, not %s", type(values))
  end
  local plain, definitions = {}, values.aliases
  if definitions == nil then definitions = {} end
  if type(definitions) ~= "table" then
    raise("configure_caches: aliases must be a table, not %s", type(definitions))
  end
  for name, value in pairs(values) do
    if name ~= "aliases" then plain[name] = value end
  end
  alias.configure(plain, definitions)
end

cache.testing = {}

local ADVANCE_MAX = 1e9 -- seconds; more in one step is a mistake

function cache.testing.advance(seconds)
  if type(seconds) ~= "number" or not (seconds >= 0 and seconds <= ADVANCE_MAX) then
    raise("advance: a number of seconds from 0 to %g expected, not %s", ADVANCE_MAX,
      type(seconds) == "number" and tostring(seconds) or type(seconds))
  end
  backend.advance(math.floor(seconds * 1000 + 0.5))
  alias.forget_near()
end

return cache
