#!/usr/bin/env bash
# Train a detector: variables in front choose what, arguments behind go to train.py as they are
# (paths in them are relative to the repository).
#
#   DATASET=visdrone MODEL=yolov5m GPUS=0 BATCH_SIZE=8 IMAGE_SIZE=1536 EPOCHS=50 bash ./scripts/train.sh
#
#   DATASET     data/<DATASET>.yaml                                       (visdrone)
#   MODEL       models/cfg/<MODEL>.yaml                                   (yolov5m)
#   GPUS        0 | 0,1,2,3: one process each | cpu                       (0)
#   BATCH_SIZE  images per batch, over all processes together; -1: what fits  (8)
#   IMAGE_SIZE  longer side in pixels, or HEIGHTxWIDTH     (by dataset: visdrone 1536, uavdt 1280,
#               tinyperson 2048, sample 960; others 1536)
#   EPOCHS      passes over the training set                              (50)
#   WEIGHTS     initial weights, or none for scratch                      (weights/pretrained/<MODEL>.pt;
#               for a variant such as yolov5s-p2 also yolov5s.pt)
#   SLICER      grid | greedy | none (the dense twin)                     (as in the model's YAML)
#   HEAD        dense | sparse: what the checkpoint uses when it detects  (as in the model's YAML)
#   HYP         hyper-parameters                                          (data/hyps/default.yaml)
#   WORKERS     data loading processes per training process               (train.py's default)
#   NAME        name of the run in runs/train                             (exp)
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT: several machines, run on each with its own NODE_RANK
#   ESOD_VENV   virtual environment                                       (.venv, else python3)
#   DRY_RUN=1   print the command and do not run it

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CALLER="$PWD"

fail() {
  echo "train.sh: $1" >&2
  exit 2
}

usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$ROOT/scripts/train.sh"
  echo "Arguments: see python train.py --help"
  exit 0
}

# Names of the files in a folder without their ending, in one line.
names_in() {
  local file names=""
  for file in "$1"/*."$2"; do
    if [[ -e "$file" ]]; then names+="${names:+, }$(basename "$file" ".$2")"; fi
  done
  echo "${names:-none}"
}

# A file given relative to where the caller is, or else to the repository.
locate() {
  if [[ "$1" != /* && "$CALLER" != "$ROOT" && -e "$CALLER/$1" ]]; then
    echo "$CALLER/$1"
  else
    echo "$1"
  fi
}

require_whole_number() {
  [[ "$2" =~ ^[1-9][0-9]*$ ]] || fail "$1=$2 is not a whole number of at least 1"
}

default_image_size() {
  case "$1" in
    uavdt*) echo 1280 ;;
    tinyperson) echo 2048 ;;
    sample) echo 960 ;;
    *) echo 1536 ;;
  esac
}

find_python() {
  local venv
  if [[ "${ESOD_VENV:-}" == none ]]; then
    command -v python3 || fail "no python3 found"
  elif [[ -n "${ESOD_VENV:-}" ]]; then
    venv="$(locate "$ESOD_VENV")"
    [[ -x "$venv/bin/python" ]] || fail "ESOD_VENV=$ESOD_VENV has no bin/python; run scripts/setup_env.sh to make it"
    echo "$venv/bin/python"
  elif [[ -x "$ROOT/.venv/bin/python" ]]; then
    echo "$ROOT/.venv/bin/python"
  else
    command -v python3 || fail "no python3 found: run scripts/setup_env.sh, or set ESOD_VENV"
  fi
}

# $1: number of processes per machine. Prints nothing for a single process.
launcher() {
  local nodes="${NNODES:-1}"
  require_whole_number NNODES "$nodes"
  if ((nodes > 1)); then
    [[ -n "${MASTER_ADDR:-}" ]] || fail "NNODES=$nodes needs MASTER_ADDR, the address of the machine with NODE_RANK=0"
    if ! [[ "${NODE_RANK:-}" =~ ^(0|[1-9][0-9]*)$ ]] || ((NODE_RANK >= nodes)); then
      fail "NNODES=$nodes needs NODE_RANK, this machine's number from 0 to $((nodes - 1))"
    fi
    printf '%s\n' -m torch.distributed.run --nnodes "$nodes" --node_rank "$NODE_RANK" \
      --nproc_per_node "$1" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}"
  elif (($1 > 1)) && [[ -n "${MASTER_PORT:-}" ]]; then
    printf '%s\n' -m torch.distributed.run --nproc_per_node "$1" --master_port "$MASTER_PORT"
  elif (($1 > 1)); then
    # A free port is chosen, so that two trainings on one machine do not meet.
    printf '%s\n' -m torch.distributed.run --standalone --nproc_per_node "$1"
  fi
}

# A resumed run has its weights and options in its checkpoint: only the device is chosen anew.
RESUME=0
for argument in "$@"; do
  case "$argument" in
    --resume | --resume=*) RESUME=1 ;;
    -h | --help) usage ;;
    *) ;;
  esac
done

DATASET="${DATASET:-visdrone}"
MODEL="${MODEL:-yolov5m}"
GPUS="${GPUS:-0}"
BATCH_SIZE="${BATCH_SIZE:-8}"
IMAGE_SIZE="${IMAGE_SIZE:-$(default_image_size "$DATASET")}"
EPOCHS="${EPOCHS:-50}"
HYP="${HYP:-data/hyps/default.yaml}"

cd "$ROOT"
if [[ -z "${WEIGHTS:-}" ]]; then
  WEIGHTS="weights/pretrained/$MODEL.pt" base="weights/pretrained/${MODEL%%-*}.pt"
  if [[ ! -f "$WEIGHTS" && -f "$base" ]]; then WEIGHTS="$base"; fi
fi
[[ -f "data/$DATASET.yaml" ]] || fail "no dataset data/$DATASET.yaml; DATASET is one of: $(names_in data yaml)"
[[ -f "models/cfg/$MODEL.yaml" ]] || fail "no model models/cfg/$MODEL.yaml; MODEL is one of: $(names_in models/cfg yaml)"
[[ "$GPUS" =~ ^(cpu|[0-9]+(,[0-9]+)*)$ ]] || fail "GPUS=$GPUS is neither cpu nor GPU numbers such as 0 or 0,1,2,3"
[[ "$BATCH_SIZE" == -1 ]] || require_whole_number BATCH_SIZE "$BATCH_SIZE"
require_whole_number EPOCHS "$EPOCHS"

HYP="$(locate "$HYP")"
WEIGHTS="$(locate "$WEIGHTS")"
if [[ $RESUME == 0 && "$WEIGHTS" != none && ! -f "$WEIGHTS" ]]; then
  fail "no initial weights at $WEIGHTS.
  Convert the published ones (docs/models.md says which), for example
    python scripts/model_convert.py --weights DOWNLOADED_FILE --output $WEIGHTS
  or name any file as WEIGHTS, or train from scratch with WEIGHTS=none"
fi

COMMAS="${GPUS//[^,]/}"
PROCESSES=$((${#COMMAS} + 1))
LAUNCHER="$(launcher "$PROCESSES")"
TOTAL=$((PROCESSES * ${NNODES:-1}))
((RESUME == 1 || BATCH_SIZE == -1 || BATCH_SIZE % TOTAL == 0)) ||
  fail "BATCH_SIZE=$BATCH_SIZE is the total over $TOTAL processes: it must be a multiple of $TOTAL"

PYTHON="$(find_python)"
COMMAND=("$PYTHON")
while IFS= read -r word; do
  if [[ -n "$word" ]]; then COMMAND+=("$word"); fi
done <<<"$LAUNCHER"
COMMAND+=(train.py)
if [[ $RESUME == 0 ]]; then
  COMMAND+=(--data "data/$DATASET.yaml" --cfg "models/cfg/$MODEL.yaml" --weights "$WEIGHTS" --hyp "$HYP")
  COMMAND+=(--batch-size "$BATCH_SIZE" --img-size "$IMAGE_SIZE" --epochs "$EPOCHS")
  [[ -z "${SLICER:-}" ]] || COMMAND+=(--slicer "$SLICER")
  [[ -z "${HEAD:-}" ]] || COMMAND+=(--head "$HEAD")
  [[ -z "${WORKERS:-}" ]] || COMMAND+=(--workers "$WORKERS")
  [[ -z "${NAME:-}" ]] || COMMAND+=(--name "$NAME")
fi
COMMAND+=(--device "$GPUS" "$@")

printf '%q ' "${COMMAND[@]}"
echo
if [[ "${DRY_RUN:-0}" == 1 ]]; then exit 0; fi
"$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' ||
  fail "$PYTHON has no PyTorch: run scripts/setup_env.sh, which makes .venv, or set ESOD_VENV"
exec "${COMMAND[@]}"
