#!/bin/sh
# The layout of the tree: what may lie at the top, who may know whom, how long
# a C function may be.
set -eu
cd "$(dirname "$0")/../.."
failures=$(mktemp)
trap 'rm -f "$failures"' EXIT

complain() { # complain WHAT: the lines on standard input break that rule
  awk -v what="$1" '{ print what ": " $0 }' >>"$failures"
}

# ---- the top level ----
for entry in *; do
  case $entry in
    CMakeLists.txt | CMakePresets.json | LICENSE | README.md) ;;
    include | runtime | lua | spec | examples) ;;
    build | build-*) ;; # ignored by version control
    *) echo "$entry" ;;
  esac
done | complain "not for the top level"
ls include | grep -vx 'moonstash\.h' | complain "not for include/"

# ---- who includes whom: ROOM PATTERN, the headers that ROOM must not see ----
forbid() {
  grep -nHE "^ *# *include *[<\"]($2)" $1 | complain "must not be included here"
}
forbid "runtime/memory/*.[ch]" 'lua|lauxlib|uv|hiredis|bind/|host/|redis/|moonstash'
[ ! -d runtime/redis ] ||
  forbid "runtime/redis/*.[ch]" 'lua|lauxlib|bind/|host/|memory/|moonstash'
forbid "runtime/bind/*.[ch]" 'host/|moonstash'
forbid "runtime/host/*.[ch] runtime/main.c" 'lua|lauxlib'
forbid "include/moonstash.h" 'lua|uv|hiredis|[^>"]*/|[^s]|s[^t]' # std*.h only
grep -nHE '\blua(L|JIT)?_[a-z]+ *\(' runtime/host/*.[ch] runtime/main.c |
  complain "the Lua API belongs to runtime/bind"

# ---- a library is silent ----
grep -nHE '\b(print|os\.exit) *\(|io\.(write|stdout|stderr)\b' \
  $(find lua -name '*.lua' ! -path 'lua/meta/*' \
    ! -path 'lua/moonstash/cli.lua' ! -path 'lua/moonstash/repl.lua' \
    ! -path 'lua/moonstash/busted.lua' ! -path 'lua/moonstash/report.lua' \
    ! -path 'lua/moonstash/boot.lua') |
  complain "modules write nothing and never exit"

# ---- functions of C fit on a screen or two ----
find runtime examples spec/c -name '*.c' -exec awk '
  /^[a-zA-Z].*\(/ && !/;$/ { name = $0; begin = FNR }
  /^}/ && begin {
    if (FNR - begin + 1 > 80)
      print FILENAME ":" begin ": " FNR - begin + 1 " lines: " name
    begin = 0
  }' {} + | complain "a function over 80 lines"

cat "$failures"
[ ! -s "$failures" ]
