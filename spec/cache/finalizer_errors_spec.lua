-- Finalizers (__gc) that raise errors: LuaJIT lets those out of whatever
-- allocation the collector ran in, the cache's own included.
local process = require "spec.support.process"

local function run(code)
  local result = process.run { "-e", [[
    local function bomb()
      local proxy = newproxy(true)
      getmetatable(proxy).__gc = function() error "bomb" end
    end
  ]] .. code }
  assert.is_nil(result.signal, result.err)
  assert.is_nil(result.err:find "Sanitizer", result.err)
  return result
end

describe("a finalizer's error", function()
  it("in the middle of a get is that get's only; those after it read what is theirs", function()
    local result = run [[
      jit.off()
      local keys = { a = ("a"):rep(60000), b = ("b"):rep(60001), n = 1.5, i = 7 }
      for key, value in pairs(keys) do cache.memory:set(key, value) end
      cache.memory:set("t", { "t", { 2 } })
      collectgarbage("setpause", 1)
      local failed = 0
      for i = 1, 3000 do
        pcall(bomb)
        for key, value in pairs(keys) do
          local ok, got = pcall(cache.memory.get, cache.memory, key)
          if ok then assert(got == value) else failed = failed + 1 end
        end
        local ok, t = pcall(cache.memory.get, cache.memory, "t")
        if ok then assert(t[1] == "t" and t[2][1] == 2) end
        pcall(cache.memory.set, cache.memory, "n2", i + 0.5)
      end
      collectgarbage "stop"
      print(failed > 100)]]
    assert.equal("true\n", result.out, result.err)
  end)

  it("does not make the gets after it slower", function()
    if not jit.status() then return end -- the driver of C functions has nothing like it
    local result = run [[
      local get = require("cache.memory_ffi").get
      local index = 0
      repeat
        index = index + 1
        local _, value = debug.getupvalue(get, index)
      until type(value) == "boolean" -- busy
      for _, value in ipairs { ("k"):rep(60000), 7, 1.5 } do
        debug.setupvalue(get, index, true) -- as a get that an error has ended leaves it
        cache.memory:set("k", value)
        debug.setupvalue(get, index, true)
        assert(cache.memory:get "k" == value)
        print(select(2, debug.getupvalue(get, index)))
      end]]
    assert.equal(("false\n"):rep(3), result.out, result.err)
  end)

  it("does not keep a lost load from those who come later, nor harm the next lease", function()
    local result = run [[
      local calls = 0
      local f = cache.cached(function()
        calls = calls + 1
        if calls == 1 then coroutine.yield() end -- nobody to yield to: the task ends here
        return "value"
      end, { name = "f" })
      task.spawn_detached(pcall, f)
      task.sleep(0.001)
      collectgarbage() collectgarbage "stop"
      for _ = 1, 20 do bomb() end
      print(f(), f(), calls)
      for i = 1, 100 do -- leases whose buffers would be taken still
        local g = cache.cached(function() return i end, { name = "g" .. i })
        assert(g() == i and g() == i)
      end]]
    assert.equal("value\tvalue\t2\n", result.out, result.err)
  end)
end)
