#!/bin/sh
# The memory store compiles for aarch64, without a warning. A cross compiler has
# the C library's headers of its target; of the libraries it needs xxhash.h
# only, which is the same everywhere and is given to it in a folder of its own:
# no header that was made for this machine gets in.
set -eu
. "$(dirname "$0")/skip.sh"
cd "$(dirname "$0")/../.."
compiler=aarch64-linux-gnu-gcc
need aarch64 $compiler
echo '#include <pthread.h>' | $compiler -fsyntax-only -xc - 2>/dev/null ||
  skip aarch64 "libc6-dev-arm64-cross is not installed"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/include"
for folder in "$(pkg-config --variable=includedir libxxhash)" /usr/include; do
  [ ! -f "$folder/xxhash.h" ] || break
done
cp "$folder/xxhash.h" "$dir/include" # what it includes is standard
[ ! -f "$folder/xxh3.h" ] || cp "$folder/xxh3.h" "$dir/include"
for file in runtime/memory/*.c runtime/clock.c; do
  $compiler -std=gnu11 -Wall -Wextra -Werror -O2 -fPIC -fvisibility=hidden \
    -Iruntime -isystem "$dir/include" -c "$file" -o "$dir/out.o"
done
