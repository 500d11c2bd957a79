// The picture to paint on: levels from 0 to 255, which pixels are known, and earlier states.

import { colourOf, layout } from "./pictures.js";

const MOST_UNDONE = 100;
const CELL = 6; // canvas pixels across a picture's pixel, so that unknown ones can be dotted

export class Painting {
  // changed() is called after each stroke, painted() while one is painted.
  constructor(canvas, { changed, painted }) {
    this.canvas = canvas;
    this.changed = changed;
    this.painted = painted;
    this.ink = "white";
    this.shape = "brush";
    this.size = 2;
    this.colour = [255, 0, 0];
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.lift());
    canvas.addEventListener("keydown", (event) => this.type(event));
    canvas.addEventListener("blur", () => { this.cursor = null; this.draw(); });
    canvas.addEventListener("focus", () => this.draw());
  }

  start(shape, pixels) {
    Object.assign(this, layout(shape), { pixels, dataShape: shape, source: null, undone: [], before: [] });
    this.levels = new Uint8Array(this.channels * this.height * this.width);
    this.mask = new Uint8Array(this.height * this.width);
    this.canvas.width = this.width * CELL;
    this.canvas.height = this.height * CELL;
    this.draw();
  }

  get known() {
    return this.mask.reduce((sum, known) => sum + known, 0);
  }

  // The datum with NaN where nothing is known.
  values() {
    const size = this.mask.length;
    const { low, high } = this.pixels;
    return Float32Array.from(this.levels, (level, i) =>
      this.mask[i % size] ? low + ((high - low) * level) / 255 : NaN);
  }

  setSource(levels) {
    this.source = levels;
    this.draw();
  }

  // ---- strokes

  keep() {
    this.before.push([this.levels.slice(), this.mask.slice()]);
    if (this.before.length > MOST_UNDONE) this.before.shift();
    this.undone = [];
  }

  undo() { this.swap(this.before, this.undone); }

  redo() { this.swap(this.undone, this.before); }

  swap(from, to) {
    if (!from.length) return;
    to.push([this.levels, this.mask]);
    [this.levels, this.mask] = from.pop();
    this.draw();
    this.changed();
  }

  clear() {
    this.keep();
    this.mask.fill(0);
    this.draw();
    this.changed();
  }

  // Paints the pixels for which chosen(row, column) is true with the current ink.
  observe(chosen) {
    this.keep();
    for (let row = 0; row < this.height; row++)
      for (let column = 0; column < this.width; column++) if (chosen(row, column)) this.dab(row, column);
    this.draw();
    this.changed();
  }

  dab(row, column) {
    if (row < 0 || column < 0 || row >= this.height || column >= this.width) return;
    const place = row * this.width + column;
    const size = this.mask.length;
    this.mask[place] = this.ink === "eraser" ? 0 : 1;
    for (let c = 0; c < this.channels; c++)
      this.levels[place + size * c] = {
        white: () => 255,
        black: () => 0,
        reveal: () => this.source[place + size * c],
        colour: () => (this.channels === 3 ? this.colour[c] : this.colour[0]),
        eraser: () => 0,
      }[this.ink]();
  }

  // A disc, as round as so few pixels can be.
  stamp(row, column) {
    const before = Math.floor((this.size - 1) / 2);
    const most = 0.85 * (this.size / 2) ** 2;
    const middle = (this.size - 1) / 2;
    for (let r = 0; r < this.size; r++)
      for (let c = 0; c < this.size; c++)
        if ((r - middle) ** 2 + (c - middle) ** 2 <= most) this.dab(row - before + r, column - before + c);
  }

  line([r0, c0], [r1, c1]) {
    const steps = Math.max(Math.abs(r1 - r0), Math.abs(c1 - c0), 1);
    for (let i = 0; i <= steps; i++)
      this.stamp(Math.round(r0 + ((r1 - r0) * i) / steps), Math.round(c0 + ((c1 - c0) * i) / steps));
  }

  rectangle([r0, c0], [r1, c1]) {
    for (let r = Math.min(r0, r1); r <= Math.max(r0, r1); r++)
      for (let c = Math.min(c0, c1); c <= Math.max(c0, c1); c++) this.dab(r, c);
  }

  // ---- pointer

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const clamp = (value, most) => Math.max(0, Math.min(most - 1, Math.floor(value)));
    return [
      clamp(((event.clientY - box.top) / box.height) * this.height, this.height),
      clamp(((event.clientX - box.left) / box.width) * this.width, this.width),
    ];
  }

  press(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.keep();
    this.corner = this.last = this.at(event);
    this.go(this.last);
  }

  move(event) {
    if (!this.last) return;
    for (const each of event.getCoalescedEvents?.() || [event]) this.go(this.at(each));
  }

  go(place) {
    if (this.shape === "rectangle") {
      const [levels, mask] = this.before.at(-1);
      this.levels.set(levels);
      this.mask.set(mask);
      this.rectangle(this.corner, place);
    } else this.line(this.last, place);
    this.last = place;
    this.draw();
    this.painted();
  }

  lift() {
    if (!this.last) return;
    this.last = this.corner = null;
    this.changed();
  }

  // ---- keyboard

  type(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    this.cursor ??= [this.height >> 1, this.width >> 1];
    if (event.key in steps) {
      const [down, right] = steps[event.key];
      const [row, column] = this.cursor;
      this.cursor = [
        Math.max(0, Math.min(this.height - 1, row + down)),
        Math.max(0, Math.min(this.width - 1, column + right)),
      ];
    } else if (event.key === " " || event.key === "Enter") {
      if (this.shape === "rectangle" && !this.fixed) this.fixed = this.cursor;
      else {
        this.keep();
        if (this.shape === "rectangle") this.rectangle(this.fixed, this.cursor);
        else this.stamp(...this.cursor);
        this.fixed = null;
        this.changed();
      }
    } else return;
    event.preventDefault();
    this.draw();
  }

  // ---- drawing

  draw() {
    if (!this.mask) return;
    const context = this.canvas.getContext("2d");
    const size = this.mask.length;
    const [unknown, dot, accent] = ["--unknown", "--dot", "--accent"].map(colourOf);
    context.fillStyle = `rgb(${unknown})`;
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    const shade = (levels, place) => [0, 1, 2].map((c) => levels[place + size * (this.channels === 3 ? c : 0)]);
    for (let place = 0; place < size; place++) {
      const [x, y] = [(place % this.width) * CELL, Math.floor(place / this.width) * CELL];
      if (this.mask[place]) {
        context.fillStyle = `rgb(${shade(this.levels, place)})`;
        context.fillRect(x, y, CELL, CELL);
      } else {
        if (this.source) {
          context.fillStyle = `rgba(${shade(this.source, place)}, 0.28)`;
          context.fillRect(x, y, CELL, CELL);
        }
        if (!this.source || this.width <= 32) {
          context.fillStyle = `rgb(${dot})`;
          context.fillRect(x + CELL / 2 - 1, y + CELL / 2 - 1, 1, 1);
        }
      }
    }
    if (this.cursor) {
      context.strokeStyle = `rgb(${accent})`;
      context.lineWidth = 2;
      const [row, column] = this.cursor;
      const [r, c] = this.fixed || this.cursor;
      const [top, left] = [Math.min(row, r), Math.min(column, c)];
      context.strokeRect(left * CELL, top * CELL, (Math.abs(column - c) + 1) * CELL, (Math.abs(row - r) + 1) * CELL);
    }
  }
}

// The levels of a datum: its values from 0 to 255.
export function levelsOf(values, { low, high }) {
  return Uint8Array.from(values, (value) => Math.max(0, Math.min(255, Math.round((255 * (value - low)) / (high - low)))));
}

// The levels of a picture file, fitted into the data's size.
export async function levelsOfFile(file, shape, pixels) {
  const { height, width, channels } = layout(shape);
  const bitmap = await createImageBitmap(file);
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  const side = Math.min(bitmap.width / width, bitmap.height / height);
  const [w, h] = [width * side, height * side];
  context.drawImage(bitmap, (bitmap.width - w) / 2, (bitmap.height - h) / 2, w, h, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const size = width * height;
  const levels = new Uint8Array(channels * size);
  for (let place = 0; place < size; place++) {
    const [red, green, blue] = data.subarray(4 * place, 4 * place + 3);
    const grey = 0.299 * red + 0.587 * green + 0.114 * blue;
    if (channels === 3) [red, green, blue].forEach((level, c) => { levels[place + size * c] = level; });
    else levels[place] = pixels.binary ? (grey > 127 ? 255 : 0) : grey;
  }
  return levels;
}
