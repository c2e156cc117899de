-- A busted output handler: the terminal's usual one, with the summary again as
-- the very last line, below the texts of the failures.
return function(options)
  local busted = require "busted"
  local usual = require("moonstash.host").isatty(1) and "utfTerminal" or "plainTerminal"
  local handler = require("busted.outputHandlers." .. usual)(options)
  require("moonstash.busted").guard(busted) -- also where .busted names this handler

  busted.subscribe({ "exit" }, function()
    io.write(("\n%d successes / %d failures / %d errors / %d pending\n"):format(
      handler.successesCount, handler.failuresCount, handler.errorsCount, handler.pendingsCount))
    return nil, true
  end)
  return handler
end
