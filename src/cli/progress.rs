//! How far long work is, on the last line of a terminal: nothing where nobody looks at one.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::text::cut;

/// How often the line is drawn.
const EVERY: Duration = Duration::from_millis(200);
/// Characters of the bar.
const BAR: usize = 24;
/// The width of a terminal that does not tell.
const WIDTH: usize = 80;

/// How far the work is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HowFar {
    /// What is being done.
    pub doing: &'static str,
    /// Of `total`.
    pub done: u64,
    /// 0: nobody knows.
    pub total: u64,
}

/// A line that a thread draws, until this is dropped; then the line is gone.
#[derive(Debug)]
pub struct Progress(Option<(Sender<()>, JoinHandle<()>)>);

impl Progress {
    /// Draws what `look` tells, from now on, if standard error is a terminal.
    pub fn start(look: impl Fn() -> HowFar + Send + 'static) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let (end, ended) = mpsc::channel();
        let began = Instant::now();
        let draw = move || {
            loop {
                let width = terminal_size::terminal_size_of(io::stderr()).map_or(WIDTH, |(width, _)| width.0.into());
                // A terminal that is gone has nobody to tell.
                let _ = write!(io::stderr(), "\r{}\x1b[K", line(look(), began.elapsed(), width));
                if ended.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    let _ = write!(io::stderr(), "\r\x1b[K");
                    return;
                }
            }
        };
        Self(Some((end, thread::spawn(draw))))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.0.take() {
            drop(end);
            // A panic while drawing has been told already, and costs the work nothing.
            let _ = thread.join();
        }
    }
}

/// The line, in at most `width - 1` characters, so that no terminal wraps it.
fn line(HowFar { doing, done, total }: HowFar, took: Duration, width: usize) -> String {
    let seconds = took.as_secs();
    let text = match total {
        0 => format!("{doing}: {seconds} s"),
        total => {
            let done = done.min(total);
            let part = done as f64 / total as f64;
            let filled = (part * BAR as f64) as usize;
            let bar = "#".repeat(filled) + &"-".repeat(BAR - filled);
            format!("{doing} [{bar}] {:3.0} %, {done} of {total}, {seconds} s", part * 100.0)
        }
    };
    cut(&text, width.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_how_far_it_is_and_fits() {
        let line = |done, total, width| line(HowFar { doing: "checking", done, total }, Duration::from_secs(3), width);
        assert_eq!(line(1, 4, 80), "checking [######------------------]  25 %, 1 of 4, 3 s");
        assert_eq!(line(9, 4, 80), "checking [########################] 100 %, 4 of 4, 3 s");
        assert_eq!(line(0, 0, 80), "checking: 3 s");
        assert_eq!(line(1, 4, 11), "checking …");
    }
}
