/* What people see. Text from elsewhere becomes text, never markup. */

const $ = (id) => document.getElementById(id);

const PHASES = {
  waiting: ['waiting', 0], gathering: ['asking the relay', 0.1], connecting: ['connecting', 0.25], voice: ['measuring delay', 0.4],
  queued: ['measuring soon', 0.65], video: ['measuring rate', 0.75],
};
const STATES = { ok: 'works', partial: 'half works', failed: 'does not work' };
const READERS = { you: 'You', network: 'Whoever runs this network', operator: 'Whoever runs the relay' };

function element(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

function drawing(tag, attributes, ...content) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
}

function rate(bits) {
  return bits >= 1e6 ? (bits / 1e6).toFixed(1) + ' Mbit/s' : (bits / 1e3).toFixed(0) + ' kbit/s';
}

const milliseconds = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1)) + ' ms';

function figure(into, name, value, small) {
  if (value === null || value === undefined || value === '') return;
  const told = element('dd', '', value);
  if (small) told.append(element('small', '', small));
  into.append(element('div', '', element('dt', '', name), told));
}

/* A line over its area; where something was lost, a red mark at the bottom. */
function chart(values, lost, label, unit, wide) {
  const known = values.filter((value) => value !== null);
  const top = Math.max(...known, 1) * 1.25;
  const count = Math.max(wide, values.length) - 1;
  const at = (value, index) => (index / count * 100).toFixed(2) + ' ' + (40 - value / top * 36).toFixed(2);
  const svg = drawing('svg', { viewBox: '0 0 100 40', preserveAspectRatio: 'none', 'aria-hidden': 'true' });
  if (known.length) svg.append(drawing('path', { class: 'mid', d: 'M0 20H100' }));
  let run = [];
  const flush = () => {
    if (run.length) {
      const line = 'M' + run.map(([value, index]) => at(value, index)).join('L');
      const [first, final] = [run[0][1], run[run.length - 1][1]].map((index) => (index / count * 100).toFixed(2));
      svg.append(drawing('path', { class: 'area', d: line + 'L' + final + ' 40L' + first + ' 40z' }), drawing('path', { class: 'line', d: line }));
    }
    run = [];
  };
  values.forEach((value, index) => {
    if (value === null) flush(); else run.push([value, index]);
  });
  flush();
  lost.forEach((packets, index) => {
    if (packets) svg.append(drawing('rect', { class: 'gone', x: index / count * 100 - 0.6, y: 32, width: 1.2, height: 8 }));
  });
  const most = known.length ? unit(Math.max(...known)) : '';
  return element('figure', '', svg, element('figcaption', '', element('span', '', label), element('span', '', most ? 'up to ' + most : '')));
}

function drawCard(card, { result, phase }) {
  const state = result.state;
  const badge = element('span', 'badge ' + (state || (phase === 'waiting' ? '' : 'running')), state ? STATES[state] : PHASES[phase][0]);
  const content = [element('div', 'head', element('h3', '', result.name), badge), element('p', 'url', result.url)];
  if (result.kind === 'turn' && (!state || (result.rtt_series_ms || []).length > 1)) {
    content.push(element('div', 'charts', chart(result.rtt_series_ms || [], result.lost_series || [], 'Delay', milliseconds, POINTS),
      chart(result.throughput_series || [], [], 'Rate', rate, LEAST_VIDEO_MS / 100)));
  }
  const figures = element('dl', 'figures');
  if (typeof result.rtt_ms === 'number') {
    figure(figures, 'Round trip', milliseconds(result.rtt_ms), '95 % in ' + milliseconds(result.rtt_95_ms));
    figure(figures, 'Jitter', milliseconds(result.jitter_ms));
    figure(figures, 'Loss', result.loss === 0 ? 'none' : (result.loss * 100).toFixed(2) + ' %', 'of ' + result.sent + ' packets');
  }
  if (typeof result.throughput_bits_per_second === 'number') {
    figure(figures, 'Throughput', rate(result.throughput_bits_per_second), result.throughput_bounded ? 'all this test asks for' : 'of ' + rate(result.throughput_asked_bits_per_second));
  }
  figure(figures, 'Public address', result.public_address);
  if (result.kind === 'stun' && result.candidate_ms !== null) figure(figures, 'Answered after', milliseconds(result.candidate_ms));
  if (figures.children.length) content.push(figures);
  if (result.reason) content.push(element('p', 'reason', result.reason));
  const facts = [];
  if (result.relayed) facts.push('relayed address ' + result.relayed + ', after ' + milliseconds(result.candidate_ms));
  for (const error of result.errors) facts.push(error.code + ' ' + error.text);
  if (facts.length && state) {
    const opened = card.querySelector('details');
    const details = element('details', '', element('summary', '', 'What the browser reported'), element('pre', '', facts.join('\n')));
    details.open = Boolean(opened && opened.open);
    content.push(details);
  }
  card.classList.toggle('running', result.kind === 'turn' && !state);
  card.replaceChildren(...content);
}

function drawLanes(tests) {
  const lanes = [];
  for (const transport of TRANSPORTS) {
    const of = tests.filter(({ result }) => result.kind === 'turn' && result.transport === transport);
    if (!of.length) continue;
    const good = of.filter(({ result }) => result.state === 'ok');
    const bad = of.filter(({ result }) => result.state && result.state !== 'ok');
    const running = good.length + bad.length < of.length;
    const state = running ? 'running' : !bad.length ? 'ok' : good.length ? 'partial' : 'failed';
    /* Where TCP gets through, it is not the network that stops TLS. */
    const fails = transport === 'tls' && tests.some(({ result }) => result.transport === 'tcp' && result.state === 'ok' && of.some((one) => one.result.port === result.port));
    const says = { running: good.length ? 'works so far' : 'testing\u2026', ok: 'works', partial: 'partly', failed: fails ? 'fails' : 'blocked' }[state];
    const shown = state === 'partial' || (running && good.length) ? good : of;
    const ports = portsOf(shown.map(({ result }) => result));
    lanes.push(element('li', state, element('span', 'lane', transport.toUpperCase()),
      element('span', 'way', element('i'), element('b', '', '\u2715')),
      element('span', 'says', says, element('span', '', (shown.length > 1 ? 'ports ' : 'port ') + ports + (state === 'partial' ? ' only' : '')))));
    lanes[lanes.length - 1].querySelector('.way').setAttribute('aria-hidden', 'true');
  }
  const drawn = lanes.map((lane) => lane.className + lane.textContent).join();
  if ($('lanes').dataset.drawn === drawn) return;
  $('lanes').dataset.drawn = drawn;
  $('lanes').replaceChildren(...lanes);
  $('routes').hidden = !lanes.length;
}

function showHero(verdict, title, text) {
  $('hero').dataset.verdict = verdict;
  $('title').textContent = title;
  $('text').textContent = text;
}

function showProgress(share) {
  const done = Math.round(share * 100);
  $('arc').style.strokeDasharray = done + ' 100';
  $('percent').textContent = share < 1 ? done + ' %' : '';
  $('bar').style.setProperty('--done', share);
  $('bar').setAttribute('aria-valuenow', done);
}

function showResult(found) {
  showHero(found.verdict, found.title, found.summary);
  document.title = found.title + ' \u00b7 Connection test';
  const advice = found.advice.map(({ to, text }) => element('div', '', element('dt', '', READERS[to]), element('dd', '', text)));
  $('advice-list').replaceChildren(...advice);
  $('advice').hidden = !advice.length;
  const tests = found.results.map((result) => ({ result, phase: 'done' }));
  drawLanes(tests);
  $('cards').replaceChildren(...tests.map((test) => {
    const card = element('section', 'card');
    drawCard(card, test);
    return card;
  }));
  $('details').hidden = !tests.length;
  showNetwork(found.network);
  showDevices(found.devices);
  const about = [];
  if (found.server && found.server.version) about.push('turnix ' + found.server.version);
  if (found.server && found.server.node) about.push(found.server.node + (found.server.region ? ' (' + found.server.region + ')' : ''));
  $('about').textContent = about.join(' \u00b7 ') || 'turnix';
}

function showNetwork(network) {
  $('network').hidden = !network;
  if (!network) return;
  $('nat').textContent = describeNetwork(network);
  const figures = $('network-list');
  figures.replaceChildren();
  figure(figures, 'Public address', network.public_addresses.join(', ') || 'not seen');
  figure(figures, 'Address translation', network.nat === false ? 'none' : { stable: 'stable ports', changing: 'symmetric', unknown: 'not seen' }[network.mapping]);
  figure(figures, 'IPv6', network.ipv6 ? 'yes' : 'not seen');
  figure(figures, 'Local addresses', network.mdns ? 'hidden by mDNS names' : 'not hidden');
  figure(figures, 'Connection', network.type);
}

function showDevices(devices) {
  const figures = $('devices-list');
  figures.replaceChildren();
  for (const { name, value } of devices) figure(figures, name, value);
}

/* Camera, microphone, codecs: when asked to. */

const DEVICE_PROBLEMS = {
  NotAllowedError: 'not permitted: allow it in the address bar or the system\u2019s settings',
  NotFoundError: 'none was found', NotReadableError: 'in use by another program, or the system withholds it',
  OverconstrainedError: 'cannot do what was asked', SecurityError: 'forbidden by this browser',
};

let stopCamera = null;

async function checkCamera() {
  if (!navigator.mediaDevices) {
    return [{ name: 'Camera and microphone', value: 'browsers allow them on pages over HTTPS only: open this page with https' }];
  }
  const found = [];
  const tracks = [];
  for (const [kind, name] of [['video', 'Camera'], ['audio', 'Microphone']]) {
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ [kind]: true });
      const [track] = stream.getTracks();
      const { width, height, frameRate } = track.getSettings();
      tracks.push(track);
      found.push({ name, value: 'works' + (width ? ', ' + width + ' \u00d7 ' + height + (frameRate ? ' at ' + Math.round(frameRate) + '/s' : '') : '') });
    } catch (error) {
      found.push({ name, value: DEVICE_PROBLEMS[error.name] || error.message });
    }
  }
  if (tracks.length) preview(tracks);
  return found;
}

function preview(tracks) {
  $('preview').hidden = false;
  const video = tracks.filter((track) => track.kind === 'video');
  $('video').hidden = !video.length;
  if (video.length) $('video').srcObject = new MediaStream(video);
  const audio = tracks.filter((track) => track.kind === 'audio');
  const context = audio.length ? new AudioContext() : null;
  let timer = null;
  if (context) {
    const analyser = context.createAnalyser();
    context.createMediaStreamSource(new MediaStream(audio)).connect(analyser);
    const wave = new Float32Array(analyser.fftSize);
    timer = setInterval(() => {
      analyser.getFloatTimeDomainData(wave);
      $('level').value = Math.min(1, Math.sqrt(sum([...wave].map((value) => value * value)) / wave.length) * 4);
    }, 80);
  }
  $('camera').textContent = 'Turn camera and microphone off';
  stopCamera = () => {
    clearInterval(timer);
    if (context) context.close();
    tracks.forEach((track) => track.stop());
    $('video').srcObject = null;
    $('preview').hidden = true;
    $('camera').textContent = 'Check camera and microphone';
    stopCamera = null;
  };
}

function checkCodecs() {
  return ['video', 'audio'].map((kind) => {
    const known = typeof RTCRtpSender !== 'undefined' && RTCRtpSender.getCapabilities && RTCRtpSender.getCapabilities(kind);
    const names = known ? [...new Set(known.codecs.map((codec) => codec.mimeType.split('/')[1]))] : [];
    const codecs = names.filter((name) => !/^(rtx|red|ulpfec|flexfec.*|CN|telephone-event)$/i.test(name));
    return { name: kind === 'video' ? 'Video codecs' : 'Audio codecs', value: codecs.join(', ') || 'none' };
  });
}
