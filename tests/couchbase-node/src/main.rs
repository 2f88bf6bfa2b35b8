//! A cluster of nodes as a process of its own, for tests that kill it.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use greenroom_couchbase_node::{Cluster, Options, Ports, control};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const USAGE: &str = "couchbase-node [--nodes N] [--copies N] [--bucket NAME] [--folder PATH] [--seed N] \
                     [--control PORT] [--ports KV:HTTP,KV:HTTP,…]

Runs a cluster on the loopback address until it is killed or hears of SIGINT, and prints one line of JSON when it takes
connections: the address for clients, the ports of each node, and the control port. The user is Administrator, the
password is password.";

/// The command line.
#[derive(Debug)]
struct Arguments {
    options: Options,
    control: u16,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Options::nodes(1);
        let mut copies = None;
        let mut control = 0;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            let number =
                |text: String| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
            match word.as_str() {
                "--nodes" => {
                    let nodes = usize::try_from(number(value()?)?).map_err(|_| "too many nodes")?;
                    options.ports = vec![Ports::default(); nodes];
                }
                "--ports" => options.ports = ports(&value()?)?,
                "--copies" => {
                    copies = Some(u8::try_from(number(value()?)?).map_err(|_| "too many copies")?);
                }
                "--bucket" => options.bucket = value()?,
                "--folder" => options.folder = Some(PathBuf::from(value()?)),
                "--seed" => options.seed = number(value()?)?,
                "--control" => {
                    control = u16::try_from(number(value()?)?).map_err(|_| "that is no port")?;
                }
                other => return Err(format!("{other} is unknown\n\n{USAGE}")),
            }
        }
        options.copies = copies.unwrap_or(u8::from(options.ports.len() > 1));
        Ok(Self { options, control })
    }
}

/// Reads `11210:8091,11211:8092`.
fn ports(text: &str) -> Result<Vec<Ports>, String> {
    let wrong = || format!("{text:?} is no list of ports such as 11210:8091,11211:8092");
    text.split(',')
        .map(|node| {
            let (kv, http) = node.split_once(':').ok_or_else(wrong)?;
            let port = |text: &str| text.parse().map_err(|_| wrong());
            Ok(Ports { kv: port(kv)?, http: port(http)?, ..Ports::default() })
        })
        .collect()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(words) => {
            let mut stderr = std::io::stderr().lock();
            // Nobody is left to tell when this fails.
            drop(writeln!(stderr, "{words}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), String> {
    let arguments = Arguments::read(std::env::args().skip(1))?;
    let cluster = Cluster::start(arguments.options).map_err(|error| error.to_string())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, arguments.control)).await;
    let listener = listener.map_err(|error| format!("the control port: {error}"))?;
    let control_port = listener.local_addr().map_err(|error| error.to_string())?.port();
    let ready = serde_json::json!({
        "address": cluster.connection_string(),
        "ports": cluster.ports(),
        "control": control_port,
    });
    {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{ready}").map_err(|error| error.to_string())?;
        stdout.flush().map_err(|error| error.to_string())?;
    }
    let cluster = Arc::new(cluster);
    let stop = CancellationToken::new();
    tokio::select! {
        served = control::serve(listener, Arc::clone(&cluster), stop.clone()) => {
            served.map_err(|error| error.to_string())
        }
        heard = tokio::signal::ctrl_c() => heard.map_err(|error| error.to_string()),
    }
}
