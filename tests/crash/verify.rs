//! Compares a server with the oracle: everything acknowledged is there, nothing is there that was never asked
//! for, and verdicts are right.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use keyward::grpc::pb;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::caller::Caller;
use crate::load::decides;
use crate::oracle::{Book, Form, Key, Oracle, Pending};
use crate::server::Server;

/// Keys that GetKey is asked about at most.
const GOT_KEYS_MAX: usize = 5_000;
/// Calls that are under way at one time.
const CALLS_AT_ONCE: usize = 64;

/// What a comparison came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Findings {
    /// Keys that were compared: by list, by a verdict if their secret is known, and by GetKey if they have
    /// changed since the last comparison and are among the first 5,000.
    pub(crate) keys: u64,
    /// Acknowledged changes that those keys include.
    pub(crate) changes: u64,
    /// Verdicts that were compared.
    pub(crate) verdicts: u64,
    /// Open changes that had been made, and that had not.
    pub(crate) open_made: u64,
    pub(crate) open_not_made: u64,
    /// Acknowledged changes that are gone.
    pub(crate) lost: u64,
    /// Verdicts that contradict the oracle or the key.
    pub(crate) wrong_verdicts: u64,
    /// Keys or changes that nobody asked for.
    pub(crate) inventions: u64,
    /// What is wrong, in words.
    pub(crate) details: Vec<String>,
}

impl Findings {
    /// Whether everything is as it must be.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost + self.wrong_verdicts + self.inventions == 0 && self.details.is_empty()
    }

    pub(crate) fn lose(&mut self, changes: u64, what: String) {
        self.lost += changes.max(1);
        self.details.push(format!("lost: {what}"));
    }

    pub(crate) fn invent(&mut self, what: String) {
        self.inventions += 1;
        self.details.push(format!("invented: {what}"));
    }

    pub(crate) fn doubt(&mut self, what: String) {
        self.wrong_verdicts += 1;
        self.details.push(format!("wrong verdict: {what}"));
    }
}

/// Compares everything, and settles in the books what was open.
///
/// # Errors
/// When the server does not answer.
pub(crate) async fn compare(server: &Server, oracle: &Arc<Oracle>) -> Result<Findings, Failure> {
    let mut findings = Findings::default();
    oracle.contradictions().into_iter().for_each(|what| findings.doubt(what));
    let caller = server.caller().await?;
    let (listed, revision) = caller.all_keys("default").await?;
    let mut listed: HashMap<String, pb::Key> = listed.into_iter().map(|key| (key.key_id.clone(), key)).collect();

    let mut present = vec![];
    for (client, book) in oracle.books().iter().enumerate() {
        let mut book = book.lock();
        if revision < book.revision {
            let seen = book.revision;
            findings.lose(1, format!("client {client} has seen revision {seen}, and the log ends at {revision}"));
        }
        let pending = book.pending.take();
        let changed = compare_book(&mut book, pending.as_ref(), &mut listed, &mut present, &mut findings);
        match (pending, changed) {
            (Some(_), Some(told)) => {
                book.settle(&told, None);
                findings.open_made += 1;
            }
            (Some(_), None) => findings.open_not_made += 1,
            (None, _) => {}
        }
    }
    for key in listed.values() {
        findings.invent(format!("a key that no client asked for: {key:?}"));
    }

    // A bulk load leaves more than it is worth to ask about twice; the list and a verdict have told of each.
    for (known, _) in present.iter_mut().skip(GOT_KEYS_MAX) {
        known.iter_mut().for_each(|key| key.compared = true);
    }
    let tasks = present.into_iter().map(|(known, told)| ask(&caller, known, told));
    let answers: Vec<Answers> = stream::iter(tasks).buffer_unordered(CALLS_AT_ONCE).try_collect().await?;
    for answers in &answers {
        answers.judge(&mut findings);
    }
    Ok(findings)
}

/// Compares the keys of a book with the list, and takes them off it. Gives the key as the pending change has
/// made it, if it has.
fn compare_book(
    book: &mut Book,
    pending: Option<&Pending>,
    listed: &mut HashMap<String, pb::Key>,
    present: &mut Vec<(Option<Key>, pb::Key)>,
    findings: &mut Findings,
) -> Option<pb::Key> {
    let mut made = None;
    for key in &mut book.keys {
        let Some(told) = listed.remove(&key.id) else {
            findings.lose(key.acknowledged, format!("{key:?} is missing"));
            continue;
        };
        let open = pending.filter(|pending| pending.id == key.id);
        if Form::told(&told) == Form::of(key) && told.revision == key.revision {
            findings.changes += key.acknowledged;
        } else if told.revision < key.revision {
            findings.lose(1, format!("{key:?} is as it was before: {told:?}"));
        } else if let Some(open) = open
            && told.revision > key.revision
            && open.change.outcome(Some(key)) == Form::told(&told)
        {
            findings.changes += key.acknowledged;
            made = Some(told.clone());
        } else {
            findings.invent(format!("{key:?}, pending {open:?}, is {told:?}"));
        }
        findings.keys += 1;
        present.push((Some(key.clone()), told));
        key.compared = true;
    }
    if let Some(open) = pending
        && book.key(&open.id).is_none()
        && let Some(told) = listed.remove(&open.id)
    {
        if open.change.outcome(None) != Form::told(&told) {
            findings.invent(format!("a new key, asked for as {open:?}, is {told:?}"));
        }
        findings.keys += 1;
        present.push((None, told.clone()));
        made = Some(told);
    }
    made
}

/// What the server says of a key by its other doors.
struct Answers {
    listed: pb::Key,
    got: Option<pb::GetKeyResponse>,
    /// On each secret that is known, by its version.
    verdicts: Vec<(u32, pb::VerifyResponse)>,
}

async fn ask(caller: &Caller, known: Option<Key>, listed: pb::Key) -> Result<Answers, Failure> {
    let got = if known.as_ref().is_some_and(|key| key.compared) {
        None
    } else {
        let request = pb::GetKeyRequest { key_id: listed.key_id.clone(), ..Default::default() };
        Some(caller.get(request).await?)
    };
    let mut verdicts = vec![];
    for (version, secret) in known.iter().flat_map(Key::known_secrets) {
        verdicts.push((version, caller.ask(pb::VerifyRequest { secret, ..Default::default() }).await?));
    }
    Ok(Answers { listed, got, verdicts })
}

impl Answers {
    /// All doors must say the same.
    fn judge(&self, findings: &mut Findings) {
        let listed = &self.listed;
        if self.got.as_ref().is_some_and(|got| got.key.as_ref() != Some(listed)) {
            findings.details.push(format!("the list says {listed:?}, and GetKey {:?}", self.got));
        }
        self.verdicts.iter().for_each(|(version, verdict)| self.judge_verdict(*version, verdict, findings));
    }

    fn judge_verdict(&self, version: u32, verdict: &pb::VerifyResponse, findings: &mut Findings) {
        let listed = &self.listed;
        findings.verdicts += 1;
        let state = listed.secrets.iter().find(|secret| secret.version == version).map(pb::Secret::state);
        let of_key = Form::told(listed).verdict();
        let (expected, matched) = match state {
            Some(pb::SecretState::Current) => (of_key, pb::Matched::Current),
            Some(pb::SecretState::Previous) => (of_key, pb::Matched::Previous),
            // Nothing is told of a deleted key.
            Some(pb::SecretState::Retired) if of_key == pb::Reason::Unknown => (of_key, pb::Matched::Unspecified),
            Some(pb::SecretState::Retired) => (pb::Reason::RotatedOut, pb::Matched::Unspecified),
            Some(pb::SecretState::Unspecified) | None => (pb::Reason::Unknown, pb::Matched::Unspecified),
        };
        let matched = if expected == pb::Reason::Ok { matched } else { pb::Matched::Unspecified };
        let is_told = expected != pb::Reason::Unknown;
        let named = verdict.key.as_ref().is_some_and(|key| key.key_id == listed.key_id) == is_told;
        let labelled = verdict.decision() != pb::Decision::Allow
            || verdict.key.as_ref().is_some_and(|key| key.display_name == listed.display_name);
        let is_as_expected = verdict.reason() == expected && verdict.matched() == matched;
        if !is_as_expected || !decides(verdict) || !named || !labelled {
            findings.doubt(format!("version {version} of {listed:?} gets {verdict:?}"));
        }
    }
}
