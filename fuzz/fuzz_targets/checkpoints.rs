//! Index checkpoints: see `keyward::store::local::fuzz_targets::checkpoints`. The chunks of an index are read
//! without a panic, whatever they hold.
#![no_main]

use std::sync::LazyLock;

use keyward::index::{Index, checkpoint};
use keyward_core::record::State;

/// Of all runs: it has 65,536 shards.
static INDEX: LazyLock<Index> = LazyLock::new(Index::default);

libfuzzer_sys::fuzz_target!(|data: &[u8]| match data {
    // The last chunk has the names, and the others are alike.
    [0xff, number, chunk @ ..] => {
        let number = if number & 1 == 0 { checkpoint::CHUNKS - 1 } else { usize::from(*number) };
        if INDEX.read_chunk(number, chunk).is_some() {
            let states = [State::Active, State::Disabled, State::Revoked].map(|state| INDEX.len_in(state));
            assert_eq!(INDEX.len(), states.iter().sum::<usize>(), "keys without a state");
        }
        if number + 1 == checkpoint::CHUNKS || !INDEX.is_empty() {
            INDEX.clear();
        }
    }
    _ => keyward::store::local::fuzz_targets::checkpoints(data),
});
