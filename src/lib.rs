//! Keyward, a key authority: it issues API keys, and answers "may this key do this, now?" over gRPC.
//!
//! One log, many views: a change is committed to the log, and everything else is folded from it, in order.
//! ARCHITECTURE.md has the map. The modules in reading order:
//!
//! - [`cli`], [`config`], [`telemetry`]: what an operator says, and what he is told.
//! - [`app`]: puts everything together; the only place that names a storage engine.
//! - [`offline`]: what is done to data that nobody serves. [`remote`]: what is asked of a server from
//!   outside.
//! - [`lifecycle`]: signals and shutdown. [`disk_monitor`]: whether changes can be made. [`health`]: what
//!   probes are told. [`net`]: listeners. [`cores`], [`serve`]: connections, and where they live. [`http2`]:
//!   what they speak.
//! - [`systemd`]: notifications of readiness. [`ops_http`]: probes and metrics over HTTP. [`metrics`]: what
//!   is counted.
//! - [`layer`], [`grpc`]: calls come in: who calls, may they, and from the wire to the domain and back.
//!   [`fast_path`]: most verdicts, from the bytes that were read.
//! - [`authority`]: the write side. [`verify`]: the hot path.
//! - [`bytes_codec`]: numbers in stored and received bytes. [`index`]: every key in RAM. [`feed`]: the changes, in order.
//! - [`store`]: the log and the table on disk.
//! - [`keyring`], [`files`], [`system`], [`machine`], [`parallel`], [`fair`], [`progress`], [`fatal`]: the
//!   pepper file, durable small files, the real clock and randomness, how much memory there is, work on every
//!   core, turns of callers, how far a long start is, and the end of a process that must not go on.

pub mod app;
pub mod authority;
pub mod bytes_codec;
pub mod cli;
pub mod config;
pub mod cores;
pub mod disk_monitor;
pub mod fair;
pub mod fast_path;
pub mod fatal;
#[cfg(feature = "_faults")]
pub mod faults;
pub mod feed;
pub mod files;
pub mod grpc;
pub mod health;
pub mod http2;
pub mod index;
pub mod keyring;
pub mod layer;
pub mod lifecycle;
pub mod machine;
pub mod metrics;
pub mod net;
pub mod offline;
pub mod ops_http;
pub mod parallel;
pub mod progress;
pub mod remote;
pub mod serve;
pub mod store;
pub mod system;
pub mod systemd;
pub mod telemetry;
pub mod verify;
