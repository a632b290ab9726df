# make demo      set up an environment, optimize the example model, show what was gained
# make test      run all tests
# make check     style, formatting and types
# make coverage  run all tests, and say which branches they miss

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TESTS := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test check coverage clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

demo: $(VENV)/.ready
	mkdir -p build
	$(BIN)/graphopt optimize examples/ctr/model.onnx -o build/ctr.gopt
	$(BIN)/graphopt check examples/ctr/model.onnx build/ctr.gopt
	$(BIN)/python examples/ctr/demo.py build/ctr.gopt
	$(BIN)/graphopt bench build/ctr.gopt --source examples/ctr/model.onnx

test: $(VENV)/.ready
	$(TESTS)

coverage: $(VENV)/.ready
	$(TESTS) --cov --cov-report=term:skip-covered

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest tests/test_types.py

clean:
	rm -rf $(VENV) build .types .coverage .hypothesis
