"""A reader's first session: JupyterLab, a notebook, run all cells, see the plots; and move a slider."""
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
    for path in (folder / "nbs").glob("*.ipynb"):
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


def run_all(page, jupyterlab, name):
    "Open a notebook, run all its cells, and return its outputs when every cell has run, in order."
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    address, token, folder = jupyterlab
    page.get(f"{address}/lab/tree/nbs/{name}?token={token}")
    find = lambda selector: page.find_elements(By.CSS_SELECTOR, selector)
    status = lambda: [e.get_attribute("data-status") for e in find(".jp-Notebook-ExecutionIndicator")]
    wait_for(lambda: find(".jp-Notebook .jp-Cell") and status() == ["idle"], "the notebook is not open with a kernel")
    assert not find(".jp-OutputArea-output img")
    next(m for m in find(".lm-MenuBar-item") if m.text == "Run").click()
    wait_for(lambda: find(".lm-Menu-item[data-command='runmenu:run-all']"), "no menu")[0].click()
    cells = lambda: [c for c in json.loads((folder / "nbs" / name).read_text())["cells"] if c["cell_type"] == "code"]

    def finished():
        page.find_element(By.CSS_SELECTOR, "body").send_keys(Keys.CONTROL, "s")
        time.sleep(1)
        return all(c["execution_count"] for c in cells())
    wait_for(finished, "not every cell has run")
    assert [c["execution_count"] for c in cells()] == list(range(1, len(cells()) + 1))
    return [o for c in cells() for o in c["outputs"]]


def scroll_to(page, selector, what):
    "The first element of that kind that can be seen, brought to the middle of the window."
    from selenium.webdriver.common.by import By

    def seen():
        found = [e for e in page.find_elements(By.CSS_SELECTOR, selector) if e.get_attribute("naturalWidth") != "0"]
        if not found: page.execute_script("document.querySelector('.jp-WindowedPanel-outer, .jp-Notebook').scrollBy(0, 600)")
        return found
    element = wait_for(seen, what, 60)[0]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    time.sleep(1)
    return element


def screenshot(page, name):
    if target := os.environ.get("ACL_SCREENSHOTS"):
        Path(target).mkdir(parents=True, exist_ok=True)
        page.save_screenshot(str(Path(target) / name))


def test_losses_notebook_runs_top_to_bottom_and_shows_its_plots(chromium, jupyterlab):
    page = chromium(1280, 1000)
    outputs = run_all(page, jupyterlab, "02_losses.ipynb")
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 3
    picture = scroll_to(page, ".jp-OutputArea-output img", "no plot can be seen")
    screenshot(page, "jupyterlab.png")
    assert int(picture.get_attribute("naturalWidth")) > 200
    outside = [url for url in requests_of(page) if jupyterlab[0].split("//")[1] not in url]
    assert outside == [], "JupyterLab asked for something outside this machine"


def test_a_slider_of_the_motivation_redraws_its_picture(chromium, jupyterlab):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    page = chromium(1280, 1000)
    outputs = run_all(page, jupyterlab, "01_motivation.ipynb")
    assert not [o for o in outputs if o["output_type"] == "error"]
    handle = scroll_to(page, ".widget-slider .noUi-handle", "no slider can be seen")
    drawn = lambda: [i.get_attribute("src") for i in page.find_elements(By.CSS_SELECTOR, ".jupyter-widgets .jp-OutputArea-output img, .widget-output img")]
    before = wait_for(drawn, "the sliders have no picture")
    screenshot(page, "jupyterlab-slider.png")
    handle.send_keys(Keys.ARROW_RIGHT * 3)
    wait_for(lambda: drawn() and drawn() != before, "moving the slider changes nothing", 60)
