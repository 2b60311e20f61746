//! Where a canary stands, kept in a small file: read when the canary is configured, written at each move. Replaced by a rename,
//! so that it is whole whenever the process or the machine ends.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::course::Phase;
use crate::config::Canary;

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) phase: Phase,
    /// Index into the steps.
    pub(super) step: usize,
    pub(super) reason: String,
}

/// The most that is read: it has a few hundred bytes.
const BYTES_MAX: u64 = 64 * 1024;

/// What the file says of this canary; `None` where there is none, or it is about another canary.
///
/// # Errors
/// When there is one that cannot be read or understood.
pub(super) fn read(canary: &Canary) -> Result<Option<Kept>, String> {
    match fs::metadata(&canary.state) {
        Ok(facts) if facts.len() > BYTES_MAX => {
            return Err(format!("{} bytes are no state of a canary", facts.len()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    }
    let text = fs::read_to_string(&canary.state).map_err(|error| error.to_string())?;
    let value: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let word = |key: &str| value[key].as_str().ok_or_else(|| format!("no `{key}`"));
    let same = [("route", &canary.route), ("baseline", &canary.baseline), ("canary", &canary.canary)]
        .into_iter()
        .all(|(key, name)| value[key].as_str() == Some(name));
    if !same {
        return Ok(None);
    }
    let phase = Phase::named(word("phase")?).ok_or("an unknown phase")?;
    let step = value["step"].as_u64().and_then(|step| usize::try_from(step).ok()).filter(|step| *step > 0);
    Ok(Some(Kept { phase, step: step.ok_or("no `step`")? - 1, reason: word("reason")?.to_owned() }))
}

/// Writes it.
///
/// # Errors
/// What the system says.
pub(super) fn write(canary: &Canary, kept: &Kept) -> io::Result<()> {
    if let Some(folder) = canary.state.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut beside = canary.state.clone().into_os_string();
    beside.push(".new");
    let text = json!({
        "name": &*canary.name, "route": &*canary.route, "baseline": &*canary.baseline, "canary": &*canary.canary,
        "phase": kept.phase.word(), "step": kept.step + 1, "reason": kept.reason,
    });
    let mut file = File::create(&beside)?;
    writeln!(file, "{text:#}")?;
    file.sync_all()?;
    fs::rename(&beside, &canary.state)?;
    // The name, too: what was rolled back must not be back after the power fails.
    match canary.state.parent() {
        Some(folder) if folder != Path::new("") => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::CanaryRules;
    use crate::control::testing::Folder;

    fn canary(state: &Path) -> Canary {
        Canary {
            name: "shop".into(),
            route: "shop".into(),
            baseline: "a".into(),
            canary: "b".into(),
            rules: CanaryRules {
                steps: [1.0, 100.0].into(),
                step_time: Duration::from_secs(1),
                samples_min: 20,
                errors_tolerated: 0.0,
                latency_tolerated: 0.0,
                false_alarms_max: 0.01,
            },
            state: state.to_owned(),
        }
    }

    #[test]
    fn what_is_written_is_read_again_by_the_same_canary_only() {
        let folder = Folder::new("canary-kept");
        let path = folder.path("deeper/shop.json");
        let canary = canary(&path);
        assert_eq!(read(&canary), Ok(None));
        for phase in [Phase::Running, Phase::Paused, Phase::Promoted, Phase::RolledBack] {
            let kept = Kept { phase, step: 3, reason: "because \"of\" that".into() };
            write(&canary, &kept).unwrap();
            assert_eq!(read(&canary), Ok(Some(kept)));
        }
        let other = Canary { canary: "c".into(), ..canary };
        assert_eq!(read(&other), Ok(None));
        assert!(!path.with_extension("json.new").exists());
    }

    #[test]
    fn what_is_no_state_is_an_error_and_not_a_new_beginning() {
        let folder = Folder::new("canary-bad");
        let path = folder.path("shop.json");
        let canary = canary(&path);
        let good = "{\"route\": \"shop\", \"baseline\": \"a\", \"canary\": \"b\", ";
        for bad in [
            "",
            "{",
            "[]x",
            &format!("{good}\"phase\": \"gone\", \"step\": 1, \"reason\": \"\"}}"),
            &format!("{good}\"phase\": \"running\", \"step\": 0, \"reason\": \"\"}}"),
            &format!("{good}\"phase\": \"running\", \"step\": -1, \"reason\": \"\"}}"),
            &format!("{good}\"phase\": \"running\", \"step\": 1}}"),
            &"x".repeat(70_000),
        ] {
            fs::write(&path, bad).unwrap();
            assert!(read(&canary).is_err(), "{bad}");
        }
    }
}
