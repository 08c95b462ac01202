//! Every command of `README.md` and of the pages in `docs/`, run as its readers run it, on hosts of the test's own.
//!
//! Without root, or where the kernel makes no namespaces, prints `SKIPPED` and passes, unless `INTEROP_REQUIRE_TOOLS=1`.
//! `docs/deploy-geo.md` takes three hosts: `tests/geo/run`.

mod host;
mod page;
mod protocol;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use page::{Action, blocks};

/// Pages whose commands are run by something else: what that is.
const ELSEWHERE: [(&str, &str); 3] = [
    ("docs/deploy-geo.md", "tests/geo/run"),
    ("docs/from-coturn.md", "tests/coturn/page.rs"),
    ("docs/protocol.md", "tests/docs/protocol.rs"),
];

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn run(name: &str) {
    if let Some(why) = host::impossible() {
        let line = format!("SKIPPED: {name}: {why}");
        let required = std::env::var_os("INTEROP_REQUIRE_TOOLS").is_some_and(|value| value == "1");
        assert!(!required, "{line}");
        return println!("{line}");
    }
    let blocks = blocks(&read(name));
    for block in &blocks {
        if let Action::Skip { text, why } = &block.action {
            println!("{name}:{}: not run: {why}\n{text}", block.line);
        }
    }
    host::run(name, &blocks);
}

macro_rules! pages {
    ($($test:ident: $page:literal,)*) => {
        $(
            #[test]
            fn $test() {
                run($page);
            }
        )*

        /// No page is forgotten.
        #[test]
        fn every_page_is_run() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
            let there: BTreeSet<String> = (fs::read_dir(folder).unwrap())
                .map(|entry| format!("docs/{}", entry.unwrap().file_name().display()))
                .filter(|name| name.ends_with(".md"))
                .collect();
            let run: BTreeSet<String> = [$($page),*]
                .into_iter()
                .chain(ELSEWHERE.map(|(page, _)| page))
                .map(str::to_owned)
                .collect();
            let missing: Vec<&String> = there.difference(&run).collect();
            assert!(missing.is_empty(), "not run by any test: {missing:?}");
        }
    };
}

pages! {
    readme: "README.md",
    getting_started: "docs/getting-started.md",
    nat_and_containers: "docs/nat-and-containers.md",
    troubleshooting: "docs/troubleshooting.md",
    recipes: "docs/recipes.md",
    from_openrelay: "docs/from-openrelay.md",
    from_twilio: "docs/from-twilio.md",
    from_cloudflare: "docs/from-cloudflare.md",
    from_metered: "docs/from-metered.md",
    certificates: "docs/certificates.md",
    operations: "docs/operations.md",
    records: "docs/records.md",
    performance: "docs/performance.md",
    insight: "docs/insight.md",
}

/// Whoever links to a page of ours links to one that is there.
#[test]
fn links_between_pages_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md")];
    for entry in fs::read_dir(root.join("docs")).unwrap() {
        pages.push(entry.unwrap().path());
    }
    for page in pages
        .iter()
        .filter(|page| page.extension().is_some_and(|kind| kind == "md"))
    {
        let text = fs::read_to_string(page).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let there = page.parent().unwrap().join(file);
            assert!(there.exists(), "{}: {target} is not there", page.display());
        }
    }
}
