//! Mutated messages through a real shard: whatever a caller or a service sends, in whatever pieces, nothing is made of it
//! that was not sent.
//!
//! There: every request that the service sees whole is one that a caller sent whole, in its order and once, and the
//! service sees no byte that does not parse. Back: every response that a caller takes for whole is the one that the
//! service sent whole to this request. What was sent is judged by [`reference`], what arrives by the strict parser of
//! [`support::wire`]; neither shares code with the proxy.
//!
//! Every run has a seed, printed and settable: `RINGMESH_SEED=42 RINGMESH_CASES=100000 cargo test --test property`.

#![allow(unreachable_pub, reason = "a test binary exports nothing")]
#![allow(clippy::type_complexity, reason = "what a parser gives and what is behind it")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "seeds are printed, so that a failure can be repeated")]
#![allow(clippy::disallowed_types, reason = "tests are ordinary threads, which may wait for each other")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests are ordinary threads with the system's clock as a guard"
)]

mod support;

#[path = "property/mutate.rs"]
mod mutate; // what is done to messages
#[path = "property/reference.rs"]
mod reference; // what a stream of bytes means, by the letter

use std::collections::VecDeque;
use std::sync::Arc;

use fastrand::Rng;

use mutate::{Sent, mutated, pieces, random_request, random_response};
use reference::Meant;
use support::client::{Client, Cut};
use support::mesh::Config;
use support::origin::{Origin, Recorded};
use support::wire::{Framing, Message};
use support::{End, Watched};

/// How many callers send at the same time.
const CALLERS: usize = 3;

#[test]
fn every_request_that_the_service_sees_is_one_that_was_sent() {
    let (mut rng, cases) = seeded();
    let (seen, origin) = recording();
    let mesh = Config::new(&[&origin]).start();
    let (mut served, mut refused) = (0, 0);
    for round in 0..cases.div_ceil(CALLERS) {
        let streams: Vec<Sent> = (0..CALLERS)
            .map(|caller| {
                let messages = rng.usize(1..5);
                let sent: Vec<_> = (0..messages)
                    .map(|n| random_request(&mut rng, &format!("{round}-{caller}-{n}")))
                    .collect();
                mutated(&mut rng, sent.concat())
            })
            .collect();
        let address = mesh.address;
        let threads: Vec<_> = streams
            .iter()
            .map(|sent| {
                let (sent, seed) = (sent.clone(), rng.u64(..));
                std::thread::spawn(move || call(address, &sent, &mut Rng::with_seed(seed)))
            })
            .collect();
        let answers: Vec<_> =
            threads.into_iter().map(|t| t.join().expect("a caller failed: see above")).collect();
        // Every caller has seen the end of its connection, so whatever reached the service whole was answered.
        let mut arrived: VecDeque<Message> = seen.change(std::mem::take).into();
        let meant: Vec<_> = streams.iter().map(|s| reference::requests(&s.bytes)).collect();
        // What is answered here and passed over does not arrive; what follows it does.
        let routed: Vec<Vec<_>> = meant
            .iter()
            .zip(&answers)
            .map(|(meant, answers)| {
                let passed_over = |n: &usize| answers.get(*n).is_some_and(is_passed_over);
                (0..meant.len()).filter(|n| !passed_over(n)).map(|n| &meant[n]).collect()
            })
            .collect();
        let mut next = [0; CALLERS];
        while let Some(message) = arrived.pop_front() {
            let Some(caller) =
                (0..CALLERS).find(|c| routed[*c].get(next[*c]).is_some_and(|m| m.is(&message)))
            else {
                fail(&streams, &format!("the service got what nobody sent: {message:?}"));
            };
            next[caller] += 1;
        }
        for (caller, answers) in answers.iter().enumerate() {
            judge_answers(&streams[caller], &meant[caller], next[caller], answers);
            served += next[caller];
            refused += answers.len() - next[caller];
        }
    }
    drop(mesh);
    for recorded in origin.settle() {
        recorded.assert_sound();
    }
    println!("{served} requests served, {refused} refused");
    assert!(served > cases / 4 && refused > cases / 20, "the mutations are too weak or too strong");
}

#[test]
fn every_response_that_a_caller_takes_for_whole_is_the_one_that_was_sent() {
    let (mut rng, cases) = seeded();
    let next: Arc<Watched<Option<Reply>>> = Arc::default();
    let origin = replying(&next);
    let mesh = Config::new(&[&origin])
        // So that a response that never ends does not hold the test; a failure is always allowed.
        .keys("timeouts = { response = \"20s\", body_stall = \"20s\" }")
        .start();
    let (mut whole, mut bad) = (0, 0);
    let mut client: Option<Client> = None;
    for case in 0..cases {
        let head = rng.u8(..8) == 0;
        let old = rng.u8(..8) == 0;
        let sound = random_response(&mut rng, &case.to_string());
        let sent = mutated(&mut rng, sound);
        let meant = reference::response(&sent.bytes, head);
        let keep = matches!(&meant, Meant::Whole(m) if m.framing != Framing::UntilClose) && rng.bool();
        let end = if keep {
            Then::Keep
        } else if matches!(meant, Meant::Whole(_)) || rng.u8(..4) > 0 {
            Then::Close
        } else {
            Then::Reset
        };
        let pieces = pieces(&mut rng, &sent.bytes);
        next.change(|next| *next = Some(Reply { target: format!("/{case}"), pieces, end, sent: false }));
        let mut caller = client.take().unwrap_or_else(|| Client::connect(mesh.address));
        let method = if head { "HEAD" } else { "GET" };
        caller.send(format!("{method} /{case} HTTP/1.{}\r\nHost: a\r\n\r\n", u8::from(!old)));
        let got = loop {
            match caller.try_response(head) {
                Ok(interim) if interim.status() < 200 => {}
                other => break other,
            }
        };
        // All that the service had to say is in the proxy's socket, so that what comes behind a response can be seen.
        next.wait("the reply", |next| next.as_ref().is_some_and(|reply| reply.sent).then_some(()));
        let streams = [sent.clone()];
        match (&got, &meant) {
            (Ok(response), _) if response.has("x-ringmesh-failure") => {
                if !sent.touched {
                    fail(&streams, &format!("a sound response was refused: {response:?}"));
                }
                bad += 1;
            }
            (Ok(response), Meant::Whole(meant)) if meant.is_answered_by(response) => whole += 1,
            (Ok(response), _) => {
                fail(&streams, &format!("to {method}: {response:?}\nbut sent was {meant:?}"))
            }
            // Cut, and to be seen as such.
            (Err(Cut::Truncated(Some(part), End::Fin)), _) if part.framing == Framing::UntilClose => {
                fail(&streams, &format!("a cut response ends well: {part:?}"))
            }
            (Err(cut), _) if !sent.touched => fail(&streams, &format!("a sound response was cut: {cut:?}")),
            (Err(_), _) => bad += 1,
        }
        let lives = matches!(&got, Ok(r) if !r.all("connection").contains(&"close".to_owned()));
        client = lives.then_some(caller);
    }
    drop(client);
    drop(mesh);
    origin.settle().iter().for_each(Recorded::assert_sound);
    println!("{whole} responses whole, {bad} not");
    assert!(whole > cases / 4 && bad > cases / 20, "the mutations are too weak or too strong");
}

/// Sends a stream in pieces and half-closes: all responses.
fn call(address: std::net::SocketAddr, sent: &Sent, rng: &mut Rng) -> Vec<Message> {
    let mut client = Client::connect(address);
    for piece in pieces(rng, &sent.bytes) {
        client.send(piece);
    }
    client.finish();
    let meant = reference::requests(&sent.bytes);
    let mut answers = Vec::new();
    loop {
        let head = meant.get(answers.len()).is_some_and(|m| m.method == "HEAD");
        match client.try_response(head) {
            Ok(answer) => answers.push(answer),
            Err(Cut::Nothing(_)) => return answers,
            // The refusal of a HEAD that was never whole.
            Err(Cut::Truncated(Some(part), End::Fin))
                if part.has("x-ringmesh-failure") && part.body.is_empty() && sent.has(b"HEAD ") =>
            {
                answers.push(part);
                return answers;
            }
            Err(cut) => fail(std::slice::from_ref(sent), &format!("a cut response: {cut:?}")),
        }
    }
}

/// The answers are those to the requests that arrived, in their order, and at most one refusal, which is the last.
fn judge_answers(sent: &Sent, meant: &[reference::Request], arrived: usize, answers: &[Message]) {
    let streams = std::slice::from_ref(sent);
    let passed_over = answers.iter().filter(|a| is_passed_over(a)).count();
    let refused = answers.last().is_some_and(|a| a.has("x-ringmesh-failure") && !is_passed_over(a));
    for (n, answer) in answers.iter().enumerate() {
        if answer.has("x-ringmesh-failure") {
            let last = n + 1 == answers.len();
            if !sent.touched || !last && !is_passed_over(answer) {
                fail(streams, &format!("refusal {n} of {}: {answer:?}", answers.len()));
            }
            continue;
        }
        let Some(meant) = meant.get(n) else { fail(streams, &format!("answer {n} to nothing: {answer:?}")) };
        let head = meant.method == "HEAD";
        let want = if head { String::new() } else { echo(&meant.method, &meant.target, &meant.body) };
        if answer.text() != want {
            fail(streams, &format!("answer {n} is another's: {answer:?}"));
        }
    }
    if answers.len() != arrived + passed_over + usize::from(refused) {
        fail(streams, &format!("{arrived} requests arrived, {} were answered", answers.len()));
    }
    if !sent.touched && arrived != meant.len() {
        fail(streams, &format!("{arrived} of {} sound requests were served", meant.len()));
    }
}

/// Whether a whole request was answered by the proxy alone, and the connection serves on: here because its host is
/// longer than a name can be, so that it has no route.
fn is_passed_over(answer: &Message) -> bool {
    !answer.has("connection") && answer.all("x-ringmesh-failure") == ["route.local.no_route"]
}

/// A service that notes every whole request before it answers, with what tells the requests apart.
fn recording() -> (Arc<Watched<Vec<Message>>>, Origin) {
    let seen: Arc<Watched<Vec<Message>>> = Arc::default();
    let theirs = Arc::clone(&seen);
    let origin = Origin::answering(move |request| {
        theirs.change(|seen| seen.push(request.clone()));
        let body = echo(request.method(), request.target(), &request.body);
        match (request.method(), body.len() % 3) {
            ("HEAD", _) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes(),
            (_, 0) => format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            )
            .into_bytes(),
            _ => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes(),
        }
    });
    (seen, origin)
}

/// What the service answers: nothing but the request itself could have made it.
fn echo(method: &str, target: &str, body: &[u8]) -> String {
    let sum = body
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    format!("{method} {target} {} {sum:x}", body.len())
}

/// What the service sends next.
struct Reply {
    /// To which request. It may come twice: a GET may be sent again when a connection used before ends without a byte.
    target: String,
    pieces: Vec<Vec<u8>>,
    end: Then,
    /// Whether all of it has been sent.
    sent: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Keep,
    Close,
    Reset,
}

/// A service that sends what it is given, and says when all is sent.
fn replying(next: &Arc<Watched<Option<Reply>>>) -> Origin {
    let next = Arc::clone(next);
    Origin::scripted(move |visit| {
        while let Some(request) = visit.request() {
            let (pieces, end) = next.wait("a reply", |next| {
                let reply = next.as_ref().filter(|reply| reply.target == request.target())?;
                Some((reply.pieces.clone(), reply.end))
            });
            for piece in pieces {
                visit.send(piece);
            }
            match end {
                Then::Keep => {}
                Then::Close => visit.finish(),
                Then::Reset => visit.reset(),
            }
            next.change(|next| {
                if let Some(reply) = next.as_mut().filter(|reply| reply.target == request.target()) {
                    reply.sent = true;
                }
            });
            match end {
                Then::Keep => {}
                Then::Close => {
                    visit.drain();
                    return;
                }
                Then::Reset => return,
            }
        }
    })
}

fn fail(streams: &[Sent], what: &str) -> ! {
    for sent in streams {
        println!("sent ({}): {}", sent.how, sent.bytes.escape_ascii());
    }
    panic!("{what}");
}

fn seeded() -> (Rng, usize) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("RINGMESH_SEED").unwrap_or_else(|| Rng::new().u64(..));
    println!("RINGMESH_SEED={seed}");
    (Rng::with_seed(seed), number("RINGMESH_CASES").unwrap_or(600) as usize)
}
