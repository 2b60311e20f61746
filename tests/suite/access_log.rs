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
