use super::*;

type Fields = Vec<(String, String)>;

fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, Malformed> {
    let mut fields = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    decoder.decode(block, |name, value| fields.push((text(name), text(value))))?;
    Ok(fields)
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter_map(|b| char::from(b).to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn three_requests_of_the_standard_share_a_table() {
    // RFC 7541 C.4
    let mut decoder = Decoder::new();
    for (block, last) in [
        ("828684 418c f1e3 c2e5 f23a 6ba0 ab90 f4ff", (":authority", "www.example.com")),
        ("828684 be58 86a8 eb10 649c bf", ("cache-control", "no-cache")),
        ("828785 bf40 8825 a849 e95b a97d 7f89 25a8 49e9 5bb8 e8b4 bf", ("custom-key", "custom-value")),
    ] {
        let fields = decoded(&mut decoder, &hex(block)).expect("legal");
        assert_eq!(fields.last().map(|(n, v)| (n.as_str(), v.as_str())), Some(last));
        assert_eq!(fields[0], (":method".to_owned(), "GET".to_owned()));
    }
    assert_eq!(decoder.table.bytes, 164);
}

#[test]
fn what_is_written_is_read_back_and_shorter_the_second_time() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    let mut lengths = Vec::new();
    for turn in 0..3 {
        let mut block = Vec::new();
        encoder.begin(&mut block);
        encoder.field(&mut block, b":method", b"GET", Again::Likely);
        encoder.field(&mut block, b":path", b"/size/1024", Again::Likely);
        encoder.field(&mut block, b"x-echo", format!("mark-{turn}").as_bytes(), Again::Never);
        let fields = decoded(&mut decoder, &block).expect("legal");
        assert_eq!(fields[1], (":path".to_owned(), "/size/1024".to_owned()));
        assert_eq!(fields[2], ("x-echo".to_owned(), format!("mark-{turn}")));
        lengths.push(block.len());
    }
    assert!(lengths[1] < lengths[0] && lengths[1] == lengths[2], "{lengths:?}");
}

#[test]
fn both_tables_forget_alike() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    for i in 0..200 {
        let (value, mut block) = ("v".repeat(i % 90), Vec::new());
        encoder.field(&mut block, format!("name-{}", i % 70).as_bytes(), value.as_bytes(), Again::Likely);
        assert_eq!(decoded(&mut decoder, &block).expect("legal"), [(format!("name-{}", i % 70), value)]);
        assert_eq!(encoder.table.bytes, decoder.table.bytes);
        assert!(decoder.table.bytes <= TABLE_BYTES);
    }
}

#[test]
fn a_peer_without_a_table_gets_none() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    encoder.set_table_max(0);
    for _ in 0..2 {
        let mut block = Vec::new();
        encoder.begin(&mut block);
        encoder.field(&mut block, b"a", b"b", Again::Likely);
        assert_eq!(decoded(&mut decoder, &block).expect("legal").len(), 1);
        assert!(decoder.table.entries.is_empty());
    }
}

#[test]
fn broken_sections_are_refused() {
    for block in ["80", "ff ff ff ff ff 7f", "be", "40 05 61", "41 8c f1", "3f e2 1f", "00 81 00 00"] {
        assert!(decoded(&mut Decoder::new(), &hex(block)).is_err(), "{block}");
    }
}
