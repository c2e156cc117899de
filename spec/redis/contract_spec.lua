-- The contract of all backends holds for the alias persistent on a real server,
-- with the JIT compiler on and off.
local process = require "spec.support.process"
local redis = require "spec.support.redis"
local support = require "spec.redis.support"
local task = require "task"

describe("the contract on Redis", function()
  if redis.missing() then
    pending(redis.missing())
    return
  end

  local function start(init)
    local server = redis.start()
    local child = process.start { "--busted", "--helper=spec/support/helper.lua",
      "spec/cache/contract_spec.lua", timeout = 55,
      env = { CACHE_REDIS_URL = server.url, LUA_INIT = init } }
    return server, child
  end

  local function check(server, child)
    local result = child:wait()
    assert.equal(0, result.code, result.out .. result.err)
    assert.truthy(result.out:find " 0 failures / 0 errors / %d+ pending\n$", result.out)
    assert.truthy(result.out:find("the alias persistent", 1, true)) -- in the list of pending ones
    for _, command in ipairs { "set", "mget", "incrby", "unlink", "scan", "flushdb" } do
      assert.truthy(support.calls(server, command) > 5, command)
    end
    assert.truthy(support.calls(server, "get") > 200)
    assert.equal(0, support.calls(server, "keys"))
  end

  it("is kept, whether code is compiled or not", function()
    local compiled, interpreted = { start() }, { start "jit.off()" } -- they sleep most of the time
    task.gather {
      function() check(unpack(compiled)) end,
      function() check(unpack(interpreted)) end,
    }
  end)
end)
