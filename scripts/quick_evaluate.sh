#!/usr/bin/env bash
# A first look at a model: N questions, then a report.   bash scripts/quick_evaluate.sh CKPT [N] [options of seeker test]
#
#   bash scripts/quick_evaluate.sh lightning_logs/runs/quickstart-sft/merged 50
#   CONFIG=experiments/summary/test.yaml bash scripts/quick_evaluate.sh MODEL 100
#
# CKPT is a model folder, or a checkpoint (.ckpt) whose run has written `merged` beside `checkpoints`. CONFIG is a config of
# `seeker test`, the quickstart's by default.
set -euo pipefail
(($#)) || { echo "quick_evaluate: give a model folder or checkpoint, and the number of questions" >&2; exit 2; }
model=$1 count=${2:-50}
shift $(($# > 1 ? 2 : 1))
[[ $count =~ ^[1-9][0-9]*$ ]] || { echo "quick_evaluate: the number of questions must be a whole number, got '$count'" >&2; exit 2; }
if [[ $model == *.ckpt ]]; then
  merged=$(dirname "$(dirname "$model")")/merged
  [[ -d $merged ]] || { echo "quick_evaluate: $model has no $merged beside it; give a model folder" >&2; exit 2; }
  echo "quick_evaluate: measuring $merged, the model at the end of that checkpoint's run"
  model=$merged
fi
[[ -d $model ]] || { echo "quick_evaluate: $model is no folder; give a model folder or checkpoint" >&2; exit 2; }
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
seeker=$project/.venv/bin/seeker
[[ -x $seeker ]] || { echo "quick_evaluate: there is no $seeker; run bash $project/scripts/setup.sh first" >&2; exit 2; }
config=${CONFIG:-$project/experiments/quickstart/test.yaml}
out=${OUTPUT:-$(dirname "$model")/quick_evaluate}
name=${NAME:-quick-$(basename "$(dirname "$(realpath "$model")")")}
"$seeker" test --config "$config" --model_path "$model" --num_samples "$count" --output "$out" --trainer.logger.run_name "$name" "$@"
exec "$seeker" report "$out" --output "$out/report.html"
