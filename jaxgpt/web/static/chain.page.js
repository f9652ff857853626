// The page of models of a graph: the model's next token and the exact posterior.

import { act, attempt, report } from "./api.js";
import { element, field, number, svg } from "./dom.js";

export default class ChainPage {
  constructor(run, about) {
    Object.assign(this, { run, about });
    this.seed = number("seed", 0, { min: 0, step: 1 });
    this.tokens = element("input", { type: "text", class: "wide", spellcheck: "false", placeholder: "3, 1, 4 …", onkeydown: (event) => event.key === "Enter" && this.ask(true) });
    this.row = element("div", { class: "chain", role: "group", "aria-label": "sequence" });
    this.bars = element("div");
    this.curve = element("div");
    const draw = element("button", { type: "button", onclick: () => { this.seed.value = Number(this.seed.value) + 1; this.ask(false); } }, "New sequence");
    const go = element("button", { type: "button", class: "main", onclick: () => this.ask(true) }, "Predict");
    this.element = element("div", {},
      element("p", { class: "hint" }, `A sequence of the graph (tokens 0 to ${about.vocab_size - 1}). Choose a token to see what may follow it: the model's distribution next to the exact one, which no model can beat.`),
      element("div", { class: "bar" }, field("Seed", this.seed), draw, field("Tokens", this.tokens), go), this.row, this.bars, this.curve);
    this.ask(false);
  }

  ask(given) {
    const tokens = given ? (this.tokens.value.match(/\d+/g) || []).map(Number) : [];
    return attempt(async () => {
      this.found = await act(this.run, "sequence", { tokens, seed: Number(this.seed.value) }, report);
      this.tokens.value = this.found.tokens.join(", ");
      this.draw();
    });
  }

  draw() {
    const { tokens, kl } = this.found;
    const buttons = tokens.map((token, place) => element("button", { type: "button", class: "small", "aria-pressed": "false", onclick: () => this.choose(place) }, String(token)));
    this.buttons = buttons;
    this.row.replaceChildren(...buttons);
    this.curve.replaceChildren(element("h3", {}, "KL(exact ‖ model) by position, nats"), curve(kl));
    this.choose(Math.min(tokens.length - 1, Math.floor(tokens.length / 2)));
  }

  choose(place) {
    this.buttons.forEach((button, each) => button.setAttribute("aria-pressed", String(each === place)));
    const { exact, model, kl, tokens } = this.found;
    const next = tokens[place + 1];
    const rows = exact[place].map((p, token) =>
      element("tr", { class: token === next ? "chosen" : "" }, element("th", { scope: "row" }, String(token)), cell(p, "exact"), cell(model[place][token], "model")));
    const head = element("tr", {}, element("th", { scope: "col" }, "token"), element("th", { scope: "col" }, "exact"), element("th", { scope: "col" }, "model"));
    const came = next === undefined ? "" : ` · ${next} came (marked)`;
    const caption = element("caption", {}, `After token ${place + 1} of ${tokens.length} · KL ${kl[place].toFixed(4)} nats${came}`);
    this.bars.replaceChildren(element("table", { class: "bars" }, caption, head, ...rows));
  }
}

function cell(p, kind) {
  const bar = element("i", { class: kind });
  bar.style.setProperty("--p", p.toFixed(4));
  return element("td", {}, bar, element("span", {}, p.toFixed(3)));
}

function curve(kl) {
  const [width, height] = [600, 120];
  const most = Math.max(...kl, 1e-6);
  const points = kl.map((value, place) => `${((width * place) / Math.max(1, kl.length - 1)).toFixed(1)},${(height - 4 - ((height - 20) * value) / most).toFixed(1)}`);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "kl", role: "img", "aria-label": `KL by position, at most ${most.toFixed(4)} nats` });
  picture.append(svg("polyline", { points: points.join(" ") }));
  const label = svg("text", { x: 4, y: 12 });
  label.textContent = `at most ${most.toFixed(4)}`;
  picture.append(label);
  return picture;
}
