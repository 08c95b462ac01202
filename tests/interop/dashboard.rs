//! The dashboard in headless Chromium: it watches a real call, finds it, and ends it.

use std::time::Duration;

use serde_json::json;
use turnix::access::rest;
use turnix::base::{Clock, Secret};

use crate::chromium::{Tab, command};
use crate::server::{Options, SECRET, Server, TOKEN, is_stand_in};
use crate::tools::{find_tool, one_at_a_time, wait_for};

const PATIENCE: Duration = Duration::from_secs(45);

/// A user who hopes that some page takes a name for markup.
const HOSTILE: &str = r#"<img src=x onerror="window.taken=1"><script>window.taken=2</script>'"/ä"#;

/// A call through the relay between two ends in the page, which sends until its allocations are gone.
const CALL: &str = "(async () => {
  const ends = window.ends = [new RTCPeerConnection(CONFIG), new RTCPeerConnection(CONFIG)];
  const gathered = (end) => new Promise((done) => {
    const look = () => { if (end.iceGatheringState === 'complete') done(); };
    end.addEventListener('icegatheringstatechange', look);
    look();
  });
  const channel = ends[0].createDataChannel('call');
  ends[1].ondatachannel = (event) => { event.channel.onmessage = (message) => event.channel.send(message.data); };
  await ends[0].setLocalDescription();
  await gathered(ends[0]);
  await ends[1].setRemoteDescription(ends[0].localDescription);
  await ends[1].setLocalDescription();
  await gathered(ends[1]);
  await ends[0].setRemoteDescription(ends[1].localDescription);
  await new Promise((open, fail) => { channel.onopen = open; setTimeout(fail, 20000); });
  setInterval(() => { if (channel.readyState === 'open') channel.send('x'.repeat(1000)); }, 20);
  return 'up';
})()";

/// How many allocations are in the table.
const ROWS: &str = "document.querySelectorAll('#allocations tr').length";

struct Dashboard {
    tab: Tab,
}

impl Dashboard {
    fn open(chromium: &std::path::Path, server: &Server) -> Self {
        let url = format!("http://127.0.0.1:{}/", server.admin);
        let tab = Tab::open(&command(chromium, server.dir()), server.dir(), &url);
        Self { tab }
    }

    #[track_caller]
    fn until(&mut self, expression: &str) {
        wait_for(expression, PATIENCE, || {
            (self.tab.evaluate(expression) == true).then_some(())
        });
    }

    fn text(&mut self, selector: &str) -> String {
        let text = format!("document.querySelector({selector:?}).textContent");
        let text = self.tab.evaluate(&text);
        text.as_str().unwrap_or_default().to_owned()
    }

    fn click(&mut self, selector: &str) {
        self.until(&format!("!!document.querySelector({selector:?})"));
        let click = format!("document.querySelector({selector:?}).click(), true");
        assert_eq!(self.tab.evaluate(&click), true, "{selector}");
    }

    fn type_into(&mut self, id: &str, text: &str) {
        let typed = format!(
            "(() => {{ const at = document.getElementById({id:?}); at.value = {}; \
             at.dispatchEvent(new Event('input')); return true; }})()",
            json!(text)
        );
        assert_eq!(self.tab.evaluate(&typed), true);
    }
}

#[test]
fn a_call_appears_is_found_and_ended() {
    let Some(chromium) = find_tool("dashboard::a_call_appears_is_found_and_ended", "chromium")
    else {
        return;
    };
    if is_stand_in() {
        return;
    }
    let _turn = one_at_a_time();
    let server = Server::start(Options::default());
    let mut page = Dashboard::open(&chromium, &server);
    page.until("document.getElementById('link')?.textContent === 'live'");
    page.until("!document.getElementById('none').hidden");
    assert_eq!(page.text("#live"), "0");

    let expires = Clock.now().unix_secs() + 3600;
    let (username, credential) = rest::mint(&Secret::new(SECRET.into()), Some(HOSTILE), expires);
    let config = json!({
        "iceServers": [{
            "urls": format!("turn:127.0.0.1:{}", server.port),
            "username": username, "credential": credential,
        }],
        "iceTransportPolicy": "relay",
    });
    let call = CALL.replace("CONFIG", &config.to_string());
    assert_eq!(page.tab.evaluate(&call), "up");

    // Both ends appear, with their traffic; a browser may allocate from several interfaces.
    let number = |page: &mut Dashboard| {
        let metrics = server.metrics().expect("metrics");
        let number = metrics.sum("turn_allocations", &[]) as usize;
        let shown = page.tab.evaluate(ROWS) == number && page.text("#live") == number.to_string();
        shown.then_some(number)
    };
    let all = wait_for("both ends are shown", PATIENCE, || {
        number(&mut page).filter(|number| *number >= 2)
    });
    page.until("parseFloat(document.getElementById('to-peer').textContent) > 0");
    page.until("document.getElementById('line-to-peer').getAttribute('d').length > 20");
    page.until("[...document.querySelectorAll('#allocations .spark path')].some((p) => p.getAttribute('d').includes('L'))");
    // Browsers check each other all the time, and so tell how far they are.
    let shows = |id: &str, what: &str| {
        format!("/{what}/.test(document.getElementById({id:?}).textContent)")
    };
    page.until(&shows("rtt-client", r"\d ?ms"));
    page.until(&shows("rtt-peer", r"\d ?ms"));
    page.until(&shows("sessions-of", r"\d established"));
    page.until(
        r"[...document.querySelectorAll('#allocations td')].some((cell) => /\d\u202f\/\u202f\S*\d/.test(cell.textContent))",
    );
    // A name is text and nothing else.
    assert_eq!(page.text("#allocations .user bdi"), HOSTILE);
    assert_eq!(
        page.tab.evaluate(
            "window.taken === undefined && !document.querySelector('main img, main script')"
        ),
        true
    );

    // The page asks nobody but its own server, and makes markup of nothing.
    let elsewhere = format!(
        "fetch('http://127.0.0.1:{}/health').then(() => 'open', () => 'closed')",
        server.port
    );
    assert_eq!(page.tab.evaluate(&elsewhere), "closed");
    let markup = "(() => { try { document.body.innerHTML = '<b>'; return 'made'; } catch { return 'refused'; } })()";
    assert_eq!(page.tab.evaluate(markup), "refused");

    page.type_into("search", "ONERROR=");
    page.until(&format!(
        "document.getElementById('found').textContent === '{all} match.'"
    ));
    page.type_into("search", "nobody at all");
    page.until("document.getElementById('found').textContent === '0 match.'");
    page.until(&format!("{ROWS} === 0"));
    page.type_into("search", "127.0.0.1");
    page.until(&format!("{ROWS} === {all}"));
    page.type_into("search", "");
    page.until(
        "document.getElementById('allocations-title').textContent === 'Busiest allocations'",
    );

    // One allocation, and an end that takes a second word.
    page.click("#allocations .user button");
    page.until("document.getElementById('detail').open");
    assert_eq!(page.text("#detail-title"), HOSTILE);
    assert!(page.text("#detail-facts").contains("127.0.0.1:"));
    page.until(&shows("detail-rtt-client", r"\d ms"));
    page.until(&shows("detail-call-facts", "data both ways"));
    page.until(&shows(
        "detail-call-facts",
        r"[1-9]\d* of [1-9]\d* answered",
    ));
    page.until("document.querySelector('#detail-spark-rtt .line').getAttribute('d').includes('L')");
    page.click("#end-one");
    page.until("document.getElementById('confirm').open");
    assert!(page.text("#confirm-title").contains(HOSTILE));
    assert_eq!(page.tab.evaluate("document.activeElement.id"), "confirm-no");
    page.click("#confirm-no");
    page.until("!document.getElementById('confirm').open");
    let kept = wait_for("nothing was ended", PATIENCE, || number(&mut page));
    assert_eq!(kept, all);
    page.click("#end-one");
    page.until("document.getElementById('confirm').open");
    page.click("#confirm-yes");
    page.until("document.getElementById('toast').textContent.endsWith('was ended.')");
    wait_for("it is gone", PATIENCE, || {
        number(&mut page).filter(|number| *number == all - 1)
    });

    page.click("#allocations .user button");
    page.until("document.getElementById('detail').open");
    page.click("#end-user");
    page.until("document.getElementById('confirm').open");
    assert!(page.text("#confirm-title").contains(HOSTILE));
    page.click("#confirm-yes");
    page.until(&format!(
        "document.getElementById('toast').textContent.startsWith('{} allocation')",
        all - 1
    ));
    page.until("document.getElementById('live').textContent === '0'");
    assert_eq!(page.tab.evaluate("window.taken === undefined"), true);
    server.wait_until_idle();
}

#[test]
fn the_token_opens_it_and_stays_in_the_tab() {
    let Some(chromium) = find_tool(
        "dashboard::the_token_opens_it_and_stays_in_the_tab",
        "chromium",
    ) else {
        return;
    };
    if is_stand_in() {
        return;
    }
    let _turn = one_at_a_time();
    let server = Server::start(Options {
        token: true,
        ..Options::default()
    });
    let mut page = Dashboard::open(&chromium, &server);
    page.until("document.getElementById('login')?.hidden === false");
    let shut = "document.getElementById('board').hidden && document.getElementById('node').textContent === ''";
    assert_eq!(page.tab.evaluate(shut), true);

    let submit = "#login button";
    page.type_into("token", &TOKEN.to_uppercase());
    page.click(submit);
    page.until("document.getElementById('token-problem').textContent !== ''");
    assert_eq!(page.tab.evaluate(shut), true);
    page.type_into("token", TOKEN);
    page.click(submit);
    page.until("document.getElementById('link').textContent === 'live'");
    page.until(
        "!document.getElementById('board').hidden && document.getElementById('login').hidden",
    );
    let kept = "sessionStorage.length === 1 && localStorage.length === 0 && document.cookie === ''";
    assert_eq!(page.tab.evaluate(kept), true);
    // What the tab keeps outlives a reload.
    page.tab.evaluate("location.reload(), true");
    page.until("document.getElementById('live')?.textContent === '0'");
    page.click("#signout");
    page.until("document.getElementById('login').hidden === false && sessionStorage.length === 0");
    assert_eq!(page.tab.evaluate(shut), true);
}
