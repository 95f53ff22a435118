# make demo    set up and run the pipeline on the demo cohort
# make test    set up and run the tests
# make help    the rest

PYTHON ?= python3
VENV := .venv
GGML := .venv-ggml
VERSION := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
SNAKEMAKE := $(VENV)/bin/snakemake --configfile config/demo.yaml
export PYTHON

.PHONY: help demo test test-fast lint format docs bench env ggml clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

env:  ## the environment in .venv
	@envs/make_env.sh $(VENV) envs/constraints-$(VERSION).txt '--editable=.[dev,harmony,slurm]'

ggml:  ## an environment of its own for ggml-ot, the reader of the results (downloads PyTorch)
	@envs/make_env.sh $(GGML) envs/constraints-ggml.txt torch==2.13.0 ggml-ot==0.9.94 pydantic

demo: env  ## run the demo cohort from raw counts to the report
	$(SNAKEMAKE) --cores all
	$(SNAKEMAKE) --report results/report.html
	@echo "Open results/report.html; the mixtures are in results/cohort_gmm.h5ad."

test: env  ## all tests that this machine can run; those it cannot are named
	$(VENV)/bin/python -m pytest -ra

test-fast: env  ## the unit tests
	$(VENV)/bin/python -m pytest -m "not pipeline"

lint: env  ## ruff, snakefmt, snakemake --lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/snakefmt --check Snakefile workflow
	$(VENV)/bin/snakemake --lint

format: env  ## rewrite the sources in the project's format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/snakefmt Snakefile workflow

docs: env  ## the schema and the table of keys, from the models in src/cohortgmm/config.py
	$(VENV)/bin/python -m cohortgmm.config_docs

bench: env  ## the figures of the README
	$(VENV)/bin/python benchmarks/pipeline.py
	$(VENV)/bin/python benchmarks/engine.py
	$(VENV)/bin/python benchmarks/density.py

clean:  ## remove the results (not the environments)
	git clean -qfdX results .snakemake
