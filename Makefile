# Every target makes what it needs: a virtual environment in .venv, nothing global.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# PyTorch's plain wheel from the index brings CUDA on some platforms; this version is pinned in
# pyproject.toml and installed first, so that nothing else can choose another one.
TORCH := torch==2.13.0
# Some tests wait: for a process that is to be killed, or for a disk.
JOBS ?= 3
# The versions that the suite was run with; LOCK= takes the newest that pyproject.toml allows.
LOCK ?= constraints.txt
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check $(if $(LOCK),-c $(LOCK))

.PHONY: demo picture test matrix parity lint format docs bench bundle dist lock clean

demo: $(VENV)/run.done
	$(BIN)/mfm demo

# The picture at the top of the README.
picture: demo
	cp demo/spectrogram.png docs/demo.png

# Processes that tests start, and the next run, need not compile the sources again.
test: $(VENV)/dev.done
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=20

# The suite on each Python, with the newest libraries that pyproject.toml and that Python allow.
PYTHONS ?= 3.11 3.12 3.13
matrix: $(PYTHONS:%=matrix-%)
matrix-%:
	$(MAKE) test PYTHON=python$* VENV=.venv-$* LOCK=

parity: $(VENV)/dev.done
	$(BIN)/python -m pytest -q -m parity -n $(JOBS) --dist loadfile

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, in site/; a warning is an error.
docs: $(VENV)/docs.done
	NO_MKDOCS_2_WARNING=1 PATH=$(abspath $(BIN)):$$PATH $(BIN)/mkdocs build --strict

bench: $(VENV)/dev.done
	$(BIN)/python -m benchmarks.generate
	$(BIN)/python -m benchmarks.extract
	$(BIN)/python -m benchmarks.training

# The sdist and the wheel, built in dist/ and checked: the wheel by itself in a new environment (minutes).
dist: $(VENV)/dev.done
	PYTHON=$(BIN)/python scripts/check_dist.sh

# The embedded miniature from nothing: Foley clips, every frozen network, the mapper (hours on 2 cores).
bundle: $(VENV)/run.done
	$(BIN)/python -m miniature train

# constraints.txt anew: the newest versions that pyproject.toml allows. Run the suite with them.
lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check '.[dev,docs]'
	( sed '/^[^#]/,$$d' constraints.txt; $(VENV)-lock/bin/python -m pip freeze --exclude mfm-jax \
		| grep -v '^torch==' ) > $(VENV)-lock/constraints.txt
	mv $(VENV)-lock/constraints.txt constraints.txt
	rm -rf $(VENV)-lock

$(VENV)/run.done: pyproject.toml $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) --editable .
	touch $@

$(VENV)/dev.done: $(VENV)/run.done
	$(BIN)/python $(PIP_INSTALL) $(TORCH)
	$(BIN)/python $(PIP_INSTALL) --editable '.[dev]'
	touch $@

$(VENV)/docs.done: $(VENV)/run.done
	$(BIN)/python $(PIP_INSTALL) --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) demo dist site
