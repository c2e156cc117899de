#!/bin/sh
# install.sh BUILD: installs the build into an empty prefix that is then moved
# elsewhere, and builds examples/embed.c against it as its users would: with
# pkg-config, shared and static, and with CMake.
set -eu
. "$(dirname "$0")/skip.sh"
build=$1
source=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

cmake --install "$build" --prefix "$dir/first" >"$dir/log" ||
  { cat "$dir/log"; fail "cmake --install"; }
mv "$dir/first" "$dir/prefix"
pc=$(find "$dir/prefix" -name moonstash.pc)
libdir=$(dirname "$(dirname "$pc")")
export PKG_CONFIG_PATH="$libdir/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
version=$(pkg-config --modversion moonstash)

# run NAME COMMAND...: an embedder that must end well.
run() {
  name=$1
  shift
  "$@" >"$dir/out" 2>&1 || { cat "$dir/out"; fail "$name does not run"; }
  grep -q ' frames; in Lua ' "$dir/out" || { cat "$dir/out"; fail "$name"; }
  echo "$name: $(tail -n 1 "$dir/out")"
}

cd "$dir"
[ "$("$dir/prefix/bin/moonstash" -e 'print(require("task").sleep ~= nil)')" = true ] ||
  fail "the installed program"
"$dir/prefix/bin/moonstash" --version | grep -q "^moonstash $version " ||
  fail "program and moonstash.pc differ in their version"

${CC:-cc} "$source/examples/embed.c" -o shared \
  $(pkg-config --cflags --libs moonstash luajit)
run "pkg-config, shared" env LD_LIBRARY_PATH="$libdir" ./shared
readelf -d shared | grep -q 'NEEDED.*libmoonstash\.so\.0' || fail "not the shared library"

# Only ours static: the other libraries' own static kinds are not our promise.
${CC:-cc} "$source/examples/embed.c" -o static $(pkg-config --cflags moonstash luajit) \
  $(pkg-config --static --libs moonstash luajit | sed 's/-lmoonstash/-l:libmoonstash.a/')
run "pkg-config, static" ./static
! readelf -d static | grep -q libmoonstash || fail "not the static library"

cmake -S "$source/spec/package/consumer" -B consumer -DCMAKE_PREFIX_PATH="$dir/prefix" \
  -DSOURCE="$source/examples/embed.c" -DVERSION="$version" >log 2>&1 &&
  cmake --build consumer >>log 2>&1 || { cat log; fail "find_package(moonstash)"; }
run "CMake, shared" consumer/shared
run "CMake, static" consumer/static
! readelf -d consumer/static | grep -q libmoonstash || fail "not moonstash::static"

ls -R "$dir/prefix" | grep -q 'libmoonstash\.so\.0' || fail "no soname"
