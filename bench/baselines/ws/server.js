'use strict';

// The predecessor's hub: ws 8 on one Node process, no database. Each event is encoded once and sent to its followers in
// a loop. Server-Sent Events, on Node's own http, are the same loop.
//
// node server.js OPTIONS: JSON {"sample": an event as GET /api/events shows it, "position": N, "pingMs": N}. Prints
// {"port": N} once it listens, then answers one line of JSON with one, and ends when its standard input does:
//   {"prepare": [[stream id, ...], ...]}   what the next commits bring, one event for each id
//   {"everyMs": N}                         publish them, so far apart; says the position before, and when each began
//
// Where a choice was free, the faster one was taken: a message becomes bytes once, and not once for each socket.

const http = require('node:http');
const readline = require('node:readline');
const { WebSocketServer } = require('ws');

const { sample, position: start, pingMs } = JSON.parse(process.argv[2]);
const followers = new Map(); // stream id or "*" -> Set of functions that take an event
let position = start;
let prepared = [];

function follow(key, tell) {
  if (!followers.has(key)) followers.set(key, new Set());
  followers.get(key).add(tell);
  return () => followers.get(key).delete(tell);
}

function publish(streamId) {
  position += 1;
  const at = String(position);
  const { payload, event, action, ledger, timestamp, eventId } = sample;
  const shown = { ...payload, id: streamId, position: at };
  let message = null; // made for the first who needs them
  let block = null;
  const made = {
    message: () =>
      (message ??= Buffer.from(
        JSON.stringify({ type: 'stream_update', streamId, eventId, payload: shown, event, action, position: at, ledger, timestamp }),
      )),
    block: () =>
      (block ??= Buffer.from(
        `id: ${at}\nevent: ${event}\ndata: ${JSON.stringify({ ...sample, streamId, position: at, payload: shown })}\n\n`,
      )),
  };
  for (const key of [streamId, '*']) {
    const those = followers.get(key);
    if (those) for (const tell of those) tell(made);
  }
}

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://localhost');
  if (url.pathname !== '/api/events/stream') return response.writeHead(404).end();
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  response.write(`retry: 3000\nid: ${position}\n\n`);
  response.on('close', follow(url.searchParams.get('streamId') ?? '*', (made) => response.write(made.block())));
  return undefined;
});
server.requestTimeout = 0;

const hub = new WebSocketServer({ server, path: '/ws/streams', perMessageDeflate: false });
hub.on('connection', (socket) => {
  const followed = [];
  const tell = (made) => socket.send(made.message(), { binary: false });
  socket.isAlive = true;
  socket.on('pong', () => {
    socket.isAlive = true;
  });
  socket.on('error', () => {});
  socket.on('close', () => followed.forEach((end) => end()));
  socket.on('message', (data) => {
    const { type, streamId, ref } = JSON.parse(data);
    if (type === 'subscribe') followed.push(follow(streamId, tell));
    if (ref) socket.send(JSON.stringify({ type: 'ack', ref, position: String(position), recovered: false }));
  });
});
setInterval(() => {
  for (const socket of hub.clients) {
    if (!socket.isAlive) {
      socket.terminate();
      continue;
    }
    socket.isAlive = false;
    socket.ping();
  }
}, pingMs);

const now = () => Number(process.hrtime.bigint()) / 1e9; // the clock that every process of this machine shares
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

function commit(everyMs) {
  const began = now();
  const before = position;
  const published = [];
  const step = () => {
    if (published.length === prepared.length) return say({ before, published });
    const wait = began + (published.length * everyMs) / 1e3 - now();
    if (wait > 0) return setTimeout(step, wait * 1e3);
    published.push(now());
    prepared[published.length - 1].forEach(publish);
    return setImmediate(step);
  };
  step();
}

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const asked = JSON.parse(line);
  if (asked.prepare) {
    prepared = asked.prepare;
    say({ commits: prepared.length });
  } else {
    commit(asked.everyMs);
  }
});
process.stdin.on('end', () => process.exit(0));

server.listen({ port: 0, host: '127.0.0.1', backlog: 2048 }, () => say({ port: server.address().port }));
