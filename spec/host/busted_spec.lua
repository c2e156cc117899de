-- moonstash --busted, and plain busted, in a project of a user.
local process = require "spec.support.process"

-- Runs --busted on files in a fresh project; ... are its arguments.
local function busted(files, ...)
  return process.run { cwd = process.directory(files), "--busted", ... }
end

-- The same with one spec file, whose text is the body of a describe.
local function spec(body, ...)
  return busted({ ["spec/a_spec.lua"] = "local task = require 'task' describe('a', function()\n"
    .. body .. "\nend)\n" }, ...)
end

local function last_line(result)
  return result.out:match "([^\n]*)\n$"
end

local FINE = { ["spec/a_spec.lua"] = "it('is fine', function() end)" }

describe("moonstash --busted", function()
  describe("without any set-up", function()
    it("runs spec/ with the installed busted", function()
      local result = busted { ["spec/a_spec.lua"] = "it('x', function() assert.truthy(jit) end)",
        ["spec/deep/b_spec.lua"] = "it('y', function() assert.equal('moonstash', _G.name) end)",
        ["name.lua"] = "_G.name = 'moonstash'", ["spec/c_spec.lua"] = "require 'name'" }
      assert.equal(1, result.code) -- b_spec: files do not see each other's globals
      assert.equal("1 successes / 1 failures / 0 errors / 0 pending", last_line(result))
    end)

    it("ends with 0 when all is well", function()
      local result = busted(FINE)
      assert.equal("", result.err)
      assert.equal(0, result.code)
      assert.equal("1 successes / 0 failures / 0 errors / 0 pending", last_line(result))
    end)

    it("passes busted's own arguments on", function()
      local files = { ["tests/x.lua"] = "it('one', function() end) it('two', function() end)" }
      local result = busted(files, "--pattern=x", "--filter", "t.o", "-v", "tests")
      assert.equal("1 successes / 0 failures / 0 errors / 0 pending", last_line(result))
      result = busted(files, "-o", "TAP", "--pattern=x", "tests")
      assert.equal("ok 1 - one\nok 2 - two\n1..2\n", result.out)
      assert.matches("^2%.", busted(files, "--version").out)
      assert.matches("%-%-filter", busted(files, "--help").err)
    end)

    it("heeds the options before it", function()
      local result = process.run { "-joff", "-e", "answer = 42 task.sleep(0)", "--busted",
        cwd = process.directory { ["spec/a_spec.lua"] =
          "it('x', function() print((jit.status()), answer, rawget(_G, 'task')) end)" } }
      assert.matches("^false\t", result.out)
      assert.matches("\t42\tnil\n", result.out)
    end)

    it("shows a mistake in busted's arguments", function()
      local result = busted(FINE, "--nonsense")
      assert.equal(1, result.code)
      assert.matches("^busted: error: [^\n]*%-%-nonsense[^\n]*\n$", result.err)
    end)

    it("fails without spec files, and with one that does not compile", function()
      assert.equal(1, busted({}).code)
      local result = busted { ["spec/a_spec.lua"] = "x = = 1" }
      assert.equal(1, result.code)
      assert.equal("0 successes / 0 failures / 1 errors / 0 pending", last_line(result))
    end)

    it("says what to install when there is no busted", function()
      local result = process.run { "--busted", env = { LUA_PATH = "/nowhere/?.lua" } }
      assert.same({ code = 1, out = "",
        err = "moonstash: busted is not installed (Debian: apt-get install lua-busted)\n" }, result)
    end)

    it("shows what is wrong when busted is there but cannot be loaded", function()
      local dir = process.directory { ["busted/runner.lua"] = "require 'something.it.needs'" }
      local result = process.run { "--busted", env = { LUA_PATH = dir .. "/?.lua" } }
      assert.equal(1, result.code)
      assert.matches("module 'something.it.needs' not found", result.err, 1, true)
    end)
  end)

  describe("a test", function()
    it("may wait, as may hooks, finally, and the top level of a module", function()
      local result = busted {
        ["slow.lua"] = "require 'task'.sleep(0.001) return 5",
        ["spec/a_spec.lua"] = [[
          local task = require "task"
          describe("a", function()
            local log = {}
            local function note(what)
              return function() task.sleep(0.001) log[#log + 1] = what end
            end
            setup(note "setup")
            before_each(note "before")
            after_each(note "after")
            it("first", function()
              finally(note "finally")
              assert.equal(5, require "slow")
              note "test" ()
            end)
            it("second", function()
              assert.equal("setup before test finally after before", table.concat(log, " "))
            end)
          end)]] }
      assert.equal("2 successes / 0 failures / 0 errors / 0 pending", last_line(result))
    end)

    it("shows failures and errors with their place in the spec, after a wait too", function()
      local result = spec [[
        it("fails", function() task.sleep(0) assert.equal(1, 2) end)
        it("breaks", function() task.sleep(0) error "broken" end)
        it("breaks in a task", function() task.spawn(function()
          error "lost"
        end):join() end)
        it("is pending", function() task.sleep(0) pending "later" end)]]
      assert.equal(1, result.code)
      assert.matches("spec/a_spec.lua:2: Expected objects to be equal", result.out)
      assert.matches("spec/a_spec.lua:3: broken", result.out)
      assert.matches("spec/a_spec.lua:5: lost", result.out)
      assert.matches("spec/a_spec.lua:7: later", result.out)
      assert.equal("0 successes / 1 failures / 2 errors / 1 pending", last_line(result))
    end)

    it("fails when it takes too long", function()
      local result = spec([[
        it("is quick", function() task.sleep(0.001) end)
        it("hangs", function() task.sleep(20) end)
        it("swallows it", function() pcall(task.sleep, 20) end)
        it("is quick again", function() task.sleep(0.001) end)]], "--test-timeout=0.1")
      assert.equal(1, result.code)
      assert.matches("\nspec/a_spec.lua:3: the test took longer than 0.1 s\n", result.out, 1, true)
      assert.matches("\nspec/a_spec.lua:4: the test took longer than 0.1 s\n", result.out, 1, true)
      assert.equal("2 successes / 0 failures / 2 errors / 0 pending", last_line(result))
    end)

    it("fails when its hooks or its finally take too long", function()
      local result = spec([[
        describe("b", function()
          before_each(function() task.sleep(20) end)
          it("never runs", function() end)
        end)
        describe("c", function()
          after_each(function() task.sleep(20) end)
          it("runs", function() end)
        end)
        it("cleans up", function() finally(function() task.sleep(20) end) end)]],
        "--test-timeout=0.1")
      assert.matches("a_spec.lua:3: the before_each took longer than 0.1 s", result.out, 1, true)
      assert.matches("a_spec.lua:7: the after_each took longer than 0.1 s", result.out, 1, true)
      assert.matches("a_spec.lua:10: the test's finally took longer than", result.out, 1, true)
    end)

    it("fails when it leaves tasks alive, which end then", function()
      local result = spec [[
        it("leaves two", function()
          task.spawn(function()
            task.defer(print, "ended")
            task.sleep(20)
          end)
          task.sleep(0)
          task.spawn(print, "never"):name "second"
        end)
        it("waits for them", function() task.spawn(task.sleep, 0.001):join() task.sleep(0) end)]]
      assert.equal(1, result.code)
      local message = result.out:match "\n(spec/a_spec.lua:2: the test left tasks alive: [^\n]*)\n"
      assert.truthy(message, result.out)
      assert.matches("task %d+ %(waiting at spec/a_spec.lua:5%)", message)
      assert.matches("task %d+ %(second%) %(not started%)", message)
      assert.matches("ended\n", result.out)
      assert.falsy(result.out:find "never")
      assert.equal("1 successes / 0 failures / 1 errors / 0 pending", last_line(result))
    end)

    it("fails when it leaves detached tasks alive, which end before the next one", function()
      local result = spec [[
        local runs = 0
        it("leaves two", function()
          task.spawn_detached(function()
            task.defer(function() task.spawn_detached(print, "never"):name "heir" end)
            while true do runs = runs + 1 task.sleep(0.001) end
          end)
          task.spawn(task.sleep, 20):detach()
          task.sleep(0.003)
        end)
        it("sees none of them", function()
          local seen = runs
          task.sleep(0.02)
          assert.equal(seen, runs)
        end)
        it("waits for its own", function() task.spawn_detached(task.sleep, 0.001):join() end)]]
      local message = result.out:match
        "\n(spec/a_spec.lua:3: the test left tasks alive: [^\n]*)\n"
      assert.truthy(message, result.out)
      assert.matches("detached task %d+ %(%a+ at spec/a_spec.lua:6%)", message)
      assert.matches(", detached task %d+ ", message)
      assert.falsy(result.out:find "never")
      assert.equal("", result.err)
      assert.equal("2 successes / 0 failures / 1 errors / 0 pending", last_line(result))
    end)

    it("does not wait for ever for a detached task that refuses to end", function()
      local result = spec([[
        it("leaves one", function()
          task.spawn_detached(function() task.shield(task.sleep, 0.5) end)
          task.sleep(0)
        end)
        it("is fine", function() task.sleep(0.001) end)
        it("ends", function() task.sleep(0.001) end)]], "--test-timeout=0.1")
      assert.matches("spec/a_spec.lua:2: the test left tasks alive: detached ", result.out, 1, true)
      assert.equal("2 successes / 0 failures / 1 errors / 0 pending", last_line(result))
    end)

    it("may leave alone the detached tasks of a setup", function()
      local result = spec [[
        local t
        setup(function() t = task.spawn_detached(task.sleep, 20) end)
        teardown(function() t:cancel() end)
        it("is fine", function() task.sleep(0.001) end)
        it("is fine, too", function() assert.equal("waiting", t:status()) end)]]
      assert.equal("2 successes / 0 failures / 0 errors / 0 pending", last_line(result))
    end)

    it("may end its tasks in finally or after_each", function()
      local result = spec [[
        local t
        after_each(function() if t then t:cancel() t:pjoin() t = nil end end)
        it("in finally", function()
          local mine = task.spawn(task.sleep, 20)
          finally(function() mine:cancel() mine:pjoin() end)
        end)
        describe("b", function()
          before_each(function() t = task.spawn(task.sleep, 20) end)
          it("in after_each", function() assert.equal("waiting", t:status()) end)
        end)]]
      assert.equal("2 successes / 0 failures / 0 errors / 0 pending", last_line(result))
    end)

    it("is told once when it has failed and left tasks alive", function()
      local result = spec [[
        it("does both", function() task.spawn(task.sleep, 20) assert.equal(1, 2) end)
        it("is fine", function() task.sleep(0.001) end)]]
      assert.falsy(result.out:find "left tasks alive")
      assert.equal("1 successes / 1 failures / 0 errors / 0 pending", last_line(result))
    end)

    it("fails with the error of a task that nobody joins; the next one is not touched", function()
      local result = spec [[
        it("breaks", function()
          task.spawn(function() error "lost" end)
          task.sleep(0.001)
        end)
        it("swallows it", function()
          task.spawn(function() error "swallowed" end)
          pcall(task.sleep, 0.001)
        end)
        it("is fine", function() task.sleep(0.001) end)]]
      assert.matches("spec/a_spec.lua:3: lost", result.out, 1, true)
      assert.matches("spec/a_spec.lua:7: swallowed", result.out, 1, true)
      assert.equal("1 successes / 0 failures / 2 errors / 0 pending", last_line(result))
    end)

    it("fails with the error of a task of its before_each; the next one is not touched", function()
      local result = spec [[
        describe("b", function()
          before_each(function() task.spawn(function() task.sleep(0.001) error "lost" end) end)
          it("waits", function() task.sleep(0.1) end)
        end)
        it("is fine", function() task.sleep(0.01) end)]]
      assert.matches("spec/a_spec.lua:3: lost", result.out, 1, true)
      assert.matches("^1 successes / 0 failures", last_line(result))
    end)

    it("may run in any order, repeatedly, and stop at the first failure", function()
      local body = [[
        it("one", function() task.sleep(0) end)
        it("two", function() assert.equal(1, 2) end)
        it("three", function() task.sleep(0) end)]]
      assert.equal("2 successes / 1 failures / 0 errors / 0 pending",
        last_line(spec(body, "--shuffle", "--repeat=3")))
      assert.equal("1 successes / 1 failures / 0 errors / 0 pending",
        last_line(spec(body, "--no-keep-going")))
    end)
  end)

  it("empties memory caches between tests with --clear-cache, before their before_each", function()
    local body = [[
      local cache = require "cache"
      before_each(function() cache.set_cached("hook", 1) end)
      it("one", function()
        cache.set_cached("k", 1)
        cache.set_cached("k", 1, { alias = "persistent" })
      end)
      it("two", function()
        assert.equal(1, cache.get_cached "hook")
        print(cache.get_cached "k", cache.get_cached("k", { alias = "persistent" }))
      end)]]
    assert.matches("nil\tnil\n", spec(body, "--clear-cache").out)
    assert.matches("1\t1\n", spec(body).out)
  end)

  it("has the summary as its last line, below the texts of failures", function()
    local result = spec "it('fails', function() print 'output' assert.equal(1, 2) end)"
    assert.matches("Failure %-> .*\n0 successes / 1 failures / 0 errors / 0 pending\n$", result.out)
    assert.equal("", result.err)
  end)

  it("stops at a signal, and says which test it was", function()
    local p = process.start { "--busted", cwd = process.directory { ["spec/a_spec.lua"] = [[
      local task = require "task"
      it("one", function() io.stderr:write "ready" task.sleep(20) end)
      it("two", function() io.stderr:write "never" end)]] } }
    p:wait_for("ready", "err")
    p:kill(process.SIGINT)
    local result = p:wait()
    assert.equal(process.SIGINT, result.signal)
    assert.equal("ready", result.err)
    assert.matches("interrupted by signal 2", result.out)
    assert.equal("0 successes / 0 failures / 1 errors / 0 pending", last_line(result))
  end)

  it("ends with the code of os.exit in a test", function()
    local result = spec [[
      it("exits", function() os.exit(7) end)
      it("never runs", function() print "never" end)]]
    assert.equal(7, result.code)
    assert.falsy(result.out:find "never\n")
  end)

  describe("with a .busted", function()
    it("does not start the interpreter that it names", function()
      local result = busted { [".busted"] = "return { _all = { lua = 'false', verbose = true } }",
        ["spec/a_spec.lua"] = "it('x', function() require 'task'.sleep(0) end)" }
      assert.equal("1 successes / 0 failures / 0 errors / 0 pending", last_line(result))
    end)

    it("loads its helper, in which --test-timeout does not give way", function()
      local files = {
        [".busted"] = "return { _all = { lua = 'nowhere/moonstash', helper = 'spec/helper.lua' } }",
        ["spec/helper.lua"] = "_G.helped = 'yes' "
          .. "require('moonstash.busted').guard(require 'busted', { timeout = 0.2 })",
        ["spec/a_spec.lua"] = [[
          it("x", function() assert.equal("yes", helped) end)
          it("y", function() require "task".sleep(20) end)]],
      }
      assert.matches("took longer than 0.2 s", busted(files).out, 1, true)
      assert.matches("took longer than 0.1 s", busted(files, "--test-timeout=0.1").out, 1, true)
    end)

    it("keeps the output handler that it names", function()
      local result = busted { [".busted"] = "return { _all = { output = 'TAP' } }",
        ["spec/a_spec.lua"] = "it('x', function() end)" }
      assert.equal("ok 1 - x\n1..1\n", result.out)
    end)
  end)
end)

describe("busted", function()
  it("runs inside Moonstash when .busted names it, with the same summary and limits", function()
    local config = ("return { _all = { lua = %q, output = 'moonstash.report' } }")
      :format(process.binary())
    local result = process.run { program = "busted", cwd = process.directory {
      [".busted"] = config,
      ["spec/a_spec.lua"] = [[
        local task = require "task"
        it("waits", function() task.sleep(0.001) end)
        it("leaves a task", function() task.spawn(task.sleep, 20) end)]],
    } }
    assert.equal("", result.err)
    assert.equal(1, result.code)
    assert.matches("spec/a_spec.lua:3: the test left tasks alive", result.out, 1, true)
    assert.equal("1 successes / 0 failures / 1 errors / 0 pending", last_line(result))
  end)
end)

describe("examples/busted", function()
  local path = process.binary():match "^(.*)/" .. ":" .. os.getenv "PATH"

  it("runs with moonstash --busted", function()
    local result = process.run { "--busted", "--clear-cache", cwd = "examples/busted" }
    assert.equal("3 successes / 0 failures / 0 errors / 0 pending", last_line(result))
    assert.equal(0, result.code)
  end)

  it("runs with plain busted", function()
    local result = process.run { program = "busted", cwd = "examples/busted",
      env = { PATH = path } }
    assert.equal("3 successes / 0 failures / 0 errors / 0 pending", last_line(result))
    assert.equal(0, result.code)
  end)
end)
