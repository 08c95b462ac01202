
const WINDOW_MS = 600e3;
const ROW_WINDOW_MS = 180e3;
const LEAST_WINDOW_MS = 30e3;
const SILENCE_MS = 8000;
const HIDDEN_MS = 60e3;
const MOST_FOUND = 100;
const MOST_FAILURES = 8;
const TOKEN_KEY = 'turnix-token';

const $ = (id) => document.getElementById(id);
const SVG = document.querySelector('svg').namespaceURI;

/* Text of strangers is only ever a text node; what is not to be seen in it is spelled out. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\u{e0000}-\u{e0fff}]/gu;
const printable = (text) => String(text).replace(UNSEEN, (c) => '\\u{' + c.codePointAt(0).toString(16) + '}');
const named = (user) => printable(user) || '(no name)';

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/* Numbers. */

const significant = (value) => value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);

function scaled(value, units) {
  let step = 0;
  while (value >= 999.5 && step < units.length - 1) { value /= 1000; step += 1; }
  return [step ? significant(value) : String(Math.round(value)), units[step]];
}

const bits = (value) => scaled(value, ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s', 'Tbit/s']);
const packets = (value) => scaled(value, ['packets/s', 'k packets/s', 'M packets/s']);
const bytes = (value) => scaled(value, ['B', 'kB', 'MB', 'GB', 'TB', 'PB']).join('\u00a0');
const count = (value) => Number(value).toLocaleString('en').replaceAll(',', '\u202f');
const both = (pair) => pair.to_peer + pair.to_client;

function percent(ratio) {
  const value = ratio * 100;
  /* Never rounded up to all, nor down to none. */
  if (value > 99.9 && value < 100) return '99.9';
  if (value > 0 && value < 0.1) return '0.1';
  return value >= 99.95 || value === 0 ? String(Math.round(value)) : value.toFixed(1);
}

function lasting(secs, units = 2) {
  secs = Math.max(0, Math.round(secs));
  const parts = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const first = parts.findIndex(([size]) => secs >= size);
  if (first < 0) return '0\u00a0s';
  const shown = parts.slice(first, first + units).map(([size, unit], at) => {
    const whole = Math.floor((at ? secs % parts[first][0] : secs) / size);
    return whole ? whole + '\u00a0' + unit : '';
  });
  return shown.filter(Boolean).join(' ');
}

const moment = (unix) => new Date(unix * 1000).toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'short' });

function figure(id, [value, unit]) {
  const element = $(id);
  const text = value + ' ' + unit;
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  element.replaceChildren(value, make('small', {}, unit));
}

/* Asking. The token goes into a header, which no other page can make a browser send. */

let token = remembered();

function remembered() {
  try { return sessionStorage.getItem(TOKEN_KEY); } catch { return null; }
}

function remember(value) {
  token = value;
  try {
    if (value === null) sessionStorage.removeItem(TOKEN_KEY); else sessionStorage.setItem(TOKEN_KEY, value);
  } catch { /* Then it lasts as long as the page. */ }
}

class Unauthorized extends Error {}

async function ask(path, options) {
  const headers = token === null ? {} : { Authorization: 'Bearer ' + token };
  const response = await fetch(path, { cache: 'no-store', credentials: 'omit', redirect: 'error', headers, ...options });
  if (response.status === 401) throw new Unauthorized();
  return response;
}

async function problemOf(response) {
  try { return printable((await response.json()).error); } catch { return 'the server answers ' + response.status; }
}

/* What is known. */

let past = [];
let longest = WINDOW_MS;
let span = LEAST_WINDOW_MS;
let now = null;
let rowPast = new Map();

function point(told) {
  const traffic = told.traffic || told;
  if (!traffic.bits_per_second) return null;
  return {
    t: told.at_ms, bits: traffic.bits_per_second, packets: traffic.packets_per_second, live: told.allocations,
    calls: callsOf(told),
  };
}

function begin(readings) {
  past = readings.map(point).filter(Boolean);
  longest = past.length ? Math.max(WINDOW_MS, past.at(-1).t - past[0].t) : WINDOW_MS;
}

function take(told) {
  now = told;
  const next = point(told);
  if (next) past.push(next);
  while (past.length && past[0].t < told.at_ms - longest) past.shift();
  /* As far back as anything is known, in whole half minutes so that the axis stands still. */
  const known = past.length ? told.at_ms - past[0].t : 0;
  span = Math.min(longest, Math.max(1, Math.ceil(known / LEAST_WINDOW_MS)) * LEAST_WINDOW_MS);
  for (const one of told.busiest || []) note(one, told.at_ms);
  for (const [id, points] of rowPast) {
    while (points.length && points[0].t < told.at_ms - ROW_WINDOW_MS) points.shift();
    if (!points.length) rowPast.delete(id);
  }
  draw();
}

function note(one, t) {
  const points = rowPast.get(one.id) || [];
  if (points.length && points.at(-1).t >= t) return;
  points.push({ t, bits: one.bits_per_second, call: callOf(one) });
  rowPast.set(one.id, points);
}

/* Drawing. */

function path(points, value, end, width, height, window, top) {
  const x = (t) => ((t - end + window) / window * width).toFixed(2);
  const y = (v) => (height - v / top * height).toFixed(2);
  if (points.length < 2) return ['', ''];
  /* A gap is a gap: nobody looked, or the server did not answer. */
  let line = '';
  let area = '';
  let run = [];
  const close = () => {
    if (run.length > 1) {
      const steps = run.map((p) => x(p.t) + ' ' + y(value(p)));
      line += 'M' + steps.join('L');
      area += 'M' + x(run[0].t) + ' ' + height + 'L' + steps.join('L') + 'L' + x(run.at(-1).t) + ' ' + height + 'Z';
    }
    run = [];
  };
  for (const p of points) {
    if (run.length && p.t - run.at(-1).t > 15e3) close();
    run.push(p);
  }
  close();
  return [line, area];
}

function rowWindow(end) {
  const known = Math.max(0, ...[...rowPast.values()].map((points) => points.length ? end - points[0].t : 0));
  return Math.min(ROW_WINDOW_MS, Math.max(LEAST_WINDOW_MS, known));
}

function spark(svg, series, end, window, height = 30) {
  while (svg.childElementCount < series.length * 2) {
    const pair = series[svg.childElementCount / 2];
    for (const kind of ['fill', 'line']) {
      const element = document.createElementNS(SVG, 'path');
      element.setAttribute('class', kind + ' ' + (pair.color || ''));
      svg.append(element);
    }
  }
  const values = series.flatMap(({ points, value }) => points.map(value));
  const top = Math.max(1, ...values) * 1.12;
  series.forEach(({ points, value }, at) => {
    const [line, area] = path(points, value, end, 100, height, window, top);
    svg.children[at * 2].setAttribute('d', area);
    svg.children[at * 2 + 1].setAttribute('d', line);
  });
}

function nice(top) {
  const magnitude = 10 ** Math.floor(Math.log10(Math.max(top, 1)));
  return [1, 2, 4, 5, 10].map((step) => step * magnitude).find((step) => step >= top) || 1;
}

function drawChart(end) {
  const unit = document.querySelector('input[name=unit]:checked').value;
  const form = unit === 'bits' ? bits : packets;
  const value = { peer: (p) => p[unit].to_peer, client: (p) => p[unit].to_client };
  const peak = Math.max(1, ...past.map((p) => Math.max(p[unit].to_peer, p[unit].to_client)));
  const top = nice(Math.max(peak, unit === 'bits' ? 1000 : 10));
  for (const way of ['peer', 'client']) {
    const [line, area] = path(past, value[way], end, 100, 100, span, top);
    $('line-to-' + way).setAttribute('d', line);
    $('area-to-' + way).setAttribute('d', area);
  }
  write($('scale-top'), form(top).join(' '));
  write($('scale-middle'), form(top / 2).join(' '));
  write($('axis-start'), '\u2212' + lasting(span / 1000));
  write($('axis-middle'), '\u2212' + lasting(span / 2000));
  const last = past.at(-1);
  const text = last
    ? 'Now ' + form(last[unit].to_peer).join(' ') + ' to peers and ' + form(last[unit].to_client).join(' ') +
      ' to clients; at most ' + form(peak).join(' ') + ' in the last ' + lasting(span / 1000)
    : 'No traffic seen yet';
  $('chart').setAttribute('aria-label', text);
}

const STATES = { ok: 'Serving', draining: 'Draining', degraded: 'Degraded' };

function draw() {
  if (!now) return;
  const end = now.at_ms;
  document.title = (now.allocations === undefined ? '' : count(now.allocations) + ' \u00b7 ') + printable(now.node) + ' \u00b7 turnix';
  write($('node'), printable(now.node));
  write($('region'), printable(now.region));
  $('status').hidden = false;
  $('status').className = 'pill ' + (now.status in STATES ? now.status : '');
  write($('status'), STATES[now.status] || printable(now.status));
  drawNotices();
  drawTiles(end);
  drawChart(end);
  if (now.calls) drawCalls(end);
  drawPairs($('limits'), limits());
  drawPairs($('server'), server());
  if (now.transports) drawTransports();
  if (now.failures) drawFailures();
  if (!searched && now.busiest) drawRows(now.busiest);
}

function drawTiles(end) {
  const last = past.at(-1);
  if (now.traffic && last) {
    figure('to-peer', bits(last.bits.to_peer));
    figure('to-client', bits(last.bits.to_client));
    write($('to-peer-packets'), packets(last.packets.to_peer).join(' '));
    write($('to-client-packets'), packets(last.packets.to_client).join(' '));
  }
  if (now.allocations !== undefined) {
    figure('live', [count(now.allocations), '']);
    const split = now.transports.map((one) => [one.transport, one.allocations.ipv4 + one.allocations.ipv6 + one.allocations.dual]);
    const used = split.filter(([, live]) => live);
    write($('live-split'), used.length ? used.map(([name, live]) => name.toUpperCase() + ' ' + count(live)).join(' \u00b7 ') : 'nobody calls');
  }
  if (now.allocated) {
    const of = now.allocated.recent || now.allocated;
    const asked = of.succeeded + of.failed;
    const ratio = asked ? of.succeeded / asked : null;
    figure('success', ratio === null ? ['\u2013', ''] : [percent(ratio), '%']);
    write($('success-of'), asked ? count(of.succeeded) + ' of ' + count(asked) + ' allocations' + period() : 'nobody asked' + period());
    level($('success-meter'), ratio === null ? 0 : ratio, ratio >= 0.98 ? '' : ratio >= 0.9 ? 'warn' : 'bad');
  }
  const { ratio, allocations, ports } = now.capacity;
  figure('capacity', [percent(ratio), '%']);
  const used = Object.values(ports).reduce((sum, one) => sum + one.in_use, 0);
  const total = Object.values(ports).reduce((sum, one) => sum + one.total, 0);
  const byLimit = allocations.limit && allocations.live / allocations.limit >= ratio;
  write($('capacity-of'), byLimit ? count(allocations.live) + ' of ' + count(allocations.limit) + ' allocations'
    : count(used) + ' of ' + count(total) + ' ports');
  level($('capacity-meter'), ratio, ratio < 0.7 ? '' : ratio < 0.9 ? 'warn' : 'bad');
  spark($('spark-to-peer'), [{ points: past, value: (p) => p.bits.to_peer }], end, span);
  spark($('spark-to-client'), [{ points: past, value: (p) => p.bits.to_client }], end, span);
  spark($('spark-live'), [{ points: past, value: (p) => p.live }], end, span);
}

function period() {
  return now.recent_secs === null || now.recent_secs === undefined ? ' since the start' : ' in ' + lasting(now.recent_secs, 1);
}

function level(element, ratio, grade) {
  element.style.width = Math.max(0, Math.min(100, ratio * 100)) + '%';
  element.className = grade;
}

function drawNotices() {
  const notices = [];
  if (now.status === 'degraded') {
    notices.push(['bad', 'A shard does not answer. Figures below may stand still; see the log of the server.']);
  }
  if (now.status === 'draining') {
    const end = now.deadline ? ' until ' + moment(now.deadline) : '';
    notices.push(['', 'Draining: no new allocations; those that live may go on' + end + '.']);
  }
  if (now.reload && !now.reload.applied) {
    notices.push(['bad', 'The configuration was not reloaded at ' + moment(now.reload.at) + '; the one before is in effect.', now.reload.problems]);
  }
  for (const { expires } of now.certificates) {
    const left = expires - now.at_ms / 1000;
    if (left <= 0) notices.push(['bad', 'The certificate expired on ' + moment(expires) + ': clients refuse TLS.']);
    else if (left < 14 * 86400) notices.push(['', 'The certificate expires in ' + lasting(left) + '.']);
  }
  if (now.capacity.ratio >= 0.9) notices.push(['bad', 'Nearly full: nine tenths of the capacity are in use. Clients are refused when all of it is.']);
  const key = JSON.stringify(notices);
  if ($('notices').dataset.key === key) return;
  $('notices').dataset.key = key;
  $('notices').replaceChildren(...notices.map(([grade, text, items]) => {
    const notice = make('div', { class: 'notice ' + grade }, text);
    if (items && items.length) notice.append(make('ul', {}, ...items.map((item) => make('li', {}, printable(item)))));
    return notice;
  }));
}

function drawPairs(list, pairs) {
  const key = JSON.stringify(pairs);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(...pairs.flatMap(([name, text, grade]) => {
    const value = grade ? make('span', { class: grade }, text) : text;
    return [make('dt', {}, name), make('dd', {}, make('bdi', {}, value))];
  }));
}

function limits() {
  const c = now.capacity;
  const limit = (value) => value ? count(value) : 'no limit';
  const rate = (value) => value ? bits(value).join(' ') : 'no limit';
  const pairs = Object.entries(c.ports).filter(([, ports]) => ports.total)
    .map(([family, ports]) => ['Relay ports, ' + family.replace('ip', 'IP'), count(ports.in_use) + ' of ' + count(ports.total)]);
  return [
    ...pairs,
    ['Allocations', c.allocations.limit ? count(c.allocations.live) + ' of ' + count(c.allocations.limit) : count(c.allocations.live) + ', no limit'],
    ['\u2026 per user', limit(c.allocations_per_user)],
    ['\u2026 per address', limit(c.allocations_per_address)],
    ['Ports one user may take', c.share_per_user ? c.share_per_user + ' % of the free' : 'no limit'],
    ['Bandwidth', rate(c.bandwidth)],
    ['\u2026 per user', rate(c.bandwidth_per_user)],
    ['\u2026 per allocation', rate(c.bandwidth_per_allocation)],
  ];
}

function server() {
  const pairs = [['Node', printable(now.node)]];
  if (now.region) pairs.push(['Region', printable(now.region)]);
  pairs.push(['Version', printable(now.version)]);
  const state = now.status === 'draining' && now.deadline ? 'Draining until ' + moment(now.deadline) : STATES[now.status] || printable(now.status);
  pairs.push(['State', state, now.status === 'ok' ? '' : 'warn']);
  for (const { expires } of now.certificates) {
    const left = expires - now.at_ms / 1000;
    const grade = left <= 0 ? 'bad' : left < 14 * 86400 ? 'warn' : '';
    pairs.push(['Certificate', left <= 0 ? 'expired on ' + moment(expires) : 'expires in ' + Math.floor(left / 86400) + ' days, ' + moment(expires), grade]);
  }
  if (!now.certificates.length) pairs.push(['Certificate', 'none: no TLS']);
  if (now.reload) pairs.push(['Last reload', (now.reload.applied ? 'applied ' : 'refused ') + moment(now.reload.at), now.reload.applied ? '' : 'bad']);
  else pairs.push(['Last reload', 'none yet']);
  if (now.traffic) {
    pairs.push(['Relayed to peers', bytes(now.traffic.bytes.to_peer)]);
    pairs.push(['Relayed to clients', bytes(now.traffic.bytes.to_client)]);
  }
  return pairs;
}

function drawTransports() {
  const body = $('transports');
  while (body.childElementCount < now.transports.length) {
    body.append(make('tr', {}, make('th', { scope: 'row' }), ...[1, 2, 3, 4].map(() => make('td', { class: 'number' }))));
  }
  now.transports.forEach((one, at) => {
    const [name, v4, v6, dual, rate] = body.children[at].children;
    write(name, one.transport.toUpperCase() + (one.connections ? ' \u00b7 ' + count(one.connections) + ' open' : ''));
    write(v4, count(one.allocations.ipv4));
    write(v6, count(one.allocations.ipv6));
    write(dual, count(one.allocations.dual));
    write(rate, bits(both(one.bits_per_second)).join(' '));
  });
}

let allFailures = false;

function drawFailures() {
  const sorted = [...now.failures].sort((a, b) => (b.recent || 0) - (a.recent || 0) || b.total - a.total);
  const shown = allFailures ? sorted : sorted.slice(0, MOST_FAILURES);
  write($('recent-title'), now.recent_secs ? 'Last ' + lasting(now.recent_secs, 1) : 'Of late');
  $('failures-none').hidden = sorted.length > 0;
  $('failures').closest('table').hidden = !sorted.length;
  $('failures-all').hidden = sorted.length <= MOST_FAILURES;
  $('failures-all').setAttribute('aria-expanded', String(allFailures));
  write($('failures-all'), allFailures ? 'Show fewer' : 'Show all ' + sorted.length);
  const key = JSON.stringify(shown);
  if ($('failures').dataset.key === key) return;
  $('failures').dataset.key = key;
  $('failures').replaceChildren(...shown.map((one) => make('tr', { class: one.recent ? 'fresh' : '' },
    make('th', { scope: 'row' }, reasonText(one), make('span', { class: 'kind' }, KINDS[one.kind] || printable(one.kind))),
    make('td', { class: 'number' }, one.recent === null ? '\u2013' : count(one.recent)),
    make('td', { class: 'number' }, count(one.total)))));
}

/* Allocations: rows stay who they are, and do not move under the pointer. */

const rows = new Map();

function row(one) {
  const button = make('button', { type: 'button' }, make('bdi', {}));
  const cells = {
    user: make('th', { scope: 'row', class: 'user' }, button), over: make('td', {}, make('span', { class: 'tag' })),
    client: make('td', { class: 'address wide' }), relayed: make('td', { class: 'address wide' }),
    toPeer: make('td', { class: 'number' }), toClient: make('td', { class: 'number' }), ...callCells(),
    spark: make('td', { class: 'middling' }), age: make('td', { class: 'number middling' }),
  };
  const svg = document.createElementNS(SVG, 'svg');
  for (const [name, value] of [['class', 'spark'], ['viewBox', '0 0 100 24'], ['preserveAspectRatio', 'none'], ['aria-hidden', 'true']]) {
    svg.setAttribute(name, value);
  }
  cells.spark.append(svg);
  const element = make('tr', {}, ...Object.values(cells));
  element.addEventListener('click', () => show(one.id));
  return { element, cells, svg };
}

function drawRows(list) {
  const body = $('allocations');
  const known = new Set(list.map((one) => one.id));
  for (const [id, { element }] of rows) {
    if (!known.has(id)) { element.remove(); rows.delete(id); }
  }
  const window = rowWindow(now ? now.at_ms : 0);
  const held = body.matches(':hover') || body.contains(document.activeElement);
  list.forEach((one, at) => {
    let shown = rows.get(one.id);
    if (!shown) {
      shown = row(one);
      rows.set(one.id, shown);
      body.append(shown.element);
    }
    if (!held && body.children[at] !== shown.element) body.insertBefore(shown.element, body.children[at]);
    const { cells, svg } = shown;
    const user = named(one.user);
    write(cells.user.querySelector('bdi'), user);
    cells.user.firstElementChild.title = user;
    write(cells.over.firstElementChild, one.transport);
    write(cells.client, one.client);
    write(cells.relayed, one.relayed);
    write(cells.toPeer, bits(one.bits_per_second.to_peer).join(' '));
    write(cells.toClient, bits(one.bits_per_second.to_client).join(' '));
    drawCallCells(cells, one);
    write(cells.age, lasting(now ? now.at_ms / 1000 - one.created : 0, 1));
    spark(svg, ways(one.id), now ? now.at_ms : 0, window, 24);
  });
  $('none').hidden = list.length > 0;
  body.closest('.scroll').hidden = !list.length;
  $('sides').hidden = !list.some((one) => one.quality);
  write($('none'), searched ? 'No live allocation has this in its user or address.' : 'No allocations. Clients that call through this server appear here.');
}

function ways(id) {
  const points = rowPast.get(id) || [];
  return [
    { points, value: (p) => p.bits.to_peer, color: 'one' }, { points, value: (p) => p.bits.to_client, color: 'two' },
  ];
}

let searched = '';
let searches = 0;

async function search() {
  const wanted = searched;
  const mine = ++searches;
  if (!wanted) return;
  try {
    const response = await ask('/api/v1/allocations?limit=' + MOST_FOUND + '&search=' + encodeURIComponent(wanted));
    if (!response.ok) throw new Error(await problemOf(response));
    const list = await response.json();
    if (mine !== searches || wanted !== searched) return;
    const found = Number(response.headers.get('x-total-count'));
    for (const one of list) note(one, now ? now.at_ms : 0);
    write($('found'), found > list.length ? 'The ' + list.length + ' busiest of ' + count(found) + ' that match.' : count(found) + (found === 1 ? ' matches.' : ' match.'));
    drawRows(list);
  } catch (error) {
    if (error instanceof Unauthorized) signIn(true);
    else if (mine === searches) write($('found'), 'The search failed: ' + error.message);
  }
}

function searchFor(text) {
  searched = text.trim();
  write($('allocations-title'), searched ? 'Allocations found' : 'Busiest allocations');
  if (searched) { search(); return; }
  searches += 1;
  write($('found'), '');
  if (now && now.busiest) drawRows(now.busiest);
}

/* One allocation. */

let shownId = null;
let shownOne = null;

async function show(id) {
  shownId = id;
  shownOne = null;
  $('detail-title').firstElementChild.textContent = '\u2026';
  await look();
  if (shownId === id && !$('detail').open) $('detail').showModal();
}

async function look() {
  const id = shownId;
  if (id === null) return;
  try {
    const response = await ask('/api/v1/allocations/' + encodeURIComponent(id));
    if (shownId !== id) return;
    if (response.status === 404) { gone(); return; }
    if (!response.ok) throw new Error(await problemOf(response));
    shownOne = await response.json();
    drawDetail(shownOne);
  } catch (error) {
    if (error instanceof Unauthorized) signIn(true);
  }
}

function gone() {
  if (!shownOne) { shownId = null; say('This allocation has ended.'); return; }
  write($('detail-state'), 'ended');
  $('detail-state').className = 'pill draining';
  $('end-one').disabled = true;
}

function drawDetail(one) {
  const at = now ? now.at_ms / 1000 : one.created;
  note(one, now ? now.at_ms : 0);
  write($('detail-title').firstElementChild, named(one.user));
  write($('detail-state'), 'live');
  $('detail-state').className = 'pill ok';
  $('end-one').disabled = false;
  write($('detail-to-peer'), bits(one.bits_per_second.to_peer).join(' '));
  write($('detail-to-client'), bits(one.bits_per_second.to_client).join(' '));
  spark($('detail-spark'), ways(one.id), now ? now.at_ms : 0, rowWindow(now ? now.at_ms : 0));
  const facts = [
    ['Client', one.client], ['Relayed address', one.relayed + (one.relayed_additional ? ', ' + one.relayed_additional : '')], ['Transport', one.transport.toUpperCase()], ['Id', one.id],
    ['Age', lasting(at - one.created)], ['Ends unless refreshed in', lasting(one.expires - at)],
    ['Sent to peers', bytes(one.bytes.to_peer) + ', ' + count(one.packets.to_peer) + ' packets'],
    ['Sent to client', bytes(one.bytes.to_client) + ', ' + count(one.packets.to_client) + ' packets'],
    ['Peak to peers', bits(one.peak_bits_per_second.to_peer).join(' ')],
    ['Peak to client', bits(one.peak_bits_per_second.to_client).join(' ')],
    ['Permissions', count(one.permissions)], ['Channels', count(one.channels)],
  ];
  drawFacts($('detail-facts'), facts);
  drawCall(one, now ? now.at_ms : 0);
}

function drawFacts(list, facts) {
  if (!list.childElementCount) {
    list.append(...facts.map(([name]) => make('div', {}, make('dt', {}, name), make('dd', {}, ''))));
  }
  facts.forEach(([, text], index) => write(list.children[index].lastElementChild, text));
}

function confirmed(title, text, label) {
  write($('confirm-title'), title);
  write($('confirm-text'), text);
  write($('confirm-yes'), label);
  return new Promise((resolve) => {
    const dialog = $('confirm');
    const yes = () => { dialog.returnValue = 'yes'; dialog.close('yes'); };
    const no = () => dialog.close('no');
    dialog.returnValue = 'no';
    $('confirm-yes').addEventListener('click', yes);
    $('confirm-no').addEventListener('click', no);
    dialog.addEventListener('close', () => {
      $('confirm-yes').removeEventListener('click', yes);
      $('confirm-no').removeEventListener('click', no);
      resolve(dialog.returnValue === 'yes');
    }, { once: true });
    dialog.showModal();
    $('confirm-no').focus();
  });
}

async function ended(action) {
  try {
    await action();
  } catch (error) {
    if (error instanceof Unauthorized) signIn(true);
    else say('Nothing was ended: ' + error.message);
  }
}

async function endOne(id) {
  const response = await ask('/api/v1/allocations/' + encodeURIComponent(id), { method: 'DELETE' });
  if (response.status === 404) return false;
  if (!response.ok) throw new Error(await problemOf(response));
  return true;
}

async function ofUser(user, limit) {
  const response = await ask('/api/v1/allocations?limit=' + limit + '&user=' + encodeURIComponent(user));
  if (!response.ok) throw new Error(await problemOf(response));
  return [await response.json(), Number(response.headers.get('x-total-count'))];
}

async function endUser(user) {
  /* What a path cannot carry, since browsers resolve it. */
  if (['', '.', '..'].includes(user)) {
    const [list] = await ofUser(user, 100000);
    let number = 0;
    for (const one of list) number += await endOne(one.id) ? 1 : 0;
    return number;
  }
  const response = await ask('/api/v1/users/' + encodeURIComponent(user) + '/allocations', { method: 'DELETE' });
  if (!response.ok) throw new Error(await problemOf(response));
  return (await response.json()).ended;
}

const afterwards = (what) => 'What goes through ' + what + ' is cut at once. The user may allocate again as long as the credentials are good.';

$('end-one').addEventListener('click', () => ended(async () => {
  const one = shownOne;
  if (!one) return;
  if (!await confirmed('End this allocation of ' + named(one.user) + '?', afterwards('it'), 'End it')) return;
  const done = await endOne(one.id);
  $('detail').close();
  say(done ? 'The allocation of ' + named(one.user) + ' was ended.' : 'It had ended already.');
  if (searched) search();
}));

$('end-user').addEventListener('click', () => ended(async () => {
  const one = shownOne;
  if (!one) return;
  const [, number] = await ofUser(one.user, 1);
  const all = number === 1 ? 'the one allocation' : 'all ' + count(number) + ' allocations';
  if (!await confirmed('End ' + all + ' of ' + named(one.user) + '?', afterwards(number === 1 ? 'it' : 'them'), number === 1 ? 'End it' : 'End all')) return;
  const done = await endUser(one.user);
  $('detail').close();
  say(count(done) + (done === 1 ? ' allocation' : ' allocations') + ' of ' + named(one.user) + ' ended.');
  if (searched) search();
}));

$('detail').addEventListener('close', () => { shownId = null; });
$('detail-close').addEventListener('click', () => $('detail').close());

let quiet = null;

function say(text) {
  write($('toast'), text);
  clearTimeout(quiet);
  quiet = setTimeout(() => write($('toast'), ''), 6000);
}

/* Following the events. */

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
let following = null;

function link(state, text) {
  $('link').className = 'link ' + state;
  write($('link'), text);
}

async function read(body, each, alive) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    rest += value;
    const events = rest.split('\n\n');
    rest = events.pop();
    for (const event of events) {
      const fields = new Map(event.split('\n').map((line) => {
        const at = line.indexOf(': ');
        return [line.slice(0, at), line.slice(at + 2)];
      }));
      each(fields.get('event'), JSON.parse(fields.get('data')));
    }
  }
}

async function follow() {
  if (following) following.abort();
  const mine = following = new AbortController();
  let pause = 500;
  while (!mine.signal.aborted) {
    const once = new AbortController();
    const stop = () => once.abort();
    mine.signal.addEventListener('abort', stop);
    let silence = setTimeout(stop, SILENCE_MS);
    const alive = () => { clearTimeout(silence); silence = setTimeout(stop, SILENCE_MS); };
    try {
      const response = await ask('/api/v1/events', { signal: once.signal });
      if (response.ok) {
        await read(response.body, (name, data) => {
          if (mine.signal.aborted) return;
          pause = 500;
          if (name === 'past') { begin(data); board(); }
          if (name === 'now') { link('live', 'live'); take(data); }
        }, alive);
      } else {
        link('lost', await problemOf(response));
        pause = Math.max(pause, 3000);
      }
    } catch (error) {
      if (error instanceof Unauthorized) { signIn(token !== null); return; }
      if (!mine.signal.aborted) link('lost', 'connection lost, trying again');
    } finally {
      clearTimeout(silence);
      mine.signal.removeEventListener('abort', stop);
      once.abort();
    }
    if (mine.signal.aborted) return;
    await wait(pause);
    pause = Math.min(pause * 2, 10e3);
  }
}

function board() {
  $('login').hidden = true;
  $('board').hidden = false;
  $('signout').hidden = token === null;
}

function signIn(refused) {
  if (following) following.abort();
  following = null;
  remember(null);
  past = []; now = null; rowPast = new Map();
  for (const id of ['detail', 'confirm']) if ($(id).open) $(id).close();
  $('board').hidden = true;
  $('signout').hidden = true;
  $('status').hidden = true;
  for (const id of ['node', 'region']) write($(id), '');
  for (const { element } of rows.values()) element.remove();
  rows.clear();
  document.title = 'turnix';
  link('', 'signed out');
  $('login').hidden = false;
  write($('token-problem'), refused ? 'This is not the token of this server.' : '');
  $('token').focus();
}

$('login').addEventListener('submit', (event) => {
  event.preventDefault();
  const given = $('token').value.trim();
  $('token').value = '';
  /* What a header cannot carry is no token either. */
  if (!/^[\x21-\x7e]+$/.test(given)) { signIn(true); return; }
  remember(given);
  link('', 'connecting');
  follow();
});
$('signout').addEventListener('click', () => signIn(false));

let typed = null;
$('search').addEventListener('input', () => {
  clearTimeout(typed);
  typed = setTimeout(() => searchFor($('search').value), 200);
});
$('search-form').addEventListener('submit', (event) => {
  event.preventDefault();
  searchFor($('search').value);
});
$('failures-all').addEventListener('click', () => { allFailures = !allFailures; if (now) drawFailures(); });
for (const unit of document.querySelectorAll('input[name=unit]')) {
  unit.addEventListener('change', () => { if (now) drawChart(now.at_ms); });
}

setInterval(() => { if (following && !document.hidden) look(); }, 1000);
setInterval(() => { if (following && !document.hidden) search(); }, 3000);

/* Nobody looks at a hidden page for long: the server need not tell it anything. */
let asleep = null;
document.addEventListener('visibilitychange', () => {
  clearTimeout(asleep);
  if (document.hidden) {
    asleep = setTimeout(() => { if (following) { following.abort(); link('', 'paused'); } }, HIDDEN_MS);
  } else if (following && following.signal.aborted) {
    follow();
  }
});

follow();
