//! Why a request would get nothing but an error: by the head, the rules, or the route, in the order in which shards look. Called by
//! `explain`, a line of its own.
//!
//! What depends on the moment (limits on rates, places at a service, endpoints) is not told of here.

use serde_json::json;

use super::Line;
use super::actions;
use super::policies::Chosen;
use crate::failure::{Cause, Failure, Stage};
use crate::snapshot::{Snapshot, Understood};

/// With what it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Failed(Failure),
    /// A preflight of a page that may not: no failure, and no consent.
    Preflight,
}

impl Refusal {
    /// Of a head that is not taken.
    pub(super) fn of_head(cause: Cause) -> Self {
        Self::Failed(Failure::downstream(Stage::Head, cause))
    }

    /// Of a request whose head is; `None` for one that is served.
    pub(super) fn of(head: &Understood, is_allowed: bool, chosen: Option<&Chosen<'_>>) -> Option<Self> {
        if !is_allowed {
            return Some(Self::Failed(Failure::downstream(Stage::Authorize, Cause::Denied)));
        }
        if chosen.is_some_and(actions::is_too_long) {
            return Some(Self::of_head(Cause::TargetTooLong));
        }
        if chosen.and_then(actions::preflight) == Some(false) {
            return Some(Self::Preflight);
        }
        if head.ends_here || chosen.is_some_and(Chosen::is_answered) {
            return None;
        }
        let of_route = |cause| Some(Self::Failed(Failure::local(Stage::Route, cause)));
        let upgrades = chosen.map(|chosen| chosen.route.upgrades);
        if head.connect && !upgrades.is_some_and(|upgrades| upgrades.connect) {
            return of_route(Cause::MethodRefused);
        }
        let Some(upgrades) = upgrades else { return of_route(Cause::NoRoute) };
        if head.websocket && !upgrades.websocket {
            return of_route(Cause::UpgradeRefused);
        }
        head.is_too_large.then_some(Self::of_head(Cause::BodyTooLarge))
    }

    /// Calls of gRPC are told by a status of their own.
    pub(super) fn line(&self, is_grpc: bool) -> Line {
        match self {
            Self::Failed(failure) if is_grpc => {
                let (status, label) = (Snapshot::grpc_status(*failure), failure.to_string());
                let text = format!("with grpc-status {status} ({label})");
                Line::new("refused", text, json!({ "status": 200, "grpc_status": status, "failure": label }))
            }
            Self::Failed(failure) => {
                let (status, label) = (failure.status(), failure.to_string());
                let text = format!("with {status} ({label})");
                Line::new("refused", text, json!({ "status": status, "failure": label }))
            }
            Self::Preflight => {
                let text = "with 403: the page may not read what is here";
                Line::new("refused", text, json!({ "status": 403, "failure": null }))
            }
        }
    }
}
