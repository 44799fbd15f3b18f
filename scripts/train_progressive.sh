#!/usr/bin/env bash
# The three phases, each from the best weights of the one before: experiments/summary/progressive.yaml.
#
#   [MODEL=…] [SEED=…] [DRY_RUN=1] bash scripts/train_progressive.sh N_GPUS OUTPUT_DIR [trainer.total_epochs=10 optim.lr=1e-5 …]
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_pipeline.sh" progressive "$@"
