# make demo        train and test on the embedded mini data set
# make test        all tests but a few long ones
# make test-all    the same and those, then an hour of damaged files, random inputs and kills (FUZZ_SEED=20261126 FUZZ_ROUNDS=30), and what came of it
# make test-notebooks   every notebook once more, slow cells too, each in a fresh kernel
# make reproduce   the paper's table with its figures; the same command resumes after an interruption (SNAKEMAKE=-n: what is left to do)
#                  PART=selfsupervised: pre-training, probes and their table instead; PART=all: both
# make results     the table and the figures of the runs that are there (PART=selfsupervised: of the probes)
# make gpu         what only a GPU can tell, in under ten minutes: figures/benchmark/gpu.json (DEVICE=cpu QUICK=1: try the command on a CPU)
# make report     one HTML file for each data set whose results are in figures/ (make reproduce and make results write it, too)
# make docs        the site, in _build/html
# make notebooks   run the notebooks again and keep their outputs     make readme   README.md from nbs/index.ipynb
# make test-installs     fresh environments of every Python that settings.ini names: pinned, lowest and newest versions (ONLY="3.13 and lowest": some)
# Each works on a bare clone: the environment is made on first use, with what is run and no more; make setup brings all of it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(if $(filter /%,$(VENV)),,$$PWD/)$(VENV)/bin
READY  := $(VENV)/.ready
INSTALL = PYTHONWARNINGS=ignore "$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e

ALPHA  ?= 0.5
SUBSET ?= clean
SEED   ?= 0
DEMO   := runs/mini/$(SUBSET)/alpha=$(ALPHA)/seed=$(SEED)

# A text as one word of the shell, whatever it holds.
quoted  = '$(subst ','\'',$(1))'

.PHONY: setup demo test test-all test-notebooks test-installs reproduce results report gpu docs notebooks readme clean
setup: $(READY)-dev

$(READY): constraints.txt settings.ini setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --upgrade pip  # old ones look twice as long for what fits
	$(INSTALL) .
	touch $@

# The same environment with an extra of setup.py. --no-compile: of what is installed a small part is imported, and Python compiles that when it is;
# here what everything imports is imported once, while pip fetches the extra.
$(READY)-%: $(READY)
	PYTHONDONTWRITEBYTECODE= "$(BIN)/python" -c "import acl_paper.export, acl_paper.report, acl_paper.testing" & $(INSTALL) '.[$*]' && wait
	touch $@

demo: $(READY)
	mkdir -p $(call quoted,$(DEMO))
	PATH="$(BIN):$$PATH" papermill nbs/train.ipynb $(call quoted,$(DEMO)/train.ipynb) -k python3 --no-progress-bar --log-level WARNING --stdout-file /dev/stdout \
	  -r dataset mini -p alpha $(call quoted,$(ALPHA)) -p subset $(call quoted,$(SUBSET)) -p seed $(call quoted,$(SEED))

test: $(READY)-test
	PATH="$(BIN):$$PATH" PYTHONDONTWRITEBYTECODE= python -m pytest tests -ra -m "not long" --numprocesses=2 --dist=loadscope --no-loadscope-reorder --durations=10

FUZZ_SEED   ?= $(shell date +%Y%m%d)
FUZZ_ROUNDS ?= 30
test-all: test
	PATH="$(BIN):$$PATH" python -m pytest tests -ra -m long
	PATH="$(BIN):$$PATH" ACL_FUZZ_SEED=$(call quoted,$(FUZZ_SEED)) ACL_FUZZ_ROUNDS=$(call quoted,$(FUZZ_ROUNDS)) ACL_TRIED=figures/robustness/tried.csv \
	  python -m pytest tests/test_fuzz.py tests/test_properties.py tests/check_kills.py -ra

test-notebooks: $(READY)-test
	PATH="$(BIN):$$PATH" python -m pytest tests/check_notebooks.py -ra

test-installs: $(READY)-test
	PATH="$(BIN):$$PATH" python -m pytest tests/check_installs.py -ra $(if $(ONLY),-k $(call quoted,$(ONLY)))

# DATA=folder ALPHAS="1 0.5" SUBSETS="clean noisy_small" FOLDS="1 2" SEEDS="0 1" EPOCHS=40 JOBS=2 THREADS=1 GPUS=1 CELLS_PER_GPU=4 PROFILE=profiles/slurm
# PART=selfsupervised: also TEMPERATURES="0.2 0.3" LINEAR_EPOCHS=200 FINETUNE_EPOCHS=20, no SUBSETS
RUNS    ?= runs
FIGURES ?= figures
option   = $(if $($(2)),--$(1)=$(call quoted,$($(2))))

reproduce: $(READY)-workflow
	PATH="$(BIN):$$PATH" acl_reproduce --runs=$(call quoted,$(RUNS)) --figures=$(call quoted,$(FIGURES)) $(call option,features,FEATURES) $(call option,data,DATA) $(call option,dataset,DATASET) \
	  $(call option,part,PART) $(call option,alphas,ALPHAS) $(call option,subsets,SUBSETS) $(call option,folds,FOLDS) $(call option,temperatures,TEMPERATURES) $(call option,seeds,SEEDS) \
	  $(call option,epochs,EPOCHS) $(call option,linear_epochs,LINEAR_EPOCHS) $(call option,finetune_epochs,FINETUNE_EPOCHS) \
	  $(call option,jobs,JOBS) $(call option,threads,THREADS) $(call option,gpus,GPUS) $(call option,cells_per_gpu,CELLS_PER_GPU) \
	  $(call option,profile,PROFILE) $(call option,more,SNAKEMAKE)

results: RESULTS = results$(if $(filter selfsupervised,$(PART)),_selfsupervised)
results: $(READY)
	mkdir -p $(call quoted,$(FIGURES)/$(or $(DATASET),mini))
	PATH="$(BIN):$$PATH" papermill nbs/$(RESULTS).ipynb $(call quoted,$(FIGURES)/$(or $(DATASET),mini)/$(RESULTS).ipynb) -k python3 --no-progress-bar --log-level WARNING \
	  --stdout-file /dev/stdout -r dataset $(call quoted,$(or $(DATASET),mini)) -r runs_dir $(call quoted,$(RUNS)) -r figures_dir $(call quoted,$(FIGURES))

report: $(READY)
	PATH="$(BIN):$$PATH" acl_report

gpu: $(READY)-workflow
	@PATH="$(BIN):$$PATH" python -m benchmarks.gpu $(call option,device,DEVICE) $(call option,out,OUT) $(if $(QUICK),--quick)

# What runs a model on the page "Try it", from npm; where it cannot be had the site is built all the same, and that page says what is missing.
RUNTIME := _build/onnxruntime-web/node_modules/onnxruntime-web/package.json
$(RUNTIME):
	-npm install --no-save --ignore-scripts --no-audit --no-fund --prefix _build/onnxruntime-web onnxruntime-web@1.30.0

docs: $(READY)-docs $(RUNTIME)
	"$(BIN)/python" docs/build.py

notebooks: $(READY)-test
	"$(BIN)/python" docs/refresh_notebooks.py

readme: $(READY)
	"$(BIN)/python" docs/make_readme.py

clean:
	rm -rf "$(VENV)" _build build *.egg-info
