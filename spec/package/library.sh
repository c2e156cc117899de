#!/bin/sh
# library.sh BUILD: what the built libraries show to a linker. Only moonstash_*
# is exported; nothing in them handles signals, writes to the terminal or
# exits; nothing but the clock has a global variable.
set -eu
. "$(dirname "$0")/skip.sh"
build=$1

# The linker adds its own three where a library it meets (libmpack) shows them.
exported=$(nm -D --defined-only "$build/libmoonstash.so" | awk '
  $NF !~ /^(__bss_start|_edata|_end)$/ { print $NF }')
declared=$(sed -n 's/.*\b\(moonstash_[a-z_]*\)(.*/\1/p' \
  "$(dirname "$0")/../../include/moonstash.h" | sort -u)
for name in $exported; do
  case $name in
    moonstash_*) ;;
    *) fail "libmoonstash.so exports $name" ;;
  esac
done
[ -n "$exported" ] || fail "libmoonstash.so exports nothing"
for name in $exported; do
  echo "$declared" | grep -qx "$name" || fail "$name is not in moonstash.h"
done

used=$(nm -u "$build/libmoonstash.a" | awk '{ print $NF }' |
  grep -xE '(sig(nal|action)|bsd_signal|raise|kill|abort|_?exit|_Exit|quick_exit|std(out|err)|put(s|char)|perror|_*(printf|vprintf|fprintf|vfprintf)(_chk)?)' || true)
[ -z "$used" ] || fail "the library uses" $used

globals=$(objdump -t "$build/libmoonstash.a" | awk '
  /:     file format/ { file = $1 }
  / O \.(bss|data)\t/ && file !~ /^clock\.c/ { print file $NF }')
[ -z "$globals" ] || fail "global variables:" $globals

echo "exported:" $exported
