std = "luajit"
max_line_length = 100
max_code_line_length = 100
self = false -- methods need not use self
ignore = { "581" } -- `not (x >= 0)` also catches NaN
files["**/*_spec.lua"] = { std = "+busted" }
-- What the runtime replaces in every state, or sets for scripts.
files["lua/moonstash/boot.lua"] = {
  globals = { "require", "dofile", "coroutine.resume", "coroutine.wrap", "os.exit" },
}
files["lua/meta"] = { ignore = { "211", "212" } } -- declarations without bodies
