//! HPACK, against another decoder: see `grpc_h2::fuzz_targets::hpack`.
#![no_main]

use fluke_hpack::Decoder;
use fluke_hpack::decoder::DecoderError;

/// The default of SETTINGS_HEADER_TABLE_SIZE.
const TABLE_BYTES: usize = 4096;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut decoder = Decoder::new();
    decoder.set_max_allowed_table_size(TABLE_BYTES);
    grpc_h2::fuzz_targets::hpack(data, |block| match decoder.decode(block) {
        Ok(fields) => fields,
        // A block of nothing but updates of the table's size, which RFC 7541 does not forbid.
        Err(DecoderError::SizeUpdateAtEnd) => vec![],
        Err(error) => panic!("another decoder refuses it: {error:?}"),
    });
});
