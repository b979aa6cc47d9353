.DEFAULT_GOAL := help
.PHONY: help demo test bench soak check format wheel clean

PYTHON ?= python3
BIN := .venv/bin
STORE := demo/store
OUT ?= benchmarks/results/bench.md
RUNS ?= 50
AT_ONCE ?= --numprocesses 2 --dist loadfile

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/.ready ## make a small data set, train a small network on it, dissect and picture it, follow its training, write the report
	$(BIN)/raydissect ingest data=mini store=$(STORE)
	$(BIN)/raydissect run model=mininet data=mini store=$(STORE)
	$(BIN)/raydissect run model=mininet data=mini store=$(STORE) layers=features.11 \
		stages=[activation_maximization,deconvnet] units=detectors steps=128
	$(BIN)/raydissect run model=mininet data=mini store=$(STORE) layers=[features.1,features.4] stages=[diagnosis]
	$(BIN)/raydissect run model=mininet data=mini store=$(STORE) layers=[features.1,features.4,features.11] \
		stages=[evolution] most_checkpoints=6
	$(BIN)/raydissect report last store=$(STORE) --folder demo/report

test: .venv/.ready ## all tests, cluster and browser included
	$(BIN)/python -m pytest $(AT_ONCE)

bench: .venv/.ready ## measure how fast it is, print a table and append it to OUT; see BENCHMARKS.md
	$(BIN)/python -m benchmarks --out $(OUT)

soak: .venv/.ready ## 50 small runs in which a random process is killed every few seconds: all tables must be equal
	$(BIN)/python -m tests.soak --runs $(RUNS)

check: .venv/.ready ## linters, types, import rules, then the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(AT_ONCE)

format: .venv/.ready ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: .venv/.ready ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## remove what demo, tests and builds leave behind
	rm -rf demo dist build *.egg-info .pytest_cache .ruff_cache .hypothesis
