use std::{io, net::SocketAddr, sync::Mutex};

use hyper::{Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Notify,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;
use crate::{
    auth::tests::Files,
    tls::{TlsConfig, self_signed},
};

/// A studio's service that gives one answer to everybody.
struct Service {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<(hyper::HeaderMap, Value)>>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Service {
    async fn answering(status: u16, answer: impl ToString) -> Self {
        Self::start(status, answer.to_string(), None, None).await
    }

    /// Answers each request only when it is told to, with `gate`; over TLS with `tls`.
    async fn start(
        status: u16,
        answer: String,
        gate: Option<Arc<Notify>>,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
        let service = Self {
            address: listener.local_addr().unwrap(),
            asked: asked.clone(),
            stop: stop.clone(),
            tasks: TaskTracker::new(),
        };
        let tasks = service.tasks.clone();
        let respond = Arc::new(move |headers, question| {
            let (answer, gate, asked) = (answer.clone(), gate.clone(), asked.clone());
            async move {
                asked.lock().unwrap().push((headers, question));
                if let Some(gate) = gate {
                    gate.notified().await;
                }
                Response::builder().status(status).body(Full::new(Bytes::from(answer))).unwrap()
            }
        });
        service.tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (tls, respond) = (tls.clone(), respond.clone());
                let one = async move {
                    match tls {
                        None => serve(socket, respond).await,
                        Some(tls) => {
                            // A client that does not trust us goes away.
                            if let Ok(socket) = tls.accept(socket).await {
                                serve(socket, respond).await;
                            }
                        }
                    }
                };
                tasks.spawn(stop.clone().run_until_cancelled_owned(one));
            }
        }));
        service
    }

    fn config(&self) -> HttpConfig {
        config(&format!("http://{}/check", self.address))
    }
    fn client(&self) -> Http {
        Http::new(&self.config()).unwrap()
    }
    async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn serve<F>(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    respond: Arc<impl Fn(hyper::HeaderMap, Value) -> F + Send + Sync + 'static>,
) where
    F: Future<Output = Response<Full<Bytes>>> + Send,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let respond = respond.clone();
        async move {
            assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/check"));
            let headers = request.headers().clone();
            let body = request.into_body().collect().await?.to_bytes();
            let question = serde_json::from_slice(&body).unwrap();
            Ok::<_, hyper::Error>(respond(headers, question).await)
        }
    });
    // A client that goes away in the middle is part of some tests.
    http1::Builder::new().serve_connection(TokioIo::new(socket), service).await.ok();
}

fn config(url: &str) -> HttpConfig {
    toml::from_str(&format!("url = '{url}'")).unwrap()
}
fn credentials() -> Credentials {
    Credentials { scheme: "http".into(), token: "ticket".into(), name: "Bo".into() }
}
async fn answer_to(status: u16, answer: impl ToString) -> Result<Identity, Refusal> {
    let service = Service::answering(status, answer).await;
    let answer = service.client().check(credentials()).await;
    service.stop().await;
    answer
}

#[tokio::test]
async fn a_yes_is_the_user_with_the_services_name_else_the_clients() {
    let ann =
        answer_to(200, json!({ "user": "u7", "name": "A\u{7}nn", "more": [1] })).await.unwrap();
    assert_eq!((ann.user.as_str(), &*ann.name), ("u7", "Ann"));
    assert_eq!(answer_to(200, json!({ "user": "u7" })).await.unwrap().name, "Bo");
    assert_eq!(answer_to(200, json!({ "user": "u7", "name": null })).await.unwrap().name, "Bo");
}

#[tokio::test]
async fn the_service_is_asked_for_the_credentials_by_one_who_says_who_it_is() {
    let service = Service::answering(200, json!({ "user": "u7" })).await;
    let bearer = Some(Secret::from("between us".to_owned()));
    let http = Http::new(&HttpConfig { bearer, ..service.config() }).unwrap();
    for _ in 0..3 {
        http.check(credentials()).await.unwrap();
    }
    let asked = service.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 3);
    for (headers, question) in asked {
        assert_eq!(question, json!({ "scheme": "http", "token": "ticket", "name": "Bo" }));
        assert_eq!(headers[AUTHORIZATION], "Bearer between us");
        assert_eq!(headers[CONTENT_TYPE], "application/json");
    }
    service.stop().await;
}

#[tokio::test]
async fn a_no_comes_with_the_services_message_cleaned_and_cut() {
    let refused = |status, answer: String| async move {
        let refusal = answer_to(status, answer).await.unwrap_err();
        assert_eq!(refusal.code, Code::CredentialsInvalid);
        refusal.message
    };
    let banned = json!({ "message": "you are\u{202e} banned\n until Friday" });
    assert_eq!(refused(403, banned.to_string()).await, "you are banned until Friday");
    assert_eq!(refused(401, json!({ "message": "x".repeat(1000) }).to_string()).await.len(), 256);
    for unsaid in ["", "<html>", "{}", r#"{"message":null}"#, r#"{"message":"\u0007"}"#] {
        assert!(refused(401, unsaid.to_owned()).await.contains("sign in again"), "{unsaid}");
    }
    assert!(refused(401, "x".repeat(ANSWER_BYTES_MAX + 1)).await.contains("sign in again"));
}

#[tokio::test]
async fn any_other_answer_means_that_the_service_can_not_decide() {
    let long_name = json!({ "user": "u7", "name": "x".repeat(ANSWER_BYTES_MAX) });
    for (status, answer) in [
        (500, "oops".to_owned()),
        (302, String::new()),
        (204, String::new()),
        (404, r#"{"message":"internal path /srv/x"}"#.to_owned()),
        (200, "yes".to_owned()),
        (200, "{}".to_owned()),
        (200, r#"{"user":7}"#.to_owned()),
        (200, r#"{"user":""}"#.to_owned()),
        (200, json!({ "user": "x".repeat(65) }).to_string()),
        (200, long_name.to_string()),
    ] {
        let refusal = answer_to(status, &answer).await.unwrap_err();
        assert_eq!(refusal.code, Code::AuthUnavailable, "{status} {answer}");
        assert!(!refusal.message.contains("/srv"), "{refusal}");
    }
}

#[tokio::test]
async fn a_service_that_is_not_there_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let http = Http::new(&config(&format!("http://{nobody}/check"))).unwrap();
    assert_eq!(http.check(credentials()).await.unwrap_err().code, Code::AuthUnavailable);
    let http = Http::new(&config("http://no-such-host.invalid/check")).unwrap();
    assert_eq!(http.check(credentials()).await.unwrap_err().code, Code::AuthUnavailable);
}

#[tokio::test]
async fn a_service_that_does_not_answer_in_time_is_unavailable() {
    let never = Some(Arc::new(Notify::new()));
    let service = Service::start(200, json!({ "user": "u7" }).to_string(), never, None).await;
    let timeout = Duration::from_millis(50);
    let http = Http::new(&HttpConfig { timeout, ..service.config() }).unwrap();
    assert_eq!(http.check(credentials()).await.unwrap_err().code, Code::AuthUnavailable);
    service.stop().await;
}

#[tokio::test]
async fn more_than_may_be_under_way_are_told_to_try_again() {
    let gate = Arc::new(Notify::new());
    let answer = json!({ "user": "u7" }).to_string();
    let service = Service::start(200, answer, Some(gate.clone()), None).await;
    let under_way_max = NonZeroUsize::MIN;
    let http = Http::new(&HttpConfig { under_way_max, ..service.config() }).unwrap();
    let second = async {
        // The first one has its place as soon as it was polled, which join! does first.
        let refusal = http.check(credentials()).await.unwrap_err();
        assert_eq!(refusal.code, Code::Busy);
        gate.notify_one();
    };
    let (first, ()) = tokio::join!(biased; http.check(credentials()), second);
    first.unwrap();
    gate.notify_one();
    http.check(credentials()).await.expect("the place is free again");
    service.stop().await;
}

#[tokio::test]
async fn a_service_with_https_is_trusted_by_its_certificate_only() {
    let files = Files::new();
    for name in ["ours", "other"] {
        let (certificate, key) = self_signed(&["127.0.0.1"]).unwrap();
        files.write(&format!("{name}.pem"), certificate);
        files.write(&format!("{name}.key"), key);
    }
    let tls = TlsConfig { certificate: files.path("ours.pem"), key: files.path("ours.key") };
    let tls = TlsAcceptor::from(tls.load().unwrap());
    let answer = json!({ "user": "u7" }).to_string();
    let service = Service::start(200, answer, None, Some(tls)).await;
    let check = async |ca: &str| {
        let url = format!("https://{}/check", service.address);
        let ca = Some(files.path(ca));
        Http::new(&HttpConfig { ca, ..config(&url) }).unwrap().check(credentials()).await
    };
    assert_eq!(check("ours.pem").await.unwrap().user.as_str(), "u7");
    assert_eq!(check("other.pem").await.unwrap_err().code, Code::AuthUnavailable);
    service.stop().await;
}

#[test]
fn a_name_is_an_account_only_when_the_configuration_says_so() {
    let display = Http::new(&config("http://127.0.0.1/check")).unwrap();
    assert_eq!(display.account(&credentials()), None);
    let named = HttpConfig { name_is_account: true, ..config("http://127.0.0.1/check") };
    assert_eq!(Http::new(&named).unwrap().account(&credentials()), Some("Bo"));
}

#[test]
fn a_configuration_that_can_not_work_is_refused_at_the_start() -> io::Result<()> {
    let files = Files::new();
    files.write("empty.pem", "");
    let error = |config: &str| match toml::from_str::<HttpConfig>(config) {
        Ok(config) => Http::new(&config).err().map(|error| error.to_string()).unwrap_or_default(),
        Err(error) => error.to_string(),
    };
    for (config, problem) in [
        ("url = ''", "auth.http.url: no URL"),
        ("url = '/check'", "has to be https://"),
        ("url = 'ftp://x/y'", "has to be https://"),
        ("url = 'http://me:hunter2@x/y'", "use auth.http.bearer"),
        ("url = 'http://x/y'\nscheme = ''", "auth.http.scheme"),
        ("url = 'http://x/y'\nbearer = \"hunter2\\n\"", "auth.http.bearer"),
        ("url = 'http://x/y'\nca = '/no/such/file'", "reading the certificates"),
        (
            &format!("url = 'http://x/y'\nca = {:?}", files.path("empty.pem")),
            "holds no certificate",
        ),
        ("url = 'http://x/y'\nunder_way_max = 0", "under_way_max"),
        ("url = 'http://x/y'\ntimout = '1s'", "unknown field `timout`"),
    ] {
        let error = error(config);
        assert!(error.contains(problem), "{config}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    Ok(())
}

#[test]
fn the_configuration_does_not_show_its_secret() {
    let config: HttpConfig = toml::from_str("url = 'http://x/y'\nbearer = 'hunter2'").unwrap();
    let shown = format!("{config:?}");
    assert!(shown.contains("***") && !shown.contains("hunter2"), "{shown}");
    assert_eq!(config.timeout, Duration::from_secs(3));
    assert_eq!((config.under_way_max.get(), &*config.scheme), (64, "http"));
}
