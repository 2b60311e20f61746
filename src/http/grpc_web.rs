//! gRPC-Web: what browsers speak, which see no trailers (PROTOCOL-WEB.md of grpc-web), translated to gRPC and back.
//!
//! Messages stay as they are. The trailers become one more frame of the body, marked by the highest bit of its flag; the text form
//! is the same in base64, piece by piece, each padded on its own. Nothing is held back but what is no whole group of base64.
//! A response without a body keeps its `grpc-status` in the head; one that is not gRPC passes as it is. Refuses to answer
//! preflight requests: CORS is a matter of the application.

use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};

use super::grpc::Dialect;

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Binary,
    /// In base64.
    Text,
}

impl Form {
    fn of(content_type: &[u8]) -> Option<Self> {
        match Dialect::of(content_type)? {
            Dialect::Web(form) => Some(form),
            Dialect::Native => None,
        }
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Binary => "application/grpc-web",
            Self::Text => "application/grpc-web-text",
        }
    }
}

/// What is to be done to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// How the request comes.
    pub request: Form,
    /// How the response is wanted.
    pub response: Form,
}

impl Translation {
    /// Makes the head of a gRPC request; `None`, and nothing changed, where it is not gRPC-Web.
    pub fn of_request(headers: &mut HeaderMap) -> Option<Self> {
        let content_type = headers.get(header::CONTENT_TYPE)?;
        let request = Form::of(content_type.as_bytes())?;
        let native = in_place_of(request.media_type(), "application/grpc", content_type)?;
        headers.insert(header::CONTENT_TYPE, native);
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        if request == Form::Text {
            headers.remove(header::CONTENT_LENGTH);
        }
        // As Envoy and tonic have it: Accept may want the other form.
        let accept = headers.get(header::ACCEPT).and_then(|accept| Form::of(accept.as_bytes()));
        Some(Self { request, response: accept.unwrap_or(request) })
    }

    /// Makes the head of a gRPC-Web response, and tells the form of its body; `None`, and nothing changed, where the service did
    /// not answer with gRPC.
    pub fn of_response(self, headers: &mut HeaderMap) -> Option<Form> {
        let content_type = headers.get(header::CONTENT_TYPE)?;
        if Dialect::of(content_type.as_bytes()) != Some(Dialect::Native) {
            return None;
        }
        let web = in_place_of("application/grpc", self.response.media_type(), content_type)?;
        headers.insert(header::CONTENT_TYPE, web);
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::TRAILER);
        Some(self.response)
    }
}

/// The same media type with another beginning: what is behind it (`+proto`, parameters) stays.
fn in_place_of(was: &str, becomes: &str, value: &HeaderValue) -> Option<HeaderValue> {
    let mut out = becomes.as_bytes().to_vec();
    out.extend_from_slice(value.as_bytes().get(was.len()..)?);
    HeaderValue::from_bytes(&out).ok()
}

/// A piece of a response's body, in this form.
pub fn encode(form: Form, piece: Bytes) -> Bytes {
    match form {
        Form::Text if !piece.is_empty() => STANDARD.encode(&piece).into(),
        _ => piece,
    }
}

/// The trailers as the last frame of a body, in this form.
pub fn trailer_frame(form: Form, trailers: &HeaderMap) -> Bytes {
    const HEAD: usize = 5;
    let mut frame = BytesMut::with_capacity(64);
    frame.put_bytes(0, HEAD);
    for (name, value) in trailers {
        frame.put_slice(name.as_str().as_bytes());
        frame.put_u8(b':');
        frame.put_slice(value.as_bytes());
        frame.put_slice(b"\r\n");
    }
    // A trailer section is limited as a head is: far below 4 GiB.
    let length = u32::try_from(frame.len() - HEAD).unwrap_or(u32::MAX);
    frame[0] = 0x80;
    frame[1..HEAD].copy_from_slice(&length.to_be_bytes());
    encode(form, frame.freeze())
}

/// Reads base64 that comes in pieces of any size, and that may be padded at any group: whoever wrote it encoded message by
/// message. Holds at most three octets.
#[derive(Debug, Default)]
pub struct Decoder {
    group: [u8; 4],
    held: u8,
}

/// What came is no base64, or ends within a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotBase64;

impl Decoder {
    /// Encoders leave bits beyond the last octet zero, but nothing depends on it.
    const GROUPS: GeneralPurpose = GeneralPurpose::new(
        &ALPHABET,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::RequireCanonical)
            .with_decode_allow_trailing_bits(true),
    );

    /// The octets of what is whole.
    ///
    /// # Errors
    /// When it is no base64.
    pub fn decode(&mut self, piece: &[u8]) -> Result<Bytes, NotBase64> {
        let mut out = BytesMut::with_capacity(piece.len() / 4 * 3 + 3);
        let mut rest = piece;
        if self.held > 0 {
            while let (1..=3, Some((octet, behind))) = (self.held, rest.split_first()) {
                self.group[usize::from(self.held)] = *octet;
                self.held += 1;
                rest = behind;
            }
            if self.held < 4 {
                return Ok(out.freeze());
            }
            self.held = 0;
            Self::whole_groups(&self.group, &mut out)?;
        }
        let (whole, behind) = rest.split_at(rest.len() / 4 * 4);
        self.group[..behind.len()].copy_from_slice(behind);
        // At most three.
        self.held = u8::try_from(behind.len()).unwrap_or_default();
        Self::whole_groups(whole, &mut out)?;
        Ok(out.freeze())
    }

    /// The body is over.
    ///
    /// # Errors
    /// When a group is not whole.
    pub fn end(&self) -> Result<(), NotBase64> {
        if self.held == 0 { Ok(()) } else { Err(NotBase64) }
    }

    /// Decodes groups of four, up to and including each padded one.
    fn whole_groups(mut groups: &[u8], out: &mut BytesMut) -> Result<(), NotBase64> {
        while !groups.is_empty() {
            let padded = memchr::memchr(b'=', groups).map_or(groups.len(), |at| (at / 4 + 1) * 4);
            let (stretch, behind) = groups.split_at(padded);
            groups = behind;
            let start = out.len();
            out.resize(start + stretch.len() / 4 * 3, 0);
            let length = Self::GROUPS.decode_slice(stretch, &mut out[start..]).map_err(|_| NotBase64)?;
            out.truncate(start + length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn heads_change_their_media_type_and_keep_what_is_behind_it() {
        for (web, native, request) in [
            ("application/grpc-web", "application/grpc", Form::Binary),
            ("application/grpc-web+proto", "application/grpc+proto", Form::Binary),
            ("Application/GRPC-Web-Text", "application/grpc", Form::Text),
            ("application/grpc-web-text+proto; a=b", "application/grpc+proto; a=b", Form::Text),
        ] {
            let mut headers = head(&[("content-type", web), ("content-length", "8")]);
            let translation = Translation::of_request(&mut headers).unwrap();
            assert_eq!(translation, Translation { request, response: request }, "{web}");
            assert_eq!(headers["content-type"], native);
            assert_eq!(headers["te"], "trailers");
            assert_eq!(headers.contains_key("content-length"), request == Form::Binary, "{web}");
        }
        for other in
            ["application/grpc", "application/grpc-webby", "text/plain", "application/grpc-web-texts"]
        {
            let before = head(&[("content-type", other)]);
            let mut headers = before.clone();
            assert_eq!(Translation::of_request(&mut headers), None);
            assert_eq!(headers, before);
        }
        let mut headers =
            head(&[("content-type", "application/grpc-web"), ("accept", "application/grpc-web-text")]);
        let translation = Translation::of_request(&mut headers).unwrap();
        assert_eq!((translation.request, translation.response), (Form::Binary, Form::Text));
        let mut response = head(&[("content-type", "application/grpc+proto"), ("content-length", "9")]);
        assert_eq!(translation.of_response(&mut response), Some(Form::Text));
        assert_eq!(response, head(&[("content-type", "application/grpc-web-text+proto")]));
        let mut page = head(&[("content-type", "text/html"), ("content-length", "9")]);
        assert_eq!(translation.of_response(&mut page), None);
        assert_eq!(page["content-length"], "9");
    }

    #[test]
    fn trailers_are_a_frame() {
        let trailers = head(&[("grpc-status", "0"), ("x-bin", "AAE=")]);
        let frame = trailer_frame(Form::Binary, &trailers);
        assert_eq!(&frame[..], b"\x80\0\0\0\x1bgrpc-status:0\r\nx-bin:AAE=\r\n");
        assert_eq!(trailer_frame(Form::Text, &trailers), STANDARD.encode(&frame));
    }

    #[test]
    fn base64_is_read_in_pieces_and_with_padding_in_between() {
        let (one, two) = (&b"\0\0\0\0\x04abcd"[..], &b"\0\0\0\0\x02ef"[..]);
        let wire = STANDARD.encode(&one[..4]) + &STANDARD.encode(&one[4..]) + &STANDARD.encode(two);
        assert!(wire.matches('=').count() > 3, "padding in between: {wire}");
        for size in 1..=wire.len() {
            let mut decoder = Decoder::default();
            let mut out = Vec::new();
            for piece in wire.as_bytes().chunks(size) {
                out.extend_from_slice(&decoder.decode(piece).unwrap());
            }
            decoder.end().unwrap();
            assert_eq!(out, [one, two].concat(), "pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for bad in ["!!!!", "AA=A", "====", "A===", "AAAA\r\n==", "AA-_"] {
            assert_eq!(Decoder::default().decode(bad.as_bytes()), Err(NotBase64), "{bad}");
        }
        let mut cut = Decoder::default();
        cut.decode(b"AAAAAA").unwrap();
        assert_eq!(cut.end(), Err(NotBase64));
    }
}
