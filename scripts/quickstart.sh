#!/usr/bin/env bash
# The main job on the embedded default: facts -> index -> SFT -> PPO -> test of base, SFT and PPO -> compare.
#
#   bash scripts/quickstart.sh           continues where it stopped; a finished stage is not run again
#   bash scripts/quickstart.sh --again   starts over
#   bash scripts/quickstart.sh --again --seed 1   starts over with other questions, samples and sampling noise
#
# On 2 cores it takes under 20 minutes after installing. A stage's log lies in lightning_logs/quickstart/STAGE.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

state=lightning_logs/quickstart
again=0 seed=
while (($#)); do
  case $1 in
    --again) again=1; shift ;;
    --seed) seed=${2:-none}; shift $(($# > 1 ? 2 : 1)) ;;
    *) echo "quickstart: unknown argument '$1'; it takes --again and --seed N" >&2; exit 2 ;;
  esac
done
[[ $seed =~ ^[0-9]*$ ]] || { echo "quickstart: --seed takes a whole number, got '$seed'" >&2; exit 2; }
mkdir -p "$state"
# Children inherit the lock, so a stage that outlives a killed script keeps a second one from training into its folder.
exec 8>"$state/lock"
flock -n 8 || { echo "quickstart: another run, or the last stage of one, is still at work; wait for it, or stop it" >&2; exit 2; }
if ((again)); then  # killed in here, the next call finds no stage done and no model to continue, and starts over as well
  rm -rf "$state"/*.done lightning_logs/runs/quickstart-*
  rm -rf data/quickstart "$state"/*.log "$state/seed"
fi
held=$(cat "$state/seed" 2>/dev/null || { ls "$state"/*.done > /dev/null 2>&1 && echo 0; } || true)  # older runs kept no seed
seed=${seed:-${held:-0}}
[[ $seed == "${held:-$seed}" ]] || { echo "quickstart: $state holds a run with seed $held; add --again to start over" >&2; exit 2; }
echo "$seed" > "$state/seed"
bash scripts/setup.sh
seeker=.venv/bin/seeker
runs=lightning_logs/runs
configs=experiments/quickstart

# stage NAME COMMAND...: run it unless it is done, keep its log and its seconds.
stage() {
  local name=$1 start=$SECONDS
  shift
  if [[ -f $state/$name.done ]]; then
    printf '%-10s done before, %s s\n' "$name" "$(cat "$state/$name.done")"
    return
  fi
  printf '%-10s %s\n' "$name" "$*"
  if ! "$@" > "$state/$name.log" 2>&1; then
    tail -n 20 "$state/$name.log" >&2
    echo "quickstart: stage '$name' failed; its whole log is $state/$name.log" >&2
    exit 1
  fi
  printf '%-10s %s s\n' "" "$((SECONDS - start))"
  echo "$((SECONDS - start))" > "$state/$name.done"
}

# resume NAME: the argument that continues an interrupted training, where it has left a checkpoint.
resume() { [[ ! -f $runs/$1/checkpoints/last.ckpt ]] || echo --ckpt_path "$runs/$1/checkpoints/last.ckpt"; }

measure() {
  local name=$1
  shift
  stage "test-$name" "$seeker" test --config $configs/test.yaml --trainer.logger.run_name "quickstart-test-$name" "$@"
}

stage facts "$seeker" data facts --seed "$seed" --output_dir data/quickstart/facts --force true
stage index "$seeker" index build --passages data/quickstart/facts/passages.jsonl --output_dir data/quickstart/index
new_sft=$([[ -f $state/sft.done ]] && echo 0 || echo 1)
stage sft "$seeker" fit --config $configs/sft.yaml --trainer.default_root_dir $runs/quickstart-sft --seed_everything "$seed" --data.seed "$seed" $(resume quickstart-sft)
# A policy trained from an earlier SFT model is not continued from a new one.
((new_sft == 0)) || rm -rf "$state/ppo.done" "$state"/test-*.done $runs/quickstart-ppo
stage ppo "$seeker" fit --config $configs/ppo.yaml --trainer.default_root_dir $runs/quickstart-ppo --seed_everything "$seed" --data.seed "$seed" --model.seed "$seed" $(resume quickstart-ppo)
measure base
measure sft --model.model_path $runs/quickstart-sft/merged
measure ppo --model.model_path $runs/quickstart-ppo/merged
"$seeker" compare quickstart-test-base quickstart-test-sft quickstart-test-ppo | tee "$state/compare.txt"

total=$(cat "$state"/*.done | paste -sd+ | bc 2>/dev/null || cat "$state"/*.done | awk '{s+=$1} END {print s}')
cat <<END
All stages took $total s, a continued one counted from where it went on. Next:
  $seeker lineage quickstart-ppo
  $seeker index search --index data/quickstart/index --query "currency of Mongolia"
  $seeker predict --config $configs/test.yaml --data.predict_file data/quickstart/facts/questions_validation.jsonl --model.model_path $runs/quickstart-ppo/merged
END
