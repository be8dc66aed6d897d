//! How callers reach the service: connections, HTTP/2, streams, the two ways of a verdict, and what peers may
//! take of memory and of processors.

mod amplified;
mod connection_slots;
mod connections;
mod core_placement;
pub(crate) mod fast_path;
mod http2_calls;
mod http2_floods;
mod http2_heads;
mod http2_metrics;
mod http2_rules;
pub(crate) mod http2_time;
mod http2_windows;
mod hyper;
mod memory;
mod prefetch;
mod request_budget;
mod stream_polling;
mod tls;
mod unread_replies;
mod verify_codec;
