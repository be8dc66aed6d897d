//! What serves callers: from the sockets that are listened on to the stop.
//!
//! [`addr`] is what is listened on, and [`passed`] sockets that listened before; [`listener`] accepts,
//! [`slots`] bounds how many there are, and [`stream`] is an accepted connection. [`cores`] are the threads
//! that serve them, [`connections`] gives each one to a core and to an implementation of HTTP/2.
//! [`lifecycle`] owns the tasks and tells them to stop. [`ops_http`] answers probes.

pub mod addr;
pub mod age;
pub mod connections;
pub mod cores;
mod hyper;
pub mod lifecycle;
pub mod listener;
mod observer;
pub mod ops_http;
pub mod passed;
pub mod slots;
pub mod stream;
pub mod tls;
