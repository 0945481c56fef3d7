//! Frames of the client that wait for something to be over.

/// Whole frames, in order. Taking some from the front moves none of the others: a client may have thousands of commits wait
/// behind one another, each of which is looked at when the one before it is over.
#[derive(Debug, Default)]
pub struct Behind {
    frames: Vec<u8>,
    /// Where those begin that still wait.
    at: usize,
}

impl Behind {
    /// One more has to wait.
    pub fn push(&mut self, frame: &[u8]) {
        // By then as many bytes were taken as are moved.
        if self.at > self.frames.len() / 2 {
            self.frames.drain(..self.at);
            self.at = 0;
        }
        self.frames.extend_from_slice(frame);
    }

    /// Takes the first bytes out.
    pub fn advance(&mut self, bytes: usize) {
        self.at += bytes;
    }

    /// All that wait.
    pub fn frames(&self) -> &[u8] {
        &self.frames[self.at..]
    }

    /// Their bytes.
    pub fn len(&self) -> usize {
        self.frames.len() - self.at
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Vec<u8>> for Behind {
    fn from(frames: Vec<u8>) -> Self {
        Self { frames, at: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_what_was_pushed_but_for_what_was_taken() {
        let (mut behind, mut model) = (Behind::default(), Vec::new());
        for step in 0..1000_usize {
            let frame = [step as u8; 7];
            behind.push(&frame);
            model.extend(frame);
            let taken = (step * 5 % 11).min(behind.len());
            behind.advance(taken);
            model.drain(..taken);
            assert_eq!(behind.frames(), model);
            assert!(behind.frames.len() <= 2 * behind.len() + 2 * frame.len(), "what was taken is given back");
        }
    }
}
