//! Keyward, a key authority: it issues API keys, and answers "may this key do this, now?" over gRPC.
//!
//! One log, many views: a change is committed to the log, and everything else is folded from it, in order.
//! ARCHITECTURE.md has the map. The modules in reading order:
//!
//! - [`cli`], [`config`], [`telemetry`]: the command line, the settings, the log.
//! - [`app`]: the composition root, and the only module besides [`offline`] that names a storage engine.
//! - [`offline`]: commands on a data directory that no server has open. [`remote`]: clients of a running
//!   server.
//! - [`lifecycle`]: signals and shutdown. [`disk_monitor`]: reports whether changes can be made. [`health`]:
//!   the health of the services. [`net`]: listeners. [`cores`], [`serve`]: the runtimes of connections.
//!   Their protocol is `grpc_h2`.
//! - [`systemd`]: notifications of readiness. [`ops_http`]: probes and metrics over HTTP. [`metrics`]:
//!   counters and gauges.
//! - [`layer`], [`grpc`]: authentication, authorization, and conversion between the wire and the domain.
//!   [`fast_path`]: most verdicts, from the bytes that were read.
//! - [`authority`]: the write side. [`verify`]: the read side.
//! - [`bytes_codec`]: numbers in stored and received bytes. [`index`]: all keys in RAM.
//!   [`feed`]: the changes, in order.
//! - [`store`]: the log and the table on disk.
//! - [`keyring`]: the pepper file. [`files`]: durable small files. [`system`]: the clock, randomness, limits.
//!   [`machine`]: the size of memory. [`parallel`]: work on all cores. [`fair`]: turns of callers.
//!   [`progress`]: the progress of long work. [`fatal`]: aborts the process.

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
