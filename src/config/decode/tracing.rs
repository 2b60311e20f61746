//! `[tracing]`: whether and how exchanges are traced, and where spans go. Called by `decode`.

use std::path::PathBuf;
use std::sync::Arc;

use toml::de::DeValue;

use super::super::raw::{At, Pairs, RawTracing};
use super::super::reader::{Item, Opened, Reader};
use super::super::report::{Place, Problem};
use super::super::values::{self, Complaint};
use super::super::{collector, defaults};
use super::{canary, missing, once};
use crate::config::collector::{CollectorProtocol, Endpoint};
use crate::route::percent::Percent;
use crate::trace::Formats;

/// How `tracing.protocol` is written.
pub(in crate::config) const PROTOCOL_WORDS: [(&str, CollectorProtocol); 2] =
    [("grpc", CollectorProtocol::Grpc), ("http", CollectorProtocol::Http)];

const ENDPOINT_EXAMPLE: &str = "http://127.0.0.1:4317";

pub(super) fn tracing(reader: &mut Reader<'_>, table: &Opened<'_>, place: Place, raw: &mut RawTracing) {
    if raw.place.is_none() && table.value("endpoint").is_none() {
        missing(reader, place, "endpoint", "[tracing]", &format!("endpoint = \"{ENDPOINT_EXAMPLE}\""));
    }
    raw.place.get_or_insert(place);
    if let Some(item) = table.value("endpoint") {
        let value = reader.parsed("tracing.endpoint", item, ENDPOINT_EXAMPLE, endpoint);
        once(reader, "tracing.endpoint", &mut raw.endpoint, value);
    }
    if let Some(item) = table.value("protocol") {
        let value = reader.choice("tracing.protocol", item, &PROTOCOL_WORDS);
        once(reader, "tracing.protocol", &mut raw.protocol, value);
    }
    if let Some(item) = table.value("ca") {
        let value = reader.string("tracing.ca", item, "/etc/ringmesh/collector-ca.pem").map(|text| At {
            value: PathBuf::from(&*text.value),
            place: text.place,
            variable: text.variable,
        });
        once(reader, "tracing.ca", &mut raw.ca, value);
    }
    if let Some(item) = table.value("headers") {
        let value = pairs(reader, "tracing.headers", item, header);
        once(reader, "tracing.headers", &mut raw.headers, value);
    }
    if let Some(item) = table.value("timeout") {
        let value = reader.duration(&defaults::TRACING_TIMEOUT, item);
        once(reader, defaults::TRACING_TIMEOUT.name, &mut raw.timeout, value);
    }
    if let Some(item) = table.value("waiting_bytes_max") {
        let value = reader.size(&defaults::TRACING_WAITING_BYTES_MAX, item);
        once(reader, defaults::TRACING_WAITING_BYTES_MAX.name, &mut raw.waiting_bytes_max, value);
    }
    if let Some(item) = table.value("sample_percent") {
        let value = canary::percent(reader, "tracing.sample_percent", item, (0.0, 100.0));
        let value = value.and_then(|at| Some(at.with(Percent::new(at.value)?)));
        once(reader, "tracing.sample_percent", &mut raw.sample_percent, value);
    }
    if let Some(item) = table.value("propagate") {
        let value = propagate(reader, item);
        once(reader, "tracing.propagate", &mut raw.propagate, value);
    }
    if let Some(item) = table.value("service_name") {
        let value = reader.parsed("tracing.service_name", item, "shop", |text| {
            words(text).map(|()| Arc::<str>::from(text))
        });
        once(reader, "tracing.service_name", &mut raw.service_name, value);
    }
    if let Some(item) = table.value("attributes") {
        let value = pairs(reader, "tracing.attributes", item, |name, value| {
            words(name)?;
            if name == "service.name" {
                return Err(Complaint {
                    message: "service.name has a key of its own".into(),
                    help: "write it as `service_name`".into(),
                });
            }
            words(value)
        });
        once(reader, "tracing.attributes", &mut raw.attributes, value);
    }
}

/// `http://HOST:PORT` or `https://HOST:PORT`, with a path for OTLP over HTTP.
fn endpoint(text: &str) -> Result<Endpoint, Complaint> {
    let complaint = |message: String, help: String| Complaint { message, help };
    let (encrypted, rest) = if let Some(rest) = text.strip_prefix("https://") {
        (true, rest)
    } else if let Some(rest) = text.strip_prefix("http://") {
        (false, rest)
    } else {
        let help = format!("write where the collector is, such as \"{ENDPOINT_EXAMPLE}\"");
        return Err(complaint(format!("`{text}` begins with neither http:// nor https://"), help));
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let path = path.trim_end_matches('/');
    if !path.is_empty() {
        values::path(path)?;
    }
    match values::target(authority) {
        Ok(values::Target::Ip(address)) => Ok(Endpoint {
            encrypted,
            host: address.ip().to_string().into(),
            port: address.port(),
            authority: authority.into(),
            path: path.into(),
        }),
        Ok(values::Target::Name(host, port)) => {
            Ok(Endpoint { encrypted, host, port, authority: authority.into(), path: path.into() })
        }
        Ok(values::Target::Unix(_)) => Err(complaint(
            "a collector is not called by a Unix socket".into(),
            format!("write \"{ENDPOINT_EXAMPLE}\""),
        )),
        Err(why) if authority.rsplit_once(':').is_none() => Err(complaint(
            why.message,
            format!("write the port as well: 4317 is usual for gRPC, 4318 for HTTP: \"{ENDPOINT_EXAMPLE}\""),
        )),
        Err(why) => Err(why),
    }
}

fn propagate(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Formats>> {
    const WORDS: [(&str, bool); 2] = [("w3c", false), ("b3", true)];
    let entries = reader.list("tracing.propagate", item, WORDS.len())?;
    let place = reader.place(item.span());
    let mut variable = 0;
    let mut said = Vec::new();
    for entry in entries {
        let word = reader.choice("tracing.propagate", entry, &WORDS)?;
        variable = if variable > 0 { variable } else { word.variable };
        said.push(word.value);
    }
    match said[..] {
        [false] => Some(At { value: Formats { b3: false }, place, variable }),
        [false, true] => Some(At { value: Formats { b3: true }, place, variable }),
        _ => {
            reader.problems.error(|| {
                Problem::at(place, "tracing.propagate: not one of the two lists there are")
                    .help("write [\"w3c\"], or [\"w3c\", \"b3\"] for services that know Zipkin's fields only")
            });
            None
        }
    }
}

fn pairs(
    reader: &mut Reader<'_>,
    key: &str,
    item: &Item<'_>,
    check: impl Fn(&str, &str) -> Result<(), Complaint>,
) -> Option<At<Pairs>> {
    let DeValue::Table(table) = item.get_ref() else {
        let help = format!("write {} = {{ name = \"value\" }}", key.rsplit('.').next().unwrap_or(key));
        return reader.wrong_type(key, item, "a table", help);
    };
    let place = reader.place(item.span());
    if table.len() > collector::PAIRS_MAX {
        reader.problems.error(|| {
            Problem::at(place, format!("{key}: {} entries", table.len()))
                .help(format!("at most {} are taken", collector::PAIRS_MAX))
        });
        return None;
    }
    let mut variable = 0;
    let mut all = Vec::with_capacity(table.len());
    for (name, value) in table {
        let value = reader.parsed(key, value, "value", |text| {
            check(name.get_ref(), text).map(|()| Box::<str>::from(text))
        })?;
        variable = if variable > 0 { variable } else { value.variable };
        all.push((Box::<str>::from(&**name.get_ref()), value.value));
    }
    Some(At { value: all.into(), place, variable })
}

/// What can stand in an attribute: some text on one line.
fn words(text: &str) -> Result<(), Complaint> {
    let message = match text {
        "" => "an empty text says nothing".into(),
        _ if text.len() > collector::TEXT_MAX => format!("a text of {} bytes", text.len()),
        _ if text.chars().any(char::is_control) => "a control character".into(),
        _ => return Ok(()),
    };
    let help = format!("write 1 to {} bytes without control characters", collector::TEXT_MAX);
    Err(Complaint { message, help })
}

fn header(name: &str, value: &str) -> Result<(), Complaint> {
    let help =
        "write a field of HTTP that the collector asks for, such as { authorization = \"Bearer ${TOKEN}\" }";
    let complaint = |message: String| Err(Complaint { message, help: help.into() });
    match name.parse::<http::HeaderName>() {
        Err(_) => return complaint(format!("`{}` is no name of a field", name.escape_debug())),
        Ok(name) if collector::OWN_FIELDS.contains(&name.as_str()) => {
            return complaint(format!("`{name}` is set by this proxy"));
        }
        Ok(_) => {}
    }
    match http::HeaderValue::from_str(value) {
        Ok(_) if value.len() <= 4 * collector::TEXT_MAX => Ok(()),
        _ => complaint(format!("the value of `{name}` cannot stand in a field")),
    }
}
