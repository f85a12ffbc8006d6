#!/usr/bin/env bash
# The comparison of docs/results/visdrone_subset*.md: a detector from COCO weights, fine-tuned with the same schedule on
# a part of VisDrone, dense, with ESOD, and with ESOD whose patches see each other; all tested for accuracy and cost.
#
#     bash scripts/visdrone_subset.sh                      YOLOv5s on the CPU: 640 pixels, 8 epochs
#     MODEL=yolov8s bash scripts/visdrone_subset.sh
#     DEVICE=0 IMAGE_SIZE=1536 EPOCHS=50 bash scripts/visdrone_subset.sh
#
#   SOURCE=VisDrone      VisDrone, unpacked; the images that data/subsets/visdrone names are taken from it
#   MODEL=yolov5s        of models/cfg
#   WEIGHTS=…            initial weights (weights/pretrained/MODEL.pt)
#   DEVICE=cpu  IMAGE_SIZE=640  EPOCHS=8  BATCH_SIZE=4  WORKERS=2
#   RESULT=…             name of the report (visdrone_subset, of other models visdrone_subset_MODEL)
#   RUNS=runs/RESULT
#
# May be stopped and started again: a finished training is kept, an interrupted one is resumed.
set -euo pipefail

case "${1:-}" in
    "") ;;
    -h|--help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "visdrone_subset: unknown argument $1 (it is steered by variables; see --help)" >&2; exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SOURCE="${SOURCE:-VisDrone}"
MODEL="${MODEL:-yolov5s}"
WEIGHTS="${WEIGHTS:-weights/pretrained/$MODEL.pt}"
DEVICE="${DEVICE:-cpu}"
IMAGE_SIZE="${IMAGE_SIZE:-640}"
EPOCHS="${EPOCHS:-8}"
BATCH_SIZE="${BATCH_SIZE:-4}"
WORKERS="${WORKERS:-2}"
case "$MODEL" in yolov5s) name=visdrone_subset ;; *) name="visdrone_subset_$MODEL" ;; esac
RESULT="${RESULT:-$name}"
RUNS="${RUNS:-runs/$RESULT}"
PYTHON="${PYTHON:-$(bash scripts/setup_env.sh)}"
export PYTHONUNBUFFERED=1 MPLBACKEND=Agg

run() {
    printf '\n   $'
    printf ' %q' "$@"
    printf '\n\n'
    "$@"
}

# Rows of a results.csv below its header: the epochs that are over.
epochs_done() { if [ -f "$1" ]; then tail -n +2 "$1" | wc -l; else echo 0; fi; }

# train NAME [flags…]: a new run, the rest of an interrupted one, or nothing when it is finished.
train() {
    local name="$1" last="$RUNS/$1/weights/last.pt"
    shift
    if [ "$(epochs_done "$RUNS/$name/results.csv")" -ge "$EPOCHS" ]; then echo "== $name is finished"; return; fi
    echo "== train $name"
    if [ -f "$last" ]; then
        run "$PYTHON" train.py --resume "$last" --device "$DEVICE" --workers "$WORKERS"
    else
        run "$PYTHON" train.py --data data/visdrone_subset.yaml --cfg "models/cfg/$MODEL.yaml" --weights "$WEIGHTS" \
            --hyp data/hyps/finetune.yaml --optimizer adamw --img-size "$IMAGE_SIZE" --rect --epochs "$EPOCHS" \
            --batch-size "$BATCH_SIZE" --workers "$WORKERS" --device "$DEVICE" --notest \
            --project "$RUNS" --name "$name" --exist-ok "$@"
    fi
}

# evaluate NAME TRAINED [flags…]: accuracy and cost of the weights of a training.
evaluate() {
    local name="$1" weights="$RUNS/$2/weights/best.pt"
    shift 2
    echo "== test $name"
    local common=(--data data/visdrone_subset.yaml --weights "$weights" --img-size "$IMAGE_SIZE" --device "$DEVICE"
        --workers "$WORKERS" --project "$RUNS" --name "test-$name" --exist-ok)
    run "$PYTHON" test.py "${common[@]}" --task val --batch-size "$BATCH_SIZE" "$@"
    run "$PYTHON" test.py "${common[@]}" --task measure --batch-size 1 "$@"
}

if [ ! -f "$WEIGHTS" ]; then
    echo "visdrone_subset: no $WEIGHTS: python scripts/model_convert.py --weights $MODEL.pt --output $WEIGHTS" >&2
    exit 1
fi
run "$PYTHON" scripts/take_subset.py --source "$SOURCE" --output VisDroneSubset
run "$PYTHON" scripts/data_prepare.py --dataset VisDrone --root VisDroneSubset --detect-list VisDroneSubset/split/detect.txt
train dense --slicer none
train esod
train esod-neighbours --borders neighbours
evaluate dense dense
evaluate esod-grid esod
evaluate esod-greedy esod --slicer greedy
evaluate esod-sparse-head esod --head sparse
evaluate esod-larger-input esod --img-size "$((IMAGE_SIZE * 5 / 4))"
evaluate esod-neighbours esod-neighbours
evaluate esod-neighbours-larger-input esod-neighbours --img-size "$((IMAGE_SIZE * 5 / 4))"
evaluate esod-neighbours-fewer-patches esod-neighbours --heatmap-thres 0.7
evaluate esod-neighbours-unsliced esod-neighbours --slicer none
run "$PYTHON" scripts/result_table.py --runs "$RUNS" --output "docs/results/$RESULT" \
    --made-by "MODEL=$MODEL IMAGE_SIZE=$IMAGE_SIZE EPOCHS=$EPOCHS BATCH_SIZE=$BATCH_SIZE bash scripts/visdrone_subset.sh" \
    --rows dense esod-grid esod-greedy esod-sparse-head esod-larger-input esod-neighbours esod-neighbours-larger-input \
    esod-neighbours-fewer-patches esod-neighbours-unsliced \
    --trained dense esod esod esod esod esod-neighbours esod-neighbours esod-neighbours esod-neighbours
