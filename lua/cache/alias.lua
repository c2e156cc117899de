-- Aliases: a named backend with its default TTL. Cache objects and wrappers
-- hold an alias and look at it with each call, so that they follow
-- configure_caches. In this version both aliases live in memory.
local backend = require "moonstash.backend"
local host = require "moonstash.host"
local settings = require "cache.settings"
local errors = require "moonstash.error"

local alias = {}

local DEFAULT_TTL = { memory = "default_ttl", persistent = "persistent_ttl" }
local aliases = {} -- name -> {name, view, ttl_ms}

--- What all calls look at first: caching as a whole is on.
alias.state = { enabled = settings.get "enabled" }

--- The calls of the memory backend: by FFI where they compile.
local use_ffi = not host.no_ffi and jit.status() and pcall(require, "ffi")
alias.memory = require(use_ffi and "cache.memory_ffi" or "cache.memory_c")

local later = { tiered = true }

--- The alias of that name; raises when there is none. level as in error().
function alias.find(name, level)
  local found = aliases[name]
  if found then return found end
  if later[name] then error(("the alias '%s' is not in this version"):format(name), level + 1) end
  error(("unknown cache alias %s: there are 'memory' and 'persistent'"):format(
    type(name) == "string" and ("'%s'"):format(name) or tostring(name)), level + 1)
end

--- A TTL in seconds as milliseconds; 0 = never. Raises on a bad one.
function alias.ttl_ms(ttl, what, level)
  if ttl == false or ttl == math.huge then return 0 end
  if type(ttl) ~= "number" or not (ttl >= 0) then
    error(("%s: ttl must be a number of seconds >= 0, or false for never, not %s"):format(
      what, type(ttl) == "number" and tostring(ttl) or type(ttl)), level + 1)
  end
  local ms = ttl * 1000
  if ms > 0 and ms < 1 then return 1 end
  return ms < 2 ^ 53 and ms or 0 -- beyond 285,000 years
end

local function follow_settings()
  alias.state.enabled = settings.get "enabled"
  for name, setting in pairs(DEFAULT_TTL) do
    aliases[name].ttl_ms = alias.ttl_ms(settings.get(setting), setting, 2)
  end
end

--- Overlays settings; what exists follows.
function alias.configure(values)
  settings.overlay(values)
  backend.resize(settings.get "memory_max_bytes")
  follow_settings()
end

--- Empties every alias, whether caching is on or not.
function alias.clear_all()
  for _, each in pairs(aliases) do backend.clear(each.view, "") end
end

--- A status below 0 as an error object.
function alias.status_error(status, what)
  if status == backend.ETOOLARGE then
    return errors.new("too_large", what .. ": the value is too large for this cache")
  end
  if status == backend.ENOMEM then return errors.new("no_memory", what .. ": out of memory") end
  return errors.new("server", ("%s: the backend failed with status %d"):format(what, status))
end

for name in pairs(DEFAULT_TTL) do
  aliases[name] = { name = name, view = backend.view(), ttl_ms = 0 }
end
follow_settings()
host.log(2, "Redis is not configured: the alias 'persistent' lives in memory")

return alias
