"""The page "Try it": a trained network hears a clip in the reader's browser, by onnxruntime-web.

The model is docs/demo/mini.onnx (docs/make_demo_model.py makes it); what runs it comes by npm (Makefile), and docs/conf.py copies it.
"""
import io
from pathlib import Path

import numpy as np
import soundfile

from acl_paper import mini

EXAMPLE = ["Coin_(dropping)", "Squeak", "Tearing"]  # one after the other
PAGE = """# Try it

> A trained network in your browser: drop a clip or record one, see what is heard when, and listen. Nothing leaves your machine.

:::{warning}
The model that comes with this page was trained on the **synthetic mini data set**: it tells made-up sounds apart and is of no use for real ones.
For real ones train a network on recordings, write it with `acl_export RUN --onnx model.onnx`, and open that file here.
:::

```{raw} html
<div id="try-zone">
<p class="try-controls">
<label>Open a clip <input type="file" id="try-clip" accept="audio/*,video/webm,.wav,.flac,.ogg,.opus,.mp3,.m4a"></label>
<button type="button" id="try-record">Record</button>
<button type="button" id="try-example">Hear an example</button>
<label>Open your model (.onnx) <input type="file" id="try-own" accept=".onnx"></label>
</p>
<p>Or drop a file here. Model: <span id="try-model">mini.onnx, which comes with this page; loaded, with 14 MB of onnxruntime-web, when it is first needed.</span></p>
<p id="try-status" role="status"></p>
<p id="try-error" role="alert"></p>
<div id="try-result" hidden>
<audio controls id="try-player" aria-label="The clip"></audio>
<div id="try-time">
<canvas id="try-spectrogram" role="img"></canvas>
<div id="try-strips" aria-hidden="true"></div>
<div id="try-now"></div>
</div>
<div id="try-axis"></div>
<details><summary>All probabilities</summary><div class="table-wrapper"><table id="try-numbers" class="docutils"></table></div></details>
</div>
</div>
<noscript>This page needs JavaScript. On a command line: <code>acl_predict FILE --timeline</code>.</noscript>
<script defer src="_static/try_it.js"></script>
```

## What you see

Above, the log-mel frames that the network is given: time from left to right, low bands at the bottom, the brightest colour at the loudest place and
black six decades of power below it. Under it, the classes with the highest probabilities; the height of a bar is the probability of one patch
(two seconds at the settings of the paper), one every second, drawn over the stretch that it speaks for. The numbers are those of
`acl_predict` and, along the clip, of `acl_predict --timeline`; silence, and clips that would have to be repeated more than ten times to fill a patch, get no answer.

A WAV file at the model's sample rate is read sample by sample, and the probabilities agree with Python's to 0.001. Everything else is
decoded by the browser, which also resamples it where its rate is another: not as Python does it, so that the probabilities can differ visibly. Clips may last up to two minutes.
"""


def example() -> bytes:
    "A WAV file with three sounds of the mini data set, three seconds each."
    clips = [mini.make_clip(np.random.default_rng(0), [sound], n_samples=3 * mini.SAMPLE_RATE) for sound in EXAMPLE]
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(clips), mini.SAMPLE_RATE, format="WAV")
    return file.getvalue()


def files(root: Path) -> dict[str, bytes]:
    "What the page loads beside scripts, by address."
    return {"demo/mini.onnx": (root / "docs" / "demo" / "mini.onnx").read_bytes(), "demo/example.wav": example()}
