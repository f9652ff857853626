// The page of runs that do a task: a maze is drawn and solved in place.

import { act, attempt, explain, report } from "./api.js";
import { count, element, field, number, say } from "./dom.js";
import { Player } from "./player.js";

const [EMPTY, WALL, START, GOAL, PATH] = [0, 1, 2, 3, 4];
const NAMES = ["floor", "wall", "start", "goal", "path"];

export default class TaskPage {
  constructor(run, about) {
    Object.assign(this, { run, about });
    this.seed = number("seed", 0, { min: 0, step: 1 });
    this.sampler = element("select", {}, element("option", { value: "" }, "default"),
      ...about.samplers.map(({ name, note }) => element("option", { value: name, title: note }, note ? `${name} (not exact)` : name)));
    this.order = element("select", {}, ...about.orders.map(({ name }) => element("option", {}, name)));
    this.solveButton = element("button", { type: "button", class: "main", onclick: () => this.solve() }, "Solve");
    this.cancelButton = element("button", { type: "button", disabled: true, onclick: () => this.abort?.abort() }, "Cancel");
    const next = element("button", { type: "button", onclick: () => this.next() }, "New problem");
    this.given = element("div", { class: "given-problem" });
    this.answer = element("div");
    const bar = element("div", { class: "bar" }, field("Seed", this.seed), field("Sampler", this.sampler), field("Order", this.order), next, this.solveButton, this.cancelButton);
    const hint = about.grid
      ? "Draw: choose a brush, then press or drag over cells. The frame of the maze stays wall."
      : "The problem is drawn from the task; the model does the rest.";
    this.element = element("div", {}, element("p", { class: "hint" }, hint), bar, this.given, this.answer);
    this.element.addEventListener("keydown", (event) => event.key === "Escape" && this.abort?.abort());
    this.problem();
  }

  next() {
    this.seed.value = Number(this.seed.value) + 1;
    this.problem();
  }

  problem() {
    return attempt(async () => {
      const found = await act(this.run, "problem", { seed: Number(this.seed.value) }, report);
      this.tokens = found.tokens;
      this.known = found.known;
      this.answer.replaceChildren();
      if (this.about.grid) this.drawMaze();
      else this.given.replaceChildren(element("h3", {}, "Given"), element("pre", {}, this.words(found.known)));
    }, "ready");
  }

  words(shown) {
    return this.tokens.map((token, place) => (shown[place] ? this.about.words[token] : "·")).join(" ");
  }

  drawMaze() {
    const { rows, columns } = this.about.grid;
    let brush = WALL;
    const brushes = element("fieldset", { class: "orders" }, element("legend", {}, "Brush"));
    for (const kind of [WALL, EMPTY, START, GOAL]) {
      const radio = element("input", { type: "radio", name: "brush", checked: kind === brush, onchange: () => (brush = kind) });
      brushes.append(element("label", {}, radio, element("i", { class: `cell ${NAMES[kind]}` }), element("span", {}, NAMES[kind])));
    }
    const grid = element("div", { class: "maze", role: "grid", "aria-label": "maze" });
    grid.style.setProperty("--columns", columns);
    this.cells = [];
    const paint = (place) => {
      const [row, column] = [Math.floor(place / columns), place % columns];
      if (row === 0 || column === 0 || row === rows - 1 || column === columns - 1) return;
      if (brush === START || brush === GOAL) {
        const old = this.tokens.indexOf(brush);
        if (old >= 0 && old < rows * columns) this.set(old, EMPTY);
      } else if (this.tokens[place] === START || this.tokens[place] === GOAL) {
        return; // They are moved, never removed.
      }
      this.set(place, brush);
      this.answer.replaceChildren();
      this.cells.forEach((cell) => cell.classList.remove("path", "spoilt"));
    };
    for (let row = 0; row < rows; row++) {
      const line = element("div", { role: "row" });
      for (let column = 0; column < columns; column++) {
        const place = row * columns + column;
        const cell = element("button", { type: "button", role: "gridcell", tabindex: place === columns + 1 ? 0 : -1, onclick: () => paint(place) });
        this.cells.push(cell);
        line.append(cell);
      }
      grid.append(line);
    }
    this.cells.forEach((_, place) => this.set(place, this.tokens[place]));
    grid.addEventListener("pointerover", (event) => {
      const place = this.cells.indexOf(event.target);
      if (event.buttons === 1 && place >= 0) paint(place);
    });
    grid.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
      const next = this.cells[this.cells.indexOf(document.activeElement) + step];
      if (!next) return;
      document.activeElement.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
      event.preventDefault();
    });
    this.given.replaceChildren(brushes, grid);
  }

  set(place, kind) {
    this.tokens[place] = kind;
    const cell = this.cells[place];
    cell.className = `cell ${NAMES[kind]}`;
    const columns = this.about.grid.columns;
    cell.setAttribute("aria-label", `row ${Math.floor(place / columns) + 1}, column ${(place % columns) + 1}: ${NAMES[kind]}`);
  }

  // Draws what is decoded of the answer over the maze.
  overlay(tokens, decoded) {
    const size = this.cells.length;
    this.cells.forEach((cell, place) => {
      const made = decoded[size + place];
      const token = tokens[size + place];
      const before = this.tokens[place];
      cell.classList.toggle("path", made && token === PATH && before === EMPTY);
      cell.classList.toggle("spoilt", made && token !== before && !(token === PATH && before === EMPTY));
      cell.classList.toggle("pending", !made);
    });
  }

  async solve() {
    say("asking");
    this.abort?.abort();
    const abort = (this.abort = new AbortController());
    const player = new Player();
    this.cancelButton.disabled = false;
    this.answer.replaceChildren();
    const sampling = { order: this.order.value };
    if (this.sampler.value) sampling.sampler = this.sampler.value;
    const body = { tokens: this.tokens, known: this.known, seed: Number(this.seed.value), sampling };
    try {
      const done = await act(this.run, "solve", body, (event) => {
        if (event.type === "running") this.compiled = event.compiling;
        if (explain(event)) say(explain(event));
        else if (event.type === "frame" && this.about.grid) player.push(() => this.overlay(event.tokens, event.decoded));
      }, abort.signal);
      await player.drained();
      this.show(done);
      say("done");
    } catch (error) {
      player.clear();
      if (this.abort === abort) say(abort.signal.aborted ? "cancelled" : error.message, !abort.signal.aborted);
    } finally {
      if (this.abort === abort) this.cancelButton.disabled = true;
    }
  }

  show(done) {
    const right = done.verdict.accuracy > 0;
    const others = Object.entries(done.verdict).filter(([name]) => name !== "accuracy").map(([name, value]) => ` · ${name.replaceAll("_", " ")} ${Number(value.toFixed(3))}`);
    const verdict = element("p", { class: right ? "right" : "wrong" }, element("b", {}, right ? "Right" : "Wrong"), ...others);
    const seconds = `${done.seconds.toFixed(2)} s${this.compiled ? ", compilation included" : ""}`;
    const figures = `${count(done.generated, "token")} in ${count(done.passes, "forward pass", "es")} · ${seconds} · log-probability ${done.log_prob.toFixed(2)}`;
    this.answer.replaceChildren(verdict, element("p", { class: "figures" }, figures));
    if (!this.about.grid) {
      this.answer.append(element("h3", {}, "Answer"), element("pre", {}, done.text), element("img", { src: done.picture, alt: "the task's picture of this answer" }));
    }
  }
}
