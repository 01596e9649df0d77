# Every target sets up what it needs: `make demo` is enough on a fresh machine.
PYTHON ?= python3
# Your own build of torch: make TORCH="torch --index-url URL" demo
TORCH  ?= torch==2.13.0

BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test slow guard lint types bench zoo clean
.DEFAULT_GOAL := test

# The stamp makes a second run instant. Torch comes first, so that your build of it stays.
.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -e '.[dev]' -c constraints.txt
	touch $@

setup: .venv/.done

demo: setup
	$(BIN)/regrow train recipe=digits/gmp

test: setup
	$(BIN)/pytest -q -n 2 --dist worksteal

slow: setup
	$(BIN)/pytest -q -n 2 --dist worksteal -m "slow or hypothesis" --hypothesis-profile=full

guard: setup
	$(BIN)/pytest -q -n 2 --dist worksteal -m guard

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

bench: setup
	$(BIN)/pip install -q -e '.[plots]' -c constraints.txt
	set -e; for file in $(sort $(wildcard benchmarks/[a-z]*.py)); do $(BIN)/python $$file; done

# Peers live in an environment of their own: torchvision's wheel breaks Lightning beside a CPU-only torch.
.venv-zoo/.done: .venv/.done
	$(PYTHON) -m venv .venv-zoo
	.venv-zoo/bin/pip install -q $(TORCH)
	.venv-zoo/bin/pip install -q -e '.[export]' -c constraints.txt
	.venv-zoo/bin/pip install -q torchvision==0.28.0 timm==1.0.31 torch-pruning==1.6.1
	touch $@

zoo: .venv-zoo/.done
	.venv-zoo/bin/python benchmarks/zoo.py
	.venv-zoo/bin/python benchmarks/channel_speed.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
