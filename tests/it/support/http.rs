//! As much of HTTP as the servers of the tests need.

use std::io::Read;

/// Reads a request: its head in small letters, and its body. `None`: whoever asked was gone before.
pub fn read_request(stream: &mut impl Read) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&piece[..read]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok())?;
        if let Some(body) = bytes[end + 4..].get(..length) {
            return Some((head, body.to_vec()));
        }
    }
}
