# Every target sets up what it needs: `make demo` is enough on a fresh machine.
PYTHON ?= python3
# Your own build of torch: make TORCH="torch --index-url URL" demo
TORCH  ?= torch==2.13.0

# torchvision needs the torch that it was built with; the default one may be any build.
VISION ?= torch==2.14.1 torchvision==0.29.1 timm==1.0.31

BIN := .venv/bin
VISION_BIN := .venv-vision/bin
export OMP_NUM_THREADS ?= 1

.PHONY: setup vision vision-slow demo test slow guard lint types bench zoo clean
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
	$(BIN)/pytest -q -n 2 --dist worksteal -m "(slow or hypothesis) and not vision" --hypothesis-profile=full

guard: setup
	$(BIN)/pytest -q -n 2 --dist worksteal -m "guard and not vision"

# Tests that need torchvision and timm, in an environment with the torch that they need.
.venv-vision/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-vision
	$(VISION_BIN)/pip install -q $(VISION)
	$(VISION_BIN)/pip install -q -e '.[dev,vision]' -c constraints.txt
	touch $@

vision: .venv-vision/.done
	$(VISION_BIN)/pytest -q -n 2 --dist worksteal -m "vision and (not slow or guard)"

vision-slow: .venv-vision/.done
	$(VISION_BIN)/pytest -q -n 2 --dist worksteal -m "vision and slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

bench: .venv-vision/.done
	$(VISION_BIN)/pip install -q -e '.[plots]' -c constraints.txt
	set -e; for file in $(sort $(wildcard benchmarks/[a-z]*.py)); do $(VISION_BIN)/python $$file; done

zoo: .venv-vision/.done
	$(VISION_BIN)/pip install -q torch-pruning==1.6.1
	$(VISION_BIN)/python benchmarks/zoo.py
	$(VISION_BIN)/python benchmarks/channel_speed.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
