//! An HTTP checker, as producers have them, that can also behave badly.

use super::http::read_request;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often bytes come from those that take their time.
const DRIP: Duration = Duration::from_millis(50);

/// What a checker does with a question.
pub enum Reply {
    /// Status 200 and this word as its decision.
    Word(&'static str),
    /// Status 200 and this body.
    Body(&'static str),
    /// This status, with the body that would mean a commit.
    Status(u16),
    /// Bytes that are not HTTP.
    Rubbish,
    /// Status 200 and a body that does not end.
    Endless,
    /// The right answer, a byte at a time.
    Slow,
    /// Nothing: the connection stays open.
    Never,
}

impl From<&'static str> for Reply {
    fn from(body: &'static str) -> Self {
        Self::Body(body)
    }
}

/// A checker on a port of its own.
pub struct HttpChecker {
    /// Where to ask it.
    pub url: String,
    asked: Arc<Mutex<Vec<(String, Instant)>>>,
}

impl HttpChecker {
    /// Starts one; `answer` gets the transaction's name.
    pub fn start<R: Into<Reply>>(answer: impl Fn(&str) -> R + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (keep, answer) = (Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(mut stream), keep, answer) = (stream, Arc::clone(&keep), Arc::clone(&answer)) else { return };
                std::thread::spawn(move || {
                    // Whoever asked may be gone before it has asked, or before it is answered.
                    let Some((_, body)) = read_request(&mut stream) else { return };
                    let question: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
                    let name = question["transaction"].as_str().expect("a name").to_owned();
                    keep.lock().expect("no thread panics with it").push((name.clone(), Instant::now()));
                    let _ = reply(&mut stream, answer(&name).into());
                });
            }
        });
        Self { url: format!("http://{address}/half/check"), asked }
    }

    /// The names that it was asked about, and when.
    pub fn asked(&self) -> Vec<(String, Instant)> {
        self.asked.lock().expect("no thread panics with it").clone()
    }
}

fn reply(stream: &mut TcpStream, reply: Reply) -> std::io::Result<()> {
    const COMMIT: &str = "{\"decision\":\"commit\"}";
    let whole = |status: u16, body: &str| {
        format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    };
    match reply {
        Reply::Word(word) => stream.write_all(whole(200, &format!("{{\"decision\":\"{word}\"}}")).as_bytes()),
        Reply::Body(body) => stream.write_all(whole(200, body).as_bytes()),
        Reply::Status(status) => stream.write_all(whole(status, COMMIT).as_bytes()),
        Reply::Rubbish => stream.write_all(&[b'?'; 1000]),
        Reply::Endless => {
            stream.write_all(b"HTTP/1.1 200 -\r\nconnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b' '; 16 * 1024])?;
            }
        }
        Reply::Slow => whole(200, COMMIT).as_bytes().chunks(1).try_for_each(|byte| {
            std::thread::sleep(DRIP);
            stream.write_all(byte)
        }),
        // Until whoever asked hangs up.
        Reply::Never => stream.read(&mut [0]).map(drop),
    }
}
