//! Middleware: what happens to every call before a service sees it. Outermost first: [`metrics`], then [`authn`],
//! then [`log`].

pub mod authn;
pub mod log;
pub mod metrics;
