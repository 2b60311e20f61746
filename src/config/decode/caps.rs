//! `[service.caps]`: how much a service is given at a time. Called by `decode::service`.

use std::time::Duration;

use super::super::defaults::{self, Key};
use super::super::raw::At;
use super::super::reader::{Item, Reader};
use super::super::schema;
use super::word;
use crate::route::Priority;

/// `[service.caps]`. [`u32::MAX`]: `"unlimited"`.
#[derive(Debug, Default)]
pub(in crate::config) struct RawCaps {
    pub(in crate::config) exchanges_max: Option<At<u32>>,
    pub(in crate::config) pending_max: Option<At<u32>>,
    pub(in crate::config) queue_timeout: Option<At<Duration>>,
    pub(in crate::config) queue_target: Option<At<Duration>>,
    pub(in crate::config) retries_max: Option<At<u32>>,
}

/// How `route.priority` is written.
pub(in crate::config) const PRIORITY_WORDS: [(&str, Priority); Priority::COUNT] =
    [("critical", Priority::Critical), ("default", Priority::Default), ("sheddable", Priority::Sheddable)];

pub(super) fn caps(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<RawCaps> {
    let table = reader.table(&schema::CAPS, item)?;
    let mut ceiling = |name, key: &Key<u32>| {
        let item = table.value(name)?;
        match word(reader, key.name, item, "unlimited") {
            Some(unlimited) => Some(unlimited.with(u32::MAX)),
            None => reader.count(key, item),
        }
    };
    let exchanges_max = ceiling("exchanges_max", &defaults::CAPS_EXCHANGES_MAX);
    let retries_max = ceiling("retries_max", &defaults::CAPS_RETRIES_MAX);
    Some(RawCaps {
        exchanges_max,
        pending_max: table
            .value("pending_max")
            .and_then(|item| reader.count(&defaults::CAPS_PENDING_MAX, item)),
        queue_timeout: table
            .value("queue_timeout")
            .and_then(|item| reader.duration(&defaults::CAPS_QUEUE_TIMEOUT, item)),
        queue_target: table
            .value("queue_target")
            .and_then(|item| reader.duration(&defaults::CAPS_QUEUE_TARGET, item)),
        retries_max,
    })
}
