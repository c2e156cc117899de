-- Keys: what a caller gives, and what `cached` makes of a function's
-- arguments: typed, in canonical order, so that 1 and "1", f(1) and f(1, nil)
-- are different keys and {a = 1, b = 2} is one.
local backend = require "moonstash.backend"

local KEY_MAX = backend.KEY_MAX
local MAX_DEPTH = 32
local type, select, tostring, error, pairs = type, select, tostring, error, pairs
local concat, sort = table.concat, table.sort

local key = {}

--- Raises unless k can be a key; `what` begins the message.
function key.check(k, what)
  if type(k) ~= "string" then
    error(("%s: the key must be a string, not %s"):format(what, type(k)), 3)
  end
  local n = #k
  if n == 0 or n > KEY_MAX then
    error(("%s: the key must have 1 to %d bytes, not %d"):format(what, KEY_MAX, n), 3)
  end
end

local write

-- Orders table keys: by type, then by value.
local function before(a, b)
  local ta, tb = type(a), type(b)
  if ta ~= tb then return ta < tb end
  if ta == "boolean" then return not a and b end
  return a < b
end

local function write_table(parts, value, what, above)
  if above[value] then error(("%s: an argument is a cycle"):format(what), 0) end
  if getmetatable(value) ~= nil then
    error(("%s: an argument is a table with a metatable: give a key_builder"):format(what), 0)
  end
  above.depth = above.depth + 1
  if above.depth > MAX_DEPTH then
    error(("%s: an argument is nested deeper than %d tables"):format(what, MAX_DEPTH), 0)
  end
  above[value] = true
  local keys = {}
  for k in pairs(value) do
    if type(k) == "table" then
      error(("%s: an argument has a table as a key: give a key_builder"):format(what), 0)
    end
    keys[#keys + 1] = k
  end
  for i = 1, #keys do
    local kind = type(keys[i])
    if kind ~= "string" and kind ~= "number" and kind ~= "boolean" then
      error(("%s: an argument has a %s as a key: give a key_builder"):format(what, kind), 0)
    end
  end
  sort(keys, before)
  parts[#parts + 1] = "{"
  for i = 1, #keys do
    write(parts, keys[i], what, above)
    parts[#parts + 1] = "="
    write(parts, value[keys[i]], what, above)
    parts[#parts + 1] = ","
  end
  parts[#parts + 1] = "}"
  above[value] = nil
  above.depth = above.depth - 1
end

-- Strings carry their length, so that no text can pass for another value.
function write(parts, value, what, above)
  local kind = type(value)
  local n = #parts
  if kind == "string" then
    parts[n + 1], parts[n + 2], parts[n + 3] = #value, ":", value
  elseif kind == "number" then
    if value ~= value then error(("%s: an argument is NaN, which is no key"):format(what), 0) end
    parts[n + 1] = value == 0 and "0" or ("%.17g"):format(value)
  elseif kind == "boolean" or kind == "nil" then
    parts[n + 1] = tostring(value)
  elseif kind == "table" then
    write_table(parts, value, what, above)
  else
    error(("%s: an argument is a %s, of which no key can be made: give a key_builder"):format(
      what, kind), 0)
  end
end

--- The default key of a call: name:arguments.
function key.of_arguments(name, what, ...)
  local parts, above = { name, ":" }, { depth = 0 }
  for i = 1, select("#", ...) do
    if i > 1 then parts[#parts + 1] = "," end
    write(parts, (select(i, ...)), what, above)
  end
  return concat(parts)
end

return key
