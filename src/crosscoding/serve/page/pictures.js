// Draws arrays of numbers as pictures.

export function layout(shape) {
  const [height, width] = shape.slice(-2);
  return { height, width, channels: shape.length === 3 ? shape[0] : 1 };
}

function put(canvas, width, height, colour) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  for (let place = 0; place < width * height; place++) {
    const [red, green, blue] = colour(place);
    picture.data.set([red, green, blue, 255], 4 * place);
  }
  context.putImageData(picture, 0, 0);
}

// A datum, from black at pixels.low to white at pixels.high.
export function drawDatum(canvas, values, shape, pixels) {
  const { height, width, channels } = layout(shape);
  const size = height * width;
  const level = (value) => Math.round((255 * (value - pixels.low)) / (pixels.high - pixels.low));
  put(canvas, width, height, (place) =>
    [0, 1, 2].map((c) => level(values[place + size * (channels === 3 ? c : 0)])));
}

// Standard deviations, from the background colour (0) to the accent (half the data's range).
export function drawSpread(canvas, values, shape, pixels) {
  const { height, width, channels } = layout(shape);
  const size = height * width;
  const [from, to] = [colourOf("--sunk"), colourOf("--accent")];
  const most = (pixels.high - pixels.low) / 2;
  put(canvas, width, height, (place) => {
    let spread = 0;
    for (let c = 0; c < channels; c++) spread = Math.max(spread, values[place + size * c]);
    const share = Math.min(spread / most, 1);
    return from.map((low, i) => low + share * (to[i] - low));
  });
}

export function colourOf(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
}

export function figure(values, shape, pixels, caption, label) {
  const figure = document.createElement("figure");
  const frame = figure.appendChild(document.createElement("div"));
  frame.className = "frame";
  const canvas = frame.appendChild(document.createElement("canvas"));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  drawDatum(canvas, values, shape, pixels);
  if (caption) figure.appendChild(document.createElement("figcaption")).textContent = caption;
  return figure;
}
