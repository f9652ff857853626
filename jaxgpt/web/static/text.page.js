// The page of runs that write texts: write and erase, compare, score.

import { act, attempt, explain, report } from "./api.js";
import { count, element, field, number, percent, say, svg } from "./dom.js";
import { Editor, sent, withToken } from "./editor.js";
import { Player } from "./player.js";
import { TokenText, orderStrip } from "./tokens.js";

const EXACT = ["ar", "exact-burst"];
const SLOW = 150; // Milliseconds that a forward pass is shown in slow motion.

export default class TextPage {
  constructor(run, about, popover) {
    Object.assign(this, { run, about, popover });
    this.history = [];
    this.abort = null;
    this.editor = new Editor({ gapsAnywhere: about.gaps_anywhere, changed: () => this.remember() });
    this.results = element("div", { class: "results" });
    this.buttons();
    this.element = element("div", {}, this.tabs());
    this.editor.pieces = about.example;
    this.now = { pieces: about.example, results: [] };
  }

  tabs() {
    const parts = { Write: this.writing() };
    if (this.about.scores) parts.Score = this.scoring();
    const tabs = element("div", { role: "tablist", "aria-label": "What to do", class: "tabs" });
    const panels = Object.entries(parts).map(([name, part], index) => {
      const [tabId, panelId] = [`tab-${name}`, `panel-${name}`];
      const panel = element("section", { role: "tabpanel", id: panelId, "aria-labelledby": tabId, hidden: index > 0 }, part);
      tabs.append(element("button", {
        type: "button", role: "tab", id: tabId, "aria-controls": panelId, tabindex: index ? -1 : 0,
        "aria-selected": String(!index), onclick: () => select(index),
      }, name));
      return panel;
    });
    const select = (chosen) => {
      panels.forEach((panel, index) => {
        panel.hidden = index !== chosen;
        tabs.children[index].setAttribute("aria-selected", String(index === chosen));
        tabs.children[index].tabIndex = index === chosen ? 0 : -1;
      });
    };
    tabs.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
      const next = (panels.findIndex((panel) => !panel.hidden) + 1) % panels.length;
      select(next);
      tabs.children[next].focus();
    });
    return element("div", {}, tabs, ...panels);
  }

  buttons() {
    const button = (text, press, hint, name = "") =>
      element("button", { type: "button", onclick: press, title: hint, class: name }, text);
    this.fillButton = button("Fill", () => this.fill(), "Ctrl+Enter", "main");
    this.cancelButton = button("Cancel", () => this.cancel(), "Escape");
    this.undoButton = button("Undo", () => this.undo(), "Ctrl+Z");
    this.cancelButton.disabled = this.undoButton.disabled = true;
    this.compareButton = button("Compare", () => this.compare(), "one by one and in exact bursts, on the same text");
    this.gapButton = button("Gap", () => this.editor.makeGap((pieces) => this.length(pieces)), "Ctrl+G: makes what is selected a gap");
    this.clearButton = button("Example", () => this.set(this.about.example), "the text that the page began with");
  }

  writing() {
    const anywhere = this.about.gaps_anywhere;
    const kind = this.about.has_text ? "a text" : "token ids (3, 1, 4)";
    const compared = this.about.orders.length > 0;
    const hint = anywhere
      ? `Type ${kind}. Select any stretch and press Gap (Ctrl+G): the model fills it around what stays.`
      : `Type ${kind} and leave a gap at the end: this model reads left to right.`;
    const gap = element("div", { class: "bar" }, this.gapButton, this.clearButton, this.undoButton);
    const go = element("div", { class: "bar" }, this.fillButton, compared ? this.compareButton : "", this.cancelButton);
    const part = element("div", { class: "write" }, element("p", { class: "hint" }, hint), this.editor.element, gap, this.options(), go, legend(), this.results);
    part.addEventListener("keydown", (event) => {
      const control = event.ctrlKey || event.metaKey;
      const press = {
        g: () => this.editor.makeGap((pieces) => this.length(pieces)),
        Enter: () => this.fill(),
        z: () => this.undo(),
      }[event.key];
      if (control && press && !event.shiftKey) {
        event.preventDefault();
        press();
      } else if (event.key === "Escape") {
        this.cancel();
      }
    });
    return part;
  }

  options() {
    const about = this.about;
    this.form = element("form", { class: "options", "aria-label": "How it is drawn", onsubmit: (event) => event.preventDefault() },
      field("Temperature", number("temperature", 0.7, { min: 0, max: 10, step: 0.05 }), "0 takes the likeliest token"),
      field("Top-k", number("top_k", "", { min: 1, placeholder: "all" }), "draw from the k likeliest tokens only"),
      field("Top-p", number("top_p", 1, { min: 0.01, max: 1, step: 0.01 }), "draw from the likeliest tokens that reach this probability"),
      field("Seed", number("seed", 0, { min: 0, step: 1 })),
      field("Samples", number("num_samples", 1, { min: 1, max: about.max_samples })));
    if (about.samplers.length) {
      const sampler = element("select", { name: "sampler" }, element("option", { value: "" }, "default"));
      for (const { name, note } of about.samplers) {
        sampler.append(element("option", { value: name, title: note }, note ? `${name} (not exact)` : name));
      }
      this.form.append(field("Sampler", sampler));
    }
    if (about.orders.length) {
      const orders = element("fieldset", { class: "orders" }, element("legend", {}, "Order"));
      about.orders.forEach(({ name, ranks }) => {
        const radio = element("input", { type: "radio", name: "order", value: name, checked: name === about.order });
        orders.append(element("label", {}, radio, orderPicture(ranks), element("span", {}, name)));
      });
      this.form.append(orders);
    }
    this.slow = element("input", { type: "checkbox" });
    this.form.append(element("label", { class: "check" }, this.slow, "Slow motion"));
    return this.form;
  }

  // What the form says, as the server takes it.
  chosen() {
    const data = new FormData(this.form);
    const sampling = {};
    for (const name of ["temperature", "top_k", "top_p"]) {
      if (data.get(name)) sampling[name] = Number(data.get(name));
    }
    for (const name of ["sampler", "order"]) {
      if (data.get(name)) sampling[name] = data.get(name);
    }
    return { sampling, seed: Number(data.get("seed")), num_samples: Number(data.get("num_samples")) };
  }

  // About how many tokens pieces are; the model is not asked, so that typing never waits.
  length(pieces) {
    const each = this.about.characters ? 1 : 4;
    return pieces.reduce((sum, piece) => sum + (piece.gap || piece.tokens?.length || Math.ceil([...piece.text].length / each)), 0);
  }

  // Keeps a state to go back to; results: null leaves those that are shown.
  remember(results = null) {
    this.history.push(this.now);
    this.now = { pieces: this.editor.pieces, results: results ?? [...this.results.children] };
    if (this.history.length > 200) this.history.shift();
    this.undoButton.disabled = false;
  }

  undo() {
    const before = this.history.pop();
    this.undoButton.disabled = !this.history.length;
    if (!before) return;
    this.cancel();
    this.popover.hide();
    this.now = before;
    this.editor.pieces = before.pieces;
    this.results.replaceChildren(...before.results);
    say("undone");
  }

  set(pieces) {
    this.editor.pieces = pieces;
    this.remember();
  }

  cancel() {
    this.abort?.abort();
  }

  async fill() {
    await this.run_([{ title: "", ...this.chosen() }]);
  }

  async compare() {
    const chosen = this.chosen();
    const one = EXACT.map((sampler) => ({
      title: sampler === "ar" ? "One by one" : "Exact bursts",
      ...chosen, num_samples: 1, sampling: { ...chosen.sampling, sampler },
    }));
    await this.run_(one);
  }

  // Fills the text once for each way, and shows them side by side.
  async run_(ways) {
    this.cancel();
    const pieces = this.editor.pieces;
    const abort = (this.abort = new AbortController());
    this.busy(true);
    say("asking");
    this.results.replaceChildren();
    try {
      for (const way of ways) await this.one(pieces, way, abort.signal);
      this.remember([...this.results.children]);
      say("done");
    } catch (error) {
      if (this.abort === abort) say(abort.signal.aborted ? "cancelled" : error.message, !abort.signal.aborted);
    } finally {
      if (this.abort === abort) this.busy(false);
    }
  }

  busy(working) {
    this.cancelButton.disabled = !working;
    this.results.setAttribute("aria-busy", String(working));
  }

  async one(pieces, way, signal) {
    const { title, ...body } = way;
    let cards = [];
    let known = [];
    let considered = false;
    let began = 0;
    let compiled = "";
    const player = new Player(this.slow.checked ? SLOW : 0);
    signal.addEventListener("abort", () => player.clear());
    const on = (event) => {
      if (explain(event)) {
        say(`${title ? `${title}: ` : ""}${explain(event)}`);
        compiled = event.compiling ? ", compilation included" : "";
        began = performance.now();
      } else if (event.type === "start") {
        known = event.known;
        cards = Array.from({ length: body.num_samples }, (_, row) => this.card(title || `Sample ${row + 1}`, event));
        this.results.append(...cards.map((card) => card.element));
      } else if (event.type === "frame") {
        const seconds = (performance.now() - began) / 1000;
        player.push(() => cards.forEach((card, row) => {
          card.text.add(event.rows[row]);
          card.figures.textContent = figures(event.passes[row], event.made[row], event.log_prob[row], `${seconds.toFixed(2)} s`);
        }));
      } else if (event.type === "alternatives") {
        cards[event.row].text.alternatives = event.tokens;
        considered = true;
      }
    };
    const done = await act(this.run, "fill", { pieces: sent(pieces), ...body }, on, signal);
    await player.drained();
    signal.throwIfAborted();
    cards.forEach((card, row) => {
      const sample = done.samples[row];
      card.figures.textContent = figures(sample.passes, sample.generated, sample.log_prob, `${done.seconds.toFixed(2)} s${compiled}`);
      card.order.replaceChildren(orderStrip(sample.rank));
      card.text.keep();
      if (considered) card.text.makeInteractive(this.popover, (place, id, text) => {
        this.editor.pieces = withToken(pieces, known, place, id, text);
        this.remember();
        this.fill();
      });
      card.replay.addEventListener("click", () => card.text.replay(sample.steps));
      card.copy.addEventListener("click", async () => {
        await navigator.clipboard.writeText(sample.text ?? "");
        say("copied");
      });
    });
  }

  card(title, start) {
    const text = new TokenText(start.known, start.pieces, title);
    const parts = {
      text, figures: element("p", { class: "figures" }), order: element("div"),
      copy: element("button", { type: "button", class: "small" }, "Copy"),
      replay: element("button", { type: "button", class: "small" }, "Replay"),
    };
    const note = start.note ? element("p", { class: "hint" }, start.note) : "";
    const head = element("div", { class: "head" }, element("h3", {}, title), element("span", {}, parts.replay, " ", parts.copy));
    return { ...parts, element: element("article", {}, head, note, text.element, parts.order, parts.figures) };
  }

  scoring() {
    const text = element("textarea", { rows: 5, "aria-label": "Text to score", maxlength: 20000, placeholder: "Paste a text" });
    const order = element("select", { name: "order" });
    for (const { name } of this.about.orders) {
      if (!["low-entropy-first", "random", "left-to-right"].includes(name)) order.append(element("option", {}, name));
    }
    const shown = element("div", { class: "scores" });
    const go = () => attempt(async () => {
      shown.replaceChildren();
      const found = await act(this.run, "score", { text: text.value, order: order.value }, report);
      shown.append(...Object.entries(found.nll).map(([name, nll]) => scored(name, nll, found)));
    });
    const button = element("button", { type: "button", class: "main", onclick: go }, "Score");
    const bar = element("div", { class: "bar" }, this.about.orders.length ? field("Order", order) : "", button);
    const hint = "The negative log-likelihood of each token: deeper colours were less expected. Of random orders it is the mean of 8. A model without a beginning token does not predict what is read first.";
    return element("div", {}, element("p", { class: "hint" }, hint), text, bar, shown);
  }
}

const figures = (passes, made, logProb, seconds) =>
  `${count(passes, "forward pass", "es")} · ${(made / Math.max(1, passes)).toFixed(2)} tokens a pass · ${seconds} · log-probability ${logProb.toFixed(2)}`;

function scored(name, nll, { pieces, characters }) {
  const sum = nll.reduce((total, each) => total + (each ?? 0), 0);
  const count = nll.filter((each) => each !== null).length;
  const cells = pieces.map(([start, stop, text]) => {
    const parts = nll.slice(start, stop);
    const nats = parts.reduce((total, each) => total + (each ?? 0), 0);
    const scoredToken = parts.some((each) => each !== null);
    const title = scoredToken ? `${nats.toFixed(2)} nats, ${percent(Math.exp(-nats))}` : "read first, and not predicted";
    const cell = element("span", { title, class: scoredToken ? "made" : "given" }, text);
    cell.style.setProperty("--doubt", (1 - Math.exp(-nats)).toFixed(3));
    return cell;
  });
  const bits = sum / Math.LN2 / characters;
  const totals = `${sum.toFixed(2)} nats · ${(sum / count).toFixed(3)} a token · ${bits.toFixed(3)} bits a character`;
  return element("article", {}, element("h3", {}, name), element("div", { class: "tokens" }, ...cells), element("p", { class: "figures" }, totals));
}

function orderPicture(ranks) {
  const picture = svg("svg", { viewBox: "0 0 64 20", class: "ranks", "aria-hidden": "true" });
  ranks.forEach((rank, place) => {
    const high = 2 + (18 * (ranks.length - rank)) / ranks.length;
    picture.append(svg("rect", { x: place * 4, y: 20 - high, width: 3, height: high }));
  });
  return picture;
}

function legend() {
  const sure = element("span", { class: "made" }, "likely");
  const unsure = element("span", { class: "made" }, "unlikely");
  sure.style.setProperty("--doubt", 0.05);
  unsure.style.setProperty("--doubt", 0.95);
  return element("p", { class: "legend" }, "Written by the model: ", sure, " ", unsure, ". Point at a token, or press Enter on it, for what else was considered. In the pictures of an order, taller bars are read first.");
}
