//! What an operator is told of keys that mean something else than they seem to: nothing at all, everything, or each the
//! opposite of the other.

use ringmesh::config;

/// What is told of a file: errors, or else warnings.
fn told(text: &str) -> Vec<String> {
    match config::parse("test.toml", text, &|_| None) {
        Ok(loaded) => loaded.warnings.lines().collect(),
        Err(report) => report.lines().collect(),
    }
}

/// A listener, the service `a` with two endpoints and these keys, and a route with these.
fn with(service: &str, route: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"a\"\nendpoints = [\"127.0.0.1:1\", \
         \"127.0.0.1:2\"]\n{service}\n[[route]]\n{route}\n"
    )
}

/// Each text has one line that begins with the severity and contains the rest; with an empty one it has no line.
fn each(cases: &[(String, &str, &str)]) {
    for (text, severity, expected) in cases {
        let lines = told(text);
        if severity.is_empty() {
            assert!(lines.is_empty(), "{text}\n{lines:#?}");
            continue;
        }
        let marked = format!(": {severity}: ");
        assert!(
            lines.len() == 1 && lines[0].contains(&marked) && lines[0].contains(expected),
            "{text}\nwanted: {severity}: {expected}\nfound: {lines:#?}"
        );
    }
}

#[test]
fn an_empty_list_that_would_mean_all_is_an_error() {
    let route = |keys: &str| with("", &format!("service = \"a\"\n{keys}"));
    let identity = "[identity]\nsource = \"embedded\"\nid = \"spiffe://mesh.local/a\"\n";
    let all = "is empty, so that it would mean all, not none; leave `hosts` out for all";
    each(&[
        (route("hosts = []"), "error", all),
        (route("match = { methods = [] }"), "error", "route.match.methods is empty"),
        (route("match = { listeners = [] }"), "error", "route.match.listeners is empty"),
        (route("match = { headers = {} }"), "error", "route.match.headers is empty"),
        (
            format!("{identity}{}", with("tls = \"mesh\"\nidentities = []", "service = \"a\"")),
            "error",
            "service.identities is empty, so that it would mean all, not none",
        ),
        // These mean none.
        (route("retry = { on = [], statuses = [], methods = [] }"), "", ""),
        (route("upgrades = []"), "", ""),
    ]);
}

#[test]
fn a_method_in_lower_case_is_an_error_wherever_methods_are_listed() {
    let wants = "`post` is not `POST`: methods differ by case; write \"POST\"";
    let cors = "cors = { origins = [\"https://a.example\"], methods = [\"post\"] }";
    each(&[
        (with("retry = { methods = [\"post\"] }", "service = \"a\""), "error", wants),
        (with("", "service = \"a\"\nretry = { methods = [\"post\"] }"), "error", wants),
        (with("", "service = \"a\"\nmatch = { methods = [\"post\"] }"), "error", wants),
        (with("", &format!("service = \"a\"\n{cors}")), "error", wants),
        (
            format!(
                "{}[[authorization]]\naction = \"deny\"\nmethods = [\"post\"]\n",
                with("", "service = \"a\"")
            ),
            "error",
            wants,
        ),
        (
            with("", "service = \"a\"\nretry = { methods = [\"*\"] }"),
            "error",
            "`*` is not a method; write each one that may be sent again",
        ),
        (with("", "service = \"a\"\nretry = { methods = [\"POST\", \"PATCH\"] }"), "", ""),
    ]);
}

#[test]
fn origins_are_told_of_once_and_for_what_they_mean() {
    let cors = |keys: &str| with("", &format!("service = \"a\"\ncors = {{ {keys} }}"));
    let any = "every page could read what its visitors may see here";
    each(&[
        (cors("origins = [{ regex = \".*\" }], credentials = true"), "error", any),
        (cors("origins = [{ regex = \"https?://.+\" }], credentials = true"), "error", any),
        (cors("origins = [\"*\"], credentials = true"), "error", any),
        (cors("origins = [{ regex = 'https://[a-z]+\\.example' }], credentials = true"), "", ""),
        (cors("origins = [{ regex = \".*\" }]"), "", ""),
        (cors("origins = [\"a.example\"]"), "error", "`a.example` has no scheme"),
        (cors("origins = []"), "error", "`cors` without `origins`"),
    ]);
}

#[test]
fn a_redirect_is_told_of_statuses_and_ports_as_they_are() {
    let redirect = |keys: &str| with("", &format!("redirect = {{ {keys} }}"));
    let statuses = "200 does not send anybody anywhere; write 301, 302, 303, 307 or 308";
    each(&[
        (redirect("host = \"b\", status = 200"), "error", statuses),
        (
            redirect("host = \"b\", status = 304"),
            "error",
            "304 does not send anybody anywhere; write 301, 302, 303",
        ),
        (redirect("host = \"b\", status = 70000"), "error", "70000 does not send anybody anywhere"),
        (
            redirect("host = \"b:80\""),
            "error",
            "the port of a redirect stands by itself; write host = \"b\", port = 80",
        ),
        (redirect("host = \"b c:80\""), "error", "route.redirect.host: "),
    ]);
}

#[test]
fn an_escape_that_toml_does_not_know_is_told_with_single_quotes() {
    let lines = told(&with("", "service = \"a\"\npath_regex = \"/x/\\d+\""));
    let wants =
        "`\\` begins an escape within double quotes: write the text in single quotes, or each `\\` twice";
    assert!(lines.len() == 1 && lines[0].contains("not TOML") && lines[0].contains(wants), "{lines:#?}");
    each(&[(with("", "service = \"a\"\npath_regex = '/x/\\d+'"), "", "")]);
}

#[test]
fn a_branch_that_matches_no_path_is_doubtful() {
    let regex = |regex: &str| with("", &format!("service = \"a\"\npath_regex = '{regex}'"));
    let wants = "the branch `b` matches no path: each begins with `/`; write \"/x/(?:a|b)\"";
    each(&[
        (regex("/x/a|b"), "warning", wants),
        (regex("/x/a|/y|b"), "warning", "write \"/x/(?:a|/y|b)\""),
        (
            regex("/(x|y)/a|b"),
            "warning",
            "the branch `b` matches no path: each begins with `/`; put what `|` is to part",
        ),
        (regex("/x|"), "warning", "the branch `` matches no path"),
        (regex("/x/(?:a|b)"), "", ""),
        (regex("/x/a|/y/b"), "", ""),
        (regex("/x/a|.*b"), "", ""),
    ]);
}
