-- What a fuzz target asks of a serializer: given (module, its name), returns
-- two functions of one input: decode, whose memory is measured, and the check
-- that what comes out goes in again and comes out the same.
local module, name = ...

local KEY = "fuzz:key"
local class = { __index = {} }
local classes_by_name, classes_by_mt = { C = class }, { [class] = "C" }

local function same(a, b)
  if type(a) ~= type(b) then return false end
  if type(a) ~= "table" then return a == b or (a ~= a and b ~= b) end
  if getmetatable(a) ~= getmetatable(b) then return false end
  for key, value in pairs(a) do
    if not same(value, b[key]) then return false end
  end
  for key in pairs(b) do
    if a[key] == nil then return false end
  end
  return true
end

-- The first byte of an input for binary says where its bytes go.
local function decode_binary(bytes)
  local where, rest = (bytes:byte() or 0) % 4, bytes:sub(2)
  if where == 1 then
    local kind, payload, message = module.open(rest, KEY)
    if kind == nil then return nil, message end
    return payload
  elseif where == 2 then
    local value, code, message = module.unpack(rest, KEY, classes_by_name)
    if value == nil then return nil, code and message end
    return value
  elseif where == 3 then
    local sealed = module.seal(module.VALUE, rest, KEY, { fresh = 1 })
    local value, code, message = module.unpack(sealed, KEY, classes_by_name)
    if value == nil then return nil, code and message end
    return value
  end
  return module.decode(rest, classes_by_name)
end

local decode, encode, again = module.decode, module.encode, module.decode
if name == "binary" then
  decode = decode_binary
  encode = function(value) return module.pack(value, KEY, classes_by_mt, { stale = 2 }) end
  again = function(bytes) return module.unpack(bytes, KEY, classes_by_name) end
end

local function check(bytes)
  local value, message = decode(bytes)
  if value == nil then
    assert(type(message) == "string", "no message")
  else
    assert(same(value, again(encode(value))), "another value came back")
  end
end

return decode, check
