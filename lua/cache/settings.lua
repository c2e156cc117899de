-- Settings for Lua: the read-only view, and the overlay of configure_caches.
-- Values live in C, as text with a source; see runtime/host/settings.h.
local host = require "moonstash.host"
local raise = require "cache.raise"

local settings = {}

local index = {} -- lower-case name -> number of the setting
do
  local i = 0
  local setting = host.setting(i)
  while setting do
    index[setting.name] = i
    i = i + 1
    setting = host.setting(i)
  end
end

--- The value of a setting: boolean, number or string; nil when unset.
function settings.get(name)
  return host.setting(index[name]).value
end

--- cache.settings: settings.default_ttl and so on.
settings.view = setmetatable({}, {
  __index = function(_, name)
    if index[name] then return settings.get(name) end
  end,
  __newindex = function(_, name)
    raise("settings.%s: settings are read-only; use cache.configure_caches", tostring(name))
  end,
  __metatable = "cache.settings",
})

-- The text of a Lua value, as the environment would spell it.
local function as_text(name, value)
  local kind = type(value)
  if kind == "string" then return value end
  if name:find "ttl$" and (value == false or value == math.huge) then return "0" end
  if kind == "boolean" then return tostring(value) end
  if kind == "number" then return ("%.17g"):format(value) end
  raise("configure_caches: %s must be a string, number or boolean, not a %s", name, kind)
end

--- Overlays settings by lower-case name. All or none; raises on a bad one.
function settings.overlay(values)
  local texts = {}
  for name, value in pairs(values) do
    if type(name) ~= "string" then
      raise("configure_caches: setting names are strings, not %s", tostring(name))
    end
    texts[name] = as_text(name, value)
  end
  local ok, err = host.configure(texts)
  if not ok then raise("configure_caches: %s", err) end
end

local SOMEBODY = { environment = true, configure_caches = true } -- else a default

--- Copies every value that somebody has set, for configure_caches(cache.settings).
function settings.snapshot()
  local values = {}
  for name, i in pairs(index) do
    local setting = host.setting(i)
    if SOMEBODY[setting.source] then values[name] = setting.value end
  end
  return values
end

return settings
