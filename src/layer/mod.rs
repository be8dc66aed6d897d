//! Middleware: what happens to every call before a service sees it. Outermost first: [`incoming`],
//! [`metrics`], [`protocol`], then [`deadline`], [`authn`] with [`judged`], [`log`], and [`incoming`] once
//! more. [`crate::fast_path`] answers most verdicts before any of them.

pub mod authn;
pub mod deadline;
pub mod failures;
pub mod in_flight;
pub mod incoming;
mod judged;
pub mod log;
pub mod metrics;
pub mod protocol;
