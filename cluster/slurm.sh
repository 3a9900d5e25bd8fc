#!/usr/bin/env bash
#SBATCH --job-name=apet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --signal=B:USR1@300
#SBATCH --output=apet-%j.log
#
# One job on several nodes. From the root of the repository, which all nodes see, with its .venv:
#
#   sbatch --nodes=4 cluster/slurm.sh jobs/eval_image.py --model ... --budget 64 --output /shared/results
#
# It starts Ray on each node, waits for all of them, runs the job on the first and takes Ray down again, whatever became
# of the job. Five minutes before its time is over it goes back to the queue, and the next turn goes on from there. Ray
# takes a token made for this job, so that other users of the machines cannot run code in it.
set -euo pipefail

patience=${APET_PATIENCE:-600} # seconds that the nodes may take to come
metrics=${APET_METRICS_PORT:-8080} # of each node, for Prometheus; 0 is any that is free
if [ $# = 0 ]; then
    echo "usage: sbatch cluster/slurm.sh jobs/eval_image.py [flags of the job]" >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:?run this with sbatch}"
export PATH="$PWD/.venv/bin:$PATH"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# What the node's name stands for, unless that is 127.0.1.1 as on Debian and Ubuntu: then an interface's first address.
head=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" bash -c 'hostname --ip-address; hostname --all-ip-addresses' |
    awk '{for (i = 1; i <= NF; i++) if (!found && $i !~ /^127\.|:/) found = $i} END {print found}')
if [ -z "$head" ]; then
    echo "${nodes[0]} has no IPv4 address that other nodes could reach; look at: hostname --all-ip-addresses" >&2
    exit 1
fi
port=$((20000 + SLURM_JOB_ID % 10000)) # below are Ray's own worker ports; other jobs on the node have another one
RAY_ADDRESS=$head:$port
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN

pids=()
stop() { # not `ray stop`, which would end every Ray on the machine
    trap - EXIT
    kill "${pids[@]}" 2>/dev/null || true
    wait || true
}
trap stop EXIT
trap 'exit 143' TERM INT USR1

start() { # on one node, until this script ends
    local node=$1
    shift
    srun --nodes=1 --ntasks=1 --overlap --nodelist="$node" \
        ray start "$@" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
        --metrics-export-port="$metrics" --disable-usage-stats --block >"ray-$SLURM_JOB_ID-$node.log" 2>&1 &
    pids+=($!)
}
joined() { # waits until so many nodes are there
    python - "$1" "$patience" <<'PYTHON'
import sys, time
import ray

wanted, patience = int(sys.argv[1]), float(sys.argv[2])
deadline, found, problem = time.monotonic() + patience, 0, ""
while time.monotonic() < deadline:
    try:
        ray.init(logging_level="ERROR", log_to_driver=False)
        found = sum(node["Alive"] for node in ray.nodes())
    except Exception as error:
        problem = f" ({error})"
    ray.shutdown()
    if found >= wanted:
        sys.exit()
    time.sleep(2)
sys.exit(f"{found} of {wanted} nodes joined within {patience:g} s{problem}; look at ray-*.log")
PYTHON
}
start "${nodes[0]}" --head --node-ip-address="$head" --port="$port" --include-dashboard=false \
    --temp-dir="/tmp/ray-$SLURM_JOB_ID"
joined 1
for node in "${nodes[@]:1}"; do
    start "$node" --address="$RAY_ADDRESS"
done
joined "${#nodes[@]}"
echo "Ray runs on ${#nodes[@]} nodes"

python "$@" &
job=$!
again=
told=yes
trap 'again=yes; told=yes; kill -TERM "$job" 2>/dev/null || true' USR1 # the job writes down what it has, and ends
trap 'told=yes; kill -TERM "$job" 2>/dev/null || true' TERM INT
while [ -n "$told" ]; do # a signal ends the waiting, not the job: its status is that of a wait without one
    told=
    status=0
    wait "$job" || status=$?
done
stop
if [ -n "$again" ] && [ "$status" != 0 ]; then
    echo "the time is over; back to the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
