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
failed=0
for test in "${tests[@]}"; do
  name=${test%%:*} program=$programs/${test/:/-} which=()
  [[ $test == *:AMPERE ]] && which=(-DAMPERE)
  flags=(-O2 -mavx2 -std=c++20 -ffp-contract=off -Wno-psabi -I. -I../kernels)
  if "${CXX:-c++}" "${flags[@]}" "${which[@]}" "tests/$name.cpp" -o "$program" &&
    timeout 300 "$program" > "$program.txt" 2>&1; then
    [[ -n $VERBOSE ]] && cat "$program.txt"
    echo "$test: $(tail -1 "$program.txt")"
  else
    failed=1
    echo "$test: FAILED"
    [[ -f $program.txt ]] && head -20 "$program.txt"
  fi
done
exit $failed
