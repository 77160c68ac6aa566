# `make help` says what there is.
PYTHON ?= python3
GPU ?=
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := requirements$(if $(GPU),-gpu).txt
INSTALLED := $(VENV)/installed$(if $(GPU),-gpu)
# Stages are `python -m …`: this environment's python must be the first.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup repro data test lint format preset lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-8s %s\n", $$1, $$2}' Makefile

setup: $(INSTALLED) ## make .venv with the pinned requirements (GPU=1: with CUDA libraries)

$(INSTALLED): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed, $$($(PYTHON) --version) was found;" \
		"name another by 'make PYTHON=python3.12 …'" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	touch $@

repro: setup ## run the pipeline, then show the test metrics (GPU=1: on a GPU)
	python -m tools.check_params
	dvc repro
	python -m tools.summary

data: setup ## fetch and split only, then say what is in the data and what to do about it
	python -m tools.check_params
	python -m tools.inspect_data

test: setup ## run the tests
	python -m pytest

lint: setup ## check style and format
	ruff check .
	ruff format --check .

format: setup ## mend style and format
	ruff check --fix .
	ruff format .

preset: setup ## write presets/NAME.yaml into params.yaml: make preset NAME=cifar10
	python -m tools.preset $(NAME)

lock: ## resolve requirements.in anew
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet uv
	$(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url \
		--no-emit-find-links requirements.in -o requirements.txt
	$(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url \
		--no-emit-find-links requirements-gpu.in -o requirements-gpu.txt

clean: ## remove .venv; data, models and the cache stay
	rm -rf $(VENV) $(VENV)-lock
