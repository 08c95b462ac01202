/* What was found, in plain words. */

/* Beyond these a conversation suffers. */
const POOR_LOSS = 0.03;
const POOR_RTT_MS = 400;
const POOR_BITS_PER_SECOND = 300e3;

const BY_CODE = new Map([
  [300, 'The server sends this browser to another server (300), and that one did not answer.'],
  [401, 'The server refused the user name or password (401). Time-limited credentials may have expired: get new ones. If they are new, check that both sides share the secret, and that the server\u2019s clock is right.'],
  [403, 'The server understood the request and forbids it (403): this user or network may not use it.'],
  [437, 'The server says this connection already has an allocation (437). Try again in a minute; if it stays, something between here and the server mixes up connections.'],
  [438, 'The server kept asking for a newer nonce (438). If several servers share one name, a load balancer may be sending each packet to another one.'],
  [440, 'The server does not relay for the kind of address this browser asked for (440): IPv4 or IPv6.'],
  [441, 'The credentials changed while they were in use (441). Start the test again.'],
  [442, 'The server does not relay the protocol this browser asked for (442).'],
  [486, 'A quota is used up (486): this user or network has as many allocations as the server permits. Close other calls, or raise the limit.'],
  [508, 'The server has no relay address left (508). It is full, or its port range is too small.'],
  [500, 'The server had an internal fault (500). Its log says more.'],
]);

/* The error codes of RFC 8489 and RFC 8656, and 701, which is the browser\u2019s own for "no answer". */
function explain(errors, target) {
  for (const [code, text] of BY_CODE) {
    if (errors.some((error) => error.code === code)) return text;
  }
  const told = errors.map((error) => error.code).filter((code) => code && code !== 701);
  if (told.length) return 'The server refused with error ' + [...new Set(told)].join(', ') + '.';
  const where = target.host + ', port ' + target.port;
  if (target.transport === 'tls' && wantsName(target.host)) {
    return 'Firefox makes TLS connections to relays by name, and this is an address. Use a name that the certificate has.';
  }
  if (target.transport === 'tls' || target.transport === 'dtls') {
    return 'No TLS connection to ' + where + '. A firewall may block the port or look into TLS, the certificate may not be trusted or name another host, or nothing listens there.';
  }
  if (target.transport === 'tcp') {
    return 'No TCP connection to ' + where + '. A firewall may block the port or let only web traffic pass, or nothing listens there.';
  }
  return 'No answer over UDP from ' + where + '. A firewall may block UDP or this port, as many offices do, or nothing listens there.';
}

const wantsName = (host) => /^[\d.]+$|^\[/.test(host) && /Firefox\//.test(navigator.userAgent);

const TRANSPORTS = ['udp', 'tcp', 'tls', 'dtls'];

function list(words, last = 'and') {
  const unique = [...new Set(words)];
  return unique.length < 2 ? unique.join('') : unique.slice(0, -1).join(', ') + ' ' + last + ' ' + unique[unique.length - 1];
}

/* Per transport: works, partly, blocked. Transports that were not asked for are left out. */
function transportsOf(results) {
  const found = {};
  for (const transport of TRANSPORTS) {
    const of = results.filter((result) => result.kind === 'turn' && result.transport === transport);
    if (!of.length) continue;
    const good = of.filter((result) => result.state === 'ok').length;
    found[transport] = good === of.length ? 'works' : good ? 'partly' : 'blocked';
  }
  return found;
}

/* The way a call would take: UDP before TCP before TLS, then the fastest. */
function bestOf(results) {
  const rank = (result) => TRANSPORTS.indexOf(result.transport);
  return results.filter((result) => result.kind === 'turn' && result.state === 'ok')
    .sort((a, b) => rank(a) - rank(b) || (a.loss || 0) - (b.loss || 0) || a.rtt_ms - b.rtt_ms)[0] || null;
}

const percent = (share) => (share === 0 ? 'nothing lost' : (share * 100).toFixed(share < 0.01 ? 2 : 1) + ' % lost');

function quality(best) {
  return Math.round(best.rtt_ms) + ' ms to the relay and back, ' + percent(best.loss);
}

function portsOf(results) {
  return [...new Set(results.map((result) => result.port))].sort((a, b) => a - b).join(', ');
}

/* "UDP on 80, 443 and TLS on 443". */
function waysOf(results) {
  const ways = TRANSPORTS.map((transport) => results.filter((result) => result.transport === transport)).filter((of) => of.length);
  return list(ways.map((of) => of[0].transport.toUpperCase() + ' on ' + portsOf(of)));
}

/* { verdict, finding, quality, title, text, advice: [{ to, text }] }; `finding` and `quality` are for programs. */
function conclude(results, host) {
  const best = bestOf(results);
  const found = concludeReach(results, best, host);
  if (!best || !isPoor(best)) return { ...found, quality: best ? 'good' : null };
  const advice = found.advice.filter(({ to }) => to !== 'you');
  if (best.busy && best.loss < POOR_LOSS) {
    advice.unshift({ to: 'you', text: 'This computer was busy during the test, which may be all there is to it: close what you do not need, and test again.' });
  } else {
    advice.unshift(
      { to: 'you', text: 'Come closer to the Wi-Fi access point or use a cable, stop downloads and other calls, and test again.' },
      { to: 'network', text: 'Look for a full line, or for a device that delays or drops packets.' },
    );
  }
  return {
    ...found, advice, verdict: 'partial', quality: 'poor', title: 'Calls connect, but will suffer',
    text: (found.finding === 'all_work' ? 'Every way to the relay works, and the best is poor: ' : found.text + ' That is poor: ')
      + best.name + ' takes ' + quality(best) + '. Expect delay, or gaps in sound and picture.',
  };
}

function isPoor(best) {
  return best.loss >= POOR_LOSS || best.rtt_ms >= POOR_RTT_MS || best.throughput_bits_per_second < POOR_BITS_PER_SECOND;
}

function concludeReach(results, best, host) {
  const relays = results.filter((result) => result.kind === 'turn');
  if (!relays.length) return concludeStun(results);
  const good = relays.filter((result) => result.state === 'ok');
  const bad = relays.filter((result) => result.state !== 'ok');
  if (!good.length) return concludeNothing(relays, host);

  const ways = transportsOf(relays);
  const udp = relays.filter((result) => result.transport === 'udp');
  if (!bad.length) {
    return {
      verdict: 'ok', finding: 'all_work', title: 'Everything works',
      text: 'Calls from here go through, over ' + best.name + ' at best: ' + quality(best) + '.',
      advice: [],
    };
  }
  if (ways.udp === 'blocked') {
    const only = [...new Set(good.map((result) => result.port))];
    const narrow = only.length === 1 && relays.some((result) => result.transport !== 'udp' && result.port !== only[0]);
    const through = good.find((result) => result.transport === 'tls' && result.port === 443) || best;
    return {
      verdict: 'partial', finding: narrow ? 'only_port_' + only[0] : 'udp_blocked',
      title: narrow ? 'Calls will work, through port ' + only[0] + ' alone' : 'Calls will work, without UDP',
      text: 'UDP is blocked here; ' + through.name + ' works: calls will go through it. ' + capital(quality(through)) + '.',
      advice: [
        { to: 'you', text: 'Nothing: calls choose this way by themselves. Sound and picture may pause for a moment where the network loses packets, because TCP waits for each of them.' },
        { to: 'network', text: 'For better calls, let UDP out to ' + host + ', ports ' + portsOf(udp) + '.' },
      ],
    };
  }
  const failing = waysOf(bad);
  const tlsOnly = ways.tls === 'blocked' && ways.tcp === 'works' && bad.every((result) => result.transport === 'tls');
  const advice = [{ to: 'you', text: 'Nothing: calls choose a way that works by themselves.' }];
  if (tlsOnly) {
    advice.push({ to: 'operator', text: wantsName(host) ? 'Give the relay a name: Firefox takes no bare address for TLS.' : 'TLS fails where TCP works: most often the certificate is not trusted, has ended, or does not name ' + host + '. Networks that let only TLS out cannot call until that is mended.' });
  } else {
    advice.push({ to: 'network', text: 'Let ' + failing + ' out to ' + host + ', for those moments when the other ways fail.' });
  }
  return {
    verdict: 'partial', finding: tlsOnly ? 'tls_fails' : 'some_fail', title: 'Calls will work',
    text: best.name + ' works: calls will go through it, ' + quality(best) + '. ' + failing + (bad.length > 1 ? ' do not work from here.' : ' does not work from here.'),
    advice,
  };
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

function concludeNothing(relays, host) {
  const codes = new Set(relays.flatMap((result) => result.errors.map((error) => error.code)));
  const fail = (finding, title, text, ...advice) => ({ verdict: 'failed', finding, title, text, advice });
  if (relays.some((result) => result.state === 'partial')) {
    return fail('relay_passes_nothing', 'The relay answers, but passes nothing on',
      'The server gives out relay addresses, and no data comes through them. Calls that need the relay will not work.',
      { to: 'operator', text: 'Compare relay.external_address with the server\u2019s public address, and let UDP in on its relay ports. Clients have to be allowed to reach the server\u2019s own relay addresses.' });
  }
  if (codes.has(401) || codes.has(403)) {
    return fail('refused', 'The server refuses these credentials',
      'The network lets calls through to the server, but the user name or password is not accepted, or has expired.',
      { to: 'you', text: 'Get new credentials and test again.' },
      { to: 'operator', text: 'Check that whoever makes credentials has the same secret and realm as the server, and that both clocks are right.' });
  }
  if (codes.has(486) || codes.has(508)) {
    return fail('full', 'The server is full',
      'It answers, but has no room for another connection: a quota or its relay ports are used up.',
      { to: 'you', text: 'Close other calls and try again in a few minutes.' },
      { to: 'operator', text: 'Raise limits.allocations or relay.ports, or find out who uses them up.' });
  }
  const all = relays.every((result) => /would not take/.test(result.reason || ''));
  if (all) {
    return fail('no_webrtc', 'This browser cannot make calls', relays[0].reason,
      { to: 'you', text: 'Turn on WebRTC in the settings or the privacy extension of this browser, or use another one.' });
  }
  return fail('nothing_reachable', 'Calls are blocked here',
    'No relay address answers from this network, over ' + list(relays.map((result) => result.transport.toUpperCase()), 'or') + '. Calls that need the relay will not connect.',
    { to: 'you', text: 'Try another network, such as a phone\u2019s hotspot, and turn off VPNs. If it works there, this network blocks it.' },
    { to: 'network', text: 'Let out to ' + host + ': TCP ' + (portsOf(relays.filter((result) => result.transport === 'tls')) || portsOf(relays)) + ' at the least, without looking into TLS; UDP ' + (portsOf(relays.filter((result) => result.transport === 'udp')) || portsOf(relays)) + ' for good calls.' },
    { to: 'operator', text: 'If it works nowhere: is the server running, and do its firewall and its provider\u2019s let these ports in?' });
}

function concludeStun(results) {
  const good = results.filter((result) => result.state === 'ok').length;
  const of = good + ' of ' + results.length + ' STUN addresses answer.';
  if (good === results.length) return { verdict: 'ok', finding: 'all_work', title: 'STUN works', text: 'Every STUN address answers. No relay was tested.', advice: [] };
  if (good) return { verdict: 'partial', finding: 'some_fail', title: 'STUN works', text: of, advice: [] };
  return {
    verdict: 'failed', finding: 'nothing_reachable', title: 'STUN does not work from here', text: of + ' Direct calls will rarely connect.',
    advice: [{ to: 'you', text: 'Test with a relay (turn: and turns: addresses): it works where STUN is not enough.' }],
  };
}

function describeNetwork(network) {
  const mapping = {
    stable: 'The network keeps one public port for a connection: direct calls often work, the relay serves the rest.',
    changing: 'The network changes the public port with every destination (symmetric NAT): direct calls mostly fail, and go through the relay.',
    unknown: 'How the network translates addresses could not be seen: too few answers over UDP.',
  }[network.mapping];
  return network.nat === false ? 'This computer has a public address of its own.' : mapping;
}
