// The server's API as the page uses it; the key stays in this tab.

let key = sessionStorage.getItem("key") ?? "";

export function useKey(given) {
  key = given;
  sessionStorage.setItem("key", given);
}

/** What the server said instead of answering. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
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
    throw new Refused(response.status, said?.error?.message ?? `The server answered with status ${response.status}.`);
  }
  return response;
}

export const about = async () => (await ask("/v1/page")).json();
export const examples = async () => (await ask("/page/examples.json")).json();
export const attention = async (request) => (await ask("/v1/attention", request)).json();

/** Let the server know an image while its question is still being typed. */
export const warm = async (url, number) => (await ask("/v1/images", { image_url: { url }, number })).json();

/**
 * Stream an answer: `took` is called with each piece. Gives why it ended, what it took in tokens, and seconds to the
 * first piece and to the end.
 */
export async function answer(request, took, signal) {
  const begun = performance.now();
  const seconds = () => (performance.now() - begun) / 1000;
  const options = { stream: true, stream_options: { include_usage: true } };
  const response = await ask("/v1/chat/completions", { ...request, ...options }, signal);
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
