//! A file that is read in pieces means what it means as a whole: compared over seeded changes of a long example, by what
//! is taken and by every line of what is refused.

use std::fmt::Write as _;

use super::report::Problems;
use super::{Loaded, Report};

fn read(text: &str, chunk_bytes: usize) -> Result<Loaded, Report> {
    super::check(vec![("t.toml".into(), text.into())], &|_| None, chunk_bytes, Problems::default())
}

/// What came of it, as text; `None` where the text is no TOML (the parser's advice may differ then).
fn outcome(result: &Result<Loaded, Report>) -> Option<String> {
    match result {
        Ok(loaded) => Some(format!("{:?}\n{:?}", loaded.compiled.effective(), loaded.warnings)),
        Err(report) if report.lines().any(|line| line.contains("not TOML")) => None,
        Err(report) => Some(format!("{report:?}")),
    }
}

#[test]
fn a_file_in_pieces_means_what_it_means_as_a_whole() {
    let seed =
        std::env::var("RINGMESH_SEED").map_or_else(|_| fastrand::u64(..), |text| text.parse().unwrap());
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut in_pieces = 0;
    for round in 0..600 {
        let text = example(&mut rng);
        in_pieces += usize::from(super::chunks::chunks(&text, 1).len() > 1);
        let (whole, pieces) = (read(&text, usize::MAX), read(&text, 1));
        match (outcome(&whole), outcome(&pieces)) {
            (Some(whole), Some(pieces)) => {
                assert_eq!(whole, pieces, "RINGMESH_SEED={seed} round {round}\n{text}")
            }
            (None, None) => {}
            other => panic!("RINGMESH_SEED={seed} round {round}: {other:?}\n{text}"),
        }
    }
    assert!(in_pieces > 100, "RINGMESH_SEED={seed}: only {in_pieces} of 600 were cut");
}

/// Lines of which most fit together, in an order that mostly does.
fn example(rng: &mut fastrand::Rng) -> String {
    const LINES: [&str; 22] = [
        "[limits]",
        "fields_max = 7",
        "limits.fields_max = 8",
        "[timeouts]",
        "head = 5",
        "[service.pool]",
        "idle_max = 3",
        "[service.timeouts]",
        "connect = \"2s\"",
        "pool.idle_max = 2",
        "pool = { idle_max = 4 }",
        "[[service]]",
        "[ [service] ]",
        "[[ service ]]",
        "[[route]]",
        "[\"service\"]",
        "service = []",
        "endpoints = [\n\"a:1\",\n[[1]]\n]",
        "name = \"\"\"\n[[service]]\"\"\"",
        "[service]",
        "[[service.pool]]",
        "x = 1 # [[service]]",
    ];
    let mut text = String::new();
    let changes = rng.usize(0..5);
    let parts = rng.usize(2..9);
    for part in 0..parts {
        let _ = write!(text, "[[service]]\nname = \"s{part}\"\nendpoints = [\"10.0.0.{part}:80\"]\n");
        let _ = write!(text, "[[route]]\nservice = \"s{}\"\npath = \"/{part}\"\n", rng.usize(0..parts));
    }
    let mut lines: Vec<&str> = text.lines().collect();
    for _ in 0..changes {
        let at = rng.usize(0..=lines.len());
        lines.insert(at, LINES[rng.usize(0..LINES.len())]);
    }
    lines.join("\n")
}
