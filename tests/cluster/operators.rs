//! What operators ask, and what they are told.

use greenroom::client::Code;
use serde_json::Value;

use crate::harness::{Cluster, Folder, end_of, error_of, event, greenroom, run};

#[test]
fn status_has_the_keys_that_programs_rely_on() {
    let cluster = Cluster::start(2, 1);
    let output = run(&["status", "--json", "--admin", cluster.admin()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "one object a line: {text}");
    let status: Value = serde_json::from_str(&text).unwrap();
    for (list, len) in [("masters", 1), ("sessions", 2), ("games", 1)] {
        assert_eq!(status[list].as_array().unwrap().len(), len, "{status:#}");
    }
    assert!(status["users"].is_u64() && status["instances"].is_u64(), "{status:#}");
    let master = &status["masters"][0];
    assert_eq!(master["role"], "active");
    assert!(
        master["epoch"].is_string() && master["lsn"].is_u64() && master["lag"].is_u64(),
        "{master}"
    );
    let table = run(&["status", "--admin", cluster.admin()]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.starts_with("cluster greenroom: 0 users, 0 instances"), "{table}");
}

/// An action, as the operator of this cluster.
fn act(cluster: &Cluster, what: &str, whom: &str) {
    let output = run(&[what, whom, "--admin", cluster.admin(), "--data", cluster.folder.text()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn who_is_kicked_is_told_so_and_nobody_else_notices() {
    let cluster = Cluster::start(2, 1);
    let ann = cluster.client().guest("Ann").connect().await.unwrap();
    let bo = cluster.client().guest("Bo").connect().await.unwrap();
    act(&cluster, "kick", ann.identity().user.as_str());
    assert_eq!(end_of(&ann).await.code, Code::Kicked);
    bo.join_or_create("arena").await.unwrap();
    assert_eq!(bo.stats().reconnects, 0);
    cluster.wait_for("one user", |status| status.users == 1);
}

#[tokio::test]
async fn an_instance_that_is_destroyed_puts_its_members_out_and_no_others() {
    let cluster = Cluster::start(1, 1);
    let ann = cluster.client().guest("Ann").connect().await.unwrap();
    let mut doomed = ann.join_or_create("arena").key("doomed").await.unwrap();
    let kept = ann.join_or_create("arena").key("kept").await.unwrap();
    act(&cluster, "destroy", &doomed.instance().to_string());
    let why = event(&mut doomed, "its end", |_, event| match event {
        greenroom::client::Event::Left(why) => Some(why),
        _ => None,
    })
    .await;
    assert_eq!(why.code, Code::Destroyed);
    let shot = greenroom_games::arena::In::Shoot(1.0, 0.0);
    kept.call::<_, greenroom_games::arena::Reply>(&shot).await.unwrap();
    cluster.wait_for("one instance", |status| status.instances == 1);
}

#[test]
fn an_action_that_can_not_be_done_says_what_is_wrong_and_what_to_do() {
    let cluster = Cluster::start(1, 1);
    let (admin, data) = (cluster.admin(), cluster.folder.text());
    let says = |args: &[&str], words: &[&str]| {
        let error = error_of(&run(args));
        assert!(words.iter().all(|word| error.contains(word)), "{args:?}: {error}");
    };
    let nobody = ["user_unknown", "nobody", "not checked in"];
    says(&["kick", "nobody", "--admin", admin, "--data", data], &nobody);
    let none = "00000000000000000000000000";
    says(&["destroy", none, "--admin", admin, "--data", data], &["instance_unknown", none]);
    says(&["destroy", "xyz", "--admin", admin, "--data", data], &["xyz", "26 characters"]);

    let empty = Folder::new();
    let elsewhere = ["kick", "nobody", "--admin", admin, "--data", empty.text()];
    says(&elsewhere, &["admin.token", "start the master first", "--data"]);
    let token = empty.path().join("admin.token");
    std::fs::write(&token, "wrong").unwrap();
    says(&elsewhere, &["admin.token", "64 hexadecimal digits"]);
    std::fs::write(&token, "0".repeat(64)).unwrap();
    let right = cluster.folder.path().join("admin.token");
    says(&elsewhere, &["unauthorized", right.to_str().unwrap()]);

    for command in [&["status"][..], &["bots"], &["kick", "nobody", "--data", data]] {
        // Port 1 is nobody's.
        says(
            &[command, &["--admin", "127.0.0.1:1"]].concat(),
            &["127.0.0.1:1", "is it running?", "--admin"],
        );
    }
    // A session server is something else than an admin port.
    let other = cluster.urls(0)[1].trim_start_matches("ws://");
    says(&["status", "--admin", other], &[other, "not Greenroom's admin port", "--admin"]);
}

#[test]
fn every_table_of_settings_can_be_read() {
    let output = run(&["settings"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for table in ["[cluster]", "[master]", "[console]", "[session]", "[game]"] {
        assert!(text.lines().any(|line| line == table), "{table} in {text}");
    }
    assert!(text.contains("GREENROOM_SESSION_TCP"), "{text}");
}

/// Whoever only looks makes nothing: a misspelt folder is told, and is not there afterwards.
#[test]
fn looking_at_a_folder_that_is_not_there_does_not_make_it() {
    let folder = Folder::new();
    let typo = folder.path().join("typo");
    let data = typo.to_str().unwrap();
    let looks: [&[&str]; 4] = [
        &["logs", "tail"],
        &["logs", "sql", "select 1"],
        &["logs", "report", "kinds"],
        &["store", "check"],
    ];
    for look in looks {
        let output = run(&[look, &["--data", data]].concat());
        assert!(!output.status.success(), "{look:?}");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains(data) && said.contains("there"), "{look:?}: {said}");
        assert!(!typo.exists(), "{look:?} made the folder");
    }
}

#[test]
fn a_reader_that_has_gone_ends_a_command_quietly() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = greenroom().args(["logs", "kinds"]).stdout(writer).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}
