-- The interactive prompt: each line runs as a task of its own, and the other
-- tasks go on while a person types.
local core = require "moonstash.task"
local host = require "moonstash.host"
local task = require "task"

local function read_line(prompt)
  io.write(prompt)
  io.flush()
  local state, line = host.readline()
  if state ~= 0 then error(line, 0) end
  return line
end

-- Compiles a text: as expressions, or else as statements. The expressions come
-- after a nil, for `return f()` would be a tail call, whose errors name no line.
-- Gives chunk and how many of its results to skip, or nil, message.
local function compile(text, only_expressions)
  local chunk, err = loadstring("return nil, " .. text, "=stdin")
  if chunk then return chunk, 1 end
  if only_expressions then return nil, err end
  chunk, err = loadstring(text, "=stdin")
  return chunk, chunk and 0 or err
end

-- Compiles what was typed; reads on while the text is only the beginning of a
-- chunk. `=x` and plain expressions print their values.
local function read_chunk(line)
  local text, equals = line:gsub("^=", "")
  while true do
    local chunk, skip_or_err = compile(text, equals == 1)
    if chunk or not skip_or_err:find "near '<eof>'$" then return chunk, skip_or_err end
    local more = read_line(rawget(_G, "_PROMPT2") or ">> ")
    if not more then return nil, skip_or_err end
    text = text .. more
  end
end

local function show(ok, ...)
  if not ok then
    local err = ...
    io.stderr:write(tostring(err), "\n")
  elseif select("#", ...) > 0 then
    local printed, err = pcall(print, ...)
    if not printed then io.stderr:write(tostring(err), "\n") end
  end
end

-- Tasks that are still alive go on in the background: nobody waits for them,
-- and when one fails, the host says so.
local function release(...)
  for _, t in ipairs(core.children(core.current())) do core.detach(t) end
  return ...
end

local function run_line(line)
  local chunk, skip_or_err = read_chunk(line)
  if not chunk then return show(false, skip_or_err) end
  local t = task.spawn(function() return release(chunk()) end)
  local function report(ok, ...)
    if ok then return show(true, select(skip_or_err + 1, ...)) end
    return show(false, t:status() == "failed" and t:traceback() or (...))
  end
  return report(t:pjoin())
end

return function()
  release()
  while true do
    local line = read_line(rawget(_G, "_PROMPT") or "> ")
    if not line then break end
    if line:find "%S" then run_line(line) end
  end
  io.write "\n"
end
