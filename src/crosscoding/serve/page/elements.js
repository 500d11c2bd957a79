// Elements of data without a table, shown in the form as if they were columns.

export function columnsOf(shape) {
  const num = shape.reduce((a, b) => a * b, 1);
  return Array.from({ length: num }, (_, i) => ({ name: `element ${i}`, kind: "number" }));
}

// The cells of elements without a table as arrays.
export function arraysOf(model, cells) {
  const names = model.columns.map(({ name }) => name);
  const of = (pick) => nested(names.map((name) => (name in cells ? pick(cells[name]) : null)), model.data_shape);
  const isBetween = (cell) => typeof cell === "object";
  const found = { values: of((cell) => (isBetween(cell) ? null : cell)) };
  if (Object.values(cells).some(isBetween)) {
    found.low = of((cell) => (isBetween(cell) ? cell.low : null));
    found.high = of((cell) => (isBetween(cell) ? cell.high : null));
  }
  return found;
}

function nested(flat, shape) {
  if (shape.length < 2) return flat;
  const size = flat.length / shape[0];
  return Array.from({ length: shape[0] }, (_, i) => nested(flat.slice(i * size, (i + 1) * size), shape.slice(1)));
}

// The answer about elements without a table, as if they were columns.
export function asColumns(model, cells, found) {
  const flat = (array) => array.flat(Infinity);
  const [mean, low, high] = [found.mean, found.interval.low, found.interval.high].map(flat);
  const columns = {};
  model.columns.forEach(({ name }, i) => {
    const known = name in cells && typeof cells[name] !== "object";
    columns[name] = { known, mean: mean[i], low: low[i], high: high[i] };
  });
  const draws = found.draws.map((draw) => Object.fromEntries(flat(draw).map((x, i) => [model.columns[i].name, x])));
  return { columns, draws };
}
