//! The operator's stories: the active dies, the standby takes over, and those who play do not notice.

use greenroom_protocol::wire::admin_master::Status;

use super::harness::{
    Cluster, Folder, Process, assert_clean, error_of, greenroom, report, run, up, wait_until,
};

fn roles(cluster: &Cluster) -> Vec<(String, String)> {
    let masters = cluster.status().masters;
    masters.into_iter().map(|master| (master.name.to_string(), master.role.to_string())).collect()
}

fn pair(active: &str, standby: &str) -> Vec<(String, String)> {
    [(active, "active"), (standby, "standby")].map(|(n, r)| (n.to_owned(), r.to_owned())).into()
}

/// Bots play. The active is killed: they do not notice. The dead one comes back as the standby, and a switchover makes
/// it the active again.
#[test]
fn bots_play_on_while_the_active_dies_comes_back_as_standby_and_is_switched_back() {
    let mut cluster = Cluster::start_pair(2, 2, &["--limits", "load"]);
    assert_eq!(roles(&cluster), pair("master-a", "master-b"));
    let bots = cluster.start_bots(&["--users", "50", "--for", "15s", "--game", "arena"]);
    cluster.wait_for("bots that play", |status| status.users >= 50 && status.instances > 0);
    let before = cluster.status();

    cluster.active().kill();
    cluster.wait_for("the standby to take over", |status| {
        status.masters[0].name.as_str() == "master-b" && status.masters[0].role == "active"
    });
    let after = cluster.status();
    assert!(after.users >= before.users, "nobody was forgotten");
    assert_eq!(after.masters[0].epoch.split('.').next(), before.masters[0].epoch.split('.').next());

    cluster.start_masters();
    cluster.wait_for_pair();
    assert_eq!(roles(&cluster), pair("master-b", "master-a"));

    let data = cluster.folder.text();
    let switched = run(&["switchover", "--admin", cluster.admin(), "--data", data]);
    assert!(switched.status.success(), "{}", String::from_utf8_lossy(&switched.stderr));
    cluster.wait_for_pair();
    assert_eq!(roles(&cluster), pair("master-a", "master-b"));

    let (went_well, report) = report(&bots.ended());
    assert!(went_well, "{report:#}");
    assert_clean(&report);
}

/// The standby is not needed for anything but to be there: it dies, and the active goes on with its disk.
#[test]
fn the_active_goes_on_without_its_standby_and_takes_it_back() {
    let mut cluster = Cluster::start_pair(1, 1, &["--limits", "load"]);
    let bots = cluster.start_bots(&["--users", "20", "--for", "8s", "--game", "arena"]);
    cluster.wait_for("bots that play", |status| status.users >= 20);
    cluster.lose_standby();
    let data = cluster.folder.text();
    let refused = error_of(&run(&["switchover", "--admin", cluster.admin(), "--data", data]));
    assert!(refused.contains("no standby"), "{refused}");
    cluster.start_masters();
    cluster.wait_for_pair();
    let (went_well, report) = report(&bots.ended());
    assert!(went_well, "{report:#}");
    assert_clean(&report);
}

/// The active stops for a while without dying, as a machine does that swaps. Meanwhile the other one decides; when it
/// goes on it hears so, and becomes the standby.
#[test]
fn an_active_that_slept_steps_back_when_it_wakes() {
    let cluster = Cluster::start_pair(1, 1, &["--limits", "load"]);
    let bots = cluster.start_bots(&["--users", "20", "--for", "10s", "--game", "arena"]);
    cluster.wait_for("bots that play", |status| status.users >= 20);
    cluster.master.stall();
    let second = cluster.second.as_ref().unwrap().words[3].clone();
    wait_until("the standby to take over", || {
        super::harness::status(&second).masters[0].role == "active"
    });
    cluster.master.go_on();
    cluster.wait_for_pair();
    assert_eq!(roles(&cluster), pair("master-b", "master-a"));
    let (went_well, report) = report(&bots.ended());
    assert!(went_well, "{report:#}");
    assert_clean(&report);
}

/// Both masters are killed in one moment while bots play duels, and come back in either order, one of them later. The
/// cluster goes on by itself, with all that was told to be done and in the same era, and no instance is there twice.
#[test]
fn both_masters_die_at_once_and_the_pair_goes_on_by_itself() {
    let mut cluster = Cluster::start_pair(2, 2, &["--limits", "load"]);
    let bots = cluster.start_bots(&["--users", "40", "--for", "1h", "--game", "duel"]);
    cluster.wait_for("bots that play", |status| status.users >= 40 && status.instances > 0);
    let era = |epoch: &str| epoch.split_once('.').unwrap().0.to_owned();
    for first in [0, 1, 1, 0] {
        let before = cluster.status();
        cluster.kill_masters();
        cluster.start_master(first);
        cluster.start_master(1 - first);
        cluster.wait_for_pair();
        let after = cluster.status();
        assert_eq!(era(&after.masters[0].epoch), era(&before.masters[0].epoch), "nothing is lost");
        assert!(after.masters[0].lsn >= before.masters[0].commit, "{before:?} {after:?}");
        assert!(after.users >= before.users, "nobody was forgotten");
        cluster.wait_for("its servers", |status| up(&status.sessions) + up(&status.games) == 4);
        assert_eq!(cluster.status().twins, 0);
    }
    let (_, text) = bots.end_by(rustix::process::Signal::INT);
    let played: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    for zero in ["lost", "doubled", "out_of_order"] {
        assert_eq!(played[zero], 0, "{zero}: {played:#}");
    }
    assert!(played["results"].as_u64().unwrap() > 0, "{played:#}");
    // While neither is there a session server says so, to who has waited long enough.
    for (text, _) in played["error_texts"].as_object().into_iter().flatten() {
        assert!(text.contains("nothing was started"), "{played:#}");
    }
}

/// Only one of the two comes back: it decides nothing, and says what it waits for and what an operator can do.
#[test]
fn one_of_two_masters_that_died_at_once_waits_for_the_other_or_for_an_operator() {
    let mut cluster = Cluster::start_pair(1, 1, &[]);
    let data = cluster.folder.text().to_owned();
    cluster.kill_masters();
    cluster.start_master(1);
    let admin = cluster.admin().split(',').nth(1).unwrap().to_owned();
    let second = cluster.second.as_ref().unwrap();
    let said = second.err.wait("what it waits for", |line| line.contains("no master decides"));
    assert!(said.contains("waits for the other") && said.contains("promote --force"), "{said}");
    let shown = run(&["status", "--admin", &admin]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("TROUBLE") && shown.contains("waits for the other"), "{shown}");
    assert_ne!(super::harness::status(&admin).masters[0].role, "active");
    let promote = |more: &[&str]| {
        run(&[&["promote", "--admin", admin.as_str(), "--data", &data][..], more].concat())
    };
    let refused = error_of(&promote(&[]));
    assert!(refused.contains("may lack") && refused.contains("--force"), "{refused}");
    let promoted = promote(&["--force"]);
    assert!(promoted.status.success(), "{}", String::from_utf8_lossy(&promoted.stderr));
    // The other one comes back after all, and copies what was decided without it.
    cluster.start_master(0);
    cluster.wait_for_pair();
    assert_eq!(roles(&cluster), pair("master-b", "master-a"));
    cluster.wait_for("its servers", |status| up(&status.sessions) + up(&status.games) == 2);
}

/// Both machines lose power: what neither disk had synced may be gone, and a new era says so. The cluster goes on by
/// itself all the same.
#[test]
fn two_machines_that_lost_power_go_on_by_themselves_in_a_new_era() {
    let mut cluster = Cluster::start_pair(1, 2, &["--limits", "load"]);
    let bots = cluster.start_bots(&["--users", "20", "--for", "1h", "--game", "arena"]);
    cluster.wait_for("bots that play", |status| status.users >= 20 && status.instances > 0);
    let before = cluster.status();
    cluster.kill_masters();
    for name in ["master-a", "master-b"] {
        // The machines were started anew since: nobody vouches for what was not synced.
        let whole = cluster.folder.path().join(name).join("whole");
        let text = std::fs::read_to_string(&whole).unwrap();
        let (since, _) = text.split_once(' ').unwrap();
        std::fs::write(&whole, format!("{since} another-start\n")).unwrap();
    }
    cluster.start_master(0);
    cluster.start_master(1);
    cluster.wait_for_pair();
    let after = cluster.status();
    let era = |status: &Status| -> u32 {
        status.masters[0].epoch.split_once('.').unwrap().0.parse().unwrap()
    };
    assert_eq!(era(&after), era(&before) + 1);
    cluster.wait_for("its servers and players", |status| {
        up(&status.sessions) + up(&status.games) == 3 && status.users >= 20 && status.twins == 0
    });
    let (_, text) = bots.end_by(rustix::process::Signal::INT);
    let played: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    for zero in ["doubled", "out_of_order"] {
        assert_eq!(played[zero], 0, "{zero}: {played:#}");
    }
}

/// Without the witness nobody may change the pair: the pair works on, and when the active dies too, all wait until the
/// witness is back. Nothing is lost by it.
#[test]
fn a_pair_works_without_its_witness_and_a_takeover_waits_for_it() {
    let mut cluster = Cluster::start_pair(1, 1, &["--limits", "load"]);
    cluster.witness.as_mut().unwrap().stall();
    let bots = cluster.start_bots(&["--users", "20", "--for", "12s", "--game", "arena"]);
    cluster.wait_for("bots that play", |status| status.users >= 20);
    cluster.active().kill();
    let second = cluster.second.as_ref().unwrap().words[3].clone();
    let standby = || super::harness::status(&second).masters[0].clone();
    wait_until("the standby to say what is missing", || {
        standby().troubles.iter().any(|trouble| trouble.contains("witness"))
    });
    assert_eq!(standby().role, "standby");
    cluster.witness.as_ref().unwrap().go_on();
    wait_until("the takeover", || standby().role == "active");
    let (went_well, report) = report(&bots.ended());
    assert!(went_well, "{report:#}");
    assert_clean(&report);
}

/// Who is not certain to have everything is not made the active by a slip of the hand.
#[test]
fn a_master_that_may_lack_something_is_promoted_only_by_force() {
    let mut cluster = Cluster::start_pair(1, 1, &[]);
    let admin = cluster.second.as_ref().unwrap().words[3].clone();
    let data = cluster.folder.text().to_owned();
    let promote = |more: &[&str]| {
        run(&[&["promote", "--admin", admin.as_str(), "--data", &data][..], more].concat())
    };
    let alive = error_of(&promote(&[]));
    assert!(alive.contains("switchover"), "{alive}");
    // The standby dies, the active goes on alone, and is lost for ever.
    cluster.lose_standby();
    cluster.master.kill();
    cluster.start_master(1);
    let refused = error_of(&promote(&[]));
    assert!(refused.contains("may lack") && refused.contains("--force"), "{refused}");
    let promoted = promote(&["--force"]);
    assert!(promoted.status.success(), "{}", String::from_utf8_lossy(&promoted.stderr));
    cluster.wait_for("its servers", |status| {
        status.masters[0].role == "active"
            && status.sessions[0].state == "up"
            && status.games[0].state == "up"
    });
}

/// An operator is faster than the witness: what he wants is done once the record is known, and not lost.
#[test]
fn a_promotion_before_the_witness_has_answered_waits_for_it() {
    let mut cluster = Cluster::start_pair(0, 0, &[]);
    cluster.lose_standby();
    cluster.master.kill();
    cluster.witness.as_ref().unwrap().stall();
    cluster.start_master(1);
    let (witness, second) = (cluster.witness.as_ref().unwrap(), cluster.second.as_ref().unwrap());
    let (admin, data) = (second.words[3].clone(), cluster.folder.text());
    let args = ["promote", "--force", "--admin", &admin, "--data", data];
    let promote = Process::spawn(greenroom().args(args));
    second.err.wait("the wish", |line| line.contains("waits until the witness has answered"));
    witness.go_on();
    let promoted = promote.ended();
    assert!(promoted.status.success(), "{}", String::from_utf8_lossy(&promoted.stderr));
    assert_eq!(super::harness::status(&admin).masters[0].role, "active");
}

/// One master alone needs no other to come back: what it had acknowledged is on its disk.
#[test]
fn a_master_that_is_alone_comes_back_with_everything_and_nobody_notices_but_by_waiting() {
    let mut cluster = Cluster::start_with(2, 2, &["--limits", "load"]);
    let bots = cluster.start_bots(&["--users", "30", "--for", "8s", "--game", "arena"]);
    cluster.wait_for("bots that play", |status| status.users >= 30 && status.instances > 0);
    let before = cluster.status();
    cluster.restart_master();
    cluster.wait_for("its servers", |status| {
        status.masters[0].role == "active" && up(&status.sessions) + up(&status.games) == 4
    });
    let after = cluster.status();
    assert!(after.users >= before.users && after.instances >= before.instances);
    assert!(after.masters[0].lsn >= before.masters[0].lsn, "its log goes on");
    let (went_well, report) = report(&bots.ended());
    assert!(went_well, "{report:#}");
    assert_clean(&report);
}

/// A standby that does not belong to the active is refused by both with the reason, and the active works on.
#[test]
fn a_standby_that_does_not_fit_is_told_why() {
    let cluster = Cluster::start_pair(1, 1, &[]);
    let key = cluster.folder.path().join("other.key");
    std::fs::write(&key, "5".repeat(64)).unwrap();
    let active = cluster.master.words[1].clone();
    for (flags, word) in [
        (["--key-file", key.to_str().unwrap()], "wrong_key"),
        (["--cluster-name", "blue"], "wrong_cluster"),
        (["--side", "a"], "both masters are side a"),
    ] {
        let mut args = vec!["master", "--data", cluster.folder.text(), "--name", "stranger"];
        let rest = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--peer", &active];
        args.extend(rest);
        args.extend(["--witness", "127.0.0.1:1"]);
        // Side a dials: only so does it meet the active at once.
        args.extend(flags);
        if !flags.contains(&"--side") {
            args.extend(["--side", "a"]);
        }
        let stranger = Process::start(&args);
        stranger.err.wait(word, |line| line.contains(word));
    }
    cluster.wait_for_pair();
}

#[test]
fn two_masters_without_a_witness_are_refused_at_once() {
    let folder = Folder::new();
    let refused = run(&["master", "--data", folder.text(), "--peer", "127.0.0.1:1"]);
    let error = error_of(&refused);
    assert!(error.contains("witness") && error.contains("greenroom witness"), "{error}");
}
