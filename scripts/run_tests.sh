#!/usr/bin/env bash
# Runs everything that must hold: ruff, its formatter, mypy, import-linter, the documentation and the test suite.
#
#     bash scripts/run_tests.sh                      at most 15 minutes on 2 CPU cores
#     bash scripts/run_tests.sh --all                also what is long: quickstart from a clean clone, every
#                                                    README command, full fuzzing (sets ESOD_FULL, ESOD_FULL_FUZZ)
#     bash scripts/run_tests.sh -k slicer -x         other arguments go to pytest, as does $PYTEST_ARGS
#
# Does its own set-up (scripts/setup_env.sh: ESOD_VENV, ESOD_PYTHON). Every step runs, also when an earlier one
# failed; the exit status is 0 only when all passed.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

ALL=no
pytest_args=()
for argument in "$@"; do
    case "$argument" in
        --all) ALL=yes ;;
        -h|--help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) pytest_args+=("$argument") ;;
    esac
done

started=$SECONDS
PYTHON="$(bash scripts/setup_env.sh --dev)" || exit 1
echo "== Python: $PYTHON ($((SECONDS - started)) s of set-up)"

export MPLBACKEND=Agg
select=(-m "not slow")
if [ "$ALL" = yes ]; then
    export ESOD_FULL=1 ESOD_FULL_FUZZ=1
    select=()
fi

summary=""
failed=""
step() {
    local name="$1" begin=$SECONDS status=0
    shift
    printf '\n== %s\n' "$name"
    "$@" || status=$?
    if [ "$status" -eq 0 ]; then
        summary+="$(printf '   ok      %5d s  %s' $((SECONDS - begin)) "$name")"$'\n'
    else
        summary+="$(printf '   FAILED  %5d s  %s (exit %d)' $((SECONDS - begin)) "$name" "$status")"$'\n'
        failed+="${failed:+, }$name"
    fi
}

lint_imports='from importlinter.cli import lint_imports_command; lint_imports_command()'

step "ruff check" "$PYTHON" -m ruff check .
step "ruff format" "$PYTHON" -m ruff format --check .
step "mypy" "$PYTHON" -m mypy
step "import-linter" "$PYTHON" -c "$lint_imports" --no-logo
step "documentation" env NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build --strict --quiet
# As many processes as cores, one file of tests at a time in each, PyTorch with one thread in each: what the tests
# compute is too small for more. PYTEST_ARGS is a string of words by convention, so it is split here.
# When one of the processes dies, pytest-xdist may wait for ever: after an hour it is told to end and says what failed.
limit=()
if command -v timeout >/dev/null; then limit=(timeout --foreground --signal=INT --kill-after=60 3600); fi
tests() {
    # shellcheck disable=SC2086
    OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" ${limit[@]+"${limit[@]}"} "$PYTHON" -m pytest -q --durations=25 \
        --numprocesses auto --dist loadfile ${select[@]+"${select[@]}"} ${PYTEST_ARGS:-} "$@"
}
# What looks at the peak memory of its own process, which is that of all tests before it.
memory=(tests/engine/test_batch_size.py)
if [ "${#pytest_args[@]}" -gt 0 ]; then
    step "pytest" tests "${pytest_args[@]}"
else
    step "pytest, memory" tests "${memory[@]}" --numprocesses 0
    step "pytest" tests "${memory[@]/#/--ignore=}"
fi

printf '\n== summary (%d s)\n%s' $((SECONDS - started)) "$summary"
if [ -n "$failed" ]; then
    printf '== FAILED: %s\n' "$failed"
    exit 1
fi
echo "== all steps passed"
