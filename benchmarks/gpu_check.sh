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

run_tests() {
    local start=$SECONDS said
    said=$("$python" -m pytest -m gpu -ra tests/gpu tests/runtime -p no:cacheprovider 2>&1)
    local status=$?
    printf '%s\n' "$said"
    said="$said" status=$status seconds=$((SECONDS - start)) "$python" - >"$parts/tests.json" <<'PY'
import json, os
status = int(os.environ["status"])
last = os.environ["said"].splitlines()[-40:]
print(json.dumps({"part": "tests", "seconds": int(os.environ["seconds"]), "said": last,
                  "problems": [] if status == 0 else [f"pytest ended with {status}"]}))
PY
    return $status
}

failed=()
for step in $steps; do
    echo "=== $step"
    case $step in
        tests)    run_tests ;;
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
