//! The access log's line, made by the shard that served the exchange: into a chunk of memory that control writes out.
//!
//! Never waits: when control is behind and no chunk is free, the line is dropped and counted. What callers sent is
//! escaped, so that no line can be forged; long targets are cut.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use super::recorder::Ended;
use super::{DEFAULT_RULE, OVERFLOW_RULE};
use crate::authorize::{Decision, Policy, Verdict};
use crate::identity::SpiffeId;
use crate::shard::clock::Clock;
use crate::shard::link::Link;
use crate::snapshot::AccessLogFormat;
use crate::trace::propagation::TraceId;
use crate::upstream::spec::Address;

/// A shard's part of the access log.
pub struct AccessLog {
    chunk: Vec<u8>,
    /// Chunks made so far: at most [`Link::CHUNKS_MAX`] and the one in hand.
    made: usize,
    dropped: u64,
    /// The second for which `date` is written.
    second: u64,
    date: Vec<u8>,
    /// The wall clock minus the shard's clock, ns, and the second of the shard's clock when that was found.
    wall_offset_ns: u64,
    wall_seen: u64,
}

/// What a line tells.
pub struct Line<'l> {
    /// When the request's first byte came, on the shard's clock.
    pub started: u64,
    /// Who sent it.
    pub peer: SocketAddr,
    /// Who that is, where its certificate was verified.
    pub identity: Option<&'l SpiffeId>,
    /// What the rules decided and whose rules; `None` where no head was understood.
    pub decided: Option<(&'l Decision, &'l Policy)>,
    /// Where it was accepted.
    pub listener: &'l str,
    /// What the caller spoke: `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`; empty where that cannot be made out.
    pub protocol: &'l str,
    /// The request's method, target and host, as they came; empty where it cannot be made out.
    pub method: &'l [u8],
    /// See `method`.
    pub target: &'l [u8],
    /// See `method`.
    pub host: &'l [u8],
    /// The route's name.
    pub route: Option<&'l str>,
    /// The service's name.
    pub service: Option<&'l str>,
    /// The endpoint of the last attempt.
    pub endpoint: Option<&'l Address>,
    /// The limit by which it came too soon, or that had it refused because it was not known.
    pub rate_limit: Option<&'l str>,
    /// Why a limit that is shared with other proxies was not known.
    pub rate_limit_failure: Option<&'static str>,
    /// The trace that it belongs to, and whether it is recorded.
    pub trace: Option<(TraceId, bool)>,
    /// Outcome, sizes and times.
    pub ended: &'l Ended,
}

impl AccessLog {
    /// A chunk is handed over when it is this full, or at the tick.
    const CHUNK_BYTES: usize = 64 * 1024;
    /// Octets of a method, target or host that are shown.
    const SHOWN_MAX: usize = 2048;

    /// An access log with nothing in it; allocates at the first line.
    pub fn new() -> Self {
        Self {
            chunk: Vec::new(),
            made: 0,
            dropped: 0,
            second: 0,
            date: Vec::new(),
            wall_offset_ns: 0,
            wall_seen: u64::MAX,
        }
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Writes a line.
    pub fn write(&mut self, format: AccessLogFormat, line: &Line<'_>, clock: &Clock, link: &Link) {
        if !self.has_room(link) {
            self.dropped += 1;
            return;
        }
        self.write_date(line.started, clock);
        match format {
            AccessLogFormat::Json => self.write_json(line),
            AccessLogFormat::Text => self.write_text(line),
        }
        if self.chunk.len() >= Self::CHUNK_BYTES {
            self.flush(link);
        }
    }

    /// Hands over what there is: at the tick, and when a chunk is full.
    pub fn flush(&mut self, link: &Link) {
        if !self.chunk.is_empty()
            && let Err(chunk) = link.chunks.push(std::mem::take(&mut self.chunk))
        {
            // Control is behind: the lines stay until it is not, and new ones are dropped.
            self.chunk = chunk;
        }
    }

    fn has_room(&mut self, link: &Link) -> bool {
        if self.chunk.capacity() == 0 {
            if let Some(chunk) = link.spent_chunks.pop() {
                self.chunk = chunk;
            } else if self.made <= Link::CHUNKS_MAX {
                self.made += 1;
                // Room for the line that makes it full.
                self.chunk = Vec::with_capacity(Self::CHUNK_BYTES + 16 * 1024);
            } else {
                return false;
            }
        }
        if self.chunk.len() >= Self::CHUNK_BYTES {
            self.flush(link);
            return self.chunk.is_empty() && self.has_room(link);
        }
        true
    }

    fn write_json(&mut self, line: &Line<'_>) {
        let out = &mut self.chunk;
        out.extend_from_slice(b"{\"time\":\"");
        out.extend_from_slice(&self.date);
        // Writing to a Vec cannot fail, here and below.
        let _ = write!(out, "\",\"listener\":\"{}\",\"peer\":\"{}\"", line.listener, line.peer);
        if let Some(identity) = line.identity {
            let _ = write!(out, ",\"peer_identity\":\"{identity}\"");
        }
        if !line.protocol.is_empty() {
            let _ = write!(out, ",\"protocol\":\"{}\"", line.protocol);
        }
        out.extend_from_slice(b",\"method\":\"");
        escape(cut(line.method), out);
        out.extend_from_slice(b"\",\"host\":\"");
        escape(cut(line.host), out);
        out.extend_from_slice(b"\",\"target\":\"");
        escape(cut(line.target), out);
        let ended = line.ended;
        let _ = write!(out, "\",\"status\":{}", ended.status);
        for (name, value) in [("route", line.route), ("service", line.service)] {
            if let Some(value) = value {
                let _ = write!(out, ",\"{name}\":\"{value}\"");
            }
        }
        if let Some(endpoint) = line.endpoint {
            let _ = write!(out, ",\"endpoint\":\"{endpoint}\"");
        }
        if let Some(failure) = ended.failure {
            let _ = write!(out, ",\"failure\":\"{failure}\"");
        }
        if let Some(grpc) = &ended.grpc {
            let _ = write!(
                out,
                ",\"grpc_status\":\"{}\",\"grpc_request_messages\":{},\"grpc_response_messages\":{}",
                grpc.status.label(),
                grpc.request_messages,
                grpc.response_messages
            );
        }
        if let Some(limit) = line.rate_limit {
            out.extend_from_slice(b",\"rate_limit\":\"");
            escape(limit.as_bytes(), out);
            out.push(b'"');
        }
        if let Some(why) = line.rate_limit_failure {
            let _ = write!(out, ",\"rate_limit_failure\":\"{why}\"");
        }
        if let Some(rule) = line.denied_by() {
            out.extend_from_slice(b",\"rule\":\"");
            escape(rule.as_bytes(), out);
            out.push(b'"');
        }
        if line.is_ambiguous() {
            out.extend_from_slice(b",\"ambiguous_path\":true");
        }
        for (n, rule) in line.audited().enumerate() {
            out.extend_from_slice(if n == 0 { b",\"audit\":[\"" } else { b",\"" });
            escape(rule.as_bytes(), out);
            out.push(b'"');
        }
        if line.audited().next().is_some() {
            out.push(b']');
        }
        if let Some(made) = ended.fault {
            let _ = write!(out, ",\"fault\":\"{}\"", made.label());
        }
        if let Some(reason) = ended.retried {
            let _ = write!(out, ",\"retried\":\"{}\"", reason.label());
        }
        if let Some(end) = ended.hedge {
            let _ = write!(out, ",\"hedge\":\"{}\"", end.label());
        }
        if let Some(outcome) = ended.wishes {
            let _ = write!(out, ",\"wishes\":\"{}\"", outcome.label());
        }
        if let Some((trace, sampled)) = line.trace {
            let _ = write!(out, ",\"trace_id\":\"{trace}\",\"sampled\":{sampled}");
        }
        let _ = write!(
            out,
            ",\"attempts\":{},\"request_bytes\":{},\"response_bytes\":{}",
            ended.attempts, ended.request_body_bytes, ended.response_body_bytes
        );
        if let Some(first_byte_ns) = ended.first_byte_ns {
            let _ = write!(out, ",\"first_byte_us\":{}", first_byte_ns / 1000);
        }
        let _ = writeln!(out, ",\"whole_us\":{},\"own_us\":{}}}", ended.whole_ns / 1000, ended.own_ns / 1000);
    }

    fn write_text(&mut self, line: &Line<'_>) {
        let out = &mut self.chunk;
        let ended = line.ended;
        out.extend_from_slice(&self.date);
        let _ = write!(out, " {} {} \"", line.listener, line.peer);
        escape(cut(line.method), out);
        out.push(b' ');
        escape(cut(line.host), out);
        out.push(b' ');
        escape(cut(line.target), out);
        if !line.protocol.is_empty() {
            let _ = write!(out, " {}", line.protocol);
        }
        let _ = write!(out, "\" {} {}", ended.status, line.service.unwrap_or("-"));
        match line.endpoint {
            Some(endpoint) => {
                let _ = write!(out, " {endpoint}");
            }
            None => out.extend_from_slice(b" -"),
        }
        match ended.failure {
            Some(failure) => {
                let _ = write!(out, " {failure}");
            }
            None => out.extend_from_slice(b" -"),
        }
        let _ = write!(
            out,
            " route={} attempts={} in={} out={} first_byte=",
            line.route.unwrap_or("-"),
            ended.attempts,
            ended.request_body_bytes,
            ended.response_body_bytes
        );
        match ended.first_byte_ns {
            Some(first_byte_ns) => drop(write!(out, "{}us", first_byte_ns / 1000)),
            None => out.push(b'-'),
        }
        let _ = write!(out, " whole={}us own={}us", ended.whole_ns / 1000, ended.own_ns / 1000);
        if let Some(grpc) = &ended.grpc {
            let _ = write!(
                out,
                " grpc_status={} grpc_in={} grpc_out={}",
                grpc.status.label(),
                grpc.request_messages,
                grpc.response_messages
            );
        }
        if let Some(made) = ended.fault {
            let _ = write!(out, " fault={}", made.label());
        }
        if let Some(reason) = ended.retried {
            let _ = write!(out, " retried={}", reason.label());
        }
        if let Some(end) = ended.hedge {
            let _ = write!(out, " hedge={}", end.label());
        }
        if let Some(outcome) = ended.wishes {
            let _ = write!(out, " wishes={}", outcome.label());
        }
        if let Some((trace, sampled)) = line.trace {
            let _ = write!(out, " trace_id={trace} sampled={sampled}");
        }
        if let Some(identity) = line.identity {
            let _ = write!(out, " peer_identity={identity}");
        }
        if let Some(limit) = line.rate_limit {
            out.extend_from_slice(b" rate_limit=");
            escape(limit.as_bytes(), out);
        }
        if let Some(why) = line.rate_limit_failure {
            let _ = write!(out, " rate_limit_failure={why}");
        }
        if let Some(rule) = line.denied_by() {
            out.extend_from_slice(b" rule=");
            escape(rule.as_bytes(), out);
        }
        if line.is_ambiguous() {
            out.extend_from_slice(b" ambiguous_path");
        }
        for (n, rule) in line.audited().enumerate() {
            out.extend_from_slice(if n == 0 { b" audit=" } else { b"," });
            escape(rule.as_bytes(), out);
        }
        out.push(b'\n');
    }

    /// RFC 3339 with milliseconds, UTC.
    fn write_date(&mut self, at: u64, clock: &Clock) {
        if clock.now() / 1_000_000_000 != self.wall_seen {
            // The wall clock may be set at any time; once a second is often enough to look.
            self.wall_seen = clock.now() / 1_000_000_000;
            self.wall_offset_ns = wall_ns().saturating_sub(clock.refresh());
        }
        let wall = self.wall_offset_ns.saturating_add(at);
        let second = wall / 1_000_000_000;
        if second != self.second {
            self.second = second;
            self.date.clear();
            let (year, month, day) = civil(second / 86_400);
            let of_day = second % 86_400;
            let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
            let _ = write!(self.date, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z");
        }
        let millis = wall / 1_000_000 % 1000;
        let at = self.date.len() - 4;
        for (place, divisor) in [100, 10, 1].into_iter().enumerate() {
            self.date[at + place] = b'0' + u8::try_from(millis / divisor % 10).unwrap_or(0);
        }
    }
}

impl<'l> Line<'l> {
    /// The name of the rule that refused.
    fn denied_by(&self) -> Option<&'l str> {
        let (decision, policy) = self.decided?;
        (decision.verdict == Verdict::Deny).then_some(match decision.rule {
            Some(id) => policy.rule(id).map_or(OVERFLOW_RULE, |rule| &rule.name),
            None => DEFAULT_RULE,
        })
    }

    fn is_ambiguous(&self) -> bool {
        self.decided.is_some_and(|(decision, _)| decision.ambiguous_path)
    }

    /// The names of rules that were to be noted: the first four. All are counted.
    fn audited(&self) -> impl Iterator<Item = &'l str> {
        self.decided.into_iter().flat_map(|(decision, policy)| {
            decision.audited.iter().flatten().filter_map(|id| policy.rule(*id)).map(|rule| &*rule.name)
        })
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        Self::new()
    }
}

/// Escapes for JSON, and for text alike: quotes, backslashes and all that is not printable ASCII (as `\u00XX`).
fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b' '..=b'~' => out.push(*byte),
            _ => {
                let hex = |n: u8| b"0123456789abcdef"[usize::from(n)];
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[hex(byte >> 4), hex(byte & 15)]);
            }
        }
    }
}

fn cut(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(AccessLog::SHOWN_MAX)]
}

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos().try_into().unwrap_or(u64::MAX))
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar (Howard Hinnant, "chrono-compatible
/// low-level date algorithms": eras of 400 years that begin in March).
fn civil(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let era = day / 146_097;
    let of_era = day % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_781), (2026, 11, 24));
        assert_eq!(civil(47_540), (2100, 2, 28));
        assert_eq!(civil(47_541), (2100, 3, 1));
    }

    fn line<'l>(target: &'l [u8], ended: &'l Ended) -> Line<'l> {
        Line {
            started: 5_000_000,
            peer: ([127, 0, 0, 1], 9).into(),
            identity: None,
            decided: None,
            listener: "in",
            protocol: "HTTP/1.1",
            method: b"GET",
            target,
            host: b"a",
            route: Some("r"),
            service: Some("s"),
            endpoint: None,
            rate_limit: None,
            rate_limit_failure: None,
            trace: None,
            ended,
        }
    }

    fn ended() -> Ended {
        Ended {
            status: 200,
            failure: None,
            retried: None,
            hedge: None,
            fault: None,
            wishes: None,
            attempts: 1,
            request_body_bytes: 0,
            response_body_bytes: 7,
            first_byte_ns: Some(1000),
            whole_ns: 2000,
            own_ns: 500,
            tunnel: false,
            grpc: None,
        }
    }

    #[test]
    fn a_line_cannot_be_forged() {
        let (link, _bell) = Link::new(0).unwrap();
        let mut log = AccessLog::new();
        log.write(AccessLogFormat::Json, &line(b"/\"\n{\"status\":200}\xff", &ended()), &Clock::new(), &link);
        log.flush(&link);
        let chunk = link.chunks.pop().unwrap();
        assert_eq!(chunk.iter().filter(|b| **b == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&chunk).unwrap();
        assert_eq!(value["target"], "/\"\n{\"status\":200}\u{ff}");
        assert_eq!(value["status"], 200);
        assert!(value["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn r09_a_grpc_call_tells_its_own_status_in_both_formats() {
        use crate::http::grpc::Status;
        use crate::telemetry::recorder::GrpcEnded;
        let grpc = |status| Some(GrpcEnded { status, request_messages: 3, response_messages: 1 });
        let written = |format, status| {
            let (link, _bell) = Link::new(0).unwrap();
            let mut log = AccessLog::new();
            let ended = Ended { grpc: grpc(status), ..ended() };
            log.write(format, &line(b"/p.S/M", &ended), &Clock::new(), &link);
            log.flush(&link);
            String::from_utf8(link.chunks.pop().unwrap()).unwrap()
        };
        let json: serde_json::Value =
            serde_json::from_str(&written(AccessLogFormat::Json, Status::read(b"14"))).unwrap();
        assert_eq!((&json["status"], &json["grpc_status"]), (&200.into(), &"14".into()));
        assert_eq!((&json["grpc_request_messages"], &json["grpc_response_messages"]), (&3.into(), &1.into()));
        let text = written(AccessLogFormat::Text, Status::ABSENT);
        assert!(text.ends_with(" grpc_status=absent grpc_in=3 grpc_out=1\n"), "{text}");
    }

    #[test]
    fn who_called_and_what_the_rules_said_is_told_in_both_formats() {
        use crate::authorize::{Action, Call, Caller, Fields, Rule, TextMatch};
        struct Nothing;
        impl Fields for Nothing {
            fn values(&self, _: &str) -> impl Iterator<Item = &[u8]> {
                std::iter::empty()
            }
        }
        let rule = |name: &str, action| Rule {
            name: name.into(),
            action,
            listeners: Vec::new(),
            from: Vec::new(),
            sources: Vec::new(),
            ports: Vec::new(),
            methods: Vec::new(),
            paths: vec![TextMatch::Exact("/admin".into())],
            headers: Vec::new(),
        };
        let rules =
            vec![rule("no \"admin\"", Action::Deny), rule("a", Action::Audit), rule("b", Action::Audit)];
        let policy = Policy::new(rules, Verdict::Allow).unwrap();
        let caller = Caller { listener: "in", port: 1, source: [127, 0, 0, 1].into(), peer: None };
        let decision =
            policy.decide(&Call { caller, method: b"GET", path: b"//admin", fields: &Nothing }, |_| {});
        let id = SpiffeId::parse("spiffe://mesh.local/web").unwrap();
        let ended = ended();
        let written = |format| {
            let (link, _bell) = Link::new(0).unwrap();
            let mut log = AccessLog::new();
            let told =
                Line { identity: Some(&id), decided: Some((&decision, &policy)), ..line(b"/", &ended) };
            log.write(format, &told, &Clock::new(), &link);
            log.flush(&link);
            String::from_utf8(link.chunks.pop().unwrap()).unwrap()
        };
        let json: serde_json::Value = serde_json::from_str(&written(AccessLogFormat::Json)).unwrap();
        assert_eq!(json["peer_identity"], "spiffe://mesh.local/web");
        assert_eq!(json["rule"], "no \"admin\"");
        assert_eq!(json["ambiguous_path"], true);
        assert_eq!(json["audit"], serde_json::json!(["a", "b"]));
        let text = written(AccessLogFormat::Text);
        let end = " peer_identity=spiffe://mesh.local/web rule=no \\\"admin\\\" ambiguous_path audit=a,b\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn lines_are_dropped_and_counted_when_nobody_takes_them() {
        let (link, _bell) = Link::new(0).unwrap();
        let mut log = AccessLog::new();
        let target = [b'a'; 2000];
        let mut written = 0;
        while log.dropped() == 0 {
            log.write(AccessLogFormat::Text, &line(&target, &ended()), &Clock::new(), &link);
            written += 1;
            assert!(written < 10_000, "the memory for lines has no end");
        }
        let chunk = link.chunks.pop().unwrap();
        let mut emptied = chunk;
        emptied.clear();
        assert!(link.spent_chunks.push(emptied).is_ok());
        log.write(AccessLogFormat::Text, &line(&target, &ended()), &Clock::new(), &link);
        assert_eq!(log.dropped(), 1, "it goes on when there is room again");
    }
}
