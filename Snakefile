# The paper's table: features -> one notebook for each (subset, alpha, seed) -> results.
#
#   make reproduce      makes everything that is not done yet; the same command resumes
#   snakemake -n        says what is left to do, and why
#
# What these rules know is explained in nbs/14_workflow.ipynb. Outputs of a failed job are deleted and logs are kept:
# so metrics.json, written last, is a cell's only output, and the executed notebook is a log.
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from acl_paper.workflow import code_digest, differences, hold_driver_lock, last_error, plan_table, unfinished

try:
    TABLE = plan_table(config)
except ValueError as error:
    raise WorkflowError(error)

CELL = TABLE.folder("{subset}", "{alpha}", "{seed}")
CSV = f"{TABLE.figures}/{TABLE.data.name}/results.csv"
STAMP = f"{TABLE.store}.made"
GPUS = str(config.get("gpus", "")).split()
BIN = shlex.quote(str(Path(sys.executable).parent))
PAPERMILL = f"{BIN}/papermill --engine acl -k python3 --cwd . --no-progress-bar --log-output --start-timeout 300"
NAME, ROOT, RUNS, FIGURES, FEATURES = map(shlex.quote, (TABLE.data.name, TABLE.data.root, TABLE.runs, TABLE.figures, TABLE.features))
LARGE = TABLE.data.name == "FSDnoisy18k"


def of(wildcards):
    return (wildcards.subset, wildcards.alpha, wildcards.seed)


def gpu_of(wildcards):
    "Which of the GPUs a cell uses, by its place in the table."
    return TABLE.cells.index(of(wildcards)) % len(GPUS)


def train_input(wildcards):
    "A cell waits for the features unless it is done; one that was made with other parameters is made again."
    done = differences(TABLE, of(wildcards))
    if done is None: return {"features": ancient(STAMP)}
    return {"outdated": f"{CELL}/outdated"} if done else {}


def memory(wildcards, attempt):
    "Megabytes: the patches are held once, for a moment twice."
    return attempt * (12_000 if LARGE and wildcards.subset in ("all", "noisy") else 4_000 if LARGE else 2_000)


wildcard_constraints:
    subset="[a-z_]+",
    alpha=r"[0-9.e-]+",
    seed="[0-9]+",


localrules: all, outdated


rule all:
    input:
        CSV,
        [f"{TABLE.folder(*cell)}/metrics.json" for cell in TABLE.cells],


rule features:
    output: STAMP
    log: f"{TABLE.store}.log"
    params: source=TABLE.data.source
    threads: 8
    resources: mem_mb=6_000
    shell:
        f"{BIN}/acl_features --dataset {NAME} --data_dir {ROOT} --features_dir {FEATURES}"
        " --jobs {threads} > {log} 2>&1 && printf '%s\\n' {params.source:q} > {output}"


rule outdated:
    output: temp(f"{CELL}/outdated")
    params: why=lambda wildcards: "; ".join(differences(TABLE, of(wildcards)) or [])
    message: "{wildcards.subset}, alpha {wildcards.alpha}, seed {wildcards.seed} is made again: {params.why}"
    shell: "printf '%s\\n' {params.why:q} > {output}"


rule train:
    input:
        unpack(train_input),
        notebook=ancient("nbs/train.ipynb"),
    output: f"{CELL}/metrics.json"
    log:
        text=f"{CELL}/train.log",
        notebook=f"{CELL}/train.ipynb",
    params:
        code=code_digest("nbs/train.ipynb"),
        epochs=TABLE.epochs,
        features=f"{TABLE.store.rsplit('/', 1)[1]} of {TABLE.data.source}",
    threads: int(config.get("threads", 1))
    resources:
        mem_mb=memory,
        **{f"gpu{i}": lambda wildcards, i=i: int(gpu_of(wildcards) == i) for i in range(len(GPUS))},  # one share of its card
        **({"card": lambda wildcards: GPUS[gpu_of(wildcards)]} if GPUS else {}),
    shell:
        ": > {log.text}\nexport OMP_NUM_THREADS={threads} MPLBACKEND=agg\n"
        + ("export CUDA_VISIBLE_DEVICES={resources.card}\n" if GPUS else "")
        + f"{PAPERMILL} {{input.notebook}} {{log.notebook}} -r dataset {NAME} -r data_dir {ROOT} -r runs_dir {RUNS} -r features_dir {FEATURES}"
        " -p alpha {wildcards.alpha} -p subset {wildcards.subset} -p seed {wildcards.seed} -p epochs {params.epochs} >> {log.text} 2>&1"


rule results:
    input:
        [f"{TABLE.folder(*cell)}/metrics.json" for cell in TABLE.cells],
        notebook=ancient("nbs/results.ipynb"),
    output: CSV
    log:
        text=f"{TABLE.runs}/{TABLE.data.name}/results.log",
        notebook=f"{TABLE.figures}/{TABLE.data.name}/results.ipynb",
    params: code=code_digest("nbs/results.ipynb")
    resources: mem_mb=2_000
    shell:
        f"MPLBACKEND=agg {PAPERMILL} {{input.notebook}} {{log.notebook}} -r dataset {NAME} -r runs_dir {RUNS} -r figures_dir {FIGURES} > {{log.text}} 2>&1"


onstart:
    driver_lock = hold_driver_lock()  # until this process ends, however it ends


onsuccess:
    print(f"done: {CSV}, {len(TABLE.cells)} cells of {TABLE.epochs} epochs on {TABLE.data.name} in {TABLE.runs}/", file=sys.stderr)


onerror:
    results_log = f"{TABLE.runs}/{TABLE.data.name}/results.log"
    print(unfinished(TABLE) or f"all cells are done, the results failed: {last_error(results_log)} (all of it in {results_log})", file=sys.stderr)
