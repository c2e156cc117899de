#!/bin/sh
# lint.sh luacheck|clang-format: the house style of all Lua, of all C.
set -eu
. "$(dirname "$0")/skip.sh"
cd "$(dirname "$0")/../.."

case $1 in
  luacheck)
    need luacheck luacheck
    luacheck --quiet --no-color lua spec examples ;;
  clang-format)
    need clang-format clang-format
    clang-format --version | grep -q 'version 14\.' ||
      skip clang-format "its version is not 14, and others format differently"
    find include runtime spec examples -name '*.[ch]' -exec \
      clang-format --dry-run --Werror {} + ;;
esac
