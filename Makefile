# Everything people and CI run. `make` alone lists the targets.

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
ARGS    ?=

BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH   := $(shell grep '^torch==' constraints.txt)
# Its setup script imports torch, so it comes second and without a build environment of its own; it compiles nothing.
DEEPSPEED := $(shell grep '^deepspeed==' constraints.txt)

PYTEST  := $(BIN)/python -m pytest -q
# One thread a worker: with more, the workers would fight over the cores.
WORKERS_PYTEST := OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS) --dist worksteal

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help install train chat test test-slow test-acceptance test-web test-cluster test-matrix test-gpu gpu test-peers test-lmms-eval test-minimal same check format docs clean

# $(call pytest,command): a tier that collects nothing is an error (pytest's exit code 5), never a success.
define pytest
@$(1) $(ARGS) || { code=$$?; [ $$code -ne 5 ] || echo "error: this tier collected no tests" >&2; exit $$code; }
endef

# $(call environment,folder): a virtual environment, if it is not there yet.
define environment
@command -v "$(PYTHON)" >/dev/null || { echo "error: $(PYTHON) not found; set PYTHON=/path/to/python3.11" >&2; exit 1; }
@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$("$(PYTHON)" -V 2>&1); set PYTHON=/path/to/python3.11" >&2; exit 1; }
@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
	{ echo "error: $(PYTHON) has no venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
@test -x $(1)/bin/pip || "$(PYTHON)" -m venv $(1)
endef

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  ARGS="..." goes to the command behind train, chat and the tests; PYTHON=... chooses the interpreter.'

install: $(STAMP) ## Create .venv with the tested versions (again only when they change)
	@:

$(STAMP): pyproject.toml constraints.txt
	$(call environment,$(VENV))
	@echo "Installing into $(VENV): some minutes, 2 GB; a torch with CUDA takes several GB more"
	@$(INSTALL) $(TORCH) setuptools
	@DS_BUILD_OPS=0 $(INSTALL) --no-build-isolation "$(DEEPSPEED)"
	@$(INSTALL) -e '.[dev]'
	@touch $@
	@echo "Installed into $(VENV)"

train: $(STAMP) ## Train the tiny world, or what ARGS say: make train ARGS="experiment=..."
	@$(BIN)/visualchat-train $(ARGS)

chat: $(STAMP) ## Talk to the model of the latest run
	@$(BIN)/visualchat-chat $(ARGS)

test: $(STAMP) ## Run the default tests: CPU, offline, minutes
	$(call pytest,$(WORKERS_PYTEST))

test-slow: $(STAMP) ## Run the tests marked slow
	$(call pytest,$(WORKERS_PYTEST) -m "slow and not gpu" --durations=5)

test-acceptance: $(STAMP) ## Type what the documents say: every command line of them composes, and runs if a CPU can
	$(call pytest,$(WORKERS_PYTEST) tests/acceptance -m "not gpu and not cluster" --durations=5)

test-web: $(STAMP) ## Drive the page in a browser without a window; installs Chromium where it is missing and may
	@if ! command -v chromedriver >/dev/null || ! { command -v chromium || command -v google-chrome; } >/dev/null; then \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || \
			{ echo "error: make test-web needs Chromium and its driver: apt-get install chromium chromium-driver" >&2; exit 1; }; \
		apt-get update -qq && apt-get install -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null; \
	fi
	$(call pytest,OMP_NUM_THREADS=1 $(PYTEST) -m web tests/web --durations=3)

test-cluster: $(STAMP) ## Serve by replicas on a Ray cluster, and kill one that answers
	$(call pytest,$(PYTEST) -m cluster tests/acceptance/test_cluster.py --durations=3)

test-matrix: $(STAMP) ## Train every combination of strategy, attention, what trains, base and data: hours
	$(call pytest,VISUALCHAT_MATRIX=whole $(WORKERS_PYTEST) -m "slow or not slow" tests/acceptance/test_matrix.py)

test-gpu: $(STAMP) ## Run the tests marked gpu; needs a CUDA device
	$(call pytest,$(PYTEST) -m gpu --durations=5)

gpu: $(STAMP) ## Test and measure on a CUDA device; the tables of docs/training-step.md fill themselves
	@$(PYTEST) -m gpu
	@$(BIN)/python benchmarks/gpu.py --document docs/training-step.md $(ARGS)

test-peers: $(STAMP) ## Run transformers' own tests of models and processors on ours
	@$(BIN)/python tests/peers/peers.py
	$(call pytest,$(WORKERS_PYTEST) tests/peers/peer_model.py tests/peers/peer_processor.py)

test-lmms-eval: $(STAMP) ## Run lmms-eval's own command on a saved model, in an environment of its own
	$(call environment,$(VENV)-lmms)
	@paths='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	echo "import site; site.addsitedir('$$($(BIN)/python -c "$$paths")')" > "$$($(VENV)-lmms/bin/python -c "$$paths")/base.pth"
	@$(VENV)-lmms/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/harness/requirements.txt
	$(call pytest,$(VENV)-lmms/bin/python -m pytest -q tests/harness/harness_lmms_eval.py)

test-minimal: ## Import the package where only torch, transformers and pillow are installed
	$(call environment,$(VENV)-minimal)
	@$(VENV)-minimal/bin/pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH)
	@$(VENV)-minimal/bin/pip install --quiet --disable-pip-version-check -c constraints.txt transformers pillow
	@PYTHONPATH=src $(VENV)-minimal/bin/python -c 'import visualchat; print("import visualchat: ok")'

same: $(STAMP) ## Compare batches, losses and metrics with another commit, bit for bit: make same BASE=main
	@test -n "$(BASE)" || { echo "error: name a commit: make same BASE=main" >&2; exit 2; }
	@$(BIN)/python tests/same.py "$(BASE)"

check: $(STAMP) ## Lint, check formatting and types; changes nothing
	@failed=0; \
	$(BIN)/ruff check --output-format concise . || failed=1; \
	$(BIN)/ruff format --check --output-format concise . || failed=1; \
	$(BIN)/mypy || failed=1; \
	exit $$failed

format: $(STAMP) ## Format the code and repair what the linter can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

docs: $(STAMP) ## Build the site of documents and API reference into build/docs; a broken link is an error
	@$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going -c docs . build/docs
	@echo "Built build/docs/index.html"

clean: ## Remove caches and builds; keeps .venv and runs
	@rm -rf build dist .pytest_cache .ruff_cache .mypy_cache $(VENV)-minimal $(VENV)-lmms
	@find src tests benchmarks notebooks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
	@echo "Removed caches and builds"
