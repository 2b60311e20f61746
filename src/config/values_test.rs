//! Every grammar of single values: what is taken, what is refused and with which advice.

use super::*;

fn advice<T: std::fmt::Debug>(result: Result<T, Complaint>) -> String {
    result.unwrap_err().help
}

#[test]
fn durations_carry_units() {
    for (text, expected) in [
        ("20ms", Duration::from_millis(20)),
        ("1.5s", Duration::from_millis(1500)),
        ("0s", Duration::ZERO),
        ("2h", Duration::from_secs(7200)),
        ("0.25m", Duration::from_secs(15)),
        ("7us", Duration::from_micros(7)),
    ] {
        assert_eq!(duration(text), Ok(expected), "{text}");
    }
}

#[test]
fn a_wrong_duration_comes_with_the_right_one() {
    assert_eq!(advice(duration("5")), "write \"5s\" (units: us, ms, s, m, h)");
    assert_eq!(advice(duration("5 s")), "write \"5s\"");
    assert_eq!(advice(duration("5sec")), "write \"5s\"");
    assert_eq!(advice(duration("5min")), "write \"5m\"");
    assert_eq!(advice(duration("100MS")), "write \"100ms\"");
    assert!(advice(duration("1m30s")).contains("one number and one unit"));
    for text in
        ["", "s", "-1s", "abc", "1.s", ".5s", "1.2.3s", "99999999999999999999s", "20000000h", "0.5us", "5d"]
    {
        assert!(duration(text).is_err(), "{text}");
    }
}

#[test]
fn sizes_carry_units() {
    assert_eq!(size("64KiB"), Ok(65_536));
    assert_eq!(size("1.5MiB"), Ok(1_572_864));
    assert_eq!(size("10B"), Ok(10));
    assert_eq!(advice(size("65536")), "write \"64KiB\" (units: B, KiB, MiB, GiB)");
    assert_eq!(advice(size("1000")), "write \"1000B\" (units: B, KiB, MiB, GiB)");
    assert_eq!(advice(size("64KB")), "write \"64KiB\"");
    assert_eq!(advice(size("64k")), "write \"64KiB\"");
    for text in ["", "KiB", "1.5B", "99999999999GiB", "many", "5s"] {
        assert!(size(text).is_err(), "{text}");
    }
}

#[test]
fn durations_and_sizes_come_back_as_they_were() {
    for text in ["20ms", "15s", "5m", "24h", "90s", "1500ms", "7us", "0s"] {
        assert_eq!(duration_text(duration(text).unwrap()), text);
    }
    for text in ["64KiB", "1GiB", "1500B", "0B", "3MiB"] {
        assert_eq!(size_text(size(text).unwrap()), text);
    }
}

#[test]
fn endpoints_are_addresses_names_or_sockets() {
    assert_eq!(target("127.0.0.1:80"), Ok(Target::Ip("127.0.0.1:80".parse().unwrap())));
    assert_eq!(target("[::1]:80"), Ok(Target::Ip("[::1]:80".parse().unwrap())));
    assert_eq!(target("App.internal:80"), Ok(Target::Name("app.internal".into(), 80)));
    assert_eq!(target("app.internal.:80"), Ok(Target::Name("app.internal.".into(), 80)));
    assert_eq!(target("_x._tcp.app:80"), Ok(Target::Name("_x._tcp.app".into(), 80)));
    assert_eq!(target("unix:/run/a"), Ok(Target::Unix(Path::new("/run/a").into())));
}

#[test]
fn a_wrong_address_comes_with_the_right_one() {
    for (text, expected) in [
        ("9000", "write \"127.0.0.1:9000\""),
        (":9000", "write \"127.0.0.1:9000\" or \"0.0.0.0:9000\""),
        ("127.0.0.1", "write \"127.0.0.1:9000\""),
        ("app.internal", "write \"app.internal:9000\""),
        ("::1", "write \"[::1]:9000\""),
        ("http://app:80/", "write \"app:80\""),
        ("/run/app.sock", "write \"unix:/run/app.sock\""),
        ("unix:app.sock", "write the path from the root, such as \"unix:/run/app.sock\""),
        ("app:99999", "write a number from 1 to 65535 after the colon"),
        ("app:0", "write the port that the endpoint listens on"),
        ("1.2.3.4:0", "write the port that the endpoint listens on"),
    ] {
        assert_eq!(advice(target(text)), expected, "{text}");
    }
    let long = format!("unix:/{}", "x".repeat(107));
    for text in [
        "",
        "127.0.0.256:80",
        "a b:80",
        "a..b:80",
        "-a:80",
        "[::1:80",
        "unix:",
        "unix:/a\0b",
        &long,
        "a:",
        "é:1",
    ] {
        assert!(target(text).is_err(), "{text}");
    }
    assert_eq!(
        advice(listen_address("localhost:80", "1.2.3.4:5")),
        "write an IP address to listen on, such as \"127.0.0.1:80\""
    );
    assert_eq!(advice(listen_address(":80", "1.2.3.4:5")), "write \"127.0.0.1:80\" or \"0.0.0.0:80\"");
    assert_eq!(listen_address("0.0.0.0:0", ""), Ok("0.0.0.0:0".parse().unwrap()));
}

#[test]
fn hosts_are_exact_or_a_suffix() {
    assert_eq!(host("Shop.Example"), Ok(HostMatch::Exact("shop.example".into())));
    assert_eq!(host("*.shop.example"), Ok(HostMatch::Suffix(".shop.example".into())));
    assert_eq!(host("10.0.0.1"), Ok(HostMatch::Exact("10.0.0.1".into())));
    assert_eq!(host("[::1]"), Ok(HostMatch::Exact("[::1]".into())));
    for (text, expected) in [
        ("*", "leave `hosts` out to serve any host"),
        ("shop.example:80", "write \"shop.example\""),
        ("http://shop.example/x", "write \"shop.example\""),
        ("shop.example/api", "write \"shop.example\" and path_prefix = \"/api\""),
        ("shop.example.", "write \"shop.example\""),
        ("::1", "write \"[::1]\""),
    ] {
        assert_eq!(advice(host(text)), expected, "{text}");
    }
    assert!(advice(host("a.*.example")).contains("beginning"));
    assert!(advice(host("täst.example")).contains("xn--"));
    for text in ["", "*.", "*x.example", "a b", "[::g]", "a..b", "300.1.1.1", &"a.".repeat(127)] {
        assert!(host(text).is_err(), "{text}");
    }
}

#[test]
fn paths_are_as_they_are_sent() {
    for text in ["/", "/a/b", "/a%20b", "/a;v=1/~x", "//"] {
        assert_eq!(path(text), Ok(text));
    }
    for (text, expected) in [
        ("api", "write \"/api\""),
        ("http://a/b", "write \"/b\""),
        ("/a?b=1", "write \"/a\""),
        ("/a b", "write it as it is sent: `%20`"),
        ("/ä", "write it as it is sent: `%C3%A4`"),
        ("/100%", "write \"%25\" for the character `%` itself"),
    ] {
        assert_eq!(advice(path(text)), expected, "{text}");
    }
    assert_eq!((prefix("/api/"), prefix("/api"), prefix("/"), prefix("//")), ("/api", "/api", "/", "/"));
}

#[test]
fn names_and_tokens_need_no_quoting() {
    assert_eq!(name("shop/cart.v1:8080"), Ok(()));
    assert_eq!(token("ringmesh-ab12"), Ok(()));
    for text in ["", "a b", "(none)", "ä", "a\"b", &"x".repeat(129)] {
        assert!(name(text).is_err(), "{text}");
        assert!(token(text).is_err(), "{text}");
    }
    assert!(token("a/b").is_err());
}

#[test]
fn quoted_text_is_toml() {
    for text in ["plain", "a\"b\\c", "tab\tline\nend\u{1}\u{7f}", "ü€"] {
        let document = format!("x = {}", quoted(text));
        let parsed: toml::Table = document.parse().unwrap();
        assert_eq!(parsed["x"].as_str(), Some(text));
    }
}
