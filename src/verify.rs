//! The hot path: parse -> digest -> index -> decide.
//!
//! Synchronous: it never awaits and does no I/O. It reads the index and the time that it is given.

use std::sync::Arc;

use keyward_core::access::{Action, Caller};
use keyward_core::clock::Now;
use keyward_core::decision::{AccessRequest, Check, DenyReason, decide};
use keyward_core::digest::{Digest, PepperRing};
use keyward_core::event::Revision;
use keyward_core::holds::{Causes, Holds};
use keyward_core::id::TenantId;
use keyward_core::secret::PresentedSecret;

use crate::index::ahead::TOGETHER;
use crate::index::{Entry, Index};

/// Answers verifications from memory.
pub struct Verifier {
    index: Arc<Index>,
    peppers: Arc<PepperRing>,
}

/// A text that was presented as a secret, with what looking it up begins with. [`Verifier::read`] makes it.
#[derive(Clone, Copy)]
pub struct Presented<'a> {
    text: &'a str,
    /// Under the current pepper. `None`: the text has not the form of a secret.
    digest: Option<Digest>,
}

impl<'a> Presented<'a> {
    /// A text with the digest that [`Presented::digest`] gave for the same text.
    pub(crate) fn of_digest(text: &'a str, digest: Option<Digest>) -> Self {
        Self { text, digest }
    }

    /// Its digest under the current pepper. `None`: the text has not the form of a secret.
    pub(crate) fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The text.
    #[cfg(test)]
    pub(crate) fn text(&self) -> &'a str {
        self.text
    }

    /// Whether it was made of this very text: the same piece of memory.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        std::ptr::eq(self.text, text)
    }
}

/// A verdict.
pub struct Verdict<'a> {
    /// Every change up to this revision is in it.
    pub as_of: Revision,
    /// Allowed, or why not.
    pub outcome: Outcome<'a>,
}

/// Allowed, or why not.
pub enum Outcome<'a> {
    /// The key may do what was asked.
    Allow(Entry<'a>),
    /// The key was found and may not.
    Deny(Entry<'a>, DenyReason),
    /// There is no secret here ([`DenyReason::Malformed`]), or no key that the caller may see
    /// ([`DenyReason::Unknown`]).
    NoKey(DenyReason),
}

impl Verifier {
    /// A verifier over an index.
    #[must_use]
    pub fn new(index: Arc<Index>, peppers: Arc<PepperRing>) -> Self {
        Self { index, peppers }
    }

    /// The index.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Reads a secret: its form, its checksum, and its digest under the current pepper.
    #[must_use]
    pub fn read<'a>(&self, secret: &'a str) -> Presented<'a> {
        let digest = PresentedSecret::parse(secret).ok().map(|secret| self.peppers.current().digest(&secret));
        Presented { text: secret, digest }
    }

    /// Brings what verdicts about these secrets will read into the caches of the processor, if there are
    /// several.
    pub fn read_ahead<'a>(&self, secrets: impl Iterator<Item = &'a Presented<'a>>) {
        self.read_ahead_of(secrets.filter_map(|secret| secret.digest));
    }

    /// The same by their digests.
    pub(crate) fn read_ahead_of(&self, all: impl Iterator<Item = Digest>) {
        let mut digests = [Digest::from_bytes([0; 32]); TOGETHER];
        let mut count = 0;
        for (digest, to) in all.zip(&mut digests) {
            *to = digest;
            count += 1;
        }
        if count > 1 {
            self.index.read_ahead(&digests[..count]);
        }
    }

    /// The digest by which a secret is found, if it is: under the current pepper, or under an older one.
    #[must_use]
    pub fn known_digest(&self, secret: &Presented<'_>) -> Option<Digest> {
        let presented = PresentedSecret::parse(secret.text).ok()?;
        self.peppers.digests(&presented).find(|digest| self.index.get(digest).is_some())
    }

    /// Decides about a secret for a caller. A key outside the caller's tenants, or outside `tenant` if that
    /// is given, is unknown.
    #[must_use]
    pub fn verify(
        &self,
        caller: &Caller,
        secret: &Presented<'_>,
        tenant: Option<&TenantId>,
        request: &AccessRequest<'_>,
        now: Now,
    ) -> Verdict<'_> {
        let visible = |entry: &Entry<'_>| {
            tenant.is_none_or(|pin| entry.tenant() == pin) && caller.may(Action::Verify, entry.tenant())
        };
        self.judge(secret, visible, request, now)
    }

    fn judge(
        &self,
        secret: &Presented<'_>,
        visible: impl Fn(&Entry<'_>) -> bool,
        request: &AccessRequest<'_>,
        now: Now,
    ) -> Verdict<'_> {
        // Before the entry, so that the entry is at least as new.
        let as_of = self.index.revision();
        let outcome = match &secret.digest {
            None => Outcome::NoKey(DenyReason::Malformed),
            Some(digest) => match self.find(digest, secret.text).filter(|it| !it.is_hidden() && visible(it)) {
                None => Outcome::NoKey(DenyReason::Unknown),
                Some(entry) => match decide(&entry, request, now) {
                    Ok(()) => Outcome::Allow(entry),
                    Err(reason) => Outcome::Deny(entry, reason),
                },
            },
        };
        Verdict { as_of, outcome }
    }

    fn find(&self, digest: &Digest, secret: &str) -> Option<Entry<'_>> {
        self.index.get(digest).or_else(|| {
            let retired = self.peppers.retired();
            if retired.is_empty() {
                return None;
            }
            let secret = PresentedSecret::parse(secret).ok()?;
            retired.iter().find_map(|pepper| self.index.get(&pepper.digest(&secret)))
        })
    }
}

/// One line of an explanation: a check, and how it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The check's name.
    pub check: &'static str,
    /// Why it failed, if it did.
    pub failure: Option<DenyReason>,
    /// What to look at, if there is anything.
    pub detail: String,
}

/// Every check of a verdict, in order, not only the first that failed. `holds` are those of now; where they
/// have changed since the verdict, it may not say who refuses the secret.
#[must_use]
pub fn explain(
    secret: &Presented<'_>,
    outcome: &Outcome<'_>,
    request: &AccessRequest<'_>,
    now: Now,
    holds: &Holds,
) -> Vec<Explained> {
    let line = |check, failure| Explained { check, failure, detail: String::new() };
    match outcome {
        Outcome::NoKey(DenyReason::Malformed) => {
            vec![Explained { detail: around(secret.text), ..line("form", Some(DenyReason::Malformed)) }]
        }
        Outcome::NoKey(reason) => vec![line("form", None), line("known", Some(*reason))],
        Outcome::Allow(entry) | Outcome::Deny(entry, _) => {
            let found = [line("form", None), line("known", None)];
            let causes = holds.causes(entry.tenant(), entry.owner(), entry.issuer(), entry.issue_time());
            let named = |are: [bool; 3]| {
                let names = Causes::NAMES.into_iter().zip(are).filter(|(_, is)| *is).map(|(name, _)| name);
                names.collect::<Vec<_>>().join(", ")
            };
            let checks = Check::ORDER.into_iter().map(|check| {
                let failure = check.run(entry, request, now).err();
                let detail = match failure {
                    Some(DenyReason::OwnerSuspended) => named(causes.suspended),
                    Some(DenyReason::EpochRejected) => named(causes.outdated),
                    _ => String::new(),
                };
                Explained { detail, ..line(check.name(), failure) }
            });
            found.into_iter().chain(checks).collect()
        }
    }
}

/// What stands around a text that was presented as a secret, and is no part of one. It depends on nothing
/// that stands in there: whether that is nearly a secret is for nobody to learn.
fn around(text: &str) -> String {
    const SCHEME: &str = "bearer";
    const QUOTES: &[char] = &['"', '\'', '`', '\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}', '\u{ab}', '\u{bb}'];
    let (mut rest, mut found) = (text, [None; 3]);
    loop {
        let trimmed = rest.trim();
        let unquoted = trimmed.trim_matches(QUOTES);
        let scheme = unquoted.split_at_checked(SCHEME.len()).filter(|(word, after)| {
            word.eq_ignore_ascii_case(SCHEME) && (after.is_empty() || after.starts_with([' ', ':', '\t']))
        });
        if trimmed != rest {
            found[0] = Some("white space");
        }
        if unquoted != trimmed {
            found[1] = Some("quotes");
        }
        let inner = match scheme {
            Some((_, after)) => {
                found[2] = Some("'Bearer'");
                after.trim_start_matches(':')
            }
            None => unquoted,
        };
        if inner.len() == rest.len() {
            break;
        }
        rest = inner;
    }
    let found: Vec<_> = found.into_iter().flatten().collect();
    if found.is_empty() { String::new() } else { format!("the secret must be given without {}", found.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_around_a_secret_is_named_whatever_it_is() {
        let said = |what: &str| {
            if what.is_empty() { String::new() } else { format!("the secret must be given without {what}") }
        };
        let cases = [
            ("SECRET", ""),
            (" SECRET", "white space"),
            ("SECRET\n", "white space"),
            ("\"SECRET\"", "quotes"),
            ("'SECRET", "quotes"),
            ("\u{201c}SECRET\u{201d}", "quotes"),
            ("Bearer SECRET", "white space, 'Bearer'"),
            ("bearer:SECRET", "'Bearer'"),
            (" \"Bearer SECRET\" ", "white space, quotes, 'Bearer'"),
            ("\"' SECRET '\"", "white space, quotes"),
            ("bearerSECRET", ""),
            ("SEC RET", ""),
            ("", ""),
            ("\"", "quotes"),
        ];
        // The same, whether what stands in there has the form of a secret, nearly has it, or has nothing of
        // it.
        let secret = "kw_live_0000000000000000000000000000000000000000000";
        for inner in [format!("{secret}000000"), format!("{secret}000001"), "x".to_owned(), "kw_".to_owned()] {
            for (text, what) in cases {
                assert_eq!(around(&text.replace("SECRET", &inner)), said(what), "{text}");
            }
        }
    }
}
