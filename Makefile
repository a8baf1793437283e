# Each target works alone on a fresh machine with Python >= 3.11 and make:
#   make demo                  the main result on real images in a minute; options: make demo ARGS="--seed 1 --out folder"
#   make test                  every test but the slow ones; make test SLOW=1 runs those too
#   make test ROUNDING=1       the same as another processor would round: tests that take two routes for equal fail
#   make test LOWEST=1         the same with the lowest versions that pyproject.toml allows, in .venv-lowest; with Python 3.11
#   make lint                  formatting, lint rules, types
# Another Python: make test PYTHON=python3.13 (asked once, when .venv is created).

LOWEST ?=
PYTHON ?= $(if $(LOWEST),python3.11,python3)
ARGS ?=
SLOW ?=
ROUNDING ?=
VENV := $(if $(LOWEST),.venv-lowest,.venv)
VERSIONS := $(if $(LOWEST),--resolution lowest-direct,-c constraints.txt)
BIN := $(VENV)/bin
PARALLEL := -n auto --maxprocesses 4 --dist loadfile
SETUP := pyproject.toml constraints.txt Makefile

.PHONY: demo test lint

demo: $(VENV)/.installed-demo
	$(BIN)/monoloss demo $(ARGS)

# The first call checks shapes and types of every argument; the second, without that, what our own checks answer.
test: export HF_HUB_OFFLINE := 1
test: export SLOW := $(SLOW)
test: export ROUNDING := $(ROUNDING)
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PARALLEL) -m "not door" --jaxtyping-packages=monoloss,beartype.beartype tests
	JAXTYPING_DISABLE=1 $(BIN)/python -m pytest $(PARALLEL) -m door --doctest-modules tests src

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# uv is several times faster than pip; where it cannot be had, pip installs the same.
$(VENV)/.installed-demo: EXTRAS := demo
$(VENV)/.installed-dev: EXTRAS := all,dev
# Tests start many processes: what they import is compiled once, also where Python is told not to write bytecode.
$(VENV)/.installed-dev: COMPILE := --compile-bytecode
$(VENV)/.installed-demo $(VENV)/.installed-dev: $(SETUP)
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"monoloss needs Python 3.11 or newer, this is %s; choose another with PYTHON=..." % sys.version.split()[0])'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet -c constraints.txt uv \
		|| echo "uv cannot be installed here: pip installs instead, which is slower"
	@if test -x $(BIN)/uv; then set -x; $(BIN)/uv pip install $(COMPILE) --python $(BIN)/python $(VERSIONS) -e '.[$(EXTRAS)]'; \
		elif test -n '$(LOWEST)'; then echo "LOWEST=1 needs uv: pip cannot choose the lowest versions"; exit 1; \
		else set -x; $(BIN)/python -m pip install -c constraints.txt -e '.[$(EXTRAS)]'; fi
	@touch $@
