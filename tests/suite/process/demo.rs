//! `ringmesh demo`: it ends as it should, and leaves nothing behind, however it ends.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rustix::process::Signal;

use super::binary::{Folder, Running, children, eventually, is_alive, listening, page, ringmesh};

/// A demo that shows where everything is.
struct Demo {
    process: Running,
    /// Its sidecars.
    sidecars: Vec<u32>,
    /// What it says that can be called: front, and the sidecars' admin addresses.
    addresses: Vec<SocketAddr>,
    /// The sockets that listen there.
    sockets: Vec<Vec<u64>>,
    /// Their configurations.
    folder: PathBuf,
}

impl Demo {
    fn start(temporary: &Folder, more: &[&str]) -> Self {
        // Few requests: the machine of a test may be busy.
        let mut command = ringmesh([&["demo", "--rate", "100"], more].concat());
        command.env("TMPDIR", temporary.path(""));
        let process = Running::start(command);
        let places = eventually("the demo says where everything is", || {
            assert!(!process.has_ended(), "{}", process.stderr());
            let said = process.stdout();
            said.contains("change it").then_some(said)
        });
        let addresses: Vec<SocketAddr> = places
            .lines()
            .filter_map(|line| line.split_once("curl http://")?.1.split('/').next()?.parse().ok())
            .collect();
        let config = places.lines().find_map(|line| line.split_once(" edit ")).unwrap().1;
        let sidecars = children(process.pid());
        assert_eq!((addresses.len(), sidecars.len()), (4, 3), "{places}");
        let folder = PathBuf::from(config).parent().unwrap().to_owned();
        assert!(folder.join("stock.toml").exists());
        let sockets: Vec<_> = addresses.iter().map(|address| listening(*address)).collect();
        assert!(sockets.iter().all(|sockets| !sockets.is_empty()));
        Self { process, sidecars, addresses, sockets, folder }
    }

    /// Waits until requests have gone through, to look at it in the middle.
    fn until_busy(&self) {
        eventually("stock is called", || {
            let (_, services) = page(self.addresses[3], "/services?format=json").ok()?;
            let services: serde_json::Value = serde_json::from_str(&services).ok()?;
            (services["services"][0]["exchanges"].as_u64()? > 50).then_some(())
        });
    }

    /// No process and no port is left.
    fn left_nothing(&self) {
        for pid in &self.sidecars {
            eventually("a sidecar ends", || (!is_alive(*pid)).then_some(()));
        }
        // Another process may have the same ports by now. The kernel closes what a ring used a little later than the rest.
        for (address, sockets) in self.addresses.iter().zip(&self.sockets) {
            eventually("the ports are free", || {
                let now = listening(*address);
                sockets.iter().all(|socket| !now.contains(socket)).then_some(())
            });
        }
    }
}

#[test]
fn a_demo_ends_by_itself_with_a_summary_and_leaves_nothing() {
    let temporary = Folder::new();
    // Long enough for each sidecar to owe a renewal.
    let mut demo = Demo::start(&temporary, &["--for", "6s"]);
    let keys = demo.folder.join("ca");
    for (path, mode) in [(&demo.folder, 0o700), (&keys, 0o700), (&keys.join("root-1.key"), 0o600)] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
    let (status, answer) = page(demo.addresses[0], "/").unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["called_by"]), (200, &serde_json::Value::Null), "{answer}");
    assert_eq!(answer["calls"]["called_by"], "spiffe://demo.mesh/front", "{answer}");
    assert_eq!(answer["calls"]["calls"]["called_by"], "spiffe://demo.mesh/orders", "{answer}");

    let status = demo.process.wait();
    let out = demo.process.stdout();
    assert_eq!(status.code(), Some(0), "{out}\n{}", demo.process.stderr());
    assert!(out.contains(" 0 failed") && out.contains("mesh tax") && out.contains("p99.9"), "{out}");
    assert!(out.contains("0 B in plain text of ") && out.contains("marker seen 0 times"), "{out}");
    assert!(out.contains("), 0 of ") && !out.contains("(front 0"), "{out}");
    assert!(out.contains("stock  was called by spiffe://demo.mesh/orders"), "{out}");
    assert!(!out.contains('\u{1b}'), "no colours where nobody sees them: {out}");
    assert_eq!(demo.process.stderr(), "");
    demo.left_nothing();
    assert!(!demo.folder.exists());
}

#[test]
fn a_demo_without_tls_on_one_hop_fails_and_says_what_could_be_read() {
    let temporary = Folder::new();
    let mut demo = Running::start({
        let mut command = ringmesh(["demo", "--rate", "100", "--without-tls"]);
        command.env("TMPDIR", temporary.path(""));
        command
    });
    // By itself: nothing is worse than plain text.
    let status = demo.wait();
    let (out, said) = (demo.stdout(), demo.stderr());
    assert_eq!(status.code(), Some(1), "{out}\n{said}");
    assert!(said.contains("plain text between the sidecars of orders and stock"), "{said}");
    assert!(
        said.contains("beginning with \"PUT / HTTP/1.1") && said.contains("marker of the requests was read"),
        "{said}"
    );
    assert!(!said.contains("the sidecars of front and orders"), "that hop is encrypted: {said}");
    assert!(out.contains("stock  was called by nobody with an identity"), "{out}");
    assert_eq!(std::fs::read_dir(temporary.path("")).unwrap().count(), 0, "keys and configurations are gone");
}

#[test]
fn an_interrupted_demo_fails_no_request_and_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let temporary = Folder::new();
        let mut demo = Demo::start(&temporary, &[]);
        let (status, answer) = page(demo.addresses[0], "/").unwrap();
        assert!(status == 200 && answer.contains("\"service\":\"stock\""), "{answer}");
        demo.until_busy();
        demo.process.signal(signal);
        let status = demo.process.wait();
        let out = demo.process.stdout();
        assert_eq!(status.code(), Some(0), "{out}\n{}", demo.process.stderr());
        assert!(out.contains(" 0 failed"), "{out}");
        demo.left_nothing();
        assert!(!demo.folder.exists());
    }
}

#[test]
fn a_killed_demo_takes_its_sidecars_with_it() {
    let temporary = Folder::new();
    let mut demo = Demo::start(&temporary, &[]);
    demo.until_busy();
    demo.process.signal(Signal::KILL);
    demo.process.wait();
    demo.left_nothing();
    // Its files are left to the next one.
    assert!(demo.folder.exists());
    let mut next = Demo::start(&temporary, &[]);
    assert!(!demo.folder.exists());
    next.process.signal(Signal::INT);
    assert_eq!(next.process.wait().code(), Some(0), "{}", next.process.stderr());
}

#[test]
fn a_sidecar_that_dies_ends_the_demo_with_an_explanation() {
    let temporary = Folder::new();
    let mut demo = Demo::start(&temporary, &[]);
    demo.until_busy();
    let victim = rustix::process::Pid::from_raw(demo.sidecars[1].try_into().unwrap()).unwrap();
    rustix::process::kill_process(victim, Signal::KILL).unwrap();
    assert_eq!(demo.process.wait().code(), Some(1));
    let said = demo.process.stderr();
    assert!(
        said.contains("was ended by signal 9 in the middle of the demo") && said.contains("help: "),
        "{said}"
    );
    demo.left_nothing();
    assert!(!demo.folder.exists());
}
