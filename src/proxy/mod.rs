//! THE PATH: one connection, one exchange, every branch. Reads from top to bottom as the request goes.
//!
//! Decisions are made by the stages called from here and are pure; what waits is in `io`. A request whose body is whole
//! when its head is understood (nearly all) is sent in one write and can be sent again ([`whole`]); any other is
//! streamed, both directions at once ([`streamed`]). Every way out of an exchange goes through [`exchange`], which
//! answers what failed, and records it.

mod account;
mod admit;
mod again;
mod beside;
mod caller;
mod connect;
mod counted;
mod fault;
mod from_h2;
mod global;
mod h2_client;
mod h2_io;
mod handshake;
mod hedge;
mod idle;
mod judge;
mod kept;
mod lane;
mod leaving;
mod mirror;
mod over_h1;
mod over_h2;
mod relay;
mod request;
mod response;
mod shaped;
mod told;
mod traced;
mod tunnel;
mod tunnel_h2;
mod watched;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use monoio::net::TcpStream;

use crate::authorize::Verdict;
use crate::downstream::turn::Turn;
use crate::downstream::{Asked, Downstream, Next, Protocol, Tunnel};
use crate::failure::{Cause, Failure, Side, Stage};
use crate::http::grpc::Dialect;
use crate::http::respond::{self, Told};
use crate::http::{Framing, Method, Version};
use crate::io::{Connection, Fault, Patience};
use crate::route::Route;
use crate::shard::buffers::{Buffer, Buffers};
use crate::shard::clock::{NEVER, ns};
use crate::shard::live::Kind;
use crate::shard::{Shard, task};
use crate::upstream::pool::Pooled;
use crate::upstream::retry::Policy;
use crate::upstream::service::{Attempt, Service};
use crate::upstream::spec::Tls;
use account::{Account, Shown};
use again::Missed;
use connect::To;
use counted::{InProgress, Open};
use kept::Kept;
use lane::{Used, end};
use response::Answered;
use traced::Said;
use tunnel::{Agreed, Far};

/// There were as many of its kind as there may be in a time.
const TOO_SOON: Failure = Failure::downstream(Stage::Quota, Cause::RateLimited);

/// Memory is short, and others come first.
const MEMORY_SHORT: Failure = Failure::local(Stage::Admit, Cause::Overloaded);

/// There is no memory for one more buffer.
const SHED: Failure = Failure::local(Stage::Response, Cause::Overloaded);

/// Serves one downstream connection to its end. Not an `async fn`, which would have room for its arguments twice.
pub fn serve(
    shard: Rc<Shard>,
    stream: TcpStream,
    peer: SocketAddr,
    listener: Arc<str>,
    port: u16,
) -> impl Future<Output = ()> + 'static {
    let open = Open::count(&shard);
    // Together, so that it is counted until it has been closed.
    let mut served = (Downstream::new(&shard, stream, peer, listener, port), open);
    async move {
        let (downstream, _) = &mut served;
        let begun = begin(&shard, downstream).await;
        let kind = Kind::Requests(downstream.connection.control());
        let _listed = shard.live.list(downstream.as_open(kind));
        let http2 = match begun {
            None => false,
            Some(Protocol::Http1) => serve_http1(&shard, downstream).await,
            Some(Protocol::Http2 | Protocol::Mesh { .. }) => true,
        };
        if http2 {
            // Boxed: a future of another size than what most connections need.
            Box::pin(from_h2::serve(shard, served.0)).await;
        } else {
            shard.buffers.give(std::mem::take(&mut downstream.input));
        }
    }
}

/// The handshake, where there is to be one; what is spoken from here, `None` when the connection is over.
async fn begin(shard: &Rc<Shard>, downstream: &mut Downstream) -> Option<Protocol> {
    if let Some(mode) = handshake::mode(shard, &downstream.listener) {
        // Boxed: once per connection, and large.
        if !Box::pin(handshake::with_caller(shard, downstream, mode)).await {
            return None;
        }
    }
    Some(Protocol::of(&downstream.connection))
}

/// Serves requests one after the other; whether HTTP/2 turned out to be spoken in their place.
async fn serve_http1(shard: &Rc<Shard>, downstream: &mut Downstream) -> bool {
    let mut first = true;
    loop {
        let fate = match downstream.next(shard, std::mem::take(&mut first)).await {
            Next::Nothing => Fate::Close,
            Next::Http2 => return true,
            Next::Refused(failure, started, waited_us) => {
                refuse(shard, downstream, failure, (started, waited_us)).await
            }
            Next::Request(mut asked) => {
                shard.cohort.regroup().await;
                exchange(shard, downstream, &mut asked).await
            }
        };
        if fate != Fate::Again {
            end(shard, downstream, fate).await;
            return false;
        }
    }
}

/// What becomes of the downstream connection after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It serves the next request.
    Again,
    /// It is closed.
    Close,
    /// It is closed when the caller has had time to read the response.
    Linger,
    /// It is reset, because only that tells the caller that the response is cut.
    Reset,
}

/// What has come of a request.
enum Settled {
    /// The response is with the caller.
    Fate(Fate),
    /// Both sides agree on a tunnel.
    Tunnel(Box<Agreed>),
}

/// One request and its response.
async fn exchange(shard: &Rc<Shard>, downstream: &mut Downstream, asked: &mut Asked) -> Fate {
    let _exchange = InProgress::count(shard);
    let account = Account::new(asked.started, asked.head_waited_us);
    if let Some(rules) = &asked.view.snapshot.tracing {
        let said = Said::Raw(&downstream.input[..asked.head_len]);
        account.begin_trace(shard, rules, said, &Shown::of(downstream, Some(asked)));
    }
    let mut ended = match asked.turn.as_ref().is_some_and(|turn| turn.asks()) {
        false => None,
        // Boxed: few are asked about.
        true => Box::pin(global::ask(shard, &account, downstream, asked)).await.err(),
    };
    if ended.is_none() && asked.turn.as_ref().is_some_and(|turn| turn.is_held_up()) {
        // Boxed: hardly any is held up.
        ended = Box::pin(fault::hold_up(shard, &account, downstream, asked)).await.err();
    }
    let route = asked.route.id().and_then(|id| asked.view.snapshot.routes.routes().get(id as usize));
    let service = asked.service.id().map(|id| shard.service(&asked.view, id));
    let timeout = Turn::timeout(asked.turn.as_deref(), route);
    let mut deadline = timeout.map_or(NEVER, |timeout| asked.started.saturating_add(ns(timeout)));
    account.want(downstream.affinity.take());
    let mut head = std::mem::take(&mut asked.head);
    if route.is_some_and(|route| route.deadline_field) {
        account.telling.tell_deadline();
        // What the caller wrote, whatever the route makes of it for the service.
        if asked.may_have_envoys {
            let wrote = told::value(&downstream.input[..asked.head_len], told::DEADLINE);
            deadline = deadline.min(told::deadline(asked.started, wrote));
        }
    }
    // What a route changes may put some there.
    account.telling.note_none(!asked.may_have_envoys && asked.turn.is_none());
    // Bytes of the body that are in the input, when all are; what is streamed takes its bytes from there itself.
    let mut body = whole_body(asked, &downstream.input);
    // What was sent in the hope of a tunnel must not be read as a request if none comes about.
    asked.keep_alive &=
        asked.tunnel.is_none() || (!asked.is_connect() && downstream.input.len() == asked.head_len);
    let result = match &service {
        _ if asked.decision.verdict == Verdict::Deny => {
            Err(Some(Failure::downstream(Stage::Authorize, Cause::Denied)))
        }
        _ if asked.turn.as_ref().is_some_and(|turn| turn.is_too_soon()) => Err(Some(TOO_SOON)),
        _ if shard.sheds(route) => Err(Some(MEMORY_SHORT)),
        _ if let Some(failure) = ended => Err(Some(failure)),
        _ if asked.turn.as_ref().is_some_and(|turn| turn.resets()) => Ok(Fate::Reset),
        _ if asked.answer_here || asked.turn.as_ref().is_some_and(|turn| turn.is_answer()) => Err(None),
        _ if let Some(cause) = tunnel_refused(asked, route) => Err(Some(Failure::local(Stage::Route, cause))),
        None => Err(Some(without_service(route))),
        Some(_) if asked.is_too_large() => Err(Some(Failure::downstream(Stage::Head, Cause::BodyTooLarge))),
        Some(service) => {
            let retry = retry_of(asked.turn.as_deref(), route, service);
            account.stays_alone.set(asked.tunnel.is_some());
            account.repeats.set(
                asked.method != Method::Other
                    || downstream.input.get(asked.places.method()).is_some_and(|name| retry.allows(name)),
            );
            let path = Path { shard, account: &account, service, deadline, retry };
            let admitted = match path.admit(route) {
                Ok(None) => Ok(()),
                // Boxed: seldom needed.
                Ok(Some(waiting)) => Box::pin(path.wait_for_place(waiting, downstream)).await,
                Err(failure) => Err(failure),
            };
            if admitted.is_ok() {
                path.mirror(downstream, asked, &head, body);
            }
            let settled = match body.filter(|n| *n <= head.capacity() - head.len() && !is_slowed(asked, *n)) {
                _ if let Err(failure) = admitted => Err(failure),
                // To a service of the mesh it goes on as a request.
                _ if asked.is_connect() && !matches!(service.spec.tls, Tls::Mesh(_)) => {
                    Box::pin(tunnel::connect(&path, downstream, asked, &head)).await
                }
                Some(body) => whole(&path, downstream, asked, &mut head, body).await,
                None => {
                    body = None;
                    // Boxed: two directions are much state, which an idle connection should not hold room for.
                    Box::pin(streamed(&path, downstream, asked, &mut head)).await.map(Settled::Fate)
                }
            };
            match settled {
                Ok(Settled::Fate(fate)) => Ok(fate),
                Ok(Settled::Tunnel(agreed)) => {
                    shard.buffers.give(std::mem::take(&mut head));
                    Box::pin(tunnel::upgraded(&path, downstream, asked, agreed)).await.map_err(Some)
                }
                Err(failure) => Err(Some(failure)),
            }
        }
    };
    shard.buffers.give(head);
    let result = result.map_err(|failure| failure.map(|failure| blamed(shard, &account, failure)));
    let fate = match &result {
        Ok(fate) => *fate,
        Err(failure) => {
            answer(shard, downstream, asked, &account, service.as_ref(), *failure, body.is_some()).await
        }
    };
    let shown = Shown::of(downstream, Some(asked));
    // What ended on purpose is no failure.
    let on_purpose = asked.turn.as_ref().is_some_and(|turn| turn.was_truncated());
    let failure = result.err().flatten().filter(|_| !on_purpose);
    account.close(shard, &asked.view, &shown, service.as_ref(), failure);
    downstream.affinity.set(account.spent());
    downstream.used_up(shard, asked.head_len + body.unwrap_or(0));
    fate
}

/// Whether a body that is so long is slow on purpose: then it is passed on as one that still comes.
fn is_slowed(asked: &Asked, length: usize) -> bool {
    length > 0 && asked.turn.as_ref().is_some_and(|turn| turn.request_shape().is_some())
}

/// Why a tunnel is not to be had, if one is asked for: the route decides.
fn tunnel_refused(asked: &Asked, route: Option<&Route>) -> Option<Cause> {
    match (asked.tunnel.as_deref()?, route) {
        (Tunnel::WebSocket(_), Some(route)) if !route.upgrades.websocket => Some(Cause::UpgradeRefused),
        (Tunnel::Connect, route) if !route.is_some_and(|route| route.upgrades.connect) => {
            Some(Cause::MethodRefused)
        }
        (Tunnel::WebSocket(_) | Tunnel::Connect, _) => None,
    }
}

/// Why a request goes nowhere: there is no route, or its route answers what is not asked (a tunnel is).
fn without_service(route: Option<&Route>) -> Failure {
    Failure::local(Stage::Route, if route.is_some() { Cause::MethodRefused } else { Cause::NoRoute })
}

/// What the stages of one exchange share.
struct Path<'x> {
    shard: &'x Rc<Shard>,
    account: &'x Account,
    service: &'x Rc<Service>,
    deadline: u64,
    retry: &'x Policy,
}

/// What holds of further attempts: what the route says, or what its service does, and the caller where it may.
fn retry_of<'x>(turn: Option<&'x Turn>, route: Option<&'x Route>, service: &'x Service) -> &'x Policy {
    Turn::retry(turn, route.and_then(|route| route.retry.as_ref()).unwrap_or(&service.spec.retry))
}

/// The length of the body, when all of it is in the input behind the head.
fn whole_body(asked: &Asked, input: &[u8]) -> Option<usize> {
    match asked.framing {
        Framing::None => Some(0),
        Framing::Length(n) => usize::try_from(n).ok().filter(|n| *n <= input.len() - asked.head_len),
        Framing::Chunked | Framing::UntilClose => None,
    }
}

/// A request that is whole: one write, and again on another connection where that is safe.
async fn whole(
    path: &Path<'_>,
    downstream: &mut Downstream,
    asked: &Asked,
    request: &mut Vec<u8>,
    body: usize,
) -> Result<Settled, Failure> {
    request.extend_from_slice(&downstream.input[asked.head_len..asked.head_len + body]);
    loop {
        let missed = 'attempt: {
            if path.is_hedged() {
                match Box::pin(path.take_over(downstream, asked)).await {
                    Ok(fate) => return Ok(Settled::Fate(fate)),
                    Err(missed) => break 'attempt missed,
                }
            }
            // In one expression: what is kept in a variable has a place of its own in the future of every connection.
            let (attempt, mut used) = match match asked.tunnel.as_deref() {
                Some(Tunnel::WebSocket(_)) => Box::pin(path.connect_for_websocket()).await,
                Some(Tunnel::Connect) | None => path.connect(false).await,
            } {
                Ok((attempt, to)) => (attempt, Used::from(to)),
                Err(failure) => break 'attempt path.missed(failure, false),
            };
            path.account.request_body_bytes.set(body as u64);
            path.tell_attempt(request, body);
            used = match used {
                Used::Pooled(_) | Used::Lane(..) => used,
                Used::Place(lease) if asked.tunnel.is_some() => {
                    let agreed = tunnel_h2::ask(path, downstream, asked, request, attempt, lease);
                    match Box::pin(agreed).await {
                        Err(failure) if failure.nothing_was_sent() && path.replays_unseen() => {
                            break 'attempt Missed::Again;
                        }
                        result => return result,
                    }
                }
                Used::Place(lease) => match lane::at_hand(path, downstream, asked, request, body, lease) {
                    Ok(used) => used,
                    Err((lease, new)) => {
                        // Boxed: a future of another size than what most connections need.
                        let carried = task::boxed(|| {
                            lane::or_stream(path, downstream, asked, (request, body), &attempt, lease, new)
                        });
                        match carried.await {
                            Ok(used) => used,
                            Err(Ok(fate)) => return Ok(Settled::Fate(fate)),
                            Err(Err(missed)) => break 'attempt missed,
                        }
                    }
                },
            };
            let began = path.shard.clock.now();
            let stall = path.service.spec.timeouts.body_stall;
            let patience = Patience { clock: &path.shard.clock, stall, until: path.deadline };
            let sent = used.connection().writer.write_all(request, 0, patience).await;
            let unsent = sent == Err(Fault::Unsent);
            let result = match sent {
                Err(fault) => Err(Failure::upstream(Stage::Request, cause(fault))),
                Ok(()) => {
                    let way =
                        response::Way { path, asked, request_sent: &Cell::new(true), attempt: &attempt };
                    watched::back(&way, request.split_at(request.len() - body), used.connection(), downstream)
                        .await
                }
            };
            path.judge(&attempt, began, result.as_ref().err());
            let failure = match result {
                // A lane never becomes a tunnel.
                Ok(done) if done.upgrade => {
                    let Used::Pooled(pooled) = used else {
                        break 'attempt path
                            .missed(Failure::upstream(Stage::Response, Cause::UnexpectedUpgrade), false);
                    };
                    let far = Far::Connection { pooled, behind: done.behind };
                    return Ok(Settled::Tunnel(Box::new(Agreed { attempt, far })));
                }
                Ok(done) => {
                    let withheld = done.withheld;
                    let fate = match used {
                        Used::Pooled(pooled) => path.done(pooled, &attempt, &done),
                        Used::Lane(laned, lease) => path.done_with_lane(laned, &lease, &done),
                        Used::Place(_) => Fate::Close,
                    };
                    if withheld {
                        break 'attempt Missed::Again;
                    }
                    return Ok(Settled::Fate(fate));
                }
                Err(failure) => failure,
            };
            let pooled = match used {
                Used::Pooled(pooled) => pooled,
                Used::Lane(_, lease) | Used::Place(lease) => {
                    break 'attempt path.missed_by_lane(&lease, &attempt, asked.method, failure, unsent);
                }
            };
            // The service closed the connection just when it was used again: nothing says that it saw the request.
            let went_stale = pooled.reused && !attempt.has_answered() && failure.is_end_of_connection();
            if went_stale {
                attempt.pool().learn_death(pooled.idle_ns, path.shard.clock.now());
            }
            let may_be_seen_twice = asked.method != Method::Other || unsent;
            if went_stale && may_be_seen_twice && path.replays_after_death() {
                Missed::Again
            } else if asked.tunnel.is_some() {
                Missed::Failed(failure)
            } else {
                path.missed(failure, unsent)
            }
        };
        match missed {
            Missed::Failed(failure) => return Err(failure),
            Missed::Again if path.is_to_pause() => Box::pin(path.pause()).await,
            Missed::Again => {}
        }
    }
}

/// A request whose body is still coming: again where nothing of it is gone.
async fn streamed(
    path: &Path<'_>,
    downstream: &mut Downstream,
    asked: &Asked,
    head: &mut Vec<u8>,
) -> Result<Fate, Failure> {
    loop {
        match stream(path, downstream, asked, head).await {
            Ok(fate) => return Ok(fate),
            Err(Missed::Failed(failure)) => return Err(failure),
            Err(Missed::Again) => path.pause().await,
        }
    }
}

/// One attempt of that: both directions at once, each with its own end.
async fn stream(
    path: &Path<'_>,
    downstream: &mut Downstream,
    asked: &Asked,
    head: &mut Vec<u8>,
) -> Result<Fate, Missed> {
    let Path { shard, account, service, .. } = path;
    account.stays_alone.set(true);
    let (attempt, to) = path.connect(false).await.map_err(|failure| path.missed(failure, false))?;
    path.tell_attempt(head, 0);
    let mut pooled = match to {
        To::H1(pooled) => pooled,
        To::H2(lease) => {
            return over_h2::carry(path, downstream, asked, head, None, &attempt, &lease).await;
        }
    };
    let began = shard.clock.now();
    let (request_sent, over) = (Cell::new(false), Cell::new(false));
    attempt.uploads();
    // The head of the request stays where it is, for the log; what is behind it is the body's.
    let behind = downstream.input.len() - asked.head_len;
    let taken =
        if behind <= Buffers::SMALL { shard.buffers.take_small() } else { shard.buffers.take_large() };
    let mut input = taken.ok_or(Failure::local(Stage::Request, Cause::Overloaded))?;
    let mut kept = Kept::new(path, asked.framing, path.account.repeats.get());
    kept.read(&downstream.input[asked.head_len..]);
    input.extend_from_slice(&downstream.input[asked.head_len..]);
    downstream.input.truncate(asked.head_len);
    let (caller, origin) = (downstream.connection.control(), pooled.connection.control());
    let (there_result, back_result, back_was_first) = {
        let there = request::Way {
            shard,
            asked,
            account,
            service: &service.spec,
            deadline: path.deadline,
            sent: &request_sent,
            over: &over,
        };
        let back = response::Way { path, asked, request_sent: &request_sent, attempt: &attempt };
        let Connection { reader, writer, .. } = &mut downstream.connection;
        let Connection { reader: upstream_reader, writer: upstream_writer, .. } = &mut pooled.connection;
        let there = pin!(request::carry(&there, reader, upstream_writer, head, &mut input, &mut kept));
        let back = pin!(response::carry(&back, upstream_reader, writer));
        let both = pin!(both(there, back, |first| match first {
            // Sent: now the service has its time to answer, whatever interim responses there were. A response that is
            // on its way has its own time.
            First::There(Ok(())) if account.status.get() == 0 => {
                attempt.uploaded(shard.clock.now());
                origin.read_by(shard.clock.now().saturating_add(path.patience_ns()));
            }
            First::There(Ok(())) => {}
            // A service that takes no more may have answered already; it will not take forever.
            First::There(Err(failure)) if failure.side == Side::Upstream => {
                origin.read_by(shard.clock.now().saturating_add(path.patience_ns()));
            }
            // The caller is gone or talks nonsense: nothing of this may look whole to the service.
            First::There(Err(_)) => origin.shutdown(),
            // The response is whole (or has failed) and the rest of the request is of no use to anybody.
            First::Back => {
                over.set(true);
                caller.cancel_read();
                origin.shutdown();
            }
        }));
        let idle = asked.view.snapshot.timeouts.stream_idle;
        let hurry = || {
            over.set(true);
            caller.cancel_read();
            origin.read_by(0);
            caller.shutdown_if(account.status.get() != 0);
        };
        idle::unless_idle(path, idle, &request_sent, &[&caller, &origin], hurry, both).await
    };
    downstream.input.append(&mut input);
    shard.buffers.give(input);
    let is_late = !request_sent.get() && shard.clock.now() >= path.deadline;
    let failure =
        back_result.as_ref().err().map(|back| judge::of_both(&there_result, *back, back_was_first, is_late));
    path.judge(&attempt, began, failure.as_ref());
    let missed = match (back_result, failure) {
        (Ok(done), None) if done.withheld => {
            // Its connection is of no more use where the request was not whole.
            if there_result.is_ok() && !back_was_first {
                path.done(pooled, &attempt, &done);
            }
            Missed::Again
        }
        (Ok(done), None) if there_result.is_ok() && !back_was_first => {
            return Ok(path.done(pooled, &attempt, &done));
        }
        // Answered before the request was whole: neither connection can be used again (the service's has been ended,
        // even if the last of the request got through just then).
        (Ok(_), None) => return Ok(Fate::Linger),
        (_, Some(failure)) | (Err(failure), None) => {
            let went_stale = pooled.reused && !attempt.has_answered() && failure.is_end_of_connection();
            if went_stale {
                attempt.pool().learn_death(pooled.idle_ns, shard.clock.now());
            }
            if went_stale && asked.method != Method::Other && path.replays_after_death() {
                Missed::Again
            } else {
                path.missed(failure, false)
            }
        }
    };
    Err(kept.put_back(missed, &mut downstream.input, asked.head_len))
}

impl Path<'_> {
    /// Whether there is time left for what goes to the caller next. When that is cut at the deadline, the caller has an end
    /// without an answer, or the beginning of one.
    ///
    /// # Errors
    /// That the time is up.
    fn in_time(&self) -> Result<(), Failure> {
        match self.shard.clock.now() < self.deadline {
            true => Ok(()),
            false => Err(Failure::upstream(Stage::Response, Cause::Timeout)),
        }
    }

    /// The exchange is over and all is well: what becomes of the two connections.
    fn done(&self, pooled: Pooled, attempt: &Attempt, done: &Answered) -> Fate {
        if done.reusable {
            let limits = &self.service.spec.pool;
            attempt.pool().checkin(pooled, limits, done.idle_seconds.map(u64::from), self.shard.clock.now());
        }
        if done.close { Fate::Close } else { Fate::Again }
    }
}

/// Answers a request that the service did not answer, if nothing of a response was sent; else the caller must see that
/// the response is cut.
async fn answer(
    shard: &Rc<Shard>,
    downstream: &mut Downstream,
    asked: &Asked,
    account: &Account,
    service: Option<&Rc<Service>>,
    failure: Option<Failure>,
    body_read: bool,
) -> Fate {
    if account.status.get() != 0 {
        return if response::needs_reset(asked) { Fate::Reset } else { Fate::Close };
    }
    // A caller that is gone needs no answer.
    let gone = failure.is_some_and(|f| {
        f.side == Side::Downstream && matches!(f.cause, Cause::Closed | Cause::Reset | Cause::StreamReset)
    });
    if gone {
        return Fate::Close;
    }
    // What is not known to be read whole cannot be followed by another request.
    let hoped = asked.tunnel.is_some() && downstream.connection.has_unread();
    let close = !asked.keep_alive || !body_read || hoped || shard.is_draining();
    let told = Told {
        service: service.map(|s| &*s.spec.name),
        failure_field: asked.view.snapshot.forwarding.failure_header,
        head: asked.method == Method::Head,
        close,
        http10: asked.version == Version::Http10,
        quota: asked.turn.as_ref().and_then(|turn| turn.exceeded()),
        grpc: failure.and_then(|failure| {
            let dialect = dialect(downstream, asked, account)?;
            Some((dialect, account.grpc_code(failure)))
        }),
    };
    let Some(out) = compose(shard, downstream, asked, account, failure, told) else { return Fate::Close };
    if !tell(shard, downstream, out).await {
        return Fate::Close;
    }
    match (close, body_read) {
        (false, _) => Fate::Again,
        (true, true) => Fate::Close,
        (true, false) => Fate::Linger,
    }
}

/// How to tell a gRPC caller of what was not answered by a service: gRPC between two proxies where a hop speaks HTTP/1.1, or
/// gRPC-Web.
fn dialect(downstream: &Downstream, asked: &Asked, account: &Account) -> Option<Dialect> {
    let dialect = Dialect::of_head(downstream.input.get(..asked.head_len)?)?;
    if dialect != Dialect::Native && !asked.view.snapshot.translates_grpc_web(&downstream.listener) {
        return None;
    }
    account.begin_grpc();
    Some(dialect)
}

/// Writes a response that is made here: of a failure, of the route, or to OPTIONS.
fn compose(
    shard: &Shard,
    downstream: &Downstream,
    asked: &Asked,
    account: &Account,
    failure: Option<Failure>,
    told: Told<'_>,
) -> Option<Buffer> {
    let mut out = shard.buffers.take_small()?;
    let turn = asked.turn.as_ref();
    match failure {
        Some(failure) => {
            respond::write_failure(failure, told, &shard.clock, &mut out);
            account.status.set(respond::status(failure, told));
        }
        None => match turn.and_then(|turn| turn.answer(dialect(downstream, asked, account))) {
            Some((parts, body)) => {
                respond::write_made(&parts, &body, told, &shard.clock, &mut out);
                account.note_trailers(&parts.headers);
                account.status.set(parts.status.as_u16());
            }
            None => {
                respond::write_options(told, &shard.clock, &mut out);
                account.status.set(200);
            }
        },
    }
    if let Some(turn) = turn {
        turn.apply_to_response(&mut out, 0, account.status.get());
    }
    Some(out)
}

/// Answers bytes that are no request that can be served, and ends the connection.
async fn refuse(
    shard: &Rc<Shard>,
    downstream: &mut Downstream,
    failure: Failure,
    (started, waited_us): (u64, u32),
) -> Fate {
    let account = Account::new(started, waited_us);
    let view = shard.view();
    if let Some(rules) = &view.snapshot.tracing {
        let shown = Shown::of(downstream, None);
        if !shown.method.is_empty() {
            account.begin_trace(shard, rules, Said::Raw(&downstream.input), &shown);
        }
    }
    let gone = matches!(failure.cause, Cause::Closed | Cause::Reset);
    let failure = blamed(shard, &account, failure);
    if !gone {
        account.status.set(failure.status());
        let told = Told {
            service: None,
            failure_field: view.snapshot.forwarding.failure_header,
            // Also a HEAD that is refused gets no body (RFC 9110 §9.3.2).
            head: downstream.input.trim_ascii_start().starts_with(b"HEAD "),
            close: true,
            http10: false,
            quota: None,
            grpc: None,
        };
        if let Some(mut out) = shard.buffers.take_small() {
            respond::write_failure(failure, told, &shard.clock, &mut out);
            tell(shard, downstream, out).await;
        }
    }
    account.close(shard, &view, &Shown::of(downstream, None), None, Some(failure));
    if gone { Fate::Close } else { Fate::Linger }
}

/// When the drain has lasted long enough, every wait ends, which looks like somebody's fault but is ours.
/// So it is when nothing has moved for too long.
fn blamed(shard: &Shard, account: &Account, failure: Failure) -> Failure {
    let cause = match failure.cause {
        _ if shard.is_cut() => Cause::Draining,
        _ if account.was_idle.get() => Cause::StreamIdle,
        _ => return failure,
    };
    Failure::local(failure.stage, cause)
}

/// Sends a response made here; whether it could be sent.
async fn tell(shard: &Shard, downstream: &mut Downstream, mut out: Buffer) -> bool {
    let stall = shard.view().snapshot.timeouts.body_stall;
    let patience = Patience { clock: &shard.clock, stall, until: NEVER };
    let result = downstream.connection.writer.write_all(&mut out, 0, patience).await;
    shard.buffers.give(out);
    result.is_ok()
}

/// Which direction of a streamed exchange ended first, and how where that matters.
enum First {
    There(Result<(), Failure>),
    Back,
}

/// Runs both directions to their end: no operation is dropped in flight. `first` is told of the one that ends before
/// the other, and may hurry the other. Whether the way back was the first stands last.
async fn both<T>(
    mut there: Pin<&mut impl Future<Output = Result<(), Failure>>>,
    mut back: Pin<&mut impl Future<Output = T>>,
    first: impl FnOnce(First),
) -> (Result<(), Failure>, T, bool) {
    let mut there_result = None;
    let mut back_result = None;
    poll_fn(|cx| {
        if let Poll::Ready(result) = there.as_mut().poll(cx) {
            there_result = Some(result);
        }
        if let Poll::Ready(result) = back.as_mut().poll(cx) {
            back_result = Some(result);
        }
        if there_result.is_some() || back_result.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    match (there_result, back_result) {
        (Some(there_result), Some(back_result)) => (there_result, back_result, false),
        (Some(there_result), None) => {
            first(First::There(there_result));
            (there_result, back.await, false)
        }
        (None, Some(back_result)) => {
            first(First::Back);
            (there.await, back_result, true)
        }
        (None, None) => unreachable!("poll_fn ends when one of them has"),
    }
}

/// What a fault of I/O is called in a failure.
fn cause(fault: Fault) -> Cause {
    match fault {
        Fault::Timeout => Cause::Timeout,
        Fault::Closed | Fault::Cancelled => Cause::Closed,
        Fault::Reset | Fault::Unsent => Cause::Reset,
        Fault::Alert => Cause::HandshakeRefused,
        Fault::Refused => Cause::Refused,
        Fault::Unreachable => Cause::Unreachable,
        Fault::Exhausted => Cause::Overloaded,
        Fault::Untaken => Cause::StreamRefused,
        Fault::Going => Cause::GoingAway,
    }
}

#[cfg(test)]
#[path = "proxy_test.rs"]
mod tests;
