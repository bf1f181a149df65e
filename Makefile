# Every target works from a fresh clone: what it needs is installed into .venv first, once.
#
#   PYTHON=/path/to/python3.11   which Python makes .venv
#   PIP_ARGS="…"                 further arguments of pip install, e.g. another build of torch (README, "CUDA")
#   ARGS="…"                     further arguments of the demo or of pytest
#   FUZZ_CASES, FUZZ_EXECUTIONS  how many requests `make fuzz` sends, and how many files the checker is given
#   FUZZ_SEED                    from which seed both begin
#   TRIALS, SEED                 how many trials `make chaos` has, and which (else a new seed, printed first)

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?=
PIP_ARGS ?=
ARGS ?=
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help venv demo up test check proof chaos mutants fuzz bench-api bench-data bench-estimate bench-prepare bench-first-step bench-train bench-train-peers bench-rates bench-checkpoints bench-queue lock clean

help: ## List these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

venv: ## Install into .venv from requirements.lock (the other targets do this by themselves)
	@scripts/venv $(VENV) $(PIP_ARGS)

demo: ## Start the service, tune a real model through its API, show what it learned
	@began=$$(date +%s); scripts/venv $(VENV) $(PIP_ARGS) || exit; \
		exec $(PY) examples/triage/demo.py --setup-seconds $$(($$(date +%s) - began)) $(ARGS)

up: venv ## Start the service on this machine and keep it running (Ctrl-C stops it)
	@$(VENV)/bin/attune up $(ARGS)

test: venv ## Run the tests, whole stories and a short one on the real model included
	@# Two processes: one waits for the live stack most of the time, the other computes (tests/conftest.py).
	@$(PY) -m pytest -m "not proof and not gpu" -n 2 --dist loadgroup --durations=25 $(ARGS)

check: venv ## Lint, formatting, types, walls between packages, deploy files, documents
	@$(PY) -m ruff check .
	@# Markdown stays as it is written: ruff would stretch the ten-line script of the README.
	@$(PY) -m ruff format --check --exclude '*.md' .
	@$(PY) -m mypy
	@$(PY) -m pytest -q -m "not flow and not proof" tests/test_layers.py tests/test_documents.py tests/deploy \
		--ignore tests/deploy/test_health.py

proof: venv ## Run every test, however long
	@$(PY) -m pytest -m "not gpu" $(ARGS)

chaos: venv ## Kill processes at random moments and judge what came of it (TRIALS, 20; SEED; ARGS="--zombies 5 --redis 5")
	@$(PY) -m tests.chaos --trials "$${TRIALS:-20}" $${SEED:+--seed "$$SEED"} $(ARGS)

mutants: venv ## Break the code one way at a time, and see that a trial notices
	@$(PY) -m tests.chaos.mutants $(ARGS)

bench-api: venv ## Measure the API under load (CHECK=1: status 1 when a figure is missed)
	@$(PY) -m bench.api

bench-data: venv ## Measure the reading of data, good, bad and huge (CHECK=1: status 1 when a figure is missed)
	@$(PY) -m bench.data

bench-prepare: venv ## Measure how soon a job is queued, the first on some data and the next
	@$(PY) -m bench.prepare

bench-first-step: venv ## Measure how soon after a POST a job makes its first step (CHECK=1 as above)
	@$(PY) -m bench.first_step

bench-queue: venv ## Measure claims from a long queue, their fairness, and 200 workers (CHECK=1 as above)
	@$(PY) -m bench.queue $(ARGS)

bench-train: venv ## Measure the engine against what its matrix products cost (ARGS="--data FILE", CHECK=1)
	@$(PY) -m bench.train $(ARGS)

bench-train-peers: venv ## The same job by other trainers, each in an environment of its own (ARGS="trl", CHECK=1)
	@$(PY) -m bench.peers $(ARGS)

bench-rates: venv ## Measure the rates that "auto" and "find" give against a grid (ARGS="--only 270m", CHECK=1)
	@$(PY) -m bench.rates $(ARGS)

bench-checkpoints: venv ## Measure what recovery points cost a run (ARGS="--model DIR --pairs 5", CHECK=1 as above)
	@$(PY) -m bench.checkpoints $(ARGS)

bench-estimate: venv ## Real runs beside what the estimator says of them (ARGS="--seed 7 --runs 4")
	@$(PY) -m bench.estimate $(ARGS)

fuzz: venv ## Fuzz API (FUZZ_CASES, 50,000) and checker of data (FUZZ_EXECUTIONS, 1,000,000); FUZZ_SEED repeats a run
	@export FUZZ_SEED="$${FUZZ_SEED:-$$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')}"; \
		FUZZ_CASES="$${FUZZ_CASES:-50000}" $(PY) -m pytest -q -s tests/flow/test_schemathesis.py $(ARGS) && \
		$(PY) -m tests.fuzz.guided

lock: ## Resolve pyproject.toml anew and write requirements.lock
	@scripts/lock

clean: ## Remove .venv, caches and build output (data in .attune stay)
	@rm -rf $(VENV) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
