-- The memory backend for Lua by C functions: the twin of memory_ffi.lua, for
-- states with the JIT off or without FFI (a C call is the faster one there).
-- alias is one of cache/alias.lua, with the field view.
--
--   open(alias)                              prepares it for the calls below
--   get(alias, ns, key)                      -> format, value; nil on a miss
--   get_near(alias, ns, key, near)           -> the same, and the version; or
--                                               nil, value out of near, true
--   set(alias, ns, key, value, format, ttl)  -> 1, or a negative status
--   remove(alias, ns, key)                   -> 1, 0
local backend = require "moonstash.backend"
local native = require "cache.native"

local TABLE, RESULTS = backend.TABLE, backend.RESULTS
local decode = native.decode_bytes
local get, set, remove = backend.get, backend.set, backend.remove

return {
  open = function() end,
  get = function(alias, ns, key)
    local format, value = get(alias.view, ns, key)
    if format == TABLE or format == RESULTS then return format, decode(value) end
    return format, value
  end,
  get_near = function(alias, ns, key, near)
    local format, value, version = get(alias.view, ns, key)
    if format ~= nil and near.versions[ns .. key] == version then
      return nil, near.values[ns .. key], true
    end
    if format == TABLE or format == RESULTS then value = decode(value) end
    return format, value, version
  end,
  set = function(alias, ns, key, value, format, ttl_ms)
    return set(alias.view, ns, key, value, format, ttl_ms)
  end,
  remove = function(alias, ns, key)
    return remove(alias.view, ns, key)
  end,
}
