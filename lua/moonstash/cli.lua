-- What the command line asks for, carried out in a task. runtime/main.c has
-- read the options; actions holds them in order, a letter and its argument
-- each ("eprint(1)", "lsocket"). The habits are luajit's.
local host = require "moonstash.host"

-- Ends the program with one line on stderr.
local function fail(code, message)
  io.stderr:write("moonstash: ", message, "\n")
  os.exit(code)
end

-- A chunk that does not compile is no error in a task: no traceback.
local function load_or_fail(chunk, err)
  return chunk or fail(1, err)
end

local function load_file(name)
  return loadfile(name ~= "-" and name or nil)
end

-- ---- cache and task without require, for one-liners --------------------------

local PRESET = { cache = true, task = true }
local given = {} -- name -> value of those that were used

local function give(globals, name)
  if not PRESET[name] then return nil end
  given[name] = require(name)
  rawset(globals, name, given[name])
  return given[name]
end

local on_use = { __index = give }

local function preset_globals()
  if getmetatable(_G) == nil then setmetatable(_G, on_use) end
  if getmetatable(_G) == on_use then return end
  for name in pairs(PRESET) do -- somebody watches _G: now instead of on use
    if rawget(_G, name) == nil then give(_G, name) end
  end
end

-- Scripts must say what they require: they may be run without -e.
local function drop_presets()
  if getmetatable(_G) == on_use then setmetatable(_G, nil) end
  for name, value in pairs(given) do
    if rawget(_G, name) == value then rawset(_G, name, nil) end
  end
end

-- ---- options --------------------------------------------------------------------

local function run_init()
  local init = not host.no_env and os.getenv "LUA_INIT"
  if not init or init == "" then return end
  if init:sub(1, 1) == "@" then
    load_or_fail(load_file(init:sub(2)))()
  else
    load_or_fail(loadstring(init, "=LUA_INIT"))()
  end
end

local function split(list)
  local items = {}
  for item in list:gmatch "[^,]+" do items[#items + 1] = item end
  return items
end

-- -j cmd, -j cmd=args: a function of jit, or a module jit.cmd.
local function jit_command(command)
  local name, args = command:match "^([^=]*)=?(.*)$"
  local start = jit[name]
  if type(start) ~= "function" then
    local found, module = pcall(require, "jit." .. name)
    start = found and type(module) == "table" and module.start
    if not start then fail(2, ("-j: '%s' is not a JIT command"):format(name)) end
  end
  start(unpack(split(args)))
end

local function jit_options(options)
  local list = split(options)
  if #list == 0 then list[1] = "3" end
  local ok, err = pcall(require("jit.opt").start, unpack(list))
  if not ok then fail(2, "-O: " .. err:gsub("^.-:%d+: ", "")) end
end

local function print_version()
  local own, luajit, libuv, hiredis = host.version()
  print(("moonstash %s (%s, libuv %s, hiredis %s)"):format(own, luajit, libuv, hiredis))
end

local run = {
  e = function(chunk)
    preset_globals()
    load_or_fail(loadstring(chunk, "=(command line)"))()
  end,
  l = function(name) loadstring("require(...)", "=(command line)")(name) end,
  j = jit_command,
  O = jit_options,
  v = print_version,
  i = function() end,
}
local QUIET = { e = true, v = true } -- after these there need not be a script

-- ---- other ways to run ------------------------------------------------------------

local function check_files(file, argv, script)
  local failed = false
  for i = script - 1, #argv do
    local chunk, err = load_file(i < script and file or argv[i])
    if not chunk then
      io.stderr:write("moonstash: ", err, "\n")
      failed = true
    end
  end
  if failed then os.exit(1) end
end

-- Compiles what jit.bcsave is to read, whose own message would be luajit's.
-- Its options are letters; the last of a word may take an argument.
local function check_input(list)
  local i = 1
  while list[i] do
    local letter = list[i]:match "^%-.*(.)$"
    if not letter or list[i] == "--" then break end
    if letter == "e" then return list[i + 1] and load_or_fail(loadstring(list[i + 1])) end
    i = i + (letter:find "[ntao]" and 2 or 1)
  end
  if list[i] == "--" then i = i + 1 end
  local chunk = list[i] and load_or_fail(load_file(list[i]))
  if list[i] == "-" then list[i] = chunk end -- stdin is read only once
end

-- -bl in one word is -b -l.
local function save_bytecode(_, argv)
  local joined = argv[1]:sub(3)
  local list = { unpack(argv, 2, #argv) }
  if joined ~= "" then table.insert(list, 1, "-" .. joined) end
  check_input(list)
  require("jit.bcsave").start(unpack(list))
end

-- As the last action these are the only one: nothing runs.
local alone = { c = check_files, b = save_bytecode }

local function run_busted(argv, script)
  drop_presets()
  require("moonstash.busted").run(unpack(argv, script, #argv))
end

-- The arg table: [0] is the script, options and the program lie below it.
local function arg_table(argv, script)
  local arg = {}
  for i = 0, #argv do arg[i - script] = argv[i] end
  return arg
end

-- The arguments come from arg, which LUA_INIT or -e may have changed.
local function run_script(name)
  drop_presets()
  load_or_fail(load_file(name))(host.values(type(arg) == "table" and arg or {}))
end

return function(actions, argv, script)
  _G.arg = arg_table(argv, script)
  local last = actions[#actions] or ""
  local only = alone[last:sub(1, 1)]
  if only then return only(last:sub(2), argv, script) end
  run_init()
  local interactive, quiet = false, false
  for _, action in ipairs(actions) do
    local kind = action:sub(1, 1)
    if kind == "B" then return run_busted(argv, script) end
    run[kind](action:sub(2))
    interactive = interactive or kind == "i"
    quiet = quiet or QUIET[kind]
  end
  local has_script = script <= #argv
  if has_script then run_script(argv[script]) end
  if interactive or (not has_script and not quiet and host.isatty(0)) then
    preset_globals()
    if not quiet then print_version() end
    return require "moonstash.repl"()
  end
  if not has_script and not quiet then run_script "-" end
end
