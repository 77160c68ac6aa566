# `make help` says what there is.
PYTHON ?= python3
# Of the command line alone: some systems have a variable of that name.
NAME :=
GPU ?=
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := requirements$(if $(GPU),-gpu).txt
INSTALLED := $(VENV)/installed$(if $(GPU),-gpu)
# What only some want. Extras join .venv; the demo, whose packages and DVC's exclude each other, has
# an environment of its own, and so has Apache Beam, which wants older ones than the rest.
EXTRAS := $(filter-out gpu demo beam,$(patsubst requirements-%.in,%,$(wildcard requirements-*.in)))
DEMO := $(VENV)-demo
BEAM := $(VENV)-beam
UV := uv==0.13.9
# uv installs in a fraction of pip's time, and reads no pip.conf: where that names an index of your
# own, INSTALLER=pip, or set uv's own variable for it.
INSTALLER ?= uv
PIP := python -m pip install --quiet --disable-pip-version-check
define check_python
@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	{ echo "error: Python 3.11 to 3.13 is needed, $$($(PYTHON) --version) was found;" \
	"name another by 'make PYTHON=python3.12 …'" >&2; exit 1; }
endef
# An environment that was cut off while it was filled is begun anew, since uv takes what is there for
# whole; and so is one of another Python.
define environment
$(PYTHON) -m venv $(if $(wildcard $(1)/installing),--clear) $$($(call same_python,$(1)) || echo --clear) $(1)
touch $(1)/installing
endef
same_python = test "$$($(1)/bin/python -V 2>&1)" = "$$($(PYTHON) -V 2>&1)"
# uv by itself compiles nothing, and where PYTHONDONTWRITEBYTECODE is set, as in many containers, every
# stage would compile TensorFlow anew.
define install
$(1)/bin/$(PIP) $(if $(filter uv,$(INSTALLER)),$(UV),-r $(2))
$(if $(filter uv,$(INSTALLER)),$(1)/bin/uv pip install --quiet --compile-bytecode --python $(1)/bin/python -r $(2))
endef
COMPILE := $(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--no-emit-index-url --no-emit-find-links \
	$(if $(UPGRADE),$(if $(filter 1,$(UPGRADE)),--upgrade,--upgrade-package $(UPGRADE)))
# uv's own place is in the home folder, which a container may not let us write to.
ifeq ($(shell test -w "$$HOME" && echo yes),)
export UV_CACHE_DIR ?= $(CURDIR)/.uv-cache
endif
# A file's tests stay together, since they share what was costly to make; in the order of names, since
# by default files of few tests, which are the longest, come last.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Stages are `python -m …`: this environment's python must be the first. Recipes name theirs: make 3.81,
# which macOS has, looks for commands on the path that it was started with.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.NOTPARALLEL: # extras are installed into one environment
.PHONY: help setup extra repro data fetch-on-beam demo test test-all benchmark lint format backbones preset lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-13s %s\n", $$1, $$2}' Makefile

setup: $(INSTALLED) ## make .venv with the pinned requirements (GPU=1: with CUDA libraries)
	@test "$(origin PYTHON)" = file || $(call same_python,$(VENV)) || \
		{ echo "error: $(VENV) has $$($(BIN)/python -V), and PYTHON=$(PYTHON) is $$($(PYTHON) -V);" \
		"'make clean' removes it" >&2; exit 1; }

$(INSTALLED): $(REQUIREMENTS)
	$(check_python)
	$(call environment,$(VENV))
	$(call install,$(VENV),$(REQUIREMENTS))
	rm $(VENV)/installing
	touch $@

extra: setup ## install optional packages: make extra NAME=export (keras-hub, profile, s3, search)
	@test -n "$(filter $(NAME),$(EXTRAS))" || \
		{ echo "error: expected NAME to be one of $(EXTRAS), received '$(NAME)'" >&2; exit 1; }
	$(MAKE) $(VENV)/extra-$(NAME)

$(VENV)/extra-%: requirements-%.txt $(INSTALLED)
	@# Cut off, it leaves no `installed`, and keeps its time otherwise.
	mv $(INSTALLED) $(VENV)/installing
	$(call install,$(VENV),$<)
	mv $(VENV)/installing $(INSTALLED)
	touch $@

$(DEMO)/installed $(BEAM)/installed: $(VENV)-%/installed: requirements-%.txt
	$(check_python)
	$(call environment,$(@D))
	$(call install,$(@D),$<)
	rm $(@D)/installing
	touch $@

repro: setup ## run the pipeline, then show the test metrics (GPU=1: on a GPU)
	$(BIN)/python -m tools.check_params
	$(BIN)/python -m dvc repro
	$(BIN)/python -m tools.summary

data: setup ## fetch and split only, then say what is in the data and what to do about it
	$(BIN)/python -m tools.check_params
	$(BIN)/python -m tools.inspect_data

fetch-on-beam: setup $(BEAM)/installed ## run fetch by the runner of Apache Beam that params.yaml names
	$(BIN)/python -m tools.check_params
	@# DVC is that of .venv; the stage's `python` is the first one, which has Beam.
	PATH="$(CURDIR)/$(BEAM)/bin:$$PATH" $(CURDIR)/$(BIN)/python -m dvc repro --single-item fetch

test: setup ## run the tests
	$(BIN)/python -m pytest $(PARALLEL)

demo: $(DEMO)/installed ## classify pictures on a local web page (OPTIONS='--model … --port …')
	$(DEMO)/bin/python -m tools.demo $(OPTIONS)

test-all: $(EXTRAS:%=$(VENV)/extra-%) $(DEMO)/installed $(BEAM)/installed ## run what `make test` leaves out: slow, or of an extra
	$(BIN)/python -m pytest $(PARALLEL) -m slow

benchmark: setup ## compare speeds with what one would run instead, after a `make repro`
	$(BIN)/python -m tools.benchmark

lint: setup ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

backbones: setup ## list the networks there are: make backbones NAME=resnet
	$(BIN)/python -m tools.backbones $(NAME)

preset: setup ## write presets/NAME.yaml into params.yaml: make preset NAME=cifar10
	$(BIN)/python -m tools.preset $(NAME)

lock: ## resolve requirements*.in, versions kept (UPGRADE=1: to the newest, UPGRADE=NAME: of one)
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/$(PIP) $(UV)
	$(COMPILE) requirements.in -o requirements.txt
	$(COMPILE) requirements-gpu.in -o requirements-gpu.txt
	$(COMPILE) requirements-demo.in -o requirements-demo.txt
	$(COMPILE) requirements-beam.in -o requirements-beam.txt
	@# All extras fit into one environment: they are resolved together, then parted.
	$(COMPILE) $(EXTRAS:%=requirements-%.in) -o $(VENV)-lock/extras.txt
	$(foreach extra,$(EXTRAS),$(COMPILE) -c $(VENV)-lock/extras.txt requirements-$(extra).in \
		-o requirements-$(extra).txt &&) true

clean: ## remove .venv and its kin; data, models and the cache stay
	rm -rf $(VENV) $(VENV)-lock $(DEMO) $(BEAM) .uv-cache
