"""The built site in a browser, opened from its files. ACL_SCREENSHOTS=folder keeps pictures of the main pages."""
import base64, os, time
from pathlib import Path

import pytest
from conftest import requests_of

PAGES = ["index", "00_overview", "02_losses", "api/losses", "explorer"]


def open_page(page, site, name, *, query=""):
    page.get(f"{(site / name).as_uri()}.html{query}")
    for _ in range(100):  # until formulas and charts are drawn
        if page.execute_script("return document.readyState == 'complete' && [...document.querySelectorAll('.math')].every(m => m.querySelector('mjx-container'))"): break
        time.sleep(0.1)
    time.sleep(0.5)


def keep_screenshot(page, name):
    if folder := os.environ.get("ACL_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.save_screenshot(str(Path(folder) / f"{name.replace('/', '_')}.png"))
        whole = page.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": {"x": 0, "y": 0, "scale": 1,
            "width": page.execute_script("return innerWidth"), "height": min(6000, page.execute_script("return document.documentElement.scrollHeight"))}})
        (Path(folder) / f"{name.replace('/', '_')}-whole.png").write_bytes(base64.b64decode(whole["data"]))


@pytest.mark.parametrize("width,dark", [(1280, False), (1400, False), (390, False), (1280, True)])
@pytest.mark.parametrize("name", PAGES)
def test_page_is_drawn_and_asks_for_nothing_outside(chromium, site, name, width, dark):
    page = chromium(width, dark=dark)
    open_page(page, site, name)
    keep_screenshot(page, f"{name}-{width}{'-dark' if dark else ''}")
    asked = requests_of(page)
    assert asked and all(url.startswith(site.as_uri()) for url in asked), [u for u in asked if not u.startswith(site.as_uri())]
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert page.execute_script("return document.querySelectorAll('.math').length == document.querySelectorAll('.math mjx-container svg').length")
    assert page.execute_script("return document.querySelectorAll('mjx-merror').length") == 0
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    too_wide = "return [...document.querySelectorAll('div.math mjx-container')].filter(m => m.scrollWidth > m.clientWidth).map(m => m.textContent)"
    assert page.execute_script(too_wide) == [], "a formula is cut at the edge of the page"


def test_all_pages_ask_for_nothing_outside(chromium, site):
    page = chromium()
    for path in sorted(site.rglob("*.html")):
        if "_static" in path.parts: continue
        open_page(page, site, str(path.relative_to(site).with_suffix("")))
        outside = [url for url in requests_of(page) if not url.startswith(site.as_uri())]
        assert outside == [], path.name


def test_search_works_from_files(chromium, site):
    page = chromium()
    open_page(page, site, "search", query="?q=angular_margin_loss")
    for _ in range(50):
        found = [a.get_attribute("href") for a in page.find_elements("css selector", "#search-results li a")]
        if found and "finished" in page.find_element("id", "search-results").text: break
        time.sleep(0.1)
    assert any("api/losses.html" in link for link in found) and any("02_losses.html" in link for link in found), found
    assert [e for e in page.get_log("browser") if e["level"] == "SEVERE"] == []


def test_copy_button_is_there_and_names_lead_to_the_api(chromium, site):
    page = chromium()
    open_page(page, site, "02_losses")
    assert page.find_elements("css selector", "button.copybtn")
    assert page.find_elements("css selector", ".banner a[href='api/losses.html'] code")
    open_page(page, site, "05_data")
    links = page.find_elements("css selector", "article p a[href^='api/'][href*='#acl_paper.'] code")
    assert links, "no API name in the prose is a link"
    page.execute_script("arguments[0].click()", links[0])
    assert "/api/" in page.current_url


def test_explorer_changes_its_subset(chromium, site):
    page = chromium()
    open_page(page, site, "explorer")
    published = "return Bokeh.documents[0].roots()[0].children[1].renderers.filter(r => r.visible).map(r => r.data_source.data.published[0])"
    before = page.execute_script(published)
    page.execute_script("Bokeh.documents[0].get_model_by_name('subset').active = 3")
    after = page.execute_script(published)
    assert before and after and before != after
    height = page.execute_script("return Bokeh.index.roots[0].child_views[1].frame.bbox.height")
    assert 150 < height < 380, "the chart has not found its size"


def test_explorer_is_a_table_without_javascript(chromium, site):
    page = chromium(javascript=False)
    page.get((site / "explorer.html").as_uri())
    cells = [cell.text for cell in page.find_elements("css selector", "table td")]
    assert len(page.find_elements("css selector", "article table")) >= 4 and "56.0" in cells
