-- Keys: what a caller gives, and what `cached` makes of a function's name and
-- arguments: typed, in canonical order, so that 1 and "1", f(1) and f(1, nil)
-- are different keys and {a = 1, b = 2} is one. No two calls share a key.
local backend = require "moonstash.backend"
local raise = require "cache.raise"

local KEY_MAX = backend.KEY_MAX
local MAX_DEPTH = 32
local HINT = "give a key_builder"
local type, select, tostring, pairs, getmetatable = type, select, tostring, pairs, getmetatable
local concat, sort = table.concat, table.sort

local key = {}

--- Raises unless k can be a key; `what` begins the message.
function key.check(k, what)
  if type(k) ~= "string" then raise("%s: the key must be a string, not %s", what, type(k)) end
  local n = #k
  if n == 0 or n > KEY_MAX then
    raise("%s: the key must have 1 to %d bytes, not %d", what, KEY_MAX, n)
  end
end

--- Raises unless k fits beside its namespace; gives the namespace back.
function key.check_room(ns, k, what)
  if #ns + #k > KEY_MAX then
    raise("%s: the namespace and the key have %d bytes together, the most is %d", what, #ns + #k,
      KEY_MAX)
  end
  return ns
end

--- What the keys of a name begin with: name and colon, then the arguments. A
--- colon in the name is doubled where what follows could pass for arguments,
--- or the name "a:1" would share keys with the string arguments of "a".
function key.prefix(name)
  local safe = name:gsub("():", function(at)
    local follows = name:sub(at + 1, at + 1)
    return (follows == "" or follows:find "[:%d%-{fint]") and "::" or ":"
  end)
  return safe .. ":"
end

local write

-- Orders table keys: by type, then by value.
local function before(a, b)
  local ta, tb = type(a), type(b)
  if ta ~= tb then return ta < tb end
  if ta == "boolean" then return not a and b end
  return a < b
end

local KEY_TYPES = { string = true, number = true, boolean = true }

local function sorted_keys(value)
  local keys = {}
  for k in pairs(value) do
    if not KEY_TYPES[type(k)] then
      raise("cached: an argument has a %s as a key: %s", type(k), HINT)
    end
    keys[#keys + 1] = k
  end
  sort(keys, before)
  return keys
end

local function write_table(parts, value, above)
  if above[value] then raise("cached: an argument is a cycle: %s", HINT) end
  if getmetatable(value) ~= nil then
    raise("cached: an argument is a table with a metatable: %s", HINT)
  end
  above.depth = above.depth + 1
  if above.depth > MAX_DEPTH then
    raise("cached: an argument is nested deeper than %d tables: %s", MAX_DEPTH, HINT)
  end
  above[value] = true
  local keys = sorted_keys(value)
  parts[#parts + 1] = "{"
  for i = 1, #keys do
    write(parts, keys[i], above)
    parts[#parts + 1] = "="
    write(parts, value[keys[i]], above)
    parts[#parts + 1] = ","
  end
  parts[#parts + 1] = "}"
  above[value] = nil
  above.depth = above.depth - 1
end

-- A scalar as text, nil for anything else. Strings carry their length, so that
-- no text can pass for another value.
local function text_of(value)
  local kind = type(value)
  if kind == "string" then return #value .. ":" .. value end
  if kind == "number" then
    if value ~= value then raise("cached: an argument is NaN, which is no key: %s", HINT) end
    return value == 0 and "0" or ("%.17g"):format(value)
  end
  if kind == "boolean" or kind == "nil" then return tostring(value) end
end

function write(parts, value, above)
  local text = text_of(value)
  if text then
    parts[#parts + 1] = text
  elseif type(value) == "table" then
    write_table(parts, value, above)
  else
    raise("cached: an argument is a %s, of which no key can be made: %s", type(value), HINT)
  end
end

local function of_many(prefix, ...)
  local parts, above = { prefix }, { depth = 0 }
  for i = 1, select("#", ...) do
    if i > 1 then parts[#parts + 1] = "," end
    write(parts, (select(i, ...)), above)
  end
  return concat(parts)
end

-- The short way for one scalar, which compiles; nil if it is none. A string's
-- key is made in one go: it is the one that is made most.
local function of_one(prefix, value)
  if type(value) == "string" then return prefix .. #value .. ":" .. value end
  local text = text_of(value)
  return text and prefix .. text
end

--- The default key of a call: prefix and arguments.
function key.of_arguments(prefix, ...)
  local made = select("#", ...) == 1 and of_one(prefix, (...)) or of_many(prefix, ...)
  if #made > KEY_MAX then
    raise("cached: the name and the arguments make a key of %d bytes, the most is %d: %s", #made,
      KEY_MAX, HINT)
  end
  return made
end

return key
