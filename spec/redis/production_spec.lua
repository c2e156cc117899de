-- The production environment of the seed, word for word, with a standalone server
-- behind its host name: in namespaces of its own, where /etc/hosts knows that
-- name and port 6379 is free.
local process = require "spec.support.process"
local redis = require "spec.support.redis"

local ENVIRONMENT = {
  CACHE_ENABLED = "True",
  CACHE_REDIS_HOST = "redis-cluster",
  CACHE_REDIS_PORT = "6379",
  CACHE_DEFAULT_TTL = "300",
  CACHE_PERSISTENT_TTL = "3600",
}

-- $1 hosts, $2 a directory, $3 moonstash, $4 a script. 77: this machine forbids it.
local INSIDE = [[
mount --bind "$1" /etc/hosts && ip link set lo up || exit 77
if [ -n "$4" ]; then
  setpriv --pdeathsig KILL redis-server --bind 127.0.0.1 --dir "$2" --save "" >"$2/log" &
  until redis-cli -h redis-cluster ping 2>/dev/null | grep -q PONG; do sleep 0.02; done
  "$3" "$4"
  code=$?
  redis-cli -h redis-cluster --no-raw EVAL "local all = {}
    for _, key in ipairs(redis.call('KEYS', '*')) do
      table.insert(all, key .. '=' .. redis.call('PTTL', key) / 1000) end
    table.sort(all) return all" 0
  kill $!
  exit $code
fi
]]

local SCRIPT = [[
local cache = require "cache"

-- Basic operations
print(cache.get_cached "my_key", cache.get_cached("my_key", { alias = "persistent" }))
print(cache.set_cached("my_key", "my_value"))
print(cache.set_cached("my_key", "persistent value", { ttl = 300, alias = "persistent" }))
print(cache.get_cached "my_key", cache.get_cached("my_key", { alias = "persistent" }))
print(cache.delete_cached("my_key", { alias = "persistent" }), cache.get_cached "my_key")
print(cache.clear_cache { alias = "persistent" })

-- The decorator
local fetched = 0
local get_user_data = cache.cached(function(user_id)
  fetched = fetched + 1
  return { id = user_id, name = "Ann" }
end, { ttl = 600, alias = "persistent", key_builder = function(_, id) return "user:" .. id end })
print(get_user_data(7).name, get_user_data(7).id, fetched)

-- Direct access
for _, name in ipairs { "memory", "persistent" } do
  local c = cache.get_cache(name)
  print(c:set("key", "value"), c:get "key", c:info("key").tier, c:ttl "key" > 0)
end
cache.get_cache("persistent"):set("other", "value", { ttl = 60 })

-- By hand
cache.configure_caches(cache.settings)
print(cache.get_cache("persistent"):get "key", cache.memory:get "my_key")
]]

local PRINTED = [[
nil	nil
true
true
my_value	persistent value
1	my_value
true
Ann	7	1
true	value	memory	true
true	value	redis	true
value	my_value
]]

describe("the seed's production environment", function()
  local dir
  setup(function()
    dir = process.directory { hosts = "127.0.0.1 localhost redis-cluster\n",
      ["script.lua"] = SCRIPT }
  end)

  local function inside(...)
    return process.run { program = "unshare", "--mount", "--net", "--map-root-user", "sh", "-c",
      INSIDE, "sh", dir .. "/hosts", dir, process.binary(), ..., env = ENVIRONMENT }
  end

  it("works with a standalone server under the name redis-cluster", function()
    if redis.missing() then return pending(redis.missing()) end
    if inside("").code ~= 0 then
      assert(not process.required "hosts", "no namespaces here for a hosts file of our own")
      return pending "no namespaces here for a hosts file of our own"
    end
    local result = inside(dir .. "/script.lua")
    assert.equal("moonstash: warning: Redis: clear of a cache without a namespace is FLUSHDB: "
      .. "it removes every key of the database\n", result.err)
    assert.equal(0, result.code)
    assert.equal(PRINTED, result.out:sub(1, #PRINTED))
    local left = {}
    for key, seconds in result.out:sub(#PRINTED + 1):gmatch '"([%w:_]+)=([%d.]+)"' do
      left[key] = tonumber(seconds)
    end
    for key, ttl in pairs { key = 3600, other = 60, ["user:7"] = 600 } do
      assert.truthy(left[key] and left[key] <= ttl and left[key] > ttl - 30, key)
      left[key] = nil
    end
    assert.same({}, left)
  end)
end)
