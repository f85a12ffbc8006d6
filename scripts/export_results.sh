#!/usr/bin/env bash
# The evidence of docs/results/export.md: trained weights and their exported files by test.py on the same images, boxes
# and time on ten pictures.
#
#     bash scripts/export_results.sh
#     STEPS="speed page" bash scripts/export_results.sh
#
#   WEIGHTS=runs/visdrone_subset/esod/weights/best.pt      (of scripts/visdrone_subset.sh)
#   DATA=data/visdrone_subset.yaml  PICTURES=VisDroneSubset/VisDrone2019-DET-val/images
#   IMAGE_SIZE=640   SINGLE_SIZE=384x640   input of the tests, and of their single files: that of all images of DATA
#   LARGE_SIZE=1536  LARGE_SINGLE=864x1536   the other input for boxes and time
#   PATCHES=24       of single files; ALL_PATCHES=42: as many as the grid has at SINGLE_SIZE
#   THREADS=2        of torch and of the runtimes
#   RUNS=runs/export_results   RESULTS=docs/results
#   STEPS="files scores speed page"
#   DRY_RUN=1        print the commands and do not run them
set -euo pipefail

case "${1:-}" in
    "") ;;
    -h|--help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "export_results: unknown argument $1 (it is steered by variables; see --help)" >&2; exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

WEIGHTS="${WEIGHTS:-runs/visdrone_subset/esod/weights/best.pt}" DATA="${DATA:-data/visdrone_subset.yaml}"
PICTURES="${PICTURES:-VisDroneSubset/VisDrone2019-DET-val/images}"
IMAGE_SIZE="${IMAGE_SIZE:-640}" SINGLE_SIZE="${SINGLE_SIZE:-384x640}"
LARGE_SIZE="${LARGE_SIZE:-1536}" LARGE_SINGLE="${LARGE_SINGLE:-864x1536}"
PATCHES="${PATCHES:-24}" ALL_PATCHES="${ALL_PATCHES:-42}" THREADS="${THREADS:-2}"
RUNS="${RUNS:-runs/export_results}" RESULTS="${RESULTS:-docs/results}" DRY_RUN="${DRY_RUN:-0}"
read -ra STEPS <<<"${STEPS:-files scores speed page}"
if [[ "$DRY_RUN" == 1 ]]; then PYTHON="${PYTHON:-python}"; else PYTHON="${PYTHON:-$(bash scripts/setup_env.sh)}"; fi
export PYTHONUNBUFFERED=1 MPLBACKEND=Agg OMP_NUM_THREADS="$THREADS"
NAME="$(basename "${WEIGHTS%.pt}")"

run() {
    printf '%q ' "$@"
    echo
    if [[ "$DRY_RUN" != 1 ]]; then "$@"; fi
}

# export FOLDER OPTIONS…
export_files() {
    local folder="$1"
    shift
    run "$PYTHON" export.py --weights "$WEIGHTS" --output "$RUNS/$folder" --include onnx openvino "$@"
}

# score ROW WEIGHTS OPTIONS…
score() {
    local row="$1" weights="$2"
    shift 2
    run "$PYTHON" test.py --data "$DATA" --weights "$weights" --img-size "$IMAGE_SIZE" --batch-size 1 --device cpu \
        --workers 1 --no-report --project "$RUNS" --name "test-$row" --exist-ok "$@"
}

# speed SIZE FOLDER: pair and single file for use.
speed() {
    run "$PYTHON" scripts/benchmark_export.py --weights "$WEIGHTS" --source "$PICTURES" --pictures 10 --rounds 3 \
        --threads "$THREADS" --img-size "$1" --output "$RESULTS/export_speed_$1.json" \
        --exported "$RUNS/$2/${NAME}_stem.onnx" "$RUNS/$2/${NAME}_stem.xml" \
        "$RUNS/$2/${NAME}_k$PATCHES.onnx" "$RUNS/$2/${NAME}_k$PATCHES.xml" \
        "$RUNS/$2/${NAME}_int8_stem.onnx" "$RUNS/$2/${NAME}_int8_stem.xml"
}

SCORES=(--conf-thres 0.001 --iou-thres 0.6 --multi-label)
for step in "${STEPS[@]}"; do
    case "$step" in
        files)
            export_files use --max-patches "$PATCHES" --img-size "$SINGLE_SIZE" --int8 "$DATA"
            export_files large --max-patches "$PATCHES" --img-size "$LARGE_SINGLE" --int8 "$DATA"
            export_files scores --max-patches "$PATCHES" --img-size "$SINGLE_SIZE" "${SCORES[@]}"
            export_files scores --max-patches "$ALL_PATCHES" --img-size "$SINGLE_SIZE" "${SCORES[@]}" ;;
        scores)
            score torch "$WEIGHTS"
            score onnx "$RUNS/use/${NAME}_stem.onnx"
            score openvino "$RUNS/use/${NAME}_stem.xml"
            score int8-onnx "$RUNS/use/${NAME}_int8_stem.onnx"
            score int8-openvino "$RUNS/use/${NAME}_int8_stem.xml"
            score "single-$ALL_PATCHES-onnx" "$RUNS/scores/${NAME}_k$ALL_PATCHES.onnx"
            score "torch-$PATCHES" "$WEIGHTS" --max-patches "$PATCHES"
            score "single-$PATCHES-onnx" "$RUNS/scores/${NAME}_k$PATCHES.onnx"
            score "single-$PATCHES-openvino" "$RUNS/scores/${NAME}_k$PATCHES.xml" ;;
        speed)
            speed "$IMAGE_SIZE" use
            speed "$LARGE_SIZE" large ;;
        page)
            run "$PYTHON" scripts/export_table.py --runs "$RUNS" --output "$RESULTS/export" \
                --rows torch onnx=torch openvino=torch int8-onnx=torch int8-openvino=torch \
                "single-$ALL_PATCHES-onnx=torch" "torch-$PATCHES" \
                "single-$PATCHES-onnx=torch-$PATCHES" "single-$PATCHES-openvino=torch-$PATCHES" \
                --speed "$RESULTS/export_speed_$IMAGE_SIZE.json" "$RESULTS/export_speed_$LARGE_SIZE.json" ;;
        *) echo "export_results: unknown step $step (files, scores, speed, page)" >&2; exit 2 ;;
    esac
done
