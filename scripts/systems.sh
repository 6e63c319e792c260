#!/usr/bin/env bash
# The program checked for systems that are not here: macOS on Arm, and Windows; the kernels for Linux on Arm, which
# scripts/arm/test.sh runs. `cargo check` alone: nothing is linked or run, and the C parts of dependencies are not
# compiled, for which a compiler of each system would be needed.
#
#     scripts/systems.sh
#
# Where rustup cannot give a target it says so loudly and leaves it out. Warnings are errors, as in all of CI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# In the place of a C compiler and of `ar`: makes the file that it is to write, empty.
stand_in=$(mktemp -d)
trap 'rm -rf "$stand_in"' EXIT
cat >"$stand_in/cc" <<'SCRIPT'
#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
    -o) : >"$2" && shift ;;
    *.a) : >"$1" ;;
    esac
    shift
done
SCRIPT
chmod +x "$stand_in/cc"

check() { # target, package
    local target=$1 package=$2 name=${1//-/_}
    rustup target add "$target" >/dev/null 2>&1 || true
    if ! rustup target list --installed 2>/dev/null | grep -qx "$target"; then
        printf 'THE PROGRAM IS NOT CHECKED FOR %s: rustup has no such target here\n' "$target"
        return
    fi
    echo "checking $package for $target"
    # Variables that name the target: build scripts themselves are compiled for this system, by its own compiler, and
    # are those of the release build.
    env "CC_$name=$stand_in/cc" "CXX_$name=$stand_in/cc" "AR_$name=$stand_in/cc" RUSTFLAGS="-D warnings" \
        cargo check --quiet --release --package "$package" --target "$target"
}

check aarch64-unknown-linux-gnu wels-kernels
check aarch64-apple-darwin wels-cli
check x86_64-pc-windows-gnu wels-cli
