#!/usr/bin/env bash
# Set everything up in .venv: the locked packages, Seeker itself, and the default model in the user's cache.
#
#   bash scripts/setup.sh           choose by what the machine has (nvidia-smi lists a GPU: cuda, else cpu)
#   bash scripts/setup.sh --cpu     or --cuda: choose yourself; later runs keep the choice
#   bash scripts/setup.sh --check   exit 0 if the packages are up to date, 1 if not; change nothing
#
# Run it as often as you like: with nothing to do it takes well under a second.
# Environment: PYTHON (which Python makes .venv), XDG_CACHE_HOME (where the model goes), and pip's own PIP_* settings.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 2; }

variant="" check=""
for argument in "$@"; do
  case "$argument" in
    --cpu) variant=cpu ;;
    --cuda) variant=cuda ;;
    --check) check=yes ;;
    *) die "there is no option '$argument'; the options are --cpu, --cuda and --check" ;;
  esac
done
[[ -n $variant ]] || variant=$(cat .venv/seeker-variant 2>/dev/null || true)
[[ -n $variant ]] || { nvidia-smi -L >/dev/null 2>&1 && variant=cuda || variant=cpu; }

lock=scripts/requirements/$variant.lock
python=.venv/bin/python
# What decides the packages: the lock, the package's own metadata, this script, and where the checkout lies (editable).
key=$({ cat "$lock" pyproject.toml scripts/setup.sh; echo "$PWD"; } | sha256sum | cut -d' ' -f1)

up_to_date() { [[ -x $python && $(cat .venv/seeker-setup 2>/dev/null) == "$key" ]]; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  die "Python 3.11 or newer was not found (looked for ${PYTHON:-python3.11, python3.12, python3.13, python3}); install it, or name one in PYTHON"
}

make_venv() {
  # A .venv of another variant, or one that was moved or copied here (its scripts point elsewhere), is made anew.
  if [[ -x $python && -e .venv/seeker-venv && $(cat .venv/seeker-variant 2>/dev/null || echo "$variant") == "$variant" ]] \
    && [[ $(grep '^command = ' .venv/pyvenv.cfg) == *" $PWD/.venv" ]]; then
    return
  fi
  local base
  base=$(find_python)
  "$base" -m venv --clear .venv || die "'$base -m venv' failed; on Debian and Ubuntu install python3-venv"
  touch .venv/seeker-venv  # pip is in it: one that was cut off before is made anew
}

pip_install() { "$python" -m pip install -qq --disable-pip-version-check --no-deps "$@"; }

install_lock() {
  local log status=0
  log=$(mktemp)
  pip_install -r "$lock" 2>&1 | tee "$log" >&2 || status=$?
  if ((status)) && grep -q 'No matching distribution found for torch==' "$log"; then
    say "pip found no build of $(grep '^torch=' "$lock"); the '+cpu' builds are served by the PyTorch CPU wheel index, which pip needs as an extra index: set PIP_EXTRA_INDEX_URL to its address and run this again"
  fi
  rm -f "$log"
  ((status == 0)) || die "the packages of $lock could not be installed; pip's own message is above"
}

# Every line that `pip check` prints beside those that are expected.
unexpected_conflicts() {
  "$python" -m pip check --disable-pip-version-check 2>&1 \
    | grep -vE '^vllm(-cpu)? [^ ]+ requires torch(audio|codec|vision), which is not installed\.$|^verl |^No broken requirements found' || true
}

if [[ -n $check ]]; then
  up_to_date && exit 0
  exit 1
fi

# Two at once would install over each other: the second waits, and finds the work done.
exec 9<scripts
flock 9 2>/dev/null || true

if ! up_to_date; then
  say "installing the $variant packages into .venv ($(grep -c '^[^#]' "$lock") of them; about 3 minutes)"
  make_venv
  rm -f .venv/seeker-setup
  echo "$variant" > .venv/seeker-variant
  install_lock
  # Builds of these three for another torch break `import transformers`; a text-only project does without.
  "$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null
  pip_install --no-build-isolation -e .
  conflicts=$(unexpected_conflicts)
  [[ -z $conflicts ]] || say "pip check reports, beyond the lines that CONTRIBUTING.md explains: $conflicts"
  echo "$key" > .venv/seeker-setup
  compgen -G '/usr/lib*/*/libtcmalloc_minimal.so.4' >/dev/null || compgen -G '/usr/lib*/libtcmalloc_minimal.so.4' >/dev/null \
    || say "training is a fifth faster and takes a third less memory with tcmalloc, if you can: apt-get install libtcmalloc-minimal4"
fi

# Says nothing and downloads nothing when the model is there.
"$python" -m project.model_cache --quiet
