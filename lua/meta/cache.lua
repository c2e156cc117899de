---@meta cache
-- luacheck: ignore 241

---The cache. It is configured from the environment when it is first required;
---no set-up call is needed. Mistakes (an unknown option, a bad TTL, a key that
---is no string) raise a string with the position of the call. What can go wrong
---at run time comes back as `nil, err`. When caching is disabled every call
---does nothing and returns what its description says.
---
---Values are booleans, numbers, strings, null, 64-bit integers (1LL), and
---tables of these, up to 32 deep and without cycles; of metatables only those of
---array and register_class. Anything else raises and names the path
---(`value.a.b[3]`). `nil` cannot be set. What comes out is a copy, changing it
---never changes the cache, unless `copy = false` or the serializer none says
---otherwise. Keys are strings of 1 to 65,536 bytes, any bytes; that is also the
---most for a key and the namespace before it.
---
---An alias that lives in Redis does the same, but a call waits for the answer,
---settings.redis_timeout seconds at most. When there is none, each of them
---gives an err with one of these codes, and in place of its result nil, of get
---the default, of multi_get and multi_delete what they got: "timeout",
---"connection", "server", "overloaded", "closed", "unsupported". A call that has
---timed out may have been carried out.
---
---Marked async is what may wait: cached functions for a load, the calls on an
---alias in Redis for its answer, those on one with plugins for their hooks.
---Without plugins memory answers at once. Where waiting is impossible a call on
---Redis raises, but with wait = false, and a cached function just runs.
---@class cachelib
---@field memory Cache the alias `memory`: always the memory backend
---@field persistent Cache the alias `persistent`: Redis, if configured; else memory of its own
---@field settings cache.Settings read-only; see configure_caches
---@field null lightuserdata a value that says "null": JSON's, MessagePack's; true in conditions
local cache = {}

---An alias's name.
---@alias cache.Alias
---| "memory" # default TTL: settings.default_ttl
---| "persistent" # default TTL: settings.persistent_ttl
---| string # another one that configure_caches has defined

---Seconds, fractions count (to the millisecond). 0, `false` and `math.huge`:
---never expires. Negative, NaN and anything else raise.
---@alias cache.TTL number|false

---How values become bytes. In memory, what one alias wrote with one of these
---reads right with any other, but for functions of your own and the texts of
---"string". In Redis there is nothing beside the bytes: who reads must use the
---serializer of who wrote, but for integers, which are decimal text with all
---but msgpack.
---@alias cache.Serializer
---| "native" # all values; the default
---| "json" # as JSON; no metatables but array's, no NaN, no infinity
---| "msgpack" # as MessagePack; no metatables but array's
---| "string" # strings, numbers and booleans; gives their text
---| "none" # any Lua value, functions, too: itself, not a copy, in this Lua state; not in Redis
---| cache.CustomSerializer

---@class cache.CustomSerializer both functions are needed; they may raise
---@field dumps fun(value: any): string
---@field loads fun(bytes: string): any an error: err.code "decode"

-- ---- options: an unknown one raises -------------------------------------------

---timeout and wait are for Redis, without effect on memory. A clear of a namespace
---is waited for all the same. A timeout of clear is
---one for all its steps.
---@class cache.CallOptions what every call on keys takes
---@field namespace? string before keys, with ":", in place of the alias's and object's; "": none
---@field timeout? number seconds to wait for an answer, 0 = no limit; default: redis_timeout

---@class cache.GetOptions : cache.CallOptions
---@field loads? fun(bytes: string): any reads what dumps wrote, instead of the alias's

---@class cache.ChangeOptions : cache.CallOptions
---@field wait? boolean false: do not wait for the answer: true (delete, multi_delete: 1) at once

---@class cache.AddOptions : cache.ChangeOptions
---@field ttl? cache.TTL default: the alias's
---@field dumps? fun(value: any): string makes the bytes, instead of the alias's serializer

---pin and weight are for memory: on an alias in Redis they raise. A pinned value
---expires, is deleted, replaced and cleared like any other; a later set without
---pin ends it. Half of the store's bound can be pinned, above that: "too_large".
---With multi_set they are about each value.
---@class cache.SetOptions : cache.AddOptions
---@field pin? boolean true: it is never evicted for room
---@field weight? integer bytes to count beside its own: of what it stands for; to 2^31

---@class cache.IncrementOptions : cache.CallOptions
---@field ttl? cache.TTL of a key that is new; default: never expires

---@class cache.GetCachedOptions : cache.GetOptions
---@field alias? cache.Alias default "memory"

---@class cache.SetCachedOptions : cache.SetOptions
---@field alias? cache.Alias default "memory"

---@class cache.DeleteCachedOptions : cache.ChangeOptions
---@field alias? cache.Alias default "memory"

---@class cache.WrapperOptions what cached and multi_cached share
---@field ttl? cache.TTL default: the alias's, also when that changes later
---@field alias? cache.Alias default "memory"
---@field namespace? string before keys, with ":", in place of the alias's; "": none
---@field name? string keys begin with it; default, on memory only: file and line of fn
---@field neg_ttl? cache.TTL for "nothing there": only nils; default false; Redis: native only
---@field serializer? cache.Serializer default: the alias's

---@class cache.CachedOptions : cache.WrapperOptions
---@field key? string the whole key, whatever the arguments
---@field key_builder? fun(fn: function, ...): string makes the whole key from the arguments
---@field skip_self? boolean leaves the first argument out of the key: for methods
---@field cache_if? fun(...): boolean of all results; false: they are not stored
---@field copy? boolean false: calls share one table, for reading only, but from Redis

---@class cache.MultiCachedOptions : cache.WrapperOptions
---@field key_builder? fun(fn: function, key: string|number, ...): string the whole key of one
---@field cache_if? fun(key: string|number, value: any): boolean false: it is not stored

---@class cache.WithOptions one of them at most
---@field force_refresh? boolean as the handle's refresh
---@field only_if_cached? boolean the stored results, or no result: fn does not run
---@field bypass? boolean runs fn: neither reads nor stores

---@class cache.AliasDefinition
---@field backend? "memory"|"redis" default: memory; persistent: redis, if it is configured
---@field ttl? cache.TTL default: settings.default_ttl (persistent: settings.persistent_ttl)
---@field namespace? string before keys, with ":"; default: settings.namespace; "": none
---@field serializer? cache.Serializer default "native"
---@field plugins? cache.Plugin[] hooks run in this order
---@field copy? boolean default true; false: calls share one table, for reading only, but from Redis
---@field max_bytes? number bytes, at least 65,536: a store of its own, in memory
---@field near_entries? integer default 12288: hot values kept in this Lua state; 0: none
---@field near_bytes? integer default 4,194,304: bytes of these, with their keys

-- ---- plugins ---------------------------------------------------------------------

---Called before an operation. key: of multi_get and multi_delete the list, of
---multi_set the map, of clear the namespace or nil, of raw the command. opts: what
---the caller gave, a TTL in place of options as {ttl = seconds}; or nil.
---@alias cache.PreHook async fun(client: Cache, key: any, opts: table?)

---Called after an operation. took: seconds that it ran, without the hooks. ret and
---what follows: its results, see the fields.
---@alias cache.PostHook async fun(client: Cache, key: any, opts: table?, took: number, ret, ...)

---Called after a value has left the memory, with the key as it was given: the
---alias's namespace is taken off, another one (options, with_namespace) is not.
---@alias cache.EvictHook async fun(client: Cache, key: string, reason: cache.EvictReason)

---@alias cache.EvictReason
---| "size" # evicted for room
---| "expired" # its time was over; told when that is noticed, by a look-up or a sweep
---| "deleted" # by delete, multi_delete, invalidate
---| "replaced" # by a newer value
---| "cleared" # by clear, or as its alias moved to another store

---Hooks of an alias; other fields are the plugin's own. They may wait. One that
---raises is logged and ignored. on_evict runs later, in a task of the runtime's:
---one call after the other, in the order in which values left, while the loop
---turns; what is left at the end of the program is told before that ends. At most
---65,536 events, or 16 MiB of keys, wait for their hooks: what comes beyond is
---dropped, with one warning, and counted in stats (evict_events_lost). Redis tells
---nobody: of an alias there on_evict is never called. A look-up by a cached
---function is a get, what it stores a set, invalidate a delete. While caching is
---disabled only raw has hooks.
---@class cache.Plugin
---@field pre_get? cache.PreHook
---@field post_get? cache.PostHook value or default; then err or nil; then whether it was a hit
---@field pre_set? cache.PreHook
---@field post_set? cache.PostHook true; or nil, err. Of a wrapper's fill: was it stored?
---@field pre_add? cache.PreHook
---@field post_add? cache.PostHook was it stored?; or nil, err
---@field pre_delete? cache.PreHook
---@field post_delete? cache.PostHook 0 or 1
---@field pre_exists? cache.PreHook
---@field post_exists? cache.PostHook boolean
---@field pre_increment? cache.PreHook
---@field post_increment? cache.PostHook the sum; or nil, err
---@field pre_expire? cache.PreHook
---@field post_expire? cache.PostHook boolean
---@field pre_ttl? cache.PreHook
---@field post_ttl? cache.PostHook seconds left, math.huge, nil
---@field pre_multi_get? cache.PreHook
---@field post_multi_get? cache.PostHook map of the hits; then err or nil
---@field pre_multi_set? cache.PreHook
---@field post_multi_set? cache.PostHook true; or nil, err
---@field pre_multi_delete? cache.PreHook
---@field post_multi_delete? cache.PostHook how many were removed
---@field pre_clear? cache.PreHook
---@field post_clear? cache.PostHook true
---@field pre_info? cache.PreHook
---@field post_info? cache.PostHook cache.Info or nil
---@field pre_touch? cache.PreHook
---@field post_touch? cache.PostHook boolean
---@field pre_raw? cache.PreHook key is the command
---@field post_raw? cache.PostHook the reply; or nil, err
---@field on_evict? cache.EvictHook looked for when the alias is configured; memory only

---@class cache.TimingPlugin : cache.Plugin
---@field profiling table<string, number> get_count; get_total, _avg, _max, _min in seconds; set_...

---@class cache.HitMissRatioPlugin : cache.Plugin
---@field hit_miss_ratio cache.HitMissRatio

---@class cache.HitMissRatio of get and multi_get
---@field total integer keys asked for
---@field hits integer
---@field hit_ratio number hits / total; 0 before the first

-- ---- results -------------------------------------------------------------------

---What `nil, err` gives; `tostring(err)` is the message.
---@class cache.Error
---@field code cache.ErrorCode what to test for
---@field message string what to read
---@field keys? string[] multi_get, multi_set: the keys that it is about

---@alias cache.ErrorCode
---| "too_large" # above 1/8 of a shard, pinned: half of the store; Redis: 8 MiB, to get 64
---| "type" # increment: the value is not an integer; Redis: a key of another type
---| "range" # increment: the sum is beyond 2^53
---| "decode" # the bytes are not what the serializer writes
---| "unsupported" # raw: no such command; Redis: a server that this version cannot use
---| "no_memory"
---| "timeout" # Redis: no answer within the call's time
---| "connection" # Redis: not there, lost, or what answers is no Redis
---| "server" # Redis: an error reply, in the server's words
---| "overloaded" # Redis: too many commands, or bytes, wait already
---| "closed" # Redis: configured anew, or the runtime is closing; memory: in a forked child

---@class cache.Info of an entry
---@field age number? seconds since it was set; in Redis only of native values, but for integers
---@field ttl number seconds left; math.huge: it never expires
---@field size integer bytes of the value
---@field tier "memory"|"redis" where it is
---@field format string how it was written: "native" ...; in Redis the alias's serializer

---@class cache.Stats counts of one alias in memory since the start
---@field hits integer
---@field misses integer
---@field sets integer values written
---@field deletes integer entries removed by delete and clear
---@field evictions integer entries removed for room
---@field expired integer entries found past their TTL
---@field entries integer entries now
---@field bytes integer bytes of these entries, with their keys and headers
---@field max_bytes integer the bound of its store: the common one, or the alias's own
---@field near_hits integer of the hits, those among near copies
---@field near_entries integer near copies now, in this Lua state
---@field near_bytes integer bytes of these, with their keys
---@field evict_events_lost integer values that on_evict was not told of: too many waited
---@field store cache.StoreStats of its store, with the entries of all aliases there

---@class cache.StoreStats numbers of a store in memory
---@field max_bytes integer the bound
---@field bytes integer in use, all included: what the bound is about
---@field live_bytes integer of these, keys, values and their headers
---@field index_bytes integer and the table that finds them
---@field policy_bytes integer and what is remembered to choose whom to evict
---@field entries integer
---@field lock_waits integer times that a look-up has waited for a lock
---@field shards integer parts with a lock of their own
---@field segment_bytes integer size of a piece of memory that values are written to
---@field small_share number of the room, from 0 to 1, for values not used again so far

---@class cache.RedisStats counts of one alias in Redis since the start
---@field hits integer
---@field misses integer
---@field sets integer values written
---@field deletes integer keys removed by delete and clear
---@field connected boolean is there a connection now? What follows is common to all aliases
---@field connects integer times that it was made
---@field commands integer commands on this connection's way so far
---@field in_flight integer of these without an answer now
---@field discarded integer answers that came too late for their callers
---@field desyncs integer answers that cannot be: the connection was dropped
---@field stalls integer times that a silent server was given up
---@field unawaited integer calls with wait = false on their way
---@field unawaited_lost integer of those, failed since
---@field undecodable integer values that are not what native writes
---@field foreign integer of these, written under another key

---@class cache.HandleStats counts of one cached function since it was made
---@field hits integer calls answered from the cache
---@field misses integer other calls, waiting ones, too
---@field loads integer runs of fn, by refresh, too
---@field errors integer runs that raised

---The settings as the environment and configure_caches have made them. Each is
---CACHE_ and its upper-case name in the environment, but for log.
---@class cache.Settings
---@field enabled boolean default true
---@field default_ttl number seconds, default 300; 0 = never
---@field persistent_ttl number seconds, default 3600; 0 = never
---@field memory_max_bytes number bytes; default a quarter of the memory, at most 1 GiB
---@field log "error"|"warn"|"info"|"debug" MOONSTASH_LOG, default "warn"
---@field namespace string default ""
---@field metrics_listen string? host:port; in this version a start with it fails
---@field require_redis boolean default false; true: the start fails without a connection
---@field redis_host string? host or host:port, several with commas; in its place: redis_url
---@field redis_port integer default 6379
---@field redis_url string? redis://user:password@host:port/db or unix:///path?db=n
---@field redis_username string?
---@field redis_password string?
---@field redis_password_file string? its first line
---@field redis_db integer default 0
---@field redis_mode "auto"|"standalone" default "auto": asks the server, refuses a cluster
---@field redis_sentinel_master string?
---@field redis_tls boolean default false; true: not in this version
---@field redis_tls_ca string?
---@field redis_tls_cert string?
---@field redis_tls_key string?
---@field redis_timeout number seconds to wait for an answer, default 1; 0 = no limit
---@field redis_connect_timeout number seconds, default 1; 0 = 60
---@field redis_read_from "primary" others: not in this version

---What configure_caches takes; every field is optional.
---@class cache.Configuration : cache.Settings
---@field aliases? table<string, cache.AliasDefinition>

-- ---- functions -------------------------------------------------------------------

---The value under a key; nil on a miss. A stored false, 0 or "" is a hit.
---Disabled: nil.
---@async
---@param key string
---@param opts? cache.GetCachedOptions
---@return any value
---@return cache.Error? err "decode"; Redis: see the top, "type", "too_large"
function cache.get_cached(key, opts) end

---Stores a value; it replaces value and TTL of an older one. Disabled: true.
---@async
---@param key string
---@param value any not nil
---@param opts? cache.SetCachedOptions
---@return true? ok nil when it could not be stored
---@return cache.Error? err "too_large", "no_memory"; Redis: see the top
function cache.set_cached(key, value, opts) end

---Removes a key. Disabled: 0.
---@async
---@param key string
---@param opts? cache.DeleteCachedOptions
---@return 0|1|nil removed how many there were
---@return cache.Error? err Redis: see the top
function cache.delete_cached(key, opts) end

---Empties an alias, or what its namespace (or opts.namespace) has in it.
---Disabled: does nothing.
---@async
---@param opts? cache.DeleteCachedOptions
---@return true? ok
---@return cache.Error? err Redis: see the top; some keys may be gone
function cache.clear_cache(opts) end

---The Cache object of an alias, the same one each time.
---@param name? cache.Alias default "memory"
---@return Cache
function cache.get_cache(name) end

---Overlays settings by their lower-case names, and defines aliases, all or none;
---raises on an unknown name (and gives the nearest) and on a bad value. Cache
---objects and wrappers that exist follow; entries keep their TTL.
---`configure_caches(settings)` changes nothing.
---
---A definition replaces the alias's last one as a whole; the aliases it does not
---name stay. An alias that moves to another store (max_bytes comes or goes) starts
---empty. 100 aliases are the most.
---@param values? cache.Configuration|table<string, string|number|boolean|table>
function cache.configure_caches(values) end

---A function that remembers fn's results, all of them, trailing nils too. A call
---whose key is stored returns copies; else fn runs, once for all tasks that ask at
---the same time: the others wait and share its results or its error. Where
---waiting is impossible, and in a cycle of loads, fn runs directly instead.
---
---It raises what fn raises and caches nothing then; nor does it cache `nil, err`.
---Nothing, or only nils, are cached with neg_ttl only. What cache_if refuses is
---returned, but not stored. The arguments make the key: strings, numbers,
---booleans, nils and tables of these, typed, so that f(1), f("1") and f(1, nil)
---differ; anything else raises, unless there is a key or key_builder. Serializers
---other than native and none hold one result: several raise.
---A caller that is cancelled goes on loading while others wait. If delete,
---clear or set changes the key during the load, the callers get fn's results,
---but they are not stored. Disabled: fn runs.
---
---Raises when a function of the same place is wrapped twice without name, key and
---key_builder, and without these also for a C function and on every alias but
---memory.
---@param fn async fun(...): ...
---@param opts? cache.CachedOptions
---@return async fun(...): ... cached
function cache.cached(fn, opts) end

---A function of a list of keys that remembers each key's value. fn gets the list
---of those that are missing, without duplicates, and returns a map of values;
---what it leaves out is nil, what it adds is stored, too, unless there is a value.
---The result is a map of what was asked for and was found, and what fn added.
---fn may return `nil, err`: so does the call then. It raises what fn raises;
---nothing is stored of that run.
---
---Keys are strings and numbers, stored under `name:key` (7 and "7" share an
---entry). Other arguments go to fn and key_builder, but make no keys of their
---own. Each key is loaded by one call at a time; the others wait, as with cached.
---Disabled: fn runs. It has no handle. Names: as with cached.
---@param fn async fun(keys: (string|number)[], ...): table?, any
---@param opts? cache.MultiCachedOptions
---@return async fun(keys: (string|number)[], ...): table?, any cached
function cache.multi_cached(fn, opts) end

---The handle of a function that cached has made; raises for any other.
---@param fn function
---@return cache.Handle
function cache.handle(fn) end

---Marks a table as an array, so that JSON and MessagePack write an empty one as
---[] and not {}; it comes out of the cache marked.
---@generic T: table
---@param t T it gets another metatable
---@return T t
function cache.array(t) end

---Lets tables with this metatable be cached natively: they come out with it.
---Raises when name or metatable is registered with another one.
---@param name string not empty
---@param mt table
function cache.register_class(name, mt) end

---Plugins that come with the cache. Each call makes a new one.
cache.plugins = {}

---Times every operation, and counts them.
---@return cache.TimingPlugin
function cache.plugins.timing() end

---Counts hits of get and multi_get.
---@return cache.HitMissRatioPlugin
function cache.plugins.hit_miss_ratio() end

cache.testing = {}

---Moves the cache's clock of this runtime forward, for tests of TTLs; other runtimes
---that share its entries keep theirs. Redis has a clock of its own.
---@param seconds number 0 to 1e9, to the millisecond
function cache.testing.advance(seconds) end

---What cache.handle gives. The arguments are those of a call. With a colon only.
---@class cache.Handle
local Handle = {}

---The key of a call with these arguments, without the namespace.
---@param ... any
---@return string key
function Handle:key(...) end

---Removes the results of a call with these arguments. A load that is on its way
---is not stored. Disabled: 0.
---@async
---@param ... any
---@return 0|1|nil removed how many there were
---@return cache.Error? err Redis: see the top
function Handle:invalidate(...) end

---Runs fn, or waits for a run that is on its way, and replaces the results that
---are stored; these stay when fn raises, or its results are not to be stored.
---Disabled: fn runs.
---@async
---@param ... any
---@return any ... fn's results; its error is raised
function Handle:refresh(...) end

---The function that was wrapped.
---@return async fun(...): ... fn
function Handle:original() end

---The counters of this wrapper. Disabled: they stand.
---@return cache.HandleStats
function Handle:stats() end

---A function for calls of another kind; without a true option: the wrapper.
---@param opts cache.WithOptions two true ones raise
---@return async fun(...): ... call takes the arguments
function Handle:with(opts) end

---An alias with methods. tostring gives its name.
---@class Cache
local Cache = {}

---The value under a key; default on a miss. A stored false, 0 or "" is a hit.
---Of what a cached function has stored: its first result. What cannot be decoded
---is a miss, with an err. Disabled: default.
---@async
---@generic T
---@param key string
---@param default? T
---@param opts? cache.GetOptions
---@return any|T value
---@return cache.Error? err "decode"; Redis: see the top, "type", "too_large"
function Cache:get(key, default, opts) end

---Stores a value; it replaces value and TTL of an older one. Disabled: true.
---@async
---@param key string
---@param value any not nil
---@param opts? cache.TTL|cache.SetOptions seconds, or options; default: the alias's TTL
---@return true? ok nil when it could not be stored
---@return cache.Error? err "too_large", "no_memory"; Redis: see the top
function Cache:set(key, value, opts) end

---Stores a value unless the key exists. Disabled: true.
---@async
---@param key string
---@param value any not nil
---@param opts? cache.TTL|cache.AddOptions seconds, or options; default: the alias's TTL
---@return boolean? stored false when the key exists; nil when it could not be stored
---@return cache.Error? err "too_large", "no_memory"; Redis: see the top
function Cache:add(key, value, opts) end

---Removes a key. Disabled: 0.
---@async
---@param key string
---@param opts? cache.ChangeOptions
---@return 0|1|nil removed how many there were
---@return cache.Error? err Redis: see the top
function Cache:delete(key, opts) end

---Removes the entries of a namespace; without one, those of the object's own and
---the alias's. Without any it empties the alias, and so does "". It never touches
---another alias, nor a namespace that only begins alike. Disabled: does nothing.
---In Redis it goes step by step, and without any namespace it is FLUSHDB: all
---keys of the database, other programs', too.
---@async
---@param namespace? string in place of the object's and the alias's
---@param opts? cache.ChangeOptions
---@return true? ok
---@return cache.Error? err Redis: see the top; some keys may be gone
function Cache:clear(namespace, opts) end

---Is there a value? It counts as no use of the entry, no hit and no miss.
---Disabled: false.
---@async
---@param key string
---@param opts? cache.CallOptions
---@return boolean? found
---@return cache.Error? err Redis: see the top
function Cache:exists(key, opts) end

---Adds to an integer. A missing key counts from 0 and gets opts.ttl; an existing
---TTL stays. Disabled: delta.
---@async
---@param key string
---@param delta? integer default 1; -2^53 to 2^53
---@param opts? cache.IncrementOptions
---@return integer? sum
---@return cache.Error? err "type": no integer, "range": beyond 2^53, "no_memory"; Redis: the top
function Cache:increment(key, delta, opts) end

---Sets the time that is left. Disabled: false.
---@async
---@param key string
---@param ttl cache.TTL seconds; 0, false and math.huge take the TTL away
---@param opts? cache.ChangeOptions
---@return boolean? found false when the key is missing
---@return cache.Error? err Redis: see the top
function Cache:expire(key, ttl, opts) end

---Marks an entry as used, so that it is evicted later. Disabled: false.
---@async
---@param key string
---@param ttl? cache.TTL sets the time left, too; default: it stays
---@param opts? cache.ChangeOptions
---@return boolean? found false when the key is missing
---@return cache.Error? err Redis: see the top
function Cache:touch(key, ttl, opts) end

---The time that is left. Disabled: nil.
---@async
---@param key string
---@param opts? cache.CallOptions
---@return number? seconds math.huge when it never expires; nil when the key is missing
---@return cache.Error? err Redis: see the top
function Cache:ttl(key, opts) end

---What is known of an entry. Disabled: nil.
---@async
---@param key string
---@param opts? cache.CallOptions
---@return cache.Info? info nil when the key is missing
---@return cache.Error? err Redis: see the top
function Cache:info(key, opts) end

---The values of many keys. Disabled: an empty map.
---@async
---@param keys string[] may be empty
---@param opts? cache.GetOptions
---@return table<string, any> values of those that were found, by key
---@return cache.Error? err "decode"; Redis: see the top; about the keys in err.keys
function Cache:multi_get(keys, opts) end

---Stores many values, with one TTL. Disabled: true.
---@async
---@param map table<string, any> values by key; may be empty
---@param opts? cache.TTL|cache.SetOptions seconds, or options; default: the alias's TTL
---@return true? ok nil when some could not be stored: the others are
---@return cache.Error? err "too_large", "no_memory"; Redis: see the top; with the keys in err.keys
function Cache:multi_set(map, opts) end

---Removes many keys. Disabled: 0.
---@async
---@param keys string[] may be empty
---@param opts? cache.ChangeOptions
---@return integer removed how many there were
---@return cache.Error? err Redis: see the top, with the keys in err.keys
function Cache:multi_delete(keys, opts) end

---Any command of Redis, as it is: no namespace, no serializer. Numbers beyond
---2^53 come back as text, a nil within a list as cache.null, an error there as
---{err = text}. What blocks or changes the connection (BLPOP, SUBSCRIBE, MULTI,
---SELECT) is "unsupported"; memory has no commands. Disabled: the same.
---@async
---@param command string
---@param ... string|number
---@return any reply nil for nil
---@return cache.Error? err "unsupported"; Redis: see the top, "type"
function Cache:raw(command, ...) end

---The counters of this alias. Disabled: the same; the calls count nothing then.
---@return cache.Stats|cache.RedisStats
function Cache:stats() end

---The same alias with `namespace:` before every key, behind the prefix that this
---object has: nested ones add up.
---@param namespace string not empty
---@return Cache
function Cache:with_namespace(namespace) end

return cache
