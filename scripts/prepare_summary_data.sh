#!/usr/bin/env bash
# From agents' logs to the training sets of the summary phases.
#
#   bash scripts/prepare_summary_data.sh RAW.jsonl OUTPUT_DIR [options of seeker data prepare]
#
# Environment: VAL_RATIO (the share of the questions that are for validation, 0.1).
set -euo pipefail
(($# >= 2)) || { echo "usage: bash scripts/prepare_summary_data.sh RAW.jsonl OUTPUT_DIR [options]" >&2; exit 2; }
input=$1 output=$2
shift 2
seeker=$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/seeker
[[ -x $seeker ]] || seeker=seeker
exec "$seeker" data prepare --input_file "$input" --output_dir "$output" --validation_share "${VAL_RATIO:-0.1}" "$@"
