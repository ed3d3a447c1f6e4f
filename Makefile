# make demo    everything it needs is set up first, then the main job runs on real input
# make test    likewise, then the tests
# make help    the rest

SHELL := /bin/bash
PYTHON := .venv/bin/python
ARGS ?=
# What decides whether tests pass is the code, not who else uses the machine's threads.
export OMP_NUM_THREADS ?= 1
# Some machines say that no compiled module shall be kept: each start of a role would compile torch or Beam anew.
unexport PYTHONDONTWRITEBYTECODE

# A target that fails on a machine that lacks something should say so.
verdict = { status=$$?; echo; echo "What this machine has:"; $(PYTHON) infra/doctor.py; exit $$status; }

.DEFAULT_GOAL := help
.PHONY: help setup demo test unit e2e containers lint format lock wheel clean

help: ## what there is
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## prepare .venv and the JVM parts (seconds when they are there)
	@infra/setup.sh

demo: setup ## the main job on a real sample, with its report; ARGS="--seconds 30"
	@.venv/bin/penstock demo $(ARGS) || $(verdict)

# One process a core: a file's tests stay together, with the fixtures that they share.
units = $(PYTHON) -m pytest tests --ignore=tests/e2e --ignore=tests/faults --numprocesses logical --dist loadfile $(ARGS)
# On the embedded stack, then on what the compose file starts: two stacks at once would not fit a small machine.
scenarios = $(PYTHON) -m pytest $(wildcard tests/e2e tests/faults) $(ARGS)
in_containers = infra/engine.sh run env PENSTOCK_TEST_FIXTURE=containers $(scenarios)

test: setup ## unit tests, then end to end on a real stack, then in containers
	@$(units) || $(verdict)
	@$(scenarios) || $(verdict)
	@$(in_containers) || $(verdict)

unit: setup ## unit tests alone
	@$(units)

e2e: setup ## end to end alone
	@$(scenarios) || $(verdict)

containers: setup ## the end-to-end scenarios in containers alone
	@$(in_containers) || $(verdict)

# Type checkers cannot follow an editable mapping: links give them the folders under the name they are imported by.
# mypy cannot follow an editable install's mapping of folders to penstock.*, so it reads an installed copy.
lint: setup ## ruff and mypy
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@mkdir -p .cache/types/penstock && cd .cache/types/penstock && \
	  for folder in schemas kernels retrieval ranker jobs infra; do ln -sfn ../../../$$folder $$folder; done
	@MYPYPATH=.cache/types .venv/bin/mypy -p penstock

format: setup ## ruff, changing files
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

lock: setup ## resolve pyproject.toml again into infra/requirements.lock and the images' locks
	@.venv/bin/uv pip compile --generate-hashes --universal --python-version 3.11 --extra dev \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header -q pyproject.toml -o infra/requirements.lock
	@for image in "roles --extra serve --extra gateway --extra tracing" "flink --extra jobs --extra tracing"; do set -- $$image; \
	  printf '%s\n' 'setuptools>=77' pip | .venv/bin/uv pip compile --generate-hashes --python-platform x86_64-manylinux_2_34 \
	    --python-version 3.11 "$${@:2}" -c infra/requirements.lock --no-emit-index-url --no-emit-find-links \
	    --no-annotate --no-header -q pyproject.toml - -o infra/compose/$$1.lock || exit 1; done

wheel: setup ## dist/penstock-*.whl, for your own Flink cluster
	@.venv/bin/uv build --wheel --no-build-isolation --python $(PYTHON) --out-dir dist .

clean: ## what builds and linters left; .venv and data stay
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
