//! The configuration file: what is accepted keeps its bounds, and its listing, as a file, means the same;
//! what is refused is refused with a reason.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::Duration;

use keyward::config::{Effective, Flags, Mistakes, Settings};
use rustix::fs::{MemfdFlags, memfd_create};

fn load(text: &[u8]) -> Result<Effective, Mistakes> {
    let mut file = File::from(memfd_create("config", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all(text).expect("a file in memory");
    Settings::load(&Flags::default(), Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into()))
}

fn check_bounds(settings: &Settings) {
    const HOUR: Duration = Duration::from_secs(3_600);
    assert!(settings.drain_delay <= HOUR && settings.shutdown_deadline <= HOUR);
    assert!((64 * 1024..=1024 * 1024 * 1024).contains(&settings.journal_segment_bytes));
    assert!(settings.journal_retention_bytes >= 1024 * 1024 && settings.backup_aside_bytes_max >= 1024 * 1024);
    assert!((Duration::from_secs(1)..=168 * HOUR).contains(&settings.backup_time_max));
    assert!(settings.tenants_max > 0 && settings.owners_per_tenant_max > 0 && settings.scopes_per_tenant_max > 0);
    assert!(settings.stranger_request_bytes_max >= 1024 * 1024 && settings.request_bytes_max >= 1024 * 1024);
    assert!(settings.serving_threads <= 256 && settings.sockets.mode <= 0o777);
    assert!(!settings.listen.is_empty() && !settings.accept_watermark_loss);
    let is_open = settings.listen.iter().any(|addr| !addr.is_local());
    assert!(settings.allow_plaintext || !is_open, "others can reach what is not encrypted");
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| match load(data) {
    Ok(Effective { settings, listing }) => {
        check_bounds(&settings);
        let lines: Vec<_> = listing.iter().map(|(name, value, _)| format!("{name} = {value}\n")).collect();
        let again = load(lines.concat().as_bytes());
        let Ok(again) = again else { panic!("the listing is refused: {}{}", lines.concat(), again.unwrap_err()) };
        let same = listing.iter().zip(&again.listing).find(|(one, other)| (one.0, &one.1) != (other.0, &other.1));
        assert!(same.is_none() && listing.len() == again.listing.len(), "the listing means something else: {same:?}");
    }
    Err(Mistakes(mistakes)) => assert!(!mistakes.is_empty() && mistakes.iter().all(|mistake| !mistake.is_empty())),
});
