# Everything below works from a fresh clone on Debian or Ubuntu with Python 3.11 to 3.13, as root or with sudo.
PYTHON ?= python3
VENV ?= .venv
TASKS ?= window-open-v3,drawer-close-v3,button-press-topdown-v3
SEED ?= 0
SEEDS ?= 0
# Where pip finds the CPU build of torch, e.g. --index-url https://download.pytorch.org/whl/cpu; by default pip's own index
TORCH_OPTIONS ?=
# A Python of 3.12 or later for LeRobot, and where it gets an environment of its own
LEROBOT_PYTHON ?= python3.12
LEROBOT_ENV ?= build/lerobot_env
# e.g. --kills 5 --soak-minutes 2
TORTURE ?=
# Of `make test`; each takes a gigabyte or two, and starts others
TEST_PROCESSES ?= 2
# What test-lowest and test-newest run, by default all
TESTS ?=
OUT ?= runs/quickstart-seed$(SEED)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test check format setup system results mt10 mt10-ablations ablations benchmark benchmark-quickstart chunking scaling memory heads check-lerobot torture docs browser package test-lowest test-newest clean

quickstart: setup  ## Demonstrations, SFT, post-training and evaluation on three tasks (TASKS=, SEED=, OUT=)
	$(BIN)/sb3-vla quickstart --tasks $(TASKS) --seed $(SEED) --out $(OUT)

results: setup  ## The quickstart with five seeds, and the README's table of them; what is there is not done again
	set -e; for seed in 0 1 2 3 4; do \
		run=runs/results-seed$$seed; kept=results/quickstart/seed$$seed; \
		if test -e $$run/config.yaml; then $(BIN)/sb3-vla quickstart --resume $$run; \
		else $(BIN)/sb3-vla quickstart --seed $$seed --out $$run; fi; \
		mkdir -p $$kept; \
		for file in results.json config.yaml versions.json progress.csv curves.png comparison.png; do cp $$run/$$file $$kept; done; \
	done
	cp runs/results-seed0/gifs/comparison_*.gif results/quickstart/seed0
	$(BIN)/python benchmarks/quickstart_table.py results/quickstart/seed*/results.json

mt10: setup  ## MetaWorld MT10 from 100 and from 10 demonstrations a task, three seeds each: many hours; what is there is not done again
	$(BIN)/python benchmarks/mt10/study.py

mt10-ablations: setup  ## What each part of the MT10 recipe is worth, on four of its tasks: many hours, too
	$(BIN)/python benchmarks/mt10/ablations.py

ablations: setup  ## After the results: their SFT models post-trained again with one thing changed, three seeds each
	$(BIN)/python benchmarks/quickstart_ablations/run.py

benchmark: setup  ## How fast it is, against others and against before; writes benchmarks/results and the table in docs/speed.md
	set -e; for name in frames vec_envs chunk update learning busy table; do $(BIN)/python benchmarks/speed/$$name.py; done

benchmark-quickstart: setup  ## The whole quickstart, now and before the work on speed, a quarter of an hour a seed (SEEDS=)
	$(BIN)/python benchmarks/speed/quickstart.py $(SEEDS)
	$(BIN)/python benchmarks/speed/table.py

chunking: setup  ## PPO and SAC with and without chunks, half an hour, and the table in docs/environments.md; no run of results/chunking is repeated
	$(BIN)/python benchmarks/chunking.py

scaling: setup  ## Cycles on ranks and Ray nodes of this machine, and the model of how it grows: half an hour; tables in docs/scaling.md
	$(BIN)/python benchmarks/scaling/measure.py
	$(BIN)/python benchmarks/scaling/report.py

memory: setup  ## Hold the estimates of memory against what training takes, and the tables in docs/memory.md; needs 10 GB, half an hour
	$(BIN)/python benchmarks/memory/measure.py
	$(BIN)/python benchmarks/memory/table.py --estimate

heads: setup  ## What each action head is worth on the quickstart's tasks, three seeds: hours; what is there is not done again
	$(BIN)/python benchmarks/heads.py

torture: setup  ## Kills, power cuts, damage, nonsense and an hour of training: hours, as root for the disks (TORTURE="kills ...")
	$(BIN)/python benchmarks/torture/torture.py $(TORTURE)

check-lerobot: setup  ## Hold our LeRobot datasets and SmolVLA against LeRobot itself, which takes several GB of disk (LEROBOT_PYTHON=)
	test -x $(LEROBOT_ENV)/bin/python || $(LEROBOT_PYTHON) -m venv $(LEROBOT_ENV)
	$(LEROBOT_ENV)/bin/pip install --progress-bar off -q 'lerobot[smolvla,dataset]>=0.6,<0.7' $(TORCH_OPTIONS)
	HF_HUB_OFFLINE=1 $(BIN)/python scripts/lerobot/check_datasets.py $(LEROBOT_ENV)/bin/python results/lerobot/datasets.json
	HF_HUB_OFFLINE=1 $(BIN)/python scripts/lerobot/check_smolvla.py $(LEROBOT_ENV)/bin/python results/lerobot/smolvla.json

docs: setup  ## The documentation site, in build/docs/html; warnings are errors
	$(BIN)/sphinx-build -q -W --keep-going -n -b html -d build/docs/doctrees docs build/docs/html
	@echo "Open build/docs/html/index.html"

test: setup browser  ## Run the tests, offline
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --durations=25 --numprocesses $(TEST_PROCESSES) --dist loadfile

package: setup  ## Build sdist and wheel into dist/, and use the wheel in a fresh environment (PYTHON=)
	sh scripts/package/check.sh $(BIN) $(PYTHON) $(TORCH_OPTIONS)

# The tests with the versions in constraints/, in an environment of its own; by default the build of torch with CUDA, several GB
test-lowest test-newest: test-%: system  ## Run the tests with the lowest (newest) versions that setup.cfg allows (PYTHON=, TESTS=)
	$(PYTHON) -m venv build/$*
	build/$*/bin/pip install --progress-bar off -q -c constraints/$*.txt torch $(TORCH_OPTIONS)
	build/$*/bin/pip install --progress-bar off -q -c constraints/$*.txt -e '.[all]' hypothesis pytest sb3-contrib
	HF_HUB_OFFLINE=1 build/$*/bin/python -m pytest $(TESTS)

check: setup  ## Lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/mypy && ln -sfn ../../envs build/mypy/sb3_vla_envs
	$(BIN)/mypy

format: setup  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: system $(STAMP)

# Where torch is missing, a fixed version first: pip may have a CPU build of it at hand, while a looser requirement would
# always download gigabytes of CUDA libraries.
$(STAMP): setup.cfg pyproject.toml | system
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.11 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) --version): make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --progress-bar off -q torch==2.13.0 $(TORCH_OPTIONS)
	$(BIN)/pip install --progress-bar off -q -e '.[dev]'
	@touch $@

browser: system  ## What the tests look at web pages with
	@sh scripts/install_system.sh $(PYTHON) chromium

system:
	@sh scripts/install_system.sh $(PYTHON)

clean:
	rm -rf $(VENV) build *.egg-info
