#!/usr/bin/env bash
# Compares the time of a sweep of 24 variants (sharing.toml) with the sum of the 24 run alone with empty caches; alternately, five
# times. MODEL: a folder as transformers writes it; DATA: the published sets, with piqa/validation.jsonl; TEXT: calibration text.
set -euo pipefail
[ $# = 3 ] || { echo "usage: benches/sharing.sh MODEL DATA TEXT" >&2; exit 2; }
cd "$(dirname "$0")/.."
runner=${RUNNER:-target/release/runner}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cp benches/sharing.toml "$out"
run() {
    local began ended
    began=$(date +%s.%N)
    "$runner" "$out/sharing.toml" --results "$out/$1" --set "load.model=$2" --set "run.data=$3" --set "importance.corpus=$4" \
        "${@:5}" >"$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
    ended=$(date +%s.%N)
    echo "$began $ended" | awk '{ print $2 - $1 }'
}
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

for round in 1 2 3 4 5; do
    rm -rf "$out/sweep"
    run sweep "$@" >>"$out/together"
    sum=0
    for variant in "$out"/sweep/sharing/*/manifest.json; do
        id=$(basename "$(dirname "$variant")")
        rm -rf "$out/alone"
        seconds=$(run alone "$@" --only "$id")
        sum=$(echo "$sum $seconds" | awk '{ print $1 + $2 }')
        cmp "$out/sweep/sharing/$id/evaluate.parquet" "$out/alone/sharing/$id/evaluate.parquet"
    done
    echo "$sum" >>"$out/apart"
    echo "round $round: together $(tail -1 "$out/together") s, apart $sum s"
done
together=$(median <"$out/together")
apart=$(median <"$out/apart")
echo "median: together $together s, apart $apart s, ratio $(echo "$together $apart" | awk '{ printf "%.3f", $1 / $2 }')"
