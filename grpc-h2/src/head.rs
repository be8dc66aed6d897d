//! The head of a request, as decoded from a header block.

use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};

use super::buffer::Buffer;
use super::hpack::{CompressionError, Decoder, ENTRY_BYTES, Field, FieldKind};

/// The head of a request: its pseudo-headers and fields, as bytes.
///
/// It holds at most [`Limits::header_bytes_max`](super::Limits::header_bytes_max), counted as in RFC 9113,
/// section 6.5.2, and no forbidden field.
#[derive(Debug, Default)]
pub struct RequestHead {
    serial: u64,
    /// The serial of the first head of the run of heads with this credential.
    credential: u64,
    text: Buffer,
    fields: Vec<Span>,
    /// The size of the list, including what was dropped because it is too long.
    bytes: usize,
    error: Option<HeaderError>,
    method: Occurrence,
    scheme: Occurrence,
    path: Occurrence,
    authority: Occurrence,
    content_type: Occurrence,
    authorization: Occurrence,
    encoding: Occurrence,
    timeout: Occurrence,
    /// The announced length of the body, in bytes.
    content_length: Option<u64>,
}

/// Why a head cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// It breaks a rule of RFC 9113, section 8.
    Malformed,
    /// It exceeds the limit.
    TooLong,
}

/// A field in the text.
#[derive(Clone, Copy, Debug)]
struct Span {
    kind: FieldKind,
    at: u16,
    name_bytes: u16,
    value_bytes: u16,
}

/// How often a field occurs, and its index if that is once.
#[derive(Clone, Copy, Debug, Default)]
enum Occurrence {
    #[default]
    Never,
    Once(u16),
    Repeated,
}

impl RequestHead {
    /// A number that no other head of the connection has. What was found out about a head holds for its
    /// serial.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// A number that two heads of the connection share only if they have the same credential, or both have
    /// none. Consecutive heads with the same credential share it, and so do those without.
    #[must_use]
    pub fn credential_serial(&self) -> u64 {
        self.credential
    }

    /// Its size in memory, approximately, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.bytes
    }

    /// `:method`
    #[must_use]
    pub fn method(&self) -> &[u8] {
        self.only(self.method).unwrap_or_default()
    }

    /// `:path`, with the query if there is one.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        self.only(self.path).unwrap_or_default()
    }

    /// `content-type`, if it occurs exactly once.
    #[must_use]
    pub fn content_type(&self) -> Option<&[u8]> {
        self.only(self.content_type)
    }

    /// `authorization`, if it occurs exactly once.
    #[must_use]
    pub fn authorization(&self) -> Option<&[u8]> {
        self.only(self.authorization)
    }

    /// The values of the fields of a name, in their order. The name is in lower case.
    #[must_use]
    pub fn values<'h>(&'h self, name: &'h [u8]) -> impl DoubleEndedIterator<Item = &'h [u8]> {
        let fields = self.fields.iter().filter_map(|span| self.field(*span));
        fields.filter(move |(found, _)| *found == name).map(|(_, value)| value)
    }

    /// Whether `authorization` occurs.
    #[must_use]
    pub fn has_authorization(&self) -> bool {
        !matches!(self.authorization, Occurrence::Never)
    }

    /// Whether `grpc-encoding` occurs.
    #[must_use]
    pub fn has_encoding(&self) -> bool {
        !matches!(self.encoding, Occurrence::Never)
    }

    /// `grpc-timeout`: outer `None` if it does not occur, inner `None` if it occurs more than once.
    #[must_use]
    pub fn timeout(&self) -> Option<Option<&[u8]>> {
        (!matches!(self.timeout, Occurrence::Never)).then(|| self.only(self.timeout))
    }

    /// `content-length`: the length of the body in bytes, if it is given.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    /// A request with this head. `None`: its path or its method is invalid.
    pub(super) fn to_request<B>(&self, body: B) -> Option<Request<B>> {
        let mut request = Request::new(body);
        *request.method_mut() = Method::from_bytes(self.method()).ok()?;
        *request.uri_mut() = Uri::from(PathAndQuery::try_from(self.path()).ok()?);
        let plain = || self.fields.iter().filter(|span| !span.kind.is_pseudo());
        let mut headers = HeaderMap::with_capacity(plain().count());
        for span in plain() {
            let (name, value) = self.field(*span)?;
            headers.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
        }
        *request.headers_mut() = headers;
        Some(request)
    }

    /// Why this is not the head of a request, if it is not.
    pub(super) fn request_error(&self) -> Option<HeaderError> {
        let whole = [self.method, self.scheme, self.path].iter().all(|given| matches!(given, Occurrence::Once(_)));
        let flawed = self.error.or_else(|| (!whole).then_some(HeaderError::Malformed));
        // CONNECT has no path, and is not supported.
        flawed.or_else(|| matches!(self.authority, Occurrence::Repeated).then_some(HeaderError::Malformed))
    }

    /// Why these are not trailers, if they are not.
    pub(super) fn trailers_error(&self) -> Option<HeaderError> {
        let pseudo = self.fields.iter().any(|span| span.kind.is_pseudo());
        self.error.or_else(|| pseudo.then_some(HeaderError::Malformed))
    }

    fn only(&self, given: Occurrence) -> Option<&[u8]> {
        let Occurrence::Once(at) = given else { return None };
        self.fields.get(usize::from(at)).and_then(|span| self.field(*span)).map(|(_, value)| value)
    }

    fn field(&self, span: Span) -> Option<(&[u8], &[u8])> {
        let text = self.text.get(usize::from(span.at)..)?;
        let (name, rest) = text.split_at_checked(span.name_bytes.into())?;
        Some((name, rest.get(..span.value_bytes.into())?))
    }

    /// Compares credentials in constant time: one connection may carry the calls of several callers.
    fn has_credential_of(&self, other: &Self) -> bool {
        match (self.authorization().zip(other.authorization()), self.has_authorization(), other.has_authorization()) {
            (Some((ours, theirs)), _, _) => constant_time_eq::constant_time_eq(ours, theirs),
            (None, has, other_has) => !has && !other_has,
        }
    }

    /// Empties it for reuse.
    fn clear(&mut self, serial: u64) {
        let (mut text, mut fields) = (std::mem::take(&mut self.text), std::mem::take(&mut self.fields));
        text.clear();
        fields.clear();
        *self = Self { serial, credential: serial, text, fields, ..Self::default() };
    }

    /// Notes a field that is too long to be decoded.
    fn push_too_long(&mut self) {
        self.bytes = usize::MAX;
        self.error = self.error.or(Some(HeaderError::TooLong));
    }

    /// Appends a field, if the list stays within `bytes_max`.
    fn push(&mut self, Field { kind, name, value }: Field<'_>, bytes_max: usize) {
        self.bytes = self.bytes.saturating_add(name.len() + value.len() + ENTRY_BYTES);
        if self.bytes > bytes_max {
            self.error = self.error.or(Some(HeaderError::TooLong));
            return;
        }
        let after_fields = self.fields.last().is_some_and(|span| !span.kind.is_pseudo());
        if kind == FieldKind::Forbidden || kind.is_pseudo() && after_fields {
            self.error = Some(HeaderError::Malformed);
            return;
        }
        // `bytes_max` is at most 16 KiB, so these are within u16.
        let (at, place) = (self.text.len() as u16, self.fields.len() as u16);
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        self.fields.push(Span { kind, at, name_bytes: name.len() as u16, value_bytes: value.len() as u16 });
        if kind == FieldKind::ContentLength {
            // Equal ones count as one (RFC 9110, section 8.6).
            let bytes = read_length(value).filter(|bytes| self.content_length.is_none_or(|other| other == *bytes));
            match bytes {
                Some(bytes) => self.content_length = Some(bytes),
                None => self.error = Some(HeaderError::Malformed),
            }
        }
        let given = match kind {
            FieldKind::Method => &mut self.method,
            FieldKind::Scheme => &mut self.scheme,
            FieldKind::Path => &mut self.path,
            FieldKind::Authority => &mut self.authority,
            FieldKind::ContentType => &mut self.content_type,
            FieldKind::Authorization => &mut self.authorization,
            FieldKind::GrpcEncoding => &mut self.encoding,
            FieldKind::GrpcTimeout => &mut self.timeout,
            FieldKind::ContentLength | FieldKind::Te | FieldKind::Other | FieldKind::Forbidden => return,
        };
        *given = if matches!(given, Occurrence::Never) { Occurrence::Once(place) } else { Occurrence::Repeated };
    }
}

/// A `content-length`: digits only.
fn read_length(value: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits?.parse().ok()
}

/// Decodes the header blocks of a connection, and remembers the last one.
///
/// Clients send the same block again and again. It means the same as long as the version of the dynamic table
/// is the same.
pub(super) struct HeaderDecoder {
    decoder: Decoder,
    serial: u64,
    last: Arc<RequestHead>,
    /// Reused for the next head.
    spare: Option<Arc<RequestHead>>,
    /// The head of a block that goes on in the next frame.
    partial: Option<Arc<RequestHead>>,
    last_block: Buffer,
    /// The version of the table before and after the last block, if the block did not change it.
    last_version: Option<u64>,
}

impl HeaderDecoder {
    pub(super) fn new() -> Self {
        Self {
            decoder: Decoder::new(),
            serial: 0,
            last: Arc::default(),
            spare: None,
            partial: None,
            last_block: Buffer::new(),
            last_version: None,
        }
    }

    /// Its size in memory, approximately, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let heads = [Some(&self.last), self.spare.as_ref(), self.partial.as_ref()].into_iter().flatten();
        let heads = heads.map(|head| head.text.capacity() + head.fields.capacity() * size_of::<Span>());
        heads.sum::<usize>() + self.last_block.capacity() + self.decoder.bytes()
    }

    /// Decodes a whole block, to a head of at most `bytes_max`.
    ///
    /// # Errors
    /// When it breaks a rule of RFC 7541.
    pub(super) fn read(&mut self, block: &[u8], bytes_max: usize) -> Result<&Arc<RequestHead>, CompressionError> {
        let version = self.decoder.version();
        // Constant time: a block may hold a credential, and one connection may carry the calls of several
        // callers.
        let again = self.last_version == Some(version) && constant_time_eq::constant_time_eq(&self.last_block, block);
        if again {
            return Ok(&self.last);
        }
        self.last_version = None;
        let mut next = self.start();
        if let Some(head) = Arc::get_mut(&mut next) {
            self.decoder.decode(block, |field| head.push(field, bytes_max))?;
        }
        self.set_last(next);
        // Keeps no third copy of a credential, beside the table's and the head's.
        if self.decoder.version() == version && !self.decoder.repeats_credential() {
            self.last_version = Some(version);
            self.last_block.replace(block);
        } else {
            self.last_block.clear();
        }
        Ok(&self.last)
    }

    /// Decodes the next frame of a block, and returns the head after the last one. Fields beyond `bytes_max`
    /// are dropped.
    ///
    /// # Errors
    /// When the block breaks a rule of RFC 7541.
    pub(super) fn read_piece(
        &mut self,
        piece: &[u8],
        is_last: bool,
        bytes_max: usize,
    ) -> Result<Option<&Arc<RequestHead>>, CompressionError> {
        let mut next = self.partial.take().unwrap_or_else(|| self.start());
        if let Some(head) = Arc::get_mut(&mut next) {
            self.decoder.decode_piece(piece, is_last, |field| match field {
                Some(field) => head.push(field, bytes_max),
                None => head.push_too_long(),
            })?;
        }
        if !is_last {
            self.partial = Some(next);
            return Ok(None);
        }
        self.set_last(next);
        self.last_version = None;
        self.last_block.clear();
        Ok(Some(&self.last))
    }

    /// An empty head.
    fn start(&mut self) -> Arc<RequestHead> {
        self.serial += 1;
        let mut next = self.spare.take().unwrap_or_default();
        if let Some(head) = Arc::get_mut(&mut next) {
            head.clear(self.serial);
        }
        next
    }

    /// Makes a decoded head the last one.
    fn set_last(&mut self, mut next: Arc<RequestHead>) {
        if let Some(head) = Arc::get_mut(&mut next)
            && head.has_credential_of(&self.last)
        {
            head.credential = self.last.credential;
        }
        let mut before = std::mem::replace(&mut self.last, next);
        // A pending call may still hold it.
        if let Some(head) = Arc::get_mut(&mut before) {
            head.clear(0);
            self.spare = Some(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES_MAX: usize = 16 * 1024;
    const REQUEST: &[&[u8]] = &[b"\x83\x86\x84"];

    fn read(heads: &mut HeaderDecoder, parts: &[&[u8]]) -> Arc<RequestHead> {
        heads.read(&parts.concat(), BYTES_MAX).unwrap().clone()
    }

    fn literal(form: u8, name: &str, value: &str) -> Vec<u8> {
        let mut block = vec![form, name.len() as u8];
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
        block
    }

    #[test]
    fn a_block_that_comes_again_is_the_same_head_until_the_table_changes() {
        let mut heads = HeaderDecoder::new();
        let insert = |value: &str| literal(0x40, "authorization", value);
        read(&mut heads, &[REQUEST[0], &insert("one")]);
        let indexed: &[&[u8]] = &[REQUEST[0], &[0x80 | 62]];
        let one = read(&mut heads, indexed);
        assert_eq!(one.authorization(), Some(&b"one"[..]));
        assert_eq!(read(&mut heads, indexed).serial(), one.serial());
        // The same bytes mean something else now.
        read(&mut heads, &[REQUEST[0], &insert("two")]);
        let two = read(&mut heads, indexed);
        assert_eq!(two.authorization(), Some(&b"two"[..]));
        assert_ne!(two.serial(), one.serial());
        // Also after a change that inserts nothing.
        read(&mut heads, &[&[0x20], &[0x3f, 0xe1, 0x1f], REQUEST[0]]);
        assert!(heads.read(&indexed.concat(), BYTES_MAX).is_err(), "its entry is gone");
    }

    #[test]
    fn a_block_that_changes_the_table_is_read_each_time() {
        let mut heads = HeaderDecoder::new();
        let block: &[&[u8]] = &[REQUEST[0], &literal(0x40, "authorization", "one")];
        let first = read(&mut heads, block);
        assert_ne!(read(&mut heads, block).serial(), first.serial());
        assert_eq!(heads.decoder.version(), 2);
    }

    #[test]
    fn heads_are_held_to_the_rules_for_requests() {
        let well = |parts: &[&[u8]]| read(&mut HeaderDecoder::new(), parts).request_error();
        assert_eq!(well(REQUEST), None);
        assert_eq!(well(&[REQUEST[0], &literal(0, "te", "trailers")]), None);
        assert_eq!(well(&[REQUEST[0], &literal(0, ":authority", "/run/keyward.sock")]), None);
        let long = literal(0, "x", &"y".repeat(100));
        assert_eq!(well(&[REQUEST[0], &long.repeat(123)]), Some(HeaderError::TooLong));
        for (what, bad) in [
            ("no method", vec![0x86, 0x84]),
            ("no scheme", vec![0x83, 0x84]),
            ("no path", vec![0x83, 0x86]),
            ("two methods", vec![0x83, 0x83, 0x86, 0x84]),
            ("two paths", vec![0x83, 0x86, 0x84, 0x84]),
            ("a status", vec![0x83, 0x86, 0x84, 0x88]),
            ("a pseudo-header at the end", vec![0x83, 0x86, 0x90, 0x84]),
            ("an unknown pseudo-header", [REQUEST[0], &literal(0, ":protocol", "x")].concat()),
            ("a capital", [REQUEST[0], &literal(0, "X-a", "x")].concat()),
            ("a space in a name", [REQUEST[0], &literal(0, "x a", "x")].concat()),
            ("no name", [REQUEST[0], &literal(0, "", "x")].concat()),
            ("a line break", [REQUEST[0], &literal(0, "x", "a\nb")].concat()),
            ("a zero", [REQUEST[0], &literal(0, "authorization", "a\0")].concat()),
            ("a line break behind a known name", [REQUEST[0], b"\x0f\x08\x01\r".as_slice()].concat()),
            ("connection", [REQUEST[0], &literal(0, "connection", "close")].concat()),
            ("upgrade", [REQUEST[0], &literal(0, "upgrade", "h2c")].concat()),
            ("transfer-encoding", [REQUEST[0], b"\x0f\x2a\x01x".as_slice()].concat()),
            ("te that asks for more", [REQUEST[0], &literal(0, "te", "gzip")].concat()),
            ("two authorities", [REQUEST[0], &literal(0, ":authority", "a").repeat(2)].concat()),
        ] {
            assert_eq!(well(&[&bad]), Some(HeaderError::Malformed), "{what}");
        }
    }

    #[test]
    fn a_credential_that_is_given_twice_is_none() {
        let one = literal(0, "authorization", "x");
        assert_eq!(read(&mut HeaderDecoder::new(), &[REQUEST[0], &one]).authorization(), Some(&b"x"[..]));
        assert_eq!(read(&mut HeaderDecoder::new(), &[REQUEST[0], &one, &one]).authorization(), None);
    }

    #[test]
    fn heads_share_the_serial_of_a_credential_if_it_is_the_same_or_if_both_have_none() {
        let mut decoder = HeaderDecoder::new();
        let with = |value: &'static str| literal(0, "authorization", value);
        let given =
            [vec![], vec![], vec![with("x")], vec![with("x")], vec![with("x"); 2], vec![], vec![with("y")], vec![]];
        let mut serials = vec![];
        for (at, fields) in given.iter().enumerate() {
            // Otherwise the block would be the same, and so the head.
            let other = literal(0, "n", ["0", "1"][at % 2]);
            let blocks: Vec<&[u8]> = [REQUEST[0], &other].into_iter().chain(fields.iter().map(Vec::as_slice)).collect();
            serials.push(read(&mut decoder, &blocks).credential_serial());
        }
        let shared: Vec<bool> = serials.windows(2).map(|two| two[0] == two[1]).collect();
        assert_eq!(shared, [true, false, true, false, false, false, false], "{serials:?}");
        let distinct: std::collections::BTreeSet<_> = serials.iter().collect();
        assert_eq!(distinct.len(), 6, "{serials:?}");
    }

    #[test]
    fn a_request_has_all_fields_of_its_head() {
        let two = literal(0, "x", "1");
        let head =
            read(&mut HeaderDecoder::new(), &[REQUEST[0], &two, &literal(0, "x", "2"), &literal(0, "te", "trailers")]);
        let request = head.to_request(()).unwrap();
        assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/"));
        assert_eq!(request.headers().get_all("x").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(request.headers().len(), 3);
    }
}
