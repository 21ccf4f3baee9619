"""A reader's first session: JupyterLab, nbs/04_losses.ipynb, run all cells, see the plots."""
import json, os, secrets, shutil, socket, subprocess, sys, time
from pathlib import Path
from urllib.request import urlopen

import pytest
from conftest import ROOT, requests_of


@pytest.fixture
def jupyterlab(tmp_path):
    "Address, token and folder of a JupyterLab of its own, over a copy of the notebooks without outputs."
    folder = tmp_path / "copy"
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "settings.ini", folder)
    path = folder / "nbs" / "04_losses.ipynb"
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code": cell["outputs"] = []
    path.write_text(json.dumps(notebook))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                   **{f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "RUNTIME")}, "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
                   "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces")}
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
                                   f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--LabApp.news_url="], env=environment, stdout=log, stderr=log)
        try:
            for _ in range(120):
                try: urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=1); break
                except OSError: time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", token, folder
        finally:
            server.terminate()
            server.wait(20)


def wait_for(condition, what, seconds=120):
    for _ in range(seconds * 2):
        if found := condition(): return found
        time.sleep(0.5)
    pytest.fail(f"after {seconds} s: {what}")


def test_losses_notebook_runs_top_to_bottom_and_shows_its_plots(chromium, jupyterlab):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    address, token, folder = jupyterlab
    page = chromium(1280, 1000)
    page.get(f"{address}/lab/tree/nbs/04_losses.ipynb?token={token}")
    find = lambda selector: page.find_elements(By.CSS_SELECTOR, selector)
    pictures = lambda: [i for i in find(".jp-OutputArea-output img") if i.get_attribute("naturalWidth") not in (None, "0")]
    status = lambda: [e.get_attribute("data-status") for e in find(".jp-Notebook-ExecutionIndicator")]
    wait_for(lambda: find(".jp-Notebook .jp-Cell") and status() == ["idle"], "the notebook is not open with a kernel")
    assert not pictures()
    next(m for m in find(".lm-MenuBar-item") if m.text == "Run").click()
    wait_for(lambda: find(".lm-Menu-item[data-command='runmenu:run-all']"), "no menu")[0].click()
    path = folder / "nbs" / "04_losses.ipynb"
    cells = lambda: [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]

    def finished():
        page.find_element(By.CSS_SELECTOR, "body").send_keys(Keys.CONTROL, "s")
        time.sleep(1)
        return all(c["execution_count"] for c in cells())
    wait_for(finished, "not every cell has run")
    assert [c["execution_count"] for c in cells()] == list(range(1, len(cells()) + 1))
    outputs = [o for c in cells() for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 3

    def seen():
        found = pictures()
        if not found: page.execute_script("document.querySelector('.jp-WindowedPanel-outer, .jp-Notebook').scrollBy(0, 600)")
        return found
    picture = wait_for(seen, "no plot can be seen", 60)[0]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    time.sleep(1)
    if target := os.environ.get("ACL_SCREENSHOTS"):
        Path(target).mkdir(parents=True, exist_ok=True)
        page.save_screenshot(str(Path(target) / "jupyterlab.png"))
    assert int(picture.get_attribute("naturalWidth")) > 200
    outside = [url for url in requests_of(page) if address.split("//")[1] not in url]
    assert outside == [], "JupyterLab asked for something outside this machine"
