#!/usr/bin/env bash
# Every measurement of speed on a GPU, for somebody who has one: YOLOv5m at 864×1536 and at 1088×1920 (what 1080×1920
# is padded to), YOLOv5x at 864×1536; batches of 1 and 8; 20 % of the map kept, and the shares around it; float32,
# fp16 and bf16, eager, compiled, as CUDA graphs, and both; and the parts alone. Images per second include decoding and
# suppression. Results go to docs/results/, tables with the floor beside each time, and what is aimed at, to
# docs/performance.md.
#
#     bash scripts/benchmark_gpu.sh
#     DEVICE=1 ROUNDS=50 bash scripts/benchmark_gpu.sh
#     MODELS=models/cfg/yolov5m.yaml:864x1536 VARIANTS="plain half-graph" BATCHES=1 bash scripts/benchmark_gpu.sh
#
#   DEVICE=0       GPU number (cpu only tries whether the script works)
#   ROUNDS=20      each runs every case once
#   MODELS="models/cfg/yolov5m.yaml:864x1536 …"    configuration:height×width, a file of results each
#   BATCHES="1 8"
#   KEPT="0 0.1 0.2 0.5 1"
#   VARIANTS="plain fast fast-compile fast-graph half half-compile half-graph half-compile-graph"
#   RESULTS=docs/results
#   PAGE=docs/performance.md
#   DRY_RUN=1      print the commands and do not run them
#
# Nothing else should run on the machine. A variant that does not compile is named in the tables; the rest goes on.
set -euo pipefail

case "${1:-}" in
    "") ;;
    -h|--help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "benchmark_gpu: unknown argument $1 (it is steered by variables; see --help)" >&2; exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DEVICE="${DEVICE:-0}"
ROUNDS="${ROUNDS:-20}"
RESULTS="${RESULTS:-docs/results}"
PAGE="${PAGE:-docs/performance.md}"
DRY_RUN="${DRY_RUN:-0}"
read -ra MODELS <<<"${MODELS:-models/cfg/yolov5m.yaml:864x1536 models/cfg/yolov5m.yaml:1088x1920 models/cfg/yolov5x.yaml:864x1536}"
read -ra BATCHES <<<"${BATCHES:-1 8}"
read -ra KEPT <<<"${KEPT:-0 0.1 0.2 0.5 1}"
read -ra VARIANTS <<<"${VARIANTS:-plain fast fast-compile fast-graph half half-compile half-graph half-compile-graph}"
if [[ "$DRY_RUN" == 1 ]]; then PYTHON="${PYTHON:-python}"; else PYTHON="${PYTHON:-$(bash scripts/setup_env.sh)}"; fi
export PYTHONUNBUFFERED=1 MPLBACKEND=Agg

run() {
    printf '%q ' "$@"
    echo
    if [[ "$DRY_RUN" != 1 ]]; then "$@"; fi
}

if [[ "$DRY_RUN" != 1 && "$DEVICE" != cpu ]] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "benchmark_gpu: PyTorch sees no GPU here; scripts/benchmark.py --device cpu measures a CPU" >&2
    exit 1
fi

# Results of the model and input MODEL:SIZE go to a file of their own.
FILES=()
for pair in "${MODELS[@]}"; do
    config="${pair%:*}" size="${pair##*:}"
    file="$RESULTS/benchmark_gpu_$(basename "$config" .yaml)_$size.json"
    run "$PYTHON" scripts/benchmark.py --cfg "$config" --img-size "$size" --batch-sizes "${BATCHES[@]}" \
        --kept "${KEPT[@]}" --variants "${VARIANTS[@]}" --rounds "$ROUNDS" --warmup 3 --memory --device "$DEVICE" \
        --json "$file"
    FILES+=("$file")
done
config="${MODELS[0]%:*}" size="${MODELS[0]##*:}"
run "$PYTHON" scripts/benchmark_parts.py --cfg "$config" --img-size "$size" --variants fast half \
    --rounds "$ROUNDS" --device "$DEVICE" --json "$RESULTS/benchmark_gpu_parts.json"
run "$PYTHON" scripts/benchmark.py --from-json "${FILES[@]}" --parts "$RESULTS/benchmark_gpu_parts.json" \
    --plot "$RESULTS/benchmark_gpu.png" --page "$PAGE"
