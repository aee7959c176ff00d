# Each target sets up what it needs, once: the environment in .venv, then the data in its cache.
PYTHON ?= python3
VENV := .venv/bin

.PHONY: train test test-gpu test-oldest bench check papers claims claims-quick clean

train: .venv/ready
	$(VENV)/python src/train.py model=lenet5 data=mnist

test: .venv/ready
	$(VENV)/pip install --quiet --constraint .ci/constraints.txt --editable ".[test]"
	$(VENV)/python -m pytest -n auto --dist loadscope
	$(VENV)/python -m pytest -n auto --maxprocesses 8 --dist loadscope -m "slow and not gpu"

test-gpu: .venv/ready
	$(VENV)/python -m pytest -m gpu tests/gpu

test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --constraint .ci/oldest.txt --editable ".[test]"
	.venv-oldest/bin/python -m pytest -n auto --dist loadscope
	rm -rf .venv-oldest

bench: .venv/ready
	PYTHONPATH=src $(VENV)/python -m tests.bench

check: .venv/ready
	$(VENV)/pip install --quiet --constraint .ci/constraints.txt ruff mypy
	$(VENV)/ruff check . && $(VENV)/ruff format --check . && $(VENV)/mypy src/classic_cnns

claims: .venv/ready
	$(VENV)/python docs/claims.py run

claims-quick: .venv/ready
	$(VENV)/python docs/claims.py quick

papers:
	$(PYTHON) docs/papers.py

.venv/ready: pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "error: $(PYTHON) is older than 3.10; try make PYTHON=python3.12 <target>" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(VENV)/pip install --quiet --constraint .ci/constraints.txt --editable .
	@touch $@

clean:
	rm -rf .venv .venv-oldest
