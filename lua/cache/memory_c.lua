-- The memory backend for Lua by C functions: the twin of memory_ffi.lua, for
-- states with the JIT off or without FFI (a C call is the faster one there).
-- alias is one of cache/alias.lua, with the field view.
--
--   open(alias)                              prepares it for the calls below
--   get(alias, ns, key)                      -> format, value; nil on a miss
--   set(alias, ns, key, value, format, ttl)  -> 1, or a negative status
--   remove(alias, ns, key)                   -> 1, 0
local backend = require "moonstash.backend"
local buffer = require "string.buffer"

local TABLE, RESULTS = backend.TABLE, backend.RESULTS
local decode = buffer.decode
local get, set, remove = backend.get, backend.set, backend.remove

return {
  open = function() end,
  get = function(alias, ns, key)
    local format, value = get(alias.view, ns, key)
    if format == TABLE or format == RESULTS then return format, decode(value) end
    return format, value
  end,
  set = function(alias, ns, key, value, format, ttl_ms)
    return set(alias.view, ns, key, value, format, ttl_ms)
  end,
  remove = function(alias, ns, key)
    return remove(alias.view, ns, key)
  end,
}
