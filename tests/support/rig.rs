//! Mesh and origin together, and the three things that most tests say: this is refused, this is taken, and in the end
//! the service has seen this.

use super::End;
use super::client::Client;
use super::mesh::{Config, Mesh, Seen};
use super::origin::Origin;
use super::wire::{Message, shown};

/// A request that is put behind every refused one: it must never reach the service.
pub const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: smuggled\r\n\r\n";

pub struct Rig {
    pub mesh: Mesh,
    pub origin: Origin,
    config: Config,
}

/// What the service saw in the end, and what the shard counted.
pub struct Done {
    /// Whole requests, connection by connection.
    pub requests: Vec<Message>,
    /// How many connections there were.
    pub connections: usize,
    pub seen: Seen,
}

impl Rig {
    /// Before a service that answers everything with 200.
    pub fn plain() -> Self {
        Self::before(Origin::plain())
    }

    pub fn before(origin: Origin) -> Self {
        Self::before_with(origin, |config| config)
    }

    /// Before a service that answers everything with 200, with more configuration.
    pub fn with(more: impl FnOnce(Config) -> Config) -> Self {
        Self::before_with(Origin::plain(), more)
    }

    pub fn before_with(origin: Origin, more: impl FnOnce(Config) -> Config) -> Self {
        let config = more(Config::new(&[&origin]));
        Self { mesh: config.start(), origin, config }
    }

    /// Changes the configuration.
    pub fn reload(&mut self, change: impl FnOnce(Config) -> Config) {
        self.config = change(self.config.clone());
        self.mesh.reload(&self.config);
    }

    pub fn client(&self) -> Client {
        self.mesh.client()
    }

    /// Sends bytes, and behind them a request that must not be served: they are refused with this status and cause,
    /// and the connection ends.
    #[track_caller]
    pub fn refused(&self, bytes: impl AsRef<[u8]>, status: u16, cause: &str) {
        self.refused_as(bytes, &[(status, cause)]);
    }

    /// As [`Rig::refused`], where several answers are right.
    #[track_caller]
    pub fn refused_as(&self, bytes: impl AsRef<[u8]>, right: &[(u16, &str)]) {
        let mut client = self.client();
        let mut bytes = bytes.as_ref().to_vec();
        bytes.extend_from_slice(SMUGGLED.as_bytes());
        client.send(&bytes);
        assert_refusal(&mut client, &bytes, right);
    }

    /// Sends a request that is served: the response.
    #[track_caller]
    pub fn served(&self, bytes: impl AsRef<[u8]>, pieces: usize) -> Message {
        let bytes = bytes.as_ref();
        let mut client = self.client();
        client.send_in_pieces(bytes, pieces);
        let response = client.response();
        assert_eq!(response.status(), 200, "{}: {response:?}", shown(bytes));
        response
    }

    /// Sends a request that is served: what the service saw of it.
    #[track_caller]
    pub fn forwarded(&self, bytes: impl AsRef<[u8]>) -> Message {
        self.forwarded_in_pieces(bytes, usize::MAX)
    }

    /// As [`Rig::forwarded`], sent in pieces of that size.
    #[track_caller]
    pub fn forwarded_in_pieces(&self, bytes: impl AsRef<[u8]>, pieces: usize) -> Message {
        let before: Vec<usize> = self.origin.recorded().iter().map(|r| r.requests().len()).collect();
        self.served(bytes, pieces);
        self.origin.wait_requests(before.iter().sum::<usize>() + 1);
        for (number, recorded) in self.origin.recorded().iter().enumerate() {
            let requests = recorded.requests();
            if requests.len() > before.get(number).copied().unwrap_or_default() {
                return requests.last().cloned().unwrap();
            }
        }
        unreachable!("one more request has come")
    }

    /// Ends both, in order, and gives what the service saw.
    #[track_caller]
    pub fn done(self) -> Done {
        let Self { mesh, origin, .. } = self;
        let seen = mesh.finish();
        let recorded = origin.settle();
        recorded.iter().for_each(super::origin::Recorded::assert_sound);
        Done {
            requests: recorded.iter().flat_map(super::origin::Recorded::requests).collect(),
            connections: recorded.len(),
            seen,
        }
    }

    /// Ends both: the service must not have seen one whole request.
    #[track_caller]
    pub fn done_unseen(self) -> Seen {
        let done = self.done();
        assert_eq!(done.requests, [], "whole requests have reached the service");
        done.seen
    }
}

/// The answer to something refused: the right status, the right cause, the end of the connection, and nothing else.
#[track_caller]
pub fn assert_refusal(client: &mut Client, bytes: &[u8], right: &[(u16, &str)]) {
    let response = match client.try_response(false) {
        Ok(response) => response,
        Err(cut) => panic!("{}: no answer: {cut:?}", shown(bytes)),
    };
    let label = response.one("x-ringmesh-failure").unwrap_or_default();
    let is_right = right
        .iter()
        .any(|(status, cause)| response.status() == *status && label.ends_with(&format!(".{cause}")));
    assert!(is_right, "{}: {} {label}, not {right:?}", shown(bytes), response.status());
    assert_eq!(response.one("connection").as_deref(), Some("close"), "{}", shown(bytes));
    assert_eq!(client.end(), End::Fin, "{}", shown(bytes));
}
