//! Active probes: once per proxy, on the control thread, of each endpoint of a service with `[service.probe]`. What they find
//! goes to the shards by one atomic per endpoint (`upstream::health`), at once and without a new snapshot.
//!
//! A task of its own ([`Prober::run`]); told what to probe whenever a snapshot is published ([`Plan`]). At most
//! [`PROBED_MAX`] endpoints are probed and [`IN_FLIGHT_MAX`] probes are under way; what is due then waits. Endpoints that
//! stay keep what is known of them. Never reaches into a shard.

mod check;
mod course;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use self::check::Asked;
use self::course::{Course, Found, State};
use crate::snapshot::Snapshot;
use crate::upstream::health::{Counts, Probed, Standing};
use crate::upstream::spec::Address;

/// Endpoints probed; further ones are used as if there were no probes, which is logged.
pub(super) const PROBED_MAX: usize = 4096;
/// Probes under way.
const IN_FLIGHT_MAX: usize = 64;

/// What is to be probed.
#[derive(Debug, Default)]
pub(super) struct Plan {
    targets: Vec<Target>,
}

#[derive(Debug, Clone)]
struct Target {
    asked: Asked,
    standing: Arc<Standing>,
    counts: Arc<Counts>,
}

/// Probes what the plan says.
pub(super) struct Prober {
    plan: watch::Receiver<Plan>,
    entries: HashMap<Key, Entry>,
    /// What waits for its time, the next first.
    due: BTreeSet<(Instant, Key)>,
    running: JoinSet<(Found, String)>,
    /// Whom each of them is about.
    asked: HashMap<Id, Key>,
    next_number: u64,
    numbers: HashMap<(Arc<str>, Address), Key>,
}

/// The number of an entry: never used again, so that what was asked of one that is gone is nobody's.
type Key = u64;

struct Entry {
    target: Target,
    course: Course,
    /// When it is probed next; `None` while it is.
    due: Option<Instant>,
}

impl Plan {
    /// What a snapshot wants probed, made before shards have it: who waits for its first probe is marked so. Says so if that is
    /// too much.
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let mut plan = Self::default();
        let mut left = 0;
        for (service, health) in snapshot.services.iter().zip(&snapshot.health) {
            let Some(rules) = &service.probe else { continue };
            let known = health.of(service.endpoints.len());
            for (endpoint, standing) in service.endpoints.iter().zip(&known.endpoints) {
                if plan.targets.len() == PROBED_MAX {
                    left += 1;
                    continue;
                }
                let asked = Asked {
                    service: Arc::clone(&service.name),
                    address: endpoint.address.clone(),
                    rules: Arc::clone(rules),
                    protocol: service.protocol,
                    tls: service.tls.clone(),
                    own: snapshot.identity.clone(),
                };
                let counts = Arc::clone(&known.counts);
                let target = Target { asked, standing: Arc::clone(standing), counts };
                target.tell_first();
                plan.targets.push(target);
            }
        }
        if left > 0 {
            tracing::warn!(
                probed = PROBED_MAX,
                left,
                "too many endpoints to be probed; the last ones are used as if there were no probes"
            );
        }
        plan
    }
}

impl Prober {
    /// Ready to go: the shards know already who waits for its first probe.
    pub(super) fn new(plan: watch::Receiver<Plan>) -> Self {
        let mut prober = Self {
            plan,
            entries: HashMap::new(),
            due: BTreeSet::new(),
            running: JoinSet::new(),
            asked: HashMap::new(),
            next_number: 0,
            numbers: HashMap::new(),
        };
        prober.adopt();
        prober
    }

    /// Probes until nobody makes plans any more.
    pub(super) async fn run(mut self) {
        loop {
            self.start_due();
            let next = self.due.first().map(|(due, _)| *due);
            let full = self.running.len() >= IN_FLIGHT_MAX;
            tokio::select! {
                changed = self.plan.changed() => match changed {
                    Ok(()) => self.adopt(),
                    Err(_) => return,
                },
                Some(done) = self.running.join_next_with_id(), if !self.running.is_empty() => {
                    let (id, found, words) = match done {
                        Ok((id, (found, words))) => (id, found, words),
                        Err(error) => {
                            tracing::error!(%error, "a probe panicked; please report this");
                            (error.id(), Found::Failed, "it panicked".to_owned())
                        }
                    };
                    if let Some(key) = self.asked.remove(&id) {
                        self.settle(key, found, &words);
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && !full => {}
            }
        }
    }

    /// Takes a new plan: what stays goes on as it was, what is new is probed at once.
    fn adopt(&mut self) {
        let targets = self.plan.borrow_and_update().targets.clone();
        let mut numbers = HashMap::with_capacity(targets.len());
        let now = Instant::now();
        for target in targets {
            let name = (Arc::clone(&target.asked.service), target.asked.address.clone());
            // An address stands once in a service; were it there twice, the first would be probed.
            if numbers.contains_key(&name) {
                continue;
            }
            let known = self.numbers.remove(&name).filter(|key| {
                self.entries
                    .get(key)
                    .is_some_and(|entry| Arc::ptr_eq(&entry.target.standing, &target.standing))
            });
            let key = match known {
                Some(key) => key,
                None => {
                    self.next_number += 1;
                    // It was marked, unless it left in the meantime and came back.
                    target.tell_first();
                    let entry = Entry { target: target.clone(), course: Course::new(), due: Some(now) };
                    self.due.insert((now, self.next_number));
                    self.entries.insert(self.next_number, entry);
                    self.next_number
                }
            };
            if let Some(entry) = self.entries.get_mut(&key) {
                // By other rules at once: what was agreed on before may be an hour away.
                if entry.target.asked.rules != target.asked.rules
                    && let Some(due) = entry.due.replace(now)
                {
                    self.due.remove(&(due, key));
                    self.due.insert((now, key));
                }
                entry.target = target;
            }
            numbers.insert(name, key);
        }
        for key in std::mem::replace(&mut self.numbers, numbers).into_values() {
            if let Some(entry) = self.entries.remove(&key) {
                if let Some(due) = entry.due {
                    self.due.remove(&(due, key));
                }
                // Whoever has it in the next snapshot does without probes.
                entry.target.tell(Probed::Unprobed);
            }
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        while self.running.len() < IN_FLIGHT_MAX {
            let Some(&(due, key)) = self.due.first().filter(|(due, _)| *due <= now) else { return };
            self.due.remove(&(due, key));
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.due = None;
            let asked = entry.target.asked.clone();
            let probe = self.running.spawn(async move {
                let found = timeout(asked.rules.timeout, check::check(&asked)).await;
                found.unwrap_or_else(|_| (Found::Failed, "no answer in time".to_owned()))
            });
            self.asked.insert(probe.id(), key);
        }
    }

    fn settle(&mut self, key: Key, found: Found, words: &str) {
        // It may have left the configuration in the meantime.
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let Target { asked, standing, counts } = &entry.target;
        if found == Found::Nothing {
            tracing::debug!(service = %asked.service, endpoint = %asked.address, reason = words, "not probed");
        }
        // A shard may have been told by the endpoint itself.
        if standing.probed() == Probed::Failing && entry.course.state() == State::Passing {
            entry.course.take(Found::FailedAtOnce, &asked.rules);
            tracing::warn!(service = %asked.service, endpoint = %asked.address, "an endpoint wants to be left at once");
        }
        match found {
            Found::Nothing => {}
            Found::Passed => _ = counts.probes_passed.fetch_add(1, Ordering::Relaxed),
            Found::Failed | Found::FailedAtOnce => _ = counts.probes_failed.fetch_add(1, Ordering::Relaxed),
        }
        let changed = entry.course.take(found, &asked.rules);
        match entry.course.state() {
            State::Passing => {
                entry.target.tell(Probed::Passing);
                // What takes connections at another port need not take them at its own.
                if found == Found::Passed && asked.rules.port.is_none() && standing.bring_back() {
                    counts.returns.fetch_add(1, Ordering::Relaxed);
                    counts.changed();
                    tracing::info!(
                        service = %asked.service, endpoint = %asked.address, "a probe has reached it: it is used again"
                    );
                }
                if changed {
                    tracing::info!(service = %asked.service, endpoint = %asked.address, "an endpoint passes its probes");
                }
            }
            State::Failing => {
                entry.target.tell(Probed::Failing);
                if changed {
                    tracing::warn!(
                        service = %asked.service, endpoint = %asked.address, reason = words,
                        "an endpoint fails its probes and is passed over"
                    );
                }
            }
            State::Unknown => {}
        }
        let due = Instant::now() + entry.course.pause(&entry.target.asked.rules, fastrand::f64());
        entry.due = Some(due);
        self.due.insert((due, key));
    }
}

impl Target {
    /// Tells the shards what holds until the first probe, unless more is known.
    fn tell_first(&self) {
        if self.standing.probed() == Probed::Unprobed {
            self.tell(if self.asked.rules.waits { Probed::Awaited } else { Probed::Unknown });
        }
    }

    /// Tells the shards.
    fn tell(&self, probed: Probed) {
        if self.standing.set_probed(probed) {
            self.counts.changed();
        }
    }
}
