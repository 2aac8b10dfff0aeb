# make demo: the whole way, logs to a ranked feed, in artifacts/report.html. make help lists the rest.
PYTHON ?= python3
VENV ?= .venv
# PyTorch's CPU index, where pip would otherwise take the CUDA build: TORCH_FLAGS="--index-url ..."
TORCH_FLAGS ?=
SCALE ?= tiny
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := merlin,spark,tiers,torch,triton,report,dev
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
# Spark 3.5 runs on these; its tests start it.
JAVA := java -version 2>&1 | grep -qE 'version "(11|17)\.'
# Tests start a cluster of it.
REDIS := redis-server --version 2>&1 | grep -qE 'v=[78]'
# The native lookup is built with it, and tested.
CXX_FOUND := g++ --version >/dev/null 2>&1
.PHONY: help env java redis cxx native demo test test-slow lint format bench clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

env: $(READY)  ## the environment in .venv, from the pins in constraints.txt

# torch first and alone: whatever asks for torch later finds this build and brings no other.
$(READY): constraints.txt pyproject.toml packaging/fbgemm-gpu/pyproject.toml
	@echo "making the environment in $(VENV); some minutes and 2.6 GB, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q -c constraints.txt setuptools wheel
	@echo "  torch" && $(BIN)/pip install -q -c constraints.txt $(TORCH_FLAGS) torch
	@echo "  NVTabular, TorchRec, onnxruntime, ..." && $(BIN)/pip install -q -c constraints.txt --no-build-isolation ./packaging/fbgemm-gpu -e '.[$(EXTRAS)]'
	@echo "  tritonserver" && $(BIN)/pip install -q -c constraints.txt --no-deps nvidia-pytriton
	@$(BIN)/pip check
	@touch $@

java:  ## Java 17 for the tests of ETL on Spark, installed by apt-get where there is none
	@if $(JAVA); then exit 0; fi; $(call INSTALL,openjdk-17-jre-headless); if $(JAVA); then exit 0; fi; \
	echo "Spark needs Java 17 and 'java -version' does not find it: install openjdk-17-jre-headless, put it on PATH, run this again" >&2; \
	exit 1

redis:  ## Redis 7 for the tests of its tier, installed by apt-get where there is none
	@if $(REDIS); then exit 0; fi; $(call INSTALL,redis-server); if $(REDIS); then exit 0; fi; \
	echo "the tier on Redis Cluster is tested with Redis 7: install redis-server, put it on PATH, run this again" >&2; \
	exit 1

cxx:  ## g++ for the native lookup and its tests, installed by apt-get where there is none
	@if $(CXX_FOUND); then exit 0; fi; $(call INSTALL,g++); if $(CXX_FOUND); then exit 0; fi; \
	echo "the native lookup is C++: install g++ (and libc6-dev), put it on PATH, run this again" >&2; \
	exit 1

define INSTALL
	echo "installing $(1)"; \
	if [ "$$(id -u)" = 0 ]; then as=; else as="sudo -n"; fi; \
	{ $$as apt-get update -q && $$as apt-get install -q -y --no-install-recommends $(1); } >/dev/null
endef

native: $(READY) cxx  ## the lookup step in C++, which serving then takes by itself; needs g++, some seconds
	@$(BIN)/python -m sparsefeed.native

demo: $(READY)  ## simulate, train, serve and rank on this machine; leaves artifacts/report.html
	$(BIN)/sparsefeed demo --scale $(SCALE)

test: $(READY) java redis cxx  ## the default test suite
	$(BIN)/python -m pytest

test-slow: $(READY) java redis cxx  ## the minutes-long tests as well
	$(BIN)/python -m pytest -m 'not gpu and not hugectr'

lint: $(READY)  ## ruff, mypy --strict, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## let ruff write the layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## measure; appends to benchmarks/results.csv
	$(BIN)/python benchmarks/run.py all

clean:  ## remove what was made, the environment included
	rm -rf $(VENV) artifacts build *.egg-info src/*.egg-info
