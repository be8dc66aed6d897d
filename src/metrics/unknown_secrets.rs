//! Verdicts on texts that are no key, counted by the caller who asked for them: they show at which service
//! strangers try secrets.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use keyward_core::access::Caller;
use keyward_core::decision::DenyReason;
use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Callers that have counters of their own. Those that come later share those of `other`.
const CALLERS_MAX: usize = 200;
const OTHER: &str = "other";

/// The counters of all callers. Clones share them.
#[derive(Clone, Default)]
pub(super) struct UnknownSecrets(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// By the number of their callers. A reader takes no lock.
    by_number: ArcSwap<HashMap<u64, Arc<Counts>>>,
    /// Those of each name, in the order in which they came.
    all: Mutex<Vec<Arc<Counts>>>,
}

struct Counts {
    caller: String,
    unknown: AtomicU64,
    malformed: AtomicU64,
}

impl UnknownSecrets {
    /// Counts a verdict for a caller, if it is on no key.
    #[inline]
    pub(super) fn note(&self, caller: &Caller, failure: Option<DenyReason>) {
        if let Some(reason @ (DenyReason::Unknown | DenyReason::Malformed)) = failure {
            self.count(caller, reason);
        }
    }

    fn count(&self, caller: &Caller, reason: DenyReason) {
        let number = caller.identity().number();
        let counts = match self.0.by_number.load().get(&number) {
            Some(counts) => counts.clone(),
            None => self.add(caller, number),
        };
        let counter = if reason == DenyReason::Malformed { &counts.malformed } else { &counts.unknown };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters of a caller who has not been counted, or not by this secret.
    #[cold]
    fn add(&self, caller: &Caller, number: u64) -> Arc<Counts> {
        let mut all = self.0.all.lock();
        let name = caller.identity().actor().to_string();
        let name = match all.iter().any(|counts| counts.caller == name) || all.len() < CALLERS_MAX {
            true => name,
            false => OTHER.to_owned(),
        };
        let counts = match all.iter().find(|counts| counts.caller == name) {
            Some(counts) => counts.clone(),
            None => {
                let new = Counts { caller: name, unknown: AtomicU64::new(0), malformed: AtomicU64::new(0) };
                all.push(Arc::new(new));
                all[all.len() - 1].clone()
            }
        };
        // A caller has another number with each secret. Old ones are forgotten, and found again by the name.
        let mut by_number = HashMap::clone(&self.0.by_number.load());
        if by_number.len() >= 2 * CALLERS_MAX {
            by_number.clear();
        }
        by_number.insert(number, counts.clone());
        self.0.by_number.store(Arc::new(by_number));
        counts
    }
}

impl fmt::Debug for UnknownSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.all.lock().iter().map(|counts| &counts.caller)).finish()
    }
}

impl EncodeMetric for UnknownSecrets {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for counts in &*self.0.all.lock() {
            for (reason, counter) in [("UNKNOWN", &counts.unknown), ("MALFORMED", &counts.malformed)] {
                let labels = [("caller", &*counts.caller), ("reason", reason)];
                encoder
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, u64, u64>(&counter.load(Ordering::Relaxed), None)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use keyward_core::access::Identity;
    use keyward_core::digest::Digest;
    use keyward_core::id::KeyId;

    fn caller(name: &str, secret: u16) -> Caller {
        let mut digest = [0; 32];
        digest[..2].copy_from_slice(&secret.to_le_bytes());
        Caller::new(Identity::of_key(KeyId::parse(name).unwrap(), Digest::from_bytes(digest), None), &[])
    }

    #[test]
    fn callers_past_the_bound_are_counted_together_and_a_new_secret_is_no_new_caller() {
        let secrets = UnknownSecrets::default();
        for number in 0..1_000 {
            let name = format!("caller-{}", number % 300);
            secrets.note(&caller(&name, number), Some(DenyReason::Unknown));
            secrets.note(&caller(&name, number), Some(DenyReason::Disabled));
        }
        let all = secrets.0.all.lock();
        assert_eq!(all.len(), CALLERS_MAX + 1);
        assert_eq!(all[0].unknown.load(Ordering::Relaxed), 4, "0, 300, 600 and 900");
        assert_eq!(all[CALLERS_MAX].caller, OTHER);
        let counted: u64 = all.iter().map(|counts| counts.unknown.load(Ordering::Relaxed)).sum();
        assert_eq!(counted, 1_000);
        assert!(secrets.0.by_number.load().len() <= 2 * CALLERS_MAX);
    }
}
