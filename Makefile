# Everything below works from a fresh clone on Debian or Ubuntu with Python 3.10 to 3.13, as root or with sudo.
PYTHON ?= python3
VENV ?= .venv
TASKS ?= window-open-v3,drawer-close-v3,button-press-topdown-v3
SEED ?= 0
OUT ?= runs/quickstart-seed$(SEED)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test check format setup gl clean

quickstart: setup  ## Demonstrations, SFT, post-training and evaluation on three tasks (TASKS=, SEED=, OUT=)
	$(BIN)/sb3-vla quickstart --tasks $(TASKS) --seed $(SEED) --out $(OUT)

test: setup  ## Run the tests, offline
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

check: setup  ## Lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/mypy && ln -sfn ../../envs build/mypy/sb3_vla_envs
	$(BIN)/mypy

format: setup  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: gl $(STAMP)

# Where torch is missing, the CPU build first: a looser requirement would download gigabytes of CUDA libraries.
$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.10 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) --version): make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) \
		|| { echo "python3-venv is needed: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --progress-bar off -q torch==2.13.0
	$(BIN)/pip install --progress-bar off -q -e '.[dev]'
	@touch $@

gl:
	@sh scripts/install_gl.sh

clean:
	rm -rf $(VENV) build *.egg-info
