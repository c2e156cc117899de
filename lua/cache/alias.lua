-- Aliases: a named backend with its defaults. Cache objects and wrappers hold
-- the alias itself and look at its fields with each call, so that they follow
-- configure_caches. Those that live on Redis have one memory view together: for
-- the leases of loads in flight (see cache/redis.lua), as they share the keys.
local backend = require "moonstash.backend"
local host = require "moonstash.host"
local redis = require "moonstash.redis"
local evict = require "cache.evict"
local hooks = require "cache.hooks"
local memory = require "cache.memory"
local raise = require "cache.raise"
local redis_driver = require "cache.redis"
local serializer = require "cache.serializer"
local settings = require "cache.settings"

local type, tostring, floor, pairs, unpack = type, tostring, math.floor, pairs, unpack

local alias = {}

local DEFAULT_TTL = { memory = "default_ttl", persistent = "persistent_ttl" }
local LATER = { tiered = true }
local FIELDS = { backend = "string", max_bytes = "any", ttl = "any", serializer = "any",
  namespace = "string", plugins = "table", copy = "boolean", near_entries = "any",
  near_bytes = "any" }
local MAX_MS = 2 ^ 53 -- beyond 285,000 years: never
local MIN_BYTES = 64 * 1024 -- of an alias's own store
-- Bounds of near copies. A table of that many names (3/4 of 2^14) is built anew in
-- less than a millisecond; of 2^14 it takes longer, and so does the collector.
local NEAR_ENTRIES, NEAR_BYTES = 12288, 4 * 1024 * 1024
local NEAR_ENTRIES_MAX, NEAR_BYTES_MAX = 2 ^ 24, 2 ^ 31 - 1 -- what LuaJIT has room for
local ALIASES_MAX = 100 -- each may have two of the backend's 256 views

-- name -> {name, driver: cache.memory or cache.redis, view: its memory backend,
-- remote: its Redis backend or nil, redis: the same, which stays when it leaves,
-- timeout: seconds (Redis), ttl_ms,
-- ns: prefix of keys or "", serializer, plugins: list or nil, shared: copy is
-- false, near: the pool of near copies (cache/near.lua), another one each time
-- that the alias is configured, fast: the same, but nil where there is more to
-- do than to look there: on Redis, with plugins, or caching off,
-- watched: the view that on_evict hears of or nil, generation: grows when it is
-- configured}
local aliases = {}
local definitions = {} -- name -> a copy of what configure_caches was given

--- What all calls look at first: caching as a whole is on.
alias.state = { enabled = settings.get "enabled" }

--- The hot calls of the memory backend.
alias.memory = memory.hot

local function names()
  local list = {}
  for name in pairs(aliases) do list[#list + 1] = ("'%s'"):format(name) end
  table.sort(list)
  return table.concat(list, ", ")
end

--- The alias of that name; raises when there is none. `what` begins the
--- message.
function alias.find(name, what)
  local found = aliases[name]
  if found then return found end
  if LATER[name] then raise("%s: the alias '%s' is not in this version", what, name) end
  raise("%s: alias must be one of %s, not %s", what, names(),
    type(name) == "string" and ("'%s'"):format(name) or tostring(name))
end

--- A TTL in seconds as whole milliseconds; 0 = never. Raises on a bad one, and
--- calls it by name ("ttl").
function alias.ttl_ms(ttl, what, name)
  if ttl == false then return 0 end
  if type(ttl) ~= "number" or ttl ~= ttl or ttl < 0 then
    raise("%s: %s must be a number of seconds >= 0, or false for never, not %s", what,
      name or "ttl", type(ttl) == "number" and tostring(ttl) or type(ttl))
  end
  if ttl == 0 then return 0 end
  local ms = floor(ttl * 1000 + 0.5)
  if ms >= MAX_MS then return 0 end
  return ms > 0 and ms or 1 -- shorter than the clock can tell, but not never
end

--- A namespace as the prefix of keys.
function alias.prefix(namespace)
  return namespace ~= "" and namespace .. ":" or ""
end

--- The near copies that all share who read keys with that prefix as the alias
--- says.
function alias.index(the_alias, ns)
  local pool = the_alias.near
  local found = pool.by_ns[ns]
  if not found then
    found = alias.memory.index(pool, ns, the_alias.shared, the_alias.serializer, true)
    pool.by_ns[ns] = found
  end
  return found
end

memory.index = alias.index

-- A fresh pool: what was kept may be of another view, or read otherwise. The
-- counts of a view go on. On Redis the old one stays, closed: a finalizer that
-- comes while the alias moves finds one at any moment.
local function open_near(the_alias, definition)
  local pools, view, old = the_alias.pools or {}, the_alias.view, the_alias.near
  local fresh
  if not the_alias.remote then
    local entries, bytes = definition.near_entries, definition.near_bytes
    fresh = alias.memory.near(the_alias, entries or NEAR_ENTRIES, bytes or NEAR_BYTES, pools[view])
    pools[view] = fresh
  end
  the_alias.pools, the_alias.near = pools, fresh or old
  the_alias.fast = alias.state.enabled and not the_alias.plugins and fresh or nil
  if old then alias.memory.close(old) end
end

-- ---- definitions -------------------------------------------------------------

local function check_max_bytes(value, what)
  if type(value) ~= "number" or not (value >= MIN_BYTES and value < MAX_MS) then
    raise("%s.max_bytes must be a number of bytes, at least %d, not %s", what, MIN_BYTES,
      tostring(value))
  end
end

local function check_near(definition, name, most, what)
  local value = definition[name]
  if value == nil then return end
  if type(value) ~= "number" or value % 1 ~= 0 or value < 0 or value > most then
    raise("%s.%s must be an integer from 0 to %d, not %s", what, name, most, tostring(value))
  end
end

-- Raises unless the definition is one; changes nothing.
local function check_definition(name, definition)
  local what = ("configure_caches: aliases.%s"):format(tostring(name))
  if type(name) ~= "string" or name == "" then
    raise("configure_caches: alias names are strings, not %s", type(name))
  end
  if LATER[name] then raise("%s is not in this version", what) end
  if type(definition) ~= "table" then
    raise("%s must be a table, not %s", what, type(definition))
  end
  for field, value in pairs(definition) do
    local kind = FIELDS[field]
    if not kind then raise("%s: there is no field '%s'", what, tostring(field)) end
    if kind ~= "any" and type(value) ~= kind then
      raise("%s.%s must be a %s, not %s", what, field, kind, type(value))
    end
  end
  local kind = definition.backend
  if kind ~= nil and kind ~= "memory" and kind ~= "redis" then
    raise("%s: the backend '%s' is %s", what, kind,
      kind == "tiered" and "not in this version" or "unknown: use 'memory' or 'redis'")
  end
  if definition.max_bytes ~= nil then
    if kind == "redis" then
      raise("%s.max_bytes bounds a store in memory: Redis has maxmemory", what)
    end
    check_max_bytes(definition.max_bytes, what)
  end
  check_near(definition, "near_entries", NEAR_ENTRIES_MAX, what)
  check_near(definition, "near_bytes", NEAR_BYTES_MAX, what)
  if definition.ttl ~= nil then alias.ttl_ms(definition.ttl, what) end
  if definition.serializer ~= nil then serializer.find(definition.serializer, what) end
  if definition.plugins ~= nil then hooks.check(definition.plugins, what) end
end

-- A copy that its giver cannot change any more.
local function copy_definition(definition)
  local copy = {}
  for field, value in pairs(definition) do copy[field] = value end
  if copy.plugins then copy.plugins = { unpack(copy.plugins) } end
  if copy.serializer ~= nil then
    copy.serializer = serializer.find(copy.serializer, "configure_caches")
  end
  return copy
end

local leases -- the view of all aliases on Redis

-- The name of an alias's view. That of the leases is no alias's, and C's strings
-- end with a zero.
local function view_name(name)
  return (name:gsub("[%z%%]", { ["\0"] = "%0", ["%"] = "%%" }))
end

-- The alias's backend: a view of the common store, or of one of its own. The
-- one that is not in use stays, for loads in flight point to it.
local function view_of(the_alias, remote, max_bytes)
  if remote then
    leases = leases or backend.view "%leases"
    return leases
  end
  local which = max_bytes and "own" or "common"
  local view = the_alias[which]
  if view and max_bytes then backend.resize(max_bytes, view) end
  the_alias[which] = view or backend.view(view_name(the_alias.name), max_bytes)
  return the_alias[which]
end

-- An alias that moves leaves nothing behind, and finds nothing that a load has
-- left there since: unless another runtime uses that view, whose entries they
-- are.
local function empty(view)
  if not backend.shared(view) then backend.clear(view, "") end
end

local function open_view(the_alias, remote, max_bytes)
  local before = the_alias.view
  local view = view_of(the_alias, remote, max_bytes)
  if view == before then return end
  if before then
    empty(before)
    empty(view)
  end
  the_alias.view = view
  alias.memory.open(the_alias)
end

-- Does an alias of this definition live on Redis?
local function is_remote(name, definition, configured)
  local kind = definition.backend
  return kind == "redis" or (kind == nil and name == "persistent" and configured)
end

-- Takes the alias to Redis, or back to memory. A load in flight is not stored on
-- Redis: it may have begun under another server or namespace. (Those of other
-- runtimes are not, either; but that is when one is configured, not opened.)
local function choose_driver(the_alias, remote)
  if remote then
    if the_alias.generation then backend.clear(the_alias.view, "") end
    the_alias.redis = the_alias.redis or redis.view()
  end
  the_alias.remote = remote and the_alias.redis or nil
  the_alias.driver = remote and redis_driver or memory
  the_alias.timeout = settings.get "redis_timeout"
end

-- Makes the alias what its definition and the settings say.
local function apply(name, configured)
  local definition = definitions[name] or {}
  local the_alias = aliases[name] or { name = name }
  aliases[name] = the_alias
  local remote = is_remote(name, definition, configured)
  open_view(the_alias, remote, definition.max_bytes)
  choose_driver(the_alias, remote)
  local ttl = definition.ttl
  if ttl == nil then ttl = settings.get(DEFAULT_TTL[name] or "default_ttl") end
  the_alias.ttl_ms = alias.ttl_ms(ttl, "configure_caches")
  the_alias.ns = alias.prefix(definition.namespace or settings.get "namespace" or "")
  the_alias.serializer = definition.serializer or serializer.native
  local plugins = definition.plugins
  the_alias.plugins = plugins and #plugins > 0 and plugins or nil
  evict.follow(the_alias, alias.state.enabled)
  the_alias.generation = (the_alias.generation or 0) + 1
  the_alias.shared = definition.copy == false
  open_near(the_alias, definition)
end

local function apply_all()
  local configured = redis.configure()
  alias.state.enabled = settings.get "enabled"
  for name in pairs(DEFAULT_TTL) do apply(name, configured) end
  for name in pairs(definitions) do apply(name, configured) end
  return configured
end

-- Will a setting have a value once these are overlaid?
local function will_be_set(name, values)
  local value = values[name]
  if value == nil then value = settings.get(name) end
  return value ~= nil and value ~= ""
end

-- Raises when an alias is to live on a Redis that is not configured, or to keep
-- there what cannot leave the process.
local function check_remote(name, definition, configured)
  if not is_remote(name, definition, configured) then return end
  local ser = definition.serializer
  if ser == "none" or ser == serializer.none then
    raise("configure_caches: aliases.%s: %s", name, serializer.none_is_here)
  end
  if not configured then
    raise("configure_caches: aliases.%s: the backend 'redis' needs redis_host or redis_url", name)
  end
end

local function check_redis(values, new)
  local configured = will_be_set("redis_host", values) or will_be_set("redis_url", values)
  for name, definition in pairs(new) do check_remote(name, definition, configured) end
  for name, definition in pairs(definitions) do
    if not new[name] then check_remote(name, definition, configured) end
  end
end

-- Raises unless all the definitions are good and there is room for them.
local function check_definitions(new)
  local count = 0
  for name, definition in pairs(new) do
    check_definition(name, definition)
    if not aliases[name] then count = count + 1 end
  end
  if count == 0 then return end
  for _ in pairs(aliases) do count = count + 1 end
  if count > ALIASES_MAX then
    raise("configure_caches: %d aliases, the most is %d", count, ALIASES_MAX)
  end
end

--- Overlays settings and alias definitions; what exists follows. All or none.
function alias.configure(values, new)
  check_definitions(new)
  check_redis(values, new)
  settings.overlay(values)
  for name, definition in pairs(new) do definitions[name] = copy_definition(definition) end
  if values.memory_max_bytes ~= nil then backend.resize(settings.get "memory_max_bytes") end
  apply_all()
end

--- Lets all near copies go: the clock has moved, and they do not look there.
function alias.forget_near()
  for name, each in pairs(aliases) do open_near(each, definitions[name] or {}) end
end

--- Empties every alias, whether caching is on or not.
function alias.clear_all()
  for _, each in pairs(aliases) do backend.clear(each.view, "") end
end

if not apply_all() then
  host.log(2, "Redis is not configured: the alias 'persistent' lives in memory")
end

return alias
