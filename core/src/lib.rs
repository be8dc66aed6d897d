//! The domain of Keyward: what a secret, a key and a verdict are.
//!
//! Pure by construction: no I/O, no async, no clock and no randomness of its own. Time and randomness are
//! parameters ([`clock::Clock`], [`entropy::Entropy`]).
//!
//! Reading order: [`limits`], [`id`], [`secret`], [`leak`], [`digest`], [`scope`], [`address`], [`record`],
//! [`key_change`], [`rotation`], [`decision`], [`narrowing`], [`access`], [`identity`],
//! [`proxies`], [`administrators`], [`event`], [`head`]. Tests of
//! all packages take their records and their randomness from `testing`.

pub mod access;
pub mod address;
pub mod administrators;
pub mod clock;
pub mod decision;
pub mod digest;
pub mod entropy;
pub mod event;
pub mod head;
pub mod holds;
pub mod id;
pub mod identity;
pub mod key_change;
pub mod leak;
pub mod limits;
pub mod narrowing;
pub mod proxies;
pub mod record;
pub mod rotation;
pub mod scope;
pub mod secret;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;
mod variants;
