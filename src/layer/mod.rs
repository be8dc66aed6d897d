//! Middleware: what happens to every call before a service sees it. Outermost first: [`metrics`], then
//! [`deadline`], [`authn`] and [`log`]. [`quick`] stands before them all.

pub mod authn;
pub mod deadline;
pub mod log;
pub mod metrics;
pub mod quick;
