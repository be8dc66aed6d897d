//! The vectors of RFC 7541, appendix C, and invalid blocks.

use http::{HeaderMap, StatusCode};
use proptest::prelude::*;

use super::*;

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, CompressionError> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut fields = vec![];
    decoder.decode(block, |field| fields.push((text(field.name), text(field.value))))?;
    Ok(fields)
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.bytes().filter(|digit| !digit.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn fields(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

/// Appendices C.3 and C.4: three requests on one connection, without and with the Huffman code.
#[test]
fn requests_of_the_rfc_are_read() {
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let coded = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    let first = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
    let third = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ];
    for blocks in [plain, coded] {
        let mut decoder = Decoder::new();
        assert_eq!(decode(&mut decoder, &hex(blocks[0])).unwrap(), fields(&first));
        let second = [&first[..], &[("cache-control", "no-cache")]].concat();
        assert_eq!(decode(&mut decoder, &hex(blocks[1])).unwrap(), fields(&second));
        assert_eq!(decode(&mut decoder, &hex(blocks[2])).unwrap(), fields(&third));
        let indexed = decode(&mut decoder, &[0x80 | 62, 0x80 | 63, 0x80 | 64]).unwrap();
        let table = [("custom-key", "custom-value"), ("cache-control", "no-cache"), (":authority", "www.example.com")];
        assert_eq!(indexed, fields(&table));
        assert_eq!(decode(&mut decoder, &[0x80 | 65]), Err(CompressionError));
    }
}

/// Appendix C.6: replies, with a table of 256 bytes that evicts entries.
#[test]
fn what_has_no_room_is_forgotten() {
    let blocks = [
        "3fe1 01 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 \
         63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 \
         dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    let mut decoder = Decoder::new();
    let read: Vec<_> = blocks.iter().map(|block| decode(&mut decoder, &hex(block)).unwrap()).collect();
    let (date, place) = ("Mon, 21 Oct 2013 20:13:21 GMT", "https://www.example.com");
    let first = [(":status", "302"), ("cache-control", "private"), ("date", date), ("location", place)];
    assert_eq!(read[0], fields(&first));
    let second = [(":status", "307"), ("cache-control", "private"), ("date", date), ("location", place)];
    assert_eq!(read[1], fields(&second));
    assert_eq!(read[2][0], (":status".into(), "200".into()));
    let cookie = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    assert_eq!(read[2].last().unwrap(), &("set-cookie".into(), cookie.into()));
    assert_eq!(decode(&mut decoder, &[0x80 | 64]).unwrap()[0].0, "date");
    assert_eq!(decode(&mut decoder, &[0x80 | 65]), Err(CompressionError), "no more than three fit");
}

#[test]
fn blocks_that_break_a_rule_are_refused() {
    for (what, block) in [
        ("index 0", "80"),
        ("an index past the table", "be"),
        ("a name past the table", "7f00 0161"),
        ("an integer without end", "ffff ffff ffff ffff ffff"),
        ("an integer that is cut off", "ff80"),
        ("a string that is cut off", "4001 61 05 6162"),
        ("a string that is not there", "4001 61"),
        ("a name that is not there", "40"),
        ("the end of a string inside it", "0001 61 84 ffff ffff"),
        ("padding of eight bits", "0001 61 82 1fff"),
        ("padding that is not all ones", "0001 61 81 18"),
        ("a table larger than allowed", "3fe2 1f"),
        ("a table's size behind a field", "8220"),
    ] {
        assert_eq!(decode(&mut Decoder::new(), &hex(block)), Err(CompressionError), "{what}");
    }
    // Their valid neighbours.
    for block in ["3fe1 1f", "2020 82", "0001 61 81 1f", "0001 61 80", "0001 61 00"] {
        decode(&mut Decoder::new(), &hex(block)).unwrap();
    }
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::new();
    decode(&mut decoder, &hex("4001 61 01 62")).unwrap();
    assert_eq!(decode(&mut decoder, &[0x80 | 62]).unwrap(), fields(&[("a", "b")]));
    let mut large = hex("4001 61 7f81 1f");
    large.extend([b'x'; 0x7f + 0xf81]);
    assert_eq!(decode(&mut decoder, &large).unwrap()[0].1.len(), 0x7f + 0xf81);
    assert_eq!(decode(&mut decoder, &[0x80 | 62]), Err(CompressionError));
}

/// All bytes in order, as the Python package hpack encodes them.
const ALL_BYTES: &str = "
    ffc7fffd8fffffe2fffffe3fffffe4fffffe5fffffe6fffffe7fffffe8ffffeafffffff3fffffa7fffffabffffffdfffffebffff
    fecfffffedfffffeefffffefffffff0ffffff1ffffff2fffffffbfffffcffffffd3fffffd7fffffdbfffffdffffffe3fffffe7ff
    fffebfffffed4fe3f9ffaffcabf1febfafefe7fdfd2cbb00089969b71d79fb9f7fff20ffbff3ff50ddbd7f061c58f265cd9f469d
    5af66dddbf871e5f9cff7ff7fffc3ff9ffe45fff4719242cb34e6e9d68a6a3d7dac426defe3cfaf7fffbfe7ffbffdffffffcfffe
    6ffff4bfff9ffffa3fffd3ffff53fffd5ffffb3fffeb7fffdaffffb7ffff73fffeeffffdeffffebffffbfffffd9ffffdbfffebff
    ffe0ffffeeffffc3ffff8bffff1ffffe4fffee7fffb1ffff97fffd9ffffcdffff9fffffbffffdafffeeffff4ffffb7fffee7fffe
    8ffffd3fffdeffffd5fffeeffffbdffffe1fffdfffff7fffff5ffffecffff07fff87fffe0ffff17fffedffff87ffff77fffeffff
    eaffff8bfffe3ffff93ffff87fffcbffff37ffff1fffff83ffffe1fffebfffe3ffff3fffff2ffffa3ffffd9fffff17ffffc7ffff
    f27ffffdefffffbffffff2fffff8fffffb7fff97fff8fffffe6fffffc1fffff87ffffe7fffffc5ffffe5fffe4ffff2fffffd1fff
    ff4ffffffefffffe3fffffc9fffff97fffb3ffffcffffb7fffcdffff4ffff9ffffd1ffffcffffeaffffafffffddffffeffffff4f
    ffff5fffffabffffa7ffffd7fffff9bffffecfffffb7fffff3fffffe8fffffd3fffffabfffff5fffffff7ffffecfffffdbfffffb
    bfffff7ffffff0fffffbbf";

#[test]
fn the_huffman_code_is_that_of_the_rfc() {
    let mut all = vec![];
    huffman::decode(&hex(ALL_BYTES), &mut all).unwrap();
    assert_eq!(all, (0..=255).collect::<Vec<u8>>());
}

#[test]
fn the_two_usual_fields_are_one_byte_from_their_second_time_on() {
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::new();
    let mut write = |write: &dyn Fn(&mut Encoder, &mut Vec<u8>)| {
        let mut block = vec![];
        write(&mut encoder, &mut block);
        (block.len(), decode(&mut decoder, &block).unwrap())
    };
    let head = fields(&[(":status", "200"), ("content-type", "application/grpc")]);
    let ok = fields(&[("grpc-status", "0")]);
    assert_eq!(write(&|encoder, to| encoder.grpc_headers(to)).1, head);
    assert_eq!(write(&|encoder, to| encoder.grpc_headers(to)), (2, head.clone()));
    assert_eq!(write(&|encoder, to| encoder.grpc_ok(to)).1, ok);
    for _ in 0..2 {
        assert_eq!(write(&|encoder, to| encoder.grpc_headers(to)), (2, head.clone()));
        assert_eq!(write(&|encoder, to| encoder.grpc_ok(to)), (1, ok.clone()));
        let refused = [("content-type", "application/grpc"), ("grpc-status", "16"), ("grpc-message", "no")];
        let map: HeaderMap = refused.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
        let read = write(&|encoder, to| encoder.headers(StatusCode::UNAUTHORIZED, &map, to)).1;
        assert_eq!(read, [&fields(&[(":status", "401")])[..], &fields(&refused)].concat());
    }
}

#[test]
fn a_peer_with_a_smaller_table_has_it_left_alone() {
    let mut encoder = Encoder::new();
    let (mut first, mut second) = (vec![], vec![]);
    encoder.grpc_headers(&mut first);
    encoder.limit_table(4095);
    encoder.limit_table(65_536);
    first.clear();
    encoder.grpc_headers(&mut first);
    encoder.grpc_headers(&mut second);
    assert_eq!(first[0], RESIZED, "it is told");
    assert_eq!(first[1..], second, "once");
    let mut decoder = Decoder::new();
    let head = fields(&[(":status", "200"), ("content-type", "application/grpc")]);
    assert_eq!(decode(&mut decoder, &first).unwrap(), head);
    assert_eq!(decode(&mut decoder, &[0x80 | 62]), Err(CompressionError), "nothing is remembered");
}

const RESIZED: u8 = 0x20;

proptest! {
    #[test]
    fn garbage_is_an_error_or_fields(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..8)) {
        let mut decoder = Decoder::new();
        for block in blocks {
            if decode(&mut decoder, &block).is_err() {
                break;
            }
        }
    }

    #[test]
    fn what_is_written_is_read_again(
        pairs in prop::collection::vec(("[a-z][a-z-]{0,20}", "[ -~]{0,300}"), 0..20),
        repeats in 1..4,
    ) {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let mut map = HeaderMap::new();
        for (name, value) in &pairs {
            map.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        for _ in 0..repeats {
            let mut block = vec![];
            encoder.trailers(&map, &mut block);
            let read = decode(&mut decoder, &block).unwrap();
            let written: Vec<_> =
                map.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
            prop_assert_eq!(read, written);
        }
    }
}

/// The same fields, and the same table afterwards, however a block is cut.
fn decode_in_pieces(
    decoder: &mut Decoder,
    block: &[u8],
    sizes: &[usize],
) -> Result<Vec<Option<(String, String)>>, CompressionError> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (mut fields, mut rest, mut sizes) = (vec![], block, sizes.iter().cycle());
    loop {
        let (piece, further) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
        rest = further;
        decoder.decode_piece(piece, rest.is_empty(), |field| {
            fields.push(field.map(|field| (text(field.name), text(field.value))));
        })?;
        assert!(decoder.rest.len() <= 2 * STRING_BYTES_MAX + 16, "{} bytes are kept", decoder.rest.len());
        if rest.is_empty() {
            return Ok(fields);
        }
    }
}

/// A literal, without Huffman coding.
fn literal(form: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut field = vec![form];
    for text in [name, value] {
        if text.len() < 0x7f {
            field.push(text.len() as u8);
        } else {
            field.push(0x7f);
            let mut rest = text.len() - 0x7f;
            while rest >= 0x80 {
                field.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            field.push(rest as u8);
        }
        field.extend_from_slice(text);
    }
    field
}

#[test]
fn a_block_in_pieces_may_begin_with_a_table_size_whatever_came_before() {
    let block = [&[0x20][..], &literal(0, b"n", b"v")].concat();
    for sizes in [&[1_usize][..], &[16_384]] {
        let mut decoder = Decoder::new();
        for _ in 0..2 {
            decode(&mut decoder, &literal(0, b"n", b"v")).unwrap();
            assert_eq!(decode_in_pieces(&mut decoder, &block, sizes).unwrap().len(), 1);
        }
    }
}

#[test]
fn a_field_that_is_too_long_is_passed_over_and_empties_the_table_if_it_is_to_be_remembered() {
    let (long, most) = (vec![b'x'; STRING_BYTES_MAX + 1], vec![b'x'; STRING_BYTES_MAX]);
    for sizes in [&[1_usize][..], &[16_384], &[7, 16_384, 1]] {
        for (name, value) in [(&b"a"[..], &long[..]), (&long, b""), (&long, b"b"), (&long, &long)] {
            for form in [0, 0x10, 0x40] {
                let mut decoder = Decoder::new();
                decode(&mut decoder, &literal(0x40, b"n", b"v")).unwrap();
                let block = [&[0x82][..], &literal(form, name, value), &[0x84]].concat();
                let read = decode_in_pieces(&mut decoder, &block, sizes).unwrap();
                assert_eq!((read.len(), &read[1]), (3, &None));
                assert!(read[0].is_some() && read[2].is_some());
                assert_eq!(decode(&mut decoder, &[0x80 | 62]).is_err(), form == 0x40);
                // Truncated, it is invalid.
                let mut decoder = Decoder::new();
                let end = block.len() - 2;
                assert_eq!(decode_in_pieces(&mut decoder, &block[..end], sizes), Err(CompressionError));
            }
        }
        let mut decoder = Decoder::new();
        let read = decode_in_pieces(&mut decoder, &literal(0, &most, &most), sizes).unwrap();
        assert!(read[0].is_some(), "it is just not too long");
    }
    let mut decoder = Decoder::new();
    let late = [literal(0, b"a", &long), vec![0x20]].concat();
    assert_eq!(decode_in_pieces(&mut decoder, &late, &[16_384]), Err(CompressionError), "a size behind a field");
}

proptest! {
    #[test]
    fn a_block_means_the_same_in_pieces(
        blocks in prop::collection::vec(
            prop::collection::vec(prop_oneof![
                Just(vec![0x82]),
                Just(vec![0x80 | 62]),
                Just(vec![0x80 | 63]),
                Just(vec![0x3f, 0x45]),
                (prop_oneof![Just(0_u8), Just(0x40)], "[a-z]{1,9}", "[ -~]{0,300}").prop_map(
                    |(form, name, value)| literal(form, name.as_bytes(), value.as_bytes())
                ),
                prop::collection::vec(any::<u8>(), 1..4),
            ], 0..8),
            1..5,
        ),
        sizes in prop::collection::vec(1_usize..100, 1..6),
    ) {
        let (mut whole, mut cut) = (Decoder::new(), Decoder::new());
        for block in blocks {
            let block = block.concat();
            let read = decode(&mut whole, &block);
            let in_pieces = decode_in_pieces(&mut cut, &block, &sizes);
            let in_pieces = in_pieces.map(|fields| fields.into_iter().map(Option::unwrap).collect::<Vec<_>>());
            prop_assert_eq!(&read, &in_pieces);
            if read.is_err() {
                return Ok(());
            }
        }
    }
}
