#!/bin/bash
# What a card gives: conformance of every operation, the suites of models, training and inference on it, figures
# beside PyTorch on the same card, and whether two runs have the same bits. For a machine with a card and NVIDIA's
# driver, and NVRTC from a toolkit or from PyTorch's packages; no network, no compiler. scripts/gpu/build.sh makes what
# it runs.
#
#   scripts/gpu/check.sh [FOLDER]    the table goes to FOLDER/gpu.md, what was said to FOLDER/*.log
cd "$(dirname "$0")/../.." || exit 2
built=target/gpu out=${1:-$built}
[[ -d $built || ! -f target/gpu.tar.gz ]] || tar -C target -xzf target/gpu.tar.gz
mkdir -p "$out"
table=$out/gpu.md
failed=0

say() { echo "$*" | tee -a "$table"; }

# check SECONDS NAME COMMAND...: a row of the table with how it ended
check() {
  local limit=$1 name=$2 began=$SECONDS ended
  shift 2
  if timeout "$limit" "$@" > "$out/$name.log" 2>&1; then ended=passes; else ended="**fails** ($?)" failed=1; fi
  say "| $name | $ended | $((SECONDS - began)) s | $(grep -h '^test result' "$out/$name.log" | tail -1 | cut -d';' -f1,2) |"
}

# figure SECONDS NAME COMMAND...: one line of JSON, of which the row has the median of the seconds
figure() {
  local limit=$1 name=$2
  shift 2
  if ! timeout "$limit" "$@" > "$out/$name.json" 2> "$out/$name.log"; then
    say "| $name | not measured: $(tail -1 "$out/$name.log" | cut -c1-100) |"
    return
  fi
  say "| $name | $(python3 - "$out/$name.json" <<'PYTHON'
import json, statistics, sys

figures = json.loads(open(sys.argv[1]).read().splitlines()[-1])
seconds = figures.get("seconds", figures.get("seconds_per_step", 0))
seconds = statistics.median(seconds) if isinstance(seconds, list) else seconds
print(f"{1000 * seconds:.2f} ms a step" if seconds else json.dumps(figures)[:100])
PYTHON
  ) |"
}

rm -f "$table"
say "# $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null || echo "no card")"
say
say "$("$built/wels" --version), $(date -u +%F)"
say
say "| check | result | time | tests |"
say "|---|---|---|---|"
export WELS_TEST_DEVICE=cuda
check 90 cuda "$built/cuda-tests" --skip planted --skip driver --test-threads 4
check 60 model "$built/model-tests" --skip everything_passes --test-threads 4
check 60 train "$built/train-tests" --skip everything_passes --skip emulator --test-threads 4
check 45 engine "$built/engine-tests" --skip everything_passes --test-threads 4
unset WELS_TEST_DEVICE
say
say "| figure | median |"
say "|---|---|"
wels="$built/wels bench train --steps 5 --json"
for recipe in dense-7m moe-28m; do
  model=${recipe%%-*}
  figure 40 "$recipe-wels-f32" $wels "recipes/$recipe.toml" --device cuda
  figure 40 "$recipe-torch-f32" python3 bench/peers/peer_step.py "$model" --device cuda --steps 20 --warmup 5
  figure 40 "$recipe-torch-bf16" python3 bench/peers/peer_step.py "$model" --device cuda --precision bf16 --steps 20 --warmup 5
done
say
first=$(timeout 40 $wels recipes/dense-7m.toml --device cuda 2> /dev/null | grep -o '"last_loss":[^,}]*')
second=$(timeout 40 $wels recipes/dense-7m.toml --device cuda 2> /dev/null | grep -o '"last_loss":[^,}]*')
say "Two runs: ${first:-nothing} and ${second:-nothing}."
[[ -n $first && $first == "$second" ]] || failed=1
exit $failed
