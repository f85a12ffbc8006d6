#!/usr/bin/env bash
# The whole path on drawn sample images: prepare → train → test → measure → detect. Every step prints the exact
# command it runs and its time; the end is one table and the paths of the pictures.
#
#     bash scripts/quickstart.sh                     at most 10 minutes on 2 CPU cores once installed;
#                                                    a GPU is used when there is one
#
# Does its own set-up (scripts/setup_env.sh: ESOD_VENV, ESOD_PYTHON). It may be stopped and started again at any
# time: every step overwrites its own results. To change what it does:
#
#   EPOCHS=2 IMAGE_SIZE=960 BATCH_SIZE=8             fine-tuning and testing
#   DEVICE=cpu                                       cpu, 0, 1, …; default: a GPU when there is one
#   WORKERS=2                                        processes that load images
set -euo pipefail

case "${1:-}" in
    "") ;;
    -h|--help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "quickstart: unknown argument $1 (it is steered by variables; see --help)" >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."

EPOCHS="${EPOCHS:-2}"
IMAGE_SIZE="${IMAGE_SIZE:-960}"
BATCH_SIZE="${BATCH_SIZE:-8}"
WORKERS="${WORKERS:-2}"
RUNS=runs/quickstart
LIST=data/images/sample.txt
export PYTHONUNBUFFERED=1 MPLBACKEND=Agg

started=$SECONDS
echo "== Set-up"
PYTHON="$(bash scripts/setup_env.sh)" || exit 1
PYTHON="${PYTHON#"$PWD"/}"
echo "   done in $((SECONDS - started)) s; Python: $PYTHON"
working=$SECONDS

number=0
step() {
    local title="$1" begin=$SECONDS status=0
    shift
    number=$((number + 1))
    printf '\n== %d/%d %s\n\n   $' "$number" "$TOTAL" "$title"
    printf ' %q' "$@"
    printf '\n\n'
    "$@" || status=$?
    if [ "$status" -ne 0 ]; then
        printf '\nquickstart: this step failed (exit %d); the reason is above. Start quickstart again after mending it.\n' \
            "$status" >&2
        exit "$status"
    fi
    printf '\n   done in %d s\n' $((SECONDS - begin))
}

device=()
if [ -n "${DEVICE:-}" ]; then device=(--device "$DEVICE"); fi
common=(--img-size "$IMAGE_SIZE" --workers "$WORKERS" ${device[@]+"${device[@]}"} --project "$RUNS" --exist-ok)
best=$RUNS/train/weights/best.pt
testing=(test.py --data data/sample.yaml --weights "$best" "${common[@]}")
TOTAL=8

# What an earlier quickstart left must not be taken for this one's.
rm -rf "$RUNS"

step "Draw the sample images" "$PYTHON" scripts/make_sample.py --output sample
step "Prepare them: labels, lists, heatmaps" \
    "$PYTHON" scripts/data_prepare.py --dataset VisDrone --root sample --detect-list "$LIST"
step "Fine-tune the shipped model for $EPOCHS epochs" \
    "$PYTHON" train.py --data data/sample.yaml --cfg models/cfg/yolov5n.yaml --weights weights/sample_yolov5n.pt \
    --hyp data/hyps/quickstart.yaml --optimizer adamw --rect --epochs "$EPOCHS" --batch-size "$BATCH_SIZE" "${common[@]}" --name train
step "Test it: accuracy" "$PYTHON" "${testing[@]}" --task val --batch-size "$BATCH_SIZE" --name test
step "Test it: what it costs" "$PYTHON" "${testing[@]}" --task measure --batch-size 1 --name test
step "The same weights without slicing: accuracy" \
    "$PYTHON" "${testing[@]}" --task val --batch-size "$BATCH_SIZE" --slicer none --name test-dense
step "The same weights without slicing: what it costs" \
    "$PYTHON" "${testing[@]}" --task measure --batch-size 1 --slicer none --name test-dense
step "Detect, and show the patches" \
    "$PYTHON" detect.py --weights "$best" --source "$LIST" --img-size "$IMAGE_SIZE" ${device[@]+"${device[@]}"} \
    --view-cluster --line-thickness 1 --project "$RUNS" --name detect --exist-ok

printf '\n== Result, %d s after the set-up\n\n' $((SECONDS - working))
"$PYTHON" scripts/quickstart_summary.py --esod "$RUNS/test" --dense "$RUNS/test-dense" \
    --train "$RUNS/train" --pictures "$RUNS/detect"
