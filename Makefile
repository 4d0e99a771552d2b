# demo test lint bench clean. Variables: PYTHON (to create the environment), VENV (its folder),
# JOBS (test processes) and PYTEST_ARGS.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PYTEST_ARGS ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.fastres-installed

.PHONY: demo test lint bench clean

demo: $(INSTALLED)
	$(BIN)/fastres demo

test: $(INSTALLED)
	@started=$$(date +%s); status=0; \
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --benchmark-disable $(PYTEST_ARGS) \
		|| status=$$?; \
	echo "make test: $$(( $$(date +%s) - started )) s"; exit $$status

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(INSTALLED)
	$(BIN)/python -m pytest benchmarks --benchmark-only

# An environment without pip is one whose creation was interrupted: it is created again.
$(INSTALLED): pyproject.toml setup.py
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing fastres and what its tests need into $(VENV) (once; PyTorch is large) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

clean:
	rm -rf build dist out *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -f fastres/_native_*
	find fastres kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
