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

// --- what never happens ---

#[test]
fn a_wait_that_another_one_ends_before_is_doubtful() {
    let retry = |keys: &str| format!("retry = {{ {keys} }}");
    let attempt = "no attempt takes 20s: each is ended by timeouts.response, which comes after 15s; let retry.attempt_timeout be \
                   less than 15s";
    each(&[
        (with(&retry("attempt_timeout = \"20s\""), "service = \"a\""), "warning", attempt),
        (with("", &format!("service = \"a\"\n{}", retry("attempt_timeout = \"20s\""))), "warning", attempt),
        (with(&retry("attempt_timeout = \"15s\""), "service = \"a\""), "", ""),
        (
            with(
                "timeouts = { response = \"30s\" }\nretry = { attempt_timeout = \"20s\" }",
                "service = \"a\"",
            ),
            "",
            "",
        ),
        (
            with(&retry("attempt_timeout = \"5s\""), "service = \"a\"\ntimeout = \"4s\""),
            "warning",
            "the route gives up after 4s, before its service does; let the route's timeout be at least 5s, or lower \
             retry.attempt_timeout",
        ),
        (
            with("", &format!("service = \"a\"\ntimeout = \"4s\"\n{}", retry("attempt_timeout = \"5s\""))),
            "warning",
            "before its service does",
        ),
        // What the route says of retries is in place of what the service says.
        (
            with(&retry("attempt_timeout = \"5s\""), "service = \"a\"\ntimeout = \"4s\"\nretry = \"off\""),
            "",
            "",
        ),
        (
            with(&retry("hedge_after = \"15s\""), "service = \"a\""),
            "warning",
            "no hedge begins after 15s: the attempt is ended by timeouts.response",
        ),
        (
            with(&retry("hedge_after = \"1s\""), "service = \"a\"\ntimeout = \"1s\""),
            "warning",
            "no hedge begins after 1s: the route gives up after 1s; let retry.hedge_after be less than 1s",
        ),
        (with(&retry("hedge_after = \"900ms\""), "service = \"a\"\ntimeout = \"1s\""), "", ""),
        (
            with("caps = { exchanges_max = 8, queue_timeout = \"2s\" }", "service = \"a\"\ntimeout = \"1s\""),
            "warning",
            "let the route's timeout be at least 2s, or lower caps.queue_timeout",
        ),
        (
            with("", "service = \"a\"\ntimeout = \"1s\"\nfault = { delay = { fixed = \"1s\" } }"),
            "warning",
            "a delay of 1s ends in 504 each time: the route gives up after 1s",
        ),
        (
            with(
                "",
                "service = \"a\"\ntimeout = \"1s\"\nfault = { delay = { least = \"100ms\", most = \"2s\" } }",
            ),
            "",
            "",
        ),
        // A copy does not wait for the route.
        (
            format!(
                "{}[[service]]\nname = \"b\"\nendpoints = [\"127.0.0.1:3\"]\ntimeouts = {{ response = \"9s\" }}\n",
                with("", "service = \"a\"\ntimeout = \"1s\"\nmirror = [{ service = \"b\" }]")
            ),
            "",
            "",
        ),
    ]);
}

#[test]
fn what_a_single_endpoint_has_no_use_for_is_doubtful() {
    let alone = |endpoints: &str, service: &str, route: &str| {
        with(service, &format!("service = \"a\"\n{route}"))
            .replace("[\"127.0.0.1:1\", \"127.0.0.1:2\"]", endpoints)
    };
    let one = "[\"127.0.0.1:1\"]";
    let hedge = "retry = { hedge_after = \"p95\" }";
    each(&[
        (alone(one, hedge, ""), "warning", "a request to a service with one endpoint is not hedged"),
        (alone(one, "", hedge), "warning", "a request to a service with one endpoint is not hedged"),
        (alone("[\"shop.internal:80\"]", hedge, ""), "", ""),
        (
            alone(one, "breaker = { consecutive_failures = 3 }", ""),
            "warning",
            "a service with one endpoint has no breaker: no other could be asked; add another endpoint",
        ),
        (alone(one, "breaker = { enabled = false }", ""), "", ""),
        (alone("[\"shop.internal:80\"]", "breaker = { consecutive_failures = 3 }", ""), "", ""),
        (
            alone(one, "", "")
                + "mirror = [{ service = \"b\" }]\n[[service]]\nname = \"b\"\nendpoints = [\"127.0.0.1:3\"]\nbreaker = { \
                   consecutive_failures = 3 }\n",
            "",
            "",
        ),
    ]);
}

#[test]
fn keys_without_effect_are_doubtful() {
    let service = |keys: &str| with(keys, "service = \"a\"");
    each(&[
        (
            service("breaker = { enabled = false, window = \"5s\", consecutive_failures = 3 }"),
            "warning",
            "no effect while the breaker is off: `consecutive_failures`, `window`; take them out, or `enabled = false`",
        ),
        (service("breaker = { enabled = false }"), "", ""),
        (
            service("caps = { exchanges_max = 8 }\nconcurrency = { limit_min = 9 }"),
            "warning",
            "nothing is learnt: exchanges_max is 8, and holds before",
        ),
        (service("caps = { exchanges_max = 8 }\nconcurrency = { limit_min = 8 }"), "", ""),
        (
            format!("[overload]\nmemory_max = \"10MiB\"\n{}", service("")),
            "warning",
            "with 10MiB requests are refused for what the process itself holds; write \"32MiB\" or more",
        ),
        (format!("[overload]\nmemory_max = \"32MiB\"\n{}", service("")), "", ""),
    ]);
}

// --- browsers ---

const CORS: &str = "cors = { origins = [\"https://a.example\"] }";

#[test]
fn a_route_that_sees_no_preflight_is_doubtful() {
    let route = |keys: &str| with("", &format!("service = \"a\"\n{CORS}\n{keys}"));
    let by_header = "match = { headers = { x-tier = \"gold\" } }";
    let rules = |headers: &str| {
        format!(
            "authorization_default = \"deny\"\n{}[[authorization]]\naction = \"allow\"\n{headers}\n",
            with("", &format!("service = \"a\"\n{CORS}"))
        )
    };
    each(&[
        (
            route(by_header),
            "warning",
            "are not answered by this route: they send no field `x-tier` then; add a [[route]] with the same host",
        ),
        (
            route("match = { cookies = { sid = { present = true } } }"),
            "warning",
            "they send no cookie `sid` then",
        ),
        (route("match = { methods = [\"GET\"] }"), "warning", "add \"OPTIONS\" to `methods`"),
        (route("match = { headers = { x-tier = { exact = \"gold\", not = true } } }"), "", ""),
        (route("match = { headers = { origin = \"https://a.example\" } }"), "", ""),
        // Another route answers them.
        (format!("{}[[route]]\nservice = \"a\"\n{CORS}\n", route(by_header)), "", ""),
        (
            format!(
                "{}[[route]]\nservice = \"a\"\n{CORS}\n",
                route(&format!("path_prefix = \"/x\"\n{by_header}"))
            ),
            "",
            "",
        ),
        (
            format!("{}[[route]]\nservice = \"a\"\nhosts = [\"b.example\"]\n{CORS}\n", route(by_header)),
            "warning",
            "they send no field `x-tier` then",
        ),
        // No rule is asked about them.
        (rules("headers = { x-tier = \"gold\" }"), "", ""),
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
fn a_cookie_that_browsers_or_the_route_itself_drop_is_told() {
    let cookie = |keys: &str, more: &str| {
        with(
            "",
            &format!("split = [{{ service = \"a\" }}]\nsticky = {{ set_cookie = {{ {keys} }} }}\n{more}"),
        )
    };
    let secure = "browsers drop a cookie `__Secure-...` that is not what its name says; write secure = true";
    let host = "browsers drop a cookie `__Host-...` that is not what its name says; write secure = true and path = \"/\"";
    let takes_out = "this takes the cookie out as well that `sticky` sets";
    each(&[
        (
            cookie("name = \"my cookie\"", ""),
            "error",
            "` ` cannot stand in the name of a cookie; write its name alone, a word of letters",
        ),
        (cookie("name = \"__Secure-v\"", ""), "error", secure),
        (cookie("name = \"__Host-v\"", ""), "error", host),
        (cookie("name = \"__host-v\", secure = true, path = \"/x\"", ""), "error", host),
        (cookie("name = \"__Host-v\", secure = true", ""), "", ""),
        (cookie("name = \"__Secure-v\", secure = true, path = \"/x\"", ""), "", ""),
        (cookie("name = \"v\"", "response_headers = { remove = [\"set-cookie\"] }"), "warning", takes_out),
        (
            cookie("name = \"v\"", "response_headers = { set = { set-cookie = \"a=b\" } }"),
            "warning",
            takes_out,
        ),
        (cookie("name = \"v\"", "response_headers = { remove = [\"server\"] }"), "", ""),
    ]);
}

// --- redirects and expressions ---

#[test]
fn a_redirect_to_where_callers_are_is_told() {
    // Without its service, which no route leads to.
    let route = |keys: &str| format!("[[listener]]\naddress = \"127.0.0.1:15001\"\n[[route]]\n{keys}\n");
    let encrypted = |keys: &str| {
        route(keys).replace("15001\"\n", "15001\"\ntls = \"terminate\"\ncertificate = \"/c\"\nkey = \"/k\"\n")
    };
    let other = |keys: &str| format!("{keys}\n[[route]]\nrespond = {{ status = 404 }}");
    let here = "this redirect sends callers to where they are; write another path";
    let again =
        "this redirect leads to this route again: its callers never arrive; add a [[route]] for the new path";
    each(&[
        (route("path_prefix = \"/x\"\nredirect = { path_prefix = \"/x/\" }"), "error", here),
        (route("redirect = { path_prefix = \"/\" }"), "error", here),
        (route("path = \"/x\"\nredirect = { path = \"/x\" }"), "error", here),
        (route("path_prefix = \"/x\"\nredirect = { path_prefix = \"/x\", host = \"a.example\" }"), "", ""),
        (route("path = \"/x\"\nredirect = { path = \"/y\" }"), "", ""),
        // Who is sent back asks otherwise.
        (
            route(
                "path = \"/x\"\nmatch = { methods = [\"POST\"] }\nredirect = { status = 303, path = \"/x\" }",
            ),
            "",
            "",
        ),
        (
            route(
                "path = \"/x\"\nmatch = { query = { old = \"1\" } }\nredirect = { path = \"/x\", query = \"drop\" }",
            ),
            "",
            "",
        ),
        (
            route("redirect = { scheme = \"http\" }"),
            "warning",
            "where they are: all come by http; write what is",
        ),
        (route("redirect = { scheme = \"https\" }"), "", ""),
        (encrypted("redirect = { scheme = \"https\" }"), "warning", "where they are: all come by https"),
        (encrypted("redirect = { scheme = \"http\" }"), "", ""),
        (encrypted("redirect = { scheme = \"https\", port = 8443 }"), "", ""),
        (route("path_prefix = \"/x\"\nredirect = { path = \"/x/new\" }"), "warning", again),
        (route("path_prefix = \"/x\"\nredirect = { path_prefix = \"/x/v2\" }"), "warning", again),
        (route(&other("path_prefix = \"/x\"\nredirect = { path = \"/x/new\" }")), "warning", again),
        (route(&other("path_prefix = \"/x\"\nredirect = { path = \"/xyz\" }")), "", ""),
        (
            route(&other("path_prefix = \"/x\"\nredirect = { path = \"/x/new\" }"))
                .replace("respond", "path = \"/x/new\"\nrespond"),
            "",
            "",
        ),
        (
            route(&other("path_prefix = \"/x\"\nredirect = { path_prefix = \"/x/v2\" }"))
                .replace("respond", "path_prefix = \"/x/v2\"\nrespond"),
            "",
            "",
        ),
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
