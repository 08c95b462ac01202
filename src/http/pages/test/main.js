/* The beginning. `window.turnixResult` is a promise of the first result, for browsers that are driven by programs. */

const EXAMPLE = JSON.stringify([{
  urls: ['turn:turn.example.org:3478', 'turns:turn.example.org:443?transport=tcp'],
  username: 'user', credential: 'password',
}], null, 2);

let announce;
window.turnixResult = new Promise((resolve) => { announce = resolve; });
let again = null;
let last = null;
let devices = [];

/* Whose connection is tested: the servers that `find` gives, `{ targets, session }`. */
async function run(find) {
  again = find;
  document.documentElement.dataset.turnix = 'running';
  $('support-title').textContent = 'Send the result to support';
  $('devices').hidden = $('devices-note').hidden = $('devices').querySelector('.actions').hidden = false;
  for (const id of ['form', 'start', 'again', 'edit', 'advice', 'support', 'network', 'problem', 'shared', 'details', 'routes']) $(id).hidden = true;
  $('lanes').dataset.drawn = '';
  $('bar').hidden = false;
  showHero('running', 'Testing\u2026', 'Asking the server for test credentials.');
  document.title = 'Testing\u2026 \u00b7 Connection test';
  showProgress(0);
  $('title').focus();
  const started = new Date();
  let found;
  try {
    const { targets, session } = await find();
    const host = targets[0].host;
    const { results, network } = await watch(targets, session);
    const { verdict, finding, quality, title, text, advice } = conclude(results, host);
    found = { verdict, finding, quality, title, summary: text, advice, results, network, server: (session && session.server) || null };
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    found = {
      verdict: 'failed', finding: 'not_started', quality: null, title: 'The test could not start', summary: error.message, advice: [], results: [], network: null, server: null,
    };
  }
  last = {
    version: 1, ...found, transports: transportsOf(found.results), started: started.toISOString(), duration_ms: Math.round(new Date() - started),
    page: location.origin + location.pathname, browser: navigator.userAgent, devices,
  };
  await finish();
}

/* Runs the tests and draws them as they go. */
async function watch(targets, session) {
  const tests = [];
  const cards = new Map();
  $('cards').replaceChildren();
  $('details').hidden = false;
  let said = 0;
  const draw = () => {
    const shares = tests.map(({ result, phase }) => (result.state ? 1 : PHASES[phase][1]));
    showProgress(Math.min(0.99, sum(shares) / tests.length));
    drawLanes(tests);
    const done = tests.filter(({ result }) => result.state);
    const best = bestOf(done.map(({ result }) => result));
    const text = done.length + ' of ' + tests.length + ' addresses tested.' + (best ? ' ' + best.name + ' works.' : '');
    $('text').textContent = text;
    if (done.length > said) {
      said = done.length;
      $('status').textContent = text;
    }
  };
  const note = (test) => {
    if (!cards.has(test)) {
      tests.push(test);
      cards.set(test, element('section', 'card'));
      $('cards').append(cards.get(test));
    }
    drawCard(cards.get(test), test);
    draw();
  };
  if (typeof RTCPeerConnection === 'undefined') {
    throw new Failure('This browser has no WebRTC, or it is turned off. Turn it on in the settings or the privacy extension, or use another browser.');
  }
  return measure(targets, session ? session.limits : null, note);
}

async function finish() {
  showProgress(1);
  $('bar').hidden = true;
  showResult(last);
  $('again').hidden = $('edit').hidden = false;
  $('support').hidden = !last.results.length;
  $('status').textContent = last.title + '. ' + last.summary;
  await share();
  $('title').focus();
  document.documentElement.dataset.turnix = last.verdict;
  announce(last);
}

/* The address bar gets the result too: what people copy from there holds no credential. */
async function share() {
  const link = location.origin + location.pathname + '#r=' + await pack(last);
  $('link').value = link;
  history.replaceState(null, '', link);
}

function showForm(text, problem) {
  $('form').hidden = false;
  $('servers').value = text;
  $('form-problem').hidden = !problem;
  $('form-problem').textContent = problem || '';
  $('servers').focus();
}

function showProblem(text) {
  $('problem').hidden = false;
  $('problem').textContent = text;
}

async function ownServers() {
  const session = await openSession();
  if (!session) {
    throw new Failure('This server gives out no credentials for tests. Ask whoever runs it for ICE servers, and choose \u201cTest other servers\u201d.');
  }
  return { targets: targetsOf(session), session };
}

async function begin() {
  const fragment = location.hash.replace(/^#/, '');
  try {
    if (!fragment) return;
    if (fragment === 'start') {
      run(ownServers);
    } else if (fragment.startsWith('r=')) {
      const found = await unpack(fragment.slice(2));
      last = found;
      showProgress(1);
      showResult(found);
      const when = new Date(found.started);
      $('shared').hidden = false;
      $('shared').textContent = 'Result' + (Number.isNaN(when.getTime()) ? '' : ' of ' + when.toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' })) + ', from the link. Nothing was tested now.';
      $('about').textContent += found.browser ? ' \u00b7 ' + found.browser : '';
      $('devices').hidden = !found.devices.length;
      $('devices').querySelector('.actions').hidden = $('devices-note').hidden = true;
      $('start').textContent = 'Test this browser';
      $('support').hidden = false;
      $('support-title').textContent = 'Pass the result on';
      $('link').value = location.href;
      document.documentElement.dataset.turnix = 'shown';
    } else {
      const targets = parseServers(read(decode(fragment)));
      run(async () => ({ targets, session: null }));
    }
  } catch {
    showProblem('The part of this link after # cannot be read: it was probably cut off when it was copied.');
  }
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    /* The clipboard interface is missing on plain HTTP. */
    const area = element('textarea');
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
    button.focus();
  }
  const label = button.textContent;
  button.textContent = 'Copied';
  $('status').textContent = 'Copied';
  setTimeout(() => { button.textContent = label; }, 1500);
}

async function checkDevices(check) {
  const found = await check();
  const names = found.map(({ name }) => name);
  devices = [...devices.filter(({ name }) => !names.includes(name)), ...found];
  showDevices(devices);
  if (!last) return;
  last.devices = devices;
  if (last.results.length) share();
}

$('host').textContent = location.hostname;
$('servers').placeholder = EXAMPLE;
$('start').addEventListener('click', () => run(ownServers));
$('again').addEventListener('click', () => run(again));
$('edit').addEventListener('click', () => showForm($('servers').value, ''));
$('cancel').addEventListener('click', () => {
  $('form').hidden = true;
  $('edit').focus();
});
$('form').addEventListener('submit', (event) => {
  event.preventDefault();
  try {
    const targets = parseServers($('servers').value);
    run(async () => ({ targets, session: null }));
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    showForm($('servers').value, error.message);
  }
});
$('copy').addEventListener('click', () => copy(JSON.stringify(last, null, 2), $('copy')));
$('copy-link').addEventListener('click', () => copy($('link').value, $('copy-link')));
$('download').addEventListener('click', () => {
  const link = element('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify(last, null, 2)], { type: 'application/json' }));
  link.download = 'connection-test-' + last.started.slice(0, 10) + '.json';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
$('camera').addEventListener('click', () => (stopCamera ? stopCamera() : checkDevices(checkCamera)));
$('codecs').addEventListener('click', () => checkDevices(async () => checkCodecs()));
window.addEventListener('hashchange', () => location.reload());
begin();
