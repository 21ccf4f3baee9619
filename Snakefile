# The paper's tables: features -> one notebook for each (subset, alpha, seed) -> results,
# and for the self-supervised half: features -> one notebook for each encoder -> three for its probes -> results.
#
#   make reproduce      makes everything that is not done yet; the same command resumes
#   snakemake -n        says what is left to do, and why
#
# What these rules know is explained in nbs/21_workflow.ipynb. Outputs of a failed job are deleted and logs are kept:
# so metrics.json, written last, is a cell's only output, and the executed notebook is a log.
# In shell text every path stands as {...:q}, which quotes it: folders may have any name.
import sys
import time
from dataclasses import replace
from pathlib import Path

from snakemake.exceptions import WorkflowError

from acl_paper.workflow import FOLDERS, code_digest, differences, hold_driver_lock, linked, plan_parts, unfinished

try:
    PLANNED = plan_parts(config)
except (OSError, ValueError) as error:
    raise WorkflowError(str(error))

TABLES = {part: replace(table, **{name: linked(getattr(table, name)) for name in FOLDERS}) for part, table in PLANNED.items()}
ONE = next(iter(PLANNED.values()))  # data set and folders are the same for all
WANTED = {folder: wanted for table in TABLES.values() for folder, wanted in table.wanted.items()}
RUNS_OF_DATA, FIGURES_OF_DATA = (f"{linked(folder)}/{ONE.data.name}" for folder in (ONE.runs, ONE.figures))
GPUS = config.get("gpus", [])
LARGE = ONE.data.name == "FSDnoisy18k"
FEATURE_LOGS, RESULT_LOGS = {}, {}  # by what is made before the cells, and after them: its log

DONE = {folder: differences(folder, wanted) for folder, wanted in WANTED.items()}
OUTDATED = Path(".snakemake/outdated")  # newer than any run that was made with other parameters, so that it is made again
for folder, different in DONE.items():
    if different:
        OUTDATED.parent.mkdir(exist_ok=True)
        OUTDATED.write_text(str(time.time_ns()))
        print(f"{folder} is made again: {'; '.join(different)}", file=sys.stderr)

NAME, ROOT, RUNS, FIGURES, FEATURES, PYTHON = ONE.data.name, ONE.data.root, ONE.runs, ONE.figures, ONE.features, sys.executable
PAPERMILL = "{PYTHON:q} -m papermill --engine acl -k python3 --cwd . --no-progress-bar --log-output --start-timeout 300 -r dataset {NAME:q}"


def stamp(table):
    "Says of which audio the features of a table are, once they are there."
    FEATURE_LOGS[f"{table.store}.made"] = f"{table.store}.log"
    return f"{table.store}.made"


def results_of(csv, log):
    "The table of a part, which all of its runs are for."
    made = Path(f"{FIGURES_OF_DATA}/{csv}")
    if made.is_file() and made.stat().st_size == 0:  # as a power cut may leave it
        made.unlink()
    RESULT_LOGS[str(made)] = f"{RUNS_OF_DATA}/{log}"
    return str(made)


def inputs(pattern, table):
    "A run waits for the features unless it is done; one that was made with other parameters is made again."
    def of(wildcards):
        done = DONE[pattern.format(**dict(wildcards.items()))]
        if done == []: return {}
        return {"features": stamp(table)} | ({"outdated": str(OUTDATED)} if done else {})
    return of


def features_of(pattern, table):
    "What a run depends on besides its code: when this changes, it is made again."
    def of(wildcards):
        data = WANTED[pattern.format(**dict(wildcards.items()))]["data"]
        return f"{Path(table.store).name} of {table.data.source}, table {data.get('table')}"
    return of


def gpu(pattern):
    "One share of a card, and which card that is: by the run's place among all."
    if not GPUS: return {}
    place = {folder: i % len(GPUS) for i, folder in enumerate(WANTED)}
    of = lambda wildcards: place[pattern.format(**dict(wildcards.items()))]
    return {**{f"gpu{i}": lambda wildcards, i=i: int(of(wildcards) == i) for i in range(len(GPUS))}, "card": lambda wildcards: GPUS[of(wildcards)]}


def make_features(part):
    "The shell text of the features of a part."
    program = "import sys; from acl_paper.workflow import make_features; make_features(*sys.argv[1:])"
    return f"{{PYTHON:q}} -c '{program}' {part} {{NAME:q}} {{ROOT:q}} {{FEATURES:q}} {{threads}} > {{log:q}} 2>&1 && printf '%s\\n' {{params.source:q}} > {{output:q}}"


def run_notebook(settings):
    "The shell text of a run: a new log, its threads, its card, its notebook with what all notebooks are told and its own settings."
    return (
        ": > {log.text:q}\nexport OMP_NUM_THREADS={threads}\nunset MPLBACKEND\n"
        + ("export CUDA_VISIBLE_DEVICES={resources.card:q}\n" if GPUS else "")
        + f"{PAPERMILL} -r data_dir {{ROOT:q}} -r runs_dir {{RUNS:q}} -r features_dir {{FEATURES:q}} {settings}"
        + " {input.notebook:q} {log.notebook:q} >> {log.text:q} 2>&1"
    )


def resumable(run):
    "The shell text of a run, whose checkpoint is resumed only by the code, on the data and for the number of epochs it was made with."
    return (
        "folder=$(dirname {log.text:q}) made_with='{params.code}, {params.epochs} epochs, {params.features}'\n"
        'if [ "$(cat "$folder/checkpoint.of" 2> /dev/null)" != "$made_with" ]; then\n'
        'rm -f "$folder/checkpoint.pt"\nprintf %s "$made_with" > "$folder/checkpoint.of"\nfi\n'
        + run
    )


def collect_notebook():
    "The shell text of a notebook of results."
    return f"unset MPLBACKEND; {PAPERMILL} -r runs_dir {{RUNS:q}} -r figures_dir {{FIGURES:q}} {{input.notebook:q}} {{log.notebook:q}} > {{log.text:q}} 2>&1"


wildcard_constraints:
    subset="[A-Za-z0-9._-]+",
    test_fold="[A-Za-z0-9._-]+",
    alpha=r"[0-9.e-]+",
    temperature=r"[0-9.e-]+",
    task="[a-z]+",
    seed="[0-9]+",


localrules: all


rule all:
    input:
        [results_of(f"{name}.csv", f"{log}.log") for part, name, log in (("supervised", "results", "results"), ("selfsupervised", "selfsupervised", "results_selfsupervised")) if part in TABLES],
        [f"{folder}/metrics.json" for folder in WANTED],


if "supervised" in TABLES:
    TABLE = TABLES["supervised"]
    CELL = TABLE.folder(**{name: f"{{{name}}}" for name in TABLE.cells[0]})
    CELL_SETTINGS = "-p alpha {wildcards.alpha} -p subset {wildcards.subset} -p seed {wildcards.seed} -p epochs {params.epochs}"
    if "test_fold" in TABLE.cells[0]:
        CELL_SETTINGS += " -r test_fold {wildcards.test_fold}"

    rule features:
        output: stamp(TABLE)
        log: f"{TABLE.store}.log"
        params: source=TABLE.data.source
        threads: 8
        resources: mem_mb=6_000
        shell: make_features("supervised")

    rule train:
        input:
            unpack(inputs(CELL, TABLE)),
            notebook=ancient("nbs/train.ipynb"),
        output: f"{CELL}/metrics.json"
        log:
            text=f"{CELL}/train.log",
            notebook=f"{CELL}/train.ipynb",
        params:
            code=code_digest("nbs/train.ipynb"),
            epochs=TABLE.epochs,
            features=features_of(CELL, TABLE),
        threads: config.get("threads", 1)
        resources:  # megabytes: the patches are held once, for a moment twice
            mem_mb=lambda wildcards, attempt: attempt * (12_000 if LARGE and wildcards.subset in ("all", "noisy") else 4_000 if LARGE else 2_000),
            **gpu(CELL),
        shell: resumable(run_notebook(CELL_SETTINGS))

    rule results:
        input:
            [f"{folder}/metrics.json" for folder in TABLE.wanted],
            notebook=ancient("nbs/results.ipynb"),
        output: f"{FIGURES_OF_DATA}/results.csv"
        log:
            text=f"{RUNS_OF_DATA}/results.log",
            notebook=f"{FIGURES_OF_DATA}/results.ipynb",
        params: code=code_digest("nbs/results.ipynb")
        resources: mem_mb=2_000
        shell: collect_notebook()


if "selfsupervised" in TABLES:
    ENCODERS = TABLES["selfsupervised"]
    NUMBERS = dict(alpha="{alpha}", temperature="{temperature}", seed="{seed}")
    ENCODER, PROBE = ENCODERS.folder(**NUMBERS), ENCODERS.folder("{task}", "{subset}", **NUMBERS)
    ENCODER_SETTINGS = "-p alpha {wildcards.alpha} -p temperature {wildcards.temperature} -p seed {wildcards.seed}"

    rule ssl_features:
        output: stamp(ENCODERS)
        log: f"{ENCODERS.store}.log"
        params: source=ENCODERS.data.source
        threads: 8
        resources: mem_mb=6_000
        shell: make_features("selfsupervised")

    rule pretrain:
        input:
            unpack(inputs(ENCODER, ENCODERS)),
            notebook=ancient("nbs/pretrain.ipynb"),
        output: f"{ENCODER}/metrics.json"
        log:
            text=f"{ENCODER}/pretrain.log",
            notebook=f"{ENCODER}/pretrain.ipynb",
        params:
            code=code_digest("nbs/pretrain.ipynb"),
            epochs=ENCODERS.epochs,
            features=features_of(ENCODER, ENCODERS),
        threads: config.get("threads", 1)
        resources:  # megabytes: the frames are held once, and for a moment twice in float64
            mem_mb=lambda wildcards, attempt: attempt * (32_000 if LARGE else 2_000),
            **gpu(ENCODER),
        shell: resumable(run_notebook(f"{ENCODER_SETTINGS} -p epochs {{params.epochs}}"))

    rule probe:
        input:
            unpack(inputs(PROBE, ENCODERS)),
            encoder=f"{ENCODER}/metrics.json",
            notebook=ancient("nbs/probe.ipynb"),
        output: f"{PROBE}/metrics.json"
        log:
            text=f"{PROBE}/probe.log",
            notebook=f"{PROBE}/probe.ipynb",
        params:
            code=code_digest("nbs/probe.ipynb"),
            epochs=lambda wildcards: getattr(ENCODERS, f"{wildcards.task}_epochs"),
            untrained=lambda wildcards: float(wildcards.alpha) == 1,  # the same first weights whatever alpha is: asked once
            features=features_of(PROBE, ENCODERS),
        threads: config.get("threads", 1)
        resources:
            mem_mb=lambda wildcards, attempt: attempt * (32_000 if LARGE else 2_000),
            **gpu(PROBE),
        shell:
            run_notebook(
                f"{ENCODER_SETTINGS} -p probe_seed {{wildcards.seed}} -p task {{wildcards.task}} -p subset {{wildcards.subset}}"
                " -p epochs {params.epochs} -p compare_untrained {params.untrained}"
            )

    rule ssl_results:
        input:
            [f"{folder}/metrics.json" for folder in ENCODERS.wanted],
            notebook=ancient("nbs/results_selfsupervised.ipynb"),
        output: f"{FIGURES_OF_DATA}/selfsupervised.csv"
        log:
            text=f"{RUNS_OF_DATA}/results_selfsupervised.log",
            notebook=f"{FIGURES_OF_DATA}/results_selfsupervised.ipynb",
        params: code=code_digest("nbs/results_selfsupervised.ipynb")
        resources: mem_mb=2_000
        shell: collect_notebook()


def closing(stopped=False):
    "What is not there, or that all is."
    left = unfinished(WANTED, FEATURE_LOGS, RESULT_LOGS)
    if not left:
        return f"done: {', '.join(RESULT_LOGS)}, {len(WANTED)} cells on {ONE.data.name} in {ONE.runs}/"
    if stopped:
        n_done = sum(differences(folder, wanted) == [] for folder, wanted in WANTED.items())
        return f"stopped: {n_done} of {len(WANTED)} cells are done; the same command resumes"
    return f"{left}\nEach folder keeps its log and, as far as it came, the executed notebook.\nThe same command resumes; `make results` makes the table of the cells that are done."


onstart:
    hold_driver_lock()  # until this process ends, however it ends
    for folder in (ONE.runs, ONE.figures, ONE.features):
        Path(folder).mkdir(parents=True, exist_ok=True)


onsuccess:
    print(closing(), file=sys.stderr)


onerror:
    by_user = any("on user request" in Path(file).read_text(errors="replace") for file in log)  # Ctrl-C
    print(closing(by_user), file=sys.stderr)
