-- The interactive prompt: each line runs as a task of its own, and the other
-- tasks go on while a person types.
local host = require "moonstash.host"
local task = require "task"

local function read_line(prompt)
  io.write(prompt)
  io.flush()
  local state, line = host.readline()
  if state ~= 0 then error(line, 0) end
  return line
end

-- Compiles what was typed; reads on while the text is only the beginning of a
-- chunk. `=x` and plain expressions print their values.
local function read_chunk(line)
  local text = line:gsub("^=", "return ")
  while true do
    local chunk = loadstring("return " .. text, "=stdin")
    if chunk then return chunk end
    local err
    chunk, err = loadstring(text, "=stdin")
    if chunk or not err:find "<eof>" then return chunk, err end
    local more = read_line(rawget(_G, "_PROMPT2") or ">> ")
    if not more then return nil, err end
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

local function run_line(line)
  local chunk, err = read_chunk(line)
  if not chunk then return show(false, err) end
  local t = task.spawn(chunk)
  local function report(ok, ...)
    if not ok and t:status() == "failed" then
      return show(false, t:traceback() or (...))
    end
    return show(ok, ...)
  end
  return report(t:pjoin())
end

return function()
  while true do
    local line = read_line(rawget(_G, "_PROMPT") or "> ")
    if not line then break end
    if line:find "%S" then run_line(line) end
  end
  io.write "\n"
end
