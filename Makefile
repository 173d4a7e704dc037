# make demo    a training step planned from start to end
# make test    the test suite
# make lint    ruff: rules and layout; mypy: types
# make docs    the documentation, as a site in site/
#
# Each sets up .venv first; PYTHON=python3.12 chooses the interpreter it is made with.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint docs

demo: $(INSTALLED)
	$(BIN)/python examples/transformer_training_step.py --out_dir=runs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/mkdocs build

# Installed again only after a change of the requirements, so a second run starts at once.
$(INSTALLED): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs,tpu,viz]'
	touch $@
