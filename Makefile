# make demo    set up and run the pipeline on the demo cohort
# make test    set up and run the tests
# make help    the rest

PYTHON ?= python3
VENV := .venv
RELEASE := tests/last_release.txt
GGML := .venv-ggml
VERSION := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
SNAKEMAKE := $(VENV)/bin/snakemake --configfile config/demo.yaml
# A progress display where somebody looks.
PROGRESS := $(shell [ -t 2 ] && echo --logger rich)
PYTEST := $(VENV)/bin/python -m pytest
# Tests are divided among two processes; threads of NumPy would compete with them.
WORKERS ?= 2
DIVIDED := -n $(WORKERS) --dist loadscope --no-loadscope-reorder
test test-fast coverage: export OPENBLAS_NUM_THREADS = 1
export PYTHON

.PHONY: help demo test test-release test-fast coverage lint format docs bench env ggml slurm-shards status clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

env:  ## the environment in .venv
	@envs/make_env.sh $(VENV) envs/constraints-$(VERSION).txt '--editable=.[dev,harmony,slurm,progress]'

ggml:  ## an environment of its own for ggml-ot, the reader of the results (downloads PyTorch)
	@envs/make_env.sh $(GGML) envs/constraints-ggml.txt torch==2.13.0 ggml-ot==0.9.94 pydantic

demo: env  ## run the demo cohort from raw counts to the report
	$(SNAKEMAKE) --cores all $(PROGRESS)
	$(SNAKEMAKE) --report results/report.html
	@echo "Open results/report.html; the mixtures are in results/cohort_gmm.h5ad."

test: env  ## all tests that this machine can run; those it cannot are named
	$(PYTEST) -ra $(DIVIDED)

test-release: env  ## the tests for which CI has no time, before a release; their result is kept
	(echo "make test-release, $$(date -I), $$($(VENV)/bin/python --version), $$(PATH=$$PATH:/usr/sbin slurmctld -V)"; \
	$(PYTEST) -m release -q -rA --no-header --show-capture=no --tb=line) >$(RELEASE); \
	status=$$?; cat $(RELEASE); exit $$status

test-fast: env  ## the unit tests
	$(PYTEST) -m "not pipeline and not release" $(DIVIDED)

coverage: env  ## which lines of src the tests run, those in the jobs of the workflow included
	rm -f .coverage .coverage.*
	$(VENV)/bin/python -m coverage run -m pytest -q $(DIVIDED)
	$(VENV)/bin/python -m coverage combine --quiet
	$(VENV)/bin/python -m coverage report --skip-covered --fail-under=90

slurm-shards: env  ## run config/config.yaml in few SLURM jobs: SHARDS=20 SUBMIT="--partition short --account lab"
	$(VENV)/bin/python -m cohortgmm submit --shards $(or $(SHARDS),0) $(SUBMIT)

status: env  ## what has come of every patient and k
	$(VENV)/bin/python -m cohortgmm status

lint: env  ## ruff, mypy, snakefmt, snakemake --lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/snakefmt --check Snakefile workflow
	$(VENV)/bin/snakemake --lint

format: env  ## rewrite the sources in the project's format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/snakefmt Snakefile workflow

docs: env  ## the site in build/docs; config/README.md and the schemas, from the models of the configuration
	$(VENV)/bin/python -m cohortgmm.config.docs
	$(VENV)/bin/python -m sphinx -W --keep-going -q docs build/docs
	@echo "Open build/docs/index.html."

bench: env  ## the figures of the README and of docs/benchmarks.md
	$(VENV)/bin/python benchmarks/pipeline.py
	$(VENV)/bin/python benchmarks/engine.py
	$(VENV)/bin/python benchmarks/density.py
	$(VENV)/bin/python benchmarks/dag.py
	$(VENV)/bin/python benchmarks/resources.py

clean:  ## remove the results (not the environments)
	git clean -qfdX results .snakemake
