#!/bin/sh
# Every measurement of `lockstep bench` for one model on this machine, and the report of them.
#
#     bench/all.sh LOCKSTEP FOLDER OPTIONS...
#     bench/all.sh build/lockstep /tmp/demo -m demo -r 3
#     bench/all.sh build/gpu/lockstep /tmp/qwen -m Qwen/Qwen3-4B --load-format dummy --device cuda
#
# FOLDER gets a results file and a table of each, report.html and report.md. OPTIONS are given to every measurement of engines;
# what is measured of ranks and of the machine takes --device and -r alone. TEXT=FILE adds perplexities, ONLY="latency ops" leaves the
# others out. A measurement that fails leaves the others alone; exit code 1 if one did, or if a target was missed.
set -u
if [ $# -lt 3 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 2
fi
lockstep=$1 out=$2
shift 2
mkdir -p "$out" || exit 1
failed=0 files=

# one NAME WHAT OPTIONS...
one() {
    name=$1 what=$2
    shift 2
    case " ${ONLY:-$name} " in *" $name "*) ;; *) return ;; esac
    echo "$name" >&2
    if "$lockstep" bench "$what" "$@" --output-json "$out/$name.json" >"$out/$name.table.md"; then
        files="$files $out/$name.json"
    else
        echo "$name failed" >&2
        failed=1
    fi
}

one latency latency "$@"
one latency-f32 latency "$@" --dtype f32
one latency-int8 latency "$@" -q w8a16
one throughput throughput "$@"
one startup startup "$@"
one precision sweep "$@" --vary dtype=f32,bf16,f16 --vary quantization=none,w8a16 ${TEXT:+-f "$TEXT"}
one context sweep "$@" --input-len 128,1024,4096,8192
one ranks sweep "$@" --vary tp=1,2,4,8
one sampling sweep "$@" --vary temp=0,1 --batch-size 1,16
one graphs sweep "$@" --vary graph-sizes=default,none
one kernels sweep "$@" --vary kernels=auto,generic --input-len 26,2048
case " $* " in *" cuda "*) one plans sweep "$@" --vary plan=graph,persistent --batch-size 1,8,16 ;; esac
one ops ops "$@"

# Of the options, those that the machine's own measurements have.
machine=
while [ $# -gt 0 ]; do
    case $1 in --device | -r | --repetitions | -t | --threads) machine="$machine $1 $2" && shift ;; esac
    shift
done
# shellcheck disable=SC2086
one limits limits $machine
# shellcheck disable=SC2086
one exchange exchange $machine

# shellcheck disable=SC2086
if [ -n "$files" ]; then
    "$lockstep" report $files --html "$out/report.html" --markdown "$out/report.md" || failed=1
fi
exit $failed
