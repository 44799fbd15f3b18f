#!/usr/bin/env bash
# The next turn from a summary: experiments/summary/only.yaml.
#
#   [MODEL=…] [SEED=…] [DRY_RUN=1] bash scripts/train_summary_only.sh N_GPUS OUTPUT_DIR [trainer.total_epochs=10 optim.lr=1e-5 …]
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_pipeline.sh" only "$@"
