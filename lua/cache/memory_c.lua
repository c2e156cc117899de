-- The memory backend for Lua by C functions: the twin of memory_ffi.lua, for
-- states with the JIT off or without FFI (a C call is the faster one there).
--
--   get(view, ns, key)                      -> format, value; nil on a miss
--   set(view, ns, key, value, format, ttl)  -> 1, or a negative status
--   remove(view, ns, key)                   -> 1, 0
local backend = require "moonstash.backend"
local buffer = require "string.buffer"

local TABLE, RESULTS = backend.TABLE, backend.RESULTS
local decode = buffer.decode
local get = backend.get

return {
  get = function(view, ns, key)
    local format, value = get(view, ns, key)
    if format == TABLE or format == RESULTS then return format, decode(value) end
    return format, value
  end,
  set = backend.set,
  remove = backend.remove,
}
