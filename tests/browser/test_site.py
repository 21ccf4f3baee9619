"""The built site in a browser, opened from its files. ACL_SCREENSHOTS=folder keeps pictures of the main pages."""
import base64, functools, http.server, os, re, threading, time
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


def all_pages(site):
    return [str(path.relative_to(site).with_suffix("")) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]


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
    for name in all_pages(site):
        open_page(page, site, name)
        outside = [url for url in requests_of(page) if not url.startswith(site.as_uri())]
        assert outside == [], name


def test_every_line_of_code_is_whole(chromium, site):
    "At 1440 px, of which a scroll bar takes 15; a line of up to 110 characters is not broken either."
    page = chromium(1425)
    cut = "return [...document.querySelectorAll('pre')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText.slice(0, 200))"
    broken = """return [...document.querySelectorAll('.cell_input .line')].filter(line => line.textContent.length <= 110
        && line.offsetHeight > 1.5 * parseFloat(getComputedStyle(line).lineHeight)).map(line => line.textContent)"""
    lines = 0
    for name in all_pages(site):
        open_page(page, site, name)
        page.execute_script("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert page.execute_script(cut) == [], f"{name}: code is cut at the edge"
        assert page.execute_script(broken) == [], f"{name}: a line of 110 characters does not fit"
        lines += page.execute_script("return document.querySelectorAll('.cell_input .line').length")
        assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), f"{name} scrolls sideways"
    assert lines > 2000


def test_phones_and_keyboards_reach_everything(chromium, site):
    "At phone width no page scrolls sideways, code that scrolls can be focused, and the copy buttons are there without a mouse."
    page = chromium(390)
    unreachable = "return [...document.querySelectorAll('pre')].filter(e => e.scrollWidth > e.clientWidth && e.tabIndex < 0).map(e => e.innerText.slice(0, 200))"
    scrolling = 0
    for name in all_pages(site):
        open_page(page, site, name)
        assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), f"{name} scrolls sideways"
        assert page.execute_script(unreachable) == [], name
        scrolling += page.execute_script("return [...document.querySelectorAll('pre')].filter(e => e.scrollWidth > e.clientWidth).length")
        assert page.execute_script("return [...document.querySelectorAll('button.copybtn')].every(b => getComputedStyle(b).opacity == 1)"), name
    assert scrolling > 100


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(chromium, site, axe, dark):
    page = chromium(1440, dark=dark)
    page.set_script_timeout(300)
    check = """const done = arguments[0];
        axe.run(document, {resultTypes: ['violations']}).then(({violations}) => done(violations
            .filter(v => ['serious', 'critical'].includes(v.impact))
            .map(v => `${v.id}: ${v.help}; ${v.nodes.length} times, first ${v.nodes[0].html.slice(0, 200)}`)))"""
    found = {}
    for name in all_pages(site):
        open_page(page, site, name)
        page.execute_script(axe)
        if problems := page.execute_async_script(check): found[name] = problems
    assert found == {}


def test_search_works_from_files(chromium, site):
    page = chromium()
    open_page(page, site, "search", query="?q=angular_margin_loss")
    for _ in range(50):
        found = [a.get_attribute("href") for a in page.find_elements("css selector", "#search-results li a")]
        if found and "finished" in page.find_element("id", "search-results").text: break
        time.sleep(0.1)
    assert any("api/losses.html" in link for link in found) and any("02_losses.html" in link for link in found), found
    assert [e for e in page.get_log("browser") if e["level"] == "SEVERE"] == []


def test_excerpts_of_the_search_show_no_tex(chromium, site):
    page = chromium()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.get(f"http://127.0.0.1:{server.server_port}/search.html?q=margin")
        for _ in range(100):
            texts = [e.text for e in page.find_elements("css selector", "#search-results .context")]
            if len(texts) > 5 and len(texts) == len(page.find_elements("css selector", "#search-results li")): break
            time.sleep(0.1)
        server.shutdown()
    assert len(texts) > 5
    assert [text for text in texts if re.search(r"\\|[_^]\{", text)] == []  # braces alone may be Python's
    assert any("θ" in text or "α" in text for text in texts), texts


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
    heights = page.execute_script("return Bokeh.index.roots.map(v => v.child_views?.[1] ?? v).filter(v => v.frame).map(v => v.frame.bbox.height)")
    assert heights and all(150 < height < 380 for height in heights), "a chart has not found its size"


def test_explorer_is_a_table_without_javascript(chromium, site):
    page = chromium(javascript=False)
    page.get((site / "explorer.html").as_uri())
    cells = [cell.text for cell in page.find_elements("css selector", "table td")]
    assert len(page.find_elements("css selector", "article table")) >= 4 and "56.0" in cells
