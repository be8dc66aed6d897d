//! What tests stand on: a server to test against, a request for each RPC, and a client that can break every
//! rule of HTTP/2.

pub(crate) mod h2peer;
pub(crate) mod harness;
pub(crate) mod rpcs;
