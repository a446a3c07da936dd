// The server's API as the page uses it; the key stays in this tab.

let key = sessionStorage.getItem("key") ?? "";

export function useKey(given) {
  known.clear(); // each key has images of its own
  key = given;
  sessionStorage.setItem("key", given);
}

/** What the server said instead of answering. */
export class Refused extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function ask(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server cannot be reached.");
  }
  if (!response.ok) {
    const said = await response.json().catch(() => null);
    const message = said?.error?.message ?? `The server answered with status ${response.status}.`;
    throw new Refused(response.status, message, said?.error?.code);
  }
  return response;
}

export const about = async () => (await ask("/v1/page")).json();
export const examples = async () => (await ask("/page/examples.json")).json();
export const attention = async (request) => (await ask("/v1/attention", request)).json();

// Images are sent once: each has a name, by which alone it is shown again.

const tab = Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(16)).join("-");
const names = new Map(); // of data URLs
const known = new Set(); // the names of those that the server has

function nameOf(url) {
  if (!names.has(url)) names.set(url, `${tab}-${names.size + 1}`);
  return names.get(url);
}

/** Let the server know an image while its question is still being typed. */
export async function warm(url, number) {
  await ask("/v1/images", { image_url: { url }, uuid: nameOf(url), number });
  known.add(nameOf(url));
}

/** Ask for an answer; an image that the server has forgotten since is sent again. */
async function complete(request, signal) {
  const shown = (part) => {
    if (part.type !== "image_url") return part;
    const uuid = nameOf(part.image_url.url);
    return known.has(uuid) ? { type: part.type, uuid } : { ...part, uuid };
  };
  const named = () => request.messages.map(({ role, content }) => ({ role, content: typeof content === "string" ? content : content.map(shown) }));
  const send = () => ask("/v1/chat/completions", { ...request, messages: named() }, signal);
  const response = await send().catch((error) => {
    if (error.code !== "unknown_image") throw error;
    known.clear();
    return send();
  });
  for (const part of request.messages.flatMap(({ content }) => content)) {
    if (part.type === "image_url") known.add(nameOf(part.image_url.url));
  }
  return response;
}

/**
 * Stream an answer: `took` is called with each piece. Gives why it ended, what it took in tokens, and seconds to the
 * first piece and to the end.
 */
export async function answer(request, took, signal) {
  const begun = performance.now();
  const seconds = () => (performance.now() - begun) / 1000;
  const options = { stream: true, stream_options: { include_usage: true } };
  const response = await complete({ ...request, ...options }, signal);
  const found = { finish: null, usage: null, first: null, end: null };
  for await (const event of events(response.body)) {
    if (event.error) throw new Refused(500, event.error.message);
    if (event.usage) found.usage = event.usage;
    const choice = event.choices[0];
    if (choice?.finish_reason) found.finish = choice.finish_reason;
    if (choice?.delta.content) {
      found.first ??= seconds();
      took(choice.delta.content);
    }
  }
  found.end = seconds();
  if (!found.usage) throw new Refused(0, "The server broke off its answer.");
  return found;
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (waiting + value).split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}
