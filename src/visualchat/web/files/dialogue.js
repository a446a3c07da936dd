// A conversation: rounds of images and a question, each with an answer of every model that was asked. No display here.

/** The answer that stands in a model's history: its own, or the first model's where it was not asked. */
export function answerOf(round, model) {
  const own = round.answers[model];
  return own?.text ? own : Object.values(round.answers).find((answer) => answer.text);
}

/** What the API is told: the rounds up to one, that one open or with its answer. */
export function messages(rounds, model, upto, answered) {
  const said = [];
  rounds.slice(0, upto + 1).forEach((round, index) => {
    const images = round.images.map((url) => ({ type: "image_url", image_url: { url } }));
    said.push({ role: "user", content: [...images, { type: "text", text: round.question }] });
    if (index < upto || answered) said.push({ role: "assistant", content: answerOf(round, model).text });
  });
  return said;
}

/** How many images stand before a round; its own are numbered from the next on. */
export const imagesBefore = (rounds, index) => rounds.slice(0, index).reduce((sum, round) => sum + round.images.length, 0);

/** One line of the messages format, which training reads, too; what other models said stands beside it. */
export function written(rounds, models) {
  const last = rounds.length - 1;
  const others = {};
  for (const model of models.slice(1)) others[model] = rounds.map((round) => round.answers[model]?.text ?? null);
  return `${JSON.stringify({ messages: messages(rounds, models[0], last, true), models, others })}\n`;
}

/** The rounds of a file that `written` made, or of any row of messages with its images inside. */
export function read(text, models) {
  let row;
  try {
    row = JSON.parse(text.trim().split("\n")[0]);
  } catch {
    throw new Error("The file is no saved conversation: its first line is not JSON.");
  }
  const said = row?.messages;
  if (!Array.isArray(said)) throw new Error("The file is no saved conversation: it has no messages.");
  const rounds = [];
  for (const [index, message] of said.entries()) {
    const expected = index % 2 ? "assistant" : "user";
    if (message?.role !== expected) throw new Error(`Message ${index + 1} is of "${message?.role}": expected ${expected}.`);
    const parts = typeof message.content === "string" ? [{ type: "text", text: message.content }] : message.content;
    const text = parts.filter((part) => part.type === "text").map((part) => part.text).join("\n");
    if (expected === "assistant") {
      rounds.at(-1).answers[models[0]] = { text, state: "loaded" };
      continue;
    }
    const images = parts.filter((part) => part.type !== "text").map((part) => part.image_url?.url);
    if (!images.every((url) => url?.startsWith("data:image/"))) throw new Error(`Message ${index + 1} has an image that is not inside the file.`);
    rounds.push({ images, question: text, answers: {} });
  }
  if (!rounds.length || said.length % 2) throw new Error("The file is no saved conversation: its last question has no answer.");
  for (const model of models.slice(1)) {
    (row.others?.[model] ?? []).forEach((text, index) => {
      if (text && rounds[index]) rounds[index].answers[model] = { text, state: "loaded" };
    });
  }
  return rounds;
}
