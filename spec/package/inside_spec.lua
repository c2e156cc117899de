-- plain_busted runs this with `busted`: .busted must have named our binary.
describe("busted from the project root", function()
  it("runs inside moonstash", function()
    assert.is_function(package.preload["moonstash.task"])
    assert.matches("/moonstash$", require("spec.support.process").binary())
  end)

  it("runs each test in a task, which may wait", function()
    local task = require "task"
    assert.is_truthy(task.current())
    task.sleep(0)
  end)
end)
