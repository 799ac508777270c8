//! The built-in programs in pods of a lab, with names from the lab's DNS server.
//!
//! This program is all of them too, by the name it is called by.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};
use std::{env, error, thread};

use domain::base::iana::Rtype;
use domain::base::{Message, MessageBuilder, Name};
use libtest_mimic::{Arguments, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use portcullis_core::model::{Cluster, Pod};
use portcullis_core::net::Protocol;
use portcullis_dataplane::state::{Entry, NodeState, PeerSet, Ports, Profile};
use portcullis_dataplane::{Dataplane, Nftables};
use portcullis_lab::dns::{DnsServer, Zone, resolv_conf};
use portcullis_lab::services::{
    Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, ServiceTable, table,
};
use portcullis_lab::{Lab, Options, enter, plan, tools};

type Result<T = ()> = std::result::Result<T, Box<dyn error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    if let Some(code) = tools::run(&arguments) {
        return code.into();
    }
    let arguments = Arguments::from_args();
    if let Err(wrong) = enter() {
        eprintln!("{wrong}");
        return ExitCode::FAILURE;
    }
    let server = DNS.parse().unwrap_or(IpAddr::from([0; 4]));
    if let Err(wrong) = fs::write(resolv_conf_file(), resolv_conf("shop", server)) {
        eprintln!("{wrong}");
        return ExitCode::FAILURE;
    }
    let test = |name: &str, test: fn() -> Result| {
        Trial::test(name, move || test().map_err(|e| e.to_string().into()))
    };
    let trials = vec![
        test("names_lead_to_services_and_nothing_else_resolves", names),
        test("wget_says_and_returns_what_busybox_does", wget),
        test("curl_says_and_returns_what_curl_does", curl),
        test("nc_tries_ports_and_carries_what_is_said", nc),
        test("ping_counts_what_comes_back", ping),
        test("agnhost_connect_tells_the_failures_apart", agnhost_connect),
        test("agnhost_serves_its_hostname", agnhost_serves),
        test("a_policy_that_forgets_dns_breaks_names", forgotten_dns),
        test("links_are_made_under_every_name", links),
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    let _ = fs::remove_file(resolv_conf_file());
    conclusion.exit_code()
}

/// What every pod has as `/etc/resolv.conf`.
fn resolv_conf_file() -> PathBuf {
    env::temp_dir().join(format!("portcullis-resolv-{}", std::process::id()))
}

const DNS: &str = "10.96.0.10";
const WEB: &str = "10.96.0.7";

/// `web`, `client` and `dns` on one node. `web` serves pages on 8080, as the Service `web` on 80;
/// the Service `dark` has an endpoint that drops everything, and `empty` has none.
struct World {
    lab: Lab,
    _dns: DnsServer,
    _pages: Program,
}

/// A program that ends with the test.
struct Program(std::process::Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn world() -> Result<World> {
    let pod =
        |name: &str| Pod { namespace: "shop".to_owned(), name: name.to_owned(), ..Pod::default() };
    let pods = ["web", "client", "dns", "dark"].map(pod).into();
    let plan = plan(&Cluster { pods, ..Cluster::default() }, &Options::default())?;
    let mut lab = Lab::up(&plan, |_, _| ())?;
    lab.listen(&[(Protocol::Sctp, 3868), (Protocol::Udp, 5353)].into())?;

    let port =
        |protocol, port| ServicePort { name: "main".to_owned(), protocol, port, node_port: None };
    let service = |namespace: &str, name: &str, address: &str, ports| -> Result<Service> {
        Ok(Service {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            cluster_ips: vec![address.parse()?],
            ports,
            ..Service::default()
        })
    };
    let slice = |namespace: &str, name: &str, pod: &str, protocol, port| EndpointSlice {
        namespace: namespace.to_owned(),
        service: name.to_owned(),
        ports: vec![EndpointPort { name: "main".to_owned(), protocol, port }],
        endpoints: vec![Endpoint {
            addresses: vec![address(&lab, pod)],
            ready: true,
            ..Endpoint::default()
        }],
    };
    let services = [
        service("shop", "web", WEB, vec![port(Protocol::Tcp, 80)])?,
        service("shop", "dark", "10.96.0.8", vec![port(Protocol::Tcp, 80)])?,
        service("shop", "empty", "10.96.0.9", vec![port(Protocol::Tcp, 80)])?,
        service("kube-system", "kube-dns", DNS, vec![port(Protocol::Udp, 53)])?,
    ];
    let slices = [
        slice("shop", "web", "web", Protocol::Tcp, 8080),
        slice("shop", "dark", "dark", Protocol::Tcp, 80),
        slice("kube-system", "kube-dns", "dns", Protocol::Udp, 53),
    ];
    let node = &lab.plan().cluster.nodes[0];
    let table = table(&services, &slices, &node.name, &node.addresses);
    lab.in_node(0, || ServiceTable::open()?.apply(&table))??;
    let dns = lab.in_endpoint(index(&lab, "dns"), || {
        DnsServer::start(Zone::new(&services, &slices), "shop/dns")
    })??;
    // Nobody gets in.
    let closed = NodeState {
        endpoints: [(address(&lab, "dark"), 0)].into(),
        profiles: [(0, Profile { ingress: Some([].into()), ..Profile::default() })].into(),
        ..NodeState::default()
    };
    lab.in_node(0, Nftables::open)??.apply(&closed)?;
    let pages = start(&lab, "web", &["agnhost", "netexec"])?;
    let world = World { lab, _dns: dns, _pages: pages };
    let started = Instant::now();
    while !run(&world, &["nc", "-z", WEB, "80"])?.status.success() {
        if started.elapsed() > Duration::from_secs(30) {
            return Err("nobody serves pages".into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(world)
}

fn index(lab: &Lab, pod: &str) -> usize {
    let name = format!("shop/{pod}");
    lab.plan().endpoints.iter().position(|e| e.name == name).unwrap_or(usize::MAX)
}

fn address(lab: &Lab, pod: &str) -> IpAddr {
    lab.plan().endpoints[index(lab, pod)].addresses[0]
}

/// A program of ours in a pod, by the name that is its first word, with the pod's `resolv.conf`.
fn start(lab: &Lab, pod: &str, words: &[&str]) -> Result<Program> {
    let spawned = lab.in_endpoint(index(lab, pod), || -> std::result::Result<_, String> {
        let text = |e: &dyn error::Error| e.to_string();
        let file = resolv_conf_file();
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).map_err(|e| text(&e))?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)
            .map_err(|e| text(&e))?;
        mount(Some(&file), "/etc/resolv.conf", none, MsFlags::MS_BIND, none)
            .map_err(|e| text(&e))?;
        let program = env::current_exe().map_err(|e| text(&e))?;
        let mut command = Command::new(program);
        command.arg0(format!("/{}", words[0])).args(&words[1..]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map_err(|e| text(&e))
    })?;
    Ok(Program(spawned?))
}

fn run(world: &World, words: &[&str]) -> Result<Output> {
    let mut program = start(&world.lab, "client", words)?;
    drop(program.0.stdin.take());
    finish(program)
}

/// Reads what a program says until it ends.
fn finish(mut program: Program) -> Result<Output> {
    let mut stdout = program.0.stdout.take().ok_or("no stdout")?;
    let mut stderr = program.0.stderr.take().ok_or("no stderr")?;
    let mut output = (Vec::new(), Vec::new());
    thread::scope(|scope| -> std::io::Result<()> {
        let errors = scope.spawn(|| stderr.read_to_end(&mut output.1));
        stdout.read_to_end(&mut output.0)?;
        errors.join().map_err(|_| std::io::Error::other("panicked"))??;
        Ok(())
    })?;
    Ok(Output { status: program.0.wait()?, stdout: output.0, stderr: output.1 })
}

/// What a program in `client` returned and said: its code, standard output and standard error.
fn said(world: &World, line: &str) -> Result<(i32, String, String)> {
    let words: Vec<&str> = line.split(' ').collect();
    let output = run(world, &words)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
}

/// That a command says and returns this.
fn says(world: &World, line: &str, code: i32, stdout: &str, stderr: &str) -> Result {
    let found = said(world, line)?;
    assert_eq!(found, (code, stdout.to_owned(), stderr.to_owned()), "{line}");
    Ok(())
}

fn names() -> Result {
    let world = world()?;
    let found = format!(
        "Server:\t\t{DNS}\nAddress:\t{DNS}:53\n\nName:\tweb.shop.svc.cluster.local\nAddress: {WEB}\n\n"
    );
    says(&world, "nslookup web", 0, &found, "")?;
    says(&world, "nslookup web.shop.svc.cluster.local.", 0, &found, "")?;
    let server = format!("Server:\t\t{DNS}\nAddress:\t{DNS}:53\n\n");
    let absent = "** server can't find web2.shop.svc.cluster.local: NXDOMAIN\n";
    says(&world, "nslookup web2", 1, &server, absent)?;
    let back = format!("{server}7.0.96.10.in-addr.arpa\tname = web.shop.svc.cluster.local\n");
    says(&world, &format!("nslookup {WEB}"), 0, &back, "")?;
    let srv = format!(
        "{server}_main._tcp.web.shop.svc.cluster.local\tservice = 0 100 80 web.shop.svc.cluster.local\n"
    );
    says(&world, "nslookup -type=srv _main._tcp.web", 0, &srv, "")?;
    let answer =
        world.lab.in_endpoint(index(&world.lab, "client"), || -> std::io::Result<_> {
            let mut question = MessageBuilder::new_stream_vec().question();
            let name =
                Name::vec_from_str("web.shop.svc.cluster.local").map_err(std::io::Error::other)?;
            question.push((name, Rtype::A)).map_err(std::io::Error::other)?;
            let mut stream = TcpStream::connect((address(&world.lab, "dns"), 53))?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            stream.write_all(question.finish().as_stream_slice())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut answer = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut answer)?;
            Ok(answer)
        })??;
    assert_eq!(Message::from_octets(answer)?.header_counts().ancount(), 1, "over TCP too");
    // Quickly, and not from the network of this machine.
    let started = Instant::now();
    let absent = "** server can't find www.example.com.shop.svc.cluster.local: NXDOMAIN\n";
    says(&world, "nslookup www.example.com", 1, &server, absent)?;
    says(
        &world,
        "wget -q -O- http://www.example.com",
        1,
        "",
        "wget: bad address 'www.example.com'\n",
    )?;
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    Ok(())
}

fn wget() -> Result {
    let world = world()?;
    says(&world, "wget -qO- --timeout=2 http://web/echo?msg=hello", 0, "hello", "")?;
    says(&world, "wget -q -T 2 -O - web.shop/echo?msg=hello", 0, "hello", "")?;
    let loud = format!("Connecting to web ({WEB}:80)\nwriting to stdout\nwritten to stdout\n");
    says(&world, "wget -O- web/echo?msg=hello", 0, "hello", &loud)?;
    let there = format!("Connecting to web ({WEB}:80)\nremote file exists\n");
    says(&world, "wget --spider -T 2 http://web", 0, "", &there)?;
    says(&world, "wget -qO- -T 1 http://dark", 1, "", "wget: download timed out\n")?;
    says(&world, "wget -qO- -T 2 nowhere", 1, "", "wget: bad address 'nowhere'\n")?;
    let refused = "wget: can't connect to remote host (10.96.0.9): Connection refused\n";
    says(&world, "wget -qO- -T 2 empty", 1, "", refused)?;
    let absent = "wget: server returned error: HTTP/1.1 404 Not Found\n";
    says(&world, "wget -qO- web/nothing", 1, "", absent)?;
    says(&world, "wget -qO- https://web", 1, "", "wget: only http is known here, not https://\n")?;
    let (code, _, usage) = said(&world, "wget")?;
    assert!(code == 1 && usage.starts_with("Usage: wget"), "{code} {usage}");
    Ok(())
}

fn curl() -> Result {
    let world = world()?;
    says(&world, "curl -s -m 2 web/echo?msg=hello", 0, "hello", "")?;
    says(
        &world,
        "curl -s -o /dev/null -w %{http_code} --connect-timeout 2 http://web",
        0,
        "200",
        "",
    )?;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    says(&world, "curl -sI web/healthz", 0, head, "")?;
    says(
        &world,
        "curl -f web/nothing",
        22,
        "",
        "curl: (22) The requested URL returned error: 404\n",
    )?;
    says(&world, "curl nowhere", 6, "", "curl: (6) Could not resolve host: nowhere\n")?;
    says(&world, "curl -s -m 1 dark -o /dev/null -w %{http_code}", 28, "000", "")?;
    let (code, _, words) = said(&world, "curl --connect-timeout 1 dark")?;
    assert!(code == 28 && words.starts_with("curl: (28) Connection timed out after 1"), "{words}");
    let (code, _, words) = said(&world, "curl -sS empty")?;
    let start = "curl: (7) Failed to connect to empty port 80 after ";
    assert!(code == 7 && words.starts_with(start), "{words}");
    Ok(())
}

fn nc() -> Result {
    let world = world()?;
    let open = format!("web ({WEB}:80) open\n");
    says(&world, "nc -z -v -w 2 web 80", 0, "", &open)?;
    says(&world, "nc -zv web 80", 0, "", &open)?;
    says(&world, "nc -z web 80", 0, "", "")?;
    let web = address(&world.lab, "web");
    let refused = format!("nc: {web} ({web}:81): Connection refused\n");
    says(&world, &format!("nc -zvw2 {web} 81"), 1, "", &refused)?;
    says(&world, "nc -zv -w 1 dark 80", 1, "", "nc: dark (10.96.0.8:80): Operation timed out\n")?;
    says(&world, "nc -zv nowhere 80", 1, "", "nc: bad address 'nowhere'\n")?;
    // A responder of the lab says its name.
    let open = format!("{web} ({web}:5353) open\n");
    says(&world, &format!("nc -zuv -w 1 {web} 5353"), 0, "", &open)?;
    let refused = format!("nc: {web} ({web}:5354): Connection refused\n");
    says(&world, &format!("nc -zuv -w 1 {web} 5354"), 1, "", &refused)?;

    for (listen, connect) in [("nc -l -p 7000", "nc -w 2"), ("nc -lu 7000", "nc -u -w 2")] {
        let words: Vec<&str> = listen.split(' ').collect();
        let mut listener = start(&world.lab, "dns", &words)?;
        let mut answer = listener.0.stdin.take().ok_or("no stdin")?;
        answer.write_all(b"an answer\n")?;
        let at = address(&world.lab, "dns").to_string();
        let words: Vec<&str> = connect.split(' ').chain([at.as_str(), "7000"]).collect();
        // Until the listener listens.
        let started = Instant::now();
        let output = loop {
            let mut client = start(&world.lab, "client", &words)?;
            let mut stdin = client.0.stdin.take().ok_or("no stdin")?;
            // It may have ended already, because nobody listens yet.
            let _ = stdin.write_all(b"a question\n");
            let output = finish(client)?;
            drop(stdin);
            if !output.stdout.is_empty() || started.elapsed() > Duration::from_secs(30) {
                break output;
            }
        };
        drop(answer);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "an answer\n", "{output:?}");
        let _ = listener.0.kill();
        let heard = finish(listener)?;
        assert_eq!(String::from_utf8_lossy(&heard.stdout), "a question\n", "{heard:?}");
    }
    Ok(())
}

fn ping() -> Result {
    let world = world()?;
    let web = &world.lab.plan().endpoints[index(&world.lab, "web")].addresses;
    for at in web {
        let (code, out, words) = said(&world, &format!("ping -c 2 -i 0.1 -W 5 {at}"))?;
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!((code, words.as_str(), lines.len()), (0, "", 7), "{out}");
        assert_eq!(lines[0], format!("PING {at} ({at}): 56 data bytes"));
        assert!(lines[1].starts_with(&format!("64 bytes from {at}: seq=0 time=")), "{out}");
        assert_eq!(lines[5], "2 packets transmitted, 2 packets received, 0% packet loss");
    }
    let dark = address(&world.lab, "dark");
    let silent = format!(
        "PING {dark} ({dark}): 56 data bytes\n\n--- {dark} ping statistics ---\n\
         1 packets transmitted, 0 packets received, 100% packet loss\n"
    );
    says(&world, &format!("ping -c 1 -W 1 {dark}"), 1, &silent, "")?;
    says(&world, "ping -c1 nowhere", 1, "", "ping: bad address 'nowhere'\n")
}

fn agnhost_connect() -> Result {
    let world = world()?;
    let web = address(&world.lab, "web");
    let dark = address(&world.lab, "dark");
    let ok = |line: &str| says(&world, line, 0, "", "");
    ok("agnhost connect web:80 --timeout=3s")?;
    ok(&format!("agnhost connect --timeout=3s --protocol=udp {web}:5353"))?;
    ok(&format!("agnhost connect {web}:3868 --timeout=3s --protocol=sctp"))?;
    let fails = |line: &str, words: &str| says(&world, line, 1, "", &format!("{words}\n"));
    fails("agnhost connect dark:80 --timeout=500ms", "TIMEOUT")?;
    fails(&format!("agnhost connect {dark}:80 --timeout=500ms --protocol=udp"), "TIMEOUT")?;
    fails(&format!("agnhost connect {dark}:3868 --timeout=500ms --protocol=sctp"), "TIMEOUT")?;
    for protocol in ["tcp", "udp", "sctp"] {
        fails(
            &format!("agnhost connect {web}:9999 --timeout=3s --protocol={protocol}"),
            "REFUSED",
        )?;
    }
    fails("agnhost connect 10.96.0.9:80 --timeout=3s", "REFUSED")?;
    for (line, start) in [
        ("agnhost connect nowhere:80 --timeout=3s", "DNS: "),
        ("agnhost connect web --timeout=3s", "UNKNOWN: address web: missing port"),
        ("agnhost connect web:80 --timeout=3", "UNKNOWN: time: invalid duration"),
        ("agnhost connect 255.255.255.255:80 --timeout=3s", "OTHER: "),
    ] {
        let (code, out, words) = said(&world, line)?;
        assert!(code == 1 && out.is_empty() && words.starts_with(start), "{line}: {words}");
    }
    Ok(())
}

fn agnhost_serves() -> Result {
    let world = world()?;
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname")?.trim_end().to_owned();
    let at = address(&world.lab, "dns");
    let _pages = start(&world.lab, "dns", &["agnhost", "serve-hostname", "--port", "8000"])?;
    let raw = ["agnhost", "serve-hostname", "--tcp", "--udp", "--http=false", "--port=9376"];
    let _raw = start(&world.lab, "dns", &raw)?;
    let started = Instant::now();
    for (line, expected) in [
        (format!("curl -s {at}:8000"), &hostname),
        (format!("nc -w 2 {at} 9376"), &hostname),
        (
            "curl -s web/dial?host=web&port=80&request=echo?msg=a&tries=2".to_owned(),
            &r#"{"responses":["a","a"]}"#.to_owned(),
        ),
    ] {
        loop {
            let (code, out, words) = said(&world, &line)?;
            if code == 0 {
                assert_eq!((&out, words.as_str()), (expected, ""), "{line}");
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "{line}: {words}");
        }
    }
    says(&world, &format!("agnhost connect {at}:9376 --protocol=udp --timeout=3s"), 0, "", "")?;
    let client = address(&world.lab, "client");
    let (_, from, _) = said(&world, "curl -s web/clientip")?;
    assert!(from.starts_with(&format!("{client}:")), "{from} instead of {client}");
    Ok(())
}

/// `client` may go to `web`, and nowhere else.
fn forgotten_dns() -> Result {
    let world = world()?;
    let entry = |protocol, port, peers| Entry {
        peers: Some(peers),
        ports: Some(Ports { protocol, first: port, last: port }),
        origin: 0,
    };
    let web = vec![entry(Protocol::Tcp, 8080, 0)];
    let with_dns = vec![entry(Protocol::Tcp, 8080, 0), entry(Protocol::Udp, 53, 1)];
    let peers = ["web", "dns"]
        .map(|pod| PeerSet::Addresses([address(&world.lab, pod)].into_iter().collect()));
    let mut rules = world.lab.in_node(0, Nftables::open)??;
    let mut allow = |egress: Vec<Entry>| {
        rules.apply(&NodeState {
            endpoints: [(address(&world.lab, "client"), 0)].into(),
            profiles: [(0, Profile { egress: Some(egress.into()), ..Profile::default() })].into(),
            peers: (0..).zip(peers.clone()).collect(),
            ..NodeState::default()
        })
    };
    allow(web)?;
    says(&world, &format!("wget -qO- -T 1 {WEB}/echo?msg=hello"), 0, "hello", "")?;
    says(&world, "wget -qO- -T 1 web/echo?msg=hello", 1, "", "wget: download timed out\n")?;
    let (code, _, words) = said(&world, "nslookup -timeout=1 web")?;
    let lost = ";; connection timed out; no servers could be reached\n";
    assert_eq!((code, words.as_str()), (1, lost));
    allow(with_dns)?;
    says(&world, "wget -qO- -T 5 web/echo?msg=hello", 0, "hello", "")
}

fn links() -> Result {
    let directory = env::temp_dir().join(format!("portcullis-tools-{}", std::process::id()));
    fs::create_dir(&directory)?;
    let made = env::current_exe().and_then(|program| tools::link(&directory, &program));
    let usage = Command::new(directory.join("nc")).output();
    fs::remove_dir_all(&directory)?;
    made?;
    let usage = usage?;
    assert_eq!(usage.status.code(), Some(1));
    assert!(usage.stderr.starts_with(b"nc: Usage: nc"), "{usage:?}");
    Ok(())
}
