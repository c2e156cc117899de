-- Runs before the specs: every test gets a time limit and must end its tasks.
-- Sanitizer builds are slow, so the limit is a wide one.
require "cache" -- one instance for all files
require "spec.support.redis" -- its shared server, too
require("moonstash.busted").guard(require "busted", { timeout = 60 })
