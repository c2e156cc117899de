-- The command line: luajit's habits, and Moonstash's own options.
local process = require "spec.support.process"
local run = process.run

local SHOW_ARGUMENTS = [[
local from, list = 0, {}
while arg[from - 1] do from = from - 1 end
for i = from, #arg do list[#list + 1] = i .. "=" .. (i == from and "PROGRAM" or arg[i]) end
print(table.concat(list, " "))
print(select("#", ...), ...)
]]

describe("the command line", function()
  local dir

  setup(function()
    dir = process.directory {
      ["args.lua"] = SHOW_ARGUMENTS,
      ["shebang.lua"] = "#!/usr/bin/env moonstash\nprint 'ran'",
      ["module.lua"] = "print('loaded', ...) return { answer = 42 }",
      ["waiting.lua"] = "require 'task'.sleep(0.001) return { answer = 43 }",
      ["init.lua"] = "print 'init file'",
      ["globals.lua"] = "print(cache, task, rawget(_G, 'cache'), rawget(_G, 'task'))",
      ["good.lua"] = "print 'must not run'",
      ["bad.lua"] = "local x = = 1",
    }
  end)

  -- The same command line for us and for luajit must print the same.
  local function like_luajit(options)
    local ours = run(options)
    options.program = "luajit"
    local theirs = run(options)
    assert.equal(theirs.out, ours.out)
    assert.equal(theirs.code, ours.code)
    return ours
  end

  describe("running a script", function()
    it("passes the arguments as ... and as arg, with the options below arg[0]", function()
      local result = like_luajit { "-e", "", "args.lua", "a", "", "b c", cwd = dir }
      assert.equal("-3=PROGRAM -2=-e -1= 0=args.lua 1=a 2= 3=b c\n3\ta\t\tb c\n", result.out)
    end)

    it("passes arguments that look like options on to the script", function()
      local result = like_luajit { "args.lua", "-e", "--help", "-", "--", cwd = dir }
      assert.equal("-1=PROGRAM 0=args.lua 1=-e 2=--help 3=- 4=--\n4\t-e\t--help\t-\t--\n",
        result.out)
    end)

    it("takes more arguments than unpack does", function()
      local options = { "args.lua", cwd = dir }
      for i = 1, 9000 do options[#options + 1] = "a" .. i end
      like_luajit(options)
    end)

    it("stops reading options at --", function()
      local result = like_luajit { "--", "args.lua", "-x", cwd = dir }
      assert.equal("-2=PROGRAM -1=-- 0=args.lua 1=-x\n1\t-x\n", result.out)
    end)

    it("skips a shebang line", function()
      assert.equal("ran\n", like_luajit({ "shebang.lua", cwd = dir }).out)
    end)

    it("runs standard input when it is no terminal", function()
      local result = like_luajit { input = "print(arg[0], arg[-1] ~= nil, ...)" }
      assert.equal("nil\ttrue\n", result.out)
    end)

    it("runs standard input for -, with arguments", function()
      local result = like_luajit { "-", "a", "b", input = "print(arg[0], arg[2], ...)" }
      assert.equal("-\tb\ta\tb\n", result.out)
    end)

    it("lets a script read standard input", function()
      local result = like_luajit { "-e", "print(io.read(), io.read '*a')", input = "one\ntwo\n3" }
      assert.equal("one\ttwo\n3\n", result.out)
    end)

    it("lets a script require modules beside it, also those whose top level waits", function()
      local result = run { "-e", "print(require('waiting').answer, require('module').answer)",
        cwd = dir }
      assert.same({ code = 0, out = "loaded\tmodule\n43\t42\n", err = "" }, result)
    end)

    it("knows no cache and no task in a script that does not require them", function()
      assert.equal("nil\tnil\tnil\tnil\n", run({ "globals.lua", cwd = dir }).out)
      assert.equal("nil\tnil\n", run({ input = "print(cache, task)" }).out)
    end)

    it("knows none after an -e either", function()
      local result = run { "-e", "cache.clear_cache() task.sleep(0)", "globals.lua", cwd = dir }
      assert.same({ code = 0, out = "nil\tnil\tnil\tnil\n", err = "" }, result)
    end)
  end)

  describe("-e", function()
    it("runs chunks in their order", function()
      assert.equal("1\n2\n", like_luajit({ "-e", "print(1)", "-eprint(2)" }).out)
    end)

    it("has no script: arg[0] is nil and the options lie below it", function()
      local result = like_luajit { "-e", "print(#arg, arg[0], arg[-1], arg[-2], ...)" }
      assert.equal("0\tnil\tprint(#arg, arg[0], arg[-1], arg[-2], ...)\t-e\n", result.out)
    end)

    it("does not wait for standard input", function()
      local p = process.start { "-e", "print(1)", input = true }
      assert.equal("1\n", p:wait().out)
    end)

    it("has cache and task as globals", function()
      local result = run { "-e",
        "cache.set_cached('k', 7) task.sleep(0.001) print(cache.get_cached 'k')" }
      assert.same({ code = 0, out = "7\n", err = "" }, result)
    end)

    it("has them also where something watches over globals", function()
      local result = run { "-e", "print(cache ~= nil, task ~= nil)", env = { LUA_INIT =
        "setmetatable(_G, { __index = function(_, name) error('no global ' .. name) end })" } }
      assert.same({ code = 0, out = "true\ttrue\n", err = "" }, result)
    end)

    it("does not hide a global that is there", function()
      local result = run { "-e", "print(cache)", env = { LUA_INIT = "cache = 'mine'" } }
      assert.equal("mine\n", result.out)
    end)
  end)

  describe("-l", function()
    it("requires a module", function()
      assert.equal("loaded\tmodule\n42\n",
        like_luajit({ "-l", "module", "-e", "print(require('module').answer)", cwd = dir }).out)
      assert.equal("loaded\tmodule\n", like_luajit({ "-lmodule", cwd = dir }).out)
    end)

    it("requires one that waits at its top level", function()
      assert.same({ code = 0, out = "", err = "" }, run { "-lwaiting", cwd = dir })
    end)

    it("tells where it has looked when there is none", function()
      local result = run { "-lnowhere", "-e", "print 'on'" }
      assert.equal(1, result.code)
      assert.equal("", result.out)
      assert.matches("^moonstash: %(command line%):1: module 'nowhere' not found:\n", result.err)
      assert.matches("no file './nowhere.lua'", result.err, 1, true)
    end)
  end)

  describe("the environment", function()
    it("runs LUA_INIT first, a chunk or a @file", function()
      assert.equal("init\n1\n",
        like_luajit({ "-e", "print(1)", env = { LUA_INIT = "print 'init'" } }).out)
      assert.equal("init file\n1\n",
        like_luajit({ "-e", "print(1)", cwd = dir, env = { LUA_INIT = "@init.lua" } }).out)
    end)

    it("lets LUA_INIT wait", function()
      local result = run { "-e", "print(1)", env = { LUA_INIT = "require 'task'.sleep(0)" } }
      assert.same({ code = 0, out = "1\n", err = "" }, result)
    end)

    it("stops at a mistake in LUA_INIT", function()
      local result = run { "-e", "print(1)", env = { LUA_INIT = "x = = 1" } }
      assert.same({ code = 1, out = "",
        err = "moonstash: LUA_INIT:1: unexpected symbol near '='\n" }, result)
      result = run { "-e", "print(1)", env = { LUA_INIT = "@/no/where.lua" } }
      assert.same({ code = 1, out = "",
        err = "moonstash: cannot open /no/where.lua: No such file or directory\n" }, result)
    end)

    it("puts the default path where LUA_PATH and LUA_CPATH say ;;", function()
      like_luajit { "-e", "print(package.path)", env = { LUA_PATH = "/x/?.lua;;" } }
      like_luajit { "-e", "print(package.path)", env = { LUA_PATH = ";;/x/?.lua" } }
      like_luajit { "-e", "print(package.cpath)", env = { LUA_CPATH = "/x/?.so;;" } }
      assert.equal("/x/?.lua\n",
        like_luajit({ "-e", "print(package.path)", env = { LUA_PATH = "/x/?.lua" } }).out)
    end)

    it("reads none of it after -E", function()
      local env = { LUA_INIT = "print 'init'", LUA_PATH = "/x/?.lua", LUA_CPATH = "/x/?.so",
        CACHE_ENABLED = "maybe", CACHE_DEFAULT_TTL = "1", CACHE_REDIS_HOST = "somewhere" }
      like_luajit { "-E", "-e", "print(package.path, package.cpath)", env = env }
      assert.same({ code = 0, out = "300\n", err = "" },
        run { "-E", "-e", "print(cache.settings.default_ttl)", env = env })
    end)
  end)

  describe("-j and -O", function()
    it("switch the JIT off", function()
      assert.matches("^false", like_luajit({ "-joff", "-e", "print(jit.status())" }).out)
      assert.matches("^false", like_luajit({ "-j", "off", "-e", "print(jit.status())" }).out)
    end)

    it("work as luajit's with levels, flags and parameters", function()
      for _, option in ipairs { "-O", "-O0", "-O1", "-O3", "-O3,-fold", "-Ohotloop=2" } do
        like_luajit { option, "-e", "print(jit.status())" }
      end
    end)

    it("list traces and dump them", function()
      local loop = "for i = 1, 1000 do end"
      assert.matches("%[TRACE   1 %(command line%):1 loop%]", run({ "-jv", "-e", loop }).err)
      assert.matches("TRACE 1 start.*FORL", run({ "-jdump=b", "-e", loop }).out)
      run { "-jdump=b,dump.txt", "-e", loop, cwd = dir }
      assert.matches("TRACE 1 start.*FORL", io.open(dir .. "/dump.txt"):read "*a")
    end)

    it("show a mistake in one line", function()
      assert.same({ code = 2, out = "", err = "moonstash: -j: 'nonsense' is not a JIT command\n" },
        run { "-jnonsense", "-e", "print(1)" })
      assert.same({ code = 2, out = "", err = "moonstash: -j: 'vmdef' is not a JIT command\n" },
        run { "-jvmdef", "-e", "print(1)" })
      assert.same({ code = 2, out = "",
        err = "moonstash: -O: unknown or malformed optimization flag 'nonsense'\n" },
        run { "-Ononsense", "-e", "print(1)" })
    end)
  end)

  describe("-b", function()
    it("saves bytecode that runs as a script", function()
      assert.same({ code = 0, out = "", err = "" }, run { "-b", "args.lua", "args.raw", cwd = dir })
      assert.equal("-1=PROGRAM 0=args.raw 1=x\n1\tx\n",
        like_luajit({ "args.raw", "x", cwd = dir }).out)
    end)

    it("lists bytecode", function()
      local result = like_luajit { "-bl", "-e", "local x = 1" }
      assert.matches("BYTECODE", result.out)
      like_luajit { "-b", "-l", "-e", "local x = 1" }
      like_luajit { "-bg", "-l", "module.lua", cwd = dir }
    end)

    it("fails on a file that does not compile", function()
      local result = run { "-b", "bad.lua", "bad.raw", cwd = dir }
      assert.equal(1, result.code)
      assert.matches("bad.lua:1: unexpected symbol near '='", result.err, 1, true)
      for _, arguments in ipairs { { "-bl", "bad.lua" }, { "-b", "-l", "-", input = "x = = 1" },
        { "-bn", "name", "-t", "c", "bad.lua", "-" }, { "-bl", "-e", "x = = 1" },
        { "-bl", "nowhere.lua" } } do
        arguments.cwd = dir
        result = run(arguments)
        assert.equal(1, result.code)
        assert.equal("", result.out)
        assert.matches("^moonstash: [^\n]+\n$", result.err)
      end
    end)

    it("reads stdin", function()
      assert.matches("BYTECODE", run { "-bl", "-", input = "local x = 1" }.out)
    end)
  end)

  describe("-v and --version", function()
    it("print the versions of Moonstash, LuaJIT, libuv and hiredis", function()
      for _, option in ipairs { "-v", "--version" } do
        local result = run { option }
        assert.equal(0, result.code)
        assert.matches("^moonstash %d+%.%d+%.%d+ %(LuaJIT 2%.1%S*, libuv 1%.%d+%.%d+, "
          .. "hiredis %d+%.%d+%.%d+%)\n$", result.out)
      end
    end)

    it("go on to what else is asked for", function()
      assert.matches("^moonstash [^\n]*\n1\n$", run({ "-ve", "print(1)" }).out)
      assert.matches("^moonstash [^\n]*\nran\n$", run({ "-v", "shebang.lua", cwd = dir }).out)
    end)
  end)

  describe("--help", function()
    it("names every option and the exit codes", function()
      local result = run { "--help" }
      assert.equal(0, result.code)
      assert.equal("", result.err)
      for _, option in ipairs { "-e", "-l", "-i", "-v", "-E", "-j", "-O", "-b", "--busted",
        "--clear-cache", "--test-timeout", "--check", "--env", "--version", "--help",
        "Exit codes" } do
        assert.truthy(result.out:find(option, 1, true), option)
      end
      for line in result.out:gmatch "[^\n]+" do assert.is_true(#line <= 80, line) end
    end)
  end)

  describe("--check", function()
    it("is silent about good files, and runs nothing", function()
      local result = run { "-e", "print(1)", "--check", "good.lua", "args.lua", cwd = dir,
        env = { LUA_INIT = "print 'init'" } }
      assert.same({ code = 0, out = "", err = "" }, result)
    end)

    it("shows each bad one in one line", function()
      local result = run { "--check", "good.lua", "bad.lua", "none.lua", cwd = dir }
      assert.same({ code = 1, out = "", err = "moonstash: bad.lua:1: unexpected symbol near '='\n"
        .. "moonstash: cannot open none.lua: No such file or directory\n" }, result)
    end)

    it("reads standard input for -", function()
      assert.same({ code = 0, out = "", err = "" }, run { "--check", "-", input = "print(1)" })
      assert.same({ code = 1, out = "", err = "moonstash: stdin:1: '=' expected near '<eof>'\n" },
        run { "--check", "-", input = "print" })
    end)
  end)

  describe("a mistake in the arguments", function()
    for name, options in pairs {
      ["an unknown letter"] = { "-x" },
      ["an unknown letter among known ones"] = { "-vx" },
      ["an unknown word"] = { "--nonsense" },
      ["-e without a chunk"] = { "-e" },
      ["-l without a name"] = { "-l" },
      ["-j without a command"] = { "-j" },
      ["--check without a file"] = { "--check" },
      ["--env with a value"] = { "--env=1" },
      ["-b that is not the first option"] = { "-E", "-b", "args.lua", "x" },
      ["--busted with a bad time"] = { "--busted", "--test-timeout=soon" },
    } do
      it("is shown in one line on stderr, with exit code 2: " .. name, function()
        local result = run(options)
        assert.equal(2, result.code)
        assert.equal("", result.out)
        assert.matches("^[^\n]+\n$", result.err)
      end)
    end
  end)

  it("runs without standard input, output or error", function()
    for _, closed in ipairs { "<&-", ">&-", "2>&-", "<&- >&- 2>&-" } do
      local command = ("exec '%s' -e 'print(io.read()) io.stderr:write(1) task.sleep(0)' %s")
        :format(process.binary(), closed)
      assert.equal(0, run({ program = "sh", "-c", command }).code, closed)
    end
  end)
end)
