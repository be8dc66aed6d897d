//! Keyward, a key authority: it issues API keys, and answers "may this key do this, now?" over gRPC.
//!
//! One log, many views: a change is committed to the log, and everything else is folded from it, in order.
//! ARCHITECTURE.md has the map. The modules in reading order:
//!
//! - [`cli`], [`config`], [`telemetry`]: the command line, the settings, the log.
//! - [`app`]: the composition root; besides [`offline`], only its `engines` names a storage engine.
//! - [`offline`]: commands on a data directory that no server has open. [`remote`]: clients of a running
//!   server.
//! - [`server`]: listeners, connections and the threads that serve them, shutdown, probes over HTTP. The
//!   protocol of connections is `grpc_h2`.
//! - [`disk_monitor`]: reports whether changes can be made. [`health`]: the health of the services.
//!   [`systemd`]: notifications of readiness. [`services`]: groups of services, as listeners serve them.
//!   [`metrics`]: counters and gauges.
//! - [`layer`], [`grpc`]: authentication, authorization, and conversion between the wire and the domain.
//!   [`fast_path`]: most verdicts, from the bytes that were read.
//! - [`authority`]: the write side. [`verify`]: the read side.
//! - [`bytes_codec`]: numbers in stored and received bytes. [`index`]: all keys in RAM.
//!   [`feed`]: the changes, in order. [`first_use`]: first uses of new secrets, from verdicts to the log.
//! - [`store`]: the log and the table on disk.
//! - [`keyring`]: the pepper file. [`fair`]: turns of callers. [`util`]: durable small files, the clock,
//!   randomness, the machine.

pub mod app;
pub mod authority;
pub mod bytes_codec;
pub mod cli;
pub mod config;
pub mod disk_monitor;
pub mod fair;
pub mod fast_path;
#[cfg(feature = "_faults")]
pub mod faults;
pub mod feed;
pub mod first_use;
pub mod grpc;
pub mod health;
pub mod index;
pub mod keyring;
pub mod layer;
pub mod metrics;
pub mod offline;
pub mod remote;
pub mod server;
pub mod services;
pub mod store;
pub mod systemd;
pub mod telemetry;
pub mod util;
pub mod verify;
