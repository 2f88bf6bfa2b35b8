//! Children: streamed through, line by line, or kept quiet with a sign of life.

use std::io::{BufRead, BufReader, PipeReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use anyhow::Context;

/// After this long somebody wonders whether anything still happens.
const FIRST_SIGN: Duration = Duration::from_secs(2);
/// Then a sign of life this often.
const NEXT_SIGN: Duration = Duration::from_secs(10);
/// Lines of a streamed child that wait to be printed; when there are more, the child waits.
const LINES_MAX: usize = 1024;
/// How often we look whether a streamed child that says nothing is still there.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Output may come this long after a streamed child ended; past it, some process was left running.
const OUTPUT_AFTER_END_MAX: Duration = Duration::from_secs(5);
/// Columns of a child's last line that a sign of life shows.
const SIGN_CHARS_MAX: usize = 90;
/// Bytes of a quiet child's output that are kept, the newest: enough for a backtrace with its input.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// How a quiet child ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The end of its output, standard error included.
    pub(crate) output: String,
}

/// Runs `command` with its output on ours.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn stream(command: &mut Command) -> anyhow::Result<ExitStatus> {
    command.status().with_context(|| format!("starting {}", words(command)))
}

/// How a streamed child ended.
#[derive(Debug)]
pub(crate) struct Streamed {
    pub(crate) status: ExitStatus,
    /// Some process that the child started still holds its output: it was not stopped.
    pub(crate) left_a_process: bool,
}

/// Runs `command` with its output on ours, and shows every line of it to `seen` too.
///
/// Both its outputs go through one pipe, so that `seen` knows what cargo said before a test binary spoke.
///
/// # Errors
/// When it cannot be started or its output cannot be read.
pub(crate) fn stream_lines(
    mut command: Command,
    mut seen: impl FnMut(&str),
) -> anyhow::Result<Streamed> {
    let (mut child, output) = spawn_piped(&mut command)?;
    let name = words(&command);
    drop(command); // See `spawn_piped`.
    let (to_lines, lines) = mpsc::sync_channel(LINES_MAX);
    thread::spawn(move || send_lines(output, &to_lines));

    let mut ended: Option<Instant> = None;
    let left_a_process = loop {
        match lines.recv_timeout(LOOK_INTERVAL) {
            Ok(line) => {
                let line: io::Result<Vec<u8>> = line;
                let text = line.context("reading the child's output")?;
                let text = String::from_utf8_lossy(&text);
                print!("{text}");
                seen(text.trim_end());
            }
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if ended.is_none()
            && child.try_wait().with_context(|| format!("waiting for {name}"))?.is_some()
        {
            ended = Some(Instant::now());
        }
        if ended.is_some_and(|ended| ended.elapsed() > OUTPUT_AFTER_END_MAX) {
            break true;
        }
    };
    let status = child.wait().with_context(|| format!("waiting for {name}"))?;
    Ok(Streamed { status, left_a_process })
}

/// Runs `command` and keeps its output; past two seconds a line with `name` says that it goes on.
///
/// # Errors
/// When it cannot be started or its output cannot be read.
pub(crate) fn quiet(name: &str, mut command: Command) -> anyhow::Result<Ended> {
    let started = Instant::now();
    let (output, to_output) = io::pipe().context("making a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(to_output.try_clone().context("making a pipe")?)
        .stderr(to_output);
    let mut child = command.spawn().with_context(|| format!("starting {}", words(&command)))?;
    drop(command); // It holds our copies of the pipe's writing end; without this the reader would never see the end.

    let kept = Arc::new(Mutex::new(Vec::new()));
    let (done, is_done) = mpsc::sync_channel::<()>(0);
    let reader = thread::spawn({
        let kept = Arc::clone(&kept);
        move || {
            let _done = done; // Dropped when the output ends, which wakes the loop below.
            keep(output, &kept)
        }
    });
    let mut next_sign = FIRST_SIGN;
    while let Err(RecvTimeoutError::Timeout) =
        is_done.recv_timeout(next_sign.saturating_sub(started.elapsed()))
    {
        let last_line = last_line(&kept.lock().unwrap_or_else(PoisonError::into_inner));
        println!("    {name}: {} s{last_line}", started.elapsed().as_secs());
        next_sign += NEXT_SIGN;
    }
    match reader.join() {
        Ok(read) => read.context("reading the child's output")?,
        Err(_) => anyhow::bail!("the reader of {name} panicked"),
    }
    let status = child.wait().with_context(|| format!("waiting for {name}"))?;
    let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Ended { status, output: String::from_utf8_lossy(&kept).into_owned() })
}

/// The command as somebody would type it.
pub(crate) fn words(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let mut words = program.rsplit('/').next().unwrap_or(&program).to_owned();
    for argument in command.get_args() {
        words.push(' ');
        words.push_str(&argument.to_string_lossy());
    }
    words
}

/// Sends each line, its end included, until there is no more or nobody listens.
fn send_lines(output: PipeReader, to_lines: &SyncSender<io::Result<Vec<u8>>>) {
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        let line = match output.read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => Ok(line),
            Err(error) => Err(error),
        };
        let is_last = line.is_err();
        if to_lines.send(line).is_err() || is_last {
            return;
        }
    }
}

/// Starts `command` with both its outputs in one pipe.
///
/// `command` holds our copies of the pipe's writing end: while it lives, the reader never sees the end.
fn spawn_piped(command: &mut Command) -> anyhow::Result<(Child, PipeReader)> {
    let (output, to_output) = io::pipe().context("making a pipe")?;
    command.stdout(to_output.try_clone().context("making a pipe")?).stderr(to_output);
    let child = command.spawn().with_context(|| format!("starting {}", words(command)))?;
    Ok((child, output))
}

/// Reads to the end, and keeps the end.
fn keep(mut output: impl Read, kept: &Mutex<Vec<u8>>) -> io::Result<()> {
    let mut piece = [0; 4096];
    loop {
        let length = output.read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&piece[..length]);
        if kept.len() > 2 * KEPT_BYTES_MAX {
            let excess = kept.len() - KEPT_BYTES_MAX;
            kept.drain(..excess);
        }
    }
}

/// `": the last line"` of what a child said, shortened, or nothing when it said nothing.
fn last_line(output: &[u8]) -> String {
    let line = output
        .rsplit(|byte| matches!(byte, b'\n' | b'\r'))
        .find(|line| !line.trim_ascii().is_empty());
    match line.map(|line| String::from_utf8_lossy(line.trim_ascii())) {
        Some(line) => format!(": {}", line.chars().take(SIGN_CHARS_MAX).collect::<String>()),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{last_line, quiet, stream_lines};

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_quiet_child_keeps_both_outputs_in_order_and_its_exit_code() {
        let ended = quiet("shell", shell("echo one; echo two >&2; echo three; exit 7")).unwrap();
        assert_eq!(ended.output, "one\ntwo\nthree\n");
        assert_eq!(ended.status.code(), Some(7));
    }

    #[test]
    fn a_child_that_cannot_start_is_named() {
        let error = quiet("nothing", Command::new("no-such-program-here")).unwrap_err();
        assert_eq!(error.to_string(), "starting no-such-program-here");
    }

    #[test]
    fn a_streamed_child_shows_each_line_even_one_that_is_not_text() {
        let mut lines = Vec::new();
        let script = shell(r"echo a >&2; printf '\377\n'; printf b >&2");
        let streamed = stream_lines(script, |line| lines.push(line.to_owned())).unwrap();
        assert!(streamed.status.success() && !streamed.left_a_process);
        assert_eq!(lines, ["a", "\u{fffd}", "b"]);
    }

    #[test]
    fn a_process_that_outlives_the_child_is_noticed_and_not_waited_for() {
        let streamed = stream_lines(shell("echo begun; sleep 8 & exit 3"), |_| ()).unwrap();
        assert!(streamed.left_a_process);
        assert_eq!(streamed.status.code(), Some(3));
    }

    #[test]
    fn a_sign_of_life_shows_the_last_line_that_says_something() {
        assert_eq!(last_line(b""), "");
        assert_eq!(last_line(b"first\nsecond\r\n\n"), ": second");
        assert_eq!(last_line(b"10%\r20%\r"), ": 20%");
    }
}
