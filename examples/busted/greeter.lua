-- Greets people by a template that is slow to get, and so is cached.
local cache = require "cache"
local task = require "task"

local greeter = { loads = 0 }

-- In real life this asks a database or a server.
local function load_template(language)
  greeter.loads = greeter.loads + 1
  task.sleep(0.05)
  if language == "de" then return "Guten Tag, %s!" end
  return "Hello, %s!"
end

local template = cache.cached(load_template, { ttl = 60, name = "template" })

function greeter.greet(name, language)
  return template(language or "en"):format(name)
end

return greeter
