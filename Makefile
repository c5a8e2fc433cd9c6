# make setup   environment for runs            make test   everything: set-up, checks, all CPU tests
# make demo    set-up, then the demo recipe    make unit   set-up, then the fast tests
# make check   format, lint, types, contracts  make clean  caches and build outputs
#
# Needs Python 3.11 or 3.12 with venv, a C compiler, and an index that pip knows. Variables:
#   PYTHON=...           the interpreter to build .venv from; found by itself otherwise
#   LOCK=...             requirements/gpu.txt on a CUDA machine
#   TORCH_CPU_INDEX=...  asked for the CPU build of torch where pip's own configuration does not offer it
#   PYTEST_ARGS=...      passed on by test and unit, such as -p no:randomly or --randomly-seed=1234

LOCK            ?= requirements/cpu.txt
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
PYTEST_ARGS     ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-test check test bytecode unit demo clean

# Nothing here reports to anybody; DeepSpeed compiles an operator only when one is used.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export GX_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1
export DS_BUILD_OPS := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Without bytecode every process that starts would compile torch, transformers and Great Expectations anew.
unexport PYTHONDONTWRITEBYTECODE

test unit: export HF_HUB_OFFLINE := 1
# Tests run side by side: threads of one that wait for work would take the time of another.
test unit: export OMP_NUM_THREADS := 1

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

# ---------------------------------------------------------------------------------------- environment
# A stamp's name carries the checksum of what was installed and where: unchanged locks cost nothing, a
# changed lock is installed again, and removing .venv removes the stamps with it.

key       = $(shell { pwd; cat $(1); } | cksum | tr ' ' '-')
LOCKED    := .venv/.locked-$(call key,$(LOCK))
TESTED    := .venv/.tested-$(call key,$(LOCK) requirements/test.txt)
INSTALLED := .venv/.installed-$(call key,$(LOCK) pyproject.toml)

# Bytecode is left to the first import: most of these modules are never imported.
# Of what lm-eval needs, these have no wheels; all are plain Python.
SOURCES  = rouge-score,sqlitedict,word2number
PIP      = .venv/bin/python -m pip --require-virtualenv
INSTALL  = $(PIP) install -qq --no-deps --no-compile
TORCH   := $(shell grep '^torch==' $(LOCK))

# The first interpreter that runs, has the right version, and can make an environment.
PYTHONS   = $(or $(PYTHON),python3.11 python3.12 python3)
IS_RIGHT  = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
HAS_VENV  = import ensurepip, venv
RIGHT     = $(strip $(foreach p,$(PYTHONS),$(shell $(p) -c '$(IS_RIGHT)' >/dev/null 2>&1 && echo $(p))))
USABLE    = $(strip $(foreach p,$(RIGHT),$(shell $(p) -c '$(HAS_VENV)' >/dev/null 2>&1 && echo $(p))))
# An environment that is half made, moved here from elsewhere or of another version is made afresh.
HEALTHY   = $(shell .venv/bin/pip --version 2>/dev/null | grep -F '$(CURDIR)/.venv/' | grep 'python 3.1[12]')
LINKED    = $(shell test -L .venv && echo yes)
COMPILER  = $(shell command -v $(CC) || command -v gcc || command -v clang)

no_python   = Python 3.11 or 3.12 is needed and none of "$(PYTHONS)" is one: install it, or name it with make PYTHON=/path/to/python3.11
no_venv     = $(firstword $(RIGHT)) cannot make virtual environments: install its venv package (python3-venv on Debian and Ubuntu)
linked      = .venv is a link, and making an environment anew would empty the folder that it points to: remove the link
no_compiler = a C compiler is needed and neither cc, gcc nor clang was found: install gcc

setup: $(INSTALLED)

setup-test: $(INSTALLED) $(TESTED)

# torch alone first: its CPU build carries +cpu in its version, which only some indexes offer, and never any
# CUDA library. Then the wheels as locked, without a resolver. DeepSpeed last: it comes as source and asks torch while it builds.
$(LOCKED):
	$(if $(COMPILER),,$(error $(no_compiler)))
	$(if $(HEALTHY),,$(if $(LINKED),$(error $(linked))))
	$(if $(HEALTHY),,$(if $(RIGHT),,$(error $(no_python)))$(if $(USABLE),,$(error $(no_venv))))
	$(if $(HEALTHY),,@echo "making .venv with $(firstword $(USABLE))" && $(firstword $(USABLE)) -m venv --clear .venv)
	@echo "installing $(LOCK)"
	@$(INSTALL) '$(TORCH)' 2>.venv/torch.log || { \
	    case '$(TORCH)' in *+cpu) ;; *) cat .venv/torch.log >&2; exit 1;; esac; \
	    echo "$(TORCH) is not on the configured index: trying $(TORCH_CPU_INDEX)"; \
	    $(INSTALL) --index-url '$(TORCH_CPU_INDEX)' '$(TORCH)'; } || { \
	    echo "make: no $(TORCH) for $$(.venv/bin/python -V): name an index that has it with make TORCH_CPU_INDEX=..." >&2; exit 1; }
	@grep -v '^torch==\|^deepspeed==' $(LOCK) > .venv/wheels.txt
	@$(INSTALL) --only-binary :all: -r .venv/wheels.txt
	@$(INSTALL) --no-build-isolation "$$(grep '^deepspeed==' $(LOCK))"
	@rm -f .venv/.locked-* .venv/.tested-* && touch $@

$(INSTALLED): | $(LOCKED)
	@$(INSTALL) --no-build-isolation --editable .
	@rm -f .venv/.installed-* && touch $@

$(TESTED): | $(LOCKED)
	@echo "installing requirements/test.txt"
	@$(INSTALL) --only-binary :all: --no-binary $(SOURCES) --no-build-isolation -r requirements/test.txt
	@rm -f .venv/.tested-* && touch $@

# ---------------------------------------------------------------------------------------- the gate

check: setup-test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# Types are checked by one process. Beside it, what every process of the tests imports is compiled once.
test: setup-test
	@$(MAKE) --no-print-directory -j2 check bytecode
	.venv/bin/pytest -m "not gpu" -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

bytecode: setup-test
	@.venv/bin/pytest -m "not gpu" --collect-only -qq >.venv/collected.log 2>&1 || true

unit: setup-test
	.venv/bin/pytest $(PYTEST_ARGS)

demo: setup
	.venv/bin/wind run configs/demo.yaml

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find flows tasks wind data_checks tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
