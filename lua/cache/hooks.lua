-- Plugins: functions that run before and after each operation of a cache.
-- A hook may wait. One that raises is logged and ignored. `took` is the time
-- of the operation alone. After client, key, opts and took, a post hook gets
-- the operation's results: that of get is the value or the default, an error
-- or nil, and whether it was a hit. A wrapper's look-up is a get, too (its ret
-- is the first result), and what it stores is a set (its ret: was it stored?).
-- on_evict is told later of what has left the memory, see evict.lua.
local core = require "moonstash.task"
local host = require "moonstash.host"
local errors = require "moonstash.error"
local raise = require "cache.raise"

local now = core.now
local ipairs, next, pairs, pcall, tostring, type = ipairs, next, pairs, pcall, tostring, type

local hooks = {}

local OPERATIONS = {}
for op in ([[get set add delete exists increment expire ttl multi_get multi_set multi_delete clear
  info touch raw]]):gmatch "%S+" do
  OPERATIONS["pre_" .. op], OPERATIONS["post_" .. op] = true, true
end
local EVICT = "on_evict"

--- Checks a list of plugins; raises on what is no hook.
function hooks.check(plugins, what)
  if type(plugins) ~= "table" then
    raise("%s: plugins must be a list of tables, not %s", what, type(plugins))
  end
  if #plugins == 0 and next(plugins) ~= nil then
    raise("%s: plugins must be a list of tables, not one plugin", what)
  end
  for i, plugin in ipairs(plugins) do
    if type(plugin) ~= "table" then
      raise("%s: plugins[%d] must be a table, not %s", what, i, type(plugin))
    end
    for name, hook in pairs(plugin) do
      if type(name) == "string" and name:find "^p[reost]+_" and not OPERATIONS[name] then
        raise("%s: plugins[%d]: there is no hook '%s'", what, i, name)
      end
      if (OPERATIONS[name] or name == EVICT) and type(hook) ~= "function" then
        raise("%s: plugins[%d].%s must be a function, not %s", what, i, name, type(hook))
      end
    end
  end
end

local function call(name, plugin, ...)
  local hook = plugin[name]
  if not hook then return end
  local ok, err = pcall(hook, ...)
  if not ok and not errors.is(err, "cancelled") then
    host.log(1, ("plugin %s failed: %s"):format(name, tostring(err)))
  end
end

local function after(plugins, op, client, key, opts, started, ret, ...)
  local took = now() - started
  for _, plugin in ipairs(plugins) do
    call("post_" .. op, plugin, client, key, opts, took, ret, ...)
  end
  return ret, ...
end

--- Runs body(...) between the hooks of op; gives its results back.
function hooks.run(plugins, op, client, key, opts, body, ...)
  for _, plugin in ipairs(plugins) do call("pre_" .. op, plugin, client, key, opts) end
  return after(plugins, op, client, key, opts, now(), body(...))
end

--- Does one of the plugins (a list or nil) have an on_evict?
function hooks.watch(plugins)
  for _, plugin in ipairs(plugins or {}) do
    if plugin[EVICT] then return true end
  end
  return false
end

--- Tells the plugins (a list or nil) of a value that has left.
function hooks.evicted(plugins, client, key, reason)
  for _, plugin in ipairs(plugins or {}) do call(EVICT, plugin, client, key, reason) end
end

-- ---- the two plugins that come with the cache ---------------------------------

--- Times every operation: profiling.get_total, _avg, _max, _min, _count.
function hooks.timing()
  local profiling = {}
  local plugin = { profiling = profiling }
  for name in pairs(OPERATIONS) do
    local op = name:match "^post_(.*)$"
    if op then
      plugin[name] = function(_, _, _, took)
        local count = (profiling[op .. "_count"] or 0) + 1
        local total = (profiling[op .. "_total"] or 0) + took
        profiling[op .. "_count"], profiling[op .. "_total"] = count, total
        profiling[op .. "_avg"] = total / count
        profiling[op .. "_max"] = math.max(profiling[op .. "_max"] or took, took)
        profiling[op .. "_min"] = math.min(profiling[op .. "_min"] or took, took)
      end
    end
  end
  return plugin
end

--- Counts hits: hit_miss_ratio.total, .hits, .hit_ratio.
function hooks.hit_miss_ratio()
  local ratio = { total = 0, hits = 0, hit_ratio = 0 }
  local function count(total, hits)
    ratio.total, ratio.hits = ratio.total + total, ratio.hits + hits
    if ratio.total > 0 then ratio.hit_ratio = ratio.hits / ratio.total end
  end
  return {
    hit_miss_ratio = ratio,
    post_get = function(_, _, _, _, _, _, hit) count(1, hit and 1 or 0) end,
    post_multi_get = function(_, keys, _, _, found)
      local hits = 0
      for _, key in ipairs(keys) do
        if found[key] ~= nil then hits = hits + 1 end
      end
      count(#keys, hits)
    end,
  }
end

return hooks
