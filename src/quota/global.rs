//! Limits that several proxies share: which of them a request is asked about, and what the service that counts says. Pure; called
//! where a head is understood ([`plan`]) and by `proxy::global`, which carries the question there and the answer back.
//!
//! A limit is asked by its descriptor, a list of entries in the order in which they are configured. One whose field the request does not
//! have is not asked. All limits of a route that go to the same service and domain are asked together. What is asked is bounded
//! by the configuration and the head; what is answered is bounded here and refused where it is more.
//!
//! Refuses to count anything that decides: it is the service that does.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderName;
use prost::Message;
use smallvec::SmallVec;

use super::TooSoon;
use super::messages::{Descriptor, DescriptorStatus, Field, KeyValue, Request, Response, Value64};
use crate::authorize::{Call, Fields};
use crate::route::changes::is_free;

/// One limit. Outlives a reload that does not change it, so that what was counted goes on.
#[derive(Debug)]
pub struct Global {
    /// What was declared.
    pub spec: Spec,
    /// What has come of it.
    pub counts: Counts,
}

/// A limit as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its name in log, metrics and answers.
    pub name: Arc<str>,
    /// Who counts, by name.
    pub service: Arc<str>,
    /// Which of the service's sets of limits.
    pub domain: Arc<str>,
    /// What the service tells requests apart by.
    pub entries: Box<[Entry]>,
    /// For how many a request counts.
    pub hits: u32,
    /// How long an answer is waited for, ns.
    pub timeout_ns: u64,
    /// What becomes of requests that the service says nothing of.
    pub on_failure: OnFailure,
}

/// One part of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What the service knows it by.
    pub key: Box<str>,
    /// Where its value comes from.
    pub of: Of,
}

/// What a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Of {
    /// The route's name.
    Route,
    /// Who the handshake proved the caller to be; empty for those who have not.
    Identity,
    /// The connection's own source address, of IPv6 the first 64 bits: a host has all of those below.
    Source,
    /// The first line of a field. Without it the limit is not asked.
    Header(Box<str>),
    /// The configuration.
    Constant(Box<str>),
}

/// What becomes of a request that nobody says anything of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// It goes on.
    #[default]
    Pass,
    /// It is refused.
    Refuse,
}

/// Why nothing was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is no endpoint, none that can be reached, or none that is used.
    Unreachable,
    /// The service has as much to do as it may be given.
    NotAdmitted,
    /// No answer in time.
    Timeout,
    /// The answer broke off.
    Broken,
    /// It answered that it cannot.
    Status,
    /// It is no answer, or more than there may be of one.
    Garbage,
}

/// What has come of a limit, for control to read.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests that the service let pass.
    pub passed: AtomicU64,
    /// Requests that it refused.
    pub refused: AtomicU64,
    /// Requests that it said nothing of, by [`Why`].
    pub failed: [AtomicU64; Why::ALL.len()],
}

/// Limits of a route that are asked together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Index of the service.
    pub service: u32,
    /// Indices into all global limits; of one domain.
    pub limits: Box<[u32]>,
}

/// What is to be asked about one request: one call each.
#[derive(Debug)]
pub struct Question {
    /// Index of the service.
    pub service: u32,
    /// When it has been long enough: the longest of them, ns.
    pub timeout_ns: u64,
    /// The message.
    pub message: Vec<u8>,
    /// The limits, in the order of the descriptors.
    pub limits: SmallVec<[Arc<Global>; 2]>,
}

/// What was answered.
#[derive(Debug, Default)]
pub struct Answer {
    /// By which limit it comes too soon, if it does.
    pub too_soon: Option<TooSoon>,
    /// Fields for the request.
    pub to_request: Vec<(HeaderName, Vec<u8>)>,
    /// Fields for the response.
    pub to_response: Vec<(HeaderName, Vec<u8>)>,
}

impl Global {
    /// Nothing counted.
    pub fn new(spec: Spec) -> Self {
        Self { spec, counts: Counts::default() }
    }
}

impl Of {
    /// Octets of a value: what is beyond is cut, so that a long field is no way around a limit. As much as a key-value store takes well.
    pub const VALUE_BYTES_MAX: usize = 1024;

    /// Its value for a request; `None` where it has none. Octets that are no UTF-8, which a message cannot carry, become U+FFFD.
    pub fn value<F: Fields>(&self, route: &str, call: &Call<'_, F>) -> Option<String> {
        Some(match self {
            Self::Route => route.into(),
            Self::Identity => call.caller.peer.map_or_else(String::new, |id| id.as_str().into()),
            Self::Source => source(call.caller.source),
            Self::Header(name) => {
                let line = call.fields.lines(name).next()?;
                let mut value = String::from_utf8_lossy(line).into_owned();
                value.truncate(value.floor_char_boundary(Self::VALUE_BYTES_MAX));
                value
            }
            Self::Constant(value) => value.as_ref().into(),
        })
    }
}

fn source(address: IpAddr) -> String {
    let mut text = String::with_capacity(40);
    let IpAddr::V6(address) = address.to_canonical() else {
        let _ = write!(text, "{}", address.to_canonical());
        return text;
    };
    let _ = write!(text, "{}", std::net::Ipv6Addr::from_bits(address.to_bits() >> 64 << 64));
    text
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Unreachable, Self::NotAdmitted, Self::Timeout, Self::Broken, Self::Status, Self::Garbage];

    /// The word in log and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::NotAdmitted => "not_admitted",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Status => "status",
            Self::Garbage => "garbage",
        }
    }
}

/// The values of a limit's entries, with their keys, and whether it is asked at all: where a value is missing it is not.
pub fn descriptor<'g, F: Fields>(
    global: &'g Global,
    route: &str,
    call: &Call<'_, F>,
) -> Option<Vec<(&'g str, String)>> {
    global.spec.entries.iter().map(|Entry { key, of }| Some((&**key, of.value(route, call)?))).collect()
}

/// What there is to ask about a request, in the order of the files.
pub fn plan<F: Fields>(
    globals: &[Arc<Global>],
    asks: &[Ask],
    route: &str,
    call: &Call<'_, F>,
) -> Option<Box<[Question]>> {
    let questions: Vec<Question> = asks
        .iter()
        .filter_map(|ask| {
            let limits = || ask.limits.iter().filter_map(|id| globals.get(*id as usize));
            let asked = limits().filter_map(|limit| Some((limit, descriptor(limit, route, call)?)));
            question(ask.service, asked)
        })
        .collect();
    (!questions.is_empty()).then(|| questions.into())
}

fn question<'g>(
    service: u32,
    asked: impl Iterator<Item = (&'g Arc<Global>, Vec<(&'g str, String)>)>,
) -> Option<Question> {
    let (mut limits, mut descriptors) = (SmallVec::<[Arc<Global>; 2]>::new(), Vec::new());
    for (limit, entries) in asked {
        let entries = entries.into_iter().map(|(key, value)| KeyValue { key: key.into(), value }).collect();
        descriptors.push(Descriptor { entries, hits_addend: None });
        limits.push(Arc::clone(limit));
    }
    let first = &limits.first()?.spec;
    let mut request = Request { domain: first.domain.as_ref().into(), descriptors, hits_addend: first.hits };
    if limits.iter().any(|limit| limit.spec.hits != first.hits) {
        // What is said of each goes before what is said of all; services that are older know the latter only.
        for (descriptor, limit) in request.descriptors.iter_mut().zip(&limits) {
            descriptor.hits_addend = Some(Value64 { value: limit.spec.hits.into() });
        }
    }
    let timeout_ns = limits.iter().map(|limit| limit.spec.timeout_ns).max().unwrap_or_default();
    Some(Question { service, timeout_ns, message: request.encode_to_vec(), limits })
}

impl Question {
    /// Octets of an answer. A hundred descriptors with their limits are less than 8 KiB.
    pub const ANSWER_BYTES_MAX: usize = 64 * 1024;
    /// Fields of an answer for either message, and their octets: as many as a route may set.
    pub const FIELDS_MAX: usize = 32;
    /// See [`Self::FIELDS_MAX`].
    pub const FIELDS_BYTES_MAX: usize = 8 * 1024;

    /// Reads an answer, and counts it.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(&self, message: &[u8]) -> Result<Answer, Why> {
        let garbage = |_| Why::Garbage;
        let Response { overall_code, statuses, response_fields, request_fields } =
            Response::decode(message).map_err(garbage)?;
        let is_over = match overall_code {
            Response::OK => false,
            Response::OVER_LIMIT => true,
            _ => return Err(Why::Garbage),
        };
        let to_request = fields(request_fields)?;
        let to_response = fields(response_fields)?;
        let too_soon = is_over.then(|| self.too_soon(&statuses));
        for (n, limit) in self.limits.iter().enumerate() {
            // As with limits of our own: what one refuses is counted for that one only.
            match &too_soon {
                None => limit.counts.passed.fetch_add(1, Ordering::Relaxed),
                Some((refusing, _)) if *refusing == n => limit.counts.refused.fetch_add(1, Ordering::Relaxed),
                Some(_) => continue,
            };
        }
        Ok(Answer { too_soon: too_soon.map(|(_, too_soon)| too_soon), to_request, to_response })
    }

    /// Of those limits that it meets the one that lasts longest, and what is told of that.
    fn too_soon(&self, statuses: &[DescriptorStatus]) -> (usize, TooSoon) {
        let met = statuses.iter().enumerate().take(self.limits.len());
        let met = met.filter(|(_, status)| status.code == Response::OVER_LIMIT);
        let longest = met.max_by_key(|(n, status)| (status.wait_seconds(), std::cmp::Reverse(*n)));
        let (n, status) = longest.map_or((0, None), |(n, status)| (n, Some(status)));
        let name = Arc::clone(&self.limits[n].spec.name);
        let policy = status.and_then(|status| status.current_limit.as_ref()?.policy());
        let wait_seconds = status.and_then(DescriptorStatus::wait_seconds);
        (n, TooSoon { name, policy, wait_seconds })
    }

    /// Counts that nothing was said; the first limit that has the request refused for that, if there is one.
    pub fn failed(&self, why: Why) -> Option<&Arc<Global>> {
        for limit in &self.limits {
            limit.counts.failed[why as usize].fetch_add(1, Ordering::Relaxed);
        }
        self.limits.iter().find(|limit| limit.spec.on_failure == OnFailure::Refuse)
    }
}

/// Fields that are to be added; those that frame a message or concern one hop are left out, as everywhere.
fn fields(told: Vec<Field>) -> Result<Vec<(HeaderName, Vec<u8>)>, Why> {
    let octets = |field: &Field| field.key.len() + field.value.len() + field.raw_value.len();
    if told.len() > Question::FIELDS_MAX
        || told.iter().map(octets).sum::<usize>() > Question::FIELDS_BYTES_MAX
    {
        return Err(Why::Garbage);
    }
    let named = told.into_iter().filter_map(|Field { key, value, raw_value }| {
        let name = HeaderName::from_bytes(key.as_bytes()).ok()?;
        let value = if value.is_empty() { raw_value } else { value.into_bytes() };
        is_free(name.as_str()).then_some((name, value))
    });
    Ok(named.collect())
}

#[cfg(test)]
#[path = "global_test.rs"]
mod tests;
