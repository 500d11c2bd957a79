// The form of a table's columns: each is asked for, known, between bounds, or one of several.

const MODES = { none: "Asked for", value: "Is", between: "Between", one_of: "One of" };

export const isListed = (column) => "categories" in column;

function modesOf(column) {
  if (column.kind === "class" || column.kind === "boolean") return ["none", "value", "one_of"];
  if (column.kind === "ordinal") return ["none", "value", "between", "one_of"];
  return ["none", "value", "between"];
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export class Form {
  constructor(root, changed) {
    this.root = root;
    this.changed = changed;
    root.addEventListener("submit", (event) => event.preventDefault());
  }

  start(columns, cells = {}) {
    this.columns = columns;
    this.root.replaceChildren(...columns.map((column) => this.row(column, cells[column.name] ?? null)));
  }

  row(column, cell) {
    const select = element("select", { "aria-label": `${column.name}: what is known` });
    for (const mode of modesOf(column)) select.append(element("option", { value: mode }, MODES[mode]));
    const inputs = element("div", { class: "inputs" });
    const name = element("div", { class: "name" }, column.name, element("small", {}, hint(column)));
    const row = element("div", { class: "column" }, name, select, inputs);
    row.column = column;
    const between = cell && typeof cell === "object" && ("low" in cell || "high" in cell);
    const oneOf = cell && typeof cell === "object" && "one_of" in cell;
    select.value = cell === null ? "none" : between ? "between" : oneOf ? "one_of" : "value";
    select.addEventListener("change", () => {
      this.fill(row, select.value, null);
      this.changed();
    });
    this.fill(row, select.value, cell);
    return row;
  }

  fill(row, mode, cell) {
    const { column } = row;
    const inputs = row.querySelector(".inputs");
    inputs.replaceChildren();
    if (mode === "value") inputs.append(this.input(column, cell, column.name));
    if (mode === "between") {
      inputs.append(
        this.input(column, cell?.low ?? null, `${column.name}: at least`, true),
        "to",
        this.input(column, cell?.high ?? null, `${column.name}: at most`, true),
      );
    }
    if (mode === "one_of") {
      const chosen = cell?.one_of ?? column.categories;
      const boxes = column.categories.map((category) => {
        const box = element("input", { type: "checkbox", checked: chosen.includes(category) });
        box.category = category;
        box.addEventListener("change", () => this.changed());
        return element("label", {}, box, String(category));
      });
      inputs.append(element("div", { class: "choices", role: "group", "aria-label": `${column.name}: one of` }, ...boxes));
    }
  }

  input(column, value, label, open = false) {
    let made;
    if (isListed(column)) {
      made = element("select", { "aria-label": label });
      if (open) made.append(element("option", { value: "" }, "any"));
      column.categories.forEach((category, place) => made.append(element("option", { value: String(place) }, String(category))));
      const place = column.categories.indexOf(value);
      if (place >= 0) made.value = String(place);
    } else {
      const type = column.kind === "date" ? "text" : "number";
      made = element("input", { type, "aria-label": label });
      if (type === "number") made.step = column.kind === "count" ? 1 : "any";
      if (type === "text") made.placeholder = "2020-12-31";
      made.value = value ?? "";
    }
    made.addEventListener(isListed(column) ? "change" : "input", () => this.changed());
    return made;
  }

  // The cells by column; those asked for are left out.
  cells() {
    const found = {};
    for (const row of this.root.children) {
      const mode = row.querySelector("select").value;
      const fields = [...row.querySelectorAll(".inputs input, .inputs select")];
      if (mode === "one_of") {
        const members = fields.filter((box) => box.checked).map((box) => box.category);
        if (members.length < row.column.categories.length) found[row.column.name] = { one_of: members };
      } else if (mode === "between") {
        const [low, high] = fields.map((field) => read(row.column, field));
        if (low !== null || high !== null) found[row.column.name] = { low, high };
      } else if (mode === "value") {
        const value = read(row.column, fields[0]);
        if (value !== null) found[row.column.name] = value;
      }
    }
    return found;
  }
}

function read(column, field) {
  if (field.value === "") return null;
  if (isListed(column)) return column.categories[Number(field.value)];
  return field.type === "number" ? Number(field.value) : field.value;
}

function hint(column) {
  if (isListed(column)) return column.kind;
  if (column.kind === "number" && "shift" in column && column.scale !== 1)
    return `number, around ${short(column.shift)} ± ${short(column.scale)}`;
  if (column.kind === "positive") return `number above 0, around ${short(column.scale)}`;
  return column.kind;
}

export function short(number) {
  if (number === null || number === undefined) return "–";
  if (typeof number !== "number") return String(number);
  if (number !== 0 && (Math.abs(number) >= 1e6 || Math.abs(number) < 1e-3)) return number.toExponential(2);
  return String(Number(number.toPrecision(4)));
}
