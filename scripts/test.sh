#!/usr/bin/env bash
# Set everything up in .venv, then check style and types and run the tests. Never needs root.
#
#   bash scripts/test.sh                    all but the slow tests; SEEKER_SLOW=1 or CI=true runs those too
#   bash scripts/test.sh tests/rollouts -x  arguments go to pytest
#
# Tests that need ../shared/data or a GPU run where there is one; the end names what was skipped and why.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
python=.venv/bin/python
"$python" --version

step() { printf '== %s\n' "$*"; "$python" -m "$@"; }
step ruff check .
step ruff format --check .
step mypy
printf '== pytest %s\n' "$*"
# Two at a time, each file in one process: most tests wait for processes and servers of their own. `-n 0` takes that back.
exec "$python" -m pytest -rs -n 2 --dist loadfile --no-loadscope-reorder "$@"
