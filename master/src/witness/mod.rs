//! The witness: one record that says which master decides, changed by compare-and-set only.
//!
//! *Takes*: questions of a master's core.
//! *Gives*: the record, or what became of an attempt to change it; that nobody knows is an answer too.
//! *Owns*: the thread that waits for the witness, and, in the witness's own process, the record.
//! *Never*: calls an attempt lost that may have come to pass; lets anybody wait for ever.

mod remote;
mod server;
mod sqlite;
mod store;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::future;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ecow::EcoString;
use greenroom_master_core::replica::{ClaimAnswer, Nonce, Rec};
use greenroom_storage::StorageError;
use tokio::sync::mpsc;

pub use self::remote::RemoteWitness;
pub use self::server::{WitnessConfig, WitnessServer};
pub use self::sqlite::SqliteWitness;
pub use self::store::StoreWitness;

/// Questions that wait. More than a master has under way: one read and one attempt.
const QUESTIONS_MAX: usize = 16;
/// Answers that wait to be taken.
const ANSWERS_MAX: usize = 64;

/// What a master wants to know of the witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// The record.
    Read,
    /// Whether the record may be this one.
    Claim {
        /// The version that must be there; 0 if there must be none.
        expect: u64,
        /// What it is to be.
        rec: Rec,
    },
}

/// What the witness answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// The record, durably; nothing before the first attempt.
    Record(Option<Rec>),
    /// What became of the attempt with this name.
    Claimed(Nonce, ClaimAnswer),
    /// For people: the witness can't be asked, or can't answer. An attempt is answered as unknown besides.
    Failed(String),
}

/// What keeps the record. Its calls block for a second or so at most; each runs on a thread of its own.
pub trait Witness: Send {
    /// The record, durably.
    ///
    /// # Errors
    /// When it can't be read.
    fn read(&mut self) -> Result<Option<Rec>, WitnessError>;

    /// Puts `rec` in the place of the record of version `expect` (0 if there must be none), durably.
    ///
    /// # Errors
    /// When nobody knows whether that came to pass. What certainly did not may be an error too.
    fn claim(&mut self, expect: u64, rec: &Rec) -> Result<ClaimAnswer, WitnessError>;
}

/// Why the witness can't be used, or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// The folder of the file is not there and can't be made.
    #[error("making the folder of the witness {}", .file.display())]
    Folder {
        /// The witness's file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The database failed.
    #[error("{doing} in the witness {}: it needs a disk that works and has room", .file.display())]
    Sqlite {
        /// What was tried.
        doing: &'static str,
        /// The witness's file.
        file: PathBuf,
        /// What the database said.
        source: rusqlite::Error,
    },
    /// The file is a database of something else.
    #[error("{} is no witness of Greenroom: name another file, or move this one away", .file.display())]
    NoWitness {
        /// The file.
        file: PathBuf,
    },
    /// The file is the witness of other masters.
    #[error(
        "{} is the witness of cluster {found:?}, not of {ours:?}: give each cluster a witness of its own, or both the \
         same `[cluster] name`", .file.display()
    )]
    OtherCluster {
        /// The file.
        file: PathBuf,
        /// The cluster that it belongs to.
        found: EcoString,
        /// The cluster of this process.
        ours: EcoString,
    },
    /// Another build wrote it.
    #[error("{} has format {found}, this build knows {ours}: start the newer build", .file.display())]
    OtherFormat {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: i64,
        /// That of this build.
        ours: i64,
    },
    /// The record is none.
    #[error("the record in the witness {} can't be read: restore the file", .file.display())]
    BadRecord {
        /// The file.
        file: PathBuf,
    },
    /// The store does not answer, or refuses.
    #[error("{doing} in the witness {place}")]
    Store {
        /// What was tried.
        doing: &'static str,
        /// Which store, and which document of it.
        place: EcoString,
        /// What the store said.
        source: StorageError,
    },
    /// The document is no record.
    #[error(
        "the document {place} is no record of a witness: restore it, or remove it while no master runs, which founds \
         the cluster anew"
    )]
    BadDocument {
        /// Which store, and which document of it.
        place: EcoString,
    },
    /// The witness can't be reached, or the link to it ended before it answered.
    #[error(
        "asking the witness at {address}; if it does not run, start it with `greenroom witness`"
    )]
    Link {
        /// Where it should be.
        address: String,
        /// What is wrong with the link.
        source: greenroom_link::LinkError,
    },
    /// It does not answer.
    #[error("the witness at {address} did not answer within {after:?}")]
    Late {
        /// Where it should be.
        address: String,
        /// The bound.
        after: std::time::Duration,
    },
    /// It answers that it can't.
    #[error("the witness at {address} can't answer: {message}")]
    Refused {
        /// Where it is.
        address: String,
        /// In its words.
        message: String,
    },
    /// The port is in use, or the address is not this machine's.
    #[error(
        "listening for masters on {address}; if the port is in use, stop what uses it or set `[witness] listen`"
    )]
    Listen {
        /// As configured.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system has no thread or no randomness to give.
    #[error("starting to ask or to be a witness")]
    Thread {
        /// What the system said.
        source: std::io::Error,
    },
    /// An attempt that no build of a master makes.
    #[error("a claim of version {version} in the place of version {expect}")]
    BadClaim {
        /// The version that was expected.
        expect: u64,
        /// The version that was to be.
        version: u64,
    },
}

struct Questions {
    waiting: VecDeque<Question>,
    is_closing: bool,
}

struct Mailbox {
    questions: Mutex<Questions>,
    bell: Condvar,
}

impl Mailbox {
    /// A thread that panicked has left nothing half done: the queue changes in single steps.
    fn lock(&self) -> MutexGuard<'_, Questions> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Question> {
        let is_idle =
            |questions: &mut Questions| questions.waiting.is_empty() && !questions.is_closing;
        let questions = self.bell.wait_while(self.lock(), is_idle);
        let mut questions = questions.unwrap_or_else(PoisonError::into_inner);
        if questions.is_closing { None } else { questions.waiting.pop_front() }
    }
}

/// A witness on a thread of its own.
pub(crate) struct WitnessHandle {
    mailbox: Arc<Mailbox>,
    /// For questions that are not taken.
    refusals: mpsc::Sender<Answered>,
    answers: mpsc::Receiver<Answered>,
}

impl fmt::Debug for WitnessHandle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("WitnessHandle").finish_non_exhaustive()
    }
}

impl WitnessHandle {
    /// Starts the thread. It ends when the handle is dropped and the question under way is answered.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(crate) fn start(witness: Box<dyn Witness>) -> std::io::Result<Self> {
        let questions = Questions { waiting: VecDeque::new(), is_closing: false };
        let mailbox = Arc::new(Mailbox { questions: questions.into(), bell: Condvar::new() });
        let (refusals, answers) = mpsc::channel(ANSWERS_MAX);
        let (asked, out) = (Arc::clone(&mailbox), refusals.clone());
        std::thread::Builder::new()
            .name("witness".into())
            .spawn(move || answer_all(witness, &asked, &out))?;
        Ok(Self { mailbox, refusals, answers })
    }

    /// Asks. A read behind one that waits is the same read; an attempt for which there is no room is answered as
    /// unknown, and the core repeats it.
    pub(crate) fn ask(&self, question: Question) {
        let mut questions = self.mailbox.lock();
        let is_asked = question == Question::Read && questions.waiting.contains(&question);
        if is_asked {
            return;
        }
        if questions.waiting.len() >= QUESTIONS_MAX {
            if let Question::Claim { rec, .. } = question {
                // Without room for the answer either, the core asks again by itself.
                let _no_room =
                    self.refusals.try_send(Answered::Claimed(rec.nonce, ClaimAnswer::Unknown));
            }
            return;
        }
        questions.waiting.push_back(question);
        self.mailbox.bell.notify_one();
    }

    /// Waits for the next answer. Nothing is lost if it is dropped.
    pub(crate) async fn answer(&mut self) -> Answered {
        match self.answers.recv().await {
            Some(answer) => answer,
            // This handle keeps a sender.
            None => future::pending().await,
        }
    }
}

impl Drop for WitnessHandle {
    fn drop(&mut self) {
        self.mailbox.lock().is_closing = true;
        self.mailbox.bell.notify_one();
    }
}

fn answer_all(mut witness: Box<dyn Witness>, asked: &Mailbox, out: &mpsc::Sender<Answered>) {
    while let Some(question) = asked.next() {
        let answers = match question {
            Question::Read => match witness.read() {
                Ok(rec) => [Some(Answered::Record(rec)), None],
                Err(error) => [Some(Answered::Failed(whole(&error))), None],
            },
            Question::Claim { expect, rec } => match witness.claim(expect, &rec) {
                Ok(answer) => [Some(Answered::Claimed(rec.nonce, answer)), None],
                Err(error) => [
                    Some(Answered::Failed(whole(&error))),
                    Some(Answered::Claimed(rec.nonce, ClaimAnswer::Unknown)),
                ],
            },
        };
        for answer in answers.into_iter().flatten() {
            if out.blocking_send(answer).is_err() {
                return;
            }
        }
    }
}

/// An error with what caused it.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
