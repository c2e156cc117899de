-- The Cache object: an alias with methods. What each method does is a local
-- function of the object, which get_cached and its like (init.lua) call, too;
-- `what` is the name that the user called, for messages.
local backend = require "moonstash.backend"
local alias = require "cache.alias"
local evict = require "cache.evict"
local errors = require "moonstash.error"
local hooks = require "cache.hooks"
local key = require "cache.key"
local raise = require "cache.raise"
local serializer = require "cache.serializer"

local check_key, check_room = key.check, key.check_room
local state, find, fetch = alias.state, alias.memory.find, alias.memory.fetch
local ttl_ms = alias.ttl_ms
local decode = serializer.decode
local TABLE = backend.TABLE
local READ_CODE = alias.memory.READ
local NOT_NEAR = { pool = false, map = {} } -- an index that is nobody's
local type, next, pairs, tostring = type, next, pairs, tostring

local object = {}

-- ---- options ---------------------------------------------------------------

local function set_of(names)
  local set = {}
  for name in names:gmatch "%S+" do set[name] = true end
  return set
end

local READ = set_of "timeout namespace loads"
local ADD = set_of "ttl timeout namespace dumps wait"
local SET = set_of "ttl timeout namespace dumps wait pin weight"
local CHANGE = set_of "timeout namespace wait"
local COUNT = set_of "ttl timeout namespace"
local LOOK = set_of "timeout namespace"
local REFUSED = { tags = "not in this version", pin = "one of set and multi_set",
  weight = "one of set and multi_set" }
local WEIGHT_MAX = 2 ^ 31 -- bytes

local CHECKS = {
  namespace = { "a string", function(v) return type(v) == "string" end },
  timeout = { "a number of seconds >= 0", function(v) return type(v) == "number" and v >= 0 end },
  dumps = { "a function", function(v) return type(v) == "function" end },
  loads = { "a function", function(v) return type(v) == "function" end },
  wait = { "a boolean", function(v) return type(v) == "boolean" end },
  pin = { "a boolean", function(v) return type(v) == "boolean" end },
  weight = { "an integer from 0 to 2^31", function(v)
    return type(v) == "number" and v % 1 == 0 and v >= 0 and v <= WEIGHT_MAX
  end },
}

-- Raises on an option that is unknown, wrong, or not there yet.
local function check_options(opts, known, what)
  if type(opts) ~= "table" then raise("%s: options must be a table, not %s", what, type(opts)) end
  for name, value in pairs(opts) do
    if not known[name] then
      raise("%s: the option '%s' is %s", what, tostring(name),
        REFUSED[name] or "unknown")
    end
    local check = CHECKS[name]
    if check and not check[2](value) then
      raise("%s: %s must be %s, not %s", what, name, check[1],
        type(value) == "number" and tostring(value) or type(value))
    end
  end
end

-- A third argument that is either the TTL or options. Gives options or nil,
-- and the TTL in milliseconds or nil.
local function ttl_or_options(given, known, what)
  if given == nil then return nil, nil end
  if type(given) ~= "table" then return nil, ttl_ms(given, what) end
  check_options(given, known, what)
  if given.ttl == nil then return given, nil end
  return given, ttl_ms(given.ttl, what)
end

-- The same for set and multi_set. What only a store in memory can do raises
-- where it would be lost.
local function set_options(self, given, what)
  local opts, ttl = ttl_or_options(given, SET, what)
  if opts and self.alias.remote and (opts.pin or (opts.weight or 0) > 0) then
    raise("%s: pin and weight are for memory, and '%s' lives in Redis", what, self.alias.name)
  end
  return opts, ttl
end

-- The prefix of the object's keys: the alias's namespace and its own. It is
-- joined again only when the alias's has changed.
local function ns_of(self, opts)
  if opts and opts.namespace then return alias.prefix(opts.namespace) end
  local ns = self.alias.ns
  if self.sub == "" then return ns end
  if self.base ~= ns then self.base, self.joined = ns, ns .. self.sub end
  return self.joined
end

-- The same for a call on one key, which must fit beside the prefix.
local function ns_for(self, opts, k, what)
  return check_room(ns_of(self, opts), k, what)
end

-- What hooks see as options: a TTL that was given as a number, too.
local function options_for_hooks(self, opts, given)
  if self.alias.plugins and opts == nil and given ~= nil then return { ttl = given } end
  return opts
end

local function reader_of(the_alias, opts)
  local loads = opts and opts.loads
  return loads and serializer.custom(nil, loads) or the_alias.serializer
end

local function writer_of(the_alias, opts)
  local dumps = opts and opts.dumps
  return dumps and serializer.custom(dumps) or the_alias.serializer
end

-- Runs an operation, between the alias's hooks if it has some.
local function run(self, op, k, opts, body, ...)
  local plugins = self.alias.plugins
  if not plugins then return body(self, k, opts, ...) end
  return hooks.run(plugins, op, self, k, opts, body, self, k, opts, ...)
end

-- ---- one key ------------------------------------------------------------------

-- The value, an error, and whether it was a hit.
local function look_up(self, k, opts, what)
  local the_alias = self.alias
  return the_alias.driver.get(the_alias, ns_for(self, opts, k, what), k, opts,
    reader_of(the_alias, opts), what)
end

local function do_get(self, k, opts, default, what)
  local value, err, hit = look_up(self, k, opts, what)
  if value == nil then return default, err, false end
  return value, nil, hit
end

-- What is no plain value of the alias's own serializer.
local function read(the_alias, format, value, default, what)
  local err
  value, err = decode(the_alias.serializer, format, value, what)
  if value ~= nil then return value end
  if err then return default, err end
  return default
end

-- The way of what is not near.
local function get(self, k, default, opts, what)
  check_key(k, what)
  if opts ~= nil then check_options(opts, READ, what) end
  if not state.enabled then return default end
  local the_alias = self.alias
  if the_alias.plugins or opts or the_alias.remote then
    local value, err = run(self, "get", k, opts, do_get, default, what)
    if err then return value, err end
    return value
  end
  local index = self.index
  if index.pool ~= the_alias.fast then
    self.index = alias.index(the_alias, ns_of(self))
    return object.get(self, k, default, opts, what) -- another object's may be near
  end
  local format, value = fetch(index, the_alias, check_room(index.ns, k, what), k, k, what)
  if format == nil then return default end
  if format > TABLE or not index.plain then return read(the_alias, format, value, default, what) end
  return value
end

-- A name that is found near was a good key when it was kept, and then there
-- was nothing to do but to look there: see the alias's `fast`.
function object.get(self, k, default, opts, what)
  if opts == nil then
    local code, value = find(self.index, k)
    if code ~= nil then
      if code <= TABLE then
        if value == nil then return default end -- ABSENT
        return value
      end
      return read(self.alias, code < READ_CODE and code or code - READ_CODE, value, default, what)
    end
  end
  return get(self, k, default, opts, what)
end

-- The driver is the one that has encoded the value: a hook may have configured
-- another since, or waited while somebody did.
local function has_moved(self, driver, bytes, format, what)
  if self.alias.driver == driver then return nil end
  serializer.forget(format, bytes)
  return errors.new("closed", what .. ": the alias has moved to another backend meanwhile")
end

local function do_set(self, k, opts, driver, bytes, format, ttl, what)
  local moved = has_moved(self, driver, bytes, format, what)
  if moved then return nil, moved end
  return driver.set(self.alias, ns_for(self, opts, k, what), k, opts, bytes, format, ttl, what)
end

local function check_value(value, what)
  if value == nil then raise("%s: the value is nil: use delete to remove a key", what) end
end

function object.set(self, k, value, given, what)
  check_key(k, what)
  local opts, ttl = set_options(self, given, what)
  check_value(value, what)
  if not state.enabled then return true end
  local the_alias = self.alias
  local driver = the_alias.driver
  local bytes, format = driver.encode(writer_of(the_alias, opts), value, what)
  return run(self, "set", k, options_for_hooks(self, opts, given), do_set, driver, bytes, format,
    ttl or the_alias.ttl_ms, what)
end

local function do_add(self, k, opts, driver, bytes, format, ttl)
  local moved = has_moved(self, driver, bytes, format, "add")
  if moved then return nil, moved end
  local ns = ns_for(self, opts, k, "add")
  return driver.add(self.alias, ns, k, opts, bytes, format, ttl, "add")
end

function object.add(self, k, value, given)
  check_key(k, "add")
  local opts, ttl = ttl_or_options(given, ADD, "add")
  check_value(value, "add")
  if not state.enabled then return true end
  local driver = self.alias.driver
  local bytes, format = driver.encode(writer_of(self.alias, opts), value, "add")
  return run(self, "add", k, options_for_hooks(self, opts, given), do_add, driver, bytes, format,
    ttl or self.alias.ttl_ms)
end

local function do_delete(self, k, opts, what)
  local the_alias = self.alias
  return the_alias.driver.remove(the_alias, ns_for(self, opts, k, what), k, opts, what)
end

function object.delete(self, k, opts, what)
  check_key(k, what)
  if opts ~= nil then check_options(opts, CHANGE, what) end
  if not state.enabled then return 0 end
  return run(self, "delete", k, opts, do_delete, what)
end

local function do_exists(self, k, opts)
  local the_alias = self.alias
  return the_alias.driver.exists(the_alias, ns_for(self, opts, k, "exists"), k, opts)
end

local function do_increment(self, k, opts, delta, ttl)
  local the_alias = self.alias
  local ns = ns_for(self, opts, k, "increment")
  return the_alias.driver.increment(the_alias, ns, k, opts, delta, ttl)
end

local function do_expire(self, k, opts, ttl)
  local the_alias = self.alias
  return the_alias.driver.expire(the_alias, ns_for(self, opts, k, "expire"), k, opts, ttl)
end

local function do_touch(self, k, opts, ttl)
  local the_alias = self.alias
  return the_alias.driver.touch(the_alias, ns_for(self, opts, k, "touch"), k, opts, ttl)
end

local function do_info(self, k, opts, what)
  local the_alias = self.alias
  return the_alias.driver.info(the_alias, ns_for(self, opts, k, what), k, opts, what)
end

local function do_ttl(self, k, opts)
  local info, err = do_info(self, k, opts, "ttl")
  if info then return info.ttl end
  return nil, err
end

-- ---- many keys ------------------------------------------------------------------

local function check_keys(keys, what)
  if type(keys) ~= "table" then raise("%s: keys must be a list, not %s", what, type(keys)) end
  for i = 1, #keys do check_key(keys[i], ("%s: keys[%d]"):format(what, i)) end
  if #keys == 0 and next(keys) ~= nil then raise("%s: keys must be a list, not a map", what) end
end

-- The prefix for a call on many keys.
local function ns_for_all(self, opts, keys, what)
  local ns = ns_of(self, opts)
  for i = 1, #keys do check_room(ns, keys[i], what) end
  return ns
end

local function do_multi_get(self, keys, opts)
  local the_alias = self.alias
  if #keys == 0 then return {} end
  return the_alias.driver.get_many(the_alias, ns_for_all(self, opts, keys, "multi_get"), keys, opts,
    reader_of(the_alias, opts))
end

local function do_multi_set(self, _, opts, driver, keys, values, formats, ttl)
  if #keys == 0 then return true end
  local moved
  for i = 1, #keys do moved = has_moved(self, driver, values[i], formats[i], "multi_set") end
  if moved then
    moved.keys = keys
    return nil, moved
  end
  local ns = ns_for_all(self, opts, keys, "multi_set")
  return driver.set_many(self.alias, ns, keys, opts, values, formats, ttl)
end

local function do_multi_delete(self, keys, opts)
  local the_alias = self.alias
  if #keys == 0 then return 0 end
  return the_alias.driver.remove_many(the_alias, ns_for_all(self, opts, keys, "multi_delete"), keys,
    opts)
end

-- ---- the rest ---------------------------------------------------------------------

local function do_clear(self, namespace, opts)
  local ns = namespace and alias.prefix(namespace) or ns_of(self, opts)
  return self.alias.driver.clear(self.alias, ns, opts)
end

function object.clear(self, namespace, opts, what)
  if namespace ~= nil and type(namespace) ~= "string" then
    raise("%s: the namespace must be a string, not %s", what, type(namespace))
  end
  if opts ~= nil then check_options(opts, CHANGE, what) end
  if namespace == "" or opts and opts.namespace == "" then
    raise("%s: the namespace must not be empty: clear() of a cache without one clears it all", what)
  end
  if not state.enabled then return true end
  return run(self, "clear", namespace, opts, do_clear)
end

-- ---- methods -----------------------------------------------------------------------

local Cache = {}
Cache.__index = Cache
Cache.__name = "Cache"

-- A method's self; memory.get("k") has lost it.
local function check_self(self, what)
  if type(self) ~= "table" or not self.alias then
    raise("%s: call it with a colon, as in cache.memory:%s(...)", what, what)
  end
  return self
end

function Cache:get(k, default, opts)
  return object.get(check_self(self, "get"), k, default, opts, "get")
end

function Cache:set(k, value, opts)
  return object.set(check_self(self, "set"), k, value, opts, "set")
end

function Cache:add(k, value, opts)
  return object.add(check_self(self, "add"), k, value, opts)
end

function Cache:delete(k, opts)
  return object.delete(check_self(self, "delete"), k, opts, "delete")
end

function Cache:clear(namespace, opts)
  return object.clear(check_self(self, "clear"), namespace, opts, "clear")
end

function Cache:exists(k, opts)
  check_self(self, "exists")
  check_key(k, "exists")
  if opts ~= nil then check_options(opts, LOOK, "exists") end
  if not state.enabled then return false end
  return run(self, "exists", k, opts, do_exists)
end

function Cache:increment(k, delta, opts)
  check_self(self, "increment")
  check_key(k, "increment")
  if delta == nil then delta = 1 end
  if type(delta) ~= "number" or delta % 1 ~= 0 or delta > 2 ^ 53 or delta < -2 ^ 53 then
    raise("increment: delta must be an integer, not %s",
      type(delta) == "number" and tostring(delta) or type(delta))
  end
  local ttl = 0
  if opts ~= nil then
    check_options(opts, COUNT, "increment")
    if opts.ttl ~= nil then ttl = ttl_ms(opts.ttl, "increment") end
  end
  if not state.enabled then return delta end
  return run(self, "increment", k, opts, do_increment, delta, ttl)
end

function Cache:expire(k, ttl, opts)
  check_self(self, "expire")
  check_key(k, "expire")
  ttl = ttl_ms(ttl, "expire")
  if opts ~= nil then check_options(opts, CHANGE, "expire") end
  if not state.enabled then return false end
  return run(self, "expire", k, opts, do_expire, ttl)
end

function Cache:touch(k, ttl, opts)
  check_self(self, "touch")
  check_key(k, "touch")
  if ttl ~= nil then ttl = ttl_ms(ttl, "touch") end
  if opts ~= nil then check_options(opts, CHANGE, "touch") end
  if not state.enabled then return false end
  return run(self, "touch", k, opts, do_touch, ttl)
end

function Cache:ttl(k, opts)
  check_self(self, "ttl")
  check_key(k, "ttl")
  if opts ~= nil then check_options(opts, LOOK, "ttl") end
  if not state.enabled then return nil end
  return run(self, "ttl", k, opts, do_ttl)
end

function Cache:info(k, opts)
  check_self(self, "info")
  check_key(k, "info")
  if opts ~= nil then check_options(opts, LOOK, "info") end
  if not state.enabled then return nil end
  return run(self, "info", k, opts, do_info, "info")
end

function Cache:multi_get(keys, opts)
  check_self(self, "multi_get")
  check_keys(keys, "multi_get")
  if opts ~= nil then check_options(opts, READ, "multi_get") end
  if not state.enabled then return {} end
  return run(self, "multi_get", keys, opts, do_multi_get)
end

function Cache:multi_set(map, given)
  check_self(self, "multi_set")
  if type(map) ~= "table" then
    raise("multi_set: a map of values by key expected, not %s", type(map))
  end
  local opts, ttl = set_options(self, given, "multi_set")
  local driver, writer = self.alias.driver, writer_of(self.alias, opts)
  local keys, values, formats = {}, {}, {}
  for k, value in pairs(map) do
    check_key(k, "multi_set")
    local n = #keys + 1
    keys[n] = k
    if state.enabled then
      values[n], formats[n] = driver.encode(writer, value, ("multi_set: %s"):format(k))
    end
  end
  if not state.enabled then return true end
  return run(self, "multi_set", map, options_for_hooks(self, opts, given), do_multi_set, driver,
    keys, values, formats, ttl or self.alias.ttl_ms)
end

function Cache:multi_delete(keys, opts)
  check_self(self, "multi_delete")
  check_keys(keys, "multi_delete")
  if opts ~= nil then check_options(opts, CHANGE, "multi_delete") end
  if not state.enabled then return 0 end
  return run(self, "multi_delete", keys, opts, do_multi_delete)
end

local function do_raw(self, command, _, ...)
  return self.alias.driver.raw(self.alias, command, ...)
end

function Cache:raw(command, ...)
  check_self(self, "raw")
  if type(command) ~= "string" then
    raise("raw: the command must be a string, not %s", type(command))
  end
  return run(self, "raw", command, nil, do_raw, ...)
end

function Cache:stats()
  local the_alias = check_self(self, "stats").alias
  return the_alias.driver.stats(the_alias)
end

function Cache:with_namespace(namespace)
  check_self(self, "with_namespace")
  if type(namespace) ~= "string" or namespace == "" then
    raise("with_namespace: the namespace must be a string, not %s",
      namespace == "" and "empty" or type(namespace))
  end
  local sub = self.sub .. namespace .. ":"
  return setmetatable({ alias = self.alias, sub = sub, index = NOT_NEAR }, Cache)
end

for method in ([[fetch fetch_many refresh remove_by_tag scan health lock
  optimistic_lock]]):gmatch "%S+" do
  Cache[method] = function() raise("%s is not in this version", method) end
end

function Cache:__tostring()
  return ("cache '%s'%s"):format(self.alias.name, self.sub ~= "" and " " .. self.sub or "")
end

local objects = {}

--- The Cache object of an alias: one per alias.
function object.of(name, what)
  local found = alias.find(name, what)
  objects[name] = objects[name]
    or setmetatable({ alias = found, sub = "", index = NOT_NEAR }, Cache)
  return objects[name]
end

evict.client = function(name) return object.of(name, "on_evict") end

return object
