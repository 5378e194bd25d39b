# `make demo` and `make test` set up what they need in .venv; nothing is installed elsewhere.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What is installed besides: slurm and ray add the packages that launch there.
EXTRAS ?= dev,coreml,deepspeed
STAMP := $(VENV)/.installed-$(EXTRAS)

.PHONY: demo test test-slow lint bench clean

demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh docs/demo.sh

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

# What takes longer: kill drills, many processes, gigabytes, the commands of the README. CI runs it as well.
# Much of it waits, for schedulers and for time to pass: three at a time on two cores, the longest first.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) demo

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@
