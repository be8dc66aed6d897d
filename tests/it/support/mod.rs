//! What tests stand on: a server in this process or in one of its own, an engine without one, keys whose
//! lives a model knows, a request for each RPC, and clients, of which one can break every rule of HTTP/2.

pub(crate) mod certificates;
pub(crate) mod encrypted;
pub(crate) mod h2peer;
pub(crate) mod harness;
pub(crate) mod lives;
pub(crate) mod local_store;
pub(crate) mod model;
pub(crate) mod ops_client;
pub(crate) mod program;
pub(crate) mod rpcs;
pub(crate) mod tables;
pub(crate) mod workshop;
