# Few words; `make` alone lists them. Everything a word needs it sets up itself in .venv, from Python alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := .venv-bench/.ready
SERVING := .venv-serving
BENCH ?=
CHAOS ?=

help: ## list the words
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[uvloop]' --group dev
	@$(BIN)/python -c "import sameworld.asof.kernel"  # compiles it, once
	@touch $(READY)

install: $(READY) ## make .venv with everything the project needs

demo: $(READY) ## the whole story on real flights; ends with demo/report.html
	$(BIN)/sameworld demo flights

test: $(READY) ## run all tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(READY) ## what CI runs: format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY) ## print ratios against what you would use instead, of what is installed; flags in BENCH="..."
	$(BIN)/python -m benchmarks.asof $(BENCH)

bench-portfolio: $(READY) ## what 1, 30 and 300 models in one server cost; flags in BENCH="..."
	$(BIN)/python -m benchmarks.portfolio $(BENCH)

bench-ingestion: $(READY) ## what it costs to take events, and what readers notice; flags in BENCH="..."
	$(BIN)/python -m benchmarks.ingestion $(BENCH)

bench-reading: $(READY) ## what it costs to read 200 features of one request; flags in BENCH="..."
	$(BIN)/python -m benchmarks.reading $(BENCH)

$(BENCH_READY): pyproject.toml constraints.txt benchmarks/requirements.txt benchmarks/requirements-feast.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install -q -c constraints.txt -e .
	.venv-bench/bin/python -m pip install -q -c constraints.txt -r benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench-feast
	.venv-bench-feast/bin/python -m pip install -q -r benchmarks/requirements-feast.txt
	@touch $(BENCH_READY)

bench-all: $(BENCH_READY) ## the same against everybody: installs pandas, Polars, Spark, Ray, Dask and Feast beside .venv
	.venv-bench/bin/python -m benchmarks.asof $(BENCH)

bench-serving: $(READY) ## requests a second beside seven other servers, which it installs; needs wrk (apt-get install wrk); flags in BENCH="..."
	$(PYTHON) -m benchmarks.serving.install $(SERVING)
	$(BIN)/python -m benchmarks.serving $(BENCH)

chaos: $(READY) ## load a server while workers and models are broken, and check what it promises; flags in CHAOS="..."
	$(BIN)/python -m benchmarks.chaos $(CHAOS)

clean: ## remove what the other words made
	rm -rf $(VENV) .venv-bench .venv-bench-feast $(SERVING) demo .sameworld examples/*/data

.PHONY: help install demo test check bench bench-portfolio bench-ingestion bench-reading bench-all bench-serving chaos clean
