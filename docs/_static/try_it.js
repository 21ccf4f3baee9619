// The page "Try it": a model that acl_export wrote hears a clip, here in the browser. Nothing is sent anywhere.
const RUNTIME = "_static/onnxruntime-web/";
const MODEL = "demo/mini.onnx", EXAMPLE = "demo/example.wav";
const MOST_SECONDS = 120, MOST_BYTES = 100e6; // of a clip: the tab holds 250 MB, and about 3 MB more for each second
const MOST_DRAWN = 5, DRAWN_FROM = 0.05; // classes that are at least this probable somewhere
const DECADES = 6; // of power, from the darkest to the brightest colour
const COLOURS = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];
const SILENT_BELOW = 1e-4, MOST_TIMES = 10; // as in acl_paper.inference

const part = name => document.getElementById(`try-${name}`);
const say = (name, text) => { part(name).textContent = text; };
const element = (name, text = "", properties = {}) => Object.assign(document.createElement(name), {textContent: text}, properties);

let runtime = null, model = null, clip = null, recorder = null, work = Promise.resolve();

// One thing after the other; what goes wrong is said in a sentence.
function next(doing, job) {
  work = work.then(async () => {
    say("error", "");
    say("status", doing);
    try {
      await job();
    } catch (error) {
      say("status", "");
      say("error", error.message);
    }
  });
}

// The runtime and the model

function loadRuntime() {
  if (location.protocol === "file:") {
    throw new Error("A page that was opened from a file may not load a model. Serve the site instead: python -m http.server -d _build/html, then open http://localhost:8000/try_it.html.");
  }
  return new Promise((resolve, reject) => {
    const script = element("script", "", {src: `${RUNTIME}ort.wasm.min.js`});
    script.onerror = () => reject(new Error("No model can run here: this site was built without onnxruntime-web. Install npm (it comes with Node.js), then run make docs again."));
    script.onload = () => {
      ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
      ort.env.wasm.proxy = true; // in a worker, so that the page answers meanwhile
      ort.env.wasm.wasmPaths = new URL(RUNTIME, location.href).href;
      resolve();
    };
    document.head.append(script);
  });
}

// Fields of a message in protocol buffers: its number and, of those that have a length, the bytes.
function* fieldsOf(bytes) {
  let at = 0;
  const number = () => {
    let value = 0, scale = 1, byte;
    do {
      byte = bytes[at++];
      value += (byte & 127) * scale;
      scale *= 128;
    } while (byte >= 128);
    return value;
  };
  while (at < bytes.length) {
    const key = number(), kind = key % 8, value = number();
    if (kind === 2) {
      yield [Math.floor(key / 8), bytes.subarray(at, at + value)];
      at += value;
    } else if (kind !== 0) return; // neither a number nor bytes: a model of ONNX has no such field
  }
}

// What stands in the metadata of an ONNX file, which are field 14: pairs of a key (1) and a value (2).
function metadataOf(bytes) {
  const text = new TextDecoder(), known = {};
  for (const [field, entry] of fieldsOf(bytes)) {
    if (field !== 14) continue;
    const {1: key, 2: value} = Object.fromEntries(fieldsOf(entry));
    known[text.decode(key)] = text.decode(value);
  }
  return known;
}

async function loadModel(name, bytes) {
  await runtime;
  const known = metadataOf(bytes);
  if (!known.classes) throw new Error(`${name} is not a model that acl_export wrote: acl_export RUN --onnx model.onnx.`);
  const classes = JSON.parse(known.classes);
  if (!classes.length) throw new Error(`${name} is an encoder without a classifier: train one on it, acl_probe FOLDER --run RUN, and export that.`);
  if (!known.timeline_hop) throw new Error(`${name} has no timeline: write it again, acl_export RUN --onnx model.onnx.`);
  let session;
  try {
    session = await ort.InferenceSession.create(bytes, {executionProviders: ["wasm"]});
  } catch (error) {
    throw new Error(`${name} cannot be run, perhaps it is damaged: ${error.message}`);
  }
  await model?.session.release();
  model = {
    session, classes,
    rate: Number(known.sample_rate),
    hopLength: Number(known.hop_length),
    patchFrames: Number(known.patch_frames),
    timelineHop: Number(known.timeline_hop),
    minDuration: Number(known.min_duration_s),
  };
  say("model", `${name}: ${classes.length} classes, ${model.rate.toLocaleString("en")} Hz.`);
}

async function fetched(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} is not there: it belongs to this site.`);
  return response.arrayBuffer();
}

// The clip

// How a sample is read from a WAV file, by its format (1: whole numbers, 3: floats) and bits
const READ = {
  "1/8": (view, at) => (view.getUint8(at) - 128) / 2 ** 7,
  "1/16": (view, at) => view.getInt16(at, true) / 2 ** 15,
  "1/24": (view, at) => (view.getUint16(at, true) + view.getInt8(at + 2) * 2 ** 16) / 2 ** 23,
  "1/32": (view, at) => view.getInt32(at, true) / 2 ** 31,
  "3/32": (view, at) => view.getFloat32(at, true),
  "3/64": (view, at) => view.getFloat64(at, true),
};

// Rate and samples of a WAV file as they stand there, channel by channel; null of any other file.
function readWav(name, buffer) {
  const view = new DataView(buffer);
  const word = at => String.fromCharCode(...new Uint8Array(buffer, at, 4));
  if (buffer.byteLength < 12 || word(0) !== "RIFF" || word(8) !== "WAVE") return null;
  let format;
  for (let at = 12; at + 8 <= buffer.byteLength;) {
    const kind = word(at), length = view.getUint32(at + 4, true), start = at + 8;
    if (kind === "data" && (length === 0 || length === 2 ** 32 - 1)) return null; // not stated
    if (start + length > buffer.byteLength) throw new Error(`${name} is cut short: it ends before its sound does.`);
    if (kind === "fmt ") {
      const tag = view.getUint16(start, true), bits = view.getUint16(start + 14, true);
      const kindOfSample = tag === 0xFFFE && length >= 26 ? view.getUint16(start + 24, true) : tag; // of an extensible one, further on
      format = {rate: view.getUint32(start + 4, true), channels: view.getUint16(start + 2, true), bytes: bits / 8, read: READ[`${kindOfSample}/${bits}`]};
    }
    if (kind === "data") {
      if (!format?.read || !format.channels) return null;
      const {rate, channels, bytes, read} = format, count = Math.floor(length / bytes / channels);
      const sample = (c, i) => read(view, start + (i * channels + c) * bytes);
      return {rate, channels: Array.from({length: channels}, (_, c) => new Float32Array(count).map((_, i) => sample(c, i)))};
    }
    at = start + length + length % 2;
  }
  throw new Error(`${name} is a WAV file without sound.`);
}

function meanOf(channels) {
  if (channels.length === 1) return channels[0];
  const mean = new Float32Array(channels[0].length);
  for (const samples of channels) samples.forEach((value, i) => { mean[i] += value / channels.length; });
  return mean;
}

// Samples of a file at the model's rate, and how they were read.
async function samplesOf({name, file}) {
  if (file.size > MOST_BYTES) throw new Error(`${name} is too large for this page: at most ${MOST_BYTES / 1e6} MB. acl_predict takes files of any size.`);
  const buffer = await file.arrayBuffer(), wav = readWav(name, buffer);
  const isExact = wav?.rate === model.rate;
  let channels = wav?.channels;
  if (!isExact) {
    try {
      const sound = await new OfflineAudioContext(1, 1, model.rate).decodeAudioData(buffer);
      channels = Array.from({length: sound.numberOfChannels}, (_, c) => sound.getChannelData(c));
    } catch {
      throw new Error(`${name} is not a sound that this browser can decode. WAV, MP3, Ogg and FLAC files usually are.`);
    }
  }
  const samples = meanOf(channels), seconds = samples.length / model.rate;
  if (!samples.length) throw new Error(`${name} holds no sound: it is 0 s long.`);
  if (!samples.every(Number.isFinite)) throw new Error(`${name} is damaged: not all of its samples are numbers.`);
  if (seconds > MOST_SECONDS) throw new Error(`${name} is too long for this page: ${Math.round(seconds)} s, of at most ${MOST_SECONDS} s. acl_predict --timeline takes any length.`);
  return {samples, seconds, how: isExact ? "Read sample by sample." : "Decoded by this browser, and resampled where its rate is another: see below."};
}

// What is heard

function isSilent(samples) {
  let low = Infinity, high = -Infinity;
  for (const value of samples) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return high - low < 2 * SILENT_BELOW;
}

async function hear() {
  if (!clip) return;
  if (!model) await loadModel("mini.onnx, which comes with this page", new Uint8Array(await fetched(MODEL)));
  const heard = await samplesOf(clip), {samples} = heard;
  clip.seconds = heard.seconds;
  const waveform = new ort.Tensor("float32", samples.slice(), [1, samples.length]);
  const outputs = await model.session.run({waveform});

  const times = Math.ceil(Math.round(model.minDuration * model.rate) / samples.length);
  heard.note = isSilent(samples) ? "silent" : times > MOST_TIMES ? "too short" : "";
  heard.whole = heard.note ? null : outputs.probabilities.data;
  heard.windows = windowsOf(heard, outputs.timeline);
  heard.frames = outputs.log_mel;
  show(heard);
}

// Probabilities of each patch of a timeline, and the stretch that it speaks for; null where it is silent.
function windowsOf({samples, seconds, note}, timeline) {
  const [, count, size] = timeline.dims, {hopLength, patchFrames, timelineHop} = model;
  const starts = Array.from({length: count}, (_, i) => i * timelineHop);
  const middles = starts.map(start => (start + patchFrames / 2) * hopLength / model.rate);
  const between = middles.slice(1).map((middle, i) => (middle + middles[i]) / 2);
  const edges = [0, ...between, seconds];
  return starts.map((start, i) => {
    const nothing = note || isSilent(samples.subarray(start * hopLength, (start + patchFrames) * hopLength));
    return {from: edges[i], to: edges[i + 1], probabilities: nothing ? null : timeline.data.subarray(i * size, (i + 1) * size)};
  });
}

// What is shown

function show(heard) {
  const order = model.classes.map((_, c) => c);
  const highest = order.map(c => Math.max(0, ...heard.windows.map(w => w.probabilities?.[c] ?? 0)));
  const drawn = order.filter(c => highest[c] >= DRAWN_FROM).sort((a, b) => highest[b] - highest[a]).slice(0, MOST_DRAWN);
  part("result").hidden = false;
  drawSpectrogram(heard);
  part("strips").replaceChildren(...drawn.map(c => strip(model.classes[c], c, heard)));
  part("axis").replaceChildren(...[0, 1, 2, 3, 4].map(i => element("span", `${Number((i * heard.seconds / 4).toFixed(2))} s`)));
  part("numbers").replaceChildren(...table(heard));
  say("status", `${clip.name}, ${heard.seconds.toFixed(2)} s: ${summary(heard)} ${heard.how}`);
}

function summary({whole, note, seconds}) {
  if (note === "silent") return "silent, so there is no answer.";
  if (note) return `too short for an answer, less than a tenth of ${model.minDuration} s.`;
  const best = whole.indexOf(Math.max(...whole));
  return `${model.classes[best]}, with a probability of ${whole[best].toFixed(2)}.`;
}

function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (COLOURS.length - 1), below = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[below].map((value, i) => value + (COLOURS[below + 1][i] - value) * (place - below));
}

// Frames from left to right, low bands at the bottom; a clip that was repeated is drawn once.
function drawSpectrogram({samples, seconds, frames}) {
  const canvas = part("spectrogram"), [, , bands] = frames.dims;
  const count = Math.min(frames.dims[1], 1 + Math.floor(samples.length / model.hopLength));
  const values = frames.data.subarray(0, count * bands), top = values.reduce((a, b) => Math.max(a, b));
  [canvas.width, canvas.height] = [count, bands];
  canvas.setAttribute("aria-label", `Log-mel spectrogram of ${clip.name}: ${seconds.toFixed(1)} s, ${bands} bands`);
  const image = new ImageData(count, bands);
  values.forEach((value, i) => {
    const column = Math.floor(i / bands), row = bands - 1 - i % bands;
    image.data.set([...colour(1 + (value - top) / DECADES), 255], 4 * (row * count + column));
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// The probability of a class along the clip, as bars of its height.
function strip(name, c, {windows, whole, seconds}) {
  const bars = element("div", "", {className: "try-bars"});
  for (const {from, to, probabilities} of windows) {
    const bar = element("span");
    Object.assign(bar.style, {left: `${100 * from / seconds}%`, width: `${100 * (to - from) / seconds}%`, height: `${100 * (probabilities?.[c] ?? 0)}%`});
    bars.append(bar);
  }
  const label = element("div", name, {className: "try-label"});
  label.append(element("span", `whole clip ${whole[c].toFixed(2)}`));
  const both = element("div");
  both.append(label, bars);
  return both;
}

function table({whole, windows, note}) {
  const row = (name, cells, kind = "td") => {
    const line = element("tr");
    line.append(element("th", name, {scope: "row"}), ...cells.map(text => element(kind, text, kind === "th" ? {scope: "col"} : {})));
    return line;
  };
  const cells = probabilities => model.classes.map((_, c) => probabilities ? probabilities[c].toFixed(4) : note || "silent");
  const head = element("thead"), body = element("tbody");
  head.append(row("probability", model.classes, "th"));
  body.append(row("whole clip", cells(whole)), ...windows.map(w => row(`${w.from.toFixed(3)} to ${w.to.toFixed(3)} s`, cells(w.probabilities))));
  return [head, body];
}

// What the reader does

function take(file, name = file.name) {
  if (name.endsWith(".onnx")) {
    next(`Loading ${name} …`, async () => {
      await loadModel(name, new Uint8Array(await file.arrayBuffer()));
      say("status", `${name} is loaded.`);
      await hear();
    });
    return;
  }
  next(`Listening to ${name} …`, async () => {
    await runtime;
    clip = {name, file};
    URL.revokeObjectURL(part("player").src);
    part("player").src = URL.createObjectURL(file);
    part("result").hidden = true;
    await hear();
  });
}

const REFUSED = {
  NotAllowedError: "The microphone may not be used: allow it for this page in the browser's settings.",
  NotFoundError: "There is no microphone.",
};

async function record() {
  if (recorder) return recorder.stop();
  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) {
    return say("error", "This browser cannot record here: it needs a page from https or from localhost.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({audio: {echoCancellation: false, noiseSuppression: false, autoGainControl: false}});
  } catch (error) {
    return say("error", REFUSED[error.name] ?? `The microphone cannot be used: ${error.message}`);
  }
  const pieces = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = event => pieces.push(event.data);
  const atMost = setTimeout(() => recorder?.stop(), 1000 * (MOST_SECONDS - 1));
  recorder.onstop = () => {
    clearTimeout(atMost);
    stream.getTracks().forEach(track => track.stop());
    take(new Blob(pieces, {type: recorder.mimeType}), "The recording");
    recorder = null;
    say("record", "Record");
  };
  recorder.start();
  say("error", "");
  say("status", "Recording …");
  say("record", "Stop");
}

for (const name of ["clip", "own"]) {
  part(name).addEventListener("change", event => {
    if (event.target.files.length) take(event.target.files[0]);
    event.target.value = ""; // the same file may be chosen again
  });
}
part("record").addEventListener("click", record);
part("example").addEventListener("click", () => fetched(EXAMPLE).then(sound => take(new Blob([sound]), "The example"), error => say("error", error.message)));
part("zone").addEventListener("dragover", event => event.preventDefault());
part("zone").addEventListener("drop", event => {
  event.preventDefault();
  for (const file of event.dataTransfer.files) take(file);
});

// A line at the place that is heard; a click goes to another one.
function follow() {
  const {currentTime, paused} = part("player");
  part("now").style.left = `${100 * Math.min(currentTime / clip.seconds || 0, 1)}%`;
  if (!paused) requestAnimationFrame(follow);
}
for (const event of ["play", "seeked", "loadedmetadata"]) part("player").addEventListener(event, follow);
part("time").addEventListener("click", event => {
  const {left, width} = part("time").getBoundingClientRect();
  part("player").currentTime = clip.seconds * (event.clientX - left) / width;
});

next("", () => runtime = new Promise(resolve => resolve(loadRuntime())));
