// The question in the page's address: JSON, deflated, in base64url.

import { base64Of, bytesOf } from "./api.js";

async function through(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

export async function hashOf(state) {
  const bytes = new TextEncoder().encode(JSON.stringify(state));
  const small = await through(bytes, new CompressionStream("deflate-raw"));
  return "#" + base64Of(small).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

// The state in an address; null if there is none.
export async function stateOf(hash) {
  if (hash.length < 2) return null;
  try {
    const bytes = bytesOf(hash.slice(1).replaceAll("-", "+").replaceAll("_", "/"));
    return JSON.parse(new TextDecoder().decode(await through(bytes, new DecompressionStream("deflate-raw"))));
  } catch {
    return null;
  }
}

export const toText = (bytes) => base64Of(bytes);
export const fromText = (text) => bytesOf(text);
