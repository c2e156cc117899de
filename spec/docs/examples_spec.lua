local process = require "spec.support.process"
local redis = require "spec.support.redis"

-- A trace whose hit ratio is known: each key of the first pass is a miss, each
-- of the second a hit.
local function two_passes(distinct)
  local keys = {}
  for i = 1, distinct do keys[i] = tostring(i) end
  local pass = table.concat(keys, "\n") .. "\n"
  return pass .. pass
end

describe("examples/tour.lua", function()
  it("shows every call of the cache", function()
    local result = process.run { "examples/tour.lua" }
    assert.equal("", result.err)
    assert.equal(0, result.code)
    assert.matches("get, never set:%s+nil\nset:%s+true\nget:%s+my_value\ndelete:%s+1", result.out)
    assert.matches("before the TTL:%s+42\nafter it:%s+nil%s+a default", result.out)
    assert.matches("%d+ words, %d+ of them 'the'\ncold %S+ ms, cached %S+ ms", result.out)
    assert.matches("100 callers, 1 load, the last one got user 7", result.out)
    assert.matches("memory: %d+ hits, %d+ misses", result.out)
  end)

  it("takes another text", function()
    local dir = process.directory { ["text.txt"] = "the cat and the dog\n" }
    local result = process.run { "examples/tour.lua", dir .. "/text.txt" }
    assert.equal(0, result.code)
    assert.matches("5 words, 2 of them 'the'", result.out)
  end)

  it("works with caching switched off", function()
    local result = process.run { "examples/tour.lua", env = { CACHE_ENABLED = "False" } }
    assert.equal("", result.err)
    assert.equal(0, result.code)
    assert.matches("caching is off", result.out)
    assert.matches("set:%s+true\nget:%s+nil\ndelete:%s+0", result.out)
    assert.matches("100 callers, 100 load", result.out)
  end)
end)

describe("examples/replay.lua", function()
  it("counts what the cache has saved", function()
    local dir = process.directory { ["trace.txt"] = two_passes(500) }
    local result = process.run { "examples/replay.lua", dir .. "/trace.txt" }
    assert.equal("", result.err)
    assert.equal(0, result.code)
    assert.matches("trace.txt: 1000 requests\n", result.out)
    assert.matches("hit ratio 0.5000, 500 loads, 500 saved, 0 evictions\n", result.out)
    assert.matches("500 entries, %d+ of %d+ bytes\n", result.out)
    assert.matches("%d+ requests/s", result.out)
  end)

  it("takes a byte bound and then evicts", function()
    local dir = process.directory { ["trace.txt"] = two_passes(5000) }
    local result = process.run { "examples/replay.lua", dir .. "/trace.txt", "128K" }
    assert.equal(0, result.code)
    local evictions, bytes, bound =
      result.out:match "(%d+) evictions\n%d+ entries, (%d+) of (%d+) bytes"
    assert.is_true(tonumber(evictions) > 1000)
    assert.equal("131072", bound)
    assert.is_true(tonumber(bytes) <= 131072)
  end)

  it("survives an empty trace", function()
    local dir = process.directory { ["trace.txt"] = "" }
    local result = process.run { "examples/replay.lua", dir .. "/trace.txt" }
    assert.equal(0, result.code)
    assert.matches("0 requests", result.out)
  end)

  it("says what is missing", function()
    local result = process.run { "examples/replay.lua" }
    assert.equal(2, result.code)
    assert.matches("^usage: moonstash examples/replay.lua FILE", result.err)
    result = process.run { "examples/replay.lua", "/nonexistent" }
    assert.equal(1, result.code)
    assert.matches("/nonexistent: No such file", result.err)
  end)

  it("shows a progress bar on a terminal only", function()
    if not process.has "script" then
      assert.is_false(process.required "pty", "script(1) is missing")
      pending "script(1), which makes terminals, is not installed"
    end
    local dir = process.directory { ["trace.txt"] = two_passes(30000) }
    local result = process.run { program = "script", "-qec",
      process.binary() .. " examples/replay.lua " .. dir .. "/trace.txt", "/dev/null" }
    assert.equal(0, result.code)
    assert.matches("%[#+ *%]%s+%d+ %%", result.out)
    assert.matches("hit ratio 0.5000", result.out)
  end)
end)

describe("examples/redis.lua", function()
  it("goes on where a killed process was", function()
    if redis.missing() then return pending(redis.missing()) end
    local server = redis.start()
    server:cli("SET", "other", "kept")
    local result = process.run { "examples/redis.lua",
      env = { CACHE_REDIS_HOST = "localhost", CACHE_REDIS_PORT = tostring(server.port) } }
    assert.equal("", result.err)
    assert.equal(0, result.code)
    local step = tonumber(
      result.out:match "^process %d+ computes squares\nkilled at step (%d+) of 60")
    local computed, sum = result.out:match "had to compute (%d+) of them, sum (%d+)\n$"
    assert.is_true(step >= 20 and step < 60)
    local left = 60 - step -- one more may be stored, but not yet told
    assert.is_true(tonumber(computed) == left or tonumber(computed) == left - 1)
    assert.equal(60 * 61 * 121 / 6, tonumber(sum))
    assert.equal("other", server:cli("KEYS", "*"))
  end)

  it("says in a line what to set", function()
    local result = process.run { "examples/redis.lua" }
    assert.equal(1, result.code)
    assert.equal("", result.out)
    assert.matches("^Set CACHE_REDIS_HOST [^\n]+\n$", result.err)
  end)

  it("says that there is no server", function()
    local result = process.run { "examples/redis.lua", env = { CACHE_REDIS_HOST = "127.0.0.1:1" } }
    assert.equal(1, result.code)
    assert.matches("Redis at 127.0.0.1:1: connection refused", result.err)
  end)
end)
