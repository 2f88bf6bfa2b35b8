//! Nothing that is secret is in a log, on a page, or among the metrics, whatever goes wrong.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, Instant},
};

use greenroom::client::{Client, Code, Credentials};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    harness::{error_of, free_port, greenroom, patient, refusal, run, status, up, wait_until},
    up::{Many, process_id, said},
};

const CLUSTER_KEY: &str = "5ec2e70ffa11c0de5ec2e70ffa11c0de5ec2e70ffa11c0de5ec2e70ffa11c0de";
const ADMIN_TOKEN: &str = "5ec2e7ad31570c0ffee5ec2e7ad315705ec2e7ad31570c0ffee5ec2e7ad31570";
const WRONG_TOKEN: &str = "5ec2e7badbadbad0c0ffee5ec2e7bad05ec2e7badbadbad0c0ffee5ec2e7bad0";
const JWT_KEY: &str = "planted-key-of-tokens-thirty-two-bytes";
const GUEST: &str = "planted-token-of-a-guest";
const JWT: &str = "planted.token.signed";
const STRAY: &str = "planted-token-of-a-stranger";
const STORE: &str = "planted-password-of-the-store";
const AWS_SECRET: &str = "plantedSecretOfAws/plantedSecretOfAws+42";
const AWS_TOKEN: &str = "plantedTokenOfAwsSession==";

/// How long a page without an end is read, from its first byte on.
const A_MOMENT: Duration = Duration::from_secs(2);
/// How long anything else may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that nobody may read anywhere.
const SECRETS: [&str; 10] = [
    CLUSTER_KEY,
    ADMIN_TOKEN,
    WRONG_TOKEN,
    JWT_KEY,
    GUEST,
    JWT,
    STRAY,
    STORE,
    AWS_SECRET,
    AWS_TOKEN,
];

fn plant(file: &Path, secret: &str) {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(file).unwrap();
    file.write_all(secret.as_bytes()).unwrap();
}

/// Says something over HTTP, and gives all that comes back.
fn ask(address: &str, request: &str) -> String {
    let is_endless = ["/events ", "/logs/tail "].iter().any(|page| request.contains(page));
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let host = format!("Host: {address}\r\nConnection: close\r\n");
    socket.write_all(request.replacen("\r\n", &format!("\r\n{host}"), 1).as_bytes()).unwrap();
    let (mut text, mut piece, mut first) = (Vec::new(), [0; 16 << 10], None);
    // A connection that is reset has ended, too.
    while let Ok(size @ 1..) = socket.read(&mut piece) {
        text.extend_from_slice(&piece[..size]);
        let first: Instant = *first.get_or_insert_with(Instant::now);
        if is_endless {
            socket.set_read_timeout(Some(A_MOMENT)).unwrap();
            if first.elapsed() >= A_MOMENT {
                break;
            }
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// A line that has a secret in it, or the beginning of one, which is as bad.
fn leak(text: &str) -> Option<String> {
    let text = text.to_lowercase();
    let has = |line: &&str| {
        let begins = |secret: &&str| line.contains(&secret[..secret.len().min(24)].to_lowercase());
        SECRETS.iter().any(begins)
    };
    text.lines().find(has).map(str::to_owned)
}

fn assert_clean(what: &str, text: &str) {
    assert_eq!(leak(text), None, "{what} has a secret");
}

/// Every file of a folder, with what is in it; closed segments are read by the command that knows how.
fn files(folder: &Path, texts: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, texts),
            false => {
                let bytes = fs::read(&path).unwrap();
                texts.push((
                    path.display().to_string(),
                    String::from_utf8_lossy(&bytes).into_owned(),
                ));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_a_log_on_a_page_or_among_the_metrics() {
    let many = Many::new();
    let data = Path::new(many.data());
    plant(&data.join("cluster.key"), CLUSTER_KEY);
    plant(&data.join("admin.token"), ADMIN_TOKEN);
    plant(&data.join("jwt.secret"), JWT_KEY);
    for file in ["cluster.key", "admin.token", "jwt.secret"] {
        let planted = fs::read_to_string(data.join(file)).unwrap();
        assert!(leak(&planted).is_some(), "whoever looks for {file} finds it");
    }
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let keys = format!("[{{ file = {:?}, algorithm = \"HS256\" }}]", data.join("jwt.secret"));
    let mut command = greenroom();
    command.envs([
        ("AWS_ACCESS_KEY_ID", "AKIAPLANTED"),
        ("AWS_SECRET_ACCESS_KEY", AWS_SECRET),
        ("AWS_SESSION_TOKEN", AWS_TOKEN),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("GREENROOM_STORAGE_COUCHBASE_PASSWORD", STORE),
    ]);
    // Everything is told that there is to tell, and neither the stream nor the collector is there.
    let flags = [
        "--cluster-log",
        "debug",
        "--logs-level",
        "debug",
        "--logs-kinesis-stream",
        "events",
        "--logs-kinesis-region",
        "us-east-1",
        "--logs-kinesis-endpoint",
        &nobody,
        "--telemetry-endpoint",
        &nobody,
        "--telemetry-sample",
        "1.0",
        "--telemetry-interval",
        "1s",
        "--session-auth-jwt-keys",
        &keys,
        "--session-auth-jwt-audience",
        "our-game",
    ];
    let (up_all, admin) = many.start_as(&mut command, &flags);
    let mode = fs::metadata(data.join("up.toml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "what its children are told has the store's password in it");
    let session = said(&up_all, "session");
    let word = |scheme: &str| {
        let word = session.split_whitespace().find(|word| word.starts_with(scheme)).unwrap();
        word.trim_end_matches('/').to_owned()
    };
    let (tcp, http) = (word("tcp://"), word("http://").replace("http://", ""));

    // One who may come in and plays, and some who may not.
    let with = |scheme: &str, token: &str| {
        let credentials =
            Credentials { scheme: scheme.into(), token: token.into(), name: "Ann".into() };
        Client::builder().servers([tcp.clone()]).credentials(credentials).connect()
    };
    let ann = with("guest", GUEST).await.unwrap();
    let room = ann.join_or_create("arena").await.unwrap();
    assert_eq!(refusal(with("jwt", JWT).await).code, Code::CredentialsInvalid);
    assert_eq!(refusal(with("rune", STRAY).await).code, Code::SchemeUnknown);
    for request in [
        format!("GET /{STRAY} HTTP/1.1\r\nAuthorization: Bearer {STRAY}\r\n\r\n"),
        format!("{STRAY}\r\n\r\n"),
    ] {
        ask(&http, &request);
        ask(tcp.trim_start_matches("tcp://"), &request);
    }
    // An operator with a wrong token, and one with the right one who asks for what is not there.
    let act = |token: &str| {
        let body = r#"{"kick":{"user":"nobody"}}"#;
        let head = format!(
            "POST /actions HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n",
            body.len()
        );
        ask(&admin, &format!("{head}\r\n{body}"))
    };
    assert!(act(WRONG_TOKEN).contains(" 401 "), "{}", act(WRONG_TOKEN));
    let refused = error_of(&run(&["kick", "nobody", "--data", many.data(), "--admin", &admin]));
    // A game server dies while somebody plays there.
    let line =
        up_all.out.wait("game-1", |line| line.contains("game-1") && line.contains("(process "));
    let game = Pid::from_raw(i32::try_from(process_id(&line)).unwrap()).unwrap();
    kill_process(game, Signal::KILL).unwrap();
    up_all.out.wait("its return", |line| line.starts_with("game-1 is back"));
    wait_until("both game servers", || up(&status(&admin).games) == 2);
    drop(room);
    patient("the end of the client", ann.close()).await;
    up_all.err.wait("a word on the stream", |line| line.contains("events are not shipped"));
    up_all.err.wait("a word on the collector", |line| line.contains("takes no telemetry"));

    assert_clean("the answer to a wrong token", &act(WRONG_TOKEN));
    assert_clean("the command line", &refused);
    let pages = [
        "/",
        "/users",
        "/instances",
        "/servers",
        "/logs",
        "/logs/tail",
        "/past",
        "/events",
        "/status",
        "/metrics",
    ];
    for page in pages {
        let text = ask(&admin, &format!("GET {page} HTTP/1.1\r\n\r\n"));
        assert!(text.starts_with("HTTP/1.1 200"), "{page}: {text:.200}");
        assert_clean(page, &text);
    }
    let tail = run(&["logs", "tail", "-n", "100000", "--json", "--data", many.data()]);
    let tail = String::from_utf8(tail.stdout).unwrap();
    for kind in ["check_in", "check_in_refused", "server_up", "shipping_failed"] {
        assert!(tail.contains(&format!("\"kind\":\"{kind}\"")), "no {kind} in {tail}");
    }
    assert_clean("the event log", &tail);
    let errors = up_all.err.so_far().len();
    let (ended, printed) = up_all.stop_with_errors();
    assert!(ended && errors > 20, "it said little of what went wrong: {printed}");
    assert_clean("the standard error", &printed);
    let mut texts = Vec::new();
    files(&data.join("logs"), &mut texts);
    assert!(texts.len() > 6, "a folder for each process");
    texts.iter().for_each(|(file, text)| assert_clean(file, text));
}
