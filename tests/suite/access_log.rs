//! What a line of the access log says of an exchange, also of one that was refused.

use crate::support::End;
use crate::support::rig::Rig;

fn micros(line: &serde_json::Value, field: &str) -> u64 {
    line[field].as_u64().unwrap_or_else(|| panic!("no {field} in {line}"))
}

#[test]
fn the_rest_of_a_head_is_waited_for_on_the_callers_account() {
    let rig = Rig::with(|c| c.log("json").timeouts("head = \"200ms\""));
    let mut late = rig.client();
    late.send("GET /late HTTP/1.1\r\nHost: a\r\n");
    assert_eq!(late.response().status(), 408);
    assert_eq!(late.end(), End::Fin);
    let lines = rig.done_unseen().lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    // Whatever else the machine did meanwhile: the timeout's whole length was a wait.
    let waited = micros(&lines[0], "whole_us") - micros(&lines[0], "own_us");
    assert!(waited >= 199_000, "{}", lines[0]);
}

#[test]
fn a_refused_request_is_shown_as_far_as_it_can_be_made_out() {
    let rig = Rig::with(|c| c.log("json"));
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(20_000));
    for (bytes, status, cause) in [
        ("TRACE /t HTTP/1.1\r\nHost: a\r\n\r\n", 405, "method_refused"),
        ("GET /h?q=\"1 HTTP/1.1\r\nX: y\r\n\r\n", 400, "host_missing"),
        ("GET /v HTTP/3.0\r\nHost: a\r\n\r\n", 505, "bad_version"),
        (
            "GET /u HTTP/1.1\r\nHost: a:80\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            501,
            "upgrade_refused",
        ),
        ("\u{1}\u{2}\r\n", 400, "bad_start_line"),
        (&long, 414, "target_too_long"),
    ] {
        rig.refused(bytes, status, cause);
    }
    let lines = rig.done_unseen().lines();
    let shown: Vec<_> = lines
        .iter()
        .map(|line| ["method", "target", "host"].map(|field| line[field].as_str().unwrap()))
        .collect();
    assert_eq!(
        shown[..5],
        [
            ["TRACE", "/t", "a"],
            ["GET", "/h?q=\"1", ""],
            ["GET", "/v", "a"],
            ["GET", "/u", "a:80"],
            ["", "", ""],
        ]
    );
    assert_eq!(shown[5][1].len(), 2048);
}

#[test]
fn a_line_of_words_has_the_route_and_says_what_is_absent() {
    let rig =
        Rig::with(|c| c.log("text").routes("[[route]]\nname = \"r\"\npath = \"/x\"\nservice = \"app\"\n"));
    rig.served("GET /x HTTP/1.1\r\nHost: a\r\n\r\n", usize::MAX);
    let mut client = rig.client();
    client.send("GET /y HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status(), 404);
    drop(client);
    let log = rig.done().seen.log;
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines[0].contains(" route=r ") && !lines[0].contains("first_byte=-"), "{log}");
    assert!(lines[1].contains(" route=- ") && lines[1].contains(" first_byte=- "), "{log}");
}
