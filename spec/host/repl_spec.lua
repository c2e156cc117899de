-- The prompt: each line is a task, the others go on while a person types.
local process = require "spec.support.process"
local run = process.run

-- What lines typed into a pipe print, without the banner and the prompts.
local function typed(lines, options)
  options = options or {}
  local result = run { "-i", input = lines, env = options.env, unpack(options) }
  result.out = result.out:gsub("^moonstash [^\n]*\n", ""):gsub("\n$", "")
  return result
end

describe("the prompt", function()
  it("greets with the versions and prompts for each line", function()
    local result = run { "-i", input = "x = 1\nprint(x)\n" }
    assert.equal(0, result.code)
    assert.matches("^moonstash %d[^\n]*\n> > 1\n> \n$", result.out)
  end)

  it("prints the values of expressions, with and without =", function()
    assert.same({ code = 0, out = "> 3\n> 1\tnil\tx\n> 4\n> 5\n> ", err = "" },
      typed "1 + 2\n=1, nil, 'x'\nmath.sqrt(16)\nreturn 5\n")
  end)

  it("prints nothing for statements, calls without results and blank lines", function()
    assert.equal("> > > > > > ", typed("x = 1\nlocal y = 2\n\n  \n-- a remark\n").out)
    assert.equal("> > ", typed("(function() end)()\n").out)
  end)

  it("reads on while a chunk is not complete", function()
    local result = typed("for i = 1, 2 do\nprint(i)\nend\n=1 +\n2\nprint(\n'x'\n)\n"
      .. "s = [[a\nb]]\n=s\n")
    assert.equal("> >> >> 1\n2\n> >> 3\n> >> >> x\n> >> > a\nb\n> ", result.out)
    assert.equal("", result.err)
  end)

  it("does not take a mistake for the beginning of a chunk", function()
    local result = typed "x = '<eof>\nprint 'on'\n"
    assert.equal("> > on\n> ", result.out)
    assert.equal("stdin:1: unfinished string near ''<eof>'\n", result.err)
  end)

  it("says what is missing when the input ends inside a chunk, and ends with 0", function()
    local result = typed "for i = 1, 2 do\n"
    assert.equal(0, result.code)
    assert.matches("^stdin:2: 'end' expected [^\n]*near '<eof>'\n$", result.err)
  end)

  it("shows errors with their place, and goes on", function()
    local result = typed "error 'broken'\n= = 1\nerror {}\nprint 'on'\n"
    assert.equal(0, result.code)
    assert.equal("> > > > on\n> ", result.out)
    assert.matches("^stdin:1: broken\nstack traceback:\n\t%[C%]: in function 'error'\n"
      .. "\tstdin:1: in [^\n]*\nstdin:1: unexpected symbol near '='\n"
      .. "%(error object is a table value%)\n", result.err)
    assert.falsy(result.err:find "moonstash/")
  end)

  it("goes on after an error of print, a nil error and a cancelled line", function()
    local result = typed("setmetatable({}, { __tostring = function() error 'no text' end })\n"
      .. "error()\ntask.current():cancel() task.sleep(0)\nprint 'on'\n")
    assert.equal(0, result.code)
    assert.matches("on\n> $", result.out)
    assert.matches("no text", result.err)
    assert.matches("cancelled", result.err)
  end)

  it("has cache and task as globals", function()
    assert.same({ code = 0, out = "> > 1\n> ", err = "" },
      typed "cache.set_cached('k', 1) task.sleep(0)\ncache.get_cached 'k'\n")
  end)

  it("has them after -i with a script, in which they are not", function()
    local dir = process.directory { ["s.lua"] = "print(cache, task, ...)" }
    local result = run { "-i", "s.lua", "a", input = "=cache ~= nil, task ~= nil\n", cwd = dir }
    assert.matches("^nil\tnil\ta\nmoonstash [^\n]*\n> true\ttrue\n> \n$", result.out)
  end)

  it("keeps globals from line to line, and each line's locals to itself", function()
    assert.equal("> > 1\tnil\n> ", typed("x = 1 local y = 2\n=x, y\n").out)
  end)

  it("lets a line wait", function()
    assert.equal("> 5\n> ", typed("(function() task.sleep(0.01) return 5 end)()\n").out)
  end)

  it("lets a line read the next one", function()
    assert.equal("> > typed\n> ", typed("x = io.read()\ntyped\n=x\n").out)
  end)

  it("takes _PROMPT and _PROMPT2", function()
    assert.equal("> lua: ... 1\nlua: ", typed("_PROMPT = 'lua: ' _PROMPT2 = '... '\n=\n1\n").out)
  end)

  it("ends with 0 at the end of the input, also without a last newline", function()
    assert.same({ code = 0, out = "> ", err = "" }, typed "")
    assert.same({ code = 0, out = "> 1\n> ", err = "" }, typed "=1")
  end)

  it("ends with the code of os.exit, and runs deferred functions", function()
    local result = typed("task.spawn_detached(function() task.defer(print, 'cleaned up') "
      .. "task.sleep(20) end)\nos.exit(3)\n")
    assert.equal(3, result.code)
    assert.matches("cleaned up\n?$", result.out)
  end)

  it("ends without a prompt when the script before it fails", function()
    local result = run { "-i", "none.lua", input = "print 'on'\n" }
    assert.equal(1, result.code)
    assert.falsy(result.out:find "on")
  end)

  it("does not greet after -e", function()
    assert.equal("1\n> \n", run({ "-i", "-e", "print(1)", input = "" }).out)
  end)

  describe("while it waits for a line", function()
    local function start(...)
      local p = process.start { input = true, "-i", "-e", "io.stdout:setvbuf 'no'", ... }
      p:wait_for "> "
      return p
    end

    local function finish(p)
      p:close_input()
      local result = p:wait()
      assert.equal(0, result.code)
      return result
    end

    it("runs the tasks that earlier lines have left", function()
      local p = start()
      p:write "n = 0 task.every(0.001, function() n = n + 1 if n == 5 then print 'five' end end)\n"
      p:wait_for "five"
      p:write "=n >= 5\n"
      p:wait_for "true"
      assert.equal("", finish(p).err)
    end)

    it("runs those of the chunk before it", function()
      local p = start("-e", "task.after(0.01, print, 'later')")
      p:wait_for "later"
      finish(p)
    end)

    it("shows when one of them fails, and goes on", function()
      local p = start()
      p:write "task.after(0.01, error, 'broken')\n"
      p:wait_for("failed: broken", "err")
      p:write "=1 + 1\n"
      p:wait_for "2\n"
      finish(p)
    end)

    it("waits also in the middle of a line", function()
      local p = start()
      p:write "task.after(0.01, print, 'later')\nprint('a'"
      p:wait_for "later"
      p:write " .. 'b')\n"
      p:wait_for "ab"
      finish(p)
    end)

    it("ends of a signal, and lets deferred functions run", function()
      local p = start("-e", "task.defer(print, 'cleaned up')")
      p:kill(process.SIGINT)
      local result = p:wait()
      assert.equal(process.SIGINT, result.signal)
      assert.matches("cleaned up\n", result.out)
    end)

    it("leaves standard input as it was for whoever shares it", function()
      local p = process.start { program = "sh", "-c", process.binary()
        .. " -i -e 'task.after(0.01, os.exit)'; echo ended; cat; echo code $?", input = true }
      p:wait_for "ended" -- a cat that may not block would now fail
      p:write "the rest\n"
      p:close_input()
      assert.matches("ended\nthe rest\ncode 0\n$", p:wait().out)
    end)

    it("takes no more than its lines from standard input", function()
      local result = run { program = "sh", "-c", process.binary() .. " -i; cat",
        input = "os.exit()\nthe rest\n" }
      assert.matches("> the rest\n$", result.out)
    end)
  end)

  describe("on a terminal", function()
    local function terminal(command)
      if not process.has "script" then
        if process.required "pty" then error "MOONSTASH_REQUIRE=pty: there is no `script`" end
        pending "no `script` (util-linux) to make a pty"
      end
      return process.start { program = "script", "-qec", command, "/dev/null", input = true,
        env = { TERM = "dumb" } }
    end

    it("comes without -i, and goes on Ctrl-D", function()
      local p = terminal(process.binary())
      p:wait_for "> "
      p:write "print(6 * 7)\n"
      p:wait_for "42"
      p:write "task.after(0.01, print, 'la' .. 'ter')\n"
      p:wait_for "later"
      p:write "\4"
      local result = p:wait()
      assert.equal(0, result.code)
      assert.matches("^moonstash %d", result.out)
    end)

    it("ends of Ctrl-C", function()
      local p = terminal(process.binary() .. " -i -e 'task.defer(print, [[cleaned up]])'")
      p:wait_for "> "
      p:write "\3"
      local result = p:wait()
      assert.equal(128 + process.SIGINT, result.code)
      assert.matches("cleaned up", result.out)
    end)

    it("is not there after -e", function()
      local p = terminal(process.binary() .. " -e 'print(6 * 7)'")
      assert.equal("42\r\n", p:wait().out)
    end)
  end)
end)
