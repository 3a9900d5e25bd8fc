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
# One job on several nodes. Run it in the root of the repository, which must be on a file system
# that all nodes share, together with its .venv:
#
#   sbatch --nodes=4 cluster/slurm.sh \
#       jobs/eval_image.py --model ... --budget 64 --output /shared/results
#
# The script starts Ray on each node, waits for all nodes, runs the job on the first one, and stops
# Ray when the job ends, successful or not. Five minutes before the time limit the job is put back
# into the queue, and the next run continues where it stopped. Ray requires a token made for this
# job, so that other users of the machines cannot run code in it.
set -euo pipefail

patience=${APET_PATIENCE:-600} # seconds in which all nodes must join
metrics=${APET_METRICS_PORT:-8080} # port on each node for Prometheus; 0 for any free one
if [ $# = 0 ]; then
    echo "usage: sbatch cluster/slurm.sh jobs/eval_image.py [flags of the job]" >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:?run this with sbatch}"
export PATH="$PWD/.venv/bin:$PATH"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# The address of the node's name, or of its first interface if the name is 127.0.1.1, as on Debian
# and Ubuntu.
head=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
    bash -c 'hostname --ip-address; hostname --all-ip-addresses' |
    awk '{for (i = 1; i <= NF; i++) if (!found && $i !~ /^127\.|:/) found = $i} END {print found}')
if [ -z "$head" ]; then
    echo "${nodes[0]} has no IPv4 address that other nodes can reach:" \
        "check hostname --all-ip-addresses there" >&2
    exit 1
fi
# Above the ports of Ray's workers, and different for each job on a node.
port=$((20000 + SLURM_JOB_ID % 10000))
RAY_ADDRESS=$head:$port
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN

pids=()
stop() { # `ray stop` would end every Ray on the machine
    trap - EXIT
    kill "${pids[@]}" 2>/dev/null || true
    wait || true
}
trap stop EXIT
trap 'exit 143' TERM INT USR1

start_ray() { # on one node, until this script ends
    local node=$1
    shift
    srun --nodes=1 --ntasks=1 --overlap --nodelist="$node" \
        ray start "$@" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
        --metrics-export-port="$metrics" --disable-usage-stats --block \
        >"ray-$SLURM_JOB_ID-$node.log" 2>&1 &
    pids+=($!)
}
wait_for_nodes() { # until this number of nodes has joined
    python - "$1" "$patience" <<'PYTHON'
import sys, time
import ray

expected, patience = int(sys.argv[1]), float(sys.argv[2])
deadline, alive, problem = time.monotonic() + patience, 0, ""
while time.monotonic() < deadline:
    try:
        ray.init(logging_level="ERROR", log_to_driver=False)
        alive = sum(node["Alive"] for node in ray.nodes())
    except Exception as error:
        problem = f" ({error})"
    ray.shutdown()
    if alive >= expected:
        sys.exit()
    time.sleep(2)
sys.exit(f"{alive} of {expected} nodes joined within {patience:g} s{problem}; see ray-*.log")
PYTHON
}
start_ray "${nodes[0]}" --head --node-ip-address="$head" --port="$port" --include-dashboard=false \
    --temp-dir="/tmp/ray-$SLURM_JOB_ID"
wait_for_nodes 1
for node in "${nodes[@]:1}"; do
    start_ray "$node" --address="$RAY_ADDRESS"
done
wait_for_nodes "${#nodes[@]}"
echo "Ray runs on ${#nodes[@]} nodes"

python "$@" &
job=$!
requeue=
signalled=yes
# The job saves its answers and ends.
trap 'requeue=yes; signalled=yes; kill -TERM "$job" 2>/dev/null || true' USR1
trap 'signalled=yes; kill -TERM "$job" 2>/dev/null || true' TERM INT
# A signal ends `wait` but not the job: the job's status is that of a `wait` without a signal.
while [ -n "$signalled" ]; do
    signalled=
    status=0
    wait "$job" || status=$?
done
stop
if [ -n "$requeue" ] && [ "$status" != 0 ]; then
    echo "the time limit is near: putting the job back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
