// Shows an answer: the verdict in words, then pictures or the marginals of columns.

import { unpacked } from "./api.js";
import { isListed, short } from "./form.js";
import { drawDatum, drawSpread, figure } from "./pictures.js";

const $ = (id) => document.getElementById(id);
const MOST_BARS = 12;
const SVG = "http://www.w3.org/2000/svg";

const MEANINGS = {
  trusted: "You can rely on it: means, intervals, the shares of different answers, and log p(x).",
  approximate: "The answer is roughly right, but shares of different answers and log p(x) may be off.",
  unreliable: "Do not rely on it: likely answers may be missing. What is shown is the best found so far.",
  first: "A quick first answer, not checked yet. A better one follows.",
};
const PURPOSES = { mean: "means", interval: "90 % intervals", density: "log p(x) and shares" };

export function showVerdict({ verdict, log_evidence: evidence, log_evidence_error: error }, final) {
  const label = final ? verdict.label : "first";
  $("verdict").dataset.label = label;
  $("badge").textContent = { first: "First answer" }[label] || label[0].toUpperCase() + label.slice(1);
  $("meaning").textContent = meaning(verdict, label);
  const margin = error === null ? "" : ` ± ${Number(error.toPrecision(2))}`;
  const known = evidence === null ? "not estimated" : `${evidence.toFixed(2)}${margin} nats`;
  const rows = [["log p(x)", known.replace("-", "−")]];
  if (final && !isAllTrusted(verdict)) for (const [purpose, words] of Object.entries(PURPOSES)) rows.push([words, verdict.purposes[purpose]]);
  $("figures").replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement("div");
    row.appendChild(document.createElement("dt")).textContent = name;
    row.appendChild(document.createElement("dd")).textContent = value;
    return row;
  }));
  $("why").hidden = !final;
  $("reasons").replaceChildren(...verdict.reasons.map((reason) => {
    const item = document.createElement("li");
    item.textContent = reason;
    return item;
  }));
  $("advice").textContent = verdict.advice ? `Next step: ${verdict.advice}.` : "";
}

const isAllTrusted = ({ purposes }) => Object.values(purposes).every((label) => label === "trusted");

// What the answer is good for. The label is for the purpose asked for; other purposes may differ.
function meaning(verdict, label) {
  const [fine, poor] = [true, false].map((is) => Object.keys(PURPOSES)
    .filter((purpose) => (verdict.purposes[purpose] === "trusted") === is).map((purpose) => PURPOSES[purpose]));
  if (label === "first" || !fine.length || !poor.length) return MEANINGS[label];
  return `You can rely on ${fine.join(" and ")}, but not on ${poor.join(" and ")}.`;
}

// ---- pictures

export function showPictures(answer, model) {
  const { data_shape: shape, pixels } = model;
  drawDatum($("mean"), unpacked(answer.mean).values, shape, pixels);
  drawSpread($("std"), unpacked(answer.std).values, shape, pixels);
  const size = shape.reduce((product, n) => product * n, 1);
  const all = unpacked(answer.completions).values;
  const completions = Array.from({ length: all.length / size }, (_, i) => all.subarray(i * size, (i + 1) * size));
  $("draws").replaceChildren(...completions.map((values, i) => figure(values, shape, pixels, "", `Completion ${i + 1}`)));
  const modes = answer.modes || [];
  $("modes-box").hidden = modes.length < 2;
  $("modes").replaceChildren(...modes.map(({ share, mean }) => {
    const words = `${Math.round(100 * share)} %`;
    return figure(unpacked(mean).values, shape, pixels, words, `An answer with a share of ${words}`);
  }));
}

// ---- columns

export function showColumns(answer, columns) {
  const found = columns.filter(({ name }) => !answer.columns[name].known);
  $("columns").replaceChildren(...found.map((column) => marginal(column, answer)));
}

function marginal(column, answer) {
  const about = answer.columns[column.name];
  const box = document.createElement("article");
  box.className = "marginal";
  box.appendChild(document.createElement("h3")).textContent = column.name;
  if (isListed(column)) {
    box.append(bars(about.probabilities));
    return box;
  }
  const words = box.appendChild(document.createElement("p"));
  if (column.kind === "date") words.textContent = `${about.low?.slice(0, 10)} to ${about.high?.slice(0, 10)}`;
  else words.textContent = `${short(about.mean)}, between ${short(about.low)} and ${short(about.high)}`;
  const caption = box.appendChild(document.createElement("p"));
  caption.className = "muted";
  caption.textContent = column.kind === "date" ? "90 % interval" : "mean and 90 % interval";
  const read = (cell) => (column.kind === "date" ? Date.parse(cell) : cell);
  const draws = answer.draws.map((row) => read(row[column.name])).filter(Number.isFinite);
  if (column.kind === "count" && new Set(draws).size <= MOST_BARS) box.insertBefore(bars(shares(draws)), words);
  else if (draws.length) box.insertBefore(density(draws, [read(about.low), read(about.high)], column.name), words);
  return box;
}

// How often each number was drawn, in order.
function shares(draws) {
  const values = [...new Set(draws)].sort((a, b) => a - b);
  return values.map((value) => ({ value, probability: draws.filter((x) => x === value).length / draws.length }));
}

// A bar for each value, in order; if there are too many, for the likeliest and for all others.
function bars(probabilities) {
  const box = document.createElement("div");
  box.className = "bars";
  const likeliest = new Set([...probabilities].sort((a, b) => b.probability - a.probability).slice(0, MOST_BARS));
  const others = probabilities.filter((each) => !likeliest.has(each));
  const shown = probabilities.filter((each) => likeliest.has(each));
  if (others.length) {
    const rest = others.reduce((sum, { probability }) => sum + probability, 0);
    shown.push({ value: `${others.length} other${others.length > 1 ? "s" : ""}`, probability: rest });
  }
  for (const { value, probability } of shown) {
    const name = box.appendChild(document.createElement("span"));
    name.textContent = value;
    const bar = box.appendChild(document.createElement("span"));
    bar.className = "bar";
    bar.appendChild(document.createElement("i")).style.width = `${100 * probability}%`;
    box.appendChild(document.createElement("span")).textContent = `${(100 * probability).toFixed(1)} %`;
  }
  return box;
}

// A smooth density of draws, with the interval filled in.
function density(draws, [low, high], name) {
  const sorted = Float64Array.from(draws).sort();
  const [least, most] = [sorted[0], sorted.at(-1)];
  const mean = draws.reduce((sum, x) => sum + x, 0) / draws.length;
  const spread = Math.sqrt(draws.reduce((sum, x) => sum + (x - mean) ** 2, 0) / draws.length) || 1;
  const width = 0.9 * spread * draws.length ** -0.2;
  const [from, to] = [least - width, most + width];
  const points = Array.from({ length: 121 }, (_, i) => {
    const x = from + ((to - from) * i) / 120;
    return [x, draws.reduce((sum, draw) => sum + Math.exp(-0.5 * ((x - draw) / width) ** 2), 0)];
  });
  const top = Math.max(...points.map(([, y]) => y));
  const place = ([x, y]) => `${((100 * (x - from)) / (to - from)).toFixed(2)},${(40 - (38 * y) / top).toFixed(2)}`;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Density of ${name}`);
  const path = (name, text) => {
    const made = svg.appendChild(document.createElementNS(SVG, "path"));
    made.setAttribute("class", name);
    made.setAttribute("d", text);
  };
  const ends = [place([from, 0]), place([to, 0])];
  path("area", `M${ends[0]}L${points.map(place).join("L")}L${ends[1]}`);
  const inside = points.filter(([x]) => x >= low && x <= high);
  if (inside.length > 1)
    path("inside", `M${place([inside[0][0], 0])}L${inside.map(place).join("L")}L${place([inside.at(-1)[0], 0])}Z`);
  path("axis", "M0,40L100,40");
  return svg;
}
