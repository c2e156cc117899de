-- Raises a programming error, a string, with the position of the user's line:
-- the innermost one that is neither ours nor C's. Counting levels by hand
-- would go wrong with every tail call and every pcall(cache.get_cached, 5).
local getinfo, error = debug.getinfo, error

local function position()
  local level = 3
  local info = getinfo(level, "Sl")
  while info do
    if info.currentline > 0 and not info.source:find "^@moonstash/" then
      return ("%s:%d: "):format(info.short_src, info.currentline)
    end
    level = level + 1
    info = getinfo(level, "Sl")
  end
  return ""
end

--- raise(format, ...): never returns.
return function(format, ...)
  error(position() .. format:format(...), 0)
end
