use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn read(fields: &[(&str, &str)], b3: bool) -> Incoming {
    let mut seen = Fields::default();
    for (name, value) in fields {
        seen.see(name.as_bytes(), value.as_bytes());
    }
    seen.read(Formats { b3 })
}

fn parent(value: &str) -> Option<TraceParent> {
    read(&[("traceparent", value)], false).parent
}

fn written(context: TraceParent, b3: bool) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    context.write(Formats { b3 }, |name, value| {
        fields.push((name.to_owned(), String::from_utf8(value.to_vec()).unwrap()));
    });
    fields
}

#[test]
fn a_traceparent_is_read_and_written_as_it_stands_in_the_specification() {
    for flags in ["00", "01", "02", "03"] {
        let value = format!("00-{TRACE}-{SPAN}-{flags}");
        let context = parent(&value).unwrap();
        assert_eq!((context.trace.to_string(), context.span.to_string()), (TRACE.into(), SPAN.into()));
        assert_eq!(written(context, false), [("traceparent".into(), value)]);
    }
    // Flags that are not known are not passed on.
    let context = parent(&format!("00-{TRACE}-{SPAN}-fd")).unwrap();
    assert_eq!(context.flags(), 1);
    assert!(read(&[("TraceParent", &format!(" 00-{TRACE}-{SPAN}-01 "))], false).is_w3c);
}

#[test]
fn what_is_not_exactly_a_traceparent_is_none() {
    let zeros = ("0".repeat(32), "0".repeat(16));
    for wrong in [
        String::new(),
        "00".into(),
        format!("ff-{TRACE}-{SPAN}-01"),
        format!("00-{TRACE}-{SPAN}-01-"),
        format!("00-{TRACE}-{SPAN}-01-more"),
        format!("00-{TRACE}-{SPAN}-0"),
        format!("00-{TRACE}-{SPAN}"),
        format!("0-{TRACE}-{SPAN}-01"),
        format!("00-{}-{SPAN}-01", zeros.0),
        format!("00-{TRACE}-{}-01", zeros.1),
        format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
        format!("00-{TRACE}-{SPAN}-0A"),
        format!("0A-{TRACE}-{SPAN}-01"),
        format!("00-{}g-{SPAN}-01", &TRACE[1..]),
        format!("00_{TRACE}_{SPAN}_01"),
        format!("00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01"),
        format!("00-{TRACE}-{SPAN} -1"),
    ] {
        assert_eq!(parent(&wrong), None, "{wrong}");
    }
    let right = format!("00-{TRACE}-{SPAN}-01");
    let twice = [("traceparent", &*right), ("traceparent", &*right)];
    assert_eq!(read(&twice, false), Incoming::default(), "twice is not once");
}

#[test]
fn a_later_version_is_read_as_far_as_this_one_goes() {
    for value in [
        format!("01-{TRACE}-{SPAN}-01"),
        format!("cc-{TRACE}-{SPAN}-03-what-comes"),
        format!("fe-{TRACE}-{SPAN}-01-"),
    ] {
        let context = parent(&value).unwrap();
        let now = format!("00-{TRACE}-{SPAN}-01");
        assert_eq!(written(context, false), [("traceparent".into(), now)], "{value}");
    }
    assert_eq!(parent(&format!("cc-{TRACE}-{SPAN}-01.what")), None);
    assert_eq!(parent(&format!("cc-{TRACE}-{SPAN}-0")), None);
}

#[test]
fn b3_is_read_in_both_forms() {
    let of = |fields: &[(&str, &str)]| read(fields, true);
    let single = |value: &str| of(&[("b3", value)]);
    let padded = format!("{}{SPAN}", "0".repeat(16));
    for (value, trace, decided, debug) in [
        (format!("{TRACE}-{SPAN}-1"), TRACE, Some(true), false),
        (format!("{TRACE}-{SPAN}-0"), TRACE, Some(false), false),
        (format!("{TRACE}-{SPAN}-d"), TRACE, Some(true), true),
        (format!("{TRACE}-{SPAN}"), TRACE, None, false),
        (format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90"), TRACE, Some(true), false),
        (format!("{SPAN}-{SPAN}-1"), &*padded, Some(true), false),
    ] {
        let incoming = single(&value);
        assert_eq!(incoming.parent.unwrap().trace.to_string(), trace, "{value}");
        assert_eq!((incoming.decided, incoming.debug), (decided, debug), "{value}");
        assert!(!incoming.is_w3c);
    }
    assert_eq!((single("0").decided, single("0").parent), (Some(false), None));
    assert_eq!((single("d").decided, single("d").debug), (Some(true), true));
    for wrong in [
        "".into(),
        "2".into(),
        format!("{TRACE}-{SPAN}-2"),
        format!("{TRACE}-{SPAN}-1-{SPAN}-1"),
        format!("{TRACE}-{SPAN}-1-zz"),
        TRACE.into(),
    ] {
        assert_eq!(single(&wrong), Incoming::default(), "{wrong}");
    }
    let ids = [("X-B3-TraceId", TRACE), ("X-B3-SpanId", SPAN)];
    let with = |more: (&'static str, &'static str)| of(&[ids[0], ids[1], more]);
    assert_eq!(of(&ids).decided, None);
    assert_eq!(of(&ids).parent.unwrap().span.to_string(), SPAN);
    assert_eq!(with(("X-B3-Sampled", "1")).decided, Some(true));
    assert_eq!(with(("X-B3-Sampled", "false")).decided, Some(false));
    assert_eq!((with(("X-B3-Flags", "1")).decided, with(("X-B3-Flags", "1")).debug), (Some(true), true));
    assert_eq!(of(&[("x-b3-sampled", "0")]).decided, Some(false), "without a trace");
    assert_eq!(of(&[ids[0]]).parent, None);
}

#[test]
fn the_first_format_that_says_something_valid_decides() {
    let w3c = format!("00-{TRACE}-{SPAN}-00");
    let other = format!("{SPAN}-{SPAN}-1");
    let both = read(&[("b3", &other), ("traceparent", &w3c)], true);
    assert!(both.is_w3c && both.decided == Some(false));
    let broken = read(&[("b3", &other), ("traceparent", "00-nonsense")], true);
    assert!(!broken.is_w3c && broken.decided == Some(true));
    assert_eq!(read(&[("b3", &other)], false), Incoming::default(), "where only W3C's is read");
    assert!(read(&[("b3", "0"), ("b3", "1"), ("x-b3-sampled", "1")], true).decided == Some(true));
}

#[test]
fn b3_is_written_in_both_forms() {
    let context =
        |sampled, debug| TraceParent { sampled, debug, ..parent(&format!("00-{TRACE}-{SPAN}-00")).unwrap() };
    let fields = |sampled, debug| {
        let all = written(context(sampled, debug), true);
        let all: Vec<String> = all.iter().skip(1).map(|(name, value)| format!("{name}: {value}")).collect();
        all.join("\n")
    };
    let ids = format!("x-b3-traceid: {TRACE}\nx-b3-spanid: {SPAN}\n");
    assert_eq!(fields(true, false), format!("b3: {TRACE}-{SPAN}-1\n{ids}x-b3-sampled: 1"));
    assert_eq!(fields(false, false), format!("b3: {TRACE}-{SPAN}-0\n{ids}x-b3-sampled: 0"));
    assert_eq!(fields(true, true), format!("b3: {TRACE}-{SPAN}-d\n{ids}x-b3-flags: 1"));
    // What is written is read as the same.
    let all = written(context(true, true), true);
    let again: Vec<(&str, &str)> = all.iter().skip(1).map(|(n, v)| (&**n, &**v)).collect();
    assert_eq!(read(&again, true).parent, Some(context(true, true)));
}

proptest::proptest! {
    /// Whatever comes, nothing is made of it that was not sent: what is taken of a `traceparent` of this version is written as it came,
    /// but for flags that are not known.
    #[test]
    fn a_traceparent_is_taken_as_it_stands_or_not_at_all(
        version in "[0-9a-f]{2}|.{0,3}",
        trace in "[0-9a-f]{32}|0{32}|[0-9a-fA-F]{30,34}",
        span in "[0-9a-f]{16}|0{16}|[0-9a-fA-F]{14,18}",
        flags in "[0-9a-f]{2}|.{0,3}",
        rest in "|-|-[a-z]{1,5}|.{1,3}",
    ) {
        let value = format!("{version}-{trace}-{span}-{flags}{rest}");
        if let Some(context) = parent(&value) {
            let again = written(context, false).remove(0).1;
            proptest::prop_assert_eq!(&again[3..52], &value.trim()[3..52]);
            proptest::prop_assert!(!version.eq("ff") && again.starts_with("00-") && again.len() == 55);
            proptest::prop_assert_eq!(parent(&again), Some(context));
        } else if version == "00" && rest.is_empty() && flags.len() == 2 {
            let is_hex = |text: &str, length| {
                text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            };
            let is_zero = |text: &str| text.bytes().all(|b| b == b'0');
            let right = is_hex(&trace, 32) && is_hex(&span, 16) && is_hex(&flags, 2);
            proptest::prop_assert!(!right || is_zero(&trace) || is_zero(&span), "{} is right", value);
        }
    }

    /// And no field of B3 makes it fail, or gives an id of zeros.
    #[test]
    fn whatever_stands_in_fields_of_b3_is_read_or_passed_over(single in ".{0,80}|([0-9a-f]{16}){1,2}-[0-9a-f]{16}(-[01d])?", trace in "([0-9a-f]{16}){0,2}|.{0,40}", span in "[0-9a-f]{16}|.{0,20}") {
        for fields in [&[("b3", &*single)][..], &[("x-b3-traceid", &trace), ("x-b3-spanid", &span)]] {
            if let Some(context) = read(fields, true).parent {
                proptest::prop_assert!(context.trace.octets().iter().any(|octet| *octet != 0));
                proptest::prop_assert!(context.span.octets().iter().any(|octet| *octet != 0));
            }
        }
    }
}
