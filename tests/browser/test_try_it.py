"""The page "Try it" in a browser, served from the built site: what it says of real files is what Python says of them."""
import functools, http.server, json, threading, time

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import requests_of

from acl_paper import mini
from acl_paper.audio import read_audio
from acl_paper.data import load_clips
from acl_paper.export import AudioTimeline, export_onnx
from acl_paper.features import extract_features
from acl_paper.inference import Classifier
from acl_paper.patches import make_split
from acl_paper.training import TrainConfig, fit

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
RUNTIME = "_static/onnxruntime-web"
RATE = mini.SAMPLE_RATE


class Files(http.server.SimpleHTTPRequestHandler):
    "The site, without the paths that begin with one of `missing`."
    missing: tuple[str, ...] = ()

    def log_message(self, *_): pass

    def do_GET(self):
        if self.path.lstrip("/").startswith(self.missing): return self.send_error(404)
        super().do_GET()


@pytest.fixture
def serve(site):
    "A function that serves the site and returns its address."
    servers = []

    def start(*missing):
        handler = type("SomeFiles", (Files,), {"missing": missing})
        servers.append(server := http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=site)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def page(chromium, site, serve):
    "The page, ready for a clip."
    if not (site / RUNTIME).exists(): pytest.skip("needs onnxruntime-web in the site: make docs, where npm is installed")
    page = chromium()
    page.address = serve()
    page.get(f"{page.address}try_it.html")
    return page


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A network trained for two epochs on a few clips of the mini data set, its ONNX file, and test clips."
    folder = tmp_path_factory.mktemp("trained")
    root = mini.make_mini(folder / "mini", clean_per_class=3, noisy_per_class=1, noisy_small_per_class=1, test_per_class=1, every_s=None)
    clips = load_clips(root)
    settings = TrainConfig(alpha=0.5, subset="clean", epochs=2, batch_size=16, stratify="never")
    run = fit(make_split(extract_features(root, folder / "mini.h5", report_every_s=None), clips, settings), settings, device="cpu", report_every_s=None)
    export_onnx(AudioTimeline(run), folder / "own.onnx")
    tests = sorted((root / path for path in clips[clips.split == "test"].path), key=lambda path: soundfile.info(path).frames)
    return run, folder / "own.onnx", tests


def text(page, name): return page.execute_script(f"return document.getElementById('try-{name}').textContent")


def until(page, name, said, seconds=20):
    "Wait for a part of the page to say something, and return all of it."
    for _ in range(10 * seconds):
        if said in text(page, name): return text(page, name)
        time.sleep(0.1)
    pytest.fail(f"the page does not say {said!r} but {text(page, 'status')!r}, {text(page, 'error')!r}")


def give(page, path, field="clip"):
    page.find_element("id", f"try-{field}").send_keys(str(path))


def hear(page, path):
    "What the page says of a file, and its probabilities: one row for the whole clip, then one for each patch."
    give(page, path)
    said = until(page, "status", f"{path.name}, ")
    rows = page.execute_script("return [...document.querySelectorAll('#try-numbers tr')].map(row => [...row.children].map(cell => cell.textContent))")
    table = pd.DataFrame([row[1:] for row in rows[1:]], index=[row[0] for row in rows[1:]], columns=rows[0][1:])
    return said, table


def check(page, classifier, path):
    "That the page and `acl_predict` agree on a file."
    said, table = hear(page, path)
    heard, timeline = classifier.hear(path), classifier.timeline(path)
    assert list(table.columns) == classifier.run.classes
    assert list(table.index[1:]) == [f"{each.left:.3f} to {each.right:.3f} s" for each in timeline.index], path
    expected = np.vstack([heard.probabilities if heard.is_answer else np.full(len(table.columns), np.nan), timeline])
    ours = table.apply(pd.to_numeric, errors="coerce").to_numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3, err_msg=str(path))
    return said


def test_it_says_what_python_says(page, trained, tmp_path):
    run, model, tests = trained
    give(page, model, "own")
    until(page, "status", "own.onnx is loaded")
    assert text(page, "model") == f"own.onnx: {len(run.classes)} classes, 44,100 Hz."
    classifier = Classifier(run)
    for path in [tests[0], tests[len(tests) // 2], tests[-1]]: assert "Read sample by sample" in check(page, classifier, path)

    sound, _ = read_audio(tests[-1], RATE)
    files = {"stereo 24 bit.wav": (np.stack([sound, 0.3 * sound[::-1]], 1), "PCM_24"), "floats.wav": (sound, "FLOAT"),
             "half silent.wav": (np.r_[sound[:2 * RATE], np.zeros(4 * RATE)], "PCM_16"), "silent.wav": (np.zeros(3 * RATE), "PCM_16"),
             "short.wav": (sound[:RATE // 10], "PCM_16"), "repeated.wav": (sound[:RATE // 2], "PCM_U8")}
    told = {}
    for name, (samples, subtype) in files.items():
        soundfile.write(tmp_path / name, samples, RATE, subtype=subtype)
        told[name] = check(page, classifier, tmp_path / name)
    assert "silent, so there is no answer" in told["silent.wav"] and "too short for an answer" in told["short.wav"]
    outside = [url for url in requests_of(page) if not url.startswith(page.address)]
    assert outside == [] and [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_model_of_the_page_hears_its_example(page, site):
    page.find_element("id", "try-example").click()
    said = until(page, "status", "The example, 9.00 s: ")
    session = onnxruntime.InferenceSession(site / "demo" / "mini.onnx", providers=["CPUExecutionProvider"])
    sound, rate = soundfile.read(site / "demo" / "example.wav", dtype="float32")
    probabilities, timeline = session.run(["probabilities", "timeline"], {"waveform": sound[None]})
    rows = page.execute_script("return [...document.querySelectorAll('#try-numbers tbody tr')].map(row => [...row.querySelectorAll('td')].map(cell => cell.textContent))")
    np.testing.assert_allclose(np.array(rows, float), np.vstack([probabilities, timeline[0]]), rtol=0, atol=1e-3)
    assert f"with a probability of {probabilities.max():.2f}" in said
    drawn = [each.text.split("\n")[0] for each in page.find_elements("css selector", ".try-label")]
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    highest = dict(zip(classes, timeline[0].max(0)))
    assert drawn == [name for name in sorted(classes, key=highest.get, reverse=True) if highest[name] >= 0.05][:5]
    colours = page.execute_script("""const canvas = document.getElementById('try-spectrogram');
        return [canvas.width, canvas.height, new Set(new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size]""")
    assert colours[:2] == [1 + 9 * 50, 96] and colours[2] > 500
    assert page.execute_script("return document.getElementById('try-player').duration") == pytest.approx(9, abs=0.01)
    page.execute_script("document.getElementById('try-player').currentTime = 4.5")
    for _ in range(50):
        if page.execute_script("return document.getElementById('try-now').style.left") == "50%": break
        time.sleep(0.1)
    else: pytest.fail("the line does not follow the sound")


def test_other_formats_are_decoded_by_the_browser(page, trained, tmp_path):
    run, model, tests = trained
    give(page, model, "own")
    sound, _ = read_audio(tests[-1], RATE)
    soundfile.write(tmp_path / "clip.flac", sound, RATE)
    soundfile.write(tmp_path / "clip.ogg", sound, RATE)
    soundfile.write(tmp_path / "other rate.wav", sound[::2], RATE // 2)
    assert "Decoded by this browser" in check(page, Classifier(run), tmp_path / "clip.flac"), "without loss, and at the model's rate"
    for name in ("clip.ogg", "other rate.wav"):
        said, table = hear(page, tmp_path / name)
        assert "Decoded by this browser" in said and float(said.split(", ")[1].split(" ")[0]) == pytest.approx(len(sound) / RATE, abs=0.1)
        assert table.astype(float).sum(axis=1).to_numpy() == pytest.approx(1, abs=0.01)


def test_what_cannot_be_used_is_said_in_a_sentence(page, trained, tmp_path):
    _, model, tests = trained
    whole = tests[0].read_bytes()
    (tmp_path / "notes.wav").write_text("no sound")
    (tmp_path / "cut.wav").write_bytes(whole[:len(whole) // 2])
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "long.wav", np.zeros(200 * 8000), 8000, subtype="PCM_U8")
    (tmp_path / "foreign.onnx").write_bytes(b"\x08\x08\x12\x07nowhere")
    (tmp_path / "cut.onnx").write_bytes(b"")
    (tmp_path / "plain.onnx").write_bytes(model.read_bytes().replace(b"timeline_hop", b"another_hop_"))
    (tmp_path / "damaged.onnx").write_bytes(model.read_bytes().replace(b"Conv", b"Vnoc"))
    for name, field, said in [("notes.wav", "clip", "notes.wav is not a sound that this browser can decode"), ("cut.wav", "clip", "cut.wav is cut short"),
                              ("empty.wav", "clip", "empty.wav"), ("long.wav", "clip", "long.wav is too long for this page: 200 s"),
                              ("foreign.onnx", "own", "foreign.onnx is not a model that acl_export wrote"), ("cut.onnx", "own", "cut.onnx is not a model"),
                              ("plain.onnx", "own", "plain.onnx has no timeline"), ("damaged.onnx", "own", "damaged.onnx cannot be run")]:
        give(page, tmp_path / name, field)
        until(page, "error", said)
    page.find_element("id", "try-record").click()
    until(page, "error", "icrophone")
    assert "Read sample by sample" in hear(page, tests[0])[0] and text(page, "error") == "", "and then it goes on"


def test_a_recording_is_heard(chromium, site, serve):
    if not (site / RUNTIME).exists(): pytest.skip("needs onnxruntime-web in the site: make docs, where npm is installed")
    page = chromium(arguments=["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"])
    page.get(f"{serve()}try_it.html")
    button = page.find_element("id", "try-record")
    button.click()
    until(page, "record", "Stop")
    time.sleep(2.5)
    button.click()
    said = until(page, "status", "The recording, ")
    assert "with a probability of" in said and text(page, "record") == "Record"


def test_dropping_a_file(page, trained):
    "As a reader drops it: the model, then a clip."
    _, model, tests = trained
    drop = """const [address, name] = arguments, done = arguments[2];
        fetch(address).then(r => r.blob()).then(content => {
            const given = new DataTransfer();
            given.items.add(new File([content], name));
            document.getElementById('try-zone').dispatchEvent(new DragEvent('drop', {dataTransfer: given, bubbles: true, cancelable: true}));
            done();
        })"""
    page.execute_async_script(drop, "demo/mini.onnx", "mine.onnx")
    until(page, "model", "mine.onnx: ")
    page.execute_async_script(drop, "demo/example.wav", "dropped.wav")
    until(page, "status", "dropped.wav, 9.00 s: ")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious_in_an_answer_on_a_phone(chromium, site, serve, axe, dark):
    if not (site / RUNTIME).exists(): pytest.skip("needs onnxruntime-web in the site: make docs, where npm is installed")
    page = chromium(390, dark=dark)
    page.get(f"{serve()}try_it.html")
    page.find_element("id", "try-example").click()
    until(page, "status", "The example, ")
    page.execute_script("document.querySelector('#try-result details').open = true")
    page.execute_script(axe)
    check = """const done = arguments[0];
        axe.run(document, {resultTypes: ['violations']}).then(({violations}) => done(violations.filter(v => ['serious', 'critical'].includes(v.impact))
            .map(v => `${v.id}: ${v.nodes[0].html.slice(0, 200)}`)))"""
    assert page.execute_async_script(check) == []
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"


def test_what_is_missing_is_said(chromium, site, serve):
    page = chromium()
    page.get(f"{serve(RUNTIME)}try_it.html")
    until(page, "error", "this site was built without onnxruntime-web")
    page.get((site / "try_it.html").as_uri())
    until(page, "error", "Serve the site instead")
