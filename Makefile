# Bascule. Two commands matter on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
VENV  := .venv/bin
# One more than the cores that are meant: many tests wait for processes.
JOBS  ?= 3
PYTEST_ARGS ?=

.PHONY: help demo playground setup test lint unit test-boot bench docs pictures golden clean

help:
	@echo 'make demo       set up, then show a real update, a bad one and the way back (under a minute)'
	@echo 'make playground a host of your own in a temporary folder, and a shell to steer it'
	@echo 'make test       set up, then lint, types, import contracts and all quick tests'
	@echo 'make test-boot  boot an A/B machine in QEMU and drive it through good and bad updates (slow)'
	@echo 'make bench      measure, and print target, measured and verdict'
	@echo 'make docs       regenerate what is generated from the code'
	@echo 'make golden     write the golden answers of updatectl anew; read the difference'
	@echo 'make pictures   play the stories of the guide again: its outputs and pictures'
	@echo 'make install    DESTDIR=… PREFIX=/usr: units, policy, configuration, entry points'

demo:
	@.ci/setup demo
	@$(VENV)/python tests/journeys/demo.py

playground:
	@.ci/setup demo
	@$(VENV)/python tests/journeys/playground.py

setup:
	@.ci/setup test

test: setup lint unit

lint:
	@$(VENV)/ruff check --quiet agent omaha-mock tests fixtures
	@$(VENV)/ruff format --quiet --check agent omaha-mock tests fixtures
	@$(VENV)/mypy --no-error-summary
	@PYTHONPATH=agent:omaha-mock $(VENV)/lint-imports --no-cache >.venv/lint-imports.log 2>&1 || { cat .venv/lint-imports.log; exit 1; }

# Hundreds of tests start processes of ours: none of them should compile anew what another has read.
# Files stay in the order of their folders, so that the slow ones are not left for the end.
unit: export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv/pycache
unit:
	@env -u PYTHONDONTWRITEBYTECODE $(VENV)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS) || \
	{ echo 'unit: what failed beside others has a second chance alone; what passes only now is to be mended:'; \
	  env -u PYTHONDONTWRITEBYTECODE $(VENV)/python -m pytest --last-failed --last-failed-no-failures none -rA --no-header --tb=short -q; }

test-boot: setup
	@$(VENV)/python tests/boot/run.py $(BOOT_ARGS)

bench: setup
	@$(VENV)/python tests/bench/run.py $(BENCH_ARGS)

docs: setup
	@$(VENV)/python -m bascule.docs
	@$(VENV)/python -m bascule.faces.docs

pictures: setup
	@$(VENV)/python tests/journeys/record.py

golden: setup
	@BASCULE_WRITE_GOLDEN=1 $(VENV)/python -m pytest tests/faces/test_published.py tests/journeys/test_real_answers.py

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .hypothesis

-include systemd/install.mk
