// Where an answer looked: weights over the patches of each image, and over the words of the conversation.

import { attention } from "./api.js";

const SIDE = 192; // pixels of a drawn image's longer side

/** Show it in a section, for all layers and heads at first; `request` is of the API without these two. */
export async function showLooking(section, request, model, urls) {
  section.replaceChildren(document.getElementById("looking-template").content.cloneNode(true));
  const [layer, head] = [section.querySelector(".layer"), section.querySelector(".head")];
  fillChoice(layer, "all, mean", model.layers);
  fillChoice(head, "all, mean", model.heads);
  const pictures = await Promise.all(urls.map(loaded));
  ramp(section.querySelector(".scale canvas"));
  let latest = 0;
  const ask = async (problem) => {
    const turn = ++latest;
    section.classList.add("waiting");
    try {
      const found = await attention({ ...request, layer: chosen(layer), head: chosen(head) });
      if (turn === latest) draw(section, found, pictures);
      problem("");
    } catch (error) {
      problem(error.message);
    }
    if (turn === latest) section.classList.remove("waiting");
  };
  const problem = (words) => {
    section.querySelector(".failed")?.remove();
    if (!words) return;
    const line = document.createElement("p");
    line.className = "failed";
    line.textContent = words;
    section.append(line);
  };
  layer.onchange = head.onchange = () => ask(problem);
  await ask(problem);
}

function fillChoice(select, all, count) {
  const names = [all, ...Array.from({ length: count }, (_, index) => String(index + 1))];
  select.replaceChildren(...names.map((name, index) => new Option(name, String(index - 1))));
}

const chosen = (select) => (select.value === "-1" ? null : Number(select.value));

const loaded = (url) =>
  new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.src = url;
  });

function draw(section, found, pictures) {
  const tokens = section.querySelector(".tokens");
  const names = ["whole answer", ...found.tokens];
  const show = (pressed) => {
    [...tokens.children].forEach((button, index) => button.setAttribute("aria-pressed", String(index === pressed)));
    drawOne(section, found, pictures, pressed - 1);
  };
  tokens.replaceChildren(
    ...names.map((name, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name.trim() || "␣";
      button.className = index ? "token" : "whole";
      button.onclick = () => show(index);
      return button;
    }),
  );
  show(0);
}

/** The weights (a list) of one token of the answer, or their mean over all of them. */
function of(weights, token) {
  if (token >= 0) return weights[token];
  return weights[0].map((_, place) => weights.reduce((sum, row) => sum + row[place], 0) / weights.length);
}

const total = (list) => list.reduce((sum, weight) => sum + weight, 0);
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

function drawOne(section, found, pictures, token) {
  const images = found.images.map((image) => of(image.weights, token));
  const text = of(found.text.weights, token);
  const most = Math.max(0, ...images.flat());
  const apart = found.softmaxes === 2;
  section.querySelector(".image-heading").textContent = apart
    ? "On the images: a softmax of their own, 100 % over all of them"
    : `On the images: ${percent(total(images.map(total)))} of the weight`;
  section.querySelector(".text-heading").textContent = apart
    ? "On the text: a softmax of its own, 100 % over all words"
    : `On the text: ${percent(total(text))} of the weight`;
  section.querySelector(".image-heading").hidden = section.querySelector(".scale").hidden = !images.length;
  section.querySelector(".most").textContent = percent(most);
  section.querySelector(".looked").replaceChildren(
    ...images.map((weights, index) => overlaid(pictures[index], found.images[index], weights, most, index + 1)),
  );
  drawText(section.querySelector(".read"), found.text.words, text);
}

/** An image with its patches' weights over it; what lies outside the encoder's view stays grey. */
function overlaid(picture, grid, weights, most, number) {
  const scale = SIDE / Math.max(picture.naturalWidth, picture.naturalHeight);
  const [width, height] = [Math.round(picture.naturalWidth * scale), Math.round(picture.naturalHeight * scale)];
  const canvas = document.createElement("canvas");
  const dots = Math.max(2, window.devicePixelRatio || 1);
  canvas.width = width * dots;
  canvas.height = height * dots;
  const pen = canvas.getContext("2d");
  pen.scale(dots, dots);
  pen.imageSmoothingEnabled = picture.naturalWidth > 128;
  pen.drawImage(picture, 0, 0, width, height);
  pen.fillStyle = "rgba(15, 18, 28, 0.35)";
  pen.fillRect(0, 0, width, height);
  const [left, top, right, bottom] = grid.box;
  const [across, down] = [((right - left) * width) / grid.columns, ((bottom - top) * height) / grid.rows];
  weights.slice(grid.first).forEach((weight, place) => {
    const x = left * width + (place % grid.columns) * across;
    const y = top * height + Math.floor(place / grid.columns) * down;
    pen.fillStyle = colour(most ? weight / most : 0);
    pen.fillRect(x, y, across, down);
  });
  const item = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = `Image ${number} · ${percent(total(weights))}`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", caption.textContent);
  item.append(canvas, caption);
  return item;
}

/** From nothing over amber to red. */
function colour(share) {
  const green = Math.round(196 - 140 * share);
  return `rgba(255, ${green}, 40, ${(0.6 * share).toFixed(3)})`;
}

function ramp(canvas) {
  const pen = canvas.getContext("2d");
  pen.fillStyle = "rgb(150, 152, 160)";
  pen.fillRect(0, 0, 256, 1);
  for (let x = 0; x < 256; x++) {
    pen.fillStyle = colour(x / 255);
    pen.fillRect(x, 0, 1, 1);
  }
}

/** The words of the conversation, the darker the more weight; the first, on which models park weight, sets no scale. */
function drawText(line, words, weights) {
  const most = Math.max(...weights.slice(1));
  line.replaceChildren(
    ...words.map((word, index) => {
      const item = document.createElement("span");
      item.textContent = word;
      item.title = percent(weights[index]);
      item.style.setProperty("--weight", String(most ? Math.min(1, weights[index] / most) : 0));
      return item;
    }),
  );
}
