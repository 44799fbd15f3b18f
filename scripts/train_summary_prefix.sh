#!/usr/bin/env bash
# The summary and what comes after it, from the whole context: experiments/summary/prefix.yaml.
#
#   [MODEL=…] [SEED=…] [DRY_RUN=1] bash scripts/train_summary_prefix.sh N_GPUS OUTPUT_DIR [trainer.total_epochs=10 optim.lr=1e-5 …]
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_pipeline.sh" prefix "$@"
