"""The site: built from the notebooks without warnings, with nothing in it that a browser would fetch from elsewhere."""
import html, io, itertools, json, re, subprocess, sys
from collections import Counter
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile
from bokeh.models import ColumnDataSource
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import build, explorer, make_readme, refresh_notebooks, robustness, try_it  # noqa: E402
from acl_paper import inference, mini  # noqa: E402
from acl_paper.log_mel import FeatureConfig, clip_log_mel  # noqa: E402

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").glob("*.ipynb") if p.stem[0] not in "._")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The whole site, warnings as errors, in a folder of its own."
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, ROOT / "docs" / "build.py", folder / "html", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    "The pages by their addresses, without those that only lead to a new address."
    paths = {str(p.relative_to(site)): p for p in site.rglob("*.html") if "_static" not in p.parts}
    return {name: path.read_text() for name, path in paths.items() if name.removesuffix(".html") not in build.MOVED}


def test_old_addresses_lead_to_pages(site, pages):
    for old, new in build.MOVED.items():
        page = (site / f"{old}.html").read_text()
        target = re.search(r'<meta http-equiv="refresh" content="0; url=([^"]+)">', page)[1]
        assert (site / f"{old}.html").parent.joinpath(target).resolve() == site / f"{new}.html", (old, new)
        assert f'<a href="{target}">' in page and f"{new}.html" in pages, (old, new)


def test_every_notebook_that_was_renamed_has_an_old_address():
    "As far as Git's history is here."
    log = subprocess.run(["git", "log", "--no-renames", "--diff-filter=D", "--name-only", "--format=", "--", "nbs/*.ipynb"], cwd=ROOT, capture_output=True, text=True)
    if log.returncode: pytest.skip("no Git history here")
    gone = {Path(line).stem for line in log.stdout.split()} - {p.stem for p in NOTEBOOKS}
    assert gone - set(build.MOVED) == set(), "name them in MOVED of docs/build.py"


def test_pages_stand_in_the_order_of_reading(pages):
    "The overview first; numbered notebooks before the experiments, studies last."
    order = re.findall(r'<li class="toctree-l1"><a class="reference internal" href="(\w+)\.html"', pages["index.html"])
    steps = [p.stem for p in NOTEBOOKS if p.stem[0].isdigit()]
    assert order[:len(steps)] == steps and steps[0] == "00_overview"
    assert order[len(steps):len(steps) + 6] == ["train", "test", "pretrain", "probe", "results", "results_selfsupervised"]


def text_of(page): return html.unescape(re.sub(r"<[^>]+>", "", page))


def test_every_notebook_has_a_page_in_the_table_of_contents(pages):
    for notebook in NOTEBOOKS:
        assert f"{notebook.stem}.html" in pages
        if notebook.stem != "index": assert re.search(rf'class="reference internal" href="{notebook.stem}\.html"', pages["index.html"]), notebook.name


def test_nothing_is_loaded_from_another_machine(site, pages):
    loads = re.compile(r"""<(?:script|img|iframe|audio|video|source|embed|link)\b[^>]*?\b(?:src|href)=["'](?:https?:)?//[^"']+""")
    for name, page in pages.items():
        found = [tag for tag in loads.findall(page) if 'rel="canonical"' not in tag]
        assert not found, f"{name}: {found}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:)?//|@import\s+['\"]?(?:https?:)?//", style.read_text()), style.name


def test_no_directive_is_left_and_hidden_cells_are_gone(pages):
    for notebook in NOTEBOOKS:
        page = text_of(pages[f"{notebook.stem}.html"])
        for cell in nbformat.read(notebook, 4).cells:
            if cell.cell_type == "raw": assert cell.source not in page
            if cell.cell_type != "code": continue
            directives = list(itertools.takewhile(lambda line: line.startswith("#|"), cell.source.splitlines()))
            assert not any(f"\n{line}\n" in page for line in directives), (notebook.name, directives)
            code = [line for line in cell.source.splitlines() if line not in directives and len(line) > 60]
            if code and any(re.match(r"#\|\s*hide\b", line) for line in directives): assert code[0] not in page, (notebook.name, code[0])


def test_cells_without_echo_show_their_output_alone(pages):
    count = 0
    for notebook in NOTEBOOKS:
        page = text_of(pages[f"{notebook.stem}.html"])
        for cell in nbformat.read(notebook, 4).cells:
            if cell.cell_type != "code" or not re.match(r"#\|\s*echo:\s*false", cell.source): continue
            count += 1
            longest = max(cell.source.splitlines(), key=len)
            assert longest not in page, f"{notebook.name}: {longest}"
            printed = [line for o in cell.outputs if o.output_type == "stream" for line in o.text.splitlines()]
            assert all(line.rstrip() in page for line in printed), notebook.name
    assert count > 10


def test_an_executed_experiment_shows_no_yaml():
    "Its front matter, a raw cell at the end, is for nbdev."
    for notebook in NOTEBOOKS:
        if "skip_exec: true" not in notebook.read_text(): continue
        page, _ = HTMLExporter().from_filename(str(notebook))
        assert "skip_exec" not in page, notebook.name


def test_hidden_cells_hold_no_picture():
    "The text below would speak of a figure that nobody sees: such cells say `#| echo: false`."
    for notebook in NOTEBOOKS:
        for cell in nbformat.read(notebook, 4).cells:
            pictures = [o for o in cell.get("outputs", []) if {"image/png", "image/svg+xml"} & set(o.get("data", {}))]
            assert not (pictures and re.match(r"#\|\s*hide\b", cell.source)), f"{notebook.name}: {cell.source[:80]}"


def test_directives_stand_first_in_their_cells():
    "nbdev reads them nowhere else."
    for notebook in NOTEBOOKS:
        for cell in nbformat.read(notebook, 4).cells:
            if cell.cell_type == "code": assert "\n#|" not in re.sub(r"\A(#\|.*\n?)+", "", cell.source), f"{notebook.name}: {cell.source}"


def test_outputs_are_the_committed_ones(pages):
    "A printed line of the losses notebook stands on its page."
    cells = nbformat.read(ROOT / "nbs" / "02_losses.ipynb", 4).cells
    lines = [o.text.splitlines()[0] for c in cells for o in c.get("outputs", []) if o.output_type == "stream"]
    assert lines and [line for line in lines if line not in text_of(pages["02_losses.html"])] == []


def test_api_has_signatures_sections_and_sources(pages):
    page = pages["api/losses.html"]
    assert 'id="acl_paper.losses.angular_margin_loss"' in page and "margin_rad" in page
    for section in ("Parameters", "Returns", "Raises"): assert section in page
    assert 'href="../_modules/acl_paper/losses.html#angular_margin_loss"' in page


def test_names_in_the_text_lead_to_the_api(pages):
    assert re.search(r'<p>[^\n]*<a class="reference internal" href="api/data.html#acl_paper.data.load_clips"', pages["05_data.html"] + pages["07_mini.html"])


def test_a_table_that_a_notebook_displays_is_one(pages):
    assert re.search(r"<td[^>]*><p>[\d.]+ ± [\d.]+</p></td>", pages["index.html"])


def test_colab_is_a_link_without_a_picture(pages):
    notebooks = [p.stem for p in NOTEBOOKS if "colab-badge.svg" in p.read_text()]
    assert "02_losses" in notebooks
    for name, page in pages.items():
        assert "colab-badge" not in page, name
        assert name.removesuffix(".html") not in notebooks or re.search(rf'href="https://colab[^"]+/nbs/{name[:-5]}\.ipynb"[^>]*>Open in Colab</a>', page), name


def test_no_two_pages_have_one_title(pages):
    titles = Counter(re.search(r"<title>(.*?)</title>", page)[1] for page in pages.values())
    assert [title for title, count in titles.items() if count > 1] == []


def test_figures_say_what_they_show(pages):
    "Each has the text below it as its alternative text, without markup and with readable formulas."
    for notebook in NOTEBOOKS:
        page = pages[f"{notebook.stem}.html"]
        figures = re.findall(r'<img alt="([^"]*)" src="_images/', page)
        n_pictures = sum(any(kind.startswith("image/") for kind in o.get("data", {})) for c in nbformat.read(notebook, 4).cells for o in c.get("outputs", []))
        assert len(figures) >= n_pictures - page.count("data:image"), notebook.name
        for text in figures:
            assert len(text) > 20 and not re.search(r"[\\$`]|_images|\.png", text), f"{notebook.name}: {text}"
    texts = re.findall(r'<img alt="([^"]*)"', pages["02_losses.html"])
    assert any("θ^2 rises to π^2" in text for text in texts), texts


def test_every_page_has_an_icon_and_a_description_and_leads_to_the_repository(site, pages):
    assert (site / "_static" / "favicon.svg").exists()
    for name, page in pages.items():
        assert re.search(r'<link rel="shortcut icon" href="[./]*_static/favicon\.svg', page), name
        assert re.search(r'<meta name="description" content="[^"\\$]{20,}"', page), name
        assert f'href="{build.REPOSITORY}"' in page, name


def test_sounds_can_be_heard_where_they_are_drawn(site, pages):
    sounds = re.findall(r'<audio [^>]*src="([^"]+)"[^>]*aria-label="([^"]+)"', pages["07_mini.html"])
    assert {"Rain", "Glass", "Piano", "speech"} <= {label for _, label in sounds}
    assert len({source for source, _ in sounds}) == len(list((site / "sounds").iterdir()))
    for source, label in sounds:
        samples, rate = soundfile.read(site / source)
        assert abs(len(samples) / rate - 2) < 0.1 and np.abs(samples).max() > 0.05, label
        assert (site / source).stat().st_size < 30_000, label


def test_published_values_stand_in_the_explorer(pages):
    cells = re.findall(r"<td[^>]*><p>([^<]*)</p></td>", pages["explorer.html"])
    assert {"56.0", "64.5", "73.6", "39.9"} <= set(cells)


RESULTS = """subset,alpha,published,mean,sd,min,max,n_seeds,wilson_low,wilson_high,verdict,dataset,synthetic
clean,0.5,0.645,0.650,0.010,0.640,0.660,3,0.619,0.680,reproduced,FSDnoisy18k,False
clean,1.0,0.602,,,,,0,,,not run,FSDnoisy18k,False
"""


def explorer_of(folder, results):
    "The explorer's page, and its tables, from one results.csv."
    (folder / "figures" / "some").mkdir(parents=True)
    (folder / "figures" / "some" / "results.csv").write_text(results)
    return explorer.page(folder), explorer.load(folder)


def drawn(table):
    "The columns of numbers that a chart draws, and its vertical axis."
    chart = explorer.chart(table)
    plot = chart if hasattr(chart, "y_range") else chart.children[1]
    columns = {name for source in plot.select({"type": ColumnDataSource}) for name, values in source.data.items() if pd.notna(values).any()}
    return columns, plot


def test_explorer_shows_results_on_the_papers_data_beside_the_published_ones(tmp_path):
    page, tables = explorer_of(tmp_path, RESULTS)
    assert "65.0 ± 1.0" in page and "64.0 … 66.0" in page and "reproduced |" in page and "cannot be compared" not in page
    assert page == explorer.page(tmp_path), "two builds differ"
    columns, _ = drawn(tables[0])
    assert len(tables) == 1 and {"published", "mean"} <= columns


def test_explorer_draws_other_data_on_an_axis_of_its_own(tmp_path):
    page, tables = explorer_of(tmp_path, RESULTS.replace("FSDnoisy18k,False", "mini,True"))
    assert "65.0 ± 1.0" in page and "cannot be compared" in page and "reproduced |" not in page
    published, mini = tables
    columns, plot = drawn(mini)
    assert {"mean", "min", "max"} <= columns and not {"published", "low", "high"} & columns
    assert plot.y_range.start < 64 and plot.y_range.end > 66 and plot.yaxis.axis_label == "clip accuracy (%) on mini"
    assert "mean" not in drawn(published)[0]
    assert list(mini.alpha) == [0.5], "a cell that was not run has no row"


def test_explorer_has_no_empty_chart(tmp_path):
    not_run = "\n".join(line for line in RESULTS.splitlines() if "not run" in line or line.startswith("subset")).replace("FSDnoisy18k,False", "mini,True")
    page, tables = explorer_of(tmp_path, not_run)
    assert len(tables) == 1 and "mini" not in page
    for table in explorer.load(ROOT):
        for subset, rows in table.groupby("subset"):
            assert rows.reindex(columns=["published", "mean"]).notna().any(axis=None), subset


def test_what_the_page_to_try_a_model_asks_for_is_there(site, pages):
    script = (site / "_static" / "try_it.js").read_text()
    parts = set(re.findall(r'(?:part|say)\("(\w+)"', script))
    assert len(parts) > 10 and [part for part in parts if f'id="try-{part}"' not in pages["try_it.html"]] == []
    files = re.findall(r'"(demo/[\w.]+)"', script)
    assert sorted(files) == sorted(try_it.files(ROOT)) and all((site / file).is_file() for file in files)
    known = dict(re.findall(r"(SILENT_BELOW|MOST_TIMES) = ([\w-]+)", script))
    assert float(known["SILENT_BELOW"]) == inference.SILENT_BELOW and int(known["MOST_TIMES"]) == inference.MOST_TIMES
    runtime = site / "_static" / "onnxruntime-web"
    assert not runtime.exists() or {"ort.wasm.min.js", "ort-wasm-simd-threaded.wasm"} <= {path.name for path in runtime.iterdir()}


def test_the_model_of_that_page_is_one_of_today():
    "Of the classes of the mini data set, with the features of today."
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    files = try_it.files(ROOT)
    session = onnxruntime.InferenceSession(files["demo/mini.onnx"], providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == sorted(mini.MINI_CLASSES), "python docs/make_demo_model.py"
    sound, _ = soundfile.read(io.BytesIO(files["demo/example.wav"]), dtype="float32")
    frames, = session.run(["log_mel"], {"waveform": sound[None]})
    np.testing.assert_allclose(frames[0], clip_log_mel(sound, FeatureConfig()), atol=1e-4, err_msg="python docs/make_demo_model.py")
    assert len(files["demo/mini.onnx"]) < 4e6


def test_what_was_tried_is_counted_from_the_file(tmp_path):
    folder = tmp_path / "figures" / "robustness"
    folder.mkdir(parents=True)
    lines = ["what,seed,n,right,refused,wrong,promise,date,versions", '"audio, damaged",7,1300,300,999,1,It is read | refused.,2026-11-26,python 3']
    (folder / "tried.csv").write_text("\n".join([*lines, "kills,7,20,20,0,0,The same.,2026-11-26,python 3\n"]))
    page = robustness.page(tmp_path)
    assert "**1,320 tries, 1 wrong**, on 2026-11-26 with the seed 7: python 3." in page
    assert "| audio, damaged | It is read \\| refused. | 1,300 | 300 | 999 | 1 |\n| kills | The same. | 20 | 20 | 0 | 0 |" in page


def test_what_was_tried_has_a_page(pages):
    tried = pd.read_csv(ROOT / "figures" / "robustness" / "tried.csv")
    assert (tried.n == tried.right + tried.refused + tried.wrong).all() and tried.seed.nunique() == 1
    text = text_of(pages["robustness.html"])
    assert f"{tried.n.sum():,} tries" in text and all(what in text for what in tried.what)
    assert 'href="robustness.html"' in pages["contributing.html"]


def test_links_lead_where_they_should():
    text = "[a](02_losses.ipynb#acl) [b](nbs/02_losses.ipynb) [c](../LICENSE) [d](https://zenodo.org) [e](#here) ![badge](https://example.org/b.svg) [f](../CONTRIBUTING.md)"
    site = build.relink(text, "nbs")
    assert site == (f"[a](02_losses.ipynb#acl) [b](02_losses.ipynb) [c]({build.REPOSITORY}/blob/main/LICENSE) [d](https://zenodo.org) [e](#here) badge [f](contributing.md)")


def test_readme_is_made_from_the_index():
    made, pictures = make_readme.readme()
    assert made == (ROOT / "README.md").read_text(), "README.md is not what nbs/index.ipynb gives: make readme"
    for name, content in (pictures | make_readme.drawings()).items(): assert (ROOT / name).read_bytes() == content, f"{name}: make readme"
    assert set(make_readme.drawings()) == {f"figures/overview/{p.name}" for p in (ROOT / "figures" / "overview").iterdir()}
    assert all(f"]({name})" in made for name in make_readme.drawings())
    for link in re.findall(r"\]\(([\w./-]+\.(?:ipynb|md|csv|png|svg))", made): assert (ROOT / link).exists(), link


def test_links_of_the_readme():
    text = "[a](02_losses.ipynb) [b](nbs/02_losses.ipynb#x) ![c](../figures/a.png) [d](https://zenodo.org) [e](#here)"
    assert make_readme.from_the_root(text) == "[a](nbs/02_losses.ipynb) [b](nbs/02_losses.ipynb#x) ![c](figures/a.png) [d](https://zenodo.org) [e](#here)"


def test_refresh_runs_cells_and_leaves_a_failing_notebook_as_it_was(tmp_path):
    def write(name, *sources, raw=None):
        cells = [nbformat.v4.new_code_cell(s) for s in sources]
        if raw: cells.insert(0, nbformat.v4.new_raw_cell(raw))
        path = tmp_path / name
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path, path.read_bytes()

    good, _ = write("good.ipynb", "print(6 * 7)", "#| eval: false\nprint('never')")
    bad, before = write("bad.ipynb", "1 / 0")
    kept, same = write("kept.ipynb", "print(1)", raw="---\nskip_exec: true\n---")
    assert refresh_notebooks.main([str(good), str(kept)]) == 0
    cells = json.loads(good.read_text())["cells"]
    assert cells[0]["outputs"][0]["text"] == ["42\n"] and cells[0]["execution_count"] is None and cells[1]["outputs"] == [] and "tags" not in cells[1]["metadata"]
    assert refresh_notebooks.main([str(bad)]) == 1 and bad.read_bytes() == before and kept.read_bytes() == same
