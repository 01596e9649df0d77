# Every target sets up what it needs: `make demo` is enough on a fresh machine.
PYTHON ?= python3
# Your own build of torch: make TORCH="torch --index-url URL" demo
TORCH  ?= torch==2.13.0

# Each leg of `make matrix` has an environment, .venv-LEG, from requirements/LEG.txt.
NEWER ?= python3.13
LEGS := lowest pytorch-lightning vision $(if $(shell $(NEWER) --version 2>/dev/null),python3.13)

BIN := .venv/bin
VISION_BIN := .venv-vision/bin
export OMP_NUM_THREADS ?= 1

.PHONY: setup vision vision-slow demo test slow guard gpu matrix $(LEGS:%=leg-%) release lint types docs bench zoo clean
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

# Tests that need a CUDA device; with your build of torch, see above.
gpu: setup
	$(BIN)/pytest -q -m gpu tests/gpu

.venv-python3.13/.done: PYTHON := $(NEWER)
$(LEGS:%=.venv-%/.done): .venv-%/.done: requirements/%.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install -q -r $<
	touch $@

# One leg: make leg-lowest. All of them: make -k matrix, so that each leg runs.
$(LEGS:%=leg-%): leg-%: .venv-%/.done
	.venv-$*/bin/pytest -q -n 2 --dist worksteal

matrix: $(LEGS:%=leg-%)

# Tests that need torchvision and timm.
vision: .venv-vision/.done
	$(VISION_BIN)/pytest -q -n 2 --dist worksteal -m "vision and (not slow or guard)"

vision-slow: .venv-vision/.done
	$(VISION_BIN)/pytest -q -n 2 --dist worksteal -m "vision and slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# The site, into build/site.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv-vision/.done
	$(VISION_BIN)/pip install -q -e '.[plots]' -c constraints.txt
	set -e; for file in $(sort $(wildcard benchmarks/[a-z]*.py)); do $(VISION_BIN)/python $$file; done

zoo: .venv-vision/.done
	$(VISION_BIN)/pip install -q torch-pruning==1.6.1 ultralytics==8.4.190 transformers==5.24.0 \
		segmentation-models-pytorch==0.6.0
	$(VISION_BIN)/python benchmarks/zoo.py
	$(VISION_BIN)/python benchmarks/channel_speed.py

# What is uploaded: checked, and installed with its dependencies where nothing else is.
release:
	rm -rf dist .venv-release
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/pip install -q -r requirements/release.txt
	.venv-release/bin/python -m build
	.venv-release/bin/twine check --strict dist/*
	.venv-release/bin/check-wheel-contents dist/*.whl
	$(PYTHON) -m venv --clear .venv-release
	.venv-release/bin/pip install -q $(TORCH)
	.venv-release/bin/pip install -q "$$(echo dist/*.whl)[data]"
	cd dist && PATH=../.venv-release/bin:$$PATH python ../tests/helpers/three_doors.py

clean:
	rm -rf build dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
