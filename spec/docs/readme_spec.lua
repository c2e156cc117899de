local process = require "spec.support.process"

local file = assert(io.open "README.md")
local readme = file:read "*a"
file:close()

-- The fenced blocks of one language ("" for plain ones), in order.
local function blocks(language)
  local list, open, lines = {}, nil, nil
  for line in readme:gmatch "([^\n]*)\n" do
    local fence = line:match "^```(.*)$"
    if not fence then
      if open then lines[#lines + 1] = line end
    elseif open then
      if open == language then list[#list + 1] = table.concat(lines, "\n") end
      open = nil
    else
      open, lines = fence, {}
    end
  end
  return list
end

describe("README.md", function()
  it("opens with a script whose output is as printed", function()
    local script, output = blocks "lua"[1], blocks ""[1] .. "\n"
    local _, lines = script:gsub("\n", "\n")
    assert.is_true(lines < 10)
    local result = process.run { "-", input = script }
    assert.equal("", result.err)
    assert.equal(output, result.out)
  end)

  it("has two commands, one line each, before any other shell block", function()
    local commands = blocks "sh"
    assert.equal(2, #commands)
    for _, command in ipairs(commands) do
      local _, lines = command:gsub("\n", "")
      assert.equal(0, lines)
      assert.matches("%-%-no%-remove", command)
      assert.matches("%-%-no%-install%-recommends", command)
    end
    assert.matches("build/moonstash examples/tour.lua", commands[1])
    assert.matches("ctest", commands[2])
  end)

  it("has Lua that runs and prints what its comments say", function()
    for i, script in ipairs(blocks "lua") do
      local result = process.run { "-", input = script }
      assert.equal("", result.err, "block " .. i)
      assert.equal(0, result.code)
      local expected = {}
      for line in script:gmatch "[^\n]+" do
        local text = line:match "%-%-> (.*)$"
        if text then expected[#expected + 1] = text:gsub(";.*", ""):gsub("%s+", " ") end
      end
      local printed = {}
      for line in result.out:gmatch "[^\n]+" do printed[#printed + 1] = line:gsub("%s+", " ") end
      if #expected > 0 then assert.same(expected, printed) end
    end
  end)

  it("has a development block that does what its comments say", function()
    local seen = 0
    for paragraph in (blocks "bash"[1] .. "\n\n"):gmatch "(.-)\n\n" do
      local env = {}
      for name, value in paragraph:gmatch "export ([%w_]+)=(%S*)" do env[name] = value end
      local result = process.run { "-e", [[
        print(cache.settings.enabled, cache.settings.default_ttl, cache.settings.persistent_ttl)
        cache.set_cached("k", 1)
        cache.set_cached("k", 2, {alias = "persistent"})
        print(cache.get_cached "k", cache.get_cached("k", {alias = "persistent"}))
      ]], env = env }
      assert.equal("", result.err)
      local expected = paragraph:find "Disable" and "false\t300\t3600\nnil\tnil\n"
        or "true\t60\t300\n1\t2\n"
      assert.equal(expected, result.out)
      seen = seen + 1
    end
    assert.equal(2, seen)
  end)

  it("lists every setting that does something", function()
    for _, name in ipairs { "CACHE_ENABLED", "CACHE_DEFAULT_TTL", "CACHE_PERSISTENT_TTL",
      "CACHE_MEMORY_MAX_BYTES", "MOONSTASH_LOG", "CACHE_REDIS_HOST", "CACHE_REDIS_URL" } do
      assert.truthy(readme:find(name, 1, true), name)
    end
  end)

  it("lists every option of the command line", function()
    local help = process.run({ "--help" }).out
    for option in help:gmatch "\n  (%-%-%a+)" do
      assert.truthy(readme:find("`" .. option, 1, true), option)
    end
  end)

  it("lists every function of the task module", function()
    for name in pairs(require "task") do
      local listed = readme:find(name .. "[%(%[]") or readme:find("`" .. name)
      assert.truthy(name == "counters" or listed, name)
    end
  end)
end)
