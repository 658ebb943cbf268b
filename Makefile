# Every target sets up what it needs: the virtual environment .venv, its packages and, where no EGL
# library is found, the Debian packages that MuJoCo renders with.
.DEFAULT_GOAL := help
.PHONY: help demo test lint types clean

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= 2

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## Plan a few episodes with the shipped model, memory on and off (runs/demo)
	$(BIN)/sfvgen demo --out runs/demo
	@echo "Open runs/demo/report.html; the figures are in runs/demo/summary.json."

test: $(READY) ## Run the tests
	$(BIN)/pytest -n $(JOBS) --dist loadfile

lint: $(READY) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## Check types
	$(BIN)/mypy

clean: ## Remove the virtual environment, caches and runs
	rm -rf $(VENV) runs dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	tools/install-egl $(BIN)/python
	touch $@
