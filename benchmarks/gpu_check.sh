#!/usr/bin/env bash
# Everything that needs a GPU: benchmarks/gpu_check.sh [tests random sanitize compile forward ladder]   (all of them by default)
# Goes on after a failure; merges the results into FCGEN_RESULTS (benchmarks/results); fails at the end if a step did.
# FCGEN_CONFIGS: how many random configurations (2000). PYTHON: the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
results=${FCGEN_RESULTS:-benchmarks/results}
steps=${*:-tests random sanitize compile forward ladder}
parts=$results/parts
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$parts"
rm -f "$parts"/*.json

failed=()
for step in $steps; do
    echo "=== $step"
    case $step in
        tests)    "$python" -m benchmarks.gpu_suite --json "$parts/tests.json" ;;
        random)   "$python" -m benchmarks.random_configs --count "${FCGEN_CONFIGS:-2000}" --json "$parts/random.json" ;;
        sanitize) PYTHON=$python benchmarks/sanitize.sh "$results/sanitize" "$parts/sanitize.json" ;;
        compile)  "$python" -m benchmarks.compile_time --json "$parts/compile.json" ;;
        forward)  "$python" -m benchmarks.attention_forward --strict --json "$parts/forward.json" ;;
        ladder)   "$python" examples/ladder.py --json "$parts/ladder.json" ;;
        *)        echo "no such step: $step" >&2; false ;;
    esac || failed+=("$step")
done

"$python" -m benchmarks.merge "$results" --failed ${failed[@]+"${failed[@]}"}
status=$?
[ ${#failed[@]} -eq 0 ] && [ $status -eq 0 ]
