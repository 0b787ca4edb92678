# make demo | test on a fresh Debian or Ubuntu: makes .venv, installs torch and this package, builds the kernels, runs.
# TORCH_INDEX=https://download.pytorch.org/whl/cpu fetches the small CPU build of torch.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV := .venv
PY := $(VENV)/bin/python
EXTRA := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
NATIVE := $(shell find csrc tests/native -path '*/build' -prune -o \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) -print 2>/dev/null)
CSRC := $(filter csrc/%,$(NATIVE))
.DEFAULT_GOAL := help
NVCC := $(foreach name,nvcc crt runtime cccl,'nvidia-cuda-$(name)==13.0.*') 'nvidia-nvvm==13.0.*'
.PHONY: help demo data papers test dev lint fmt docs bench budget static gpu-check nvcc wheel wheel-check wheel-pure clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 20

demo: $(VENV)/built ## train hashed layers on Fashion-MNIST beside dense ones, then time them (DEMO=--quick: a smoke run)
	$(PY) bench/demo.py $(DEMO)

test: $(VENV)/built ## every test, in every mode this machine can run (ARGS=... goes to pytest)
	$(PY) tests/run.py $(ARGS)

data: $(VENV)/packages ## the data sets and pretrained nets of the experiments, into .data: no root, 200 MB
	$(PY) -m bench.papers.fetch

papers: $(VENV)/built ## the papers' experiments: 4 to 5 hours of a core (PAPERS=--quick: every path, minutes); after `make data`
	for paper in hashednets denil denton ba_caruana deep_compression; do $(PY) -m bench.papers.$$paper $(PAPERS) || exit; done

dev: $(VENV)/built ## .venv with the package editable and its kernels built

lint: $(VENV)/packages ## style, format and types
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy rdkernels
	$(if $(NATIVE),$(VENV)/bin/clang-format --dry-run -Werror $(NATIVE))

fmt: $(VENV)/packages ## rewrite Python and C++ in the house format
	$(PY) -m ruff check --fix . ; $(PY) -m ruff format . ; $(if $(NATIVE),$(VENV)/bin/clang-format -i $(NATIVE))

docs: $(VENV)/built ## the documentation as docs/_build/index.html; a warning is an error
	$(PY) docs/measured.py && $(PY) -m sphinx -W -q docs docs/_build

bench: $(VENV)/built ## ours beside torch, interleaved (BENCH="--quick --json F --plot F")
	$(PY) -m rdkernels bench $(BENCH)

budget: $(VENV)/packages ## compile the GPU kernels (needs nvcc, no GPU) and rewrite tests/budget*.json
	$(PY) -m bench.static.cuda --write && $(PY) -m bench.static.room --write

static: $(VENV)/packages ## bounds of the GPU kernels from compiled code (needs nvcc, no GPU), into docs/measured/static.*
	$(PY) -m bench.static --write

gpu-check: $(VENV)/built ## confirm the CUDA and Triton kernels on this machine's GPU (GPU_CHECK=--dry-run: without one)
	RDK_BUILD=auto $(PY) -m pip install -q --no-build-isolation --no-deps -e .
	$(PY) bench/gpu_check.py $(GPU_CHECK)

nvcc: $(VENV)/packages ## the CUDA compiler, into .venv: no root, 0.3 GB (where no toolkit is installed)
	$(PY) -m pip install -q $(NVCC)

wheel: $(VENV)/packages ## one wheel for CPUs (every instruction set) and GPUs, in dist/; needs nvcc, no GPU
	@RDK_BUILD=cuda $(PY) setup.py -q --name >/dev/null || { echo "make: a toolkit is found by nvcc on PATH or by \
	CUDA_HOME; 'make nvcc' installs one into $(VENV), without root"; exit 1; }
	rm -rf build/lib* build/bdist* build/temp* dist/rdkernels-*-abi3-*.whl
	RDK_BUILD=cuda $(PY) -m pip wheel -q . --no-deps --no-build-isolation -w dist
	@ls -l dist/rdkernels-*-abi3-*.whl

wheel-check: $(VENV)/wheel-tools ## audit that wheel and install it in empty environments (CUDA_TORCH=1: also in a CUDA torch, 5 GB)
	RDK_REQUIRE=wheel $(PY) -m pytest -q tests/test_build.py
	$(PY) tests/wheels.py dist/rdkernels-*-abi3-*.whl --torch '$(TORCH)' $(if $(TORCH_INDEX),--index $(TORCH_INDEX)) \
		$(if $(CUDA_TORCH),--cuda-torch)

wheel-pure: $(VENV)/packages ## a wheel without kernels, in dist/
	RDK_BUILD=pure $(PY) -m pip wheel -q . --no-deps --no-build-isolation -w dist

clean: ## remove everything that was built
	rm -rf $(VENV) build dist docs/_build demo-output tests/native/build *.egg-info rdkernels/*.so

# Every missing piece is named at once, before anything is downloaded.
$(VENV)/packages: pyproject.toml Makefile
	@missing=; command -v $(PYTHON) >/dev/null || missing="$$missing python3"; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	command -v $${CXX:-c++} >/dev/null || missing="$$missing g++"; \
	if [ -n "$$missing" ]; then echo "make: missing on this machine; install with: apt-get install$$missing"; exit 1; fi; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "make: Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --upgrade $(EXTRA) 'setuptools>=77' '$(TORCH)'
	RDK_BUILD=pure $(PY) -m pip install $(EXTRA) --no-build-isolation -e '.[dev]'
	@touch $@

$(VENV)/wheel-tools: $(VENV)/packages
	RDK_BUILD=pure $(PY) -m pip install -q --no-build-isolation -e '.[wheel]'
	@touch $@

$(VENV)/built: $(VENV)/packages setup.py $(CSRC)
	RDK_BUILD=cpu $(PY) -m pip install -q --no-build-isolation --no-deps -e .
	@touch $@
