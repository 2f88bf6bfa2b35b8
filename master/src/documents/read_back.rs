//! What a cluster knew before its masters lost their disks, as far as it is in the store.

use std::time::Duration;

use greenroom_master_core::RankedMember;
use greenroom_protocol::search::Filter;
use greenroom_storage::{Collection, Owner, Query, Storage};
use tokio::sync::mpsc;
use tokio::time;

use super::bodies::Member;

/// Members of boards that are one command of the log.
const PAGE: u16 = 500;
/// How long a store that does not answer is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads the boards that eras before this one have stored, page by page, until all are read or nobody takes them.
pub(crate) async fn boards(storage: Storage, era: u32, read: mpsc::Sender<Vec<RankedMember>>) {
    let mut query = Query::new(Collection::Boards, Filter::And(Vec::new()));
    query.limit = PAGE;
    let mut count = 0;
    loop {
        let page = tokio::select! {
            page = storage.query(query.clone()) => page,
            () = read.closed() => return,
        };
        let page = match page {
            Ok(page) => page,
            Err(error) if error.is_temporary() => {
                tracing::warn!(%error, "the rank boards are not read from the store; it is tried again");
                time::sleep(PAUSE).await;
                continue;
            }
            Err(error) => {
                return tracing::error!(%error, "the rank boards can't be read from the store");
            }
        };
        let mut members = Vec::new();
        for (key, document) in page.documents {
            let is_of_an_earlier_era = matches!(
                document.owner,
                Some(Owner::Master { epoch, .. }) if epoch.era < era
            );
            if !is_of_an_earlier_era {
                continue;
            }
            match document.decode::<Member>(&key) {
                Ok(Member { board, user, name, score, since }) => {
                    members.push(RankedMember { board, user, name, score, since });
                }
                Err(error) => tracing::error!(%error, "a place on a rank board can't be read"),
            }
        }
        count += members.len();
        if !members.is_empty() && read.send(members).await.is_err() {
            return;
        }
        let Some(next) = page.next else { break };
        query.after = Some(next);
    }
    if count > 0 {
        tracing::info!(
            members = count,
            "the rank boards of an earlier era are read from the store"
        );
    }
}
