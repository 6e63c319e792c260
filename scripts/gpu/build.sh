#!/bin/bash
# Builds what scripts/gpu/check.sh runs on a machine with a card and nothing else, into target/gpu.tar.gz: the program,
# the tests of the crates that compute, and where NVRTC is found in a directory of NVRTC or WELS_CUDA_LIBRARIES, or in
# target/nvrtc, the kernels of crates/cuda/fast for Hopper. No card, driver or toolkit is needed here.
set -euo pipefail
cd "$(dirname "$0")/../.."
rm -rf target/gpu
mkdir -p target/gpu
cargo build --release -p wels-cli
cp target/release/wels target/gpu/
tests=(-p wels-cuda -p wels-model -p wels-train -p wels-engine)
cargo test --release --no-run --features wels-cuda/emulator "${tests[@]}" --test it --message-format json |
  python3 -c '
import json, shutil, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("executable") and built["target"]["kind"] == ["test"]:
        name = built["package_id"].split("/crates/")[1].split("#")[0]
        shutil.copy(built["executable"], f"target/gpu/{name}-tests")
'
strip target/gpu/*
places=${NVRTC:-}:${WELS_CUDA_LIBRARIES:-}:$(echo target/nvrtc/nvidia/*/lib | tr ' ' :)
for place in ${places//:/ }; do
  compgen -G "$place/libnvrtc.so.*" > /dev/null || continue
  files=$(cd crates/cuda/fast && find . -name '*.cu' -printf '%P:sm_90a ')
  SAVE=target/gpu/cubins NVRTC=$place python3 crates/cuda/fast/cubins.py $files > target/gpu/cubins.log ||
    echo "note: some kernels of crates/cuda/fast do not compile: target/gpu/cubins.log"
  break
done
[[ -d target/gpu/cubins ]] || echo "note: no NVRTC in a directory of NVRTC or WELS_CUDA_LIBRARIES: no figures of kernels"
tar -C target -czf target/gpu.tar.gz gpu
ls -sh target/gpu.tar.gz
