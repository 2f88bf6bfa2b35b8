//! What the event log says of a run is what happened in it.

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::{Cluster, assert_clean, rows, wait_until};

fn counts(data: &str) -> BTreeMap<String, u64> {
    let rows = rows(data, "select kind, count(*) from events group by kind");
    let pairs = rows.iter().map(|row| row.split_once(',').unwrap());
    pairs.map(|(kind, count)| (kind.to_owned(), count.parse().unwrap())).collect()
}

/// Bots play duels. Each check-in, seat, leave, instance and duel that they report is an event, and no other is.
#[test]
fn what_the_log_counts_is_what_the_bots_did() {
    let cluster = Cluster::start(2, 2);
    let results = cluster.folder.path().join("results");
    let results = results.to_str().unwrap();
    let flags = ["--users", "30", "--for", "8s", "--game", "duel", "--results", results];
    let (ok, report) = cluster.bots(&flags);
    assert!(ok, "{report:#}");
    assert_clean(&report);
    let data = cluster.folder.text().to_owned();
    let of = |counts: &BTreeMap<String, u64>, kind: &str| counts.get(kind).copied().unwrap_or(0);
    // A session that was closed may still be resumed for a while; an instance that is empty closes after a while.
    wait_until("everybody to be away, and every instance to be over", || {
        let now = counts(&data);
        let away = of(&now, "session_away") == of(&now, "check_in");
        away && of(&now, "instance_closed") == of(&now, "instance_granted")
    });
    // Whoever ends writes what it still has to say.
    let Cluster { folder: _folder, master, sessions, games, .. } = cluster;
    for process in sessions.into_iter().chain(games).chain([master]) {
        let (ended, text) = process.stop();
        assert!(ended, "{text}");
    }

    let now = counts(&data);
    let did = |operation: &str| report["by_operation"][operation]["count"].as_u64().unwrap();
    assert_eq!(did("check_in"), 30);
    assert_eq!(of(&now, "check_in"), did("check_in"), "{now:?}");
    assert_eq!(of(&now, "session_away"), did("check_in"), "{now:?}");
    assert_eq!(of(&now, "directory_join"), did("join"), "{now:?}");
    assert_eq!(of(&now, "directory_leave"), did("leave"), "{now:?}");
    let played = rows(&data, "select instance, count(*) from directory_join group by instance");
    for kind in ["instance_granted", "instance_running", "instance_closed"] {
        assert_eq!(of(&now, kind), played.len() as u64, "{kind}: {now:?}");
    }
    assert_eq!((of(&now, "process_started"), of(&now, "process_stopped")), (5, 5), "{now:?}");

    // A duel of two has one result, and one event about it; bots were told of no other.
    let of_two: BTreeSet<_> =
        played.iter().filter_map(|row| row.strip_suffix(",2")).map(str::to_owned).collect();
    let over = rows(&data, "select instance from \"duel.over\"");
    assert_eq!(over.len(), of_two.len(), "{now:?}");
    assert_eq!(over.into_iter().collect::<BTreeSet<_>>(), of_two);
    let told = std::fs::read_to_string(results).unwrap();
    let told: BTreeSet<_> = told.lines().map(|id| id.replace("duel/", "")).collect();
    assert!(told.len() > 10 && told.is_subset(&of_two), "{told:?}");
    // Who has won sat there, by the directory's own account.
    let strangers = "select count(*) from \"duel.over\" o where o.user is not null and not exists \
                     (select 1 from directory_join j where j.instance = o.instance and j.user = o.user)";
    assert_eq!(rows(&data, strangers), ["0"]);
}
