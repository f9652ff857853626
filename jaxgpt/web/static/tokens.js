// A text as tokens: what is given, what is missing, and what a model wrote, coloured by
// its probability.

import { Player } from "./player.js";
import { element, percent, visible } from "./dom.js";

const REPLAY = 120; // Milliseconds of each forward pass.

export class TokenText {
  // known: of each token whether it is given; pieces: [start, stop, text] of those.
  constructor(known, pieces, label) {
    this.known = known;
    this.alternatives = {};
    this.cells = known.map((given, place) =>
      element("span", given ? { class: "given" } : { class: "missing", "data-place": place }, given ? "" : "·"));
    for (const [start, , text] of pieces) this.cells[start].textContent = text;
    this.element = element("div", { class: "tokens", role: "group", "aria-label": label }, ...this.cells);
  }

  // New pieces: [start, stop, text, token ids, log-probabilities].
  add(pieces) {
    for (const cell of this.element.querySelectorAll(".new")) cell.classList.remove("new");
    for (const [start, stop, text, ids, logProbs] of pieces) {
      const cell = this.cells[start];
      const p = Math.exp(logProbs.reduce((sum, each) => sum + each, 0));
      cell.className = "made new";
      cell.textContent = text === "\n" ? "↵\n" : text;
      cell.style.setProperty("--doubt", (1 - p).toFixed(3));
      cell.dataset.p = p;
      cell.dataset.token = ids[0];
      for (let place = start + 1; place < stop; place++) {
        this.cells[place].className = "made";
        this.cells[place].textContent = "";
      }
    }
  }

  // Remembers what is written, for replays.
  keep() {
    this.written = this.cells.map((cell) => [cell.className, cell.textContent]);
  }

  // Shows again how it was written; steps: the forward pass that each token is from.
  replay(steps) {
    const show = (pass) => this.cells.forEach((cell, place) => {
      if (this.known[place]) return;
      const [name, text] = this.written[place];
      const shown = steps[place] <= pass;
      cell.className = shown ? `${name.replace(" new", "")}${steps[place] === pass ? " new" : ""}` : "missing";
      cell.textContent = shown ? text : "·";
    });
    this.player?.clear();
    this.player = new Player(REPLAY);
    for (let pass = 0; pass <= Math.max(...steps); pass++) this.player.push(() => show(pass));
  }

  // Lets each written token be asked what else was considered: one stop of the Tab key,
  // arrows from token to token.
  makeInteractive(popover, choose) {
    const cells = this.cells.filter((cell) => cell.classList.contains("made") && cell.textContent);
    for (const [index, cell] of cells.entries()) {
      cell.tabIndex = index ? -1 : 0;
      cell.setAttribute("role", "button");
      cell.setAttribute("aria-haspopup", "dialog");
      const name = `${visible(cell.textContent)}, ${percent(Number(cell.dataset.p))}`;
      cell.setAttribute("aria-label", name);
    }
    const show = (cell, focus) => {
      const place = Number(cell.dataset.place);
      const list = this.alternatives[place] || [];
      popover.show(cell, list, Number(cell.dataset.token), choose && ((id, text) => choose(place, id, text)), focus);
    };
    const made = (event) => event.target.closest?.(".made[role]");
    this.element.addEventListener("pointerover", (event) => {
      if (made(event) && event.pointerType === "mouse") show(made(event), false);
    });
    this.element.addEventListener("pointerleave", () => popover.leave());
    this.element.addEventListener("click", (event) => made(event) && show(made(event), false));
    this.element.addEventListener("keydown", (event) => {
      const at = cells.indexOf(document.activeElement);
      if (at < 0) return;
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -at, End: cells.length - 1 - at }[event.key];
      if (step !== undefined) {
        const next = cells[Math.min(Math.max(at + step, 0), cells.length - 1)];
        cells[at].tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
        event.preventDefault();
      } else if (event.key === "Enter" || event.key === " ") {
        show(cells[at], true);
        event.preventDefault();
      }
    });
  }
}

// When each token was read: first ones dark.
export function orderStrip(ranks) {
  const canvas = element("canvas", {
    class: "order", width: ranks.length, height: 1, role: "img",
    "aria-label": "in which order the tokens were read: dark ones first",
    title: "the order of reading: dark tokens first",
  });
  const context = canvas.getContext("2d");
  ranks.forEach((rank, place) => {
    const light = 20 + (70 * rank) / Math.max(1, ranks.length - 1);
    context.fillStyle = `hsl(188 45% ${light}%)`;
    context.fillRect(place, 0, 1, 1);
  });
  return canvas;
}

// The one list of alternatives that is open.
export class Popover {
  constructor(box) {
    this.box = box;
    this.timer = 0;
    box.addEventListener("pointerenter", () => clearTimeout(this.timer));
    box.addEventListener("pointerleave", () => this.leave());
    box.addEventListener("keydown", (event) => {
      const buttons = [...box.querySelectorAll("button")];
      const at = buttons.indexOf(document.activeElement);
      if (event.key === "Escape") {
        const anchor = this.anchor;
        this.hide();
        anchor?.focus();
      } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        const step = event.key === "ArrowDown" ? 1 : buttons.length - 1;
        buttons[(at + step) % buttons.length]?.focus();
        event.preventDefault();
      }
      event.stopPropagation();
    });
    document.addEventListener("pointerdown", (event) => {
      if (!box.contains(event.target) && !event.target.closest?.(".made")) this.hide();
    });
  }

  show(anchor, list, chosen, choose, focus) {
    clearTimeout(this.timer);
    this.anchor = anchor;
    const p = Number(anchor.dataset.p);
    const rows = list.map(([id, text, each]) => {
      const bar = element("i");
      bar.style.setProperty("--p", each.toFixed(4));
      const button = element("button", { type: "button", class: id === chosen ? "chosen" : "", disabled: !choose },
        element("b", {}, visible(text)), bar, element("span", {}, percent(each)));
      button.addEventListener("click", () => { this.hide(); choose(id, text); });
      return button;
    });
    const longest = Math.max(3, ...list.map(([, text]) => text.length));
    this.box.style.setProperty("--token", `${Math.min(18, longest + 1)}ch`);
    const title = `${visible(anchor.textContent)}: ${percent(p)}`;
    const hint = !list.length ? "Nothing predicts the token that is read first." : choose ? "Click one to fix it and fill the rest again." : "";
    this.box.replaceChildren(element("p", {}, title), ...rows, element("small", {}, hint));
    this.box.hidden = false;
    const place = anchor.getBoundingClientRect();
    const left = Math.min(place.left, innerWidth - this.box.offsetWidth - 8);
    const below = place.bottom + this.box.offsetHeight + 8 < innerHeight;
    const top = below ? place.bottom + 4 : Math.max(4, place.top - this.box.offsetHeight - 4);
    this.box.style.left = `${Math.max(8, left) + scrollX}px`;
    this.box.style.top = `${top + scrollY}px`;
    if (focus) this.box.querySelector("button")?.focus();
  }

  leave() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => !this.box.contains(document.activeElement) && this.hide(), 250);
  }

  hide() {
    this.box.hidden = true;
  }
}
