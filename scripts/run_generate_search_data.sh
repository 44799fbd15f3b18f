#!/usr/bin/env bash
# Multi-turn search conversations of a teacher, kept where they answer the question: seeker data distill.
#
#   INPUT_FILE=questions.parquet OUTPUT_FILE=conversations.jsonl bash scripts/run_generate_search_data.sh [options of seeker data distill]
#
# Environment: VLLM_URL (http://127.0.0.1:8000), RETRIEVAL_URL (http://127.0.0.1:8001), MAX_ASSISTANT_TURNS (3), MAX_SAMPLES (-1: all),
# BATCH_SIZE (16 requests in flight), TEMPERATURE (0.7), MAX_TOKENS (2048 a turn).
set -euo pipefail
[[ -n ${INPUT_FILE:-} && -n ${OUTPUT_FILE:-} ]] || { echo "set INPUT_FILE and OUTPUT_FILE; the script's head names the rest" >&2; exit 2; }
seeker=$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/seeker
[[ -x $seeker ]] || seeker=seeker
exec "$seeker" data distill --input_file "$INPUT_FILE" --output_file "$OUTPUT_FILE" \
  --vllm_url "${VLLM_URL:-http://127.0.0.1:8000}" --retrieval_url "${RETRIEVAL_URL:-http://127.0.0.1:8001}" \
  --max_assistant_turns "${MAX_ASSISTANT_TURNS:-3}" --max_samples "${MAX_SAMPLES:--1}" --batch_size "${BATCH_SIZE:-16}" \
  --temperature "${TEMPERATURE:-0.7}" --max_tokens "${MAX_TOKENS:-2048}" "$@"
