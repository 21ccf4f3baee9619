"""Keep the executed experiment notebooks for the site: python docs/keep_executed.py [RUNS [FIGURES]], by default runs and figures.

`make reproduce PART=all` on the mini data set leaves an executed notebook in every run folder, and two beside the figures. One of each
kind is copied to docs/executed, without what belongs to the machine (paths, times of cells) without sound and with one line of progress; docs/build.py shows its
outputs in place of those that the notebook in nbs/ does not have. Nothing is executed here.
"""
import json, re, sys
from pathlib import Path

import nbformat

from acl_paper.console import write_atomically

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "executed"
PROGRESS = re.compile(r"[\w-]+  (?=\d+/\d+ \w+  )")  # "training  2/40 epochs  3 s so far"
CELL = "clean/alpha=0.5/seed=0"
ENCODER = "pretrain/resnet18/alpha=0.3/temperature=0.2/seed=0"


def places(runs: Path, figures: Path) -> dict[str, Path]:
    "The folder that has the executed notebook, by the notebook's name."
    return {"train": runs / "mini" / CELL, "pretrain": runs / "mini" / ENCODER, "probe": runs / "mini" / ENCODER / "linear-noisy" / "seed=0",
            "results": figures / "mini", "results_selfsupervised": figures / "mini"}


def code(notebook: nbformat.NotebookNode) -> dict[str, str]:
    "What the code cells say, by their names; not the values of parameters, which papermill puts in a cell of its own."
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])}


def kept(name: str) -> Path | None:
    "The file of the executed notebook of that name, if there is one."
    path = KEPT / f"{name}.ipynb"
    return path if path.is_file() else None


def kept_output(output, root: Path):
    "An output as the site shows it, without the folder of the project; None for sound and for what a kernel complains of."
    shorter = lambda text: text.replace(f"{root}/", "").replace(str(root), ".")
    if output.output_type == "stream" and output.name == "stderr": return None
    if output.output_type == "execute_result": output.execution_count = None
    if "text" in output: output.text = shorter(output.text)
    for kind, content in output.get("data", {}).items():
        if "<audio" in content: return None
        if kind.startswith("text/"): output.data[kind] = shorter(content)
    return output


def printed_once(outputs: list) -> list:
    "Outputs of a cell, with what was printed in pieces joined."
    joined = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream": joined[-1].text += output.text
        else: joined.append(output)
    for output in joined:
        if output.output_type == "stream": output.text = last_progress(output.text)
    return joined


def last_progress(text: str) -> str:
    "What was printed, with the last of each row of lines about the progress of one work."
    kept = []
    for line in text.splitlines(keepends=True):
        if (work := PROGRESS.match(line)) and kept and kept[-1].startswith(work[0]): kept.pop()
        kept.append(line)
    return "".join(kept)


def keep(name: str, folder: Path, run: Path, root: Path = ROOT) -> Path:
    "Copy a notebook that was executed in a project's `root`, which is of that run or of many such; the file it became."
    notebook = nbformat.read(folder / f"{name}.ipynb", 4)
    source = nbformat.read(ROOT / "nbs" / f"{name}.ipynb", 4)
    if code(notebook) != code(source):
        raise SystemExit(f"{folder / name}.ipynb was executed from another version of nbs/{name}.ipynb: make it again")
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    about = notebook.metadata.papermill
    given = {key: value for key, value in about.parameters.items() if not key.endswith("_dir")}
    notebook.metadata = {"kernelspec": source.metadata.kernelspec,
                         "executed": {"parameters": given, "versions": config["versions"] | {"mini": config["data"]["version"]},
                                      "on": about.start_time[:10]}}
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = printed_once([shown for output in cell.outputs if (shown := kept_output(output, root))])
    KEPT.mkdir(exist_ok=True)
    write_atomically(KEPT / f"{name}.ipynb", nbformat.writes(notebook) + "\n")
    return KEPT / f"{name}.ipynb"


if __name__ == "__main__":
    runs, figures = (Path(argument) for argument in [*sys.argv[1:], *[ROOT / "runs", ROOT / "figures"][len(sys.argv) - 1:]])
    folders = places(runs, figures)
    of_many = {"results": folders["train"], "results_selfsupervised": folders["probe"]}
    for name, folder in folders.items(): print(f"kept {keep(name, folder, of_many.get(name, folder)).relative_to(ROOT)}")
