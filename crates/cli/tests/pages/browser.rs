//! Chromium without a window, asked over two pipes in its DevTools protocol: JSON, ended by a zero.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// After so long without a word it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Debian and Ubuntu call it so, others so.
const PROGRAMS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

pub(crate) struct Browser {
    process: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    profile: PathBuf,
    next: u64,
    /// What was told without being asked, since the last page was opened.
    events: Vec<Value>,
}

/// One page of a width, in light or dark.
pub(crate) struct Page<'b> {
    browser: &'b mut Browser,
    session: String,
}

impl Browser {
    /// `None` where there is no Chromium.
    pub(crate) fn start() -> Option<Browser> {
        let is_there = |program: &&&str| {
            let version = Command::new(program).arg("--version").output();
            version.is_ok_and(|output| output.status.success())
        };
        let program = PROGRAMS.iter().find(is_there)?;
        let profile = std::env::temp_dir().join(format!("portcullis-pages-{}", std::process::id()));
        // The pipes are wanted as descriptors 3 and 4.
        let mut process = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#, program])
            .args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"])
            .args(["--disable-quic", "--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (to, out) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (heard, from) = mpsc::channel();
        std::thread::spawn(move || {
            for message in BufReader::new(out).split(0) {
                let message = serde_json::from_slice(&message.unwrap()).unwrap();
                if heard.send(message).is_err() {
                    break;
                }
            }
        });
        Some(Browser { process, to, from, profile, next: 0, events: Vec::new() })
    }

    fn ask(&mut self, session: Option<&str>, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let heard = self.from.recv_timeout(PATIENCE).expect("the browser says nothing");
            if heard["id"] == id {
                assert!(heard.get("error").is_none(), "{method}: {}", heard["error"]);
                return heard["result"].clone();
            }
            self.events.push(heard);
        }
    }

    /// Opens a file as a page of this size.
    pub(crate) fn open(&mut self, file: &Path, [width, height]: [u32; 2], dark: bool) -> Page<'_> {
        self.events.clear();
        let target = self.ask(None, "Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = self.ask(None, "Target.attachToTarget", attach)["sessionId"].clone();
        let mut page = Page { browser: self, session: session.as_str().unwrap().to_owned() };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.ask(&format!("{domain}.enable"), json!({}));
        }
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false
        });
        page.ask("Emulation.setDeviceMetricsOverride", size);
        let scheme = if dark { "dark" } else { "light" };
        let scheme = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        page.ask("Emulation.setEmulatedMedia", json!({"features": scheme}));
        page.ask("Page.navigate", json!({"url": format!("file://{}", file.display())}));
        let loaded = "new Promise(done => document.readyState === 'complete' ? done(location.protocol) \
                      : addEventListener('load', () => done(location.protocol)))";
        assert_eq!(page.is(loaded), "file:");
        page
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.profile);
    }
}

impl Page<'_> {
    fn ask(&mut self, method: &str, parameters: Value) -> Value {
        self.browser.ask(Some(&self.session), method, parameters)
    }

    /// The value of an expression in the page.
    pub(crate) fn is(&mut self, expression: &str) -> Value {
        let parameters =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.ask("Runtime.evaluate", parameters);
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// The middle of an element, once it is in view and the page has seen that it scrolled; what is
    /// on top there must belong to it.
    fn middle(&mut self, element: &str) -> [f64; 2] {
        let middle = self.is(&format!(
            "(async element => {{ element.scrollIntoView({{block: 'center', inline: 'center'}}); \
             const frame = () => new Promise(requestAnimationFrame); \
             await frame(); await frame(); \
             const {{x, y, width, height}} = element.getBoundingClientRect(); \
             const at = [x + width / 2, y + height / 2]; \
             const top = document.elementFromPoint(...at); \
             return element.parentNode.contains(top) ? at : String(top?.outerHTML); }})({element})"
        ));
        let [x, y] = middle.as_array().map_or(&[][..], Vec::as_slice) else {
            panic!("{element} is behind {middle}")
        };
        [x.as_f64().unwrap(), y.as_f64().unwrap()]
    }

    fn mouse(&mut self, kind: &str, [x, y]: [f64; 2]) {
        let parameters = json!({
            "type": kind, "x": x, "y": y, "button": if kind == "mouseMoved" { "none" } else { "left" },
            "clickCount": 1, "pointerType": "mouse",
        });
        self.ask("Input.dispatchMouseEvent", parameters);
    }

    /// Moves the mouse over the middle of an element.
    pub(crate) fn hover(&mut self, element: &str) {
        let at = self.middle(element);
        self.mouse("mouseMoved", at);
    }

    /// Clicks the middle of an element.
    pub(crate) fn click(&mut self, element: &str) {
        let at = self.middle(element);
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            self.mouse(kind, at);
        }
    }

    /// Types a text where the focus is.
    pub(crate) fn write(&mut self, text: &str) {
        self.ask("Input.insertText", json!({"text": text}));
    }

    /// Presses Enter where the focus is.
    pub(crate) fn press_enter(&mut self) {
        for kind in ["keyDown", "keyUp"] {
            let key = json!({
                "type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13,
                "text": if kind == "keyDown" { "\r" } else { "" },
            });
            self.ask("Input.dispatchKeyEvent", key);
        }
    }

    /// Everything that a page should not have done: errors, and requests for anything but itself.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        self.is("0");
        let wrong = self.browser.events.iter().filter(|event| {
            let url = event["params"]["request"]["url"].as_str().unwrap_or_default();
            match event["method"].as_str().unwrap_or_default() {
                "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded" => true,
                "Network.requestWillBeSent" => !url.starts_with("file://"),
                _ => false,
            }
        });
        wrong.map(Value::to_string).collect()
    }

    /// Writes what is seen to a folder, for people to look at, if `PORTCULLIS_SCREENSHOTS` names one.
    pub(crate) fn screenshot(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("PORTCULLIS_SCREENSHOTS") else { return };
        let picture = self.ask("Page.captureScreenshot", json!({"format": "png"}));
        let bytes = STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
    }
}
