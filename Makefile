# Common commands. README.md shows what each one runs, for typing it by hand.
#
# They use the virtual or conda environment that is active, or create .venv if there is none. Conda's base environment
# does not count. Packages are installed when the requirements have changed since the last installation.

# The interpreters to try for a new .venv, for example `make quickstart PYTHON=python3.12`.
PYTHON = python3 python3.13 python3.12 python3.11

CONDA_ENVIRONMENT := $(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX))
ACTIVE_ENVIRONMENT := $(or $(VIRTUAL_ENV),$(CONDA_ENVIRONMENT))
ENVIRONMENT := $(or $(ACTIVE_ENVIRONMENT),$(CURDIR)/.venv)
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# $(call run,COMMAND): print a command, then run it in the environment.
define run
	@echo '$$ $(1)'; PATH="$(ENVIRONMENT)/bin:$$PATH" $(1)
endef

# $(call install,FILE,INCLUDED): install the requirements in FILE, which includes the files INCLUDED, unless the stamp in
# the environment shows that exactly these are installed.
define install
	@cat $(1) $(2) | cmp -s - "$(ENVIRONMENT)/.installed-$(1)" || { \
	    "$(ENVIRONMENT)/bin/python" -m pip --version >/dev/null 2>&1 || "$(ENVIRONMENT)/bin/python" -m ensurepip && \
	    echo '$$ pip install -r $(1)' && "$(ENVIRONMENT)/bin/python" -m pip install -r $(1) && \
	    cat $(1) $(2) > "$(ENVIRONMENT)/.installed-$(1)"; }
endef

INSTALL_DEV = $(call install,requirements-dev.txt,requirements.txt benchmarks/requirements.txt)

.PHONY: help quickstart test lint bench environment

help:
	@sed -n 's/^## /  make /p' Makefile

## quickstart   train configs/quickstart.yaml and print a sample; resumes the run if it exists
quickstart: environment
	$(call install,requirements.txt)
	@if test -f runs/quickstart/config.yaml; then \
	    echo 'runs/quickstart exists. Resuming it; delete the folder to train again.'; \
	    set -- --run_dir runs/quickstart --resume; \
	else \
	    set -- --config configs/quickstart.yaml; \
	fi; \
	echo "$$ accelerate launch train.py $$*"; PATH="$(ENVIRONMENT)/bin:$$PATH" accelerate launch train.py "$$@"
	$(call run,python generate.py runs/quickstart --prompt "def " --top-p 0.95)

## test         run all tests
test: environment
	$(INSTALL_DEV)
	$(call run,python -m pytest tests)

## lint         check style and types
lint: environment
	$(INSTALL_DEV)
	$(call run,ruff check .)
	$(call run,ruff format --check .)
	$(call run,ty check)

## bench        measure the speed of training and generation, next to other implementations and the machine's limits
bench: environment
	$(INSTALL_DEV)
	$(call run,python -m benchmarks.speed.throughput --rounds 3 --compile)
	$(call run,python -m benchmarks.speed.generation)

# Create .venv if no environment is active, and check the version of its Python.
environment:
	@if test -z "$(ACTIVE_ENVIRONMENT)" && ! test -x .venv/bin/python; then \
	    for python in $(PYTHON) none; do \
	        $$python -c '$(SUPPORTED)' >/dev/null 2>&1 && break; \
	    done; \
	    if test $$python = none; then \
	        echo 'error: no Python 3.11 to 3.13 found; name one with PYTHON=/path/to/python' >&2; exit 1; \
	    fi; \
	    echo "$$ $$python -m venv .venv"; \
	    $$python -m venv .venv || { rm -rf .venv; exit 1; }; \
	fi
	@"$(ENVIRONMENT)/bin/python" -c '$(SUPPORTED)' 2>/dev/null || { \
	    echo 'error: $(ENVIRONMENT) has no Python 3.11 to 3.13; deactivate or delete that environment' >&2; exit 1; }
