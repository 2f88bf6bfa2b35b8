//! The record of a witness that is a process of its own, asked over a link.

use std::fmt;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use greenroom_link::{Link, LinkError, Me, Outgoing};
use greenroom_master_core::replica::{ClaimAnswer, Rec};
use greenroom_protocol::wire::master_witness::{
    Claim, Claimed, Failed, MasterToWitness, Read, Record, WitnessToMaster,
};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::{Limits, LinkHeader};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{self, Instant};

use super::{Witness, WitnessError};

/// How long an answer may take, with dialling.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// A witness over a link. The link has a thread of its own, and is dialled anew when there is a question and no link.
pub struct RemoteWitness {
    address: String,
    asked: mpsc::Sender<Asked>,
}

impl fmt::Debug for RemoteWitness {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("RemoteWitness").field(&self.address).finish()
    }
}

/// A question that waits for its answer.
struct Asked {
    /// With a number that is not used yet.
    question: MasterToWitness,
    until: Instant,
    answer: std_mpsc::SyncSender<Result<WitnessToMaster, WitnessError>>,
}

impl Asked {
    fn answer(self, answer: Result<WitnessToMaster, WitnessError>) {
        // Who asked waits a little longer than the answer may take; if it is gone, so is the question.
        let _too_late = self.answer.try_send(answer);
    }
}

impl RemoteWitness {
    /// Starts the link's thread. The witness need not be there yet.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(address: &str, me: Me) -> Result<Self, WitnessError> {
        let (asked, questions) = mpsc::channel(1);
        let remote = Remote { address: address.into(), me, questions, number: 0 };
        let failed = |source| WitnessError::Thread { source };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        std::thread::Builder::new()
            .name("witness-link".into())
            .spawn(move || runtime.block_on(LocalSet::new().run_until(remote.run())))
            .map_err(failed)?;
        Ok(Self { address: address.into(), asked })
    }

    fn ask(&self, question: MasterToWitness) -> Result<WitnessToMaster, WitnessError> {
        let (answer, answered) = std_mpsc::sync_channel(1);
        let asked = Asked { question, until: Instant::now() + ANSWER_MAX, answer };
        let late = || WitnessError::Late { address: self.address.clone(), after: ANSWER_MAX };
        self.asked.try_send(asked).map_err(|_| late())?;
        answered.recv_timeout(ANSWER_MAX * 2).map_err(|_| late())?
    }

    fn unexpected(&self) -> WitnessError {
        WitnessError::Refused {
            address: self.address.clone(),
            message: "it answers something else than was asked".into(),
        }
    }

    fn refused(&self, Failed { message, .. }: Failed) -> WitnessError {
        WitnessError::Refused { address: self.address.clone(), message }
    }
}

impl Witness for RemoteWitness {
    fn read(&mut self) -> Result<Option<Rec>, WitnessError> {
        match self.ask(MasterToWitness::Read(Read { number: 0 }))? {
            WitnessToMaster::Record(Record { rec, .. }) => Ok(rec),
            WitnessToMaster::Failed(failed) => Err(self.refused(failed)),
            WitnessToMaster::Claimed(_) | WitnessToMaster::Unknown(_) => Err(self.unexpected()),
        }
    }

    fn claim(&mut self, expect: u64, rec: &Rec) -> Result<ClaimAnswer, WitnessError> {
        match self.ask(MasterToWitness::Claim(Claim { number: 0, expect, rec: *rec }))? {
            WitnessToMaster::Claimed(Claimed { won: true, .. }) => Ok(ClaimAnswer::Won),
            WitnessToMaster::Claimed(Claimed { rec, .. }) => Ok(ClaimAnswer::Lost(rec)),
            WitnessToMaster::Failed(failed) => Err(self.refused(failed)),
            WitnessToMaster::Record(_) | WitnessToMaster::Unknown(_) => Err(self.unexpected()),
        }
    }
}

/// The link's thread.
struct Remote {
    address: String,
    me: Me,
    questions: mpsc::Receiver<Asked>,
    number: u64,
}

impl Remote {
    /// Until nobody can ask any more.
    async fn run(mut self) {
        while let Some(asked) = self.questions.recv().await {
            let dialled = greenroom_link::dial(&self.address, &self.me, &[Role::Witness]);
            match time::timeout_at(asked.until, dialled).await {
                Ok(Ok(link)) => self.converse(link, asked).await,
                Ok(Err(source)) => asked.answer(Err(self.lost(source))),
                Err(_) => asked.answer(Err(self.late())),
            }
        }
    }

    fn lost(&self, source: LinkError) -> WitnessError {
        WitnessError::Link { address: self.address.clone(), source }
    }

    fn late(&self) -> WitnessError {
        WitnessError::Late { address: self.address.clone(), after: ANSWER_MAX }
    }

    /// Asks over a link for as long as it lasts.
    async fn converse(&mut self, link: Link, first: Asked) {
        let Link { mut incoming, outgoing, writer, .. } = link;
        let writing = tokio::task::spawn_local(writer.run());
        self.send(&outgoing, &first);
        let mut waiting = Some(first);
        let end = loop {
            let until = waiting.as_ref().map(|asked| asked.until);
            tokio::select! {
                filled = incoming.fill() => {
                    let taken = filled.and_then(|()| self.take(&mut incoming, &mut waiting));
                    if let Err(error) = taken {
                        break Some(self.lost(error));
                    }
                }
                asked = self.questions.recv(), if waiting.is_none() => {
                    let Some(asked) = asked else { break None };
                    self.send(&outgoing, &asked);
                    waiting = Some(asked);
                }
                () = time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    // The next question finds another link: this one may lead nowhere.
                    break Some(self.late());
                }
            }
        };
        outgoing.close();
        writing.abort();
        if let (Some(asked), Some(end)) = (waiting, end) {
            asked.answer(Err(end));
        }
    }

    fn send(&mut self, outgoing: &Outgoing, asked: &Asked) {
        self.number += 1;
        let number = self.number;
        let question = match asked.question {
            MasterToWitness::Read(_) => MasterToWitness::Read(Read { number }),
            MasterToWitness::Claim(claim) => MasterToWitness::Claim(Claim { number, ..claim }),
            MasterToWitness::Unknown(kind) => MasterToWitness::Unknown(kind),
        };
        let mut payload = Vec::new();
        question.encode_into(&mut payload);
        outgoing.push(LinkHeader { kind: question.kind(), target: 0 }, &[&payload]);
    }

    /// Answers of what was read. One to an earlier question came too late.
    fn take(
        &self,
        incoming: &mut greenroom_link::Incoming,
        waiting: &mut Option<Asked>,
    ) -> Result<(), LinkError> {
        while let Some(frame) = incoming.next_frame()? {
            let payload = &incoming.bytes()[frame.payload];
            let answer = WitnessToMaster::decode(frame.header.kind, payload, Limits::SERVER)?;
            let number = match &answer {
                WitnessToMaster::Record(record) => record.number,
                WitnessToMaster::Claimed(claimed) => claimed.number,
                WitnessToMaster::Failed(failed) => failed.number,
                // A newer witness says what this master did not ask for.
                WitnessToMaster::Unknown(_) => continue,
            };
            if number == self.number
                && let Some(asked) = waiting.take()
            {
                asked.answer(Ok(answer));
            }
        }
        Ok(())
    }
}
