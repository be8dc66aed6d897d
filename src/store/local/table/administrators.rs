//! Reads the lasting administrators from a table.

use keyward_core::clock::UnixMillis;
use keyward_core::event::Record;
use keyward_core::id::{ActorId, TenantId};
use keyward_core::record::ShownState;

use super::Table;
use super::secondary_index::ListScan;
use crate::store::administrators::Administrators;
use crate::store::local::write_buffer::WriteBuffer;
use crate::store::{KeyQuery, StoreError};

/// Keys read at a time.
const BATCH_KEYS: usize = 1_000;

/// Reads the keys of tenant `system` that are active, or disabled: perhaps until a time. Called before the
/// store opens; afterwards only the committer keeps track of them.
pub(in crate::store::local) fn read(table: &Table) -> Result<Administrators, StoreError> {
    let mut found = Administrators::default();
    let mut query = KeyQuery {
        caller: ActorId::keyward(),
        tenant: TenantId::system(),
        states: vec![ShownState::Active, ShownState::Disabled],
        clock: UnixMillis::MIN,
        owner: None,
        labels: Default::default(),
        key_ids: vec![],
        after: None,
        limit: BATCH_KEYS,
    };
    loop {
        let mut scan = ListScan::new(query.clone());
        let page = loop {
            if let Some(page) = table.resume_list(&WriteBuffer::default(), &mut scan)? {
                break page;
            }
        };
        for key in page.records {
            found.apply(&Record::Key(key));
        }
        match page.next {
            Some(next) => query.after = Some(next),
            None => return Ok(found),
        }
    }
}
