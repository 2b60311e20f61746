//! `[service.caps]`, `[service.concurrency]` and `[service.admission]`: how much a service is given at a time. Called by
//! `decode::service`.

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
    pub(in crate::config) connections_max: Option<At<u32>>,
}

/// `[service.concurrency]`.
#[derive(Debug)]
pub(in crate::config) struct RawConcurrency {
    pub(in crate::config) limit_min: Option<At<u32>>,
    pub(in crate::config) limit_max: Option<At<u32>>,
    pub(in crate::config) limit_initial: Option<At<u32>>,
    pub(in crate::config) tolerance_percent: Option<At<u32>>,
    pub(in crate::config) window: Option<At<Duration>>,
}

/// `[service.admission]`.
#[derive(Debug)]
pub(in crate::config) struct RawAdmission {
    pub(in crate::config) success_min_percent: Option<At<u32>>,
    pub(in crate::config) refuse_max_percent: Option<At<u32>>,
    pub(in crate::config) window: Option<At<Duration>>,
    pub(in crate::config) exchanges_min: Option<At<u32>>,
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
    let connections_max = ceiling("connections_max", &defaults::CAPS_CONNECTIONS_MAX);
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
        connections_max,
    })
}

pub(super) fn concurrency(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<RawConcurrency> {
    let table = reader.table(&schema::CONCURRENCY, item)?;
    let mut count = |name, key: &Key<u32>| table.value(name).and_then(|item| reader.count(key, item));
    Some(RawConcurrency {
        limit_min: count("limit_min", &defaults::CONCURRENCY_LIMIT_MIN),
        limit_max: count("limit_max", &defaults::CONCURRENCY_LIMIT_MAX),
        limit_initial: count("limit_initial", &defaults::CONCURRENCY_LIMIT_INITIAL),
        tolerance_percent: count("tolerance_percent", &defaults::CONCURRENCY_TOLERANCE_PERCENT),
        window: table.value("window").and_then(|item| reader.duration(&defaults::CONCURRENCY_WINDOW, item)),
    })
}

pub(super) fn admission(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<RawAdmission> {
    let table = reader.table(&schema::ADMISSION, item)?;
    let mut count = |name, key: &Key<u32>| table.value(name).and_then(|item| reader.count(key, item));
    Some(RawAdmission {
        success_min_percent: count("success_min_percent", &defaults::ADMISSION_SUCCESS_MIN_PERCENT),
        refuse_max_percent: count("refuse_max_percent", &defaults::ADMISSION_REFUSE_MAX_PERCENT),
        exchanges_min: count("exchanges_min", &defaults::ADMISSION_EXCHANGES_MIN),
        window: table.value("window").and_then(|item| reader.duration(&defaults::ADMISSION_WINDOW, item)),
    })
}
