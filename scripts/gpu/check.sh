#!/bin/bash
# What a card gives, section by section: conformance of every operation and the suites of models, training and inference
# on it; training beside PyTorch on the same card; equal bits; single kernels; decoding; reinforcement. For a machine
# with a card and NVIDIA's driver, and NVRTC and PyTorch from packages; no network, no compiler. scripts/gpu/build.sh
# makes what it runs. All of it takes less than WELS_CHECK_SECONDS (260).
#
#   scripts/gpu/check.sh [FOLDER [SECTION...]]    if left out, all of
#       conformance train peers bits stages kernels decode rl
#
# The table is in FOLDER/gpu.md, its figures in FOLDER/figures.jsonl, what was said in FOLDER/*.log. A section that runs
# again replaces its own figures and leaves the others'.
cd "$(dirname "$0")/../.." || exit 2
built=target/gpu out=${1:-target/gpu}
sections=("${@:2}")
[[ ${#sections[@]} -gt 0 ]] || sections=(conformance train peers bits stages kernels decode rl)
most=${WELS_CHECK_SECONDS:-260}
[[ ! target/gpu.tar.gz -nt $built/wels ]] || tar -C target -xzf target/gpu.tar.gz
mkdir -p "$out"
export WELS_CUDA_CACHE=${WELS_CUDA_CACHE:-${TMPDIR:-/tmp}/wels-cubins}
mkdir -p "$WELS_CUDA_CACHE"

table() { python3 scripts/gpu/table.py "$@" "$out"; }

# measure SECONDS SECTION NAME COMMAND...: keeps what the command wrote, and how it ended. One that takes too long, or
# for which there is no time left, is said and stops nothing.
measure() {
  local limit=$1 section=$2 name=$3 began=$SECONDS left=$((most - SECONDS)) code
  shift 3
  if ((left < 5)); then
    : > "$out/$name.json"
    echo "no time was left" > "$out/$name.log"
    code=-1
  else
    timeout --kill-after=5 $((limit < left ? limit : left)) "$@" > "$out/$name.json" 2> "$out/$name.log"
    code=$?
  fi
  table keep "$section" "$name" "$code" $((SECONDS - began))
}

# The suites, all at the same time.
conformance() {
  export WELS_TEST_DEVICE=cuda
  local suite skipped
  for suite in cuda model train engine; do
    skipped=(--skip everything_passes)
    [[ $suite != cuda ]] || skipped=(--skip planted --skip driver)
    [[ $suite != train ]] || skipped+=(--skip emulator)
    measure 100 conformance "$suite" "$built/$suite-tests" "${skipped[@]}" --test-threads 4 &
  done
  wait
  unset WELS_TEST_DEVICE
}

train() {
  local recipe
  for recipe in dense-500m moe-2b; do
    measure 50 train "$recipe.wels" "$built/wels" bench train "bench/gpu/$recipe.toml" --device cuda --steps 3 --json
  done
}

# The same steps by PyTorch.
peers() {
  local peer="python3 bench/peers/peer_step.py" as="--device cuda --precision bf16 --weights bf16 --steps 4"
  measure 45 train dense-500m.peer $peer dense-500m $as
  measure 45 train moe-2b.peer $peer moe-2b $as
  measure 45 train dense-500m.llama $peer dense-500m --implementation transformers $as
  measure 80 train dense-500m.compiled $peer dense-500m $as --compile
}

# Two runs, and one in other micro-batches: the last loss has all bits of what was computed before it.
bits() {
  local recipe variant
  for recipe in dense-7m moe-28m; do
    for variant in first again other; do
      { cat "recipes/$recipe.toml" && echo 'precision = "bf16"'; } > "$out/$recipe.toml"
      [[ $variant != other ]] || sed -i 's/^micro_batch = .*/micro_batch = 2/' "$out/$recipe.toml"
      measure 20 bits "$recipe.$variant" "$built/wels" bench train "$out/$recipe.toml" --device cuda --steps 5 --json
    done
  done
}

# A recipe of all kinds of stages: killed and gone on with, and verified.
stages() {
  measure 90 stages stages scripts/gpu/stages.sh "$built/wels" cuda 2
}

kernels() {
  if [[ -d $built/cubins ]]; then
    measure 75 kernels card python3 crates/cuda/fast/card.py "$built/cubins"
  else
    echo "kernels: scripts/gpu/build.sh found no NVRTC to compile them with" >&2
  fi
}

decode() {
  local wels=("$built/wels" bench decode bench/gpu/dense-7b.toml --device cuda --json) quant
  for quant in stored q4 q8; do
    measure 40 decode "decode-1.$quant" "${wels[@]}" --quant $quant --prompt 4096 --chunk 4096 --prompt-rounds 1 \
      --tokens 48
    [[ $quant == q8 ]] || measure 40 decode "decode-64.$quant" "${wels[@]}" --quant $quant --streams 64 --prompt 64 \
      --prompt-rounds 1 --tokens 24
  done
  # The same without graphs.
  local alone=(env WELS_CUDA_GRAPHS=0 "${wels[@]}" --quant stored --prompt-rounds 1)
  measure 40 decode decode-1.no-graphs "${alone[@]}" --prompt 4096 --chunk 4096 --tokens 48
  measure 40 decode decode-64.no-graphs "${alone[@]}" --streams 64 --prompt 64 --tokens 24
}

rl() {
  local precision
  for precision in bf16 f32; do
    measure 40 rl "grpo.$precision" "$built/wels" bench rl bench/gpu/dense-500m.toml --device cuda --json \
      --precision $precision --prompts 8 --samples 8 --prompt 64 --tokens 128 --steps 2
  done
}

for section in "${sections[@]}"; do
  case $section in
    conformance | train | peers | bits | stages | kernels | decode | rl)
      table forget "$section"
      $section
      table write
      ;;
    *)
      echo "there is no section $section" >&2
      exit 2
      ;;
  esac
done
cat "$out/gpu.md"
table passed
