//! The program around the service: how it starts and stops, what operators set, see and run, and which work
//! goes first.

mod admin_key;
mod binary;
mod caller_limits;
mod cli_tools;
mod command_line;
mod first_admin;
mod identities;
mod lifecycle;
mod limits;
mod listeners;
mod logs;
mod metrics;
mod narrowing;
mod ops;
mod probes;
mod settings;
mod start_stages;
mod stopping;
