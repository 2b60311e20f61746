//! Cookies of a request, as far as a proxy looks at them (RFC 6265 §4.2, §5.4). Pure.

/// The value of the first cookie of that name in the values of the `Cookie` fields; without the quotes that it may stand in.
pub fn value<'v>(mut fields: impl Iterator<Item = &'v [u8]>, name: &str) -> Option<&'v [u8]> {
    fields.find_map(|field| {
        field.split(|byte| *byte == b';').find_map(|pair| {
            let pair = pair.trim_ascii();
            let value =
                pair.strip_prefix(name.as_bytes())?.trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
            let inside = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            Some(inside.unwrap_or(value)).filter(|value| !value.is_empty())
        })
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_cookie_of_a_name_is_found_in_any_field() {
        let find = |fields: &[&'static str], name| {
            super::value(fields.iter().map(|field| field.as_bytes()), name)
                .map(|value| String::from_utf8(value.to_vec()).unwrap())
        };
        assert_eq!(find(&["a=1; b=2", "b=3"], "b").as_deref(), Some("2"));
        assert_eq!(find(&["aa=1", "x=;a = \"q q\" ; b=2"], "a").as_deref(), Some("q q"));
        assert_eq!(find(&["a=b=c"], "a").as_deref(), Some("b=c"));
        for (fields, name) in [(&[][..], "a"), (&["aa=1; A=2"], "a"), (&["a=; b"], "a"), (&["a; b=1"], "a")] {
            assert_eq!(find(fields, name), None, "{fields:?}");
        }
    }
}
