#!/bin/bash
# Builds what scripts/gpu/check.sh runs on a machine with a card and nothing else, into target/gpu.tar.gz: the program,
# and the tests of the crates that compute. No card, driver or toolkit is needed here.
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
tar -C target -czf target/gpu.tar.gz gpu
ls -sh target/gpu.tar.gz
