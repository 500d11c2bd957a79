// The API: requests with the token, arrays in base64, and answers as they arrive.

let token = sessionStorage.getItem("token") || "";

export function setToken(value) {
  token = value.trim();
  sessionStorage.setItem("token", token);
}

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function send(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server cannot be reached. Is it still running?");
  }
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    throw new Problem(response.status, body.detail || `The server answered ${response.status}.`);
  }
  return response;
}

export const models = async () => (await send("v1/models")).json();

export async function samples(model, seed) {
  const found = await (await send(`v1/models/${encodeURIComponent(model)}/samples?num=10&seed=${seed}`)).json();
  return Object.entries(found).map(([where, packed]) => ({ where, ...unpacked(packed) }));
}

const posted = (body, accept, signal) => ({
  method: "POST",
  headers: { "Content-Type": "application/json", Accept: accept },
  body: JSON.stringify(body),
  signal,
});

export const script = async (body) => (await send("v1/script", posted(body, "text/x-python"))).text();

export const complete = async (body) => (await send("v1/condition", posted(body, "application/json"))).json();

// Calls told(event, content) for each server-sent event, until the last.
export async function condition(body, signal, told) {
  const response = await send("v1/condition", posted(body, "text/event-stream", signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(0, "The connection to the server was lost.");
    }
    if (piece.done) break;
    const events = (text + piece.value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const [name, data] = event.split("\n").map((line) => line.slice(line.indexOf(":") + 2));
      const content = JSON.parse(data);
      if (name === "problem") throw new Problem(content.status, content.detail);
      told(name, content);
      if (content.final) return;
    }
  }
  throw new Problem(0, "The server stopped before the answer was complete.");
}

export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}

export function base64Of(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}

export function unpacked({ base64, dtype, shape }) {
  const { buffer } = bytesOf(base64);
  return { shape, values: dtype === "float64" ? new Float64Array(buffer) : new Float32Array(buffer) };
}

export const packed = (values, shape) => ({
  base64: base64Of(new Uint8Array(values.buffer)),
  dtype: values instanceof Float64Array ? "float64" : "float32",
  shape,
});
