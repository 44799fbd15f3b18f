#!/usr/bin/env bash
# What the train_*.sh scripts share: seeker progressive on a pipeline of experiments/summary/.
#
#   bash scripts/train_pipeline.sh PIPELINE N_GPUS OUTPUT_DIR [overrides]
#
# Overrides are those of verl's SFT trainer (optim.lr=1e-5 trainer.total_epochs=10), whose names a printed table translates,
# or options of seeker progressive (--phases 2,3). Environment: MODEL (folder or hub id), SEED, DRY_RUN=1 (print the commands
# and plans, run nothing), CONFIG (another pipeline), LAUNCHER (what starts each phase on several nodes, such as
# "srun torchrun --nnodes 2 --nproc_per_node 8"). A step is trainer.accumulate_grad_batches x N_GPUS micro-batches.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
(($# >= 3)) && [[ $2 =~ ^[1-9][0-9]*$ ]] || { echo "usage: bash scripts/train_${1:-pipeline}.sh N_GPUS OUTPUT_DIR [overrides]" >&2; exit 2; }
pipeline=$1 gpus=$2 output=$3
shift 3

python=$root/.venv/bin/python
[[ -x $python ]] || python=python
words=$("$python" -m project.progressive.hydra "$@")
arguments=(--config "${CONFIG:-$root/experiments/summary/$pipeline.yaml}" --output_dir "$output")
((gpus == 1)) || arguments+=(--config "$root/experiments/strategies/ddp.yaml")
arguments+=("--trainer.devices=$gpus")
[[ -z ${MODEL:-} ]] || arguments+=("--model.model_path=$MODEL")
[[ -z ${SEED:-} ]] || arguments+=("--seed_everything=$SEED" "--data.seed=$SEED")
[[ -z ${LAUNCHER:-} ]] || arguments+=("--launcher=$LAUNCHER")
[[ ${DRY_RUN:-0} != 1 ]] || arguments+=(--dry_run)
[[ -z $words ]] || mapfile -t -O "${#arguments[@]}" arguments <<<"$words"
exec "$python" -m project progressive "${arguments[@]}"
