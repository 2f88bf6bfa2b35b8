//! Bad input: whoever sends it is told what is wrong and what to do; nobody else notices, and no process dies.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Command,
    time::{Duration, SystemTime},
};

use greenroom::client::{Client, ClientError, Code, InstanceId};
use greenroom_games::arena;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;

use crate::harness::{
    Cluster, Folder, Process, assert_clean, error_of, greenroom, refusal, report, run, up,
};

/// Asserts that a command fails and says all of these words.
fn says(args: &[&str], words: &[&str]) {
    let error = error_of(&run(args));
    assert!(words.iter().all(|word| error.contains(word)), "{args:?} says:\n{error}");
}

#[test]
fn a_setting_that_is_wrong_is_named_with_its_file_and_table() {
    let folder = Folder::new();
    let file = folder.path().join("greenroom.toml");
    let file = file.to_str().unwrap();
    let key = folder.path().join("cluster.key");
    std::fs::write(&key, "0".repeat(64)).unwrap();
    for (text, words) in [
        ("[session]\nhartbeat = \"3s\"", &["[session]", "`hartbeat`", "`heartbeat`", "`tcp`"][..]),
        ("[sesion]\nheartbeat = \"3s\"", &["[sesion]", "[session]", "[game]"]),
        ("[session]\nheartbeat = 3", &["[session]", "`heartbeat`", "3", "duration"]),
        ("[session]\nheartbeat = \"3 bananas\"", &["[session]", "`heartbeat`", "3 bananas"]),
        ("[session]\nconnections_max = \"many\"", &["[session]", "`connections_max`", "many"]),
        ("[session", &["no TOML", "line 1"]),
    ] {
        std::fs::write(file, text).unwrap();
        let words = [&[file], words].concat();
        says(&["session", "--data", folder.text(), "--config", file], &words);
    }
    says(&["session", "--config", "nowhere.toml"], &["nowhere.toml"]);
    says(
        &["session", "--connections-max", "many"],
        &["session.connections_max", "many", "whole number"],
    );
    says(&["game", "--tick-grit", "5ms"], &["--tick-grit", "--tick-grid"]);
}

#[test]
fn a_folder_that_can_not_be_made_and_a_key_that_is_not_there_are_named() {
    let folder = Folder::new();
    let in_its_place = folder.path().join("file");
    std::fs::write(&in_its_place, "").unwrap();
    let in_its_place = in_its_place.to_str().unwrap();
    for command in ["up", "master"] {
        says(&[command, "--data", in_its_place], &[in_its_place, "data folder", "--data"]);
    }
    for command in ["session", "game"] {
        says(
            &[command, "--data", folder.text()],
            &["cluster.key", "start the master first", "--data"],
        );
    }
    let key = folder.path().join("short");
    std::fs::write(&key, "abc").unwrap();
    let key = key.to_str().unwrap();
    says(&["game", "--key-file", key], &[key, "64 hexadecimal digits"]);
}

#[test]
fn a_port_in_use_is_named_with_the_setting_that_changes_it() {
    let cluster = Cluster::start(0, 0);
    let (used, data) = (cluster.master.words[1].as_str(), cluster.folder.text());
    let any = "127.0.0.1:0";
    for (args, setting) in [
        (&["master", "--name", "other", "--listen", used, "--admin", any][..], "[master] listen"),
        (&["master", "--name", "other", "--listen", any, "--admin", used], "[console] listen"),
        (&["session", "--tcp", used, "--ws", any], "session.tcp"),
        (&["session", "--tcp", any, "--ws", used], "session.ws"),
        (&["game", "--listen", used], "game.listen"),
    ] {
        says(&[args, &["--data", data]].concat(), &[used, "in use", setting]);
    }
}

#[test]
fn servers_of_another_key_or_cluster_are_told_so_and_stay_outside() {
    let cluster = Cluster::start(1, 1);
    let other = Folder::new();
    let key = other.path().join("other.key");
    std::fs::write(&key, "5".repeat(64)).unwrap();
    let (any, master, data) =
        ("127.0.0.1:0", cluster.master.words[1].as_str(), cluster.folder.text());
    let session = ["session", "--tcp", any, "--ws", any];
    for server in [&session[..], &["game"]] {
        for (flags, words) in [
            (["--key-file", key.to_str().unwrap()], ["wrong_key", "copy the key file"]),
            (["--cluster-name", "blue"], ["wrong_cluster", "[cluster] name"]),
        ] {
            let stranger =
                Process::start(&[server, &["--data", data, "--master", master], &flags].concat());
            let is_told = |line: &str| words.iter().all(|word| line.contains(word));
            stranger.err.wait(words[0], is_told);
            cluster.master.err.wait(words[0], is_told);
        }
    }
    let status = cluster.status();
    assert_eq!((up(&status.sessions), status.sessions.len()), (1, 1));
    assert_eq!((up(&status.games), status.games.len()), (1, 1));
}

#[test]
fn more_bots_than_files_say_what_to_do() {
    let cluster = Cluster::start(1, 1);
    let binary = greenroom();
    let script = format!(
        "ulimit -n 64; exec {} bots --users 500 --for 1s --admin {}",
        binary.get_program().to_str().unwrap(),
        cluster.admin()
    );
    let error = error_of(&Command::new("sh").args(["-c", &script]).output().unwrap());
    assert!(
        error.contains("500 bots") && error.contains("64") && error.contains("ulimit -n"),
        "{error}"
    );
}

#[tokio::test]
async fn what_a_game_or_the_directory_refuses_reaches_who_asked() {
    let cluster = Cluster::start(1, 1);
    let client = cluster.client().guest("Ann").connect().await.unwrap();
    let unknown: InstanceId = "00000000000000000000000000".parse().unwrap();
    let refused = refusal(client.join(unknown).await);
    assert_eq!(refused.code, Code::InstanceUnknown);
    assert!(refused.message.contains(&unknown.to_string()), "{refused}");

    let params = arena::Params { size: 1, ..arena::Params::default() };
    let refused = refusal(client.create("arena").params(&params).await);
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (Code::Rejected, "an arena is 10 to 1,000 units long")
    );

    let refused = refusal(client.join_or_create("chess").await);
    assert_eq!(refused.code, Code::KindUnknown);
    assert!(
        ["chess", "arena", "echo"].iter().all(|kind| refused.message.contains(kind)),
        "{refused}"
    );

    let room = client.join_or_create("arena").await.unwrap();
    let refused = refusal(room.call::<_, arena::Reply>(&"dance").await);
    assert_eq!(refused.code, Code::MessageUnknown);
    // The seat is still good.
    room.call::<_, arena::Reply>(&arena::In::Shoot(1.0, 0.0)).await.unwrap();
}

/// Bytes without a meaning, the same ones each time.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    });
    next.take(len).collect()
}

#[test]
fn nobody_notices_random_bytes_on_the_public_ports() {
    let cluster = Cluster::start(1, 1);
    let bots = cluster.start_bots(&["--users", "20", "--for", "2s", "--game", "arena"]);
    for seed in 1..=40 {
        for url in cluster.urls(0) {
            let address = url.split_once("://").unwrap().1;
            let mut socket = TcpStream::connect(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            // It may be refused before all of it is written, and reset before its answer is read.
            let _wrote_or_not = socket.write_all(&noise(seed, 2_000));
            let _no_more = socket.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            match socket.read_to_end(&mut answer) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
            }
        }
    }
    let (ok, report) = report(&bots.ended());
    assert!(ok, "{report:#}");
    assert_clean(&report);
    assert_eq!(report["reconnects"], 0);
}

const SECRET: &[u8] = b"a secret of thirty-two bytes here";

fn token(algorithm: Algorithm, secret: &[u8], expires_in: i64) -> String {
    // The other stories' threads may have installed it before.
    let _installed = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let now = i64::try_from(now).unwrap();
    let claims = json!({ "sub": "ann", "name": "Ann", "aud": "our-game", "iat": now - 600, "exp": now + expires_in });
    jsonwebtoken::encode(&Header::new(algorithm), &claims, &EncodingKey::from_secret(secret))
        .unwrap()
}

#[tokio::test]
async fn a_token_that_is_expired_or_of_another_key_or_algorithm_is_refused_by_name() {
    let folder = Folder::new();
    let file = folder.path().join("secret");
    std::fs::write(&file, SECRET).unwrap();
    let keys = format!("[{{ file = {:?}, algorithm = \"HS256\" }}]", file.to_str().unwrap());
    let cluster =
        Cluster::start_with(1, 1, &["--auth-jwt-keys", &keys, "--auth-jwt-audience", "our-game"]);
    let check_in =
        |token: String| Client::builder().servers([cluster.urls(0)[0]]).jwt(token).connect();
    let other = b"another secret of thirty-two bytes";
    for (token, code) in [
        (token(Algorithm::HS256, SECRET, -60), Code::TokenExpired),
        (token(Algorithm::HS256, other, 60), Code::TokenSignature),
        (token(Algorithm::HS512, SECRET, 60), Code::TokenAlgorithm),
        ("no token".to_owned(), Code::CredentialsInvalid),
    ] {
        let refused = refusal(check_in(token).await);
        assert_eq!(refused.code, code, "{refused}");
    }
    let ann = check_in(token(Algorithm::HS256, SECRET, 60)).await.unwrap();
    assert_eq!(ann.identity().name, "Ann");
    ann.join_or_create("arena").await.unwrap();
    let unknown = greenroom::client::Credentials {
        scheme: "rune".into(),
        token: "x".into(),
        name: "Bo".into(),
    };
    let refused = cluster.client().credentials(unknown).connect().await;
    assert!(
        matches!(&refused, Err(ClientError::Refused(why)) if why.code == Code::SchemeUnknown),
        "{refused:?}"
    );
}
