#!/bin/sh
# All Hopper measurements within a time: benchmarks/hopper_all.sh OUT SECONDS [FA3_FOLDER]
# What matters most comes first, everything that is finished is in OUT, and a step that hangs is ended: a cut run loses one cell at most.
out=${1:-out} seconds=${2:-480} peers=${3:-${FCGEN_PEERS:-.peers}} python=${PYTHON:-python}
begin=$(date +%s)
mkdir -p "$out"
left() { echo $((seconds - $(date +%s) + begin)); }

# step PERCENT_OF_WHAT_IS_LEFT NAME COMMAND...: {} in the command is its time in seconds; 40 more to finish what was begun
step() {
    share=$(($(left) * $1 / 100)) name=$2
    shift 2
    if [ "$share" -lt 5 ]; then echo "== $name: no time"; return; fi
    echo "== $name: $share s"
    for word; do
        shift
        [ "$word" = "{}" ] && word=$share
        set -- "$@" "$word"
    done
    timeout -k 5 $((share + 40)) "$python" -m "$@" >"$out/$name.txt" 2>&1
    code=$?
    tail -n 12 "$out/$name.txt"
    [ $code -le 1 ] || echo "== $name: ended with $code"
}

step 40 forward_fp16 benchmarks.hopper_forward --fa3 "$peers" --peers fcgen,fcgen_serial,fa3,cudnn --seconds {} --json "$out/forward_fp16.json"
step 20 host_time benchmarks.host_time --quick --out "$out/host_time.json"
step 60 forward_bf16 benchmarks.hopper_forward --fa3 "$peers" --peers fcgen,fcgen_serial,fa3,cudnn --dtype bf16 --seconds {} --json "$out/forward_bf16.json"
step 40 accuracy benchmarks.accuracy --fa3 "$peers" --seconds {} --json "$out/accuracy.json"
step 40 gemm benchmarks.gemms --rounds 5 --json "$out/gemm.json"
step 60 compile benchmarks.compile_stages --repeats 3 --seconds {} --json "$out/compile.json"
step 90 others benchmarks.hopper_forward --fa3 "$peers" --cells S4k --seconds {} --json "$out/others.json"
echo "== done, $(left) s left; JSON in $out"
