// The page: what is typed and pressed, and what becomes of it.

import * as api from "./api.js";
import { imagesBefore, messages, read, written } from "./dialogue.js";
import { showLooking } from "./looking.js";
import { figure, fill, show } from "./rounds.js";

const element = (id) => document.getElementById(id);
const state = { about: null, rounds: [], attached: [], next: [], running: null, seed: 0 };

const models = () => (element("compare").checked ? state.about.models : state.about.models.slice(0, 1));
const deeds = { edit, undo, again, look };

function render() {
  const busy = Boolean(state.running);
  show(element("rounds"), state.rounds, state.about.models, busy, deeds);
  element("welcome").hidden = state.rounds.length > 0;
  element("send").hidden = busy;
  element("stop").hidden = !busy;
  for (const id of ["new", "save", "load", "compare"]) element(id).disabled = busy;
  element("save").disabled ||= !state.rounds.length;
}

function tell(words) {
  element("problem").textContent = words;
  element("problem").hidden = !words;
}

// Asking

async function askRound(index, round) {
  tell("");
  state.rounds = [...state.rounds.slice(0, index), { ...round, answers: {} }];
  await answerLast(models().map((model) => model.name));
}

/** Let models answer the last round; one that fails entirely goes back to where it was typed. */
async function answerLast(names) {
  const index = state.rounds.length - 1;
  const round = state.rounds[index];
  const stopping = (state.running = new AbortController());
  for (const name of names) round.answers[name] = { text: "", state: "running" };
  render();
  scrollToEnd();
  await Promise.all(names.map((name) => answerBy(name, round, index, stopping.signal)));
  state.running = null;
  const answers = Object.values(round.answers);
  if (answers.some((answer) => answer.text || answer.state === "done")) {
    render();
    suggest();
    scrollToEnd();
    return;
  }
  tell(answers.find((answer) => answer.error)?.error ?? "");
  state.rounds = state.rounds.slice(0, index);
  compose(round.question, round.images);
  render();
}

async function answerBy(name, round, index, signal) {
  const answer = round.answers[name];
  const card = () => element("rounds").children[index].querySelector(`[data-model="${CSS.escape(name)}"]`);
  const request = {
    model: name,
    messages: messages(state.rounds, name, index, false),
    temperature: Number(element("temperature").value),
    max_tokens: Number(element("max-tokens").value),
    seed: state.seed++,
  };
  const took = (piece) => {
    answer.text += piece;
    fill(card(), answer);
  };
  try {
    Object.assign(answer, await api.answer(request, took, signal), { state: "done" });
  } catch (error) {
    answer.state = error.name === "AbortError" ? "stopped" : "failed";
    if (answer.state === "failed") answer.error = error.message;
    if (answer.text && answer.error) tell(`${name}: ${answer.error}`);
  }
  fill(card(), answer);
}

async function edit(index, question) {
  await askRound(index, { images: state.rounds[index].images, question });
}

function undo() {
  const round = state.rounds.at(-1);
  state.rounds = state.rounds.slice(0, -1);
  if (!element("question").value && !state.attached.length) compose(round.question, round.images);
  render();
}

async function again(name) {
  const kept = state.rounds.at(-1).answers[name];
  await answerLast([name]);
  const answer = state.rounds.at(-1)?.answers[name];
  if (answer && !answer.text && kept.text && answer.state !== "done") {
    state.rounds.at(-1).answers[name] = kept;
    render();
  }
}

async function look(index, model, section, button) {
  section.hidden = !section.hidden;
  button.setAttribute("aria-expanded", String(!section.hidden));
  if (section.hidden) return;
  const urls = state.rounds.slice(0, index + 1).flatMap((round) => round.images);
  const request = { model: model.name, messages: messages(state.rounds, model.name, index, true) };
  await showLooking(section, request, model, urls);
  section.scrollIntoView({ block: "nearest" });
}

function scrollToEnd() {
  window.scrollTo({ top: document.body.scrollHeight });
}

// The composer

function compose(question, images) {
  element("question").value = question;
  state.attached = [...images];
  showAttached();
}

function showAttached() {
  const before = imagesBefore(state.rounds, state.rounds.length);
  const shown = state.attached.map((url, index) => {
    const item = figure(url, before + index + 1);
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "remove";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove image ${before + index + 1}`);
    remove.onclick = () => {
      state.attached.splice(index, 1);
      showAttached();
    };
    item.append(remove);
    return item;
  });
  element("attached").replaceChildren(...shown);
  element("attached").hidden = !shown.length;
}

async function attach(files) {
  tell("");
  for (const file of files) {
    const url = await dataUrl(file);
    state.attached.push(url);
    showAttached();
    const number = imagesBefore(state.rounds, state.rounds.length) + state.attached.length;
    try {
      await api.warm(url, number);
    } catch (error) {
      if (error.status === 429 || error.status === 503) continue; // it is computed with its question then
      state.attached = state.attached.filter((other) => other !== url);
      showAttached();
      tell(`${file.name}: ${error.message}`);
    }
  }
}

const dataUrl = (file) =>
  new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(file);
  });

element("attach").onclick = () => element("files").click();
element("files").onchange = async (event) => {
  const files = [...event.target.files];
  event.target.value = "";
  await attach(files);
};
document.addEventListener("paste", (event) => attach([...event.clipboardData.files]));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  attach([...event.dataTransfer.files]);
});

element("composer").onsubmit = async (event) => {
  event.preventDefault();
  const question = element("question").value.trim();
  if (!question || state.running) return;
  const images = state.attached;
  compose("", []);
  await askRound(state.rounds.length, { images, question });
};
element("question").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  element("composer").requestSubmit();
};
element("stop").onclick = () => state.running?.abort();

// Examples: each round is put into the composer when its turn comes

function suggest() {
  const [round, ...later] = state.next;
  if (!round || element("question").value || state.attached.length) return;
  state.next = later;
  compose(round.question, round.images);
}

async function showExamples() {
  const found = await api.examples();
  element("examples").replaceChildren(
    ...found.map(({ rounds }) => {
      const button = document.createElement("button");
      button.type = "button";
      const images = document.createElement("span");
      images.className = "images";
      for (const url of rounds.flatMap((round) => round.images)) {
        const image = document.createElement("img");
        image.src = url;
        image.alt = "";
        images.append(image);
      }
      const words = document.createElement("span");
      words.textContent = rounds[0].question;
      const count = document.createElement("span");
      count.className = "quiet";
      count.textContent = `${rounds.length} rounds`;
      button.append(images, words, count);
      button.onclick = () => {
        state.next = rounds;
        compose("", []);
        suggest();
        element("question").focus();
      };
      return button;
    }),
  );
}

// The bar

element("new").onclick = () => {
  state.rounds = [];
  state.next = [];
  compose("", []);
  tell("");
  render();
};
element("save").onclick = () => {
  const link = document.createElement("a");
  const names = state.about.models.map((model) => model.name);
  link.href = URL.createObjectURL(new Blob([written(state.rounds, names)], { type: "application/jsonl" }));
  link.download = "conversation.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href));
};
element("load").onclick = () => element("load-file").click();
element("load-file").onchange = async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  try {
    state.rounds = read(await file.text(), state.about.models.map((model) => model.name));
    state.next = [];
    compose("", []);
    tell("");
  } catch (error) {
    tell(error.message);
  }
  render();
};
element("settings").onclick = () => {
  const panel = element("settings-panel");
  panel.hidden = !panel.hidden;
  element("settings").setAttribute("aria-expanded", String(!panel.hidden));
};
element("settings-panel").onsubmit = (event) => event.preventDefault();

// Opening

async function open() {
  try {
    state.about = await api.about();
  } catch (error) {
    if (error.status !== 401) return tell(error.message);
    return element("key-dialog").open || element("key-dialog").showModal();
  }
  element("key-dialog").close();
  element("models").textContent = state.about.models.map((model) => `${model.name} · ${model.attention}`).join("  |  ");
  element("compare-choice").hidden = state.about.models.length < 2;
  element("temperature").value = state.about.temperature;
  element("max-tokens").value = state.about.max_new_tokens;
  element("max-tokens").max = state.about.limits.tokens;
  render();
  document.body.dataset.ready = "";
  await showExamples();
}

element("key-form").onsubmit = async (event) => {
  event.preventDefault();
  api.useKey(element("key").value);
  element("key-problem").hidden = true;
  await open();
  if (!state.about) {
    element("key-problem").textContent = "This is not a key of this server.";
    element("key-problem").hidden = false;
  }
};
element("key-dialog").addEventListener("cancel", (event) => event.preventDefault());

open();
