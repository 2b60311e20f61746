//! What a new configuration changes about the listeners, and why a configuration is refused. Pure; the control loop acts
//! on it.
//!
//! A listener whose address stays is not touched, so its connections and its accept queue stay. It also keeps the name
//! that the shards know it by until a restart, since only its name in the log would change.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::time::sleep;

use super::Source;
use super::collector::Target;
use super::identity::{SourceError, TlsSettings};
use super::listen::{self, BindError};
use super::log_writer::{self, LogWriter};
use super::probe::Plan;
use super::run::{APPLY_MAX, Control, SOON, give_out, order};
use super::start::{IDENTITY_WAIT, NAMES_WAIT};
use super::state::Place;
use crate::config::{Destination, Loaded, Report, Settings};
use crate::shard::link::{Link, Order};
use crate::snapshot::{Listener, Snapshot};

/// Why a configuration was not taken. Nothing has changed then.
#[derive(Debug)]
pub enum ReloadError {
    /// The text has errors: all of them, with places and remedies.
    Config(Report),
    /// A new listener cannot be bound.
    Bind(BindError),
    /// The listeners cannot be changed this way.
    Listeners(String),
    /// A certificate, key or file of roots cannot be used.
    Tls(SourceError),
    /// The access log's new file cannot be opened.
    Log {
        /// The file.
        destination: String,
        /// What was answered.
        error: io::Error,
    },
    /// Control is ending, too many commands wait, or no thread is to be had.
    Busy,
}

impl std::fmt::Display for ReloadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config(report) => report.fmt(f),
            Self::Bind(error) => error.fmt(f),
            Self::Listeners(problem) => f.write_str(problem),
            Self::Tls(error) => write!(f, "{error}\n  help: {}", error.remedy),
            Self::Log { destination, error } => {
                write!(
                    f,
                    "the access log {destination} cannot be opened: {error}\n  help: check that its folder exists and may be written to"
                )
            }
            Self::Busy => f.write_str("the proxy is ending, or busy with other commands"),
        }
    }
}

impl std::error::Error for ReloadError {}

/// What becomes of the listeners.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Diff {
    /// Not touched.
    pub kept: Vec<Place>,
    /// To be bound.
    pub added: Vec<Listener>,
    /// To be closed.
    pub removed: Vec<Place>,
    /// Kept under their old names.
    pub renamed: Vec<Renamed>,
}

/// A listener that keeps its address and got another name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Renamed {
    /// The name that the shards know it by.
    pub kept: Arc<str>,
    /// The name that is configured now.
    pub configured: Arc<str>,
}

/// Compares the listeners that run with those that are wanted.
///
/// # Errors
/// When a new listener has the name of one that keeps its address and its old name.
pub(super) fn diff<'l>(
    running: &[Place],
    wanted: impl Iterator<Item = &'l Listener>,
) -> Result<Diff, String> {
    let mut left: Vec<Option<&Place>> = running.iter().map(Some).collect();
    let mut diff = Diff::default();
    let mut unmatched = Vec::new();
    for listener in wanted {
        let same = |p: &Option<&Place>| {
            p.is_some_and(|p| p.name == listener.name && p.configured == listener.address)
        };
        match left.iter_mut().find(|p| same(p)).and_then(Option::take) {
            Some(place) => diff.kept.push(place.clone()),
            None => unmatched.push(listener),
        }
    }
    for listener in unmatched {
        // Port 0 is a new port each time: the address says nothing about who it is.
        let same = |p: &Option<&Place>| {
            p.is_some_and(|p| p.configured == listener.address && p.configured.port() != 0)
        };
        match left.iter_mut().find(|p| same(p)).and_then(Option::take) {
            Some(place) => {
                diff.renamed
                    .push(Renamed { kept: Arc::clone(&place.name), configured: Arc::clone(&listener.name) });
                diff.kept.push(place.clone());
            }
            None => diff.added.push(listener.clone()),
        }
    }
    diff.removed = left.into_iter().flatten().cloned().collect();
    match diff.added.iter().find(|a| diff.kept.iter().any(|k| k.name == a.name)) {
        Some(clash) => Err(format!(
            "listener `{}` cannot be added: the listener that keeps its address had this name\n  help: choose \
             another name, or restart",
            clash.name
        )),
        None => Ok(diff),
    }
}

/// Where the access log is written from now on, and by whom.
type Moved = (Destination, LogWriter);

impl Control {
    /// Takes a new configuration, counts it and logs what became of it.
    pub(super) async fn reload(&mut self, text: Option<String>) -> Result<u64, ReloadError> {
        let began = Instant::now();
        let done = Box::pin(self.take_configuration(text)).await;
        self.ticks = 0;
        let mut live = self.state.live();
        match &done {
            Ok(generation) => {
                live.reloads_good += 1;
                live.refused_before = true;
                drop(live);
                let took = began.elapsed();
                tracing::info!(generation, ?took, "configuration in use");
            }
            Err(error) => {
                live.reloads_bad += 1;
                live.refused_before = false;
                live.refused = Some((SystemTime::now(), error.to_string()));
                let generation = live.snapshot.generation;
                drop(live);
                // No fields: they would be glued to the last line.
                let said = error.to_string();
                let said = said.trim_end();
                tracing::error!(
                    "configuration refused; nothing has changed, generation {generation} stays in use\n{said}"
                );
            }
        }
        done
    }

    async fn take_configuration(&mut self, text: Option<String>) -> Result<u64, ReloadError> {
        self.watch.mark();
        let source = match (&self.source, text) {
            (Source::Text { name, .. }, Some(text)) => Source::Text { name: name.clone(), text },
            (Source::Files(_), Some(text)) => Source::Text { name: "configuration".into(), text },
            (source, None) => source.clone(),
        };
        let Loaded { mut compiled, warnings } = match source.load(self.env) {
            Ok(loading) => loading.await.map_err(|_| ReloadError::Busy)?.map_err(ReloadError::Config)?,
            Err(_) => return Err(ReloadError::Busy),
        };
        if !warnings.is_empty() {
            tracing::warn!("configuration has warnings\n{warnings}");
        }

        // Everything that can fail, before anything changes.
        let running = self.state.live().listeners.clone();
        let diff = diff(&running, compiled.listeners()).map_err(ReloadError::Listeners)?;
        let log = self.new_log(&compiled.settings)?;
        let mut added = Vec::new();
        for listener in &diff.added {
            added.push(listen::bind(listener, self.state.links.len()).map_err(|e| e.of_reload(&running))?);
        }

        let certificates = self.keyring.prepare(&TlsSettings::of(&compiled)).map_err(ReloadError::Tls)?;

        for Renamed { kept, configured } in &diff.renamed {
            tracing::warn!(%kept, %configured, "the listener's address is unchanged; its new name needs a restart");
        }
        let waiting = compiled.settings.need_restart(&self.settings);
        for key in &waiting {
            tracing::warn!(key, "the new value needs a restart; the old one stays in use");
        }
        self.discovery.configure(compiled.names_of_services(), NAMES_WAIT).await;
        self.keyring.adopt(certificates, IDENTITY_WAIT).await;
        let listeners = diff.kept.into_iter().chain(added.iter().map(Place::from)).collect();
        let generation = {
            let mut live = self.state.live();
            live.listeners = listeners;
            live.waiting = waiting;
            compiled.share(&live.compiled);
            live.compiled = Arc::new(compiled);
            live.snapshot.generation + 1
        };
        self.state.canaries().configure(self.state.live().compiled.clone().canaries());
        let snapshot = self.publish(generation);
        let names = snapshot.services.iter().map(|s| Arc::clone(&s.name));
        let rules = snapshot.authorization.rules().iter().map(|r| Arc::clone(&r.name));
        self.state.store().configure(names, Instant::now());
        self.state.store().configure_rules(rules);
        self.state.store().configure_routes(snapshot.routes.routes().iter().map(|r| Arc::clone(&r.name)));
        if let Some((to, writer)) = log {
            tracing::info!(destination = log_writer::shown(&to), "access log");
            self.log_to = Some(to);
            // The old one writes what it finds and ends by itself.
            *self.state.log() = Some(writer);
        }
        for place in &diff.removed {
            tracing::info!(listener = %place.name, address = %place.address, "no longer listening");
            for link in &self.state.links {
                order(link, Order::Unlisten(Arc::clone(&place.name))).await;
            }
        }
        for bound in &added {
            tracing::info!(listener = %bound.name, address = %bound.address, "listening");
        }
        give_out(&self.state, added).await;
        self.until_applied(generation).await;
        Ok(generation)
    }

    /// What the configuration stands for has changed: addresses of a name, or certificates.
    pub(super) fn republish(&self, what: &'static str) {
        let generation = self.state.live().snapshot.generation + 1;
        self.publish(generation);
        tracing::info!(generation, "{what}");
    }

    /// Compiles the configuration with the addresses known now, and gives it to all shards.
    fn publish(&self, generation: u64) -> Arc<Snapshot> {
        let mut live = self.state.live();
        let resolve = |name: &str, port: u16| self.discovery.addresses(name, port);
        let mut snapshot = live.compiled.snapshot(generation, &resolve);
        let presented = self.keyring.presented();
        snapshot.present(&presented);
        let target = Target::of(&live.compiled, &presented, snapshot.identity.as_ref());
        self.state.canaries().apply(&mut snapshot);
        for listener in &mut snapshot.listeners {
            // Shards know a listener by the name that it was bound under.
            if let Some(place) =
                live.listeners.iter().find(|p| p.configured == listener.address && p.configured.port() != 0)
            {
                listener.name = Arc::clone(&place.name);
            }
        }
        snapshot.keep_health(&live.snapshot);
        let snapshot = Arc::new(snapshot);
        live.snapshot = Arc::clone(&snapshot);
        drop(live);
        let plan = Plan::of(&snapshot);
        for link in &self.state.links {
            link.publish(Arc::clone(&snapshot));
        }
        self.probes.send_replace(plan);
        self.collector.send_if_modified(|now| {
            let changes = *now != target;
            *now = target;
            changes
        });
        snapshot
    }

    /// A writer for the access log, if it is to be written elsewhere than now.
    fn new_log(&self, wanted: &Settings) -> Result<Option<Moved>, ReloadError> {
        match &wanted.access_log {
            Some(log) if self.log_to.as_ref() != Some(&log.path) => {
                let failed = |error| ReloadError::Log { destination: log_writer::shown(&log.path), error };
                let writer = LogWriter::start(log.path.clone(), self.state.links.clone()).map_err(failed)?;
                Ok(Some((log.path.clone(), writer)))
            }
            _ => Ok(None),
        }
    }

    async fn until_applied(&self, generation: u64) {
        let deadline = Instant::now() + APPLY_MAX;
        let late = |(n, link): &(usize, &Arc<Link>)| !self.shards[*n].is_finished() && !link.runs(generation);
        while let Some((shard, _)) = self.state.links.iter().enumerate().find(late) {
            if Instant::now() >= deadline {
                tracing::warn!(
                    shard,
                    generation,
                    "shard does not run the new configuration yet; something keeps its thread"
                );
                return;
            }
            sleep(SOON).await;
        }
    }
}

impl BindError {
    /// The same, said better where the address is taken by this very proxy.
    fn of_reload(self, running: &[Place]) -> ReloadError {
        let own =
            |p: &&Place| p.address.port() == self.address.port() && same_family(p.address, self.address);
        match running.iter().find(own) {
            Some(own) if self.problem.kind() == io::ErrorKind::AddrInUse => ReloadError::Listeners(format!(
                "{} cannot listen on {}: this proxy listens on {} already (listener `{}`)\n  help: \
                 such a change needs a restart",
                self.who(),
                self.address,
                own.address,
                own.name
            )),
            _ => ReloadError::Bind(self),
        }
    }
}

fn same_family(a: SocketAddr, b: SocketAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(name: &str, address: &str) -> Listener {
        Listener {
            name: name.into(),
            address: address.parse().unwrap(),
            tls: crate::snapshot::ListenerTls::Off,
            grpc_web: false,
        }
    }

    fn place(name: &str, address: &str) -> Place {
        let address = address.parse().unwrap();
        Place { name: name.into(), configured: address, address }
    }

    fn names<'a>(names: impl Iterator<Item = &'a Arc<str>>) -> Vec<String> {
        names.map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_that_stays_is_not_touched_whatever_its_name() {
        let running = [place("a", "127.0.0.1:1"), place("b", "127.0.0.1:2"), place("c", "127.0.0.1:3")];
        let wanted =
            [listener("c", "127.0.0.1:3"), listener("new", "127.0.0.1:1"), listener("d", "127.0.0.1:4")];
        let diff = diff(&running, wanted.iter()).unwrap();
        assert_eq!(names(diff.kept.iter().map(|p| &p.name)), ["c", "a"]);
        assert_eq!(names(diff.added.iter().map(|l| &l.name)), ["d"]);
        assert_eq!(names(diff.removed.iter().map(|p| &p.name)), ["b"]);
        assert_eq!(diff.renamed, [Renamed { kept: "a".into(), configured: "new".into() }]);
    }

    #[test]
    fn a_name_may_move_to_a_new_address_but_not_while_its_old_address_keeps_it() {
        let running = [place("a", "127.0.0.1:1")];
        let moved = diff(&running, [listener("a", "127.0.0.1:2")].iter()).unwrap();
        assert_eq!((moved.kept.len(), moved.added.len(), moved.removed.len()), (0, 1, 1));
        let clash = diff(&running, [listener("b", "127.0.0.1:1"), listener("a", "127.0.0.1:2")].iter());
        assert!(clash.unwrap_err().contains("`a`"));
    }

    #[test]
    fn ports_that_the_kernel_chose_are_told_apart_by_name() {
        let mut running = [place("a", "127.0.0.1:0"), place("b", "127.0.0.1:0")];
        running[0].address.set_port(1001);
        running[1].address.set_port(1002);
        let diff =
            diff(&running, [listener("b", "127.0.0.1:0"), listener("c", "127.0.0.1:0")].iter()).unwrap();
        assert_eq!(diff.kept, [running[1].clone()]);
        assert_eq!(names(diff.added.iter().map(|l| &l.name)), ["c"]);
        assert_eq!(diff.removed, [running[0].clone()]);
    }
}
