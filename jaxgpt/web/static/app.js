// The runs, and the page of the one that is open.

import { act, get, report } from "./api.js";
import { element, say, sparkline } from "./dom.js";
import { Popover } from "./tokens.js";

const EVERY = 4000; // Milliseconds between looks at the curves.
const stage = document.getElementById("stage");
const list = document.getElementById("runs");
const popover = new Popover(document.getElementById("popover"));
const items = new Map();
let opened = "";

async function open(name) {
  if (opened === name) return;
  opened = name;
  location.hash = encodeURIComponent(name);
  for (const [each, item] of items) item.button.setAttribute("aria-current", String(each === name));
  stage.replaceChildren(element("p", { class: "hint" }, `Opening ${name}`));
  try {
    const about = await act(name, "describe", {}, report);
    const { default: Page } = await import(`/static/${about.kind}.page.js`);
    if (opened !== name) return;
    const page = new Page(name, about, popover);
    const facts = `${about.system} · step ${about.step.toLocaleString("en")} · ${about.parameters.toLocaleString("en")} parameters · up to ${about.longest.toLocaleString("en")} tokens`;
    stage.replaceChildren(element("h2", {}, name), element("p", { class: "facts" }, facts), page.element);
    say("ready");
  } catch (error) {
    if (opened !== name) return;
    opened = "";
    stage.replaceChildren(element("h2", {}, name), element("p", { class: "wrong" }, error.message));
    say(error.message, true);
  }
}

async function look() {
  try {
    const runs = await get("runs");
    for (const { name, system, problem } of runs) {
      if (!items.has(name)) {
        const curve = element("span", { class: "curve" });
        const kind = element("small");
        const button = element("button", { type: "button", onclick: () => open(name) }, element("b", {}, name), kind, curve);
        items.set(name, { button, curve, kind });
        list.append(element("li", {}, button));
      }
      const item = items.get(name);
      item.kind.textContent = problem || system;
      const { loss, val_loss } = await get(`runs/${encodeURIComponent(name)}/curves`);
      const points = val_loss.length > 1 ? val_loss : loss;
      const last = points.at(-1);
      const label = last ? `loss ${last[1].toFixed(3)} at step ${last[0]}` : "nothing logged yet";
      if (item.label !== label) {
        item.label = label;
        item.curve.replaceChildren(sparkline(points, label), element("small", {}, label));
      }
    }
    return runs;
  } catch (error) {
    say(error.message, true);
    return [];
  }
}

async function start() {
  if (matchMedia("(max-width: 700px)").matches) document.getElementById("runs-fold").open = false;
  const runs = await look();
  const wanted = decodeURIComponent(location.hash.slice(1));
  const first = runs.find((run) => run.name === wanted) || runs.find((run) => !run.problem) || runs[0];
  if (first) open(first.name);
  setInterval(look, EVERY);
}

start();
