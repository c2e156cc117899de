-- The child of a fork has no store; the parent goes on.
local process = require "spec.support.process"

local SCRIPT = [[
local cache, ffi = require "cache", require "ffi"
ffi.cdef "int fork(void); int waitpid(int pid, int *status, int options); void _exit(int code);"
local m = cache.memory
m:set("k", "v")
for _ = 1, 100 do m:get "k" end
io.stdout:flush()
local pid = ffi.C.fork()
if pid == 0 then
  local function closed(name, value, err)
    local good = value == nil and err and err.code == "closed"
    assert(good, name .. ": " .. tostring(value) .. tostring(err))
  end
  local ok, why = pcall(function()
    assert(m:get "k" == nil and m:get("k", "default") == "default")
    assert(m:exists "k" == false and m:ttl "k" == nil and m:info "k" == nil)
    closed("set", m:set("k", 1))
    closed("add", m:add("k", 1))
    closed("increment", m:increment "n")
    closed("delete", m:delete "k")
    closed("multi_set", m:multi_set { a = 1 })
    closed("multi_delete", m:multi_delete { "a" })
    assert(next((m:multi_get { "a", "k" })) == nil)
    assert(cache.cached(function() return 7 end, { name = "forked" })() == 7)
  end)
  io.stdout:write(ok and "child: good\n" or "child: " .. tostring(why) .. "\n")
  io.stdout:flush()
  ffi.C._exit(0)
end
ffi.C.waitpid(pid, ffi.new "int[1]", 0)
print("parent: " .. m:get "k")
]]

describe("after fork", function()
  for name, init in pairs { on = "", off = "jit.off()" } do
    it("the child's calls say closed and the parent's work, with the JIT " .. name, function()
      local result = process.run { "-e", SCRIPT, env = { LUA_INIT = init } }
      assert.equal("child: good\nparent: v\n", result.out, result.err)
    end)
  end
end)
