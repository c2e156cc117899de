#!/bin/sh
# clean_env.sh COMMAND...: runs it without the variables that change what
# Moonstash or Lua does. MOONSTASH_REQUIRE is the suite's own and stays.
unset $(awk 'BEGIN {
  for (name in ENVIRON)
    if (name ~ /^(CACHE|LUA|MOONSTASH)_[A-Za-z0-9_]*$/ && name != "MOONSTASH_REQUIRE")
      print name
  print "_"
}')
exec "$@"
