#!/usr/bin/env bash
# The kernels' tests on 64-bit Arm, under QEMU: a processor with NEON alone, one with SDOT, one with I8MM too.
#
#     scripts/arm/test.sh            a part: equal bits with x86, quantised products, attention, matrix products
#     scripts/arm/test.sh --all      all tests of the kernels, on the processor with everything
#     scripts/arm/test.sh --counts   instructions of quantised products: see scripts/arm/counts.py
#
# Takes the Rust target aarch64-unknown-linux-gnu, gcc-aarch64-linux-gnu and qemu-user-static (Debian's names). Where
# one is not there it says so loudly and does nothing: 64-bit Arm is then not tested.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=aarch64-unknown-linux-gnu
rustup target list --installed 2>/dev/null | grep -qx $target || rustup target add $target >/dev/null 2>&1 || true
lacking=()
rustup target list --installed 2>/dev/null | grep -qx $target || lacking+=("the Rust target $target")
command -v aarch64-linux-gnu-gcc >/dev/null || lacking+=(gcc-aarch64-linux-gnu)
command -v qemu-aarch64-static >/dev/null || lacking+=(qemu-user-static)
if ((${#lacking[@]})); then
    printf 'THE KERNELS ARE NOT TESTED ON 64-BIT ARM: there is no %s here\n' "$(IFS=,; echo "${lacking[*]}")"
    exit 0
fi

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/arm
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
emulate() { # processor, arguments of the test program
    local processor=$1
    shift
    echo "64-bit Arm, $processor: $*"
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -cpu $processor -L /usr/aarch64-linux-gnu" \
        cargo test --quiet --release --package wels-kernels --target $target --test it -- "$@"
}

case ${1:-} in
--all) emulate max ;;
--counts) exec python3 scripts/arm/counts.py "${@:2}" ;;
*)
    # Compiled for few seconds of compiling: emulation makes up for what it loses.
    export CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_TARGET_DIR=$CARGO_TARGET_DIR/quick
    for processor in cortex-a57 neoverse-n1; do
        emulate $processor bits:: every_set
    done
    emulate max bits:: every_set quant::products_equal quant::the_greatest attention::forward gemm::grouped softmax
    ;;
esac
