# `make quickstart` installs the package and runs its main job; `make test` runs the whole check.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test slow docs
quickstart: .venv/.installed
	$(BIN)/comp run configs/quickstart.yaml

# One thread for each of the suite's processes: with one for every core they would only wait for one another.
# COMP_SLOW=1 runs the slow tests too.
test: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(if $(COMP_SLOW),-m '')

# Long trainings and real data; tests of real data skip without data/ (README).
slow: .venv/.installed-dev
	$(BIN)/python -m pytest -m slow

# The site, in site/: a warning, a broken link or a row without a description is an error.
docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,postgres,kaggle,onnx]'
	touch $@

.venv/.installed-docs: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
