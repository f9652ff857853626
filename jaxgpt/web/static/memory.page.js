// The page of runs with a memory: documents, and what each token was predicted with.

import { act, attempt, report } from "./api.js";
import { element, field, number, visible } from "./dom.js";

export default class MemoryPage {
  constructor(run, about) {
    Object.assign(this, { run, about });
    this.list = element("ul", { class: "documents" });
    this.name = element("input", { type: "text", maxlength: 200 });
    this.text = element("textarea", { rows: 5, maxlength: 20000 });
    this.prompt = element("textarea", { rows: 3, maxlength: 20000 });
    this.new = number("new", 40, { min: 1, max: about.most_new_tokens });
    this.temperature = number("temperature", 0.7, { min: 0, max: 10, step: 0.05 });
    this.seed = number("seed", 0, { min: 0, step: 1 });
    this.written = element("div", { class: "results" });
    this.sources = element("div", { "aria-live": "polite" });
    const add = element("button", { type: "button", onclick: () => this.remember() }, "Remember");
    const go = element("button", { type: "button", class: "main", onclick: () => this.fill() }, "Continue");
    this.element = element("div", { class: "halves" },
      element("section", {}, element("h3", {}, "Documents"), element("p", { class: "hint" }, `The memory has room for ${about.room.toLocaleString("en")} tokens; it starts empty and is lost when the server ends.`), this.list,
        field("Name", this.name), field(about.has_text ? "Text" : "Token ids", this.text), element("div", { class: "bar" }, add)),
      element("section", {}, element("h3", {}, "Continue a text"), field(about.has_text ? "Beginning" : "Its token ids", this.prompt),
        element("div", { class: "bar" }, field("Tokens", this.new), field("Temperature", this.temperature), field("Seed", this.seed), go),
        element("p", { class: "hint" }, "Choose a token to see which memories it was predicted with. What is written is remembered too."), this.written, this.sources));
    this.do("memories", {}, (done) => this.show(done.documents));
  }

  do(action, body, then) {
    return attempt(async () => then(await act(this.run, action, body, report)));
  }

  show(documents) {
    const rows = Object.entries(documents).map(([name, entries]) =>
      element("li", {}, element("span", {}, element("b", {}, name), ` ${entries.toLocaleString("en")} entries`),
        element("button", { type: "button", class: "small", "aria-label": `forget ${name}`, onclick: () => this.forget(name) }, "Forget")));
    this.list.replaceChildren(...(rows.length ? rows : [element("li", { class: "hint" }, "nothing yet")]));
  }

  // What was shown of the document goes too.
  forget(name) {
    this.do("forget", { name }, (done) => {
      this.show(done.documents);
      this.written.replaceChildren();
      this.sources.replaceChildren();
    });
  }

  remember() {
    this.do("remember", { name: this.name.value, text: this.text.value }, (done) => {
      this.show(done.documents);
      this.name.value = this.text.value = "";
    });
  }

  fill() {
    const pieces = [{ text: this.prompt.value }, { gap: Number(this.new.value) }].filter((piece) => piece.text !== "");
    const body = { pieces, seed: Number(this.seed.value), sampling: { temperature: Number(this.temperature.value) } };
    this.do("fill", body, (done) => {
      this.show(done.documents);
      const tokens = done.tokens.map(({ text, memories }) => {
        const weight = memories.reduce((sum, each) => sum + each.score, 0);
        const token = element("button", { type: "button", class: "made token", title: memories.length === 1 ? "1 memory" : `${memories.length} memories` }, text === "\n" ? "↵\n" : text);
        token.style.setProperty("--doubt", Math.min(1, weight).toFixed(3));
        token.addEventListener("click", () => this.explain(text, memories));
        return token;
      });
      const card = element("article", {}, element("div", { class: "tokens" }, element("span", { class: "given" }, done.given), ...tokens), element("p", { class: "figures" }, `log-probability ${done.log_prob.toFixed(2)} · deeper colours used the memory more`));
      this.written.replaceChildren(card);
      this.sources.replaceChildren();
    });
  }

  explain(text, memories) {
    const rows = memories.map((each) =>
      element("li", {}, element("b", {}, each.score.toFixed(3)), ` ${each.document} at ${each.position}: `, element("q", {}, each.text)));
    this.sources.replaceChildren(element("h3", {}, `What ${visible(text)} was predicted with`), rows.length ? element("ul", {}, ...rows) : element("p", {}, "No memory was found for it."));
  }
}
