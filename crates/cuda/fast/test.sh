#!/bin/bash
# Builds the tests of these kernels for the processor and runs them on the emulator: ./test.sh [TEST ...], a test being
# NAME or NAME:AMPERE (the kernels for sm_80). Takes a C++20 compiler; VERBOSE=1 shows errors and what was compared.
cd "$(dirname "$0")" || exit 2
if ! command -v "${CXX:-c++}" > /dev/null; then
  echo "SKIPPED: the tests of kernels take a C++ compiler"
  exit 0
fi
programs=$(mktemp -d)
trap 'rm -rf "$programs"' EXIT
tests=("$@")
if [[ $# == 0 ]]; then
  tests=(products products:AMPERE forward forward:AMPERE backward backward:AMPERE paged paged:AMPERE latent
    latent:AMPERE head head:AMPERE rows fp8 conformance sampler sampler:AMPERE)
fi
# One test: its last line, or why it failed.
run() {
  local test=$1 name=${1%%:*} program=$programs/${1/:/-} which=()
  [[ $test == *:AMPERE ]] && which=(-DAMPERE)
  local flags=(-O2 -mavx2 -std=c++20 -ffp-contract=off -Wno-psabi -I. -I../kernels)
  if "${CXX:-c++}" "${flags[@]}" "${which[@]}" "tests/$name.cpp" -o "$program" &&
    timeout 300 "$program" > "$program.txt" 2>&1; then
    [[ -n $VERBOSE ]] && cat "$program.txt"
    echo "$test: $(tail -1 "$program.txt")"
  else
    echo "$test: FAILED"
    [[ -f $program.txt ]] && head -20 "$program.txt"
    return 1
  fi
}
export -f run
export programs
# A test takes one core.
printf '%s\n' "${tests[@]}" | xargs -P "$(nproc)" -I{} bash -c 'run "$1"' run {} || exit 1
