
/* How calls go. The side of the client comes first, in the colour of what goes to peers: that is what it sends. */

const SESSIONS = {
  waiting: ['begins', ''], unused: ['unused', ''], established: ['established', 'ok'], silent: ['silent', 'draining'],
  to_peer_only: ['no answer', 'degraded'], to_client_only: ['client silent', 'degraded'],
};
const SESSIONS_AT_LENGTH = {
  waiting: 'begins: too early to tell', unused: 'nothing was relayed', established: 'data both ways',
  silent: 'was established; nothing is relayed now', to_peer_only: 'data from the client alone: no peer answers',
  to_client_only: 'data from peers alone: the client does not answer',
};

const known = (value) => value !== null && value !== undefined;

function small(value) {
  if (!known(value)) return '\u2013';
  if (value === 0) return '0';
  /* Never rounded down to none. */
  if (value < 0.05) return '<0.1';
  return value < 9.95 ? value.toFixed(1) : value.toFixed(0);
}

const pair = (one, two) => known(one) || known(two) ? small(one) + '\u202f/\u202f' + small(two) : '';
const hundredfold = (ratio) => known(ratio) ? ratio * 100 : null;

/* Of an allocation: what its columns show and its sparklines follow. */
function callOf(one) {
  const quality = one.quality;
  if (!quality) return null;
  const smoothed = (leg) => quality.rtt_ms[leg] && quality.rtt_ms[leg].smoothed;
  return {
    session: quality.session,
    rtt: { client: smoothed('client'), peer: smoothed('peer') },
    loss: { client: hundredfold(quality.recent_loss.to_peer), peer: hundredfold(quality.recent_loss.to_client) },
    jitter: { client: quality.jitter_ms.to_peer, peer: quality.jitter_ms.to_client },
  };
}

/* Of the whole server: medians of round-trip times, means of loss. What is told now holds more than what is remembered. */
function callsOf(told) {
  const calls = told.calls;
  if (!calls) return { rtt: {}, loss: {} };
  const brief = (value, of) => value && typeof value === 'object' ? value[of] : value;
  return {
    rtt: { client: brief(calls.rtt_ms.client, 'p50'), peer: brief(calls.rtt_ms.peer, 'p50') },
    loss: {
      client: hundredfold(brief(calls.loss.to_peer, 'mean')), peer: hundredfold(brief(calls.loss.to_client, 'mean')),
    },
  };
}

/* Both sides of one kind of figure over time; a side that says nothing has no line. */
function sides(points, of) {
  return [['client', 'one'], ['peer', 'two']].map(([side, color]) => ({
    points: points.filter((point) => known(of(point)[side])), value: (point) => of(point)[side], color,
  }));
}

function callCells() {
  return {
    call: make('td', { class: 'middling' }, make('span', { class: 'pill small-pill' })),
    rtt: make('td', { class: 'number' }), loss: make('td', { class: 'number' }), jitter: make('td', { class: 'number middling' }),
  };
}

function drawCallCells(cells, one) {
  const call = callOf(one);
  const [word, grade] = call ? SESSIONS[call.session] || [printable(call.session), ''] : ['', ''];
  const pill = cells.call.firstElementChild;
  pill.hidden = !word;
  pill.className = 'pill small-pill ' + grade;
  write(pill, word);
  for (const key of ['rtt', 'loss', 'jitter']) write(cells[key], call ? pair(call[key].client, call[key].peer) : '');
  const worst = call ? Math.max(call.loss.client || 0, call.loss.peer || 0) : 0;
  cells.loss.className = 'number ' + (worst >= 5 ? 'bad' : worst >= 1 ? 'warn' : '');
}

function drawCalls(end) {
  const calls = now.calls;
  const rest = (spread, form) => spread
    ? '90 %: ' + form(spread.p90) + ' \u00b7 99 %: ' + form(spread.p99) : 'nothing measured';
  const ms = (value) => small(value) + ' ms';
  for (const side of ['client', 'peer']) {
    const spread = calls.rtt_ms[side];
    figure('rtt-' + side, spread ? [small(spread.p50), 'ms'] : ['\u2013', '']);
    write($('rtt-' + side + '-rest'), rest(spread, ms));
    spark($('spark-rtt-' + side), sides(past, (p) => p.calls.rtt).filter((one) => one.color === (side === 'client' ? 'one' : 'two')), end, span);
  }
  const [ours, theirs] = [calls.loss.to_peer, calls.loss.to_client];
  const measured = [ours, theirs].filter(Boolean);
  const weight = measured.reduce((sum, one) => sum + one.allocations, 0);
  const mean = measured.reduce((sum, one) => sum + one.mean * one.allocations, 0) / weight;
  figure('loss', weight ? [small(mean * 100), '%'] : ['\u2013', '']);
  const share = (one) => one ? small(one.mean * 100) + ' %' : '\u2013';
  write($('loss-of'), weight ? 'clients ' + share(ours) + ' \u00b7 peers ' + share(theirs) : 'no media');
  spark($('spark-loss'), sides(past, (p) => p.calls.loss), end, span);
  const jitters = [calls.jitter_ms.to_peer, calls.jitter_ms.to_client];
  figure('jitter', jitters.some(Boolean) ? [pair(jitters[0] && jitters[0].p50, jitters[1] && jitters[1].p50), 'ms'] : ['\u2013', '']);
  write($('jitter-of'), jitters.some(Boolean) ? 'clients / peers, medians' : 'no media');
  const ended = calls.ended_recently || calls.ended;
  const ratio = ended.success_ratio;
  figure('sessions', ratio === null ? ['\u2013', ''] : [percent(ratio), '%']);
  const live = Object.entries(calls.sessions).sort((a, b) => b[1] - a[1]);
  const words = live.map(([word, number]) => count(number) + ' ' + (SESSIONS[word] ? SESSIONS[word][0] : printable(word)));
  write($('sessions-of'), words.length ? words.join(' \u00b7 ') : 'nobody calls');
  level($('sessions-meter'), ratio === null ? 0 : ratio, ratio >= 0.95 ? '' : ratio >= 0.8 ? 'warn' : 'bad');
}

const DETAILS = { rtt: 'ms', loss: '%', jitter: 'ms' };

function drawCall(one, end) {
  const call = callOf(one);
  $('detail-call').hidden = !call;
  if (!call) return;
  const points = (rowPast.get(one.id) || []).filter((point) => point.call);
  for (const [key, unit] of Object.entries(DETAILS)) {
    for (const side of ['client', 'peer']) {
      write($('detail-' + key + '-' + side), known(call[key][side]) ? small(call[key][side]) + ' ' + unit : '\u2013');
    }
    spark($('detail-spark-' + key), sides(points, (point) => point.call[key]), end, rowWindow(end));
  }
  drawCallFacts(one.quality);
  drawStreams(one.quality.streams);
}

function drawCallFacts(quality) {
  const after = (ms) => known(ms) ? 'after ' + (ms < 1000 ? small(ms) + ' ms' : (ms / 1000).toFixed(1) + ' s') : 'none';
  const checks = (of) => of.sent ? count(of.answered) + ' of ' + count(of.sent) + ' answered' + (of.repeated ? ', ' + count(of.repeated) + ' sent again' : '') : 'none';
  const ways = (pair) => pair.to_peer && pair.to_client ? 'both ways' : pair.to_peer ? 'from the client alone' : pair.to_client ? 'from peers alone' : 'none seen';
  const lost = (ratio) => known(ratio) ? small(ratio * 100) + ' %' : '\u2013';
  const least = (rtt) => rtt ? small(rtt.least) + ' ms' : '\u2013';
  const facts = [
    ['Session', SESSIONS_AT_LENGTH[quality.session] || printable(quality.session)],
    ['First data', 'to peers ' + after(quality.first_data_ms.to_peer) + ', to client ' + after(quality.first_data_ms.to_client)],
    ['Checks to peers', checks(quality.checks.to_peer)], ['Checks to client', checks(quality.checks.to_client)],
    ['Shortest round trip', 'client ' + least(quality.rtt_ms.client) + ', peer ' + least(quality.rtt_ms.peer)],
    ['Lost over the call', 'from client ' + lost(quality.loss.to_peer) + ', from peer ' + lost(quality.loss.to_client)],
    ['DTLS handshake', ways(quality.dtls)], ['Media', ways(quality.media)],
  ];
  drawFacts($('detail-call-facts'), facts);
}

function drawStreams(streams) {
  $('detail-streams').closest('.scroll').hidden = !streams.length;
  const key = JSON.stringify(streams);
  if ($('detail-streams').dataset.key === key) return;
  $('detail-streams').dataset.key = key;
  $('detail-streams').replaceChildren(...streams.map((one) => {
    const all = one.received + one.lost;
    const number = (text) => make('td', { class: 'number' }, text);
    return make('tr', {},
      make('th', { scope: 'row' }, one.media === 'unknown' ? '\u2013' : printable(one.media)),
      make('td', {}, one.direction === 'to_peer' ? 'client' : 'peer'),
      make('td', { class: 'address' }, one.ssrc.toString(16).padStart(8, '0')),
      number(String(one.payload_type)), number(one.clock_rate ? (one.clock_rate / 1000) + ' kHz' : '\u2013'),
      number(count(one.received)), number(all ? small(one.lost / all * 100) + ' %' : '\u2013'),
      number(count(one.reordered)), number(known(one.jitter_ms) ? small(one.jitter_ms) + ' ms' : '\u2013'));
  }));
}
