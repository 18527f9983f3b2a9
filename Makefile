.DEFAULT_GOAL := help
.PHONY: help install tools demo test test-slow quality style docs bench clean url

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_DISABLE_TELEMETRY ?= 1

help:  ## Show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# torch first: TORCH_INDEX=https://download.pytorch.org/whl/cpu keeps CUDA's packages off a machine without a GPU.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "trl_real needs Python 3.11 or newer; $(PYTHON) is older. Type: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep -E '^torch==' constraints.txt)
	$(PIP) --constraint constraints.txt --editable '.[demo]'
	@touch $(INSTALLED)

$(TOOLS): $(INSTALLED)
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $(TOOLS)

install: $(INSTALLED)  ## Make .venv with the package and what the demo needs

tools: $(TOOLS)  ## Add what tests, checks and documentation need

demo: $(INSTALLED)  ## The main job with a real model: pool, selection, labels, DPO, win rate, report (about 5 minutes on 2 cores)
	$(BIN)/trl-real demo --output_dir demo_output

# A process a core, each with one thread. Threads that spin while they wait make a busy machine ten times slower.
test: $(TOOLS)  ## The tests that need no network and no real model
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_FLAGS)

test-slow: $(TOOLS)  ## Tests with a real model
	$(BIN)/python -m pytest -m slow

quality: $(TOOLS)  ## Lint, format, import directions and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

style: $(TOOLS)  ## Mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(TOOLS)  ## Build the site into site/, and check every link and page
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m pytest tests/project/test_docs.py tests/project/test_site.py -k "lead or TestMenus or public_name"
	@echo "Open site/index.html"

bench: $(TOOLS)  ## Tokens a second of the embedder beside plain batches, sentence-transformers and REAL's script
	$(BIN)/python benchmarks/embedding.py

clean:  ## Remove what was built
	rm -rf $(VENV) build dist site *.egg-info demo_output

url:  ## Build every link to the project from its address in pyproject.toml
	$(BIN)/python docs/project_url.py
