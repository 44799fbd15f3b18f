#!/usr/bin/env bash
# Measure models on the four tasks and write the table of results.   bash scripts/results.sh [NAME=MODEL_FOLDER …]
#
#   bash scripts/results.sh base= sft=lightning_logs/runs/quickstart-sft/merged ppo=lightning_logs/runs/quickstart-ppo/merged
#
# `base=` is the embedded model. What was measured before (lightning_logs/results/NAME/TASK) is not measured again; without
# arguments the table is written anew from that. It needs ../shared/data, from which held-out sets are made once:
# decision: SQuAD 2.0, one turn; summary: traces, a summary and what is made of it; agent: facts, with searches; folding: HotpotQA
# with a summary after each search. QUESTIONS=N takes so many of each (200), TASKS="agent folding" some of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seeker=.venv/bin/seeker results=lightning_logs/results count=${QUESTIONS:-200} tasks=${TASKS:-decision summary agent folding}
shared=../shared/data

make() { [[ -e $1 ]] || { echo "results: making $1"; "${@:2}" > /dev/null; }; }
make data/squad "$seeker" data squad --input_file $shared/squad/squad2-dev.json.gz --output_dir data/squad
make data/summary "$seeker" data prepare --input_file $shared/traces/traces_normalised.jsonl.gz --output_dir data/summary \
  --filters '[correct, no_duplicates]' --validation_share 0.05 --test_share 0.15
make data/quickstart/facts "$seeker" data facts --output_dir data/quickstart/facts
make data/quickstart/index "$seeker" index build --passages data/quickstart/facts/passages.jsonl --output_dir data/quickstart/index
make data/hotpotqa "$seeker" data hotpotqa --input_file $shared/hotpotqa/hotpotqa_context.jsonl.gz --output_dir data/hotpotqa \
  --traces $shared/traces/traces_normalised.jsonl.gz
make data/hotpotqa/index "$seeker" index build --passages data/hotpotqa/passages.jsonl --output_dir data/hotpotqa/index

trained=data/summary/sets/summary_prefix_train.parquet,data/summary/sets/multiturn_train.parquet  # holds HotpotQA's questions too
declare -A words=(
  [decision]="--config experiments/squad/test.yaml"
  [summary]="--config experiments/summary/test.yaml"
  [agent]="--config experiments/quickstart/test.yaml"
  [folding]="--config experiments/hotpotqa/test.yaml --model.limits.fold_turns 1 --data.leave_out=[$trained]"
)
for given in "$@"; do
  [[ $given == *=* ]] || { echo "results: '$given' names no model; write NAME=MODEL_FOLDER, or base=" >&2; exit 2; }
  name=${given%%=*} model=${given#*=}
  for task in $tasks; do
    [[ -f $results/$name/$task/summary.json ]] && continue
    # shellcheck disable=SC2086 - the words are several
    "$seeker" test ${words[$task]} --model.model_path "${model:-null}" --num_samples "$count" --output "$results/$name/$task" \
      --trainer.logger.run_name "results-$name-$task"
  done
done
exec .venv/bin/python scripts/results.py "$results" README.md experiments/README.md
