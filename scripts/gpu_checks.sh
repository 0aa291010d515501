#!/usr/bin/env bash
# What to run where there is a GPU, within seven minutes: the tests that need one, the benchmark, and
# the whole run of two-room, timed.
#   scripts/gpu_checks.sh [folder for its output]      PYTHON=... chooses the interpreter
# No network is needed: a package that PYTHON lacks may lie as a wheel in .whl/. Into the folder go
# tests.txt, benchmark.txt, gpu.csv (the rows of docs/gpu.csv), run.txt (with the time of each line)
# and of the run evaluation.json and metrics.jsonl. DRY=1 runs all of it at the smallest size, also
# on a CPU.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p "${1:-gpu}"
out=$(realpath "${1:-gpu}")
# The package as pyproject.toml lays it out, without installing: an offline machine may lack pip's
# means to build it.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
site=$work/site
mkdir -p "$site/gjwm"
python=${PYTHON:-python3}
if compgen -G '.whl/*.whl' > /dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" \
        .whl/*.whl || exit 1
fi
ln -s "$PWD"/gjwm/* "$PWD/envs" "$PWD/configs" "$site/gjwm/"
export PYTHONPATH=$site:$PWD/scripts PYTHONUNBUFFERED=1 WANDB_MODE=disabled
export TORCHINDUCTOR_COMPILE_THREADS=4 # benchmarks/objective.py would have one
status=0

part() { # name, seconds, command...: its own log and limit; a failure stops no other part
    local name=$1 limit=$2 since=$SECONDS
    shift 2
    timeout --kill-after=5 "$limit" "$@" 2>&1 | stdbuf -oL tr '\r' '\n' |
        while IFS= read -r line; do printf '%(%T)T %s\n' -1 "$line"; done | tee "$out/$name.txt"
    local code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || status=1
    echo "== $name: exit $code, $((SECONDS - since)) s (limit $limit s)" | tee -a "$out/$name.txt"
}

# -P: the folder gjwm/ here would hide the package. Several processes, as one waits for compilers.
processes=()
"$python" -c 'import xdist' 2> /dev/null && processes=(-n 4)
# its warning about several processes would be an error
"$python" -c 'import pytest_benchmark' 2> /dev/null && processes+=(-p no:benchmark)
device=cuda quick=() small=()
if [ -n "${DRY:-}" ]; then
    device=cpu quick=(quick=true)
    small=(env.size=16 collect.episodes=24 collect.length=30 collect.workers=1 train.steps=40
        reach.steps=20 calibrate.episodes=8 calibrate.horizon=4 calibrate.particles=8
        evaluate.episodes=12 evaluate.length=30 evaluate.pairs=4 evaluate.steps=6
        evaluate.probe_steps=40)
fi
part tests 100 "$python" -P -m pytest -q -m gpu -rs --durations=10 -p no:cacheprovider \
    "${processes[@]}"
part benchmark 110 "$python" -P -m benchmarks.gpu "$out/gpu.csv" "${quick[@]}"
# What is left; no decoder, films or planning on the simulator, which success does not need.
part run "$((400 - SECONDS))" "$python" -P -m gjwm run experiment=two_room \
    device=$device run_dir="$work/run" dataset="$work/data" logger.wandb=disabled decode.steps=0 \
    evaluate.oracle=false report.worst=0 report.typical=0 report.every=0 "${small[@]}"
for file in evaluation.json metrics.jsonl metrics.jsonl.partial; do
    [ ! -f "$work/run/$file" ] || cp "$work/run/$file" "$out/${file%.partial}"
done
exit "$status"
