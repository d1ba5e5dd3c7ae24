// Listens to a recording in this browser as SerPipeline does in Python: windows, silence, voices and averages are alike.

import { cutWindows } from "./windows.mjs";

const MAX_FILE_BYTES = 100e6; // it is decoded whole, into memory

const byId = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)} %`;
let ort, session, detector, about;
let newest = 0; // an answer that is overtaken by a newer recording is not shown

class Refusal extends Error {} // what is wrong, in one sentence for the visitor

async function load() {
  ort = await import("./assets/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("./assets/", import.meta.url).href;
  ort.env.wasm.numThreads = 1; // more need headers that a server of plain files does not send
  about = await (await fetch("./assets/model.json")).json();
  if (!about.min_rest_s) throw new Error("The model is of an older version of this page.");
  session = await ort.InferenceSession.create("./assets/model.onnx");
  if (about.voice) detector = await ort.InferenceSession.create("./assets/voice.onnx");
}

function isSilent(waveform) {
  const inner = waveform.length > 2 * about.edge_size ? waveform.subarray(about.edge_size, -about.edge_size) : waveform;
  const range = inner.reduce((high, x) => Math.max(high, x)) - inner.reduce((low, x) => Math.min(low, x));
  return range < 2 * about.silence_peak;
}

// By straight lines between samples, which is enough to find a voice.
function resample(waveform, factor) {
  const resampled = new Float32Array(Math.floor(waveform.length * factor));
  return resampled.map((_, i) => {
    const before = Math.floor(i / factor);
    const after = Math.min(before + 1, waveform.length - 1);
    return waveform[before] + (i / factor - before) * (waveform[after] - waveform[before]);
  });
}

// Whether there is a voice, spoken, sung or screamed, as `has_voice` in ser_model/voice.py tells it, but for the look at
// the loudest part with which that begins, to save time.
async function hasVoice(window) {
  const settings = about.voice;
  if (!settings || window.length < settings.min_duration_s * about.sampling_rate) return true;
  const sound = settings.sampling_rate === about.sampling_rate ? window : resample(window, settings.sampling_rate / about.sampling_rate);
  const mean = sound.reduce((sum, x) => sum + x, 0) / sound.length;
  const centred = sound.map((x) => x - mean);
  if (isSteady(centred)) return false;
  const peak = centred.reduce((high, x) => Math.max(high, Math.abs(x)), 0);
  const loud = centred.map((x) => x / peak);
  const enough = Math.min(settings.enough_s, (settings.enough_share * sound.length) / settings.sampling_rate);
  if ((await voiceSeconds(loud)) >= enough) return true;
  return (await voiceSeconds(resample(loud, settings.slower))) >= settings.slower * enough; // a scream
}

function isSteady(waveform) {
  const size = about.voice.chunk_size;
  let [least, most] = [Infinity, 0];
  for (let start = 0; start + size <= waveform.length; start += size) {
    const energy = waveform.subarray(start, start + size).reduce((sum, x) => sum + x * x, 0);
    [least, most] = [Math.min(least, energy), Math.max(most, energy)];
  }
  return most <= 10 ** (about.voice.steady_db / 10) * least;
}

async function voiceSeconds(waveform) {
  const { chunk_size: size, context_size: context, sampling_rate: rate, threshold } = about.voice;
  const count = Math.ceil(waveform.length / size);
  const padded = new Float32Array(context + count * size);
  padded.set(waveform, context);
  const chunks = new Float32Array(count * (context + size));
  for (let i = 0; i < count; i++) chunks.set(padded.subarray(i * size, (i + 1) * size + context), i * (context + size));
  const { probabilities } = await detector.run({ chunks: new ort.Tensor("float32", chunks, [count, context + size]) });
  return (probabilities.data.filter((probability) => probability >= threshold).length * size) / rate;
}

async function score(waveform) {
  const feeds = {
    waveform: new ort.Tensor("float32", waveform, [1, waveform.length]),
    lengths: new ort.Tensor("int64", [BigInt(waveform.length)], [1]),
  };
  return (await session.run(feeds)).probabilities.data;
}

// The windows' mean probabilities, weighted by their length, and whether there was any sound; null if no window has a voice.
async function hear(waveform, onWindow) {
  const sums = new Float64Array(about.labels.length);
  let [heard, read, hasSound] = [0, 0, false];
  for (const window of cutWindows(waveform, about)) {
    const sounds = !isSilent(window);
    hasSound ||= sounds;
    if (sounds && (await hasVoice(window))) {
      (await score(window)).forEach((probability, i) => (sums[i] += probability * window.length));
      heard += window.length;
    }
    read += window.length;
    onWindow(read / waveform.length);
    await new Promise((resolve) => setTimeout(resolve)); // the page stays alive under a long recording
  }
  return { probabilities: heard ? sums.map((sum) => sum / heard) : null, hasSound };
}

// Any recording that the browser can decode -> mono, at the network's rate.
async function decode(blob, name) {
  if (blob.size > MAX_FILE_BYTES) throw new Refusal(`${name} is too large: 100 MB at most.`);
  let sound;
  try {
    sound = await new OfflineAudioContext(1, 1, about.sampling_rate).decodeAudioData(await blob.arrayBuffer());
  } catch {
    throw new Refusal(`${name} is not a recording that this browser can read.`);
  }
  if (sound.duration < about.min_duration_s) {
    throw new Refusal(`${name} is too short: it needs at least ${1000 * about.min_duration_s} ms of sound.`);
  }
  const mono = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    sound.getChannelData(channel).forEach((sample, i) => (mono[i] += sample / sound.numberOfChannels));
  }
  if (!mono.every(Number.isFinite)) throw new Refusal(`${name} contains NaN or infinite samples: export it again.`);
  return mono;
}

async function listen(blob, name) {
  const turn = ++newest;
  play(null);
  show("Listening", "");
  try {
    const waveform = await decode(blob, name);
    const { probabilities, hasSound } = await hear(waveform, (share) => turn === newest && say("Listening", percent(share)));
    if (turn !== newest) return;
    play(blob);
    if (probabilities) showAnswer(probabilities);
    else show("No speech heard", hasSound ? "There is no voice in it." : "It is silent.");
  } catch (error) {
    if (turn === newest) show("Nothing heard", error instanceof Refusal ? error.message : `It could not be scored: ${error.message}`);
  }
}

function play(blob) {
  const player = byId("player");
  URL.revokeObjectURL(player.src);
  player.removeAttribute("src");
  if (blob) player.src = URL.createObjectURL(blob);
  player.hidden = !blob;
}

function showAnswer(probabilities) {
  const best = probabilities.indexOf(Math.max(...probabilities));
  const label = about.labels[best];
  if (probabilities[best] < about.unsure_below) {
    say("Unsure", `Best guess: ${label}, ${percent(probabilities[best])} (below ${percent(about.unsure_below)} it is only a guess)`);
  } else {
    say(label[0].toUpperCase() + label.slice(1), `Confidence ${percent(probabilities[best])}`);
  }
  showBars(probabilities);
}

function show(answer, below) {
  say(answer, below);
  showBars(null);
}

function say(answer, below) {
  byId("answer").textContent = answer;
  byId("below").textContent = below;
}

function showBars(probabilities) {
  byId("bars").replaceChildren(
    ...about.labels.map((label, i) => {
      const row = document.createElement("tr");
      row.innerHTML = '<th scope="row"></th><td><div class="track"><div></div></div></td><td class="number"></td>';
      const [name, bar, number] = row.children;
      name.textContent = label;
      bar.querySelector(".track div").style.width = percent(probabilities?.[i] ?? 0).replace(" ", "");
      number.textContent = probabilities ? percent(probabilities[i]) : "–";
      if (probabilities) row.dataset.probability = probabilities[i];
      return row;
    }),
  );
}

let recorder = null;

async function record() {
  const button = byId("record");
  if (recorder) {
    recorder.stop();
    recorder = null;
    return;
  }
  button.disabled = true; // while the browser asks
  try {
    // Its own clean-up would change how a voice sounds.
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    startRecording(await navigator.mediaDevices.getUserMedia({ audio }));
  } catch {
    show("Nothing heard", "This page may not use the microphone: allow it in the browser, or choose a file.");
  }
  button.disabled = false;
}

function startRecording(microphone) {
  const pieces = [];
  const start = performance.now();
  const tell = () => (byId("record").textContent = `Stop (${Math.floor((performance.now() - start) / 1000)} s)`);
  const clock = setInterval(tell, 250);
  recorder = new MediaRecorder(microphone);
  recorder.ondataavailable = ({ data }) => pieces.push(data);
  recorder.onstop = () => {
    clearInterval(clock);
    microphone.getTracks().forEach((track) => track.stop());
    byId("record").textContent = "Record";
    listen(new Blob(pieces, { type: pieces[0]?.type }), "The recording");
  };
  recorder.start();
  tell();
}

function takeFile(file) {
  if (file) listen(file, file.name);
}

function acceptInput() {
  byId("record").onclick = record;
  byId("file").onchange = ({ target }) => {
    takeFile(target.files[0]);
    target.value = ""; // the same file may be chosen again
  };
  document.ondragover = (event) => {
    event.preventDefault();
    document.body.classList.add("dragged");
  };
  document.ondragleave = () => document.body.classList.remove("dragged");
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("dragged");
    takeFile(event.dataTransfer.files[0]);
  };
  for (const id of ["record", "file"]) byId(id).disabled = false;
}

try {
  await load();
  if (about.uar) {
    const outOf100 = (share) => (100 * share).toFixed(0);
    const noisy = about.uar_in_noise ? `, and ${outOf100(about.uar_in_noise)} times amid loud noise` : "";
    const elsewhere = about.elsewhere
      ? `On a collection of recordings that it has never heard, it is right ${outOf100(about.elsewhere.uar)} times out of ` +
        `100 (chance: ${outOf100(1 / about.elsewhere.num_emotions)}). `
      : "";
    byId("quality").textContent =
      elsewhere +
      `With actors it has never heard, it is right ${outOf100(about.uar)} times out of 100 in a quiet studio${noisy}, ` +
      `averaged over the emotions (chance: ${(100 / about.labels.length).toFixed(1)}).`;
  }
  show("Nothing heard yet", "Record a few seconds of speech, or choose a file.");
  acceptInput();
} catch (error) {
  say("It did not load", `Run python -m web.assets, then load this page again. (${error.message})`);
}
