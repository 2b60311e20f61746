//! How an exchange ended badly: stage × side × cause, three bytes, `Copy`.
//!
//! Everything that tells somebody of a failure derives from this one value, so that no two of them can disagree: the
//! status code, the flag in the access log, the metric label, the `x-ringmesh-failure` header and the decision whether
//! another attempt is safe. The data side makes failures without allocating; words are put to them only when somebody
//! reads them. Refuses to carry strings, errno values or sources: what a caller may not know stays out of reach.

/// Where on the path the exchange was, in the order of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Taking the connection.
    Accept,
    /// The TLS handshake, with either side.
    Handshake,
    /// Reading the request head.
    Head,
    /// Finding route and service.
    Route,
    /// Deciding whether the caller may.
    Authorize,
    /// Deciding whether it comes too soon.
    Quota,
    /// Waiting for a place at the service.
    Admit,
    /// Choosing an endpoint.
    Balance,
    /// Opening a connection to the endpoint.
    Connect,
    /// Sending the request (head or body).
    Request,
    /// Waiting for the response head.
    Response,
    /// Relaying the response body.
    Body,
}

/// On whose side it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Side {
    /// The caller.
    Downstream,
    /// The service called.
    Upstream,
    /// This proxy.
    Local,
}

macro_rules! causes {
    ($( $(#[$doc:meta])* $variant:ident = $label:literal, $status:literal; )*) => {
        /// What happened. The number behind each is the status that a request refused for it gets.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Cause { $( $(#[$doc])* $variant, )* }

        impl Cause {
            /// Every cause, for tables and tests.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// The word used in logs, metrics and headers: lower case, `_` between words.
            pub const fn label(self) -> &'static str {
                match self { $( Self::$variant => $label, )* }
            }

            const fn status_for_request(self) -> u16 {
                match self { $( Self::$variant => $status, )* }
            }
        }
    };
}

causes! {
    // --- a message that breaks the rules (RFC 9110, 9112) ---
    /// The request or status line is not one.
    BadStartLine = "bad_start_line", 400;
    /// A method with octets that are not token characters, or one that is not understood here.
    BadMethod = "bad_method", 400;
    /// TRACE, which this proxy does not serve, or CONNECT where the route does not allow it.
    MethodRefused = "method_refused", 405;
    /// A target with octets that do not belong there, or in a form that the method does not allow.
    BadTarget = "bad_target", 400;
    /// A path that `limits.paths` refuses: to some servers it is another one.
    AmbiguousPath = "ambiguous_path", 400;
    /// The target carries user information.
    UserInfo = "userinfo_in_target", 400;
    /// A version other than 1.0 and 1.1.
    BadVersion = "bad_version", 505;
    /// No Host in an HTTP/1.1 request.
    HostMissing = "host_missing", 400;
    /// More than one Host line.
    HostRepeated = "host_repeated", 400;
    /// Host is not `host [":" port]`.
    BadHost = "bad_host", 400;
    /// A field name that is no token, an empty one, white space before the colon, a line without colon.
    BadFieldName = "bad_field_name", 400;
    /// A control character in a field value.
    BadFieldValue = "bad_field_value", 400;
    /// A line folded onto the next.
    ObsoleteFold = "obsolete_fold", 400;
    /// A line ended by LF alone or a CR inside a line.
    BareCrOrLf = "bare_cr_or_lf", 400;
    /// Content-Length and Transfer-Encoding together.
    LengthAndEncoding = "content_length_and_transfer_encoding", 400;
    /// Content-Length is not one decimal number.
    BadLength = "bad_content_length", 400;
    /// Several Content-Length that differ or repeat.
    LengthRepeated = "content_length_repeated", 400;
    /// Transfer-Encoding is not exactly `chunked`.
    BadEncoding = "bad_transfer_encoding", 400;
    /// Transfer-Encoding in an HTTP/1.0 message.
    EncodingInOld = "transfer_encoding_in_http10", 400;
    /// A chunk size, chunk end or trailer section that breaks the grammar.
    BadChunk = "bad_chunk", 400;
    /// A WebSocket handshake or CONNECT together with a request body.
    UpgradeWithBody = "upgrade_with_body", 400;
    /// WebSocket where the route does not allow it, in a choice of protocols, or not with GET; of a service: that takes none
    /// by HTTP/2 and may not be asked otherwise.
    UpgradeRefused = "upgrade_refused", 501;
    /// An expectation other than 100-continue.
    ExpectationFailed = "expectation_failed", 417;
    /// A 101 answer that was not asked for, or is not the one to the caller's handshake.
    UnexpectedUpgrade = "unexpected_upgrade", 400;
    /// More interim (1xx) answers than allowed.
    TooManyInterim = "too_many_interim_responses", 400;
    /// The request passed through this proxy before.
    Loop = "loop_detected", 508;

    // --- identity and encryption ---
    /// Plain text where TLS is required, or the other way round.
    TlsRequired = "tls_required", 400;
    /// The handshake is not one, or the two sides have no version, suite or protocol in common.
    BadHandshake = "bad_handshake", 400;
    /// The peer refused the handshake with an alert.
    HandshakeRefused = "handshake_refused", 403;
    /// The peer presented no certificate.
    CertificateMissing = "certificate_missing", 403;
    /// A certificate of the chain has ended.
    CertificateExpired = "certificate_expired", 403;
    /// A certificate of the chain is not valid yet.
    CertificateNotYetValid = "certificate_not_yet_valid", 403;
    /// No root of the peer's trust domain has signed the chain.
    UnknownIssuer = "unknown_issuer", 403;
    /// A certificate that may not be used so: key usage, a CA as leaf, a leaf as CA, too long a path.
    WrongUsage = "wrong_certificate_usage", 403;
    /// A certificate that is broken or has a weak signature.
    BadCertificate = "bad_certificate", 403;
    /// Not exactly one SPIFFE id in the leaf, or one that is not canonical.
    BadIdentity = "bad_identity", 403;
    /// An id of a trust domain that has no bundle here.
    UntrustedDomain = "untrusted_domain", 403;
    /// A verified peer that is not the one expected.
    WrongIdentity = "wrong_identity", 403;
    /// This proxy has no certificate (yet).
    IdentityMissing = "identity_missing", 503;
    /// A rule, or the default, does not let the caller.
    Denied = "denied", 403;
    /// The host asked for is not the one that the TLS connection was made for.
    Misdirected = "misdirected", 421;

    // --- HTTP/2 ---
    /// A frame or a sequence of frames that breaks RFC 9113; also a field that HTTP/2 forbids.
    ProtocolError = "http2_protocol_error", 400;
    /// The peer reset the stream.
    StreamReset = "http2_stream_reset", 400;
    /// The peer refused the stream before it did anything with it.
    StreamRefused = "http2_stream_refused", 503;
    /// The peer is closing the connection and did not take the stream.
    GoingAway = "http2_going_away", 503;
    /// A budget against floods is used up; which one stands in the counters.
    Flood = "http2_flood", 400;
    /// A gRPC-Web body in text form that is no base64.
    BadGrpcWeb = "bad_grpc_web_text", 400;
    /// The peer did not answer a ping in time.
    PingTimeout = "http2_ping_timeout", 408;

    // --- a limit was met ---
    /// The target is longer than the limit.
    TargetTooLong = "target_too_long", 414;
    /// The head has more bytes or fields than the limit.
    HeadTooLarge = "head_too_large", 431;
    /// The body is larger than the limit.
    BodyTooLarge = "body_too_large", 413;
    /// A limit of this proxy on connections or exchanges is reached.
    Overloaded = "overloaded", 503;
    /// There were as many requests of its kind as there may be in a time (`[[rate_limit]]`).
    RateLimited = "rate_limited", 429;
    /// Whether there may be one more of its kind is not known: the service that counts them has not said it.
    RateLimitUnknown = "rate_limit_unknown", 500;
    /// The service has as many exchanges as it may have, and as many wait as may.
    QueueFull = "queue_full", 503;
    /// The service had as many exchanges as it may have for as long as one may wait for a place.
    QueueTimeout = "queue_timeout", 503;
    /// The service fails so often that it is given less until it recovers.
    NotAdmitted = "not_admitted", 503;

    // --- the network and the peers ---
    /// A timeout ran out.
    Timeout = "timeout", 408;
    /// Neither side moved an octet of an exchange for as long as one may.
    StreamIdle = "stream_idle", 408;
    /// The peer closed its side before the message was whole.
    Closed = "closed_early", 400;
    /// The peer reset the connection.
    Reset = "reset", 400;
    /// The endpoint refuses connections.
    Refused = "refused", 503;
    /// There is no way to the endpoint.
    Unreachable = "unreachable", 503;

    // --- the configuration ---
    /// No route matches.
    NoRoute = "no_route", 404;
    /// The service has no endpoint (none configured, or its names do not resolve).
    NoEndpoint = "no_endpoint", 503;
    /// The proxy was told to end, and `timeouts.drain` ran out before this was done.
    Draining = "draining", 503;
}

/// Stage × side × cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Failure {
    /// Where on the path.
    pub stage: Stage,
    /// On whose side.
    pub side: Side,
    /// What happened.
    pub cause: Cause,
}

impl Failure {
    /// A failure of the caller.
    pub const fn downstream(stage: Stage, cause: Cause) -> Self {
        Self { stage, side: Side::Downstream, cause }
    }

    /// A failure of the service called.
    pub const fn upstream(stage: Stage, cause: Cause) -> Self {
        Self { stage, side: Side::Upstream, cause }
    }

    /// A failure of this proxy or its configuration.
    pub const fn local(stage: Stage, cause: Cause) -> Self {
        Self { stage, side: Side::Local, cause }
    }

    /// The status for the caller: 4xx for its own mistakes, 502/503/504 for the service's (RFC 9110 §15.6).
    pub const fn status(self) -> u16 {
        match self.side {
            // It took too long here, on purpose: the caller is not late.
            Side::Local if matches!((self.stage, self.cause), (Stage::Route, Cause::Timeout)) => 504,
            Side::Downstream | Side::Local => self.cause.status_for_request(),
            Side::Upstream => match (self.cause, self.stage) {
                (Cause::Timeout, Stage::Connect | Stage::Handshake) => 503,
                (Cause::Timeout, _) => 504,
                (_, Stage::Connect | Stage::Handshake) => 503,
                (cause, _) => match cause {
                    Cause::NoEndpoint
                    | Cause::Overloaded
                    | Cause::Refused
                    | Cause::Unreachable
                    | Cause::StreamRefused
                    | Cause::GoingAway => 503,
                    _ => 502,
                },
            },
        }
    }

    /// Whether another endpoint may be tried although the request may not be idempotent: certain that no byte of the
    /// request was processed (RFC 9110 §9.2.2).
    pub const fn nothing_was_sent(self) -> bool {
        matches!((self.side, self.stage), (Side::Upstream, Stage::Connect | Stage::Handshake))
            || matches!((self.side, self.cause), (Side::Upstream, Cause::StreamRefused | Cause::GoingAway))
    }

    /// Whether the connection to the service ended, as one does that it has closed just when it was used again.
    pub const fn is_end_of_connection(self) -> bool {
        matches!((self.side, self.cause), (Side::Upstream, Cause::Closed | Cause::Reset))
    }

    /// `stage.side.cause`, as in `response.upstream.timeout`: access log, metric label, `x-ringmesh-failure`.
    pub fn write_label(self, out: &mut Vec<u8>) {
        for (n, part) in [self.stage.label(), self.side.label(), self.cause.label()].into_iter().enumerate() {
            if n > 0 {
                out.push(b'.');
            }
            out.extend_from_slice(part.as_bytes());
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.stage.label(), self.side.label(), self.cause.label())
    }
}

impl Stage {
    /// The word used in logs, metrics and headers.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Handshake => "handshake",
            Self::Head => "head",
            Self::Route => "route",
            Self::Authorize => "authorize",
            Self::Quota => "quota",
            Self::Admit => "admit",
            Self::Balance => "balance",
            Self::Connect => "connect",
            Self::Request => "request",
            Self::Response => "response",
            Self::Body => "body",
        }
    }
}

impl Side {
    /// The word used in logs, metrics and headers.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Local => "local",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_three_bytes() {
        assert_eq!(size_of::<Failure>(), 3);
        assert_eq!(size_of::<Option<Failure>>(), 3);
    }

    #[test]
    fn labels_are_unique_words() {
        let mut labels: Vec<_> = Cause::ALL.iter().map(|c| c.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Cause::ALL.len());
        assert!(
            labels
                .iter()
                .all(|l| l.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit()))
        );
    }

    #[test]
    fn the_side_decides_who_is_blamed_by_the_status() {
        assert_eq!(Failure::downstream(Stage::Head, Cause::Timeout).status(), 408);
        assert_eq!(Failure::upstream(Stage::Response, Cause::Timeout).status(), 504);
        assert_eq!(Failure::upstream(Stage::Connect, Cause::Refused).status(), 503);
        assert_eq!(Failure::upstream(Stage::Handshake, Cause::Timeout).status(), 503);
        assert_eq!(Failure::upstream(Stage::Response, Cause::BadLength).status(), 502);
        assert_eq!(Failure::upstream(Stage::Response, Cause::Closed).status(), 502);
        assert_eq!(Failure::local(Stage::Route, Cause::NoRoute).status(), 404);
    }
}
