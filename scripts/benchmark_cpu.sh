#!/usr/bin/env bash
# Every measurement of speed on a CPU on which nothing else runs: YOLOv5m at 896×1536 in float32, plain, fast and
# compiled, at several shares of the map; batches of 1 and 4, and memory; sparse heads; the parts alone; int8. Results go
# to docs/results/, tables and what is aimed at to docs/performance.md.
#
#     bash scripts/benchmark_cpu.sh
#     STEPS="shares parts" LIMIT=200 bash scripts/benchmark_cpu.sh
#
#   THREADS=2      of PyTorch
#   LIMIT=600      seconds for the rounds of each benchmark; no further round begins behind it
#   CFG=models/cfg/yolov5m.yaml SIZE=896x1536
#   VARIANTS="plain fast fast-compile"      of step shares; with half on a CPU that has bf16 in hardware
#   STEPS="shares batches sparse parts int8 page"    a step that is left out leaves its file as it is
#   RESULTS=docs/results
#   PAGE=docs/performance.md
#   DRY_RUN=1      print the commands and do not run them
set -euo pipefail

case "${1:-}" in
    "") ;;
    -h|--help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "benchmark_cpu: unknown argument $1 (it is steered by variables; see --help)" >&2; exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

THREADS="${THREADS:-2}" LIMIT="${LIMIT:-600}"
CFG="${CFG:-models/cfg/yolov5m.yaml}" SIZE="${SIZE:-896x1536}"
RESULTS="${RESULTS:-docs/results}" PAGE="${PAGE:-docs/performance.md}" DRY_RUN="${DRY_RUN:-0}"
read -ra VARIANTS <<<"${VARIANTS:-plain fast fast-compile}"
read -ra STEPS <<<"${STEPS:-shares batches sparse parts int8 page}"
if [[ "$DRY_RUN" == 1 ]]; then PYTHON="${PYTHON:-python}"; else PYTHON="${PYTHON:-$(bash scripts/setup_env.sh)}"; fi
export PYTHONUNBUFFERED=1 MPLBACKEND=Agg

run() {
    printf '%q ' "$@"
    echo
    if [[ "$DRY_RUN" != 1 ]]; then "$@"; fi
}

COMMON=(--cfg "$CFG" --img-size "$SIZE" --threads "$THREADS")
TIMED=(--rounds 20 --warmup 1 --seconds "$LIMIT" --device cpu)
FILES=()
for name in cpu cpu_batches cpu_sparse; do FILES+=("$RESULTS/benchmark_$name.json"); done
for step in "${STEPS[@]}"; do
    case "$step" in
        shares) run "$PYTHON" scripts/benchmark.py "${COMMON[@]}" "${TIMED[@]}" --kept 0 0.1 0.2 0.5 1 --heads dense \
            --variants "${VARIANTS[@]}" --json "${FILES[0]}" ;;
        batches) run "$PYTHON" scripts/benchmark.py "${COMMON[@]}" "${TIMED[@]}" --kept 0.2 --heads dense --batch-sizes 1 4 \
            --variants plain fast --memory --json "${FILES[1]}" ;;
        sparse) run "$PYTHON" scripts/benchmark.py "${COMMON[@]}" "${TIMED[@]}" --kept 0.2 0.5 --variants fast \
            --json "${FILES[2]}" ;;
        parts) run "$PYTHON" scripts/benchmark_parts.py "${COMMON[@]}" --variants fast --rounds 20 --device cpu \
            --json "$RESULTS/benchmark_cpu_parts.json" ;;
        int8) run "$PYTHON" scripts/int8_speed.py "${COMMON[@]}" --kept 0.2 --rounds 40 --json "$RESULTS/int8_cpu.json" ;;
        page)
            parts=()
            if [[ "$DRY_RUN" == 1 || -f "$RESULTS/benchmark_cpu_parts.json" ]]; then
                parts=(--parts "$RESULTS/benchmark_cpu_parts.json")
            fi
            found=()
            for file in "${FILES[@]}"; do if [[ "$DRY_RUN" == 1 || -f "$file" ]]; then found+=("$file"); fi; done
            run "$PYTHON" scripts/benchmark.py --from-json "${found[@]}" "${parts[@]}" \
                --plot "$RESULTS/time.png" --page "$PAGE" ;;
        *) echo "benchmark_cpu: unknown step $step (shares, batches, sparse, parts, int8, page)" >&2; exit 2 ;;
    esac
done
