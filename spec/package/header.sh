#!/bin/sh
# moonstash.h compiles alone, as C99 and as C++, with no warning and no other
# header of ours or of a library.
set -eu
. "$(dirname "$0")/skip.sh"
include=$(cd "$(dirname "$0")/../../include" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/alone.c" <<'END'
#include <moonstash.h>
#include <moonstash.h>
int open_default(moonstash **m);
int open_default(moonstash **m) {
  moonstash_options options = MOONSTASH_OPTIONS_INIT;
  options.flags = MOONSTASH_NO_ENV;
  return moonstash_open(m, &options);
}
END
cd "$dir"
flags="-Wall -Wextra -Wpedantic -Werror -fsyntax-only -I$include"
${CC:-cc} -std=c99 $flags alone.c
${CC:-cc} -std=c99 -M -I"$include" alone.c | tr -s ' \\' '\n' |
  grep -E '(lua|uv|hiredis)[^/]*\.h$' && fail "moonstash.h includes a library's"
need c++ "${CXX:-c++}"
cp alone.c alone.cc
${CXX:-c++} -std=c++98 -Wno-long-long $flags alone.cc
