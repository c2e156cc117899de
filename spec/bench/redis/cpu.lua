-- Processor time, user and system, as getrusage counts it: of all threads of
-- this process, or of its children that have ended.
local ffi = require "ffi"

-- struct rusage of a 64-bit system. busted keeps declarations, as process.lua says.
pcall(ffi.cdef, [[
  struct bench_usage { long user_s, user_us, system_s, system_us, others[14]; };
  int getrusage(int who, struct bench_usage *usage);
]])

local cpu = { SELF = 0, CHILDREN = -1 }

local usage = ffi.new "struct bench_usage"

--- Microseconds so far, of cpu.SELF or cpu.CHILDREN.
function cpu.us(who)
  assert(ffi.C.getrusage(who, usage) == 0, "getrusage")
  return tonumber(usage.user_s + usage.system_s) * 1e6
    + tonumber(usage.user_us + usage.system_us)
end

return cpu
