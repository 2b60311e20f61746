//! What is in force of the choice among a service's endpoints. A part of `effective`; keys without meaning where they stand
//! (of hashing with a balancer that does not hash) are not shown.

use std::fmt::Write as _;

use super::effective::list;
use super::values::{duration_text, quoted};
use crate::upstream::affinity::{Cookie, HashOn, HashRule};
use crate::upstream::spec::{Balance, Fallback, Labels, Service, Subset};

/// The keys, in the order of their marks.
pub(super) const KEYS: [&str; 11] = [
    "hash",
    "consistent.ring_points",
    "consistent.maglev_places",
    "consistent.overload_percent",
    "zones.prefer_own",
    "zones.endpoints_min",
    "zones.callers_percent",
    "slow_start.window",
    "slow_start.aggression",
    "slow_start.weight_percent_min",
    "subset",
];

pub(super) fn values(service: &Service) -> [Option<String>; 11] {
    let Some(choice) = service.choice.as_deref() else { return Default::default() };
    let (hashes, consistent) = (service.balance.hashes(), &choice.consistent);
    let zones = (choice.own_zone.is_some() && !hashes).then_some(&choice.zones);
    let slow = choice.slow_start.as_ref();
    let hundredths = |n: u32| format!("{}", f64::from(n) / 100.0);
    [
        hashes.then(|| list(choice.hash.iter().map(rule), choice.hash.len())),
        (service.balance == Balance::RingHash).then(|| consistent.ring_points.to_string()),
        (service.balance == Balance::Maglev).then(|| consistent.maglev_places.to_string()),
        hashes.then(|| consistent.overload_percent.map_or_else(|| quoted("off"), |n| n.to_string())),
        zones.map(|zones| zones.prefer_own.to_string()),
        zones.map(|zones| zones.endpoints_min.to_string()),
        zones.and_then(|zones| zones.callers_percent).map(|part| hundredths(part.into())),
        slow.map(|slow| quoted(&duration_text(slow.window))),
        slow.map(|slow| hundredths(slow.aggression.into())),
        slow.map(|slow| slow.weight_percent_min.to_string()),
        (!choice.subsets.is_empty()).then(|| {
            list(choice.subsets.iter().map(|one| subset(one, &choice.subsets)), choice.subsets.len())
        }),
    ]
}

/// The same as pairs, for whoever tells of one service; without its subsets.
pub(crate) fn choice_text(service: &Service) -> Vec<(&'static str, String)> {
    let values = KEYS.into_iter().zip(values(service));
    values.filter_map(|(key, value)| Some((key, value?))).filter(|(key, _)| *key != "subset").collect()
}

fn rule(rule: &HashRule) -> String {
    let terminal = if rule.terminal { ", terminal = true" } else { "" };
    let on = match &rule.on {
        HashOn::Header(name) => format!("header = {}", quoted(name)),
        HashOn::Cookie(Cookie { name, ttl, path }) => match ttl {
            Some(ttl) => {
                let ttl = quoted(&duration_text(*ttl));
                format!("cookie = {}, ttl = {ttl}, path = {}", quoted(name), quoted(path))
            }
            None => format!("cookie = {}", quoted(name)),
        },
        HashOn::Source => "source = true".into(),
        HashOn::Query(name) => format!("query = {}", quoted(name)),
        HashOn::Identity => "identity = true".into(),
    };
    format!("{{ {on}{terminal} }}")
}

fn subset(subset: &Subset, all: &[Subset]) -> String {
    let fallback = match subset.fallback {
        Fallback::None => "none",
        Fallback::Any => "any",
        Fallback::Subset(n) => all.get(usize::from(n)).map_or("none", |other| &other.name),
    };
    let (name, fallback) = (quoted(&subset.name), quoted(fallback));
    format!("{{ name = {name}, labels = {}, fallback = {fallback} }}", labels(&subset.labels))
}

/// Labels as they would be written.
pub(super) fn labels(labels: &Labels) -> String {
    let all: Vec<String> = labels
        .iter()
        .map(|(name, value)| {
            let bare = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            format!("{} = {}", if bare { name.to_string() } else { quoted(name) }, quoted(value))
        })
        .collect();
    format!("{{ {} }}", all.join(", "))
}

/// An endpoint as it would be written.
pub(super) fn endpoint(
    address: &str,
    weight: u16,
    zone: Option<&str>,
    priority: u8,
    own: Option<&Labels>,
    drain: bool,
) -> String {
    let usual = weight == super::defaults::WEIGHT.default && priority == super::defaults::PRIORITY.default;
    if usual && zone.is_none() && own.is_none() && !drain {
        return quoted(address);
    }
    let mut text = format!("{{ address = {}, weight = {weight}", quoted(address));
    if let Some(zone) = zone {
        let _ = write!(text, ", zone = {}", quoted(zone));
    }
    if priority != super::defaults::PRIORITY.default {
        let _ = write!(text, ", priority = {priority}");
    }
    if let Some(own) = own {
        let _ = write!(text, ", labels = {}", labels(own));
    }
    if drain {
        text.push_str(", drain = true");
    }
    text + " }"
}
