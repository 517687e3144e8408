# Two commands: `make demo` and `make test`. Everything else is a piece of them; every target builds .venv first.
SHELL := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RECIPE ?= demo
SET    ?=
OSSICLE := $(BIN)/ossicle
ARGS    = $(RECIPE) $(foreach s,$(SET),--set $(s)) $(if $(AUDIO),--set fetch.audio_folder=$(abspath $(AUDIO)))

.DEFAULT_GOAL := help
.PHONY: help setup demo fetch manifest finetune embed distill export evaluate benchmark report test test-all check bench benchmark-gate benchmark-gate-update recipes fixtures quality runtimes doctor clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -U pip
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --group test --group lint
	@touch $@

setup: $(VENV)/.ready  ## build .venv with everything the demo needs

demo: setup  ## real audio and a real teacher to a distilled int8 model and a report (AUDIO=folder for your own sound)
	$(OSSICLE) demo $(ARGS)

fetch manifest finetune embed distill export evaluate benchmark report: setup  ## one stage of a recipe: make distill RECIPE=demo SET="student.name=micronet_m0"
	$(OSSICLE) $@ $(ARGS)

quality: setup  ## the figures of README: three seeds, controls, the thesis's students (SET="evaluate.audio_roots.esc10=FOLDER")
	$(OSSICLE) demo quality $(foreach s,$(SET),--set $(s))

runtimes: setup  ## build the environment of ExecuTorch (1.7 GB, in the cache) for: ossicle convert RUN --to executorch
	$(OSSICLE) convert --environments-only --to executorch

doctor: setup  ## what this machine has and what each stage would do about it
	$(OSSICLE) doctor

# A test file stays with one process, so that what its module builds is built once.
test: $(VENV)/.ready-dev  ## the whole test suite, a process a core (4 at most)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

test-all: $(VENV)/.ready-dev  ## that, and the exhaustive tests: every size of every family, twenty kills (an hour)
	OSSICLE_SLOW=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

check: $(VENV)/.ready-dev  ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready-dev  ## speed goals as ratios measured in one run (ONLY=name for one)
	$(BIN)/python -m tests.benchmarks.run $(if $(ONLY),--only $(ONLY))

benchmark-gate: $(VENV)/.ready-dev  ## sizes and executed ARM instructions of the shipped students, within 2 % of the committed ones
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.student_costs $(if $(ONLY),--only $(ONLY))

benchmark-gate-update: $(VENV)/.ready-dev  ## measure those anew and write tests/benchmarks/student_costs.json
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.student_costs --update $(if $(ONLY),--only $(ONLY))

recipes: $(VENV)/.ready-dev  ## every run of every published system's recipe, end to end on miniature datasets
	OSSICLE_RECIPES=all $(BIN)/python -m pytest -q -n0 tests/e2e/test_published_recipes.py tests/e2e/test_tess.py tests/e2e/test_teacher_chain.py --durations=0

fixtures: $(VENV)/.ready-dev  ## regenerate the small-shard fixture stores
	$(BIN)/python -m tests.fixtures.regenerate

clean:  ## remove build products (artifacts and downloads stay)
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
