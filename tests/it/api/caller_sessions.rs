//! A caller whose key has just changed, on each way by which it may ask: all of them judge alike.

use keyward::grpc::pb::set_epoch_request::Holder;
use keyward::grpc::pb::{self, Reason, batch_verify_result, stream_verify_response};
use prost_types::Timestamp;
use tonic::{Code, Status};

use crate::api::stream::Talk;
use crate::support::harness::{Handle, Issued, Site, after_start, ask, error_reason, new_key, rotate, strings, update};
use crate::transport::fast_path::ways;

/// When the keys of these callers end: long after all else here.
const LIFE_MS: i64 = 3_600_000;
const OWNER: &str = "Billing";

/// What becomes of the caller's key.
#[derive(Clone, Copy, Debug)]
enum Change {
    Disabled,
    ExpiredByTheClock,
    OfAnotherAudience,
    OfAnotherAddress,
    WithoutItsRole,
    OfAnotherTenant,
    Deleted,
    OfASuspendedOwner,
    OfAnEarlierEpoch,
    RotatedOut,
}

const CHANGES: [Change; 10] = [
    Change::Disabled,
    Change::Deleted,
    Change::OfASuspendedOwner,
    Change::OfAnEarlierEpoch,
    Change::RotatedOut,
    Change::ExpiredByTheClock,
    Change::OfAnotherAudience,
    Change::OfAnotherAddress,
    Change::WithoutItsRole,
    Change::OfAnotherTenant,
];

/// How the caller asks.
#[derive(Clone, Copy, Debug)]
enum Way {
    GetKey,
    Verify { quick: bool },
    BatchVerify { quick: bool },
    Stream,
}

const WAYS: [Way; 6] = [
    Way::GetKey,
    Way::Verify { quick: true },
    Way::Verify { quick: false },
    Way::BatchVerify { quick: true },
    Way::BatchVerify { quick: false },
    Way::Stream,
];

/// What a call gives: for a verdict its reason, and for GetKey that it was given.
type Told = Result<Reason, Status>;

/// A caller who has asked once in each way, so that whatever is kept of it is there.
struct Asker {
    handle: Handle,
    talk: Talk,
    about: Issued,
}

impl Asker {
    async fn ask(&mut self, way: Way) -> Told {
        let secret = &self.about.secret;
        match way {
            Way::GetKey => {
                let request = pb::GetKeyRequest { key_id: self.about.key.key_id.clone(), tenant: "default".into() };
                self.handle.get(request).await.map(|_| Reason::Ok)
            }
            // An explanation is not given where calls are read.
            Way::Verify { quick } => {
                let request = pb::VerifyRequest { explain: !quick, ..ask(secret) };
                self.handle.ask(request).await.map(|verdict| verdict.reason())
            }
            Way::BatchVerify { quick } => {
                let request = pb::VerifyRequest { explain: !quick, ..ask(secret) };
                let results = self.handle.ask_all(pb::BatchVerifyRequest { requests: vec![request] }).await?.results;
                let Some(batch_verify_result::Result::Response(verdict)) = &results[0].result else {
                    panic!("{results:?}")
                };
                Ok(verdict.reason())
            }
            Way::Stream => {
                let answer = self.talk.ask(ask(secret)).await?;
                let Some(stream_verify_response::Result::Response(verdict)) = &answer.result else {
                    panic!("{answer:?}")
                };
                Ok(verdict.reason())
            }
        }
    }
}

async fn asker(site: &Site, about: &Issued) -> (Asker, Issued) {
    let key = pb::CreateKeyRequest {
        tenant: "system".into(),
        owner: OWNER.into(),
        expire_time: after_start(LIFE_MS),
        ..new_key("Caller", &["keyward.verifier", "keyward.viewer"])
    };
    let issued = site.admin().issued(key).await;
    let handle = site.caller(&issued.secret);
    let mut asker = Asker { talk: Talk::open(&handle).await, handle, about: about.clone() };
    for way in WAYS {
        assert_eq!(asker.ask(way).await.unwrap(), Reason::Ok, "{way:?}");
    }
    (asker, issued)
}

async fn make(site: &Site, change: Change, key: &pb::Key) {
    let with = |changed: pb::Key, path: &str| update(&changed, &[path]);
    let request = match change {
        Change::Disabled => return drop(site.admin().disable_key(key).await),
        Change::Deleted => return drop(site.admin().delete_key(key).await),
        Change::OfASuspendedOwner => {
            let owner = pb::SuspendOwnerRequest { tenant: "system".into(), owner: OWNER.into(), ..Default::default() };
            return drop(site.admin().suspend_owner(owner).await.unwrap());
        }
        Change::OfAnEarlierEpoch => {
            let owner = Holder::Owner(pb::OwnerName { tenant: "system".into(), owner: OWNER.into() });
            let epoch = pb::SetEpochRequest { holder: Some(owner), ..Default::default() };
            return drop(site.admin().set_epoch(epoch).await.unwrap());
        }
        Change::RotatedOut => return drop(site.admin().rotated(rotate(key, 0)).await),
        Change::ExpiredByTheClock => {
            let Some(Timestamp { .. }) = key.expire_time else { panic!("{key:?}") };
            return site.clock.advance_ms(LIFE_MS);
        }
        Change::OfAnotherAudience => with(pb::Key { audiences: strings(&["orders"]), ..key.clone() }, "audiences"),
        Change::OfAnotherAddress => {
            with(pb::Key { allowed_cidrs: strings(&["192.0.2.0/24"]), ..key.clone() }, "allowed_cidrs")
        }
        Change::WithoutItsRole => with(pb::Key { scopes: strings(&["keyward.issuer"]), ..key.clone() }, "scopes"),
        Change::OfAnotherTenant => {
            let scopes = strings(&["keyward.verifier@acme", "keyward.viewer@acme"]);
            with(pb::Key { scopes, ..key.clone() }, "scopes")
        }
    };
    site.admin().update(request).await.unwrap();
}

/// What each way must say from then on.
fn expected(change: Change, way: Way) -> Result<Reason, (Code, &'static str)> {
    match (change, way) {
        (Change::OfAnotherTenant, Way::GetKey) => Err((Code::NotFound, "KEY_NOT_FOUND")),
        (Change::OfAnotherTenant, _) => Ok(Reason::Unknown),
        // An issuer may read.
        (Change::WithoutItsRole, Way::GetKey) => Ok(Reason::Ok),
        (Change::WithoutItsRole, _) => Err((Code::PermissionDenied, "ROLE_MISSING")),
        _ => Err((Code::Unauthenticated, "CREDENTIAL_REFUSED")),
    }
}

#[tokio::test]
async fn a_callers_key_that_has_changed_is_judged_alike_on_every_way() {
    for change in CHANGES {
        let site = Site::with_ops().await;
        let acme = pb::CreateTenantRequest { tenant: "acme".into(), ..Default::default() };
        site.admin().create_tenant(acme).await.unwrap();
        let about = site.admin().issue("Zapier", &[]).await;
        let (mut asker, issued) = asker(&site, &about).await;
        for call in ["Verify", "BatchVerify"] {
            let taken = ways(&site, call).await;
            assert_eq!((taken["AT_ONCE"], taken["EXPLAIN"]), (1, 1), "both ways are taken: {taken:?}");
        }
        make(&site, change, &issued.key).await;
        for way in WAYS {
            let told = asker.ask(way).await.map_err(|refused| (refused.code(), error_reason(&refused)));
            let expected = expected(change, way).map_err(|(code, reason)| (code, reason.to_owned()));
            assert_eq!(told, expected, "{change:?}, {way:?}");
        }
    }
}
