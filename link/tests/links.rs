//! Two servers over real sockets: who gets a link, who does not, and what a link promises.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "in a test a panic is the report"
)]

use std::{cell::RefCell, rc::Rc, time::Duration};

use greenroom_link::{
    ClusterKey, HasMasters, Incoming, Link, LinkError, Me, Outgoing, Writer, accept, dial,
    stay_linked,
};
use greenroom_protocol::{
    Code, Incarnation, LinkHeader, MasterLink, Refusal, ServerName,
    wire::server_server::{Identity, Role},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

fn me(role: Role, cluster: &str, key: &ClusterKey) -> Me {
    let identity = Identity::new(
        cluster.into(),
        role,
        ServerName::new(format!("{role}-1")).unwrap(),
        Incarnation(7),
        "test".into(),
    );
    Me { identity, key: key.clone() }
}

/// Dials as `dialler` a listener that is `listener` and takes `roles`; what each side makes of it.
async fn meet(
    dialler: Me,
    listener: Me,
    roles: &[Role],
) -> (Result<Link, LinkError>, Result<Link, LinkError>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let accepted = async { accept(socket.accept().await.unwrap().0, &listener, roles).await };
    let dialled = dial(&address, &dialler, &[Role::Master]);
    tokio::join!(dialled, accepted)
}

fn refusal(result: Result<Link, LinkError>) -> Refusal {
    match result {
        Err(LinkError::Refused { refusal, .. } | LinkError::RefusedByPeer { refusal, .. }) => {
            refusal
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "current_thread")]
async fn two_servers_of_a_cluster_get_a_link_that_keeps_order() {
    let key = ClusterKey::generate().unwrap();
    LocalSet::new()
        .run_until(async {
            let (a, b) = meet(
                me(Role::Session, "c", &key),
                me(Role::Master, "c", &key),
                &[Role::Session, Role::Game],
            )
            .await;
            let (a, mut b) = (a.unwrap(), b.unwrap());
            assert_eq!((a.peer.role, b.peer.role), (Role::Master, Role::Session));
            tokio::task::spawn_local(a.writer.run());
            let sent = 20_000u32;
            let sender = async {
                for n in 0..sent {
                    // A part of the frames is longer than a chunk of the reader.
                    let body = vec![n as u8; if n % 1_000 == 0 { 200_000 } else { 40 }];
                    while a
                        .outgoing
                        .append(LinkHeader { kind: 1, target: n }, &[&n.to_le_bytes(), &body])
                        .is_err()
                    {
                        a.outgoing.room().await;
                    }
                }
            };
            let receiver = async {
                let mut next = 0;
                while next < sent {
                    b.incoming.fill().await.unwrap();
                    while let Some(frame) = b.incoming.next_frame().unwrap() {
                        let payload = &b.incoming.bytes()[frame.payload];
                        assert_eq!(
                            (frame.header.target, &payload[..4]),
                            (next, &next.to_le_bytes()[..])
                        );
                        assert!(payload[4..].iter().all(|&byte| byte == next as u8));
                        next += 1;
                    }
                }
            };
            tokio::join!(sender, receiver);
            let counters = a.outgoing.counters();
            assert_eq!(counters.frames, u64::from(sent));
            assert!(counters.writes < counters.frames / 4, "frames are not batched: {counters:?}");
        })
        .await;
}

#[tokio::test]
async fn another_cluster_another_key_and_the_wrong_role_are_refused_by_name() {
    let key = ClusterKey::generate().unwrap();
    let other = ClusterKey::generate().unwrap();
    let roles = [Role::Session];
    let cases = [
        (me(Role::Session, "c", &key), me(Role::Master, "d", &key), Code::WrongCluster),
        (me(Role::Session, "c", &other), me(Role::Master, "c", &key), Code::WrongKey),
        (me(Role::Game, "c", &key), me(Role::Master, "c", &key), Code::WrongRole),
        (me(Role::Session, "c", &key), me(Role::Game, "c", &key), Code::WrongRole),
    ];
    for (dialler, listener, code) in cases {
        let (a, b) = meet(dialler, listener, &roles).await;
        assert_eq!(refusal(a).code, code);
        let told = refusal(b);
        assert_eq!(told.code, code);
        assert!(told.message.len() > 40, "it says what to do: {told}");
    }
}

#[tokio::test]
async fn who_does_not_hold_the_key_can_not_send_back_the_proof_it_was_shown() {
    // A mirror: it answers a dialler with the dialler's own bytes.
    let key = ClusterKey::generate().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let mirror = async {
        let (mut socket, _) = socket.accept().await.unwrap();
        let mut bytes = vec![0; 4096];
        while let Ok(taken @ 1..) = socket.read(&mut bytes).await {
            if socket.write_all(&bytes[..taken]).await.is_err() {
                break;
            }
        }
    };
    let dialler = me(Role::Session, "c", &key);
    let (dialled, ()) = tokio::join!(dial(&address, &dialler, &[Role::Master]), mirror);
    assert!(dialled.is_err());
}

#[tokio::test]
async fn a_stranger_with_random_bytes_gets_no_link_and_costs_no_memory() {
    let key = ClusterKey::generate().unwrap();
    for hello in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &[2, 0, 0, 0, 1, 2],
        &[6, 0, 0, 0, 1, 0, 0, 0, 0, 0],
    ] {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let stranger = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(hello).await.unwrap();
            stream
        };
        let listener = me(Role::Master, "c", &key);
        let accepted =
            async { accept(socket.accept().await.unwrap().0, &listener, &[Role::Session]).await };
        let (_stream, accepted) = tokio::join!(stranger, accepted);
        assert!(accepted.is_err(), "{hello:?}");
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn what_may_wait_leaves_with_what_comes_soon_and_never_stays_behind() {
    let key = ClusterKey::generate().unwrap();
    LocalSet::new()
        .run_until(async {
            let (a, b) =
                meet(me(Role::Session, "c", &key), me(Role::Master, "c", &key), &[Role::Session])
                    .await;
            let (a, mut b) = (a.unwrap(), b.unwrap());
            tokio::task::spawn_local(a.writer.run());
            let mut next = 0;
            for round in 0..50u32 {
                for n in 0..20 {
                    let header = LinkHeader { kind: 1, target: round * 20 + n };
                    // In some rounds one of them is urgent, and takes those before it along.
                    match n == 7 && round % 3 == 0 {
                        true => a.outgoing.append(header, &[b"now"]).unwrap(),
                        false => a.outgoing.append_soon(header, &[b"soon"]).unwrap(),
                    }
                }
                while next < (round + 1) * 20 {
                    b.incoming.fill().await.unwrap();
                    while let Some(frame) = b.incoming.next_frame().unwrap() {
                        assert_eq!(frame.header.target, next);
                        next += 1;
                    }
                }
            }
            assert!(a.outgoing.counters().writes <= 100, "{:?}", a.outgoing.counters());
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_link_ends_on_both_sides_when_one_closes_it() {
    let key = ClusterKey::generate().unwrap();
    LocalSet::new()
        .run_until(async {
            let (a, b) =
                meet(me(Role::Session, "c", &key), me(Role::Master, "c", &key), &[Role::Session])
                    .await;
            let (a, mut b) = (a.unwrap(), b.unwrap());
            let writer = tokio::task::spawn_local(a.writer.run());
            a.outgoing.push(LinkHeader { kind: 9, target: 0 }, &[b"last words"]);
            a.outgoing.close();
            writer.await.unwrap().unwrap();
            b.incoming.fill().await.unwrap();
            assert_eq!(b.incoming.next_frame().unwrap().unwrap().header.kind, 9);
            let end =
                tokio::time::timeout(Duration::from_secs(5), b.incoming.fill()).await.unwrap();
            assert!(matches!(end, Err(LinkError::Closed)));
            assert!(a.outgoing.append(LinkHeader { kind: 9, target: 0 }, &[]).is_err());
        })
        .await;
}

/// What happened to the link to a master.
#[derive(Clone, Debug, PartialEq)]
enum Happened {
    Linked,
    Heard(u8),
    Lost,
}

#[derive(Default)]
struct Diary {
    pages: RefCell<Vec<Happened>>,
    outgoing: RefCell<Option<Outgoing>>,
}

impl HasMasters for Diary {
    fn linked(
        self: &Rc<Self>,
        master: MasterLink,
        _: &Identity,
        outgoing: Outgoing,
        writer: Writer,
    ) {
        assert_eq!(master, MasterLink(4));
        tokio::task::spawn_local(writer.run());
        self.outgoing.replace(Some(outgoing));
        self.pages.borrow_mut().push(Happened::Linked);
    }
    fn heard(self: &Rc<Self>, _: MasterLink, incoming: &mut Incoming) -> Result<(), LinkError> {
        while let Some(frame) = incoming.next_frame()? {
            self.pages.borrow_mut().push(Happened::Heard(frame.header.kind));
        }
        Ok(())
    }
    fn lost(self: &Rc<Self>, _: MasterLink) {
        self.pages.borrow_mut().push(Happened::Lost);
    }
}

/// Nobody listens at first; then there is a master that hangs up again and again; then one that stays, until this side
/// has enough of it.
#[tokio::test(flavor = "current_thread")]
async fn a_master_is_dialled_whenever_there_is_no_link_to_it() {
    let key = ClusterKey::generate().unwrap();
    let (game, master) = (me(Role::Game, "c", &key), me(Role::Master, "c", &key));
    LocalSet::new()
        .run_until(async {
            let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            let diary = Rc::new(Diary::default());
            let (server, to) = (Rc::clone(&diary), address.to_string());
            let staying = tokio::task::spawn_local(async move {
                stay_linked(MasterLink(4), &to, &game, &server).await
            });
            // It has tried, and goes on to try.
            tokio::task::yield_now().await;
            let listener = TcpListener::bind(address).await.unwrap();
            for _ in 0..3 {
                let socket = listener.accept().await.unwrap().0;
                let link = accept(socket, &master, &[Role::Game]).await.unwrap();
                link.outgoing.push(LinkHeader { kind: 7, target: 0 }, &[]);
                link.outgoing.close();
                link.writer.run().await.unwrap();
            }
            let socket = listener.accept().await.unwrap().0;
            let Link { mut incoming, .. } = accept(socket, &master, &[Role::Game]).await.unwrap();
            let one = [Happened::Linked, Happened::Heard(7), Happened::Lost];
            diary.outgoing.take().unwrap().close();
            while incoming.fill().await.is_ok() {}
            drop(incoming);
            let socket = listener.accept().await.unwrap().0;
            assert_eq!(
                *diary.pages.borrow(),
                [&one[..], &one, &one, &[Happened::Linked, Happened::Lost]].concat()
            );
            drop(socket);
            staying.abort();
        })
        .await;
}
