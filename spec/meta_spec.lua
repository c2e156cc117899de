-- lua/meta documents what the modules export, all of it and nothing else.
local cache = require "cache"
local host = require "moonstash.host"
local task = require "task"

-- Methods that are no part of the API begin with an underscore.

local function read(name)
  local file = assert(io.open(("lua/meta/%s.lua"):format(name)))
  local text = file:read "*a"
  file:close()
  return text
end

-- What a meta file declares: functions by full name ("cache.get_cached",
-- "Cache:get"), each {params, lines of its comment}, and classes by name, each
-- field to type.
local function parse(text)
  local functions, classes, doc, current = {}, {}, {}, nil
  for line in text:gmatch "[^\n]*" do
    local name, params = line:match "^function ([%w_.:]+)%(([^)]*)%) end$"
    local field, kind = line:match "^%-%-%-@field ([%w_]+%??) (.*)$"
    if name then
      functions[name] = { params = params, doc = doc }
    elseif line:find "^%-%-%-@class" then
      current = line:match "^%-%-%-@class ([%w_.]+)"
      classes[current] = {}
    elseif field then
      classes[current][field:gsub("%?$", "")] = kind
    end
    if line:find "^%-%-%-" then
      doc[#doc + 1] = line
    elseif line ~= "" or #doc == 0 then
      doc = {}
    end
  end
  return { functions = functions, classes = classes }
end

local function sorted(set)
  local list = {}
  for name in pairs(set) do list[#list + 1] = name end
  table.sort(list)
  return list
end

-- The names that are declared with this prefix ("cache.", "Cache:").
local function declared(meta, prefix)
  local names = {}
  for name in pairs(meta.functions) do
    local rest = name:match("^" .. prefix:gsub("%.", "%%.") .. "([%w_.]+)$")
    if rest then names[rest] = true end
  end
  return sorted(names)
end

-- The public functions of a table; prefix for those of a table inside.
local function functions_of(t, names, prefix)
  names, prefix = names or {}, prefix or ""
  for name, value in pairs(t) do
    local public = not name:find "^_"
    if public and type(value) == "function" then names[prefix .. name] = true end
  end
  return names
end

local function index_of(object)
  return getmetatable(object).__index
end

for module, text in pairs { cache = read "cache", task = read "task" } do
  local meta = parse(text)

  describe("lua/meta/" .. module .. ".lua", function()
    it("is a meta file that loads and gives a table", function()
      assert.equal("---@meta " .. module, text:match "^[^\n]*")
      local chunk = assert(loadstring(text))
      assert.is_table(setfenv(chunk, {})())
    end)

    it("describes every function, and its parameters by name and in order", function()
      for name, fn in pairs(meta.functions) do
        local doc = table.concat(fn.doc, "\n")
        local params, counted = {}, 0
        for line in doc:gmatch "[^\n]+" do
          local param = line:match "^%-%-%-@param ([%w_]+)" or line:match "^%-%-%-@param (%.%.%.)"
          if param then params[#params + 1] = param end
          if line:find "^%-%-%-%u" or line:find "^%-%-%-%l" or line:find "@return" then
            counted = counted + 1
          end
        end
        assert.equal(fn.params, table.concat(params, ", "), name)
        assert.is_true(counted > 0, name .. " has no description")
      end
    end)

    it("gives every parameter, field and result a type", function()
      for line in text:gmatch "[^\n]+" do
        if line:find "^%-%-%-@param" or line:find "^%-%-%-@field" then
          assert.truthy(line:match "^%-%-%-@%w+ [%w_.]+%?? %S+", line)
        elseif line:find "^%-%-%-@return" then
          assert.truthy(line:match "^%-%-%-@return %S+", line)
        end
      end
    end)
  end)
end

describe("the cache module", function()
  local meta = parse(read "cache")

  it("exports the functions that are documented", function()
    local names = functions_of(cache)
    functions_of(cache.testing, names, "testing.")
    assert.same(declared(meta, "cache."), sorted(names))
  end)

  it("exports the fields that are documented", function()
    local names = {}
    for name, value in pairs(cache) do
      if type(value) ~= "function" and name ~= "testing" then names[name] = true end
    end
    assert.same(sorted(meta.classes.cachelib), sorted(names))
  end)

  it("gives Cache objects the methods that are documented", function()
    assert.same(declared(meta, "Cache:"), sorted(functions_of(index_of(cache.memory))))
  end)

  it("has the settings that are documented", function()
    local names, i = {}, 0
    while host.setting(i) do
      names[host.setting(i).name] = true
      i = i + 1
    end
    assert.same(sorted(meta.classes["cache.Settings"]), sorted(names))
  end)

  it("has the counters that are documented", function()
    assert.same(sorted(meta.classes["cache.Stats"]), sorted(cache.memory:stats()))
  end)

  it("takes the options that are documented, and no other", function()
    local function is_known(option, fn, ...)
      local ok, err = pcall(fn, ...)
      return ok or not tostring(err):find("the option '" .. option .. "' is", 1, true)
    end
    for class, call in pairs {
      ["cache.Options"] = function(opts) cache.get_cached("meta", opts) end,
      ["cache.SetOptions"] = function(opts) cache.set_cached("meta", 1, opts) end,
      ["cache.CachedOptions"] = function(opts) cache.cached(print, opts) end,
    } do
      for _, option in ipairs { "ttl", "alias", "name", "key_builder", "namespace", "key", "tags",
        "timeout", "lock", "serializer", "no_such_option" } do
        assert.equal(meta.classes[class][option] ~= nil, is_known(option, call, { [option] = {} }),
          class .. " " .. option)
      end
    end
  end)
end)

describe("the task module", function()
  local meta = parse(read "task")

  it("exports the functions that are documented", function()
    assert.same(declared(meta, "task."), sorted(functions_of(task)))
  end)

  it("gives its objects the methods that are documented", function()
    assert.same(declared(meta, "Event:"), sorted(functions_of(index_of(task.event()))))
    assert.same(declared(meta, "Semaphore:"), sorted(functions_of(index_of(task.semaphore(1)))))
    assert.same(declared(meta, "Queue:"), sorted(functions_of(index_of(task.queue()))))
    assert.same(declared(meta, "Task:"),
      sorted(functions_of(require("moonstash.task").metatable.__index)))
    task.scope(function(scope)
      assert.same(declared(meta, "Scope:"), sorted(functions_of(index_of(scope))))
    end)
  end)

  it("has the counters that are documented", function()
    assert.same(sorted(meta.classes["task.Counters"]), sorted(task.counters()))
  end)

  it("marks what waits as async, and only that", function()
    local e, s, q = task.event(), task.semaphore(1), task.queue(1)
    s:acquire()
    local child
    local calls = { -- each would have to wait
      ["task.sleep"] = function() task.sleep(0) end,
      ["task.yield"] = function() task.yield() end,
      ["task.scope"] = function() task.scope(print) end,
      ["task.gather"] = function() task.gather { print } end,
      ["task.race"] = function() task.race { print } end,
      ["task.timeout"] = function() task.timeout(1, print) end,
      ["task.shield"] = function() task.shield(task.yield) end,
      ["task.await"] = function() task.await(function() end) end,
      ["Task:join"] = function() child:join() end,
      ["Task:pjoin"] = function() child:pjoin() end,
      ["Event:wait"] = function() e:wait() end,
      ["Semaphore:acquire"] = function() s:acquire() end,
      ["Semaphore:with"] = function() s:with(print) end,
      ["Queue:push"] = function()
        q:push(1)
        q:push(2)
      end,
      ["Queue:pop"] = function() task.queue():pop() end,
    }
    child = task.spawn(function() e:wait() end)
    for name, fn in pairs(meta.functions) do
      local marked = table.concat(fn.doc, "\n"):find("---@async", 1, true) ~= nil
      assert.equal(calls[name] ~= nil, marked, name)
    end
    for name, call in pairs(calls) do
      local ok, err = pcall(string.gsub, "x", ".", function() call() end)
      assert.is_false(ok, name)
      assert.truthy(tostring(err):find("cannot wait here", 1, true), name)
    end
    e:set()
    child:join()
  end)
end)
