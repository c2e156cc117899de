-- Error objects: what can go wrong at run time, as a table with a code to test
-- and a message to read. tostring(err) and .. give the message.
local core = require "moonstash.task"

local errors = {}

local mt = {
  __name = "moonstash.error",
  __tostring = function(err) return err.message end,
  __concat = function(a, b) return tostring(a) .. tostring(b) end,
}

--- Makes an error object.
function errors.new(code, message)
  return setmetatable({ code = code, message = message }, mt)
end

--- Is it an error object (with that code)?
function errors.is(err, code)
  return getmetatable(err) == mt and (code == nil or err.code == code)
end

--- An xpcall handler: keeps the stack of an error that will be raised again.
function errors.note(err)
  if not errors.is(err, "cancelled") then
    local _, text = pcall(tostring, err) -- __tostring may raise, or give no string
    core.note_error(err, debug.traceback(tostring(text), 2))
  end
  return err
end

-- The deferred functions of a task, newest first: all run, the first error
-- goes on.
local function run_defers(list)
  local failed, first
  for i = #list, 1, -1 do
    local ok, err = xpcall(list[i], failed and tostring or errors.note)
    if not ok and not failed then failed, first = true, err end
  end
  if failed then error(first, 0) end
end

core.configure { error = mt, defers = run_defers }

return errors
