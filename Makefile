# Everything that make writes lies in build/: environments, distributions, the copy of the tests. "make clean" is complete.
#
#   PYTHON   the interpreter; each version gets its own environments:  make test PYTHON=python3.13
#   ARGS     passed on to what the target runs:                        make test ARGS="-k ledger"
PYTHON ?= python3
BUILD ?= build
ARGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# What a caller has on its path must not stand in for what we built.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

VERSION := $(shell $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) and print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

need_python = $(if $(VERSION),,$(error "$(PYTHON)" does not run here, or is older than Python 3.11; \
	name a newer one: make PYTHON=/usr/bin/python3.11))

build := $(abspath $(BUILD))
tools := $(build)/tools
dist  := $(build)/dist
app   := $(build)/$(VERSION)/app
check := $(build)/$(VERSION)/check
# The tests run here, out of reach of the checkout: "import supervisor" can only find the wheel's.
root  := $(build)/$(VERSION)/root

# Folders are named too: one that lost a file is newer. Absolute, since "bench" is also a target.
files = $(shell find $(abspath $(wildcard $(1))) -name __pycache__ -prune -o -print)
packages := $(call files,dialout ipc shards supervisor) shardgate.py
projects := pyproject.toml dialout/pyproject.toml
texts    := $(wildcard *.md dialout/*.md) LICENSE
tested   := $(wildcard tests bench examples deploy) .dockerignore pyproject.toml $(texts)

# One pip, in tools, installs into environments that have none: that saves seconds for each, and shows that the
# product needs no pip.
pip_into = $(tools)/bin/python -m pip -qq --python $(1)/bin/python install
wheels   = $(dist)/dialout-*.whl $(dist)/shardgate-*.whl

## Use

.PHONY: run
run: $(app)/.wheels ## run shardgate with its defaults in the foreground; Ctrl-C stops it
	@exec $(app)/bin/shardgate run $(ARGS)

## Check

.PHONY: test
# Two at a time: most tests wait for processes, and one run keeps less than one core busy. Each takes a half of the
# suite and then what the other has left: tests that share a product stay together, and neither idles at the end.
test: $(app)/.tests $(root)/.copied ## run the whole test suite against the built wheels
	@cd $(root) && exec env TESTED_DISTRIBUTIONS=$(dist) HYPOTHESIS_STORAGE_DIRECTORY=$(build)/hypothesis \
		$(app)/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

.PHONY: lint
# The examples besides as their readers have them: alone, beside the installed wheels.
lint: $(check)/.tools $(check)/.wheels ## ruff's rules and format, mypy --strict; changes nothing
	$(check)/bin/ruff check .
	$(check)/bin/ruff format --check .
	$(check)/bin/mypy
	@rm -rf $(check)/examples && mkdir $(check)/examples && cp examples/*.py $(check)/examples
	cd $(check)/examples && $(check)/bin/mypy --strict --config-file= --cache-dir $(check)/.mypy-examples *.py

.PHONY: format
format: $(check)/.tools ## write ruff's format and the fixes that it is sure of
	$(check)/bin/ruff check --fix .
	$(check)/bin/ruff format .

.PHONY: bench
bench: $(app)/.wheels $(root)/.copied ## measure registration beside a plain asyncio listener, about a minute
	@cd $(root) && exec $(app)/bin/python -m bench.registration $(ARGS)

## Build

.PHONY: wheels
wheels: $(dist)/.built ## build the wheels and sdists of dialout and shardgate into build/dist
	@ls $(dist)

.PHONY: man
man: $(app)/.wheels ## write the manual pages into build/man
	@$(app)/bin/shardgate man $(build)/man

.PHONY: environments
environments: $(app)/.tests $(root)/.copied ## set up what "make test" needs without running it

.PHONY: deploy-tools
deploy-tools: $(app)/.deploy ## install what checks deploy/ beside the tests: hadolint, kubernetes-validate, pipx, uv

.PHONY: clean
clean: ## remove everything that make wrote
	rm -rf $(build)

.PHONY: help
help: ## list the targets
	@awk -F ': .*## ' '/^## / { print "\n" substr($$0, 4) } /^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

# What the targets above stand on. A stamp is written when its recipe has succeeded.

$(tools)/.ready:
	$(need_python)
	@echo "Setting up the build tools ..."
	@$(PYTHON) -m venv --clear $(tools)
	@$(tools)/bin/python -m pip -qq install 'pip>=25.1' 'hatchling>=1.27'
	@touch $@

$(dist)/.built: $(packages) $(projects) $(texts) | $(tools)/.ready
	@echo "Building dialout and shardgate ..."
	@rm -rf $(dist)
	@for project in dialout .; do (cd $$project && HATCH_QUIET=1 $(tools)/bin/python -m hatchling build -d $(dist)); done
	@touch $@

# Dependencies stand in the project files, so their change makes the environment anew.
$(app)/.made $(check)/.made: $(projects) | $(tools)/.ready
	$(need_python)
	@$(PYTHON) -m venv --clear --without-pip $(@D)
	@touch $@

# Twice: first our wheels, even where the version is unchanged, then what they depend on.
$(app)/.wheels: $(dist)/.built $(app)/.made
	@echo "Installing the wheels for Python $(VERSION) ..."
	@$(call pip_into,$(app)) --no-deps --force-reinstall $(wheels)
	@$(call pip_into,$(app)) $(wheels)
	@touch $@

$(app)/.tests: $(app)/.wheels
	@$(call pip_into,$(app)) --group test
	@touch $@

$(app)/.deploy: $(app)/.tests
	@$(call pip_into,$(app)) --group deploy
	@touch $@

# The wheels come for their dependencies only: mypy reads our own packages in the checkout.
$(check)/.tools: $(check)/.made | $(dist)/.built
	@echo "Installing the linters for Python $(VERSION) ..."
	@$(call pip_into,$(check)) $(wheels) --group test --group lint
	@touch $@

# For the examples: what was built last.
$(check)/.wheels: $(dist)/.built $(check)/.tools
	@$(call pip_into,$(check)) --no-deps --force-reinstall $(wheels)
	@touch $@

$(root)/.copied: $(call files,$(tested))
	@rm -rf $(root)
	@mkdir -p $(root)
	@cp -R --parents $(tested) $(root)
	@find $(root) -name __pycache__ -prune -exec rm -rf {} +
	@touch $@
