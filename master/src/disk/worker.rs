//! The thread that waits for the disk, and the queue before it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::vec;

use greenroom_master_core::Record;
use greenroom_master_core::replica::{Intents, Position};
use greenroom_protocol::Incarnation;
use tokio::sync::mpsc;

use super::Done;
use super::checkpoint::{self, Partial};
use super::files::Calls;
use super::log::{Gone, Log, Put};
use super::recover::{doubt, vouch, write_intents};

/// After which something that failed is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// Bytes of entries that wait for a disk that is full. Past that nothing is written any more, and somebody has to
/// restart the master: the other one has what is committed.
const WAITING_BYTES_MAX: usize = 256 << 20;
/// Pieces of checkpoints that wait, as above. More than a state has.
const WAITING_PIECES_MAX: usize = 16 << 20;
/// Everything else that waits, as above. A master waits for an answer before it asks for the next one.
const WAITING_JOBS_MAX: usize = 1 << 20;

/// Something that the thread does.
pub(super) enum Job {
    /// A change of the log that failed, or stands behind one that did.
    Put(Put),
    Sync(u64),
    Intents(Intents),
    Begin {
        generation: u32,
        at: Position,
    },
    Pieces(Peekable<vec::IntoIter<Record>>),
    End,
    /// Says that nothing more is done.
    Over(String),
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Changes of the log that wait or are under way: while there are any, no other may overtake them.
    puts: usize,
    bytes: usize,
    pieces: usize,
    is_closing: bool,
    is_over: bool,
    /// Something waits in memory, or did: the folder does not say that it has everything.
    is_doubted: bool,
}

impl Queue {
    /// What this process has goes with it from here on.
    fn doubt(&mut self, folder: &Path) {
        if !std::mem::replace(&mut self.is_doubted, true)
            && let Err(error) = doubt(folder)
        {
            let folder = folder.display();
            tracing::error!(
                %error, %folder,
                "the file `whole` can't be removed: remove it before this master starts again"
            );
        }
    }
}

/// What the master's thread and the disk's thread share.
pub(super) struct Shared {
    folder: PathBuf,
    calls: Arc<dyn Calls>,
    queue: Mutex<Queue>,
    bell: Condvar,
    log: Mutex<Log>,
    /// The first life since which nothing that was written is gone.
    whole_since: Incarnation,
}

impl fmt::Debug for Shared {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Shared").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// A thread that panicked has ended its process, or has left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(
        folder: &Path,
        calls: Arc<dyn Calls>,
        log: Log,
        whole_since: Incarnation,
    ) -> Self {
        let (queue, bell) = (Mutex::default(), Condvar::new());
        Self { folder: folder.into(), calls, queue, bell, log: Mutex::new(log), whole_since }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn synced(&self, generation: u32) -> u64 {
        lock(&self.log).synced(generation)
    }

    /// Changes the log at once, or behind the changes that wait.
    pub(super) fn put(&self, put: Put) {
        let may_overtake = lock(&self.queue).puts == 0;
        if may_overtake && lock(&self.log).put(&put).is_ok() {
            return;
        }
        // If it failed, the thread tries it again and says why it can't.
        self.push(Job::Put(put));
    }

    /// Has something done after everything that was asked for before.
    pub(super) fn push(&self, job: Job) {
        let mut queue = lock(&self.queue);
        if queue.is_over {
            return;
        }
        match &job {
            Job::Put(put) => {
                queue.doubt(&self.folder);
                queue.puts += 1;
                queue.bytes += put.bytes();
            }
            Job::Pieces(pieces) => queue.pieces += pieces.len(),
            Job::Sync(_) | Job::Intents(_) | Job::Begin { .. } | Job::End | Job::Over(_) => {}
        }
        queue.jobs.push_back(job);
        let is_too_much = queue.bytes > WAITING_BYTES_MAX
            || queue.pieces > WAITING_PIECES_MAX
            || queue.jobs.len() > WAITING_JOBS_MAX;
        if is_too_much {
            drop(queue);
            self.give_up(format!(
                "too much waits for the disk of {}: nothing is written any more; make room or repair the disk, then \
                 restart this master, which copies from the other one what it lacks",
                self.folder.display()
            ));
            return;
        }
        self.bell.notify_one();
    }

    /// Nothing is done any more, and nothing said to be durable.
    pub(super) fn give_up(&self, text: String) {
        let mut queue = lock(&self.queue);
        if queue.is_over {
            return;
        }
        queue.is_over = true;
        queue.doubt(&self.folder);
        // Whoever writes now comes to the queue, which takes nothing.
        queue.puts += 1;
        queue.jobs.clear();
        queue.jobs.push_back(Job::Over(text));
        self.bell.notify_one();
    }

    /// Drops what waits of a checkpoint that has not ended.
    pub(super) fn drop_unfinished(&self) {
        let mut queue = lock(&self.queue);
        let first =
            queue.jobs.iter().rposition(|job| matches!(job, Job::End)).map_or(0, |at| at + 1);
        let mut number = 0;
        let mut pieces = 0;
        queue.jobs.retain(|job| {
            number += 1;
            if let Job::Pieces(some) = job
                && number > first
            {
                pieces += some.len();
                return false;
            }
            true
        });
        queue.pieces -= pieces;
    }

    pub(super) fn close(&self) {
        lock(&self.queue).is_closing = true;
        self.bell.notify_one();
    }

    /// The next thing to do; nothing once all is done and the disk is closed.
    fn next(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.is_closing {
                return None;
            }
            queue = self.bell.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits before the next attempt. Gives false if there is none.
    fn wait(&self) -> bool {
        let queue = lock(&self.queue);
        let may_wait = |queue: &mut Queue| !queue.is_closing && !queue.is_over;
        let waited = self.bell.wait_timeout_while(queue, AGAIN, may_wait);
        let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !queue.is_closing && !queue.is_over
    }

    fn is_over(&self) -> bool {
        lock(&self.queue).is_over
    }

    /// A job is done that counted in the queue.
    fn finished(&self, puts: usize, bytes: usize, pieces: usize) {
        let mut queue = lock(&self.queue);
        queue.puts -= puts;
        queue.bytes -= bytes;
        queue.pieces -= pieces;
    }

    /// Nothing that was to be written is in memory only any more.
    fn is_well(&self) {
        let mut queue = lock(&self.queue);
        let may = queue.is_doubted && queue.puts == 0 && !queue.is_over;
        if may && vouch(&*self.calls, &self.folder, self.whole_since, false).is_ok() {
            queue.is_doubted = false;
        }
    }

    /// The disk is closed, and its thread has ended: what is written is made durable, and then it is there for ever.
    pub(super) fn leave(&self) {
        let is_idle = |queue: &Queue| !queue.is_doubted && queue.jobs.is_empty();
        let is_whole = is_idle(&lock(&self.queue));
        if is_whole && self.sync_log().is_ok() {
            // Without the word, the machine has to stay on for it to be believed.
            let _worse_but_right = vouch(&*self.calls, &self.folder, self.whole_since, true);
        }
    }

    /// Makes durable what was written to the log so far.
    fn sync_log(&self) -> Result<(), Failure> {
        let rewritten = lock(&self.log).rewrite().map_err(|Gone| Failure::Gone)?;
        rewritten.map_err(|source| Failure::again("writing again what was not durable", source))?;
        let capture = lock(&self.log).capture();
        let synced = capture.files.iter().try_for_each(|file| self.calls.sync(file));
        if let Err(source) = synced {
            // The system may forget what it could not write.
            lock(&self.queue).doubt(&self.folder);
            lock(&self.log).distrust();
            return Err(Failure::again("syncing the log", source));
        }
        if capture.is_folder_dirty {
            self.calls
                .sync_folder(&self.folder)
                .map_err(|source| Failure::again("syncing the folder", source))?;
        }
        lock(&self.log).confirm(&capture);
        Ok(())
    }
}

/// Why a job is not done.
enum Failure {
    /// It is tried again.
    Again { doing: &'static str, source: io::Error },
    /// A sync failed, and what was to be made durable is not in memory any more.
    Gone,
}

impl Failure {
    fn again(doing: &'static str, source: io::Error) -> Self {
        Self::Again { doing, source }
    }
}

/// The thread.
pub(super) struct Worker {
    shared: Arc<Shared>,
    done: mpsc::Sender<Done>,
    partial: Option<Partial>,
    is_in_trouble: bool,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, done: mpsc::Sender<Done>) -> Self {
        Self { shared, done, partial: None, is_in_trouble: false }
    }

    pub(super) fn run(mut self) {
        while let Some(mut job) = self.shared.next() {
            if let Job::Over(text) = job {
                self.tell(Done::Trouble(text));
                return;
            }
            let (puts, bytes, pieces) = match &job {
                Job::Put(put) => (1, put.bytes(), 0),
                Job::Pieces(pieces) => (0, 0, pieces.len()),
                Job::Sync(_) | Job::Intents(_) | Job::Begin { .. } | Job::End | Job::Over(_) => {
                    (0, 0, 0)
                }
            };
            if !self.insist(&mut job) {
                if self.shared.is_over() {
                    continue;
                }
                // The disk is closed while it fails. What comes behind must not be done without this: a checkpoint
                // would seem whole that lacks pieces.
                return;
            }
            self.shared.finished(puts, bytes, pieces);
            let answer = match job {
                Job::Sync(upto) => Some(Done::Synced(upto)),
                Job::Intents(intents) => Some(Done::Intents(intents)),
                Job::End => self.partial.take().map(|partial| Done::Checkpoint(partial.at)),
                Job::Put(_) | Job::Begin { .. } | Job::Pieces(_) | Job::Over(_) => None,
            };
            self.shared.is_well();
            if std::mem::take(&mut self.is_in_trouble) {
                self.tell(Done::Well);
            }
            if let Some(answer) = answer {
                self.tell(answer);
            }
        }
    }

    /// Does a job, however often it fails. Gives false if it will never be done.
    fn insist(&mut self, job: &mut Job) -> bool {
        loop {
            let (doing, source) = match self.perform(job) {
                Ok(()) => return true,
                Err(Failure::Again { doing, source }) => (doing, source),
                Err(Failure::Gone) => {
                    self.shared.give_up(format!(
                        "a sync failed on the disk of {}, and what it was to make durable is too much to be written \
                         again: nothing is written any more; repair the disk, then restart this master, which copies \
                         from the other one what it lacks",
                        self.shared.folder.display()
                    ));
                    return false;
                }
            };
            if !std::mem::replace(&mut self.is_in_trouble, true) {
                self.tell(Done::Trouble(format!(
                    "{doing} in {} failed: {source}; what comes waits in memory, and it is tried again every \
                     {AGAIN:?}: make room on that disk, or repair it",
                    self.shared.folder.display()
                )));
            }
            if !self.shared.wait() {
                return false;
            }
        }
    }

    fn perform(&mut self, job: &mut Job) -> Result<(), Failure> {
        let Shared { folder, calls, log, .. } = &*self.shared;
        match job {
            Job::Put(put) => {
                let mut log = lock(log);
                // What a sync left in doubt comes first.
                let rewritten = log.rewrite().map_err(|Gone| Failure::Gone)?;
                let written = rewritten.and_then(|()| log.put(put));
                written.map_err(|source| Failure::again("writing the log", source))
            }
            Job::Sync(_) => self.shared.sync_log(),
            Job::Intents(intents) => {
                self.shared.sync_log()?;
                let written = write_intents(&**calls, folder, intents);
                written.map_err(|source| Failure::again("writing the intents", source))
            }
            Job::Begin { generation, at } => {
                self.partial = None;
                let begun = Partial::begin(folder, *generation, *at)
                    .map_err(|source| Failure::again("beginning a checkpoint", source))?;
                self.partial = Some(begun);
                Ok(())
            }
            Job::Pieces(pieces) => {
                let Some(partial) = &mut self.partial else { return Ok(()) };
                let written = partial.extend(&**calls, pieces);
                written.map_err(|source| Failure::again("writing a checkpoint", source))
            }
            Job::End => {
                let Some(partial) = &mut self.partial else { return Ok(()) };
                self.shared.sync_log()?;
                let finished = partial.finish(&**calls, folder);
                finished.map_err(|source| {
                    if source.kind() == io::ErrorKind::InvalidData {
                        Failure::Gone
                    } else {
                        Failure::again("finishing a checkpoint", source)
                    }
                })?;
                let over = lock(log).forget(partial.generation, partial.at);
                remove_covered(folder, partial, over);
                Ok(())
            }
            Job::Over(_) => Ok(()),
        }
    }

    fn tell(&self, done: Done) {
        // Nobody listens once the disk is dropped.
        let _not_heard = self.done.blocking_send(done);
    }
}

/// Removes what the checkpoint makes superfluous. What stays by mistake is removed when the folder is opened.
fn remove_covered(folder: &Path, newest: &Partial, mut over: Vec<PathBuf>) {
    let kept = checkpoint::name(newest.generation, newest.at.lsn);
    if let Ok(entries) = std::fs::read_dir(folder) {
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let others = names.filter(|name| checkpoint::parse_name(name).is_some() && *name != kept);
        over.extend(others.map(|name| folder.join(name)));
    }
    for path in over {
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(%error, file = %path.display(), "a file that nobody needs any more can't be removed");
        }
    }
}
