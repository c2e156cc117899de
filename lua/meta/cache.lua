---@meta cache
-- luacheck: ignore 241

---The cache. It is configured from the environment when it is first required;
---no set-up call is needed. Mistakes (an unknown option, a bad TTL, a key that
---is no string) raise a string with the position of the call. What can go wrong
---at run time comes back as `nil, err`. When caching is disabled every call
---does nothing and returns what its description says.
---
---Values are booleans, numbers, strings, and tables of these, up to 32 deep and
---without cycles or metatables; anything else raises and names the path
---(`value.a.b[3]`). `nil` cannot be set. What comes out is a copy: changing it
---never changes the cache. Keys are strings of 1 to 65,536 bytes, any bytes.
---@class cachelib
---@field memory Cache the alias `memory`: always the memory backend
---@field persistent Cache the alias `persistent`: in this version memory, too, with keys of its own
---@field settings cache.Settings read-only; see configure_caches
local cache = {}

---An alias's name. In this version there are these two.
---@alias cache.Alias
---| "memory" # default TTL: settings.default_ttl
---| "persistent" # default TTL: settings.persistent_ttl

---Seconds, fractions count (to the millisecond). 0, `false` and `math.huge`:
---never expires. Negative, NaN and anything else raise.
---@alias cache.TTL number|false

---@class cache.Options
---@field alias? cache.Alias default "memory"

---@class cache.SetOptions
---@field ttl? cache.TTL default: the alias's
---@field alias? cache.Alias set_cached only; default "memory"

---@class cache.CachedOptions
---@field ttl? cache.TTL default: the alias's, also when that changes later
---@field alias? cache.Alias default "memory"
---@field name? string keys are `name:arguments`; default, on memory only: file and line of fn
---@field key_builder? fun(fn: function, ...): string makes the whole key from the arguments

---What `nil, err` gives; `tostring(err)` is the message.
---@class cache.Error
---@field code "too_large"|"no_memory"|"server" what to test for
---@field message string what to read

---@class cache.Stats counts of one alias since the start
---@field hits integer
---@field misses integer
---@field sets integer values written
---@field deletes integer entries removed by delete and clear
---@field evictions integer entries removed for room
---@field expired integer entries found past their TTL
---@field entries integer entries now
---@field bytes integer bytes of these entries, with their keys and headers
---@field max_bytes integer the bound of the store, which all aliases share

---The settings as the environment and configure_caches have made them. Each is
---CACHE_ and its upper-case name in the environment, but for log.
---@class cache.Settings
---@field enabled boolean default true
---@field default_ttl number seconds, default 300; 0 = never
---@field persistent_ttl number seconds, default 3600; 0 = never
---@field memory_max_bytes number bytes; default a quarter of the memory, at most 1 GiB
---@field log "error"|"warn"|"info"|"debug" MOONSTASH_LOG, default "warn"
---@field namespace string default ""
---@field metrics_listen string? host:port
---@field require_redis boolean default false
---@field redis_host string? in this version a start with it fails, as with redis_url
---@field redis_port integer default 6379
---@field redis_url string?
---@field redis_username string?
---@field redis_password string?
---@field redis_password_file string?
---@field redis_db integer default 0
---@field redis_mode "auto"|"standalone"|"cluster"|"sentinel" default "auto"
---@field redis_sentinel_master string?
---@field redis_tls boolean default false
---@field redis_tls_ca string?
---@field redis_tls_cert string?
---@field redis_tls_key string?
---@field redis_timeout number seconds, default 1
---@field redis_connect_timeout number seconds, default 1
---@field redis_read_from "primary"|"replica"|"any" default "primary"

---The value under a key; nil on a miss. A stored false, 0 or "" is a hit.
---Disabled: nil.
---@param key string
---@param opts? cache.Options
---@return any value
function cache.get_cached(key, opts) end

---Stores a value; it replaces value and TTL of an older one. Disabled: true.
---@param key string
---@param value any not nil
---@param opts? cache.SetOptions
---@return true? ok nil when it could not be stored
---@return cache.Error? err "too_large" for more than an eighth of the bound, "no_memory"
function cache.set_cached(key, value, opts) end

---Removes a key. Disabled: 0.
---@param key string
---@param opts? cache.Options
---@return 0|1 removed how many there were
function cache.delete_cached(key, opts) end

---Empties an alias. Disabled: does nothing.
---@param opts? cache.Options
---@return true
function cache.clear_cache(opts) end

---The Cache object of an alias, the same one each time.
---@param name? cache.Alias default "memory"
---@return Cache
function cache.get_cache(name) end

---Overlays settings by their lower-case names, all or none; raises on an
---unknown name (and gives the nearest) and on a bad value. Cache objects and
---wrappers that exist follow; entries keep their TTL. `configure_caches(settings)`
---changes nothing.
---@param values? cache.Settings|table<string, string|number|boolean>
function cache.configure_caches(values) end

---A function that remembers fn's results, all of them, nils too. A call whose
---key is stored returns copies; else fn runs, once for all tasks that ask at
---the same time: the others wait and share its results or its error. Where
---waiting is impossible, and in a cycle of loads, fn runs directly instead.
---
---It raises what fn raises and caches nothing then; nor does it cache
---`nil, err`, nothing, or only nils. The arguments make the key: strings,
---numbers, booleans, nils and tables of these, typed, so that f(1), f("1") and
---f(1, nil) differ; anything else raises, unless there is a key_builder.
---A caller that is cancelled goes on loading while others wait. If delete,
---clear or set changes the key during the load, the callers get fn's results,
---but they are not stored. Disabled: fn runs.
---
---Raises when a function of the same place is wrapped twice without name and
---key_builder, and on persistent without either.
---@param fn fun(...): ...
---@param opts? cache.CachedOptions
---@return async fun(...): ... cached
function cache.cached(fn, opts) end

cache.testing = {}

---Moves the cache's clock of this runtime forward, for tests of TTLs.
---@param seconds number 0 to 1e9, to the millisecond
function cache.testing.advance(seconds) end

---An alias with methods. tostring gives its name.
---@class Cache
local Cache = {}

---The value under a key; default on a miss. A stored false, 0 or "" is a hit.
---Of what a cached function has stored: its first result. Disabled: default.
---@generic T
---@param key string
---@param default? T
---@param opts? table no option in this version
---@return any|T value
function Cache:get(key, default, opts) end

---Stores a value; it replaces value and TTL of an older one. Disabled: true.
---@param key string
---@param value any not nil
---@param opts? cache.TTL|cache.SetOptions seconds, or options; default: the alias's TTL
---@return true? ok nil when it could not be stored
---@return cache.Error? err "too_large" for more than an eighth of the bound, "no_memory"
function Cache:set(key, value, opts) end

---Removes a key. Disabled: 0.
---@param key string
---@param opts? table no option in this version
---@return 0|1 removed how many there were
function Cache:delete(key, opts) end

---Empties the alias. Disabled: does nothing.
---@param namespace? nil not in this version
---@param opts? table no option in this version
---@return true
function Cache:clear(namespace, opts) end

---The counters of this alias. They count while caching is disabled, too.
---@return cache.Stats
function Cache:stats() end

return cache
