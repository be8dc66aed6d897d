//! Header blocks: HPACK, and the heads of requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::Input;
use crate::Limits;
use crate::frame::PAYLOAD_BYTES_MAX;
use crate::head::{HeaderDecoder, RequestHead};
use crate::hpack::{Decoder, ENTRY_BYTES, Encoder, TABLE_BYTES};

/// Bytes that a decoder may keep beside its table: two strings, and the part of a field between two pieces.
/// Each byte of a Huffman code stands for at most 8/5 of a byte, and a vector may have twice the room it
/// needs.
const DECODER_BYTES_MAX: usize = TABLE_BYTES + 2 * (2 * PAYLOAD_BYTES_MAX * 8 / 5) + 2 * (3 * PAYLOAD_BYTES_MAX);
/// The bound on a head.
const HEADER_BYTES_MAX: usize = Limits::DEFAULT.header_bytes_max;
/// Steps from which a block comes again.
const AGAIN: u8 = 0xf0;

/// A name and its value.
type Pair = (Vec<u8>, Vec<u8>);

/// The next block of an input, of one frame. Step 0 takes all that is left, and [`AGAIN`] the last block
/// again.
fn next_block<'a>(input: &mut Input<'a>, last: &'a [u8]) -> Option<&'a [u8]> {
    if input.bytes.is_empty() {
        return None;
    }
    Some(match input.step() {
        0 => input.take(PAYLOAD_BYTES_MAX),
        AGAIN.. if !last.is_empty() => last,
        bytes => input.take(bytes.into()),
    })
}

/// Blocks of one connection. Whole and in pieces they mean the same, what they keep has its bounds, and what
/// is written again is read again. `reference` decodes a block that was accepted; it must find the same
/// fields.
pub fn hpack(data: &[u8], mut reference: impl FnMut(&[u8]) -> Vec<Pair>) {
    let mut input = Input::of(data);
    let (mut whole, mut cut) = (Decoder::new(), Decoder::new());
    let (mut encoder, mut of_replies) = (Encoder::new(), Decoder::new());
    let (mut block, mut blocks) = (&b""[..], 0);
    while let Some(next) = next_block(&mut input, block)
        && blocks < 64
    {
        (block, blocks) = (next, blocks + 1);
        let version = whole.version();
        let mut fields: Vec<Pair> = vec![];
        let read = whole.decode(block, |field| fields.push((field.name.to_vec(), field.value.to_vec())));
        let pieces = decode_in_pieces(&mut cut, block, &mut input);
        assert_eq!(read.is_ok(), pieces.is_some(), "whole and in pieces it is accepted or not");
        for decoder in [&whole, &cut] {
            assert!(decoder.bytes() <= DECODER_BYTES_MAX, "{} bytes are kept", decoder.bytes());
            assert!(decoder.table_bytes() <= TABLE_BYTES, "a table of {} bytes", decoder.table_bytes());
        }
        let Some(pieces) = pieces else { return };
        assert_eq!(fields, pieces, "whole and in pieces it means the same");
        assert_eq!(fields, reference(block), "another decoder reads something else");
        if whole.version() == version {
            let mut again: Vec<Pair> = vec![];
            let read = whole.decode(block, |field| again.push((field.name.to_vec(), field.value.to_vec())));
            assert!(read.is_ok() && again == fields, "the same table, and another meaning");
        }
        encode_again(&fields, &mut encoder, &mut of_replies);
    }
}

fn decode_in_pieces(decoder: &mut Decoder, block: &[u8], input: &mut Input<'_>) -> Option<Vec<Pair>> {
    let (mut fields, mut rest) = (vec![], block);
    loop {
        let (piece, further) = rest.split_at(rest.len().min(1 + usize::from(input.step())));
        rest = further;
        let read = decoder.decode_piece(piece, rest.is_empty(), |field| {
            fields.push(field.map(|field| (field.name.to_vec(), field.value.to_vec())));
        });
        read.ok()?;
        if rest.is_empty() {
            // Within a frame no field is too long.
            return fields.into_iter().collect();
        }
    }
}

/// Writes the fields that a reply may have, and reads them.
fn encode_again(fields: &[Pair], encoder: &mut Encoder, decoder: &mut Decoder) {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    let mut block = vec![];
    let status = if fields.len().is_multiple_of(2) { StatusCode::OK } else { StatusCode::IM_A_TEAPOT };
    encoder.headers(status, &map, &mut block);
    let mut written: Vec<Pair> = vec![(b":status".to_vec(), status.as_str().into())];
    written.extend(map.iter().map(|(name, value)| (name.as_str().into(), value.as_bytes().into())));
    let mut read: Vec<Pair> = vec![];
    let decoded = decoder.decode(&block, |field| read.push((field.name.to_vec(), field.value.to_vec())));
    assert!(decoded.is_ok() && read == written, "what is written is not what is read");
}

/// Heads of one connection. A block that comes again, in one frame or in several, is the same head; a head
/// that is accepted keeps to RFC 9113, section 8, and to its bound: the real one, or a smaller one, which
/// short inputs can pass.
pub fn head(data: &[u8]) {
    let mut input = Input::of(data);
    let bytes_max = HEADER_BYTES_MAX >> input.choice;
    // The one remembers the last block, the other one does not.
    let (mut whole, mut cut) = (HeaderDecoder::new(), HeaderDecoder::new());
    let (mut heads, mut credentials) = (BTreeMap::new(), BTreeMap::new());
    let (mut block, mut blocks) = (&b""[..], 0);
    while let Some(next) = next_block(&mut input, block)
        && blocks < 64
    {
        (block, blocks) = (next, blocks + 1);
        let read = whole.read(block, bytes_max).ok().cloned();
        let pieces = read_in_pieces(&mut cut, block, (bytes_max, &mut input));
        assert_eq!(read.is_some(), pieces.is_some(), "in one frame and in several it is accepted or not");
        let (Some(read), Some(pieces)) = (read, pieces) else { return };
        assert_eq!(contents(&read), contents(&pieces), "in one frame and in several it means the same");
        check_head(&read, bytes_max);
        let said = heads.entry(read.serial()).or_insert_with(|| contents(&read));
        assert_eq!(*said, contents(&read), "two heads with one serial");
        let credential =
            credentials.entry(read.credential_serial()).or_insert_with(|| read.authorization().map(Vec::from));
        assert_eq!(credential.as_deref(), read.authorization(), "two credentials with one serial");
        for decoder in [&whole, &cut] {
            // Three heads and a block, each with room for twice as much.
            let most = DECODER_BYTES_MAX + 4 * 3 * PAYLOAD_BYTES_MAX;
            assert!(decoder.bytes() <= most, "{} bytes are kept", decoder.bytes());
        }
    }
}

fn read_in_pieces(
    heads: &mut HeaderDecoder,
    block: &[u8],
    (bytes_max, input): (usize, &mut Input<'_>),
) -> Option<Arc<RequestHead>> {
    let mut rest = block;
    loop {
        let (piece, further) = rest.split_at(rest.len().min(1 + usize::from(input.step())));
        rest = further;
        let read = heads.read_piece(piece, rest.is_empty(), bytes_max).ok()?;
        if rest.is_empty() {
            return read.cloned();
        }
    }
}

/// All that a head says, but for its numbers.
fn contents(head: &RequestHead) -> impl PartialEq + std::fmt::Debug + use<> {
    let texts = [Some(head.method()), Some(head.path()), head.content_type(), head.authorization()];
    (
        texts.map(|text| text.map(<[u8]>::to_vec)),
        head.timeout().map(|timeout| timeout.map(<[u8]>::to_vec)),
        (head.has_encoding(), head.content_length()),
        (head.request_error(), head.trailers_error()),
        head.to_request(()).map(|request| (request.uri().clone(), request.headers().clone())),
    )
}

fn check_head(head: &RequestHead, bytes_max: usize) {
    if head.request_error().is_some() {
        return;
    }
    let listed = head.bytes() - size_of::<RequestHead>();
    assert!(listed <= bytes_max, "a head of {listed} bytes");
    let Some(request) = head.to_request(()) else { return };
    let headers = request.headers();
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ENTRY_BYTES).sum::<usize>();
    // `:method`, `:scheme` and `:path` are in the list too.
    let pseudo = 7 + head.method().len() + 7 + 5 + head.path().len() + 3 * ENTRY_BYTES;
    assert!(fields + pseudo <= listed, "{fields} and {pseudo} bytes in a list of {listed}");
    for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        assert!(!headers.contains_key(name), "{name} belongs to a connection");
    }
    assert!(headers.get("te").is_none_or(|te| te == "trailers"), "te that is not `trailers`");
    let credentials = headers.get_all("authorization").iter().collect::<Vec<_>>();
    let only = if let [only] = credentials[..] { Some(only.as_bytes()) } else { None };
    assert_eq!(head.authorization(), only, "the credential that is checked is the one that is there");
}
