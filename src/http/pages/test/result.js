/* Results that travel in a link, after the #, which browsers send to nobody. */

/* Results of others are unpacked to this size at most. */
const RESULT_BYTES = 128 * 1024;

const encode = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join('')).replace(/\+/g, '-').replace(/\//g, '_').replace(/=+$/, '');
const decode = (text) => Uint8Array.from(atob(text.replace(/-/g, '+').replace(/_/g, '/')), (c) => c.charCodeAt(0));
const read = (bytes) => new TextDecoder('utf-8', { fatal: true }).decode(bytes);

async function pack(found) {
  const bytes = new TextEncoder().encode(JSON.stringify(found));
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream('deflate-raw'));
  return encode(new Uint8Array(await new Response(stream).arrayBuffer()));
}

async function unpack(text) {
  const reader = new Blob([decode(text)]).stream().pipeThrough(new DecompressionStream('deflate-raw')).getReader();
  const parts = [];
  let size = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    size += part.value.length;
    if (size > RESULT_BYTES) throw new Failure('This result is too long.');
    parts.push(part.value);
  }
  return clean(JSON.parse(read(new Uint8Array(await new Blob(parts).arrayBuffer()))));
}

/* Whoever made a link may have written anything: what has another shape than a result of this page is left out. */

const text = (value, most = 600) => (typeof value === 'string' ? value.slice(0, most) : '');
const number = (value) => (Number.isFinite(value) && value >= 0 ? value : null);
const array = (value, most) => (Array.isArray(value) ? value.slice(0, most) : []);
const object = (value) => (value && typeof value === 'object' ? value : {});
const objects = (value, most) => array(value, most).map(object);
const oneOf = (value, ...known) => (known.includes(value) ? value : known[0]);

function clean(from) {
  const raw = object(from);
  return {
    version: 1, verdict: oneOf(raw.verdict, 'failed', 'partial', 'ok'), finding: text(raw.finding, 60), quality: text(raw.quality, 10) || null,
    title: text(raw.title, 120), summary: text(raw.summary),
    advice: objects(raw.advice, 6).map((advice) => ({ to: oneOf(advice.to, ...Object.keys(READERS)), text: text(advice.text) })),
    results: objects(raw.results, 24).map(cleanTest),
    network: raw.network ? cleanNetwork(object(raw.network)) : null,
    server: raw.server ? { version: text(raw.server.version, 30), node: text(raw.server.node, 60), region: text(raw.server.region, 60) } : null,
    started: text(raw.started, 40), duration_ms: number(raw.duration_ms), page: text(raw.page, 200), browser: text(raw.browser, 300),
    devices: objects(raw.devices, 8).map((device) => ({ name: text(device.name, 60), value: text(device.value, 300) })),
  };
}

function cleanTest(raw) {
  const cleaned = {
    url: text(raw.url, 200), kind: oneOf(raw.kind, 'turn', 'stun'), name: text(raw.name, 60), transport: oneOf(raw.transport, ...TRANSPORTS),
    port: number(raw.port) || 0, state: oneOf(raw.state, 'failed', 'partial', 'ok'), reason: text(raw.reason) || null,
    errors: objects(raw.errors, 8).map((error) => ({ code: number(error.code) || 0, text: text(error.text, 200) })),
    candidate_ms: number(raw.candidate_ms) || 0, relayed: text(raw.relayed, 80) || null, public_address: text(raw.public_address, 80) || null,
    rtt_series_ms: array(raw.rtt_series_ms, POINTS).map(number), lost_series: array(raw.lost_series, POINTS).map(number),
    throughput_series: array(raw.throughput_series, POINTS).map(number),
    throughput_bounded: raw.throughput_bounded === true, busy: raw.busy === true,
  };
  const measured = number(raw.rtt_ms) !== null;
  for (const name of ['rtt_ms', 'rtt_95_ms', 'rtt_min_ms', 'jitter_ms', 'loss', 'sent']) cleaned[name] = measured ? number(raw[name]) || 0 : null;
  for (const name of ['throughput_bits_per_second', 'throughput_asked_bits_per_second']) cleaned[name] = number(raw[name]);
  return cleaned;
}

function cleanNetwork(raw) {
  return {
    public_addresses: array(raw.public_addresses, 4).map((ip) => text(ip, 60)), mapping: oneOf(raw.mapping, 'unknown', 'stable', 'changing'),
    nat: raw.nat === false ? false : null, ipv6: raw.ipv6 === true, mdns: raw.mdns === true, type: text(raw.type, 30) || null,
  };
}
