# Everything runs in .venv; what is installed there is what constraints.txt pins.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
RUFF := $(VENV)/bin/ruff
# Two workers: more gain nothing on two cores, and each takes up to 4 GB.
# Each takes half of the modules, then what the other has left: what the tests of a module
# share is traced and loaded once.
PYTEST := $(RUN) -m pytest -n 2 --dist=worksteal

TEMPLATE := "<missing:24>my lord<missing:33>"

# make train GPU=1 installs JAX for NVIDIA GPUs, make train TPU=1 that for a TPU VM.
EXTRA := $(if $(GPU),cuda)$(if $(TPU),tpu)
BASE := $(VENV)/.base$(EXTRA)

.PHONY: train test quick costs parity certificate slow lint format bench figures docs clean

train: $(BASE)
	$(RUN) -m jaxgpt.train --config=configs/quickstart.py
	@echo
	$(RUN) -m jaxgpt.sample --workdir=runs/quickstart --template=$(TEMPLATE) \
	    --order=left-to-right --temperature=0.7 --num_samples=3
	@echo
	$(RUN) -m jaxgpt.sample --workdir=runs/quickstart --prompt="ROMEO:" \
	    --order=left-to-right --temperature=0.7
	@echo
	@echo "The first three texts were written around 'my lord', which was given and stays."
	@echo "The last was continued from 'ROMEO:'. One model does both, in any order (--order)."

test: $(VENV)/.test
	$(PYTEST)

# What to run after every edit: the tests that neither start a process nor train.
quick: $(VENV)/.test
	$(PYTEST) -m "not (process or trains or slow)"

# The whole suite, and a table of the tests that take longest.
costs: $(VENV)/.test
	$(PYTEST) -p tests.costs

parity: $(VENV)/.test
	$(PYTEST) parity_tests

certificate: $(VENV)/.test
	$(RUN) -m parity_tests.certificate

slow: $(VENV)/.test
	$(RUN) -m pytest -m slow

lint: $(VENV)/.test
	$(RUFF) check .
	$(RUFF) format --check .
	$(RUN) -m mypy

format: $(VENV)/.test
	$(RUFF) check --fix .
	$(RUFF) format .

bench: $(VENV)/.test
	$(RUN) -m benchmarks.train_step
	$(RUN) -m benchmarks.sampling
	$(RUN) -m benchmarks.overhead
	$(RUN) -m benchmarks.gssm_speed
	$(RUN) -m benchmarks.gssm_learning
	$(RUN) -m benchmarks.memory --step

# The pictures of README and docs, those that take minutes; docs/figures.md has the rest.
figures: $(BASE)
	$(RUN) -m scripts.figures

# The site of docs/, in site/: python -m http.server --directory site
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxgpt needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet -c constraints.txt -e '.$(if $(EXTRA),[$(EXTRA)])'
	@touch $@ $(VENV)/.base

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(RUN) -m scripts.install_torch
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.base

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@ $(VENV)/.base
