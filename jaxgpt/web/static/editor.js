// A text in which stretches are gaps: what is typed, gaps of some tokens, and tokens
// that were fixed. Its value is a list of pieces, as the server takes them.

import { element, visible } from "./dom.js";

const MARK = /<missing:(\d{1,5})>/;

export class Editor {
  constructor({ gapsAnywhere, changed }) {
    this.changed = changed;
    this.gapsAnywhere = gapsAnywhere;
    this.element = element("div", {
      class: "editor", contenteditable: "plaintext-only", role: "textbox", spellcheck: "false",
      "aria-multiline": "true", "aria-label": "Text with gaps", tabindex: "0",
    });
    this.element.addEventListener("input", () => {
      this.readMarks();
      changed();
    });
    // Copied text has its gaps written out, and they are read back when pasted.
    this.element.addEventListener("copy", (event) => {
      const inside = getSelection().getRangeAt(0).cloneContents();
      event.clipboardData.setData("text/plain", written(read(inside)));
      event.preventDefault();
    });
  }

  get pieces() {
    return read(this.element);
  }

  set pieces(pieces) {
    this.element.replaceChildren(...pieces.map((piece) => this.node(piece)));
  }

  node(piece) {
    if (piece.gap) return this.gap(piece.gap);
    if (piece.tokens) return fixed(piece.tokens, piece.shown);
    return document.createTextNode(piece.text);
  }

  gap(length) {
    const chip = element("span", {
      class: "gap", contenteditable: "false", role: "spinbutton", tabindex: "0",
      "aria-label": "gap, in tokens", "aria-valuemin": "1", title: "drag the edge, or use the arrow keys",
    });
    const grip = element("i", { class: "grip", "aria-hidden": "true" });
    const count = element("b");
    chip.append(count, grip);
    const set = (value) => {
      const size = Math.max(1, Math.min(9999, Math.round(value)));
      chip.dataset.gap = size;
      chip.setAttribute("aria-valuenow", size);
      chip.setAttribute("aria-valuetext", `${size} token${size > 1 ? "s" : ""}`);
      chip.style.setProperty("--tokens", size);
      count.textContent = size;
    };
    set(length);
    chip.addEventListener("keydown", (event) => {
      const large = event.shiftKey ? 10 : 1;
      const step = { ArrowRight: large, ArrowUp: large, ArrowLeft: -large, ArrowDown: -large }[event.key];
      if (step) {
        set(Number(chip.dataset.gap) + step);
      } else if (event.key === "Delete" || event.key === "Backspace") {
        chip.remove();
        this.element.focus();
      } else {
        return;
      }
      event.preventDefault();
      event.stopPropagation();
      this.changed();
    });
    grip.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      grip.setPointerCapture(event.pointerId);
      const from = event.clientX, before = Number(chip.dataset.gap);
      // The chip grows as it is dragged, so that its edge stays below the pointer.
      const width = parseFloat(getComputedStyle(chip).getPropertyValue("--width")) || 8;
      const move = (moved) => set(before + (moved.clientX - from) / width);
      const end = () => {
        grip.removeEventListener("pointermove", move);
        this.changed();
      };
      grip.addEventListener("pointermove", move);
      grip.addEventListener("pointerup", end, { once: true });
      grip.addEventListener("pointercancel", end, { once: true });
    });
    return chip;
  }

  // Makes the selected stretch a gap of as many tokens; 12 where nothing is selected.
  makeGap(lengthOf) {
    const selection = getSelection();
    let range = selection.rangeCount ? selection.getRangeAt(0) : null;
    if (!range || !this.element.contains(range.commonAncestorContainer)) {
      range = document.createRange();
      range.selectNodeContents(this.element);
      range.collapse(false);
    }
    const pieces = read(range.cloneContents());
    const length = pieces.length ? lengthOf(pieces) : 12;
    range.deleteContents();
    const chip = this.gap(length || 1);
    range.insertNode(chip);
    chip.focus();
    this.changed();
  }

  // A gap that was typed or pasted as <missing:12>.
  readMarks() {
    if (!MARK.test(this.element.textContent)) return;
    const pieces = read(this.element).flatMap((piece) => {
      if (!piece.text) return [piece];
      return piece.text.split(MARK).map((part, at) => (at % 2 ? { gap: Number(part) || 1 } : { text: part }));
    });
    this.pieces = pieces.filter((piece) => piece.text !== "");
    const end = document.createRange();
    end.selectNodeContents(this.element);
    end.collapse(false);
    getSelection().removeAllRanges();
    getSelection().addRange(end);
  }
}

function fixed(tokens, shown) {
  return element("span", {
    class: "fixed", contenteditable: "false", "data-tokens": tokens.join(","), "data-shown": shown, title: "a token that you fixed",
  }, visible(shown));
}

// The pieces below a node.
function read(node) {
  const pieces = [];
  const add = (piece) => {
    const last = pieces.at(-1);
    if (piece.text && last?.text) last.text += piece.text;
    else if (piece.gap && last?.gap) last.gap += piece.gap;
    else if (piece.text !== "") pieces.push(piece);
  };
  const walk = (child) => {
    if (child.nodeType === Node.TEXT_NODE) add({ text: child.data });
    else if (child.dataset?.gap) add({ gap: Number(child.dataset.gap) });
    else if (child.dataset?.tokens) add({ tokens: child.dataset.tokens.split(",").map(Number), shown: child.dataset.shown });
    else if (child.nodeName === "BR") add({ text: "\n" });
    else child.childNodes.forEach(walk);
  };
  node.childNodes.forEach(walk);
  return pieces;
}

const written = (pieces) =>
  pieces.map((piece) => (piece.gap ? `<missing:${piece.gap}>` : piece.text ?? piece.shown)).join("");

export const isGap = (piece) => Boolean(piece.gap);

// Without what only the page needs.
export const sent = (pieces) =>
  pieces.map((piece) => (piece.tokens ? { tokens: piece.tokens } : piece));

// The pieces with the token at a place of the filled text fixed. known: of each token
// whether it was given.
export function withToken(pieces, known, place, id, shown) {
  const found = [];
  let at = 0;
  let given = false;
  for (const piece of pieces) {
    if (!piece.gap) {
      if (!given) while (known[at]) at++;
      given = true;
      found.push(piece);
      continue;
    }
    given = false;
    const inside = place - at;
    if (inside >= 0 && inside < piece.gap) {
      if (inside) found.push({ gap: inside });
      found.push({ tokens: [id], shown });
      if (inside + 1 < piece.gap) found.push({ gap: piece.gap - inside - 1 });
    } else {
      found.push(piece);
    }
    at += piece.gap;
  }
  return found;
}
