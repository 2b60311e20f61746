//! The grammar of single values: durations, sizes, addresses, hosts, paths, names. Text to value or a complaint that
//! says what to write; and values back to the text that gives them. Pure; called by `decode` and `effective`. Refuses to
//! repair: what is almost right is an error with the right spelling beside it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::route::HostMatch;

/// Why a text is not the value wanted, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) message: String,
    pub(super) help: String,
}

fn complain<T>(message: impl Into<String>, help: impl Into<String>) -> Result<T, Complaint> {
    Err(Complaint { message: message.into(), help: help.into() })
}

// --- durations ---

const UNITS_OF_TIME: [(&str, u64); 5] =
    [("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];

/// What a duration looks like, for hints.
pub(super) const DURATION_UNITS: &str = "units: us, ms, s, m, h";

/// `"250ms"`, `"1.5s"`: one number and one unit, no finer than a microsecond.
pub(super) fn duration(text: &str) -> Result<Duration, Complaint> {
    let (number, unit) = number_and_unit(text);
    let Some(nanoseconds_per_unit) = UNITS_OF_TIME.iter().find(|(name, _)| *name == unit).map(|&(_, ns)| ns)
    else {
        return complain_of_time_unit(text, number, unit);
    };
    let Some(nanoseconds) = scaled(number, nanoseconds_per_unit) else {
        return complain(
            format!("`{number}` is not a number of {unit} that can be used"),
            format!("write a duration such as \"5s\" ({DURATION_UNITS})"),
        );
    };
    if nanoseconds % 1_000 != 0 {
        return complain(
            format!("`{text}` is finer than a microsecond"),
            "write whole microseconds, such as \"500us\"",
        );
    }
    Ok(Duration::from_nanos(nanoseconds))
}

fn complain_of_time_unit(text: &str, number: &str, unit: &str) -> Result<Duration, Complaint> {
    if number.is_empty() {
        return complain(
            format!("`{text}` is not a duration"),
            format!("write a number and a unit, such as \"5s\" ({DURATION_UNITS})"),
        );
    }
    let meant = match unit.trim().to_ascii_lowercase().as_str() {
        "" => {
            return complain(
                format!("`{text}` has no unit"),
                format!("write \"{number}s\" ({DURATION_UNITS})"),
            );
        }
        "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "ms" | "msec" | "msecs" | "milli" | "millis" | "millisecond" | "milliseconds" => "ms",
        "us" | "µs" | "μs" | "usec" | "micros" | "microsecond" | "microseconds" => "us",
        "m" | "min" | "mins" | "minute" | "minutes" => "m",
        "h" | "hr" | "hrs" | "hour" | "hours" => "h",
        _ => {
            return complain(
                format!("`{unit}` is not a unit of time"),
                format!("write one number and one unit, such as \"{number}s\" ({DURATION_UNITS})"),
            );
        }
    };
    complain(format!("`{unit}` is not how this unit is written"), format!("write \"{number}{meant}\""))
}

/// The shortest text for a duration: the largest unit that gives a whole number.
pub(crate) fn duration_text(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    if nanoseconds == 0 {
        return "0s".into();
    }
    for (unit, ns) in UNITS_OF_TIME {
        if nanoseconds.is_multiple_of(u128::from(ns)) {
            return format!("{}{unit}", nanoseconds / u128::from(ns));
        }
    }
    format!("{nanoseconds}ns")
}

// --- sizes ---

const UNITS_OF_SIZE: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// What a size looks like, for hints.
pub(super) const SIZE_UNITS: &str = "units: B, KiB, MiB, GiB";

/// `"64KiB"`: one number and one unit, whole bytes.
pub(super) fn size(text: &str) -> Result<u64, Complaint> {
    let (number, unit) = number_and_unit(text);
    let Some(bytes_per_unit) = UNITS_OF_SIZE.iter().find(|(name, _)| *name == unit).map(|&(_, bytes)| bytes)
    else {
        if number.is_empty() {
            return complain(
                format!("`{text}` is not a size"),
                format!("write a number and a unit, such as \"64KiB\" ({SIZE_UNITS})"),
            );
        }
        let meant = match unit.trim().to_ascii_lowercase().as_str() {
            "" => {
                let instead = number.parse().map_or_else(|_| format!("{number}B"), size_text);
                return complain(
                    format!("`{text}` has no unit"),
                    format!("write \"{instead}\" ({SIZE_UNITS})"),
                );
            }
            "b" | "byte" | "bytes" => "B",
            "k" | "kb" | "kib" | "ki" => "KiB",
            "m" | "mb" | "mib" | "mi" => "MiB",
            "g" | "gb" | "gib" | "gi" => "GiB",
            _ => {
                return complain(
                    format!("`{unit}` is not a unit of size"),
                    format!("write one number and one unit, such as \"{number}KiB\" ({SIZE_UNITS})"),
                );
            }
        };
        return complain(
            format!("`{unit}` is not how this unit is written"),
            format!("write \"{number}{meant}\""),
        );
    };
    scaled(number, bytes_per_unit).map_or_else(
        || {
            complain(
                format!("`{text}` is not a whole number of bytes that can be used"),
                format!("write a size such as \"64KiB\" ({SIZE_UNITS})"),
            )
        },
        Ok,
    )
}

/// The shortest text for a size: the largest unit that gives a whole number.
pub(crate) fn size_text(bytes: u64) -> String {
    UNITS_OF_SIZE
        .iter()
        .find(|&&(_, size)| bytes > 0 && bytes.is_multiple_of(size))
        .map_or_else(|| "0B".into(), |(unit, size)| format!("{}{unit}", bytes / size))
}

fn number_and_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// A decimal number times a unit, if that is whole and fits.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let divisor = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let fraction = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit);
    if !fraction.is_multiple_of(u128::from(divisor)) {
        return None;
    }
    whole.checked_add(u64::try_from(fraction / u128::from(divisor)).ok()?)
}

// --- addresses ---

/// Where an endpoint is, as declared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Target {
    /// An address.
    Ip(SocketAddr),
    /// A name for control to resolve, in lower case.
    Name(Box<str>, u16),
    /// The absolute path of a stream socket.
    Unix(Arc<Path>),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `sun_path` of Linux without the closing NUL.
const UNIX_PATH_BYTES_MAX: usize = 107;
/// RFC 1035 §2.3.4, as text without the closing dot.
const HOST_BYTES_MAX: usize = 253;

/// `IP:PORT`, `NAME:PORT` or `unix:/PATH`.
pub(super) fn target(text: &str) -> Result<Target, Complaint> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 {
            complain("port 0 cannot be connected to", "write the port that the endpoint listens on")
        } else {
            Ok(Target::Ip(address))
        };
    }
    let (host, port) = host_and_port(text, "127.0.0.1:9000")?;
    if port == 0 {
        return complain("port 0 cannot be connected to", "write the port that the endpoint listens on");
    }
    match domain_name(host.strip_suffix('.').unwrap_or(host)) {
        Ok(()) => Ok(Target::Name(host.to_ascii_lowercase().into(), port)),
        Err(why) => complain(
            format!("`{host}` is neither an IP address nor a name: {why}"),
            "write \"127.0.0.1:9000\", \"[::1]:9000\", \"name.example:9000\" or \"unix:/run/app.sock\"",
        ),
    }
}

fn unix_path(path: &str) -> Result<Target, Complaint> {
    if !path.starts_with('/') {
        let path_from_root = match path.trim_start_matches("./") {
            path if path.contains('/') => format!("/{path}"),
            name => format!("/run/{name}"),
        };
        return complain(
            format!("`{path}` is not an absolute path"),
            format!("write the path from the root, such as \"unix:{path_from_root}\""),
        );
    }
    if path.contains('\0') {
        return complain("a path cannot contain a NUL character", "take it out");
    }
    if path.len() > UNIX_PATH_BYTES_MAX {
        return complain(
            format!("the path has {} bytes, the kernel takes {UNIX_PATH_BYTES_MAX}", path.len()),
            "use a shorter path, such as one below /run",
        );
    }
    Ok(Target::Unix(Path::new(path).into()))
}

/// `IP:PORT` to listen on.
pub(super) fn listen_address(text: &str, example: &str) -> Result<SocketAddr, Complaint> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if text.starts_with("unix:") {
        return complain(
            "listening on Unix sockets is not supported",
            format!("write an IP address, such as \"{example}\""),
        );
    }
    let (host, port) = host_and_port(text, example)?;
    let instead = if host.eq_ignore_ascii_case("localhost") { "127.0.0.1" } else { "0.0.0.0" };
    complain(
        format!("`{host}` is not an IP address"),
        format!("write an IP address to listen on, such as \"{instead}:{port}\""),
    )
}

/// Splits what is no socket address, so that the complaint fits the mistake.
fn host_and_port<'a>(text: &'a str, example: &str) -> Result<(&'a str, u16), Complaint> {
    if let Some((scheme, rest)) = text.split_once("://") {
        let rest = rest.trim_end_matches('/');
        return complain(
            format!("an address has no scheme, this one begins with `{scheme}://`"),
            format!("write \"{}\"", if rest.is_empty() { example } else { rest }),
        );
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return complain("an IPv6 address needs brackets and a port", format!("write \"[{text}]:9000\""));
    }
    if text.parse::<Ipv4Addr>().is_ok() {
        return complain("the port is missing", format!("write \"{text}:9000\""));
    }
    if text.starts_with('/') || text.starts_with("./") {
        let path = text.trim_start_matches('.');
        return complain("the path of a Unix socket begins with `unix:`", format!("write \"unix:{path}\""));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return match text.parse::<u16>() {
            Ok(port) => complain("the host is missing", format!("write \"127.0.0.1:{port}\"")),
            Err(_) if text.is_empty() => complain("the address is empty", format!("write \"{example}\"")),
            Err(_) => complain("the port is missing", format!("write \"{text}:9000\"")),
        };
    };
    let Ok(port) = port.parse::<u16>() else {
        return complain(format!("`{port}` is not a port"), "write a number from 1 to 65535 after the colon");
    };
    if host.is_empty() {
        return complain("the host is missing", format!("write \"127.0.0.1:{port}\" or \"0.0.0.0:{port}\""));
    }
    Ok((host, port))
}

fn domain_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("it is empty".into());
    }
    if name.len() > HOST_BYTES_MAX {
        return Err(format!("it has more than {HOST_BYTES_MAX} characters"));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err("there is nothing between two dots".into());
        }
        if label.len() > 63 {
            return Err(format!("`{label}` has more than 63 characters"));
        }
        if let Some(bad) = label.chars().find(|&c| !c.is_ascii_alphanumeric() && c != '-' && c != '_') {
            return Err(format!("`{}` cannot stand in a name", bad.escape_debug()));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(format!("`{label}` begins or ends with `-`"));
        }
    }
    let last = name.rsplit('.').next().unwrap_or(name);
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Err("it ends in a number, as only IPv4 addresses do".into());
    }
    Ok(())
}

// --- hosts and paths of routes ---

/// `shop.example`, `*.shop.example`, `127.0.0.1`, `[::1]`.
pub(super) fn host(text: &str) -> Result<HostMatch, Complaint> {
    let lower = text.to_ascii_lowercase();
    if text == "*" {
        return complain("`*` alone is not a host", "leave `hosts` out to serve any host");
    }
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split('/').next().unwrap_or(rest);
        return complain("a host has no scheme", format!("write \"{host}\""));
    }
    if let Some((host, path)) = text.split_once('/') {
        return complain("a host has no path", format!("write \"{host}\" and path_prefix = \"/{path}\""));
    }
    if text.parse::<Ipv4Addr>().is_ok() {
        return Ok(HostMatch::Exact(lower.into()));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return complain("an IPv6 address as host needs brackets", format!("write \"[{text}]\""));
    }
    if let Some(inside) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return match inside.parse::<Ipv6Addr>() {
            Ok(_) => Ok(HostMatch::Exact(lower.into())),
            Err(_) => complain(format!("`{inside}` is not an IPv6 address"), "write \"[::1]\" or a name"),
        };
    }
    if let Some((host, port)) = text.rsplit_once(':')
        && !port.is_empty()
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        return complain("hosts are matched without their port", format!("write \"{host}\""));
    }
    if let Some(without_dot) = text.strip_suffix('.') {
        return complain("a host has no dot at its end", format!("write \"{without_dot}\""));
    }
    if !text.is_ascii() {
        return complain(
            "a host is sent in its ASCII form",
            "write the form that begins with `xn--` (as `idn` or a browser's address bar gives it)",
        );
    }
    let name = lower.strip_prefix("*.").unwrap_or(&lower);
    if let Err(why) = domain_name(name) {
        let help = if name.contains('*') {
            "`*.` can only stand at the beginning, for one or more labels: \"*.shop.example\""
        } else {
            "write a name such as \"shop.example\" or \"*.shop.example\""
        };
        return complain(format!("`{text}` is not a host: {why}"), help);
    }
    Ok(match lower.strip_prefix('*') {
        Some(suffix) => HostMatch::Suffix(suffix.into()),
        None => HostMatch::Exact(lower.into()),
    })
}

/// How `host` is written in a file.
pub(crate) fn host_text(host: &HostMatch) -> String {
    match host {
        HostMatch::Any => "*".into(),
        HostMatch::Exact(name) => name.to_string(),
        HostMatch::Suffix(suffix) => format!("*{suffix}"),
    }
}

/// Longest path of a route: far above what any server takes in a request line by default (8 KiB).
const PATH_BYTES_MAX: usize = 16 * 1024;

/// The path of a request, as it is sent: with its leading `/`, percent-encoded, without query.
pub(super) fn path(text: &str) -> Result<&str, Complaint> {
    if !text.starts_with('/') {
        let path = text
            .split_once("://")
            .map_or(text, |(_, rest)| rest.split_once('/').map_or("", |(_, path)| path));
        return complain("a path begins with `/`", format!("write \"/{path}\""));
    }
    if text.len() > PATH_BYTES_MAX {
        return complain(
            format!("a path of {} bytes", text.len()),
            format!("at most {PATH_BYTES_MAX} bytes are taken"),
        );
    }
    if let Some(cut) = text.find(['?', '#']) {
        return complain("the query is not part of the path", format!("write \"{}\"", &text[..cut]));
    }
    if let Some(bad) = text.chars().find(|&c| !c.is_ascii_graphic() || "\"<>\\^`{|}".contains(c)) {
        let mut bytes = [0; 4];
        let encoded: String = bad.encode_utf8(&mut bytes).bytes().map(|b| format!("%{b:02X}")).collect();
        return complain(
            format!("`{}` is never sent in a path", bad.escape_debug()),
            format!("write it as it is sent: `{encoded}`"),
        );
    }
    for (at, _) in text.match_indices('%') {
        let digits = text.as_bytes().get(at + 1..at + 3);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return complain(
                "`%` without two hexadecimal digits",
                "write \"%25\" for the character `%` itself",
            );
        }
    }
    Ok(text)
}

/// A path and maybe a query, as a request has them.
pub(super) fn path_and_query(text: &str) -> Result<&str, Complaint> {
    let (before, query) = text.split_once('?').unwrap_or((text, ""));
    path(before)?;
    match query.chars().find(|&c| !c.is_ascii_graphic() || "\"#<>".contains(c)) {
        Some(bad) => complain(
            format!("`{}` is never sent in a query", bad.escape_debug()),
            "write it percent-encoded, as it is sent",
        ),
        None => Ok(text),
    }
}

/// A prefix without the slashes at its end, since prefixes match whole segments: `/api/` and `/api` are the same.
pub(super) fn prefix(path: &str) -> &str {
    match path.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed,
    }
}

// --- names ---

/// Longest name of a listener, service, route or zone: it becomes a metric label.
const NAME_BYTES_MAX: usize = 128;

/// A name that can stand in a log line and a metric label without quoting.
pub(super) fn name(text: &str) -> Result<(), Complaint> {
    const HELP: &str = "use letters, digits and `-` `_` `.` `/` `:`";
    if text.is_empty() {
        return complain("the name is empty", HELP);
    }
    if text.len() > NAME_BYTES_MAX {
        return complain(
            format!("a name of {} characters", text.len()),
            format!("use at most {NAME_BYTES_MAX}: it becomes a metric label"),
        );
    }
    match text.chars().find(|&c| !c.is_ascii_alphanumeric() && !"-_./:".contains(c)) {
        Some(bad) => complain(format!("`{}` cannot stand in a name", bad.escape_debug()), HELP),
        None => Ok(()),
    }
}

/// A token of RFC 9110 §5.6.2, as the pseudonym in `Via` has to be.
pub(super) fn token(text: &str) -> Result<(), Complaint> {
    const HELP: &str = "write \"auto\", \"off\", or a word of letters, digits and `-` `.` `_`";
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return complain(
            format!("a pseudonym has 1 to {NAME_BYTES_MAX} characters, this one {}", text.len()),
            HELP,
        );
    }
    match text.chars().find(|&c| !c.is_ascii_alphanumeric() && !"!#$%&'*+-.^_`|~".contains(c)) {
        Some(bad) => complain(
            format!("`{}` cannot stand in a token (RFC 9110 section 5.6.2)", bad.escape_debug()),
            HELP,
        ),
        None => Ok(()),
    }
}

/// A TOML string that gives this text.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
#[path = "values_test.rs"]
mod tests;
