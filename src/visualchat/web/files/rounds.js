// How the conversation looks: one list entry a round, one card an answer.

import { imagesBefore } from "./dialogue.js";

const template = (name) => document.getElementById(name).content.cloneNode(true).firstElementChild;

/**
 * Show all rounds again.
 *
 * `deeds` is what its buttons do: edit(index, question), undo(), again(model), look(index, model, section, button).
 */
export function show(list, rounds, models, busy, deeds) {
  list.replaceChildren(...rounds.map((round, index) => shownRound(rounds, round, index, models, busy, deeds)));
}

function shownRound(rounds, round, index, models, busy, deeds) {
  const item = template("round-template");
  const isLast = index === rounds.length - 1;
  const before = imagesBefore(rounds, index);
  item.querySelector(".images").append(...round.images.map((url, place) => figure(url, before + place + 1)));
  const words = item.querySelector(".question > .words");
  words.textContent = round.question;
  const [editor, buttons] = [item.querySelector(".editor"), item.querySelector(".question > .deeds")];
  const field = editor.querySelector("textarea");
  const editing = (on) => {
    editor.hidden = !on;
    words.hidden = buttons.hidden = on;
    field.value = round.question;
    if (on) field.focus();
  };
  buttons.querySelector(".edit").onclick = () => editing(true);
  editor.querySelector(".cancel").onclick = () => editing(false);
  editor.onsubmit = (event) => {
    event.preventDefault();
    if (field.value.trim()) deeds.edit(index, field.value.trim());
  };
  buttons.querySelector(".undo").hidden = !isLast;
  buttons.querySelector(".undo").onclick = deeds.undo;
  buttons.hidden = busy;
  const shown = models.filter((model) => round.answers[model.name]);
  const cards = item.querySelector(".answers");
  cards.classList.toggle("several", shown.length > 1);
  cards.append(...shown.map((model) => card(round, index, model, models.length > 1, isLast, busy, deeds)));
  return item;
}

function card(round, index, model, named, isLast, busy, deeds) {
  const item = template("answer-template");
  item.dataset.model = model.name;
  item.querySelector("h3").textContent = `${model.name} · attention ${model.attention}`;
  item.querySelector("h3").hidden = !named;
  fill(item, round.answers[model.name]);
  const look = item.querySelector(".look");
  look.disabled = Boolean(model.why_not_shown);
  look.title = model.why_not_shown ? `Not shown: ${model.why_not_shown}.` : "The weights of the model's own attention";
  look.hidden = !round.answers[model.name].text;
  look.onclick = () => deeds.look(index, model, item.querySelector(".looking"), look);
  const again = item.querySelector(".again");
  again.hidden = !isLast;
  again.onclick = () => deeds.again(model.name);
  item.querySelector(".deeds").hidden = busy;
  return item;
}

/** Put an answer, as far as it has come, into its card. */
export function fill(item, answer) {
  const words = item.querySelector(".words");
  words.textContent = answer.text || (answer.state === "running" ? "" : answer.error ?? "The answer has no words.");
  words.classList.toggle("running", answer.state === "running");
  words.classList.toggle("failed", Boolean(answer.error) && !answer.text);
  item.querySelector(".figures").textContent = figures(answer);
}

/** How long an answer took, as seen from this browser, and what the server knew of its prompt. */
function figures(answer) {
  if (answer.state === "stopped") return "stopped";
  if (!answer.usage) return "";
  const { completion_tokens: tokens, prompt_tokens: prompt, prompt_tokens_details: details } = answer.usage;
  const said = [`${tokens} ${tokens === 1 ? "token" : "tokens"}${answer.finish === "length" ? ", cut at the most" : ""}`];
  if (answer.first !== null) {
    const rate = tokens / answer.end; // not from the first words on: words without spaces come all at once
    said.push(`${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`);
    said.push(`first after ${(answer.first * 1000).toFixed(0)} ms`);
  }
  said.push(`${details.cached_tokens} of ${prompt} prompt tokens from the store`);
  return said.join(" · ");
}

export function figure(url, number) {
  const item = document.createElement("figure");
  const image = document.createElement("img");
  image.src = url;
  image.alt = `Image ${number}`;
  image.onload = () => image.classList.toggle("small", image.naturalWidth <= 128);
  const caption = document.createElement("figcaption");
  caption.textContent = `Image ${number}`;
  item.append(image, caption);
  return item;
}
