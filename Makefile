# Every target works on a machine that has Python 3.11 or newer and nothing else installed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make .venv and install the locked dependencies

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

demo: $(INSTALLED) ## collect text, train a tokenizer and a small model, show what it learnt
	$(BIN)/python main.py

study: $(INSTALLED) ## train three sizes on three token budgets each, and fit laws to them
	$(BIN)/python main.py sweeps=smoke

ui: $(INSTALLED) ## open the MLflow UI on the runs of this folder, on loopback
	@mkdir -p runs
	$(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/runs/mlflow.db --host 127.0.0.1 --port 5000

test: $(INSTALLED) ## run the whole test suite
	$(BIN)/python -m pytest

faults: $(INSTALLED) ## kill, stop and starve whole runs
	$(BIN)/python -m pytest -m faults

slurm: $(INSTALLED) ## run the jobs of a study on a SLURM of this machine's own; as root, on Debian: it installs SLURM
	apt-get update --quiet
	apt-get install --quiet --yes slurm-wlm munge
	$(BIN)/python -m pytest -m faults tests/e2e/test_slurm_cluster.py

compile: $(INSTALLED) ## compile every kernel for three GPUs and look for what does not fit; none is needed
	$(BIN)/python -m pytest -m compiled --dist=load tests/kernels/test_compiled.py

oldest: ## run the kernels' tests on the oldest torch and triton that will do
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet "torch==2.11.*" "triton==3.6.*" "numpy<2.4" hydra-core omegaconf pydantic rich pytest pytest-xdist
	.venv-oldest/bin/python -m pytest -W "ignore:Conversion of an array:DeprecationWarning" tests/kernels tests/model/test_kernels.py

DEVICE = $(shell $(BIN)/python -c "import torch; print('gpu' if torch.cuda.is_available() else 'cpu')")
RESULT = benchmarks/results/$(shell date +%F)-$(DEVICE)
PEERS ?= $(BIN)/python

bench: $(INSTALLED) ## measure what this machine can; PEERS=PYTHON is one that has litgpt, HARDWARE=h200 says which GPU this is
	@test $(DEVICE) = cpu -o -n "$(HARDWARE)" || { echo "say which option of conf/hardware this is: HARDWARE=h200"; exit 2; }
	test $(DEVICE) = cpu || $(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/step.py --peers $(PEERS) $(if $(HARDWARE),--hardware $(HARDWARE)) --out $(RESULT)-step.json
	$(BIN)/python benchmarks/startup.py --out $(RESULT)-startup.json
	$(BIN)/python benchmarks/sweep.py $(if $(HARDWARE),--gpu $(HARDWARE)) --out $(RESULT)-sweep.json
	$(BIN)/python benchmarks/checkpoint.py --out $(RESULT)-checkpoint.json
	$(BIN)/python benchmarks/generate.py --out $(RESULT)-generate.json

check: $(INSTALLED) ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(INSTALLED) ## write down what is installed, torch and triton left to their ranges
	$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude tinyllama > requirements.new
	{ echo "# What make and CI install; written by make lock. torch and triton stay ranges, so that a GPU machine keeps its build."; \
	  sed -n 's/^    "\(torch>.*\)",$$/\1/p; s/^    "\(triton>.*\)",$$/\1/p' pyproject.toml; \
	  grep -v -i -E '^(torch|triton|nvidia-|cuda-)' requirements.new; } > requirements.lock
	rm requirements.new

clean: ## remove the environment and caches; runs and data sets stay
	rm -rf $(VENV) .venv-oldest .pytest_cache .mypy_cache .ruff_cache tinyllama.egg-info

.PHONY: help install demo study ui test faults slurm compile oldest bench check lock clean
