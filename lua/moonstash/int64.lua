-- 64-bit integers for the serializers: C can neither make nor tell cdata, so
-- the few calls that need it go through here. Integers that a number holds
-- exactly (|n| <= 2^53) never come this way when they are decoded.
local found, ffi = pcall(require, "ffi")

local int64 = {}

--- 1 for an int64_t, 2 for a uint64_t, nil for any other cdata; and a copy,
--- because what istype calls an int64_t may be a reference to one.
function int64.kind(value)
  if not found then return nil end
  if ffi.istype("int64_t", value) then return 1, ffi.new("int64_t", value) end
  if ffi.istype("uint64_t", value) then return 2, ffi.new("uint64_t", value) end
end

--- high * 2^32 + low as cdata, a uint64_t when unsigned; nil without FFI.
function int64.make(high, low, unsigned)
  if not found then return nil end
  return ffi.new(unsigned and "uint64_t" or "int64_t", high) * 2 ^ 32 + low
end

return int64
