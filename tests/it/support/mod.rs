//! What tests stand on: a server to test against, and a client that can break every rule of HTTP/2.

pub(crate) mod h2peer;
pub(crate) mod harness;
