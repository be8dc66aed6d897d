//! What callers may ask for, and what they are told: RPCs, fields, lists, roles and tenants.

mod access;
pub(crate) mod administrators;
mod authorization;
mod bad_input;
mod batch;
mod bounds;
mod caller_sessions;
mod clock;
mod deletion;
mod disabled_callers;
mod fields;
mod holds;
mod keys;
mod lifecycle_verdicts;
mod lists;
mod restrictions;
mod retries;
mod rotation;
pub(crate) mod stream;
mod suspension;
mod tenants;
