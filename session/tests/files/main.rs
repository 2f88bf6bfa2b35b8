//! A session server that runs out of files. In a process of its own: the limit is one of the whole process.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    dead_code,
    reason = "in a test a panic is the report; this story needs a part of the others' tools"
)]

#[path = "../server/client.rs"]
mod client;
#[path = "../server/cluster.rs"]
mod cluster;

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::{
    client::{authority, hello, prefixed},
    cluster::{Cluster, LONG, story_with, unlimited, until},
};

async fn is_served(stream: &mut TcpStream) -> bool {
    let ping = prefixed(&[3, 1, 2, 3, 4, 5, 6, 7, 8]);
    if stream.write_all(&ping).await.is_err() {
        return false;
    }
    let mut pong = [0; 13];
    matches!(timeout(LONG, stream.read_exact(&mut pong)).await, Ok(Ok(_)))
}

#[test]
fn without_files_new_clients_wait_and_those_that_are_there_live_on() {
    let config = greenroom_session::SessionConfig { connections_max: Some(1_000), ..unlimited() };
    story_with(config, greenroom_session::Additions::default(), async |cluster| {
        let Cluster { session, master, .. } = &cluster;
        until("it is linked", || master.load().is_some()).await;
        let address = authority(session.url("tcp")).parse().unwrap();
        // The clients' own files are taken before there are no more.
        let sockets: Vec<_> = (0..40).map(|_| TcpSocket::new_v4().unwrap()).collect();
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = getrlimit(Resource::Nofile);
        let few = Rlimit { current: Some(open as u64 + 20), ..before };
        setrlimit(Resource::Nofile, few).unwrap();
        let mut served = Vec::new();
        let mut waiting = Vec::new();
        for socket in sockets {
            let mut stream = socket.connect(address).await.unwrap();
            stream.write_all(&prefixed(&hello(1, 1))).await.unwrap();
            let mut len = [0; 4];
            // Once one has to wait, those behind it do.
            if waiting.is_empty()
                && let Ok(read) = timeout(Duration::from_secs(3), stream.read_exact(&mut len)).await
            {
                read.unwrap();
                let mut answer = vec![0; u32::from_le_bytes(len) as usize];
                stream.read_exact(&mut answer).await.unwrap();
                served.push(stream);
            } else {
                waiting.push(stream);
            }
        }
        assert!(served.len() >= 15 && waiting.len() >= 15, "{} served", served.len());
        for stream in &mut served {
            assert!(is_served(stream).await);
        }
        let freed = served.len().min(waiting.len());
        served.clear();
        for stream in &mut waiting[..freed - 5] {
            let answered = timeout(LONG, stream.read_u32_le()).await;
            answered.expect("it gets its turn").unwrap();
        }
        setrlimit(Resource::Nofile, before).unwrap();
    });
}
