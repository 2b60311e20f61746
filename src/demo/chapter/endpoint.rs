//! The endpoints of a chapter: small HTTP servers on one thread, each of which does as it is told at the moment: works for a
//! while, has so many places, answers with a failure, or never. They know nothing of the proxy. An answer names the endpoint
//! by its number.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::{Semaphore, oneshot};

use crate::demo::workload;

/// What an endpoint does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conduct {
    /// Works for a time between these, ms, and answers 200.
    Well(u64, u64),
    /// Works as long, and gives each so-many-th request this status; 1: every one.
    Fails {
        /// How long it works, ms.
        work_ms: (u64, u64),
        /// The status.
        status: u16,
        /// Of so many requests one.
        one_of: u64,
    },
    /// Takes it and never answers.
    Hangs,
}

impl fmt::Display for Conduct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let works = |(from, to): (u64, u64)| match from == to {
            true => format!("works {from} ms"),
            false => format!("works {from} to {to} ms"),
        };
        match *self {
            Self::Well(from, to) => f.write_str(&works((from, to))),
            Self::Fails { work_ms, status, one_of: 1 } => {
                write!(f, "{}, answers {status}", works(work_ms))
            }
            Self::Fails { work_ms, status, one_of } => {
                write!(f, "{}, answers {status} to one of {one_of}", works(work_ms))
            }
            Self::Hangs => f.write_str("never answers"),
        }
    }
}

/// Endpoints that serve. Dropped, they end.
pub(super) struct Endpoints {
    all: Vec<Arc<Endpoint>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Endpoint {
    number: usize,
    address: SocketAddr,
    conduct: Mutex<Conduct>,
    places: Option<Semaphore>,
    arrived: AtomicU64,
    /// At work at present, and waiting for a place.
    at_work: AtomicU64,
    waits: AtomicU64,
    /// Work that was done to its end.
    done: AtomicU64,
    done_us: AtomicU64,
}

/// What an endpoint has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Requests since the start.
    pub arrived: u64,
    /// Those that it works on at present.
    pub at_work: u64,
    /// Those that wait for a place at present.
    pub waits: u64,
    /// Those that it has done with since the start.
    pub done: u64,
    /// How long it has worked on those, in all.
    pub worked: Duration,
}

impl Endpoints {
    /// So many, that do well, with so many places each if that is bounded.
    ///
    /// # Errors
    /// When there are no free ports or file descriptors, or no thread is to be had.
    pub(super) fn start(count: usize, places: Option<usize>, conduct: Conduct) -> io::Result<Self> {
        let bound: Vec<(TcpListener, SocketAddr)> =
            (0..count).map(|_| workload::bind()).collect::<io::Result<_>>()?;
        let mut all = Vec::new();
        let mut listeners = Vec::new();
        for (number, (listener, address)) in bound.into_iter().enumerate() {
            let endpoint = Arc::new(Endpoint {
                number,
                address,
                conduct: Mutex::new(conduct),
                places: places.map(Semaphore::new),
                arrived: AtomicU64::new(0),
                at_work: AtomicU64::new(0),
                waits: AtomicU64::new(0),
                done: AtomicU64::new(0),
                done_us: AtomicU64::new(0),
            });
            all.push(Arc::clone(&endpoint));
            listeners.push((endpoint, listener));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("endpoints".into()).spawn(move || {
            runtime.block_on(async {
                for (endpoint, listener) in listeners {
                    tokio::spawn(serve(endpoint, listener));
                }
                let _ = stopped.await;
            });
        })?;
        Ok(Self { all, stop: Some(stop), thread: Some(thread) })
    }

    /// Where they are, by number.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.all.iter().map(|endpoint| endpoint.address).collect()
    }

    /// What each does from now on.
    pub(super) fn conduct(&self, all: &[Conduct]) {
        for (endpoint, conduct) in self.all.iter().zip(all) {
            *endpoint.conduct.lock().unwrap_or_else(PoisonError::into_inner) = *conduct;
        }
    }

    /// What each has seen.
    pub(super) fn seen(&self) -> Vec<Seen> {
        let number = |value: &AtomicU64| value.load(Ordering::Relaxed);
        self.all
            .iter()
            .map(|endpoint| Seen {
                arrived: number(&endpoint.arrived),
                at_work: number(&endpoint.at_work),
                waits: number(&endpoint.waits),
                done: number(&endpoint.done),
                worked: Duration::from_micros(number(&endpoint.done_us)),
            })
            .collect()
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed.
            let _ = thread.join();
        }
    }
}

async fn serve(endpoint: Arc<Endpoint>, listener: TcpListener) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: later is better than a loop.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let endpoint = Arc::clone(&endpoint);
        tokio::spawn(async move {
            let service =
                service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(endpoint.answer().await) });
            // A caller that goes away drops the request that it had: its place is free again.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Endpoint {
    async fn answer(&self) -> Response<Full<Bytes>> {
        let nth = self.arrived.fetch_add(1, Ordering::Relaxed);
        let conduct = *self.conduct.lock().unwrap_or_else(PoisonError::into_inner);
        let (work_ms, status) = match conduct {
            Conduct::Well(from, to) => ((from, to), 200),
            Conduct::Fails { work_ms, status, one_of } => {
                (work_ms, if nth.is_multiple_of(one_of) { status } else { 200 })
            }
            Conduct::Hangs => std::future::pending().await,
        };
        let _place = match &self.places {
            Some(places) => {
                let _waits = Present::at(&self.waits);
                places.acquire().await.ok()
            }
            None => None,
        };
        let _at_work = Present::at(&self.at_work);
        let began = Instant::now();
        tokio::time::sleep(Duration::from_millis(fastrand::u64(work_ms.0..=work_ms.1))).await;
        self.done.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.done_us.fetch_add(took, Ordering::Relaxed);
        let mut response = Response::new(Full::new(Bytes::from(self.number.to_string())));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response
    }
}

/// Counts itself for as long as it lives: a request may be dropped at any moment.
struct Present<'n>(&'n AtomicU64);

impl<'n> Present<'n> {
    fn at(number: &'n AtomicU64) -> Self {
        number.fetch_add(1, Ordering::Relaxed);
        Self(number)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::call::Caller;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn an_endpoint_does_as_it_is_told_and_says_who_it_is() {
        let endpoints = Endpoints::start(2, None, Conduct::Well(0, 0)).unwrap();
        let caller = Caller::new(endpoints.addresses()[1], "shop");
        runtime().block_on(async {
            let answer = caller.call(None).await.unwrap();
            assert_eq!((answer.status, answer.body.as_slice()), (200, &b"1"[..]));
            let fails = Conduct::Fails { work_ms: (0, 0), status: 503, one_of: 2 };
            endpoints.conduct(&[Conduct::Hangs, fails]);
            let mut statuses = Vec::new();
            for _ in 0..4 {
                statuses.push(caller.call(None).await.unwrap().status);
            }
            statuses.sort_unstable();
            assert_eq!(statuses, [200, 200, 503, 503]);
            let seen = endpoints.seen();
            assert_eq!((seen[0].arrived, seen[1].arrived, seen[1].done), (0, 5, 5));
        });
    }

    #[test]
    fn who_finds_no_place_waits_and_who_goes_away_leaves_none_behind() {
        let endpoints = Endpoints::start(1, Some(1), Conduct::Hangs).unwrap();
        // So long that nobody is done.
        endpoints.conduct(&[Conduct::Well(3_600_000, 3_600_000)]);
        let to = endpoints.addresses()[0];
        let until = |wanted: (u64, u64)| {
            while (endpoints.seen()[0].at_work, endpoints.seen()[0].waits) != wanted {
                std::thread::yield_now();
            }
        };
        runtime().block_on(async {
            let calls: Vec<_> = (0..2)
                .map(|_| tokio::spawn(async move { Caller::new(to, "shop").call(None).await.is_ok() }))
                .collect();
            // Both have been sent once these have had their turns.
            while endpoints.seen()[0].arrived < 2 {
                tokio::task::yield_now().await;
            }
            until((1, 1));
            for call in &calls {
                call.abort();
            }
            for call in calls {
                assert!(call.await.unwrap_err().is_cancelled());
            }
            until((0, 0));
        });
    }

    #[test]
    fn conducts_are_told_in_words() {
        let fails = |one_of| Conduct::Fails { work_ms: (4, 8), status: 503, one_of }.to_string();
        assert_eq!(Conduct::Well(80, 80).to_string(), "works 80 ms");
        assert_eq!(fails(10), "works 4 to 8 ms, answers 503 to one of 10");
        assert_eq!(fails(1), "works 4 to 8 ms, answers 503");
    }
}
