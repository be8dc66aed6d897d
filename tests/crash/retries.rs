//! A process that ends between the sync of a change and its answer: after the restart, the same request makes
//! nothing, and its answer has the same key with a secret that opens and works.

use futures_util::future::join_all;
use keyward::grpc::pb;
use keyward::grpc::retry::seal_info;
use keyward::util::hpke::KeyPair;
use rand::RngExt;
use tonic::Code;

use crate::Failure;
use crate::caller::Caller;
use crate::controls::{CONSENT, build};
use crate::run::{Run, SMALL_SEGMENT, Scene};
use crate::server::{END_LIMIT, Server};

/// A data directory is left for a new one after so many ends: each start reads all of it.
const ENDS_PER_DIRECTORY: u64 = 25;
/// Every so many an end comes before the sync instead: the sealed reply is there, and its change is not.
const BEFORE_SYNC_EVERY: u64 = 5;
/// Requests beside the one that ends the process, at most: some of them are in its group.
const BESIDE_MAX: usize = 6;
/// How often each request is asked again.
const RETRIES: usize = 2;

/// A key that is asked for until it is answered.
struct Wanted {
    pair: KeyPair,
    request: pb::CreateKeyRequest,
    /// What the first call was answered with, if it was.
    answer: Option<pb::CreateKeyResponse>,
}

impl Wanted {
    fn new(id: String) -> Result<Self, Failure> {
        let pair = KeyPair::generate().ok_or("no key pair")?;
        let request = pb::CreateKeyRequest {
            display_name: id.clone(),
            scopes: vec!["a".to_owned()],
            reply_public_key: pair.public.as_bytes().to_vec(),
            request_id: id,
            ..Default::default()
        };
        Ok(Self { pair, request, answer: None })
    }

    /// Asks for it the first time.
    async fn ask(&mut self, caller: &Caller) -> Result<(), Failure> {
        match caller.create(self.request.clone()).await {
            Ok(answer) => self.answer = Some(answer),
            Err(lost) if matches!(lost.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {}
            Err(wrong) => return Err(format!("{}: {wrong}", self.request.request_id).into()),
        }
        Ok(())
    }

    /// Asks again, and checks what comes.
    async fn ask_again(&mut self, caller: &Caller) -> Result<(), Failure> {
        let id = self.request.request_id.clone();
        let answer = caller.create(self.request.clone()).await.map_err(|wrong| format!("{id} again: {wrong}"))?;
        if self.answer.as_ref().is_some_and(|before| *before != answer) {
            return Err(format!("{id} was answered, and then otherwise").into());
        }
        let opened = self.pair.open(&seal_info("CreateKey", &id), &answer.sealed_secret);
        let secret = String::from_utf8(opened.ok_or_else(|| format!("{id}: the secret does not open"))?.to_vec())?;
        let verdict = caller.ask(pb::VerifyRequest { secret, ..Default::default() }).await?;
        let (found, told) = (verdict.key.unwrap_or_default().key_id, answer.key.clone().unwrap_or_default().key_id);
        if found != told || verdict.reason != i32::from(pb::Reason::Ok) {
            return Err(format!("{id}: the secret of {told} is that of {found:?}").into());
        }
        self.answer = Some(answer);
        Ok(())
    }
}

/// Ends the process so many times.
pub(crate) async fn run(run: &mut Run, count: u64) -> Result<(), Failure> {
    let ending = build("fault-end-before-answer", run.out())?;
    let mut left = count;
    while left > 0 && !run.gives_up() {
        let ends = left.min(ENDS_PER_DIRECTORY);
        left -= ends;
        let sound = run.scene(SMALL_SEGMENT)?;
        let mut faulty = sound.clone();
        faulty.launch.program.clone_from(&ending);
        faulty.launch.env.push((CONSENT.0.to_owned(), CONSENT.1.to_owned()));
        match directory(run, (&sound, &faulty), ends).await {
            Ok(()) => run.tally.passed += ends,
            Err(failure) => run.fail(&sound, &failure),
        }
        run.discard(&sound);
    }
    Ok(())
}

async fn directory(run: &mut Run, (sound, faulty): (&Scene, &Scene), ends: u64) -> Result<(), Failure> {
    let mut all: Vec<Wanted> = vec![];
    let mut server = faulty.launch.serve().await?;
    for end in 0..ends {
        let is_before = end % BEFORE_SYNC_EVERY == BEFORE_SYNC_EVERY - 1;
        let name = if is_before { "end-before-sync" } else { "end-after-sync" };
        let mut wanted = vec![Wanted::new(format!("{name}-{end}"))?];
        for beside in 0..run.rng.random_range(0..=BESIDE_MAX) {
            wanted.push(Wanted::new(format!("beside-{end}-{beside}"))?);
        }
        let caller = server.caller().await?;
        for asked in join_all(wanted.iter_mut().map(|wanted| wanted.ask(&caller))).await {
            asked?;
        }
        if wanted[0].answer.is_some() {
            return Err(format!("{name}-{end} was answered").into());
        }
        ended(&mut server).await?;
        // The one would end the process again: its change is not there.
        server = if is_before { sound } else { faulty }.launch.serve().await?;
        let caller = server.caller().await?;
        for _ in 0..RETRIES {
            for wanted in &mut wanted {
                wanted.ask_again(&caller).await?;
                run.tally.verdicts_compared += 1;
            }
        }
        run.tally.count(if is_before { "ends before the sync" } else { "ends between sync and answer" }, 1);
        run.tally.count("requests that were asked again", (wanted.len() * RETRIES) as u64);
        all.append(&mut wanted);
        if is_before {
            server.stop().await?;
            server = faulty.launch.serve().await?;
        }
    }
    // One key of each, and no other.
    let caller = server.caller().await?;
    let (keys, _) = caller.all_keys("").await?;
    run.tally.keys_compared += keys.len() as u64;
    run.tally.add_changes(all.len() as u64, keys.len() as u64);
    let mut names: Vec<_> = keys.iter().map(|key| &key.display_name).collect();
    let mut expected: Vec<_> = all.iter().map(|wanted| &wanted.request.request_id).collect();
    names.sort_unstable();
    expected.sort_unstable();
    if names != expected {
        return Err(format!("{} keys for {} requests", names.len(), expected.len()).into());
    }
    server.stop().await
}

/// Waits until the process has ended by itself.
async fn ended(server: &mut Server) -> Result<(), Failure> {
    let status = server.end(END_LIMIT).await?;
    let is_abort =
        std::os::unix::process::ExitStatusExt::signal(&status) == Some(rustix::process::Signal::ABORT.as_raw());
    if is_abort { Ok(()) } else { Err(server.complaint(&format!("the process ended with {status}"))) }
}
