#!/usr/bin/env bash
# Prepares the Python environment and prints, as its only line on standard output, the Python to use:
#
#     PYTHON="$(bash scripts/setup_env.sh)"          runtime only
#     PYTHON="$(bash scripts/setup_env.sh --dev)"    with what the tests need
#     bash scripts/setup_env.sh --key                prints a key of (requirements, Python), for caches
#
# Idempotent: when nothing changed it only checks a stamp, without a network. An interrupted installation is
# rebuilt by the next call. Messages go to standard error.
#
#   ESOD_VENV     where the environment lives (default: .venv in the project); "none": use the Python at hand
#                 as it is and only check that everything is there
#   ESOD_PYTHON   the Python to build it with (default: the first suitable one on PATH)
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${ESOD_VENV:-$ROOT/.venv}"
CANDIDATES=(python3 python3.13 python3.12 python3.11 python3.10 python3.14 python)

say() { printf 'setup: %s\n' "$*" >&2; }

die() {
    printf '\nsetup: %s\n' "$1" >&2
    shift
    if [ "$#" -gt 0 ]; then printf '       %s\n' "$@" >&2; fi
    exit 1
}

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
}

# --- which Python ------------------------------------------------------------------------------------------

# Version "3.11" of a Python; fails when it does not run at all (a pyenv shim without its version, say).
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Sets BASE_PYTHON to a Python ≥ 3.10 that can make environments, or stops and names what to install.
find_python() {
    local need_venv="$1" candidate version without_venv="" too_old=""
    local candidates=("${CANDIDATES[@]}")
    if [ -n "${ESOD_PYTHON:-}" ]; then candidates=("$ESOD_PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        version="$(version_of "$candidate")" || continue
        if ! is_recent "$candidate"; then
            too_old="${too_old:-$candidate is $version}"
        elif [ "$need_venv" = yes ] && ! can_make_venv "$candidate"; then
            without_venv="${without_venv:-$candidate}"
        else
            BASE_PYTHON="$(command -v "$candidate")"
            case "$BASE_PYTHON" in /*) ;; *) BASE_PYTHON="$PWD/$BASE_PYTHON" ;; esac
            return 0
        fi
    done
    if [ -n "$without_venv" ]; then
        version="$(version_of "$without_venv")"
        die "$without_venv (Python $version) cannot make virtual environments: its venv/ensurepip module is missing." \
            "Debian, Ubuntu:  apt-get install -y python3-venv   (or python$version-venv)" \
            "then run this again; or point ESOD_PYTHON at a complete Python ≥ 3.10;" \
            "or set ESOD_VENV=none to use a Python that has all of requirements.txt already."
    fi
    if [ -n "${ESOD_PYTHON:-}" ]; then
        die "ESOD_PYTHON=$ESOD_PYTHON is no Python ≥ 3.10${too_old:+ ($too_old)}."
    fi
    die "No Python ≥ 3.10 found${too_old:+ ($too_old)}." \
        "Debian, Ubuntu:  apt-get install -y python3 python3-venv" \
        "or point ESOD_PYTHON at one."
}

# --- what is to be installed -------------------------------------------------------------------------------

hash_of() {
    if command -v sha256sum >/dev/null 2>&1; then cat "$@" | sha256sum | cut -c1-16
    elif command -v shasum >/dev/null 2>&1; then cat "$@" | shasum -a 256 | cut -c1-16
    else cat "$@" | cksum | tr ' ' '-'
    fi
}

# What an environment is made from; a change of it means installing again.
stamp_text() {
    if [ "$1" = dev ]; then hash_of "$ROOT/requirements.txt" "$ROOT/requirements-dev.txt"
    else hash_of "$ROOT/requirements.txt"
    fi
}

stamp_file() { printf '%s/.esod-%s.stamp\n' "$VENV" "$1"; }

# True when the environment holds what $1 (runtime or dev) needs and its Python still is what it was.
is_ready() {
    local kind="$1" python="$VENV/bin/python" version
    [ -x "$python" ] && [ -f "$(stamp_file "$kind")" ] || return 1
    version="$(version_of "$python")" || return 1
    [ "$(cat "$(stamp_file "$kind")")" = "$(stamp_text "$kind") $version" ]
}

# --- building it -------------------------------------------------------------------------------------------

# Only the parts that venv itself makes are ever deleted, whatever folder ESOD_VENV names.
remove_venv() {
    local part
    for part in bin include lib lib64 share pyvenv.cfg; do rm -rf "${VENV:?}/$part"; done
}

check_folder() {
    if [ -e "$VENV" ] && [ ! -d "$VENV" ]; then die "ESOD_VENV=$VENV is a file; name a folder."; fi
    if [ -d "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ ! -f "$VENV/.esod-installing" ] \
        && [ -n "$(find "$VENV" -mindepth 1 -maxdepth 1 ! -name '.esod-*' -print -quit)" ]; then
        die "$VENV is not empty and not a virtual environment; set ESOD_VENV to another folder."
    fi
    mkdir -p "$VENV" 2>/dev/null && [ -w "$VENV" ] \
        || die "$VENV cannot be written; set ESOD_VENV to a folder that can."
}

# Makes the environment unless a healthy one is there. One whose installation was cut short, or whose own
# Python has gone or changed, is made anew: pip trusts half-written packages.
make_venv() {
    local python="$VENV/bin/python" version
    if [ ! -f "$VENV/.esod-installing" ] && [ -x "$python" ] && "$python" -m pip --version >/dev/null 2>&1; then
        version="$(version_of "$python")"
        is_recent "$python" || die "The environment in $VENV has Python $version; 3.10 or newer is needed." \
            "Delete it, or set ESOD_VENV to another folder."
        return 0
    fi
    find_python yes
    if [ -f "$VENV/.esod-installing" ]; then say "an earlier installation was cut short: starting afresh"; fi
    say "making an environment in $VENV with $BASE_PYTHON (Python $(version_of "$BASE_PYTHON"))"
    touch "$VENV/.esod-installing"
    remove_venv
    local log
    log="$("$BASE_PYTHON" -m venv "$VENV" 2>&1)" || die "making the environment failed:" "$log" \
        "Debian, Ubuntu:  apt-get install -y python3-venv   (or python$(version_of "$BASE_PYTHON")-venv)"
}

# OpenCV's wheel needs two system libraries that slim images lack; say which package has them.
check_imports() {
    local python="$1" log
    if ! log="$("$python" -c 'import cv2' 2>&1)"; then
        case "$log" in
            *libGL*|*libgthread*|*libglib*|*libSM*|*libXext*|*libxcb*|*"shared object file"*)
                die "OpenCV cannot be loaded because a system library is missing:" "${log##*$'\n'}" \
                    "Debian, Ubuntu:  apt-get install -y libgl1 libglib2.0-0" \
                    "Fedora, RHEL:    dnf install -y mesa-libGL glib2" \
                    "then run this again." ;;
            *) die "'import cv2' fails:" "$log" ;;
        esac
    fi
    log="$("$python" -c 'import torch, torchvision' 2>&1)" || die "'import torch, torchvision' fails:" "$log" \
        "torch and torchvision must come from the same index: remove both and install requirements.txt again."
}

# The marker is written first and the stamp last, so that whatever happens in between is noticed. When pip
# gives up before it has written anything (no network, no such version) the environment is as good as it was
# and no marker stays.
install_requirements() {
    local kind="$1" file=requirements.txt python="$VENV/bin/python" log="$VENV/.esod-pip.log"
    if [ "$kind" = dev ]; then file=requirements-dev.txt; fi
    say "installing $file (the first time about 6 GB on disk and a few minutes)"
    touch "$VENV/.esod-installing"
    rm -f "$(stamp_file runtime)" "$(stamp_file dev)" "$log"
    trap 'exit 130' INT TERM
    if ! PIP_USER=0 "$python" -m pip install --disable-pip-version-check --no-input --log "$log" \
        -r "$ROOT/$file" >&2; then
        if ! grep -q 'Installing collected packages' "$log" 2>/dev/null; then rm -f "$VENV/.esod-installing"; fi
        die "pip could not install $file; its reason is above." \
            "It needs a network (or a pip cache), about 10 GB of free disk, and a Python that torch has wheels" \
            "for (this is $(version_of "$python"); ESOD_PYTHON chooses another). Then run this again."
    fi
    trap - INT TERM
    rm -f "$VENV/.esod-installing" "$log"
    check_imports "$python"
    write_stamp runtime
    if [ "$kind" = dev ]; then write_stamp dev; fi
}

write_stamp() {
    local target
    target="$(stamp_file "$1")"
    printf '%s %s\n' "$(stamp_text "$1")" "$(version_of "$VENV/bin/python")" >"$target.new"
    mv -f "$target.new" "$target"
}

# Two runs that start together (tests beside a quickstart) must not install into one folder at once.
with_lock() {
    if command -v flock >/dev/null 2>&1; then
        exec 9>"$VENV/.esod-lock"
        if ! flock -n 9; then
            say "another installation into $VENV is running: waiting for it"
            flock 9
        fi
    fi
    "$@"
}

prepare() {
    local kind="$1"
    if is_ready "$kind"; then return 0; fi
    make_venv
    install_requirements "$kind"
    say "ready: $VENV"
}

# --- ESOD_VENV=none ----------------------------------------------------------------------------------------

check_current() {
    local kind="$1" file=requirements.txt modules="torch torchvision numpy cv2 yaml matplotlib tqdm segment_anything thop scipy \
faster_coco_eval tensorboard" missing
    if [ "$kind" = dev ]; then
        file=requirements-dev.txt
        modules="$modules pytest pytest_timeout hypothesis ruff mypy importlinter mkdocs material mlflow"
    fi
    missing="$("$BASE_PYTHON" - "$modules" <<'PY'
import sys
from importlib.util import find_spec

print(" ".join(name for name in sys.argv[1].split() if find_spec(name) is None))
PY
)"
    if [ -n "$missing" ]; then
        die "ESOD_VENV=none: $BASE_PYTHON lacks the modules: $missing" \
            "Install them ($BASE_PYTHON -m pip install -r $file)" \
            "or unset ESOD_VENV, and an environment of the project's own is made."
    fi
}

main() {
    local kind=runtime
    case "${1:-}" in
        "") ;;
        --dev) kind=dev ;;
        --key)
            find_python no
            printf '%s-py%s\n' "$(stamp_text dev)" "$(version_of "$BASE_PYTHON")"
            return 0 ;;
        -h|--help) usage; return 0 ;;
        *) usage >&2; printf '\nsetup: unknown argument: %s (there are --dev, --key and --help)\n' "$1" >&2; exit 2 ;;
    esac
    if [ "$VENV" = none ]; then
        find_python no
        check_current "$kind"
        printf '%s\n' "$BASE_PYTHON"
        return 0
    fi
    case "$VENV" in /*) ;; *) VENV="$PWD/$VENV" ;; esac
    if ! is_ready "$kind"; then
        check_folder
        with_lock prepare "$kind"
    fi
    printf '%s\n' "$VENV/bin/python"
}

main "$@"
