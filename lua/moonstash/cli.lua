-- What the command line asks for, carried out in a task. runtime/main.c has
-- read the options; actions holds them in order, a letter and its argument
-- each ("eprint(1)", "lsocket"). The habits are luajit's.
local host = require "moonstash.host"

-- A chunk that does not compile ends the program: one line, no traceback.
local function load_or_fail(chunk, err)
  if chunk then return chunk end
  io.stderr:write("moonstash: ", err, "\n")
  os.exit(1)
end

local function load_file(name)
  return load_or_fail(loadfile(name ~= "-" and name or nil))
end

-- `cache` and `task` without require, for one-liners: loaded when first used.
local function preset_globals()
  local env = getmetatable(_G) or {}
  local index = env.__index
  local preset = { cache = true, task = true }
  env.__index = function(t, name)
    if preset[name] then
      local value = require(name)
      rawset(t, name, value)
      return value
    end
    if type(index) == "function" then return index(t, name) end
    return index and index[name]
  end
  setmetatable(_G, env)
end

local function run_init()
  local init = not host.no_env and os.getenv "LUA_INIT"
  if not init or init == "" then return end
  if init:sub(1, 1) == "@" then
    dofile(init:sub(2))
  else
    load_or_fail(loadstring(init, "=LUA_INIT"))()
  end
end

-- -j cmd, -j cmd=args: a function of jit, or a module jit.cmd.
local function jit_command(command)
  local name, args = command:match "^([^=]*)=?(.*)$"
  local list = {}
  for arg in args:gmatch "[^,]+" do list[#list + 1] = arg end
  local fn = jit[name]
  if type(fn) == "function" then
    fn(unpack(list))
  else
    require("jit." .. name).start(unpack(list))
  end
end

local function jit_options(options)
  local list = {}
  for option in options:gmatch "[^,]+" do list[#list + 1] = option end
  if #list == 0 then list[1] = "3" end
  require("jit.opt").start(unpack(list))
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
  l = function(name) require(name) end,
  j = jit_command,
  O = jit_options,
  v = print_version,
  c = load_file, -- --check
}

-- The arg table: [0] is the script, options and the program lie below it.
local function arg_table(argv, script)
  local arg = {}
  for i = 0, #argv do arg[i - script] = argv[i] end
  return arg
end

local function run_script(argv, script)
  load_file(argv[script])(unpack(argv, script + 1, #argv))
end

return function(actions, argv, script)
  _G.arg = arg_table(argv, script <= #argv and script or 0)
  run_init()
  local interactive, quiet = false, false
  for _, action in ipairs(actions) do
    local kind, value = action:sub(1, 1), action:sub(2)
    if kind == "i" then interactive = true
    elseif kind == "b" then return require("jit.bcsave").start(unpack(argv, 2, #argv))
    elseif kind == "B" then return require("moonstash.busted").run(unpack(argv, script, #argv))
    else run[kind](value) end
    quiet = quiet or kind ~= "l" and kind ~= "j" and kind ~= "O" and kind ~= "i"
  end
  if script <= #argv then run_script(argv, script) end
  if interactive or (script > #argv and not quiet and host.isatty(0)) then
    preset_globals()
    if not quiet then print_version() end
    return require "moonstash.repl"()
  end
  if script > #argv and not quiet then
    load_file("-")()
  end
end
