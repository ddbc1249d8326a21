'use strict';

// The predecessor as its users knew it: Express 4 with helmet, one process, every stream in memory.
//
// node server.js STREAMS: STREAMS is a file with one stream as JSON a line. Prints {"port": N} once it listens, and ends
// when its standard input does.
//
// Where a choice was free, the faster one was taken: ids are found in a Map, a list without filters is a slice.

const fs = require('node:fs');
const { randomUUID } = require('node:crypto');
const express = require('express');
const helmet = require('helmet');

const MAX_LIMIT = 100;
const DECIMAL = /^[+-]?\d+(\.\d{1,7})?$/;
const ADDRESS = /^[GC][A-Z2-7]{55}$/;
const FILTERS = ['status', 'sender', 'recipient', 'contractId'];

const streams = fs
  .readFileSync(process.argv[2], 'utf8')
  .split('\n')
  .filter(Boolean)
  .map((line) => JSON.parse(line));
const byId = new Map(streams.map((stream) => [stream.id, stream]));
const started = Date.now();

const app = express();
app.use(helmet());
app.use(express.json({ limit: '256kb' }));

app.get('/health', (req, res) => {
  res.json({
    status: 'ok',
    service: 'fluxora-backend',
    timestamp: new Date().toISOString(),
    uptimeMs: Date.now() - started,
    wsConnections: 0,
    indexer: {
      status: 'not_configured',
      summary: 'No source is configured',
      lagMs: null,
      lastLedger: null,
      lastSafeLedger: null,
      lastSuccessfulSyncAt: null,
      reorgDetected: false,
    },
    dependencies: { database: { status: 'not_configured' }, stellarRpc: { status: 'not_configured' } },
  });
});

app.get('/api/streams', (req, res) => {
  const limit = req.query.limit === undefined ? 20 : Number(req.query.limit);
  const start = req.query.cursor === undefined ? 0 : Number(req.query.cursor);
  if (!Number.isInteger(limit) || limit < 1 || limit > MAX_LIMIT || !Number.isInteger(start) || start < 0) {
    return res.status(400).json({ error: 'VALIDATION_ERROR', message: 'limit or cursor is not valid' });
  }
  let found = streams;
  for (const name of FILTERS) {
    const wanted = req.query[name];
    if (wanted !== undefined) found = found.filter((stream) => stream[name] === wanted);
  }
  const end = start + limit;
  const hasMore = end < found.length;
  return res.json({
    streams: found.slice(start, end),
    hasMore,
    nextCursor: hasMore ? String(end) : null,
    position: String(streams.length),
  });
});

app.get('/api/streams/:id', (req, res) => {
  const stream = byId.get(req.params.id);
  if (stream === undefined) return res.status(404).json({ error: 'NOT_FOUND', message: 'There is no such stream' });
  return res.json(stream);
});

app.post('/api/streams', (req, res) => {
  const body = req.body;
  const details = [];
  for (const name of ['sender', 'recipient']) {
    if (typeof body[name] !== 'string' || !ADDRESS.test(body[name])) details.push({ field: name, code: 'INVALID_ADDRESS' });
  }
  for (const name of ['depositAmount', 'ratePerSecond']) {
    if (typeof body[name] !== 'string' || !DECIMAL.test(body[name])) {
      details.push({ field: name, code: 'DECIMAL_INVALID_FORMAT' });
    }
  }
  if (details.length > 0) {
    return res.status(400).json({ error: 'VALIDATION_ERROR', message: 'The body is not valid', details });
  }
  const now = new Date();
  const seconds = Math.floor(now.getTime() / 1000);
  const stream = {
    id: `stream-${randomUUID().replaceAll('-', '')}`,
    origin: 'api',
    sender: body.sender,
    recipient: body.recipient,
    depositAmount: body.depositAmount,
    ratePerSecond: body.ratePerSecond,
    withdrawnAmount: '0.0000000',
    streamedAmount: '0.0000000',
    withdrawableAmount: '0.0000000',
    remainingAmount: body.depositAmount,
    startTime: body.startTime ?? seconds,
    cliffTime: body.cliffTime ?? body.startTime ?? seconds,
    endTime: body.endTime ?? 0,
    kind: 'linear',
    status: 'active',
    position: String(streams.length + 1),
    asOf: seconds,
    createdAt: now.toISOString(),
    updatedAt: now.toISOString(),
  };
  streams.push(stream);
  byId.set(stream.id, stream);
  return res.status(201).location(`/api/streams/${stream.id}`).json(stream);
});

const server = app.listen(0, '127.0.0.1', () => {
  process.stdout.write(`${JSON.stringify({ port: server.address().port })}\n`);
});
process.stdin.on('end', () => process.exit(0)).resume();
