//! What a whole exchange costs: one shard in this process, one caller, one origin, over loopback and keep-alive.
//!
//! Most of the time is the kernel's and the wake-ups of three threads that wait for each other; the same exchange without
//! the proxy stands beside it. For rates, and for CPU per request, see `loadtest compare`.
#![allow(clippy::disallowed_methods, reason = "the peers are blocking")]

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ringmesh::config;
use ringmesh::shard::link::{Link, Order};
use ringmesh::shard::{Plan, spawn};

const REQUEST: &[u8] = b"GET /api/v1/orders/4711 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: bench\r\n\r\n";

fn exchange(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("exchange");
    for (name, size) in [("1_kib", 1024), ("100_kib", 100 * 1024)] {
        let origin = origin(size);
        let (proxy, link, shard) = proxy(origin);
        for (way, address) in [("direct", origin), ("through_a_shard", proxy)] {
            let mut caller = Caller::connect(address);
            group.bench_function(format!("{name}/{way}"), |bencher| {
                bencher.iter(|| black_box(caller.get(size)))
            });
        }
        link.order(Order::Drain).expect("orders are few");
        shard.join().expect("the shard ends");
        // Intervals are not merged by anybody: the shard keeps adding to the one that it has.
    }
    group.finish();
}

/// A shard as control starts it, with one service.
fn proxy(origin: SocketAddr) -> (SocketAddr, Arc<Link>, std::thread::JoinHandle<()>) {
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"app\"\nendpoints = [\"{origin}\"]\n\
         [[route]]\nservice = \"app\"\n"
    );
    let loaded = config::parse("bench.toml", &text, &|_| None).expect("the configuration is right");
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = socket.local_addr().expect("it is bound");
    let (link, doorbell) = Link::new(0).expect("there are descriptors");
    link.publish(Arc::new(loaded.compiled.snapshot(1, &|_, _| Vec::new())));
    link.order(Order::Listen("in".into(), socket)).expect("orders are few");
    let plan = Plan {
        shard: 0,
        cpu: None,
        link: Arc::clone(&link),
        doorbell,
        runtime: ringmesh::shard::RuntimeChoice::Auto,
        age_min: Plan::AGE_MIN,
        stall_threshold: Duration::from_secs(1),
    };
    (address, link, spawn(plan).expect("the shard starts"))
}

/// Answers every request, which comes in one piece, with the same bytes, until the process ends.
fn origin(size: usize) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = socket.local_addr().expect("it is bound");
    let mut answer =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\n\r\n").into_bytes();
    answer.resize(answer.len() + size, b'x');
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for mut stream in socket.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let mut request = [0; 4096];
                while stream.read(&mut request).is_ok_and(|n| n > 0) && stream.write_all(&answer).is_ok() {}
            });
        }
    });
    address
}

struct Caller {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Caller {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("it accepts");
        stream.set_nodelay(true).expect("a socket option");
        Self { stream, buffer: vec![0; 256 * 1024] }
    }

    /// One exchange; the bytes of its answer.
    fn get(&mut self, size: usize) -> usize {
        self.stream.write_all(REQUEST).expect("it takes requests");
        let (mut len, mut head) = (0, None);
        loop {
            let n = self.stream.read(&mut self.buffer[len..]).expect("it answers");
            assert!(n > 0, "closed");
            len += n;
            if head.is_none() {
                head = self.buffer[..len].windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4);
            }
            if head.is_some_and(|head| len >= head + size) {
                return len;
            }
        }
    }
}

criterion_group!(benches, exchange);
criterion_main!(benches);
