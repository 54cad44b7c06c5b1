// BookInfo's ratings: stars by reviewer, and variants that misbehave on purpose (SERVICE_VERSION).
// Only Node's own modules. Paths, JSON and texts follow the contract in ../README.md.
'use strict';

const fs = require('fs');
const http = require('http');

const port = Number(process.argv[2] || 9080);
const version = process.env.SERVICE_VERSION || 'v1';
const maxBody = 65536;
const toggleMs = {'v-unavailable': 60_000, 'v-unhealthy': 15 * 60_000}[version];

const accessLog = process.env.ACCESS_LOG ? fs.openSync(process.env.ACCESS_LOG, 'a') : -1;
const addedRatings = new Map();
let unwell = false;     // v-unavailable and v-unhealthy change it with time
let forcedStatus = 0;   // /debug/status?code=503 makes every answer of /ratings that status

if (toggleMs) setInterval(() => { unwell = !unwell; }, toggleMs).unref();

// Connections open now and at most, by client address; those that ask /debug/... are not counted.
const clients = new Map();

function addressOf(socket) {
  return (socket.remoteAddress || '').replace(/^::ffff:/, '');
}

function countConnection(socket) {
  const address = addressOf(socket);
  const client = clients.get(address) || {connections: 0, peak: 0};
  clients.set(address, client);
  socket.peakBefore = client.peak;
  client.connections += 1;
  client.peak = Math.max(client.peak, client.connections);
  socket.peakAfter = client.peak;
  socket.countedFor = client;
  socket.on('close', () => discountConnection(socket));
  socket.on('error', () => {});
}

function discountConnection(socket) {
  if (socket.countedFor) socket.countedFor.connections -= 1;
  socket.countedFor = undefined;
}

function excuseConnection(socket) {
  const client = socket.countedFor;
  if (!client) return;
  discountConnection(socket);
  if (client.peak === socket.peakAfter) client.peak = socket.peakBefore;
}

function peaks(reset) {
  for (const [address, client] of clients) {
    if (reset) client.peak = client.connections;
    if (client.connections === 0 && client.peak === 0) clients.delete(address);
  }
  return Object.fromEntries(clients);
}

function logAccess(request, status) {
  if (accessLog < 0) return;
  const header = (name) => request.headers[name] || '';
  fs.writeSync(accessLog, JSON.stringify({
    time: Date.now() / 1000, method: request.method, path: request.url, status,
    end_user: header('end-user'), x_request_id: header('x-request-id'),
    traceparent: header('traceparent'), b3_traceid: header('x-b3-traceid'),
    b3_spanid: header('x-b3-spanid'), b3_sampled: header('x-b3-sampled'),
    remote: `${addressOf(request.socket)}:${request.socket.remotePort}`,
  }) + '\n');
}

function answer(request, response, status, value) {
  const body = JSON.stringify(value);
  // The line is written before the answer leaves, so that whoever has the answer finds it.
  if (!request.url.startsWith('/debug/')) logAccess(request, status);
  response.writeHead(status, {'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body)});
  response.end(body);
}

function ratingsOf(id) {
  return {id, ratings: addedRatings.get(id) || {Reviewer1: 5, Reviewer2: 4}};
}

function getRatings(request, response, id) {
  const send = () => answer(request, response, 200, ratingsOf(id));
  const unavailable = () => answer(request, response, 503, {error: 'Service unavailable'});
  if (forcedStatus) return answer(request, response, forcedStatus, {error: 'asked for by /debug/status'});
  if (version === 'v-unavailable' && unwell) return unavailable();
  if (version === 'v-faulty' && Math.random() < 0.5) return unavailable();
  if (version === 'v-delayed' && Math.random() < 0.5) return setTimeout(send, 7000);
  return send();
}

function postRatings(request, response, id, body) {
  let ratings;
  try {
    ratings = JSON.parse(body);
  } catch {
    ratings = null;
  }
  if (ratings === null || typeof ratings !== 'object' || Array.isArray(ratings)) {
    return answer(request, response, 400, {error: 'please provide valid ratings JSON'});
  }
  if (addedRatings.size >= 10_000) addedRatings.clear();
  addedRatings.set(id, ratings);
  return answer(request, response, 200, ratingsOf(id));
}

function debug(request, response, url) {
  excuseConnection(request.socket);
  if (url.pathname === '/debug/peak') {
    return answer(request, response, 200, peaks(url.searchParams.get('reset') === '1'));
  }
  const code = Number(url.searchParams.get('code'));
  if (url.pathname !== '/debug/status' || !(code === 0 || (code >= 200 && code <= 599))) {
    return answer(request, response, 400, {error: '/debug/peak[?reset=1] or /debug/status?code=0|200..599'});
  }
  forcedStatus = code === 200 ? 0 : code;
  return answer(request, response, 200, {status: forcedStatus || 200});
}

function route(request, response, body) {
  const url = new URL(request.url, 'http://ratings');
  if (url.pathname.startsWith('/debug/')) return debug(request, response, url);
  if (url.pathname === '/health') {
    return version === 'v-unhealthy' && unwell
      ? answer(request, response, 500, {status: 'Ratings is not healthy'})
      : answer(request, response, 200, {status: 'Ratings is healthy'});
  }
  if (!url.pathname.startsWith('/ratings/')) return answer(request, response, 404, {error: 'not found'});
  const id = url.pathname.slice('/ratings/'.length);
  if (!/^\d{1,9}$/.test(id)) return answer(request, response, 400, {error: 'please provide numeric product ID'});
  if (request.method === 'POST') return postRatings(request, response, Number(id), body);
  if (request.method === 'GET' || request.method === 'HEAD') return getRatings(request, response, Number(id));
  return answer(request, response, 405, {error: 'GET or POST'});
}

const server = http.createServer((request, response) => {
  const chunks = [];
  let size = 0;
  request.on('data', (chunk) => {
    size += chunk.length;
    if (size <= maxBody) chunks.push(chunk);
  });
  request.on('end', () => {
    if (size > maxBody) return answer(request, response, 413, {error: 'at most 65536 bytes'});
    try {
      return route(request, response, Buffer.concat(chunks).toString());
    } catch (error) {
      return answer(request, response, 400, {error: String(error.message)});
    }
  });
});
server.keepAliveTimeout = 60_000;
server.on('connection', countConnection);

function listen(host) {
  server.listen({port, host, backlog: 256}, () => console.log(`ratings ${version} listens on port ${port}`));
}
server.on('error', (error) => {
  if (error.code === 'EAFNOSUPPORT' || error.code === 'EADDRNOTAVAIL') return listen('0.0.0.0');
  console.error(error.message);
  return process.exit(1);
});
listen('::');

function stop() {
  server.close(() => process.exit(0));
  if (server.closeIdleConnections) server.closeIdleConnections();
  setTimeout(() => process.exit(0), 5000).unref();
}
process.on('SIGTERM', stop);
process.on('SIGINT', stop);
