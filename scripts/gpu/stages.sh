#!/bin/bash
# Runs scripts/gpu/stages.toml whole, and again with `kill -9` every few seconds until it is done; compares all weights,
# samples and metrics of both (without times); and has `wels verify` do stretches of the first again. One line of JSON.
#
#   scripts/gpu/stages.sh WELS [DEVICE [SECONDS BETWEEN KILLS]]
cd "$(dirname "$0")/../.." || exit 2
wels=$1 device=${2:-cuda} between=${3:-3}
folder=$(mktemp -d) began=$SECONDS
trap 'rm -rf "$folder"' EXIT
run() { "$wels" run scripts/gpu/stages.toml --runs "$folder/$1" --device "$device" > "$folder/$1.log" 2>&1; }
run whole || {
  tail -5 "$folder/whole.log" >&2
  exit 1
}
whole=$((SECONDS - began)) kills=0
while true; do
  "$wels" run scripts/gpu/stages.toml --runs "$folder/killed" --device "$device" > "$folder/killed.log" 2>&1 &
  process=$!
  (sleep "$between.$((RANDOM % 10))" && kill -9 $process) 2> /dev/null &
  if wait $process 2> /dev/null; then break; fi
  kills=$((kills + 1))
  ((kills < 40)) || break
done
# Every file that has no times in it: weights, samples, moments.
files() { (cd "$folder/$1/stages" && find . \( -name '*.safetensors' -o -name 'samples*' \) -type f | sort | xargs sha256sum); }
equal=false
[[ "$(files whole)" == "$(files killed)" && -n "$(files whole)" ]] && equal=true
verified=false
"$wels" verify "$folder/whole/stages" --segments 4 --seed 1 > "$folder/verify.log" 2>&1 && verified=true
$equal || diff <(files whole) <(files killed) >&2
$verified || tail -5 "$folder/verify.log" >&2
count=$(files whole | wc -l)
echo "{\"seconds\": $whole, \"kills\": $kills, \"files\": $count, \"equal\": $equal, \"verified\": $verified}"
$equal && $verified
