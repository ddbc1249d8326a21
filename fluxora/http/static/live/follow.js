// Two correct clients of the live log of Fluxora: over WebSocket and over EventSource. Copy what you need; MIT.
//
// Both follow one thing, `selector`: {streamId: "stream-…"}, {sender: "G…"}, {recipient: "G…"}, or {streamId: "*"} for
// all of it. Both begin behind a position of the log, `after` (GET /api/events?limit=1 tells the newest one), and keep
// the position of the last event that they had. So each event comes once and in order, however often a connection ends.
//
// `on` is what they tell:
//   on.event(event)                   an event of the log
//   on.state(state, text, failures)   "connected", or "waiting" for the next connection after so many that failed
//   on.reset(position, reason)        what was missed cannot be told whole: read the state by REST, then follow it again
//                                     from `position` (null: from the newest one)
//   on.end(reason)                    it may not come back: the token has ended (4401), or an operator has ended it (4403)
//
// Both return a function that ends them.

const FIRST_DELAY_MS = 500;
const MOST_DELAY_MS = 30_000;
const PAUSE_MS = 10_000;
const SILENCE_MS = 30_000; // after which a ping is sent; after as long again without a word the connection is dead
const NAMES = ["stream.created", "stream.updated", "stream.cancelled", "stream.reverted"];

// Longer with each failure, and never at the same time as everybody else.
function delay(failures) {
  return Math.min(MOST_DELAY_MS, FIRST_DELAY_MS * 2 ** failures) * (0.5 + Math.random() / 2);
}

export function overWebSocket({ base, selector, after, on }) {
  const url = new URL("ws/streams", base);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  let socket;
  let timer; // of the silence, or of the next connection
  let failures = 0; // in a row

  function connect() {
    socket = new WebSocket(url, "fluxora.v2");
    socket.onopen = () => send({ type: "subscribe", ...selector, after, ref: "1" });
    socket.onmessage = ({ data }) => hear(JSON.parse(data));
    socket.onclose = ({ code, reason }) => closed(code, reason);
    watch();
  }

  function send(message) {
    socket.send(JSON.stringify(message));
  }

  function hear(message) {
    watch();
    if (message.type === "stream_update") {
      after = message.position;
      on.event(message);
    } else if (message.type === "ack") {
      failures = 0;
      after = message.position;
      on.state("connected", "over WebSocket");
    } else if (message.type === "reset") {
      stop();
      on.reset(message.position, message.reason);
    } else if (message.type === "error") {
      stop();
      on.end(message.message);
    }
  }

  // A connection that is dead looks like one on which nothing happens.
  function watch() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (socket.readyState === WebSocket.OPEN) send({ type: "ping" });
      timer = setTimeout(() => closed(0, "no answer"), SILENCE_MS);
    }, SILENCE_MS);
  }

  function closed(code, reason) {
    stop();
    if (code === 4401 || code === 4403) {
      on.end(reason);
    } else if (code === 4003) {
      on.reset(null, reason);
    } else {
      const wait = delay(failures++) + (code === 1008 || code === 1009 ? PAUSE_MS : 0);
      timer = setTimeout(connect, wait);
      on.state("waiting", `connecting again in ${(wait / 1000).toFixed(1)} s`, failures);
    }
  }

  function stop() {
    clearTimeout(timer);
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  connect();
  return stop;
}

export function overEventSource({ base, selector, after, on }) {
  let source;
  let timer;
  let failures = 0;

  function connect() {
    const url = new URL("api/events/stream", base);
    for (const [name, value] of Object.entries(selector)) {
      if (value !== "*") url.searchParams.set(name, value);
    }
    url.searchParams.set("after", after);
    source = new EventSource(url);
    source.onopen = () => {
      failures = 0;
      on.state("connected", "over EventSource");
    };
    for (const name of NAMES) {
      source.addEventListener(name, ({ data, lastEventId }) => {
        after = lastEventId;
        on.event(JSON.parse(data));
      });
    }
    source.addEventListener("reset", ({ data }) => {
      stop();
      const { position, reason } = JSON.parse(data);
      on.reset(position, reason);
    });
    source.onerror = failed;
  }

  // It comes back by itself, with the id of the last event; but not where it was answered with anything but a stream.
  function failed() {
    if (source.readyState === EventSource.CLOSED) {
      const wait = delay(failures++);
      timer = setTimeout(connect, wait);
      on.state("waiting", `connecting again in ${(wait / 1000).toFixed(1)} s`, failures);
    } else {
      on.state("waiting", "connecting again");
    }
  }

  function stop() {
    clearTimeout(timer);
    source.close();
  }

  connect();
  return stop;
}
