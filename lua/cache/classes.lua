-- Metatables that may be cached: those of registered classes, and that of
-- cache.array{}.
local backend = require "moonstash.backend"
local raise = require "cache.raise"

local ipairs, setmetatable, type, unpack = ipairs, setmetatable, type, unpack

local classes = {}

--- Tables with this metatable are arrays, also when empty.
classes.array_mt = require("moonstash.codec").array_mt

local has_ffi, ffi = pcall(require, "ffi")
local int64, uint64
if has_ffi then int64, uint64 = ffi.typeof "int64_t", ffi.typeof "uint64_t" end

--- Is the cdata a 64-bit integer?
function classes.is_int64(value)
  return has_ffi and (ffi.istype(int64, value) or ffi.istype(uint64, value))
end

classes.by_name, classes.by_mt = {}, { [classes.array_mt] = true }

-- string.buffer writes a metatable as its place in this list: it only grows. The
-- places are given by name, the same in all states that share a store. What has
-- none yet, or is not registered here, is a table of no known class.
local PLACES = 64
local list = { classes.array_mt }
for i = 2, PLACES do list[i] = {} end

--- Options of the buffers that encode and decode.
classes.buffer_options = { metatable = list }

--- Functions that are told of new options.
classes.followers = {}

function classes.known(mt)
  return classes.by_mt[mt] ~= nil
end

--- See cache.register_class in lua/meta/cache.lua.
function classes.register(name, mt)
  if type(name) ~= "string" or name == "" then
    raise("register_class: name must be a string, not %s", name == "" and "empty" or type(name))
  end
  if type(mt) ~= "table" then raise("register_class: a metatable expected, not %s", type(mt)) end
  if classes.by_name[name] == mt then return end
  if classes.by_name[name] then raise("register_class: the name '%s' is taken", name) end
  if classes.by_mt[mt] then raise("register_class: this metatable is registered already") end
  local place = backend.class(name)
  classes.by_name[name], classes.by_mt[mt] = mt, name
  list = { unpack(list) }
  for i = #list + 1, place do list[i] = {} end
  list[place] = mt
  classes.buffer_options = { metatable = list }
  for _, follow in ipairs(classes.followers) do follow(classes.buffer_options) end
end

--- cache.array: marks a table as an array.
function classes.array(t)
  if type(t) ~= "table" then raise("array: a table expected, not %s", type(t)) end
  return setmetatable(t, classes.array_mt)
end

return classes
