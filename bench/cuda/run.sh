#!/bin/bash
# Runs families of kernels, each in its own process: run.sh "test bench" linear_decode ssm_scan ...
# Lines of figures go to $OUT/results.jsonl; a family that hangs is stopped after LIMIT seconds.
cd "$(dirname "$0")" || exit 1
what=$1
shift
export PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit --format=csv,noheader
status=0
for family in "$@"; do
    echo "== $family ($what) at ${SECONDS}s"
    timeout -s KILL "${LIMIT:-100}" python3 "$family.py" $what || status=1
done
echo "== done at ${SECONDS}s, status $status"
exit $status
