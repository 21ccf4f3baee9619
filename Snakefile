# The paper's tables: features -> one notebook for each (subset, alpha, seed) -> results,
# and for the self-supervised half: features -> one notebook for each encoder -> three for its probes -> results.
#
#   make reproduce      makes everything that is not done yet; the same command resumes
#   snakemake -n        says what is left to do, and why
#
# What these rules know is explained in nbs/21_workflow.ipynb. Outputs of a failed job are deleted and logs are kept:
# so metrics.json, written last, is a cell's only output, and the executed notebook is a log.
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from acl_paper.workflow import code_digest, differences, hold_driver_lock, last_error, plan_parts, unfinished

try:
    TABLES = plan_parts(config)
except ValueError as error:
    raise WorkflowError(error)

ONE = next(iter(TABLES.values()))  # data set and folders are the same for all
WANTED = {folder: wanted for table in TABLES.values() for folder, wanted in table.wanted.items()}
RUNS_OF_DATA, FIGURES_OF_DATA = (f"{folder}/{ONE.data.name}" for folder in (ONE.runs, ONE.figures))
GPUS = str(config.get("gpus", "")).split()
BIN = shlex.quote(str(Path(sys.executable).parent))
PAPERMILL = f"{BIN}/papermill --engine acl -k python3 --cwd . --no-progress-bar --log-output --start-timeout 300"
NAME, ROOT, RUNS, FIGURES, FEATURES = map(shlex.quote, (ONE.data.name, ONE.data.root, ONE.runs, ONE.figures, ONE.features))
LARGE = ONE.data.name == "FSDnoisy18k"
RESULTS = []  # of each part, what its last notebook makes


def results_of(part, csv):
    "The table of a part, which all of its runs are for."
    RESULTS.append(f"{FIGURES_OF_DATA}/{csv}")
    return RESULTS[-1]


def stamp(table):
    "Says of which audio the features of a table are, once they are there."
    return f"{table.store}.made"


def inputs(pattern, table):
    "A run waits for the features unless it is done; one that was made with other parameters is made again."
    def of(wildcards):
        folder = pattern.format(**dict(wildcards.items()))
        done = differences(folder, WANTED[folder])
        if done is None: return {"features": ancient(stamp(table))}
        return {"outdated": f"{folder}/outdated"} if done else {}
    return of


def features_of(table):
    "What a run depends on besides its code: when this changes, it is made again."
    return f"{table.store.rsplit('/', 1)[1]} of {table.data.source}"


def gpu(pattern):
    "One share of a card, and which card that is: by the run's place among all."
    if not GPUS: return {}
    place = {folder: i % len(GPUS) for i, folder in enumerate(WANTED)}
    of = lambda wildcards: place[pattern.format(**dict(wildcards.items()))]
    return {**{f"gpu{i}": lambda wildcards, i=i: int(of(wildcards) == i) for i in range(len(GPUS))}, "card": lambda wildcards: GPUS[of(wildcards)]}


def run_notebook(settings):
    "The shell text of a run: a new log, its threads, its card, its notebook with what all notebooks are told and its own settings."
    return (
        ": > {log.text}\nexport OMP_NUM_THREADS={threads} MPLBACKEND=agg\n"
        + ("export CUDA_VISIBLE_DEVICES={resources.card}\n" if GPUS else "")
        + f"{PAPERMILL} {{input.notebook}} {{log.notebook}} -r dataset {NAME} -r data_dir {ROOT} -r runs_dir {RUNS} -r features_dir {FEATURES}"
        f" {settings} >> {{log.text}} 2>&1"
    )


def resumable(run):
    "The shell text of a run, whose checkpoint is resumed only by the code, on the data and for the number of epochs it was made with."
    return (
        "folder=$(dirname {log.text}) made_with='{params.code}, {params.epochs} epochs, {params.features}'\n"
        '[ "$(cat "$folder/checkpoint.of" 2> /dev/null)" = "$made_with" ] || rm -f "$folder/checkpoint.pt"\n'
        'printf %s "$made_with" > "$folder/checkpoint.of"\n'
        + run
    )


def collect_notebook():
    "The shell text of a notebook of results."
    return f"MPLBACKEND=agg {PAPERMILL} {{input.notebook}} {{log.notebook}} -r dataset {NAME} -r runs_dir {RUNS} -r figures_dir {FIGURES} > {{log.text}} 2>&1"


wildcard_constraints:
    subset="[a-z_]+",
    alpha=r"[0-9.e-]+",
    temperature=r"[0-9.e-]+",
    probe="[a-z]+-[a-z]+",
    seed="[0-9]+",


localrules: all, outdated


rule all:
    input:
        [results_of(part, csv) for part, csv in (("supervised", "results.csv"), ("selfsupervised", "selfsupervised.csv")) if part in TABLES],
        [f"{folder}/metrics.json" for folder in WANTED],


rule outdated:
    output: temp("{folder}/outdated")
    params: why=lambda wildcards: "; ".join(differences(wildcards.folder, WANTED[wildcards.folder]) or [])
    message: "{wildcards.folder} is made again: {params.why}"
    shell: "printf '%s\\n' {params.why:q} > {output}"


if "supervised" in TABLES:
    TABLE = TABLES["supervised"]
    CELL = TABLE.folder("{subset}", "{alpha}", "{seed}")

    rule features:
        output: stamp(TABLE)
        log: f"{TABLE.store}.log"
        params: source=TABLE.data.source
        threads: 8
        resources: mem_mb=6_000
        shell:
            f"{BIN}/acl_features --dataset {NAME} --data_dir {ROOT} --features_dir {FEATURES}"
            " --jobs {threads} > {log} 2>&1 && printf '%s\\n' {params.source:q} > {output}"

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
            features=features_of(TABLE),
        threads: int(config.get("threads", 1))
        resources:  # megabytes: the patches are held once, for a moment twice
            mem_mb=lambda wildcards, attempt: attempt * (12_000 if LARGE and wildcards.subset in ("all", "noisy") else 4_000 if LARGE else 2_000),
            **gpu(CELL),
        shell: resumable(run_notebook("-p alpha {wildcards.alpha} -p subset {wildcards.subset} -p seed {wildcards.seed} -p epochs {params.epochs}"))

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
    ENCODER = ENCODERS.folder("{alpha}", "{temperature}", "{seed}")
    PROBE = ENCODERS.folder("{alpha}", "{temperature}", "{seed}", "{probe}")
    ENCODER_SETTINGS = "-p alpha {wildcards.alpha} -p temperature {wildcards.temperature} -p seed {wildcards.seed}"

    rule ssl_features:
        output: stamp(ENCODERS)
        log: f"{ENCODERS.store}.log"
        params: source=ENCODERS.data.source
        threads: 8
        resources: mem_mb=6_000
        shell:
            f"{BIN}/python -c 'import sys; from acl_paper.workflow import encoder_features; encoder_features(*sys.argv[1:])' {NAME} {ROOT} {FEATURES}"
            " {threads} > {log} 2>&1 && printf '%s\\n' {params.source:q} > {output}"

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
            features=features_of(ENCODERS),
        threads: int(config.get("threads", 1))
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
            task=lambda wildcards: wildcards.probe.replace("-", " -p subset "),
            epochs=lambda wildcards: ENCODERS.probe_epochs(wildcards.probe),
            untrained=lambda wildcards: float(wildcards.alpha) == 1,  # the same first weights whatever alpha is: asked once
            features=features_of(ENCODERS),
        threads: int(config.get("threads", 1))
        resources:
            mem_mb=lambda wildcards, attempt: attempt * (32_000 if LARGE else 2_000),
            **gpu(PROBE),
        shell:
            run_notebook(
                f"{ENCODER_SETTINGS} -p probe_seed {{wildcards.seed}} -p task {{params.task}} -p epochs {{params.epochs}} -p compare_untrained {{params.untrained}}"
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


onstart:
    driver_lock = hold_driver_lock()  # until this process ends, however it ends


onsuccess:
    print(f"done: {', '.join(RESULTS)}, {len(WANTED)} cells on {ONE.data.name} in {ONE.runs}/", file=sys.stderr)


onerror:
    logs = [log for log in (f"{RUNS_OF_DATA}/{name}.log" for name in ("results", "results_selfsupervised")) if Path(log).is_file()]
    told = "; ".join(f"{last_error(log)} (all of it in {log})" for log in logs)
    print(unfinished(WANTED) or f"all cells are done, the results failed: {told}", file=sys.stderr)
