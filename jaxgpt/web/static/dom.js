// Small helpers to make elements; text is always set as text, never as HTML.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const count = (number, name, end = "s") => `${number} ${name}${number === 1 ? "" : end}`;

export const percent = (p) =>
  p >= 0.1 ? `${(100 * p).toFixed(0)} %` : `${(100 * p).toPrecision(2)} %`;

// A token as it can be read where it stands alone.
export const visible = (text) =>
  text === "" ? "∅" : text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");

export function say(message, wrong = false) {
  const status = document.getElementById("status");
  status.textContent = message;
  status.classList.toggle("wrong", wrong);
}

export function field(label, input, hint = "") {
  const made = element("label", { class: "field" }, element("span", {}, label), input);
  if (hint) made.title = hint;
  return made;
}

export function number(name, value, attributes = {}) {
  return element("input", { type: "number", name, value, ...attributes });
}

// A curve of [step, value] points.
export function sparkline(points, label) {
  const width = 120, height = 28;
  const picture = svg("svg", {
    viewBox: `0 0 ${width} ${height}`, class: "spark", role: "img", "aria-label": label,
    preserveAspectRatio: "none",
  });
  if (points.length < 2) return picture;
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const path = points.map(([x, y]) => {
    const across = (width * (x - left)) / (right - left || 1);
    const down = height - 2 - ((height - 4) * (y - low)) / (high - low || 1);
    return `${across.toFixed(1)},${down.toFixed(1)}`;
  });
  picture.append(svg("polyline", { points: path.join(" ") }));
  return picture;
}
