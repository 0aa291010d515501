#!/usr/bin/env bash
# What to run where there is a GPU: the tests that need one, then the speeds of docs/results.md.
#   scripts/gpu_checks.sh [folder for its output]      PYTHON=... chooses the interpreter
# No network is needed: a package that PYTHON lacks may lie as a wheel in .whl/.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu}
mkdir -p "$out"
# The package as pyproject.toml lays it out, without installing: an offline machine may lack pip's
# means to build it.
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir "$site/gjwm"
ln -s "$PWD"/gjwm/* "$PWD/envs" "$PWD/configs" "$site/gjwm/"
python=${PYTHON:-python3}
if compgen -G '.whl/*.whl' > /dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$site" .whl/*.whl || exit 1
fi
export PYTHONPATH=$site PYTHONUNBUFFERED=1 WANDB_MODE=disabled
# -P: the folder gjwm/ here would hide the package
"$python" -P -m pytest -q -m gpu -rs 2>&1 | tee "$out/tests.txt"
status=${PIPESTATUS[0]}
"$python" scripts/benchmark.py gpu 2>&1 | tee "$out/benchmark.txt"
[ "${PIPESTATUS[0]}" = 0 ] || status=1
exit "$status"
