//! What HTTP/2 costs the process: the memory of peers that do not read.

use crate::support::http2::{END_HEADERS, END_STREAM, HEADERS, Raw, WINDOW_UPDATE, block_of_get};
use crate::support::origin::{Origin, ok};

use super::binary::{Folder, Running, eventually};
use super::config;

/// The most memory that the process has ever held, in bytes.
fn most_resident(proxy: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a01_responses_that_are_never_read_cost_bounded_memory() {
    const STREAMS: u32 = 90;
    // Rows CVE-2019-9517 and 9511: all windows open and a connection that takes nothing; a window of one octet.
    for window in [0x7fff_ffff, 1] {
        let body = vec![7; 1 << 20];
        let origin = Origin::answering(move |request| {
            if request.target() == "/bystander" {
                return ok(request);
            }
            let mut out = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
            out.extend_from_slice(&body);
            out
        });
        let folder = Folder::new();
        let text = config(origin.endpoint.parse().unwrap(), "[timeouts]\nbody_stall = \"1s\"\n");
        let mut proxy = Running::proxy(&folder.write("a.toml", &text.replace("shards = 2", "shards = 1")));
        let address = proxy.listener("inbound");
        let mut bystander = crate::support::client::Client::connect(address);
        let mut ask = || {
            bystander.send("GET /bystander HTTP/1.1\r\nhost: a\r\n\r\n");
            assert_eq!(bystander.response().status(), 200);
        };
        ask();
        let before = most_resident(&proxy);
        let mut raw = Raw::connect_with(address, &[(4, window)]);
        raw.frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes());
        for n in 0..STREAMS {
            raw.frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &block_of_get());
        }
        origin.wait_requests(1 + STREAMS as usize);
        // All of them end for want of progress.
        eventually("the exchanges end", || {
            ask();
            let metrics = proxy.page("/metrics").1;
            let line = metrics.lines().find(|line| line.starts_with("ringmesh_exchanges_open"))?;
            line.ends_with(" 0.0").then_some(())
        });
        let grown = most_resident(&proxy) - before;
        println!("window {window}: {grown} bytes");
        assert!(grown < 48 << 20, "window {window}: {grown} bytes for {STREAMS} MiB of responses");
        drop(raw);
        proxy.signal(rustix::process::Signal::TERM);
        assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.stderr());
    }
}
