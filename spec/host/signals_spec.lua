-- SIGINT and SIGTERM: the first asks, the second ends.
local bit = require "bit"
local process = require "spec.support.process"
local task = require "task"
local SIGINT, SIGTERM = process.SIGINT, process.SIGTERM

-- Starts a chunk and waits until it has printed "ready".
local function start(chunk)
  local p = process.start { "-e", "io.stdout:setvbuf 'no' " .. chunk }
  p:wait_for "ready\n"
  return p
end

-- Sends a signal and waits until its handler has run, which takes itself away:
-- two signals at the same instant would count as one.
local function send_first(p, signal)
  p:kill(signal)
  repeat
    local file = io.open(("/proc/%d/status"):format(p.pid))
    local caught = tonumber(file:read("*a"):match "SigCgt:%s*(%x+)":sub(-8), 16)
    file:close()
    if bit.band(caught, bit.lshift(1, signal - 1)) == 0 then return end
    task.sleep(0.001)
  until false
end

local LOOP = "print 'ready' while true do end"

describe("a signal", function()
  for name, signal in pairs { SIGINT = SIGINT, SIGTERM = SIGTERM } do
    describe(name, function()
      it("ends a script that waits; a parent sees that it died of the signal", function()
        local p = start "print 'ready' task.sleep(20) print 'never'"
        p:kill(signal)
        assert.same({ signal = signal, out = "ready\n", err = "" }, p:wait())
      end)

      it("lets deferred functions run, and wait", function()
        local p = start [[
          task.defer(function() task.sleep(0.01) print "cleaned up" end)
          task.spawn(function()
            task.defer(print, "child cleaned up")
            task.sleep(20)
          end)
          task.spawn_detached(function()
            task.defer(print, "detached cleaned up")
            task.sleep(20)
          end)
          task.sleep(0)
          print "ready"
          task.sleep(20)
        ]]
        p:kill(signal)
        local result = p:wait()
        assert.equal(signal, result.signal)
        assert.equal("", result.err)
        assert.equal("ready\nchild cleaned up\ncleaned up\ndetached cleaned up\n", result.out)
      end)

      it("ends a script that only a task.every keeps running", function()
        local p = start [[
          local n = 0
          task.every(0.001, function()
            n = n + 1
            if n == 3 then print "ready" end
          end)]]
        p:kill(signal)
        assert.same({ signal = signal, out = "ready\n", err = "" }, p:wait())
      end)

      it("ends a loop that never waits when it comes twice", function()
        local p = start(LOOP)
        send_first(p, signal)
        p:kill(signal)
        assert.same({ signal = signal, out = "ready\n", err = "" }, p:wait())
      end)
    end)
  end

  it("is an error that a script can catch to say goodbye", function()
    local p = start [[
      print "ready"
      local ok, err = pcall(task.sleep, 20)
      print(ok, err.code, err)
    ]]
    p:kill(SIGINT)
    assert.same({ signal = SIGINT, err = "",
      out = "ready\nfalse\tcancelled\tinterrupted by signal 2\n" }, p:wait())
  end)

  it("of another kind may be the second", function()
    local p = start(LOOP)
    send_first(p, SIGINT)
    p:kill(SIGTERM)
    assert.equal(SIGTERM, p:wait().signal)
  end)

  it("ends also a deferred function that takes too long, as the second one", function()
    local p = start [[
      task.defer(function() print "draining" task.sleep(20) end)
      print "ready"
      task.sleep(20)]]
    p:kill(SIGTERM)
    p:wait_for "draining"
    p:kill(SIGTERM)
    assert.equal(SIGTERM, p:wait().signal)
  end)

  it("wins over os.exit in a deferred function", function()
    local p = start "task.defer(os.exit, 3) print 'ready' task.sleep(20)"
    p:kill(SIGTERM)
    assert.equal(SIGTERM, p:wait().signal)
  end)

  it("flushes files before the process dies of it", function()
    local dir = process.directory {}
    local p = process.start { "-e", [[
      file = io.open("out.txt", "w")
      file:write "text"
      io.stdout:write "ready\n"
      io.stdout:flush()
      io.stdout:write "no newline"
      task.sleep(20)]], cwd = dir }
    p:wait_for "ready"
    p:kill(SIGINT)
    assert.equal("ready\nno newline", p:wait().out)
    assert.equal("text", io.open(dir .. "/out.txt"):read "*a")
  end)

  it("that the parent ignores is ignored", function()
    local p = process.start { program = "sh", "-c", ([[trap '' INT; exec '%s' -e '
      io.stdout:setvbuf "no"
      print "ready"
      task.sleep(0.05)
      print "on"
      io.read()
      task.sleep(20)']]):format(process.binary()), input = true }
    p:wait_for "ready"
    p:kill(SIGINT)
    p:wait_for "on"
    p:kill(SIGTERM) -- while it sits in io.read: nothing can run ...
    p:kill(SIGINT) -- ... and this one is still ignored
    p:write "\n"
    assert.equal(SIGTERM, p:wait().signal)
  end)

  it("ends a script that reads standard input in the end, when it comes twice", function()
    local p = process.start { "-e", "io.stdout:setvbuf 'no' print 'ready' io.read()", input = true }
    p:wait_for "ready"
    send_first(p, SIGINT)
    p:kill(SIGINT)
    assert.equal(SIGINT, p:wait().signal)
  end)
end)
