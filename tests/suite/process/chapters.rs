//! `ringmesh demo --chapter`: what each chapter claims holds, is missed when what it is about is left out, and nothing is left
//! of it, however it ends.

use std::net::SocketAddr;

use rustix::process::Signal;

use super::binary::{Folder, Running, children, eventually, is_alive, listening, ringmesh};

/// A chapter that is played.
struct Played {
    process: Running,
    proxy: u32,
    /// Where callers come in, and the admin address.
    addresses: Vec<SocketAddr>,
    sockets: Vec<Vec<u64>>,
    temporary: Folder,
}

impl Played {
    fn start(arguments: &[&str]) -> Self {
        let temporary = Folder::new();
        let mut command = ringmesh([&["demo", "--chapter"], arguments].concat());
        command.env("TMPDIR", temporary.path(""));
        let process = Running::start(command);
        let said = eventually("it begins", || {
            assert!(!process.has_ended(), "{}", process.stderr());
            let said = process.stdout();
            said.contains("\nphase 1 of ").then_some(said)
        });
        let addresses: Vec<SocketAddr> = said
            .lines()
            .filter_map(|line| line.split_once("http://")?.1.split('/').next()?.parse().ok())
            .collect();
        assert_eq!(addresses.len(), 2, "{said}");
        let sockets: Vec<_> = addresses.iter().map(|address| listening(*address)).collect();
        assert!(sockets.iter().all(|sockets| !sockets.is_empty()), "{said}");
        let [proxy] = children(process.pid())[..] else { panic!("one proxy: {said}") };
        Self { process, proxy, addresses, sockets, temporary }
    }

    fn until(&self, phase: &str) {
        eventually(phase, || {
            assert!(!self.process.has_ended(), "{}", self.process.stderr());
            self.process.stdout().contains(phase).then_some(())
        });
    }

    /// Its exit code and what it wrote, when no process, no port and no file is left.
    fn end(mut self) -> (Option<i32>, String, String) {
        let status = self.process.wait();
        eventually("the proxy ends", || (!is_alive(self.proxy)).then_some(()));
        for (address, sockets) in self.addresses.iter().zip(&self.sockets) {
            eventually("the ports are free", || {
                let now = listening(*address);
                sockets.iter().all(|socket| !now.contains(socket)).then_some(())
            });
        }
        assert_eq!(std::fs::read_dir(self.temporary.path("")).unwrap().count(), 0, "files are left");
        (status.code(), self.process.stdout(), self.process.stderr())
    }
}

/// Played to its end; what must hold does.
fn holds(chapter: &str, length: &str, claims: usize) -> String {
    let played = Played::start(&[chapter, "--for", length]);
    // Only so long may one wait for one thing.
    played.until("\nphase 2 of ");
    played.until("\nphase 3 of ");
    let (code, out, said) = played.end();
    assert_eq!(code, Some(0), "{out}\n{said}");
    assert_eq!(said, "");
    let (_, summary) = out.split_once("  PHASE ").unwrap();
    assert_eq!(summary.matches(" yes ").count(), claims, "{out}");
    assert!(!summary.contains(" NO ") && !summary.contains("not reached"), "{out}");
    assert!(!out.contains('\u{1b}'), "no colours where nobody sees them: {out}");
    out
}

#[test]
fn the_chapter_about_breakers_holds() {
    let out = holds("breaker", "12s", 10);
    assert!(out.contains("passed over: 2 (") && out.contains("passed over: nobody"), "{out}");
}

#[test]
fn the_chapter_about_retries_holds() {
    let out = holds("retries", "12s", 7);
    assert!(out.contains(" attempts a request"), "{out}");
}

#[test]
fn the_chapter_about_overload_holds() {
    let out = holds("overload", "12s", 8);
    assert!(out.contains("the service works on 6, "), "{out}");
}

#[test]
fn the_chapter_about_canaries_holds() {
    let out = holds("canary", "20s", 6);
    assert!(out.contains("the old version gets "), "{out}");
}

#[test]
fn the_chapter_about_faults_holds() {
    let out = holds("faults", "14s", 11);
    assert!(out.contains(" are held up, "), "{out}");
}

#[test]
fn a_chapter_without_what_it_is_about_fails_and_says_what_does_not_hold() {
    let played = Played::start(&["breaker", "--for", "10s", "--without-it"]);
    played.until("phase 3 of 5: ");
    let (code, out, said) = played.end();
    assert_eq!(code, Some(1), "{out}\n{said}");
    let line = |begin: &str| out.lines().find(|line| line.starts_with(begin)).unwrap().to_owned();
    assert!(line("2 the endpoint is passed over").contains(" NO      it is used"), "{out}");
    assert!(line("2 after ").contains(" NO "), "{out}");
    assert!(line("1 no request fails").contains(" yes "), "{out}");
}

#[test]
fn the_chapter_about_faults_notices_that_there_are_none() {
    let played = Played::start(&["faults", "--for", "10s", "--without-it"]);
    played.until("phase 3 of 5: ");
    let (code, out, said) = played.end();
    assert_eq!(code, Some(1), "{out}\n{said}");
    let line = |begin: &str| out.lines().find(|line| line.starts_with(begin)).unwrap().to_owned();
    for claim in
        ["2 about one request of ten fails", "2 about one of five", "3 about one body of ten", "4 a few are"]
    {
        assert!(line(claim).contains(" NO "), "{out}");
    }
    assert!(line("1 no request fails").contains(" yes "), "{out}");
}

#[test]
fn an_interrupted_chapter_fails_no_request_leaves_nothing_and_is_no_proof() {
    let played = Played::start(&["breaker"]);
    played.until(" answered, ");
    played.process.signal(Signal::INT);
    let (code, out, said) = played.end();
    assert_eq!(code, Some(1), "{out}\n{said}");
    assert!(said.contains("not played to its end"), "{said}");
    let first: Vec<&str> = out
        .lines()
        .find(|line| line.starts_with("1 all five endpoints are well"))
        .unwrap()
        .split_whitespace()
        .collect();
    // Behind the title: requests, answered, refused, failed.
    assert!(first[6] == first[7] && first[8..10] == ["0", "0"], "{out}");
    assert!(out.contains("not reached") && !out.contains(" yes "), "{out}");
}

#[test]
fn a_proxy_that_dies_ends_a_chapter_with_an_explanation() {
    let played = Played::start(&["retries"]);
    let victim = rustix::process::Pid::from_raw(played.proxy.try_into().unwrap()).unwrap();
    rustix::process::kill_process(victim, Signal::KILL).unwrap();
    let (code, out, said) = played.end();
    assert_eq!(code, Some(1), "{out}\n{said}");
    assert!(said.contains("was ended by signal 9") && said.contains("help: "), "{said}");
}

#[test]
fn a_chapter_that_would_be_too_short_or_is_unknown_is_not_begun() {
    for (arguments, expected) in [
        (
            &["demo", "--chapter", "breaker", "--for", "5s"][..],
            "this chapter cannot last 5 s\n  help: give --for between 10s and 10m",
        ),
        (&["demo", "--chapter", "weather"][..], "breaker"),
        (&["demo", "--without-it"][..], "--chapter"),
        (&["demo", "--chapter", "breaker", "--rate", "7"][..], "cannot be used with"),
    ] {
        let mut command = Running::start(ringmesh(arguments.iter().copied()));
        assert_eq!(command.wait().code(), Some(2), "{}", command.stderr());
        assert!(command.stderr().contains(expected), "{}", command.stderr());
    }
}
