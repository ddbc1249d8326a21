// The newest events of the log, as they come. How they come is in follow.js; here they become rows of a table.
import { overEventSource, overWebSocket } from "./follow.js";

const MOST_ROWS = 500;
const BEFORE = 25n; // events of the past that are shown at first
const TRIES = 2; // of a WebSocket that never opens, as some proxies let none through; then over EventSource

const asked = new URLSearchParams(location.search);
const by = ["streamId", "sender", "recipient"].find((name) => asked.get(name)) ?? "streamId";
const selector = { [by]: asked.get(by) || "*" };
const base = new URL(".", location.href);
const rows = document.getElementById("events");

function show(event) {
  const stream = event.payload?.stream ?? event.payload ?? {};
  const row = document.createElement("tr");
  row.dataset.position = event.position;
  const cells = [
    event.position,
    event.timestamp.slice(0, 19).replace("T", " "),
    event.event === "stream.reverted" ? "reverted" : event.action,
    event.streamId ?? "",
    stream.status ?? "",
    stream.streamedAmount ?? "",
    stream.depositAmount ?? "",
  ];
  for (const text of cells) row.insertCell().textContent = text; // never as HTML: a stream's texts are its sender's
  if (event.streamId) link(row.cells[3], event.streamId);
  row.classList.add(event.event.replace("stream.", ""));
  rows.prepend(row);
  while (rows.rows.length > MOST_ROWS) rows.lastElementChild.remove();
}

function link(cell, streamId) {
  const anchor = document.createElement("a");
  anchor.href = `?${new URLSearchParams({ streamId, via: asked.get("via") ?? "ws" })}`;
  anchor.textContent = streamId;
  cell.replaceChildren(anchor);
}

function state(name, text) {
  const shown = document.getElementById("state");
  shown.dataset.state = name;
  shown.textContent = `${name}, ${text}`;
}

function notice(text) {
  const shown = document.getElementById("notice");
  shown.textContent = text;
  shown.hidden = false;
}

async function newest() {
  const answer = await fetch(new URL("api/events?limit=1", base));
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  return (await answer.json()).position;
}

async function begin(after) {
  try {
    if (after === null) {
      const position = BigInt(await newest());
      after = String(position > BEFORE ? position - BEFORE : 0n);
    }
  } catch (error) {
    state("waiting", error.message);
    setTimeout(begin, 3000, null);
    return;
  }
  follow(after, asked.get("via") === "sse" ? overEventSource : overWebSocket);
}

function follow(after, over) {
  let opened = false;
  const stop = over({
    base,
    selector,
    after,
    on: {
      event(event) {
        after = event.position;
        show(event);
      },
      state(name, text, failures = 0) {
        opened ||= name === "connected";
        state(name, text);
        if (over === overWebSocket && !opened && failures >= TRIES) {
          stop();
          follow(after, overEventSource);
        }
      },
      reset(position, reason) {
        rows.replaceChildren();
        notice(`${reason}. What was missed cannot be shown; this is what comes from here on.`);
        begin(position);
      },
      end(reason) {
        state("ended", reason);
      },
    },
  });
}

const form = document.getElementById("filter");
form.elements.by.value = by;
form.elements.value.value = asked.get(by) ?? "";
form.elements.via.value = asked.get("via") === "sse" ? "sse" : "ws";
form.addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const wanted = form.elements.value.value.trim();
  location.search = new URLSearchParams({
    ...(wanted && { [form.elements.by.value]: wanted }),
    via: form.elements.via.value,
  });
});
begin(asked.get("after"));
