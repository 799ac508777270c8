//! The pages that `graph` and `diff` make, in a browser: looked at wide and narrow, in light and in
//! dark, and clicked in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod browser;

use std::path::{Path, PathBuf};
use std::process::Command;

use browser::{Browser, Page};
use serde_json::json;

/// A screen and a telephone.
const SIZES: [[u32; 2]; 2] = [[1280, 800], [400, 800]];

/// The pages by name, and the arguments that make them.
const PAGES: [(&str, &[&str]); 5] = [
    ("graph", &["graph", "-f", "examples/frontend-backend-database", "-o", "html"]),
    ("tiers", &["graph", "-f", "examples/three-tier", "-o", "html"]),
    ("refused", &["graph", "-f", "examples/three-tier", "--refused", "-o", "html"]),
    ("large", &["graph", "-f", "examples/grafana", "-o", "html"]),
    ("diff", &["diff", "docs/change/before.yaml", "docs/change/after.yaml", "-o", "html"]),
];

struct Files(PathBuf);

impl Files {
    /// Every page as a file.
    fn write() -> Files {
        let folder = std::env::temp_dir().join(format!("portcullis-html-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for (name, arguments) in PAGES {
            let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
            let output = command.args(arguments).current_dir(&root).output().unwrap();
            assert!(!output.stdout.is_empty(), "{name}: {output:?}");
            std::fs::write(folder.join(format!("{name}.html")), output.stdout).unwrap();
        }
        Files(folder)
    }

    fn page(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.html"))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One browser for all: it takes longer to start than the rest takes. Needs Chromium; without it
/// the test says so, and fails only where `PORTCULLIS_REQUIRE_CHROMIUM` is 1.
#[test]
fn pages_can_be_searched_hovered_and_clicked_wide_and_narrow_in_light_and_in_dark() {
    let Some(mut browser) = Browser::start() else {
        let required = std::env::var("PORTCULLIS_REQUIRE_CHROMIUM").is_ok_and(|value| value == "1");
        assert!(!required, "Chromium is not installed, and PORTCULLIS_REQUIRE_CHROMIUM is 1");
        eprintln!("skipped: Chromium is not installed");
        return;
    };
    let files = Files::write();
    for (name, _) in PAGES {
        for size in SIZES {
            for dark in [false, true] {
                let mut page = browser.open(&files.page(name), size, dark);
                let shown = format!("{name}-{}-{}", size[0], if dark { "dark" } else { "light" });
                fits(&mut page, size[0], &shown);
                page.screenshot(&shown);
                is_lit(&mut page, dark, &shown);
                a_click_opens_why(&mut page, &shown);
                page.screenshot(&format!("{shown}-clicked"));
                a_key_opens_why(&mut page, &shown);
                the_mouse_shows_the_rules(&mut page, &shown);
                the_button_changes_the_light(&mut page, dark, &shown);
                assert_eq!(page.complaints(), [""; 0], "{shown}");
            }
        }
    }
    let mut page = browser.open(&files.page("graph"), SIZES[0], false);
    a_search_finds_names_and_ports(&mut page);
    page.screenshot("search");
}

/// The lines of the picture that is seen: there is one for wide screens and one for narrow ones.
const SEEN: &str = "[...document.querySelectorAll('#pictures svg')]\
                    .find(svg => svg.checkVisibility())";

/// The picture for this width is the one that is seen, and nothing sticks out to the side.
fn fits(page: &mut Page<'_>, width: u32, shown: &str) {
    let picture = if width > 760 { "wide" } else { "narrow" };
    assert_eq!(page.is(&format!("{SEEN}.getAttribute('class')")), picture, "{shown}");
    let seen =
        "[...document.querySelectorAll('#pictures svg')].filter(s => s.checkVisibility()).length";
    assert_eq!(page.is(seen), 1, "{shown}");
    assert_eq!(page.is("document.documentElement.scrollWidth <= innerWidth"), true, "{shown}");
    let inside = "(p => p.scrollWidth <= p.clientWidth)(document.querySelector('#pictures'))";
    assert_eq!(page.is(inside), true, "{shown}: the picture scrolls by itself");
}

fn is_lit(page: &mut Page<'_>, dark: bool, shown: &str) {
    let background = "getComputedStyle(document.body).backgroundColor";
    let expected = if dark { "rgb(15, 19, 24)" } else { "rgb(255, 255, 255)" };
    assert_eq!(page.is(background), expected, "{shown}");
}

/// On each line: its item is open and in view, and no other.
fn a_click_opens_why(page: &mut Page<'_>, shown: &str) {
    let lines = format!("[...{SEEN}.querySelectorAll('.flow')]");
    let count = page.is(&format!("{lines}.length")).as_u64().unwrap();
    assert!(count > 0, "{shown} draws no line");
    for line in 0..count {
        let line = format!("{lines}[{line}]");
        page.click(&format!("{line}.querySelector('rect')"));
        let number = page.is(&format!("{line}.dataset.flow"));
        let open = "[...document.querySelectorAll('#flows > li')].map((item, i) => \
                    item.querySelector('details').open ? String(i) : '').filter(i => i)";
        assert_eq!(page.is(open), json!([number]), "{shown}");
        let chosen = format!("{lines}.filter(l => l.matches('.chosen')).map(l => l.dataset.flow)");
        assert_eq!(page.is(&chosen), json!([number]), "{shown}");
        let told = page.is("document.querySelector('#flows details[open] pre').textContent");
        let told = told.as_str().unwrap();
        assert!(told.contains(" -> ") && told.contains(" on "), "{shown}: {told}");
        let in_view = "(s => { const {top, bottom} = s.getBoundingClientRect(); \
                       return s === document.activeElement && top < innerHeight && bottom > 0 })\
                       (document.querySelector('#flows details[open] summary'))";
        assert_eq!(page.is(in_view), true, "{shown}");
    }
}

/// The same by the keyboard alone.
fn a_key_opens_why(page: &mut Page<'_>, shown: &str) {
    let first = format!("{SEEN}.querySelector('.flow')");
    page.is(&format!(
        "document.querySelectorAll('details').forEach(d => d.open = false), {first}.focus()"
    ));
    assert_eq!(page.is(&format!("document.activeElement === {first}")), true, "{shown}");
    page.press_enter();
    let open = "document.querySelectorAll('#flows details[open]').length";
    assert_eq!(page.is(open), 1, "{shown}");
}

fn the_mouse_shows_the_rules(page: &mut Page<'_>, shown: &str) {
    let line = format!("{SEEN}.querySelector('.flow')");
    page.hover(&format!("{line}.querySelector('rect')"));
    let tip = "document.getElementById('tip')";
    assert_eq!(page.is(&format!("{tip}.hidden")), false, "{shown}");
    let about = page.is(&format!("{line}.dataset.about"));
    assert_eq!(page.is(&format!("{tip}.textContent")), about, "{shown}");
    let inside = "(tip => tip.left >= 0 && tip.top >= 0 && tip.right <= innerWidth && \
                  tip.bottom <= innerHeight)(document.getElementById('tip').getBoundingClientRect())";
    assert_eq!(page.is(inside), true, "{shown}");
    page.hover("document.querySelector('h1')");
    assert_eq!(page.is(&format!("{tip}.hidden")), true, "{shown}");
}

fn the_button_changes_the_light(page: &mut Page<'_>, dark: bool, shown: &str) {
    for lit in [!dark, dark] {
        page.click("document.getElementById('theme')");
        is_lit(page, lit, shown);
    }
}

fn a_search_finds_names_and_ports(page: &mut Page<'_>) {
    let seen = "[...document.querySelectorAll('#flows > li')].filter(i => !i.hidden).length";
    let clear = "(s => { s.value = ''; s.dispatchEvent(new Event('input')); })\
                 (document.getElementById('search'))";
    let all = page.is(seen);
    for (text, found, items) in [
        ("database", "1 box, 1 line", json!(1)),
        ("9090", "0 boxes, 1 line", json!(1)),
        ("no such name", "0 boxes, 0 lines", json!(0)),
        ("", "", all),
    ] {
        page.is(clear);
        page.click("document.getElementById('search')");
        page.write(text);
        assert_eq!(page.is("document.getElementById('found').textContent"), found, "{text}");
        assert_eq!(page.is(seen), items, "{text}");
        let faded = format!("{SEEN}.querySelectorAll('.flow:not(.faded)').length");
        assert_eq!(page.is(&faded), items, "{text}");
    }
}
