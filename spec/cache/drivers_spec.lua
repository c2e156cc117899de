-- The contract holds for both drivers of the memory backend: FFI calls where
-- the JIT compiler is on, C functions where it is off.
local process = require "spec.support.process"

if not jit.status() then return end -- that run

describe("the memory backend's driver", function()
  local off = { LUA_INIT = "jit.off()" }

  it("is FFI with the JIT compiler on, and C functions with it off", function()
    assert.equal(require "cache.memory_ffi", require("cache.alias").memory)
    local result = process.run {
      "-e", 'require "cache" print(package.loaded["cache.memory_ffi"])', env = off,
    }
    assert.equal("nil\n", result.out)
  end)

  it("of C functions passes every cache spec", function()
    local result = process.run {
      "--busted", "--helper=spec/support/helper.lua", "spec/cache", env = off, timeout = 55,
    }
    assert.equal(0, result.code, result.out .. result.err)
    assert.truthy(result.out:find " 0 failures / 0 errors / %d+ pending\n$")
  end)
end)
