//! Credentials are found the AWS way: a profile, the role of a container, the role of a machine.

use std::{
    io::BufReader,
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use serde_json::json;

use crate::{CREDENTIALS, http::Message, program, target};

/// A stand-in for Kinesis, with no shard in it, and for what gives a container or a machine its role.
struct Aws {
    port: u16,
    /// Who signed the calls to Kinesis.
    signed: Arc<Mutex<Vec<String>>>,
}

impl Aws {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let aws = Self { port: listener.local_addr().unwrap().port(), signed: Arc::default() };
        let signed = Arc::clone(&aws.signed);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let signed = Arc::clone(&signed);
                thread::spawn(move || serve(stream, &signed));
            }
        });
        aws
    }
}

fn serve(mut client: TcpStream, signed: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    while let Ok(Some(asked)) = Message::read(&mut reader) {
        let path = asked.first.split(' ').nth(1).unwrap_or_default();
        let body = if asked.header("x-amz-target").is_some() {
            let text = asked.header("authorization").unwrap_or_default();
            let who = text.split_once("Credential=").and_then(|(_, rest)| rest.split_once('/'));
            signed.lock().unwrap().push(who.map_or("nobody", |(who, _)| who).to_owned());
            json!({ "Shards": [] }).to_string()
        } else if path == "/container" {
            role("OFCONTAINER")
        } else if path.ends_with("/api/token") {
            "token".to_owned()
        } else if path.ends_with("/security-credentials/") {
            "machine".to_owned()
        } else {
            role("OFMACHINE")
        };
        let headers = vec![
            ("content-type".into(), "application/json".into()),
            ("x-aws-ec2-metadata-token-ttl-seconds".into(), "21600".into()),
        ];
        let answer = Message { first: "HTTP/1.1 200 OK".into(), headers, body: body.into_bytes() };
        if answer.write(&mut client).is_err() {
            return;
        }
    }
}

fn role(key: &str) -> String {
    json!({
        "Code": "Success",
        "Type": "AWS-HMAC",
        "AccessKeyId": key,
        "SecretAccessKey": "secret",
        "Token": "token",
        "Expiration": "2099-01-01T00:00:00Z",
        "LastUpdated": "2026-01-01T00:00:00Z",
    })
    .to_string()
}

/// Reads the stream with these variables and no others of AWS; gives who signed.
fn signed(home: &Path, variables: &[(&str, &str)], aws: &Aws) -> Vec<String> {
    let mut command = Command::new(program());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.args(["read", &target("events", aws.port)]).env("HOME", home);
    let ended = command.envs(variables.iter().copied()).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    std::mem::take(&mut aws.signed.lock().unwrap())
}

#[test]
fn credentials_are_those_of_the_environment_a_profile_the_container_or_the_machine() {
    let (aws, home) = (Aws::start(), tempfile::tempdir().unwrap());
    let nowhere = ("AWS_EC2_METADATA_DISABLED", "true");
    assert_eq!(signed(home.path(), &CREDENTIALS, &aws), ["testing"]);

    let machine = format!("http://127.0.0.1:{}", aws.port);
    let machine = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", machine.as_str());
    assert_eq!(signed(home.path(), &[machine], &aws), ["OFMACHINE"]);
    let container = format!("http://127.0.0.1:{}/container", aws.port);
    let container = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.as_str());
    assert_eq!(signed(home.path(), &[container, machine], &aws), ["OFCONTAINER"]);

    let of_profiles = home.path().join(".aws");
    std::fs::create_dir(&of_profiles).unwrap();
    let profiles = "[default]\naws_access_key_id = OFDEFAULT\naws_secret_access_key = secret\n\n\
                    [studio]\naws_access_key_id = OFSTUDIO\naws_secret_access_key = secret\n";
    std::fs::write(of_profiles.join("credentials"), profiles).unwrap();
    assert_eq!(signed(home.path(), &[nowhere], &aws), ["OFDEFAULT"]);
    let studio = ("AWS_PROFILE", "studio");
    assert_eq!(signed(home.path(), &[nowhere, studio], &aws), ["OFSTUDIO"]);
    // What is said for this process comes first.
    let all = [CREDENTIALS[0], CREDENTIALS[1], machine, container];
    assert_eq!(signed(home.path(), &all, &aws), ["testing"]);
}
