//! What a server keeps in its memory when it has answered: nothing of the secrets of keys, and of its
//! callers' credentials what their open connections need.
//!
//! The server is a process of its own, and its memory is read as a debugger would read it: this one knows the
//! secrets.

mod peer;
mod scan;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use keyward::grpc::pb;
use keyward_core::entropy::Entropy;
use keyward_core::id::{Environment, SecretPrefix};
use keyward_core::secret::IssuedSecret;
use keyward_core::testing::SeededEntropy;

use self::peer::{Coded, Credential, Kept, Line};
use self::scan::{Found, Pieces};
use crate::support::h2peer::{VERIFY, body};
use crate::support::harness::{ask, new_key};
use crate::support::program::{Program, admin_of};

const CREATE: &str = "/keyward.v1.KeyAdmin/CreateKey";
const LIST: &str = "/keyward.v1.KeyAdmin/ListKeys";
const BATCH: &str = "/keyward.v1.KeyVerify/BatchVerify";
const STREAM: &str = "/keyward.v1.KeyVerify/StreamVerify";

/// Far more than it takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A secret's digits, but for the last four, which are in the key's hint.
fn digits(secret: &str) -> &[u8] {
    &secret.as_bytes()[secret.len() - 49..secret.len() - 4]
}

/// A server whose memory is looked at, and what should not be in it.
struct Watched {
    program: Program,
    secrets: Vec<String>,
    pieces: Pieces,
}

impl Watched {
    fn new(program: Program) -> Self {
        Self { program, secrets: vec![], pieces: Pieces::new() }
    }

    fn add(&mut self, secrets: impl IntoIterator<Item = String>) {
        for secret in secrets {
            self.pieces.add(self.secrets.len(), digits(&secret));
            self.secrets.push(secret);
        }
    }

    /// No secret is there.
    fn has_no_secret(&self, after: &str) {
        let found = self.settled(&self.pieces, <[_]>::is_empty);
        let of: BTreeSet<_> = found.iter().map(|found| found.of).collect();
        let some = &found[..found.len().min(8)];
        assert!(found.is_empty(), "{} of {} secrets are there after {after}: {some:#?}", of.len(), self.secrets.len());
    }

    /// What is found when nothing more goes away: replies are on the network before the calls that gave them
    /// have quite ended.
    fn settled(&self, pieces: &Pieces, is_clean: impl Fn(&[Found]) -> bool) -> Vec<Found> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = pieces.find(self.program.pid());
            if is_clean(&found) || Instant::now() > deadline {
                return found;
            }
        }
    }

    async fn line(&self, secret: &str, kept: Kept, coded: Coded) -> Line {
        Line::open(&self.program, Credential::new(secret, kept, coded)).await
    }
}

/// Every way in which a secret of a key comes to a server or leaves it, on connections that stay open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_of_a_key_stays_in_memory_and_of_callers_what_their_connections_need() {
    let dir = tempfile::tempdir().unwrap();
    let mut watched = Watched::new(Program::serve(dir.path(), &[]));
    let admin_secret = admin_of(&dir);
    let mut admin = watched.line(&admin_secret, Kept::Once, Coded::Plain).await;

    let verifier = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Verifier", &["keyward.verifier"]) };
    let verifiers = admin.create(CREATE, vec![body(&verifier); 8]).await;
    let create = |number| body(&new_key(&format!("Key {number}"), &["a"]));
    watched.add(admin.create(CREATE, (0..1_000).map(create)).await);
    watched.has_no_secret("CreateKey");
    // Well-formed, and of no key.
    let unknown = |seed| {
        let entropy: &dyn Entropy = &SeededEntropy::new(seed);
        IssuedSecret::generate(&SecretPrefix::kw(), &Environment::live(), entropy).unwrap().reveal().to_string()
    };
    watched.add((100..150).map(unknown));
    misplace(&mut admin, &watched).await;

    // The callers' ways to send their credentials, and on each connection all ways to ask.
    let ways = [
        (Kept::Never, Coded::Plain),
        (Kept::Once, Coded::Plain),
        (Kept::Once, Coded::Huffman),
        (Kept::Never, Coded::Huffman),
        (Kept::EachTime, Coded::Plain),
        (Kept::NowAndThen, Coded::Huffman),
    ];
    let mut lines = vec![];
    for ((kept, coded), verifier) in ways.into_iter().zip(&verifiers) {
        let mut line = watched.line(verifier, kept, coded).await;
        ask_in_all_ways(&mut line, &watched, lines.is_empty()).await;
        lines.push(line);
        admin.stay().await;
        for line in &mut lines {
            line.stay().await;
        }
    }

    // Connections that have ended: in order, for an error after which more came, and with a secret as their
    // credential.
    let mut closed = watched.line(&verifiers[6], Kept::Never, Coded::Plain).await;
    ask_in_all_ways(&mut closed, &watched, false).await;
    closed.close().await;
    watched.has_no_secret("the end of a connection");
    let mut broken = watched.line(&verifiers[7], Kept::Once, Coded::Huffman).await;
    broken.call(VERIFY, vec![body(&ask("x"))]).await;
    broken.break_with(watched.secrets.iter().map(|secret| body(&ask(secret)))).await;
    watched.has_no_secret("an error of a connection");
    for secret in &watched.secrets[..20] {
        let mut stranger = watched.line(secret, Kept::Once, Coded::Plain).await;
        stranger.call(VERIFY, vec![body(&ask(secret))]).await;
        stranger.close().await;
    }
    watched.has_no_secret("a wrong credential");

    // Half a message of a stream is there until the rest comes: the search finds what is there.
    lines[0].begin_message(STREAM, &body(&asking(&watched.secrets[7]))).await;
    assert!(watched.pieces.find(watched.program.pid()).iter().any(|found| found.of == 7));

    let callers: Vec<_> = [&admin_secret].into_iter().chain(&verifiers).collect();
    let mut pieces = Pieces::new();
    for (number, caller) in callers.iter().enumerate() {
        pieces.add_one(number, digits(caller));
        pieces.add_one(number, &peer::huffman(&format!("Bearer {caller}"))[24..]);
    }
    let copies = |found: &[Found]| -> Vec<usize> {
        (0..callers.len()).map(|number| found.iter().filter(|found| found.of == number).count()).collect()
    };
    let is_fine = |found: &[Found]| {
        let copies = copies(found);
        copies[..7].iter().all(|copies| (1..=2).contains(copies)) && copies[7..] == [0, 0]
    };
    let found = watched.settled(&pieces, is_fine);
    assert!(is_fine(&found), "{:?} copies of credentials; {found:#?}", copies(&found));
    for line in lines.into_iter().chain([admin]) {
        line.close().await;
    }
    let found = watched.settled(&pieces, <[_]>::is_empty);
    assert!(found.is_empty(), "{:?} copies of credentials when all have gone; {found:#?}", copies(&found));
}

fn asking(secret: &str) -> pb::StreamVerifyRequest {
    pb::StreamVerifyRequest { request: Some(ask(secret)) }
}

/// Makes a question of a secret.
type Question<'a> = &'a dyn Fn(&String) -> pb::VerifyRequest;

/// Asks about secrets at once, on the long way, in batches and on a stream that stays open, also with
/// mistakes. The memory is looked at after each of them, or at the end.
async fn ask_in_all_ways(line: &mut Line, watched: &Watched, each: bool) {
    let secrets = &watched.secrets;
    let look = |after: &str| {
        if each {
            watched.has_no_secret(after);
        }
    };
    let bodies = |count, question: Question<'_>| {
        secrets[..count].iter().map(|secret| body(&question(secret))).collect::<Vec<_>>()
    };
    let explained = |secret: &String| pb::VerifyRequest { explain: true, ..ask(secret) };
    line.call(VERIFY, bodies(1_050, &|secret| ask(secret))).await;
    look("Verify at once");
    line.call_in_pieces(VERIFY, bodies(200, &|secret| ask(secret))).await;
    look("Verify at once, in pieces");
    line.call(VERIFY, bodies(100, &explained)).await;
    look("Verify as a call");
    line.call_in_pieces(VERIFY, bodies(100, &explained)).await;
    look("Verify as a call, in pieces");

    let mistyped = |secret: &String| ask(&secret.replace("kw_live_", "kw_lice_"));
    let longer = |secret: &String| ask(&format!("{secret}{}", "x".repeat(60)));
    let as_tenant = |secret: &String| pb::VerifyRequest { tenant: secret.clone(), ..ask(secret) };
    let as_audience = |secret: &String| pb::VerifyRequest { audience: secret.clone(), ..ask("x") };
    let as_correlation_id = |secret: &String| pb::VerifyRequest { correlation_id: secret.clone(), ..ask(secret) };
    let as_scope = |secret: &String| pb::VerifyRequest { all_scopes: vec![secret.clone()], ..ask(secret) };
    let wrong_mode = |secret: &String| pb::VerifyRequest { mode: 77, ..ask(secret) };
    let too_new = |secret: &String| pb::VerifyRequest { min_revision: 1 << 40, ..ask(secret) };
    let mistakes: [(&str, Question<'_>); 8] = [
        ("a mistyped secret", &mistyped),
        ("a secret that is too long", &longer),
        ("a secret as a tenant", &as_tenant),
        ("a secret as an audience", &as_audience),
        ("a secret as a correlation id", &as_correlation_id),
        ("a secret as a scope", &as_scope),
        ("a wrong mode", &wrong_mode),
        ("a revision that is not reached", &too_new),
    ];
    for (mistake, question) in mistakes {
        line.call(VERIFY, bodies(20, question)).await;
        look(mistake);
    }
    line.call(CREATE, secrets[..20].iter().map(|secret| body(&new_key(secret, &["a"])))).await;
    look("a wrong role");

    let all: Vec<_> = secrets[..1_000].iter().map(|secret| ask(secret)).collect();
    let mut mixed = all.clone();
    mixed[500].explain = true;
    mixed[600].tenant = secrets[600].clone();
    for (batch, requests) in [("BatchVerify at once", all), ("BatchVerify as a call", mixed)] {
        let body = body(&pb::BatchVerifyRequest { requests });
        line.call(BATCH, vec![body.clone(); 3]).await;
        look(batch);
        line.call_in_pieces(BATCH, vec![body; 3]).await;
        look(batch);
    }
    line.stream(STREAM, secrets.iter().map(|secret| body(&asking(secret))), secrets.len()).await;
    look("StreamVerify");
    line.give_up(VERIFY, secrets[..50].iter().map(|secret| body(&ask(secret)))).await;
    look("Verify that is given up");
    line.give_up(CREATE, secrets[..50].iter().map(|secret| body(&new_key(secret, &["a"])))).await;
    watched.has_no_secret("a call that is given up");
}

/// Puts secrets where they do not belong.
async fn misplace(line: &mut Line, watched: &Watched) {
    let secrets = &watched.secrets[..40];
    let as_id = |secret: &String| pb::CreateKeyRequest { key_id: secret.clone(), ..new_key("x", &[]) };
    let as_label = |secret: &String| pb::CreateKeyRequest {
        labels: [("x".to_owned(), secret.clone())].into(),
        ..new_key("x", &[])
    };
    line.call(CREATE, secrets.iter().map(|secret| body(&as_id(secret)))).await;
    line.call(CREATE, secrets.iter().map(|secret| body(&as_label(secret)))).await;
    line.call(CREATE, secrets.iter().map(|secret| body(&new_key(secret, &[])))).await;
    watched.has_no_secret("secrets where they do not belong");
    let as_token = |secret: &String| pb::ListKeysRequest { page_token: secret.clone(), ..Default::default() };
    line.call(LIST, secrets.iter().map(|secret| body(&as_token(secret)))).await;
    watched.has_no_secret("secrets as page tokens");
}
