#!/usr/bin/env bash
# Every kernel of sanitize.py under memcheck, racecheck and initcheck: benchmarks/sanitize.sh [FOLDER FOR LOGS [JSON]]
# FCGEN_TOOLS and FCGEN_KERNELS name some of them ("initcheck", "hopper hopper_turns").
# COMPUTE_SANITIZER names the tool where it is neither on PATH nor installed (pip install nvidia-cuda-sanitizer-api, or a CUDA toolkit).
set -uo pipefail
cd "$(dirname "$0")/.."
logs=${1:-out/sanitize}
json=${2:-$logs/sanitize.json}
python=${PYTHON:-python}
tool=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || "$python" -m benchmarks.sanitize --find-tool)}
[ -n "$tool" ] || { echo "compute-sanitizer is not installed: pip install nvidia-cuda-sanitizer-api, or set COMPUTE_SANITIZER" >&2; exit 2; }
mkdir -p "$logs"
rm -f "$logs"/*.log
export PYTORCH_NO_CUDA_MEMORY_CACHING=1   # each tensor an allocation of its own, so that memcheck sees its ends

tools=${FCGEN_TOOLS:-memcheck racecheck initcheck}
kernels=${FCGEN_KERNELS:-$("$python" -m benchmarks.sanitize --list)}

# compiles them, and stops nothing: a wrong result shows in its log too
if [ -n "${FCGEN_KERNELS:-}" ]; then
    for name in $kernels; do "$python" -m benchmarks.sanitize --kernel "$name"; done
else
    "$python" -m benchmarks.sanitize --kernel all
fi
export tool python logs
# several at once: most of a run is the start of Python and torch under the tool
for name in $kernels; do
    for kind in $tools; do printf '%s\n' "$kind $name"; done
done | xargs -P "${FCGEN_JOBS:-8}" -L 1 bash -c '
    echo "$0 $1"
    "$tool" --tool "$0" --report-api-errors no --kernel-name kernel_substring=attention "$python" -m benchmarks.sanitize --kernel "$1" \
        >"$logs/$0-$1.log" 2>&1'
"$python" -m benchmarks.sanitize --summary "$logs" --json "$json" --tools $tools --kernels $kernels
