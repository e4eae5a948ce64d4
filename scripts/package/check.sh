#!/bin/sh
# Builds sdist and wheel into dist/, checks them, installs the wheel into a fresh environment outside of this checkout, and
# uses it there as a user would.
# Usage: check.sh BIN PYTHON [OPTION OF PIP ...]   BIN: folder of a python with build and twine; PYTHON: for the environment
set -eu
bin=$(cd "$1" && pwd)
python=$2
shift 2
root=$(cd "$(dirname "$0")/../.." && pwd)
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT

cd "$root"
rm -rf dist
"$bin/python" -m build --outdir dist . >"$away/build.log" 2>&1 || { cat "$away/build.log"; exit 1; }
"$bin/twine" check --strict dist/*

"$python" -m venv "$away/venv"
wheel=$(ls "$root"/dist/*.whl)
# A fixed torch first, as in the Makefile
"$away/venv/bin/pip" install --progress-bar off -q torch==2.13.0 "$@"
"$away/venv/bin/pip" install --progress-bar off -q "$wheel[cli]"
"$away/venv/bin/pip" check

cd "$away"
unset PYTHONPATH
export HF_HUB_OFFLINE=1
venv/bin/sb3-vla --version
venv/bin/sb3-vla doctor
venv/bin/sb3-vla quickstart --config "$root/scripts/package/tiny.yml" --out run
for file in sft_model.zip model.zip results.json curves.png comparison.png; do test -s "run/$file"; done
venv/bin/sb3-vla eval run/model.zip --n-goals 1 --out again.json
venv/bin/python -c "
from importlib.resources import files
import sb3_vla, sb3_vla_envs
assert 'site-packages' in sb3_vla.__file__ and 'site-packages' in sb3_vla_envs.__file__
for package, file in [('sb3_vla', 'py.typed'), ('sb3_vla_envs', 'py.typed'), ('sb3_vla.zoo_configs', 'ppo_self_bc.yml')]:
    assert (files(package) / file).is_file(), file
"
echo "The package works"
