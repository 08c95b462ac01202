/* What is tested, and how. Nothing here draws: what happens is told through `show`. */

/* A relay that has not answered by then counts as unreachable: four attempts over UDP, three over TCP. */
const GATHER_MS = 7000;
const CONNECT_MS = 8000;
/* Small packets both ways, as often as a call sends voice; what comes later than LATE_MS is lost. */
const VOICE_MS = 3000;
const VOICE_EVERY_MS = 20;
const VOICE_BYTES = 120;
const VOICE_WARM_UP = 20;
const LATE_MS = 1000;
/* A browser that sleeps for so long between two packets, for so much of the time, measures itself. */
const BUSY_MS = 60;
const BUSY_SHARE = 0.15;
/* A video call in HD takes 2 to 4 Mbit/s. More is not asked for: the relay serves others too. */
const VIDEO_MS = 1600;
const VIDEO_BITS_PER_SECOND = 8e6;
const VIDEO_BYTES = 1100;
const VIDEO_BUFFER_BYTES = 256 * 1024;
/* Of the limit of this test: what is beyond it would be lost, and look like the network's fault. */
const SHARE_OF_LIMIT = 0.8;
const POINTS = 60;
/* Of more addresses than this each is measured for a shorter time: nobody waits for longer than half a minute. */
const FULL_TIME_FORMS = 6;
const LEAST_VOICE_MS = 1500;
const LEAST_VIDEO_MS = 700;
/* Two connections to each address, from up to two networks of this computer. */
const ALLOCATIONS_PER_FORM = 4;
const FORMS_AT_ONCE = 6;
const SLOW_MS = 2500;

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const round = (value, digits = 1) => (Number.isFinite(value) ? Number(value.toFixed(digits)) : null);
const sum = (values) => values.reduce((total, value) => total + value, 0);

/* What people can be told. */
class Failure extends Error {}

/* At most `count` at once. */
class Slots {
  constructor(count) { this.free = count; this.waiting = []; }

  async take() {
    if (this.free > 0) this.free -= 1; else await new Promise((resolve) => this.waiting.push(resolve));
  }

  give() {
    const next = this.waiting.shift();
    if (next) next(); else this.free += 1;
  }
}

/* Delays are measured side by side, throughput alone: it would delay the others. */
class Quiet {
  constructor() { this.shared = 0; this.alone = false; this.waiting = []; }

  async hold(alone, work) {
    while (this.alone || (alone && this.shared > 0)) await new Promise((resolve) => this.waiting.push(resolve));
    if (alone) this.alone = true; else this.shared += 1;
    try {
      return await work();
    } finally {
      if (alone) this.alone = false; else this.shared -= 1;
      this.waiting.splice(0).forEach((resolve) => resolve());
    }
  }
}

/* What is to be tested. */

/* RFC 7064 and RFC 7065. */
function parseUrl(url) {
  const found = /^(turns?|stuns?):(\[[0-9a-f:.]+\]|[^:?[\]]+)(?::(\d+))?(?:\?transport=(\w+))?$/i.exec(url);
  if (!found) return null;
  const scheme = found[1].toLowerCase();
  const secure = scheme.endsWith('s');
  const over = (found[4] || (secure ? 'tcp' : 'udp')).toLowerCase();
  const transport = secure ? (over === 'udp' ? 'dtls' : 'tls') : over;
  return {
    kind: scheme.startsWith('turn') ? 'turn' : 'stun', host: found[2], transport,
    port: Number(found[3] || (secure ? 5349 : 3478)),
  };
}

/* One target per URL. Throws a Failure that people understand. */
function targetsOf(parsed) {
  const servers = Array.isArray(parsed) ? parsed : (parsed && parsed.iceServers) || (parsed && parsed.urls && [parsed]);
  if (!Array.isArray(servers)) throw new Failure('No iceServers array found: it begins with [ and holds objects with "urls".');
  const targets = [];
  for (const server of servers) {
    const urls = server && (server.urls || server.url);
    for (const url of Array.isArray(urls) ? urls : [urls]) {
      const parts = typeof url === 'string' ? parseUrl(url) : null;
      if (!parts) {
        throw new Failure('Every server needs "urls" like turn:host:3478, turns:host:443 or stun:host. Found: ' + JSON.stringify(url));
      }
      if (parts.kind === 'turn' && !(server.username && server.credential)) {
        throw new Failure(url + ' needs "username" and "credential".');
      }
      const what = parts.kind === 'turn' ? '' : 'STUN ';
      targets.push({
        ...parts, url, username: server.username, credential: server.credential,
        name: what + parts.transport.toUpperCase() + ' on ' + parts.port,
      });
    }
  }
  if (!targets.length) throw new Failure('The list of servers is empty.');
  if (targets.length > 24) throw new Failure('This list has ' + targets.length + ' addresses; the test takes 24.');
  return targets;
}

function parseServers(text) {
  let parsed;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw new Failure('This is not JSON: ' + error.message);
  }
  return targetsOf(parsed);
}

/* Credentials of this visit: they reach nothing but this server's own relay, and end by themselves. */
async function openSession() {
  let response;
  try {
    response = await fetch('/test/session', { method: 'POST', cache: 'no-store', signal: timeout(8000) });
  } catch {
    throw new Failure('The server did not answer the request for test credentials. Is this browser still online?');
  }
  if (response.status === 429) {
    const seconds = Number(response.headers.get('retry-after')) || 60;
    throw new Failure('Many tests were made from this network just now. Try again in ' + seconds + ' seconds.');
  }
  if (response.status === 404 || response.status === 405) return null;
  const answer = await response.json().catch(() => null);
  if (!response.ok || !answer) {
    const told = answer && (answer.message || answer.error);
    throw new Failure('The server gave out no test credentials (' + response.status + (typeof told === 'string' ? ': ' + told : '') + ').');
  }
  return answer;
}

function timeout(ms) {
  const control = new AbortController();
  setTimeout(() => control.abort(), ms);
  return control.signal;
}

/* One relay address: two connections of this browser that may use nothing else meet through it. */

function watchErrors(connection, errors) {
  connection.addEventListener('icecandidateerror', (event) => {
    const error = { code: event.errorCode, text: event.errorText || '' };
    if (errors.length < 8 && !errors.some((known) => known.code === error.code && known.text === error.text)) errors.push(error);
  });
}

function addressOf(candidate) {
  const fields = candidate.candidate.split(' ');
  const ip = candidate.address || fields[4];
  const port = candidate.port || Number(fields[5]);
  return ip && ip.includes(':') ? '[' + ip + ']:' + port : ip + ':' + port;
}

/* Resolves with the first candidate of `type`, or null when gathering ends without one. */
function firstCandidate(connection, type) {
  return new Promise((resolve) => {
    connection.addEventListener('icecandidate', ({ candidate }) => {
      if (candidate && candidate.type === type) resolve(candidate);
    });
    connection.addEventListener('icegatheringstatechange', () => {
      if (connection.iceGatheringState === 'complete') wait(0).then(() => resolve(null));
    });
  });
}

function open(channel) {
  channel.binaryType = 'arraybuffer';
  if (channel.readyState === 'open') return channel;
  return new Promise((resolve) => channel.addEventListener('open', () => resolve(channel), { once: true }));
}

function lost(connection) {
  return new Promise((resolve) => connection.addEventListener('connectionstatechange', () => {
    if (connection.connectionState === 'failed') resolve(null);
  }));
}

class Link {
  constructor(target, errors) {
    const server = { urls: [target.url], username: target.username, credential: target.credential };
    const configuration = { iceServers: [server], iceTransportPolicy: 'relay' };
    this.caller = new RTCPeerConnection(configuration);
    this.callee = new RTCPeerConnection(configuration);
    for (const [from, to] of [[this.caller, this.callee], [this.callee, this.caller]]) {
      watchErrors(from, errors);
      from.addEventListener('icecandidate', ({ candidate }) => {
        /* Nothing may be sent to a peer on a link-local or hidden address: only relayed ones matter. */
        if (candidate) to.addIceCandidate(candidate).catch(() => {});
      });
    }
    /* As media: what is lost stays lost. */
    const media = { ordered: false, maxRetransmits: 0 };
    this.near = ['voice', 'video'].map((label) => this.caller.createDataChannel(label, media));
    this.far = new Promise((resolve) => {
      const found = {};
      this.callee.addEventListener('datachannel', ({ channel }) => {
        channel.binaryType = 'arraybuffer';
        found[channel.label] = channel;
        if (found.voice && found.video) resolve(found);
      });
    });
  }

  /* Resolves with the first relay candidate, or null. */
  async begin() {
    const found = firstCandidate(this.caller, 'relay');
    const offer = await this.caller.createOffer();
    await this.callee.setRemoteDescription(offer);
    await this.caller.setLocalDescription(offer);
    const answer = await this.callee.createAnswer();
    await this.caller.setRemoteDescription(answer);
    await this.callee.setLocalDescription(answer);
    return Promise.race([found, wait(GATHER_MS).then(() => null)]);
  }

  /* Resolves with the channels of both ends, or null. */
  connected() {
    const channels = Promise.all([...this.near.map(open), this.far.then((far) => Promise.all([open(far.voice), open(far.video)]))])
      .then(([voice, video, [farVoice, farVideo]]) => ({ voice, video, farVoice, farVideo }));
    return Promise.race([channels, lost(this.caller), lost(this.callee), wait(CONNECT_MS).then(() => null)]);
  }

  close() {
    this.caller.close();
    this.callee.close();
  }
}

async function testTurn(target, result, show, quiet, plan) {
  const link = new Link(target, result.errors);
  try {
    show('gathering');
    const start = performance.now();
    const candidate = await link.begin();
    if (!candidate) throw new Failure(explain(result.errors, target));
    result.candidate_ms = round(performance.now() - start);
    result.relayed = addressOf(candidate);
    show('connecting');
    const channels = await link.connected();
    if (!channels) {
      throw new Failure(result.errors.some((error) => error.code !== 701)
        ? explain(result.errors, target)
        : 'The server gave out a relay address, but two clients cannot meet through it. Its external address may be wrong, a firewall may block its relay ports, or it may forbid clients to reach its own relay addresses.');
    }
    await quiet.hold(false, () => measureVoice(channels, result, show, plan));
    show('queued');
    await quiet.hold(true, () => measureVideo(channels, result, show, plan));
    result.state = 'ok';
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    result.state = result.relayed ? 'partial' : 'failed';
    result.reason = error.message;
  } finally {
    link.close();
  }
}

/* Both ends send to each other. They share one clock, so each packet tells by itself how long the way to the relay and
   back takes: up from one end, down to the other. */
async function measureVoice({ voice, farVoice }, result, show, plan) {
  show('voice');
  const sent = [];
  const times = [];
  const receive = ({ data }) => {
    const number = new DataView(data).getUint32(0);
    if (times[number] === undefined && sent[number] !== undefined) times[number] = performance.now() - sent[number];
  };
  voice.addEventListener('message', receive);
  farVoice.addEventListener('message', receive);
  const start = performance.now();
  let shown = start;
  let woke = start;
  let asleep = 0;
  for (let count = 0; performance.now() - start < plan.voice_ms;) {
    /* Timers come late on a busy computer: what is due is sent then. */
    const due = Math.floor((performance.now() - start) / VOICE_EVERY_MS) + 1;
    for (let burst = 0; count < due && burst < 5; burst += 1, count += 1) {
      for (const channel of [voice, farVoice]) {
        if (channel.readyState !== 'open') throw new Failure('The connection through the relay broke off.');
        const packet = new DataView(new ArrayBuffer(VOICE_BYTES));
        packet.setUint32(0, sent.length);
        times.push(undefined);
        sent.push(performance.now());
        channel.send(packet);
      }
    }
    if (performance.now() - shown > 120) {
      shown = performance.now();
      result.rtt_series_ms = thin(times.slice(VOICE_WARM_UP)).rtt_series_ms;
      show('voice');
    }
    await wait(VOICE_EVERY_MS / 2);
    const now = performance.now();
    if (now - woke > BUSY_MS) asleep += now - woke;
    woke = now;
  }
  const end = performance.now() + LATE_MS;
  while (performance.now() < end && times.includes(undefined)) await wait(20);
  voice.removeEventListener('message', receive);
  farVoice.removeEventListener('message', receive);
  const judged = times.slice(VOICE_WARM_UP);
  const arrived = judged.filter((time) => time !== undefined);
  if (!arrived.length) throw new Failure('The connection through the relay stands, but no data comes through.');
  const sorted = [...arrived].sort((a, b) => a - b);
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
  const steps = arrived.slice(1).map((time, index) => Math.abs(time - arrived[index]));
  Object.assign(result, {
    rtt_ms: round(at(0.5)), rtt_95_ms: round(at(0.95)), rtt_min_ms: round(sorted[0]),
    jitter_ms: round(steps.length ? sum(steps) / steps.length : 0),
    sent: judged.length, loss: round(1 - arrived.length / judged.length, 4),
    ...thin(judged), busy: asleep > plan.voice_ms * BUSY_SHARE,
  });
}

/* At most POINTS values for the eye: of each share of the packets the median, null where none came, and how many were lost. */
function thin(times) {
  const share = Math.max(1, times.length / POINTS);
  const series = { rtt_series_ms: [], lost_series: [] };
  for (let index = 0; index < Math.min(POINTS, times.length); index += 1) {
    const part = times.slice(Math.floor(index * share), Math.floor((index + 1) * share));
    const came = part.filter((time) => time !== undefined).sort((a, b) => a - b);
    series.rtt_series_ms.push(came.length ? round(came[Math.floor(came.length / 2)]) : null);
    series.lost_series.push(part.length - came.length);
  }
  return series;
}

async function measureVideo({ video, farVideo }, result, show, plan) {
  show('video');
  const target = Math.min(VIDEO_BITS_PER_SECOND, (plan.bits_per_second || Infinity) * SHARE_OF_LIMIT);
  const bucket = 100;
  const buckets = Array(Math.ceil(plan.video_ms / bucket)).fill(0);
  const start = performance.now();
  const receive = ({ data }) => {
    const index = Math.floor((performance.now() - start) / bucket);
    if (index < buckets.length) buckets[index] += data.byteLength;
  };
  const series = (count) => buckets.slice(0, count).map((bytes) => Math.round(bytes * 8000 / bucket));
  farVideo.addEventListener('message', receive);
  const chunk = new Uint8Array(VIDEO_BYTES);
  let sent = 0;
  let shown = start;
  while (performance.now() - start < plan.video_ms && video.readyState === 'open') {
    const due = (performance.now() - start) / 1000 * target / 8;
    /* What a late timer left out is not caught up with: a burst would be lost where the rate is limited. */
    sent = Math.max(sent, due - target / 8 / 20);
    while (sent < due && video.bufferedAmount < VIDEO_BUFFER_BYTES) {
      video.send(chunk);
      sent += chunk.byteLength;
    }
    if (performance.now() - shown > 120) {
      shown = performance.now();
      result.throughput_series = series(Math.floor((shown - start) / bucket));
      show('video');
    }
    await wait(4);
  }
  farVideo.removeEventListener('message', receive);
  const rates = series(buckets.length);
  /* The beginning is slow everywhere, by design of the protocol below. */
  const steady = rates.slice(Math.floor(rates.length / 4));
  const rate = Math.round(sum(steady) / steady.length);
  Object.assign(result, {
    throughput_bits_per_second: rate, throughput_series: rates,
    throughput_asked_bits_per_second: Math.round(target), throughput_bounded: rate >= target * 0.85,
  });
}

async function testStun(target, result, show) {
  show('gathering');
  const connection = new RTCPeerConnection({ iceServers: [{ urls: [target.url] }] });
  try {
    watchErrors(connection, result.errors);
    connection.createDataChannel('test');
    const found = firstCandidate(connection, 'srflx');
    const start = performance.now();
    await connection.setLocalDescription(await connection.createOffer());
    const candidate = await Promise.race([found, wait(GATHER_MS).then(() => null)]);
    if (candidate) {
      result.candidate_ms = round(performance.now() - start);
      result.public_address = addressOf(candidate);
      result.state = 'ok';
    } else {
      result.state = result.errors.length ? 'failed' : 'partial';
      result.reason = result.errors.length ? explain(result.errors, target)
        : 'No public address was reported. That is how it looks when this browser is not behind NAT, or when it reaches nothing over UDP.';
    }
  } finally {
    connection.close();
  }
}

/* The network as the browser sees it, from candidates that need no relay. */
async function inspectNetwork(targets) {
  const network = {
    public_addresses: [], mapping: 'unknown', nat: null, ipv6: false, mdns: false, asked: 0,
    type: (navigator.connection && navigator.connection.type) || null,
  };
  const urls = [...new Set(targets.filter((target) => target.transport === 'udp').map(({ host, port }) => 'stun:' + host + ':' + port))].slice(0, 3);
  network.asked = urls.length;
  const connection = new RTCPeerConnection({ iceServers: urls.length ? [{ urls }] : [] });
  const hosts = new Set();
  const mapped = new Map();
  try {
    connection.createDataChannel('test');
    const complete = new Promise((resolve) => connection.addEventListener('icegatheringstatechange', () => {
      if (connection.iceGatheringState === 'complete') resolve();
    }));
    connection.addEventListener('icecandidate', ({ candidate }) => {
      if (!candidate || !candidate.candidate || candidate.protocol === 'tcp') return;
      const ip = candidate.address || candidate.candidate.split(' ')[4];
      if (ip.endsWith('.local')) network.mdns = true;
      else if (ip.includes(':') && !/^f[cde]/i.test(ip)) network.ipv6 = true;
      if (candidate.type === 'host') hosts.add(ip);
      if (candidate.type !== 'srflx') return;
      const socket = (ip.includes(':') ? 6 : 4) + ' ' + ip + ' ' + (candidate.relatedAddress || '') + ' ' + (candidate.relatedPort || '');
      mapped.set(socket, (mapped.get(socket) || new Set()).add(candidate.port));
      if (!network.public_addresses.includes(ip) && network.public_addresses.length < 4) network.public_addresses.push(ip);
    });
    await connection.setLocalDescription(await connection.createOffer());
    await Promise.race([complete, wait(5000)]);
  } finally {
    connection.close();
  }
  const changes = [...mapped.values()].some((ports) => ports.size > 1);
  if (changes) network.mapping = 'changing';
  else if (mapped.size && network.asked > 1) network.mapping = 'stable';
  network.hosts = [...hosts].filter((ip) => !ip.endsWith('.local'));
  return network;
}

/* All of them. `note(test)` is called whenever there is something to draw. */
async function measure(targets, limits, note) {
  const tests = targets.map((target) => {
    const { url, kind, name, transport, port } = target;
    const result = { url, kind, name, transport, port, state: null, reason: null, errors: [], candidate_ms: null };
    Object.assign(result, kind === 'turn' ? { relayed: null, rtt_ms: null, loss: null, throughput_bits_per_second: null } : { public_address: null });
    return { target, result, phase: 'waiting' };
  });
  tests.forEach(note);
  const allowed = limits && limits.allocations ? Math.floor(limits.allocations / ALLOCATIONS_PER_FORM) : FORMS_AT_ONCE;
  const slots = new Slots(Math.max(1, Math.min(FORMS_AT_ONCE, allowed)));
  const quiet = new Quiet();
  const share = Math.min(1, FULL_TIME_FORMS / tests.length);
  const plan = {
    voice_ms: Math.max(LEAST_VOICE_MS, VOICE_MS * share), video_ms: Math.max(LEAST_VIDEO_MS, VIDEO_MS * share),
    bits_per_second: limits && limits.bits_per_second,
  };
  const one = async (test) => {
    const show = (phase) => { test.phase = phase; note(test); };
    try {
      await (test.target.kind === 'turn'
        ? testTurn(test.target, test.result, show, quiet, plan)
        : testStun(test.target, test.result, show));
    } catch (error) {
      test.result.state = 'failed';
      test.result.reason = 'The browser would not take the test: ' + error.message;
    }
  };
  const network = inspectNetwork(targets).catch(() => null);
  /* One of each transport first: those that are blocked hold up nobody, and the verdict shows early. */
  const turn = (test) => tests.filter(({ target }) => target.transport === test.target.transport).indexOf(test);
  await Promise.all([...tests].sort((a, b) => turn(a) - turn(b)).map(async (test) => {
    await slots.take();
    let held = true;
    const give = () => { if (held) slots.give(); held = false; };
    /* What has no relay address by now is most likely blocked, and takes nobody's place. */
    wait(SLOW_MS).then(() => { if (!test.result.relayed) give(); });
    await one(test);
    give();
    const full = (result) => result.state !== 'ok' && result.errors.some((error) => error.code === 486);
    if (full(test.result)) test.again = true; else note(test);
  }));
  /* Those that found no room beside the others have it to themselves now. */
  for (const test of tests.filter((test) => test.again)) {
    Object.assign(test.result, { state: null, reason: null, errors: [], relayed: null });
    await one(test);
    note(test);
  }
  const results = tests.map((test) => test.result);
  return { results, network: judgeNetwork(await network, results) };
}

/* Browsers leave out a public address that is a local one as well: where servers were reached over UDP, there is no NAT then. */
function judgeNetwork(network, results) {
  if (!network) return null;
  const { hosts, ...judged } = network;
  const seen = judged.public_addresses;
  if (hosts.length && seen.length) judged.nat = !seen.every((ip) => hosts.includes(ip));
  if (hosts.length && !seen.length && results.some((result) => result.transport === 'udp' && result.state === 'ok')) {
    judged.nat = false;
    judged.public_addresses = hosts.filter((ip) => !/^f[cde]/i.test(ip)).slice(0, 4);
  }
  return judged;
}
