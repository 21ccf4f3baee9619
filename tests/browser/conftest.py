"""A headless Chromium that answers nothing from the network and tells what was asked of it."""
import json, os, shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pytest_ignore_collect(collection_path, config):
    "Only when asked for by name: `pytest tests` leaves these out."
    if not any("browser" in str(argument) for argument in config.args): return True


@pytest.fixture
def chromium(tmp_path):
    "A function that opens a browser of a given width; all are closed at the end."
    selenium = pytest.importorskip("selenium", reason="pip install selenium")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not browser or not driver: pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    opened = []

    def open_browser(width=1280, height=900, *, dark=False, javascript=True, arguments=()):
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                         "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--force-device-scale-factor=1",
                         f"--user-data-dir={tmp_path}/chromium{len(opened)}", f"--window-size={max(width, 500)},{height}", *arguments): options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        if not javascript: options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        opened.append(page := webdriver.Chrome(options=options, service=Service(driver)))
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
        return page

    yield open_browser
    for page in opened: page.quit()


def requests_of(page) -> list[str]:
    "Addresses asked for since the last call, without those that are inside the page (data:, blob:) or the browser's own."
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if url.split(":")[0] not in ("data", "blob", "chrome", "about")]


@pytest.fixture(scope="session")
def site() -> Path:
    "The built site: ACL_SITE, or _build/html, built now when it is not there."
    folder = Path(os.environ.get("ACL_SITE") or ROOT / "_build" / "html").resolve()
    if not (folder / "index.html").exists():
        import subprocess, sys
        subprocess.run([sys.executable, ROOT / "docs" / "build.py", folder], check=True)
    return folder


@pytest.fixture(scope="session")
def axe() -> str:
    "The source of axe-core: ACL_AXE, or where npm puts it (README.md)."
    file = Path(os.environ.get("ACL_AXE") or ROOT / "_build/node_modules/axe-core/axe.min.js")
    if not file.exists(): pytest.skip("needs axe-core: npm install --no-save --prefix _build axe-core")
    return file.read_text()
