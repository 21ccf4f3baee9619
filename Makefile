# make demo   train and test on the embedded mini data set     make test   all tests
# Each works on a bare clone: the environment is made on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin
READY  := $(VENV)/.ready

ALPHA  ?= 0.5
SUBSET ?= clean
SEED   ?= 0
DEMO   := runs/mini/$(SUBSET)/alpha=$(ALPHA)/seed=$(SEED)

.PHONY: setup demo test clean
setup: $(READY)

$(READY): constraints.txt settings.ini setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	mkdir -p '$(DEMO)'
	PATH="$(BIN):$$PATH" papermill nbs/train.ipynb '$(DEMO)/train.ipynb' -k python3 --no-progress-bar --log-level WARNING --stdout-file /dev/stdout \
	  -r dataset mini -p alpha $(ALPHA) -p subset $(SUBSET) -p seed $(SEED)

test: $(READY)
	PATH="$(BIN):$$PATH" python -m pytest tests -ra

clean:
	rm -rf $(VENV) build *.egg-info
