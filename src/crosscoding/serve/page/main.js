// The page: a model, what is known, and what follows from it while it changes.

import * as api from "./api.js";
import { showColumns, showPictures, showVerdict } from "./answer.js";
import { arraysOf, asColumns, columnsOf } from "./elements.js";
import { csv, npy, save } from "./files.js";
import { Form } from "./form.js";
import { fromText, hashOf, stateOf, toText } from "./link.js";
import { Painting, levelsOf, levelsOfFile } from "./painting.js";
import { drawDatum } from "./pictures.js";

const $ = (id) => document.getElementById(id);
const PAUSE = 120; // ms between two questions while one paints
const TYPING = 350; // ms without a keystroke before a form is read
const NUM_SHOWN = 8; // completions
const NUM_ROWS = 300; // draws of rows from which densities are drawn
const INKS = { white: "White", black: "Black", colour: "Colour", reveal: "Uncover", eraser: "Eraser" };

let models = [];
let model = null;
let sampleSeed = 0;
let running = null; // the AbortController of the question that is being answered
let timer = null;
let hasAnswer = false;

const painting = new Painting($("evidence"), { changed: () => { counted(); ask(0); }, painted: () => { counted(); ask(PAUSE); } });
const form = new Form($("form"), () => ask(TYPING));

// ---- the question

const isPicture = () => model.kind === "picture";

function question() {
  const asked = {
    model: model.name,
    seed: Math.max(0, Math.floor(Number($("seed").value) || 0)),
    purpose: $("purpose").value,
    encoding: "base64",
  };
  if (model.expensive) asked.num_draws = 400;
  if (model.given) asked.given = model.given.examples[0];
  if (isPicture()) {
    const outputs = ["mean", "std", "completions", "modes"];
    return { ...asked, values: api.packed(painting.values(), model.data_shape), outputs, draws: NUM_SHOWN };
  }
  const outputs = ["mean", "std", "interval", "probabilities"];
  if (model.kind === "table") return { ...asked, rows: [form.cells()], outputs, draws: NUM_ROWS };
  return { ...asked, ...arraysOf(model, form.cells()), outputs, draws: NUM_ROWS, encoding: "list" };
}

function ask(wait) {
  if (timer && wait === PAUSE) return; // a question is already due
  clearTimeout(timer);
  timer = setTimeout(() => { timer = null; answer(); }, wait);
}

async function answer() {
  remember();
  running?.abort();
  const own = (running = new AbortController());
  if (isPicture() && !painting.known) {
    nothing("Paint a few pixels, or uncover part of a picture. Completions appear as you go.");
    return;
  }
  busy(true, "Asking…");
  try {
    await api.condition({ ...question(), anytime: true }, own.signal, (name, content) => {
      if (own !== running) return;
      if (name === "progress") progress(content);
      else show(content);
    });
    if (own === running) busy(false);
  } catch (error) {
    if (own === running && error.name !== "AbortError") failed(error);
  }
}

// ---- states

function busy(is, words = "") {
  $("answer").setAttribute("aria-busy", String(is));
  $("results").dataset.stale = String(is && words === "Asking…");
  if (is) {
    $("status").textContent = words;
    $("problem").hidden = $("empty").hidden = true;
    $("results").hidden = !hasAnswer;
  } else $("bar").style.width = "";
}

function progress({ share, step }) {
  $("bar").style.width = `${Math.round(100 * share)}%`;
  const left = step.includes(", about ") ? step.slice(step.indexOf(", about ") + 2) : "";
  $("status").textContent = hasAnswer && $("results").dataset.stale === "false" ? `Refining… ${left}` : `Thinking… ${left}`;
}

function show(content) {
  const [found] = content.answers;
  hasAnswer = true;
  $("results").hidden = false;
  $("results").dataset.stale = "false";
  $("pictures").hidden = !isPicture();
  $("columns").hidden = isPicture();
  showVerdict(found, content.final);
  if (isPicture()) showPictures(found, model);
  else showColumns(model.kind === "table" ? found : asColumns(model, form.cells(), found), model.columns);
  $("status").textContent = content.final
    ? `Answered in ${content.seconds.toFixed(1)} s${content.stopped_early ? ", stopped at the time limit" : ""}`
    : "Refining…";
  $("get-draws").disabled = false;
}

function nothing(words) {
  busy(false);
  hasAnswer = false;
  $("status").textContent = "";
  $("results").hidden = $("problem").hidden = true;
  $("empty").hidden = false;
  $("empty").textContent = words;
  $("get-draws").disabled = true;
}

function failed(error) {
  busy(false);
  $("status").textContent = "";
  if (error.status === 401) {
    $("ask-token").hidden = false;
    $("token").focus();
    return;
  }
  $("results").hidden = $("empty").hidden = true; // what is shown answers another question
  hasAnswer = false;
  $("get-draws").disabled = true;
  $("problem").hidden = false;
  $("problem").textContent = error.message;
}

function counted() {
  if (!isPicture()) return;
  const all = painting.mask.length;
  $("count").textContent = `${painting.known} of ${all} pixels`;
  $("undo").disabled = !painting.before.length;
  $("redo").disabled = !painting.undone.length;
  $("clear").disabled = !painting.known;
}

// ---- models

const plural = (num, noun) => `${num} ${noun}${num === 1 ? "" : "s"}`;

async function choose(name, state = null) {
  model = models.find((each) => each.name === name) || models[0];
  $("model").value = model.name;
  const data = model.kind === "table" ? plural(model.columns.length, "column") : model.data_shape.join(" × ");
  $("about").textContent = `${plural(model.latent_dim, "latent dimension")}, ${data}`;
  $("painting").hidden = $("sources").hidden = !isPicture();
  $("form").hidden = isPicture();
  $("count").textContent = "";
  hasAnswer = false;
  $("seed").value = state?.seed ?? 0;
  $("purpose").value = state?.purpose ?? "density";
  if (isPicture()) {
    painting.start(model.data_shape, model.pixels);
    $("samples").replaceChildren();
    $("source-hint").textContent = "Choose one, then uncover what should be known.";
    inks();
    if (state?.mask) restore(state);
    counted();
    await showSamples();
  } else {
    model.columns ??= columnsOf(model.data_shape);
    form.start(model.columns, state?.cells);
  }
  ask(0);
}

function inks() {
  const isColour = painting.channels === 3 || !model.pixels.binary;
  const offered = ["white", "black", ...(isColour ? ["colour"] : []), "reveal", "eraser"];
  const legend = document.createElement("legend");
  legend.textContent = "Paint";
  $("inks").replaceChildren(legend, ...offered.map((ink) => {
    const label = document.createElement("label");
    const radio = label.appendChild(document.createElement("input"));
    Object.assign(radio, { type: "radio", name: "ink", value: ink, checked: ink === "white", disabled: ink === "reveal" });
    radio.addEventListener("change", () => { painting.ink = ink; });
    if (ink === "white" || ink === "black") {
      const swatch = label.appendChild(document.createElement("span"));
      swatch.className = "swatch";
      swatch.style.background = ink;
    }
    label.append(INKS[ink]);
    return label;
  }));
  painting.ink = "white";
  if (!isColour) return;
  const colour = document.createElement("input");
  Object.assign(colour, { type: "color", value: "#c08060", ariaLabel: "Colour to paint with" });
  const set = () => {
    painting.colour = [1, 3, 5].map((i) => parseInt(colour.value.slice(i, i + 2), 16));
    select("colour");
  };
  colour.addEventListener("input", set);
  document.querySelector('input[name="ink"][value="colour"]').parentElement.after(colour);
  painting.colour = [0xc0, 0x80, 0x60];
}

function select(ink) {
  const radio = document.querySelector(`input[name="ink"][value="${ink}"]`);
  radio.disabled = false;
  radio.checked = true;
  painting.ink = ink;
}

function uncover(levels) {
  painting.setSource(levels);
  select("reveal");
  $("source-hint").textContent = "Paint over it to uncover pixels, or choose a part:";
}

function putAway() {
  painting.setSource(null);
  select("white");
  document.querySelector('input[name="ink"][value="reveal"]').disabled = true;
  $("source-hint").textContent = "Choose one, then uncover what should be known.";
}

async function showSamples() {
  const own = model;
  const found = await api.samples(model.name, sampleSeed).catch(() => []);
  if (own !== model) return;
  const size = model.data_shape.reduce((a, b) => a * b, 1);
  $("samples").replaceChildren(...found.flatMap(({ where, values }) =>
    Array.from({ length: values.length / size }, (_, i) => {
      const datum = values.subarray(i * size, (i + 1) * size);
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-label", `Picture ${i + 1}, ${where}`);
      button.title = where;
      drawDatum(button.appendChild(document.createElement("canvas")), datum, model.data_shape, model.pixels);
      button.addEventListener("click", () => {
        const chosen = button.getAttribute("aria-pressed") === "false";
        for (const other of $("samples").children) other.setAttribute("aria-pressed", String(chosen && other === button));
        if (chosen) uncover(levelsOf(datum, model.pixels));
        else putAway();
      });
      return button;
    })));
}

function observePart(part) {
  const fraction = Number($("fraction").value) / 100;
  const chosen = {
    top: (row) => row < painting.height / 2,
    left: (_, column) => column < painting.width / 2,
    random: () => Math.random() < fraction,
  }[part];
  if (!painting.source) {
    $("source-hint").textContent = "Choose a picture first: its pixels are the ones to observe.";
    return;
  }
  select("reveal");
  painting.observe(chosen);
}

// ---- the address

async function remember() {
  const state = { model: model.name, seed: Number($("seed").value), purpose: $("purpose").value };
  if (isPicture()) {
    state.mask = toText(painting.mask);
    const size = painting.mask.length;
    state.levels = toText(painting.levels.map((level, i) => (painting.mask[i % size] ? level : 0)));
  } else state.cells = form.cells();
  history.replaceState(null, "", await hashOf(state));
}

function restore(state) {
  const [mask, levels] = [fromText(state.mask), fromText(state.levels)];
  if (mask.length !== painting.mask.length || levels.length !== painting.levels.length) return;
  painting.mask.set(mask);
  painting.levels.set(levels);
  painting.draw();
}

// ---- files

async function copyLink() {
  await remember();
  try {
    await navigator.clipboard.writeText(location.href);
    flash($("copy-link"), "Copied");
  } catch {
    flash($("copy-link"), "In the address bar");
  }
}

function flash(button, words) {
  const before = button.textContent;
  button.textContent = words;
  setTimeout(() => { button.textContent = before; }, 1500);
}

async function attempt(work) {
  try {
    await work();
  } catch (error) {
    failed(error);
  }
}

const getScript = () => attempt(async () => {
  save(`${model.name}.py`, await api.script(question()), "text/x-python");
});

const getDraws = () => attempt(async () => {
  const [button, asked] = [$("get-draws"), model]; // another model may be chosen before they arrive
  const words = button.textContent;
  button.disabled = true;
  button.textContent = "Drawing…";
  try {
    const num = isPicture() ? 64 : 1000;
    const { answers } = await api.complete({ ...question(), outputs: [], draws: num, encoding: "base64", alone: true });
    if (asked.kind === "table") save(`${asked.name}.csv`, csv(answers[0].draws, asked.columns.map(({ name }) => name)), "text/csv");
    else {
      const { values, shape } = api.unpacked(answers[0].draws);
      save(`${asked.name}.npy`, npy(values, shape), "application/octet-stream");
    }
  } finally {
    button.textContent = words;
    button.disabled = !hasAnswer;
  }
});

// ---- start

async function start() {
  try {
    models = await api.models();
  } catch (error) {
    failed(error);
    return;
  }
  $("ask-token").hidden = true;
  $("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  const state = await stateOf(location.hash);
  await choose(state?.model ?? models[0].name, state);
}

$("model").addEventListener("change", () => choose($("model").value));
$("undo").addEventListener("click", () => painting.undo());
$("redo").addEventListener("click", () => painting.redo());
$("clear").addEventListener("click", () => painting.clear());
$("size").addEventListener("input", () => {
  painting.size = Number($("size").value);
  $("size-shown").textContent = $("size").value;
});
for (const radio of document.querySelectorAll('input[name="shape"]'))
  radio.addEventListener("change", () => { painting.shape = radio.value; });
for (const button of document.querySelectorAll("[data-part]"))
  button.addEventListener("click", () => observePart(button.dataset.part));
$("upload").addEventListener("change", () => attempt(async () => {
  const [file] = $("upload").files;
  if (!file) return;
  try {
    uncover(await levelsOfFile(file, model.data_shape, model.pixels));
  } catch {
    throw new Error(`The browser cannot read ${file.name} as a picture.`);
  } finally {
    $("upload").value = "";
  }
}));
$("more-samples").addEventListener("click", () => { sampleSeed += 1; showSamples(); });
for (const id of ["seed", "purpose"]) $(id).addEventListener("change", () => ask(0));
$("copy-link").addEventListener("click", copyLink);
$("get-script").addEventListener("click", getScript);
$("get-draws").addEventListener("click", getDraws);
$("ask-token").addEventListener("submit", (event) => {
  event.preventDefault();
  api.setToken($("token").value);
  start();
});
document.addEventListener("keydown", (event) => {
  if (!model || !isPicture() || !(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
  if (event.target.matches("input[type=number], input[type=text], input[type=password]")) return;
  event.preventDefault();
  if (event.shiftKey) painting.redo();
  else painting.undo();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (model) { painting.draw(); ask(0); } });
window.addEventListener("hashchange", start); // a link that was pasted into this tab

start();
