# Sourced by the scripts of this folder. MOONSTASH_REQUIRE is a list of names
# ("redis,netns,debootstrap") whose tests must not be skipped.

# skip NAME REASON: ends the script as skipped, or as failed where NAME is
# required.
skip() {
  case ",${MOONSTASH_REQUIRE:-}," in
    *,"$1",*) echo "FAILED: $1 is required, but $2"; exit 1 ;;
  esac
  echo "skipped: $1: $2"
  exit 77
}

# need NAME PROGRAM...: skips unless all programs are there.
need() {
  need_name=$1
  shift
  for program; do
    command -v "$program" >/dev/null || skip "$need_name" "$program is not installed"
  done
}

fail() {
  echo "FAILED: $*" >&2
  exit 1
}
