//! Builds that break a promise on purpose, to show that the crash harness sees it. Only with a feature
//! `fault-…`.
//!
//! Such a program runs only where [`CONSENT`] says so, and says in its log what it is: it must never hold
//! real keys.

/// Must be `1` in the environment of a program with a fault.
pub const CONSENT: &str = "ALLOW_FAULTY_KEYWARD";

/// What this program does not do.
pub const FAULTS: &[&str] = &[
    #[cfg(feature = "fault-ack-before-sync")]
    "acknowledges changes before they are on the disk",
    #[cfg(feature = "fault-skip-dir-sync")]
    "does not make the names of new journal segments durable",
    #[cfg(feature = "fault-end-before-answer")]
    "ends before it answers where a request id says so",
];

/// Refuses to go on without consent.
///
/// # Errors
/// When the environment does not give it.
pub fn refuse_without_consent() -> Result<(), String> {
    if std::env::var_os(CONSENT).is_some_and(|consent| consent == "1") {
        return Ok(());
    }
    let faults = FAULTS.join(", and ");
    Err(format!("this is a test build that {faults}; do not use it. Tests set {CONSENT}=1"))
}

/// Says so in the log.
pub fn declare() {
    for fault in FAULTS {
        tracing::error!("TEST BUILD, NEVER FOR REAL KEYS: this program {fault}");
    }
}
