"""Run notebooks and keep their outputs: python docs/refresh_notebooks.py [NOTEBOOK ...], by default all of nbs/.

Each runs in a fresh kernel from nbs/, as in JupyterLab, on one thread (the order of sums depends on their number), and is then cleaned
by nbdev_clean, so that two refreshes on one machine give the same bytes. Notebooks that say `skip_exec: true` (papermill runs those) keep
what they have. A notebook that fails is left as it was.
"""
import os, re, subprocess, sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from acl_paper.console import write_atomically

ROOT = Path(__file__).resolve().parents[1]
SKIP = re.compile(r"^skip_exec:\s*true\s*$", re.MULTILINE)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
NOT_RUN = re.compile(r"^\s*#\s*\|\s*eval:\s*false", re.MULTILINE)


def notebooks(arguments: list[str]) -> list[Path]:
    chosen = [Path(a).resolve() for a in arguments] or sorted((ROOT / "nbs").glob("*.ipynb"))
    return [p for p in chosen if p.name[0] not in "._"]


def refresh(path: Path) -> bool:
    "Run one notebook and replace it; whether it ran."
    notebook = nbformat.read(path, 4)
    if any(c.cell_type == "raw" and SKIP.search(c.source) for c in notebook.cells): return False
    if not any(c.cell_type == "code" for c in notebook.cells): return False
    skipped = [c for c in notebook.cells if c.cell_type == "code" and NOT_RUN.search(c.source)]
    for cell in skipped: cell.metadata.setdefault("tags", []).append("skip-execution")
    NotebookClient(notebook, timeout=1800, kernel_name="python3", coalesce_streams=True, extra_arguments=["--log-level=ERROR"],
                   resources={"metadata": {"path": str(path.parent)}}).execute()
    notebook.metadata.pop("widgets", None)  # sliders do nothing without a kernel, and their identifiers change with every run
    for cell in skipped:
        cell.metadata.tags.remove("skip-execution")
        if not cell.metadata.tags: del cell.metadata["tags"]
    write_atomically(path, nbformat.writes(notebook) + "\n")
    subprocess.run([Path(sys.executable).with_name("nbdev_clean"), "--fname", path], cwd=ROOT, check=True)
    return True


def main(arguments: list[str]) -> int:
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the kernel of this environment
    os.environ["OMP_NUM_THREADS"] = "1"
    failed = []
    for path in notebooks(arguments):
        try: print(f"{path.name}: {'refreshed' if refresh(path) else 'kept'}", flush=True)
        except CellExecutionError as error:
            failed.append(path.name)
            print(f"{path.name}: failed, left as it was\n{ANSI.sub('', str(error))}", file=sys.stderr, flush=True)
    return bool(failed)


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
