// Requests to the server that sent this page.

import { count, say } from "./dom.js";

const token = new URLSearchParams(location.search).get("token") || "";
const headers = token ? { authorization: `Bearer ${token}` } : {};

export async function get(path) {
  const answer = await fetch(`/api/${path}`, { headers });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

// Calls on(event) for each event of the answer, and returns the last one.
export async function act(run, action, body = {}, on = () => {}, signal = undefined) {
  const answer = await fetch(`/api/runs/${encodeURIComponent(run)}/${action}`, {
    method: "POST",
    headers: { ...headers, "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!answer.ok) throw new Error(await answer.text());
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  let last = null;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (left + value).split("\n\n");
    left = parts.pop();
    for (const part of parts) {
      last = JSON.parse(part.slice("data: ".length));
      if (last.type === "error") throw new Error(last.message);
      on(last);
    }
  }
  if (last?.type !== "done") throw new Error("the server ended before it was done");
  return last;
}

export function explain(event) {
  const waiting = `waiting for ${count(event.ahead, "other request")}`;
  return {
    queued: waiting,
    loading: "loading the model",
    running: event.compiling ? "compiling, once for these options" : "running",
  }[event.type];
}

export function report(event) {
  const text = explain(event);
  if (text) say(text);
}

// Does what needs the server, and says how it went.
export async function attempt(work, end = "done") {
  say("asking");
  try {
    await work();
    say(end);
  } catch (error) {
    say(error.message, true);
  }
}
