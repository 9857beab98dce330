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

.PHONY: demo picture test parity lint format bench bundle wheel lock clean

demo: $(VENV)/run.done
	$(BIN)/mfm demo

# The picture at the top of the README.
picture: demo
	cp demo/spectrogram.png docs/demo.png

test: $(VENV)/dev.done
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=20

parity: $(VENV)/dev.done
	$(BIN)/python -m pytest -q -m parity -n $(JOBS) --dist loadfile

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev.done
	$(BIN)/python -m benchmarks.generate
	$(BIN)/python -m benchmarks.extract
	$(BIN)/python -m benchmarks.training

# The wheel, installed by itself in a new environment, whose commands run in an empty folder (minutes).
wheel: $(VENV)/dev.done
	PYTHON=$(BIN)/python scripts/check_wheel.sh

# The embedded miniature from nothing: Foley clips, every frozen network, the mapper (hours on 2 cores).
bundle: $(VENV)/run.done
	$(BIN)/python -m miniature train

# constraints.txt anew: the newest versions that pyproject.toml allows. Run the suite with them.
lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check '.[dev]'
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

clean:
	rm -rf $(VENV) demo
