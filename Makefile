# One virtual environment, made on demand from the pinned versions; every target may be the first one called.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
GENERATED := clients

.PHONY: demo test nightly zoo check lint protos client docs bench bench-loader bench-checkpoints bench-estimates bench-gateway chaos clean
demo: $(STAMP)
	$(BIN)/adjourn demo

# Three files at a time: most tests wait for processes rather than compute. More than that is too busy for leases.
test: check
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

# Whatever may happen to control plane and workers, in other orders each time, and 200 other trainings:
# tests/harness/README.md.
SEED ?= $(shell date +%j%H%M)
nightly: $(STAMP)
	@echo "again: make nightly SEED=$(SEED)"
	HYPOTHESIS_PROFILE=nightly $(BIN)/pytest --hypothesis-seed=$(SEED) \
		tests/properties/test_joined_machine.py tests/properties/test_random_trainings.py

# Every training of tests/trainings/zoo on two workers, cut at five random steps; two minutes. `make test` cuts a few.
zoo: $(STAMP)
	@echo "again: make zoo SEED=$(SEED)"
	ZOO_SEED=$(SEED) $(BIN)/pytest tests/system/test_zoo_on_two_workers.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code

lint: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m tests.harness.page_format
	cd protos && ../$(BIN)/buf format --write

protos: $(STAMP)
	$(BIN)/python protos/generate.py $(GENERATED)
	cd protos && ../$(BIN)/buf build --path adjourn/v1 --path third_party/google/rpc --as-file-descriptor-set -o '../deploy/adjourn.protoset#format=binpb'
	$(BIN)/python protos/openapi.py

client: $(STAMP)
	$(BIN)/python clients/generate_blocking.py

docs: $(STAMP)
	$(BIN)/python docs/state_diagram.py
	$(BIN)/python docs/included_code.py

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks.scheduler

# What run.loader and run.step cost beside a plain DataLoader.
bench-loader: $(STAMP)
	$(BIN)/python -m tests.benchmarks.loader

# What a checkpoint costs training, network and CPU, as ratios to plain copies, and whether bounds hold; three minutes.
bench-checkpoints: $(STAMP)
	$(BIN)/python -m tests.benchmarks.checkpoints

# How far off estimates are on the examples, with pauses; two minutes on a machine that does nothing else.
bench-estimates: $(STAMP)
	$(BIN)/python -m tests.benchmarks.estimates $(SEED)

# When a change is on all of 50 open pages, and whether the gateway's memory stays; MINUTES is 10.
bench-gateway: $(STAMP)
	$(BIN)/python -m tests.benchmarks.gateway --minutes $(MINUTES)

# SEED repeats the faults and commands of a run, not their moments.
MINUTES ?= 10
chaos: $(STAMP)
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# torch comes first and alone: exactly this version installs without the CUDA packages where a CPU build is at hand.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
