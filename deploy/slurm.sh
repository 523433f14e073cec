#!/usr/bin/env bash
# Train on several nodes with Slurm. In the checkout:
#
#     sbatch deploy/slurm.sh [CONFIG] [key=value ...]
#
# All nodes must see the checkout, and the text and checkpoints in it, at the same path.
# What follows can be changed here or given to sbatch: sbatch --nodes=4 deploy/slurm.sh

#SBATCH --job-name=train300M
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
# One torchrun a node, which starts a process for each GPU; CPUs and memory are for all of them.
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=128G
#SBATCH --time=24:00:00
# The log goes on in the same file after a requeue.
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# SIGTERM four minutes before the time limit, to this script alone (B:), which has torchrun save and
# then puts the job back into the queue. Without B: torchrun would get it, but not this script.
#SBATCH --signal=B:TERM@240

set -euo pipefail

MASTER_PORT=29500  # free on the first node; another one for each of several jobs that share a node
RESTARTS=3         # how often to start again after a crash, before the job fails

# Seconds torchrun gives its processes to save after SIGTERM (else 30); well below --signal's.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120
# export NCCL_SOCKET_IFNAME=ib0    # where NCCL chooses a network on which the nodes do not meet

cd "$SLURM_SUBMIT_DIR"
PATH=$PWD/.venv/bin:$PATH  # the environment of `make demo`; or load yours here: module load …
if (($# == 0)); then set -- config/train300M_ddp.yaml; fi

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
master=${hosts%%$'\n'*}

# The signal must not go to srun, which answers SIGTERM by killing its tasks at once. scancel with
# --signal cancels nothing: it delivers the signal to torchrun on all nodes, and not to this script.
stopping=
# shellcheck disable=SC2329  # the trap calls it
stop() {
    trap '' TERM
    stopping=yes
    scancel --signal=TERM "$SLURM_JOB_ID" || true
}
trap stop TERM

# torchrun's own --max-restarts is not used: every node would restart at a time of its own, and the
# new processes of one node would look for old ones of another. Here all end, then all start.
for ((attempt = 0; attempt <= RESTARTS; attempt++)); do
    # In the background, since bash runs a trap only between commands. --wait: once the torchrun of
    # one node has ended, those of the others have 30 seconds.
    # shellcheck disable=SC2016  # SLURM_NODEID is to be that of each node
    srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --wait=30 --kill-on-bad-exit=0 \
        bash -c 'exec torchrun --node_rank="$SLURM_NODEID" "$@"' torchrun \
        --nnodes="$SLURM_NNODES" --nproc_per_node="$SLURM_GPUS_ON_NODE" \
        --master_addr="$master" --master_port="$MASTER_PORT" \
        train.py "$@" &
    code=0
    wait $! || code=$?
    if [[ $stopping ]]; then  # it was the trap that ended this wait
        code=0
        wait $! || code=$?
    fi
    if ((code == 0)); then exit; fi

    # A job that is not RUNNING any more was cancelled, or Slurm itself puts it back into the queue.
    # Ahead of a preemption Slurm may signal torchrun but not this script: PreemptTime tells.
    job=$(scontrol show job "$SLURM_JOB_ID")
    if [[ $job != *JobState=RUNNING* ]]; then exit "$code"; fi
    if [[ $stopping || $job == *PreemptTime=[!N]* ]]; then
        exec scontrol requeue "$SLURM_JOB_ID"
    fi
    echo "slurm.sh: training ended with code $code" >&2
done
exit "$code"
