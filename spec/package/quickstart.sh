#!/bin/sh
# The README's two commands, on a Debian 12 that has nothing: debootstrap's
# minbase, without git, sudo or CA certificates. First as root, then the first
# one again as a user with sudo.
#
# The work is done in mount and process namespaces of its own, on a file system
# in memory (3 GiB at most) over /media, so that neither a mount nor a process nor
# a file is left, however this ends.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/skip.sh"
source=$(cd "$here/../.." && pwd)
suite=bookworm
work=/media # ours alone in here
root=$work/root

# command N: the only line of README.md's N-th sh block.
command_of_readme() {
  awk -v wanted="$1" '
    /^```/ { if (open) open = 0; else if (/^```sh$/ && ++n == wanted) open = 1; next }
    open { print; lines++ }
    END { exit lines != 1 }' "$source/README.md" ||
    fail "README.md: sh block $1 must be one line"
}

# mirror: where this machine's apt gets the suite from, if over plain http
# (https would want the CA certificates that minbase lacks); else nothing, and
# debootstrap takes its own default.
mirror() {
  apt-get indextargets --format '$(REPO_URI)' "Codename: $suite" "Component: main" \
    2>/dev/null | grep '^http://' | head -n 1
}

bootstrap() {
  mount -t tmpfs -o mode=755,size=3g tmpfs "$work" ||
    skip debootstrap "tmpfs cannot be mounted"
  debootstrap --variant=minbase "$suite" "$root" $(mirror) >"$work/output" 2>&1 || {
    tail -n 5 "$work/output"
    skip debootstrap "debootstrap failed"
  }
  apt-config dump | grep -Ei '^Acquire::(http.*Proxy|Check-(Valid-Until|Date)) ' \
    >"$root/etc/apt/apt.conf.d/99of-the-host" || true
  # The installer's, which debootstrap leaves to others.
  printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n' >"$root/etc/hosts"
  mount -t proc proc "$root/proc" || skip debootstrap "proc cannot be mounted"
  mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts" &&
    ln -sf pts/ptmx "$root/dev/ptmx" ||
    skip debootstrap "devpts cannot be mounted"
  mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm" ||
    skip debootstrap "tmpfs cannot be mounted"
  for program in git sudo update-ca-certificates cc cmake lua luajit; do
    [ -z "$(find "$root/usr/bin" "$root/usr/sbin" -name "$program")" ] ||
      fail "the bare system has $program: it proves nothing"
  done
}

copy_source() { # copy_source DIRECTORY: as a tarball would bring it
  mkdir -p "$root$1"
  tar -C "$source" --exclude=./.git --exclude='./build*' -cf - . |
    tar -C "$root$1" --no-same-owner -xf -
}

inside() { # inside COMMAND...
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb \
    ${http_proxy:+http_proxy="$http_proxy"} chroot "$root" "$@" </dev/null
}

run() { # run NAME COMMAND...: shows the output's end; all of it on failure
  name=$1
  shift
  began=$(date +%s)
  "$@" >"$work/output" 2>&1 || { cat "$work/output"; fail "$name"; }
  echo "$name: $(($(date +%s) - began)) s"
  tail -n 12 "$work/output" | sed 's/^/  | /'
}

has() { # has REGEX: in the last command's output
  grep -qE "$1" "$work/output" || { cat "$work/output"; fail "no '$1' in the output"; }
}

prove() {
  first=$(command_of_readme 1) second=$(command_of_readme 2)
  bootstrap
  copy_source /moonstash

  run "first command, as root" inside sh -c "cd /moonstash && $first"
  has '^memory: [0-9]+ hits'
  run "second command, as root" inside sh -c "cd /moonstash && $second"
  has '^100% tests passed, 0 tests failed out of [0-9]+'
  has '^Total Test time \(real\) ='

  run "installing sudo" inside apt-get install -y --no-install-recommends sudo
  inside useradd --create-home --shell /bin/sh someone
  echo 'someone ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/someone"
  copy_source /home/someone/moonstash
  inside chown -R someone: /home/someone
  run "first command, as a user with sudo" \
    inside su - someone -c "cd moonstash && $first"
  has '^memory: [0-9]+ hits'
  [ "$(inside stat -c %U /home/someone/moonstash/build/moonstash)" = someone ] ||
    fail "the user's build is not the user's"
}

if [ "${1:-}" = in-namespaces ]; then
  prove
  exit
fi

[ "$(id -u)" = 0 ] || skip debootstrap "it needs root"
need debootstrap debootstrap unshare apt-get
namespaces="unshare --mount --pid --fork --mount-proc --kill-child"
$namespaces true 2>/dev/null || skip debootstrap "namespaces are forbidden here"
exec $namespaces sh "$here/quickstart.sh" in-namespaces
