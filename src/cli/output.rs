//! Where answers go.

use std::io::{self, ErrorKind, Stdout, Write};

/// Standard output. Its reader may have seen enough and gone, as `head` does: then the rest goes nowhere, and what was
/// asked for is done all the same.
#[derive(Debug)]
pub struct Output(Stdout);

/// Standard output.
pub fn stdout() -> Output {
    Output(io::stdout())
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        unless_gone(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        unless_gone(self.0.flush(), ())
    }
}

fn unless_gone<T>(result: io::Result<T>, done: T) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(done),
        result => result,
    }
}
