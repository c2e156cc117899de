-- Tests of code that waits and caches, with busted (Debian: lua-busted).
--
--   cd examples/busted
--   moonstash --busted                      all of spec/, nothing to set up
--   moonstash --busted --clear-cache        each test starts with an empty cache
--   moonstash --busted --test-timeout=2     a test may take 2 s instead of 10
--   moonstash --busted --filter=once -v     busted's own options work as ever
--   busted                                  the same, through .busted
--
-- A test runs in a task: it may sleep, spawn, and call what waits, like any
-- script, without callbacks or done(). It fails when it takes too long, and
-- when tasks are alive that it has not waited for. The last line is the
-- summary, the exit code 1 when a test has failed.
local cache = require "cache"
local greeter = require "greeter"
local task = require "task"

describe("the greeter", function()
  before_each(function()
    cache.clear_cache()
    greeter.loads = 0
  end)

  it("greets in the language it is asked for", function()
    assert.equal("Hello, Ada!", greeter.greet "Ada")
    assert.equal("Guten Tag, Ada!", greeter.greet("Ada", "de"))
  end)

  it("loads a template once, however many ask for it at a time", function()
    task.gather {
      function() greeter.greet "Ada" end,
      function() greeter.greet "Grace" end,
      function() greeter.greet "Edsger" end,
    }
    assert.equal(1, greeter.loads)
  end)

  it("loads it again when it is too old", function()
    greeter.greet "Ada"
    cache.testing.advance(61)
    greeter.greet "Ada"
    assert.equal(2, greeter.loads)
  end)
end)
