//! `ringmesh demo`: it ends as it should, and leaves nothing behind, however it ends.

use std::net::SocketAddr;
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
    let mut demo = Demo::start(&temporary, &["--for", "3s"]);
    let status = demo.process.wait();
    let out = demo.process.stdout();
    assert_eq!(status.code(), Some(0), "{out}\n{}", demo.process.stderr());
    assert!(out.contains(" 0 failed") && out.contains("mesh tax") && out.contains("p99.9"), "{out}");
    assert!(!out.contains('\u{1b}'), "no colours where nobody sees them: {out}");
    assert_eq!(demo.process.stderr(), "");
    demo.left_nothing();
    assert!(!demo.folder.exists());
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
