-- Aliases: a named backend with its default TTL. Cache objects and wrappers
-- hold the alias itself and look at its fields with each call, so that they
-- follow configure_caches. In this version both aliases live in memory.
local backend = require "moonstash.backend"
local host = require "moonstash.host"
local errors = require "moonstash.error"
local raise = require "cache.raise"
local settings = require "cache.settings"

local type, tostring, floor = type, tostring, math.floor

local alias = {}

local DEFAULT_TTL = { memory = "default_ttl", persistent = "persistent_ttl" }
local LATER = { tiered = true }
local MAX_MS = 2 ^ 53 -- beyond 285,000 years: never
local aliases = {} -- name -> {name, view: its backend, ttl_ms: default, ...}

--- What all calls look at first: caching as a whole is on.
alias.state = { enabled = settings.get "enabled" }

--- The calls of the memory backend: by FFI where they compile.
local use_ffi = not host.no_ffi and jit.status() and pcall(require, "ffi")
alias.memory = require(use_ffi and "cache.memory_ffi" or "cache.memory_c")

--- The alias of that name; raises when there is none. `what` begins the
--- message.
function alias.find(name, what)
  local found = aliases[name]
  if found then return found end
  if LATER[name] then raise("%s: the alias '%s' is not in this version", what, name) end
  raise("%s: alias must be 'memory' or 'persistent', not %s", what,
    type(name) == "string" and ("'%s'"):format(name) or tostring(name))
end

--- A TTL in seconds as whole milliseconds; 0 = never. Raises on a bad one.
function alias.ttl_ms(ttl, what)
  if ttl == false then return 0 end
  if type(ttl) ~= "number" or not (ttl >= 0) then
    raise("%s: ttl must be a number of seconds >= 0, or false for never, not %s", what,
      type(ttl) == "number" and tostring(ttl) or type(ttl))
  end
  if ttl == 0 then return 0 end
  local ms = floor(ttl * 1000 + 0.5)
  if ms >= MAX_MS then return 0 end
  return ms > 0 and ms or 1 -- shorter than the clock can tell, but not never
end

local function follow_settings()
  alias.state.enabled = settings.get "enabled"
  for name, setting in pairs(DEFAULT_TTL) do
    aliases[name].ttl_ms = alias.ttl_ms(settings.get(setting), setting)
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
  alias.memory.open(aliases[name])
end
follow_settings()
host.log(2, "Redis is not configured: the alias 'persistent' lives in memory")

return alias
