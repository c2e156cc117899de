-- Where a wait may stand in Lua code, and where it cannot.
local task = require "task"
local tasks = require "spec.support.tasks"

local error_of, leaves_nothing = tasks.error_of, tasks.leaves_nothing

local function wait(value)
  task.sleep(0)
  return value
end

describe("a wait works inside", function()
  it("pcall and xpcall, with their results and errors", function()
    assert.same({ true, 1 }, { pcall(wait, 1) })
    assert.same({ true, 1 }, { xpcall(wait, print, 1) })
    assert.same({ false, "bang" }, { pcall(function() error(wait "bang", 0) end) })
    assert.same({ false, "bang!" }, {
      xpcall(function() error(wait "bang", 0) end, function(err) return err .. "!" end),
    })
  end)

  it("every metamethod", function()
    local mt = {}
    local function two() return wait(2) end
    for name in ("add sub mul div mod pow unm concat index call"):gmatch "%a+" do
      mt["__" .. name] = two
    end
    mt.__eq = function() return wait(true) end
    mt.__lt, mt.__le = mt.__eq, mt.__eq
    mt.__newindex = function(_, key, value) rawset(_G, key, wait(value)) end
    mt.__tostring = function() return wait "text" end
    local a, b = setmetatable({}, mt), setmetatable({}, mt)
    assert.same({ 2, 2, 2, 2, 2, 2, 2, 2, 2, 2 },
      { a + b, a - b, a * b, a / b, a % b, a ^ b, -a, a .. b, a.x, a(1) })
    assert.is_true(a == b and a < b and a <= b)
    a.set_by_newindex = 5
    assert.equal(5, rawget(_G, "set_by_newindex"))
    rawset(_G, "set_by_newindex", nil)
    assert.equal("text", tostring(a))
  end)

  it("iterators", function()
    local function range(n)
      return function(_, i) if i < n then return wait(i + 1) end end, nil, 0
    end
    local sum = 0
    for i in range(4) do sum = sum + i end
    assert.equal(10, sum)
  end)

  it("generators, beside their own yields", function()
    local generator = coroutine.wrap(function(...)
      local got = { ... }
      for i = 1, 3 do
        wait()
        got[#got + 1] = coroutine.yield(i)
        wait()
      end
      return got
    end)
    assert.equal(1, generator "a")
    assert.equal(2, generator "b")
    assert.equal(3, generator "c")
    assert.same({ "a", "b", "c", "d" }, generator "d")
    assert.matches("cannot resume dead coroutine", error_of(generator))
  end)

  it("coroutines in coroutines", function()
    local function deep(n)
      if n == 0 then return wait "bottom" end
      local ok, value = coroutine.resume(coroutine.create(deep), n - 1)
      assert(ok, value)
      return value
    end
    assert.equal("bottom", deep(20))
  end)

  it("a coroutine that another task resumed before", function()
    local co = coroutine.wrap(function()
      for i = 1, 4 do
        wait()
        coroutine.yield(i)
      end
    end)
    assert.equal(1, task.spawn(co):join())
    assert.equal(2, co())
    local nested = coroutine.wrap(function() return co() end)
    assert.equal(3, task.spawn(nested):join())
  end)

  it("a chunk that load or loadfile gave", function()
    assert.equal(3, assert(loadstring "require('task').sleep(0) return 3")())
  end)
end)

describe("a coroutine inside a wait", function()
  it("raises a cancellation where it waits", function()
    local where
    local t = task.spawn(function()
      coroutine.wrap(function()
        local ok, err = pcall(task.sleep, 1000)
        where = not ok and err.code
        error(err, 0)
      end)()
    end)
    tasks.settle()
    t:cancel()
    assert.is_false((t:pjoin()))
    assert.equal("cancelled", where)
    assert.equal("cancelled", t:status())
  end)

  it("cannot be resumed by another task", function()
    local gate = task.event()
    local co = coroutine.create(function() return gate:wait() end)
    local t = task.spawn(function() return coroutine.resume(co) end)
    tasks.settle()
    local ok, err = coroutine.resume(co)
    assert.is_false(ok)
    assert.equal("cannot resume a coroutine that is waiting in another task", err)
    gate:set()
    assert.same({ true, true }, { t:join() })
  end)

  it("keeps error values as they are, and adds the line to messages as Lua does", function()
    local mine = {}
    assert.equal(mine, error_of(coroutine.wrap(function() wait() error(mine) end)))
    local err = error_of(function() coroutine.wrap(function() wait() error "bang" end)() end)
    assert.matches("anywhere_spec.lua:%d+: .*anywhere_spec.lua:%d+: bang", err)
    local co = coroutine.create(function() wait() error(mine) end)
    assert.same({ false, mine }, { coroutine.resume(co) })
  end)
end)

describe("a wait is refused, and leaves nothing armed,", function()
  local waits = {
    sleep = function() task.sleep(1000) end,
    yield = function() task.yield() end,
    join = function() task.current():join() end,
    gather = function() task.gather { function() task.sleep(1000) end } end,
    race = function() task.race { function() task.sleep(1000) end } end,
    timeout = function() task.timeout(1000, task.sleep, 1000) end,
    scope = function() task.scope(function() task.sleep(1000) end) end,
    ["event:wait"] = function() task.event():wait(1000) end,
    ["queue:pop"] = function() task.queue():pop(1000) end,
    ["semaphore:acquire"] = function()
      local semaphore = task.semaphore(1)
      semaphore:acquire()
      semaphore:acquire(1000)
    end,
    await = function() task.await(function() end) end,
  }

  it("inside string.gsub", function()
    leaves_nothing(function()
      for name, fn in pairs(waits) do
        local err = error_of(string.gsub, "x", "x", fn)
        assert.equal(name .. ": cannot wait here: inside 'gsub', a C function that calls Lua back",
          err:match ":%d+: (.*)")
      end
    end)
  end)

  it("inside table.sort", function()
    leaves_nothing(function()
      local err = error_of(table.sort, { 2, 1 }, function() task.sleep(1000) end)
      assert.matches("sleep: cannot wait here: inside 'sort', a C function that", err)
    end)
  end)

  it("inside a hook", function()
    leaves_nothing(function()
      local err
      debug.sethook(function()
        debug.sethook()
        err = select(2, pcall(task.sleep, 1000))
      end, "", 1)
      for _ = 1, 10 do type(err) end
      debug.sethook()
      assert.matches("sleep: cannot wait here", err)
    end)
  end)

  it("inside __gc", function()
    leaves_nothing(function()
      local err
      getmetatable(newproxy(true)).__gc = function()
        err = select(2, pcall(task.sleep, 1000))
      end
      collectgarbage()
      collectgarbage()
      assert.matches("sleep: cannot wait here: inside a finalizer %(__gc%)", err)
    end)
  end)

  it("inside an xpcall handler", function()
    leaves_nothing(function()
      local err
      xpcall(error, function() err = select(2, pcall(task.sleep, 1000)) end)
      assert.matches("sleep: cannot wait here", err)
    end)
  end)

  it("inside a coroutine that was resumed inside gsub", function()
    for name, fn in pairs(waits) do
      if name ~= "join" then
        leaves_nothing(function()
          local err = error_of(string.gsub, "x", "x", function() coroutine.wrap(fn)() end)
          assert.matches("cannot wait here: the coroutine was resumed inside a C function",
            tostring(err))
          tasks.settle()
        end)
      end
    end
  end)

  it("and the task goes on as if nothing had been", function()
    pcall(string.gsub, "x", "x", function() coroutine.wrap(task.yield)() end)
    local gate = task.event()
    local t = task.spawn(function()
      pcall(string.gsub, "x", "x", function() coroutine.wrap(task.yield)() end)
      gate:wait() -- does wait: the yield is forgotten
      return "woken"
    end)
    tasks.settle()
    assert.equal("waiting", t:status())
    gate:set()
    assert.equal("woken", t:join())
  end)

  it("with the line of the caller", function()
    local line = debug.getinfo(1, "l").currentline + 1
    local err = error_of(function() ("x"):gsub("x", function() task.sleep(1) end) end)
    assert.matches("anywhere_spec.lua:" .. line .. ": sleep", err, 1, true)
  end)
end)

describe("coroutine.yield in a task's own coroutine", function()
  it("fails the task with a sentence", function()
    local ok, err = task.spawn(function() coroutine.yield(1) end):pjoin()
    assert.is_false(ok)
    assert.matches("coroutine.yield outside a coroutine: a task has nobody to yield to", err)
  end)

  it("still runs its deferred functions and ends its children", function()
    local list, deferred = {}, false
    local t = task.spawn(function()
      task.defer(function() deferred = true end)
      task.spawn(tasks.sleeper(list))
      task.yield()
      coroutine.yield()
    end)
    assert.is_false((t:pjoin()))
    assert.is_true(deferred)
    assert.equal("cancelled", list[1]:status())
  end)
end)
