// Recorded fillings, played again; without a server.

import { count, element } from "./dom.js";
import { Popover, TokenText, orderStrip } from "./tokens.js";

const recorded = JSON.parse(document.getElementById("recorded").textContent);
const popover = new Popover(document.getElementById("popover"));

function card({ title, known, given, pieces, alternatives, sample }) {
  const text = new TokenText(known, given, title);
  text.add(pieces);
  text.alternatives = alternatives ?? {};
  text.keep();
  if (alternatives) text.makeInteractive(popover, null);
  const replay = element("button", { type: "button", class: "small", onclick: () => text.replay(sample.steps) }, "Replay");
  const pace = (sample.generated / Math.max(1, sample.passes)).toFixed(2);
  const figures = `${count(sample.generated, "token")} in ${count(sample.passes, "forward pass", "es")} · ${pace} tokens a pass · log-probability ${sample.log_prob.toFixed(2)}`;
  text.replay(sample.steps);
  return element("article", {}, element("div", { class: "head" }, element("h2", {}, title), replay), text.element, orderStrip(sample.rank), element("p", { class: "figures" }, figures));
}

const facts = `${recorded.run}: ${recorded.system}, step ${recorded.step.toLocaleString("en")}, ${recorded.parameters.toLocaleString("en")} parameters`;
document.getElementById("stage").append(
  element("p", { class: "hint" }, `Recorded from ${facts}. What was given stays as it is; the model wrote the rest around it, each token lit as it came. Deeper colours were less likely; point at a token for what else was considered.`),
  element("div", { class: "results" }, ...recorded.fillings.map(card)),
);
