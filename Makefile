# `make quickstart` installs the package and runs its main job; `make test` runs the whole check.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test slow
quickstart: .venv/.installed
	$(BIN)/comp run configs/quickstart.yaml

# One thread for each of the suite's processes: with one for every core they would only wait for one another.
test: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# Real data and long trainings; needs data/ (README).
slow: .venv/.installed-dev
	$(BIN)/python -m pytest -m slow

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,postgres]'
	touch $@
